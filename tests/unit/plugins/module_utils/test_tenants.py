# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Tenants documents: their faults in words, and the objects that they ask for."""

from __future__ import annotations

import copy
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils.tenants import (
    DocumentError,
    budget_faults,
    document_of,
    faults_of,
    members,
    message,
    namespace_object,
    objects,
    read_document,
    share,
    wanted_share,
    with_lines,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.tenants_schema import SCHEMA
from jsonschema import Draft202012Validator

ROOT = Path(__file__).resolve().parents[4]
GOOD: dict[str, Any] = {
    "tenants": {
        "shop": {
            "profile": "web",
            "budget": {"cpu": "8", "requests.memory": "16Gi"},
            "namespaces": ["shop-web", {"name": "shop-db", "profile": "data"}, {"labels": {"team": "shop"}}],
        }
    },
    "profiles": {
        "web": {
            "quotas": {"compute": {"hard": {"requests.cpu": 4, "requests.memory": "8Gi"}}},
            "limit_range": {"container": {"default": {"memory": "1Gi"}, "max": {"cpu": 2}}},
        },
        "data": {"quotas": {"compute": {"hard": {"cpu": 2, "memory": "8Gi"}}}, "guaranteed": True},
    },
    "reserve": {"cpu": "500m"},
    "overcommit": {"requests.cpu": 1.5},
}


def faults(**changes: Any) -> list[str]:
    """Return the faults of the good document with the values at some paths (a__b__0) replaced; None removes."""
    document = copy.deepcopy(GOOD)
    for path, value in changes.items():
        *parts, last = [int(part) if part.isdigit() else part.replace("_o_", ".") for part in path.split("__")]
        place: Any = document
        for part in parts:
            place = place[part]
        if value is None:
            del place[last]
        else:
            place[last] = value
    return [str(fault) for fault in faults_of(document)]


def test_the_published_schema_is_the_one_that_is_used() -> None:
    published = ROOT / "data" / "tenants.schema.json"
    assert json.loads(published.read_text(encoding="utf-8")) == SCHEMA
    Draft202012Validator.check_schema(SCHEMA)


def test_a_good_document_has_no_faults() -> None:
    assert faults() == []


@pytest.mark.parametrize("value", [None, [], "tenants", 3])
def test_what_is_no_mapping_is_no_document(value: Any) -> None:
    (fault,) = faults_of(value)
    assert str(fault).startswith("the document: found") and "a tenants document" in str(fault)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tenants__shop__profil": "web"}, "tenants.shop.profil: found a key that nothing reads; wanted one of"),
        ({"tenants__Shop": {"namespaces": ["x"]}}, "tenants.Shop: found the name 'Shop'; wanted at most 63 of a-z"),
        ({"tenants__shop__namespaces__0": 3}, "tenants.shop.namespaces[0]: found 3; wanted a namespace's name"),
        ({"tenants__shop__namespaces": []}, "tenants.shop.namespaces: found nothing in it"),
        ({"tenants__shop__namespaces__2": {"labels": {"a": 1}}}, "namespaces[2].labels.a: found 1; wanted a label's"),
        ({"tenants__shop__namespaces__1": {"profile": "web"}}, "namespaces[1]: found neither name nor labels"),
        ({"tenants__shop__profile": None}, "namespaces[0].profile: found nothing; wanted the profile"),
        ({"tenants__shop__profile": "wbe"}, "tenants.shop.profile: found the profile 'wbe'"),
        ({"tenants__shop__budget__cpu": "1x"}, "tenants.shop.budget.cpu: found '1x'; wanted a quantity"),
        ({"tenants__shop__budget__cpu": 5}, "tenants.shop.budget[requests.cpu]: found 6 for 2 namespaces together"),
        ({"tenants__shop__budget__pods": 5}, "profiles.web.quotas: found no cap on pods"),
        ({"profiles__data__quotas__compute__hard__pods": 1.5}, "found 1.5; wanted a whole number"),
        ({"profiles__data__quotas__compute__hard__requests_o_cpu": 3}, "found cpu 2 and requests.cpu 3"),
        ({"profiles__data__quotas__compute__scopes": ["Best"]}, "scopes[0]: found 'Best'; wanted one of Terminating"),
        ({"profiles__web__limit_range__container__min": {"cpu": 3}}, "found min 3 above default_request 2"),
        ({"profiles__web__limit_range__container__min": {"gpu": 3}}, "the resource 'gpu'"),
        (
            {"profiles__web__limit_range__container__max_limit_request_ratio": {"cpu": "0.5"}},
            "found 0.5; wanted at least 1",
        ),
        ({"profiles__web__limit_range__container__default": {"memory": "9Gi"}}, "found 9Gi, above the quota compute"),
        ({"profiles__web__limit_range__pod": {"default": {"cpu": 1}}}, "pod.default: found a key that nothing reads"),
        ({"profiles__web__limit_range__volume_claim": {"max": {"cpu": 1}}}, "the resource 'cpu'; wanted storage"),
        ({"profiles__web__disruption_budget": {"max_unavailable": "50"}}, "found '50'; wanted a number of pods or"),
        ({"profiles__web__disruption_budget": {}}, "disruption_budget: found nothing in it"),
        ({"profiles__web__default_deny": ["in"]}, "default_deny[0]: found 'in'; wanted one of ingress, egress"),
        ({"profiles__web__pod_security": {"enforce": "high"}}, "found 'high'; wanted one of privileged"),
        ({"reserve__cpu": True}, "reserve.cpu: found true; wanted a quantity"),
        ({"overcommit__requests_o_cpu": 0}, "overcommit[requests.cpu]: found 0; wanted a number above 0"),
    ],
)
def test_a_fault_is_named_with_its_path_and_what_was_wanted(changes: dict[str, Any], words: str) -> None:
    found = faults(**changes)
    assert any(words in fault for fault in found), found


def test_a_guaranteed_profile_wants_limits_equal_to_requests() -> None:
    profile = document_of(GOOD).profiles["data"]
    assert profile.limits == ({"type": "Container", "maxLimitRequestRatio": {"cpu": "1", "memory": "1"}},)
    ratio = {"container": {"max_limit_request_ratio": {"cpu": 2}}}
    assert "found 2 in a guaranteed profile; wanted 1, or nothing" in faults(profiles__data__limit_range=ratio)[0]
    apart = {"container": {"default": {"cpu": 2}, "default_request": {"cpu": 1}}}
    assert "found default 2 over default_request 1" in faults(profiles__data__limit_range=apart)[0]
    request = {"container": {"default_request": {"cpu": "250m"}}}
    document = copy.deepcopy(GOOD)
    document["profiles"]["data"]["limit_range"] = request
    assert document_of(document).profiles["data"].limits[0]["default"] == {"cpu": "250m"}


def test_a_limit_range_is_as_the_api_would_fill_it_in() -> None:
    (container,) = document_of(GOOD).profiles["web"].limits
    assert container["default"] == container["defaultRequest"] == {"memory": "1Gi", "cpu": "2"}


def test_lines_are_those_of_the_text() -> None:
    text = "tenants:\n  a:\n    namespaces: [x]\n    budgt: {}\nprofiles: {p: {quotas: {q: {hard: {pods: -1}}}}}\n"
    found = with_lines(faults_of(read_document(text, "f")), text)
    assert {(fault.path, fault.line) for fault in found} == {
        ("tenants.a.budgt", 4),
        ("tenants.a.namespaces[0].profile", 3),
        ("profiles.p.quotas.q.hard.pods", 5),
    }
    assert message(found, "f").startswith("f has 3 faults; nothing was written.\n- line ")


def test_a_key_twice_is_refused() -> None:
    with pytest.raises(DocumentError, match=r"line 3: a\.b: found the key twice \(first in line 2\)"):
        read_document("a:\n  b: 1\n  b: 2\n", "f")


def test_namespaces_are_found_by_name_and_by_labels_and_once() -> None:
    document = document_of(GOOD)
    live = {"shop-web": {}, "x": {"team": "shop"}, "y": {"team": "other"}, "kube-system": {"team": "shop"}}
    found, double = members(document.tenants.values(), document.profiles, live)
    assert [(member.namespace, member.profile.name) for member in found] == [
        ("shop-web", "web"),
        ("shop-db", "data"),
        ("x", "web"),
    ]
    assert double == []
    _found, double = members(document.tenants.values(), document.profiles, {**live, "shop-db": {"team": "shop"}})
    assert "namespace shop-db, which tenants.shop.namespaces[1] of the same tenant has too" in str(double[0])


PAIR: list[Any] = [(("Terminating",), False, {"pods": "2"}), (("NotTerminating",), False, {"pods": "3"})]


@pytest.mark.parametrize(
    ("quotas", "expected"),
    [
        ([((), False, {"cpu": "2"}), ((), False, {"requests.cpu": "3"})], {"requests.cpu": 2}),
        ([(("Terminating",), False, {"pods": "2"})], {}),
        (PAIR, {"pods": 5}),
        ([((), False, {"pods": "4"}), (("Terminating",), False, {"pods": "2"})], {"pods": 4}),
        ([*PAIR, ((), False, {"pods": "4"})], {"pods": 4}),
        ([*PAIR, ((), False, {"pods": "6"})], {"pods": 5}),
        ([((), True, {"pods": "2"})], {}),
    ],
)
def test_what_quotas_of_a_namespace_allow_together(quotas: Any, expected: dict[str, int]) -> None:
    assert share(quotas) == {name: Fraction(value) for name, value in expected.items()}


def test_namespaces_by_label_count_against_the_budget() -> None:
    document = document_of(GOOD)
    found, _double = members(
        document.tenants.values(), document.profiles, {"x": {"team": "shop"}, "y": {"team": "shop"}}
    )
    (cpu, memory) = budget_faults(document.tenants, found)
    assert "found 14 for 4 namespaces together; wanted at most 8" in str(cpu)
    assert "found 32Gi for 4 namespaces together; wanted at most 16Gi" in str(memory)
    assert wanted_share(document.profiles["web"])["requests.cpu"] == 4


def test_every_object_carries_the_tenant_s_label() -> None:
    document = document_of(
        {
            "tenants": {"shop": {"profile": "all", "namespaces": ["a"]}},
            "profiles": {
                "all": {
                    "quotas": {"q": {"hard": {"pods": 3}, "priority_classes": ["gold"]}},
                    "limit_range": {"pod": {"max": {"cpu": 3}}},
                    "default_deny": ["ingress"],
                    "disruption_budget": {"min_available": "50%"},
                    "service_account_token": False,
                    "pod_security": {"enforce": "baseline"},
                }
            },
        }
    )
    found, _double = members(document.tenants.values(), document.profiles, None)
    own = namespace_object(found[0], False, ["NetworkPolicy"])
    assert own is not None
    made = {thing["kind"]: thing for thing in [*objects(found[0]), own]}
    assert set(made) == {
        "LimitRange",
        "ResourceQuota",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "ServiceAccount",
        "Namespace",
    }
    assert {thing["metadata"]["labels"]["plainkube.io/tenant"] for thing in made.values()} == {"shop"}
    assert "egress" not in made["NetworkPolicy"]["spec"]
    assert made["PodDisruptionBudget"]["spec"]["minAvailable"] == "50%"
    assert namespace_object(found[0], True, [])["metadata"]["annotations"] == {"plainkube.io/made-for-tenant": "true"}  # type: ignore[index]
