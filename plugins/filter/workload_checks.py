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
  - Turns what M(plainkube.cluster.verify_workload) returned into definitions for M(plainkube.cluster.health) on one
    host.
author:
  - Plainkube contributors (@plainkube)
version_added: 0.1.0
positional: view
options:
  _input:
    description: What the module returned, with C(pods), C(service_ip) and C(node_port).
    type: dict
    required: true
  view:
    description:
      - This host's C(node); C(nodes) with name and address; C(service_name) and C(dns_ip); C(namespace); C(host_port);
        C(outside), a list of host:port; C(ingress), instances as C(cluster_ingress_instances) has them.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Show what is asked
  ansible.builtin.debug:
    msg: "{{ running | plainkube.cluster.workload_checks(view) }}"
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
