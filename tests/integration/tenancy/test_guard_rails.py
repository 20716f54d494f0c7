# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Guard rails on a real API server: what it warns of, refuses and accepts, and that it says what the audit says."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils.kubernetes_api import RESOURCES, Forbidden, path_of
from api_servers import ApiServer, FaultProxy
from audit_examples import ROOT, examples, shipped_rules, whole
from module_runs import Answer, module_process, run_module

GUARDED = [rule["id"] for rule in shipped_rules() if rule.get("guard")]
# Seconds until an API server has heard of a new policy.
PATIENCE = 30
Object = dict[str, Any]


def run(server: ApiServer, check: bool = False, **options: Any) -> Answer:
    arguments = {"kubeconfig": str(server.kubeconfig), "shipped_rules": shipped_rules(), **options}
    answer = run_module("guard_rails", arguments, check=check, diff=True)
    assert answer.code == 0, answer.message
    return answer


@pytest.fixture(scope="module")
def guarded(api_server: ApiServer) -> Iterator[ApiServer]:
    """A server with guard rails of all shipped rules, also those that are switched off as shipped."""
    run(api_server, rules=[{"id": rule, "enabled": True} for rule in GUARDED])
    yield api_server
    run(api_server, state="absent")


def warnings_of(server: ApiServer, things: list[Object]) -> list[list[str]]:
    """Return the warnings for each of some objects when somebody applies them; kubectl shows equal ones only once."""
    pool = server.api()._pool
    found = []
    for thing in things:
        answer = pool.request(
            "PATCH",
            f"{server.url}{path_of(thing)}?fieldManager=somebody&dryRun=All",
            body=json.dumps({key: thing[key] for key in thing if key != "status"}),
            headers={"Content-Type": "application/apply-patch+yaml"},
        )
        assert answer.status in (200, 201), answer.data
        found.append(answer.headers.getlist("Warning"))
    return found


def until(condition: Callable[[], bool]) -> None:
    """Wait for what the API server does a moment after it was told to."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "the API server does not do it"
        time.sleep(0.1)


def of_rule(warnings: list[str], rule: str) -> list[str]:
    return [line for line in warnings if f"'plainkube-{rule}'" in line]


def named(thing: Object, name: str) -> Object:
    return {**thing, "metadata": {**thing["metadata"], "name": name}}


def refused(server: ApiServer, thing: Object) -> str:
    """Return the words with which the server refuses an object, empty when it would take it."""
    try:
        server.api().apply(thing, "somebody", dry_run=True)
    except Forbidden as error:
        return str(error)
    return ""


def privileged(namespace: str, kind: str = "Deployment", **more: Any) -> Object:
    return whole({"kind": kind, "containers": [{"securityContext": {"privileged": True}}], **more}, namespace)


@pytest.fixture
def only_privileged(api_server: ApiServer, make_namespaces: Callable[..., list[str]]) -> Iterator[ApiServer]:
    """A server with one guard rail, which it knows of, as it knows that there are no others any more."""
    off = [{"id": rule, "enabled": False} for rule in GUARDED if rule != "privileged"]
    run(api_server, rules=off)
    (probe,) = make_namespaces(1, {"plainkube.io/guard-rails": "deny"})
    until(lambda: not refused(api_server, whole({"kind": "Deployment"}, probe)))
    until(lambda: bool(refused(api_server, privileged(probe))))
    yield api_server
    run(api_server, state="absent")


def test_each_guard_says_what_its_rule_says(guarded: ApiServer, make_namespaces: Callable[..., list[str]]) -> None:
    (namespace,) = make_namespaces(1, {"plainkube.io/guard-rails": "warn"})
    cases = examples(namespace)
    found = [named(cases[rule]["found"].objects[0], f"{rule}-found") for rule in GUARDED]
    near = [named(cases[rule]["near_miss"].objects[0], f"{rule}-near") for rule in GUARDED]

    def known() -> list[str]:
        return [rule for rule, lines in zip(GUARDED, warnings_of(guarded, found)) if of_rule(lines, rule)]

    until(lambda: known() == GUARDED)
    for rule, lines in zip(GUARDED, warnings_of(guarded, found)):
        (line,) = of_rule(lines, rule)
        for part in cases[rule]["found"].parts or []:
            assert part.partition(" (")[0] in line, rule
    for rule, lines in zip(GUARDED, warnings_of(guarded, near)):
        assert of_rule(lines, rule) == [], rule


def test_a_namespace_s_label_decides(only_privileged: ApiServer, make_namespaces: Callable[..., list[str]]) -> None:
    modes = {mode: make_namespaces(1, {"plainkube.io/guard-rails": mode})[0] for mode in ("warn", "audit", "deny")}
    (free,) = make_namespaces(1)
    until(lambda: bool(refused(only_privileged, privileged(modes["deny"]))))
    message = refused(only_privileged, privileged(modes["deny"]))
    assert "Privileged containers (app). Find out which capability" in message
    until(lambda: warnings_of(only_privileged, [privileged(modes["warn"])]) != [[]])
    for namespace in (modes["audit"], free):
        assert refused(only_privileged, privileged(namespace)) == ""
        assert warnings_of(only_privileged, [privileged(namespace)]) == [[]]
    assert refused(only_privileged, privileged(modes["warn"])) == ""


FAILURE = "validation.policy.admission.k8s.io/validation_failure"


def logged(server: ApiServer) -> dict[tuple[str, str], str]:
    """Return what the audit log has last about objects by namespace and name: a policy's note, or nothing."""
    found = {}
    # The last line may still be on its way to the file.
    for line in server.audit_log.read_text().split("\n")[:-1]:
        event = json.loads(line)
        reference = event["objectRef"]
        key = (reference["namespace"], reference.get("name", ""))
        found[key] = event.get("annotations", {}).get(FAILURE, "")
    return found


def test_in_audit_mode_the_audit_log_says_what_breaks_which_rule(
    only_privileged: ApiServer, make_namespaces: Callable[..., list[str]]
) -> None:
    modes = {mode: make_namespaces(1, {"plainkube.io/guard-rails": mode})[0] for mode in ("audit", "warn")}

    def noted(thing: Object) -> str:
        """Return the log's note on an object that is applied now."""
        assert refused(only_privileged, thing) == ""
        key = (thing["metadata"]["namespace"], thing["metadata"]["name"])
        until(lambda: key in logged(only_privileged))
        return logged(only_privileged)[key]

    until(lambda: noted(privileged(modes["audit"])) != "")
    (note,) = json.loads(noted(privileged(modes["audit"])))
    assert (note["policy"], note["binding"]) == ("plainkube-privileged", "plainkube-privileged-audit")
    assert note["validationActions"] == ["Audit"]
    assert note["message"].startswith("Privileged containers (app). Find out which capability")
    assert noted(named(whole({"kind": "Deployment"}, modes["audit"]), "harmless")) == ""
    until(lambda: warnings_of(only_privileged, [privileged(modes["warn"])]) != [[]])
    assert noted(privileged(modes["warn"])) == ""


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob", "Pod"])
def test_all_that_makes_pods_is_judged(
    only_privileged: ApiServer, make_namespaces: Callable[..., list[str]], kind: str
) -> None:
    (namespace,) = make_namespaces(1, {"plainkube.io/guard-rails": "deny"})
    until(lambda: bool(refused(only_privileged, privileged(namespace, kind))))
    assert refused(only_privileged, whole({"kind": kind}, namespace)) == ""


def test_what_controllers_make_and_what_changes_no_spec_passes(
    only_privileged: ApiServer, make_namespaces: Callable[..., list[str]]
) -> None:
    (namespace,) = make_namespaces(1)
    only_privileged.apply(privileged(namespace))
    only_privileged.kubectl("label", "namespace", namespace, "plainkube.io/guard-rails=deny")
    until(lambda: bool(refused(only_privileged, privileged(namespace, "Pod"))))

    pod = json.dumps(privileged(namespace, "Pod"))
    who = ("--as=system:serviceaccount:kube-system:replicaset-controller", "--as-group=system:masters")
    assert "created" in only_privileged.kubectl("create", "--dry-run=server", "-f", "-", *who, stdin=pod)

    labelled = only_privileged.kubectl("-n", namespace, "label", "deployment/shop", "a=b", "--dry-run=server")
    assert "labeled" in labelled
    scaled = only_privileged.kubectl(
        "-n", namespace, "patch", "deployment/shop", "-p", '{"spec": {"replicas": 5}}', "--dry-run=server", check=False
    )
    assert "Privileged containers" in scaled


def test_exemptions_of_the_audit_hold_here(
    only_privileged: ApiServer, make_namespaces: Callable[..., list[str]]
) -> None:
    (namespace,) = make_namespaces(1, {"plainkube.io/guard-rails": "deny"})
    until(lambda: bool(refused(only_privileged, privileged(namespace))))
    key = "audit.plainkube.io/privileged"
    assert (
        refused(only_privileged, privileged(namespace, annotations={key: "until 2999-12-31: it drives a disk"})) == ""
    )
    assert refused(only_privileged, privileged(namespace, annotations={key: "until 2999-12-31:"})) != ""
    only_privileged.kubectl("annotate", "namespace", namespace, f"{key}=until 2999-12-31: drivers live here")
    until(lambda: not refused(only_privileged, privileged(namespace)))


def test_check_mode_says_what_the_run_does_and_the_second_run_writes_nothing(api_server: ApiServer) -> None:
    kinds = (RESOURCES["ValidatingAdmissionPolicy"].path(), RESOURCES["ValidatingAdmissionPolicyBinding"].path())

    def there() -> int:
        return sum(len(list(api_server.api().list(path))) for path in kinds)

    begin = there()
    checked = run(api_server, check=True).result
    assert there() == begin
    made = run(api_server).result
    for result in (checked, made):
        assert result["changed"] and len(result["created"]) == len(GUARDED) * 4
    assert checked["diff"] == made["diff"]

    again = run(api_server).result
    assert (again["changed"], again["unchanged"], again["requests"]) == (False, len(GUARDED) * 4, 2)

    changed = run(api_server, rules=[{"id": "capabilities-added", "settings": {"allowed": []}}]).result
    assert changed["updated"] == ["ValidatingAdmissionPolicy plainkube-capabilities-added"]

    fewer = run(api_server, rules=[{"id": "privileged", "enabled": False}]).result
    assert len(fewer["removed"]) == 4 and "privileged" not in fewer["rules"]

    assert len(run(api_server, state="absent").result["removed"]) == (len(GUARDED) - 1) * 4
    assert there() == begin


def test_guards_of_others_are_left_alone(api_server: ApiServer) -> None:
    other = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": "plainkube-of-somebody"},
        "spec": {
            "matchConstraints": {
                "resourceRules": [
                    {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}
                ]
            },
            "validations": [{"expression": "true"}],
        },
    }
    api_server.apply(other)
    try:
        assert run(api_server, state="absent").result["removed"] == []
    finally:
        api_server.kubectl("delete", "validatingadmissionpolicy", "plainkube-of-somebody")


# --- An API that answers badly, and runs that are cut off -------------------------------------------------------------


@pytest.fixture
def no_rails(api_server: ApiServer) -> Iterator[ApiServer]:
    """A server without guard rails, before and after."""
    run(api_server, state="absent")
    yield api_server
    run(api_server, state="absent")


@pytest.mark.parametrize("fault", ["429", "500", "break", "half"])
def test_an_api_that_fails_now_and_then_is_no_matter(no_rails: ApiServer, fault_proxy: FaultProxy, fault: str) -> None:
    fault_proxy.misbehave = lambda number, _method, _path: fault if number % 3 == 1 else None
    answer = run_module("guard_rails", {"kubeconfig": str(fault_proxy.kubeconfig), "shipped_rules": shipped_rules()})
    assert answer.code == 0, answer.message
    assert fault_proxy.faults > len(GUARDED)
    assert run(no_rails).result["unchanged"] == len(GUARDED) * 4


def test_a_run_killed_between_two_writes_is_finished_by_the_next(no_rails: ApiServer, fault_proxy: FaultProxy) -> None:
    for state, left in (("present", len(GUARDED) * 4), ("absent", 0)):
        arguments = {"kubeconfig": str(fault_proxy.kubeconfig), "shipped_rules": shipped_rules(), "state": state}
        begun = len(fault_proxy.writes())
        process = module_process("guard_rails", arguments)
        deadline = time.monotonic() + PATIENCE
        while len(fault_proxy.writes()) - begun < 5:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.001)
        process.kill()
        process.communicate()
        assert run(no_rails, state=state).result["changed"], "nothing was left to do: it was not killed half-way"
        again = run(no_rails, state=state).result
        assert (again["changed"], again["unchanged"]) == (False, left)


def test_the_playbook_changes_nothing_the_second_time(api_server: ApiServer) -> None:
    variables = {
        "ansible_connection": "local",
        "guard_rails_kubeconfig": str(api_server.kubeconfig),
        "guard_rails_rules": [{"id": rule, "enabled": rule == "privileged"} for rule in GUARDED],
    }
    program = Path(sys.executable).parent / "ansible-playbook"
    command = [str(program), "-i", "localhost,", "playbooks/apply-guard-rails.yml", "-e", json.dumps(variables)]
    for options, changed in (["--check"], 1), ([], 1), ([], 0):
        done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"changed={changed} " in done.stdout
    assert len(run(api_server, state="absent").result["removed"]) == 4
