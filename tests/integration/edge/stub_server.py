#!/usr/bin/env python3
# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A backend: answers every request with its name, echoes what comes over an upgraded connection.

On SIGTERM it stops to listen, answers the requests it has, closes its connections after that, and ends. On SIGUSR1 the
path /readyz begins to say no.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import ssl


class Stub:
    def __init__(self, name: str) -> None:
        self.name = name
        self.ready = True
        self.leaving = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while await self.one(reader, writer):
                pass
        writer.close()

    async def one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Serve one request; return whether another may come."""
        request = asyncio.ensure_future(reader.readuntil(b"\r\n\r\n"))
        leaving = asyncio.ensure_future(self.leaving.wait())
        await asyncio.wait([request, leaving], return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        if not request.done():
            request.cancel()
            return False
        head = request.result().decode("latin-1")
        path = head.split()[1]
        fields: dict[str, str] = {}
        for name, value in (line.lower().split(": ", 1) for line in head.splitlines()[1:] if ": " in line):
            fields[name] = f"{fields[name]}, {value}" if name in fields else value
        body = await reader.readexactly(int(fields.get("content-length", "0")))
        if fields.get("upgrade"):
            writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n")
            while line := await reader.readline():
                writer.write(line)
            return False
        status = "503 Not Ready" if path == "/readyz" and not self.ready else "200 OK"
        shown = "".join(f"{name}: {fields[name]}\n" for name in sorted(fields) if name.startswith("x-"))
        answer = f"{self.name}\n{shown if path == '/headers' else body.decode()}".encode()
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(answer)}\r\n\r\n".encode() + answer)
        await writer.drain()
        return not self.leaving.is_set()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("name", "address", "port"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--certificate", help="file with certificate and key: speak TLS")
    options = parser.parse_args()
    stub = Stub(options.name)
    context = None
    if options.certificate:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(options.certificate)
    server = await asyncio.start_server(stub.serve, options.address, int(options.port), ssl=context)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stub.leaving.set)
    loop.add_signal_handler(signal.SIGUSR1, lambda: setattr(stub, "ready", False))
    print("ready", flush=True)
    await stub.leaving.wait()
    server.close()
    # Everything that was asked by now is answered by its own task.
    await asyncio.sleep(0.2)


if __name__ == "__main__":
    asyncio.run(main())
