# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The API through the edge: a control-plane host that goes away costs no client more than one retry.

The API servers are stubs that speak TLS and answer /readyz, since haproxy passes bytes on and sees no more of them.
"""

from __future__ import annotations

import http.client
import signal
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from edge_parts import Backend, Edge, Identities, free_port, wait_until

HOSTS = ["127.0.2.1", "127.0.2.2", "127.0.2.3"]
CLIENTS = 6
PATIENCE = 30.0


class ControlPlane:
    """Three API servers, and the edge before them."""

    def __init__(self, folder: Path, identities: Identities) -> None:
        self.identities = identities
        self.folder = folder
        self.port = free_port()
        self.backends: list[Backend] = []
        service = {"name": "api", "kind": "api", "port": free_port(), "address": "127.0.0.1"}
        self.edge = Edge(folder, [service], HOSTS, self.port)

    def start(self) -> None:
        for number, address in enumerate(HOSTS):
            self.backends.append(Backend(self.folder, f"c{number}", address, self.port, self.identities.pair))
        (self.folder / "ca.crt").write_bytes(self.identities.ca.read_bytes())
        self.edge.start()
        self.wait_for(3)

    def wait_for(self, number: int) -> None:
        """Wait until haproxy finds this many API servers ready."""
        wait_until(lambda: self.edge.tell("show stat -1 4 -1").count(",UP,") == number, f"{number} servers are up")

    def end(self) -> None:
        self.edge.end()
        for backend in self.backends:
            backend.end()


class Client(threading.Thread):
    """Asks the API again and again over one connection, and counts for each question how often it had to try anew."""

    def __init__(self, control_plane: ControlPlane) -> None:
        super().__init__(daemon=True)
        self.place = ("127.0.0.1", control_plane.edge.port)
        self.context = ssl.create_default_context(cafile=str(control_plane.identities.ca))
        self.retries: list[int] = []
        self.faults: list[str] = []
        self.servers: list[str] = []
        self.ending = False

    def run(self) -> None:
        connection = self.connection()
        while not self.ending:
            tries = 0
            while True:
                try:
                    connection.request("GET", "/version")
                    self.servers.append(connection.getresponse().read().decode().strip())
                    break
                except (OSError, http.client.HTTPException) as error:
                    tries += 1
                    self.faults.append(f"{time.strftime('%H:%M:%S')} {error!r}")
                    connection.close()
                    connection = self.connection()
            self.retries.append(tries)
            time.sleep(0.02)
        connection.close()

    def connection(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(*self.place, timeout=PATIENCE, context=self.context)


@pytest.fixture
def control_plane(tmp_path: Path, identities: Identities) -> Iterator[ControlPlane]:
    made = ControlPlane(tmp_path, identities)
    try:
        made.start()
        yield made
    finally:
        made.end()


def wait_for_more(clients: list[Client], number: int) -> None:
    """Wait until each client got this many more answers."""
    wanted = [len(client.retries) + number for client in clients]
    wait_until(
        lambda: all(len(client.retries) >= count for client, count in zip(clients, wanted)), "all go on", PATIENCE
    )


@pytest.mark.parametrize(
    "signals",
    [
        # It says that it is going before it goes: connections end when it closes them.
        [signal.SIGUSR1, signal.SIGTERM],
        # Its process dies.
        [signal.SIGKILL],
        # Its host hangs, or has lost its power: nothing answers, and nothing is refused.
        [signal.SIGSTOP],
    ],
    ids=["stopped", "killed", "hanging"],
)
def test_a_host_that_goes_costs_each_client_one_retry_at_most(control_plane: ControlPlane, signals: list[int]) -> None:
    clients = [Client(control_plane) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    wait_for_more(clients, 20)
    for number in signals:
        control_plane.backends[0].send(number)
        if number != signals[-1]:
            control_plane.wait_for(2)
    wait_for_more(clients, 20)
    control_plane.wait_for(2)
    wait_for_more(clients, 20)
    for client in clients:
        client.ending = True
    for client in clients:
        client.join(PATIENCE)
        assert not client.is_alive()
    faults = [fault for client in clients for fault in client.faults]
    assert max(max(client.retries) for client in clients) <= 1, faults
    assert sum(sum(client.retries) for client in clients) <= CLIENTS, faults
    assert {client.servers[-1] for client in clients} <= {"c1", "c2"}
    assert {server for client in clients for server in client.servers} == {"c0", "c1", "c2"}
