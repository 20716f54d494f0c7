# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""As much of a Kubernetes API as edge-backends reads: lists and watches of a few objects, over TLS."""

from __future__ import annotations

import http.server
import json
import ssl
import threading
import urllib.parse
from typing import Any


class StubApi:
    """An API server on loopback. Objects are put in by path of their collection and name."""

    def __init__(self, address: str, port: int, certificate: str, ca: str) -> None:
        self.place = (address, port)
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=ca)
        self.context.verify_mode = ssl.CERT_REQUIRED
        self.context.load_cert_chain(certificate)
        self.news = threading.Condition()
        self.version = 1
        self.objects: dict[str, dict[str, dict[str, Any]]] = {}
        self.events: list[tuple[int, str, dict[str, Any]]] = []
        self.asked: list[str] = []
        self.server: http.server.ThreadingHTTPServer | None = None

    def start(self) -> None:
        api = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                api.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

            def finish_request(self, request: Any, client_address: Any) -> None:
                with api.context.wrap_socket(request, server_side=True) as secure:
                    super().finish_request(secure, client_address)  # type: ignore[arg-type]

            def handle_error(self, *_: Any) -> None:
                pass

        self.server = Server(self.place, Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Stop to answer: no new connections, and watches end."""
        assert self.server
        server, self.server = self.server, None
        server.shutdown()
        server.server_close()
        with self.news:
            self.news.notify_all()

    def put(self, collection: str, item: dict[str, Any]) -> None:
        name = item["metadata"]["name"]
        with self.news:
            kind = "MODIFIED" if name in self.objects.setdefault(collection, {}) else "ADDED"
            self._happen(collection, kind, item)
            self.objects[collection][name] = item

    def remove(self, collection: str, name: str) -> None:
        with self.news:
            self._happen(collection, "DELETED", self.objects[collection].pop(name))

    def _happen(self, collection: str, kind: str, item: dict[str, Any]) -> None:
        self.version += 1
        item["metadata"]["resourceVersion"] = str(self.version)
        self.events.append((self.version, collection, {"type": kind, "object": json.loads(json.dumps(item))}))
        self.news.notify_all()

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        path, _, query = handler.path.partition("?")
        wanted = dict(urllib.parse.parse_qsl(query))
        self.asked.append(handler.path)
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.end_headers()
        if "watch" in wanted:
            self.stream(handler, path, int(wanted["resourceVersion"]))
            return
        with self.news:
            items = list(self.objects.get(path, {}).values())
            answer = {"metadata": {"resourceVersion": str(self.version)}, "items": items}
        handler.wfile.write(json.dumps(answer).encode())

    def stream(self, handler: http.server.BaseHTTPRequestHandler, path: str, since: int) -> None:
        serving = self.server
        while serving is not None and self.server is serving:
            with self.news:
                fresh = [event for version, where, event in self.events if version > since and where == path]
                if not fresh:
                    self.news.wait(0.5)
                    continue
                since = int(fresh[-1]["object"]["metadata"]["resourceVersion"])
            handler.wfile.write(b"".join(json.dumps(event).encode() + b"\n" for event in fresh))
            handler.wfile.flush()
