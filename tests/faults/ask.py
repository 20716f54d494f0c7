# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Runs on a node: asks something twice a second until standard input ends, and prints its findings as JSON.

Arguments: kind (api, dns or http), target (a path of the API, with //SERVER:PORT before it if not at loopback;
SERVER/NAME; or a URL), tries (a question is asked again at once, over a new connection, until it was asked so often),
patience (seconds for one try), at most (seconds until the script ends by itself).
"""

from __future__ import annotations

import http.client
import json
import select
import socket
import ssl
import struct
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Callable

OWN = "/var/lib/kubelet/pki/kubelet-client-current.pem"
PAUSE = 0.5


class Api:
    """The API as this node, through loopback or where the target says.

    First tries go in turns over a connection that is kept, as clients with watches have it, and over a new one.
    """

    def __init__(self, target: str, patience: float) -> None:
        parts = urllib.parse.urlsplit(target)
        self.server, self.path, self.patience = parts.netloc or "127.0.0.1:6443", parts.path, patience
        self.context = ssl.create_default_context(cafile="/etc/kubernetes/pki/ca.crt")
        self.context.load_cert_chain(OWN)
        self.kept = self.connection()
        self.first_tries = 0

    def connection(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(self.server, timeout=self.patience, context=self.context)

    def ask(self, attempt: int) -> None:
        self.first_tries += attempt == 0
        keep = attempt == 0 and self.first_tries % 2 == 0
        way = self.kept if keep else self.connection()
        try:
            way.request("GET", self.path)
            answer = way.getresponse()
            answer.read()
            if answer.status != 200:
                raise OSError(f"status {answer.status}")
        except BaseException:
            way.close()
            raise
        if not keep:
            way.close()


class Dns:
    """One name server, asked over UDP from a new port each time."""

    def __init__(self, target: str, patience: float) -> None:
        self.server, _, name = target.partition("/")
        self.patience = patience
        labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
        self.question = struct.pack(">6H", 4711, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", 1, 1)

    def ask(self, attempt: int) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
            way.settimeout(self.patience)
            way.connect((self.server, 53))
            way.send(self.question)
            _, flags, _, answers, _, _ = struct.unpack(">6H", way.recv(4096)[:12])
        if flags & 15 or not answers:
            raise OSError(f"code {flags & 15}, {answers} answers")


class Http:
    """A plain web server."""

    def __init__(self, target: str, patience: float) -> None:
        self.target, self.patience = target, patience

    def ask(self, attempt: int) -> None:
        with urllib.request.urlopen(self.target, timeout=self.patience) as answer:
            answer.read()


def fault_of(ask: Callable[[int], None], attempt: int) -> str:
    """Return what is wrong with the answer to one try, or nothing."""
    try:
        ask(attempt)
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def main() -> None:
    kind, target = sys.argv[1:3]
    tries, patience, at_most = int(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5])
    kinds: dict[str, type[Api | Dns | Http]] = {"api": Api, "dns": Dns, "http": Http}
    ask = kinds[kind](target, patience).ask
    asked, longest = 0, 0.0
    retried: list[str] = []
    failed: list[str] = []
    begin = time.monotonic()
    while time.monotonic() - begin < at_most:
        start = time.monotonic()
        faults: list[str] = []
        for attempt in range(tries):
            fault = fault_of(ask, attempt)
            if not fault:
                break
            faults.append(fault)
        if faults:
            when = time.strftime("%H:%M:%S", time.gmtime())
            (failed if len(faults) == tries else retried).append(f"{when} {len(faults)} tries: {faults[0]}")
        asked += 1
        longest = max(longest, time.monotonic() - start)
        rest = max(0.0, start + PAUSE - time.monotonic())
        if select.select([sys.stdin], [], [], rest)[0]:
            break
    print(json.dumps({"asked": asked, "longest": longest, "retried": retried, "failed": failed}))


main()
