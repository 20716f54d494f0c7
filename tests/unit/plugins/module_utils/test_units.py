# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils.units import (
    FILE_CLOCK_TICK_US,
    STABLE_AFTER_US,
    Change,
    Clock,
    Moment,
    Plan,
    Unit,
    UnitError,
    Wanted,
    explain_down,
    full_name,
    make_diff,
    make_plan,
    own_unit_files,
    parse_show,
    parse_timestamp,
    problem,
    progress,
    stable,
    wanted_units,
    with_files_there,
)

SECOND = 1_000_000
BOOT = 1_700_000_000 * SECOND  # realtime at monotonic 0
STARTED = 1000 * SECOND  # all times below are seconds on this host's monotonic clock, in microseconds
NOW = Clock(BOOT + 5000 * SECOND, 5000 * SECOND)
FILE = "/etc/x.conf"


def at(monotonic: int, step: int = 0) -> Moment:
    return Moment(BOOT + monotonic + step, monotonic)


RUNNING = Unit(
    load="loaded",
    active="active",
    sub="running",
    unit_file="enabled",
    kind="simple",
    main_pid=7,
    invocation="a",
    main_start=at(STARTED),
    active_enter=at(STARTED + 5),
    state_change=at(STARTED + 5),
)
DOWN = replace(RUNNING, active="inactive", sub="dead", main_pid=0)


def plan(
    unit: Unit,
    changes: dict[str, int] | None = None,
    files: dict[str, int] | None = None,
    clock: Clock = NOW,
    **wanted: Any,
) -> Plan:
    """changes, files: realtime minus BOOT of each input's or unit file's newest change."""
    found = [Change(path, BOOT + time) for path, time in (changes or {}).items()]
    own = [Change(path, BOOT + time) for path, time in (files or {}).items()]
    return make_plan(Wanted("x.service", **wanted), unit, found, own, clock)


BEFORE, AFTER = STARTED - SECOND, STARTED + SECOND


@pytest.mark.parametrize(
    ("unit", "action", "enablement", "disturbs"),
    [
        pytest.param(RUNNING, "none", "none", False, id="running"),
        pytest.param(DOWN, "start", "none", False, id="down"),
        pytest.param(replace(DOWN, unit_file="disabled"), "start", "enable", False, id="disabled"),
        pytest.param(replace(RUNNING, unit_file="enabled-runtime"), "none", "enable", False, id="until-reboot-only"),
        pytest.param(replace(DOWN, active="failed", sub="failed"), "start", "none", False, id="failed"),
        pytest.param(replace(RUNNING, active="activating", sub="auto-restart"), "start", "none", False, id="crashing"),
        pytest.param(
            replace(RUNNING, active="activating", sub="auto-restart-queued"), "start", "none", False, id="crashing-254"
        ),
        pytest.param(replace(RUNNING, active="activating", sub="start"), "none", "none", False, id="on-its-way"),
        pytest.param(replace(RUNNING, active="deactivating", sub="stop"), "start", "none", False, id="going-down"),
        pytest.param(replace(RUNNING, active="reloading"), "none", "none", False, id="reloading"),
        pytest.param(replace(RUNNING, need_daemon_reload=True), "restart", "none", True, id="stale-unit-file"),
        pytest.param(Unit(), "start", "enable", False, id="bare-host"),
        pytest.param(replace(RUNNING, main_start=None), "none", "none", False, id="timer"),
    ],
)
def test_state_decides(unit: Unit, action: str, enablement: str, disturbs: bool) -> None:
    found = plan(unit, {FILE: BEFORE})
    assert (found.action, found.enablement, found.disturbs) == (action, enablement, disturbs)
    assert bool(found.reasons) == found.changed == (action != "none" or enablement != "none")


@pytest.mark.parametrize("time", [AFTER, STARTED, STARTED - FILE_CLOCK_TICK_US + 1])
def test_input_newer_than_the_process_restarts_it_once(time: int) -> None:
    found = plan(RUNNING, {"/etc/y": BEFORE, FILE: time})
    assert (found.action, found.disturbs) == ("restart", True)
    assert len(found.reasons) == 1
    assert found.reasons[0].startswith(f"{FILE} changed at 2023-11-14 ")
    restarted = replace(RUNNING, main_start=at(AFTER + SECOND))
    assert plan(restarted, {"/etc/y": BEFORE, FILE: time}).action == "none"


def test_timer_is_as_old_as_its_active_state() -> None:
    timer = replace(RUNNING, main_start=None)
    assert plan(timer, {FILE: AFTER}).action == "restart"


def test_unit_on_its_way_up_with_old_inputs_starts_anew_without_disturbing() -> None:
    found = plan(replace(RUNNING, active="activating", sub="start"), {FILE: AFTER})
    assert (found.action, found.disturbs, found.waits) == ("restart", False, False)


def test_unit_on_its_way_up_is_waited_for() -> None:
    assert plan(replace(RUNNING, active="activating", sub="start"), {FILE: BEFORE}).waits


@pytest.mark.parametrize(
    ("unit", "changes", "files", "action"),
    [
        pytest.param(RUNNING, {FILE: BEFORE}, {}, "none", id="nothing"),
        pytest.param(RUNNING, {FILE: AFTER}, {}, "reload", id="input"),
        pytest.param(replace(RUNNING, state_change=at(AFTER + SECOND)), {FILE: AFTER}, {}, "none", id="reloaded-since"),
        pytest.param(
            replace(RUNNING, state_change=at(AFTER)), {FILE: AFTER + SECOND}, {}, "reload", id="changed-again"
        ),
        pytest.param(
            # A slow start: read at its beginning, changed before it was ready.
            replace(RUNNING, active_enter=at(AFTER + SECOND), state_change=at(AFTER + SECOND)),
            {FILE: AFTER},
            {},
            "reload",
            id="changed-during-start",
        ),
        pytest.param(
            replace(RUNNING, reload_result="exit-code"), {FILE: BEFORE}, {}, "reload", id="last-reload-failed"
        ),
        pytest.param(replace(RUNNING, state_change=at(AFTER + SECOND)), {}, {"/u": AFTER}, "restart", id="unit-file"),
        pytest.param(RUNNING, {"/u": AFTER}, {"/u": AFTER}, "restart", id="unit-file-named-as-input"),
        pytest.param(DOWN, {FILE: AFTER}, {}, "start", id="down"),
    ],
)
def test_reload(unit: Unit, changes: dict[str, int], files: dict[str, int], action: str) -> None:
    assert plan(unit, changes, files, reload=True).action == action


STEP = 600 * SECOND


@pytest.mark.parametrize(
    ("start", "written", "step_now", "action"),
    [
        # start: as systemd noted it; written: realtime of the change; step_now: how far the clock has stepped.
        pytest.param(at(STARTED), BEFORE, STEP, "none", id="forward-after-write-and-start"),
        pytest.param(at(STARTED), AFTER, STEP, "restart", id="forward-after-start-and-write"),
        pytest.param(at(STARTED), AFTER + STEP, STEP, "restart", id="forward-between-start-and-write"),
        pytest.param(at(STARTED, STEP), BEFORE, STEP, "none", id="forward-between-write-and-start"),
        pytest.param(at(STARTED), AFTER - STEP, -STEP, "restart", id="back-between-start-and-write"),
        pytest.param(at(STARTED), AFTER, -STEP, "restart", id="back-after-start-and-write"),
        pytest.param(at(STARTED), STARTED - 2 * STEP, -STEP, "none", id="back-after-both-and-written-long-before"),
        pytest.param(at(STARTED), BEFORE, -STEP, "restart", id="back-after-both-price-of-caution"),
        pytest.param(at(STARTED, -STEP), STARTED - 2 * STEP, -STEP, "none", id="back-before-start"),
    ],
)
def test_steps_of_the_clock_never_hide_a_change(start: Moment, written: int, step_now: int, action: str) -> None:
    clock = Clock(NOW.realtime + step_now, NOW.monotonic)
    assert plan(replace(RUNNING, main_start=start), {FILE: written}, clock=clock).action == action


@pytest.mark.parametrize(
    ("unit", "enabled", "action", "enablement"),
    [
        (RUNNING, False, "stop", "disable"),
        (RUNNING, True, "stop", "none"),
        (replace(DOWN, unit_file="disabled"), False, "none", "none"),
        (replace(RUNNING, active="activating", sub="auto-restart", unit_file="disabled"), False, "stop", "none"),
        (replace(DOWN, active="failed", unit_file="static"), False, "none", "none"),
        (Unit(), False, "none", "none"),
        # The file was removed while the process runs.
        (replace(RUNNING, load="not-found", unit_file=""), False, "stop", "none"),
    ],
)
def test_stopped(unit: Unit, enabled: bool, action: str, enablement: str) -> None:
    found = plan(unit, state="stopped", enabled=enabled)
    assert (found.action, found.enablement, found.disturbs) == (action, enablement, False)


@pytest.mark.parametrize(
    ("unit", "told"),
    [
        (RUNNING, None),
        (Unit(), "no such unit file"),
        (Unit(load="masked"), "unmask"),
        (Unit(load="bad-setting"), "systemd-analyze verify"),
        (replace(RUNNING, unit_file="static"), "[Install]"),
    ],
)
def test_problem(unit: Unit, told: str | None) -> None:
    found = problem(Wanted("x.service"), unit)
    assert (found is None) if told is None else (found and told in found)
    assert problem(Wanted("x.service", state="stopped"), unit) is None


@pytest.mark.parametrize(
    ("unit", "old", "expected"),
    [
        (RUNNING, "", "up"),
        (RUNNING, "b", "up"),
        pytest.param(RUNNING, "a", "pending", id="the-old-process-still-runs"),
        (replace(RUNNING, job="12"), "", "pending"),
        (replace(RUNNING, active="activating", sub="auto-restart"), "", "pending"),
        (replace(DOWN, active="failed", result="exit-code"), "", "down"),
        (replace(DOWN, job="12"), "", "pending"),
        (DOWN, "a", "down"),
    ],
)
def test_progress(unit: Unit, old: str, expected: str) -> None:
    assert progress(unit, old) == expected


@pytest.mark.parametrize(
    ("unit", "age", "expected"),
    [
        (RUNNING, STABLE_AFTER_US - 1, False),
        (RUNNING, STABLE_AFTER_US, True),
        (replace(RUNNING, kind="notify"), 0, True),
        (replace(RUNNING, kind="", active_enter=None), 0, True),
    ],
)
def test_stable(unit: Unit, age: int, expected: bool) -> None:
    assert stable(unit, STARTED + 5 + age) is expected


@pytest.mark.parametrize(
    ("unit", "told"),
    [
        (replace(DOWN, condition=False), "Condition"),
        (replace(DOWN, kind="oneshot"), "RemainAfterExit"),
        (replace(DOWN, active="failed", sub="failed", result="exit-code"), "failed, result: exit-code"),
    ],
)
def test_explain_down(unit: Unit, told: str) -> None:
    assert told in explain_down(unit)


SHOWN = """\
Type=notify
Result=success
ReloadResult=success
MainPID=4242
ExecMainStartTimestamp=Sat 2026-11-21 13:46:42.555985 UTC
ExecMainStartTimestampMonotonic=2863818709
LoadState=loaded
ActiveState=active
SubState=running
FragmentPath=/etc/systemd/system/etcd.service
DropInPaths=/etc/systemd/system/etcd.service.d/a.conf /usr/lib/systemd/system/service.d/b.conf
UnitFileState=enabled
StateChangeTimestamp=Sat 2026-11-21 13:46:43.000001 UTC
StateChangeTimestampMonotonic=2864262725
ActiveEnterTimestamp=
ActiveEnterTimestampMonotonic=0
ConditionResult=yes
Job=
NeedDaemonReload=no
InvocationID=3c02978e3666472f86363d85dfd9f575

LoadState=not-found
ActiveState=inactive
SubState=dead
UnitFileState=
NeedDaemonReload=no
Job=77
"""


def test_parse_show() -> None:
    units = parse_show(SHOWN, ["etcd.service", "y.timer"])
    etcd = units["etcd.service"]
    assert etcd.main_start == Moment(1_795_268_802_555_985, 2_863_818_709)
    assert etcd.state_change == Moment(1_795_268_803_000_001, 2_864_262_725)
    assert etcd.active_enter is None
    assert (etcd.running, etcd.main_pid, etcd.kind, etcd.job) == (True, 4242, "notify", "")
    assert own_unit_files(etcd) == ["/etc/systemd/system/etcd.service", "/etc/systemd/system/etcd.service.d/a.conf"]
    assert units["y.timer"] == Unit(job="77")
    assert str(units["y.timer"]) == "no unit file"


def test_parse_show_refuses_an_answer_to_another_question() -> None:
    with pytest.raises(UnitError, match="described 2 units, 1 were asked for"):
        parse_show(SHOWN, ["etcd.service"])


@pytest.mark.parametrize("text", ["Sat 2026-11-21 13:46:42 UTC", "Sat 2026-11-21 13:46:42.555985 CET", "1795268802"])
def test_timestamps_in_other_forms_are_refused(text: str) -> None:
    with pytest.raises(UnitError, match="wanted a form like"):
        parse_timestamp(text)


@pytest.mark.parametrize("text", ["", "n/a"])
def test_never(text: str) -> None:
    assert parse_timestamp(text) == 0


OWN = "/etc/systemd/system/x.service"


@pytest.mark.parametrize(
    ("known", "fragment", "drop_ins", "stale"),
    [
        ((OWN,), OWN, [], False),
        (("/lib/systemd/system/x.service",), "", [], False),
        pytest.param(("/lib/systemd/system/x.service",), OWN, [], True, id="replaced"),
        pytest.param((OWN,), OWN, [f"{OWN}.d/a.conf"], True, id="new-drop-in"),
        ((OWN, f"{OWN}.d/a.conf"), OWN, [f"{OWN}.d/a.conf"], False),
        pytest.param((OWN, f"{OWN}.d/a.conf"), OWN, [], True, id="drop-in-gone"),
        ((OWN, "/usr/lib/systemd/system/service.d/b.conf"), OWN, [], False),
    ],
)
def test_files_that_systemd_does_not_notice(
    known: tuple[str, ...], fragment: str, drop_ins: list[str], stale: bool
) -> None:
    unit = with_files_there(replace(RUNNING, files=known), fragment, drop_ins)
    assert unit.need_daemon_reload is stale
    assert {fragment, *drop_ins, *known} - {""} == set(unit.files)


def item(**change: Any) -> dict[str, Any]:
    return {
        "inputs": [],
        "ready": [],
        "before_start": [],
        "before_restart": [],
        "defer": [],
        "state": "started",
        "enabled": None,
        "reload": False,
        **change,
    }


def test_wanted_units() -> None:
    units = wanted_units([item(name="etcd"), item(name="b.timer", state="stopped"), item(name="c", enabled=False)])
    assert [(unit.name, unit.enabled) for unit in units] == [
        ("etcd.service", True),
        ("b.timer", False),
        ("c.service", False),
    ]


def test_all_faults_of_items_at_once() -> None:
    with pytest.raises(UnitError) as caught:
        wanted_units([item(name="a", inputs=["etc/x"]), item(name="a.service")])
    assert str(caught.value) == "a.service: input 'etc/x' is no absolute path; a.service stands in the list twice"


@pytest.mark.parametrize(("name", "full"), [("etcd", "etcd.service"), ("a.timer", "a.timer"), ("a@1", "a@1.service")])
def test_full_name(name: str, full: str) -> None:
    assert full_name(name) == full


def test_diff_shows_what_changes_and_why() -> None:
    diff = make_diff([plan(RUNNING), plan(replace(DOWN, unit_file="disabled"))])
    assert diff["before"] == "x.service: inactive (dead), disabled\n"
    assert diff["after"] == (
        "x.service: enable and start\n  because it is not enabled\n  because it is inactive (dead)\n"
    )
