# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What tests of several levels share."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import configuration, settings

# What hypothesis remembers stands with the other caches; a busy machine is no reason to fail.
configuration.set_hypothesis_home_dir(Path(__file__).resolve().parents[1] / ".cache" / "hypothesis")
settings.register_profile("plainkube", deadline=None)
# CI tries the same cases each time: what it finds is of the change that it tests. People's runs look for new ones.
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "plainkube")


class WebServer:
    """Serves bytes on loopback; can break off in mid-file and counts what it was asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.break_off: dict[str, int] = {}  # path -> how many answers from now on end half-way
        self.hold: dict[str, threading.Event] = {}  # path -> the second half of an answer waits for this
        self.asked: list[str] = []
        self.ranges = True
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                content = outer.files.get(self.path)
                if content is None:
                    self.send_error(404)
                    return
                start = 0
                if outer.ranges and self.headers.get("Range"):
                    start = int(self.headers["Range"].split("=")[1].rstrip("-"))
                self.send_response(206 if start else 200)
                body = content[start:]
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if outer.break_off.get(self.path, 0) > 0:
                    outer.break_off[self.path] -= 1
                    body = body[: len(body) // 2]
                half = len(body) // 2
                self.wfile.write(body[:half])
                if self.path in outer.hold:
                    self.wfile.flush()
                    outer.hold[self.path].wait(60)
                self.wfile.write(body[half:])

            def do_HEAD(self) -> None:
                known = self.path in outer.files
                self.send_response(200 if known else 404)
                self.end_headers()

            def log_message(self, *_arguments: object) -> None:
                """Keep the tests' output clean."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def web() -> Iterator[WebServer]:
    """A web server on loopback."""
    server = WebServer()
    yield server
    server.close()
