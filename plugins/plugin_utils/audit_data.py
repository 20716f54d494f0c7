# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The audit's data files, which modules cannot read where they run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

DATA = Path(__file__).resolve().parents[2] / "data"


def shipped_rules() -> list[dict[str, Any]]:
    """Return the rules that the collection ships."""
    rules: list[dict[str, Any]] = yaml.safe_load((DATA / "audit-rules.yml").read_text(encoding="utf-8"))["rules"]
    return rules


def report_template() -> str:
    """Return the Jinja2 template of the HTML report."""
    return (DATA / "audit-report.html.j2").read_text(encoding="utf-8")
