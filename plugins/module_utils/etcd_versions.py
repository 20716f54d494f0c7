# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which moves from one version of etcd to another are safe, and why others are not. Pure.

The rules are those of etcd's upgrade guides and post-mortems (https://etcd.io/docs, "Upgrading etcd clusters"): one
minor at a time, all members well and of one kind, and for some moves a patch release below which data was lost.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_cluster import (
    View,
    data_agree,
    minor_of,
    parse_version,
    problems,
)

Minor = tuple[int, int]

# Members older than this must not make the step to that minor: 3.5's learners and removed members came back to life
# from the old store (etcd-io/etcd 19557, 20793, 20967, 21849); before 3.6.11 a step to 3.7 was not tested upstream.
OLDEST_FOR: dict[Minor, str] = {(3, 6): "3.5.32", (3, 7): "3.6.11"}
# A process that is killed under load may come back with a member that differs (fixed in 3.5.3).
HARMFUL = ("3.5.0", "3.5.1", "3.5.2")
# The first minor that can lead a cluster back to the one before.
FIRST_WITH_DOWNGRADE: Minor = (3, 6)
NEWEST: Minor = (3, 7)
# Flags that a minor no longer knows: its process does not start with them. A star stands for any ending.
REMOVED_FLAGS: dict[Minor, tuple[str, ...]] = {
    (3, 6): ("enable-v2", "experimental-enable-v2v3", "proxy*"),
    (3, 7): ("experimental-*",),
}


@dataclass(frozen=True)
class Move:
    """A change of version. kind: none, patch, up or down."""

    kind: str
    versions: tuple[str, ...]
    target: str


def plan_move(versions: Iterable[str], target: str) -> Move:
    """Return what it takes to bring members of these versions to the target.

    A move that stopped half-way is judged by the members that still have it to make.
    """
    present = tuple(sorted(set(versions), key=parse_version))
    steps = [(parse_version(version), version) for version in present if version != target]
    wanted = parse_version(target)
    if not steps:
        return Move("none", present, target)
    if any(step[:2] > wanted[:2] for step, _version in steps):
        return Move("down", present, target)
    return Move("up" if any(step[:2] < wanted[:2] for step, _version in steps) else "patch", present, target)


def removed_flags(target: str, flags: Iterable[str]) -> list[str]:
    """Return those of these flags (without dashes in front) that the target no longer knows."""
    wanted = parse_version(target)[:2]
    patterns = [pattern for minor, names in REMOVED_FLAGS.items() if minor <= wanted for pattern in names]
    return sorted(
        flag
        for flag in flags
        if any(flag.startswith(pattern[:-1]) if pattern.endswith("*") else flag == pattern for pattern in patterns)
    )


def _text(minor: Minor) -> str:
    return f"{minor[0]}.{minor[1]}"


def version_faults(move: Move, flags: Iterable[str] = (), allow_downgrade: bool = False) -> list[str]:
    """Return why a move is refused as far as versions and flags tell, each with what to do instead."""
    if move.kind == "none":
        return []
    faults = []
    wanted = parse_version(move.target)
    minor = wanted[:2]
    if move.target in HARMFUL:
        faults.append(f"etcd {move.target} loses data when it is killed under load; wanted 3.5.3 or newer")
    if minor > NEWEST:
        faults.append(f"etcd {move.target} is newer than what this collection knows; wanted at most {_text(NEWEST)}")
    for version in move.versions:
        present = parse_version(version)
        if version == move.target:
            continue
        if present[0] != wanted[0]:
            faults.append(f"found etcd {version}; a move between major versions is a migration: see migrate-etcd.yml")
        elif abs(present[1] - wanted[1]) > 1:
            middle = present[1] + (1 if wanted[1] > present[1] else -1)
            faults.append(
                f"found etcd {version}, wanted {move.target}: etcd moves one minor at a time. "
                f"Move to the newest {_text((wanted[0], middle))} first"
            )
        elif present[1] < wanted[1] and minor in OLDEST_FOR and present < parse_version(OLDEST_FOR[minor]):
            faults.append(
                f"found etcd {version}, wanted at least {OLDEST_FOR[minor]} before the step to {_text(minor)}: older "
                f"ones bring removed members back to life. Move to the newest {_text(present[:2])} first"
            )
        elif present[1] > wanted[1]:
            faults += _downgrade_faults(version, present[:2], move.target, allow_downgrade)
    faults += [
        f"the flag --{flag} is set and etcd {move.target} does not know it any more: take it out of "
        "etcd_extra_arguments (its successor is a flag without 'experimental' or an entry of --feature-gates)"
        for flag in removed_flags(move.target, flags)
    ]
    return faults


def _downgrade_faults(version: str, present: Minor, target: str, allowed: bool) -> list[str]:
    if present < FIRST_WITH_DOWNGRADE:
        return [
            f"found etcd {version}, wanted {target}: before {_text(FIRST_WITH_DOWNGRADE)} the way back to an older "
            "minor is a restore of the snapshot that was taken before (restore-etcd.yml)"
        ]
    if not allowed:
        return [
            f"found etcd {version}, wanted {target}, which is older. If that is meant, say so: "
            "-e '{\"etcd_allow_downgrade\": true}'"
        ]
    return []


def cluster_faults(view: View) -> list[str]:
    """Return what about a cluster's present state forbids a move of any kind.

    Members of two minors are the middle of a move and no fault.
    """
    faults = [text for text in problems(view) if "run different minor versions" not in text]
    faults += [
        f"{seen.title} is a learner: promote or remove it before versions move" for seen in view.members if seen.learner
    ]
    faults += [
        f"{seen.title} has never started: start or remove it before versions move"
        for seen in view.members
        if seen.member and not seen.member.name
    ]
    if data_agree(view) is None:
        faults.append("the members' data could not be compared: see that all of them answer, and run again")
    return faults


def settled(view: View) -> bool:
    """Return whether the cluster has taken note of its members' version, which its leader does some seconds later."""
    minors = {minor_of(seen.status.version) for seen in view.answered if seen.status}
    return not view.cluster_version or minor_of(view.cluster_version) == min(minors)


def ready_for_older(storage_versions: Iterable[str | None], target: str) -> bool:
    """Return whether all members have written their databases in the form that the older target reads."""
    wanted = parse_version(target)[:2]
    return all(version is not None and parse_version(version)[:2] <= wanted for version in storage_versions)
