# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One connection of a client: opened, looked at, used for one request after the other."""

from __future__ import annotations

import asyncio
import ssl
import time

from plainkube_load.messages import BrokenOff, Head, Malformed, read_all, read_head
from plainkube_load.targets import Target

HEAD_BYTES = 1 << 16


class Lost(Exception):
    """A request had no good end; reason is what is counted, note what is shown once."""

    def __init__(self, reason: str, note: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.note = note


class Connection:
    """An open connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.opened = time.monotonic()
        self.answers = 0

    @property
    def closed_by_peer(self) -> bool:
        """Whether the other side has ended it, as far as this machine knows."""
        return self.reader.at_eof() or self.reader.exception() is not None or self.writer.is_closing()

    async def send(self, data: bytes) -> None:
        """Send, as far as there is room."""
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> tuple[Head, bytes]:
        """Return the next answer with its body. Raises Lost."""
        head = await self.head()
        try:
            body = await read_all(self.reader, head)
        except (OSError, Malformed) as error:
            raise Lost("cut in the answer", str(error)) from error
        self.answers += 1
        return head, body

    async def head(self) -> Head:
        """Return the next answer's head; its body is still to be read. Raises Lost."""
        try:
            while (head := await read_head(self.reader)).status == 100:
                pass
        except BrokenOff as error:
            raise Lost("cut in the answer" if error.begun else "closed before an answer", self.age) from error
        except OSError as error:
            raise Lost("reset before an answer", self.age) from error
        except (Malformed, ValueError) as error:
            raise Lost("no HTTP", str(error)) from error
        return head

    @property
    def age(self) -> str:
        """How long it was open, for notes."""
        return f"after {self.answers} answers in {time.monotonic() - self.opened:.2f} s"

    def close(self) -> None:
        """Close it; what happens to it then is nobody's business."""
        self.writer.close()


async def connect(target: Target, name: str, trust: ssl.SSLContext, seconds: float) -> Connection:
    """Open a connection; name is what TLS asks for. Raises Lost."""
    tls = target.scheme == "https"
    try:
        opening = asyncio.open_connection(
            target.address,
            target.port,
            limit=HEAD_BYTES,
            ssl=trust if tls else None,
            server_hostname=name if tls else None,
        )
        reader, writer = await asyncio.wait_for(opening, seconds)
    except asyncio.TimeoutError as error:
        raise Lost("no connection: time-out") from error
    except ssl.SSLError as error:
        raise Lost("no TLS", str(error)) from error
    except ConnectionRefusedError as error:
        raise Lost("no connection: refused") from error
    except OSError as error:
        raise Lost("no connection: reset or unreachable", str(error)) from error
    return Connection(reader, writer)
