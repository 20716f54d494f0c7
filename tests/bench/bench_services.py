#!/usr/bin/env python3
# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""make bench-services: kube-proxy's rules on each host with 10 and with 1,000 Services, and how soon a new one answers.

All Services lead to the same two pods, so that what grows is theirs alone. A new Service is asked for at its address,
on every host, from before it is made until it answers. The cluster's own Services count too: ports says for how many
ports of Services a host has rules. Uses a lab of three hosts that it makes and removes, or the running lab of
--inventory. The last line is the same as JSON.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(CHECKOUT / path) for path in ("collections", "tests/bench", "tests/lab")]

from ansible_collections.plainkube.cluster.plugins.module_utils import proxy_rules  # noqa: E402
from bench import measured_in_a_lab  # noqa: E402
from plainkube_lab.access import ssh_command  # noqa: E402
from plainkube_lab.cli import read_inventory  # noqa: E402

NAMESPACE = "bench-services"
IMAGE = "registry.k8s.io/e2e-test-images/agnhost:2.66.1"
PORT = 8080
SIZES = (10, 1000)
NEW_SERVICES = 10
WAIT_SECONDS = 180
# What one port of a Service with two endpoints may cost; kube-proxy of 1.37 needs one rule, of 1.35 seven.
RULES_FOR_EACH_AT_MOST = 7
LABELS = {"app": "bench"}


class Cluster:
    """A lab's hosts: the first one has kubectl, the nodes have kube-proxy."""

    def __init__(self, folder: Path) -> None:
        hosts = read_inventory(folder).nodes
        self.first = hosts[0]
        names = self.kubectl("get nodes -o jsonpath={.items[*].metadata.name}").split()
        self.nodes = [host for host in hosts if host.name in names]
        api = self.kubectl("get service kubernetes -o jsonpath={.spec.clusterIP}")
        self.network = ".".join(api.split(".")[:2])

    def run(self, host: Any, command: str, text: str = "") -> str:
        """Return what a command printed on a host. Ends the program when it fails."""
        done = subprocess.run(
            ssh_command(host, command), input=text, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False
        )
        if done.returncode != 0:
            sys.exit(f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        return done.stdout

    def kubectl(self, words: str, text: str = "") -> str:
        """Return what kubectl printed."""
        return self.run(self.first, f"kubectl --kubeconfig=/etc/kubernetes/admin.conf {words}", text)

    def rules(self, host: Any) -> proxy_rules.Counts:
        """Return why kube-proxy has as many rules on a host as it has."""
        listing = json.loads(self.run(host, "nft -j -t list table ip kube-proxy"))
        return proxy_rules.count(proxy_rules.Table(listing))


def service(name: str, address: str = "") -> dict[str, Any]:
    spec = {"selector": LABELS, "ports": [{"port": 80, "targetPort": PORT}]}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": NAMESPACE, "name": name},
        "spec": {**spec, **({"clusterIP": address} if address else {})},
    }


def pods() -> list[dict[str, Any]]:
    """Return the namespace and the two pods that all Services lead to."""
    container = {
        "name": "web",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "args": ["netexec", f"--http-port={PORT}", "--udp-port=-1"],
        "readinessProbe": {"httpGet": {"path": "/hostname", "port": PORT}, "periodSeconds": 1},
    }
    spec = {"containers": [container], "terminationGracePeriodSeconds": 1, "tolerations": [{"operator": "Exists"}]}
    template = {"metadata": {"labels": LABELS}, "spec": spec}
    deployment = {"replicas": 2, "selector": {"matchLabels": LABELS}, "template": template}
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"namespace": NAMESPACE, "name": "web"},
            "spec": deployment,
        },
    ]


def listed(items: list[dict[str, Any]]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items})


@contextlib.contextmanager
def running(cluster: Cluster) -> Iterator[None]:
    """Have the pods for a while."""
    try:
        cluster.kubectl("apply -f -", listed(pods()))
        cluster.kubectl(f"-n {NAMESPACE} rollout status deployment/web --timeout={WAIT_SECONDS - 10}s")
        yield
    finally:
        cluster.kubectl(f"delete namespace {NAMESPACE} --ignore-not-found --wait=false")


def wait_for_rules(cluster: Cluster, services: int) -> dict[str, proxy_rules.Counts]:
    """Return the counts of every node once it has so many Services of ours with both endpoints."""
    end = time.monotonic() + WAIT_SECONDS
    found: dict[str, proxy_rules.Counts] = {}
    for host in cluster.nodes:
        while True:
            listing = cluster.run(host, f"nft list chains ip | grep -c 'chain service-.*-{NAMESPACE}/' || true")
            if int(listing) >= services:
                break
            if time.monotonic() > end:
                sys.exit(f"{host.name} has {listing.strip()} of {services} Services after {WAIT_SECONDS} s")
            time.sleep(1)
        found[host.name] = cluster.rules(host)
    return found


def first_answers(cluster: Cluster, number: int) -> dict[str, float]:
    """Make a Service and return for each node the milliseconds until it answered there."""
    address = f"{cluster.network}.250.{number + 1}"
    asking = f"echo asking; until curl -sf -m 0.5 -o /dev/null http://{address}/hostname; do sleep 0.02; done; echo"
    answered: dict[str, float] = {}

    def follow(name: str, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        process.stdout.readline()
        answered[name] = time.monotonic()

    processes = {
        host.name: subprocess.Popen(ssh_command(host, asking), stdout=subprocess.PIPE, text=True)
        for host in cluster.nodes
    }
    for process in processes.values():
        assert process.stdout is not None
        process.stdout.readline()
    threads = [threading.Thread(target=follow, args=item) for item in processes.items()]
    for thread in threads:
        thread.start()
    begun = create(cluster, service(f"new-{number}", address))
    for thread in threads:
        thread.join(WAIT_SECONDS)
    for process in processes.values():
        process.kill()
        process.wait()
    return {name: (at - begun) * 1000 for name, at in answered.items()}


def create(cluster: Cluster, thing: dict[str, Any]) -> float:
    """Make an object and return when the API was asked for it: kubectl's own start would count for half of it."""
    own = cluster.first.address
    command = (
        "body=$(cat); echo asking; curl -sf -o /dev/null -X POST -H 'Content-Type: application/json' --data \"$body\" "
        "--cacert /etc/kubernetes/pki/ca.crt --cert /etc/kubernetes/pki/admin.crt --key /etc/kubernetes/pki/admin.key "
        f"https://{own}:6443/api/v1/namespaces/{NAMESPACE}/services"
    )
    with subprocess.Popen(
        ssh_command(cluster.first, command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(thing))
        process.stdin.close()
        process.stdout.readline()
        begun = time.monotonic()
    if process.returncode != 0:
        sys.exit(f"the API refused {thing['metadata']['name']}")
    return begun


def measure(cluster: Cluster) -> dict[str, Any]:
    """Return all figures."""
    figures: dict[str, Any] = {"hosts": [host.name for host in cluster.nodes], "sizes": {}}
    made = 0
    with running(cluster):
        for size in SIZES:
            print(f"{size} Services", flush=True)
            begin = time.monotonic()
            cluster.kubectl("create -f -", listed([service(f"service-{number}") for number in range(made, size)]))
            counts = wait_for_rules(cluster, size)
            seconds = time.monotonic() - begin
            made = size
            round_number = len(figures["sizes"])
            times = [first_answers(cluster, NEW_SERVICES * round_number + number) for number in range(NEW_SERVICES)]
            figures["sizes"][size] = {
                "seconds_until_all_have_them": round(seconds, 1),
                "rules": {name: count.rules for name, count in counts.items()},
                "chains": {name: count.chains for name, count in counts.items()},
                "fixed_rules": {name: count.kinds[""][1] for name, count in counts.items()},
                "ports": {name: count.ports for name, count in counts.items()},
                "new_service_milliseconds": {
                    host.name: {
                        "median": round(statistics.median(found[host.name] for found in times)),
                        "slowest": round(max(found[host.name] for found in times)),
                    }
                    for host in cluster.nodes
                },
            }
    few, many = (figures["sizes"][size] for size in SIZES)
    name = cluster.nodes[0].name
    more = {key: many[key][name] - few[key][name] for key in ("rules", "ports")}
    figures["rules_for_each_service"] = round(more["rules"] / more["ports"], 2)
    return figures


def table(figures: dict[str, Any]) -> str:
    """Return the figures for people."""
    lines = [
        f"{'Services':>8s}  {'host':10s} {'rules':>6s} {'chains':>7s} {'fixed':>6s} {'ports':>6s}"
        "   new Service: median, slowest"
    ]
    for size, found in figures["sizes"].items():
        for host in figures["hosts"]:
            new = found["new_service_milliseconds"][host]
            lines.append(
                f"{size:8d}  {host:10s} {found['rules'][host]:6d} {found['chains'][host]:7d}"
                f" {found['fixed_rules'][host]:6d} {found['ports'][host]:6d}"
                f"   {new['median']:12d} ms {new['slowest']:7d} ms"
            )
    lines.append(f"rules for each Service with two endpoints: {figures['rules_for_each_service']}")
    return "\n".join(lines)


def main() -> int:
    """Measure on a lab of its own, or on the one that is named; fail when rules grow more than Services explain."""
    figures = measured_in_a_lab(__doc__, 3, lambda hosts: measure(Cluster(hosts)), table)
    if figures["rules_for_each_service"] > RULES_FOR_EACH_AT_MOST:
        print(f"more than {RULES_FOR_EACH_AT_MOST} rules for each Service", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
