# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What may be loaded: this machine's loopback and the networks of its labs, named by their addresses. Nothing else."""

from __future__ import annotations

import ipaddress
import socket
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass

# All labs of this repository have a /24 of their own in here, on a bridge of this machine.
LABS = ipaddress.IPv4Network("10.89.0.0/16")
PORTS = {"http": 80, "https": 443}


class Refused(ValueError):
    """A target that is not to be loaded."""


@dataclass(frozen=True)
class Target:
    """Where requests go."""

    scheme: str
    address: str
    port: int

    @property
    def url(self) -> str:
        """The target as it was named."""
        return f"{self.scheme}://{self.address}:{self.port}"


def source_towards(address: str) -> str:
    """Return the address of this machine that packets to another one carry; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))
        except OSError:
            return ""
        return str(probe.getsockname()[0])


def parse(url: str, source: Callable[[str], str] = source_towards) -> Target:
    """Return the target that a URL names. Raises Refused."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in PORTS or parts.path.strip("/") or parts.query:
        raise Refused(f"{url}: wanted http://ADDRESS[:PORT] or https://ADDRESS[:PORT] without a path")
    try:
        address = ipaddress.IPv4Address(parts.hostname or "")
        port = parts.port or PORTS[parts.scheme]
    except ValueError:
        raise Refused(
            f"{url}: wanted an IPv4 address instead of a name, so that nothing else is loaded by mistake"
        ) from None
    if not address.is_loopback:
        network = ipaddress.IPv4Network(f"{address}/24", strict=False)
        here = source(str(address))
        if address not in LABS or not here or ipaddress.IPv4Address(here) not in network:
            raise Refused(
                f"{url}: {address} is neither loopback nor in the network of a lab that runs on this machine; "
                "this load is for nothing else"
            )
    return Target(parts.scheme, str(address), port)
