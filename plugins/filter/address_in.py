# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filter address_in: one address of a network, by its number."""

from __future__ import annotations

from typing import Any, Callable

from ansible.errors import AnsibleFilterError
from ansible_collections.plainkube.cluster.plugins.module_utils import contract
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError

DOCUMENTATION = r"""
name: address_in
short_description: An address of a network by its number
version_added: 0.1.0
author: Plainkube contributors (@plainkube)
description:
  - Returns the address with the given number in a network.
positional: number
options:
  _input:
    description: A network such as C(10.96.0.0/16).
    type: str
    required: true
  number:
    description: The number of the address; 0 is the network's own.
    type: int
    required: true
"""

EXAMPLES = r"""
- name: Show the API's address inside the cluster, 10.96.0.1
  ansible.builtin.debug:
    msg: "{{ '10.96.0.0/16' | plainkube.cluster.address_in(1) }}"
"""

RETURN = r"""
_value:
  description: The address.
  type: str
"""


def address_in(cidr: str, number: int) -> str:
    try:
        return contract.address_in(cidr, number)
    except PlainkubeError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """Names the filter of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"address_in": address_in}
