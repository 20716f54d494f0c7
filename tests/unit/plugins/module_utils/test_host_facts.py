# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Texts as kernels and distributions write them become the data that preflight judges."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils import host_facts


def test_addresses_of_the_host() -> None:
    fib_trie = """Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 192.0.2.0/24 2 0 2
        |-- 192.0.2.11
           /32 host LOCAL
        |-- 192.0.2.255
           /32 link BROADCAST
Local:
        |-- 192.0.2.11
           /32 host LOCAL
"""
    assert host_facts.local_ipv4_addresses(fib_trie) == ["192.0.2.11"]
    line = "20010db8000000000000000000000001 02 40 00 80 eth0\n"
    assert host_facts.local_ipv6_addresses(line) == ["2001:db8::1"]


def test_listening_sockets_only() -> None:
    rest = "00000000:00000000 00:00000000 00000000     0        0 {} 1 0 100 0 0 10 0"
    header = "  sl  local_address rem_address st ...\n"
    listening = f"   0: 0100007F:192B 00000000:0000 0A {rest.format(111)}\n"
    connected = f"   1: 0100007F:0016 0100007F:1F90 01 {rest.format(112)}\n"
    assert host_facts.listening_sockets(header + listening + connected) == [("127.0.0.1", 6443, "111")]
    any_address = header + f"   0: {'0' * 32}:280A {'0' * 32}:0000 0A {rest.format(113)}\n"
    assert host_facts.listening_sockets(any_address) == [("::", 10250, "113")]
    mapped = header + f"   0: 0000000000000000FFFF00000B0200C0:280A {'0' * 32}:0000 0A {rest.format(114)}\n"
    assert host_facts.listening_sockets(mapped) == [("192.0.2.11", 10250, "114")]
    big_endian = header + f"   0: 7F000001:192B 00000000:0000 0A {rest.format(115)}\n"
    assert host_facts.listening_sockets(big_endian, little_endian=False) == [("127.0.0.1", 6443, "115")]


@pytest.mark.parametrize(
    ("text", "family"),
    [
        ('ID=debian\nVERSION_ID="12"\n', "debian"),
        ("ID=ubuntu\nID_LIKE=debian\n", "debian"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"\n', "rhel"),
        ('ID="rhel"\nID_LIKE="fedora"\n', "rhel"),
        ("ID=alpine\n", "alpine"),
    ],
)
def test_family_of_a_distribution(text: str, family: str) -> None:
    assert host_facts.family(host_facts.os_release(text)) == family


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("deb http://deb.debian.org/debian bookworm main\n# deb http://old.example/ x\n", (["deb.debian.org"], False)),
        ("deb [signed-by=/x] https://user:word@mirror.example:8443/debian x main\n", (["mirror.example"], False)),
        ("deb file:/srv/mirror bookworm main\n", ([], True)),
        (
            "Types: deb\nURIs: https://a.example/debian\n\nEnabled: no\nURIs: https://b.example/\n",
            (["a.example"], False),
        ),
        (
            "[on]\nbaseurl=https://a.example/x\nenabled=1\n[off]\nbaseurl=https://b.example/\nenabled=0\n",
            (["a.example"], False),
        ),
        ('Acquire::http::Proxy "http://proxy.example:3128/";\n// "http://no.example";\n', (["proxy.example"], False)),
    ],
)
def test_package_sources(text: str, expected: tuple[list[str], bool]) -> None:
    assert host_facts.source_locations([text]) == expected


@pytest.mark.parametrize(
    ("given", "state"),
    [
        ({"signs": True}, "loaded"),
        ({"builtin": "kernel/fs/overlayfs/overlay.ko\n"}, "builtin"),
        ({"available": "kernel/fs/overlayfs/overlay.ko.xz: kernel/lib/x.ko\n"}, "available"),
        ({"available": "kernel/fs/other_overlay.ko: kernel/lib/x.ko\n"}, "missing"),
        ({"configuration": "CONFIG_OVERLAY_FS=y\n"}, "builtin"),
        ({"configuration": "CONFIG_OVERLAY_FS=m\n"}, "unknown"),
        ({"configuration": "# CONFIG_OVERLAY_FS is not set\n"}, "missing"),
        ({}, "unknown"),
    ],
)
def test_state_of_a_kernel_module(given: dict[str, Any], state: str) -> None:
    texts = {"signs": False, "builtin": "", "available": "", "configuration": "", **given}
    assert host_facts.module_state("overlay", **texts) == state


def test_percentile() -> None:
    assert host_facts.percentile_99([float(number) for number in range(200)]) == 198.0
    assert host_facts.percentile_99([5.0]) == 5.0
    with pytest.raises(ValueError, match="no values"):
        host_facts.percentile_99([])


@pytest.mark.parametrize(
    ("text", "resolved", "expected"),
    [
        ("nameserver 192.0.2.53\n", "nameserver 192.0.2.54\n", "/etc/resolv.conf"),
        ("nameserver 127.0.0.53\n", "nameserver 192.0.2.54\n", host_facts.RESOLVED_FILE),
        ("nameserver 127.0.0.53\nnameserver 192.0.2.53\n", "nameserver 192.0.2.54\n", "/etc/resolv.conf"),
        ("nameserver 127.0.0.1\n", "", "/etc/resolv.conf"),
        ("", "nameserver 192.0.2.54\n", "/etc/resolv.conf"),
    ],
)
def test_the_stub_of_systemd_resolved_is_not_for_pods(text: str, resolved: str, expected: str) -> None:
    assert host_facts.resolver_file("/etc/resolv.conf", text, resolved) == expected


ROUTES, FLANNEL = {"node-routes.service": "--node=a"}, {"flanneld.service": "--kube-subnet-mgr"}
ONE_FAMILY = {"pod_cidr": "10.244.0.0/16", "pod_cidr_ipv6": "none"}
PROXY = "mode: nftables\nclusterCIDR: 10.244.0.0/16\n"
VXLAN = '{"Comment": "x", "Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "DirectRouting": false}}'


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"units": ROUTES}, {"kind": "bridge"}),
        ({"units": FLANNEL, "flannel": VXLAN}, {"kind": "flannel", "backend": "vxlan"}),
        # A run that died after the unit was written.
        ({"units": FLANNEL}, {"kind": "flannel"}),
        ({"units": FLANNEL, "flannel": "[]"}, {"kind": "flannel"}),
        ({"units": {"kube-router.service": "--run-router=true"}}, {"kind": "kube_router"}),
        # The same program enforces policies with every network.
        ({"units": {**FLANNEL, "kube-router.service": "--run-router=false"}, "flannel": ""}, {"kind": "flannel"}),
        ({"proxy": PROXY}, ONE_FAMILY),
        ({"proxy": PROXY, "foreign": ["05-x.conflist"]}, {"kind": "none", **ONE_FAMILY}),
        ({"proxy": PROXY, "foreign": ["87-podman.conflist"]}, ONE_FAMILY),
        (
            {"proxy": "clusterCIDR: 10.244.0.0/16,fd00:10:244::/48\n"},
            {"pod_cidr": "10.244.0.0/16", "pod_cidr_ipv6": "fd00:10:244::/48"},
        ),
        # Of another cluster, which another check refuses.
        ({"foreign": ["05-x.conflist"]}, {}),
        ({"controller_manager": "  --node-cidr-mask-size=25 \\\n"}, {"node_cidr_size": "25"}),
        (
            {"controller_manager": "  --node-cidr-mask-size-ipv4=25 \\\n  --node-cidr-mask-size-ipv6=64 \\\n"},
            {"node_cidr_size": "25", "node_cidr_size_ipv6": "64"},
        ),
    ],
)
def test_the_network_that_a_host_has(given: dict[str, Any], expected: dict[str, str]) -> None:
    nothing: dict[str, Any] = {"units": {}, "flannel": "", "proxy": "", "controller_manager": "", "foreign": []}
    assert host_facts.present_network(**{**nothing, **given}) == expected
