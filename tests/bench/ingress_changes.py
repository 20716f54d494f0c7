# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What make bench-ingress changes under load, the same for every proxy, and how it sees that a change came to pass."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Protocol

from ansible_collections.plainkube.cluster.plugins.module_utils.certificates import Leaf
from ansible_collections.plainkube.cluster.plugins.plugin_utils import x509

CHECKOUT = Path(__file__).resolve().parents[2]
LOAD = CHECKOUT / "tests" / "load" / "load.py"
NAME = "app.example.org"
ROUTES = 20
REPLICAS = 2
MOST_REPLICAS = 10
PATIENCE = 90
STEADY_SECONDS = 4


class World(Protocol):
    """A proxy with its backend."""

    title: str
    targets: Sequence[str]
    pause: float

    def add_route(self, name: str) -> None:
        """Serve another host name."""

    def remove_route(self, name: str) -> None:
        """Serve it no more."""

    def statuses(self, name: str) -> set[int]:
        """Return what is answered to a request for a host name, wherever it can be sent."""

    def change_certificate(self, certificate: bytes, key: bytes) -> None:
        """Serve another certificate."""

    def roll(self) -> None:
        """Replace all backends."""

    def scale(self, count: int) -> None:
        """Have so many backends."""


class Authority:
    """Certificates for the host name, by an authority of the bench's own."""

    def __init__(self, folder: Path) -> None:
        self.now = datetime.now(timezone.utc)
        self._authority = x509.make_authority("bench", "bench", timedelta(days=1), 0, None, self.now)
        self.file = folder / "authority.crt"
        self.file.write_text(x509.certificate_pem([self._authority.certificate]))

    def issue(self) -> tuple[bytes, bytes]:
        """Return a new certificate and its key, as PEM."""
        key = x509.new_key()
        leaf = Leaf(
            name="bench",
            certificate="",
            key="",
            authority="bench",
            common_name=NAME,
            usages=("server",),
            lifetime=timedelta(hours=12),
            dns_names=(NAME,),
        )
        issued = x509.issue_leaf(leaf, key.public_key(), self._authority, "bench", self.now)
        return x509.certificate_pem([issued]).encode(), x509.key_pem(key)


def wait_until(what: str, holds: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Wait until something holds. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not so after {seconds:.0f} s")
        time.sleep(0.1)


def status_of(url: str, name: str) -> int:
    """Return the status that a host name's request gets by plain HTTP, 0 for no answer."""
    connection = http.client.HTTPConnection(url.partition("//")[2], timeout=3)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/echo/look", headers={"Host": name, "Connection": "close"})
        return connection.getresponse().status
    return 0


def certificate_at(url: str) -> bytes:
    """Return the certificate that a TLS server shows, as DER; nothing when it shows none."""
    address, _colon, port = url.partition("//")[2].partition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        contextlib.suppress(OSError),
        socket.create_connection((address, int(port)), timeout=3) as plain,
        context.wrap_socket(plain, server_hostname=NAME) as wrapped,
    ):
        return wrapped.getpeercert(True) or b""
    return b""


@dataclass
class LoadRun:
    """The load as a process of its own, so that it has its turn while changes are made."""

    process: subprocess.Popen[str]

    def phase(self, name: str) -> None:
        """Count under another name from now on."""
        assert self.process.stdin
        print(f"    {name}", flush=True)
        self.process.stdin.write(f"phase {name}\n")
        self.process.stdin.flush()

    def stop(self) -> dict[str, Any]:
        """End it and return its figures."""
        output, _nothing = self.process.communicate()
        return dict(json.loads(output.splitlines()[-1]))


@contextlib.contextmanager
def load(targets: Sequence[str], trust: Path, *options: str) -> Iterator[LoadRun]:
    """Run a load that ends with the block at the latest."""
    command = [sys.executable, str(LOAD), *targets, "--trust", str(trust), "--name", NAME, "--control"]
    process = subprocess.Popen(
        [*command, "--phase", "steady", "--seconds", "600", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        process.stdout.readline()  # it has begun
        yield LoadRun(process)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def change_everything(world: World, run: LoadRun, authority: Authority) -> None:
    """Make all changes, one phase after the other; a phase ends when its change can be seen from outside."""
    time.sleep(STEADY_SECONDS)
    change_routes(world, run)
    run.phase("certificate changed")
    certificate, key = authority.issue()
    world.change_certificate(certificate, key)
    wanted = ssl.PEM_cert_to_DER_cert(certificate.decode())
    secure = [target for target in world.targets if target.startswith("https:")]
    wait_until("the new certificate is served", lambda: {certificate_at(target) for target in secure} == {wanted})
    time.sleep(1)
    change_backend(world, run)
    run.phase("steady again")
    time.sleep(STEADY_SECONDS)


def change_routes(world: World, run: LoadRun) -> None:
    """Add host names and remove them again."""
    names = [f"route-{number:02}.example.org" for number in range(1, ROUTES + 1)]
    run.phase(f"{ROUTES} routes added")
    for name in names:
        world.add_route(name)
        time.sleep(world.pause)
    wait_until("all routes are served", lambda: all(world.statuses(name) == {200} for name in names))
    run.phase(f"{ROUTES} routes removed")
    for name in names:
        world.remove_route(name)
        time.sleep(world.pause)
    wait_until("no removed route is served", lambda: all(world.statuses(name) == {404} for name in names))


def change_backend(world: World, run: LoadRun) -> None:
    """Roll the backend and scale it."""
    run.phase("backend rolled")
    world.roll()
    run.phase(f"endpoints {REPLICAS} to {MOST_REPLICAS}")
    world.scale(MOST_REPLICAS)
    run.phase(f"endpoints {MOST_REPLICAS} to {REPLICAS}")
    world.scale(REPLICAS)
