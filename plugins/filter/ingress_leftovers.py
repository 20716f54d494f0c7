# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filter ingress_leftovers: what the API still has of instances of the ingress controller that are wanted no more."""

from __future__ import annotations

from typing import Any, Callable

from ansible_collections.plainkube.cluster.plugins.module_utils.ingress import leftovers

DOCUMENTATION = r"""
name: ingress_leftovers
short_description: Instances of the ingress controller that are wanted no more
version_added: 0.3.0
author: Plainkube contributors (@plainkube)
description:
  - Compares IngressClasses of this collection with the instances that the inventory wants.
positional: instances, namespace, controller
options:
  _input:
    description: IngressClasses that the API has, of this collection and this controller.
    type: list
    elements: dict
    required: true
  instances:
    description: What P(plainkube.cluster.ingress_instances#filter) returns.
    type: list
    elements: dict
    required: true
  namespace:
    description: Namespace that the instances are in.
    type: str
    required: true
  controller:
    description: Whose instances they are.
    type: str
    choices: [traefik, nginx]
    default: traefik
"""

EXAMPLES = r"""
- name: Show what is to go
  ansible.builtin.debug:
    msg: "{{ classes.resources | plainkube.cluster.ingress_leftovers(cluster_ingress_instances, 'plainkube-ingress') }}"
"""

RETURN = r"""
_value:
  description: Objects to be removed, each with C(apiVersion), C(kind) and C(metadata), in the order of their removal.
  type: list
  elements: dict
"""


class FilterModule:
    """Names the filter of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"ingress_leftovers": leftovers}
