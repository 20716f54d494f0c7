# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Links of this host, as the kernel tells them."""

from __future__ import annotations

import struct
from pathlib import Path

from ansible_collections.plainkube.cluster.plugins.module_utils import host_links


def record(name: str, address: bytes) -> bytes:
    return struct.pack("16sHH4s16x", name.encode(), 2, 0, address)


def test_records_are_names_and_addresses() -> None:
    data = record("lo", b"\x7f\0\0\1") + record("eth0:1", b"\xc0\0\2\x0b")
    assert host_links.parse_ifconf(data, 40) == [("lo", "127.0.0.1"), ("eth0", "192.0.2.11")]


def test_a_cut_off_record_is_none() -> None:
    assert host_links.parse_ifconf(record("lo", b"\x7f\0\0\1")[:30], 40) == []


def test_the_link_of_an_address_is_found_with_its_mtu() -> None:
    expected = int(Path("/sys/class/net/lo/mtu").read_text())
    assert host_links.link_of("127.0.0.1") == ("lo", expected)


def test_an_address_that_no_link_has_is_none() -> None:
    assert host_links.link_of("192.0.2.254") is None
