# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The load counts nothing against a steady backend, and sees each way in which a request can get lost."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

LOAD = Path(__file__).resolve().parents[1] / "load"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno"


class Backend:
    """The load's own backend as a process."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "plainkube_load.backend"],
            env={**os.environ, "PYTHONPATH": str(LOAD)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        self.url = f"http://127.0.0.1:{self.process.stdout.readline().split()[-1]}"

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def backend() -> Iterator[Backend]:
    started = Backend()
    yield started
    started.end()


class BadServer:
    """Answers the first request of a connection, or none, and then does what it should not."""

    def __init__(self, misbehave: Callable[[socket.socket], None]) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._misbehave = misbehave
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _address = self._server.accept()
            except OSError:
                return
            with connection:
                self._misbehave(connection)

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()


class Load:
    """A load as a process that has begun."""

    def __init__(self, url: str, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, LOAD / "load.py", url, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout
        assert self.process.stdout.readline() == "The clients begin.\n"

    def end(self) -> tuple[int, dict[str, Any]]:
        """Wait for its end; return its exit status and its figures."""
        output, _nothing = self.process.communicate(timeout=60)
        return self.process.returncode, json.loads(output.splitlines()[-1])


def run(url: str, *options: str) -> tuple[int, dict[str, Any]]:
    return Load(url, *options).end()


def test_nothing_is_lost_with_a_steady_backend(backend: Backend) -> None:
    code, figures = run(backend.url, "--seconds=2", "--slow-seconds=1.5")
    assert (code, figures["failed"], figures["strict_failed"]) == (0, 0, 0), figures["samples"]
    assert set(figures["kinds"]) == {"get", "post", "fresh", "websocket", "events", "upload", "response"}
    assert all(found["done"] for found in figures["kinds"].values())
    assert figures["kinds"]["websocket"]["done"] == 10
    assert figures["requests"] > 200


def test_a_run_ends_after_so_many_requests(backend: Backend) -> None:
    code, figures = run(backend.url, "--seconds=30", "--requests=100", "--websockets=0", "--events=0")
    assert code == 0
    assert figures["requests"] == 100
    assert figures["seconds"] < 10


def test_a_killed_backend_is_seen_by_every_kind_of_client(backend: Backend) -> None:
    load = Load(backend.url, "--seconds=3", "--slow-seconds=8")
    time.sleep(1.5)
    backend.process.kill()
    code, figures = load.end()
    assert code == 1
    kinds = figures["kinds"]
    assert {kind for kind, found in kinds.items() if found["failed"]} == set(kinds), figures["samples"]
    assert any(reason.startswith("cut") for reason in kinds["websocket"]["reasons"])
    assert kinds["get"]["reasons"]["no connection: refused"] > 5


def test_a_backend_that_is_told_to_stop_lets_open_streams_end(backend: Backend) -> None:
    load = Load(backend.url, "--seconds=3", "--slow-seconds=2.5", "--gets=0", "--posts=0", "--fresh=0", "--events=0")
    time.sleep(1.5)
    backend.process.terminate()
    code, figures = load.end()
    assert code == 0, figures["samples"]
    assert {kind: found["done"] for kind, found in figures["kinds"].items()} == {
        "response": 1,
        "upload": 1,
        "websocket": 10,
    }
    assert backend.process.wait(10) == 0


def hold(connection: socket.socket) -> None:
    connection.recv(4096)
    time.sleep(0.01)


def answer_wrongly(connection: socket.socket) -> None:
    connection.recv(4096)
    connection.sendall(ANSWER)


def break_off(connection: socket.socket) -> None:
    connection.recv(4096)
    connection.sendall(ANSWER[:-1])


def refuse(connection: socket.socket) -> None:
    connection.recv(4096)
    connection.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")


def reset(connection: socket.socket) -> None:
    connection.recv(4096)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


@pytest.mark.parametrize(
    ("misbehave", "reason"),
    [
        (hold, "closed before an answer"),
        (answer_wrongly, "wrong body"),
        (break_off, "cut in the answer"),
        (refuse, "status 502"),
        (reset, "reset before an answer"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_each_way_of_losing_a_request_has_its_name(misbehave: Callable[[socket.socket], None], reason: str) -> None:
    server = BadServer(misbehave)
    try:
        code, figures = run(
            server.url, "--seconds=0.5", "--gets=1", "--posts=0", "--fresh=0", "--websockets=0", "--events=0"
        )
    finally:
        server.close()
    assert code == 1
    assert set(figures["kinds"]["get"]["reasons"]) == {reason}
    assert figures["kinds"]["get"]["done"] == 0


@pytest.mark.parametrize(("announced", "strict"), [(False, True), (True, False)])
def test_an_idle_connection_that_is_closed_counts_for_those_who_do_not_look(announced: bool, strict: bool) -> None:
    header = b"Connection: close\r\n" if announced else b""

    def answer_once(connection: socket.socket) -> None:
        words = connection.recv(4096).split(b" ")[1].rpartition(b"/")[2]
        connection.sendall(b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n%b" % (header, len(words), words))

    server = BadServer(answer_once)
    try:
        code, figures = run(
            server.url, "--seconds=0.7", "--gets=2", "--posts=0", "--fresh=0", "--websockets=0", "--events=0"
        )
    finally:
        server.close()
    found = figures["kinds"]["get"]
    assert (code, found["failed"]) == (0, 0), figures["samples"]
    assert found["done"] > 5
    assert (found["strict_failed"] > 5) is strict
    assert (found["announced"] > 5) is announced


def test_phases_come_from_standard_input(backend: Backend) -> None:
    load = Load(backend.url, "--control", "--phase=one", "--seconds=30")
    assert load.process.stdin
    time.sleep(0.7)
    load.process.stdin.write("phase two\n")
    load.process.stdin.flush()
    time.sleep(0.7)
    _code, figures = load.end()
    assert [phase["phase"] for phase in figures["phases"]] == ["one", "two"]
    assert all(phase["kinds"]["get"]["done"] for phase in figures["phases"])
    assert figures["seconds"] < 15


def test_foreign_addresses_are_refused() -> None:
    done = subprocess.run([sys.executable, LOAD / "load.py", "http://192.0.2.1"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "this load is for nothing else" in done.stderr
