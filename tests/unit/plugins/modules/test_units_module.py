# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.plainkube.cluster.plugins.module_utils import checks, units_io
from ansible_collections.plainkube.cluster.plugins.module_utils.check_results import Result
from ansible_collections.plainkube.cluster.plugins.module_utils.checks import Kind
from ansible_collections.plainkube.cluster.plugins.module_utils.units import Change, Clock, Moment, Unit, UnitError
from ansible_collections.plainkube.cluster.plugins.modules import units as module

SECOND = 1_000_000


class Systemd:
    """Units of a host, and every word that was said to its systemd."""

    def __init__(self) -> None:
        self.now = 1000 * SECOND
        self.units: dict[str, Unit] = {}
        self.files: dict[str, int] = {}
        self.said: list[str] = []
        self.fate = "active"  # of units that are told to start
        self.invocations = 0

    def add(self, name: str, active: str = "active", sub: str = "running", **change: Any) -> None:
        moment = Moment(self.now - 500 * SECOND, self.now - 500 * SECOND)
        self.units[name] = Unit(
            load="loaded",
            active=active,
            sub=sub,
            unit_file="enabled",
            kind="notify",
            invocation="0",
            main_start=moment,
            active_enter=moment,
            state_change=moment,
        )
        self.units[name] = replace(self.units[name], **change)

    def show(self, names: list[str]) -> dict[str, Unit]:
        return {name: self.units.get(name, Unit()) for name in names}

    def clock(self) -> Clock:
        self.now += SECOND // 4
        return Clock(self.now, self.now)

    def systemctl(self, verb: str, names: list[str], timeout: float = 0, wait: bool = True) -> None:
        self.said.append(f"{verb} {' '.join(names)}")
        for name in names:
            if verb in ("start", "restart", "reload"):
                moment = Moment(self.now, self.now)
                self.invocations += 1
                self.units[name] = replace(
                    self.units[name],
                    active=self.fate,
                    sub=self.fate,
                    invocation=str(self.invocations),
                    main_start=moment,
                    active_enter=moment,
                    state_change=moment,
                )
            elif verb == "stop":
                self.units[name] = replace(self.units[name], active="inactive", sub="dead")
            elif verb in ("enable", "disable"):
                self.units[name] = replace(self.units[name], unit_file=verb + "d")

    def daemon_reload(self) -> None:
        self.said.append("daemon-reload")
        self.units = {name: replace(unit, need_daemon_reload=False) for name, unit in self.units.items()}

    def newest_change(self, path: str) -> Change | None:
        return Change(path, self.files[path]) if path in self.files else None


@pytest.fixture
def systemd(monkeypatch: pytest.MonkeyPatch) -> Systemd:
    fake = Systemd()
    for name in ("show", "clock", "systemctl", "daemon_reload", "newest_change"):
        monkeypatch.setattr(units_io, name, getattr(fake, name))
    monkeypatch.setattr(units_io, "journal", lambda unit: [f"last words of {unit}"])
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    gates: dict[str, bool] = {"open": True, "closed": False}

    def gate(definition: dict[str, Any]) -> Result:
        fake.said.append(f"check {definition['gate']}")
        return Result(gates[definition["gate"]], "what was seen", "what was wanted")

    monkeypatch.setitem(checks.KINDS, "gate", Kind(gate, frozenset({"gate"})))
    return fake


def run(
    capfd: pytest.CaptureFixture[str], *items: dict[str, Any], check: bool = False, **options: Any
) -> dict[str, Any]:
    arguments = {
        "items": list(items),
        "deadline": 0,
        "definitions": {name: {"type": "gate", "gate": name} for name in ("open", "closed")},
        "_ansible_check_mode": check,
        "_ansible_diff": True,
        **options,
    }
    with patch_module_args(arguments), pytest.raises(SystemExit):
        module.main()
    answer: dict[str, Any] = json.loads(capfd.readouterr().out)
    return answer


def test_nothing_to_do_says_nothing(systemd: Systemd, capfd: pytest.CaptureFixture[str]) -> None:
    systemd.add("a.service")
    systemd.files["/etc/a"] = 1
    answer = run(capfd, {"name": "a", "inputs": ["/etc/a"], "ready": "closed", "before_restart": "closed"})
    assert answer["changed"] is False
    assert "diff" not in answer
    assert systemd.said == []


def test_a_bare_host_in_check_mode(systemd: Systemd, capfd: pytest.CaptureFixture[str]) -> None:
    answer = run(capfd, {"name": "a", "inputs": ["/etc/a"], "ready": ["closed"]}, check=True)
    assert answer["changed"] is True
    assert [(unit["action"], unit["enablement"]) for unit in answer["units"]] == [("start", "enable")]
    assert answer["diff"]["after"] == "a.service: enable and start\n  because its unit file does not exist yet\n"
    assert systemd.said == []


def test_first_start(systemd: Systemd, capfd: pytest.CaptureFixture[str]) -> None:
    down: dict[str, Any] = {"active": "inactive", "sub": "dead", "unit_file": "disabled", "need_daemon_reload": True}
    systemd.add("a.service", **down)
    systemd.add("b.timer", **down)
    answer = run(capfd, {"name": "a", "ready": ["open"], "before_restart": ["closed"]}, {"name": "b.timer"})
    assert answer["changed"] is True
    # Both are told before any is waited for, and a first start asks no gate that is for restarts.
    assert systemd.said == [
        "daemon-reload",
        "enable a.service b.timer",
        "start a.service",
        "start b.timer",
        "check open",
    ]
    systemd.said.clear()
    assert run(capfd, {"name": "a"}, {"name": "b.timer"})["changed"] is False
    assert systemd.said == []


def test_a_start_has_a_gate_of_its_own(systemd: Systemd, capfd: pytest.CaptureFixture[str]) -> None:
    systemd.add("a.service", active="inactive", sub="dead")
    answer = run(capfd, {"name": "a", "before_start": ["closed"], "before_restart": ["open"]})
    assert (answer["failed"], answer["changed"]) == (True, False)
    assert "a.service needs a start and is left as it is" in answer["msg"]
    assert "start a.service" not in systemd.said
    assert run(capfd, {"name": "a", "before_start": ["open"]})["changed"] is True
    systemd.said.clear()
    # What runs is not asked again.
    assert run(capfd, {"name": "a", "before_start": ["closed"]})["changed"] is False


def test_changed_input_restarts_behind_its_gate_and_waits(systemd: Systemd, capfd: pytest.CaptureFixture[str]) -> None:
    systemd.add("a.service")
    systemd.add("b.service", active="inactive", sub="dead")
    systemd.files["/etc/a"] = systemd.now - SECOND
    items: list[dict[str, Any]] = [
        {"name": "b"},
        {"name": "a", "inputs": ["/etc/a"], "before_restart": "open", "ready": "open"},
    ]
    answer = run(capfd, *items)
    assert [unit["action"] for unit in answer["units"]] == ["start", "restart"]
    assert systemd.said == [
        "start b.service",
        "check open",
        "reset-failed a.service",
        "restart a.service",
        "check open",
    ]
    assert run(capfd, *items)["changed"] is False


def test_look_only(systemd: Systemd, capfd: pytest.CaptureFixture[str]) -> None:
    systemd.add("a.service", need_daemon_reload=True)
    answer = run(capfd, {"name": "a"}, look=True)
    assert [(unit["action"], unit["interrupts"]) for unit in answer["units"]] == [("restart", True)]
    assert systemd.said == []


def test_an_interruption_left_for_later(systemd: Systemd, capfd: pytest.CaptureFixture[str]) -> None:
    systemd.add("a.service")
    systemd.add("b.service", active="inactive", sub="dead")
    systemd.files["/etc/a"] = systemd.now
    item: dict[str, Any] = {"name": "a", "inputs": ["/etc/a"], "defer": ["open"]}
    for check in (True, False):
        answer = run(capfd, item, check=check)
        assert (answer["changed"], answer["deferred"], answer["units"][0]["deferred"]) == (False, True, True)
    assert systemd.said == ["check open", "check open"]
    # A start interrupts nobody, and who does not fulfil all checks does not wait.
    answer = run(capfd, {"name": "b", "defer": ["open"]}, {**item, "defer": ["open", "closed"]})
    assert [unit["action"] for unit in answer["units"]] == ["start", "restart"]
    assert answer["deferred"] is False
    # Nothing is asked when nothing is to be interrupted.
    systemd.said.clear()
    assert run(capfd, item)["deferred"] is False
    assert systemd.said == []


def test_closed_gate_leaves_the_process_alone(systemd: Systemd, capfd: pytest.CaptureFixture[str]) -> None:
    systemd.add("a.service")
    systemd.files["/etc/a"] = systemd.now
    answer = run(capfd, {"name": "a", "inputs": ["/etc/a"], "before_restart": ["open", "closed"]})
    assert (answer["failed"], answer["changed"]) == (True, False)
    assert "closed: expected that what was wanted\n  seen: what was seen" in answer["msg"]
    assert "why a restart: /etc/a changed" in answer["msg"]
    assert not [word for word in systemd.said if "a.service" in word]


@pytest.mark.parametrize(
    ("sub", "active", "said"),
    [
        ("failed", "failed", ["reset-failed a.service", "start a.service"]),
        # Started at once instead of at the end of its pause between two tries.
        ("auto-restart", "activating", ["reset-failed a.service", "restart a.service"]),
    ],
)
def test_failed_unit_is_started(
    systemd: Systemd, capfd: pytest.CaptureFixture[str], sub: str, active: str, said: list[str]
) -> None:
    systemd.add("a.service", active=active, sub=sub)
    answer = run(capfd, {"name": "a"})
    assert [unit["action"] for unit in answer["units"]] == ["start"]
    assert systemd.said == said


def test_reload_and_stop(systemd: Systemd, capfd: pytest.CaptureFixture[str]) -> None:
    systemd.add("a.service")
    systemd.add("b.service")
    systemd.files["/etc/a"] = systemd.now
    items: list[dict[str, Any]] = [
        {"name": "a", "inputs": ["/etc/a"], "reload": True},
        {"name": "b", "state": "stopped"},
    ]
    assert [unit["action"] for unit in run(capfd, *items)["units"]] == ["reload", "stop"]
    assert systemd.said == ["disable b.service", "reload a.service", "stop b.service"]
    assert run(capfd, *items)["changed"] is False


@pytest.mark.parametrize(
    ("fate", "ready", "told"),
    [
        ("active", ["closed"], "did not get ready within 0 s after its start: it is active\nclosed: expected that"),
        ("failed", ["open"], "did not get ready after its start: it is failed"),
        ("activating", [], "did not get ready within 0 s after its start: it is activating"),
    ],
)
def test_unit_that_does_not_get_ready(
    systemd: Systemd, capfd: pytest.CaptureFixture[str], fate: str, ready: list[str], told: str
) -> None:
    systemd.add("a.service", active="inactive", sub="dead")
    systemd.fate = fate
    answer = run(capfd, {"name": "a", "ready": ready})
    assert (answer["failed"], answer["changed"]) == (True, True)
    assert answer["msg"].startswith(f"a.service {told}")
    assert "last words of a.service" in answer["msg"]


def test_unit_on_its_way_up_is_waited_for_without_a_change(systemd: Systemd, capfd: pytest.CaptureFixture[str]) -> None:
    systemd.add("a.service", active="activating", sub="start")
    answer = run(capfd, {"name": "a"})
    assert (answer["failed"], answer["changed"]) == (True, False)
    assert "though it was being started" in answer["msg"]


@pytest.mark.parametrize(("lives", "lasts"), [(99, True), (3, False)])
def test_simple_service_without_checks_must_live_for_a_while(
    systemd: Systemd, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, lives: int, lasts: bool
) -> None:
    systemd.add("a.service", active="inactive", sub="dead", kind="simple")
    looks = []

    def show(names: list[str]) -> dict[str, Unit]:
        looks.append(1)
        if len(looks) > lives:
            systemd.add("a.service", active="failed", sub="failed", kind="simple", result="exit-code")
        return systemd.show(names)

    monkeypatch.setattr(units_io, "show", show)
    answer = run(capfd, {"name": "a"}, deadline=5)
    assert answer.get("failed", False) is not lasts
    assert lasts or "it is failed, result: exit-code" in answer["msg"]


@pytest.mark.parametrize(
    ("items", "told"),
    [
        ([{"name": "none"}], "none.service: no such unit file"),
        ([{"name": "a", "inputs": ["/etc/none"]}], "Inputs that do not exist: a.service: /etc/none"),
        ([{"name": "a", "ready": ["unknown"]}], "No definition of check 'unknown'. Defined checks: closed, open"),
        ([{"name": "a"}, {"name": "a.service"}], "stands in the list twice"),
    ],
)
def test_refused_before_anything_is_done(
    systemd: Systemd, capfd: pytest.CaptureFixture[str], items: list[dict[str, Any]], told: str
) -> None:
    systemd.add("a.service", need_daemon_reload=True)
    answer = run(capfd, *items)
    assert (answer["failed"], answer["changed"]) == (True, False)
    assert told in answer["msg"]
    assert systemd.said in ([], ["daemon-reload"])


def test_what_systemd_refuses_is_told_with_the_journal(
    systemd: Systemd, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    systemd.add("a.service", active="inactive", sub="dead")

    def refuse(*_words: object, **_options: object) -> None:
        raise UnitError("Unit a.service has a bad unit file setting.")

    monkeypatch.setattr(units_io, "systemctl", refuse)
    message = run(capfd, {"name": "a"})["msg"]
    assert message.startswith("Unit a.service has a bad unit file setting.")
    assert "last words of a.service" in message
