# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Restoring one etcd member's data: what is on the host, the copy beside the live data, and the swap."""

from __future__ import annotations

import contextlib
import fcntl
import grp
import json
import os
import pwd
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ansible_collections.plainkube.cluster.plugins.module_utils import etcd_restore as plan
from ansible_collections.plainkube.cluster.plugins.module_utils.bbolt import (
    DamagedDatabase,
    SnapshotProof,
    digest_of,
    open_database,
    proof_of,
    verify_snapshot,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_client import (
    Connection,
    Etcdctl,
    EtcdError,
    Gateway,
    Refused,
    as_int,
    encode,
    last_words,
    run_command,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_cluster import View, hexadecimal, minor_of
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_cluster_io import gateway_unusable, wait_for
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_restore import (
    Host,
    Journal,
    Layout,
    Request,
    RestoreError,
    There,
    Tool,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_scratch_io import ScratchServer
from ansible_collections.plainkube.cluster.plugins.module_utils.files_io import sync_folder, write_atomically

VERSION_SECONDS = 20.0
# In the folder that a server calls its member.
MEMBER_DATABASE = "snap/db"
DATABASE = f"member/{MEMBER_DATABASE}"
SELINUX = "security.selinux"
COPY_CHUNK = 1 << 20
# Counting reads the index of all keys, in a cold cluster for the first time.
COUNT_SECONDS = 60.0
# As the first key and as the end: from the first to the last.
ALL_KEYS = encode(b"\0")


def parent(path: str) -> str:
    return str(Path(path).parent)


# --- Look -------------------------------------------------------------------------------------------------------------


def find_layout(data_dir: str, token: str) -> Layout:
    """Return where everything of a restore is on this host; links to the data folder are followed."""
    real = Path(data_dir).resolve()
    return plan.layout(str(real), real.is_mount(), token)


def look(places: Layout) -> There:
    """Return which of the folders exist."""
    return There(*(os.path.lexists(path) for path in (places.live, places.staged, places.kept, places.undone)))


def read_journal(places: Layout) -> Journal | None:
    """Return the journal of the latest restore on this host, None if there was none. Raises RestoreError."""
    try:
        text = Path(places.journal).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise RestoreError(f"{places.journal}, the journal of the latest restore, cannot be read: {error}") from error
    return plan.parse_journal(text, places.journal)


def database_path(places: Layout) -> str:
    """Return the path of the live database."""
    return f"{places.live_member}/{MEMBER_DATABASE}"


def in_use(database: str) -> bool:
    """Return whether a server has a database open: it holds a lock on the file for as long."""
    try:
        descriptor = os.open(database, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def require_stopped(places: Layout) -> None:
    """Raise RestoreError if a member runs on the live data."""
    database = database_path(places)
    if in_use(database):
        raise RestoreError(
            f"a server has {database} open: stop the members of the whole cluster, and what writes to them, first"
        )


def free_bytes(folder: str) -> int:
    """Return what is free for root where a folder is, or would be. Raises RestoreError if its parent is missing too."""
    for candidate in (folder, parent(folder)):
        with contextlib.suppress(FileNotFoundError):
            found = os.statvfs(candidate)
            return found.f_bavail * found.f_frsize
    raise RestoreError(f"{folder}: neither it nor the folder that it should be in exists: create the latter")


def look_at_host(places: Layout, server: str, etcdutl_program: str, etcdctl_program: str) -> Host:
    """Return what this host offers for a restore, with programs of these names or paths."""
    seen: list[str] = []
    etcdutl = _tool(etcdutl_program, seen)
    etcdctl = None if etcdutl else _tool(etcdctl_program, seen)
    try:
        finished = run_command([server, "--version"], VERSION_SECONDS)
        server_version = minor_of(_version_text(finished.stdout))
    except EtcdError:
        server_version = None
    return Host(
        data_dir=places.data_dir,
        free_bytes=free_bytes(places.data_dir),
        server_version=server_version,
        tool=plan.choose_tool(etcdutl, etcdctl),
        tools_seen="; ".join(seen),
    )


def _tool(program: str, seen: list[str]) -> Tool | None:
    """Return a program that may be able to restore; what was found instead is added to seen."""
    api = {"ETCDCTL_API": "3"}
    try:
        finished = run_command([program, "version"], VERSION_SECONDS, api)
        version = minor_of(_version_text(finished.stdout))
        offered = run_command([program, "snapshot", "restore", "--help"], VERSION_SECONDS, api)
    except EtcdError as error:
        seen.append(f"{program}: {error}")
        return None
    seen.append(f"found {program} {plan.shown(version)}")
    return Tool(program, version, "--bump-revision" in offered.stdout + offered.stderr)


def _version_text(output: str) -> str:
    """Return the first version in what a program of etcd says about itself."""
    found = re.search(r"[Vv]ersion: *(\S+)", output)
    return found.group(1) if found else ""


def prove(path: str, raw: bool) -> SnapshotProof:
    """Return what a snapshot file is, after reading all of it. Raises DamagedDatabase, RestoreError.

    raw: a copy of a member's database, which has no digest of its own.
    """
    try:
        if not raw:
            return verify_snapshot(path)
        if in_use(path):
            raise RestoreError(f"{path} is in use by a server: take a snapshot instead, or stop the server and copy it")
        with open_database(path) as database:
            return proof_of(database, Path(path).stat().st_size, digest_of(path).file)
    except DamagedDatabase as error:
        hint = "" if raw else "; if it is a copy of a stopped member's database, and no snapshot, say so with raw"
        raise DamagedDatabase(f"{error}: take another snapshot{hint}") from None
    except OSError as error:
        raise RestoreError(f"{path} cannot be read: {error.strerror}") from error


# --- Act --------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def alone(places: Layout) -> Iterator[None]:
    """Keep other runs away from this data folder. Raises RestoreError if one is there already."""
    descriptor = os.open(parent(places.journal), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise RestoreError(f"{places.data_dir}: another restore is at work here: wait for its end") from None
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Owner:
    """Whose the data is to be, and its SELinux label, where there is one."""

    uid: int
    gid: int
    label: bytes | None = None


def find_owner(places: Layout, user: str | None, group: str | None) -> Owner:
    """Return the owner that is asked for, otherwise that of the live data. Raises RestoreError if there is neither."""
    try:
        status = Path(places.live).stat()
        uid, gid = status.st_uid, status.st_gid
    except FileNotFoundError:
        if not user:
            raise RestoreError(
                f"{places.live} does not exist, so its owner is not known: name it with owner (and group)"
            ) from None
        uid, gid = -1, -1
    label = None
    with contextlib.suppress(OSError):
        label = os.getxattr(places.live, SELINUX)
    try:
        if user:
            entry = pwd.getpwnam(user)
            uid, gid = entry.pw_uid, entry.pw_gid
        if group:
            gid = grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise RestoreError(f"owner or group of the data: {error.args[0]}: create it first") from None
    return Owner(uid, gid, label)


def stage(
    request: Request, places: Layout, path: str, proof: SnapshotProof, tool: Tool, owner: Owner, deadline: float
) -> Journal:
    """Restore a proven snapshot beside the live data, check the copy, and note that it is there.

    Raises RestoreError; then nothing is left behind.
    """
    attempt = f"{places.staging}/attempt-{os.getpid()}"
    try:
        before = read_journal(places)
        clear(places, stale=True)
        Path(places.staging).mkdir(0o700)
        finished = run_command(plan.restore_command(request, tool, path, attempt), deadline)
        if finished.rc:
            raise RestoreError(f"{tool.program} could not restore {path}: {last_words(finished)}")
        faults = plan.copy_faults(request, proof, tool, read_copy(attempt), attempt)
        if faults:
            raise RestoreError("; ".join(faults))
        _hand_over(attempt, owner)
        Path(attempt).rename(f"{places.staging}/data")
        sync_folder(places.staging)
        sync_folder(parent(places.staging))
        journal = Journal(
            token=request.token,
            phase=plan.STAGED,
            fingerprint=request.fingerprint(proof.digest),
            sha256=proof.digest,
            revision=proof.revision + request.bump_revision,
            key_count=proof.key_count,
            former=before.latest_finished if before else "",
        )
        note(places, journal)
    except BaseException as error:
        clear(places, stale=True)
        if isinstance(error, OSError):
            raise RestoreError(f"{path} could not be restored into {places.staging}: {error}") from error
        raise
    return journal


def read_copy(folder: str) -> dict[str, Any]:
    """Return what the database in a data folder holds, every page of it read. Raises DamagedDatabase, OSError."""
    with open_database(f"{folder}/{DATABASE}") as database:
        return {
            "revision": database.revision,
            "entries": database.entries,
            "members": sorted(member["name"] for member in database.members),
        }


def _hand_over(folder: str, owner: Owner) -> None:
    """Give a folder and all in it to its owner, for nobody else to read, and have it on disk."""
    for path in [*Path(folder).rglob("*"), Path(folder)]:
        _give(path, owner, 0o700 if path.is_dir() else 0o600)


def _give(path: Path, owner: Owner, mode: int) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fchown(descriptor, owner.uid, owner.gid)
        os.fchmod(descriptor, mode)
        if owner.label:
            os.setxattr(descriptor, SELINUX, owner.label)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def note(places: Layout, journal: Journal) -> None:
    """Write the journal so that it survives a power cut. Raises OSError."""
    write_atomically(places.journal, journal.text().encode(), 0o600)


def clear(places: Layout, stale: bool = False) -> None:
    """Remove the folder of copies; with stale those of other tokens too, which killed runs left."""
    folders = [places.staging]
    if stale:
        prefix = places.staging[: -len(places.token)]
        folders += [str(path) for path in Path(parent(prefix)).iterdir() if str(path).startswith(prefix)]
    for folder in folders:
        _remove(folder)


def _remove(folder: str) -> None:
    """Remove a folder, into which a program whose run was killed may still be writing for a moment."""
    for _attempt in range(5):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.lexists(folder):
            return
        time.sleep(0.2)


def swap(places: Layout, journal: Journal, steps: tuple[str, ...]) -> Journal:
    """Make the restored data the live data. Raises OSError."""
    if journal.phase == plan.STAGED:
        journal = replace(journal.at(plan.SWAPPING), had_data="keep-old" in steps)
        note(places, journal)
    _rename(places, steps)
    journal = journal.at(plan.SWAPPED)
    note(places, journal)
    return journal


def roll_back(places: Layout, journal: Journal, steps: tuple[str, ...]) -> Journal:
    """Make the old data the live data again, and remove what had been live. Raises OSError."""
    if journal.phase != plan.STAGED:
        journal = journal.at(plan.ROLLING_BACK)
        note(places, journal)
    _rename(places, steps)
    clear(places)
    _remove(places.undone)
    journal = journal.at(plan.ROLLED_BACK)
    note(places, journal)
    return journal


def finish(places: Layout, journal: Journal) -> Journal:
    """Note that the restore is over. The old data stays where it is. Raises OSError."""
    clear(places)
    journal = journal.at(plan.FINISHED)
    note(places, journal)
    return journal


def _rename(places: Layout, steps: tuple[str, ...]) -> None:
    moves = {
        "keep-old": (places.live, places.kept),
        "put-new": (places.staged, places.live),
        "set-new-aside": (places.live, places.undone),
        "put-old": (places.kept, places.live),
    }
    for step in steps:
        source, target = moves[step]
        Path(source).rename(target)
        for folder in {parent(source), parent(target)}:
            sync_folder(folder)


# --- The running cluster ----------------------------------------------------------------------------------------------


def check_cluster(connection: Connection, journal: Journal, deadline: float) -> dict[str, Any]:
    """Return what a cluster with restored data shows, once all its members serve the same and what was restored.

    Alarms that came with the data are disarmed. Raises RestoreError.
    """
    disarmed: set[str] = set()
    faults: list[str] = []

    def missing(view: View) -> str:
        faults.extend(plan.cluster_faults(view))
        if faults:
            # Waiting does not mend it.
            return ""
        if view.leader and view.alarms:
            Etcdctl(connection).text("alarm", "disarm")
            disarmed.update(alarm.kind for alarm in view.alarms)
        return plan.not_yet(view, len(connection.endpoints), journal)

    view = wait_for(connection, missing, deadline, hashes=True, what="the restored cluster")
    if faults:
        raise RestoreError("; ".join(faults))
    count = count_keys(connection, journal.revision)
    if count != journal.key_count:
        raise RestoreError(
            f"the restored cluster has {count} keys at revision {journal.revision}, wanted {journal.key_count}"
        )
    _try_writing(connection, journal.token)
    seen = [member.hash for member in view.members if member.hash]
    return {
        "revision": view.revision,
        "key_count": count,
        "hash": seen[0].value if seen else None,
        "cluster_id": hexadecimal(view.cluster_ids[0]),
        "disarmed": sorted(disarmed),
    }


def count_keys(connection: Connection, revision: int) -> int:
    """Return how many keys there were at a revision, whatever was written or has expired since. Raises EtcdError."""
    body = {"key": ALL_KEYS, "range_end": ALL_KEYS, "count_only": True, "revision": str(revision)}
    gateway = Gateway(connection, connection.endpoints[0])
    try:
        return as_int(gateway.call("kv/range", body, COUNT_SECONDS).get("count"))
    except Refused as error:
        if not gateway_unusable(error):
            raise
    finally:
        gateway.close()
    # etcdctl knows this from 3.5 on, and has a number for it in this form only.
    words = ["get", "", "--prefix", "--count-only", "--write-out=fields", f"--rev={revision}"]
    found = re.search(r'"Count" : (\d+)', Etcdctl(connection).text(*words, deadline=COUNT_SECONDS))
    return int(found.group(1)) if found else 0


def _try_writing(connection: Connection, token: str) -> None:
    """Write a key through each member, read it through the next one, and delete it. Raises RestoreError, EtcdError."""
    key = f"plainkube/restore/{token}"
    for number, endpoint in enumerate(connection.endpoints):
        other = connection.endpoints[number - 1]
        writer = Etcdctl(connection.only(endpoint))
        writer.text("put", key, endpoint)
        try:
            found = Etcdctl(connection.only(other)).text("get", "--print-value-only", key).strip()
        finally:
            writer.text("del", key)
        if found != endpoint:
            raise RestoreError(f"{endpoint} wrote {endpoint!r} to the key {key}, but {other} found {found!r} there")


# --- Members that are lost or left over -------------------------------------------------------------------------------


def set_aside(places: Layout) -> None:
    """Rename the live data, and leave an empty folder of the same owner in its place. Raises OSError."""
    status = Path(places.data_dir).stat()
    Path(places.live).rename(places.kept)
    if places.live == places.data_dir:
        Path(places.data_dir).mkdir(0o700)
        os.chown(places.data_dir, status.st_uid, status.st_gid)
    sync_folder(parent(places.kept))


def salvage(member: str, target: str, connection: Connection, etcd: str, deadline: float) -> tuple[SnapshotProof, str]:
    """Make a snapshot that only root may read of what a stopped member's folder holds, and prove it.

    A server on a copy reads its log, where what was written last may stand alone. Returns also why that failed, empty
    if it did not: then the file is a copy of the database. Raises RestoreError, DamagedDatabase.
    """
    work = f"{target}.plainkube-work"
    made = f"{work}/snapshot.db"
    try:
        # A copy of everything, and the snapshot.
        needed = sum(path.stat().st_size for path in Path(member).rglob("*"))
        needed += Path(member, MEMBER_DATABASE).stat().st_size
        free = free_bytes(parent(target))
        if free < needed:
            raise RestoreError(
                f"{target}: its file system has {plan.megabytes(free)} free, wanted {plan.megabytes(needed)}: "
                "free space"
            )
        _remove(work)
        Path(work).mkdir(0o700)
        reason = ""
        try:
            _replay(member, work, made, connection, etcd, deadline)
        except EtcdError as error:
            reason = str(error)
            _copy(f"{member}/{MEMBER_DATABASE}", made)
        proof = prove(made, raw=bool(reason))
        Path(made).chmod(0o600)
        Path(made).rename(target)
        sync_folder(parent(target))
    except OSError as error:
        raise RestoreError(f"{member} could not be copied to {target}: {error}") from error
    finally:
        _remove(work)
    return proof, reason


def _replay(member: str, work: str, target: str, connection: Connection, etcd: str, deadline: float) -> None:
    """Take a snapshot of a server on a copy of a member's folder, which forgets the other members. Raises EtcdError."""
    server = ScratchServer(work, connection, etcd, ("--force-new-cluster",))
    shutil.copytree(member, f"{server.data_dir}/member")
    with server:
        # It answers before it has read all of its log, but counts only what is certain.
        count_keys(server.connection, 0)
        Etcdctl(server.connection).text("snapshot", "save", target, deadline=deadline)


def _copy(source: str, target: str) -> None:
    with open(source, "rb", buffering=0) as stream:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as written:
            while True:
                content = stream.read(COPY_CHUNK)
                if not content:
                    break
                written.write(content)
            written.flush()
            os.fsync(written.fileno())


def read_manifest(path: str) -> dict[str, Any]:
    """Return what was recorded beside a snapshot when it was taken, {} if nothing was. Raises RestoreError."""
    manifest = f"{path}.json"
    try:
        found = json.loads(Path(manifest).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RestoreError(f"{manifest}, the manifest of the snapshot, cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise RestoreError(f"{manifest}: found {type(found).__name__}, wanted the manifest of a snapshot")
    return found


def revision_of(member: str) -> int:
    """Return the revision of the database of a member that does not run, 0 if there is none or it is damaged."""
    try:
        with open_database(f"{member}/{MEMBER_DATABASE}") as database:
            return database.revision
    except (DamagedDatabase, OSError):
        return 0


def has_data(member: str) -> bool:
    """Return whether there is a database that a member would start with."""
    return Path(member, MEMBER_DATABASE).is_file()
