# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Action plugins of modules that go by the collection's data files, which they cannot read where they run."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from ansible.plugins.action import ActionBase


class ShippedDataAction(ActionBase):
    """Sends shipped data to a module, as arguments that a task may replace."""

    TRANSFERS_FILES = False
    MODULE: ClassVar[str]

    @abstractmethod
    def shipped(self) -> dict[str, Any]:
        """Return the data as arguments of the module."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        shipped = self.shipped()
        result.update(
            self._execute_module(
                module_name=f"plainkube.cluster.{self.MODULE}",
                module_args={**shipped, **self._task.args},
                task_vars=task_vars,
            )
        )
        # They are the collection's own and only bury what was asked.
        for name in shipped:
            result.get("invocation", {}).get("module_args", {}).pop(name, None)
        return result
