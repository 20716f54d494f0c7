# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The audit of a real API server: rules, exits, exemptions, baseline, reports, rights and an API that answers badly."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from ansible_collections.plainkube.cluster.plugins.module_utils.kubernetes_api import path_of
from api_servers import ApiServer, FaultProxy
from audit_examples import NOW, ROOT, examples, shipped_rules, whole
from module_runs import Answer, run_module

TEMPLATE = (ROOT / "data" / "audit-report.html.j2").read_text(encoding="utf-8")
# Not in a namespace, so that found and near miss would be in each other's way.
CLUSTER_WIDE = {"Node", "ClusterRole", "ClusterRoleBinding", "StorageClass"}
Object = dict[str, Any]
Audit = Callable[..., Answer]


@pytest.fixture
def audit(api_server: ApiServer) -> Audit:
    """Audit namespaces of the server with the shipped rules: audit("team", fail_on="low")."""

    def run(*namespaces: str, check: bool = False, **options: Any) -> Answer:
        arguments = {
            "kubeconfig": str(api_server.kubeconfig),
            "namespaces": list(namespaces),
            "fail_on": "never",
            "shipped_rules": shipped_rules(),
            "report_template": TEMPLATE,
            **options,
        }
        return run_module("workload_audit", arguments, check=check)

    return run


def make(server: ApiServer, things: list[Object]) -> None:
    """Make objects, with their statuses as controllers would set them."""
    api = server.api()

    def one(thing: Object) -> None:
        metadata = {key: value for key, value in thing["metadata"].items() if key != "managedFields"}
        without_status = {key: value for key, value in thing.items() if key != "status"}
        named = {"apiVersion": thing["apiVersion"], "kind": thing["kind"]}
        api.apply({**without_status, "metadata": metadata}, "tests", live={})
        if "status" in thing:
            short = {key: metadata[key] for key in ("name", "namespace") if key in metadata}
            body = {**named, "metadata": short, "status": thing["status"]}
            code, answer = api.ask("patch", f"{path_of(thing)}/status", body, fieldManager="kubelet", force="true")
            assert code == 200, answer

    for answer in api.at_the_same_time(one, [thing for thing in things if thing["kind"] != "Namespace"]):
        if isinstance(answer, Exception):
            raise answer


def moved(value: Any) -> Any:
    """Return an example with its times as far from now as they are from the examples' own time."""
    by = datetime.now(timezone.utc) - NOW

    def time(match: re.Match[str]) -> str:
        return (datetime.strptime(match[0], "%Y-%m-%dT%H:%M:%SZ") + by).strftime("%Y-%m-%dT%H:%M:%SZ")

    def day(match: re.Match[str]) -> str:
        days = datetime.now(timezone.utc).date() - NOW.date()
        return (datetime.strptime(match[0], "%Y-%m-%d").date() + days).isoformat()

    text = re.sub(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", time, json.dumps(value))
    return json.loads(re.sub(r"20\d\d-\d\d-\d\d(?!T)", day, text))


def stable(parts: list[str]) -> list[str]:
    return [part.partition(" (")[0] for part in parts]


def team(namespace: str, *, replicas: int = 1, image: str = "example.org/shop:1", name: str = "shop") -> Object:
    """Return a Deployment that breaks some rules."""
    return whole(
        {"kind": "Deployment", "name": name, "spec": {"replicas": replicas}, "containers": [{"image": image}]},
        namespace,
    )


def found(answer: Answer, rule: str, state: str = "new") -> list[str]:
    """Return the names of the objects that a rule found."""
    return [
        f"{item['kind']} {item['name']}"
        for item in answer.result["findings"]
        if item["rule"] == rule and item["state"] == state
    ]


# --- Rules ------------------------------------------------------------------------------------------------------------


def in_namespaces() -> Iterator[tuple[str, str]]:
    for rule, cases in examples().items():
        for name, case in cases.items():
            if not CLUSTER_WIDE & {thing["kind"] for thing in case.objects}:
                yield rule, name


def test_every_rule_about_namespaces_finds_its_example_and_leaves_its_near_miss_alone(
    clean_server: ApiServer, audit: Audit
) -> None:
    cases = dict.fromkeys(in_namespaces())
    assert len(cases) > 75
    expected = {}
    things = []
    for rule, name in cases:
        # The two cases of a rule are about namespaces of other names.
        namespace = f"{rule}-{name.replace('_', '-')}"
        example = examples(namespace)[rule][name]
        first = example.objects[0]
        own = first if first["kind"] == "Namespace" else {"metadata": {}}
        if own["metadata"].get("name") == "default":
            continue
        clean_server.make_namespaces([namespace], own["metadata"].get("labels"))
        things += moved(example.objects)
        kind, subject = first["kind"], first["metadata"]["name"]
        if kind == "Secret":
            kind, subject = "HelmRelease", first["metadata"]["labels"]["name"]
        if kind == "Namespace":
            subject = namespace
        expected[rule, namespace, kind, subject] = None if example.parts is None else stable(moved(example.parts))
    make(clean_server, things)
    answer = audit(rules=[{"id": rule["id"], "enabled": True} for rule in shipped_rules()])
    assert answer.code == 0, answer.message
    seen = {
        (item["rule"], item["namespace"], item["kind"], item["name"]): stable(item["parts"])
        for item in answer.result["findings"]
    }
    assert {key: seen.get(key) for key in expected} == expected


def test_where_pods_really_are(clean_server: ApiServer, audit: Audit) -> None:
    clean_server.make_namespaces(["team"])
    make(clean_server, examples("team")["replicas-on-one-node"]["found"].objects)
    answer = audit()
    assert answer.code == 0, answer.message
    assert found(answer, "replicas-on-one-node") == ["Deployment shop"]
    finding = next(item for item in answer.result["findings"] if item["rule"] == "replicas-on-one-node")
    assert (finding["replicas"], finding["parts"]) == (2, ["all on one"])


def test_rights_storage_and_what_kubernetes_itself_brings(clean_server: ApiServer, audit: Audit) -> None:
    clean_server.make_namespaces(["team"])
    for rule in ("rbac-cluster-admin", "rbac-exec", "rbac-wildcard", "storage-class-deletes"):
        make(clean_server, examples("team")[rule]["found"].objects)
    make(clean_server, [team("team")])
    try:
        answer = audit()
        assert found(answer, "rbac-cluster-admin") == ["ClusterRoleBinding shop"]
        assert found(answer, "rbac-exec") == ["ClusterRoleBinding shop", "RoleBinding shop"]
        assert found(answer, "rbac-wildcard") == ["ClusterRole shop"]
        assert found(answer, "storage-class-deletes") == ["StorageClass shop"]
    finally:
        clean_server.kubectl("delete", "clusterrole/shop", "clusterrolebinding/shop", "storageclass/shop")


# --- What is counted --------------------------------------------------------------------------------------------------


def test_findings_are_about_owners_and_name_their_replicas(api_server: ApiServer, namespace: str, audit: Audit) -> None:
    made_by = {"labels": {"app": "shop", "pod-template-hash": "h"}, "owner": {"kind": "ReplicaSet", "name": "shop-h"}}
    pods = [{"kind": "Pod", "name": f"shop-h-{number}", **made_by} for number in range(30)]
    jobs: list[Object] = [
        {"kind": "CronJob", "name": "night"},
        {"kind": "Job", "name": "night-1", "owner": {"kind": "CronJob", "name": "night"}},
        {"kind": "Pod", "name": "night-1-x", "owner": {"kind": "Job", "name": "night-1"}},
        {"kind": "Pod", "name": "operated-0", "owner": {"kind": "Database", "name": "operated"}},
        {"kind": "Pod", "name": "operated-1", "owner": {"kind": "Database", "name": "operated"}},
    ]
    make(api_server, [team(namespace, replicas=30), *(whole(entry, namespace) for entry in [*pods, *jobs])])
    answer = audit(namespace)
    assert answer.code == 0, answer.message
    assert found(answer, "memory-limit-missing") == ["CronJob night", "Database operated", "Deployment shop"]
    assert {item["name"]: item["replicas"] for item in answer.result["findings"] if item["rule"] == "runs-as-root"} == {
        "night": 0,
        "operated": 2,
        "shop": 30,
    }
    looked_at = answer.result["looked_at"]
    assert (looked_at["Pod"], looked_at["Deployment"], looked_at["CronJob"]) == (33, 1, 1)


def test_each_kind_is_listed_once(clean_server: ApiServer, fault_proxy: FaultProxy, audit: Audit) -> None:
    clean_server.make_namespaces(["team"])
    make(clean_server, [team("team")])
    answer = audit(kubeconfig=str(fault_proxy.kubeconfig))
    assert answer.code == 0, answer.message
    paths = [path.partition("?")[0] for method, path in fault_proxy.asked if method == "GET"]
    assert len(paths) == len(fault_proxy.asked) == answer.result["requests"]
    assert len(set(paths)) == len(paths)


def test_nothing_to_look_at_is_a_failure(namespace: str, audit: Audit) -> None:
    answer = audit("no-such-namespace")
    assert answer.code == 1
    assert "nothing was audited" in answer.message
    assert audit(namespace).code == 1


# --- Exits, exemptions, baseline --------------------------------------------------------------------------------------


def test_the_threshold_decides(api_server: ApiServer, namespace: str, audit: Audit) -> None:
    make(api_server, [team(namespace, image="example.org/shop")])
    failed = audit(namespace, fail_on="high")
    assert failed.code == 1
    assert f"high: image-tag-floating: Deployment {namespace}/shop: app: example.org/shop" in failed.message
    assert failed.result["summary"]["by_severity"]["high"]["new"] == 3
    assert "findings" not in failed.result
    assert audit(namespace, fail_on="critical").code == 0


def test_exemptions_of_an_object_a_namespace_and_the_caller(
    api_server: ApiServer, namespace: str, audit: Audit
) -> None:
    shop = team(namespace)
    shop["metadata"]["annotations"] = {
        "audit.plainkube.io/memory-limit-missing": "until 2999-12-31: it is measured first",
        "audit.plainkube.io/requests-missing": "until 2020-01-01: it was measured first",
        "audit.plainkube.io/runs-as-root": "it has always been so",
    }
    make(api_server, [shop])
    api_server.kubectl(
        "annotate", "namespace", namespace, "audit.plainkube.io/liveness-missing=until 2999-12-31: a trial"
    )
    waiver = {
        "rules": ["labels-missing"],
        "kinds": ["Workload"],
        "names": ["sh*"],
        "until": "2999-12-31",
        "reason": "old",
    }
    answer = audit(namespace, exemptions=[waiver])
    exempt = {item["rule"]: item["reason"] for item in answer.result["findings"] if item["state"] == "exempt"}
    assert exempt == {
        "memory-limit-missing": "it is measured first",
        "liveness-missing": "a trial",
        "labels-missing": "old",
    }
    for rule in ("requests-missing", "runs-as-root", "exemption-expired", "exemption-not-valid"):
        assert found(answer, rule) == ["Deployment shop"]
    assert answer.result["summary"]["exempt"] == 3


def test_with_a_baseline_only_what_is_new_fails(
    api_server: ApiServer, namespace: str, audit: Audit, tmp_path: Path
) -> None:
    baseline = str(tmp_path / "baseline.json")
    make(api_server, [team(namespace, image="example.org/shop")])
    missing = audit(namespace, baseline=baseline)
    assert missing.code == 1 and "write_baseline" in missing.message

    first = audit(namespace, fail_on="low", baseline=baseline, write_baseline=True)
    assert (first.code, first.result["changed"], first.result["summary"]["new"]) == (0, True, 0)
    assert not audit(namespace, fail_on="low", baseline=baseline, write_baseline=True).result["changed"]
    assert audit(namespace, fail_on="low", baseline=baseline).code == 0

    make(api_server, [team(namespace, image="example.org/late", name="late")])
    second = audit(namespace, fail_on="high", baseline=baseline)
    assert second.code == 1
    assert "late" in second.message and "shop" not in second.message

    api_server.kubectl("-n", namespace, "delete", "deployment", "late", "shop")
    make(api_server, [team(namespace, name="clean")])
    third = audit(namespace, baseline=baseline)
    assert {entry["name"] for entry in third.result["resolved"]} == {"shop"}


# --- Reports ----------------------------------------------------------------------------------------------------------


def test_reports_say_the_same_and_only_their_owner_reads_them(
    api_server: ApiServer, namespace: str, audit: Audit, tmp_path: Path
) -> None:
    make(api_server, [team(namespace, image="example.org/<script>alert(1)</script>&:latest")])
    reports = {name: str(tmp_path / f"audit.{name}") for name in ("json", "junit", "html")}
    assert audit(namespace, fail_on="high", reports=reports).code == 1
    assert len(list(tmp_path.iterdir())) == 3
    answer = audit(namespace, reports=reports, cluster_name="<b>production</b>")
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}

    written = json.loads(Path(reports["json"]).read_text())
    assert written["findings"] == answer.result["findings"]

    suites = ElementTree.fromstring(Path(reports["junit"]).read_text())
    assert int(suites.get("failures", "")) == len(suites.findall(".//failure")) == answer.result["summary"]["new"]
    floating = suites.find("testsuite[@name='image-tag-floating']/testcase/failure")
    assert floating is not None and "<script>" in floating.get("message", "")
    assert suites.find("testsuite[@name='privileged']/testcase/failure") is None

    page = Path(reports["html"]).read_text()
    assert "&lt;script&gt;alert(1)" in page and "<script>alert" not in page and "<b>production" not in page
    assert re.search(r"https?://", page) is None


def test_check_mode_writes_nothing(api_server: ApiServer, namespace: str, audit: Audit, tmp_path: Path) -> None:
    make(api_server, [team(namespace)])
    options = {"baseline": str(tmp_path / "baseline.json"), "reports": {"html": str(tmp_path / "audit.html")}}
    answer = audit(namespace, check=True, write_baseline=True, **options)
    assert (answer.code, answer.result["changed"]) == (0, True)
    assert list(tmp_path.iterdir()) == []


# --- What goes wrong --------------------------------------------------------------------------------------------------


def test_every_fault_of_the_rules_is_told_at_once_and_nothing_is_asked(audit: Audit) -> None:
    answer = audit(
        kubeconfig="/nonexistent",
        rules=[
            {"id": "privileged", "severty": "low"},
            {"id": "mine", "title": "Mine"},
            {"id": "labels-missing", "settings": {"lables": []}},
        ],
    )
    assert answer.code == 1
    for words in (
        "rules[0].severty: unknown key",
        "rules[1].severity: missing",
        "no such setting; wanted one of labels",
    ):
        assert words in answer.message


def test_a_rule_of_ones_own(api_server: ApiServer, namespace: str, audit: Audit) -> None:
    make(api_server, [team(namespace)])
    mine = {
        "id": "image-from-elsewhere",
        "title": "Image from elsewhere",
        "why": "It was gone one day.",
        "severity": "medium",
        "kinds": ["Workload"],
        "expression": "containers[?!starts_with(image, 'registry.example.org/')].join(': ', [name, image])",
        "fix": "Copy it.",
    }
    answer = audit(namespace, rules=[mine, {"id": "runs-as-root", "enabled": False}])
    (finding,) = [item for item in answer.result["findings"] if item["rule"] == "image-from-elsewhere"]
    assert finding["parts"] == ["app: example.org/shop:1"]
    assert found(answer, "runs-as-root") == []


def test_missing_rights_are_all_named_in_one_message(api_server: ApiServer, namespace: str, audit: Audit) -> None:
    make(api_server, [team(namespace)])
    user = f"reader-{namespace}"
    allowed = [{"apiGroups": ["", "apps", "batch"], "resources": ["*"], "verbs": ["list"]}]
    answer = audit(kubeconfig=str(api_server.kubeconfig_for(user, allowed)))
    assert answer.code == 1
    head, *lines, advice = answer.message.splitlines()
    assert head == "the cluster cannot be read:" and "docs/audit.md" in advice
    assert len(lines) == len(set(lines)) == 11, answer.message
    lacks = f"- {user} lacks the right to"
    asked_for_by = "which storage-class-default, storage-class-deletes ask for"
    assert f"{lacks} list storageclasses in the whole cluster, {asked_for_by}" in answer.message
    for words in ("list poddisruptionbudgets in the whole cluster", "list clusterroles", "get /metrics"):
        assert f"{lacks} {words}" in answer.message
    assert "list pods" not in answer.message


def roles_in_docs() -> dict[str, list[Object]]:
    """Return the rules of the roles that the docs show, by kind."""
    page = (ROOT / "docs" / "audit.md").read_text(encoding="utf-8")
    texts = re.findall(r"```yaml\n(apiVersion: rbac.*?)```", page, flags=re.DOTALL)
    return {role["kind"]: role["rules"] for role in map(yaml.safe_load, texts)}


def test_the_role_in_the_docs_is_enough(api_server: ApiServer, namespace: str, audit: Audit) -> None:
    make(api_server, [team(namespace)])
    kubeconfig = api_server.kubeconfig_for(f"auditor-{namespace}", roles_in_docs()["ClusterRole"])
    answer = audit(kubeconfig=str(kubeconfig))
    assert answer.code == 0, answer.message


# What takes rights in the whole cluster, as the docs say.
BEYOND_NAMESPACES = [
    {"id": rule, "enabled": False} for rule in ("replicas-on-one-node", "replicas-in-one-zone", "rbac-exec")
]


@pytest.mark.parametrize("count", [1, 2])
def test_rights_in_some_namespaces_are_enough_for_an_audit_of_these(
    api_server: ApiServer, make_namespaces: Callable[..., list[str]], audit: Audit, count: int
) -> None:
    *audited, other = make_namespaces(count + 1)
    make(api_server, [team(name, image="example.org/shop") for name in (*audited, other)])
    user = f"team-{other}"
    for name in audited:
        kubeconfig = api_server.kubeconfig_for(user, roles_in_docs()["Role"], name)
    answer = audit(*audited, kubeconfig=str(kubeconfig), rules=BEYOND_NAMESPACES)
    assert answer.code == 0, answer.message
    assert answer.result["findings"] == audit(*audited, rules=BEYOND_NAMESPACES).result["findings"]
    assert {finding["namespace"] for finding in answer.result["findings"]} == set(audited)

    rules_on = audit(*audited, kubeconfig=str(kubeconfig))
    assert rules_on.message.splitlines()[1:-1] == [
        f"- {user} lacks the right to list nodes in the whole cluster, which replicas-on-one-node, "
        "replicas-in-one-zone ask for",
        f"- {user} lacks the right to list clusterroles in the whole cluster, which rbac-exec asks for",
    ]
    too_far = audit(*audited, other, kubeconfig=str(kubeconfig), rules=BEYOND_NAMESPACES).message
    assert f"- {user} lacks the right to list pods in namespace {other}" in too_far
    assert f"- {user} lacks the right to get namespaces in namespace {other}" in too_far
    assert not any(name in too_far for name in audited)
    by_pattern = audit(f"{audited[0]}*", kubeconfig=str(kubeconfig), rules=BEYOND_NAMESPACES).message
    assert "list pods in the whole cluster" in by_pattern and "without patterns" in by_pattern


@pytest.mark.parametrize("fault", ["429", "500", "break", "half"])
def test_an_api_that_answers_badly_now_and_then(
    fault_proxy: FaultProxy, api_server: ApiServer, namespace: str, audit: Audit, fault: str
) -> None:
    make(api_server, [team(namespace)])
    well = audit(namespace)
    fault_proxy.misbehave = lambda number, _method, _path: fault if number % 3 == 1 else None
    badly = audit(namespace, kubeconfig=str(fault_proxy.kubeconfig))
    assert fault_proxy.faults > 3
    assert badly.result["findings"] == well.result["findings"]


def test_times_of_the_window(api_server: ApiServer, namespace: str, audit: Audit) -> None:
    """A crash long ago is no finding by itself, and a wider window finds it again."""
    started = datetime.now(timezone.utc) - timedelta(days=3)
    ended = (started + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    status = {
        "startTime": started.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "containerStatuses": [
            {
                "name": "app",
                "image": "x",
                "imageID": "x",
                "ready": True,
                "restartCount": 5,
                "lastState": {"terminated": {"exitCode": 1, "reason": "Error", "finishedAt": ended}},
            }
        ],
    }
    make(api_server, [whole({"kind": "Pod", "status": status}, namespace)])
    assert found(audit(namespace), "restarts-often") == []
    wider = audit(namespace, rules=[{"id": "restarts-often", "settings": {"window_hours": 100}}])
    assert found(wider, "restarts-often") == ["Pod shop"]


# --- The way users go -------------------------------------------------------------------------------------------------


def test_the_playbook_audits_any_cluster_and_fails_as_it_is_told(
    api_server: ApiServer, namespace: str, tmp_path: Path
) -> None:
    make(api_server, [team(namespace, image="example.org/shop")])
    variables = {
        "ansible_connection": "local",
        "audit_kubeconfig": str(api_server.kubeconfig),
        "audit_cluster_name": "staging",
        "audit_namespaces": [namespace],
        "audit_rules": [{"id": "image-tag-floating", "severity": "critical"}],
        "audit_fail_on": "critical",
        "audit_report_html": str(tmp_path / "audit.html"),
    }
    command = [
        str(Path(sys.executable).parent / "ansible-playbook"),
        "-i",
        "localhost,",
        "playbooks/audit-workloads.yml",
    ]
    done = subprocess.run(
        [*command, "-e", json.dumps(variables)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"critical: image-tag-floating: Deployment {namespace}/shop" in done.stdout
    assert "<h1>staging</h1>" in (tmp_path / "audit.html").read_text()
    variables["audit_fail_on"] = "never"
    done = subprocess.run(
        [*command, "-e", json.dumps(variables)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "changed=0" in done.stdout
