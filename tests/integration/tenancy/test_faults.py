# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The module quota when the API server, the network or the user's rights are not as they should be."""

from __future__ import annotations

import time
from typing import Any

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils.kubernetes_api import RESOURCES
from api_servers import ApiServer, FaultProxy
from module_runs import Answer, module_process, run_module

NAMESPACES = [f"team-{number}" for number in range(12)]
PROFILE = {
    "quotas": {"compute": {"hard": {"requests.memory": "1Gi", "pods": 10}}},
    "limit_range": {"container": {"default": {"memory": "128Mi"}}},
    "default_deny": ["ingress"],
}
DOCUMENT = {
    "tenants": {"team": {"profile": "small", "namespaces": NAMESPACES, "budget": {"pods": 120}}},
    "profiles": {"small": PROFILE},
}
# A namespace with its note of kinds, a quota, a LimitRange and a policy for each.
OBJECTS = 4 * len(NAMESPACES)


@pytest.fixture
def server(clean_server: ApiServer) -> ApiServer:
    clean_server.make_namespaces(NAMESPACES)
    return clean_server


def apply(kubeconfig: Any, **options: Any) -> Answer:
    return run_module("quota", {"kubeconfig": str(kubeconfig), "tenants": DOCUMENT, **options})


def specs(server: ApiServer) -> dict[str, Any]:
    """Return what the module has made, without versions."""
    api = server.api()
    return {
        f"{kind} {thing['metadata'].get('namespace', '')}/{thing['metadata']['name']}": (
            thing.get("spec"),
            thing["metadata"].get("labels"),
            thing["metadata"].get("annotations"),
        )
        for kind in ("Namespace", "ResourceQuota", "LimitRange", "NetworkPolicy")
        for thing in api.list(RESOURCES[kind].path())
    }


def expected(server: ApiServer) -> dict[str, Any]:
    """Return the end state of an undisturbed run, and leave the namespaces empty again."""
    assert apply(server.kubeconfig).result["counts"]["refused"] == 0
    end = specs(server)
    server.clean()
    server.make_namespaces(NAMESPACES)
    return end


@pytest.mark.parametrize("fault", ["429", "500", "503", "break", "half"])
def test_an_api_that_fails_now_and_then_is_no_matter(server: ApiServer, fault_proxy: FaultProxy, fault: str) -> None:
    end = expected(server)
    fault_proxy.misbehave = lambda number, _method, _path: fault if number % 3 == 1 else None
    answer = apply(fault_proxy.kubeconfig)
    assert "failed" not in answer.result, answer.message
    assert answer.result["counts"]["refused"] == 0
    assert fault_proxy.faults > OBJECTS // 4
    assert specs(server) == end
    assert apply(server.kubeconfig).result["counts"]["unchanged"] == OBJECTS


def test_the_server_says_how_long_to_wait(server: ApiServer, fault_proxy: FaultProxy) -> None:
    fault_proxy.retry_after = "2"
    fault_proxy.misbehave = lambda number, _method, _path: "429" if number == 0 else None
    begin = time.monotonic()
    assert "failed" not in apply(fault_proxy.kubeconfig).result
    assert time.monotonic() - begin >= 2


def test_a_run_killed_half_way_is_finished_by_the_next(server: ApiServer, fault_proxy: FaultProxy) -> None:
    end = expected(server)
    for writes in (1, 5, 20, 40):
        begun = len(fault_proxy.writes())
        process = module_process("quota", {"kubeconfig": str(fault_proxy.kubeconfig), "tenants": DOCUMENT})
        deadline = time.monotonic() + 60
        while len(fault_proxy.writes()) - begun < writes and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.kill()
        process.communicate()
    last = apply(server.kubeconfig)
    assert "failed" not in last.result, last.message
    assert specs(server) == end
    assert apply(server.kubeconfig).result["counts"] == {
        "created": 0,
        "changed": 0,
        "unchanged": OBJECTS,
        "pruned": 0,
        "refused": 0,
    }


def test_writes_that_never_succeed_are_named_and_the_rest_is_done(server: ApiServer, fault_proxy: FaultProxy) -> None:
    fault_proxy.misbehave = lambda _number, method, path: (
        "422" if method == "PATCH" and "/team-3/resourcequotas/" in path else None
    )
    answer = apply(fault_proxy.kubeconfig)
    assert answer.result["failed"]
    refused = {entry["kind"] for entry in answer.result["outcomes"]["refused"]}
    # The policy of that namespace waits for its quota, and is said to.
    assert refused == {"ResourceQuota", "NetworkPolicy"}
    assert {entry["namespace"] for entry in answer.result["outcomes"]["refused"]} == {"team-3"}
    assert "patch resourcequotas compute in namespace team-3: told to by a test" in answer.message
    assert answer.message.startswith("2 objects were not written, 46 were; run it again to go on:")
    assert apply(server.kubeconfig).result["counts"]["created"] == 2


def test_an_api_that_goes_away_ends_the_run_soon_and_says_what_is_left(
    server: ApiServer, fault_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault_proxy.misbehave = lambda _number, _method, _path: "break" if len(fault_proxy.writes()) > 10 else None
    begin = time.monotonic()
    answer = apply(fault_proxy.kubeconfig)
    assert time.monotonic() - begin < 40
    assert answer.result["failed"]
    done = answer.result["counts"]["created"] + answer.result["counts"]["changed"]
    assert done + answer.result["counts"]["refused"] == OBJECTS
    assert 0 < done < OBJECTS
    assert "no answer from" in answer.message
    assert apply(server.kubeconfig).result["counts"]["refused"] == 0


def test_no_api_at_all_is_one_clear_message(api_server: ApiServer, fault_proxy: FaultProxy) -> None:
    fault_proxy.close()
    answer = apply(fault_proxy.kubeconfig)
    assert answer.result["failed"]
    assert "the cluster cannot be read" in answer.message and "no answer from http://127.0.0.1" in answer.message
    assert "Traceback" not in answer.stderr


def test_missing_rights_are_one_message_with_verb_resource_and_namespace(server: ApiServer) -> None:
    read = {"apiGroups": ["", "networking.k8s.io"], "resources": ["namespaces", "nodes", "networkpolicies"]}
    reader = server.kubeconfig_for("reader", [{**read, "verbs": ["get", "list"]}])
    answer = apply(reader)
    # Those to come as well, so that nobody has to ask for rights twice.
    kinds = ["resourcequotas", "limitranges", "pods", "deployments", "statefulsets", "daemonsets", "cronjobs"]
    assert answer.message.splitlines() == [
        "the cluster cannot be read:",
        *(f"- reader lacks the right to list {kind} in the whole cluster" for kind in kinds),
    ]
    own = {"apiGroups": ["", "networking.k8s.io"], "resources": ["*", "networkpolicies"], "verbs": ["get", "list"]}
    answer = apply(server.kubeconfig_for("no-workloads", [own]))
    assert answer.message.splitlines() == [
        "the cluster cannot be read:",
        *(f"- no-workloads lacks the right to list {kind} in the whole cluster" for kind in kinds[3:]),
    ]
    everything = [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["get", "list"]}]
    looker = server.kubeconfig_for("looker", everything)
    before = specs(server)
    answer = apply(looker)
    assert "looker lacks the right to patch namespaces in namespace team-0, namespace team-1" in answer.message
    assert specs(server) == before
    writes = [{"apiGroups": ["*"], "resources": ["namespaces", "limitranges"], "verbs": ["*"]}]
    writer = server.kubeconfig_for("writer", [*everything, *writes])
    answer = apply(writer)
    (line,) = answer.message.split("\n")[1:]
    assert line.startswith(
        "- writer lacks the right to patch resourcequotas in namespace team-0, namespace team-1, namespace team-10"
    )
    assert line.endswith("and 2 more")


def test_a_way_in_that_is_none_is_said_so(api_server: ApiServer) -> None:
    assert "there is no such file" in apply(api_server.folder / "none.conf").message
    options = {"kubeconfig": str(api_server.folder / "none.conf"), "tenants": DOCUMENT}
    before_the_cluster = run_module("quota", options, check=True).result
    assert before_the_cluster["changed"] is False and not any(before_the_cluster["counts"].values())
    assert "There is nothing to compare with" in str(before_the_cluster["warnings"])
    (api_server.folder / "bad.conf").write_text("nothing: here\n")
    assert "no way to the API in it" in apply(api_server.folder / "bad.conf").message
