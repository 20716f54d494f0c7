# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What follows from what the members of an etcd cluster say about themselves. Pure: etcd_cluster_io.py asks them.

A member that says it is healthy proves that it has a leader and can commit. It proves nothing about its data: only
HashKV of all members at one revision, and revisions that fit the raft log, show that they hold the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_client import EtcdError, as_int

# A member this many raft entries behind its leader is not caught up. A busy cluster is always a few apart.
LAG_AT_MOST = 1000
NO_LEADER = "no leader"
ALARM_KINDS = {1: "NOSPACE", 2: "CORRUPT"}

Version = tuple[int, int, int]


@dataclass(frozen=True)
class Member:
    """An entry of the cluster's list of members. One without a name has been added and has never started."""

    id: int
    name: str
    peer_urls: tuple[str, ...]
    client_urls: tuple[str, ...] = ()
    learner: bool = False

    @property
    def title(self) -> str:
        """How people are told of it."""
        return f"{self.name or 'not started'} ({self.id:x})"


@dataclass(frozen=True)
class Alarm:
    """Something that the cluster refuses to work under until it is disarmed. kind: NOSPACE or CORRUPT."""

    member_id: int
    kind: str


@dataclass(frozen=True)
class Status:
    """What a member says about itself. None stands for what its version does not tell."""

    member_id: int
    cluster_id: int
    version: str
    leader_id: int
    raft_term: int
    raft_index: int
    applied_index: int
    revision: int
    db_size: int
    db_size_in_use: int | None = None
    db_quota: int | None = None
    storage_version: str | None = None
    learner: bool = False
    alarms: tuple[Alarm, ...] | None = None


@dataclass(frozen=True)
class Hash:
    """HashKV of one member: comparable with another only at the same revision with the same compact revision."""

    value: int
    revision: int
    compact_revision: int


@dataclass(frozen=True)
class Unreadable:
    """Something that could not be read, from whom, and why."""

    what: str
    endpoint: str
    why: str


@dataclass(frozen=True)
class Seen:
    """A member as far as it could be asked. endpoint: where it was asked, empty if it says of none."""

    endpoint: str
    member: Member | None = None
    status: Status | None = None
    healthy: bool = False
    health_reason: str = ""
    hash: Hash | None = None
    # The list of members as this one knows it, without asking the others.
    known: tuple[Member, ...] | None = None

    @property
    def id(self) -> int:
        """Its id, 0 while it is not known."""
        return self.status.member_id if self.status else self.member.id if self.member else 0

    @property
    def name(self) -> str:
        """Its name, empty while it is not known."""
        return self.member.name if self.member else ""

    @property
    def title(self) -> str:
        """How people are told of it."""
        return self.member.title if self.member else self.endpoint

    @property
    def learner(self) -> bool:
        """Whether it has no vote."""
        return bool(self.member and self.member.learner) or bool(self.status and self.status.learner)

    @property
    def leads(self) -> bool:
        """Whether it says that it is the leader."""
        return self.status is not None and self.status.leader_id == self.status.member_id


@dataclass(frozen=True)
class View:
    """A cluster at one moment: its members, also those that gave no answer, and what could not be read."""

    members: tuple[Seen, ...]
    unreadable: tuple[Unreadable, ...] = ()
    cluster_version: str = ""
    # Faults of the revisions that stayed when they were read again.
    revision_faults: tuple[str, ...] = ()
    # Whoever answers at an endpoint that was named and is no member: of another cluster, or removed from this one.
    strangers: tuple[Seen, ...] = ()

    @property
    def answered(self) -> list[Seen]:
        """Members that said something about themselves."""
        return [seen for seen in self.members if seen.status]

    @property
    def voters(self) -> list[Seen]:
        """Members that count for the quorum, those that are down too."""
        return [seen for seen in self.members if not seen.learner]

    @property
    def learners(self) -> list[Seen]:
        """Members without a vote."""
        return [seen for seen in self.members if seen.learner]

    @property
    def quorum(self) -> int:
        """How many voters must agree."""
        return len(self.voters) // 2 + 1

    @property
    def healthy_voters(self) -> int:
        """How many voters can commit."""
        return sum(seen.healthy for seen in self.voters)

    @property
    def has_quorum(self) -> bool:
        """Whether the cluster can commit: one healthy voter proves it."""
        return self.healthy_voters > 0

    @property
    def margin(self) -> int:
        """How many more voters may be lost before the quorum is; below 0 it is lost already."""
        return self.healthy_voters - self.quorum

    @property
    def leader(self) -> Seen | None:
        """The leader, if there is one that a member with the newest term knows."""
        newest = max((seen.status.raft_term for seen in self.members if seen.status), default=0)
        for seen in self.members:
            if seen.leads and seen.status and seen.status.raft_term == newest:
                return seen
        return None

    @property
    def revision(self) -> int | None:
        """The newest revision that any member has."""
        return max((seen.status.revision for seen in self.members if seen.status), default=None)

    @property
    def cluster_ids(self) -> list[int]:
        """Ids of the clusters that the members belong to; more than one is a fault."""
        return sorted({seen.status.cluster_id for seen in (*self.members, *self.strangers) if seen.status})

    @property
    def alarms(self) -> list[Alarm]:
        """Alarms that any member knows of."""
        found = {alarm for seen in self.answered for alarm in (seen.status.alarms if seen.status else None) or ()}
        return sorted(found, key=lambda alarm: (alarm.member_id, alarm.kind))

    def find(self, name: str = "", id: int = 0, peer_urls: Iterable[str] = ()) -> Seen | None:
        """Return the member of this name, id or one of these peer URLs."""
        wanted = set(peer_urls)
        for seen in self.members:
            urls = seen.member.peer_urls if seen.member else ()
            if (name and seen.name == name) or (id and seen.id == id) or wanted & set(urls):
                return seen
        return None


# --- Reading answers --------------------------------------------------------------------------------------------------


def parse_version(text: str) -> Version:
    """Return 3.5.16 as numbers, whatever stands behind the third. Raises EtcdError."""
    match = re.match(r"v?(\d+)\.(\d+)(?:\.(\d+))?", text.strip())
    if not match:
        raise EtcdError(f"version {text!r}: wanted one such as 3.6.14")
    return int(match[1]), int(match[2]), int(match[3] or 0)


def minor_of(text: str) -> tuple[int, int]:
    """Return major and minor version."""
    return parse_version(text)[:2]


def parse_members(answer: Mapping[str, Any]) -> tuple[Member, ...]:
    """Return the list of members from a call of cluster/member/list, in the order of their names."""
    members = [
        Member(
            id=as_int(entry.get("ID")),
            name=entry.get("name") or "",
            peer_urls=tuple(entry.get("peerURLs") or ()),
            client_urls=tuple(entry.get("clientURLs") or ()),
            learner=bool(entry.get("isLearner")),
        )
        for entry in answer.get("members") or ()
    ]
    return tuple(sorted(members, key=lambda member: (not member.name, member.name, member.id)))


def parse_status(answer: Mapping[str, Any]) -> Status:
    """Return what a call of maintenance/status says."""
    header = answer.get("header") or {}
    version = str(answer.get("version") or "")
    index = as_int(answer.get("raftIndex"))
    # 3.3 says neither what it has applied nor its alarms.
    old = not version or minor_of(version) < (3, 4)
    in_use, quota = answer.get("dbSizeInUse"), answer.get("dbSizeQuota")
    return Status(
        member_id=as_int(header.get("member_id")),
        cluster_id=as_int(header.get("cluster_id")),
        version=version,
        leader_id=as_int(answer.get("leader")),
        raft_term=as_int(answer.get("raftTerm")),
        raft_index=index,
        applied_index=index if old else as_int(answer.get("raftAppliedIndex")),
        revision=as_int(header.get("revision")),
        db_size=as_int(answer.get("dbSize")),
        db_size_in_use=None if in_use is None else as_int(in_use),
        db_quota=None if quota is None else as_int(quota),
        storage_version=answer.get("storageVersion") or None,
        learner=bool(answer.get("isLearner")),
        alarms=None if old else parse_errors(answer.get("errors") or ()),
    )


def parse_errors(errors: Iterable[str]) -> tuple[Alarm, ...]:
    """Return the alarms among what a status calls errors."""
    found = (re.search(r"memberID:(\d+).*alarm:(\w+)", error) for error in errors)
    return tuple(Alarm(int(match[1]), match[2]) for match in found if match)


def parse_alarms(answer: Mapping[str, Any]) -> tuple[Alarm, ...]:
    """Return the alarms from a call of maintenance/alarm, or from what etcdctl prints, which numbers them."""
    return tuple(
        Alarm(as_int(entry.get("memberID")), ALARM_KINDS.get(entry["alarm"], str(entry["alarm"])))
        for entry in answer.get("alarms") or ()
        if entry.get("alarm")
    )


def parse_hash(answer: Mapping[str, Any], revision: int) -> Hash:
    """Return what a call of maintenance/hashkv at this revision says."""
    # Never compacted is 0 in some versions and -1 in others.
    compacted = max(0, as_int(answer.get("compact_revision")))
    return Hash(as_int(answer.get("hash")), as_int(answer.get("hash_revision"), revision) or revision, compacted)


def assemble(
    found: Mapping[str, Seen],
    endpoints: Sequence[str],
    unreadable: Iterable[Unreadable],
    cluster_versions: Mapping[str, str],
) -> View:
    """Return one view of what was found at each endpoint: each member once, in the order of the list of members.

    Whose list counts: the leader's, or that of the member that has applied most. A member asked at two endpoints stands
    there with the one that was named. Without any list there is one entry for each endpoint.
    """
    answered = sorted(
        (seen for seen in found.values() if seen.status),
        key=lambda seen: (seen.endpoint not in endpoints, list(found).index(seen.endpoint)),
    )
    able = [seen for seen in answered if seen.known]
    first = max(able, key=lambda seen: (_term(seen), seen.leads, _applied(seen)), default=None)
    members: list[Seen] = []
    if first is None:
        members = list(found.values())
    else:
        for member in first.known or ():
            urls = [url.rstrip("/") for url in member.client_urls]
            at = [seen for seen in answered if seen.id == member.id]
            at += [found[url] for url in urls if url in found]
            seen = at[0] if at else Seen(urls[0] if urls else "", health_reason="it has not started yet")
            members.append(replace(seen, member=member))
    known = {seen.id for seen in members}
    return View(
        members=tuple(members),
        unreadable=tuple(sorted(unreadable, key=lambda one: (one.endpoint, one.what))),
        cluster_version=cluster_versions.get(first.endpoint, "") if first else "",
        strangers=tuple(seen for seen in answered if seen.id not in known),
    )


def _term(seen: Seen) -> int:
    return seen.status.raft_term if seen.status else 0


def _applied(seen: Seen) -> int:
    return seen.status.applied_index if seen.status else 0


# --- Judging ----------------------------------------------------------------------------------------------------------


def lag(view: View, seen: Seen) -> int | None:
    """Return how many raft entries a member has still to apply, by what its leader, or the most advanced, has."""
    if not seen.status:
        return None
    first = view.leader
    newest = first.status.raft_index if first and first.status else 0
    newest = max([newest, *(other.status.applied_index for other in view.answered if other.status)])
    return max(0, newest - seen.status.applied_index)


def fragmentation(status: Status) -> float | None:
    """Return which part of the database file holds nothing, from 0 to 1."""
    if status.db_size_in_use is None or status.db_size <= 0:
        return None
    return max(0.0, 1 - status.db_size_in_use / status.db_size)


def stop_refusal(view: View, seen: Seen) -> str:
    """Return why a member should not be taken down now, empty if nothing speaks against it."""
    if seen.learner:
        return ""
    if len(view.voters) == 1:
        return "it is the only member with a vote"
    others = sum(other.healthy for other in view.voters if other is not seen)
    if others < view.quorum:
        return (
            f"only {others} of the other {len(view.voters) - 1} members with a vote are healthy, wanted {view.quorum}"
        )
    behind = [
        other.title
        for other in view.voters
        if other is not seen and other.healthy and (lag(view, other) or 0) > LAG_AT_MOST
    ]
    if others - len(behind) < view.quorum:
        return f"{', '.join(behind)} is more than {LAG_AT_MOST} raft entries behind: wait until it has caught up"
    if data_agree(view) is False:
        return "the members' data differ: repair that first"
    return ""


def safe_to_stop(view: View, seen: Seen) -> bool:
    """Return whether the cluster keeps its quorum, of members with the same data, when this one goes down."""
    return not stop_refusal(view, seen)


def remove_refusal(view: View, seen: Seen) -> str:
    """Return why a member should not be removed now, empty if nothing speaks against it.

    Removing makes the quorum smaller too; what counts is whether those that stay can commit.
    """
    if seen.learner:
        return ""
    stay = [other for other in view.voters if other is not seen]
    if not stay:
        return "it is the only member with a vote"
    wanted = len(stay) // 2 + 1
    healthy = sum(other.healthy for other in stay)
    if healthy < wanted:
        return (
            f"of the {len(stay)} members with a vote that would stay {healthy} are healthy, wanted {wanted}: "
            "the cluster would lose its quorum"
        )
    return ""


def add_refusal(view: View, learner: bool) -> str:
    """Return why no member should be added now, empty if nothing speaks against it."""
    if not view.has_quorum:
        return "the cluster has no quorum, so its list of members cannot be changed"
    down = [seen.title for seen in view.voters if not seen.healthy]
    if down:
        return f"{', '.join(down)} is not healthy: repair or remove it first, add afterwards"
    if view.learners:
        return f"there is a learner already, {view.learners[0].title}: promote or remove it first"
    wanted = (len(view.voters) + 1) // 2 + 1
    if not learner and view.healthy_voters < wanted:
        return (
            f"with one more vote the quorum is {wanted}, and {view.healthy_voters} can vote until it has started: "
            "add it as a learner and promote it"
        )
    return ""


def promote_refusal(view: View, seen: Seen) -> str:
    """Return why a learner should not be promoted now, empty if nothing speaks against it."""
    if not view.has_quorum:
        return "the cluster has no quorum, so its list of members cannot be changed"
    if not seen.status:
        return "it does not answer"
    behind = lag(view, seen) or 0
    if behind > LAG_AT_MOST:
        return f"it is {behind} raft entries behind its leader: wait until it has caught up"
    down = [other.title for other in view.voters if not other.healthy]
    if view.healthy_voters + 1 < (len(view.voters) + 1) // 2 + 1:
        return f"{', '.join(down)} is not healthy: the larger quorum would rest on the new member alone"
    return ""


def best_snapshot_member(view: View, lag_at_most: int = LAG_AT_MOST, without_quorum: bool = False) -> Seen:
    """Return the member to take a snapshot of: healthy, no learner, caught up, and a follower if there is one.

    without_quorum: if none is healthy, the most advanced of those that answer. Raises EtcdError that says why not.
    """
    able = [seen for seen in view.members if seen.status and not seen.learner]
    fit = [seen for seen in able if seen.healthy and (lag(view, seen) or 0) <= lag_at_most]
    if fit:
        return min(fit, key=lambda seen: (seen.leads, lag(view, seen) or 0, seen.id))
    if able and without_quorum:
        return max(able, key=lambda seen: (seen.status.applied_index if seen.status else 0, seen.id))
    reasons = [
        f"{seen.title}: "
        + (
            "is a learner"
            if seen.learner
            else f"is {lag(view, seen)} raft entries behind"
            if seen.healthy
            else seen.health_reason or "is not healthy"
        )
        for seen in view.members
    ]
    raise EtcdError(f"no member is fit for a snapshot: {'; '.join(reasons)}")


def data_agree(view: View) -> bool | None:
    """Return whether all members that could be hashed hold the same data; None if that cannot be compared."""
    if view.revision_faults or len(view.cluster_ids) > 1:
        return False
    hashes = [seen.hash for seen in view.members if seen.hash]
    if not hashes or len({(one.revision, one.compact_revision) for one in hashes}) > 1:
        return None
    return len({one.value for one in hashes}) == 1


def hash_revision(statuses: Iterable[Status]) -> int:
    """Return the newest revision that all of these members have."""
    return min(status.revision for status in statuses)


@dataclass(frozen=True)
class Position:
    """A member's revision, and the raft index that it had applied at that moment: between low and high."""

    title: str
    revision: int
    low: int
    high: int

    @classmethod
    def at(cls, seen: Seen) -> Position:
        """Return where a member is by one status, whose numbers are not read in quite the same instant."""
        status = seen.status
        if status is None:
            raise ValueError(f"{seen.title} said nothing")
        return cls(seen.title, status.revision, status.applied_index, status.applied_index)


def revision_faults(positions: Sequence[Position]) -> list[str]:
    """Return which members' revisions do not fit the raft log.

    Each entry of the log raises the revision by one or not at all. So a member whose revision is some ahead of that of
    another must have applied at least as many entries more. One that was restored with another bump, or from another
    snapshot, breaks that for ever.
    """
    faults = []
    for ahead in positions:
        for behind in positions:
            more = ahead.revision - behind.revision
            if more > 0 and more > ahead.high - behind.low:
                faults.append(
                    f"{ahead.title} is {more} revisions ahead of {behind.title}, but only "
                    f"{ahead.high - behind.low} raft entries: these cannot both come from one log"
                )
    return faults


def list_faults(view: View) -> list[str]:
    """Return which members know another list of members than the most advanced one."""
    able = [seen for seen in view.answered if seen.known is not None]
    if not able:
        return []
    first = max(able, key=lambda seen: (seen.leads, seen.status.applied_index if seen.status else 0))

    def known(seen: Seen) -> set[tuple[int, tuple[str, ...], bool]]:
        return {(member.id, member.peer_urls, member.learner) for member in seen.known or ()}

    return [
        f"{seen.title} knows other members than {first.title}: "
        f"{', '.join(member.title for member in seen.known or ())}; "
        f"there: {', '.join(member.title for member in first.known or ())}"
        for seen in able
        # One that has not caught up may well not know of a change yet.
        if known(seen) != known(first) and (lag(view, seen) or 0) == 0
    ]


def problems(view: View) -> list[str]:
    """Return all that is wrong with a cluster, each in one sentence that says what to do."""
    found = []
    if len(view.cluster_ids) > 1:
        pairs = ", ".join(f"{seen.title} {seen.status.cluster_id:x}" for seen in view.answered if seen.status)
        found.append(
            f"the members belong to different clusters ({pairs}): the endpoints are of two, or a restore went wrong"
        )
    if not view.has_quorum:
        found.append(
            f"no quorum: {view.healthy_voters} of {len(view.voters)} members with a vote are healthy, "
            f"wanted {view.quorum}: bring members back, or recover from the survivor"
        )
    found += [
        f"{seen.title} is not healthy: {seen.health_reason or 'no reason given'}"
        for seen in view.members
        if not seen.healthy and not seen.learner
    ]
    found += [
        f"{seen.endpoint} answers as {seen.id:x}, which is no member of this cluster: see its endpoint and its data"
        for seen in view.strangers
    ]
    names = {seen.id: seen.title for seen in view.members}
    for alarm in view.alarms:
        advice = (
            "compact, defragment and disarm it"
            if alarm.kind == "NOSPACE"
            else "replace this member's data, then disarm it"
        )
        found.append(f"alarm {alarm.kind} of {names.get(alarm.member_id, format(alarm.member_id, 'x'))}: {advice}")
    if data_agree(view) is False and len(view.cluster_ids) < 2:
        found.append(
            "the members' data differ though they are healthy: find out which is right before anything else is changed"
        )
    found += view.revision_faults
    found += list_faults(view)
    found += [
        f"{seen.title} is {lag(view, seen)} raft entries behind its leader"
        for seen in view.members
        if (lag(view, seen) or 0) > LAG_AT_MOST
    ]
    minors = sorted({minor_of(seen.status.version) for seen in view.answered if seen.status and seen.status.version})
    if len(minors) > 1:
        texts = " and ".join(".".join(map(str, minor)) for minor in minors)
        found.append(f"the members run different minor versions, {texts}: finish the move of versions")
    for seen in view.answered:
        if seen.status and parse_version(seen.status.version or "0.0.0") in ((3, 5, 0), (3, 5, 1), (3, 5, 2)):
            found.append(
                f"{seen.title} runs {seen.status.version}, which loses data when it is killed: move to 3.5.4 or newer"
            )
    return found


# --- Telling ----------------------------------------------------------------------------------------------------------


def hexadecimal(id: int) -> str:
    """Return an id as etcdctl shows it."""
    return format(id, "x")


def member_facts(view: View, seen: Seen) -> dict[str, Any]:
    """Return all that is known about one member, None for what is not known."""
    status, member = seen.status, seen.member
    refusal = stop_refusal(view, seen)
    part = fragmentation(status) if status else None
    return {
        "name": seen.name,
        "id": hexadecimal(seen.id) if seen.id else "",
        "endpoint": seen.endpoint,
        "peer_urls": list(member.peer_urls) if member else [],
        "client_urls": list(member.client_urls) if member else [],
        "learner": seen.learner,
        "leader": view.leader is not None and seen.id == view.leader.id,
        "answers": status is not None,
        "healthy": seen.healthy,
        "health_reason": seen.health_reason,
        "version": status.version if status else None,
        "storage_version": status.storage_version if status else None,
        "db_size": status.db_size if status else None,
        "db_size_in_use": status.db_size_in_use if status else None,
        "db_quota": status.db_quota if status else None,
        "fragmentation": None if part is None else round(part, 4),
        "revision": status.revision if status else None,
        "compact_revision": seen.hash.compact_revision if seen.hash else None,
        "raft_term": status.raft_term if status else None,
        "raft_index": status.raft_index if status else None,
        "raft_applied_index": status.applied_index if status else None,
        "lag": lag(view, seen),
        "hash": seen.hash.value if seen.hash else None,
        "safe_to_stop": not refusal,
        "unsafe_reason": refusal,
    }


def cluster_facts(view: View) -> dict[str, Any]:
    """Return all that is known about a cluster, as etcd_info tells it."""
    hashed = [seen.hash for seen in view.members if seen.hash]
    compacted = {one.compact_revision for one in hashed}
    names = {seen.id: seen.name for seen in view.members}
    found = problems(view)
    return {
        "cluster_id": hexadecimal(view.cluster_ids[0]) if len(view.cluster_ids) == 1 else "",
        "cluster_version": view.cluster_version,
        "members": [member_facts(view, seen) for seen in view.members],
        "leader": view.leader.name if view.leader else "",
        "learners": [seen.name for seen in view.learners],
        "alarms": [
            {"member": names.get(alarm.member_id, ""), "id": hexadecimal(alarm.member_id), "alarm": alarm.kind}
            for alarm in view.alarms
        ],
        "revision": view.revision,
        "compact_revision": compacted.pop() if len(compacted) == 1 else None,
        "hash_revision": hashed[0].revision if hashed else None,
        "data_agree": data_agree(view),
        "data_compared": [seen.name for seen in view.members if seen.hash],
        "quorum": {
            "voters": len(view.voters),
            "healthy": view.healthy_voters,
            "wanted": view.quorum,
            "margin": view.margin,
            "reached": view.has_quorum,
        },
        "healthy": not found,
        "problems": found,
        "unreadable": [{"what": one.what, "endpoint": one.endpoint, "why": one.why} for one in view.unreadable],
    }
