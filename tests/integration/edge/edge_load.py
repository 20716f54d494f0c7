# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Clients that keep their connections and never try again by themselves."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter

PAUSE = 0.01
PATIENCE = 20.0


class Load:
    """Clients on an event loop of their own: half of the requests are POSTs; and upgraded connections that live on."""

    def __init__(self, address: str, port: int, clients: int = 6, upgraded: int = 2) -> None:
        self.place = (address, port)
        self.served: Counter[str] = Counter()
        self.failed: list[str] = []
        self.echoes = 0
        self.cut: list[str] = []
        self.ending = False
        self.loop = asyncio.new_event_loop()
        self.jobs = [self.client(number) for number in range(clients)] + [self.talk() for _ in range(upgraded)]
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        async def everything() -> None:
            await asyncio.gather(*self.jobs)

        self.loop.run_until_complete(everything())

    def __enter__(self) -> Load:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ending = True
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive(), "a client waits for an answer for ever"

    @property
    def done(self) -> int:
        return sum(self.served.values())

    def wait_for_more(self, number: int) -> None:
        """Wait until this many more requests were made."""
        wanted, end = self.done + len(self.failed) + number, time.monotonic() + PATIENCE
        while self.done + len(self.failed) < wanted:
            assert time.monotonic() < end, f"{self.done} requests, {self.failed[-3:]}"
            time.sleep(0.02)

    async def client(self, number: int) -> None:
        streams = None
        while not self.ending:
            number += 1
            body = b"x" * 100 if number % 2 else b""
            method = "POST" if body else "GET"
            begin = time.strftime("%H:%M:%S")
            try:
                streams = streams or await asyncio.open_connection(*self.place)
                request = f"{method} / HTTP/1.1\r\nHost: edge\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                status, fields, answer = await asyncio.wait_for(exchange(*streams, request + body), PATIENCE)
                if status != 200:
                    self.failed.append(f"{begin} {method}: {status}")
                self.served[answer.split("\n")[0]] += status == 200
                if fields.get("connection") == "close":
                    streams[1].close()
                    streams = None
            except (OSError, EOFError, asyncio.TimeoutError) as error:
                self.failed.append(f"{begin} {method}: {error!r}")
                if streams:
                    streams[1].close()
                streams = None
            await asyncio.sleep(PAUSE)

    async def talk(self) -> None:
        reader, writer = await asyncio.open_connection(*self.place)
        writer.write(b"GET / HTTP/1.1\r\nHost: edge\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n")
        with contextlib.suppress(EOFError):
            await reader.readuntil(b"\r\n\r\n")
        while not self.ending:
            try:
                writer.write(b"ping\n")
                if await asyncio.wait_for(reader.readline(), PATIENCE) != b"ping\n":
                    raise EOFError("closed")
            except (OSError, EOFError, asyncio.TimeoutError) as error:
                self.cut.append(f"{time.strftime('%H:%M:%S')} {error!r}")
                return
            self.echoes += 1
            await asyncio.sleep(0.05)
        writer.close()


async def exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> tuple[int, dict[str, str], str]:
    """Return status, header fields and body of the answer to a request."""
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    fields = dict(line.lower().split(": ", 1) for line in head.splitlines()[1:] if ": " in line)
    body = await reader.readexactly(int(fields.get("content-length", "0")))
    return int(head.split()[1]), fields, body.decode()
