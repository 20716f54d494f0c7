# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What follows from the choice of a pod network: the bytes that it adds to packets, kernel modules, ports, units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError

# IP and UDP headers in front of what a probe sends (RFC 791, RFC 768).
PROBE_HEADERS = 28

# Bytes that a packet between hosts is longer than the pod's own. WireGuard adds 60 over IPv4 and 80 over IPv6; flannel
# always leaves room for 80.
FLANNEL_OVERHEAD = {"host-gw": 0, "vxlan": 50, "wireguard": 80}
FLANNEL_MODULES: Mapping[str, list[str]] = {"host-gw": [], "vxlan": ["vxlan"], "wireguard": ["wireguard"]}
FLANNEL_PORTS: Mapping[str, list[dict[str, Any]]] = {
    "host-gw": [],
    "vxlan": [{"port": 8472, "protocol": "udp", "purpose": "pods' packets in VXLAN"}],
    "wireguard": [{"port": 51820, "protocol": "udp", "purpose": "pods' packets in WireGuard"}],
}
# Without a tunnel a pod's address is seen on the wire: firewalls and switches between hosts must let it pass.
FLANNEL_TUNNELS = frozenset({"vxlan", "wireguard"})


def network_traits(kind: str, backend: str) -> dict[str, Any]:
    """Return what follows from a network (plainkube_network) and flannel's backend. Raises PlainkubeError.

    overhead: bytes that it adds to a packet between hosts. tunnel: whether pods' packets travel inside of others.
    kernel_modules: what it needs beside what every node does. ports: what other nodes must reach on a node.
    units, checks: what it runs on a node, and the named checks of that.
    """
    traits: dict[str, Any] = {
        "overhead": 0,
        "tunnel": False,
        "kernel_modules": [],
        "ports": [],
        "units": [],
        "checks": [],
    }
    if kind == "bridge":
        traits.update(units=["node-routes.service"], checks=["node-routes"])
    elif kind == "flannel" and backend in FLANNEL_OVERHEAD:
        traits = {
            "overhead": FLANNEL_OVERHEAD[backend],
            "tunnel": backend in FLANNEL_TUNNELS,
            "kernel_modules": FLANNEL_MODULES[backend],
            "ports": FLANNEL_PORTS[backend],
            "units": ["flanneld.service"],
            "checks": ["flanneld"],
        }
    elif kind == "kube_router":
        traits["ports"] = [{"port": 179, "protocol": "tcp", "purpose": "routes of other nodes by BGP"}]
        traits.update(units=["kube-router.service"], checks=["kube-router"])
    elif kind != "none":
        raise PlainkubeError(
            f"Network {kind!r} with backend {backend!r}: there is no such network. "
            "See plainkube_network and plainkube_network_backend in the README of the role cluster."
        )
    return traits


def pod_mtu(link_mtu: int, overhead: int, chosen: int = 0) -> int:
    """Return the MTU of pods' interfaces: the chosen one (plainkube_pod_mtu), else what the host's link leaves."""
    return chosen or link_mtu - overhead


def probe_bytes(mtu: int) -> int:
    """Return how many bytes of UDP or ICMP echo data make an IPv4 packet of just this MTU."""
    return mtu - PROBE_HEADERS
