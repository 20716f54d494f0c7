# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filter ingress_instances: the instances of the ingress controller with everything that follows from the inventory."""

from __future__ import annotations

from typing import Any, Callable

from ansible_collections.plainkube.cluster.plugins.module_utils.ingress import resolved

DOCUMENTATION = r"""
name: ingress_instances
short_description: The instances of the ingress controller, complete
version_added: 0.3.0
author: Plainkube contributors (@plainkube)
description:
  - Fills in the defaults of each instance, and says on which hosts it runs and whether its class is the default one.
positional: instances, default_class, ingress_hosts
options:
  _input:
    description: V(traefik), V(nginx) or V(none).
    type: str
    required: true
  instances:
    description: The instances as the inventory has them. An empty list is one instance with the defaults.
    type: list
    elements: dict
    required: true
  default_class:
    description: Class of Ingresses that name none; empty for that of the only instance.
    type: str
    required: true
  ingress_hosts:
    description: Hosts of the ingress group, as P(plainkube.cluster.topology#filter) returns them.
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: Show the instances
  ansible.builtin.debug:
    msg: "{{ 'traefik' | plainkube.cluster.ingress_instances([], '', cluster_topology.ingress) }}"
"""

RETURN = r"""
_value:
  description: For each instance all its keys, its hosts with address, and C(default).
  type: list
  elements: dict
"""


class FilterModule:
    """Names the filter of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"ingress_instances": resolved}
