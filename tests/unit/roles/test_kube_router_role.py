# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The unit of kube-router: no secret in its arguments, and nothing of the network where it is a firewall alone."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

ROLE = Path(__file__).resolve().parents[3] / "roles" / "kube_router"
UNIT = (ROLE / "templates/etc/systemd/system/kube-router.service.j2").read_text(encoding="utf-8")
VARIABLES = yaml.safe_load((ROLE / "vars/main.yml").read_text(encoding="utf-8"))
PEERS = [
    {"address": "192.0.2.1", "as_number": 64600, "password": "hush"},
    {"address": "192.0.2.2", "as_number": 64601},
]


def environment() -> jinja2.Environment:
    made = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined)
    made.filters["b64encode"] = lambda text: base64.b64encode(text.encode()).decode()
    return made


def unit(**inputs: Any) -> str:
    given = {
        "kube_router_firewall": True,
        "kube_router_routes": False,
        "kube_router_sync_seconds": 60,
        "kube_router_closed_until_known": False,
        "kube_router_start_commands": [],
        "kube_router_extra_arguments": {},
        "kube_router_as_number": 64512,
        "kube_router_peers": [],
        "kube_router_tunnel": "none",
        "kube_router_mtu": 0,
        "kube_router_memory_limit": "512M",
        "kube_router_cpu_limit": "100%",
        "cluster_dual_stack": False,
        "cluster_service_cidrs": ["10.96.0.0/16"],
        "inventory_hostname": "node1",
        "cluster_versions": {"kube-router": "2.10.0"},
        **inputs,
    }
    passwords = environment().compile_expression(VARIABLES["__kube_router_passwords"].strip("{} "))
    return environment().from_string(UNIT).render(**given, __kube_router_passwords=passwords(**given))


def arguments(text: str) -> dict[str, str]:
    command = text[text.index("ExecStart=") :].split("\n\n")[0].split("\nRestart")[0]
    words = [word for word in command.replace("\\\n", " ").split() if word.startswith("--")]
    return dict(word[2:].split("=", 1) for word in words)


def test_policies_hold_for_ipv6_where_pods_have_it() -> None:
    assert "enable-ipv6" not in arguments(unit())
    found = arguments(unit(cluster_dual_stack=True, cluster_service_cidrs=["10.96.0.0/16", "fd00:10:96::/112"]))
    assert found["enable-ipv6"] == "true"
    assert found["service-cluster-ip-range"] == "10.96.0.0/16,fd00:10:96::/112"


def test_a_firewall_alone_is_no_network() -> None:
    text = unit()
    told = arguments(text)
    assert (told["run-firewall"], told["run-router"], told["run-service-proxy"]) == ("true", "false", "false")
    assert not {"cluster-asn", "enable-cni", "gobgp-admin-port"} & set(told)
    assert "CAP_NET_BIND_SERVICE" not in text
    assert "/etc/cni" not in text


def test_a_network_has_no_open_administration_port_and_keeps_routes_over_a_restart() -> None:
    told = arguments(unit(kube_router_routes=True, kube_router_firewall=False))
    assert (told["run-firewall"], told["run-router"]) == ("false", "true")
    assert (told["gobgp-admin-port"], told["bgp-graceful-restart"]) == ("0", "true")
    assert (told["enable-overlay"], told["auto-mtu"]) == ("false", "true")


@pytest.mark.parametrize(("tunnel", "kind"), [("other_segments", "subnet"), ("all", "full")])
def test_a_tunnel_comes_with_a_chosen_mtu(tunnel: str, kind: str) -> None:
    told = arguments(unit(kube_router_routes=True, kube_router_tunnel=tunnel, kube_router_mtu=1480))
    assert (told["enable-overlay"], told["overlay-type"], told["auto-mtu"]) == ("true", kind, "false")


def test_passwords_of_routers_are_in_a_file_one_for_each_router() -> None:
    text = unit(kube_router_routes=True, kube_router_peers=PEERS)
    told = arguments(text)
    assert told["peer-router-ips"] == "192.0.2.1,192.0.2.2"
    assert told["peer-router-asns"] == "64600,64601"
    assert told["peer-router-passwords-file"] == "/etc/kubernetes/kube-router-peer-passwords"
    assert "hush" not in text
    assert base64.b64encode(b"hush").decode() not in text
    (file,) = [item for item in VARIABLES["__kube_router_files"] if "passwords" in item.get("path", "")]
    content = environment().from_string(file["content"]).render(kube_router_peers=PEERS)
    assert content == base64.b64encode(b"hush").decode() + ","
    assert file["secret"] is True


def test_without_passwords_there_is_no_file_of_them() -> None:
    assert "peer-router-passwords-file" not in unit(kube_router_routes=True, kube_router_peers=PEERS[1:])
