# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The audits' data files, which modules cannot read where they run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

DATA = Path(__file__).resolve().parents[2] / "data"


def shipped_rules() -> list[dict[str, Any]]:
    """Return the rules of the workload audit."""
    rules: list[dict[str, Any]] = document("audit-rules.yml")["rules"]
    return rules


def ingress_rules() -> list[dict[str, Any]]:
    """Return what the audit of Ingresses looks for."""
    rules: list[dict[str, Any]] = document("ingress-rules.yml")["rules"]
    return rules


def ingress_annotations() -> dict[str, Any]:
    """Return what Traefik makes of the annotations of Ingresses."""
    return document("ingress-annotations.yml")


def report_template() -> str:
    """Return the Jinja2 template of the HTML report."""
    return (DATA / "audit-report.html.j2").read_text(encoding="utf-8")


def document(name: str) -> dict[str, Any]:
    """Return what a data file holds."""
    content: dict[str, Any] = yaml.safe_load((DATA / name).read_text(encoding="utf-8"))
    return content
