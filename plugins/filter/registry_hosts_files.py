# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filter registry_hosts_files: registry mirrors as files of containerd."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable

from ansible.errors import AnsibleFilterError
from ansible_collections.plainkube.cluster.plugins.module_utils import registries
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError

DOCUMENTATION = r"""
name: registry_hosts_files
short_description: Registry mirrors as files of containerd
version_added: 0.1.0
author: Plainkube contributors (@plainkube)
description:
  - Turns registry mirrors into items of M(plainkube.cluster.files), in the layout that containerd reads.
options:
  _input:
    description:
      - Base URLs of mirrors, in the order in which they are asked, by registry name. V(_default) stands for all others.
      - A URL with C(/v2) in its path is the whole base of the registry API, as Harbor's proxy projects need it.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Show what containerd will read
  ansible.builtin.debug:
    msg: "{{ {'registry.k8s.io': ['https://mirror.example.org/v2/k8s']} | plainkube.cluster.registry_hosts_files }}"
"""

RETURN = r"""
_value:
  description: Items with path, mode and content or state.
  type: list
  elements: dict
"""


def registry_hosts_files(mirrors: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    try:
        return registries.registry_hosts_files(mirrors)
    except PlainkubeError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """Names the filter of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"registry_hosts_files": registry_hosts_files}
