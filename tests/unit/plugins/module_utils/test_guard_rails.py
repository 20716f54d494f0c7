# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils.audits import AuditError, rules_of
from ansible_collections.plainkube.cluster.plugins.module_utils.guard_rails import holds, plan, policies_of
from audit_examples import shipped_rules

RULES = rules_of(shipped_rules(), [])
PRIVILEGED = RULES["privileged"]


def test_a_rule_becomes_a_policy_and_a_binding_for_each_mode() -> None:
    policy, *bindings = policies_of([PRIVILEGED])
    assert policy["metadata"]["name"] == "plainkube-privileged"
    plurals = {name for rule in policy["spec"]["matchConstraints"]["resourceRules"] for name in rule["resources"]}
    assert plurals == {"deployments", "statefulsets", "daemonsets", "jobs", "cronjobs", "pods"}
    actions = {
        binding["spec"]["matchResources"]["namespaceSelector"]["matchLabels"]["plainkube.io/guard-rails"]: binding[
            "spec"
        ]["validationActions"]
        for binding in bindings
    }
    assert actions == {"warn": ["Warn"], "audit": ["Audit"], "deny": ["Deny"]}
    assert {binding["spec"]["policyName"] for binding in bindings} == {"plainkube-privileged"}


def test_rules_without_a_guard_or_switched_off_have_no_policy() -> None:
    assert policies_of([replace(PRIVILEGED, guard=""), replace(PRIVILEGED, enabled=False)]) == []


def test_a_guard_over_what_has_no_namespace_is_refused() -> None:
    with pytest.raises(AuditError, match=r"rule privileged: it has a guard but looks at ClusterRole"):
        policies_of([replace(PRIVILEGED, kinds=("ClusterRole",))])


def test_patterns_of_namespaces_become_conditions() -> None:
    (policy, *_) = policies_of([replace(PRIVILEGED, not_in_namespaces=("kube-*",))])
    conditions = [entry["expression"] for entry in policy["spec"]["matchConditions"]]
    assert conditions[-1] == '!request.namespace.matches("^kube\\\\-.*$")'


@pytest.mark.parametrize(
    ("live", "wanted", "same"),
    [
        ({"a": 1, "default": 2}, {"a": 1}, True),
        ({"a": [{"b": 1, "default": 2}]}, {"a": [{"b": 1}]}, True),
        ({"a": [1, 2]}, {"a": [1]}, False),
        ({"a": 2}, {"a": 1}, False),
        ({}, {"a": None}, False),
        (None, {}, False),
    ],
)
def test_what_the_api_adds_is_no_difference(live: Any, wanted: Any, same: bool) -> None:
    assert holds(live, wanted) is same


def test_only_what_differs_is_applied_and_only_ours_is_removed_bindings_first() -> None:
    wanted = policies_of([PRIVILEGED])
    old = policies_of([RULES["host-path"]])
    other = {**old[0], "metadata": {"name": "plainkube-other", "labels": {}}}
    apply, remove = plan([wanted[0], *old, other], wanted)
    assert [thing["metadata"]["name"] for thing in apply] == [
        f"plainkube-privileged-{m}" for m in ("warn", "audit", "deny")
    ]
    assert [thing["metadata"]["name"] for thing in remove] == [
        "plainkube-host-path-audit",
        "plainkube-host-path-deny",
        "plainkube-host-path-warn",
        "plainkube-host-path",
    ]
