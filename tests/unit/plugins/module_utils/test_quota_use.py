# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Use against limits, the fullest first."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError
from ansible_collections.plainkube.cluster.plugins.module_utils.quota_use import check_thresholds, levels, rows, table

THRESHOLDS = [80, 90, 100]


def quota(
    namespace: str, tenant: str, hard: dict[str, str], used: dict[str, str] | None, **spec: Any
) -> dict[str, Any]:
    labels = {"plainkube.io/tenant": tenant} if tenant else {}
    metadata = {"namespace": namespace, "name": "compute", "labels": labels}
    return {"metadata": metadata, "spec": {"hard": hard, **spec}, "status": {"used": used} if used is not None else {}}


def test_rows_are_sorted_by_pressure() -> None:
    found, totals = rows(
        [
            quota("a", "shop", {"pods": "10", "requests.memory": "1Gi"}, {"pods": "5", "requests.memory": "972Mi"}),
            quota("b", "shop", {"pods": "10", "requests.memory": "1Gi"}, {"pods": "10", "requests.memory": "0"}),
            quota("c", "", {"services.nodeports": "0"}, {"services.nodeports": "0"}),
            quota("d", "late", {"pods": "10"}, None),
            quota("e", "shop", {"pods": "4"}, {"pods": "4"}, scopes=["Terminating"]),
        ],
        THRESHOLDS,
        {"shop": {"pods": Fraction(15)}},
    )
    assert [(row["namespace"], row["resource"], row["percent"], row["level"]) for row in found] == [
        ("b", "pods", 100.0, "full"),
        ("e", "pods", 100.0, "full"),
        ("a", "requests.memory", 94.9, "warning"),
        ("a", "pods", 50.0, "ok"),
        ("c", "services.nodeports", 0.0, "ok"),
        ("b", "requests.memory", 0.0, "ok"),
        ("d", "pods", None, "unknown"),
    ]
    assert [(row["resource"], row["used"], row["hard"], row["level"]) for row in totals] == [
        ("pods", "15", "15", "full"),
        ("requests.memory", "972Mi", "2Gi", "ok"),
    ]
    assert levels(found) == {"ok": 3, "notice": 0, "warning": 1, "full": 2, "unknown": 1}


@pytest.mark.parametrize(("used", "level"), [("79999m", "ok"), ("80", "notice"), ("90", "warning"), ("1e2", "full")])
def test_a_threshold_is_met_exactly(used: str, level: str) -> None:
    (row,), _totals = rows([quota("a", "t", {"requests.cpu": "100"}, {"requests.cpu": used})], THRESHOLDS, {})
    assert row["level"] == level


def test_what_must_not_be_used_at_all_is_full_once_anything_is() -> None:
    (row,), _totals = rows([quota("a", "t", {"pods": "0"}, {"pods": "1"})], THRESHOLDS, {})
    assert (row["percent"], row["level"]) == (100.0, "full")


def test_the_table_has_even_columns() -> None:
    found, _totals = rows([quota("namespace", "", {"pods": "10"}, {"pods": "9"})], THRESHOLDS, {})
    assert table(found) == [
        "level    percent  tenant  namespace  quota    resource  used  hard",
        "warning  90.0     -       namespace  compute  pods      9     10",
    ]


@pytest.mark.parametrize("thresholds", [[], [80], [90, 80, 100], [80, 80, 90], [0, 1, 2]])
def test_thresholds_have_to_rise(thresholds: list[int]) -> None:
    with pytest.raises(PlainkubeError, match=r"thresholds: found .*; wanted three percentages that rise"):
        check_thresholds(thresholds)
