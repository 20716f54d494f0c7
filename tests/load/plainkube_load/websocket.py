# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""As much of RFC 6455 as short text messages need: the handshake's key, frames, and what is said at the end."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import struct
from dataclasses import dataclass

from plainkube_load.messages import BrokenOff, Malformed

_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXT, CLOSE, PING, PONG = 1, 8, 9, 10
_LARGEST = 1 << 16


def new_key() -> str:
    """Return a client's key."""
    return base64.b64encode(os.urandom(16)).decode()


def accept_of(key: str) -> str:
    """Return what a server answers to a key."""
    return base64.b64encode(hashlib.sha1((key + _GUID).encode()).digest()).decode()


@dataclass(frozen=True)
class Frame:
    """One whole frame."""

    opcode: int
    payload: bytes

    @property
    def reason(self) -> str:
        """What a closing frame says."""
        return str(struct.unpack("!H", self.payload[:2])[0]) if len(self.payload) >= 2 else "without a reason"


def _masked(payload: bytes, mask: bytes) -> bytes:
    return bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))


def render(frame: Frame, mask: bytes = b"") -> bytes:
    """Return a frame as it goes over the wire; a client's frames have a mask of four bytes."""
    size = len(frame.payload)
    bit = 0x80 if mask else 0
    if size < 126:
        head = struct.pack("!BB", 0x80 | frame.opcode, bit | size)
    else:
        head = struct.pack("!BBH", 0x80 | frame.opcode, bit | 126, size)
    return head + mask + (_masked(frame.payload, mask) if mask else frame.payload)


async def read(reader: asyncio.StreamReader) -> Frame:
    """Return the next frame. Raises BrokenOff and Malformed."""
    begun = False
    try:
        first, second = await reader.readexactly(2)
        begun = True
        size = second & 0x7F
        if size == 126:
            (size,) = struct.unpack("!H", await reader.readexactly(2))
        if not first & 0x80 or size >= _LARGEST or second & 0x7F == 127:
            raise Malformed("a frame that is longer than any that was sent")
        mask = await reader.readexactly(4) if second & 0x80 else b""
        payload = await reader.readexactly(size)
    except asyncio.IncompleteReadError as error:
        raise BrokenOff(begun or bool(error.partial)) from error
    return Frame(first & 0x0F, _masked(payload, mask) if mask else payload)


def closing(code: int) -> Frame:
    """Return a closing frame."""
    return Frame(CLOSE, struct.pack("!H", code))
