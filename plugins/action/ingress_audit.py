# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Sends what is looked for, what Traefik makes of annotations and the report's template to the module."""

from __future__ import annotations

from typing import Any

from ansible_collections.plainkube.cluster.plugins.plugin_utils.audit_data import (
    ingress_annotations,
    ingress_rules,
    report_template,
)
from ansible_collections.plainkube.cluster.plugins.plugin_utils.shipped_data import ShippedDataAction


class ActionModule(ShippedDataAction):
    MODULE = "ingress_audit"

    def shipped(self) -> dict[str, Any]:
        return {
            "shipped_rules": ingress_rules(),
            "annotations": ingress_annotations(),
            "report_template": report_template(),
        }
