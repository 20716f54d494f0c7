# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filter without_empty: takes entries out of a mapping that somebody emptied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

DOCUMENTATION = r"""
name: without_empty
short_description: A mapping without its empty entries
version_added: 0.1.0
author: Plainkube contributors (@plainkube)
description:
  - Lets an inventory take a default out of a mapping by giving it an empty value.
options:
  _input:
    description: The mapping.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Leave out what is empty
  ansible.builtin.debug:
    msg: "{{ {'vm.swappiness': '', 'vm.overcommit_memory': 0} | plainkube.cluster.without_empty }}"
"""

RETURN = r"""
_value:
  description: The mapping without entries whose value is null or an empty text. Zero and false stay.
  type: dict
"""


def without_empty(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if value is not None and value != ""}


class FilterModule:
    """Names the filter of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"without_empty": without_empty}
