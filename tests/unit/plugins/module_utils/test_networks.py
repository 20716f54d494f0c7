# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What follows from the choice of a pod network."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from ansible_collections.plainkube.cluster.plugins.module_utils import networks
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError

ROLES = Path(networks.__file__).resolve().parents[2] / "roles"
OPTIONS = yaml.safe_load((ROLES / "cluster/meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
KINDS = OPTIONS["plainkube_network"]["choices"]
BACKENDS = OPTIONS["plainkube_network_backend"]["choices"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_choice_of_the_contract_is_known(kind: str, backend: str) -> None:
    traits = networks.network_traits(kind, backend)
    assert set(traits) == {"overhead", "tunnel", "kernel_modules", "ports", "units", "checks"}
    assert bool(traits["units"]) is bool(traits["checks"]) is (kind != "none")


@pytest.mark.parametrize(
    ("kind", "backend", "overhead", "modules", "ports"),
    [
        ("bridge", "vxlan", 0, [], []),
        ("flannel", "host-gw", 0, [], []),
        ("flannel", "vxlan", 50, ["vxlan"], [(8472, "udp")]),
        ("flannel", "wireguard", 80, ["wireguard"], [(51820, "udp")]),
        ("kube_router", "vxlan", 0, [], [(179, "tcp")]),
        ("none", "vxlan", 0, [], []),
    ],
)
def test_a_network_costs_what_its_headers_are_long(
    kind: str, backend: str, overhead: int, modules: list[str], ports: list[tuple[int, str]]
) -> None:
    traits = networks.network_traits(kind, backend)
    assert (traits["overhead"], traits["kernel_modules"]) == (overhead, modules)
    assert [(port["port"], port["protocol"]) for port in traits["ports"]] == ports
    # What adds bytes is a tunnel, and nothing else is.
    assert traits["tunnel"] is (overhead > 0)


@pytest.mark.parametrize(("kind", "backend"), [("weave", "vxlan"), ("flannel", "udp")])
def test_an_unknown_network_is_named(kind: str, backend: str) -> None:
    with pytest.raises(PlainkubeError, match=f"Network '{kind}' with backend '{backend}'"):
        networks.network_traits(kind, backend)


@pytest.mark.parametrize(
    ("link", "overhead", "chosen", "expected"),
    [(1500, 0, 0, 1500), (1500, 50, 0, 1450), (9000, 80, 0, 8920), (9000, 50, 1400, 1400)],
)
def test_pods_send_what_the_link_leaves_unless_told_otherwise(
    link: int, overhead: int, chosen: int, expected: int
) -> None:
    assert networks.pod_mtu(link, overhead, chosen) == expected


def test_a_probe_fills_the_packet() -> None:
    # 20 bytes of IP and 8 of UDP or ICMP.
    assert networks.probe_bytes(1500) == 1472
