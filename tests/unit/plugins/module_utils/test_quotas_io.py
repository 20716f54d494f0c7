# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Carrying out a plan when some of its writes fail. A real server is written to in integration."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils import quotas
from ansible_collections.plainkube.cluster.plugins.module_utils.kubernetes_api import (
    ApiError,
    Forbidden,
    Request,
    Unreachable,
    problem_lines,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.quotas import Item, Plan, Reader
from ansible_collections.plainkube.cluster.plugins.module_utils.quotas_io import Writer, load_document
from ansible_collections.plainkube.cluster.plugins.module_utils.tenants import TENANT_LABEL, DocumentError


def quota(namespace: str, pods: int, cpu: int) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"namespace": namespace, "name": "q", "labels": {TENANT_LABEL: "red"}},
        "spec": {"hard": {"pods": str(pods), "requests.cpu": str(cpu)}},
    }


def change(namespace: str, before: tuple[int, int], after: tuple[int, int]) -> Item:
    fields: dict[str, Any] = {"f:spec": {"f:hard": {"f:pods": {}, "f:requests.cpu": {}}}}
    thing = quota(namespace, *before)
    entry = {"manager": "plainkube-tenants", "operation": "Apply", "fieldsV1": fields}
    thing["metadata"].update(uid="u", managedFields=[entry])
    live = Reader().live("ResourceQuota", thing)
    return Item("ResourceQuota", namespace, "q", "red", quota(namespace, *after), live, "change")


def create(kind: str, namespace: str) -> Item:
    metadata = {"namespace": namespace, "name": "q", "labels": {TENANT_LABEL: "red"}}
    thing = {"apiVersion": "v1", "kind": kind, "metadata": metadata, "spec": {"hard": {"pods": "1"}}}
    return Item(kind, namespace, "q", "red", thing, None, "create")


class FakeApi:
    """Applies what it is given but for what fail says; remembers everything in its order."""

    def __init__(self, fail: Callable[[dict[str, Any]], Exception | None]) -> None:
        self.fail = fail
        self.done: list[tuple[str, str]] = []

    def at_the_same_time(self, work: Callable[[Any], Any], on: Iterable[Any]) -> list[Any]:
        answers = []
        for item in on:
            try:
                answers.append(work(item))
            except ApiError as error:
                answers.append(error)
        return answers

    def apply(self, thing: dict[str, Any], *_arguments: Any, **_options: Any) -> tuple[dict[str, Any], str]:
        error = self.fail(thing)
        if error:
            raise error
        self.done.append((thing["metadata"]["namespace"], thing["spec"]["hard"].get("pods", "")))
        return {**thing, "metadata": {**thing["metadata"], "uid": "u"}}, "changed"


def outcomes(api: FakeApi, items: list[Item], budgeted: Iterable[str] = ("red",), dry_run: bool = False) -> list[str]:
    """Return what came of each item, with the reason."""
    state: quotas.State = {("Namespace", "", item.namespace): item.live for item in items if item.live}
    writer = Writer(api, state, budgeted, False, dry_run, False)  # type: ignore[arg-type]
    writer.run(Plan(items=items))
    return [f"{(found := writer.outcomes[id(item)]).word} {found.reason}".rstrip() for item in items]


def error_in(namespace: str, kind: type[ApiError] = ApiError) -> Callable[[dict[str, Any]], Exception | None]:
    def fail(thing: dict[str, Any]) -> Exception | None:
        if thing["metadata"]["namespace"] == namespace:
            return kind(Request("patch", "resourcequotas", namespace, "q"), "no")
        return None

    return fail


def test_a_quota_that_shrinks_and_grows_is_written_twice_and_counted_once() -> None:
    api = FakeApi(lambda _thing: None)
    assert outcomes(api, [change("a", (9, 1), (3, 5)), change("b", (1, 9), (7, 2))]) == ["changed", "changed"]
    assert api.done == [("a", "3"), ("b", "1"), ("a", "3"), ("b", "7")]


def test_a_dry_run_tries_the_end_alone() -> None:
    api = FakeApi(lambda _thing: None)
    assert outcomes(api, [change("a", (9, 1), (3, 5)), create("ResourceQuota", "new")], dry_run=True) == [
        "changed",
        "created",
    ]
    assert api.done == [("a", "3")]


def test_what_cannot_shrink_holds_up_what_would_grow() -> None:
    items = [change("a", (9, 1), (3, 1)), change("b", (1, 1), (7, 1)), change("c", (5, 1), (4, 1))]
    api = FakeApi(error_in("a"))
    first, second, third = outcomes(api, items)
    assert first == "refused patch resourcequotas q in namespace a: no"
    assert second == "refused not tried, since quotas of tenant red that were to make room were not written"
    assert third == "changed"
    assert outcomes(FakeApi(error_in("a")), items, budgeted=())[1] == "changed"


def test_what_only_began_is_not_called_done() -> None:
    """The first round of b succeeds; its second is held up by a."""
    items = [change("a", (9, 1), (3, 1)), change("b", (9, 1), (3, 5))]
    assert outcomes(FakeApi(error_in("a")), items)[1].startswith("refused not tried")


def test_the_rest_of_a_namespace_waits_for_what_failed() -> None:
    items = [create("LimitRange", "a"), create("ResourceQuota", "a"), create("ResourceQuota", "b")]

    def fail(thing: dict[str, Any]) -> Exception | None:
        return ApiError(Request("patch", "limitranges", "a", "q"), "no") if thing["kind"] == "LimitRange" else None

    assert outcomes(FakeApi(fail), items) == [
        "refused patch limitranges q in namespace a: no",
        "refused not tried, since LimitRange a/q was not written",
        "created",
    ]


def test_a_server_that_is_gone_leaves_nothing_unsaid() -> None:
    items = [create("LimitRange", "a"), create("ResourceQuota", "a")]
    found = outcomes(FakeApi(error_in("a", Unreachable)), items)
    assert all(words == "refused patch resourcequotas q in namespace a: no" for words in found)


def test_missing_rights_are_said_together() -> None:
    text = 'User "bob" cannot patch resource "resourcequotas" in API group ""'
    problems: list[ApiError] = [
        Forbidden(Request("patch", "resourcequotas", f"n{number}", "q"), text) for number in range(12)
    ]
    problems.append(ApiError(Request("patch", "limitranges", "a", "l"), "is invalid"))
    places = ", ".join(sorted(f"namespace n{number}" for number in range(12))[:10])
    assert problem_lines(problems) == [
        f"bob lacks the right to patch resourcequotas in {places} and 2 more",
        "patch limitranges l in namespace a: is invalid",
    ]


def test_a_document_is_read_from_data_or_a_file(tmp_path: Path) -> None:
    assert load_document({"tenants": {}}, None).tenants == {}
    file = tmp_path / "tenants.yml"
    file.write_text("tenants: {}\n")
    assert load_document(None, str(file)).tenants == {}
    file.write_text("tenant: {}\n")
    with pytest.raises(
        DocumentError, match=r"tenants\.yml has 2 faults; nothing was written\.\n(.*\n)?- line 1: tenant: found"
    ):
        load_document(None, str(file))
    with pytest.raises(DocumentError, match=r"cannot be read"):
        load_document(None, str(tmp_path))
