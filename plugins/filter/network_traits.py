# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filter network_traits: what follows from the choice of a pod network."""

from __future__ import annotations

from typing import Any, Callable

from ansible_collections.plainkube.cluster.plugins.module_utils.networks import network_traits

DOCUMENTATION = r"""
name: network_traits
short_description: What follows from the choice of a pod network
version_added: 0.3.0
author: Plainkube contributors (@plainkube)
description:
  - Says how many bytes a network adds to packets between hosts, which kernel modules it needs, which units it runs on
    a node and by which named checks those are known to be well.
positional: backend, dual_stack
options:
  _input:
    description: The network, as in C(plainkube_network).
    type: str
    required: true
  backend:
    description: How flannel carries packets, as in C(plainkube_network_backend).
    type: str
    required: true
  dual_stack:
    description: Whether pods have IPv6 addresses too.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Show how many bytes a tunnel costs
  ansible.builtin.debug:
    msg: "{{ ('flannel' | plainkube.cluster.network_traits('vxlan')).overhead }}"
"""

RETURN = r"""
_value:
  description: >-
    A mapping with C(overhead) in bytes, C(overhead_unknown_to_it), those of them that the network leaves no room for
    by itself, and lists of C(kernel_modules), C(units) and C(checks).
  type: dict
"""


class FilterModule:
    """Names the filter of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"network_traits": network_traits}
