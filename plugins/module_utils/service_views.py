# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A Service as the API knows it: its ports, addresses, endpoints, pods and policies, as one plain view.

Pure functions on the API's objects. What a host makes of the view is in service_paths.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.plainkube.cluster.plugins.module_utils.audit_subjects import selects
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError

Object = Mapping[str, Any]
NEAR_NAMES = 5


class ServiceError(PlainkubeError):
    """The Service that was asked for is not there, or its name is no name."""


def split_name(text: str) -> tuple[str, str]:
    """Return namespace and name. Raises ServiceError."""
    namespace, slash, name = text.strip().partition("/")
    if not (slash and namespace and name) or "/" in name:
        raise ServiceError(
            f"service: found '{text}', wanted namespace/name. For example: -e service=kube-system/kube-dns"
        )
    return namespace, name


def unknown_service(namespace: str, name: str, known: Iterable[tuple[str, str]]) -> str:
    """Return the message for a Service that does not exist, with those that may be meant."""
    services = sorted(known)
    here = [f"{namespace}/{other}" for place, other in services if place == namespace]
    close = difflib.get_close_matches(name, [other for place, other in services if place == namespace], NEAR_NAMES)
    near = [f"{namespace}/{other}" for other in close]
    near += [f"{place}/{other}" for place, other in services if other == name]
    near += difflib.get_close_matches(f"{namespace}/{name}", [f"{place}/{other}" for place, other in services], 1, 0.85)
    near = list(dict.fromkeys(near))
    message = f"There is no Service {namespace}/{name}."
    if near:
        return f"{message} Is one of these meant: {', '.join(near[:NEAR_NAMES])}?"
    if here:
        more = f" and {len(here) - NEAR_NAMES} more" if len(here) > NEAR_NAMES else ""
        return f"{message} Namespace {namespace} has {', '.join(here[:NEAR_NAMES])}{more}."
    return f"{message} Namespace {namespace} has no Service, or is not there; look with kubectl get services -A"


def view(service: Object, slices: Sequence[Object], pods: Sequence[Object], policies: Sequence[Object]) -> Object:
    """Return a Service with all that belongs to it. pods: those of its selector; policies: all of its namespace."""
    spec, metadata = service["spec"], service["metadata"]
    endpoints = _endpoints(slices)
    named = {endpoint["pod"] for endpoint in endpoints}
    selector = spec.get("selector") or {}
    chosen = [pod for pod in pods if selector or pod["metadata"]["name"] in named]
    affinity = (spec.get("sessionAffinityConfig") or {}).get("clientIP") or {}
    balancer = (service.get("status") or {}).get("loadBalancer") or {}
    headless = spec.get("clusterIP") == "None"
    return {
        "namespace": metadata["namespace"],
        "name": metadata["name"],
        "type": spec.get("type", "ClusterIP"),
        "headless": headless,
        "external_name": spec.get("externalName", ""),
        "cluster_ips": [] if headless else spec.get("clusterIPs") or [],
        "external_ips": spec.get("externalIPs") or [],
        "load_balancer_ips": [entry["ip"] for entry in balancer.get("ingress") or () if entry.get("ip")],
        "affinity_seconds": affinity.get("timeoutSeconds", 0) if spec.get("sessionAffinity") == "ClientIP" else 0,
        "internal_policy": spec.get("internalTrafficPolicy") or "Cluster",
        "external_policy": spec.get("externalTrafficPolicy") or "Cluster",
        "source_ranges": spec.get("loadBalancerSourceRanges") or [],
        # Endpoints may then be left out on purpose: those that are far away.
        "prefers_near": bool(spec.get("trafficDistribution")),
        "selector": selector,
        "ports": [
            {
                "name": port.get("name", ""),
                "protocol": port.get("protocol", "TCP").lower(),
                "port": port["port"],
                "target": str(port.get("targetPort", port["port"])),
                "node_port": port.get("nodePort", 0),
            }
            for port in spec.get("ports") or ()
        ],
        "endpoints": endpoints,
        "pods": [_pod(pod) for pod in chosen],
        "policies": _policies(policies, chosen),
    }


def _endpoints(slices: Sequence[Object]) -> list[dict[str, Any]]:
    """Return the endpoints of all slices, each address once, with its port for each port's name."""
    found: dict[str, dict[str, Any]] = {}
    for part in slices:
        ports = {port.get("name") or "": port["port"] for port in part.get("ports") or () if port.get("port")}
        for endpoint in part.get("endpoints") or ():
            conditions = endpoint.get("conditions") or {}
            reference = endpoint.get("targetRef") or {}
            ready = conditions.get("ready") is not False
            for address in endpoint["addresses"]:
                entry = found.setdefault(
                    address,
                    {
                        "address": address,
                        "ports": {},
                        "ready": ready,
                        "serving": ready if conditions.get("serving") is None else conditions["serving"],
                        "terminating": bool(conditions.get("terminating")),
                        "node": endpoint.get("nodeName") or "",
                        "pod": reference.get("name", "") if reference.get("kind") == "Pod" else "",
                    },
                )
                entry["ports"].update(ports)
    return sorted(found.values(), key=lambda entry: (entry["node"], entry["address"]))


def _pod(pod: Object) -> dict[str, Any]:
    status = pod.get("status") or {}
    conditions = {entry["type"]: entry["status"] for entry in status.get("conditions") or ()}
    waiting = [
        state["waiting"].get("reason", "waiting")
        for container in status.get("containerStatuses") or ()
        if (state := container.get("state") or {}).get("waiting")
    ]
    leaving = bool(pod["metadata"].get("deletionTimestamp"))
    return {
        "name": pod["metadata"]["name"],
        "node": (pod.get("spec") or {}).get("nodeName", ""),
        "ready": conditions.get("Ready") == "True" and not leaving,
        "state": "Terminating" if leaving else ", ".join(waiting) or status.get("phase", "Unknown"),
    }


def _policies(policies: Sequence[Object], pods: Sequence[Object]) -> list[dict[str, Any]]:
    """Return the policies that select at least one of the pods, in words."""
    found = []
    for policy in policies:
        selector = policy["spec"].get("podSelector") or {}
        if any(selects(selector, pod["metadata"].get("labels") or {}) for pod in pods):
            found.append({"name": policy["metadata"]["name"], "words": policy_words(policy["spec"])})
    return sorted(found, key=lambda entry: str(entry["name"]))


def policy_words(spec: Object) -> list[str]:
    """Return what a NetworkPolicy lets through, a line for each direction that it limits."""
    kinds = spec.get("policyTypes") or (["Ingress", "Egress"] if spec.get("egress") else ["Ingress"])
    words = []
    for kind, verb, key, peers in (("Ingress", "lets in", "ingress", "from"), ("Egress", "lets out", "egress", "to")):
        if kind in kinds:
            rules = [_rule_words(rule, peers) for rule in spec.get(key) or ()]
            words.append(f"{verb} {'; '.join(rules) or 'nothing'}")
    return words


def _rule_words(rule: Object, key: str) -> str:
    peers = [_peer_words(peer) for peer in rule.get(key) or ()]
    ports = [_port_words(port) for port in rule.get("ports") or ()]
    who = f"{key} {' or '.join(peers)}" if peers else "everything"
    return who + (f" on {', '.join(ports)}" if ports else "")


def _port_words(port: Object) -> str:
    protocol = port.get("protocol", "TCP").lower()
    if "port" not in port:
        return f"every {protocol} port"
    return f"{protocol} {port['port']}" + (f"-{port['endPort']}" if "endPort" in port else "")


def _peer_words(peer: Object) -> str:
    block = peer.get("ipBlock")
    if block:
        excluded = block.get("except") or ()
        return str(block["cidr"]) + (f" but {', '.join(excluded)}" if excluded else "")
    pods = f"pods {_selector_words(peer['podSelector'])}" if peer.get("podSelector") else "pods"
    if "namespaceSelector" not in peer:
        return f"{pods} of this namespace"
    namespaces = _selector_words(peer["namespaceSelector"])
    return f"{pods} of namespaces {namespaces}" if namespaces else f"{pods} of every namespace"


def _selector_words(selector: Object) -> str:
    words = [f"{key}={value}" for key, value in sorted((selector.get("matchLabels") or {}).items())]
    for entry in selector.get("matchExpressions") or ():
        values = f" ({', '.join(entry['values'])})" if entry.get("values") else ""
        words.append(f"{entry['key']} {entry['operator']}{values}")
    return ",".join(words)
