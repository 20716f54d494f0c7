# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filter firewall: what each host must let in."""

from __future__ import annotations

from typing import Any, Callable

from ansible_collections.plainkube.cluster.plugins.module_utils.openings import firewall

DOCUMENTATION = r"""
name: firewall
short_description: What each host of a cluster must let in
version_added: 0.3.0
author: Plainkube contributors (@plainkube)
description:
  - Says for each host of the inventory which ports it must open to whom and what for, as C(docs/firewall.md) does in
    general.
options:
  _input:
    description: What decides about it, C(cluster_traffic).
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Say what firewalls must let in
  ansible.builtin.debug:
    msg: "{{ cluster_traffic | plainkube.cluster.firewall }}"
  run_once: true
"""

RETURN = r"""
_value:
  description: For each host a list of lines.
  type: dict
"""


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"firewall": firewall}
