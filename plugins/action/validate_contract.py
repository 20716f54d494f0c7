# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Action validate_contract: gathers what the inventory says and fails once with every fault in it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.action import ActionBase
from ansible_collections.plainkube.cluster.plugins.module_utils.contract import (
    GROUP_VARIABLES,
    PREFIX,
    Fault,
    Inventory,
    contract_faults,
    role_input_faults,
    zone_warnings,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.versions import version_faults
from ansible_collections.plainkube.cluster.plugins.plugin_utils.server_certificates import edge_faults, instance_faults

ARGUMENTS = {
    "require_complete": {"type": "bool", "default": False},
    "certificates": {"type": "bool", "default": False},
}
ROLES = Path(__file__).resolve().parents[2] / "roles"


class ActionModule(ActionBase):
    """Looks at every host of the cluster without talking to one."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        arguments = ArgumentSpecValidator(ARGUMENTS).validate(self._task.args)
        if arguments.error_messages:
            raise AnsibleError("validate_contract: " + "; ".join(arguments.error_messages))

        specification = self._inputs("cluster")
        given = {name: task_vars["hostvars"].raw_get(name) for name in task_vars["hostvars"]}
        set_names = {host: [name for name in variables if name.startswith(PREFIX)] for host, variables in given.items()}
        here = task_vars["inventory_hostname"]
        # What the play sets, and the role's defaults, hold for all hosts; hostvars shows neither.
        everywhere = {
            **self._role_file("cluster", "defaults/main.yml"),
            **{name: value for name, value in task_vars.items() if name.startswith(PREFIX) and name not in given[here]},
        }
        set_names[here] = sorted({*set_names[here], *(name for name in everywhere if name.startswith(PREFIX))})

        unrendered: list[Fault] = []
        groups: Mapping[str, list[str]] = task_vars["groups"]
        own = self._rendered(here, everywhere, given[here], specification, [])
        members = {name for variable in GROUP_VARIABLES.values() for name in groups.get(str(own.get(variable)), ())}
        hosts = {
            name: self._rendered(name, everywhere, given[name], specification, unrendered)
            for name in given
            if name in members or not members
        }
        playing = (
            frozenset(task_vars["ansible_play_hosts_all"])
            if arguments.validated_parameters["require_complete"]
            else None
        )

        faults = unrendered + contract_faults(
            specification, Inventory(groups, hosts, set_names, playing), version_faults
        )
        if arguments.validated_parameters["certificates"]:
            now, edge = datetime.now(timezone.utc), groups.get(str(own.get("plainkube_edge_group")), [])
            faults += instance_faults(own.get("plainkube_ingress_instances"), now)
            faults += edge_faults({name: hosts[name] for name in edge if name in hosts}, now)
        faults += self._role_input_faults(task_vars, hosts, given)
        result["changed"] = False
        if faults:
            result.update(failed=True, msg=_message(faults))
            return result
        result["warnings"] = zone_warnings(hosts, groups.get(str(own.get("plainkube_etcd_group")), []))
        result["msg"] = (
            f"The inventory and variables of cluster {own['plainkube_cluster_name']} are sound ({len(hosts)} hosts)."
        )
        return result

    def _role_file(self, role: str, path: str) -> dict[str, Any]:
        """Return a YAML file of a role; its templates are as trustworthy as this plugin."""
        loaded: dict[str, Any] = self._loader.load_from_file(str(ROLES / role / path), trusted_as_template=True)
        return loaded

    def _inputs(self, role: str) -> dict[str, Any]:
        options: dict[str, Any] = self._role_file(role, "meta/argument_specs.yml")["argument_specs"]["main"]["options"]
        return options

    def _role_input_faults(
        self, task_vars: Mapping[str, Any], hosts: Mapping[str, dict[str, Any]], given: Mapping[str, dict[str, Any]]
    ) -> list[Fault]:
        """Return the faults of what the inventory and the command line set of the roles' own inputs.

        Whatever asks for what only a running role knows is left to that role.
        """
        roles = sorted(folder.name for folder in ROLES.iterdir() if folder.name != "cluster")
        specification = {name: option for role in roles for name, option in self._inputs(role).items()}
        here = task_vars["inventory_hostname"]
        everywhere = {name: task_vars[name] for name in specification if name in task_vars and name not in given[here]}
        inputs: dict[str, dict[str, Any]] = {}
        for host, contract in hosts.items():
            variables = {**given[host], **contract, **everywhere}
            templar = self._templar.copy_with_new_env(available_variables=variables)
            inputs[host] = {}
            for name in specification.keys() & variables.keys():
                with contextlib.suppress(AnsibleError):
                    inputs[host][name] = templar.template(variables[name])
        return role_input_faults(specification, inputs)

    def _rendered(
        self,
        host: str,
        everywhere: dict[str, Any],
        given: dict[str, Any],
        specification: dict[str, Any],
        faults: list[Fault],
    ) -> dict[str, Any]:
        """Return a host's values of the contract; what cannot be rendered is left out and becomes a fault."""
        variables = {**everywhere, **given}
        templar = self._templar.copy_with_new_env(available_variables=variables)
        rendered = {}
        for name in specification:
            if name not in variables:
                continue
            try:
                rendered[name] = templar.template(variables[name])
            except AnsibleError as error:
                reason = " ".join(str(error).split())
                faults.append(
                    Fault(
                        host,
                        name,
                        f"a value that cannot be rendered ({reason})",
                        "a value known before the first task",
                        "Correct it.",
                    )
                )
        return rendered


def _message(faults: list[Fault]) -> str:
    count = "one fault" if len(faults) == 1 else f"{len(faults)} faults"
    return "\n".join([f"The inventory has {count}; nothing was changed.", *(f"- {fault}" for fault in faults)])
