# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The workload that proves a cluster: two small web servers on every node, one behind a Service. Pure functions.

The second one, the neighbour, is there to be reached from a pod of the same node, and at a port of its host.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from ansible_collections.plainkube.cluster.plugins.module_utils.plain_text import at, number_of

NAME = "probe"
NEIGHBOUR = "probe-neighbour"
NAME_LABEL = "app.kubernetes.io/name"
PORT = 8080
UDP_PORT = 8081
SERVICE_PORT = 80
# Nobody has to know this name: it is sent to ingress hosts by their addresses.
INGRESS_HOST = "probe.verify.plainkube.internal"

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
        "args": ["netexec", f"--http-port={PORT}", f"--udp-port={UDP_PORT}"],
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


def objects(namespace: str, image: str, host_port: int = 0, classes: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return the Kubernetes objects of the workload, in the order in which they are made.

    host_port: where neighbours are reached on their hosts, 0 for nowhere; classes: IngressClasses that lead to it.
    """
    labels = {NAME_LABEL: NAME, "app.kubernetes.io/managed-by": "plainkube"}
    neighbour = pod_spec(image)
    if host_port:
        neighbour["containers"][0]["ports"] = [{"containerPort": PORT, "hostPort": host_port}]
    # Pod Security's baseline has no ports of hosts.
    level = {"pod-security.kubernetes.io/enforce": "privileged"} if host_port else {}
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": {**labels, **level}}},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": NAME, "namespace": namespace, "labels": labels},
            "spec": {
                "type": "NodePort",
                # One address for each family that the cluster has.
                "ipFamilyPolicy": "PreferDualStack",
                "selector": labels,
                "ports": [{"port": SERVICE_PORT, "targetPort": PORT}],
            },
        },
        *(_ingress(namespace, name, labels) for name in classes),
        _daemonset(namespace, labels, pod_spec(image)),
        _daemonset(namespace, {**labels, NAME_LABEL: NEIGHBOUR}, neighbour),
    ]


def _daemonset(namespace: str, labels: Mapping[str, str], pod: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": labels[NAME_LABEL], "namespace": namespace, "labels": labels},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def _ingress(namespace: str, class_name: str, labels: Mapping[str, str]) -> dict[str, Any]:
    backend = {"service": {"name": NAME, "port": {"number": SERVICE_PORT}}}
    paths = [{"path": "/", "pathType": "Prefix", "backend": backend}]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": {"name": f"{NAME}-{class_name}", "namespace": namespace, "labels": labels},
        "spec": {"ingressClassName": class_name, "rules": [{"host": INGRESS_HOST, "http": {"paths": paths}}]},
    }


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


def ipv6_of(addresses: Sequence[str]) -> str:
    """Return the first IPv6 address of some, empty if there is none."""
    return next((address for address in addresses if ":" in address), "")


def missing_pods(nodes: list[str], pods: list[dict[str, Any]], dual_stack: bool = False) -> list[str]:
    """Return one line for each pod that is not ready, of two on each node: the node, and how far its pod got.

    With dual_stack a pod needs an IPv6 address too.
    """
    by_place = {(pod["node"], pod["kind"]): pod for pod in pods}
    lines = []
    for node in sorted(nodes):
        for kind in (NAME, NEIGHBOUR):
            pod = by_place.get((node, kind))
            if pod is None:
                lines.append(f"{node}: no pod {kind} yet")
            elif not pod["ready"]:
                lines.append(f"{node}: pod {pod['name']} is {pod['state']}")
            elif dual_stack and not pod["ipv6"]:
                lines.append(f"{node}: pod {pod['name']} has no IPv6 address")
    return lines


# --- What must answer -------------------------------------------------------------------------------------------------

SEE_ROUTES = "packets do not get there: see playbooks/explain-host.yml, ip route and docs/network.md"
SEE_SERVICE = (
    "see playbooks/explain-service.yml -e service={namespace}/probe while it runs, or nft list table ip kube-proxy"
)
SEE_NAMES = "see kubectl -n kube-system logs deployment/coredns, and journalctl -u node-dns where names are cached"
ONE_NODE = "there is only one node"


def workload_checks(running: Mapping[str, Any], view: Mapping[str, Any]) -> dict[str, Any]:
    """Return definitions of checks for the health module, to be done on one host.

    running: what verify_workload returned: pods (name, node, ip, ipv6, kind), service_ip, service_ipv6, node_port.
    view: node (this host's), nodes (name, address, address_ipv6), service_name, dns_ip, namespace, host_port, outside
    (host:port each), ingress (instances with class, namespaces, hosts, http_port), dual_stack.
    """
    checks = _checks_of_family(running, view)
    checks["service-name"] = _name_check(running["service_ip"], "A", view)
    checks["proxy-rules"] = {"type": "proxy_rules", "unit": "kube-proxy.service"}
    own = next((pod for pod in running["pods"] if (pod["node"], pod["kind"]) == (view["node"], NAME)), None)
    if own:
        checks.update(_checks_by_name(own["ip"], view))
    checks.update(_ingress_checks(view))
    if view["dual_stack"]:
        same = _checks_of_family(
            {
                **running,
                "pods": [{**pod, "ip": pod["ipv6"]} for pod in running["pods"]],
                "service_ip": running["service_ipv6"],
            },
            {**view, "nodes": [{**node, "address": node["address_ipv6"]} for node in view["nodes"]]},
        )
        checks.update({f"{name}-ipv6": check for name, check in same.items() if check["type"] != "not_applicable"})
        checks["service-name-ipv6"] = _name_check(running["service_ipv6"], "AAAA", view)
        checks["proxy-rules-ipv6"] = {**checks["proxy-rules"], "family": "ip6"}
    return checks


def _checks_of_family(running: Mapping[str, Any], view: Mapping[str, Any]) -> dict[str, Any]:
    """Return what must be reached by its address, in the family of the addresses that are given."""
    pods = {(pod["node"], pod["kind"]): pod for pod in running["pods"]}
    names = sorted(node["name"] for node in view["nodes"] if (node["name"], NAME) in pods)
    addresses = {node["name"]: node["address"] for node in view["nodes"]}
    others = [name for name in names if name != view["node"]]
    service = at(running["service_ip"], SERVICE_PORT)
    see_service = SEE_SERVICE.format(namespace=view["namespace"])
    checks: dict[str, Any] = {}
    for name in names:
        pod = pods[(name, NAME)]
        checks[f"pod-on-{name}"] = _answers(at(pod["ip"], PORT), pod["name"], SEE_ROUTES)
        checks[f"node-port-on-{name}"] = {
            **_answers(
                at(addresses[name], running["node_port"]), NAME, f"kube-proxy of {name}, or a firewall before it"
            ),
            "unit": "kube-proxy.service",
        }
        if view["host_port"]:
            checks[f"host-port-on-{name}"] = _answers(
                at(addresses[name], view["host_port"]),
                pods[(name, NEIGHBOUR)]["name"],
                f"the CNI plugin portmap of {name} (nft list table ip cni_hostport there), or a firewall before it",
            )
    if not view["host_port"]:
        checks["host-port"] = _not_applicable("verify_host_port is 0")
    checks["service"] = {**_answers(service, NAME, see_service), "unit": "kube-proxy.service"}
    own = pods.get((view["node"], NAME))
    if own:
        checks.update(_checks_from_pod(own, pods, others, service, see_service))
    return checks


def _name_check(expect: str, record: str, view: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "dns",
        "server": view["dns_ip"],
        "name": view["service_name"],
        "record": record,
        "expect": expect,
        "hint": f"the name server does not know this Service; {SEE_NAMES}",
    }


def _dial(own_ip: str, target: str, contains: str, hint: str) -> dict[str, Any]:
    """Return the check that this node's pod reaches a target; it is asked to try by its own port."""
    return {"type": "dial", "via": at(own_ip, PORT), "target": target, "contains": contains, "timeout": 5, "hint": hint}


def _checks_by_name(own_ip: str, view: Mapping[str, Any]) -> dict[str, Any]:
    """Return what this node's pod must reach by a name, or outside."""
    target, see_names = (
        f"{view['service_name']}:{SERVICE_PORT}",
        f"resolv.conf of pods, or the name server; {SEE_NAMES}",
    )
    checks = {"pod-to-service-by-name": _dial(own_ip, target, NAME, see_names)}
    for target in view["outside"]:
        checks[f"pod-to-outside-{target}"] = _dial(
            own_ip,
            target,
            "",
            "packets that leave the pod network: nft list table ip plainkube_pods, routes, firewalls",
        )
    if not view["outside"]:
        checks["pod-to-outside"] = _not_applicable("verify_outside is empty")
    return checks


def _answers(place: str, contains: str, hint: str) -> dict[str, Any]:
    return {"type": "http", "url": f"http://{place}/hostname", "contains": contains, "hint": hint}


def _not_applicable(why: str) -> dict[str, Any]:
    return {"type": "not_applicable", "why": why}


def _checks_from_pod(
    own: Mapping[str, Any],
    pods: Mapping[tuple[str, str], Mapping[str, Any]],
    others: Sequence[str],
    service: str,
    see_service: str,
) -> dict[str, Any]:
    """Return which other pods, and through the Service's address, this node's pod must reach."""
    neighbour, see_bridge = pods[(own["node"], NEIGHBOUR)], "the bridge of this host's pods: ip link, sysctl net.bridge"
    checks = {
        "pod-to-pod-same-host": _dial(own["ip"], at(neighbour["ip"], PORT), neighbour["name"], see_bridge),
        "pod-to-service": _dial(own["ip"], service, NAME, see_service),
    }
    for name in others:
        pod = pods[(name, NAME)]
        checks[f"pod-to-pod-on-{name}"] = _dial(own["ip"], at(pod["ip"], PORT), pod["name"], SEE_ROUTES)
        checks[f"mtu-to-{name}"] = {
            "type": "unfragmented",
            "source": own["ip"],
            "host": pod["ip"],
            "port": UDP_PORT,
            "hint": "pods' MTU is larger than the way allows, or ICMP is dropped: plainkube_pod_mtu; ip link",
        }
    if not others:
        checks["pod-to-pod-other-host"] = checks["mtu"] = _not_applicable(ONE_NODE)
    return checks


def ingress_classes(instances: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the classes through which the workload is to be reached: of instances that look into every namespace."""
    return [instance["class"] for instance in instances if not instance["namespaces"] and instance["hosts"]]


def _ingress_checks(view: Mapping[str, Any]) -> dict[str, Any]:
    classes = ingress_classes(view["ingress"])
    checks = {
        f"ingress-{instance['class']}-on-{host['name']}": {
            **_answers(
                f"{host['address']}:{instance['http_port']}",
                NAME,
                f"the ingress on {host['name']} does not lead to Service {view['namespace']}/probe; docs/operations.md",
            ),
            "host": INGRESS_HOST,
        }
        for instance in view["ingress"]
        if instance["class"] in classes
        for host in instance["hosts"]
    }
    return checks or {"ingress": _not_applicable("no ingress of all namespaces runs in this cluster")}


def summary(host: str, results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what was proven from a host, for people: how many checks passed, the rules, what does not apply."""
    passed = [result for result in results if result["state"] == "passed"]
    lines = [f"{host}: {number_of(len(passed), 'check')} of the workload passed"]
    lines += [f"{result['name']}: {result['seen']}" for result in passed if result["name"].startswith("proxy-rules")]
    lines += [
        f"{result['name']}: not applicable, {result['seen']}"
        for result in results
        if result["state"] == "not applicable"
    ]
    return lines
