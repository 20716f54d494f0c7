# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which network link of this host has an address, and how long its packets may be; without any program."""

from __future__ import annotations

import array
import fcntl
import socket
import struct
from pathlib import Path

# ioctl SIOCGIFCONF (netdevice(7)): the kernel fills a buffer with struct ifreq, a name of 16 bytes and an address.
SIOCGIFCONF = 0x8912
NAME_BYTES = 16
LINKS = "/sys/class/net"


def parse_ifconf(data: bytes, record: int) -> list[tuple[str, str]]:
    """Return (link, IPv4 address) of each record; a name such as eth0:1 is another address of eth0."""
    found = []
    for start in range(0, len(data) - record + 1, record):
        name = data[start : start + NAME_BYTES].split(b"\0", 1)[0].decode()
        # struct sockaddr_in: family and port come before the address.
        address = data[start + NAME_BYTES + 4 : start + NAME_BYTES + 8]
        found.append((name.partition(":")[0], socket.inet_ntoa(address)))
    return found


def ipv4_links() -> list[tuple[str, str]]:
    """Return (link, address) for all IPv4 addresses of this host."""
    # struct ifreq is as long as its largest part, struct ifmap: 40 bytes with pointers of 64 bits, 32 with those of 32.
    record = 40 if struct.calcsize("P") == 8 else 32
    size = 4096
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        while True:
            buffer = array.array("B", bytes(size))
            request = struct.pack("iP", size, buffer.buffer_info()[0])
            answer = fcntl.ioctl(asking.fileno(), SIOCGIFCONF, request)
            filled = struct.unpack("iP", answer)[0]
            # A buffer that is nearly full may have been too small.
            if filled + record <= size:
                return parse_ifconf(buffer.tobytes()[:filled], record)
            size *= 2


def link_of(address: str) -> tuple[str, int] | None:
    """Return (link, longest packet in bytes) of the link that has an IPv4 address, None when none has."""
    for name, own in ipv4_links():
        if own == address:
            return name, int(Path(LINKS, name, "mtu").read_text(encoding="ascii"))
    return None
