# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filter ingress_listens: the ports that a host's instances of the ingress controller need."""

from __future__ import annotations

from typing import Any, Callable

from ansible_collections.plainkube.cluster.plugins.module_utils.ingress import listens

DOCUMENTATION = r"""
name: ingress_listens
short_description: Ports of a host that its ingress needs
version_added: 0.3.0
author: Plainkube contributors (@plainkube)
description:
  - Says in the words of M(plainkube.cluster.preflight_facts) what will listen on a host.
positional: instances, host
options:
  _input:
    description: V(traefik), V(nginx) or V(none).
    type: str
    required: true
  instances:
    description: What P(plainkube.cluster.ingress_instances#filter) returns.
    type: list
    elements: dict
    required: true
  host:
    description: Name of the host.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Show the ports
  ansible.builtin.debug:
    msg: "{{ plainkube_ingress | plainkube.cluster.ingress_listens(cluster_ingress_instances, inventory_hostname) }}"
"""

RETURN = r"""
_value:
  description: For each port port, address and process.
  type: list
  elements: dict
"""


class FilterModule:
    """Names the filter of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"ingress_listens": listens}
