# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_versions import (
    plan_move,
    ready_for_older,
    removed_flags,
    version_faults,
)


@pytest.mark.parametrize(
    ("versions", "target", "kind"),
    [
        (["3.7.3"], "3.7.3", "none"),
        (["3.7.2", "3.7.2"], "3.7.3", "patch"),
        (["3.7.3"], "3.7.2", "patch"),
        (["3.6.14"], "3.7.3", "up"),
        # Stopped half-way.
        (["3.6.14", "3.7.3"], "3.7.3", "up"),
        (["3.6.14", "3.7.3"], "3.6.14", "down"),
        (["3.7.3"], "3.6.14", "down"),
    ],
)
def test_kind_of_a_move(versions: list[str], target: str, kind: str) -> None:
    assert plan_move(versions, target).kind == kind


@pytest.mark.parametrize(
    ("versions", "target"),
    [
        (["3.3.25"], "3.4.23"),
        (["3.4.23"], "3.5.35"),
        (["3.5.32"], "3.6.14"),
        (["3.6.11"], "3.7.3"),
        (["3.6.14", "3.7.3"], "3.7.3"),
        (["3.6.2"], "3.6.14"),
    ],
)
def test_moves_that_are_let_through(versions: list[str], target: str) -> None:
    assert version_faults(plan_move(versions, target)) == []


@pytest.mark.parametrize(
    ("versions", "target", "said"),
    [
        (["3.5.35"], "3.7.3", "one minor at a time. Move to the newest 3.6 first"),
        (["3.7.3"], "3.5.35", "Move to the newest 3.6 first"),
        (["3.5.31"], "3.6.14", "wanted at least 3.5.32 before the step to 3.6"),
        (["3.5.35", "3.5.16"], "3.6.14", "found etcd 3.5.16, wanted at least 3.5.32"),
        (["3.6.10"], "3.7.3", "wanted at least 3.6.11 before the step to 3.7"),
        (["3.4.23"], "3.5.1", "loses data when it is killed"),
        (["2.3.8"], "3.4.23", "a move between major versions is a migration"),
        (["3.7.3"], "3.8.0", "newer than what this collection knows; wanted at most 3.7"),
        (["3.7.3"], "3.6.14", """-e '{"etcd_allow_downgrade": true}'"""),
        (["3.5.35"], "3.4.23", "the way back to an older minor is a restore"),
    ],
)
def test_moves_that_are_refused(versions: list[str], target: str, said: str) -> None:
    assert said in "\n".join(version_faults(plan_move(versions, target)))


def test_a_meant_step_back_is_let_through_where_etcd_can_do_it() -> None:
    assert version_faults(plan_move(["3.7.3"], "3.6.14"), allow_downgrade=True) == []
    assert version_faults(plan_move(["3.5.35"], "3.4.23"), allow_downgrade=True) != []


@pytest.mark.parametrize(
    ("target", "flags", "removed"),
    [
        ("3.5.35", ["enable-v2", "experimental-x"], []),
        (
            "3.6.14",
            ["enable-v2", "proxy-failure-wait", "experimental-x", "logger"],
            ["enable-v2", "proxy-failure-wait"],
        ),
        ("3.7.3", ["experimental-x", "enable-v2", "logger"], ["enable-v2", "experimental-x"]),
    ],
)
def test_flags_that_are_gone(target: str, flags: list[str], removed: list[str]) -> None:
    assert removed_flags(target, flags) == removed


def test_all_faults_at_once() -> None:
    faults = version_faults(plan_move(["3.5.16"], "3.6.14"), ["enable-v2", "proxy"])
    assert len(faults) == 3


def test_databases_in_an_older_form() -> None:
    assert ready_for_older(["3.6.0", "3.6.0"], "3.6.14")
    assert not ready_for_older(["3.6.0", "3.7.0"], "3.6.14")
    assert not ready_for_older(["3.6.0", None], "3.6.14")
