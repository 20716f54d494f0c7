# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The module quota against a real API server."""

from __future__ import annotations

import copy
import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils.kubernetes_api import RESOURCES, ApiError
from ansible_collections.plainkube.cluster.plugins.module_utils.quantities import parse_quantity
from ansible_collections.plainkube.cluster.plugins.module_utils.quota_checks import refusals
from ansible_collections.plainkube.cluster.plugins.module_utils.tenants import document_of, faults_of, share
from api_servers import CHECKOUT, ApiServer, FaultProxy
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as some
from module_runs import Answer, run_module

Document = dict[str, Any]
FULL_PROFILE: dict[str, Any] = {
    "quotas": {
        "compute": {"hard": {"requests.cpu": 2, "requests.memory": "4Gi", "limits.memory": "4Gi", "pods": 20}},
        "jobs": {"hard": {"pods": 5}, "scopes": ["Terminating"]},
        "first": {"hard": {"pods": 2}, "priority_classes": ["system-cluster-critical"]},
        "objects": {"hard": {"count/deployments.apps": 5, "services.nodeports": 0}},
    },
    "limit_range": {
        "container": {"max": {"cpu": 1, "memory": "1Gi"}, "default_request": {"cpu": "100m", "memory": "0.125Gi"}},
        "pod": {"max": {"memory": "2Gi"}},
        "volume_claim": {"max": {"storage": "10Gi"}},
    },
    "disruption_budget": {"max_unavailable": 1},
    "default_deny": ["ingress", "egress"],
    "pod_security": {"enforce": "baseline", "warn": "restricted"},
    "service_account_token": False,
}
# Namespace, LimitRange, four quotas, policy, budget, service account.
OBJECTS_OF_FULL_PROFILE = 9


def document(*namespaces: Any, profile: dict[str, Any] | None = None, **tenant: Any) -> Document:
    """Return a document with one tenant and one profile."""
    return {
        "tenants": {"shop": {"profile": "web", "namespaces": list(namespaces), **tenant}},
        "profiles": {"web": copy.deepcopy(profile if profile is not None else FULL_PROFILE)},
    }


def quotas_only(**hard: Any) -> dict[str, Any]:
    """Return a profile with one quota; underscores stand for dots."""
    return {"quotas": {"compute": {"hard": {name.replace("_", "."): value for name, value in hard.items()}}}}


def apply(server: ApiServer, tenants: Document | None = None, **options: Any) -> Answer:
    modes = {name: options.pop(name) for name in ("check", "diff") if name in options}
    kubeconfig = options.pop("kubeconfig", server.kubeconfig)
    given_document = {} if tenants is None else {"tenants": tenants}
    return run_module("quota", {"kubeconfig": str(kubeconfig), **given_document, **options}, **modes)


def counts(answer: Answer) -> dict[str, int]:
    assert "counts" in answer.result, answer.message
    return {word: count for word, count in answer.result["counts"].items() if count}


def snapshot(server: ApiServer) -> dict[str, Any]:
    """Return everything that the module could write, with versions."""
    api = server.api()
    kinds = ("Namespace", "ResourceQuota", "LimitRange", "NetworkPolicy", "PodDisruptionBudget", "ServiceAccount")
    return {
        f"{kind} {thing['metadata'].get('namespace')}/{thing['metadata']['name']}": thing["metadata"]["resourceVersion"]
        for kind in kinds
        for thing in api.list(RESOURCES[kind].path())
    }


def get(server: ApiServer, kind: str, namespace: str, name: str) -> dict[str, Any]:
    found = server.api().get(RESOURCES[kind].path(namespace, name))
    assert found is not None
    return found


def make_pod(server: ApiServer, namespace: str, name: str, **requests: str) -> None:
    server.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"namespace": namespace, "name": name},
            "spec": {"containers": [{"name": "main", "image": "x", "resources": {"requests": requests}}]},
        }
    )


@pytest.fixture
def server(clean_server: ApiServer) -> ApiServer:
    return clean_server


def test_everything_is_made_once_and_check_mode_says_so_before(server: ApiServer) -> None:
    names = server.make_namespaces(["a", "b"])
    wanted = document(*names)
    before = snapshot(server)
    tried = apply(server, wanted, check=True, diff=True)
    assert snapshot(server) == before
    assert tried.result["writes"] == 0
    first = apply(server, wanted)
    assert counts(first) == counts(tried) == {"created": 16, "changed": 2}
    assert first.result["changed"] is tried.result["changed"] is True
    assert len(tried.result["diff"]) == 2 * OBJECTS_OF_FULL_PROFILE
    after = snapshot(server)
    second = apply(server, wanted)
    assert second.result["changed"] is False
    assert counts(second) == {"unchanged": 2 * OBJECTS_OF_FULL_PROFILE}
    assert second.result["writes"] == 0
    # One for each kind that the document writes: nodes and PriorityClasses matter to what is written alone.
    assert second.result["requests"] == 6
    assert counts(apply(server, wanted, check=True)) == counts(second)
    assert snapshot(server) == after


def test_what_is_made_is_what_was_asked_for(server: ApiServer) -> None:
    server.make_namespaces(["a"])
    apply(server, document("a"))
    labels = get(server, "Namespace", "", "a")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "baseline"
    assert labels["pod-security.kubernetes.io/warn"] == "restricted"
    (container, pod, claim) = get(server, "LimitRange", "a", "tenant-limits")["spec"]["limits"]
    assert container["default"] == {"cpu": "1", "memory": "1Gi"}
    assert container["defaultRequest"] == {"cpu": "100m", "memory": "128Mi"}
    assert (pod["max"], claim["max"]) == ({"memory": "2Gi"}, {"storage": "10Gi"})
    assert get(server, "ResourceQuota", "a", "jobs")["spec"]["scopes"] == ["Terminating"]
    expression = get(server, "ResourceQuota", "a", "first")["spec"]["scopeSelector"]["matchExpressions"][0]
    assert expression == {"scopeName": "PriorityClass", "operator": "In", "values": ["system-cluster-critical"]}
    policy = get(server, "NetworkPolicy", "a", "default-deny")["spec"]
    assert policy["policyTypes"] == ["Egress", "Ingress"] and "ingress" not in policy
    assert {port["port"] for port in policy["egress"][0]["ports"]} == {53}
    assert get(server, "PodDisruptionBudget", "a", "tenant-default")["spec"]["maxUnavailable"] == 1
    assert get(server, "ServiceAccount", "a", "default")["automountServiceAccountToken"] is False


@pytest.mark.parametrize(
    ("one", "other"),
    [("1", "1000m"), ("1Gi", "1024Mi"), ("1e3", "1k"), (2, "2.0"), ("0.5", "500m"), ("1073741824", "1Gi")],
)
def test_the_same_amount_in_other_words_is_no_change(server: ApiServer, one: Any, other: Any) -> None:
    server.make_namespaces(["a"])
    limits = {"limit_range": {"container": {"default": {"memory": one}}}}
    apply(server, document("a", profile={**quotas_only(requests_memory=one), **limits}))
    limits = {"limit_range": {"container": {"default": {"memory": other}}}}
    again = apply(server, document("a", profile={**quotas_only(requests_memory=other), **limits}))
    assert counts(again) == {"unchanged": 2}
    assert again.result["writes"] == 0


def test_a_quota_in_other_words_of_another_manager_is_shared_and_no_conflict(server: ApiServer) -> None:
    server.make_namespaces(["a"])
    thing = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"namespace": "a", "name": "compute"}}
    server.apply({**thing, "spec": {"hard": {"requests.memory": "1073741824"}}})
    wanted = document("a", profile=quotas_only(requests_memory="1Gi"))
    assert counts(apply(server, wanted)) == {"changed": 1}
    assert counts(apply(server, wanted)) == {"unchanged": 1}


def test_a_change_is_written_alone_and_shown(server: ApiServer) -> None:
    server.make_namespaces(["a", "b"])
    apply(server, document("a", "b"))
    wanted = document("a", "b")
    wanted["profiles"]["web"]["quotas"]["compute"]["hard"]["pods"] = 30
    del wanted["profiles"]["web"]["quotas"]["compute"]["hard"]["limits.memory"]
    tried = apply(server, wanted, check=True, diff=True)
    assert counts(tried) == {"changed": 2, "unchanged": 16}
    diff = next(entry for entry in tried.result["diff"] if entry["after_header"] == "ResourceQuota a/compute")
    assert 'spec.hard.pods: "20"' in diff["before"] and 'spec.hard.pods: "30"' in diff["after"]
    assert "limits.memory" in diff["before"] and "limits.memory" not in diff["after"]
    real = apply(server, wanted, diff=True)
    assert counts(real) == counts(tried)
    assert real.result["diff"] == tried.result["diff"]
    assert real.result["writes"] == 2
    assert "limits.memory" not in get(server, "ResourceQuota", "a", "compute")["spec"]["hard"]


def test_what_another_manager_changed_is_named_and_taken_over_by_force(server: ApiServer) -> None:
    server.make_namespaces(["a"])
    wanted = document("a", profile=quotas_only(pods=5))
    apply(server, wanted)
    thing = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"namespace": "a", "name": "compute"}}
    server.apply({**thing, "spec": {"hard": {"pods": "9"}}}, field_manager="somebody", force=True)
    for check in (True, False):
        refused = apply(server, wanted, check=check)
        assert refused.result["failed"]
        assert "ResourceQuota a/compute: somebody holds spec.hard.pods" in refused.message
    assert get(server, "ResourceQuota", "a", "compute")["spec"]["hard"]["pods"] == "9"
    assert counts(apply(server, wanted, force=True, check=True)) == {"changed": 1}
    assert counts(apply(server, wanted, force=True)) == {"changed": 1}
    assert get(server, "ResourceQuota", "a", "compute")["spec"]["hard"]["pods"] == "5"


def test_who_leaves_loses_what_is_ours_and_nothing_else(server: ApiServer) -> None:
    server.make_namespaces(["a", "b"], labels={"kept": "yes"})
    foreign = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"namespace": "b", "name": "theirs"}}
    lookalike = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"namespace": "b", "name": "looks", "labels": {"plainkube.io/tenant": "shop"}},
    }
    server.apply({**foreign, "spec": {"hard": {"pods": "9"}}}, {**lookalike, "spec": {"hard": {"pods": "9"}}})
    apply(server, document("a", "b"))
    before = snapshot(server)
    tried = apply(server, document("a"), check=True, diff=True)
    assert snapshot(server) == before
    real = apply(server, document("a"))
    assert counts(real) == counts(tried) == {"unchanged": OBJECTS_OF_FULL_PROFILE, "pruned": OBJECTS_OF_FULL_PROFILE}
    left = [name for name in snapshot(server) if name.split(" ")[1].startswith("b/")]
    assert sorted(left) == ["ResourceQuota b/looks", "ResourceQuota b/theirs", "ServiceAccount b/default"]
    labels = get(server, "Namespace", "", "b")["metadata"]["labels"]
    assert labels == {"kept": "yes", "kubernetes.io/metadata.name": "b"}
    assert "automountServiceAccountToken" not in get(server, "ServiceAccount", "b", "default")
    assert counts(apply(server, document("a"))) == {"unchanged": OBJECTS_OF_FULL_PROFILE}


def test_a_profile_that_gives_less_takes_the_rest_back(server: ApiServer) -> None:
    server.make_namespaces(["a"])
    apply(server, document("a"))
    less = document("a", profile=quotas_only(pods=20))
    tried = apply(server, less, check=True)
    real = apply(server, less)
    assert counts(real) == counts(tried) == {"changed": 1, "pruned": 8}
    third = apply(server, less)
    assert counts(third) == {"unchanged": 1}
    assert third.result["requests"] <= 4


def test_namespaces_are_made_when_told_and_go_only_when_told(server: ApiServer) -> None:
    server.make_namespaces(["old"])
    missing = apply(server, document("new"))
    assert "namespace new, which there is not" in missing.message and "create_namespaces: true" in missing.message
    wanted = document("old", "new", profile=quotas_only(pods=3), create_namespaces=True)
    tried = apply(server, wanted, check=True)
    assert counts(apply(server, wanted)) == counts(tried) == {"created": 3}
    assert counts(apply(server, wanted)) == {"unchanged": 3}
    nobody = {"tenants": {}}
    assert counts(apply(server, nobody, check=True)) == {"pruned": 3}
    assert counts(apply(server, wanted)) == {"unchanged": 3}
    told = apply(server, nobody, delete_namespaces=True)
    assert counts(told) == {"pruned": 3}
    assert get(server, "Namespace", "", "new")["status"]["phase"] == "Terminating"
    assert get(server, "Namespace", "", "old")["status"]["phase"] == "Active"


def test_namespaces_of_a_label_belong_to_the_tenant(server: ApiServer) -> None:
    server.make_namespaces(["a", "b"], labels={"team": "shop"})
    server.make_namespaces(["c"], labels={"team": "other"})
    wanted = document({"labels": {"team": "shop"}}, profile=quotas_only(pods=3), budget={"pods": 6})
    assert counts(apply(server, wanted)) == {"created": 2}
    server.make_namespaces(["d"], labels={"team": "shop"})
    too_much = apply(server, wanted)
    assert "tenants.shop.budget.pods: found 9 for 3 namespaces together; wanted at most 6" in too_much.message
    wanted["tenants"]["other"] = {"profile": "web", "namespaces": ["a"]}
    assert "namespace a, which tenants.shop.namespaces[0] of tenant shop has too" in apply(server, wanted).message
    nobody = document({"labels": {"team": "nobody"}}, profile=quotas_only(pods=3))
    assert "no namespace carries the labels team=nobody" in str(apply(server, nobody, check=True).result["warnings"])


def quota_with_use(server: ApiServer, namespace: str, pods: int) -> Document:
    """Let a namespace use so many pods under a quota of ten."""
    wanted = document(namespace, profile=quotas_only(pods=10, requests_cpu="4"), budget={"pods": 20})
    server.make_namespaces([namespace])
    apply(server, wanted)
    for number in range(pods):
        make_pod(server, namespace, f"pod-{number}", cpu=f"{number + 1}00m")
    quota = get(server, "ResourceQuota", namespace, "compute")
    used = {"pods": str(pods), "requests.cpu": "2100m"}
    server.set_status(
        {**quota, "kind": "ResourceQuota", "apiVersion": "v1"}, {"hard": quota["spec"]["hard"], "used": used}
    )
    return wanted


def test_below_present_use_nothing_is_written_unless_told(server: ApiServer) -> None:
    wanted = quota_with_use(server, "a", 6)
    wanted["profiles"]["web"]["quotas"]["compute"]["hard"] = {"pods": 8, "requests.cpu": "2"}
    before = snapshot(server)
    for check in (True, False):
        refused = apply(server, wanted, check=check)
        assert refused.result["failed"]
        assert (
            "a: requests.cpu (quota compute): 2100m used, 2 wanted; most by pod-5 (600m), pod-4 (500m)"
            in refused.message
        )
        assert "pods (quota" not in refused.message
    assert snapshot(server) == before
    reported = apply(server, wanted, on_shrink="report")
    assert counts(reported) == counts(apply(server, wanted, on_shrink="report", check=True)) == {"refused": 1}
    assert reported.result["shrunk"][0]["used"] == "2100m"
    assert "below present use" in reported.result["outcomes"]["refused"][0]["reason"]
    assert not reported.result["changed"] and "failed" not in reported.result
    assert snapshot(server) == before
    assert counts(apply(server, wanted, on_shrink="force")) == {"changed": 1}
    assert get(server, "ResourceQuota", "a", "compute")["spec"]["hard"]["requests.cpu"] == "2"


def test_what_cannot_shrink_leaves_no_room_in_the_budget(server: ApiServer) -> None:
    wanted = quota_with_use(server, "a", 6)
    server.make_namespaces(["b", "c"])
    wanted["tenants"]["shop"] = {
        "profile": "web",
        "budget": {"pods": 14},
        "namespaces": [{"name": "a", "profile": "small"}, "b"],
    }
    wanted["profiles"]["small"] = quotas_only(pods=4, requests_cpu="4")
    wanted["tenants"]["other"] = {"profile": "web", "namespaces": ["c"]}
    reported = apply(server, wanted, on_shrink="report")
    assert counts(reported) == {"created": 1, "refused": 2}
    assert [entry["namespace"] for entry in reported.result["outcomes"]["created"]] == ["c"]
    reasons = {entry["namespace"]: entry["reason"] for entry in reported.result["outcomes"]["refused"]}
    assert "6 used, 4 wanted" in reasons["a"] and "no room for more pods" in reasons["b"]


def test_a_first_quota_below_what_pods_use_is_refused_too(server: ApiServer) -> None:
    server.make_namespaces(["a"])
    make_pod(server, "a", "big", cpu="3", memory="1Gi")
    refused = apply(server, document("a", profile=quotas_only(requests_cpu="2", requests_memory="2Gi")))
    assert "a: requests.cpu (quota compute): 3 used, 2 wanted; most by big (3)" in refused.message
    assert "memory" not in refused.message


def test_workloads_that_would_be_refused_are_named(server: ApiServer) -> None:
    server.make_namespaces(["a"])
    container = {"name": "main", "image": "x", "resources": {"requests": {"memory": "2Gi"}}}
    template = {"metadata": {"labels": {"app": "big"}}, "spec": {"containers": [container]}}
    thing = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"namespace": "a", "name": "big"}}
    server.apply({**thing, "spec": {"selector": {"matchLabels": {"app": "big"}}, "template": template}})
    job = {"template": {"spec": {"restartPolicy": "Never", "containers": [container]}}}
    cron = {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"namespace": "a", "name": "nightly"}}
    server.apply({**cron, "spec": {"schedule": "@daily", "jobTemplate": {"spec": job}}})
    wanted = document("a", profile={"limit_range": {"container": {"default": {"memory": "1Gi"}}}})
    answer = apply(server, wanted)
    assert [(entry["kind"], entry["name"]) for entry in answer.result["rollouts"]] == [
        ("Deployment", "big"),
        ("CronJob", "nightly"),
    ]
    assert "above its limit of" in answer.result["rollouts"][0]["reasons"][0]
    assert "Deployment a/big" in str(answer.result["warnings"])
    assert apply(server, wanted).result["rollouts"] == []


SCOPED = {"quotas": {"q": {"hard": {"pods": 3}, "scopes": ["Terminating"]}, "r": {"hard": {"pods": 9}}}}
OTHERWISE_SCOPED = {"quotas": {"q": {"hard": {"pods": 5}, "scopes": ["NotTerminating"]}, "r": {"hard": {"pods": 9}}}}
FOR_ALL = {"quotas": {"q": {"hard": {"pods": 9}}}}
FOR_SOME = {
    "quotas": {
        "q": {"hard": {"pods": 3}, "scopes": ["NotTerminating"]},
        "s": {"hard": {"pods": 5}, "scopes": ["Terminating"]},
    }
}


def quotas_since(server: ApiServer, namespace: str, version: str) -> list[dict[str, Any]]:
    """Return the quotas that the server has had in a namespace after each write since a version, specs by name."""
    path = RESOURCES["ResourceQuota"].path(namespace)
    current = {thing["metadata"]["name"]: thing["spec"] for thing in server.api().list(path)}
    query = f"watch=true&resourceVersion={version}&timeoutSeconds=1"
    answer = server.api()._pool.request("GET", f"{server.url}{path}?{query}")
    events = [json.loads(line) for line in answer.data.splitlines()]
    # Backwards from now: a watch tells what was written, and not what was there before.
    history = [current]
    for event in reversed(events):
        thing = event["object"]
        before = dict(history[0])
        if event["type"] == "DELETED":
            before[thing["metadata"]["name"]] = thing["spec"]
        elif event["type"] == "ADDED":
            del before[thing["metadata"]["name"]]
        history.insert(0, before)
    return history


def version_of(server: ApiServer) -> str:
    """Return the version of everything that the server has now."""
    _status, body = server.api().ask("list", RESOURCES["ResourceQuota"].path())
    return str(body["metadata"]["resourceVersion"])


def allowed(quotas: dict[str, Any]) -> Any:
    """Return how many pods quotas allow together."""
    shapes = ((spec.get("scopes") or (), False, spec["hard"]) for spec in quotas.values())
    return share(shapes).get("pods")


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        (SCOPED, OTHERWISE_SCOPED, {"changed": 1, "unchanged": 1}),
        (FOR_ALL, FOR_SOME, {"changed": 1, "created": 1}),
        (FOR_SOME, FOR_ALL, {"changed": 1, "pruned": 1}),
    ],
    ids=["another scope", "from all to some", "from some to all"],
)
def test_scopes_change_without_a_moment_without_a_cap(
    server: ApiServer, before: dict[str, Any], after: dict[str, Any], changed: dict[str, int]
) -> None:
    server.make_namespaces(["a"])
    apply(server, document("a", profile=before))
    wanted = document("a", profile=after)
    tried = apply(server, wanted, check=True)
    version = version_of(server)
    assert counts(apply(server, wanted)) == counts(tried) == changed
    history = quotas_since(server, "a", version)
    assert set(history[0]) == set(before["quotas"]) and set(history[-1]) == set(after["quotas"])
    # What stands in comes, the old one goes, the new one comes, what stood in goes.
    assert len(history) >= 5
    most = max(allowed(history[0]), allowed(history[-1]))
    for moment in history:
        assert allowed(moment) is not None and allowed(moment) <= most, moment
        # Whichever scopes the name q had or will have: one of both holds, and no moment has neither.
        assert any(name.partition(".")[0] == "q" for name in moment), moment
    assert counts(apply(server, wanted)) == {"unchanged": len(after["quotas"])}


def test_a_change_of_scopes_that_is_cut_off_anywhere_is_finished_by_the_next_run(
    server: ApiServer, fault_proxy: FaultProxy
) -> None:
    server.make_namespaces(["a"])
    for writes in (1, 2, 3):
        apply(server, document("a", profile=FOR_ALL))
        wanted = document("a", profile=FOR_SOME)
        version, begun = version_of(server), len(fault_proxy.writes())
        # The API goes away before the next write: whatever is left is not done.
        fault_proxy.misbehave = lambda _number, method, _path, limit=begun + writes: (
            "422" if method != "GET" and len(fault_proxy.writes()) > limit else None
        )
        cut = apply(server, wanted, kubeconfig=fault_proxy.kubeconfig)
        assert cut.result["failed"] and cut.result["counts"]["refused"], writes
        last = apply(server, wanted)
        assert "failed" not in last.result, last.message
        history = quotas_since(server, "a", version)
        assert set(history[-1]) == {"q", "s"}
        assert all(allowed(moment) is not None for moment in history), (writes, history)
        assert counts(apply(server, wanted)) == {"unchanged": 2}


def test_a_quota_that_counts_other_pods_from_now_on_is_held_against_their_use(server: ApiServer) -> None:
    profile = {"quotas": {"q": {"hard": {"pods": 3}, "scopes": ["Terminating"]}}}
    server.make_namespaces(["a"])
    apply(server, document("a", profile=profile))
    for number in range(4):
        make_pod(server, "a", f"pod-{number}")
    del profile["quotas"]["q"]["scopes"]
    assert "a: pods (quota q): 4 used, 3 wanted" in apply(server, document("a", profile=profile)).message


def test_objects_of_others_that_get_into_the_way_are_warned_about(server: ApiServer) -> None:
    server.make_namespaces(["a"])
    limits = {"apiVersion": "v1", "kind": "LimitRange", "metadata": {"namespace": "a", "name": "theirs"}}
    server.apply({**limits, "spec": {"limits": [{"type": "Container", "default": {"cpu": "1"}}]}})
    budget = {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"namespace": "a", "name": "app"}}
    server.apply({**budget, "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"app": "x"}}}})
    warnings = str(apply(server, document("a")).result["warnings"])
    assert "LimitRange a/theirs stands beside" in warnings
    assert "PodDisruptionBudget a/app may select" in warnings


def test_what_nodes_can_give_is_held_against_what_is_promised(server: ApiServer) -> None:
    server.make_namespaces(["a"])
    for name, zone, memory in (("n1", "east", "8Gi"), ("n2", "east", "4Gi"), ("n3", "west", "4Gi")):
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}},
        }
        server.apply(node)
        server.set_status(node, {"allocatable": {"memory": memory, "cpu": "4", "pods": "110"}})
    wanted = document("a", profile=quotas_only(requests_memory="12Gi"), budget={"requests.memory": "14Gi"})
    wanted["reserve"] = {"memory": "2Gi"}
    (row,) = apply(server, wanted).result["overcommit"]
    assert row == {
        "resource": "requests.memory",
        "promised": "14Gi",
        "available": "14Gi",
        "ratio": 1.0,
        "ratio_without_largest_node": 2.333,
        "ratio_without_largest_zone": 7.0,
    }
    wanted["overcommit"] = {"requests.memory": 0.9}
    wanted["profiles"]["web"]["limit_range"] = {"container": {"default_request": {"memory": "9Gi"}}}
    message = apply(server, wanted).message
    assert (
        "overcommit[requests.memory]: found 14Gi promised, 14Gi available (1.0 times); wanted at most 0.9 times"
        in message
    )
    assert "Container defaultRequest memory 9Gi, more than any node has; wanted at most 8Gi" in message


WRONG: list[tuple[str, Callable[[Document], Any], str]] = [
    ("unknown key", lambda d: d["tenants"]["shop"].update(budgets={}), "Rename it to budget."),
    ("bad quantity", lambda d: d["tenants"]["shop"].update(budget={"pods": "5Gb"}), "found '5Gb'; wanted a quantity"),
    (
        "negative",
        lambda d: d["profiles"]["web"]["quotas"]["compute"]["hard"].update(pods=-1),
        "found -1; wanted a quantity",
    ),
    (
        "namespace in two tenants",
        lambda d: d["tenants"].update(other={"profile": "web", "namespaces": ["a"]}),
        "found namespace a, which tenants.shop.namespaces[0] of tenant shop has too",
    ),
    (
        "default above max",
        lambda d: d["profiles"]["web"]["limit_range"]["container"].update(default={"cpu": 2}),
        "found default 2 above max 1",
    ),
    (
        "missing namespaces",
        lambda d: d["tenants"].update(other={"profile": "web"}),
        "found nothing; wanted a list of names",
    ),
    (
        "namespace that is not there",
        lambda d: d["tenants"]["shop"]["namespaces"].append("z"),
        "namespace z, which there is not",
    ),
    ("unknown profile", lambda d: d["tenants"]["shop"].update(profile="wbe"), "Did you mean web?"),
    (
        "budget",
        lambda d: d["tenants"]["shop"].update(budget={"pods": 19}),
        "found 20 for 1 namespaces together; wanted at most 19",
    ),
    ("no cap", lambda d: d["tenants"]["shop"].update(budget={"limits.cpu": 19}), "found no cap on limits.cpu"),
    ("system namespace", lambda d: d["tenants"]["shop"].update(namespaces=["kube-system"]), "the cluster's own"),
    (
        "resource",
        lambda d: d["profiles"]["web"]["quotas"]["compute"]["hard"].update(request_cpu=1),
        "the resource 'request_cpu'",
    ),
    (
        "scope",
        lambda d: d["profiles"]["web"]["quotas"]["jobs"]["hard"].update(services=1),
        "found services; wanted only",
    ),
    (
        "class",
        lambda d: d["profiles"]["web"]["quotas"]["first"].update(priority_classes=["gold"]),
        "found PriorityClass gold, which there is not",
    ),
    ("no tenants", lambda d: d.pop("tenants"), "tenants: found nothing; wanted tenants by name"),
]


@pytest.fixture(scope="module")
def one_namespace(api_server: ApiServer) -> ApiServer:
    api_server.clean()
    api_server.make_namespaces(["a"])
    return api_server


@pytest.mark.parametrize(("change", "words"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_a_wrong_document_has_one_clear_message_and_nothing_is_written(
    one_namespace: ApiServer, change: Callable[[Document], Any], words: str
) -> None:
    wanted = document("a")
    change(wanted)
    before = snapshot(one_namespace)
    answer = apply(one_namespace, wanted)
    assert answer.result["failed"]
    head, *lines = answer.message.split("\n")
    assert "has one fault; nothing was written." in head
    assert len(lines) == 1 and words in lines[0]
    assert snapshot(one_namespace) == before


def test_all_faults_come_at_once_and_with_lines_from_a_file(one_namespace: ApiServer, tmp_path: Path) -> None:
    wanted = document("a")
    for name, change, _words in WRONG[:5]:
        if name not in ("bad quantity",):
            change(wanted)
    file = tmp_path / "tenants.yml"
    file.write_text(json.dumps(wanted, indent=1))
    answer = apply(one_namespace, tenants_file=str(file))
    assert "has 4 faults" in answer.message
    assert all(line.startswith("- line ") for line in answer.message.split("\n")[1:])
    file.write_text("tenants: {}\ntenants: {}\n")
    assert (
        "line 2: tenants: found the key twice (first in line 1)" in apply(one_namespace, tenants_file=str(file)).message
    )
    file.write_text("tenants: {")
    assert "is no YAML" in apply(one_namespace, tenants_file=str(file)).message
    assert "cannot be read" in apply(one_namespace, tenants_file=str(tmp_path / "none.yml")).message


def test_reports_have_a_row_for_each_object(server: ApiServer, tmp_path: Path) -> None:
    server.make_namespaces(["a"])
    table, suite = tmp_path / "table.csv", tmp_path / "suite.xml"
    options = {"report_csv": str(table), "report_junit": str(suite)}
    apply(server, document("a"), check=True, **options)
    assert not table.exists() and not suite.exists()
    apply(server, document("a"), **options)
    rows = list(csv.DictReader(table.open()))
    assert {row["outcome"] for row in rows} == {"created", "changed"}
    assert len(rows) == OBJECTS_OF_FULL_PROFILE
    wanted = quota_with_use(server, "b", 6)
    wanted["profiles"]["web"]["quotas"]["compute"]["hard"] = {"pods": 3}
    apply(server, wanted, on_shrink="report", **options)
    found = ElementTree.parse(suite).getroot()
    assert found.get("failures") == "1"
    (failure,) = found.iter("failure")
    assert "6 used, 3 wanted" in str(failure.get("message"))


def test_the_playbook_takes_the_inventory_s_document_and_changes_nothing_twice(
    server: ApiServer, tmp_path: Path
) -> None:
    server.make_namespaces(["a"])
    inventory = tmp_path / "hosts.yml"
    variables = {"plainkube_tenants": document("a"), "tenancy_kubeconfig": str(server.kubeconfig)}
    inventory.write_text(json.dumps({"all": {"hosts": {"one": None, "two": None}, "vars": variables}}))

    def play(*options: str) -> str:
        command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(inventory), *options]
        done = subprocess.run(
            [*command, "playbooks/apply-quotas.yml"],
            cwd=CHECKOUT,
            env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    before = snapshot(server)
    assert re.search(r"one .*changed=1 .*failed=0", play("--check", "--diff"))
    assert snapshot(server) == before
    assert re.search(r"one .*changed=1 .*failed=0", play())
    output = play()
    assert re.search(r"one .*changed=0 .*failed=0", output)
    assert f"unchanged: {OBJECTS_OF_FULL_PROFILE}" in output


COUNTABLE = [
    "pods",
    "cpu",
    "requests.cpu",
    "limits.memory",
    "requests.storage",
    "services.nodeports",
    "count/jobs.batch",
]
COUNTABLE += ["requests.ephemeral-storage", "limits.ephemeral-storage", "hugepages-2Mi", "requests.hugepages-2Mi"]
COUNTABLE += [
    "requests.nvidia.com/gpu",
    "gold.storageclass.storage.k8s.io/requests.storage",
    "configmaps",
    "count/pods",
]
NOT_COUNTABLE = [
    "limits.storage",
    "request.cpu",
    "nodes",
    "jobs",
    "storage",
    "gpu",
    "requests.pods",
    "services.clusterips",
]


@pytest.mark.parametrize("scopes", [[], ["Terminating"], ["BestEffort"], ["NotBestEffort", "BestEffort"]], ids=str)
def test_what_a_quota_may_count_is_what_the_server_lets_it(one_namespace: ApiServer, scopes: list[str]) -> None:
    api = one_namespace.api()
    for name in [*COUNTABLE, *NOT_COUNTABLE]:
        spec = {"hard": {name: "1"}, **({"scopes": scopes} if scopes else {})}
        thing = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"namespace": "a", "name": "q"}, "spec": spec}
        try:
            api.apply(thing, "tests", dry_run=True, live={})
            refused = ""
        except ApiError as error:
            refused = str(error)
        found = faults_of(document("a", profile={"quotas": {"q": spec}}))
        # The server lets quotas for some pods count other objects too, and then never counts one.
        assert bool(found) == (bool(refused) or ("/" in name and bool(scopes))), (name, scopes, found, refused)


# Verdicts on pods against the API server's own

quantities = some.sampled_from([None, "0", "50m", "100m", "250m", "1", "2"])
resources = some.fixed_dictionaries({"requests": quantities, "limits": quantities})
limit_maps = some.fixed_dictionaries(
    {},
    optional={
        name: some.sampled_from(["50m", "100m", "500m", "1", "2"])
        for name in ("min", "max", "default", "default_request")
    },
)


@pytest.fixture(scope="module")
def counter(one_namespace: ApiServer) -> list[int]:
    return [0]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    containers=some.lists(resources, min_size=1, max_size=2),
    limits=limit_maps,
    pod_max=some.sampled_from([None, "500m", "2"]),
    ratio=some.sampled_from([None, "1", "2"]),
)
@example(containers=[{"requests": "2", "limits": None}], limits={"default": "1"}, pod_max=None, ratio=None)
def test_a_verdict_on_a_pod_is_the_server_s(
    one_namespace: ApiServer,
    counter: list[int],
    containers: list[dict[str, Any]],
    limits: dict[str, str],
    pod_max: str | None,
    ratio: str | None,
) -> None:
    container_limits: dict[str, Any] = {name: {"cpu": value} for name, value in limits.items()}
    if ratio:
        container_limits["max_limit_request_ratio"] = {"cpu": ratio}
    limit_range = {
        **({"container": container_limits} if container_limits else {}),
        **({"pod": {"max": {"cpu": pod_max}}} if pod_max else {}),
    }
    amounts = [{side: parse_quantity(value) for side, value in given.items() if value} for given in containers]
    if not limit_range or any(
        each.get("requests", 0) > each.get("limits", each.get("requests", 0)) for each in amounts
    ):
        return  # no limits, or a pod that is refused anywhere
    counter[0] += 1
    namespace = one_namespace.make_namespaces([f"verdict-{counter[0]}"])[0]
    wanted = document(namespace, profile={"limit_range": limit_range})
    items = document_of(wanted).profiles["web"].limits
    pod = {
        "containers": [
            {
                "name": f"c{number}",
                "image": "x",
                "resources": {side: {"cpu": value} for side, value in given.items() if value is not None},
            }
            for number, given in enumerate(containers)
        ]
    }
    api = one_namespace.api()
    where = {"namespace": namespace}
    thing = {"apiVersion": "v1", "kind": "LimitRange", "metadata": {**where, "name": "l"}}
    try:
        api.apply({**thing, "spec": {"limits": list(items)}}, "tests", live={})
    except ApiError:
        assert faults_of(wanted), (items, "the server refuses what the document's own check lets pass")
        return
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {**where, "name": "p"}, "spec": pod}
    try:
        api.apply(body, "tests", dry_run=True, live={})
        refused = ""
    except ApiError as error:
        refused = str(error)
    assert bool(refusals({"spec": pod}, items, [])) == bool(refused), (items, pod, refused)
