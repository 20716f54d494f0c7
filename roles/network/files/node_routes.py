#!/usr/bin/python3
# Managed by plainkube.cluster, role network.
# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Keeps this host's routes to the pods of every other node, and the CNI configuration for its own pods.

It reads the list of nodes from the API and follows its changes. Each node says which part of the pod network it has
(spec.podCIDR) and at which address it is reached; that is one route, and where there are networks of IPv6 too
(spec.podCIDRs) one more. Look at them with: ip route show proto 76, and ip -6 route show proto 76
"""

from __future__ import annotations

import argparse
import http.client
import json
import subprocess
import sys
import time
from typing import Any

# Both lie beside this program.
from api_watch import Api, apply_event, notify
from cni_configuration import configure

# Marks the routes that are ours among all routes of the host (ip-route(8), "proto"); nothing else uses the number.
ROUTE_PROTOCOL = "76"
NODES = "/api/v1/nodes?"
RETRY_SECONDS = 2
# The options of ip(8) for both families of addresses.
FAMILIES = ("-4", "-6")


def family(network: str) -> str:
    """Return the option of ip(8) for the family of a network or address."""
    return FAMILIES[":" in network]


def node_routes(node: dict[str, Any]) -> dict[str, str]:
    """Return {pod network: address} of a node object, empty while it has not got both of a family."""
    spec = node.get("spec", {})
    networks = spec.get("podCIDRs") or ([spec["podCIDR"]] if spec.get("podCIDR") else [])
    addresses: dict[str, str] = {}
    for item in node.get("status", {}).get("addresses", []):
        if item["type"] == "InternalIP":
            addresses.setdefault(family(item["address"]), item["address"])
    return {network: addresses[family(network)] for network in networks if family(network) in addresses}


def wanted_routes(nodes: dict[str, dict[str, Any]], own_name: str) -> dict[str, str]:
    """Return {pod network: address to send to} for all nodes but this one."""
    return {
        network: address
        for name, node in nodes.items()
        if name != own_name
        for network, address in node_routes(node).items()
    }


def present_routes(listing: str) -> dict[str, str]:
    """Return {destination: gateway} from the output of ip -j route."""
    return {route["dst"]: route.get("gateway", "") for route in json.loads(listing or "[]")}


def route_commands(present: dict[str, str], wanted: dict[str, str]) -> list[list[str]]:
    """Return the ip commands that lead from the present routes to the wanted ones; none when they are equal."""
    stale = [
        ["ip", family(network), "route", "del", network, "proto", ROUTE_PROTOCOL]
        for network in sorted(set(present) - set(wanted))
    ]
    missing = [
        ["ip", family(network), "route", "replace", network, "via", address, "proto", ROUTE_PROTOCOL]
        for network, address in sorted(wanted.items())
        if present.get(network) != address
    ]
    return stale + missing


class Host:
    """This host's routes and CNI configuration."""

    def __init__(self, node: str, address: str, bridge: str, chosen_mtu: int, families: int) -> None:
        self.node = node
        self.address = address
        self.bridge = bridge
        self.chosen_mtu = chosen_mtu
        self.families = families

    def mtu(self) -> int:
        """Return the longest packet of pods in bytes: the chosen one, else what the link with our address carries."""
        if self.chosen_mtu:
            return self.chosen_mtu
        links = json.loads(run(["ip", "-j", "address", "show"]))
        for link in links:
            if any(item.get("local") == self.address for item in link.get("addr_info", [])):
                return int(link["mtu"])
        raise OSError(f"no link of this host has the address {self.address}; correct plainkube_address")

    def reconcile(self, nodes: dict[str, dict[str, Any]]) -> bool:
        """Make routes and configuration equal to the list of nodes. Return whether this host's pods can start."""
        present: dict[str, str] = {}
        for option in FAMILIES[: self.families]:
            present.update(present_routes(run(["ip", option, "-j", "route", "show", "proto", ROUTE_PROTOCOL])))
        for command in route_commands(present, wanted_routes(nodes, self.node)):
            run(command)
            print(" ".join(command), flush=True)
        own = list(node_routes(nodes.get(self.node, {})))
        if len(own) < self.families:
            return False
        configure(own, self.bridge, self.mtu())
        return True


def run(command: list[str]) -> str:
    """Return what a command prints. Raises OSError with its own words when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    if done.returncode != 0:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def follow(api: Api, host: Host) -> None:
    """Read the list of nodes, then follow its changes for as long as the API server lets us."""
    nodes, version = api.collection(NODES)
    while True:
        if host.reconcile(nodes):
            notify("READY=1")
        notify("WATCHDOG=1")
        for event in api.changes(NODES, version):
            latest = apply_event(nodes, event)
            if latest is None:
                return
            version = latest
            if event["type"] != "BOOKMARK" and host.reconcile(nodes):
                notify("READY=1")
            notify("WATCHDOG=1")


def main() -> None:
    """Follow the list of nodes for ever; say what went wrong and try again."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, help_text in (
        ("node", "name of this host's node"),
        ("address", "address of this host that the other nodes send to"),
        ("bridge", "name of the bridge that pods are connected to"),
        ("mtu", "longest packet of pods in bytes, 0 for what the link with the address carries"),
        ("server", "URL of the API"),
        ("ca", "file of the API's authority"),
        ("certificate", "file of the client certificate"),
        ("key", "file of the client certificate's key"),
    ):
        parser.add_argument(f"--{name}", required=True, help=help_text)
    parser.add_argument("--families", type=int, default=1, help="1 for pods with IPv4 alone, 2 for IPv6 as well")
    options = parser.parse_args()
    api = Api([options.server], options.ca, options.certificate, options.key)
    host = Host(options.node, options.address, options.bridge, int(options.mtu), options.families)
    while True:
        try:
            follow(api, host)
        except (OSError, http.client.HTTPException, ValueError) as error:
            print(f"{error}; trying again in {RETRY_SECONDS} s", file=sys.stderr, flush=True)
            # Not being able to ask is no reason to be restarted: the routes are as they were.
            notify("WATCHDOG=1")
            time.sleep(RETRY_SECONDS)


if __name__ == "__main__":
    main()
