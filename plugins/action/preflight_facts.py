# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Action preflight_facts: calls its module and measures the host's clock around the call."""

from __future__ import annotations

import time
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.action import ActionBase
from ansible_collections.plainkube.cluster.plugins.module_utils.preflight import clock_offset

PORT = {
    "port": {"type": "int", "required": True},
    "address": {"type": "str", "required": True},
    "process": {"type": "str", "required": True},
}
NETWORK = {
    "kind": {"type": "str", "required": True},
    "backend": {"type": "str", "required": True},
    "pod_cidr": {"type": "str", "required": True},
    "pod_cidr_ipv6": {"type": "str", "default": ""},
    "node_cidr_size": {"type": "int", "required": True},
    "node_cidr_size_ipv6": {"type": "int", "default": 0},
    "overhead": {"type": "int", "required": True},
    "mtu": {"type": "int", "required": True},
}
HOST = {
    "etcd": {"type": "bool", "required": True},
    "control_plane": {"type": "bool", "required": True},
    "worker": {"type": "bool", "required": True},
    "address": {"type": "str", "required": True},
    "address_ipv6": {"type": "str", "default": ""},
    "ports": {"type": "list", "elements": "dict", "options": PORT, "default": []},
    "etcd_data_dir": {"type": "str", "default": "/var/lib/etcd"},
    "network": {"type": "dict", "required": True, "options": NETWORK},
    "kernel_modules": {"type": "list", "elements": "str", "default": []},
    "programs": {"type": "list", "elements": "str", "default": []},
    "resolv_conf": {"type": "str", "default": "/etc/resolv.conf"},
    "dns_servers": {"type": "list", "elements": "str", "default": []},
    "dns_cache_address": {"type": "str", "default": ""},
    "dns_service_ip": {"type": "str", "default": ""},
    "minimum_memory_mib": {"type": "int", "required": True},
    "minimum_disk_mib": {"type": "dict", "required": True},
    "minimum_kernel": {"type": "str", "required": True},
    "allow_cgroup_v1": {"type": "bool", "default": False},
    "allow_swap": {"type": "bool", "default": False},
    "maximum_clock_offset_seconds": {"type": "float", "default": 2},
    "expect_time_service": {"type": "bool", "default": True},
    "fsync_p99_warning_milliseconds": {"type": "float", "default": 10},
}
ARGUMENTS = {"host": {"type": "dict", "required": True, "options": HOST}}


class ActionModule(ActionBase):
    _supports_check_mode = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        checked = ArgumentSpecValidator(ARGUMENTS).validate(self._task.args)
        if checked.error_messages:
            raise AnsibleActionFail("plainkube.cluster.preflight_facts: " + "; ".join(checked.error_messages))
        arguments = checked.validated_parameters
        sent = time.time()
        answer = self._execute_module(
            module_name="plainkube.cluster.preflight_facts", module_args=arguments, task_vars=task_vars
        )
        received = time.time()
        result.update(answer)
        if "facts" in answer:
            result["facts"]["asked"] = arguments["host"]
            result["facts"]["clock"] = clock_offset(sent, answer["began"], answer["ended"], received)
        return result
