# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filter ingress_requests: the requests that show that a host serves its instances of the ingress controller."""

from __future__ import annotations

from typing import Any, Callable

from ansible_collections.plainkube.cluster.plugins.module_utils.ingress import requests

DOCUMENTATION = r"""
name: ingress_requests
short_description: Requests that prove a host's ingress
version_added: 0.3.0
author: Plainkube contributors (@plainkube)
description:
  - Says what to ask a host for to see that each of its instances is alive and has loaded its routes.
positional: host
options:
  _input:
    description: What P(plainkube.cluster.ingress_instances#filter) returns.
    type: list
    elements: dict
    required: true
  host:
    description: The host with its name and address.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Show what is asked
  ansible.builtin.debug:
    msg: "{{ cluster_ingress_instances | plainkube.cluster.ingress_requests(cluster_topology.ingress[0]) }}"
"""

RETURN = r"""
_value:
  description: For each request url and status, and host where a name must be asked for.
  type: list
  elements: dict
"""


class FilterModule:
    """Names the filter of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"ingress_requests": requests}
