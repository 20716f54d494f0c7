#!/usr/bin/python
# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: units
short_description: Run systemd units with their present inputs
description:
  - Units are enabled and run, and are restarted exactly when the running process was not started with the present
    inputs. That is seen on the host, from the change times of the inputs and the start of the process, and not from
    what this run changed. A run that died between writing a file and the restart is healed by the next one.
  - A unit file or drop-in below C(/etc/systemd) is an input of its unit without being named. Unit files are read anew
    when needed.
  - After acting, waits until the units are active and their own checks pass.
  - Knows services, timers and sockets; a C(oneshot) service needs C(RemainAfterExit=yes).
version_added: 0.1.0
author: Plainkube contributors
options:
  items:
    description: The units, in the order in which they are acted on.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the unit. Without a suffix it is a service.
        type: str
        required: true
      inputs:
        description:
          - Absolute paths of all that the process reads at its start, such as its configuration, binary and
            certificates.
          - A change of a link on the way to it, of what it leads to, and of all below a folder counts. Each must exist.
        type: list
        elements: path
        default: []
      ready:
        description: Names of checks that pass when the unit does its work.
        type: list
        elements: str
        default: []
      before_start:
        description: Names of checks that must pass before a unit that does not run is started.
        type: list
        elements: str
        default: []
      before_restart:
        description:
          - Names of checks that must pass before a running process is interrupted.
          - Name checks about the other hosts here. They alone see what a broken-off run left behind on one of them.
        type: list
        elements: str
        default: []
      defer:
        description:
          - Names of checks. While all of them pass, a process that would have to be interrupted is left alone, and the
            answer says RV(deferred). A later task without them does it then, such as that of the leader after its
            followers.
        type: list
        elements: str
        default: []
      state:
        description: Whether the unit is to run.
        type: str
        choices: [started, stopped]
        default: started
      enabled:
        description: Whether the unit is to come back after a reboot. By default as O(items[].state) says.
        type: bool
      reload:
        description:
          - Changed inputs are taken in by a reload instead of a restart. A changed unit file still means a restart.
        type: bool
        default: false
  take_turns:
    description:
      - Hosts that have to interrupt a running process under the same name here do so one after the other, each through
        O(items[].before_restart) and until it is ready. When one does not get ready, the others are left alone and
          fail.
      - Looking, and starting what does not run, takes no turn.
    type: str
  deadline:
    description: Seconds until a gate must be open, and until a unit must be ready after its start.
    type: int
    default: 120
  definitions:
    description: Definitions of checks by name, see M(plainkube.cluster.health). By default the variable
      C(cluster_checks).
    type: dict
  look:
    description: Only look, as in check mode.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
    description: Tells what it would do. On a host where a unit file does not exist yet, that is enabling and starting
      it.
  diff_mode:
    support: full
    description: States before, and actions with their reasons.
seealso:
  - module: plainkube.cluster.health
"""

EXAMPLES = r"""
- name: Run the member with its present inputs, never two restarting at once
  plainkube.cluster.units:
    items:
      - name: etcd.service
        inputs: [/usr/local/bin/etcd, /etc/etcd/pki]
        ready: [etcd-member]
        before_restart: [etcd-others-safe]
    take_turns: etcd

- name: Run the proxy, which takes in a new configuration without dropping a connection
  plainkube.cluster.units:
    items:
      - {name: haproxy.service, inputs: [/etc/haproxy/haproxy.cfg], reload: true}
"""

RETURN = r"""
units:
  description: What was done (in check mode, what would be done) for each unit.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: Full name of the unit.
      type: str
      sample: etcd.service
    action:
      description: One of C(none), C(start), C(restart), C(reload), C(stop).
      type: str
      sample: restart
    enablement:
      description: One of C(none), C(enable), C(disable).
      type: str
      sample: none
    reasons:
      description: Why.
      type: list
      elements: str
      sample: ["/etc/etcd/etcd.conf changed at 2026-11-21 13:24:01.120 UTC, after the process started at 2026-11-20
        08:00:00.000 UTC"]
    interrupts:
      description: Whether the action interrupts a running process.
      type: bool
    waits:
      description: Whether the unit was on its way up already, so that there is nothing to do but to wait.
      type: bool
    deferred:
      description: Whether its interruption is left for a later task, by O(items[].defer).
      type: bool
    changed:
      description: Whether anything was done for this unit.
      type: bool
deferred:
  description: Whether any unit's interruption is left for a later task.
  returned: success
  type: bool
"""

import time
from dataclasses import dataclass
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.plainkube.cluster.plugins.module_utils import units_io
from ansible_collections.plainkube.cluster.plugins.module_utils.checks import (
    failure_text,
    pauses,
    pick,
    require_sound,
    wait_for,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError
from ansible_collections.plainkube.cluster.plugins.module_utils.units import (
    ARGUMENTS,
    Plan,
    Unit,
    UnitError,
    Wanted,
    explain_down,
    make_diff,
    make_plan,
    own_unit_files,
    problem,
    progress,
    stable,
    wanted_units,
)


def look(wanted: list[Wanted], inputs_must_exist: bool) -> list[Plan]:
    """Return what each unit needs. Raises UnitError."""
    units = units_io.show([want.name for want in wanted])
    clock = units_io.clock()
    plans, missing = [], []
    for want in wanted:
        unit = units[want.name]
        found = {path: units_io.newest_change(path) for path in want.inputs} if want.state == "started" else {}
        missing += [f"{want.name}: {path}" for path, change in found.items() if change is None]
        own = {path: units_io.newest_change(path) for path in own_unit_files(unit)}
        plans.append(
            make_plan(
                want,
                unit,
                [change for change in found.values() if change],
                [change for change in own.values() if change],
                clock,
            )
        )
    if missing and inputs_must_exist:
        raise UnitError(
            f"Inputs that do not exist: {', '.join(missing)}. They could never cause a restart: "
            "write them before this task, correct the path, or leave it out."
        )
    return plans


def with_deferred(plans: list[Plan], definitions: dict[str, Any]) -> list[Plan]:
    """Return the plans, those of processes that are not to be interrupted yet without their action."""
    return [
        plan.left_for_later()
        if plan.disturbs and plan.wanted.defer and all_pass(pick(definitions, list(plan.wanted.defer)))
        else plan
        for plan in plans
    ]


def all_pass(definitions: dict[str, Any]) -> bool:
    """Return whether all checks pass now."""
    return all(result.ok for result in wait_for(definitions, 0).values())


@dataclass(frozen=True)
class Waiting:
    """A unit that was told to come up. old_invocation: of the process that has to go first, or empty."""

    plan: Plan
    old_invocation: str = ""


class Act:
    """Carries out plans, in their order."""

    def __init__(self, plans: list[Plan], definitions: dict[str, Any], deadline: int) -> None:
        self.plans = plans
        self.definitions = definitions
        self.deadline = deadline
        self.touched = False

    def run(self) -> None:
        """Do all that is needed and return when all units are ready. Raises UnitError."""
        self._read_unit_files()
        for verb in ("enable", "disable"):
            names = [plan.wanted.name for plan in self.plans if plan.enablement == verb]
            if names:
                self.touched = True
                units_io.systemctl(verb, names)

        # Units that do not run yet may need each other: they are started together and then waited for.
        waiting: list[Waiting] = []
        for plan in self.plans:
            if plan.disturbs or plan.action == "stop":
                self._wait(waiting)
                waiting = []
            self._gate(plan)
            if plan.disturbs:
                self._wait([self._tell(plan)])
            elif plan.action == "stop":
                self._tell(plan)
            elif plan.action != "none":
                waiting.append(self._tell(plan))
            elif plan.waits:
                waiting.append(Waiting(plan))
        self._wait(waiting)

    def _read_unit_files(self) -> None:
        units = {plan.wanted.name: plan.unit for plan in self.plans}
        if any(plan.daemon_reload for plan in self.plans):
            units_io.daemon_reload()
            units = units_io.show(list(units))
        faults = [problem(plan.wanted, units[plan.wanted.name]) for plan in self.plans]
        if any(faults):
            raise UnitError("\n".join(fault for fault in faults if fault))

    def _gate(self, plan: Plan) -> None:
        gate = pick(self.definitions, list(plan.gate))
        failed = {name: result for name, result in wait_for(gate, self.deadline).items() if not result.ok}
        if failed:
            lines = [failure_text(name, gate[name], result) for name, result in failed.items()]
            raise UnitError(
                f"{plan.wanted.name} needs a {plan.action} and is left as it is, since its gate did not open within "
                f"{self.deadline} s\n"
                + "\n".join([*lines, *(f"why a {plan.action}: {reason}" for reason in plan.reasons)])
            )

    def _tell(self, plan: Plan) -> Waiting:
        name, unit = plan.wanted.name, plan.unit
        waits_for_next_try = unit.sub.startswith("auto-restart")
        self.touched = True
        try:
            if unit.active == "failed" or waits_for_next_try or plan.action == "restart":
                # Otherwise systemd may refuse, because of the starts that went wrong before.
                units_io.systemctl("reset-failed", [name])
            if plan.action in ("reload", "stop"):
                units_io.systemctl(plan.action, [name], self.deadline)
                return Waiting(plan)
            # A mere start would leave a unit to its pause between two tries.
            verb = "restart" if waits_for_next_try else plan.action
            units_io.systemctl(verb, [name], wait=False)
        except UnitError as error:
            raise UnitError(f"{error}\n{journal_text(name)}") from None
        return Waiting(plan, unit.invocation if plan.action == "restart" else "")

    def _wait(self, waiting: list[Waiting]) -> None:
        """Return when all these units are up and ready.

        Raises UnitError at the deadline, or when one is down for good.
        """
        end = time.monotonic() + self.deadline
        pause = pauses()
        while waiting:
            units = units_io.show([wait.plan.wanted.name for wait in waiting])
            monotonic = units_io.clock().monotonic
            states = {
                wait.plan.wanted.name: progress(units[wait.plan.wanted.name], wait.old_invocation) for wait in waiting
            }
            up = [wait.plan.wanted for wait in waiting if states[wait.plan.wanted.name] == "up"]
            results = wait_for(pick(self.definitions, [name for want in up for name in want.ready]), 0)
            left, faults = [], []
            for wait in waiting:
                want, unit = wait.plan.wanted, units[wait.plan.wanted.name]
                failed = {name: results[name] for name in want.ready if name in results and not results[name].ok}
                if want in up and not failed and (want.ready or stable(unit, monotonic)):
                    continue
                left.append(wait)
                lines = [failure_text(name, self.definitions[name], result) for name, result in failed.items()]
                faults.append(self._not_ready(wait, unit, states[want.name], lines))
            if faults and ("down" in states.values() or time.monotonic() > end):
                raise UnitError("\n".join(faults))
            waiting = left
            if waiting:
                time.sleep(next(pause))

    def _not_ready(self, wait: Waiting, unit: Unit, state: str, checks: list[str]) -> str:
        name, plan = wait.plan.wanted.name, wait.plan
        after = f"after its {plan.action}" if plan.action != "none" else "though it was being started"
        within = "" if state == "down" else f" within {self.deadline} s"
        seen = str(unit) if unit.running else explain_down(unit)
        return "\n".join([f"{name} did not get ready{within} {after}: it is {seen}", *checks, journal_text(name)])


def journal_text(name: str) -> str:
    """Return the last lines of a unit's journal for people."""
    lines = units_io.journal(name) or ["(none)"]
    return "\n".join(
        [f"Last lines of the journal of {name}:", *(f"  {line}" for line in lines), f"More: journalctl -u {name}"]
    )


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    definitions = module.params["definitions"] or {}
    act = None
    plans: list[Plan] = []
    try:
        wanted = wanted_units(module.params["items"])
        require_sound(pick(definitions, [name for want in wanted for name in want.checks]))
        plans = with_deferred(look(wanted, inputs_must_exist=not module.check_mode), definitions)
        if not (module.check_mode or module.params["look"]):
            act = Act(plans, definitions, module.params["deadline"])
            act.run()
    except PlainkubeError as error:
        changed = act is not None and act.touched
        module.fail_json(msg=str(error), changed=changed, units=[plan.result() for plan in plans])
    answer = {
        "changed": any(plan.changed for plan in plans),
        "deferred": any(plan.deferred for plan in plans),
        "units": [plan.result() for plan in plans],
    }
    if module._diff and answer["changed"]:
        answer["diff"] = make_diff(plans)
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
