# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The API through the edge, with real API servers: a control-plane host that goes costs a client one retry at most."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from faults_lab import ALL, FOLDER, Lab, wait_for

EDGE = "front"
# On each host that stays, so many clients ask twice a second, in turns over a connection that is kept and a new one.
CLIENTS = 4
# New connections after the edge knows of the loss: about ten seconds of all clients.
CONNECTIONS_AFTER = 80
ASK_HAPROXY = """
import socket
channel = socket.socket(socket.AF_UNIX)
channel.connect("/run/haproxy/admin.sock")
channel.sendall(b"show stat -1 4 -1\\n")
print(channel.makefile().read())
"""


@pytest.fixture(scope="module")
def edge_lab() -> Iterator[Lab]:
    """A running, verified cluster of three hosts, and an edge host that passes its API on."""
    found = Lab(FOLDER / "inventories/faults-edge")
    found.lab("create")
    found.converge()
    yield found
    found.lab("destroy")


def servers(lab: Lab) -> dict[str, dict[str, str]]:
    """Return what haproxy of the edge says of each API server."""
    said = lab.ssh(EDGE, "python3 -", ASK_HAPROXY).lstrip("# ").strip()
    return {row["svname"]: row for row in csv.DictReader(said.splitlines()) if row["pxname"] == "api"}


def up(lab: Lab) -> set[str]:
    return {name for name, row in servers(lab).items() if row["status"].startswith("UP")}


def connections(lab: Lab) -> int:
    """Return how many connections the edge has passed on so far."""
    return sum(int(row["stot"]) for row in servers(lab).values())


@pytest.mark.parametrize("lost", ["alpha", "beta", "gamma"] if ALL else ["beta"])
def test_a_lost_control_plane_host_costs_a_client_of_the_edge_one_retry_at_most(edge_lab: Lab, lost: str) -> None:
    lab = edge_lab
    everyone = lab.members("control_plane")
    staying = [host for host in everyone if host != lost]
    wait_for("the edge finds all API servers", lambda: up(lab) == set(everyone), 120)
    with ExitStack() as stack:
        clients = [
            stack.enter_context(lab.asking(host, "api", f"//{lab.nodes[EDGE].address}:6443/api/v1/nodes/{host}"))
            for host in staying
            for _ in range(CLIENTS)
        ]
        # Connections that are kept are there, and some of them go to the host that is about to be lost.
        wait_for("all clients ask", lambda: connections(lab) > 4 * len(clients), 60)
        wait_for("some ask the host to be lost", lambda: int(servers(lab)[lost]["scur"]) > 0, 30)
        lab.stop_node(lost)
        try:
            wait_for("the edge knows of the loss", lambda: up(lab) == set(staying), 60)
            before = connections(lab)
            wait_for("all go on", lambda: connections(lab) > before + CONNECTIONS_AFTER, 60)
            found = [findings() for findings in clients]
        finally:
            lab.start_node(lost)
    # With two tries for each question, what failed needed more than one retry.
    assert [client["failed"] for client in found] == [[]] * len(clients)
    assert all(client["asked"] for client in found)
    assert any(client["retried"] for client in found), "nobody's connection was cut: the test has shown nothing"
    assert max(len(client["retried"]) for client in found) <= 1, found
    wait_for(f"the edge finds {lost} again", lambda: up(lab) == set(everyone), 240)
