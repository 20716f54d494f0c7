# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Checks of what carries packets on a host: the longest one that arrives, and the rules of kube-proxy."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ansible_collections.plainkube.cluster.plugins.module_utils.check_results import (
    Definition,
    Result,
    attempt_seconds,
    reason_of,
)

# --- Longest packets --------------------------------------------------------------------------------------------------

# From linux/in.h, linux/in6.h, linux/sched.h, linux/sockios.h: the socket module does not name them.
IP_MTU_DISCOVER, IP_PMTUDISC_PROBE = 10, 3
IPV6_MTU_DISCOVER, IPV6_PMTUDISC_PROBE = 23, 3
CLONE_NEWNET = 0x40000000
SIOCGIFMTU = 0x8921
IPV4_UDP_HEADERS, IPV6_UDP_HEADERS = 28, 48
# What Kubernetes calls a pod's own link, in every pod.
POD_LINK = b"eth0"
NETWORK_NAMESPACES = "/run/netns"
SMALLER_PACKETS = (8900, 1480, 1450, 1420, 1400, 1280, 1000, 576)
ECHO = b"echo "


@contextlib.contextmanager
def inside_network_of(address: str) -> Iterator[None]:
    """Let this thread use the network of the pod that has this address. Raises OSError."""
    import ctypes
    import socket

    library = ctypes.CDLL(None, use_errno=True)

    def enter(descriptor: int) -> None:
        if library.setns(descriptor, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    with contextlib.ExitStack() as opened:
        own = opened.enter_context(open("/proc/thread-self/ns/net", "rb"))
        for path in sorted(Path(NETWORK_NAMESPACES).iterdir()):
            with open(path, "rb") as namespace:
                enter(namespace.fileno())
            opened.callback(enter, own.fileno())
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            with socket.socket(family, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
                # Only whose address it is can take it.
                probe.bind((address, 0))
                break
        else:
            raise OSError(f"no network namespace of this host has the address {address}")
        yield


def link_mtu(name: bytes = POD_LINK) -> int:
    """Return the MTU of a link in the network of this thread. Raises OSError."""
    import fcntl
    import socket
    import struct

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        answer = fcntl.ioctl(any_socket.fileno(), SIOCGIFMTU, struct.pack("16si12x", name, 0))
    return int(struct.unpack("16si12x", answer)[1])


def echoed(host: str, port: int, size: int, timeout: float) -> str:
    """Send a packet of this size that nobody may fragment, and return why no echo came, empty when one did."""
    import socket

    is_ipv6 = ":" in host
    headers = IPV6_UDP_HEADERS if is_ipv6 else IPV4_UDP_HEADERS
    with socket.socket(socket.AF_INET6 if is_ipv6 else socket.AF_INET, socket.SOCK_DGRAM) as channel:
        channel.settimeout(timeout)
        if is_ipv6:
            channel.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_PROBE)
            # In IPv6 it is the sender itself that would cut a packet up.
            channel.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DONTFRAG, 1)
        else:
            channel.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE)
        try:
            channel.connect((host, port))
            channel.send(ECHO + b"x" * (size - headers - len(ECHO)))
            channel.recv(65536)
        except OSError as error:
            return reason_of(error)
    return ""


def attempt_unfragmented(definition: Definition) -> Result:
    """A packet as long as the source's link allows arrives in one piece at host, a pod that echoes UDP at port."""
    source, host, port = str(definition["source"]), str(definition["host"]), int(definition["port"])
    expected = f"the longest packet of the pod {source} arrives unfragmented at {host}"
    try:
        with inside_network_of(source):
            size = int(definition.get("bytes") or link_mtu())
            expected = f"a packet of {size} bytes of the pod {source}, not to be fragmented, is answered by {host}"
            fault = echoed(host, port, size, attempt_seconds(definition))
            if not fault:
                return Result(True, f"{size} bytes arrive", expected)
            smaller = (tried for tried in SMALLER_PACKETS if tried < size and not echoed(host, port, tried, 0.3))
            arrives = next(smaller, 0)
    except OSError as error:
        return Result(False, reason_of(error), expected)
    return Result(False, f"{fault}; {f'{arrives} bytes do arrive' if arrives else 'no size arrives'}", expected)


# --- kube-proxy's rules -----------------------------------------------------------------------------------------------

# It has about 20 that do not depend on Services; many more would be somebody else's in its table.
FIXED_RULES_AT_MOST = 60


def attempt_proxy_rules(definition: Definition) -> Result:
    """kube-proxy's table (of the family ip, or ip6) has no more rules than the Services explain."""
    from ansible_collections.plainkube.cluster.plugins.module_utils.host_reading import ReadError, run_json
    from ansible_collections.plainkube.cluster.plugins.module_utils.proxy_rules import Table, count

    family = str(definition.get("family") or "ip")
    expected = f"each rule in table {family} kube-proxy is explained by a Service"
    try:
        table = Table(run_json(["nft", "-j", "-t", "list", "table", family, "kube-proxy"]) or {})
    except ReadError as error:
        return Result(True, f"kube-proxy keeps no table of nftables here ({error})", expected, applicable=False)
    counts = count(table)
    fixed = counts.kinds.get("", (0, 0))[1]
    seen = (
        f"{counts.rules} rules in {counts.chains} chains: {fixed} fixed, "
        f"{counts.rules - fixed} for {counts.ports} ports of Services"
    )
    return Result(fixed <= FIXED_RULES_AT_MOST, seen, expected)
