# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The proof that NetworkPolicies are enforced: who may reach whom, as objects and expectations. Pure functions.

A server on each of up to two nodes, a friend on the first and a stranger on the last of them. All traffic in the
namespace is denied; then friends may reach servers, and everybody the name server. So each denied way has an allowed
twin that differs in one thing, and one policy left out or put in force by mistake shows.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.plainkube.cluster.plugins.module_utils.plain_text import at
from ansible_collections.plainkube.cluster.plugins.module_utils.workload import PORT

ROLE = "plainkube/policy-matrix"
SERVICE_PORT = 80
DNS_PORT = 53
# What agnhost says of a packet that a firewall refused, or dropped.
DENIALS = ("REFUSED", "TIMEOUT")


@dataclass(frozen=True)
class Way:
    """One connection from a pod to a target (host:port), and whether it is to succeed."""

    source: str
    target: str
    allowed: bool
    words: str


def nodes_for(nodes: Sequence[str]) -> list[str]:
    """Return the nodes that the matrix is played on: the first and the last by name, or the only one."""
    names = sorted(nodes)
    return list(dict.fromkeys([names[0], names[-1]])) if names else []


def actors(nodes: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return {name of a pod: (role, node)} for the nodes of the matrix."""
    servers = {f"policy-server-{number}": ("server", node) for number, node in enumerate(nodes, start=1)}
    return {**servers, "policy-friend": ("friend", nodes[0]), "policy-stranger": ("stranger", nodes[-1])}


def pods(namespace: str, template: Mapping[str, Any], nodes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the pods of the matrix; template: spec of a pod that serves on PORT and has agnhost in it."""
    result = []
    for name, (role, node) in actors(nodes).items():
        spec = copy.deepcopy(dict(template))
        # The scheduler is no part of this proof.
        spec["nodeName"] = node
        result.append(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "namespace": namespace, "labels": {ROLE: role}},
                "spec": spec,
            }
        )
    return result


def service(namespace: str, name: str) -> dict[str, Any]:
    """Return the Service in front of the servers."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": {ROLE: "server"}, "ports": [{"port": SERVICE_PORT, "targetPort": PORT}]},
    }


def _policy(namespace: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


def policies(namespace: str) -> list[dict[str, Any]]:
    """Return the policies: nobody may do anything, but friends reach servers, and everybody asks for names."""
    everybody = {"matchExpressions": [{"key": ROLE, "operator": "Exists"}]}
    servers, friends = {"matchLabels": {ROLE: "server"}}, {"matchLabels": {ROLE: "friend"}}
    web = [{"protocol": "TCP", "port": PORT}]
    names = [{"protocol": protocol, "port": DNS_PORT} for protocol in ("UDP", "TCP")]
    return [
        _policy(namespace, "policy-default-deny", {"podSelector": everybody, "policyTypes": ["Ingress", "Egress"]}),
        _policy(
            namespace,
            "policy-friends-in",
            {
                "podSelector": servers,
                "policyTypes": ["Ingress"],
                "ingress": [{"from": [{"podSelector": friends}], "ports": web}],
            },
        ),
        # Strangers too: what stops them is the servers' side.
        _policy(
            namespace,
            "policy-out-to-servers",
            {
                "podSelector": everybody,
                "policyTypes": ["Egress"],
                "egress": [{"to": [{"podSelector": servers}], "ports": web}],
            },
        ),
        # Wherever the name server is, on this host too.
        _policy(
            namespace,
            "policy-names",
            {"podSelector": everybody, "policyTypes": ["Egress"], "egress": [{"ports": names}]},
        ),
    ]


def ways(nodes: Sequence[str], addresses: Mapping[str, Sequence[str]], service_name: str, outside: str) -> list[Way]:
    """Return the ways to try while the policies are in force.

    addresses: {name of a pod: its addresses, one of each family}; service_name: full DNS name of the Service; outside:
    host:port that answers everybody, but that no policy lets the pods go to.
    """
    cast = actors(nodes)
    found = []
    for source in ("policy-friend", "policy-stranger"):
        role, node = cast[source]
        for name, (kind, its_node) in cast.items():
            if kind != "server":
                continue
            where = "the same node" if node == its_node else "another node"
            allowed = role == "friend"
            rule = "policy-friends-in lets them in" if allowed else "policy-default-deny denies it, no policy allows it"
            for address in addresses[name]:
                over = " over IPv6" if ":" in address else ""
                words = f"from the {role} on {node} to the server on {its_node}{over} ({where}): {rule}"
                found.append(Way(source, at(address, PORT), allowed, words))
    node = cast["policy-friend"][1]
    found += [
        Way(
            "policy-friend",
            f"{service_name}:{SERVICE_PORT}",
            True,
            f"from the friend on {node} to the servers by the name of their Service: policy-names lets it ask for it",
        ),
        Way(
            "policy-friend",
            outside,
            False,
            f"from the friend on {node} to {outside}: policy-default-deny denies it, no policy allows it",
        ),
    ]
    return found


def before(found: Sequence[Way]) -> list[Way]:
    """Return the same ways without policies: all of them are open, or a denial would prove nothing."""
    return [
        Way(way.source, way.target, True, f"{way.words.partition(': ')[0]}, before there are policies") for way in found
    ]


def fault(way: Way, connected: bool, said: str) -> str:
    """Return what is wrong with what a connection showed, empty when it is as expected. said: words of agnhost."""
    words = " ".join(said.split())
    if way.allowed:
        return "" if connected else f"should have been allowed, but was not ({words or 'no answer'}) {way.words}"
    if connected:
        return f"should have been denied, but was allowed {way.words}"
    return "" if words.startswith(DENIALS) else f"could not be tried ({words or 'no answer'}) {way.words}"
