# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The backend: an application as it should be.

It says when it is ready. When it is told to stop it takes nothing new, announces the end of its connections and lets
everything that is open come to its end.

    GET  /echo/<words>               the words
    POST /echo                       what was sent
    POST /upload                     the SHA-256 of what was sent, however slowly it came
    GET  /slow?seconds=90&bytes=900  so many bytes, evenly over the time
    GET  /events                     server-sent events, one each second
    GET  /websocket                  echoes messages
    GET  /ready                      200 until it is told to stop, then 503
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import signal
import urllib.parse

from plainkube_load import websocket
from plainkube_load.messages import BrokenOff, Head, Malformed, read_all, read_body, read_head, render

SLOW_BYTE = b"s"


class Backend:
    """One server with its connections."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.stopping = asyncio.Event()
        self._idle: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, address: str, port: int, drain_seconds: float) -> None:
        """Serve until told to stop, and then until nothing is open or the time is over."""
        server = await asyncio.start_server(self._accepted, address, port)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stopping.set)
        print(f"{self.name} serves {server.sockets[0].getsockname()[1]}", flush=True)
        await self.stopping.wait()
        server.close()
        for writer in self._idle:
            writer.close()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=drain_seconds)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(ConnectionError, Malformed, TimeoutError):
                await self._answer_requests(reader, writer)
        finally:
            self._tasks.discard(task)
            self._idle.discard(writer)
            writer.close()

    async def _answer_requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not self.stopping.is_set():
            self._idle.add(writer)
            head = await read_head(reader)
            self._idle.discard(writer)
            path = urllib.parse.urlsplit(head.words[1])
            if path.path == "/websocket":
                await self._websocket(head, reader, writer)
                return
            if path.path == "/events":
                await self._events(writer)
                return
            if path.path == "/slow":
                query = dict(urllib.parse.parse_qsl(path.query))
                await self._slow(writer, float(query["seconds"]), int(query["bytes"]))
            else:
                status, body = await self._short(head, path.path, reader)
                writer.write(render(f"HTTP/1.1 {status}", {**self._headers(), "Content-Length": str(len(body))}, body))
                await writer.drain()
            if head.says_close:
                return

    def _headers(self) -> dict[str, str]:
        return {
            "Content-Type": "text/plain",
            "X-Backend": self.name,
            **({"Connection": "close"} if self.stopping.is_set() else {}),
        }

    async def _short(self, head: Head, path: str, reader: asyncio.StreamReader) -> tuple[str, bytes]:
        if path == "/upload":
            digest = hashlib.sha256()
            async for part in read_body(reader, head):
                digest.update(part)
            return "200 OK", digest.hexdigest().encode()
        body = await read_all(reader, head)
        if path == "/ready":
            return ("503 Service Unavailable", b"") if self.stopping.is_set() else ("200 OK", b"")
        if path.startswith("/echo/"):
            return "200 OK", path[len("/echo/") :].encode()
        return ("200 OK", body) if path == "/echo" else ("404 Not Found", b"")

    async def _slow(self, writer: asyncio.StreamWriter, seconds: float, length: int) -> None:
        writer.write(render("HTTP/1.1 200 OK", {**self._headers(), "Content-Length": str(length)}))
        for _number in range(length):
            writer.write(SLOW_BYTE)
            await writer.drain()
            await asyncio.sleep(seconds / length)

    async def _events(self, writer: asyncio.StreamWriter) -> None:
        headers = {**self._headers(), "Content-Type": "text/event-stream", "Connection": "close"}
        writer.write(render("HTTP/1.1 200 OK", headers))
        number = 0
        while True:
            number += 1
            writer.write(f"data: {number}\n\n".encode())
            await writer.drain()
            await asyncio.sleep(1)

    async def _websocket(self, head: Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accept = websocket.accept_of(head.headers["sec-websocket-key"])
        headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": accept}
        writer.write(render("HTTP/1.1 101 Switching Protocols", headers))
        while True:
            try:
                frame = await websocket.read(reader)
            except BrokenOff:
                return
            writer.write(websocket.render(frame))
            await writer.drain()
            if frame.opcode == websocket.CLOSE:
                return


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="default: one that is free, which is then said")
    parser.add_argument("--name", default="backend", help="what answers carry as X-Backend")
    parser.add_argument("--drain-seconds", type=float, default=600, help="how long what is open may last at the end")
    options = parser.parse_args()
    asyncio.run(Backend(options.name).serve(options.address, options.port, options.drain_seconds))


if __name__ == "__main__":
    main()
