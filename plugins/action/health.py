# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Sends the definitions of the named checks, rendered for this host, to the module that does them."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.plainkube.cluster.plugins.module_utils.checks import ARGUMENTS
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError
from ansible_collections.plainkube.cluster.plugins.plugin_utils.check_definitions import named_definitions
from ansible_collections.plainkube.cluster.plugins.plugin_utils.task_arguments import validated


class ActionModule(ActionBase):
    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        try:
            arguments = validated(self._task.args, ARGUMENTS)
            arguments["definitions"] = named_definitions(
                arguments["definitions"], arguments["checks"], self._templar, variables
            )
        except PlainkubeError as error:
            raise AnsibleActionFail(str(error)) from error
        result.update(
            self._execute_module(module_name="plainkube.cluster.health", module_args=arguments, task_vars=variables)
        )
        return result
