# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Lets all hosts look at once, and those that must interrupt a running process act one after the other."""

from __future__ import annotations

from typing import Any

from ansible import constants as C
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError
from ansible_collections.plainkube.cluster.plugins.module_utils.units import ARGUMENTS, UnitError, wanted_units
from ansible_collections.plainkube.cluster.plugins.plugin_utils.check_definitions import named_definitions
from ansible_collections.plainkube.cluster.plugins.plugin_utils.task_arguments import validated
from ansible_collections.plainkube.cluster.plugins.plugin_utils.turns import turn

display = Display()


class _TurnFailed(UnitError):
    """Carries a module's failure out of the turn, which has to know."""

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__(str(answer.get("msg", "")))
        self.answer = answer


class ActionModule(ActionBase):
    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        try:
            result.update(self._bring_up(task_vars or {}))
        except _TurnFailed as error:
            result.update(error.answer)
        except PlainkubeError as error:
            raise AnsibleActionFail(str(error)) from error
        return result

    def _bring_up(self, task_vars: dict[str, Any]) -> dict[str, Any]:
        arguments = validated(self._task.args, ARGUMENTS)
        names = [name for unit in wanted_units(arguments["items"]) for name in unit.checks]
        arguments["definitions"] = named_definitions(arguments["definitions"], names, self._templar, task_vars)
        if not arguments["take_turns"] or self._task.check_mode:
            return self._on_host(arguments, task_vars)

        found = self._on_host({**arguments, "look": True}, task_vars)
        units = found.get("units", [])
        if found.get("failed") or arguments["look"] or not any(unit["changed"] or unit["waits"] for unit in units):
            return found
        if not any(unit["interrupts"] for unit in units):
            return self._on_host(arguments, task_vars)

        host = task_vars["inventory_hostname"]
        display.v(f"{host} waits for its turn in '{arguments['take_turns']}'")
        with turn(C.DEFAULT_LOCAL_TMP, arguments["take_turns"], self._task._uuid, host):
            answer = self._on_host(arguments, task_vars)
            if answer.get("failed") or answer.get("unreachable"):
                raise _TurnFailed(answer)
        return answer

    def _on_host(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = self._execute_module(
            module_name="plainkube.cluster.units", module_args=arguments, task_vars=task_vars
        )
        return answer
