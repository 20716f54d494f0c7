# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Every kind of service is a configuration that haproxy takes, and does what it says."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from edge_parts import HAPROXY, Backend, Edge, Identities, free_port, wait_until

# PROXY protocol version 2 (haproxy's doc/proxy-protocol.txt): its signature, then PROXY over TCP and IPv4.
PROXY_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
PROXY_TCP4 = b"\x21\x11"


@pytest.fixture
def made(tmp_path: Path, identities: Identities) -> Iterator[Any]:
    """Make an edge of these services, with certificates in place; it is ended with the test."""
    edges = []

    def make(*services: dict[str, Any]) -> Edge:
        edge = Edge(tmp_path, list(services), ["127.0.2.1"], 6443)
        for service in edge.services:
            for pair in service["certificates"]:
                pair["path"] = str(identities.pair)
        (tmp_path / "ca.crt").write_bytes(identities.ca.read_bytes())
        edge.write_configuration()
        edges.append(edge)
        return edge

    yield make
    for edge in edges:
        edge.end()


def service(kind: str, **more: Any) -> dict[str, Any]:
    return {"name": f"s{free_port()}", "kind": kind, "port": free_port(), "address": "127.0.0.1", **more}


PAIR = {"certificate": "unused", "key": "unused"}
SHARE = {"address": "192.0.2.1", "weight": 256}
TO_SERVICE = {"backends": "cluster_service", "service": "shop/web"}


@pytest.mark.parametrize(
    "services",
    [
        [],
        [service("http", certificates=[PAIR, PAIR], trusted_forwarders=["192.0.2.0/24", "198.51.100.1"])],
        [service("http", **TO_SERVICE, check_path="/ready", check_port=8080, balance="roundrobin")],
        [service("tcp", **TO_SERVICE, proxy_protocol=True, balance="source"), service("api")],
        [service("tcp", address="::1", backends="addresses", addresses=["2001:db8::1", "192.0.2.1"])],
        [service("http", backends="inventory_control_plane", reuse_connections=False)],
        [service("http", backends="addresses", shares=[{"address": "2001:db8::1", "weight": 0, "port": 81}, SHARE])],
    ],
    ids=["none", "tls", "service", "tcp", "addresses", "inventory", "shares"],
)
def test_every_kind_of_service_is_sound(made: Any, services: list[dict[str, Any]]) -> None:
    edge = made(*(services or [service("http")]))
    edge.services = edge.services if services else []
    edge.write_configuration(edge_log_requests=bool(services))
    checked = subprocess.run(
        [HAPROXY, "-c", "-f", str(edge.configuration)], capture_output=True, text=True, check=False
    )
    said = [line for line in checked.stderr.splitlines() if "WARNING" in line and "server state file" not in line]
    assert (checked.returncode, said) == (0, []), checked.stderr


def test_tls_ends_at_the_edge(made: Any, tmp_path: Path, identities: Identities) -> None:
    port = free_port()
    backend = Backend(tmp_path, "plain", "127.0.1.1", port)
    try:
        edge = made(
            service(
                "http",
                certificates=[PAIR],
                backends="addresses",
                addresses=["127.0.1.1"],
                backend_port=port,
                trusted_forwarders=["127.0.0.1"],
            )
        )
        edge.start()
        context = ssl.create_default_context(cafile=str(identities.ca))
        forwarded = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Port": "8443", "X-Request-Id": "mine"}
        request = urllib.request.Request(f"https://127.0.0.1:{edge.port}/headers", headers=forwarded)
        with urllib.request.urlopen(request, timeout=5, context=context) as answer:
            said = answer.read().decode()
        # A proxy that is trusted is believed, and the edge adds whom it saw itself.
        assert said.startswith("plain\n")
        assert "x-forwarded-for: 203.0.113.9, 127.0.0.1\n" in said
        assert "x-forwarded-port: 8443\n" in said
        assert "x-request-id: mine\n" in said
        # And it says what that one left out.
        assert "x-forwarded-proto: https\n" in said
    finally:
        backend.end()


def test_a_share_gets_its_part_and_one_without_weight_nothing(made: Any, tmp_path: Path) -> None:
    places = {name: (f"127.0.1.{number}", free_port()) for number, name in enumerate(("none", "one", "three"), 1)}
    backends = [Backend(tmp_path, name, *place) for name, place in places.items()]
    try:
        shares = [
            {"address": address, "port": port, "weight": weight}
            for (address, port), weight in zip(places.values(), (0, 1, 3))
        ]
        edge = made(service("http", backends="addresses", balance="roundrobin", shares=shares))
        edge.start()
        answers = []
        for _number in range(40):
            with urllib.request.urlopen(f"http://127.0.0.1:{edge.port}/headers", timeout=5) as answer:
                answers.append(answer.read().decode().partition("\n")[0])
        assert {name: answers.count(name) for name in places} == {"none": 0, "one": 10, "three": 30}
    finally:
        for backend in backends:
            backend.end()


def test_the_client_s_address_comes_by_proxy_protocol(made: Any) -> None:
    with socket.create_server(("127.0.1.1", 0)) as listener:
        received: list[bytes] = []

        def take() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.settimeout(5)
                    received.append(connection.recv(100))

        threading.Thread(target=take, daemon=True).start()
        edge = made(
            service(
                "tcp",
                backends="addresses",
                addresses=["127.0.1.1"],
                backend_port=listener.getsockname()[1],
                proxy_protocol=True,
            )
        )
        edge.start()
        with socket.create_connection(("127.0.0.1", edge.port), 5) as client:
            client.sendall(b"hello")
            own_port = client.getsockname()[1]
            # Behind the length: source and destination address, source port.
            source = (socket.inet_aton("127.0.0.1"), own_port)
            begin = PROXY_SIGNATURE + PROXY_TCP4
            wait_until(
                lambda: (
                    source
                    in [
                        (part[16:20], int.from_bytes(part[24:26], "big")) for part in received if part.startswith(begin)
                    ]
                ),
                "the client's address comes",
            )
