# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What to do about a systemd unit, judged from what systemd says about it and from when its inputs changed.

A running process was started with the present inputs if none of them changed after it started. Nothing is remembered
between runs: a run that died between writing a file and the restart is healed by the next one.

On clocks. The change time of a file is what the realtime clock said when it changed, and systemd notes what the same
clock said when a process started. As long as that clock only ever steps forward (the usual NTP step after boot), the
two stay in order, which a start computed from the monotonic clock and today's offset would not. After a step back, a
file written after the start may bear an earlier time than the start. systemd notes the monotonic clock too, so this is
seen: the start, told by today's clock, is earlier than what was noted. Then the earlier of both counts. The price is
one restart too many, for files written shortly before the start; the other way round would be a process that keeps old
inputs and nobody notices.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import Any

from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError

SUFFIXES = (".service", ".timer", ".socket")
OWN_FILES = "/etc/systemd/system/"

# The kernel stamps files with a clock that ticks once in 1 to 10 ms: a change just after a start may bear a time just
# before it.
FILE_CLOCK_TICK_US = 10_000

PROPERTIES = (
    "LoadState",
    "ActiveState",
    "SubState",
    "UnitFileState",
    "NeedDaemonReload",
    "FragmentPath",
    "DropInPaths",
    "Type",
    "MainPID",
    "Result",
    "ReloadResult",
    "ConditionResult",
    "Job",
    "InvocationID",
    "ExecMainStartTimestamp",
    "ExecMainStartTimestampMonotonic",
    "ActiveEnterTimestamp",
    "ActiveEnterTimestampMonotonic",
    "StateChangeTimestamp",
    "StateChangeTimestampMonotonic",
)

# A process that is wrong from the start is "active" for a moment if its unit says nothing about readiness
# (Type=simple).
STABLE_AFTER_US = 1_000_000

NOT_ENABLED = ("", "disabled", "linked", "linked-runtime", "enabled-runtime")

# Arguments of the units plugin, for the module and its action plugin.
ITEM_ARGUMENTS = {
    "name": {"type": "str", "required": True},
    "inputs": {"type": "list", "elements": "path", "default": []},
    "ready": {"type": "list", "elements": "str", "default": []},
    "before_start": {"type": "list", "elements": "str", "default": []},
    "before_restart": {"type": "list", "elements": "str", "default": []},
    "defer": {"type": "list", "elements": "str", "default": []},
    "state": {"type": "str", "choices": ["started", "stopped"], "default": "started"},
    "enabled": {"type": "bool"},
    "reload": {"type": "bool", "default": False},
}
ARGUMENTS = {
    "items": {"type": "list", "elements": "dict", "options": ITEM_ARGUMENTS, "required": True},
    "take_turns": {"type": "str"},
    "deadline": {"type": "int", "default": 120},
    "definitions": {"type": "dict"},
    "look": {"type": "bool", "default": False},
}

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


class UnitError(PlainkubeError):
    """A unit that cannot be brought to the wanted state."""


# The keys of an item that name checks.
CHECK_LISTS = ("ready", "before_start", "before_restart", "defer")


@dataclass(frozen=True)
class Wanted:
    """One item of the units plugin."""

    name: str
    inputs: tuple[str, ...] = ()
    ready: tuple[str, ...] = ()
    before_start: tuple[str, ...] = ()
    before_restart: tuple[str, ...] = ()
    defer: tuple[str, ...] = ()
    state: str = "started"
    enabled: bool = True
    reload: bool = False

    @property
    def checks(self) -> list[str]:
        """The names of all checks that may be asked for this unit."""
        return [*self.ready, *self.before_start, *self.before_restart, *self.defer]


@dataclass(frozen=True)
class Clock:
    """Both clocks of the host, read at one moment, in microseconds."""

    realtime: int
    monotonic: int


@dataclass(frozen=True)
class Moment:
    """When systemd saw something happen, by both clocks, in microseconds."""

    realtime: int
    monotonic: int

    def by(self, clock: Clock) -> int:
        """Return the realtime in microseconds that change times of files may be compared with (see the top)."""
        return min(self.realtime, self.monotonic + clock.realtime - clock.monotonic)


@dataclass(frozen=True)
class Unit:
    """What `systemctl show` says about one unit."""

    load: str = "not-found"
    active: str = "inactive"
    sub: str = "dead"
    unit_file: str = ""
    need_daemon_reload: bool = False
    files: tuple[str, ...] = ()
    kind: str = ""
    main_pid: int = 0
    result: str = "success"
    reload_result: str = "success"
    condition: bool = True
    job: str = ""
    invocation: str = ""
    main_start: Moment | None = None
    active_enter: Moment | None = None
    state_change: Moment | None = None

    @property
    def running(self) -> bool:
        """Whether the unit does its work: it is up, and stopping it would be noticed."""
        return self.active in ("active", "reloading", "refreshing")

    @property
    def starting(self) -> bool:
        """Whether the unit is on its way up. A unit that waits for its next try after a crash is not."""
        return self.active == "activating" and not self.sub.startswith("auto-restart")

    @property
    def started(self) -> Moment | None:
        """When the present process started; for a unit without one (timer, socket), when it became active."""
        return self.main_start or self.active_enter

    @property
    def loaded(self) -> Moment | None:
        """When the process last read its inputs, by its start or by a reload."""
        # Only a reload changes the state of an active unit without making it enter the active state anew.
        if self.running and self.state_change and self.state_change != self.active_enter:
            return self.state_change
        return self.started

    def __str__(self) -> str:
        if self.load != "loaded" and self.active == "inactive":
            return {"not-found": "no unit file"}.get(self.load, self.load)
        return self.active if self.active == self.sub else f"{self.active} ({self.sub})"


@dataclass(frozen=True)
class Change:
    """The newest change time found at an input: the input itself, a link on its way, or a file below it."""

    path: str
    time: int


@dataclass(frozen=True)
class Plan:
    """What one unit needs. action: none, start, restart, reload or stop; enablement: none, enable or disable."""

    wanted: Wanted
    unit: Unit
    action: str = "none"
    enablement: str = "none"
    daemon_reload: bool = False
    reasons: tuple[str, ...] = ()
    deferred: bool = False

    @property
    def changed(self) -> bool:
        return self.action != "none" or self.enablement != "none"

    @property
    def disturbs(self) -> bool:
        """Whether the action interrupts a process that is doing its work."""
        return self.unit.running and self.action in ("restart", "reload")

    @property
    def gate(self) -> tuple[str, ...]:
        """The checks that must pass before the action."""
        if self.disturbs:
            return self.wanted.before_restart
        return self.wanted.before_start if self.action == "start" else ()

    @property
    def waits(self) -> bool:
        """Whether there is nothing to do but to see the unit come up."""
        return self.wanted.state == "started" and self.action == "none" and self.unit.starting

    def left_for_later(self) -> Plan:
        """Return the plan of a unit whose process is not to be interrupted yet."""
        return replace(self, action="none", deferred=True)

    def result(self) -> dict[str, object]:
        """Return what the plugin reports about this unit."""
        return {
            "name": self.wanted.name,
            "action": self.action,
            "enablement": self.enablement,
            "reasons": list(self.reasons),
            "interrupts": self.disturbs,
            "waits": self.waits,
            "deferred": self.deferred,
            "changed": self.changed,
        }


def full_name(name: str) -> str:
    """Return the unit's name with its suffix; a bare name is a service's."""
    return name if name.endswith(SUFFIXES) else name + ".service"


def wanted_units(items: list[dict[str, Any]]) -> list[Wanted]:
    """Return the items of the plugin (validated by ITEM_ARGUMENTS) with what follows from them.

    Raises UnitError with all faults.
    """
    wanted: list[Wanted] = []
    faults = []
    for item in items:
        name = full_name(item["name"])
        if name in [other.name for other in wanted]:
            faults.append(f"{name} stands in the list twice")
        faults += [f"{name}: input '{path}' is no absolute path" for path in item["inputs"] if not path.startswith("/")]
        started = item["state"] == "started"
        enabled = started if item["enabled"] is None else item["enabled"]
        names = {key: tuple(item[key]) for key in ("inputs", *CHECK_LISTS)}
        wanted.append(Wanted(name, **names, state=item["state"], enabled=enabled, reload=item["reload"]))
    if faults:
        raise UnitError("; ".join(faults))
    return wanted


def parse_timestamp(text: str) -> int:
    """Return microseconds since the epoch for what `systemctl show --timestamp=us+utc` prints; 0 for never.

    Raises UnitError.
    """
    if not text or text == "n/a":
        return 0
    try:
        _weekday, day, time, zone = text.split()
        moment = datetime.strptime(f"{day} {time}", "%Y-%m-%d %H:%M:%S.%f").replace(tzinfo=timezone.utc)
    except ValueError:
        zone = ""
    if zone != "UTC":
        raise UnitError(f"systemctl printed the time '{text}', wanted a form like 'Sat 2026-11-21 13:24:01.123456 UTC'")
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _moment(properties: dict[str, str], name: str) -> Moment | None:
    monotonic = properties.get(name + "Monotonic", "")
    if monotonic in ("", "0"):
        return None
    return Moment(parse_timestamp(properties.get(name, "")), int(monotonic))


def parse_show(text: str, names: list[str]) -> dict[str, Unit]:
    """Return the units that `systemctl show --timestamp=us+utc --property=... NAMES` describes, in the order of names.

    Raises UnitError when the answer does not fit the question.
    """
    blocks = [block for block in text.split("\n\n") if block.strip()]
    if len(blocks) != len(names):
        raise UnitError(
            f"systemctl show described {len(blocks)} units, {len(names)} were asked for: {', '.join(names)}"
        )
    units = {}
    for name, block in zip(names, blocks):
        properties = dict(line.split("=", 1) for line in block.strip().splitlines() if "=" in line)
        units[name] = Unit(
            load=properties.get("LoadState", ""),
            active=properties.get("ActiveState", ""),
            sub=properties.get("SubState", ""),
            unit_file=properties.get("UnitFileState", ""),
            need_daemon_reload=properties.get("NeedDaemonReload") == "yes",
            files=tuple(f"{properties.get('FragmentPath', '')} {properties.get('DropInPaths', '')}".split()),
            kind=properties.get("Type", ""),
            main_pid=int(properties.get("MainPID") or 0),
            result=properties.get("Result") or "success",
            reload_result=properties.get("ReloadResult") or "success",
            condition=properties.get("ConditionResult") != "no",
            job=properties.get("Job", ""),
            invocation=properties.get("InvocationID", ""),
            main_start=_moment(properties, "ExecMainStartTimestamp"),
            active_enter=_moment(properties, "ActiveEnterTimestamp"),
            state_change=_moment(properties, "StateChangeTimestamp"),
        )
    return units


def with_files_there(unit: Unit, fragment: str, drop_ins: list[str]) -> Unit:
    """Return the unit with what stands below /etc/systemd/system for it now.

    systemd does not notice a drop-in in a folder that is new, nor a unit file that is to replace a distribution's.
    fragment: the unit file, or "" if there is none; drop_ins: all of the unit's own.
    """
    known = set(unit.files)
    replaced = bool(fragment) and not any(path.startswith(OWN_FILES) and path.endswith(SUFFIXES) for path in known)
    there = {*drop_ins, fragment}
    gone = {path for path in known if path.startswith(OWN_FILES) and path.endswith(".conf")} - there
    unread = set(drop_ins) - known
    if unit.load != "loaded" or not (replaced or gone or unread):
        return unit
    return replace(unit, need_daemon_reload=True, files=(*unit.files, *sorted(there - known - {""})))


def own_unit_files(unit: Unit) -> list[str]:
    """Return the unit's files that were written for this host: a distribution's own are its packages' business."""
    return [path for path in unit.files if path.startswith(OWN_FILES)]


def _later(changes: list[Change], since: Moment, clock: Clock, what: str) -> list[str]:
    moment = since.by(clock)
    return [
        f"{change.path} changed at {show_time(change.time)}, after {what} at {show_time(moment)}"
        for change in changes
        if change.time + FILE_CLOCK_TICK_US > moment
    ]


def show_time(microseconds: int) -> str:
    """Return a moment as people and journalctl write it."""
    return (_EPOCH + timedelta(microseconds=microseconds)).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + " UTC"


def make_plan(wanted: Wanted, unit: Unit, changes: list[Change], unit_file_changes: list[Change], clock: Clock) -> Plan:
    """Return what brings a unit to the wanted state.

    changes: the newest change of each input; unit_file_changes: of the unit's own files, which a reload does not apply.
    """
    enablement = "none"
    reasons: list[str] = []
    if wanted.enabled and unit.unit_file in NOT_ENABLED:
        enablement = "enable"
        if unit.load != "not-found":
            reasons.append("it is not enabled")
    elif not wanted.enabled and unit.unit_file in ("enabled", "enabled-runtime"):
        enablement = "disable"
        reasons.append(f"it is {unit.unit_file}")

    if wanted.state == "stopped":
        up = unit.active not in ("inactive", "failed")
        return Plan(
            wanted,
            unit,
            "stop" if up else "none",
            enablement,
            False,
            (*reasons, f"it is {unit}") if up else tuple(reasons),
        )

    action, why = _action(wanted, unit, changes, unit_file_changes, clock)
    stale = unit.need_daemon_reload or unit.load != "loaded"
    return Plan(wanted, unit, action, enablement, stale, (*reasons, *why))


def _action(
    wanted: Wanted, unit: Unit, changes: list[Change], unit_file_changes: list[Change], clock: Clock
) -> tuple[str, list[str]]:
    started = unit.started
    if not (unit.running or unit.starting) or started is None:
        return "start", [f"it is {unit}" if unit.load != "not-found" else "its unit file does not exist yet"]
    if unit.need_daemon_reload:
        return "restart", ["its unit files changed since systemd read them"]
    own_files = {change.path for change in unit_file_changes}
    if wanted.reload and unit.running:
        why = _later(unit_file_changes, started, clock, "the process started")
        if why:
            return "restart", why
        loaded = unit.loaded or started
        why = _later(
            [change for change in changes if change.path not in own_files], loaded, clock, "the process last read it"
        )
        if unit.reload_result != "success":
            why.append(f"its last reload failed ({unit.reload_result})")
        return ("reload", why) if why else ("none", [])
    every = unit_file_changes + [change for change in changes if change.path not in own_files]
    why = _later(every, started, clock, "the process started")
    return ("restart", why) if why else ("none", [])


def problem(wanted: Wanted, unit: Unit) -> str | None:
    """Return why systemd, knowing all unit files, cannot run or enable this unit, and what to do; None if it can."""
    if wanted.state == "stopped":
        return None
    if unit.load == "not-found":
        return (
            f"{wanted.name}: no such unit file. Write /etc/systemd/system/{wanted.name} or install its package first."
        )
    if unit.load == "masked":
        return (
            f"{wanted.name} is masked: somebody forbade to start it. To allow it again: systemctl unmask {wanted.name}"
        )
    if unit.load != "loaded":
        return f"{wanted.name} cannot be read by systemd ({unit.load}). See: systemd-analyze verify {wanted.name}"
    if wanted.enabled and unit.unit_file == "static":
        return (
            f"{wanted.name} cannot be enabled and would not come back after a reboot: "
            "its unit file has no [Install] section. Add one, or say 'enabled: false' if something else starts it."
        )
    return None


def progress(unit: Unit, old_invocation: str) -> str:
    """Return how far a unit is on its way up: up, down (nothing will bring it up by itself) or pending.

    old_invocation: the InvocationID before a restart, or "": the process that is to go must not be taken for the new
    one.
    """
    if unit.running and not unit.job and not (old_invocation and unit.invocation == old_invocation):
        return "up"
    if not unit.job and unit.active in ("inactive", "failed"):
        return "down"
    return "pending"


def stable(unit: Unit, monotonic: int) -> bool:
    """Return whether an active unit without checks of its own can be believed (monotonic: now, in microseconds)."""
    if unit.kind not in ("simple", "exec", "idle") or unit.active_enter is None:
        return True
    return monotonic - unit.active_enter.monotonic >= STABLE_AFTER_US


def explain_down(unit: Unit) -> str:
    """Return the state of a unit that should be up, with what systemd says about the reason."""
    if not unit.condition:
        return f"{unit}, a Condition...= of the unit file is not met"
    if unit.kind == "oneshot" and unit.active == "inactive" and unit.result == "success":
        return f"{unit}, it has run and ended: a oneshot unit needs RemainAfterExit=yes to count as started"
    return f"{unit}" if unit.result == "success" else f"{unit}, result: {unit.result}"


def make_diff(plans: list[Plan]) -> dict[str, str]:
    """Return before and after of the units that change, for --diff."""
    before, after = [], []
    for plan in plans:
        if not plan.changed:
            continue
        name = plan.wanted.name
        before.append(f"{name}: {plan.unit}, {plan.unit.unit_file or 'not installed'}\n")
        verbs = " and ".join(verb for verb in (plan.enablement, plan.action) if verb != "none")
        after.append(f"{name}: {verbs}\n" + "".join(f"  because {reason}\n" for reason in plan.reasons))
    return {"before_header": "units", "after_header": "units", "before": "".join(before), "after": "".join(after)}
