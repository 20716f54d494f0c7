# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The check of longest packets against real network namespaces: two "pods" with a router between them. Needs root."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils.checks import attempt

MARK = f"pk{os.getpid()}"
POD, ROUTER, OTHER = f"{MARK}-pod", f"{MARK}-router", f"{MARK}-other"
PORT = 8081
IPV4, IPV6 = ("198.51.100.2", "203.0.113.2"), ("2001:db8:1::2", "2001:db8:2::2")
ECHO = (
    "import socket\n"
    # A socket that takes packets of both families.
    "server = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)\n"
    f"server.bind(('::', {PORT}))\n"
    "print('ready', flush=True)\n"
    "while True:\n"
    "    data, client = server.recvfrom(2048)\n"
    "    server.sendto(data[5:], client)\n"
)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def inside(name: str, *words: str) -> None:
    subprocess.run(["ip", "netns", "exec", name, *words], check=True, capture_output=True, text=True)


@pytest.fixture
def network() -> Iterator[None]:
    """Make pod - router - other, each link with an MTU of 1500, and let other echo."""
    try:
        for name in (POD, ROUTER, OTHER):
            ip("netns", "add", name)
            # Nobody has to wait until the kernel knows its addresses to be its own.
            inside(name, "sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")
        for name, link in ((POD, "a"), (OTHER, "b")):
            ip("link", "add", f"{link}{MARK}", "netns", ROUTER, "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", ROUTER, "link", "set", f"{link}{MARK}", "up")
        for name, link, host, gateway in (
            (POD, "a", f"{IPV4[0]}/24", "198.51.100.1/24"),
            (OTHER, "b", f"{IPV4[1]}/24", "203.0.113.1/24"),
            (POD, "a", f"{IPV6[0]}/64", "2001:db8:1::1/64"),
            (OTHER, "b", f"{IPV6[1]}/64", "2001:db8:2::1/64"),
        ):
            ip("-n", name, "address", "add", host, "dev", "eth0")
            ip("-n", ROUTER, "address", "add", gateway, "dev", f"{link}{MARK}")
            ip("-n", name, "route", "add", "default", "via", gateway.partition("/")[0])
        inside(ROUTER, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        command = ["ip", "netns", "exec", OTHER, sys.executable, "-c", ECHO]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            assert server.stdout.readline().strip() == "ready"
            yield
            server.kill()
    finally:
        for name in (POD, ROUTER, OTHER):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def check(addresses: tuple[str, str] = IPV4) -> tuple[bool, str]:
    source, target = addresses
    result = attempt({"type": "unfragmented", "source": source, "host": target, "port": PORT, "timeout": 1})
    return result.ok, result.seen


@pytest.mark.parametrize("addresses", [IPV4, IPV6])
@pytest.mark.usefixtures("network")
def test_a_way_that_carries_the_pod_s_longest_packet_passes(addresses: tuple[str, str]) -> None:
    own = Path("/proc/thread-self/ns/net").readlink()
    assert check(addresses) == (True, "1500 bytes arrive")
    # The check must leave this thread where it was.
    assert Path("/proc/thread-self/ns/net").readlink() == own


@pytest.mark.parametrize("addresses", [IPV4, IPV6])
@pytest.mark.usefixtures("network")
def test_a_narrow_link_on_the_way_is_found_by_its_size(addresses: tuple[str, str]) -> None:
    ip("-n", ROUTER, "link", "set", f"b{MARK}", "mtu", "1430")
    ok, seen = check(addresses)
    assert not ok
    assert seen.endswith("1420 bytes do arrive")


@pytest.mark.usefixtures("network")
def test_a_narrow_link_is_found_where_icmp_is_lost_too() -> None:
    ip("-n", ROUTER, "link", "set", f"b{MARK}", "mtu", "1430")
    rule = "table ip t { chain c { type filter hook output priority 0; icmp type destination-unreachable drop; }; }"
    inside(ROUTER, "nft", rule)
    assert check() == (False, "no answer in time; 1420 bytes do arrive")


@pytest.mark.usefixtures("network")
def test_a_way_that_carries_nothing_is_told_from_a_narrow_one() -> None:
    ip("-n", ROUTER, "link", "set", f"b{MARK}", "down")
    ok, seen = check()
    assert not ok
    assert seen.endswith("no size arrives")
