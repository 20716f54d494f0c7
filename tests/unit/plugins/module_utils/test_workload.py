# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The workload that proves a cluster: which objects, when an old proof still holds, what hosts must see of it."""

from __future__ import annotations

from copy import deepcopy
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils import checks, workload

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=timezone.utc)
NODES: list[dict[str, Any]] = [
    {
        "metadata": {"name": name, "uid": f"uid-{name}"},
        "spec": {"podCIDR": "10.244.0.0/24"},
        "status": {
            "nodeInfo": {"bootID": "1", "kubeletVersion": "v1.37.1", "containerRuntimeVersion": "containerd://2.3.7"},
            "conditions": [{"type": "Ready", "lastTransitionTime": "2026-11-20T00:00:00Z"}],
        },
    }
    for name in ("a", "b")
]


def containers(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [thing["spec"]["template"]["spec"]["containers"][0] for thing in objects if thing["kind"] == "DaemonSet"]


def test_the_pods_are_allowed_where_pod_security_is_strictest() -> None:
    objects = workload.objects("proof", "image")
    assert objects[0]["metadata"]["name"] == "proof"
    assert "pod-security.kubernetes.io/enforce" not in objects[0]["metadata"]["labels"]
    assert len(containers(objects)) == 2
    for container in containers(objects):
        assert container["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]
        assert "hostPort" not in container["ports"][0]


def test_only_the_neighbour_has_a_port_of_its_host_which_its_namespace_allows() -> None:
    objects = workload.objects("proof", "image", 29999)
    assert [container["ports"][0].get("hostPort") for container in containers(objects)] == [None, 29999]
    assert objects[0]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "privileged"


def test_the_service_leads_to_one_of_the_two_pods_of_a_node() -> None:
    objects = workload.objects("proof", "image", 29999)
    (selector,) = (thing["spec"]["selector"] for thing in objects if thing["kind"] == "Service")
    labels = [thing["spec"]["template"]["metadata"]["labels"] for thing in objects if thing["kind"] == "DaemonSet"]
    assert [selector.items() <= label.items() for label in labels] == [True, False]


def test_an_ingress_is_made_for_each_class_that_looks_into_every_namespace() -> None:
    some = [{"name": "node1", "address": "192.0.2.1"}]
    instances = [
        {"class": "public", "namespaces": [], "hosts": some},
        {"class": "shop", "namespaces": ["shop"], "hosts": some},
        {"class": "nowhere", "namespaces": [], "hosts": []},
    ]
    assert workload.ingress_classes(instances) == ["public"]
    objects = workload.objects("proof", "image", 0, ["public"])
    (ingress,) = (thing for thing in objects if thing["kind"] == "Ingress")
    assert ingress["spec"]["ingressClassName"] == "public"


def test_missing_pods_are_named_with_how_far_they_got() -> None:
    pods = [
        {"name": "probe-1", "kind": "probe", "node": "a", "ready": True, "state": "Running"},
        {"name": "neighbour-1", "kind": "probe-neighbour", "node": "a", "ready": True, "state": "Running"},
        {"name": "probe-2", "kind": "probe", "node": "b", "ready": False, "state": "ImagePullBackOff"},
    ]
    assert workload.missing_pods(["a", "b"], pods) == [
        "b: pod probe-2 is ImagePullBackOff",
        "b: no pod probe-neighbour yet",
    ]


def test_a_young_proof_of_the_same_cluster_holds() -> None:
    digest = workload.cluster_digest(NODES)
    note = workload.proof(digest, 2, NOW)
    assert workload.still_proven(note, digest, 24, NOW + timedelta(hours=23))
    assert not workload.still_proven(note, digest, 24, NOW + timedelta(hours=24))
    # A clock that was set back proves nothing.
    assert not workload.still_proven(note, digest, 24, NOW - timedelta(minutes=1))
    assert not workload.still_proven(note, "other", 24, NOW)
    assert not workload.still_proven(None, digest, 24, NOW)
    assert not workload.still_proven({"cluster": digest, "provenAt": "yesterday"}, digest, 24, NOW)


@pytest.mark.parametrize(
    "path",
    [
        ("metadata", "uid"),
        ("spec", "podCIDR"),
        ("status", "nodeInfo", "bootID"),
        ("status", "nodeInfo", "kubeletVersion"),
        ("status", "conditions", 0, "lastTransitionTime"),
    ],
)
def test_a_changed_node_has_to_be_proven_again(path: tuple[Any, ...]) -> None:
    changed = deepcopy(NODES)
    place: Any = changed[1]
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = "changed"
    assert workload.cluster_digest(changed) != workload.cluster_digest(NODES)
    assert workload.cluster_digest(list(reversed(NODES))) == workload.cluster_digest(NODES)


def running(*nodes: str) -> dict[str, Any]:
    pods = [
        {"name": f"{kind}-{node}", "kind": kind, "node": node, "ip": f"10.244.{number}.{last}"}
        for number, node in enumerate(nodes)
        for last, kind in ((7, "probe"), (8, "probe-neighbour"))
    ]
    for number, pod in enumerate(pods):
        pod["ipv6"] = f"fd00::{number}"
    return {"pods": pods, "service_ip": "10.96.0.9", "service_ipv6": "fd01::9", "node_port": 31000}


VIEW: dict[str, Any] = {
    "node": "a",
    "nodes": [
        {"name": "a", "address": "192.0.2.1", "address_ipv6": "2001:db8::1"},
        {"name": "b", "address": "192.0.2.2", "address_ipv6": "2001:db8::2"},
    ],
    "namespace": "proof",
    "dual_stack": False,
    "service_name": "probe.proof.svc.cluster.local",
    "dns_ip": "10.96.0.10",
    "host_port": 29999,
    "outside": ["192.0.2.1:6443"],
    "ingress": [
        {
            "class": "public",
            "namespaces": [],
            "http_port": 8000,
            "hosts": [{"name": "b", "address": "192.0.2.2"}],
        }
    ],
}
PROVEN_FROM_A = {
    "pod-on-a": "http://10.244.0.7:8080/hostname",
    "pod-on-b": "http://10.244.1.7:8080/hostname",
    "node-port-on-a": "http://192.0.2.1:31000/hostname",
    "node-port-on-b": "http://192.0.2.2:31000/hostname",
    "host-port-on-a": "http://192.0.2.1:29999/hostname",
    "host-port-on-b": "http://192.0.2.2:29999/hostname",
    "service": "http://10.96.0.9:80/hostname",
    "service-name": "probe.proof.svc.cluster.local",
    "proxy-rules": None,
    "pod-to-pod-same-host": "10.244.0.8:8080",
    "pod-to-service": "10.96.0.9:80",
    "pod-to-service-by-name": "probe.proof.svc.cluster.local:80",
    "pod-to-pod-on-b": "10.244.1.7:8080",
    "mtu-to-b": "10.244.1.7",
    "pod-to-outside-192.0.2.1:6443": "192.0.2.1:6443",
    "ingress-public-on-b": "http://192.0.2.2:8000/hostname",
}


def test_every_way_is_gone_from_every_host_and_from_its_pod() -> None:
    definitions = workload.workload_checks(running("a", "b"), VIEW)
    asked = ("url", "target", "host", "name")
    found = {
        name: next((definition[key] for key in asked if key in definition), None)
        for name, definition in definitions.items()
    }
    assert found == PROVEN_FROM_A
    assert {item["via"] for item in definitions.values() if item["type"] == "dial"} == {"10.244.0.7:8080"}
    assert definitions["mtu-to-b"]["source"] == "10.244.0.7"
    assert definitions["ingress-public-on-b"]["host"] == workload.INGRESS_HOST
    assert checks.faults_of(definitions) == []


OVER_IPV6 = {
    "pod-on-a-ipv6": "http://[fd00::0]:8080/hostname",
    "pod-on-b-ipv6": "http://[fd00::2]:8080/hostname",
    "node-port-on-a-ipv6": "http://[2001:db8::1]:31000/hostname",
    "node-port-on-b-ipv6": "http://[2001:db8::2]:31000/hostname",
    "host-port-on-a-ipv6": "http://[2001:db8::1]:29999/hostname",
    "host-port-on-b-ipv6": "http://[2001:db8::2]:29999/hostname",
    "service-ipv6": "http://[fd01::9]:80/hostname",
    "service-name-ipv6": "probe.proof.svc.cluster.local",
    "proxy-rules-ipv6": None,
    "pod-to-pod-same-host-ipv6": "[fd00::1]:8080",
    "pod-to-service-ipv6": "[fd01::9]:80",
    "pod-to-pod-on-b-ipv6": "[fd00::2]:8080",
    "mtu-to-b-ipv6": "fd00::2",
}


def test_what_has_addresses_of_ipv6_is_reached_by_them_too() -> None:
    definitions = workload.workload_checks(running("a", "b"), {**VIEW, "dual_stack": True})
    asked = ("url", "target", "host", "name")
    found = {
        name: next((definition[key] for key in asked if key in definition), None)
        for name, definition in definitions.items()
    }
    assert found == {**PROVEN_FROM_A, **OVER_IPV6}
    assert definitions["pod-to-pod-on-b-ipv6"]["via"] == "[fd00::0]:8080"
    assert definitions["mtu-to-b-ipv6"]["source"] == "fd00::0"
    assert definitions["service-name-ipv6"]["record"] == "AAAA"
    assert definitions["service-name-ipv6"]["expect"] == "fd01::9"
    assert definitions["proxy-rules-ipv6"]["family"] == "ip6"
    assert checks.faults_of(definitions) == []
    assert workload.missing_pods(["a"], [{**pod, "ready": True} for pod in running("a")["pods"]], True) == []


def test_a_pod_without_an_ipv6_address_is_missing() -> None:
    pods = [{**pod, "ready": True, "ipv6": ""} for pod in running("a")["pods"]]
    assert workload.missing_pods(["a"], pods) == []
    assert workload.missing_pods(["a"], pods, True) == [
        "a: pod probe-a has no IPv6 address",
        "a: pod probe-neighbour-a has no IPv6 address",
    ]


def test_each_check_says_where_to_look() -> None:
    definitions = workload.workload_checks(running("a", "b"), {**VIEW, "dual_stack": True})
    assert [name for name, item in definitions.items() if not item.get("hint") and item["type"] != "proxy_rules"] == []


def test_what_one_node_cannot_prove_is_not_called_proven() -> None:
    view = {**VIEW, "nodes": VIEW["nodes"][:1], "host_port": 0, "outside": [], "ingress": []}
    definitions = workload.workload_checks(running("a"), view)
    left_out = {name for name, item in definitions.items() if item["type"] == "not_applicable"}
    assert left_out == {"pod-to-pod-other-host", "mtu", "host-port", "pod-to-outside", "ingress"}
    assert checks.faults_of(definitions) == []
    results = [
        {"name": name, "state": result.state, "seen": result.seen}
        for name, result in ((name, checks.attempt(definitions[name])) for name in sorted(left_out))
    ]
    lines = workload.summary("a", [*results, {"name": "service", "state": "passed", "seen": "200"}])
    assert lines[0] == "a: 1 check of the workload passed"
    assert "mtu: not applicable, there is only one node" in lines


def test_a_host_without_a_pod_of_its_own_still_asks() -> None:
    definitions = workload.workload_checks(running("b"), VIEW)
    assert {"pod-on-b", "service"} <= set(definitions)
    assert not any(name.startswith("pod-to") for name in definitions)
