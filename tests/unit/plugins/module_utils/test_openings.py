# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which ports a host must open follows from what it is and what the cluster's networks and edges are."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils import openings, purposes

HOSTS = {name: {"name": name, "address": f"192.0.2.{number}"} for number, name in enumerate("abcde", start=1)}
CLUSTER: dict[str, Any] = {
    "topology": {
        "etcd": [HOSTS["a"], HOSTS["b"]],
        "control_plane": [HOSTS["a"]],
        "nodes": [HOSTS["a"], HOSTS["c"], HOSTS["d"]],
        "ingress": [HOSTS["c"], HOSTS["d"]],
        "edge": [HOSTS["e"]],
    }
}


def open_ports(host: str, **choices: Any) -> set[str]:
    rows = openings.openings({**CLUSTER, **choices}, host)
    return {f"{row['protocol']} {row['port']}".strip() for row in rows if not row["local"]}


EVERY = {"tcp 22", "icmp"}
NODE = EVERY | {"tcp 10250", "tcp 10256", "tcp 30000-32767", "udp 30000-32767"}


def test_a_host_opens_what_its_roles_need_and_no_more() -> None:
    assert open_ports("b") == EVERY | {"tcp 2379", "tcp 2380"}
    assert open_ports("c") == NODE | {"any 10.244.0.0/16"}
    assert open_ports("a") == NODE | {"any 10.244.0.0/16", "tcp 2379", "tcp 2380", "tcp 6443"}
    assert open_ports("e") == EVERY


@pytest.mark.parametrize(
    ("network", "backend", "more"),
    [
        ("bridge", "", {"any 10.244.0.0/16"}),
        ("flannel", "host-gw", {"any 10.244.0.0/16"}),
        ("flannel", "vxlan", {"udp 8472"}),
        ("flannel", "wireguard", {"udp 51820"}),
        ("kube_router", "", {"any 10.244.0.0/16", "tcp 179"}),
        # Somebody else's network needs what somebody else says.
        ("none", "", set()),
    ],
)
def test_a_network_opens_its_own_ports_between_nodes(network: str, backend: str, more: set[str]) -> None:
    assert open_ports("c", network=network, backend=backend) == NODE | more
    assert open_ports("b", network=network, backend=backend) == EVERY | {"tcp 2379", "tcp 2380"}


def test_pods_pass_with_the_addresses_of_both_families() -> None:
    assert open_ports("c", pod_cidrs=["10.244.0.0/16", "fd00::/48"]) == NODE | {"any 10.244.0.0/16", "any fd00::/48"}


def test_instances_of_the_ingress_open_their_ports_on_their_hosts_alone() -> None:
    instance = {"name": "shop", "http_port": 8080, "https_port": 8443, "ping_port": 8082, "host_names": ["c"]}
    choices = {"ingress_instances": [instance]}
    assert open_ports("c", **choices) - open_ports("c") == {"tcp 8080", "tcp 8443", "tcp 8082"}
    assert open_ports("d", **choices) == open_ports("d")
    words = [row["what_for"] for row in openings.openings({**CLUSTER, **choices}, "c")]
    assert "HTTP for Ingresses, by a pod's host port (instance shop)" in words


def test_services_of_the_edge_open_their_ports() -> None:
    choices = {"edge_services": [{"name": "api", "port": 6443}], "edge_address": "192.0.2.100"}
    assert open_ports("e", **choices) == EVERY | {"tcp 6443", "vrrp"}


def test_rows_name_who_comes_by_address() -> None:
    rows = {(row["port"], row["local"]): row for row in openings.openings(CLUSTER, "a")}
    assert rows[("2379", False)]["addresses"] == ["192.0.2.2"]
    assert rows[("10250", False)]["addresses"] == ["192.0.2.3", "192.0.2.4"]
    assert rows[("2380", False)]["from"] == ["etcd members"]
    assert rows[("2381", True)]["addresses"] == []


def test_a_firewall_is_told_for_every_host_in_words() -> None:
    told = openings.firewall(CLUSTER)
    assert list(told) == ["a", "b", "c", "d", "e"]
    assert "tcp 2380 from etcd members: members among themselves" in told["b"]
    assert not any("2381" in line for line in told["b"])


def test_the_cache_of_names_and_policies_are_for_the_host_alone() -> None:
    local = {
        row["port"] for row in openings.openings({**CLUSTER, "dns_cache": True, "policies": True}, "c") if row["local"]
    }
    assert {"53", "9253", "20244"} <= local
    assert not {"53", "20244"} & {row["port"] for row in openings.openings(CLUSTER, "c")}


def test_every_row_speaks_of_known_places_and_conditions() -> None:
    for opening in purposes.OPENINGS:
        assert {opening.on, *opening.sources} <= set(purposes.PLACES)
        assert opening.only in purposes.CONDITIONS
        assert opening.what_for


def test_the_page_has_every_row() -> None:
    page = "\n".join(openings.page_tables())
    assert all(opening.what_for in page for opening in purposes.OPENINGS)
    assert all(f"## To {purposes.PLACES[place]}" in page for place in openings.GROUPS)
    assert "{" not in page
