# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filter edge_services: the services of the edge with everything filled in."""

from __future__ import annotations

from typing import Any, Callable

from ansible_collections.plainkube.cluster.plugins.module_utils.edge import services

DOCUMENTATION = r"""
name: edge_services
short_description: Services of the edge with everything filled in
version_added: 0.3.0
author: Plainkube contributors (@plainkube)
description:
  - Fills in what C(plainkube_edge_services) leaves out, and the servers that the inventory names.
positional: topology, api_port
options:
  _input:
    description: The services, as in C(plainkube_edge_services).
    type: list
    elements: dict
    required: true
  topology:
    description: The cluster's hosts, as P(plainkube.cluster.topology#filter) returns them.
    type: dict
    required: true
  api_port:
    description: Port of the API servers.
    type: int
    required: true
"""

EXAMPLES = r"""
- name: Show where traffic goes
  ansible.builtin.debug:
    msg: "{{ plainkube_edge_services | plainkube.cluster.edge_services(cluster_topology, 6443) }}"
"""

RETURN = r"""
_value:
  description:
    - The services with all their keys; beside them C(mode) of haproxy, C(listener) (address, port and process),
      C(dynamic) (whether servers follow the cluster), C(servers) (name, address and port of those that
      the inventory names; what follows the cluster begins with them),
      C(watched) (what the unit edge-backends has to know) and the C(path) of each certificate on the host.
  type: list
  elements: dict
"""


class FilterModule:
    """Names the filter of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"edge_services": services}
