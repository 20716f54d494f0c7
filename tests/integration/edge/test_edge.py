# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Nothing is lost while backends come and go, the API is away, and haproxy reloads."""

from __future__ import annotations

import json
import re
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from edge_load import Load
from edge_parts import Backend, Edge, Identities, free_port, wait_until
from stub_api import StubApi

SLICES = "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices"
SERVICES = "/api/v1/namespaces/shop/services"
BACKEND_PORT = free_port()


class Shop:
    """A Service, its endpoints as processes, the API that lists them, and the edge before it all."""

    def __init__(self, folder: Path, identities: Identities) -> None:
        self.folder = folder
        self.identities = identities
        self.api = StubApi("127.0.0.1", free_port(), str(identities.pair), str(identities.ca))
        self.api.put(SERVICES, {"metadata": {"name": "web"}, "spec": {"ports": [{"name": "http", "port": 80}]}})
        self.endpoints: dict[str, dict[str, bool]] = {}
        self.backends: dict[str, Backend] = {}
        service = {
            "name": "web",
            "kind": "http",
            "port": free_port(),
            "address": "127.0.0.1",
            "backends": "cluster_service",
            "service": "shop/web",
            "reach": "pods",
            "slots": 4,
        }
        self.edge = Edge(folder, [service], [], 6443)

    def start(self) -> None:
        self.api.start()
        self.edge.start()
        self.edge.watch(f"https://127.0.0.1:{self.api.place[1]}", self.identities)

    def end(self) -> None:
        self.edge.end()
        for backend in self.backends.values():
            backend.end()

    def publish(self) -> None:
        endpoints = [{"addresses": [address], "conditions": said} for address, said in self.endpoints.items()]
        ports = [{"name": "http", "port": BACKEND_PORT}]
        self.api.put(SLICES, {"metadata": {"name": "web-1"}, "ports": ports, "endpoints": endpoints})

    def come(self, *numbers: int) -> None:
        """Start endpoints and wait until traffic may go to them."""
        for number in numbers:
            address = f"127.0.1.{number}"
            self.backends[address] = Backend(self.folder, f"b{number}", address, BACKEND_PORT)
            self.endpoints[address] = {"ready": True, "serving": True, "terminating": False}
        self.publish()
        wait_until(lambda: all(self.state(number) == "ready" for number in numbers), f"{numbers} are servers")

    def leave(self, number: int) -> None:
        """End an endpoint as Kubernetes does: it is marked as ending, its process gets its signal, its mark goes."""
        address = f"127.0.1.{number}"
        self.endpoints[address] = {"ready": False, "serving": True, "terminating": True}
        self.publish()
        wait_until(lambda: self.state(number) == "drain", f"{number} is drained")
        del self.endpoints[address]
        self.publish()
        # Its upgraded connections, if it has any, go on until they end by themselves.
        self.backends[address].send(signal.SIGTERM)

    def state(self, number: int) -> str:
        return self.edge.servers().get(f"127.0.1.{number}:{BACKEND_PORT}", "")


@pytest.fixture
def shop(tmp_path: Path, identities: Identities) -> Iterator[Shop]:
    made = Shop(tmp_path, identities)
    try:
        yield made
    finally:
        made.end()


def lost(load: Load) -> dict[str, Any]:
    return {"failed": load.failed, "cut": load.cut}


def test_nothing_is_lost_while_backends_come_and_go(shop: Shop) -> None:
    shop.start()
    shop.come(1, 2)
    with Load("127.0.0.1", shop.edge.port) as load:
        load.wait_for_more(100)
        # More come than go, so that slots are used again, with other addresses in them.
        for number in range(3, 8):
            shop.come(number)
            load.wait_for_more(60)
            if number - 3:
                shop.leave(number - 1)
                load.wait_for_more(60)
    assert lost(load) == {"failed": [], "cut": []}
    assert load.echoes > 0
    assert {f"b{number}" for number in (1, 2, 3, 7)} <= set(load.served)
    journal = (shop.folder / "edge-backends.log").read_text(encoding="utf-8")
    assert journal.count("is new, in slot") == 7
    assert "Traceback" not in journal


def test_servers_stay_while_the_api_is_away(shop: Shop) -> None:
    shop.start()
    shop.come(1, 2)
    before = shop.edge.servers()
    with Load("127.0.0.1", shop.edge.port) as load:
        shop.api.stop()
        wait_until(lambda: shop.edge.status()["faults"], "the API is missed")
        load.wait_for_more(100)
        assert shop.edge.servers() == before
        # Even a unit that starts anew, and knows nothing, leaves them.
        assert shop.edge.watcher
        shop.edge.watcher.end()
        shop.edge.watch(f"https://127.0.0.1:{shop.api.place[1]}", shop.identities)
        load.wait_for_more(100)
        assert "127.0.1.1 2 4" in shop.edge.tell("show servers state")
        shop.api.start()
        shop.come(3)
        load.wait_for_more(100)
    assert lost(load) == {"failed": [], "cut": []}
    assert "b3" in load.served


def test_a_reload_loses_nothing_and_keeps_the_servers(shop: Shop) -> None:
    shop.start()
    shop.come(1, 2)
    # What was in the slots is there in the new process before edge-backends looks again.
    assert shop.edge.watcher
    shop.edge.watcher.end()
    with Load("127.0.0.1", shop.edge.port) as load:
        load.wait_for_more(100)
        for _ in range(3):
            shop.edge.reload()
            load.wait_for_more(100)
    assert lost(load) == {"failed": [], "cut": []}


def test_a_service_that_comes_to_follow_the_ingress_hosts_begins_with_them(
    tmp_path: Path, identities: Identities
) -> None:
    backends = [Backend(tmp_path, f"b{number}", f"127.0.1.{number}", BACKEND_PORT) for number in (1, 2)]
    addresses = [backend.address for backend in backends]
    service = {"name": "web", "kind": "http", "port": free_port(), "address": "127.0.0.1", "backend_port": BACKEND_PORT}
    service.update(check_port=BACKEND_PORT, check_path="/")
    listed = Edge(tmp_path, [{**service, "backends": "addresses", "addresses": addresses}], [], 6443)
    following = Edge(tmp_path, [service], [], 6443, ingress=addresses)
    following.metrics_port = listed.metrics_port
    nowhere = {"servers": [], "ca": "", "certificate": "", "key": "", "services": ["web"], "backends": []}
    places = {"socket": str(listed.socket), "status_file": "", "state_file": str(tmp_path / "servers.state")}
    (tmp_path / "backends.json").write_text(json.dumps({**nowhere, **places}), encoding="utf-8")
    try:
        listed.write_configuration()
        listed.start()
        with Load("127.0.0.1", listed.port) as load:
            load.wait_for_more(100)
            # Nothing fills slots here: what edge-backends has not looked at yet must serve already.
            following.write_configuration()
            listed.reload()
            load.wait_for_more(200)
        assert lost(load) == {"failed": [], "cut": []}
        assert set(load.served) == {"b1", "b2"}
        # What the slots came to hold meanwhile is stronger than the inventory.
        following.tell("set server web/slot1 state maint")
        listed.reload()
        with Load("127.0.0.1", listed.port) as load:
            load.wait_for_more(50)
        assert (lost(load), set(load.served)) == ({"failed": [], "cut": []}, {"b2"})
    finally:
        listed.end()
        for backend in backends:
            backend.end()


def test_a_restart_begins_with_the_last_servers(shop: Shop) -> None:
    shop.start()
    shop.come(1)
    assert shop.edge.watcher
    assert shop.edge.haproxy
    shop.edge.watcher.end()
    shop.api.stop()
    shop.edge.haproxy.end()
    shop.edge.start()
    with urllib.request.urlopen(f"http://127.0.0.1:{shop.edge.port}/", timeout=5) as answer:
        assert answer.read() == b"b1\n"
    # And a manual change, or a state that was lost, is put right as soon as the API answers.
    shop.edge.tell("set server web/slot1 state maint")
    shop.api.start()
    shop.edge.watch(f"https://127.0.0.1:{shop.api.place[1]}", shop.identities)
    wait_until(lambda: "127.0.1.1 2 4" in shop.edge.tell("show servers state"), "the server is back")


def test_clients_are_made_known_to_backends_and_believed_nothing(shop: Shop) -> None:
    shop.start()
    shop.come(1)
    forged = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https"}
    request = urllib.request.Request(f"http://127.0.0.1:{shop.edge.port}/headers", headers=forged)
    with urllib.request.urlopen(request, timeout=5) as answer:
        said = answer.read().decode()
    assert "x-forwarded-for: 127.0.0.1\n" in said
    assert "x-forwarded-proto: http\n" in said
    assert "203.0.113.9" not in said
    assert re.search(r"^x-request-id: [0-9a-f-]{36}$", said, re.MULTILINE)
    with urllib.request.urlopen(f"http://127.0.0.1:{shop.edge.metrics_port}/metrics", timeout=5) as answer:
        assert b'haproxy_server_status{proxy="web",server="slot1",state="UP"} 1' in answer.read()


def test_haproxy_is_asked_whether_it_passes_traffic_on(shop: Shop) -> None:
    shop.start()
    wait_until(lambda: shop.edge.ask("--ask").returncode == 0, "haproxy answers")
    assert shop.edge.haproxy
    shop.edge.haproxy.end()
    asked = shop.edge.ask("--ask")
    assert asked.returncode == 1
    assert asked.stdout.startswith("haproxy does not answer: ")
