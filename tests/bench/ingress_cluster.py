# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A cluster with an ingress as make bench-ingress changes it: Ingresses, a Secret, a Deployment, and Traefik itself.

The backend is Python that the pods borrow from their host, so that no image has to be built.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from ansible_collections.plainkube.cluster.plugins.module_utils.kubernetes_api import RESOURCES, Api, Object
from ingress_changes import CHECKOUT, NAME, REPLICAS, status_of, wait_until

NAMESPACE = "bench-ingress"
MANAGER = "bench-ingress"
CODE = CHECKOUT / "tests" / "load" / "plainkube_load"
# Of the host: the interpreter, and what links lead to in a system whose /lib is part of /usr.
BORROWED = {"/usr": "/usr", "/lib": "/usr/lib", "/lib64": "/usr/lib64"}
PRE_STOP_SECONDS = 5
GRACE_SECONDS = 600
ROLL_PATIENCE = 300
SECURE_EDGE_PORT = 8443


def describe(inventory: Path, ansible_playbook: Path) -> Object:
    """Return what playbooks/describe-cluster.yml says of an inventory."""
    done = subprocess.run(
        [ansible_playbook, "-i", inventory, "playbooks/describe-cluster.yml"],
        cwd=CHECKOUT,
        env={**os.environ, "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json", "ANSIBLE_DEPRECATION_WARNINGS": "False"},
        capture_output=True,
        text=True,
        check=True,
    )
    tasks = json.loads(done.stdout[done.stdout.index("{") :])["plays"][0]["tasks"]
    found: Object = next(result["msg"] for task in tasks for result in task["hosts"].values() if "msg" in result)
    return found


class Cluster:
    """The ingress of a running cluster, with a backend of its own behind it."""

    # Slow enough that changes are made for as long as the slow transfers last.
    pause = 1.0

    def __init__(self, title: str, description: Object, secure_edge: bool, pre_stop: bool = True) -> None:
        self.title = title
        self.pre_stop = pre_stop
        self.api = Api({"kubeconfig": description["kubeconfig"]})
        self.image = f"registry.k8s.io/e2e-test-images/agnhost:{description['versions']['agnhost']}"
        self.ingress = [host["address"] for host in description["hosts"]["ingress"]]
        self.edge = [host["address"] for host in description["hosts"]["edge"]]
        self.targets = [
            f"{scheme}://{host}:{port}" for host in self.ingress for scheme, port in (("http", 80), ("https", 443))
        ]
        # At the edge: requests, with TLS that ends there if it has a certificate of ours; and connections as they are.
        self.edge_requests = [f"http://{host}:80" for host in self.edge]
        if secure_edge:
            self.edge_requests += [f"https://{host}:{SECURE_EDGE_PORT}" for host in self.edge]
        self.edge_connections = [f"https://{host}:443" for host in self.edge]
        self.generation = 0

    def begin(self, certificate: tuple[bytes, bytes]) -> None:
        """Make the backend, its Ingress and its certificate, and wait until all ingress hosts serve it."""
        # Its pods borrow folders of their hosts.
        labels = {"pod-security.kubernetes.io/enforce": "privileged"}
        self._apply("v1", "Namespace", NAMESPACE, metadata={"labels": labels})
        files = {path.name: path.read_text() for path in sorted(CODE.glob("*.py"))}
        self._apply("v1", "ConfigMap", "code", data=files)
        ports = [{"name": "http", "port": 80, "targetPort": 8080}]
        self._apply("v1", "Service", "app", spec={"selector": {"app": "backend"}, "ports": ports})
        self.change_certificate(*certificate)
        self._deploy(REPLICAS)
        self.add_route(NAME)
        targets = self.targets + self.edge_requests
        wait_until("the backend answers everywhere", lambda: {status_of(to, NAME) for to in http(targets)} == {200})

    def end(self) -> None:
        """Remove everything again, pods that still wait for their connections too."""
        self.api.delete(self._thing("v1", "Namespace", NAMESPACE))
        wait_until("the namespace is gone", self._is_gone)

    def _is_gone(self) -> bool:
        for pod in self.api.list(RESOURCES["Pod"].path(NAMESPACE)):
            path = RESOURCES["Pod"].path(NAMESPACE, pod["metadata"]["name"])
            self.api.ask("delete", path, {"gracePeriodSeconds": 0})
        return self.api.get(RESOURCES["Namespace"].path("", NAMESPACE)) is None

    # changes

    def add_route(self, name: str) -> None:
        """Add an Ingress for another host name."""
        backend = {"service": {"name": "app", "port": {"name": "http"}}}
        rule = {"host": name, "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}}
        tls = [{"hosts": [name], "secretName": "app"}] if name == NAME else []
        self._apply("networking.k8s.io/v1", "Ingress", name, spec={"rules": [rule], "tls": tls})

    def remove_route(self, name: str) -> None:
        """Remove its Ingress."""
        self.api.delete(self._thing("networking.k8s.io/v1", "Ingress", name))

    def statuses(self, name: str) -> set[int]:
        """Return what the ingress hosts answer to a request for a host name."""
        return {status_of(target, name) for target in http(self.targets)}

    def change_certificate(self, certificate: bytes, key: bytes) -> None:
        """Write another certificate into the Ingress' Secret."""
        data = {"tls.crt": certificate, "tls.key": key}
        encoded = {name: base64.b64encode(content).decode() for name, content in data.items()}
        self._apply("v1", "Secret", "app", type="kubernetes.io/tls", data=encoded)

    def roll(self) -> None:
        """Replace all pods of the backend."""
        self.generation += 1
        self._deploy(REPLICAS)

    def scale(self, count: int) -> None:
        """Have so many pods of the backend."""
        self._deploy(count)

    def roll_ingress(self) -> None:
        """Replace Traefik's pods, host after host, as a change of what it reads at its start would."""
        for found in [*self.api.list(RESOURCES["DaemonSet"].path("plainkube-ingress"))]:
            name = found["metadata"]["name"]
            annotations = {"bench-ingress/rolled": str(time.time())}
            self._apply(
                "apps/v1",
                "DaemonSet",
                name,
                namespace="plainkube-ingress",
                spec={"template": {"metadata": {"annotations": annotations}}},
            )
            wait_until(f"{name} is rolled", lambda name=name: self._is_rolled(name), ROLL_PATIENCE)

    # the backend

    def _deploy(self, count: int) -> None:
        spec = {
            "replicas": count,
            "selector": {"matchLabels": {"app": "backend"}},
            "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {
                "metadata": {
                    "labels": {"app": "backend"},
                    "annotations": {"bench-ingress/generation": str(self.generation)},
                },
                "spec": self._pod(),
            },
        }
        self._apply("apps/v1", "Deployment", "backend", spec=spec)
        wait_until(f"{count} backends are ready and others leave", lambda: self._is_deployed(count))
        # Those that leave are told to stop only now.
        time.sleep(PRE_STOP_SECONDS + 1)

    def _pod(self) -> Object:
        mounts = [
            {"name": f"borrowed-{number}", "mountPath": path, "readOnly": True} for number, path in enumerate(BORROWED)
        ]
        volumes = [
            {"name": f"borrowed-{number}", "hostPath": {"path": path}} for number, path in enumerate(BORROWED.values())
        ]
        container: Object = {
            "name": "backend",
            "image": self.image,
            "imagePullPolicy": "IfNotPresent",
            "command": ["/usr/bin/python3", "-m", "plainkube_load.backend"],
            "args": ["--address=0.0.0.0", "--port=8080", "--name=$(POD_NAME)"],
            "env": [
                {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "PYTHONPATH", "value": "/app"},
                {"name": "PYTHONDONTWRITEBYTECODE", "value": "1"},
            ],
            "ports": [{"containerPort": 8080}],
            "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}, "periodSeconds": 1},
            "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "128Mi"}},
            "volumeMounts": [{"name": "code", "mountPath": "/app/plainkube_load"}, *mounts],
        }
        if self.pre_stop:
            # Until the last ingress host knows that this pod leaves, it answers as before.
            container["lifecycle"] = {"preStop": {"sleep": {"seconds": PRE_STOP_SECONDS}}}
        return {
            "terminationGracePeriodSeconds": GRACE_SECONDS,
            "automountServiceAccountToken": False,
            "securityContext": {"runAsUser": 65532, "runAsNonRoot": True},
            "containers": [container],
            "volumes": [{"name": "code", "configMap": {"name": "code"}}, *volumes],
        }

    def _is_deployed(self, count: int) -> bool:
        found = self.api.get(RESOURCES["Deployment"].path(NAMESPACE, "backend")) or {}
        status = found.get("status", {})
        counts = [status.get(name, 0) for name in ("replicas", "updatedReplicas", "availableReplicas")]
        seen = status.get("observedGeneration", 0) >= found.get("metadata", {}).get("generation", 1)
        return seen and counts == [count] * len(counts)

    def _is_rolled(self, name: str) -> bool:
        found = self.api.get(RESOURCES["DaemonSet"].path("plainkube-ingress", name)) or {}
        status = found.get("status", {})
        counts = [status.get(key, 0) for key in ("updatedNumberScheduled", "numberAvailable")]
        seen = status.get("observedGeneration", 0) >= found.get("metadata", {}).get("generation", 1)
        return bool(seen and counts == [status.get("desiredNumberScheduled")] * len(counts))

    # objects

    def _thing(self, version: str, kind: str, name: str, namespace: str = NAMESPACE) -> Object:
        where = {} if kind == "Namespace" else {"namespace": namespace}
        return {"apiVersion": version, "kind": kind, "metadata": {"name": name, **where}}

    def _apply(
        self,
        version: str,
        kind: str,
        name: str,
        namespace: str = NAMESPACE,
        metadata: Object | None = None,
        **rest: Any,
    ) -> None:
        thing = self._thing(version, kind, name, namespace)
        thing["metadata"].update(metadata or {})
        self.api.apply({**thing, **rest}, MANAGER, force=True)


def http(targets: list[str]) -> list[str]:
    """Return those targets that are plain HTTP."""
    return [target for target in targets if target.startswith("http:")]
