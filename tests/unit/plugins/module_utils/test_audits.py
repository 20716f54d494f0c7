# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The audit's machinery: merging rules, exemptions, baseline, summary, what is kept of a cluster, reports."""

from __future__ import annotations

from datetime import date
from typing import Any
from xml.etree import ElementTree

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils import audits
from ansible_collections.plainkube.cluster.plugins.module_utils.audit_io import deprecated_requests
from ansible_collections.plainkube.cluster.plugins.module_utils.audit_predicates import PREDICATES
from ansible_collections.plainkube.cluster.plugins.module_utils.audit_reports import (
    as_html,
    as_junit,
    failure_message,
    report_of,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.audit_subjects import (
    Cluster,
    Scope,
    kinds_to_read,
    selects,
)
from audit_examples import NOW, ROOT, whole

TODAY = NOW.date()
RULE = {
    "id": "odd",
    "title": "Odd",
    "why": "It was.",
    "severity": "medium",
    "kinds": ["Deployment"],
    "expression": "metadata.name == 'odd'",
    "fix": "Make it even.",
}


def rules(*changes: dict[str, Any]) -> dict[str, audits.Rule]:
    return audits.rules_of([RULE], list(changes))


def cluster(*entries: dict[str, Any], scope: Scope | None = None) -> Cluster:
    made = Cluster(scope or Scope())
    for entry in entries:
        thing = whole(entry, entry.pop("namespace", "team"))
        made.add(thing["kind"], thing)
    return made


def audit(*entries: dict[str, Any], changes: tuple[dict[str, Any], ...] = (), **options: Any) -> audits.Audit:
    return audits.look(cluster(*entries).subjects(), rules(*changes), NOW, **options)


# --- Rules ------------------------------------------------------------------------------------------------------------


def test_a_change_names_only_what_differs_and_settings_are_merged() -> None:
    shipped = {**RULE, "settings": {"a": 1, "b": 2}}
    merged = audits.rules_of([shipped], [{"id": "odd", "severity": "low", "settings": {"b": 3}}])["odd"]
    assert (merged.severity, merged.title, merged.settings) == ("low", "Odd", {"a": 1, "b": 3})


def test_a_rule_that_looks_in_another_way_loses_its_guard() -> None:
    shipped = {**RULE, "predicate": "runs_as_root", "guard": "[]"}
    del shipped["expression"]
    merged = audits.rules_of([shipped], [{"id": "odd", "expression": "kind"}])["odd"]
    assert (merged.predicate, merged.expression, merged.guard) == ("", "kind", "")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("odd", "rules[0]: found 'odd', wanted a mapping"),
        ({"id": "Odd"}, "rules[0].id: found 'Odd', wanted small letters"),
        ({"id": "odd", "severty": "low"}, "rules[0].severty: unknown key"),
        ({"id": "odd", "severity": "lo"}, "severity is 'lo', wanted one of critical, high, medium, low"),
        ({"id": "odd", "enabled": "no"}, "rules[0].enabled: found 'no', wanted true or false"),
        ({"id": "odd", "kinds": [1]}, "rules[0].kinds: found [1], wanted a list of texts"),
        ({"id": "odd", "kinds": ["Deploymnt"]}, "kinds has Deploymnt, wanted some of"),
        ({"id": "odd", "kinds": []}, "kinds has nothing"),
        ({"id": "odd", "settings": {"a": 1}}, "rule odd has no such setting; wanted one of none"),
        ({"id": "odd", "expression": "a["}, "the expression cannot be read"),
        ({"id": "odd", "expression": "!a.b"}, "write !(a.b)"),
        ({"id": "odd", "expression": "facts.budget"}, "facts.budget is not known; wanted one of"),
        ({"id": "odd", "predicate": "nobody_knows", "expression": ""}, "predicate 'nobody_knows' is unknown"),
        ({"id": "odd", "predicate": "runs_as_root"} | {"expression": "a"}, "has expression and predicate"),
        ({"id": "new"}, "rules[0].why: missing"),
    ],
)
def test_faults_of_rules(change: Any, words: str) -> None:
    with pytest.raises(audits.AuditError) as caught:
        rules(change)
    assert words in str(caught.value)


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(audits.AuditError) as caught:
        rules({"id": "odd", "titel": "x"}, {"id": "new", "title": "x"})
    assert "titel" in str(caught.value) and "rules[1].why" in str(caught.value)


@pytest.mark.parametrize(("answer", "parts"), [("`true`", []), ("'text'", ["text"]), ("['a', 'b']", ["a", "b"])])
def test_what_an_expression_may_answer(answer: str, parts: list[str]) -> None:
    (finding,) = audit({"kind": "Deployment"}, changes=({"id": "odd", "expression": answer},)).findings
    assert finding.parts == parts


@pytest.mark.parametrize("answer", ["`false`", "`null`", "''", "`[]`", "`{}`", "nothing.there"])
def test_answers_that_mean_nothing_was_found(answer: str) -> None:
    assert audit({"kind": "Deployment"}, changes=({"id": "odd", "expression": answer},)).findings == []


@pytest.mark.parametrize(
    ("expression", "words"), [("`5`", "it answers 5"), ("length(`5`)", "fails on Deployment shop")]
)
def test_an_expression_that_cannot_be_used_names_its_rule(expression: str, words: str) -> None:
    with pytest.raises(audits.AuditError, match="rule odd") as caught:
        audit({"kind": "Deployment"}, changes=({"id": "odd", "expression": expression},))
    assert words in str(caught.value)


def test_a_rule_holds_neither_where_it_is_not_meant_to_nor_when_it_is_switched_off() -> None:
    odd = {"kind": "Deployment", "name": "odd"}
    assert len(audit(odd).findings) == 1
    assert audit(odd, changes=({"id": "odd", "not_in_namespaces": ["te*"]},)).findings == []
    off = audit(odd, changes=({"id": "odd", "enabled": False},))
    assert (off.findings, off.checked) == ([], {})


def test_only_what_rules_ask_for_is_read() -> None:
    assert kinds_to_read(["StorageClass"], []) == ("Namespace", "StorageClass")
    workload = kinds_to_read(["Deployment"], ["budgets"])
    assert {"Pod", "PodDisruptionBudget", "LimitRange"} <= set(workload)
    assert not {"Secret", "Ingress", "Node"} & set(workload)


# --- Exemptions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "until", "reason", "fault"),
    [
        ("until 2026-07-01: a reason", "2026-07-01", "a reason", ""),
        ("  until  2026-07-01 :a: reason ", "2026-07-01", "a: reason", ""),
        ("until 2026-07-01", "2026-07-01", "", "no reason"),
        ("until 2026-07-01: ", "2026-07-01", "", "no reason"),
        ("until 2026-02-30: a reason", "2026-02-30", "a reason", "no date"),
        ("until summer: a reason", "summer", "a reason", "no date"),
        ("a reason", "", "", "no date"),
        ("", "", "", "no date"),
    ],
)
def test_exemptions_by_annotation(text: str, until: str, reason: str, fault: str) -> None:
    (exemption,) = audits.exemptions_in({"annotations": {"audit.plainkube.io/odd": text, "other": "x"}}, rules())
    assert (exemption.until, exemption.reason) == (until, reason)
    assert exemption.fault.startswith(fault)
    assert exemption.holds(TODAY) is not bool(fault)


def test_an_exemption_counts_on_its_last_day_and_no_longer() -> None:
    exemption = audits.Exemption("odd", "2026-06-15", "why")
    assert exemption.holds(date(2026, 6, 15)) and not exemption.is_over(date(2026, 6, 15))
    assert exemption.is_over(date(2026, 6, 16)) and not exemption.holds(date(2026, 6, 16))


def test_rules_about_exemptions_cannot_be_exempted_from() -> None:
    (exemption,) = audits.exemptions_in(
        {"annotations": {"audit.plainkube.io/exemption-expired": "until 2026-07-01: no"}}, ["exemption-expired"]
    )
    assert "cannot be exempted" in exemption.fault


def test_a_namespace_exempts_all_in_it_and_the_caller_what_fits() -> None:
    odd = {"kind": "Deployment", "name": "odd"}
    note = {"annotations": {"audit.plainkube.io/odd": "until 2026-07-01: why"}}
    assert [item.state for item in audit(dict(odd), namespaces={"team": note}).findings] == ["exempt"]
    assert [item.state for item in audit(dict(odd), namespaces={"other": note}).findings] == ["new"]
    for given, state in (
        ({}, "exempt"),
        ({"kinds": ["Workload"], "namespaces": ["te*"], "names": ["o??"]}, "exempt"),
        ({"kinds": ["Service"]}, "new"),
        ({"namespaces": ["x*"]}, "new"),
        ({"names": ["even"]}, "new"),
    ):
        waivers = audits.waivers_of([{"rules": ["odd"], "until": "2026-07-01", "reason": "why", **given}], rules())
        assert [item.state for item in audit(dict(odd), waivers=waivers).findings] == [state]


def test_faults_of_the_caller_s_exemptions_are_told_at_once() -> None:
    with pytest.raises(audits.AuditError) as caught:
        audits.waivers_of(
            [
                {"rules": ["odd", "even"], "until": "2026-07-01", "reason": " "},
                {"rules": ["odd"], "until": "July", "reason": "why"},
            ],
            rules(),
        )
    for words in (
        "exemptions[0]: odd: no reason",
        "exemptions[0]: even: there is no such rule",
        "exemptions[1]: odd: no date",
    ):
        assert words in str(caught.value)


# --- Baseline and thresholds ------------------------------------------------------------------------------------------


def finding(name: str = "shop", *parts: str, rule: str = "odd", severity: str = "medium") -> audits.Finding:
    return audits.Finding(rule, severity, "Deployment", "team", name, list(parts))


def test_a_baseline_knows_findings_by_the_stable_words_of_their_parts() -> None:
    baseline = audits.baseline_of([finding("shop", "app (3 restarts)"), finding("gone")])
    seen = audits.Audit([finding("shop", "app (7 restarts)"), finding("new")])
    audits.compare(seen, baseline)
    assert [item.state for item in seen.findings] == ["known", "new"]
    assert [entry["name"] for entry in seen.resolved] == ["gone"]


def test_another_part_makes_a_known_finding_new() -> None:
    seen = audits.Audit([finding("shop", "app", "side")])
    audits.compare(seen, audits.baseline_of([finding("shop", "app")]))
    assert seen.findings[0].state == "new"


@pytest.mark.parametrize("baseline", [None, [], {}, {"version": 2}, {"version": 1, "findings": [{"rule": "odd"}]}])
def test_a_baseline_that_is_none_is_refused(baseline: Any) -> None:
    with pytest.raises(audits.AuditError, match="write it anew"):
        audits.compare(audits.Audit(), baseline)


@pytest.mark.parametrize(("fail_on", "count"), [("critical", 0), ("high", 1), ("medium", 2), ("low", 2), ("never", 0)])
def test_the_threshold(fail_on: str, count: int) -> None:
    known = finding("old", severity="critical")
    known.state = "known"
    assert len(audits.breaches([finding(), finding("worse", severity="high"), known], fail_on)) == count


def test_an_audit_of_nothing_is_no_success() -> None:
    with pytest.raises(audits.AuditError, match=r"nothing was audited: the cluster has no workloads \(3 Service"):
        audits.require_something({"Node": 2, "Service": 3}, True)
    audits.require_something({"Pod": 1}, True)


# --- What is kept of a cluster ----------------------------------------------------------------------------------------


def test_a_pod_is_found_by_its_owner() -> None:
    hashed = {"labels": {"pod-template-hash": "h1"}}
    made = cluster(
        {"kind": "Deployment", "name": "web"},
        {"kind": "CronJob", "name": "night"},
        {"kind": "Job", "name": "night-1", "owner": {"kind": "CronJob", "name": "night"}},
        {"kind": "Pod", "name": "a", **hashed, "owner": {"kind": "ReplicaSet", "name": "web-h1"}},
        {"kind": "Pod", "name": "b", **hashed, "owner": {"kind": "ReplicaSet", "name": "rollout-h1"}},
        {"kind": "Pod", "name": "c", "owner": {"kind": "Job", "name": "night-1"}},
        {"kind": "Pod", "name": "d", "owner": {"kind": "Database", "name": "orders"}},
        {"kind": "Pod", "name": "static-one", "owner": {"kind": "Node", "name": "one"}},
        {"kind": "Pod", "name": "alone"},
    )
    counted = {f"{kind} {name}": pods.count for (kind, _, name), pods in made.pods.items()}
    assert counted == {
        "Deployment web": 1,
        "ReplicaSet rollout-h1": 1,
        "CronJob night": 1,
        "Database orders": 1,
        "Pod static-one": 1,
        "Pod alone": 1,
    }
    names = {(subject["kind"], subject["metadata"]["name"]) for subject in made.subjects()}
    assert ("Job", "night-1") not in names
    assert {("CronJob", "night"), ("Database", "orders"), ("Pod", "alone")} <= names


def test_the_scope_leaves_out_other_namespaces_and_what_is_in_none() -> None:
    entries: list[dict[str, Any]] = [
        {"kind": "Deployment", "namespace": "team-a"},
        {"kind": "Deployment", "namespace": "team-b"},
        {"kind": "Deployment", "namespace": "other"},
        {"kind": "ClusterRole", "rules": []},
    ]
    made = cluster(*entries, scope=Scope(("team-*",), ("team-b",)))
    assert [(subject["kind"], subject["metadata"].get("namespace")) for subject in made.subjects()] == [
        ("Deployment", "team-a")
    ]


@pytest.mark.parametrize(
    ("selector", "selected"),
    [
        (None, False),
        ({}, True),
        ({"matchLabels": {"app": "shop"}}, True),
        ({"matchLabels": {"app": "shop", "x": "y"}}, False),
        ({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]}, True),
        ({"matchExpressions": [{"key": "x", "operator": "NotIn", "values": ["web"]}]}, True),
        ({"matchExpressions": [{"key": "app", "operator": "Exists"}, {"key": "x", "operator": "Exists"}]}, False),
        ({"matchExpressions": [{"key": "x", "operator": "DoesNotExist"}]}, True),
    ],
)
def test_selectors(selector: Any, selected: bool) -> None:
    assert selects(selector, {"app": "shop"}) is selected


@pytest.mark.parametrize(
    ("count", "since", "last", "found"),
    [
        (3, "2026-06-15T00:00:00Z", "2026-06-15T11:00:00Z", True),  # younger than the window: all three are in it
        (3, "2026-06-05T12:00:00Z", "2026-06-15T11:00:00Z", False),  # one of three, by its share
        (30, "2026-06-05T12:00:00Z", "2026-06-15T11:00:00Z", True),  # three of thirty
        (30, "2026-06-05T12:00:00Z", "2026-06-14T11:00:00Z", False),  # the last was before the window
        (30, "2026-06-05T12:00:00Z", None, False),
    ],
)  # fmt: skip
def test_restarts_within_a_window(count: int, since: str, last: str | None, found: bool) -> None:
    restart = {"pod": "a", "container": "app", "count": count, "since": since, "last": last, "reason": "Error"}
    subject = {"facts": {"restarts": [restart]}}
    parts = PREDICATES["restarts_often"].function(subject, {"window_hours": 24, "restarts": 3}, NOW)
    assert bool(parts) is found


def test_deprecated_requests_in_metrics() -> None:
    going = '{group="batch",removed_release="1.25",resource="cronjobs",version="v1beta1"} 1'
    staying = '{group="",removed_release="",resource="endpoints",version="v1"} 1'
    name = "apiserver_requested_deprecated_apis"
    assert deprecated_requests(f"# HELP {name} x\n{name}{going}\n{name}{staying}\nother 1\n") == [
        {"group": "batch", "version": "v1beta1", "resource": "cronjobs", "removed_release": "1.25"}
    ]


# --- Reports ----------------------------------------------------------------------------------------------------------


def report(**entry: Any) -> dict[str, Any]:
    outcome = audit({"kind": "Deployment", "name": "odd"}, {"kind": "Deployment", "name": "even"}, **entry)
    return report_of(outcome, rules(), cluster="test", now=NOW, looked_at={"Deployment": 2}, fail_on="low")


def test_the_summary_counts_by_rule_severity_and_namespace() -> None:
    summary = report()["summary"]
    assert (summary["new"], summary["known"], summary["exempt"]) == (1, 0, 0)
    assert summary["by_rule"][0] | {"rule": "odd", "checked": 2, "new": 1} == summary["by_rule"][0]
    assert summary["by_severity"]["medium"]["new"] == 1
    assert summary["by_namespace"] == [
        {"namespace": "team", "critical": 0, "high": 0, "medium": 1, "low": 0, "known": 0, "exempt": 0}
    ]


def test_junit_can_be_read_whatever_is_in_a_finding() -> None:
    data = report()
    data["findings"][0]["parts"] = ['a <b> & "c" \x00\x1b ]]>']
    suites = ElementTree.fromstring(as_junit(data))
    assert (suites.get("tests"), suites.get("failures"), suites.get("skipped")) == ("1", "1", "0")


def test_html_escapes_all_and_fetches_nothing() -> None:
    data = report()
    data["findings"][0]["parts"] = ["<script>alert(1)</script>", '" onload="x']
    page = as_html(data, (ROOT / "data" / "audit-report.html.j2").read_text(encoding="utf-8"))
    assert "<script>alert" not in page and '" onload' not in page
    assert "http" not in page
    assert "1 new finding is low or worse" in page


def test_html_of_a_cluster_in_order() -> None:
    data = report_of(audit(), rules(), cluster="test", now=NOW, looked_at={}, fail_on="never")
    page = as_html(data, (ROOT / "data" / "audit-report.html.j2").read_text(encoding="utf-8"))
    assert "Nothing. 1 rule holds." in page


def test_the_message_of_a_failure_names_the_first_and_counts_the_rest() -> None:
    message = failure_message([finding(f"shop-{number}", "app") for number in range(30)], "medium")
    assert message.startswith("30 new findings are medium or worse:\nmedium: odd: Deployment team/shop-0: app\n")
    assert message.endswith("and 10 more; see the reports")
