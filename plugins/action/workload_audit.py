# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Sends the shipped rules and the report's template to the module that audits."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.plainkube.cluster.plugins.plugin_utils.audit_data import report_template, shipped_rules


class ActionModule(ActionBase):
    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = {"shipped_rules": shipped_rules(), "report_template": report_template(), **self._task.args}
        result.update(
            self._execute_module(
                module_name="plainkube.cluster.workload_audit", module_args=arguments, task_vars=task_vars
            )
        )
        # They are the collection's own and only bury what was asked.
        for name in ("shipped_rules", "report_template"):
            result.get("invocation", {}).get("module_args", {}).pop(name, None)
        return result
