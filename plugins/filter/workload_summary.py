# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filter workload_summary: what a proving workload has shown from one host, in a few lines."""

from __future__ import annotations

from typing import Any, Callable

from ansible_collections.plainkube.cluster.plugins.module_utils.workload import summary

DOCUMENTATION = r"""
name: workload_summary
short_description: What a proving workload has shown from a host
description:
  - Says how many checks passed, how many rules kube-proxy has and why, and which checks do not apply to this cluster.
author:
  - Plainkube contributors (@plainkube)
version_added: 0.3.0
positional: results
options:
  _input:
    description: Name of the host.
    type: str
    required: true
  results:
    description: What M(plainkube.cluster.health) returned as C(results).
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: Say what was proven
  ansible.builtin.debug:
    msg: "{{ inventory_hostname | plainkube.cluster.workload_summary(answers.results) }}"
"""

RETURN = r"""
_value:
  description: Lines for people.
  type: list
  elements: str
"""


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"workload_summary": summary}
