# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Taking a snapshot of etcd and proving it; the modules, the backup program and the command line below share it.

etcdctl writes into a file that stands here already, in a folder that nobody else may enter. A second process follows
it, computes the digest while the file grows and reads the pages while etcdctl waits for the disk. Only a proven file
gets a name that others see, and after it the manifest: a snapshot without one is known to be unfinished.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import socket
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ansible_collections.plainkube.cluster.plugins.module_utils import etcd_snapshots as plan
from ansible_collections.plainkube.cluster.plugins.module_utils.bbolt import (
    SnapshotProof,
    Worker,
    open_database,
    verify_snapshot,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_client import (
    ENVIRONMENT,
    GRACE_SECONDS,
    Connection,
    Etcdctl,
    EtcdError,
    connection_from,
    last_words,
    run_command,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_cluster import Hash, best_snapshot_member
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_snapshots import (
    Existing,
    SnapshotError,
    Source,
    UnsoundSnapshot,
    Wish,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.files_io import write_atomically

LOCK_NAME = ".plainkube-etcd.lock"
WORK_PREFIX = ".plainkube-etcd-"
PAUSE_SECONDS = 0.1
# The history may be compacted between the snapshot and the question for the member's hash, once in minutes.
ATTEMPTS = 3
HASH_SECONDS = 120.0
RESTORE_SECONDS = 1800.0


@dataclass(frozen=True)
class Decision:
    """What a run would do. existing: a snapshot that makes another one needless."""

    source: Source
    path: str
    needed: int
    free: int
    existing: Existing | None


@dataclass(frozen=True)
class Taken:
    """A proven snapshot and its manifest. changed: it was taken now."""

    path: str
    manifest: dict[str, Any]
    changed: bool


# --- Look -------------------------------------------------------------------------------------------------------------


def decide(connection: Connection, wish: Wish) -> Decision:
    """Return what take_snapshot would do, without touching anything.

    Raises SnapshotError with all that speaks against it, EtcdError if the cluster cannot be asked.
    """
    from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_cluster_io import survey

    faults = plan.wish_faults(wish)
    if faults:
        raise SnapshotError("; ".join(faults))
    view = survey(connection, hashes=False)
    source = plan.source_of(best_snapshot_member(view, without_quorum=wish.without_quorum))
    faults = plan.source_faults(wish, source, view.cluster_ids) + folder_faults(wish.dest)
    now = datetime.now(timezone.utc)
    existing = plan.good_enough(wish, source, read_folder(wish.dest), now)
    free = free_bytes(wish.dest)
    fault = "" if existing else plan.space_fault(wish, source.db_size, free)
    faults += [fault] if fault else []
    if faults:
        raise SnapshotError("; ".join(faults))
    path = existing.path if existing else str(Path(wish.dest, plan.file_name(wish.name, source, source.revision, now)))
    return Decision(source, path, plan.needed_bytes(wish, source.db_size), free, existing)


def folder_faults(dest: str) -> list[str]:
    """Return why snapshots should not be written into a folder; one that is not there yet is fine."""
    folder = Path(dest)
    if not folder.exists():
        return []
    if not folder.is_dir():
        return [f"dest: {dest} is no folder: name one, and the file with name"]
    mode = folder.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        return [f"dest: {dest} may be written by everybody (mode {stat.S_IMODE(mode):04o}), wanted 0700"]
    if not os.access(dest, os.W_OK | os.X_OK) or os.statvfs(dest).f_flag & os.ST_RDONLY:
        return [f"dest: {dest} cannot be written here: is its file system mounted read-only?"]
    return []


def free_bytes(dest: str) -> int:
    """Return what is free where a folder is, or will be."""
    folder = Path(dest)
    while not folder.exists():
        folder = folder.parent
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def read_manifest(path: str) -> dict[str, Any] | None:
    """Return what was recorded beside a snapshot, None if nothing was. Raises SnapshotError."""
    manifest = path + plan.MANIFEST_SUFFIX
    try:
        found = json.loads(Path(manifest).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise SnapshotError(f"{manifest}, the manifest of a snapshot, cannot be read: {error}") from None
    fault = plan.recorded_faults(found)
    if fault:
        raise SnapshotError(f"{manifest} is no manifest of a snapshot: {fault}")
    return dict(found)


def read_folder(dest: str) -> list[Existing]:
    """Return the snapshots in a folder that have a manifest."""
    found = []
    if Path(dest).is_dir():
        for manifest in sorted(Path(dest).glob("*" + plan.MANIFEST_SUFFIX)):
            path = str(manifest)[: -len(plan.MANIFEST_SUFFIX)]
            # A manifest that is no good, or alone, is no reason not to take the next snapshot.
            with contextlib.suppress(SnapshotError, OSError):
                recorded = read_manifest(path)
                if recorded:
                    found.append(Existing(path, Path(path).stat().st_size, recorded))
    return found


def prove_with_manifest(path: str) -> tuple[SnapshotProof, dict[str, Any] | None]:
    """Return the proof of a file and its manifest, if it has one.

    Raises DamagedDatabase, SnapshotError if the two do not belong together, OSError.
    """
    manifest = read_manifest(path)
    proof = verify_snapshot(path)
    faults = plan.manifest_faults(manifest, proof) if manifest else []
    if faults:
        raise SnapshotError(f"{path} is not the file that its manifest was written for: {'; '.join(faults)}")
    return proof, manifest


# --- Act --------------------------------------------------------------------------------------------------------------


def take_snapshot(connection: Connection, wish: Wish) -> Taken:
    """Take a snapshot and prove it, unless there is one that is as good.

    Raises SnapshotError, DamagedDatabase, EtcdError; then nothing is left behind, and what was there before still is.
    """
    faults = plan.wish_faults(wish) + folder_faults(wish.dest)
    if faults:
        raise SnapshotError("; ".join(faults))
    try:
        Path(wish.dest).mkdir(0o700, parents=True, exist_ok=True)
        with _alone(wish):
            decision = decide(connection, wish)
            if decision.existing and _still_sound(decision.existing):
                return Taken(decision.path, dict(decision.existing.manifest), changed=False)
            _require_space(wish, decision)
            return _take(connection, wish, decision.source)
    except OSError as error:
        raise SnapshotError(f"{error.filename or wish.dest}: {error.strerror or error}") from error


@contextlib.contextmanager
def _alone(wish: Wish) -> Iterator[None]:
    """Wait until no other run writes into the folder, and remove what killed ones left. Raises SnapshotError."""
    until = time.monotonic() + wish.deadline
    descriptor = os.open(Path(wish.dest, LOCK_NAME), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise SnapshotError(
                        f"{wish.dest}: another run has been taking a snapshot there for {wish.deadline:g} s: wait for "
                        "its end, or see what holds it up"
                    ) from None
                time.sleep(PAUSE_SECONDS)
        for stale in Path(wish.dest).glob(WORK_PREFIX + "*"):
            if stale.is_dir() and not stale.is_symlink():
                shutil.rmtree(stale, ignore_errors=True)
        yield
    finally:
        os.close(descriptor)


def _still_sound(existing: Existing) -> bool:
    """Return whether a snapshot is what was recorded; if not, another one is due."""
    with contextlib.suppress(EtcdError, OSError):
        prove_with_manifest(existing.path)
        return True
    return False


def _require_space(wish: Wish, decision: Decision) -> None:
    fault = plan.space_fault(wish, decision.source.db_size, decision.free)
    if fault:
        raise SnapshotError(fault)


def _take(connection: Connection, wish: Wish, source: Source) -> Taken:
    work = str(Path(wish.dest, f"{WORK_PREFIX}{os.getpid()}"))
    Path(work).mkdir(0o700)
    title = f"the snapshot of {source.title} at {source.endpoint}"
    try:
        for attempt in range(1, ATTEMPTS + 1):
            began, moment = time.monotonic(), datetime.now(timezone.utc)
            file, proof = _stream(connection.only(source.endpoint), wish, title, work)
            faults = plan.proof_faults(source, proof)
            if faults:
                raise UnsoundSnapshot(f"{title}: {'; '.join(faults)}")
            found = None
            if wish.verify == plan.RESTORE:
                wanted = _hash_of(connection, source, proof.revision)
                if not wanted or wanted.compact_revision != proof.compact_revision:
                    if attempt < ATTEMPTS:
                        continue
                    raise SnapshotError(
                        f"{title}: its history was compacted each time before the snapshot could be compared with the "
                        f"member, {ATTEMPTS} times: see what compacts so often, or use verify: {plan.FILE}"
                    )
                found = rehearse(connection, wish.etcd, file, proof, wanted, work)
            break
        name = plan.file_name(wish.name, source, proof.revision, moment)
        manifest = plan.manifest_of(source, proof, name, moment, time.monotonic() - began, socket.gethostname(), found)
        path = str(Path(wish.dest, name))
        Path(file).rename(path)
        # This makes both names survive a power cut.
        write_atomically(path + plan.MANIFEST_SUFFIX, (json.dumps(manifest, indent=2) + "\n").encode(), 0o600)
        return Taken(path, manifest, changed=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _stream(connection: Connection, wish: Wish, title: str, work: str) -> tuple[str, SnapshotProof]:
    """Let etcdctl write the snapshot of one member, and prove it. Raises SnapshotError, DamagedDatabase, OSError."""
    file = f"{work}/snapshot.db"
    with contextlib.suppress(FileNotFoundError):
        Path(file).unlink()
    # etcdctl writes beside the name that it is told and renames; it takes a file that is there as it is.
    descriptor = os.open(file + ".part", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with Worker("follow", descriptor, title) as follower:
            command = Etcdctl(connection)
            finished = run_command(
                [connection.etcdctl, *command.flags(wish.deadline), "snapshot", "save", file],
                wish.deadline + GRACE_SECONDS,
                ENVIRONMENT,
            )
            if finished.rc:
                raise SnapshotError(f"{title} was not sent: {last_words(finished)}")
            follower.tell()
            proof = SnapshotProof(**follower.result())
        there, held = Path(file).stat(), os.fstat(descriptor)
        if (there.st_ino, there.st_size) != (held.st_ino, proof.size):
            raise SnapshotError(f"{title}: found {there.st_size} bytes, but {proof.size} were proven")
    finally:
        os.close(descriptor)
    return file, proof


def _hash_of(connection: Connection, source: Source, revision: int) -> Hash | None:
    """Return HashKV of the member at a revision, None if its history was compacted beyond that. Raises EtcdError."""
    from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_cluster_io import MemberApi

    api = MemberApi(connection, source.endpoint)
    try:
        return api.hash(revision, HASH_SECONDS)
    except EtcdError as error:
        if "has been compacted" in str(error):
            return None
        raise
    finally:
        api.close()


def rehearse(
    connection: Connection,
    etcd: str,
    path: str,
    proof: SnapshotProof,
    wanted: Hash | None,
    work: str,
    serve: bool = False,
) -> Hash:
    """Restore a proven snapshot into a scratch folder, read the copy, and return its HashKV. work: a private folder.

    wanted: HashKV of the member that it was taken from with the same compact revision, if that is known.
    serve: ask a server that serves the copy, also where its file can be read without one.
    Raises SnapshotError if the copy is not what it has to be, EtcdError if it could not be made.
    """
    from ansible_collections.plainkube.cluster.plugins.module_utils import etcd_restore, etcd_restore_io
    from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_cluster_io import MemberApi
    from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_scratch_io import ScratchServer

    folder = f"{work}/rehearsal"
    shutil.rmtree(folder, ignore_errors=True)
    Path(folder).mkdir(0o700)
    server = ScratchServer(folder, connection, etcd)
    layout = etcd_restore_io.find_layout(server.data_dir, "rehearsal")
    host = etcd_restore_io.look_at_host(layout, etcd, connection.etcdutl, connection.etcdctl)
    if not host.tool:
        raise SnapshotError(f"nothing here can restore a snapshot: {host.tools_seen}: install etcdutl, or name it")
    request = etcd_restore.Request(
        token="rehearsal",
        name=server.name,
        peer_urls=(server.peer_url,),
        members={server.name: (server.peer_url,)},
        bump_revision=0,
    )
    try:
        finished = run_command(etcd_restore.restore_command(request, host.tool, path, server.data_dir), RESTORE_SECONDS)
        if finished.rc:
            raise SnapshotError(f"{host.tool.program} could not restore the snapshot: {last_words(finished)}")
        database = f"{server.data_dir}/{etcd_restore_io.DATABASE}"
        with open_database(database) as copy:
            revision, key_count = copy.revision, copy.key_count
        if host.tool.version >= (3, 6) and not serve:
            # Of the copy, not of the snapshot: it writes into the file that it hashes.
            words = [connection.etcdutl, "hashkv", database, f"--rev={proof.revision}", "--write-out=json"]
            finished = run_command(words, HASH_SECONDS)
            if finished.rc:
                raise SnapshotError(f"etcdutl could not hash the restored copy: {last_words(finished)}")
            answer = json.loads(finished.stdout)
            found = Hash(answer["hash"], answer["hashRevision"], max(0, answer["compactRevision"]))
        else:
            with server:
                api = MemberApi(server.connection, server.endpoint)
                try:
                    found = api.hash(proof.revision, HASH_SECONDS)
                    revision = api.status().revision
                finally:
                    api.close()
                key_count = etcd_restore_io.count_keys(server.connection, proof.revision)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    faults = plan.restore_faults(proof, revision, key_count, found, wanted or found)
    if faults:
        raise UnsoundSnapshot(f"the snapshot, proven as a file, is no good: {'; '.join(faults)}")
    return found


# --- Command line -----------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    main_parser = argparse.ArgumentParser(prog="etcd-snapshot", description="Proven snapshots of etcd.")
    commands = main_parser.add_subparsers(dest="command", required=True)
    take = commands.add_parser("take", help="take a snapshot, unless there is one that is as good")
    take.add_argument("--endpoints", required=True, help="URLs of the members, with commas between")
    for name in ("ca-cert", "client-cert", "client-key"):
        take.add_argument(f"--{name}")
    for name in ("etcdctl", "etcdutl"):
        take.add_argument(f"--{name}", default=name)
    take.add_argument("--timeout", type=float, default=5.0, help="seconds that one question may take")
    take.add_argument("--dest", required=True, help="folder")
    for name, kind in (("name", str), ("verify", str), ("cluster-id", str), ("etcd", str)):
        take.add_argument(f"--{name}", type=kind, default=getattr(Wish, name.replace("-", "_")))
    for name in ("min-age", "min-free"):
        take.add_argument(f"--{name}", type=int, default=0)
    take.add_argument("--deadline", type=float, default=Wish.deadline)
    take.add_argument("--without-quorum", action="store_true")
    verify = commands.add_parser("verify", help="prove a snapshot, and that it is the one of its manifest")
    verify.add_argument("path")
    return main_parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says, and print what came of it as JSON. The exit code is 0 if that worked."""
    from dataclasses import asdict, fields

    options = vars(parser().parse_args(arguments))
    os.umask(0o077)
    try:
        if options["command"] == "verify":
            proof, manifest = prove_with_manifest(options["path"])
            answer: dict[str, Any] = {**asdict(proof), "manifest": manifest}
        else:
            options["endpoints"] = options["endpoints"].split(",")
            wish = Wish(**{field.name: options[field.name] for field in fields(Wish)})
            answer = asdict(take_snapshot(connection_from(options), wish))
    except (EtcdError, OSError) as error:
        print(f"etcd-snapshot {options['command']}: {error}", file=sys.stderr)
        return 1
    print(json.dumps(answer))
    return 0
