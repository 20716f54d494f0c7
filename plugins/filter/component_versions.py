# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The versions that go together, from data/catalogue.yml."""

from __future__ import annotations

from typing import Any, Callable

from ansible.errors import AnsibleFilterError
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError
from ansible_collections.plainkube.cluster.plugins.module_utils.versions import component_versions

DOCUMENTATION = r"""
name: component_versions
short_description: The version of each component that goes with a version of Kubernetes
version_added: 0.1.0
author: Plainkube contributors (@plainkube)
description:
  - Answers from the matrix in the catalogue C(data/catalogue.yml).
  - A version that is unknown, or that does not go with the version of Kubernetes, is an error.
positional: overrides
options:
  _input:
    description: A version of Kubernetes, such as V(1.37.1).
    type: str
    required: true
  overrides:
    description: Versions to use instead of the matrix' defaults, by component.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Name the version of etcd
  ansible.builtin.debug:
    msg: "{{ ('1.37.1' | plainkube.cluster.component_versions({'etcd': '3.6.14'})).etcd }}"
"""

RETURN = r"""
_value:
  description: >-
    Versions by component: C(kubernetes), C(etcd), C(containerd), C(runc), C(cni-plugins), C(crictl), C(coredns),
    C(pause) and C(agnhost).
  type: dict
"""


def component_versions_filter(version: Any, overrides: Any = None) -> dict[str, str]:
    """The version of each component that goes with a Kubernetes version."""
    try:
        return component_versions(version, overrides)
    except PlainkubeError as error:
        raise AnsibleFilterError(f"component_versions: {error}") from error


class FilterModule:
    """Tell Ansible the name."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filter by name."""
        return {"component_versions": component_versions_filter}
