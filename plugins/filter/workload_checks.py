# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filter workload_checks: what a proving workload must answer, as definitions for the health module."""

from __future__ import annotations

from typing import Any, Callable

from ansible_collections.plainkube.cluster.plugins.module_utils.workload import workload_checks

DOCUMENTATION = r"""
name: workload_checks
short_description: What a proving workload must answer, as definitions of checks
description:
  - Turns the pods and the Service of M(plainkube.cluster.verify_workload) into definitions for
    M(plainkube.cluster.health).
author:
  - Plainkube contributors (@plainkube)
version_added: 0.1.0
positional: service_ip, service_name, dns_ip
options:
  _input:
    description: The pods, each with C(name), C(node) and C(ip).
    type: list
    elements: dict
    required: true
  service_ip:
    description: Address of the Service.
    type: str
    required: true
  service_name:
    description: Full name of the Service in the cluster's DNS.
    type: str
    required: true
  dns_ip:
    description: Address of the cluster's DNS.
    type: str
    required: true
"""

EXAMPLES = r"""
checks: "{{ pods | plainkube.cluster.workload_checks('10.96.7.7', 'probe.verify.svc.cluster.local', '10.96.0.10') }}"
"""

RETURN = r"""
_value:
  description: Definitions of checks by name.
  type: dict
"""


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"workload_checks": workload_checks}
