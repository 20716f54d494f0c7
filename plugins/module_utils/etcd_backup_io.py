# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The program etcd-backup: takes proven snapshots, keeps them in a repository of restic, and rehearses the restore.

It runs on the etcd hosts from systemd timers, without Ansible, from the same files as the modules. It keeps nothing
that matters on the host: whether a backup is due is read from the repository, and that one host at a time works is
seen to by a lease in etcd, which writes no key and ends by itself when its host dies. Without quorum there is no such
lease; then a member backs up all the same, and at worst two hosts do.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from ansible_collections.plainkube.cluster.plugins.module_utils import etcd_backup as plan
from ansible_collections.plainkube.cluster.plugins.module_utils.bbolt import DamagedDatabase, SnapshotProof, digest_of
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_backup import (
    BackupError,
    Configuration,
    Record,
    RepositoryBusy,
    RepositoryMissing,
    Stored,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_client import (
    Connection,
    Etcdctl,
    EtcdError,
    Gateway,
    Refused,
    as_int,
    run_command,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_cluster import Hash
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_snapshot_io import (
    prove_with_manifest,
    rehearse,
    take_snapshot,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_snapshots import UnsoundSnapshot, Wish
from ansible_collections.plainkube.cluster.plugins.module_utils.files_io import sync_folder, write_atomically

CONFIGURATION = "/etc/plainkube/etcd-backup/config.json"

# A transfer may take long, and the unit that runs this has its own deadline.
RESTIC_SECONDS = 12 * 3600.0
# Checks and retention lock the whole repository for a while.
BUSY_SECONDS = 900.0
BUSY_PAUSE_SECONDS = 5.0

LEASE_SECONDS = 60
# How long a host waits for the one that is at work, so that it takes over when that one fails.
TURN_SECONDS = 1800.0
TURN_PAUSE_SECONDS = 2.0
# What does not change the revision (users, lists of members) is stored anew after this time.
UNCHANGED = timedelta(hours=24)

# For the largest database over a slow network.
SNAPSHOT_SECONDS = 1200.0
# Room that a restore needs beside the copies: a new member's log, and some.
SPARE_BYTES = 128 << 20


# --- The repository ---------------------------------------------------------------------------------------------------


class Restic:
    """restic with the repository, the password and the keys of the configuration. Its command lines hold no secret."""

    def __init__(self, configuration: Configuration) -> None:
        """Read the files with secrets. Raises BackupError."""
        self.configuration = configuration
        self.environment = plan.parse_environment(_read(configuration.environment_file), configuration.environment_file)
        self.repository = self.environment["RESTIC_REPOSITORY"]
        self.environment["RESTIC_REPOSITORY"] = plan.repository_of(self.environment)
        self.sftp = plan.sftp_arguments(self.repository, configuration.sftp_key, configuration.sftp_known_hosts)
        password = _read(configuration.password_file).strip()
        if not password:
            raise BackupError(f"{configuration.password_file}: it is empty, wanted the repository's password")
        hidden = [value for name, value in self.environment.items() if name != "RESTIC_REPOSITORY"]
        self.secrets = [password, *hidden]
        self.environment["RESTIC_PASSWORD_FILE"] = configuration.password_file
        self.environment["RESTIC_CACHE_DIR"] = configuration.cache
        self.environment["RESTIC_PROGRESS_FPS"] = "0.0001"

    def run(self, *arguments: str, folder: str = "/") -> str:
        """Return what restic prints. folder: where it runs.

        Waits while somebody else works in the repository, and removes locks whose owners are gone.
        Raises RepositoryMissing, RepositoryBusy, BackupError.
        """
        until = time.monotonic() + BUSY_SECONDS
        while True:
            finished = self._run(*arguments, folder=folder)
            if finished.rc == 0:
                return finished.stdout
            words = f"{finished.stderr}\n{finished.stdout}" if finished.rc != 3 else finished.stderr
            fault = plan.restic_fault(plan.without_secrets(words, self.secrets), self.repository, finished.rc)
            if not isinstance(fault, RepositoryBusy) or time.monotonic() > until:
                raise fault
            self._run("unlock", folder=folder)
            time.sleep(BUSY_PAUSE_SECONDS)

    def _run(self, *arguments: str, folder: str) -> Any:
        words = [self.configuration.restic]
        if self.configuration.limit_upload:
            words.append(f"--limit-upload={self.configuration.limit_upload}")
        words += self.sftp
        return run_command(["env", f"--chdir={folder}", *words, *arguments], RESTIC_SECONDS, self.environment)

    def json(self, *arguments: str, folder: str = "/") -> Any:
        """Return what restic prints as JSON. Raises as run does."""
        text = self.run(*arguments, folder=folder)
        try:
            return json.loads(text or "null")
        except ValueError:
            raise BackupError(f"restic {arguments[0]}: found {text[:200]!r}, wanted JSON") from None

    def snapshots(self, *tags: str) -> list[Stored]:
        """Return the snapshots of this cluster that have all these tags, oldest first. Raises as run does."""
        return plan.stored_from(self.json(*plan.list_arguments(self.configuration.cluster, *tags)))

    def store(self, tags: Sequence[str], folder: str, paths: Sequence[str]) -> Stored:
        """Store paths below folder and return the new snapshot. Raises as run does."""
        text = self.run(*plan.backup_arguments(self.configuration.cluster, tags, paths), folder=folder)
        return Stored(plan.stored_id(text), datetime.now(timezone.utc), tuple(tags))

    def restore(self, stored: Stored, target: str) -> None:
        """Write a snapshot's files into a folder. Raises as run does."""
        self.run("restore", stored.id, f"--target={target}", "--verify")


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise BackupError(f"{path}: {error.strerror}") from None


# --- One host at a time -----------------------------------------------------------------------------------------------


def lease_id(cluster: str) -> int:
    """Return the id of the lease whose holder may back this cluster up."""
    digest = hashlib.sha256(f"plainkube etcd-backup {cluster}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1 | 1


def _ask_any(connection: Connection, path: str, body: dict[str, str]) -> dict[str, Any]:
    """Return the first answer that a member gives. Raises the last member's error."""
    last: EtcdError = EtcdError("no endpoint")
    for endpoint in connection.endpoints:
        gateway = Gateway(connection, endpoint)
        try:
            return gateway.call(path, body)
        except EtcdError as error:
            last = error
            if isinstance(error, Refused) and "already exists" in error.reason:
                break
        finally:
            gateway.close()
    raise last


@contextlib.contextmanager
def turn(configuration: Configuration, connection: Connection) -> Iterator[str]:
    """Hold this cluster's turn while the block runs; gives why it could not be had, empty if it is held.

    It is a lease with an id that follows from the cluster's name: a second one cannot be granted, nothing is written
    into the key space, and it ends LEASE_SECONDS after its holder died. Raises BackupError if another host holds it
    for too long.
    """
    lease = str(lease_id(configuration.cluster))
    until = time.monotonic() + TURN_SECONDS
    waited = False
    while True:
        try:
            _ask_any(connection, "lease/grant", {"TTL": str(LEASE_SECONDS), "ID": lease})
            break
        except EtcdError as error:
            if not isinstance(error, Refused) or "already exists" not in error.reason:
                yield f"etcd gives no lease ({error}): another host may do the same now, which costs space and no more"
                return
        if not waited:
            say("another host is at work; waiting for its end")
        waited = True
        if time.monotonic() > until:
            raise BackupError(f"another host has been at work for {TURN_SECONDS / 60:g} minutes; look at its journal")
        time.sleep(TURN_PAUSE_SECONDS)
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(LEASE_SECONDS / 4):
            # Who cannot renew it for long loses it, and another host begins: no harm but space.
            with contextlib.suppress(EtcdError):
                _ask_any(connection, "lease/keepalive", {"ID": lease})

    renewing = threading.Thread(target=renew, daemon=True)
    renewing.start()
    try:
        yield ""
    finally:
        ended.set()
        renewing.join()
        with contextlib.suppress(EtcdError):
            _ask_any(connection, "lease/revoke", {"ID": lease})


def present(connection: Connection) -> tuple[str, int]:
    """Return the cluster's id and its revision now, as its quorum has it. Raises EtcdError."""
    header = Etcdctl(connection).json("get", "plainkube-etcd-backup").get("header") or {}
    return f"{as_int(header.get('cluster_id')) & (1 << 64) - 1:x}", as_int(header.get("revision"))


# --- What the program does --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """How a run ended. fault: what went wrong after what it is for was done; changed: whether it did anything.

    as_of: the moment whose state is safe by it, in seconds since 1970, if that is not now.
    """

    text: str
    stored: Stored | None = None
    fault: str = ""
    changed: bool = True
    as_of: float = 0.0


class Unproven(BackupError):
    """A snapshot that was not found sound."""


def back_up(configuration: Configuration, since: datetime) -> Outcome:
    """Take a snapshot and store it, unless the repository has one that was made since a moment, or holds the same.

    Raises Unproven, BackupError, EtcdError, OSError.
    """
    restic = Restic(configuration)
    notes = store_files(configuration, restic)
    connection = connection_of(configuration)
    with turn(configuration, connection) as alone:
        if alone:
            say(alone)
        stored, moment = restic.snapshots(plan.SNAPSHOT_TAG), datetime.now(timezone.utc)
        ahead = plan.from_the_future(stored, moment)
        for item in ahead:
            when = plan.moment_text(item.time)
            say(f"snapshot {item.short_id} of {item.tag('node')} is of {when}, which is yet to come: see its clock")
        young = plan.fresh(stored, moment, since)
        if young:
            text = f"nothing to do: {_title(young, moment)} is young enough{notes}"
            return Outcome(text, young, changed=bool(notes), as_of=young.time.timestamp())
        quorum = True
        try:
            cluster_id, revision = present(connection)
        except EtcdError as error:
            say(f"the cluster has no quorum or cannot be asked ({error}): taking what a member has")
            quorum, cluster_id, revision = False, "", 0
        recent = plan.fresh(stored, moment, moment - UNCHANGED)
        if plan.unchanged(recent, cluster_id, revision):
            assert recent
            text = f"nothing new: {_title(recent, moment)} has the present revision {revision}"
            return Outcome(text + notes, recent, changed=bool(notes))
        with scratch(configuration, "stage") as folder:
            manifest = take(configuration, connection, folder, quorum)
            paths = [plan.SNAPSHOT_NAME, plan.MANIFEST_NAME]
            stored_now = restic.store(plan.snapshot_tags(manifest, configuration.host), folder, paths)
        text = (
            f"stored snapshot {stored_now.short_id}: revision {manifest['revision']}, {manifest['key_count']} keys, "
            f"{manifest['size']} bytes, proven, taken from {manifest.get('endpoint', 'a member')}"
        )
        # Retention would take one that is yet to come for the newest, and remove what was just stored.
        fault = retention_waits(ahead) if ahead else forget(configuration, restic)
        return Outcome(text + notes, stored_now, fault)


def take(configuration: Configuration, connection: Connection, folder: str, quorum: bool) -> dict[str, Any]:
    """Take a proven snapshot into a folder and return its manifest. Raises Unproven, EtcdError."""
    wish = Wish(
        dest=folder,
        name=plan.SNAPSHOT_NAME,
        verify=configuration.verify,
        without_quorum=not quorum,
        deadline=SNAPSHOT_SECONDS,
        etcd=configuration.etcd,
    )
    try:
        return take_snapshot(connection, wish).manifest
    except (DamagedDatabase, UnsoundSnapshot) as error:
        raise Unproven(f"the snapshot was thrown away: {error}") from error


def _title(stored: Stored, moment: datetime) -> str:
    minutes = max(0, round((moment - stored.time).total_seconds() / 60))
    return f"snapshot {stored.short_id}, stored by {stored.tag('node')} {minutes} minutes ago"


def forget(configuration: Configuration, restic: Restic) -> str:
    """Apply the rules of retention, and return what went wrong, empty if nothing did."""
    rules = [plan.forget_arguments(configuration.cluster, configuration.keep)]
    if configuration.include:
        rules.append(plan.forget_files_arguments(configuration.cluster, configuration.host))
    try:
        for arguments in rules:
            if arguments and rules[0]:
                restic.run(*arguments)
    except BackupError as error:
        return f"but old snapshots could not be forgotten: {error}"
    return ""


def retention_waits(ahead: Sequence[Stored]) -> str:
    """Return why nothing was forgotten while there are snapshots from the future, and what to do."""
    ids = " ".join(item.short_id for item in ahead)
    return (
        f"but no old snapshot was forgotten, since {len(ahead)} are of a time that is yet to come: set the hosts' "
        f"clocks right, then remove those with `restic forget {ids}`"
    )


def store_files(configuration: Configuration, restic: Restic) -> str:
    """Store this host's own files if they changed since they were stored. Returns what to say of it."""
    paths = [path for path in configuration.include if os.path.lexists(path)]
    for path in sorted(set(configuration.include) - set(paths)):
        say(f"{path}, which is to be backed up too, is not on this host")
    if not paths:
        return ""
    digest = digest_of_files(paths)
    tags = [plan.FILES_TAG, f"node={configuration.host}"]
    there = restic.snapshots(*tags)
    if there and there[-1].tag("digest") == digest:
        return ""
    stored = restic.store([*tags, f"digest={digest}"], "/", paths)
    return f"; stored this host's files ({', '.join(paths)}) as {stored.short_id}"


def digest_of_files(paths: Sequence[str]) -> str:
    """Return a digest over names, modes and contents of files and of all below folders. Raises OSError."""
    digest = hashlib.sha256()
    for top in paths:
        found = [Path(top)]
        if Path(top).is_dir() and not Path(top).is_symlink():
            found += sorted(Path(top).rglob("*"))
        for path in found:
            status = path.lstat()
            content = b""
            if path.is_symlink():
                content = str(path.readlink()).encode()
            elif path.is_file():
                content = path.read_bytes()
            word = f"{path} {status.st_mode:o} {status.st_uid} {status.st_gid} {len(content)}\n"
            digest.update(word.encode("utf-8", "surrogateescape") + content)
    return digest.hexdigest()[:32]


def check(configuration: Configuration) -> Outcome:
    """Let restic check the repository, a part of its data included, after giving back the room of what was forgotten.

    Raises BackupError.
    """
    restic = Restic(configuration)
    if plan.forget_arguments(configuration.cluster, configuration.keep):
        restic.run("prune")
    restic.run("check", f"--read-data-subset={configuration.read_data_subset}")
    return Outcome(f"the repository is sound; read {configuration.read_data_subset} of its data")


def try_restore(configuration: Configuration) -> Outcome:
    """Restore the newest snapshot of the repository into a scratch server and compare. Raises BackupError, OSError."""
    restic = Restic(configuration)
    stored = plan.chosen(restic.snapshots(plan.SNAPSHOT_TAG, plan.PROVEN_TAG), "newest", datetime.now(timezone.utc))
    with scratch(configuration, "rehearsal") as folder:
        # It is restored beside what was fetched.
        proof, manifest = bring(restic, stored, folder, copies=2)
        path = str(Path(folder, plan.SNAPSHOT_NAME))
        recorded = Hash(**manifest["hash_kv"]) if manifest.get("hash_kv") else None
        try:
            found = rehearse(
                connection_of(configuration), configuration.etcd, path, proof, recorded, folder, serve=True
            )
        except EtcdError as error:
            raise Unproven(f"snapshot {stored.short_id} cannot be restored: {error}") from error
    text = (
        f"restored snapshot {stored.short_id} of {plan.moment_text(stored.time)} into a scratch server: revision "
        f"{proof.revision}, {proof.key_count} keys, HashKV {found.value}"
    )
    return Outcome(text + (" as recorded" if recorded else ", none was recorded"), stored)


def fetch(configuration: Configuration, wanted: str, target: str) -> Outcome:
    """Write a stored snapshot to a file, and its manifest beside it. Raises BackupError, OSError."""
    restic = Restic(configuration)
    listed = restic.snapshots(plan.SNAPSHOT_TAG, plan.PROVEN_TAG)
    stored = plan.chosen(listed, wanted, datetime.now(timezone.utc))
    title = f"snapshot {stored.short_id} of {plan.moment_text(stored.time)}, revision {stored.number('revision')}"
    if Path(target).is_file() and digest_of(target).file == stored.tag("sha256") and Path(target + ".json").is_file():
        return Outcome(f"{target} is {title} already", stored, changed=False)
    Path(target).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with scratch(configuration, "fetch", beside=target) as folder:
        bring(restic, stored, folder)
        # The manifest last: a snapshot without one is known to be no finished copy.
        Path(target + ".json").unlink(missing_ok=True)
        for name, path in ((plan.SNAPSHOT_NAME, target), (plan.MANIFEST_NAME, target + ".json")):
            with Path(folder, name).open("rb") as stream:
                os.fsync(stream.fileno())
            Path(folder, name).rename(path)
        sync_folder(str(Path(target).parent))
    return Outcome(f"fetched {title} to {target}", stored)


def bring(restic: Restic, stored: Stored, folder: str, copies: int = 1) -> tuple[SnapshotProof, dict[str, Any]]:
    """Bring a stored snapshot into a folder, prove it, and return the proof and its manifest.

    Raises Unproven, BackupError, OSError.
    """
    statistics = os.statvfs(folder)
    free, wanted = statistics.f_bavail * statistics.f_frsize, stored.number("size") * copies + SPARE_BYTES
    if free < wanted:
        raise BackupError(f"{folder}: {free} bytes are free, wanted {wanted} for snapshot {stored.short_id}")
    try:
        restic.restore(stored, folder)
    except BackupError as error:
        raise Unproven(f"snapshot {stored.short_id} cannot be read back: {error}") from error
    path = str(Path(folder, plan.SNAPSHOT_NAME))
    try:
        proof, manifest = prove_with_manifest(path)
    except (EtcdError, OSError) as error:
        raise Unproven(f"snapshot {stored.short_id} is not what was stored: {error}") from error
    if not manifest or proof.digest != stored.tag("sha256"):
        raise Unproven(
            f"snapshot {stored.short_id} is not what was stored: its SHA-256 is {proof.digest}, its tag in the "
            f"repository says {stored.tag('sha256')}" + ("" if manifest else "; it has no manifest")
        )
    return proof, manifest


@contextlib.contextmanager
def scratch(configuration: Configuration, name: str, beside: str = "") -> Iterator[str]:
    """Give an empty folder that only root may read, and remove it and what an earlier run left of it.

    beside: a file whose file system it has to be on. One run at a time on this host has a folder of a name.
    """
    own = Path(configuration.folder)
    folder = Path(beside).parent / f".{name}.plainkube-new" if beside else own / name
    own.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (own / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700, parents=True)
        try:
            yield str(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def initialize(configuration: Configuration) -> Outcome:
    """Make the repository if there is none. Raises BackupError."""
    restic = Restic(configuration)
    with turn(configuration, connection_of(configuration)):
        try:
            restic.run("cat", "config")
        except RepositoryMissing:
            restic.run("init")
            return Outcome(f"made the repository {plan.shown_repository(restic.repository)}")
    return Outcome(f"the repository {plan.shown_repository(restic.repository)} is there", changed=False)


# --- Runs and what is remembered of them ------------------------------------------------------------------------------


def recorded(configuration: Configuration, run: str, work: Callable[[], Outcome]) -> Outcome:
    """Do the work, note how it ended, and write the metrics. Raises what the work raises."""
    note = Path(configuration.folder, f"{run}.json")
    before = Record()
    with contextlib.suppress(OSError, ValueError):
        before = plan.record_from(json.loads(note.read_text(encoding="utf-8")))
    started = time.time()
    record = before
    try:
        outcome = work()
        end = time.time()
        record = Record(
            last_run=end,
            last_success=outcome.as_of or end,
            ok=not outcome.fault,
            proven=True,
            seconds=end - started,
            reason=outcome.fault or outcome.text,
            snapshot=outcome.stored.described() if outcome.stored else {},
        )
        return outcome
    except BaseException as error:
        end = time.time()
        unproven = isinstance(error, Unproven)
        record = replace(
            before,
            last_run=end,
            ok=False,
            proven=before.proven and not unproven,
            seconds=end - started,
            reason=str(error),
        )
        raise
    finally:
        _write(configuration, run, note, record)


def _write(configuration: Configuration, run: str, note: Path, record: Record) -> None:
    """Note a run. That this fails must not hide how the run ended."""
    try:
        note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(str(note), (json.dumps(asdict(record), sort_keys=True) + "\n").encode(), 0o600)
        if configuration.metrics_folder:
            path = Path(configuration.metrics_folder, f"plainkube-etcd-{run}.prom")
            write_atomically(str(path), plan.metrics_text(run, configuration.cluster, record).encode(), 0o644)
    except OSError as error:
        say(f"metrics were not written: {error}")


def say(text: str) -> None:
    """Tell the journal, at once."""
    print(text, flush=True)


# --- Command line -----------------------------------------------------------------------------------------------------


def load_configuration(path: str) -> Configuration:
    """Return the configuration in a file. Raises BackupError."""
    try:
        values = json.loads(_read(path))
    except ValueError as error:
        raise BackupError(f"{path}: no JSON: {error}") from None
    return plan.configuration_from(values, path)


def connection_of(configuration: Configuration) -> Connection:
    """Return the connection to etcd that the configuration describes."""
    return Connection(
        endpoints=configuration.endpoints,
        ca_cert=configuration.ca_cert,
        client_cert=configuration.client_cert,
        client_key=configuration.client_key,
        timeout=configuration.timeout,
        etcdctl=configuration.etcdctl,
        etcdutl=configuration.etcdutl,
    )


def listing(configuration: Configuration) -> Outcome:
    """Return the stored snapshots as lines of JSON, oldest first. Raises BackupError."""
    stored = Restic(configuration).snapshots(plan.SNAPSHOT_TAG)
    return Outcome("\n".join(json.dumps(item.described(), sort_keys=True) for item in stored), changed=False)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    main = argparse.ArgumentParser(prog="etcd-backup", description="Proven backups of etcd in a repository of restic.")
    main.add_argument("--config", default=CONFIGURATION, metavar="FILE", help=f"default: {CONFIGURATION}")
    commands = main.add_subparsers(dest="command", required=True)
    backup = commands.add_parser("backup", help="store a proven snapshot, unless there is one that is as good")
    when = backup.add_mutually_exclusive_group()
    when.add_argument("--now", action="store_true", help="also if the newest one is young")
    when.add_argument("--since", metavar="TIME", help="also if the newest one is young, but was made before this time")
    commands.add_parser("check", help="check the repository and a part of its data")
    commands.add_parser("rehearse", help="restore the newest snapshot into a scratch server and compare")
    commands.add_parser("list", help="the stored snapshots, one line of JSON each")
    commands.add_parser("init", help="make the repository if there is none")
    out = commands.add_parser("fetch", help="write a stored snapshot to a file")
    out.add_argument(
        "--snapshot", default="newest", help="newest, the beginning of an id, or a time: the last until then"
    )
    out.add_argument("--to", required=True, metavar="FILE")
    return main


def _since(configuration: Configuration, options: argparse.Namespace) -> datetime:
    """Return how young a snapshot must be to make another one needless. Raises BackupError."""
    now = datetime.now(timezone.utc)
    if options.now:
        return now
    if not options.since:
        return now - timedelta(minutes=configuration.fresh_minutes)
    try:
        return plan.parse_moment(options.since)
    except ValueError as error:
        raise BackupError(f"--since: {error}") from None


def _end(_number: int, _frame: Any) -> None:
    raise BackupError("ended by a signal before it was done")


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; the exit code is 0 if that worked."""
    options = parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _end)
    os.umask(0o077)
    try:
        there = load_configuration(options.config)
        work: dict[str, Callable[[], Outcome]] = {
            "backup": lambda: recorded(there, "backup", lambda: back_up(there, _since(there, options))),
            "check": lambda: recorded(there, "check", lambda: check(there)),
            "rehearse": lambda: recorded(there, "rehearsal", lambda: try_restore(there)),
            "list": lambda: listing(there),
            "init": lambda: initialize(there),
            "fetch": lambda: fetch(there, options.snapshot, options.to),
        }
        outcome = work[options.command]()
    except (EtcdError, OSError) as error:
        print(f"etcd-backup {options.command}: {error}", file=sys.stderr, flush=True)
        return 1
    if outcome.text:
        say(outcome.text if outcome.changed or options.command == "list" else f"unchanged: {outcome.text}")
    if outcome.fault:
        print(f"etcd-backup {options.command}: {outcome.fault}", file=sys.stderr, flush=True)
        return 1
    return 0
