# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Sends the shipped rules and the report's template to the module that audits."""

from __future__ import annotations

from typing import Any

from ansible_collections.plainkube.cluster.plugins.plugin_utils.audit_data import report_template, shipped_rules
from ansible_collections.plainkube.cluster.plugins.plugin_utils.shipped_data import ShippedDataAction


class ActionModule(ShippedDataAction):
    MODULE = "workload_audit"

    def shipped(self) -> dict[str, Any]:
        return {"shipped_rules": shipped_rules(), "report_template": report_template()}
