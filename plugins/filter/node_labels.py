# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filter node_labels: which labels each node of the cluster has."""

from __future__ import annotations

from typing import Any, Callable

from ansible_collections.plainkube.cluster.plugins.module_utils.contract import node_labels

DOCUMENTATION = r"""
name: node_labels
short_description: The labels of every node
version_added: 0.1.0
author: Plainkube contributors (@plainkube)
description:
  - Says which labels the inventory gives each node, with its zone and the roles that kubectl shows.
positional: topology_of_hosts
options:
  _input:
    description: The variables of all hosts (C(hostvars)).
    type: dict
    required: true
  topology_of_hosts:
    description: What P(plainkube.cluster.topology#filter) returns.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Show the labels
  ansible.builtin.debug:
    msg: "{{ hostvars | plainkube.cluster.node_labels(cluster_topology) }}"
"""

RETURN = r"""
_value:
  description: For each node's name a mapping of its labels.
  type: dict
"""


class FilterModule:
    """Names the filter of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"node_labels": node_labels}
