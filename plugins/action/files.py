# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Render templates on the controller and send all files to the host in one module call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.common.text.converters import to_text
from ansible.plugins.action import ActionBase
from ansible.template import trust_as_template
from ansible_collections.plainkube.cluster.plugins.module_utils.files import FilesError, completed
from ansible_collections.plainkube.cluster.plugins.module_utils.payload import pack

ARGUMENTS = {"items": {"type": "list", "elements": "dict", "required": True}}


class ActionModule(ActionBase):
    _supports_check_mode = True
    _supports_diff = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        task_vars = task_vars or {}
        result: dict[str, Any] = super().run(tmp, task_vars)
        checked = ArgumentSpecValidator(ARGUMENTS).validate(self._task.args)
        if checked.error_messages:
            raise AnsibleActionFail("plainkube.cluster.files: " + "; ".join(checked.error_messages))
        try:
            items = completed(self._task.args["items"])
            self._render(items, task_vars)
        except FilesError as error:
            raise AnsibleActionFail(str(error)) from error
        if items:
            result.update(
                self._execute_module(
                    module_name="plainkube.cluster.files", module_args={"payload": pack(items)}, task_vars=task_vars
                )
            )
        else:
            result.update(changed=False, files=[])
        # It would repeat the payload's name and nothing else.
        result.pop("invocation", None)
        return result

    def _render(self, items: list[dict[str, Any]], task_vars: dict[str, Any]) -> None:
        """Replace each item's template by its content. Raises FilesError with all templates that fail."""
        faults = []
        for item in items:
            template = item.pop("template", None)
            if template is None:
                continue
            try:
                item["content"] = self._rendered(template, task_vars)
            except AnsibleError as error:
                # The lines after the first list the folders that every look-up searches.
                reason = str(error).partition("\n")[0]
                faults.append(f"Template {template} for {item['path']}: {reason}")
        if faults:
            raise FilesError(faults)

    def _rendered(self, template: str, task_vars: dict[str, Any]) -> str:
        source = self._find_needle("templates", template)
        folders = [*task_vars.get("ansible_search_path", []), self._loader.get_basedir(), str(Path(source).parent)]
        search_path = [path for folder in folders for path in (f"{folder}/templates", folder)]
        templar = self._templar.copy_with_new_env(searchpath=search_path, available_variables=task_vars)
        text = trust_as_template(self._loader.get_text_file_contents(source))
        rendered = templar.template(text, escape_backslashes=False)
        return "" if rendered is None else str(to_text(rendered, nonstring="simplerepr", errors="surrogate_or_strict"))
