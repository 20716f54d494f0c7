# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Sends the shipped rules to the module that makes guard rails of them."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.plainkube.cluster.plugins.plugin_utils.audit_data import shipped_rules


class ActionModule(ActionBase):
    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        result.update(
            self._execute_module(
                module_name="plainkube.cluster.guard_rails",
                module_args={"shipped_rules": shipped_rules(), **self._task.args},
                task_vars=task_vars,
            )
        )
        # They are the collection's own and only bury what was asked.
        result.get("invocation", {}).get("module_args", {}).pop("shipped_rules", None)
        return result
