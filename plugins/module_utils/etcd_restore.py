# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Thinking about a restore of one etcd member: what speaks against it, where its folders are, and what comes next.

The data is restored into a folder beside the live one, and swapped in by two renames. A journal on disk says how far
that went; it is written before each step that can be seen in the file system, and where a run was killed in between,
what the journal says and which folders are there tell what is left to do. Nothing here touches a disk.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ansible_collections.plainkube.cluster.plugins.module_utils.bbolt import SnapshotProof
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_client import EtcdError
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_cluster import View, data_agree, minor_of, problems

# A new member preallocates the file of its log, and the next one when it runs.
LOG_BYTES = 64_000_000
# The restored copy, and as much again for its growth and the compaction that follows.
COPIES = 2

# From here on the database says who the members are, and a restore writes the new ones there.
MEMBERS_IN_DATABASE = (3, 5)

# How far a restore went on this host.
STAGED = "staged"  # a copy beside the live data is complete and checked
SWAPPING = "swapping"  # the renames have begun
SWAPPED = "swapped"  # the restored data is live
FINISHED = "finished"  # the cluster was found to be well with it
ROLLING_BACK = "rolling-back"  # the renames back have begun
ROLLED_BACK = "rolled-back"  # the old data is live again
PHASES = (STAGED, SWAPPING, SWAPPED, FINISHED, ROLLING_BACK, ROLLED_BACK)
# The live data has been touched, and nobody has said yet that this is over.
OPEN = (SWAPPING, SWAPPED, ROLLING_BACK)

TOKEN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class RestoreError(EtcdError):
    """A restore that must not go on like this."""


# --- What is asked for, and what is there -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """What one member is to become. members: name to peer URLs, of the whole new cluster."""

    token: str
    name: str
    peer_urls: tuple[str, ...]
    members: Mapping[str, tuple[str, ...]]
    bump_revision: int
    # Without its digest: a copy of a member's database instead of a snapshot.
    raw: bool = False

    def fingerprint(self, sha256: str) -> str:
        """Return a word that differs when anything but the token differs that decides what the restored data is."""
        parts = {**asdict(self), "token": None, "sha256": sha256}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @property
    def initial_cluster(self) -> str:
        return ",".join(f"{name}={url}" for name, urls in sorted(self.members.items()) for url in urls)


@dataclass(frozen=True)
class Expectation:
    """What the caller knows and wants to see confirmed. Empty or 0: nothing is known."""

    sha256: str = ""
    cluster_ids: tuple[str, ...] = ()
    # The newest revision that any client may have seen.
    revision: int = 0
    quota_bytes: int = 0


@dataclass(frozen=True)
class Tool:
    """The program that restores. can_bump: it knows how to raise the revision."""

    program: str
    version: tuple[int, int]
    can_bump: bool


@dataclass(frozen=True)
class Host:
    """What the host offers. tool: None if no program here can restore; tools_seen says which were looked at."""

    data_dir: str
    free_bytes: int
    server_version: tuple[int, int] | None
    tool: Tool | None
    tools_seen: str = ""
    # What is to be restored has its place on the disk already.
    copied: bool = False


def parse_members(members: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return name to peer URLs, of what may also be one URL for a name. Raises RestoreError."""
    listed = {name: [urls] if isinstance(urls, str) else urls for name, urls in members.items()}
    for name, urls in listed.items():
        if not isinstance(urls, list) or not all(isinstance(url, str) for url in urls):
            raise RestoreError(f"members: {name}: found {urls!r}, wanted a peer URL or a list of them")
    return {name: tuple(urls) for name, urls in listed.items()}


def request_faults(request: Request) -> list[str]:
    """Return what is wrong with a request by itself."""
    faults = []
    if not TOKEN.fullmatch(request.token):
        faults.append(
            f"token: found {request.token!r}, wanted letters, digits, dots, dashes and underscores, at most 63"
        )
    if request.bump_revision < 0:
        faults.append(f"bump_revision: found {request.bump_revision}, wanted 0 or more")
    known = "; ".join(f"{name} at {', '.join(urls)}" for name, urls in sorted(request.members.items())) or "nobody"
    if request.name not in request.members:
        faults.append(f"name: {request.name} is not among the members ({known})")
    elif sorted(request.peer_urls) != sorted(request.members[request.name]):
        faults.append(
            f"peer_urls: found {', '.join(request.peer_urls) or 'none'}, "
            f"but the members' list has {request.name} at {', '.join(request.members[request.name])}"
        )
    owners: dict[str, list[str]] = {}
    for name, urls in sorted(request.members.items()):
        if not urls:
            faults.append(f"members: {name} has no peer URL")
        for url in urls:
            owners.setdefault(url, []).append(name)
            if not re.fullmatch(r"https?://[^/,=\s]+:\d+", url):
                faults.append(f"members: {name}: found {url!r}, wanted a URL such as https://10.0.0.1:2380")
    faults += [
        f"members: {url} stands there for {' and '.join(names)}" for url, names in owners.items() if len(names) > 1
    ]
    return faults


def proof_faults(
    request: Request,
    expected: Expectation,
    path: str,
    proof: SnapshotProof,
    manifest: Mapping[str, Any],
    host: Host,
) -> list[str]:
    """Return all that speaks against restoring this file on this host. manifest: what was recorded beside it, or {}."""
    return [
        *_identity_faults(expected, path, proof, manifest),
        *_version_faults(request, path, proof, host),
        *_size_faults(expected, path, proof, host),
        *_revision_faults(request, expected, path, proof),
    ]


def _identity_faults(
    expected: Expectation, path: str, proof: SnapshotProof, manifest: Mapping[str, Any]
) -> Iterator[str]:
    if expected.sha256 and expected.sha256.lower() != proof.digest:
        yield (
            f"{path} has the SHA-256 {proof.digest}, wanted {expected.sha256.lower()}: it is another file than the "
            "other hosts have, and members of two files would differ for ever; copy the same file to every host"
        )
    for key, found in (("sha256", proof.digest), ("size", proof.size), ("revision", proof.revision)):
        if manifest.get(key) and manifest[key] != found:
            yield (
                f"{path} has {key} {found}, but its manifest recorded {manifest[key]}: "
                "the two do not belong together; take the manifest of this file, or another file"
            )
    cluster_id = plain_id(manifest.get("cluster_id") or "")
    wanted = [plain_id(known) for known in expected.cluster_ids]
    if wanted and cluster_id and cluster_id not in wanted:
        yield (
            f"{path} is a snapshot of the cluster {cluster_id}, wanted {' or '.join(wanted)}: it is of another "
            "cluster, or older than a former restore; if it is meant, name its cluster in cluster_ids"
        )


def plain_id(text: str) -> str:
    """Return an ID as etcd's programs print it in hexadecimal: without prefix and leading zeros."""
    return re.sub(r"^(0x)?0*", "", text.strip().lower())


def _version_faults(request: Request, path: str, proof: SnapshotProof, host: Host) -> Iterator[str]:
    data = data_version(proof)
    if host.server_version is None:
        yield "no etcd was found on this host, whose version must go with the data: install it, or name it with etcd"
    elif data and host.server_version < data:
        yield (
            f"{path} is of etcd {shown(data)}, which the older etcd {shown(host.server_version)} of this host does not "
            f"understand: install {shown(data)}"
        )
    elif data and (host.server_version[0] != data[0] or host.server_version[1] > data[1] + 1):
        yield (
            f"{path} is of etcd {shown(data)}, this host has {shown(host.server_version)}: data moves one minor "
            f"release at a time; restore with {shown(data)} or {data[0]}.{data[1] + 1}, then move on"
        )
    tool = host.tool
    if tool is None:
        yield (
            f"no program on this host can restore ({host.tools_seen}): install etcdutl, or etcdctl older than 3.6, "
            "of the server's release"
        )
        return
    if request.bump_revision and not tool.can_bump:
        yield (
            f"{tool.program} {shown(tool.version)} cannot raise the revision, so that clients with a watch would miss "
            "changes without being told: use etcdutl from 3.5.10 on (or etcdctl from 3.4.27 on), "
            "or set bump_revision to 0 if nothing watches"
        )
    if data and tool.version < data:
        yield (
            f"{tool.program} is of {shown(tool.version)}, older than the data, which is of {shown(data)}: "
            "install the programs of the server's release"
        )


def data_version(proof: SnapshotProof) -> tuple[int, int] | None:
    """Return the release whose rules the data follows, None where a file does not tell: it was never served."""
    version = proof.storage_version or proof.cluster_version
    return minor_of(version) if version else None


def shown(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def needed_bytes(size: int) -> int:
    """Return what must be free on the file system of the data for a snapshot of this size."""
    return COPIES * (size + LOG_BYTES)


def _size_faults(expected: Expectation, path: str, proof: SnapshotProof, host: Host) -> Iterator[str]:
    needed = needed_bytes(proof.size)
    if host.free_bytes < needed and not host.copied:
        yield (
            f"{host.data_dir}: its file system has {megabytes(host.free_bytes)} free, wanted {megabytes(needed)} for "
            f"the restored copy of {megabytes(proof.size)}, its log and its growth, with the old data kept: free space"
        )
    # The quota counts the whole file and not what is used in it, and the restored file is as large as the snapshot.
    if expected.quota_bytes and proof.size >= expected.quota_bytes:
        yield (
            f"{path} has {megabytes(proof.size)}, the quota of this member is {megabytes(expected.quota_bytes)}: the "
            "restored cluster would refuse writes at once; raise the quota (--quota-backend-bytes) first"
        )


def _revision_faults(request: Request, expected: Expectation, path: str, proof: SnapshotProof) -> Iterator[str]:
    if not request.bump_revision and proof.revision < expected.revision:
        yield (
            f"{path} would be restored at revision {proof.revision}, but clients have seen {expected.revision}: "
            "set bump_revision to more than 0"
        )


def with_whole_bump(request: Request, expected: Expectation, proof: SnapshotProof) -> Request:
    """Return the request with the bump from the snapshot's own revision, when clients have seen newer ones.

    After a former restore what runs is a whole bump ahead of all snapshots from before it.
    """
    ahead = max(0, expected.revision - proof.revision)
    return replace(request, bump_revision=request.bump_revision + ahead) if request.bump_revision else request


def warnings(
    request: Request, expected: Expectation, path: str, proof: SnapshotProof, manifest: Mapping[str, Any], host: Host
) -> list[str]:
    """Return what a person should know and what is no reason to stop."""
    found = []
    if request.raw:
        found.append(f"{path} is restored without a digest: its pages and buckets are sound, its values are not proven")
    if expected.cluster_ids and not manifest.get("cluster_id"):
        found.append(f"{path} has no manifest that says of which cluster it is: that it is the right one is not proven")
    if not request.bump_revision:
        found.append(
            "the revision is not raised: clients that watch will not be told that the past changed; restart them all"
        )
    if host.tool and host.tool.version < MEMBERS_IN_DATABASE:
        found.append(
            f"{host.tool.program} {shown(host.tool.version)} keeps the old members in the database; they come back "
            "after an upgrade to 3.6: use etcdutl from 3.5 on where the server allows it"
        )
    alarms = sorted({alarm["alarm"] for alarm in proof.alarms})
    if alarms:
        found.append(f"{path} holds the alarm {', '.join(alarms)}, which comes back with it")
    return found


def megabytes(size: int) -> str:
    return f"{size / 1_000_000:.1f} MB"


# --- The restored copy ------------------------------------------------------------------------------------------------


def choose_tool(etcdutl: Tool | None, etcdctl: Tool | None) -> Tool | None:
    """Return the program to restore with, of those that are there. etcdctl lost the command with 3.6."""
    return etcdutl or (etcdctl if etcdctl and etcdctl.version < (3, 6) else None)


def restore_command(request: Request, tool: Tool, snapshot: str, folder: str) -> list[str]:
    """Return the command that restores a snapshot into a folder, which must not be there yet."""
    command = [
        tool.program,
        "snapshot",
        "restore",
        snapshot,
        f"--data-dir={folder}",
        f"--name={request.name}",
        f"--initial-cluster={request.initial_cluster}",
        f"--initial-cluster-token={request.token}",
        f"--initial-advertise-peer-urls={','.join(request.members[request.name])}",
    ]
    if request.bump_revision:
        command += [f"--bump-revision={request.bump_revision}", "--mark-compacted"]
    if request.raw:
        command.append("--skip-hash-check")
    return command


def copy_faults(request: Request, proof: SnapshotProof, tool: Tool, copy: Mapping[str, Any], path: str) -> list[str]:
    """Return what is wrong with a restored copy. copy: revision, entries and members of its database."""
    # A raised revision is an entry of its own.
    wanted: dict[str, Any] = {
        "revision": proof.revision + request.bump_revision,
        "entries": proof.entries + bool(request.bump_revision),
    }
    # Before 3.5 it is not the database that says who the members are, and a restore leaves the old ones in it.
    if tool.version >= MEMBERS_IN_DATABASE:
        wanted["members"] = sorted(request.members)
    return [
        f"{path}: found {key} {copy[key]} after the restore, wanted {value}"
        for key, value in wanted.items()
        if copy[key] != value
    ]


# --- The running cluster ----------------------------------------------------------------------------------------------


def cluster_faults(view: View) -> list[str]:
    """Return what is wrong with a cluster of restored members and will not become right by waiting."""
    return problems(view) if data_agree(view) is False else []


def not_yet(view: View, members: int, journal: Journal) -> str:
    """Return what is still to be waited for until a restored cluster is well, empty if nothing."""
    if len(view.answered) < members:
        return f"{len(view.answered)} of {members} members answer"
    found = problems(view)
    found += [
        f"{seen.title} has revision {seen.status.revision}, below the restored one, {journal.revision}"
        for seen in view.answered
        if seen.status and seen.status.revision < journal.revision
    ]
    if not found and not (data_agree(view) and all(seen.hash for seen in view.members)):
        found = ["the members' data could not be compared yet"]
    return "; ".join(found)


# --- Folders ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """Where everything is. What a restore makes carries its token, so that no two restores share a folder."""

    token: str
    data_dir: str
    live: str
    staging: str
    staged: str
    kept: str
    undone: str
    journal: str

    @property
    def live_member(self) -> str:
        """Return the folder of the live data that a server calls its member."""
        return f"{self.data_dir}/member"

    @property
    def kept_member(self) -> str:
        """Return the same of the old data."""
        return f"{self.kept}/member" if self.live == self.data_dir else self.kept


def layout(data_dir: str, is_mount: bool, token: str) -> Layout:
    """Return the folders of a restore. A mount point cannot be renamed: there the swap happens one level below."""
    if is_mount:
        return Layout(
            token=token,
            data_dir=data_dir,
            live=f"{data_dir}/member",
            staging=f"{data_dir}/restore-{token}",
            staged=f"{data_dir}/restore-{token}/data/member",
            kept=f"{data_dir}/before-{token}",
            undone=f"{data_dir}/undone-{token}",
            journal=f"{data_dir}/restore.json",
        )
    return Layout(
        token=token,
        data_dir=data_dir,
        live=data_dir,
        staging=f"{data_dir}.restore-{token}",
        staged=f"{data_dir}.restore-{token}/data",
        kept=f"{data_dir}.before-{token}",
        undone=f"{data_dir}.undone-{token}",
        journal=f"{data_dir}.restore.json",
    )


@dataclass(frozen=True)
class There:
    """Which of a layout's folders exist."""

    live: bool
    staged: bool
    kept: bool
    undone: bool

    def __str__(self) -> str:
        names = {"live": self.live, "restored": self.staged, "old": self.kept, "undone": self.undone}
        return ", ".join(name for name, exists in names.items() if exists) or "none"


# --- The journal ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Journal:
    """How far one restore went. fingerprint: of the request; revision and key_count: of the restored data.

    former: token of the restore that was finished before this one, empty if there was none.
    """

    token: str
    phase: str
    fingerprint: str
    sha256: str
    revision: int
    key_count: int
    # There was data before; without it a restore has nothing to keep and a rollback nothing to put back.
    had_data: bool = True
    former: str = ""

    @property
    def latest_finished(self) -> str:
        """Return the token of the latest restore that writers came back to, empty if there was none."""
        return self.token if self.phase == FINISHED else self.former

    def at(self, phase: str) -> Journal:
        return replace(self, phase=phase)

    def text(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"


def parse_journal(text: str, path: str) -> Journal:
    """Return what a journal says. Raises RestoreError."""
    try:
        found = json.loads(text)
        # Another release may have noted more.
        journal = Journal(**{one.name: found[one.name] for one in fields(Journal) if one.name in found})
    except (TypeError, ValueError) as error:
        raise RestoreError(
            f"{path} is no journal of a restore: {error}; see which data is which by hand, then remove it"
        ) from None
    if journal.phase not in PHASES:
        raise RestoreError(f"{path}: found the phase {journal.phase!r}, wanted one of {', '.join(PHASES)}")
    return journal


def _other_restore(journal: Journal) -> str:
    return (
        f"the restore {journal.token} of the file with SHA-256 {journal.sha256} is not over ({journal.phase}): "
        "end it with the same file and token, or undo it (state rolled_back)"
    )


def is_copied(journal: Journal | None, fingerprint: str) -> bool:
    """Return whether the copy that a request asks for was made by a restore that is not over."""
    return journal is not None and journal.fingerprint == fingerprint and journal.phase in (STAGED, SWAPPING, SWAPPED)


def must_stage(journal: Journal | None, token: str, fingerprint: str, there: There) -> bool:
    """Return whether the copy is still to be made. Raises RestoreError if another restore is in the way."""
    if journal is None:
        return True
    if journal.phase in OPEN and (journal.token, journal.fingerprint) != (token, fingerprint):
        raise RestoreError(_other_restore(journal))
    if journal.phase == ROLLING_BACK:
        raise RestoreError(f"the restore {token} is being undone: end that first (state rolled_back)")
    if (journal.token, journal.fingerprint) != (token, fingerprint):
        if journal.token == token and journal.phase in (FINISHED, ROLLED_BACK):
            raise RestoreError(f"the token {token} was used for another restore: choose a new one")
        return True
    if journal.phase == ROLLED_BACK:
        raise RestoreError(f"the restore {token} was undone: choose a new token to restore again")
    return journal.phase == STAGED and not there.staged


# What is left to do, by: was there data before; and which are there: live, restored, old, undone.
SWAP_STEPS: dict[tuple[bool, ...], tuple[str, ...]] = {
    (True, True, True, False, False): ("keep-old", "put-new"),
    (True, False, True, True, False): ("put-new",),
    (True, True, False, True, False): (),
    (False, False, True, False, False): ("put-new",),
    (False, True, False, False, False): (),
}
ROLLBACK_STEPS: dict[tuple[bool, ...], tuple[str, ...]] = {
    (True, True, True, False, False): (),
    (True, False, True, True, False): ("put-old",),
    (True, True, False, True, False): ("set-new-aside", "put-old"),
    (True, False, False, True, True): ("put-old",),
    (True, True, False, False, True): (),
    # The restored data was removed by hand.
    (True, False, False, True, False): ("put-old",),
    (False, False, True, False, False): (),
    (False, True, False, False, False): ("set-new-aside",),
    (False, False, False, False, True): (),
    (False, False, False, False, False): (),
}


def swap_steps(journal: Journal | None, token: str, there: There) -> tuple[str, ...] | None:
    """Return the renames that are left until the restored data is live, None if it is and the journal says so.

    Raises RestoreError when that cannot be told.
    """
    if journal is None or journal.token != token:
        if journal and journal.phase in OPEN:
            raise RestoreError(_other_restore(journal))
        raise RestoreError(f"there is no restored copy {token} on this host: make it first (state staged)")
    if journal.phase in (SWAPPED, FINISHED):
        return None
    if journal.phase == STAGED:
        journal = replace(journal, had_data=there.live)
    elif journal.phase != SWAPPING:
        raise RestoreError(f"the restore {token} is {journal.phase}: it cannot be swapped in")
    steps = SWAP_STEPS.get((journal.had_data, there.live, there.staged, there.kept, there.undone))
    if steps is None or (journal.phase == STAGED and not there.staged):
        raise RestoreError(_unclear(journal, there))
    return steps


def rollback_steps(journal: Journal | None, there: There) -> tuple[str, ...] | None:
    """Return the renames that are left until the old data is live, None if there is nothing to undo.

    Raises RestoreError when that cannot be told, or when writers may have come back: what they have seen is newer.
    """
    if journal is None or journal.phase == ROLLED_BACK:
        return None
    if journal.phase == STAGED:
        return ()
    if journal.phase == FINISHED:
        raise RestoreError(
            f"the restore {journal.token} is finished, and clients have seen its revisions, which would go back: "
            "restore what it kept, as a snapshot that state salvaged makes of it"
        )
    steps = ROLLBACK_STEPS.get((journal.had_data, there.live, there.staged, there.kept, there.undone))
    if steps is None and journal.phase == ROLLING_BACK and journal.had_data and there.live and not there.kept:
        # Everything was renamed back, and what was aside was being removed.
        return ()
    if steps is None:
        raise RestoreError(_unclear(journal, there))
    return steps


def _unclear(journal: Journal, there: There) -> str:
    return (
        f"the restore {journal.token} is {journal.phase}, and these of its folders are there: {there}. "
        "Somebody moved them; see by hand which data is which, move the right one to its place and remove the journal"
    )


def may_finish(journal: Journal | None, token: str) -> bool:
    """Return whether there is something to finish. Raises RestoreError if the restored data is not live."""
    if journal is None or journal.token != token or journal.phase not in (SWAPPED, FINISHED):
        found = f"{journal.token} is {journal.phase}" if journal else "there is none"
        raise RestoreError(f"the restore {token} cannot be finished, since its data is not live ({found})")
    return journal.phase == SWAPPED
