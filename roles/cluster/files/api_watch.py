#!/usr/bin/python3
# Managed by plainkube.cluster, role cluster.
# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What units share that follow the Kubernetes API: its objects and their changes, and a word for systemd.

It lies beside the programs that use it.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import urllib.parse
from collections.abc import Iterator, Sequence
from typing import Any

# A watch ends by itself after this many seconds; then what somebody else changed on the host is put right.
WATCH_SECONDS = 45

Objects = dict[str, dict[str, Any]]


def apply_event(items: Objects, event: dict[str, Any]) -> str | None:
    """Take a change into all objects; return its resource version, None when the list must be read anew."""
    item = event["object"]
    if event["type"] == "ERROR":
        return None
    name = item["metadata"].get("name")
    if event["type"] == "DELETED":
        items.pop(name, None)
    elif event["type"] in ("ADDED", "MODIFIED"):
        items[name] = item
    version: str = item["metadata"]["resourceVersion"]
    return version


class Api:
    """The API servers: JSON over HTTPS with a client certificate."""

    def __init__(self, servers: Sequence[str], ca: str, certificate: str, key: str) -> None:
        self.servers = [urllib.parse.urlsplit(server) for server in servers]
        self.files = (ca, certificate, key)

    def get(self, path: str, timeout: float, turn: int = 0) -> http.client.HTTPResponse:
        """Return the answer of one server to a GET, another one each turn.

        Raises OSError or http.client.HTTPException.
        """
        ca, certificate, key = self.files
        # The context is made for each request, so that renewed files are used without a restart.
        context = ssl.create_default_context(cafile=ca)
        context.load_cert_chain(certificate, key)
        server = self.servers[turn % len(self.servers)]
        connection = http.client.HTTPSConnection(server.hostname or "", server.port, timeout=timeout, context=context)
        try:
            connection.connect()
            # A server that lost its power says nothing: the kernel asks after 10 s of silence.
            for option, value in ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3)):
                connection.sock.setsockopt(socket.IPPROTO_TCP, option, value)
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            connection.request("GET", path, headers={"Accept": "application/json", "Connection": "close"})
            response = connection.getresponse()
            if response.status != http.client.OK:
                raise OSError(f"GET {path}: {response.status} {response.reason}: {response.read(300)!r}")
        except BaseException:
            connection.close()
            raise
        return response

    def collection(self, path: str, turn: int = 0) -> tuple[Objects, str]:
        """Return all objects of a path that ends with ? or & by name, and the version that a watch can go on from."""
        with self.get(f"{path}resourceVersion=0", 30, turn) as response:
            answer = json.load(response)
        return {item["metadata"]["name"]: item for item in answer["items"]}, answer["metadata"]["resourceVersion"]

    def changes(self, path: str, version: str, turn: int = 0) -> Iterator[dict[str, Any]]:
        """Yield the changes after this version until the watch ends by itself."""
        query = f"watch=1&allowWatchBookmarks=true&resourceVersion={version}&timeoutSeconds={WATCH_SECONDS}"
        with self.get(path + query, WATCH_SECONDS + 15, turn) as response:
            for line in response:
                yield json.loads(line)


def notify(state: str) -> None:
    """Tell systemd (sd_notify(3)); do nothing when it does not listen."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier:
        notifier.sendto(state.encode(), address)
