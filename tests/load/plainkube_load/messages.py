# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""HTTP/1.1 messages on asyncio streams, for client and backend: heads, bodies by length, in chunks or to the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

MOST_BYTES = 1 << 20


class Malformed(ValueError):
    """What came is no HTTP."""


class BrokenOff(ConnectionError):
    """The connection ended; begun says whether a part of the message had come."""

    def __init__(self, begun: bool) -> None:
        super().__init__("cut" if begun else "closed")
        self.begun = begun


@dataclass(frozen=True)
class Head:
    """Start line and headers of a message; names of headers are in lower case."""

    start: str
    headers: dict[str, str]

    @property
    def words(self) -> list[str]:
        """The start line's three parts."""
        return self.start.split(" ", 2)

    @property
    def status(self) -> int:
        """The status of an answer."""
        return int(self.words[1])

    @property
    def says_close(self) -> bool:
        """Whether whoever sent this closes the connection after it."""
        options = {option.strip().lower() for option in self.headers.get("connection", "").split(",")}
        return "close" in options or ("HTTP/1.0" in self.start and "keep-alive" not in options)


def parse_head(raw: bytes) -> Head:
    """Return the head that ends with an empty line. Raises Malformed."""
    start, *lines = raw.decode("latin-1").split("\r\n")
    headers = {}
    for line in lines:
        if line:
            name, colon, value = line.partition(":")
            if not colon:
                raise Malformed(f"no header: {line[:60]!r}")
            headers[name.lower()] = value.strip()
    if "HTTP/1." not in start or len(start.split(" ", 2)) < 2:
        raise Malformed(f"no start of a message: {start[:60]!r}")
    return Head(start, headers)


async def read_head(reader: asyncio.StreamReader) -> Head:
    """Return the next message's head. Raises BrokenOff and Malformed."""
    try:
        return parse_head(await reader.readuntil(b"\r\n\r\n"))
    except asyncio.IncompleteReadError as error:
        raise BrokenOff(bool(error.partial)) from error
    except asyncio.LimitOverrunError as error:
        raise Malformed("a head without an end") from error


async def read_body(reader: asyncio.StreamReader, head: Head) -> AsyncIterator[bytes]:
    """Yield a message's body as it comes. Raises BrokenOff and Malformed."""
    try:
        if head.headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
                yield (await reader.readexactly(size + 2))[:-2]
            while await reader.readuntil(b"\r\n") != b"\r\n":
                pass
        elif "content-length" in head.headers:
            missing = int(head.headers["content-length"])
            while missing:
                part = await reader.read(min(missing, 1 << 16))
                if not part:
                    raise BrokenOff(True)
                missing -= len(part)
                yield part
        elif head.start.startswith("HTTP/"):
            while part := await reader.read(1 << 16):
                yield part
    except asyncio.IncompleteReadError as error:
        raise BrokenOff(True) from error
    except ValueError as error:
        raise Malformed(f"no body: {error}") from error


async def read_all(reader: asyncio.StreamReader, head: Head) -> bytes:
    """Return a message's whole body, of at most MOST_BYTES. Raises BrokenOff and Malformed."""
    body = b""
    async for part in read_body(reader, head):
        body += part
        if len(body) > MOST_BYTES:
            raise Malformed(f"a body of more than {MOST_BYTES} bytes")
    return body


def render(start: str, headers: dict[str, str], body: bytes = b"") -> bytes:
    """Return a message as it goes over the wire."""
    lines = [start, *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
