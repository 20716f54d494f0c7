# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What follows from the choice of a pod network: the bytes that it adds to packets, kernel modules, units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError

# Bytes that a packet between hosts is longer than the pod's own. WireGuard adds 60 over IPv4 and 80 over IPv6; flannel
# always leaves room for 80. What carries IPv6 in VXLAN is a packet of IPv6 itself, and flannel leaves no room for that.
FLANNEL_OVERHEAD = {"host-gw": 0, "vxlan": 50, "wireguard": 80}
FLANNEL_OVERHEAD_OF_IPV6 = {"host-gw": 0, "vxlan": 20, "wireguard": 0}
FLANNEL_MODULES: Mapping[str, list[str]] = {"host-gw": [], "vxlan": ["vxlan"], "wireguard": ["wireguard"]}
UNITS = {"bridge": ["node-routes"], "flannel": ["flanneld"], "kube_router": ["kube-router"], "none": []}


def network_traits(kind: str, backend: str, dual_stack: bool = False) -> dict[str, Any]:
    """Return what follows from a network (plainkube_network) and flannel's backend. Raises PlainkubeError.

    overhead: bytes that it adds to a packet between hosts; overhead_unknown_to_it: those of them that it leaves no room
    for by itself. kernel_modules: what it needs beside what every node does. units, checks: what it runs on a node, and
    the named checks of that.
    """
    if kind not in UNITS or (kind == "flannel" and backend not in FLANNEL_OVERHEAD):
        raise PlainkubeError(
            f"Network {kind!r} with backend {backend!r}: there is no such network. "
            "See plainkube_network and plainkube_network_backend in the README of the role cluster."
        )
    of_ipv6 = FLANNEL_OVERHEAD_OF_IPV6[backend] if kind == "flannel" and dual_stack else 0
    return {
        "overhead": (FLANNEL_OVERHEAD[backend] if kind == "flannel" else 0) + of_ipv6,
        "overhead_unknown_to_it": of_ipv6,
        "kernel_modules": FLANNEL_MODULES[backend] if kind == "flannel" else [],
        "units": [f"{unit}.service" for unit in UNITS[kind]],
        "checks": UNITS[kind],
    }
