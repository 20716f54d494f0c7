# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The workload that proves a cluster: one small web server on every node behind one Service. Pure functions."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime, timedelta, timezone
from typing import Any

NAME = "probe"
PORT = 8080
SERVICE_PORT = 80

# The last proof is noted in the cluster itself, for people too:
# kubectl -n kube-system get configmap plainkube-proof -o yaml
PROOF_NAME = "plainkube-proof"
PROOF_NAMESPACE = "kube-system"
TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"


def pod_spec(image: str) -> dict[str, Any]:
    """Return the spec of a pod that serves on PORT and is allowed everywhere and on every node."""
    container = {
        "name": NAME,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "args": ["netexec", f"--http-port={PORT}", "--udp-port=-1"],
        "ports": [{"containerPort": PORT}],
        "readinessProbe": {"httpGet": {"path": "/hostname", "port": PORT}, "periodSeconds": 1},
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        # Nothing to save at its end, and whoever waits for the proof waits for that too.
        "terminationGracePeriodSeconds": 1,
        "tolerations": [{"operator": "Exists"}],
        "containers": [container],
    }


def objects(namespace: str, image: str) -> list[dict[str, Any]]:
    """Return the Kubernetes objects of the workload, in the order in which they are made."""
    labels = {"app.kubernetes.io/name": NAME, "app.kubernetes.io/managed-by": "plainkube"}
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": NAME, "namespace": namespace, "labels": labels},
            "spec": {"selector": labels, "ports": [{"port": SERVICE_PORT, "targetPort": PORT}]},
        },
        {
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": {"name": NAME, "namespace": namespace, "labels": labels},
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod_spec(image)},
            },
        },
    ]


def cluster_digest(nodes: list[dict[str, Any]]) -> str:
    """Return one word for what a proof was about: which nodes, since which boot, with which software and networks.

    nodes: items of a NodeList, as plain data.
    """
    told = ("bootID", "kubeletVersion", "containerRuntimeVersion")
    facts = [
        [
            node["metadata"]["uid"],
            node["spec"].get("podCIDR"),
            {key: node["status"]["nodeInfo"].get(key) for key in told},
            # When a node became ready: a node that was away has to be proven again.
            [c["lastTransitionTime"] for c in node["status"].get("conditions", []) if c["type"] == "Ready"],
        ]
        for node in sorted(nodes, key=lambda node: str(node["metadata"]["name"]))
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def proof(digest: str, nodes: int, now: datetime) -> dict[str, str]:
    """Return the data of a note that a workload has proven the cluster."""
    return {"provenAt": now.astimezone(timezone.utc).strftime(TIME_FORMAT), "nodes": str(nodes), "cluster": digest}


def still_proven(note: dict[str, str] | None, digest: str, maximum_age_hours: int, now: datetime) -> bool:
    """Return whether the note is about this very cluster and younger than so many hours."""
    if not note or note.get("cluster") != digest:
        return False
    try:
        proven_at = datetime.strptime(note.get("provenAt", ""), TIME_FORMAT).replace(tzinfo=timezone.utc)
    except ValueError:
        return False
    return timedelta(0) <= now - proven_at < timedelta(hours=maximum_age_hours)


def missing_pods(nodes: list[str], pods: list[dict[str, Any]]) -> list[str]:
    """Return one line for each node whose pod is not ready: the node, and how far its pod got."""
    by_node = {pod["node"]: pod for pod in pods}
    lines = []
    for node in sorted(nodes):
        pod = by_node.get(node)
        if pod is None:
            lines.append(f"{node}: no pod yet")
        elif not pod["ready"]:
            lines.append(f"{node}: pod {pod['name']} is {pod['state']}")
    return lines


def workload_checks(pods: list[dict[str, Any]], service_ip: str, service_name: str, dns_ip: str) -> dict[str, Any]:
    """Return definitions of checks for the health module: every pod, the Service, and the Service's name.

    pods are {name, node, ip}; the cluster's DNS at dns_ip must answer the full name service_name with service_ip.
    """
    checks: dict[str, Any] = {
        f"pod-on-{pod['node']}": {
            "type": "http",
            "url": f"http://{pod['ip']}:{PORT}/hostname",
            "contains": pod["name"],
            "hint": f"packets from here do not reach pods on {pod['node']}; see ip route and docs/network.md",
        }
        for pod in pods
    }
    checks["service"] = {
        "type": "http",
        "url": f"http://{service_ip}:{SERVICE_PORT}/hostname",
        "contains": NAME,
        "unit": "kube-proxy.service",
        "hint": "Services are not carried on this host; see nft list table ip kube-proxy",
    }
    checks["service-name"] = {
        "type": "dns",
        "server": dns_ip,
        "name": service_name,
        "expect": service_ip,
        "hint": "the name server does not know this Service; see kubectl -n kube-system logs deployment/coredns",
    }
    return checks
