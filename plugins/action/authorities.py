# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Brings the controller's state folder to what is asked. Connects to no host."""

from __future__ import annotations

import contextlib
import re
from datetime import datetime, timedelta, timezone
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.plainkube.cluster.plugins.module_utils.certificates import CertificateError
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError
from ansible_collections.plainkube.cluster.plugins.plugin_utils.authorities import (
    AdminSpec,
    Outcome,
    StateMaker,
    in_order,
    specs_from,
)
from ansible_collections.plainkube.cluster.plugins.plugin_utils.state_folder import ADMIN_KUBECONFIG, StateFolder
from ansible_collections.plainkube.cluster.plugins.plugin_utils.task_arguments import argument_or_variable, validated

ARGUMENTS: dict[str, dict[str, Any]] = {
    "state_dir": {"type": "str"},
    "cluster_name": {"type": "str"},
    "authorities": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "name": {"type": "str", "required": True},
            "common_name": {"type": "str", "required": True},
            "days": {"type": "int", "default": 3650},
            "issuer": {"type": "str"},
        },
    },
    "service_account_key": {"type": "bool", "default": False, "no_log": False},
    "encryption_key": {"type": "bool", "default": False, "no_log": False},
    "admin_kubeconfig": {
        "type": "dict",
        "options": {
            "path": {"type": "str"},
            "server": {"type": "str", "required": True},
            "user": {"type": "str", "default": "kubernetes-admin"},
            "organizations": {"type": "list", "elements": "str", "default": ["system:masters"]},
            "days": {"type": "int", "default": 365},
            "authority": {"type": "str", "default": "cluster"},
        },
    },
}
# Names become file names.
NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", re.ASCII)


def check(arguments: dict[str, Any]) -> None:
    """Raise CertificateError with all faults that types cannot express."""
    faults = []
    for item in arguments["authorities"]:
        if not NAME.fullmatch(item["name"]):
            faults.append(f"authority '{item['name']}': the name may hold lower-case letters, digits and hyphens only")
        if not item["common_name"]:
            faults.append(f"authority {item['name']}: common_name is empty")
        if item["days"] < 1:
            faults.append(f"authority {item['name']}: days is {item['days']}, wanted 1 or more")
    admin = arguments["admin_kubeconfig"]
    if admin:
        if admin["days"] < 1:
            faults.append(f"admin_kubeconfig: days is {admin['days']}, wanted 1 or more")
        if not admin["server"].startswith("https://"):
            faults.append(f"admin_kubeconfig: server is '{admin['server']}', wanted https://address:port")
        if admin["authority"] not in {item["name"] for item in arguments["authorities"]}:
            faults.append(
                f"admin_kubeconfig: authority is '{admin['authority']}', wanted one of the authorities in this task"
            )
    if faults:
        raise CertificateError("; ".join(faults))
    in_order(specs_from(arguments["authorities"]))


class ActionModule(ActionBase):
    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        try:
            result.update(self._make(task_vars or {}))
        except PlainkubeError as error:
            raise AnsibleActionFail(str(error)) from error
        except OSError as error:
            raise AnsibleActionFail(f"{error.filename} on the controller: {error.strerror}") from error
        return result

    def _make(self, task_vars: dict[str, Any]) -> dict[str, Any]:
        arguments = validated(self._task.args, ARGUMENTS)
        check(arguments)
        state_dir = argument_or_variable(
            arguments["state_dir"], "plainkube_state_dir", "state_dir", self._templar, task_vars
        )
        cluster = argument_or_variable(
            arguments["cluster_name"], "plainkube_cluster_name", "cluster_name", self._templar, task_vars
        )
        folder = StateFolder(state_dir)
        check_mode = self._task.check_mode
        maker = StateMaker(folder, datetime.now(timezone.utc), check_mode)
        maker.make_folder()
        with contextlib.nullcontext() if check_mode else folder.lock():
            maker.name_cluster(cluster)
            maker.make_parts()
            maker.make_authorities(specs_from(arguments["authorities"]))
            if arguments["service_account_key"]:
                maker.make_service_account_key()
            if arguments["encryption_key"]:
                maker.make_encryption_key()
            admin = arguments["admin_kubeconfig"]
            if admin:
                issuers = {item["name"]: item["issuer"] for item in arguments["authorities"]}
                spec = AdminSpec(
                    path=admin["path"] or str(folder.file(ADMIN_KUBECONFIG)),
                    server=admin["server"],
                    user=admin["user"],
                    organizations=tuple(admin["organizations"]),
                    lifetime=timedelta(days=admin["days"]),
                    authority=admin["authority"],
                )
                maker.make_admin_kubeconfig(cluster, spec, issuers[spec.authority] or spec.authority)

        result: dict[str, Any] = {
            "changed": any(outcome.reasons for outcome in maker.outcomes),
            "files": [
                {
                    "name": outcome.name,
                    "changed": bool(outcome.reasons),
                    "reasons": list(outcome.reasons),
                    "not_after": outcome.not_after,
                    "fingerprint": outcome.fingerprint,
                }
                for outcome in maker.outcomes
            ],
        }
        if maker.warnings:
            result["warnings"] = maker.warnings
        if self._task.diff:
            result["diff"] = [_diff(outcome) for outcome in maker.outcomes if outcome.reasons]
        return result


def _diff(outcome: Outcome) -> dict[str, str]:
    after = f"{outcome.name}: {', '.join(outcome.reasons)}\n"
    if outcome.not_after:
        after += f"not_after: {outcome.not_after}\n"
    if outcome.fingerprint:
        after += f"sha256: {outcome.fingerprint}\n"
    return {
        "before_header": outcome.name,
        "after_header": outcome.name,
        "before": "",
        "after": after,
    }
