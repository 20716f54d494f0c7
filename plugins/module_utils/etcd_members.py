# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What has to be done so that a cluster has a member, gives it its vote or has it no longer; and in which order members
are defragmented. Pure: the modules do it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_client import EtcdError
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_cluster import (
    LAG_AT_MOST,
    Member,
    Seen,
    View,
    add_refusal,
    data_agree,
    fragmentation,
    lag,
    minor_of,
    promote_refusal,
    remove_refusal,
)

PRESENT, PROMOTED, ABSENT = "present", "promoted", "absent"
FIRST_WITH_LEARNERS = (3, 4)


@dataclass(frozen=True)
class Wanted:
    """What a cluster's list of members should say of one of them."""

    state: str
    name: str = ""
    peer_urls: tuple[str, ...] = ()
    learner: bool = True

    @property
    def title(self) -> str:
        """How people are told of it."""
        return " ".join([*([self.name] if self.name else []), *self.peer_urls])


@dataclass(frozen=True)
class Step:
    """One change to the list of members: add, promote or remove, or nothing (empty)."""

    action: str
    seen: Seen | None = None


def wanted_faults(wanted: Wanted) -> list[str]:
    """Return what is wrong with what is wanted."""
    faults = []
    if not wanted.name and not wanted.peer_urls:
        faults.append("name or peer_urls is needed: which member is it?")
    if wanted.state == PRESENT and not wanted.peer_urls:
        faults.append("peer_urls is needed for state present: where will the others find the member?")
    return faults


def plan_member(view: View, wanted: Wanted) -> Step:
    """Return the change that is needed. Raises EtcdError if it must not be done now."""
    seen = find_member(view, wanted)
    if wanted.state == ABSENT:
        if seen is None:
            return Step("")
        _refuse(f"{seen.title} must not be removed", remove_refusal(view, seen))
        return Step("remove", seen)
    if wanted.state == PROMOTED:
        if seen is None:
            known = ", ".join(other.title for other in view.members)
            raise EtcdError(f"there is no member {wanted.title} to promote; the members are {known}: add it first")
        return Step("promote", seen) if seen.learner else Step("")
    if seen is not None:
        return Step("")
    kind = "learner" if wanted.learner else "member with a vote"
    if wanted.learner and any(
        seen.status and minor_of(seen.status.version) < FIRST_WITH_LEARNERS for seen in view.answered
    ):
        raise EtcdError(f"{wanted.title} cannot be added as a learner: etcd knows learners from 3.4 on: learner: false")
    _refuse(f"{wanted.title} must not be added as {kind}", add_refusal(view, wanted.learner))
    return Step("add")


def find_member(view: View, wanted: Wanted) -> Seen | None:
    """Return the member that is meant. Raises EtcdError if name and URLs do not belong together."""
    by_name = view.find(name=wanted.name) if wanted.name else None
    by_url = view.find(peer_urls=wanted.peer_urls) if wanted.peer_urls else None
    seen = by_url or by_name
    if seen is None or seen.member is None:
        return None
    if wanted.name and seen.name and seen.name != wanted.name:
        raise EtcdError(f"{', '.join(wanted.peer_urls)} is member {seen.title}, not {wanted.name}: name the right one")
    if wanted.peer_urls and set(seen.member.peer_urls) != set(wanted.peer_urls):
        raise EtcdError(
            f"member {seen.title} has the peer URLs {', '.join(seen.member.peer_urls)}, wanted "
            f"{', '.join(wanted.peer_urls)}: remove the old one first (state: absent with its name alone), then add"
        )
    return seen


def promotion_refusal(view: View, wanted: Wanted) -> str:
    """Return why a learner cannot be promoted yet, empty if it can, or has its vote already."""
    seen = find_member(view, wanted)
    if seen is None:
        return f"{wanted.title} is no member any more"
    return promote_refusal(view, seen) if seen.learner else ""


def _refuse(what: str, refusal: str) -> None:
    if refusal:
        raise EtcdError(f"{what}: {refusal}")


def members_after(members: Sequence[Member], step: Step, wanted: Wanted) -> tuple[Member, ...]:
    """Return the list of members as a step will leave it. A member that is to be added has no id yet."""
    own = step.seen.id if step.seen else 0
    if step.action == "remove":
        return tuple(member for member in members if member.id != own)
    if step.action == "promote":
        return tuple(
            Member(member.id, member.name, member.peer_urls, member.client_urls) if member.id == own else member
            for member in members
        )
    if step.action == "add":
        return (*members, Member(0, "", wanted.peer_urls, learner=wanted.learner))
    return tuple(members)


def initial_cluster(members: Sequence[Member], wanted: Wanted) -> str:
    """Return the value of --initial-cluster with which the wanted member has to start. Others that never started have
    no name that could stand there."""
    pairs = []
    for member in members:
        name = member.name or (wanted.name if set(member.peer_urls) & set(wanted.peer_urls) else "")
        pairs += [f"{name}={url}" for url in member.peer_urls if name]
    return ",".join(pairs)


def describe(members: Sequence[Member]) -> list[str]:
    """Return one line for each member, for people and for diffs."""
    return [
        f"{member.name or '(not started)'} {', '.join(member.peer_urls)}{' learner' if member.learner else ''}"
        for member in members
    ]


# --- Defragmentation --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """A member, how much of its database file holds nothing, and why it is left alone, if it is."""

    seen: Seen
    size: int
    part: float
    left_alone: str


def candidates(view: View, min_fragmentation: float, min_size: int) -> list[Candidate]:
    """Return all members that answer, those to be defragmented in the order in which that is to be done.

    Followers come first and the leader last, so that leadership moves once, to one that is done.
    """
    found = []
    for seen in view.answered:
        status = seen.status
        part = fragmentation(status) if status else None
        size = status.db_size if status else 0
        if seen.learner:
            reason = "it is a learner"
        elif part is None:
            reason = "its version does not tell how much of its file is in use"
        elif size < min_size:
            reason = f"its file has {size} bytes, wanted at least {min_size}"
        elif part < min_fragmentation:
            reason = f"{part:.0%} of its file hold nothing, wanted at least {min_fragmentation:.0%}"
        else:
            reason = ""
        found.append(Candidate(seen, size, part or 0.0, reason))
    leader = view.leader
    return sorted(found, key=lambda one: (leader is not None and one.seen.id == leader.id, one.seen.name))


def next_leader(view: View) -> Seen:
    """Return the member that is to lead while the leader is being defragmented. Raises EtcdError if there is none."""
    leader = view.leader
    able = [seen for seen in view.voters if seen.healthy and not (leader and seen.id == leader.id)]
    if not able:
        raise EtcdError("there is no healthy follower that could lead")
    return min(able, key=lambda seen: (lag(view, seen) or 0, seen.name))


def defragment_refusal(view: View) -> str:
    """Return why no member should be defragmented now, empty if nothing speaks against it."""
    if len(view.cluster_ids) > 1 or view.strangers:
        return "the endpoints belong to more than one cluster"
    ill = [f"{seen.title}: {seen.health_reason or 'no reason given'}" for seen in view.voters if not seen.healthy]
    if ill:
        return f"not all members are healthy ({'; '.join(ill)})"
    behind = [seen.title for seen in view.voters if (lag(view, seen) or 0) > LAG_AT_MOST]
    if behind:
        return f"{', '.join(behind)} has not caught up with the leader"
    if view.leader is None:
        return "there is no leader"
    if any(alarm.kind != "NOSPACE" for alarm in view.alarms):
        return "an alarm is on: " + ", ".join(sorted({alarm.kind for alarm in view.alarms}))
    if data_agree(view) is False:
        return "the members' data differ"
    return ""
