# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Leaving ingress-nginx as docs/ingress-migration.md tells, under a load of clients that never ask twice.

ingress-nginx itself cannot be had here. Its stand-in is Debian's nginx on another host, whose configuration is made
from the same Ingresses: what is drilled is the switch-over, not what ingress-nginx makes of an annotation.
"""

from __future__ import annotations

import http.client
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils.kubernetes_api import RESOURCES
from faults_lab import FOLDER, Lab, program, wait_for
from ingress_changes import NAME, REPLICAS, STEADY_SECONDS, Authority, load, status_of
from ingress_cluster import MANAGER, NAMESPACE, Cluster, describe
from ingress_processes import program as found_program

OLD_HOST, NEW_HOST, EDGE = "alpha", "beta", "front"
OLD_CLASS, OWN_CLASS = "nginx", "traefik"
OWN_NAME = f"own.{NAME}"
PODS_PORT = 8081
MORE_REPLICAS = 6
# Requests by which it is seen who answers.
ASKED = 100
STAND_IN = """\
daemon off;
user root;
pid /run/stand-in.pid;
error_log stderr;
worker_processes 2;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  client_max_body_size 0;
  map $http_upgrade $connection_upgrade {{ default upgrade; "" ""; }}
  proxy_http_version 1.1;
  proxy_set_header Host $host;
  proxy_set_header Upgrade $http_upgrade;
  proxy_set_header Connection $connection_upgrade;
  proxy_read_timeout 1h;
  proxy_buffering off;
  server {{ listen 80 default_server; return 404; }}
{servers}}}
"""
STAND_IN_SERVER = "  server {{ listen 80; server_name {name}; location {path} {{ proxy_pass http://{address}; }} }}\n"


class Leaving(Cluster):
    """The application, with Ingresses whose class says who serves them; TLS ends at the edge."""

    def add_route(self, name: str) -> None:
        """Add an Ingress of the old class."""
        self._route(name, OLD_CLASS, name)

    def add_own_route(self) -> None:
        """Add an Ingress of Traefik's own class beside the old one, with a name by which it is seen to be served."""
        self._route(OWN_NAME, OWN_CLASS, NAME, OWN_NAME)

    def _route(self, title: str, ingress_class: str, *names: str) -> None:
        backend = {"service": {"name": "app", "port": {"name": "http"}}}
        paths = {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}
        rules = [{"host": name, "http": paths} for name in names]
        spec = {"ingressClassName": ingress_class, "rules": rules}
        self._apply("networking.k8s.io/v1", "Ingress", title, spec=spec)

    def stand_in(self) -> str:
        """Return nginx's configuration for all Ingresses of the old class."""
        services = {
            service["metadata"]["name"]: service["spec"]
            for service in self.api.list(RESOURCES["Service"].path(NAMESPACE))
        }
        servers = ""
        for ingress in self.api.list(RESOURCES["Ingress"].path(NAMESPACE)):
            if ingress["spec"]["ingressClassName"] != OLD_CLASS:
                continue
            for rule in ingress["spec"]["rules"]:
                for path in rule["http"]["paths"]:
                    service = services[path["backend"]["service"]["name"]]
                    address = f"{service['clusterIP']}:{service['ports'][0]['port']}"
                    servers += STAND_IN_SERVER.format(name=rule["host"], path=path["path"], address=address)
        return STAND_IN.format(servers=servers)


class Move:
    """The lab, with the application on it and a way to say who gets how much of its requests."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.authority = Authority(folder)
        self.files = {"certificate": folder / "edge.crt", "key": folder / "edge.key"}
        for file, content in zip(self.files.values(), self.authority.issue(), strict=True):
            file.touch(mode=0o600)
            file.write_bytes(content)
        self.old, self.new, edge = (lab.nodes[name].address for name in (OLD_HOST, NEW_HOST, EDGE))
        self.targets = [f"http://{edge}:80", f"https://{edge}:443"]
        self.pods = f"http://{edge}:{PODS_PORT}"

    def services(self, **backends: Any) -> dict[str, Any]:
        """Return the edge's services, for requests with and without TLS, to these backends."""
        web = {"kind": "http", "balance": "roundrobin", "backend_port": 80, **backends}
        certificates = [{name: str(file) for name, file in self.files.items()}]
        return {
            "plainkube_edge_services": [
                {"name": "web", "port": 80, **web},
                {"name": "web-tls", "port": 443, "certificates": certificates, **web},
            ]
        }

    def shared(self, old: int, new: int) -> dict[str, Any]:
        """Return services that give each controller its part of the requests."""
        shares = [{"address": self.old, "weight": old}, {"address": self.new, "weight": new}]
        return self.services(backends="addresses", shares=shares)

    def turn(self, services: dict[str, Any]) -> None:
        """Let the edge pass requests on otherwise."""
        self.lab.converge("--limit", EDGE, extra=services)

    def answered(self) -> Counter[str]:
        """Return who answered how many of some requests at the edge; nginx says its name."""
        found: Counter[str] = Counter()
        for _number in range(ASKED):
            connection = http.client.HTTPConnection(self.targets[0].partition("//")[2], timeout=5)
            connection.request("GET", "/echo/who", headers={"Host": NAME, "Connection": "close"})
            answer = connection.getresponse()
            assert answer.status == 200
            found["old" if (answer.getheader("Server") or "").startswith("nginx") else "new"] += 1
            connection.close()
        return found


@pytest.fixture(scope="module")
def move(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Move]:
    """A cluster with Traefik beside the old controller, and the edge that asks the old one alone."""
    lab = Lab(FOLDER / "inventories/faults-leaving")
    lab.renew()
    found = Move(lab, tmp_path_factory.mktemp("move"))
    lab.converge(extra=found.shared(100, 0))
    yield found
    lab.lab("destroy")


@pytest.fixture(scope="module")
def cluster(move: Move) -> Iterator[Leaving]:
    """The application, served by the old controller's stand-in and by Traefik."""
    found = Leaving("leaving", describe(move.lab.inventory, Path(program("ansible-playbook"))), False)
    # What its controller leaves in a cluster.
    old_class = {"metadata": {"name": OLD_CLASS}, "spec": {"controller": "k8s.io/ingress-nginx"}}
    found.api.apply({"apiVersion": "networking.k8s.io/v1", "kind": "IngressClass", **old_class}, MANAGER)
    # The edge has nobody to ask before the stand-in knows the Ingress.
    found.edge_requests = []
    found.begin(move.authority.issue())
    move.lab.send(OLD_HOST, Path(found_program("nginx")).read_bytes(), "/usr/local/bin/stand-in")
    move.lab.send(OLD_HOST, found.stand_in().encode(), "/etc/stand-in.conf")
    start = "systemd-run --quiet --unit=stand-in /usr/local/bin/stand-in -p /var/tmp -c /etc/stand-in.conf"
    move.lab.ssh(OLD_HOST, f"chmod 755 /usr/local/bin/stand-in; mkdir -p /var/lib/nginx; {start}")
    wait_for("the edge passes requests on", lambda: status_of(move.targets[0], NAME) == 200, 60)
    yield found


def test_an_old_controller_is_left_and_taken_back_without_a_lost_request(
    move: Move, cluster: Leaving, tmp_path: Path
) -> None:
    # 1. What there is.
    report = tmp_path / "ingresses.json"
    move.lab.converge(playbook="playbooks/audit-ingress.yml", extra={"ingress_audit_report_json": str(report)})
    assert NAME in report.read_text()
    # 4. Both answer before anybody else asks the new one.
    assert [status_of(f"http://{host}:80", NAME) for host in (move.old, move.new)] == [200, 200]
    assert move.answered() == {"old": ASKED}
    # 5. By weights, and the way back.
    with load(move.targets, move.authority.file) as run:
        time.sleep(STEADY_SECONDS)
        for words, old, new in (
            ("10 of 100 to Traefik", 90, 10),
            ("all to Traefik", 0, 100),
            ("all back", 100, 0),
            ("all to Traefik again", 0, 100),
        ):
            run.phase(words)
            move.turn(move.shared(old, new))
            answered = move.answered()
            assert bool(answered["old"]) == bool(old), answered
            assert bool(answered["new"]) == bool(new), answered
            assert answered["new"] < ASKED / 2 or new == 100, answered
        # Traefik alone, as the API says who is ready.
        run.phase("the cluster's ingress hosts")
        move.turn(move.services())
        assert move.answered() == {"new": ASKED}
        # 6. A class of Traefik's own: first the new Ingress, then the old one goes.
        run.phase("Traefik's own class")
        cluster.add_own_route()
        wait_for("Traefik serves the new Ingress", lambda: status_of(f"http://{move.new}:80", OWN_NAME) == 200, 60)
        cluster.remove_route(NAME)
        # Longer than Traefik takes to see it.
        time.sleep(2 * STEADY_SECONDS)
        figures = run.stop()
    print(json.dumps(figures))
    assert move.answered() == {"new": ASKED}
    assert all(figures["phases"][number]["kinds"]["post"]["done"] for number in range(len(figures["phases"])))
    assert figures["failed"] == 0, figures["samples"]


def test_pods_that_the_edge_reaches_by_itself_come_and_go_without_a_lost_request(move: Move, cluster: Leaving) -> None:
    nodes = cluster.api.list(RESOURCES["Node"].path())
    for node in nodes:
        address = move.lab.nodes[node["metadata"]["name"]].address
        move.lab.ssh(EDGE, f"ip route replace {node['spec']['podCIDR']} via {address}")
    services = move.services()
    service = {"backends": "cluster_service", "service": f"{NAMESPACE}/app", "service_port": "http", "reach": "pods"}
    services["plainkube_edge_services"] += [{"name": "pods", "kind": "http", "port": PODS_PORT, **service}]
    move.turn(services)
    wait_for("pods answer", lambda: status_of(move.pods, NAME) == 200, 60)
    with load([move.pods], move.authority.file) as run:
        time.sleep(STEADY_SECONDS)
        run.phase("more pods")
        cluster.scale(MORE_REPLICAS)
        run.phase("all rolled")
        cluster.generation += 1
        cluster.scale(MORE_REPLICAS)
        status = json.loads(move.lab.ssh(EDGE, "cat /run/edge-backends/status.json"))
        run.phase("fewer pods")
        cluster.scale(REPLICAS)
        figures = run.stop()
    print(json.dumps(figures))
    pods = {
        f"{pod['status']['podIP']}:8080"
        for pod in cluster.api.list(RESOURCES["Pod"].path(NAMESPACE))
        if not pod["metadata"].get("deletionTimestamp")
    }
    ready = {name for name, state in status["backends"]["pods"]["servers"].items() if state == "ready"}
    assert len(ready) == MORE_REPLICAS
    assert pods < ready
    assert figures["failed"] == 0, figures["samples"]
