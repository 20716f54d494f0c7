# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The module quota_info against a real API server."""

from __future__ import annotations

import json

import pytest
from api_servers import ApiServer
from module_runs import Answer, run_module

DOCUMENT = {
    "tenants": {"shop": {"profile": "web", "namespaces": ["a", "b"], "budget": {"requests.memory": "8Gi"}}},
    "profiles": {"web": {"quotas": {"compute": {"hard": {"requests.memory": "2Gi", "pods": 10}}}}},
}


@pytest.fixture(scope="module")
def server(api_server: ApiServer) -> ApiServer:
    api_server.clean()
    api_server.make_namespaces(["a", "b"])
    assert run_module("quota", {"kubeconfig": str(api_server.kubeconfig), "tenants": DOCUMENT}).result["changed"]
    for namespace, memory, pods in (("a", "1900Mi", "2"), ("b", "256Mi", "10")):
        thing = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"namespace": namespace, "name": "compute"}}
        hard = {"requests.memory": "2Gi", "pods": "10"}
        api_server.set_status(thing, {"hard": hard, "used": {"requests.memory": memory, "pods": pods}})
    return api_server


def ask(server: ApiServer, **options: object) -> Answer:
    return run_module("quota_info", {"kubeconfig": str(server.kubeconfig), **options})


def test_use_is_held_against_limits(server: ApiServer) -> None:
    result = ask(server).result
    assert [(row["namespace"], row["resource"], row["percent"], row["level"]) for row in result["quotas"]] == [
        ("b", "pods", 100.0, "full"),
        ("a", "requests.memory", 92.8, "warning"),
        ("a", "pods", 20.0, "ok"),
        ("b", "requests.memory", 12.5, "ok"),
    ]
    assert result["levels"] == {"ok": 2, "notice": 0, "warning": 1, "full": 1, "unknown": 0}
    assert result["table"][1].split() == ["full", "100.0", "shop", "b", "compute", "pods", "10", "10"]
    assert result["changed"] is False


def test_a_document_brings_budgets(server: ApiServer) -> None:
    memory = {row["resource"]: row for row in ask(server).result["tenants"]}["requests.memory"]
    assert (memory["used"], memory["hard"], memory["percent"]) == ("2156Mi", "4Gi", 52.6)
    memory = {row["resource"]: row for row in ask(server, tenants=DOCUMENT).result["tenants"]}["requests.memory"]
    assert (memory["hard"], memory["percent"]) == ("8Gi", 26.3)


def test_small_rows_can_be_left_out(server: ApiServer) -> None:
    result = ask(server, at_least=90, thresholds=[50, 60, 95]).result
    assert [(row["percent"], row["level"]) for row in result["quotas"]] == [(100.0, "full"), (92.8, "warning")]
    assert result["levels"]["ok"] == 2


def test_a_kubeconfig_as_data_keeps_its_secrets(server: ApiServer) -> None:
    content = json.loads(server.kubeconfig.read_text())
    answer = run_module("quota_info", {"kubeconfig": content})
    assert answer.result["quotas"]
    assert content["users"][0]["user"]["client-key-data"] not in json.dumps(answer.result) + answer.stderr


def test_missing_rights_and_wrong_thresholds_are_said(server: ApiServer) -> None:
    nobody = server.kubeconfig_for("nobody-here", [])
    answer = run_module("quota_info", {"kubeconfig": str(nobody)})
    assert "nobody-here lacks the right to list resourcequotas in the whole cluster" in answer.message
    assert "wanted three percentages that rise" in ask(server, thresholds=[3]).message
