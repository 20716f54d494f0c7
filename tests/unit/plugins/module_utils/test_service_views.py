# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A Service as the API tells it, and what is said about one that is not there."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils import service_views
from ansible_collections.plainkube.cluster.plugins.module_utils.service_views import ServiceError, view

LABELS = {"app": "web"}


def service(**spec: Any) -> dict[str, Any]:
    base = {
        "type": "NodePort",
        "clusterIP": "10.96.196.49",
        "clusterIPs": ["10.96.196.49"],
        "selector": LABELS,
        "ports": [{"name": "http", "port": 80, "targetPort": "web", "nodePort": 30080, "protocol": "TCP"}],
    }
    return {"metadata": {"namespace": "shop", "name": "web"}, "spec": {**base, **spec}}


def endpoint_slice(address: str, node: str, **conditions: bool) -> dict[str, Any]:
    endpoint = {
        "addresses": [address],
        "conditions": conditions,
        "nodeName": node,
        "targetRef": {"kind": "Pod", "name": f"web-{node}"},
    }
    return {"ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": [endpoint]}


def pod(name: str, ready: str = "True", **more: Any) -> dict[str, Any]:
    status = {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}], **more}
    return {"metadata": {"name": name, "labels": LABELS}, "spec": {"nodeName": "node1"}, "status": status}


def test_slices_become_one_list_of_endpoints_with_their_state() -> None:
    slices = [
        endpoint_slice("10.244.1.4", "node1", ready=True),
        endpoint_slice("10.244.0.4", "node2", ready=False, serving=True, terminating=True),
        endpoint_slice("10.244.1.4", "node1", ready=True),
    ]
    found = view(service(), slices, [], [])["endpoints"]
    assert [(entry["address"], entry["ready"], entry["serving"], entry["terminating"]) for entry in found] == [
        ("10.244.1.4", True, True, False),
        ("10.244.0.4", False, True, True),
    ]
    assert found[0]["ports"] == {"http": 8080}
    assert found[0]["pod"] == "web-node1"


def test_what_the_api_leaves_out_is_filled_in_as_it_means_it() -> None:
    bare = {"metadata": {"namespace": "a", "name": "b"}, "spec": {"clusterIP": "None", "ports": [{"port": 53}]}}
    found = view(bare, [{"ports": None, "endpoints": None}], [], [])
    assert found["headless"]
    assert found["cluster_ips"] == []
    assert (found["internal_policy"], found["external_policy"]) == ("Cluster", "Cluster")
    assert found["ports"] == [{"name": "", "protocol": "tcp", "port": 53, "target": "53", "node_port": 0}]


def test_pods_say_why_they_are_not_ready() -> None:
    waiting = {"containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff"}}}]}
    leaving = pod("web-3")
    leaving["metadata"]["deletionTimestamp"] = "2026-11-21T00:00:00Z"
    found = view(service(), [], [pod("web-1"), pod("web-2", "False", **waiting), leaving], [])["pods"]
    assert [(entry["name"], entry["ready"], entry["state"]) for entry in found] == [
        ("web-1", True, "Running"),
        ("web-2", False, "ImagePullBackOff"),
        ("web-3", False, "Terminating"),
    ]


def policy(name: str, labels: dict[str, str], **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"podSelector": {"matchLabels": labels}, **spec}}


def test_only_policies_that_select_a_pod_of_the_service_are_told() -> None:
    policies = [policy("ours", LABELS), policy("all", {}), policy("theirs", {"app": "other"})]
    found = view(service(), [], [pod("web-1")], policies)["policies"]
    assert [entry["name"] for entry in found] == ["all", "ours"]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({}, ["lets in nothing"]),
        ({"ingress": [{}]}, ["lets in everything"]),
        (
            {"ingress": [{"from": [{"namespaceSelector": {}}], "ports": [{"port": 8080}]}]},
            ["lets in from pods of every namespace on tcp 8080"],
        ),
        (
            {"ingress": [{"from": [{"podSelector": {"matchLabels": {"a": "b"}}}, {"podSelector": {}}]}]},
            ["lets in from pods a=b of this namespace or pods of this namespace"],
        ),
        (
            {
                "policyTypes": ["Ingress", "Egress"],
                "egress": [{"to": [{"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.7/32"]}}]}],
            },
            ["lets in nothing", "lets out to 192.0.2.0/24 but 192.0.2.7/32"],
        ),
        (
            {"policyTypes": ["Egress"], "egress": [{"ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP"}]}]},
            ["lets out everything on udp 53, every tcp port"],
        ),
        (
            {
                "ingress": [
                    {
                        "from": [
                            {
                                "namespaceSelector": {
                                    "matchExpressions": [{"key": "team", "operator": "In", "values": ["a", "b"]}]
                                }
                            }
                        ],
                        "ports": [{"port": 1000, "endPort": 2000}],
                    }
                ]
            },
            ["lets in from pods of namespaces team In (a, b) on tcp 1000-2000"],
        ),
    ],
)
def test_a_policy_in_words(spec: dict[str, Any], words: list[str]) -> None:
    assert service_views.policy_words(spec) == words


@pytest.mark.parametrize("text", ["kube-dns", "/kube-dns", "kube-system/", "a/b/c", ""])
def test_a_name_without_its_namespace_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ServiceError, match=r"wanted namespace/name\. For example"):
        service_views.split_name(text)


KNOWN = [("kube-system", "kube-dns"), ("default", "kubernetes"), ("shop", "web"), ("shop", "basket")]


@pytest.mark.parametrize(
    ("namespace", "name", "says"),
    [
        ("kube-system", "kubedns", "meant: kube-system/kube-dns?"),
        ("default", "web", "meant: shop/web?"),
        ("kube-sytem", "kube-dns", "meant: kube-system/kube-dns?"),
        ("shop", "zzz", "Namespace shop has shop/basket, shop/web."),
        ("nowhere", "zzz", "Namespace nowhere has no Service, or is not there"),
    ],
)
def test_near_names_are_proposed(namespace: str, name: str, says: str) -> None:
    assert says in service_views.unknown_service(namespace, name, KNOWN)
