# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The clients. None of them sends anything twice: what was lost is counted and stays lost."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import ssl
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from plainkube_load import websocket
from plainkube_load.connection import Connection, Lost, connect
from plainkube_load.messages import BrokenOff, Malformed, render
from plainkube_load.outcomes import Outcomes
from plainkube_load.targets import Target

PIECES_EACH_SECOND = 10
PIECE = b"u" * 512
BEAT_SECONDS = 1.0


@dataclass(frozen=True)
class Settings:
    """What a run is made of."""

    name: str = "app.example.org"
    trust: ssl.SSLContext | None = None
    gets: int = 12
    posts: int = 8
    fresh: int = 2
    websockets: int = 10
    events: int = 2
    slow_seconds: float = 0
    shortest_pause: float = 0.02
    longest_pause: float = 0.05
    patience: float = 10
    stream_seconds: float = 0
    most_requests: int = 500_000


class Load:
    """All clients of one run."""

    def __init__(self, targets: list[Target], settings: Settings, phase: str = "all") -> None:
        self.targets = targets
        self.settings = settings
        self.trust = settings.trust or ssl.create_default_context()
        self.outcomes = Outcomes(phase)
        self.stopping = asyncio.Event()
        self.began = time.monotonic()
        self.longest_stall = 0.0
        self._chance = random.Random(1)

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began

    async def run(self) -> None:
        """Run all clients until told to stop; a slow transfer is always waited for."""
        wanted = self.settings
        work: list[Coroutine[Any, Any, None]] = [self._watch_itself()]
        for number in range(wanted.gets + wanted.posts):
            work.append(self._keep_alive("get" if number < wanted.gets else "post", self._target(number), number))
        work += [self._fresh(self._target(number), number) for number in range(wanted.fresh)]
        work += [self._stream("websocket", self._target(number), self._beat) for number in range(wanted.websockets)]
        work += [self._stream("events", self._target(number), self._listen) for number in range(wanted.events)]
        if wanted.slow_seconds:
            work += [self._once("upload", self._upload), self._once("response", self._response)]
        await asyncio.gather(*work)

    def _target(self, number: int) -> Target:
        return self.targets[number % len(self.targets)]

    async def _pause(self, seconds: float) -> None:
        """Wait so long, or until told to stop."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.stopping.wait(), seconds)

    def _between(self) -> float:
        return self._chance.uniform(self.settings.shortest_pause, self.settings.longest_pause)

    async def _watch_itself(self) -> None:
        """Note for how long this program itself did not come to its turn: no answer is known better than that."""
        while not self.stopping.is_set():
            before = time.monotonic()
            await asyncio.sleep(0.05)
            self.longest_stall = max(self.longest_stall, time.monotonic() - before - 0.05)

    async def _connect(self, target: Target) -> Connection:
        return await connect(target, self.settings.name, self.trust, self.settings.patience)

    def _request(self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> bytes:
        length = {"Content-Length": str(len(body))} if body else {}
        all_headers = {"Host": self.settings.name, "User-Agent": "plainkube-load", **length, **(headers or {})}
        return render(f"{method} {path} HTTP/1.1", all_headers, body)

    def _may_ask(self) -> bool:
        """Return whether another request is within the bounds, and count it."""
        if self.outcomes.requests >= self.settings.most_requests:
            self.stopping.set()
        if self.stopping.is_set():
            return False
        self.outcomes.requests += 1
        return True

    async def _ask(self, connection: Connection, kind: str, words: str) -> bool:
        """Send one request and check its answer; return whether the connection stays. Raises Lost."""
        body = words.encode()
        data = self._request("POST", "/echo", body=body) if kind == "post" else self._request("GET", f"/echo/{words}")
        try:
            await connection.send(data)
        except OSError as error:
            raise Lost("reset before an answer", connection.age) from error
        try:
            head, answer = await asyncio.wait_for(connection.answer(), self.settings.patience)
        except asyncio.TimeoutError as error:
            raise Lost("time-out", connection.age) from error
        if head.status != 200:
            raise Lost(f"status {head.status}", head.headers.get("server", ""))
        if answer != body:
            raise Lost("wrong body", repr(answer[:40]))
        return not head.says_close

    async def _keep_alive(self, kind: str, target: Target, number: int) -> None:
        """Send one request after the other over one connection, and open another one only when it is gone."""
        connection: Connection | None = None
        await asyncio.sleep(self._between())
        while self._may_ask():
            begin = time.monotonic()
            try:
                if connection and connection.closed_by_peer:
                    self.outcomes.of(kind).stale += 1
                    connection.close()
                    connection = None
                connection = connection or await self._connect(target)
                stays = await self._ask(connection, kind, f"{number}-{self.outcomes.requests}")
                self.outcomes.done(kind, time.monotonic() - begin)
                if not stays:
                    self.outcomes.of(kind).announced += 1
                    connection.close()
                    connection = None
            except Lost as error:
                self.outcomes.failed(kind, error.reason, self.now, f"{target.url} {error.note}".strip())
                if connection:
                    connection.close()
                connection = None
            await asyncio.sleep(self._between())
        if connection:
            connection.close()

    async def _fresh(self, target: Target, number: int) -> None:
        """Send each request over a connection of its own, ten times less often than the others."""
        while self._may_ask():
            begin = time.monotonic()
            try:
                connection = await self._connect(target)
                try:
                    await self._ask(connection, "get", f"fresh-{number}-{self.outcomes.requests}")
                finally:
                    connection.close()
                self.outcomes.done("fresh", time.monotonic() - begin)
            except Lost as error:
                self.outcomes.failed("fresh", error.reason, self.now, f"{target.url} {error.note}".strip())
            await asyncio.sleep(self._between() * 10)

    async def _stream(self, kind: str, target: Target, use: Callable[[Connection], Coroutine[Any, Any, None]]) -> None:
        """Hold a stream open until the end; one that is cut is opened again, so that all cuts are counted."""
        await asyncio.sleep(self._between() * 10)
        while not self.stopping.is_set():
            connection: Connection | None = None
            try:
                connection = await self._connect(target)
                await use(connection)
                self.outcomes.done(kind)
            except Lost as error:
                age = connection.age if connection else ""
                self.outcomes.failed(kind, error.reason, self.now, f"{target.url} {error.note or age}".strip())
                await self._pause(BEAT_SECONDS)
            finally:
                if connection:
                    connection.close()

    def _lasts(self, connection: Connection) -> bool:
        """Return whether a stream stays: until the end, or as long as streams are to last."""
        lifetime = self.settings.stream_seconds
        return not self.stopping.is_set() and not (lifetime and time.monotonic() - connection.opened > lifetime)

    async def _beat(self, connection: Connection) -> None:
        """Be a websocket: say something each second and hear it again. Raises Lost."""
        key = websocket.new_key()
        wanted = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
        await connection.send(self._request("GET", "/websocket", {**wanted, "Sec-WebSocket-Key": key}))
        head = await self._in_time(connection.head(), "no answer to the handshake")
        if head.status != 101 or head.headers.get("sec-websocket-accept") != websocket.accept_of(key):
            raise Lost(f"handshake: status {head.status}")
        number = 0
        while self._lasts(connection):
            number += 1
            await self._exchange(connection, websocket.Frame(websocket.TEXT, f"beat {number}".encode()))
            await self._pause(BEAT_SECONDS)
        await self._exchange(connection, websocket.closing(1000))

    async def _exchange(self, connection: Connection, frame: websocket.Frame) -> None:
        try:
            await connection.send(websocket.render(frame, b"mask"))
            answer = await self._in_time(websocket.read(connection.reader), "no echo in time")
        except (BrokenOff, Malformed, OSError) as error:
            raise Lost(f"cut: {'closed' if isinstance(error, BrokenOff) else 'reset'}", connection.age) from error
        if answer.opcode == websocket.CLOSE and frame.opcode != websocket.CLOSE:
            raise Lost(f"cut: told to go, {answer.reason}", connection.age)
        if answer != frame:
            raise Lost("wrong echo", repr(answer.payload[:40]))

    async def _in_time(self, work: Coroutine[Any, Any, Any], reason: str) -> Any:
        try:
            return await asyncio.wait_for(work, self.settings.patience)
        except asyncio.TimeoutError as error:
            raise Lost(reason) from error

    async def _listen(self, connection: Connection) -> None:
        """Be a listener to server-sent events: one must come each second. Raises Lost."""
        await connection.send(self._request("GET", "/events", {"Accept": "text/event-stream"}))
        head = await self._in_time(connection.head(), "no answer")
        if head.status != 200:
            raise Lost(f"status {head.status}")
        while self._lasts(connection):
            try:
                line = await self._in_time(connection.reader.readline(), "no event in time")
            except OSError as error:
                raise Lost("cut: reset") from error
            if not line:
                raise Lost("cut: closed")

    async def _once(self, kind: str, transfer: Callable[[Connection], Coroutine[Any, Any, None]]) -> None:
        """Make one slow transfer, which is waited for even when the run is to stop."""
        target = self.targets[0]
        begin = time.monotonic()
        connection: Connection | None = None
        try:
            connection = await self._connect(target)
            await transfer(connection)
            self.outcomes.done(kind, time.monotonic() - begin)
        except (Lost, OSError) as error:
            reason = error.reason if isinstance(error, Lost) else "cut: reset"
            self.outcomes.failed(kind, reason, self.now, f"{target.url} after {time.monotonic() - begin:.1f} s")
        finally:
            if connection:
                connection.close()

    async def _upload(self, connection: Connection) -> None:
        pieces = max(1, int(self.settings.slow_seconds * PIECES_EACH_SECOND))
        length = pieces * len(PIECE)
        await connection.send(self._request("POST", "/upload", {"Content-Length": str(length)}))
        for _number in range(pieces):
            await asyncio.sleep(1 / PIECES_EACH_SECOND)
            if connection.closed_by_peer:
                raise Lost("cut: closed while sending")
            await connection.send(PIECE)
        head, body = await self._in_time(connection.answer(), "time-out")
        if head.status != 200:
            raise Lost(f"status {head.status}")
        if body.decode() != hashlib.sha256(PIECE * pieces).hexdigest():
            raise Lost("wrong body")

    async def _response(self, connection: Connection) -> None:
        length = max(1, int(self.settings.slow_seconds * PIECES_EACH_SECOND))
        await connection.send(self._request("GET", f"/slow?seconds={self.settings.slow_seconds}&bytes={length}"))
        work = connection.answer()
        try:
            head, body = await asyncio.wait_for(work, self.settings.slow_seconds * 1.5 + self.settings.patience)
        except asyncio.TimeoutError as error:
            raise Lost("time-out") from error
        if head.status != 200:
            raise Lost(f"status {head.status}")
        if len(body) != length:
            raise Lost("wrong body")
