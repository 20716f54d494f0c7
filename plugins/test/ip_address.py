# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Test ip_address: tells addresses from names."""

from __future__ import annotations

import ipaddress
from typing import Any, Callable

DOCUMENTATION = r"""
name: ip_address
short_description: Is this text an IP address?
version_added: 0.1.0
author: Plainkube contributors (@plainkube)
description:
  - Tells addresses from names, since a certificate holds them apart.
options:
  _input:
    description: The text to look at.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Show the addresses among names, 192.0.2.10
  ansible.builtin.debug:
    msg: "{{ ['api.example.org', '192.0.2.10'] | select('plainkube.cluster.ip_address') }}"
"""

RETURN = r"""
_value:
  description: Whether the text is an IPv4 or IPv6 address.
  type: bool
"""


def is_ip_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


class TestModule:
    """Names the test of this file."""

    __test__ = False  # not a pytest class

    def tests(self) -> dict[str, Callable[[Any], bool]]:
        return {"ip_address": is_ip_address}
