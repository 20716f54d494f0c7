# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The unit that keeps routes equal to the list of nodes: its decisions, without a host or an API."""

from __future__ import annotations

import json
from typing import Any

import node_routes
import pytest


def node(name: str, network: str | None, address: str | None, version: str = "1") -> dict[str, Any]:
    """Return a node object with what matters here."""
    addresses = [{"type": "Hostname", "address": name}]
    if address:
        addresses.append({"type": "InternalIP", "address": address})
    return {
        "metadata": {"name": name, "resourceVersion": version},
        "spec": {"podCIDR": network} if network else {},
        "status": {"addresses": addresses},
    }


NODES = {
    "a": node("a", "10.244.0.0/24", "192.0.2.1"),
    "b": node("b", "10.244.1.0/24", "192.0.2.2"),
    # Registered a moment ago.
    "c": node("c", None, "192.0.2.3"),
    "d": node("d", "10.244.3.0/24", None),
}


def test_routes_lead_to_all_other_nodes_that_are_ready_for_it() -> None:
    assert node_routes.wanted_routes(NODES, "a") == {"10.244.1.0/24": "192.0.2.2"}


def test_routes_of_both_families_lead_to_addresses_of_their_own() -> None:
    both = node("b", "10.244.1.0/24", "192.0.2.2")
    both["spec"]["podCIDRs"] = ["10.244.1.0/24", "fd00:10:244:1::/64"]
    only_ipv4 = node_routes.wanted_routes({"b": both}, "a")
    assert only_ipv4 == {"10.244.1.0/24": "192.0.2.2"}
    both["status"]["addresses"].append({"type": "InternalIP", "address": "2001:db8::2"})
    wanted = node_routes.wanted_routes({"b": both}, "a")
    assert wanted == {**only_ipv4, "fd00:10:244:1::/64": "2001:db8::2"}
    assert [
        " ".join(command) for command in node_routes.route_commands({"fd00:10:244:9::/64": "2001:db8::9"}, wanted)
    ] == [
        "ip -6 route del fd00:10:244:9::/64 proto 76",
        "ip -4 route replace 10.244.1.0/24 via 192.0.2.2 proto 76",
        "ip -6 route replace fd00:10:244:1::/64 via 2001:db8::2 proto 76",
    ]


@pytest.mark.parametrize(
    ("present", "wanted", "commands"),
    [
        ({}, {}, []),
        ({"10.244.1.0/24": "192.0.2.2"}, {"10.244.1.0/24": "192.0.2.2"}, []),
        ({}, {"10.244.1.0/24": "192.0.2.2"}, ["ip -4 route replace 10.244.1.0/24 via 192.0.2.2 proto 76"]),
        ({"10.244.1.0/24": "192.0.2.2"}, {}, ["ip -4 route del 10.244.1.0/24 proto 76"]),
        (
            {"10.244.1.0/24": "192.0.2.2"},
            {"10.244.1.0/24": "192.0.2.9"},
            ["ip -4 route replace 10.244.1.0/24 via 192.0.2.9 proto 76"],
        ),
    ],
)
def test_commands_lead_from_present_to_wanted(
    present: dict[str, str], wanted: dict[str, str], commands: list[str]
) -> None:
    assert [" ".join(command) for command in node_routes.route_commands(present, wanted)] == commands


def test_present_routes_are_read_from_the_output_of_ip() -> None:
    listing = json.dumps([{"dst": "10.244.1.0/24", "gateway": "192.0.2.2", "dev": "eth0", "protocol": "76"}])
    assert node_routes.present_routes(listing) == {"10.244.1.0/24": "192.0.2.2"}
    assert node_routes.present_routes("") == {}
