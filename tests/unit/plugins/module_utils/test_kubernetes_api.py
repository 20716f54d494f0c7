# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Requests to the API in words, its refusals in words, and patience with it. A real server is asked in integration."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import urllib3
from ansible_collections.plainkube.cluster.plugins.module_utils import kubernetes_api
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError
from ansible_collections.plainkube.cluster.plugins.module_utils.kubernetes_api import (
    RESOURCES,
    TRIES,
    Api,
    ApiError,
    Conflict,
    Forbidden,
    NotTried,
    Request,
    Unreachable,
    pause_before,
    request_of,
    secrets_in,
    title,
)

QUOTA = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"namespace": "a", "name": "q"}}


class Answer:
    def __init__(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        self.status = status
        self.data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.headers = headers or {}


class Pool:
    """Answers requests from a list; an exception in it is raised."""

    def __init__(self, answers: list[Any]) -> None:
        self.answers = answers
        self.asked: list[tuple[str, str, Any]] = []

    def request(self, method: str, url: str, body: bytes | None = None, **_options: Any) -> Answer:
        self.asked.append((method, url, json.loads(body) if body else None))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        found: Answer = answer
        return found


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Nobody waits in a unit test; the pauses are noted."""
    noted: list[float] = []
    monkeypatch.setattr(kubernetes_api.time, "sleep", noted.append)
    return noted


@pytest.fixture
def api_with(monkeypatch: pytest.MonkeyPatch, pauses: list[float]) -> Callable[..., tuple[Api, Pool]]:
    def make(*answers: Any) -> tuple[Api, Pool]:
        api = Api({"host": "http://127.0.0.1:1", "api_key": "secret"})
        pool = Pool(list(answers))
        monkeypatch.setattr(api, "_pool", pool)
        return api, pool

    return make


def page(names: list[str], token: str = "") -> Answer:
    items = [{"metadata": {"name": name, "namespace": "a"}} for name in names]
    return Answer(200, {"metadata": {"continue": token} if token else {}, "items": items})


def names_of(api: Api) -> list[str]:
    return [thing["metadata"]["name"] for thing in api.list("/api/v1/pods", limit=2, labelSelector="a=b")]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (RESOURCES["Namespace"].path(), "list namespaces"),
        (RESOURCES["Namespace"].path(name="a"), "list namespaces a"),
        (RESOURCES["Pod"].path("a"), "list pods in namespace a"),
        (RESOURCES["Deployment"].path("a", "web"), "list deployments web in namespace a"),
        (RESOURCES["NetworkPolicy"].path(), "list networkpolicies"),
        ("/version", "list version"),
    ],
)
def test_a_path_is_said_in_words(path: str, words: str) -> None:
    assert request_of("list", path).words == words


def test_an_object_is_named_with_its_namespace() -> None:
    assert title(QUOTA) == "ResourceQuota a/q"
    assert title({"kind": "Namespace", "metadata": {"name": "a"}}) == "Namespace a"


@pytest.mark.parametrize(
    ("attempt", "asked", "least", "most"),
    [
        (0, None, 0.05, 0.16),
        (3, None, 0.4, 1.21),
        (20, None, 30, 30),
        (0, "2", 2, 2),
        (0, "999", 30, 30),
        (0, "Mon", 0.05, 0.16),
    ],
)
def test_pauses_double_and_follow_the_server(attempt: int, asked: str | None, least: float, most: float) -> None:
    for chance in (0.0, 0.5, 1.0):
        assert least <= pause_before(attempt, asked, chance) <= most


def test_a_list_goes_through_its_pages(api_with: Callable[..., tuple[Api, Pool]]) -> None:
    api, pool = api_with(page(["a", "b"], "next"), page(["c"]))
    assert names_of(api) == ["a", "b", "c"]
    assert "continue=next" in pool.asked[1][1] and "labelSelector=a%3Db" in pool.asked[1][1]
    assert (api.requests, api.writes) == (2, 0)


def test_a_list_that_grew_too_old_goes_on_as_the_server_proposes(api_with: Callable[..., tuple[Api, Pool]]) -> None:
    gone = Answer(410, {"message": "too old", "metadata": {"continue": "newer"}})
    api, pool = api_with(page(["a", "b"], "old"), gone, page(["c"]))
    assert names_of(api) == ["a", "b", "c"]
    assert "continue=newer" in pool.asked[2][1]


def test_a_list_that_grew_too_old_begins_again_without_repeating(api_with: Callable[..., tuple[Api, Pool]]) -> None:
    api, pool = api_with(page(["a", "b"], "old"), Answer(410, {}), page(["a", "b"], "new"), page(["c"]))
    assert names_of(api) == ["a", "b", "c"]
    assert "continue" not in pool.asked[2][1]


@pytest.mark.parametrize(
    "trouble",
    [
        Answer(429, {}, {"Retry-After": "1"}),
        Answer(500, {}),
        Answer(503, b"upstream is away"),
        urllib3.exceptions.ProtocolError("broken"),
        urllib3.exceptions.ReadTimeoutError(None, "", "slow"),  # type: ignore[arg-type]
        Answer(200, b'{"items": [{'),
    ],
    ids=["429", "500", "503", "break", "timeout", "half"],
)
def test_a_busy_server_is_asked_again(
    api_with: Callable[..., tuple[Api, Pool]], pauses: list[float], trouble: Any
) -> None:
    api, _pool = api_with(trouble, trouble, page(["a"]))
    assert names_of(api) == ["a"]
    assert len(pauses) == 2
    assert api.requests == 3


def test_a_server_that_stays_away_is_named_after_all_tries(api_with: Callable[..., tuple[Api, Pool]]) -> None:
    api, pool = api_with(*[Answer(503, {"message": "starting"})] * TRIES)
    with pytest.raises(Unreachable, match=f"list pods: the API answered 503 starting; tried {TRIES} times"):
        names_of(api)
    assert pool.answers == []


def test_refusals_are_said_in_words(api_with: Callable[..., tuple[Api, Pool]]) -> None:
    text = 'resourcequotas is forbidden: User "bob" cannot create resource "resourcequotas" in API group ""'
    causes = [
        {"reason": "FieldManagerConflict", "message": 'conflict with "kubectl" using v1', "field": ".spec.hard.cpu"},
        {"reason": "FieldManagerConflict", "message": 'conflict with "helm"', "field": ".spec.hard.pods"},
    ]
    api, _pool = api_with(
        Answer(403, {"message": text}),
        Answer(403, {"message": "exceeded quota: q"}),
        Answer(409, {"message": "conflicts", "details": {"causes": causes}}),
        Answer(401, {"message": "Unauthorized"}),
        Answer(422, {"message": "is invalid"}),
    )
    with pytest.raises(Forbidden, match="bob lacks the right to create resourcequotas in namespace a") as forbidden:
        api.apply(QUOTA, "m", live={})
    assert forbidden.value.is_a_missing_right
    with pytest.raises(Forbidden, match="patch resourcequotas q in namespace a: exceeded quota: q") as other:
        api.apply(QUOTA, "m", live={})
    assert not other.value.is_a_missing_right
    with pytest.raises(Conflict, match=r"kubectl holds spec\.hard\.cpu; helm holds spec\.hard\.pods") as conflict:
        api.apply(QUOTA, "m", live={})
    assert conflict.value.managers == {"kubectl": ["spec.hard.cpu"], "helm": ["spec.hard.pods"]}
    with pytest.raises(ApiError, match="does not know who asks"):
        api.apply(QUOTA, "m", live={})
    with pytest.raises(ApiError, match="is invalid"):
        api.apply(QUOTA, "m", live={})


def test_an_apply_says_what_it_did(api_with: Callable[..., tuple[Api, Pool]]) -> None:
    live = {**QUOTA, "metadata": {**QUOTA["metadata"], "resourceVersion": "1"}}  # type: ignore[dict-item]
    same = {**QUOTA, "metadata": {**QUOTA["metadata"], "resourceVersion": "2"}}  # type: ignore[dict-item]
    api, pool = api_with(
        Answer(404, {}), Answer(201, live), Answer(200, live), Answer(200, same), Answer(200, {**same, "spec": {}})
    )
    assert api.apply(QUOTA, "m")[1] == "created"
    assert api.apply(QUOTA, "m")[1] == "unchanged"
    assert api.apply(QUOTA, "m", live=live, dry_run=True)[1] == "changed"
    assert "dryRun=All" in pool.asked[-1][1] and "force=false" in pool.asked[-1][1]
    assert api.writes == 2


def test_a_delete_is_for_the_very_object_that_was_seen(api_with: Callable[..., tuple[Api, Pool]]) -> None:
    api, pool = api_with(Answer(200, {}), Answer(404, {}), Answer(200, {}))
    seen = {**QUOTA, "metadata": {**QUOTA["metadata"], "uid": "u1"}}  # type: ignore[dict-item]
    assert api.delete(seen)
    assert pool.asked[0][2]["preconditions"] == {"uid": "u1"}
    assert not api.delete(seen)
    api.delete(seen, dry_run=True)
    # Beside a body, the server would not read it from the query.
    assert pool.asked[-1][2]["dryRun"] == ["All"]
    assert api.writes == 2


def test_once_the_server_is_gone_the_rest_is_not_tried(api_with: Callable[..., tuple[Api, Pool]]) -> None:
    api, _pool = api_with()

    def work(number: int) -> int:
        if number == 1:
            raise ApiError(Request("get", "pods"), "no")
        if number == 2:
            raise Unreachable(Request("get", "pods"), "gone")
        return number

    answers = api.at_the_same_time(work, range(5), at_once=1)
    assert [type(answer) for answer in answers] == [int, ApiError, Unreachable, NotTried, NotTried]


def test_the_way_in_comes_from_parameters_and_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("K8S_AUTH_HOST", "http://127.0.0.1:2")
    api = Api({"api_key": "secret", "validate_certs": False})
    assert api._host == "http://127.0.0.1:2"
    assert api._credentials() == {"authorization": "Bearer secret"}
    assert api._configuration.verify_ssl is False
    clusters = [{"name": "c", "cluster": {"server": "http://127.0.0.1:3"}}]
    contexts = [{"name": name, "context": {"cluster": "c", "user": name}} for name in ("one", "two")]
    users = [{"name": name, "user": {"token": f"token-{name}"}} for name in ("one", "two")]
    kubeconfig = {"clusters": clusters, "contexts": contexts, "users": users, "current-context": "one"}
    monkeypatch.delenv("K8S_AUTH_HOST")
    api = Api({"kubeconfig": kubeconfig, "context": "two"})
    assert (api._host, api._credentials()) == ("http://127.0.0.1:3", {"authorization": "Bearer token-two"})
    with pytest.raises(PlainkubeError, match="no way to the API in it"):
        Api({"kubeconfig": kubeconfig, "context": "three"})
    with pytest.raises(PlainkubeError, match="there is no such file"):
        Api({"kubeconfig": str(tmp_path / "none")})


def test_a_kubeconfig_s_secrets_are_known() -> None:
    user = {"token": "abc", "client-key-data": "def", "password": ""}
    assert secrets_in({"kubeconfig": {"users": [{"name": "me", "user": user}, {"name": "you", "user": None}]}}) == {
        "abc",
        "def",
    }
    assert secrets_in({"kubeconfig": "/some/path"}) == secrets_in({"kubeconfig": {}}) == secrets_in({}) == set()
