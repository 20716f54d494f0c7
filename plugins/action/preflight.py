# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Action preflight: judges the facts of all hosts of the play and fails once with every fault."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.action import ActionBase
from ansible_collections.plainkube.cluster.plugins.module_utils.preflight import Finding, evaluate

ARGUMENTS = {"facts": {"type": "str", "required": True}}


class ActionModule(ActionBase):
    """Looks at facts that are there already, without talking to a host."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        checked = ArgumentSpecValidator(ARGUMENTS).validate(self._task.args)
        if checked.error_messages:
            raise AnsibleActionFail("plainkube.cluster.preflight: " + "; ".join(checked.error_messages))
        name, hostvars = checked.validated_parameters["facts"], task_vars["hostvars"]
        # A group made in the run has its hosts in the order in which they answered.
        names = sorted(task_vars["ansible_play_hosts_all"])
        hosts = {host: hostvars[host].get(name, {}).get("facts") for host in names}
        report = evaluate(hosts)
        result.update(changed=False, warnings=[str(finding) for finding in report.warnings])
        if report.faults:
            result.update(failed=True, msg=_message(report.faults))
        else:
            result["msg"] = f"Nothing that was looked at on the {len(hosts)} hosts stands in the way."
        return result


def _message(faults: list[Finding]) -> str:
    count = "one fault" if len(faults) == 1 else f"{len(faults)} faults"
    return "\n".join([f"The hosts have {count}; nothing was changed.", *(f"- {fault}" for fault in faults)])
