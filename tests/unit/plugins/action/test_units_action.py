# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible import constants as C
from ansible.errors import AnsibleActionFail
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.action import ActionBase
from ansible.template import Templar, trust_as_template
from ansible_collections.plainkube.cluster.plugins.action import health, units
from ansible_collections.plainkube.cluster.plugins.module_utils.checks import CheckError
from ansible_collections.plainkube.cluster.plugins.plugin_utils.check_definitions import named_definitions

LOOK = "look"
ACT = "act"


class Host:
    """A host whose module answers as told, and which notes what it was asked."""

    def __init__(self, found: dict[str, Any], answer: dict[str, Any] | None = None) -> None:
        self.unit = {"changed": False, "waits": False, "interrupts": False, **found}
        self.answer = answer or {"changed": True}
        self.asked: list[str] = []

    def run(self, name: str = "n1", check: bool = False, **arguments: Any) -> dict[str, Any]:
        task = SimpleNamespace(
            args={"items": [{"name": "a"}], **arguments}, check_mode=check, diff=False, async_val=0, _uuid="task"
        )
        action = units.ActionModule.__new__(units.ActionModule)
        action._task = task
        action._templar = Templar(DataLoader())
        action._execute_module = self.module
        return action.run(None, {"inventory_hostname": name})

    def module(self, module_args: dict[str, Any], **_options: Any) -> dict[str, Any]:
        self.asked.append(LOOK if module_args["look"] else ACT)
        return {"changed": False, "units": [self.unit]} if module_args["look"] else self.answer


@pytest.fixture(autouse=True)
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(C, "DEFAULT_LOCAL_TMP", str(tmp_path))
    monkeypatch.setattr(ActionBase, "run", lambda *_words: {})
    return tmp_path


RESTART = {"changed": True, "interrupts": True}


@pytest.mark.parametrize(
    ("found", "arguments", "asked", "took_turn"),
    [
        pytest.param({}, {}, [ACT], False, id="no-turns"),
        pytest.param({}, {"take_turns": "etcd"}, [LOOK], False, id="nothing-to-do"),
        pytest.param({"changed": True}, {"take_turns": "etcd"}, [LOOK, ACT], False, id="first-start"),
        pytest.param({"waits": True}, {"take_turns": "etcd"}, [LOOK, ACT], False, id="on-its-way-up"),
        pytest.param(RESTART, {"take_turns": "etcd"}, [LOOK, ACT], True, id="restart"),
        pytest.param(RESTART, {"take_turns": "etcd", "check": True}, [ACT], False, id="check-mode"),
        pytest.param(RESTART, {"take_turns": "etcd", "look": True}, [LOOK], False, id="look"),
    ],
)
def test_who_takes_a_turn(
    run_folder: Path, found: dict[str, Any], arguments: dict[str, Any], asked: list[str], took_turn: bool
) -> None:
    host = Host(found)
    host.run(**arguments)
    assert host.asked == asked
    assert bool(list(run_folder.iterdir())) is took_turn


@pytest.mark.parametrize("fault", ["failed", "unreachable"])
def test_a_failed_turn_keeps_its_answer_and_stops_the_next(fault: str) -> None:
    answer = {fault: True, "msg": "a.service did not get ready\nits journal", "changed": True}
    assert Host(RESTART, answer).run("n1", take_turns="etcd") == answer
    other = Host(RESTART)
    with pytest.raises(
        AnsibleActionFail, match=r"host n1 in 'etcd' went wrong: a\.service did not get ready\. Repair n1"
    ):
        other.run("n2", take_turns="etcd")
    assert other.asked == [LOOK]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"items": [{"nam": "a"}]}, "nam"),
        ({"items": [{"name": "a", "inputs": ["x"]}]}, "no absolute path"),
        ({"items": [{"name": "a", "ready": ["b"]}]}, "Defined checks: none"),
        ({"items": [{"name": "a", "ready": ["b"]}], "definitions": {"b": {"type": "x"}}}, "type is 'x'"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(AnsibleActionFail, match=told):
        Host({}).run(**arguments)


def test_only_the_named_definitions_are_rendered() -> None:
    templar = Templar(DataLoader(), variables={"port": 7})
    checks = {
        "a": {"type": "tcp", "host": "h", "port": trust_as_template("{{ port }}")},
        "b": {"type": "tcp", "host": trust_as_template("{{ not_defined_here }}"), "port": 1},
    }
    assert named_definitions(None, ["a"], templar, {"cluster_checks": checks}) == {
        "a": {"type": "tcp", "host": "h", "port": 7}
    }
    whole = {"cluster_checks": trust_as_template("{{ {'c': {'type': 'file', 'path': '/' ~ port}} }}")}
    assert named_definitions(None, ["c"], templar, whole) == {"c": {"type": "file", "path": "/7"}}
    assert named_definitions(None, [], templar, {}) == {}
    with pytest.raises(CheckError, match="cluster_checks is a list"):
        named_definitions(None, ["a"], templar, {"cluster_checks": []})


def test_health_sends_what_is_named() -> None:
    sent: dict[str, Any] = {}
    action = health.ActionModule.__new__(health.ActionModule)
    action._task = SimpleNamespace(args={"checks": ["a"]}, check_mode=False, async_val=0)
    action._templar = Templar(DataLoader())
    action._execute_module = lambda module_args, **_options: sent.update(module_args) or {"healthy": True}
    definitions = {"a": {"type": "file", "path": "/"}, "b": {"type": "nonsense"}}
    assert action.run(None, {"cluster_checks": definitions})["healthy"] is True
    assert sent == {"checks": ["a"], "deadline": 60, "definitions": {"a": definitions["a"]}}
