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
    assert set(traits) == {"overhead", "overhead_unknown_to_it", "kernel_modules", "units", "checks"}
    assert bool(traits["units"]) is bool(traits["checks"]) is (kind != "none")


@pytest.mark.parametrize(
    ("kind", "backend", "overhead", "modules", "units"),
    [
        ("bridge", "vxlan", 0, [], ["node-routes.service"]),
        ("flannel", "host-gw", 0, [], ["flanneld.service"]),
        ("flannel", "vxlan", 50, ["vxlan"], ["flanneld.service"]),
        ("flannel", "wireguard", 80, ["wireguard"], ["flanneld.service"]),
        ("kube_router", "vxlan", 0, [], ["kube-router.service"]),
        ("none", "vxlan", 0, [], []),
    ],
)
def test_a_network_costs_what_its_headers_are_long(
    kind: str, backend: str, overhead: int, modules: list[str], units: list[str]
) -> None:
    traits = networks.network_traits(kind, backend)
    assert (traits["overhead"], traits["kernel_modules"], traits["units"]) == (overhead, modules, units)


@pytest.mark.parametrize(
    ("kind", "backend", "overhead", "unknown"),
    [
        ("bridge", "vxlan", 0, 0),
        ("flannel", "host-gw", 0, 0),
        ("flannel", "vxlan", 70, 20),
        ("flannel", "wireguard", 80, 0),
        ("kube_router", "vxlan", 0, 0),
    ],
)
def test_ipv6_inside_ipv6_costs_more(kind: str, backend: str, overhead: int, unknown: int) -> None:
    traits = networks.network_traits(kind, backend, True)
    assert (traits["overhead"], traits["overhead_unknown_to_it"]) == (overhead, unknown)
    assert networks.network_traits(kind, backend)["overhead_unknown_to_it"] == 0


@pytest.mark.parametrize(("kind", "backend"), [("weave", "vxlan"), ("flannel", "udp")])
def test_an_unknown_network_is_named(kind: str, backend: str) -> None:
    with pytest.raises(PlainkubeError, match=f"Network '{kind}' with backend '{backend}'"):
        networks.network_traits(kind, backend)
