# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filter topology: the cluster's hosts as data."""

from __future__ import annotations

from typing import Any, Callable

from ansible_collections.plainkube.cluster.plugins.module_utils.contract import topology

DOCUMENTATION = r"""
name: topology
short_description: A cluster's hosts by what they are for
version_added: 0.1.0
author: Plainkube contributors (@plainkube)
description:
  - Turns hostvars and groups into lists of hosts, so that no role looks into the variables of other hosts itself.
  - >-
    The address of a host is its C(plainkube_address), else its C(ansible_host), else its name.
    Role defaults of other hosts cannot be seen in hostvars, hence this rule here.
positional: groups, etcd_group, control_plane_group, workers_group, ingress_group, edge_group
options:
  _input:
    description: The variables of all hosts (C(hostvars)).
    type: dict
    required: true
  groups:
    description: The groups of the inventory (C(groups)).
    type: dict
    required: true
  etcd_group:
    description: Name of the group with the etcd members.
    type: str
    required: true
  control_plane_group:
    description: Name of the group with the control-plane hosts.
    type: str
    required: true
  workers_group:
    description: Name of the group with the hosts that take workloads.
    type: str
    required: true
  ingress_group:
    description: Name of the group with the nodes that run the ingress controller.
    type: str
    default: ingress
  edge_group:
    description: Name of the group with the hosts outside the cluster that pass traffic on to it.
    type: str
    default: edge
"""

EXAMPLES = r"""
- name: Name the etcd members
  ansible.builtin.debug:
    msg: "{{ (hostvars | plainkube.cluster.topology(groups, 'etcd', 'control_plane', 'workers')).etcd }}"
"""

RETURN = r"""
_value:
  description:
    - Lists of hosts with C(name), C(address), C(address_ipv6) and C(zone), sorted by name, under the keys C(etcd),
      C(control_plane), C(workers), C(nodes) (control plane and workers, each host once), C(ingress), C(edge) and
      C(all), in which the hosts of the edge are not.
    - A group that the inventory lacks gives an empty list.
  type: dict
"""


class FilterModule:
    """Names the filter of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"topology": topology}
