# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Use against limits of ResourceQuotas, as rows and as a table. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError
from ansible_collections.plainkube.cluster.plugins.module_utils.quantities import format_quantity, parse_quantity
from ansible_collections.plainkube.cluster.plugins.module_utils.tenants import ALIASES, TENANT_LABEL

LEVELS = ("ok", "notice", "warning", "full")
UNKNOWN = "unknown"
COLUMNS = ("level", "percent", "tenant", "namespace", "quota", "resource", "used", "hard")
Row = dict[str, Any]


def check_thresholds(thresholds: Sequence[int]) -> None:
    """Raise PlainkubeError unless there are three percentages that rise."""
    if len(thresholds) != len(LEVELS) - 1 or list(thresholds) != sorted(set(thresholds)) or thresholds[0] <= 0:
        raise PlainkubeError(
            f"thresholds: found {', '.join(map(str, thresholds)) or 'nothing'}; wanted three percentages that rise,"
            " for notice, warning and full, such as 80, 90, 100"
        )


def rows(
    things: Iterable[Mapping[str, Any]],
    thresholds: Sequence[int],
    budgets: Mapping[str, Mapping[str, Fraction]],
) -> tuple[list[Row], list[Row]]:
    """Return the rows of quotas and those of tenants, the fullest first."""
    found: list[Row] = []
    # By tenant and resource: what is used, what is allowed, and a text that shows the family of suffixes.
    sums: dict[tuple[str, str], tuple[Fraction, Fraction, str]] = {}
    for thing in things:
        metadata, spec, status = thing["metadata"], thing.get("spec", {}), thing.get("status", {})
        tenant = metadata.get("labels", {}).get(TENANT_LABEL, "")
        for resource, hard in spec.get("hard", {}).items():
            used = status.get("used", {}).get(resource)
            known = None if used is None else parse_quantity(used)
            row = {"tenant": tenant, "namespace": metadata["namespace"], "quota": metadata["name"]}
            found.append(
                {**row, "resource": resource, **_measured(known, parse_quantity(hard), used or "", hard, thresholds)}
            )
            if tenant and known is not None and not spec.get("scopes") and "scopeSelector" not in spec:
                key = (tenant, ALIASES.get(resource, resource))
                before = sums.get(key, (Fraction(0), Fraction(0), ""))
                sums[key] = (before[0] + known, before[1] + parse_quantity(hard), before[2] or hard)
    totals = []
    for (tenant, resource), (used_sum, hard_sum, like) in sums.items():
        limit = budgets.get(tenant, {}).get(resource, hard_sum)
        words = (format_quantity(used_sum, like), format_quantity(limit, like))
        totals.append({"tenant": tenant, "resource": resource, **_measured(used_sum, limit, *words, thresholds)})
    return sorted(found, key=_pressure), sorted(totals, key=_pressure)


def _measured(used: Fraction | None, hard: Fraction, used_text: str, hard_text: str, thresholds: Sequence[int]) -> Row:
    """Return the part of a row that is measured. What must not be used at all is full once anything is."""
    percent: float | None = None
    level = UNKNOWN
    if used is not None:
        exact = 100 * used / hard if hard else Fraction(100 if used else 0)
        percent = round(float(exact), 1)
        level = LEVELS[sum(exact >= threshold for threshold in thresholds)]
    return {"used": used_text, "hard": hard_text, "percent": percent, "level": level}


def _pressure(row: Row) -> tuple[Any, ...]:
    percent = -1.0 if row["percent"] is None else row["percent"]
    return -percent, row["tenant"], row.get("namespace", ""), row.get("quota", ""), row["resource"]


def levels(found: Iterable[Row]) -> dict[str, int]:
    """Return how many rows have each level."""
    counts = dict.fromkeys((*LEVELS, UNKNOWN), 0)
    for row in found:
        counts[row["level"]] += 1
    return counts


def table(found: Sequence[Row]) -> list[str]:
    """Return rows as lines with even columns."""
    cells = [COLUMNS, *(tuple(_cell(row[column]) for column in COLUMNS) for row in found)]
    widths = [max(len(line[number]) for line in cells) for number in range(len(COLUMNS))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells]


def _cell(value: Any) -> str:
    if value is None or value == "":
        return "-"
    return f"{value:.1f}" if isinstance(value, float) else str(value)
