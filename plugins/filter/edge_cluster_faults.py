# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filter edge_cluster_faults: what the cluster lacks for the services of the edge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable

from ansible_collections.plainkube.cluster.plugins.module_utils.edge import cluster_faults

DOCUMENTATION = r"""
name: edge_cluster_faults
short_description: What the cluster lacks for the services of the edge
version_added: 0.3.0
author: Plainkube contributors (@plainkube)
description:
  - Compares services whose backends are a Service of the cluster with the Services that the API has.
positional: found
options:
  _input:
    description: The services, as P(plainkube.cluster.edge_services#filter) returns them.
    type: list
    elements: dict
    required: true
  found:
    description: Services of the API.
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: See that the cluster has the Services
  ansible.builtin.assert:
    that: cluster_edge_services | plainkube.cluster.edge_cluster_faults(services_found) | length == 0
"""

RETURN = r"""
_value:
  description: A sentence for each fault, with what was found, what was wanted and what to do.
  type: list
  elements: str
"""


def edge_cluster_faults(services: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> list[str]:
    named = {f"{item['metadata']['namespace']}/{item['metadata']['name']}": item for item in found}
    return cluster_faults(services, named)


class FilterModule:
    """Names the filter of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"edge_cluster_faults": edge_cluster_faults}
