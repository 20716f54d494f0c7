#!/usr/bin/env python3
# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""make bench-tenancy: how long an audit of 5,000 pods and their owners takes, and how much memory it needs.

The module runs as Ansible runs it, against a real kube-apiserver with etcd on loopback; the median of some runs counts,
since machines are noisy. The last line is the same as JSON.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(CHECKOUT / path) for path in ("collections", "tools", "tests/integration/tenancy")]

from ansible_collections.plainkube.cluster.plugins.module_utils.kubernetes_api import (  # noqa: E402
    Api,
    path_of,
    resource_of,
)
from ansible_collections.plainkube.cluster.plugins.plugin_utils.audit_data import (  # noqa: E402
    report_template,
    shipped_rules,
)
from api_servers import ApiServer  # noqa: E402

RUNS = 3
LIMITS = {"audit_seconds": 5.0, "audit_mib": 150}
TEAMS = ("billing", "catalogue", "checkout", "delivery", "identity", "media", "orders", "search", "stock", "web")
PARTS = ("api", "cache", "cron", "export", "front", "gateway", "import", "mailer", "queue", "worker")
NODES = 40
ZONES = ("east", "north", "west")
Object = dict[str, Any]

PROGRAM = """
import json, sys
from ansible.module_utils import basic
from ansible_collections.plainkube.cluster.plugins.modules.workload_audit import main
basic._ANSIBLE_ARGS = sys.stdin.buffer.read()
basic._ANSIBLE_PROFILE = 'legacy'
main()
"""


@dataclass
class Generated:
    """Objects of a cluster that was lived in for a while; the same ones each time."""

    deployments: int = 500
    replicas: int = 10
    now: datetime = field(default_factory=lambda: datetime.now(timezone.utc))

    def __post_init__(self) -> None:
        self._chance = random.Random(1)

    def objects(self) -> Iterator[tuple[Object, Object | None]]:
        """Yield each object with the status that a controller or kubelet would give it."""
        for number in range(NODES):
            labels = {"topology.kubernetes.io/zone": ZONES[number % len(ZONES)]}
            yield (
                thing("v1", "Node", f"node-{number:02}", labels=labels),
                {"conditions": [{"type": "Ready", "status": "True"}]},
            )
        for team in TEAMS:
            level = {"pod-security.kubernetes.io/enforce": "baseline"} if team < "m" else {}
            yield thing("v1", "Namespace", team, labels=level), None
            if team < "i":
                quota = {"hard": {"requests.memory": "4Ti"}}
                yield thing("v1", "ResourceQuota", "share", team, spec=quota), None
        for number in range(self.deployments):
            yield from self._application(number)

    def _application(self, number: int) -> Iterator[tuple[Object, Object | None]]:
        team = TEAMS[number % len(TEAMS)]
        name = f"{PARTS[number // len(TEAMS) % len(PARTS)]}-{number // len(TEAMS) // len(PARTS) + 1}"
        labels = {"app.kubernetes.io/name": name} if self._often() else {}
        selector = {"app": name}
        template = {"metadata": {"labels": {**selector, **labels}}, "spec": self._pod(name)}
        spec = {"replicas": self.replicas, "selector": {"matchLabels": selector}, "template": template}
        yield thing("apps/v1", "Deployment", name, team, labels=labels, spec=spec), None
        ports = [{"port": 80, "targetPort": 8080}]
        # Without addresses of their own: there are more Services than a small network has.
        service = {"selector": selector, "ports": ports, "clusterIP": "None"}
        yield thing("v1", "Service", name, team, spec=service), None
        if self._often():
            endpoints = [{"addresses": ["10.0.0.1"], "conditions": {"ready": True}}]
            slice_labels = {"kubernetes.io/service-name": name}
            yield (
                thing(
                    "discovery.k8s.io/v1",
                    "EndpointSlice",
                    name,
                    team,
                    labels=slice_labels,
                    addressType="IPv4",
                    endpoints=endpoints,
                ),
                None,
            )
        if self._often():
            budget = {"maxUnavailable": 1 if self._often() else 0, "selector": {"matchLabels": selector}}
            yield thing("policy/v1", "PodDisruptionBudget", name, team, spec=budget), None
        together = self._seldom()
        sick = self._seldom()
        for replica in range(self.replicas):
            yield self._replica(team, name, template, replica, 0 if together else number + replica, sick)

    def _pod(self, name: str) -> Object:
        container: Object = {
            "name": "app",
            "image": f"registry.example.org/{name}:{'latest' if self._seldom() else '1.4.2'}",
            "ports": [{"containerPort": 8080}],
            "env": [{"name": f"SETTING_{index}", "value": "x" * 40} for index in range(20)],
            "resources": {"requests": {"cpu": "100m"}} if self._seldom() else {
                "requests": {"cpu": "100m", "memory": "128Mi"},
                "limits": {"memory": "256Mi"},
            },
        }  # fmt: skip
        if self._often():
            path = "/health" if self._seldom() else "/ready"
            container["readinessProbe"] = {"httpGet": {"path": path, "port": 8080}}
            container["livenessProbe"] = {"httpGet": {"path": "/ping", "port": 8080}}
        if self._often():
            container["securityContext"] = {"runAsNonRoot": True, "readOnlyRootFilesystem": self._often()}
        return {"containers": [container], "automountServiceAccountToken": not self._often()}

    def _replica(
        self, team: str, name: str, template: Object, replica: int, place: int, sick: bool
    ) -> tuple[Object, Object]:
        stamp = "%Y-%m-%dT%H:%M:%SZ"
        started = (self.now - timedelta(days=6)).strftime(stamp)
        container: Object = {"name": "app", "image": "x", "imageID": "x", "ready": True, "restartCount": 0}
        if sick and replica < 3:
            ended = (self.now - timedelta(minutes=50 * (replica + 1))).strftime(stamp)
            reason = "OOMKilled" if replica else "Error"
            container.update(
                restartCount=25, lastState={"terminated": {"exitCode": 137, "reason": reason, "finishedAt": ended}}
            )
        metadata = {
            "labels": {**template["metadata"]["labels"], "pod-template-hash": "5d4f7"},
            "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": f"{name}-5d4f7", "uid": "1", "controller": True}
            ],
        }
        spec = {**template["spec"], "nodeName": f"node-{place % NODES:02}"}
        pod = thing("v1", "Pod", f"{name}-5d4f7-{replica}", team, spec=spec)
        pod["metadata"].update(metadata)
        status = {
            "phase": "Running",
            "startTime": started,
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [container],
        }
        return pod, status

    def _often(self) -> bool:
        return self._chance.random() < 0.85

    def _seldom(self) -> bool:
        return self._chance.random() < 0.06


def thing(version: str, kind: str, name: str, namespace: str = "", labels: Object | None = None, **rest: Any) -> Object:
    """Return an object."""
    metadata = {
        "name": name,
        **({"namespace": namespace} if namespace else {}),
        **({"labels": labels} if labels else {}),
    }
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **rest}


def fill(api: Api, generated: Generated) -> None:
    """Make the objects in an API server, with their statuses."""

    def make(pair: tuple[Object, Object | None]) -> None:
        item, status = pair
        collection = resource_of(item).path(item["metadata"].get("namespace", ""))
        code, answer = api.ask("create", collection, item)
        assert code in (201, 409), answer
        if status:
            metadata = {key: item["metadata"][key] for key in ("name", "namespace") if key in item["metadata"]}
            body = {"apiVersion": item["apiVersion"], "kind": item["kind"], "metadata": metadata, "status": status}
            code, answer = api.ask("patch", f"{path_of(item)}/status", body, fieldManager="bench", force="true")
            assert code == 200, answer

    described = list(generated.objects())
    for first in (True, False):
        # Namespaces are there before anything is made in them.
        pairs = [pair for pair in described if ("namespace" not in pair[0]["metadata"]) == first]
        for answer in api.at_the_same_time(make, pairs):
            if isinstance(answer, Exception):
                raise answer


def audit(kubeconfig: Path, reports: Path) -> tuple[Object, float, float]:
    """Run the module as Ansible does; return its answer, the seconds and the MiB that it took."""
    arguments = {
        "kubeconfig": str(kubeconfig),
        "fail_on": "never",
        "shipped_rules": shipped_rules(),
        "report_template": report_template(),
        "cluster_name": "Kubernetes cluster of the bench",
        "reports": {name: str(reports / f"audit.{name}") for name in ("json", "junit", "html")},
    }
    begin = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT / "collections")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin and process.stdout
    process.stdin.write(json.dumps({"ANSIBLE_MODULE_ARGS": arguments}))
    process.stdin.close()
    output = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    answer = json.loads(output)
    assert process.returncode == 0, answer.get("msg")
    return answer, time.monotonic() - begin, used.ru_maxrss / 1024


def main() -> int:
    """Measure the audit and say whether its limits hold."""
    with tempfile.TemporaryDirectory() as folder:
        server = ApiServer(Path(folder))
        try:
            print("making 5,000 pods of 500 Deployments", flush=True)
            fill(server.api(), Generated())
            runs = sorted((audit(server.kubeconfig, Path(folder)) for _ in range(RUNS)), key=lambda run: run[1])
        finally:
            server.stop()
    answer, seconds, memory = runs[len(runs) // 2]
    figures = {
        "audit_seconds": round(seconds, 2),
        "audit_mib": round(memory),
        "audit_requests": answer["requests"],
        "audit_pods": answer["looked_at"]["Pod"],
        "audit_findings": answer["summary"]["new"],
    }
    print(
        f"\naudit of {figures['audit_pods']} pods: {seconds:.1f} s, {memory:.0f} MiB, {answer['requests']} requests, "
        f"{figures['audit_findings']} findings about owners, three reports written\n"
    )
    missed = [
        f"{name} {figures[name]} instead of at most {limit}" for name, limit in LIMITS.items() if figures[name] > limit
    ]
    print(("; ".join(missed) if missed else "All limits hold.") + "\n")
    print(json.dumps(figures))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
