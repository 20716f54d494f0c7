#!/usr/bin/env python3
# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""make bench-dns: questions at the cluster's name servers for 10,000 look-ups of 50 names, with and without cache.

Look-ups are glibc's, in the network and with the resolv.conf of pods. Then look-ups go on while the cache restarts and
reads a changed configuration, and while the cluster has no name server; failed ones are counted. Uses a lab of one host
that it makes and removes, or the running lab of --inventory. The last line is the same as JSON.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(CHECKOUT / path) for path in ("collections", "tests/bench", "tests/lab")]

from bench import measured_in_a_lab  # noqa: E402
from plainkube_lab.access import ssh_command  # noqa: E402
from plainkube_lab.cli import read_inventory  # noqa: E402

NAMESPACE = "bench-dns"
NAMES = 50
LOOKUPS = 10_000
# Each makes eight questions, two of which go on to the name servers of the site. They may allow few in a second.
LOOKUPS_OUTSIDE = 250
THREADS = 4
CACHE, CLUSTER_DNS = "169.254.20.10", "10.96.0.10"
SEARCH = [f"{NAMESPACE}.svc.cluster.local", "svc.cluster.local", "cluster.local"]
WITHOUT, ALONE, USUAL = "without cache", "cache alone", "cache and cluster DNS"
PODS: dict[str, list[str]] = {WITHOUT: [CLUSTER_DNS], ALONE: [CACHE], USUAL: [CACHE, CLUSTER_DNS]}
PAUSE_IMAGE = "registry.k8s.io/pause:3.10.2"
LOOK_UP = CHECKOUT / "tests" / "bench" / "dns_lookups.py"
# Until the name servers' pods and their endpoints have gone or come, and for one command on a host.
WAIT_SECONDS = 90
DISTURBED_SECONDS = 10
DISTURBANCES = 3


class Cluster:
    """A lab's first control-plane host, which is a node as well."""

    def __init__(self, folder: Path) -> None:
        self.node = read_inventory(folder).nodes[0]

    def run(self, command: str, text: str = "", seconds: float = WAIT_SECONDS) -> str:
        """Return what a command printed on the host. Ends the program when it fails."""
        done = subprocess.run(
            ssh_command(self.node, command), input=text, capture_output=True, text=True, timeout=seconds, check=False
        )
        if done.returncode != 0:
            sys.exit(f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        return done.stdout

    def kubectl(self, words: str, text: str = "") -> str:
        """Return what kubectl printed."""
        return self.run(f"kubectl --kubeconfig=/etc/kubernetes/admin.conf {words}", text)

    def until(self, what: str, true: Callable[[], bool]) -> None:
        """Return when something is true. Ends the program when it takes too long."""
        end = time.monotonic() + WAIT_SECONDS
        while not true():
            if time.monotonic() > end:
                sys.exit(f"{what}: not within {WAIT_SECONDS} s")
            time.sleep(1)

    def questions(self) -> int:
        """Return how many questions all pods of the cluster's name server have been asked."""
        addresses = self.kubectl(
            "-n kube-system get pods -l k8s-app=kube-dns -o jsonpath={.items[*].status.podIP}"
        ).split()
        metrics = "".join(self.run(f"curl -sf http://{address}:9153/metrics") for address in addresses)
        return int(sum(map(float, re.findall(r"^coredns_dns_requests_total\{.*\} (\S+)$", metrics, re.MULTILINE))))

    def scale(self, replicas: int) -> None:
        """Have so many name servers, and wait until they answer or are gone."""
        self.kubectl(f"-n kube-system scale deployment coredns --replicas={replicas}")
        ready = (
            "get endpointslices -n kube-system -l kubernetes.io/service-name=kube-dns -o jsonpath={..conditions.ready}"
        )
        self.until("name servers", lambda: self.kubectl(ready).split().count("true") == replicas)

    def look_up(self, pod: str, names: list[str], lookups: int = 0, seconds: int = 0) -> dict[str, Any]:
        """Look names up as a program in the pod would."""
        wish = json.dumps({"names": names, "lookups": lookups, "seconds": seconds, "threads": THREADS})
        container = f"$(crictl ps -q --label io.kubernetes.pod.name={pod.replace(' ', '-').lower()})"
        inside = f"mount --bind /run/{NAMESPACE} /etc/resolv.conf && exec python3 - {shlex.quote(wish)}"
        command = (
            f"pid=$(crictl inspect -o go-template --template '{{{{.info.pid}}}}' {container}); "
            f"cat /proc/$pid/root/etc/resolv.conf > /run/{NAMESPACE} && "
            f"nsenter --net=/proc/$pid/ns/net unshare --mount sh -c {shlex.quote(inside)}"
        )
        found: dict[str, Any] = json.loads(self.run(command, LOOK_UP.read_text(), WAIT_SECONDS * 3))
        return found


def objects() -> str:
    """Return the namespace, 50 Services without pods, and a pod for each kind of resolv.conf."""
    made: list[dict[str, Any]] = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}]
    for number in range(NAMES):
        metadata = {"namespace": NAMESPACE, "name": f"name-{number}"}
        made.append({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": [{"port": 80}]}})
    for pod, servers in PODS.items():
        container = {
            "name": "pause",
            "image": PAUSE_IMAGE,
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        }
        spec = {
            "containers": [container],
            "dnsPolicy": "None",
            "dnsConfig": {"nameservers": servers, "searches": SEARCH, "options": [{"name": "ndots", "value": "5"}]},
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "automountServiceAccountToken": False,
        }
        if pod == USUAL:
            # As every pod has it: this one proves that the two others are like it.
            spec.update(dnsPolicy="ClusterFirst")
            del spec["dnsConfig"]
        metadata = {"namespace": NAMESPACE, "name": pod.replace(" ", "-").lower()}
        made.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": made})


@contextlib.contextmanager
def running(cluster: Cluster) -> Iterator[None]:
    """Have the objects for a while, and the name servers as they were afterwards."""
    replicas = int(cluster.kubectl("-n kube-system get deployment coredns -o jsonpath={.spec.replicas}"))
    try:
        cluster.kubectl("apply -f -", objects())
        cluster.kubectl(f"-n {NAMESPACE} wait pod --all --for=condition=Ready --timeout={WAIT_SECONDS - 10}s")
        yield
    finally:
        cluster.scale(replicas)
        cluster.kubectl(f"delete namespace {NAMESPACE} --ignore-not-found")


def counted(cluster: Cluster, pod: str, names: list[str], lookups: int) -> dict[str, Any]:
    """Look so many names up and return how many questions the cluster's name servers saw meanwhile."""
    before = cluster.questions()
    found = cluster.look_up(pod, names, lookups=lookups)
    return {**found, "questions": cluster.questions() - before}


def disturbed(cluster: Cluster, pod: str, names: list[str], command: str) -> dict[str, Any]:
    """Look names up for some seconds while a command is run a few times."""
    times = [DISTURBED_SECONDS * number / (DISTURBANCES + 1) for number in range(1, DISTURBANCES + 1)]

    def disturb(delay: float) -> None:
        time.sleep(delay)
        cluster.run(command)

    threads = [threading.Thread(target=disturb, args=(delay,)) for delay in times]
    for thread in threads:
        thread.start()
    found = cluster.look_up(pod, names, seconds=DISTURBED_SECONDS)
    for thread in threads:
        thread.join()
    return found


def measure(cluster: Cluster) -> dict[str, Any]:
    """Return all figures."""
    inside = [f"name-{number}" for number in range(NAMES)]
    outside = [f"name-{number}.example.org" for number in range(NAMES)]
    figures: dict[str, Any] = {"count": {}, "disturbed": {}}
    with running(cluster):
        for what, names, lookups in (("Services", inside, LOOKUPS), ("names outside", outside, LOOKUPS_OUTSIDE)):
            for pod in (WITHOUT, USUAL):
                title = f"{lookups:,} look-ups of {NAMES} {what}, {pod}"
                print(title, flush=True)
                figures["count"][title] = counted(cluster, pod, names, lookups)
        disturbances = {
            "3 restarts of the cache": "systemctl restart node-dns.service",
            "3 changes of its configuration": "echo >> /etc/plainkube/Corefile; systemctl reload node-dns.service",
        }
        keep = cluster.run("cat /etc/plainkube/Corefile")
        for title, command in disturbances.items():
            for pod in (USUAL, ALONE):
                print(f"{title}, {pod}", flush=True)
                figures["disturbed"][f"{title}, {pod}"] = disturbed(cluster, pod, inside, command)
        cluster.run("cat > /etc/plainkube/Corefile", keep)
        cluster.run("systemctl restart node-dns.service")
        for pod in (USUAL, ALONE):
            cluster.look_up(pod, inside, lookups=LOOKUPS // 10)
        cluster.scale(0)
        for pod in (USUAL, ALONE):
            print(f"no name server in the cluster, {pod}", flush=True)
            figures["disturbed"][f"no name server in the cluster, {pod}"] = cluster.look_up(
                pod, inside, seconds=DISTURBED_SECONDS
            )
    return figures


def table(figures: dict[str, Any]) -> str:
    """Return the figures for people."""
    lines = [f"{'':60s} {'questions':>10s} {'median':>10s} {'slowest':>10s}"]
    lines += [
        f"{title:60s} {found['questions']:10d} {found['median_milliseconds']:7.2f} ms"
        f" {found['slowest_milliseconds']:7.0f} ms"
        for title, found in figures["count"].items()
    ]
    lines += ["", f"{f'{DISTURBED_SECONDS} s of look-ups':60s} {'look-ups':>10s} {'failed':>10s} {'slowest':>10s}"]
    lines += [
        f"{title:60s} {found['lookups']:10d} {found['failed']:10d} {found['slowest_milliseconds']:7.0f} ms"
        for title, found in figures["disturbed"].items()
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure on a lab of its own, or on the one that is named."""
    measured_in_a_lab(__doc__, 1, lambda hosts: measure(Cluster(hosts)), table)


if __name__ == "__main__":
    main()
