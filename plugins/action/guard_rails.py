# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Sends the shipped rules to the module that makes guard rails of them."""

from __future__ import annotations

from typing import Any

from ansible_collections.plainkube.cluster.plugins.plugin_utils.audit_data import shipped_rules
from ansible_collections.plainkube.cluster.plugins.plugin_utils.shipped_data import ShippedDataAction


class ActionModule(ShippedDataAction):
    MODULE = "guard_rails"

    def shipped(self) -> dict[str, Any]:
        return {"shipped_rules": shipped_rules()}
