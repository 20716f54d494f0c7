# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Thinking about backups of etcd: the configuration, which stored snapshot is meant, what restic is told, metrics.

A repository of restic holds one line of snapshots for a cluster, whichever of its hosts made them: restic's host is
the cluster's name. What is known of a snapshot stands in its tags, so that one look at the list answers whether a
backup is due and which one to restore. Only snapshots that were proven before are ever sent there.

Nothing here touches a disk or the network.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import quote

from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_client import EtcdError

SNAPSHOT_NAME = "etcd.db"
MANIFEST_NAME = SNAPSHOT_NAME + ".json"

# Kinds of what is stored. A snapshot has both of the first two.
SNAPSHOT_TAG = "plainkube-etcd"
PROVEN_TAG = "proven"
FILES_TAG = "plainkube-files"

KEEP_RULES = ("last", "hourly", "daily", "weekly", "monthly", "yearly")
# Files of a host change when it is renewed; the states before are worth as much as the newest.
KEEP_FILES = 10
VERIFY = ("file", "restore")

# A clock that is ahead by more makes snapshots that would be the newest for ever.
CLOCK_TOLERANCE = timedelta(minutes=5)

SNAPSHOT_ID = re.compile(r"[0-9a-f]{8,64}")
MOMENT = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d)(?::(\d\d))?(?:\.(\d+))?)?\s*(Z|[+-]\d\d:\d\d)?", flags=re.ASCII
)
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
SFTP = re.compile(r"sftp:(//)?([^/\s:]+)(?::(\d+)(?=/))?[:/](\S+)")
URL_PASSWORD = re.compile(r"(://[^/\s:@]*:)[^/\s@]+@")


class BackupError(EtcdError):
    """A backup that was not made, or something in the repository that is not as it has to be."""


class RepositoryMissing(BackupError):
    """There is no repository at its address."""


class RepositoryBusy(BackupError):
    """Somebody else works in the repository."""


# --- Configuration ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Configuration:
    """What the program is told by its configuration file, which holds no secret."""

    cluster: str
    host: str
    endpoints: tuple[str, ...]
    environment_file: str
    password_file: str
    folder: str
    cache: str
    ca_cert: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    timeout: float = 5.0
    verify: str = "restore"
    fresh_minutes: int = 30
    include: tuple[str, ...] = ()
    keep: Mapping[str, int] = field(default_factory=dict)
    read_data_subset: str = "10%"
    limit_upload: int = 0
    metrics_folder: str = ""
    sftp_key: str = ""
    sftp_known_hosts: str = ""
    restic: str = "restic"
    etcd: str = "etcd"
    etcdctl: str = "etcdctl"
    etcdutl: str = "etcdutl"


def configuration_from(values: Any, path: str) -> Configuration:
    """Return the configuration that a file holds. Raises BackupError with all faults at once."""
    if not isinstance(values, Mapping):
        raise BackupError(f"{path}: found {type(values).__name__}, wanted a mapping of names to values")
    known = {item.name: item for item in fields(Configuration)}
    required = ("cluster", "host", "endpoints", "environment_file", "password_file", "folder", "cache")
    faults = [f"{name}: a name that nothing reads" for name in sorted(set(values) - set(known))]
    faults += [f"{name}: missing" for name in required if not values.get(name)]
    if values.get("verify", "restore") not in VERIFY:
        faults.append(f"verify: found {values['verify']!r}, wanted {' or '.join(VERIFY)}")
    paths = ("environment_file", "password_file", "folder", "cache", "metrics_folder", "sftp_key", "sftp_known_hosts")
    for name in paths:
        if values.get(name) and not str(values[name]).startswith("/"):
            faults.append(f"{name}: found {values[name]!r}, wanted an absolute path")
    faults += [
        f"include: found {item!r}, wanted an absolute path" for item in values.get("include") or () if item[:1] != "/"
    ]
    for name, number in dict(values.get("keep") or {}).items():
        if name not in KEEP_RULES:
            faults.append(f"keep: found {name!r}, wanted {', '.join(KEEP_RULES)}")
        elif not isinstance(number, int) or isinstance(number, bool) or number < 0:
            faults.append(f"keep.{name}: found {number!r}, wanted a number of snapshots")
    if faults:
        raise BackupError(f"{path}: " + "; ".join(faults))
    given = {name: value for name, value in values.items() if value is not None}
    for name in ("endpoints", "include"):
        given[name] = tuple(given.get(name) or ())
    return Configuration(**given)


def parse_environment(text: str, path: str) -> dict[str, str]:
    """Return the variables of a file with lines NAME=value. No message shows a value: they are secrets.

    Raises BackupError.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals or not VARIABLE.fullmatch(name):
            raise BackupError(f"{path}: line {number}: wanted NAME=value")
        found[name] = value
    if not found.get("RESTIC_REPOSITORY"):
        raise BackupError(f"{path}: RESTIC_REPOSITORY is missing: it says where backups go")
    return found


def repository_of(environment: Mapping[str, str]) -> str:
    """Return the repository's address with the user and password of a rest server in it.

    Before version 0.17 restic reads them from nowhere else. The address goes to restic in its environment.
    """
    address = environment["RESTIC_REPOSITORY"]
    user, password = environment.get("RESTIC_REST_USERNAME", ""), environment.get("RESTIC_REST_PASSWORD", "")
    found = re.fullmatch(r"(rest:https?://)([^@/]+(?:/.*)?)", address)
    if not found or not user:
        return address
    return f"{found[1]}{quote(user, safe='')}:{quote(password, safe='')}@{found[2]}"


def shown_repository(address: str) -> str:
    """Return the address of a repository without a password that stands in it."""
    return URL_PASSWORD.sub(r"\1***@", address)


def without_secrets(text: str, secrets: Iterable[str]) -> str:
    """Return text with every secret in it masked."""
    for secret in sorted((secret for secret in secrets if len(secret) > 3), key=len, reverse=True):
        text = text.replace(secret, "***")
    return URL_PASSWORD.sub(r"\1***@", text)


# --- What is in the repository ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """A snapshot in the repository, as its tags describe it."""

    id: str
    time: datetime
    tags: tuple[str, ...]

    def tag(self, name: str) -> str:
        """Return the value of the tag name=value, empty if there is none."""
        return next((tag[len(name) + 1 :] for tag in self.tags if tag.startswith(name + "=")), "")

    def number(self, name: str) -> int:
        """Return the number in a tag, -1 if there is none."""
        text = self.tag(name)
        return int(text) if text.isdigit() else -1

    @property
    def proven(self) -> bool:
        """Whether it was proven before it was sent."""
        return PROVEN_TAG in self.tags

    @property
    def short_id(self) -> str:
        """The beginning of its id, which is what people type."""
        return self.id[:8]

    def described(self) -> dict[str, Any]:
        """Return what is known of it, for metrics and for people."""
        return {
            "id": self.id,
            "time": moment_text(self.time),
            "timestamp": self.time.timestamp(),
            "proven": self.proven,
            "revision": self.number("revision"),
            "key_count": self.number("keys"),
            "size": self.number("size"),
            "sha256": self.tag("sha256"),
            "cluster_id": self.tag("cluster-id"),
            "node": self.tag("node"),
        }


def parse_moment(text: str) -> datetime:
    """Return the moment of a text such as 2026-11-21T17:05:22.1069Z; without a zone it is UTC. Raises ValueError."""
    found = MOMENT.fullmatch(text.strip())
    if not found:
        raise ValueError(f"found {text!r}, wanted a time such as 2026-11-21T17:05:00Z")
    day, minutes, seconds, fraction, zone = found.groups()
    # Python 3.9 knows neither Z nor more than six digits.
    whole = f"{day}T{minutes or '00:00'}:{seconds or '00'}.{(fraction or '0')[:6]:0<6}"
    return datetime.fromisoformat(whole + ("+00:00" if zone in (None, "Z") else zone)).astimezone(timezone.utc)


def moment_text(moment: datetime) -> str:
    """Return a moment as people write it."""
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def stored_from(answer: Any) -> list[Stored]:
    """Return the snapshots that `restic snapshots --json` prints, oldest first. Raises BackupError."""
    try:
        found = [
            Stored(str(item["id"]), parse_moment(str(item["time"])), tuple(item.get("tags") or ()))
            for item in answer or ()
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise BackupError(f"restic's list of snapshots is not as it is known: {error!r}") from None
    return sorted(found, key=lambda stored: stored.time)


def newest(stored: Iterable[Stored]) -> Stored | None:
    """Return the newest proven snapshot."""
    proven = [item for item in stored if item.proven]
    return max(proven, key=lambda item: item.time) if proven else None


def fresh(stored: Iterable[Stored], now: datetime, since: datetime) -> Stored | None:
    """Return the newest proven snapshot if it was made since a moment, which makes another one needless.

    Those from the future do not count: they would put off all backups until their time has come.
    """
    there = newest(item for item in stored if item.time <= now + CLOCK_TOLERANCE)
    return there if there and there.time >= since else None


def from_the_future(stored: Iterable[Stored], now: datetime) -> list[Stored]:
    """Return the snapshots whose host had a clock that was ahead of this one's."""
    return [item for item in stored if item.time > now + CLOCK_TOLERANCE]


def chosen(stored: Sequence[Stored], wanted: str, now: datetime) -> Stored:
    """Return the proven snapshot that is meant by `newest`, the beginning of an id, or a time: the last one until then.

    Raises BackupError that says what there is.
    """
    proven = [item for item in stored if item.proven]
    if not proven:
        raise BackupError("the repository holds no proven snapshot of this cluster")
    span = f"there are {len(proven)}, from {moment_text(proven[0].time)} to {moment_text(proven[-1].time)}"
    if wanted in ("newest", "latest"):
        # Those from the future only if there are no others.
        until = [item for item in proven if item.time <= now + CLOCK_TOLERANCE]
        return (until or proven)[-1]
    if SNAPSHOT_ID.fullmatch(wanted):
        matches = [item for item in proven if item.id.startswith(wanted)]
        if len(matches) == 1:
            return matches[0]
        raise BackupError(f"{len(matches)} proven snapshots have an id that begins with {wanted}, wanted one; {span}")
    try:
        moment = parse_moment(wanted)
    except ValueError as error:
        raise BackupError(f"snapshot: {error}, an id of at least 8 hexadecimal digits, or newest; {span}") from None
    before = [item for item in proven if item.time <= moment]
    if not before:
        raise BackupError(f"no proven snapshot was made until {moment_text(moment)}; {span}")
    return before[-1]


def unchanged(stored: Stored | None, cluster_id: str, revision: int) -> bool:
    """Return whether a snapshot holds what the cluster holds now: the same revision of the same cluster.

    A restore gives a cluster another id, so revisions are never compared across one.
    """
    return bool(
        stored and cluster_id and stored.tag("cluster-id") == cluster_id and stored.number("revision") == revision
    )


def snapshot_tags(manifest: Mapping[str, Any], host: str) -> list[str]:
    """Return the tags of a proven snapshot."""
    return [
        SNAPSHOT_TAG,
        PROVEN_TAG,
        f"revision={manifest['revision']}",
        f"keys={manifest['key_count']}",
        f"size={manifest['size']}",
        f"sha256={manifest['sha256']}",
        f"cluster-id={manifest['cluster_id']}",
        f"node={host}",
    ]


# --- What restic is told ----------------------------------------------------------------------------------------------


def sftp_arguments(repository: str, key: str, known_hosts: str) -> list[str]:
    """Return restic's arguments for a repository at sftp: with a key of its own. Raises BackupError."""
    if not repository.startswith("sftp:") or not key:
        return []
    found = SFTP.fullmatch(repository)
    if not found:
        raise BackupError(f"repository {repository}: wanted sftp:user@host:/folder or sftp://user@host:port//folder")
    _slashes, who, port, _folder = found.groups()
    words = ["ssh", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", f"UserKnownHostsFile={known_hosts}"]
    words += ["-o", "IdentitiesOnly=yes", "-i", key, *(["-p", port] if port else []), who, "-s", "sftp"]
    return ["-o", "sftp.command=" + " ".join(words)]


def list_arguments(cluster: str, *tags: str) -> list[str]:
    """Return restic's arguments for the list of a cluster's snapshots that have all these tags."""
    return ["snapshots", "--json", "--host", cluster, "--tag", ",".join(tags)]


def backup_arguments(cluster: str, tags: Sequence[str], paths: Sequence[str]) -> list[str]:
    """Return restic's arguments for storing paths. --force: read them, whatever their times say."""
    words = ["backup", "--json", "--force", "--host", cluster]
    for tag in tags:
        words += ["--tag", tag]
    return [*words, "--", *paths]


def stored_id(output: str) -> str:
    """Return the id, or its beginning, of what `restic backup --json` says that it stored. Raises BackupError."""
    for line in reversed(output.splitlines()):
        try:
            said = json.loads(line)
        except ValueError:
            continue
        if isinstance(said, dict) and said.get("message_type") == "summary" and said.get("snapshot_id"):
            return str(said["snapshot_id"])
    raise BackupError("restic ended well but did not say which snapshot it stored")


def forget_arguments(cluster: str, keep: Mapping[str, int]) -> list[str]:
    """Return restic's arguments for retention; none if everything is to be kept.

    Proven snapshots alone are looked at and counted, of whichever host, as one line; the newest of them always stays.
    """
    rules = {name: number for name, number in keep.items() if number}
    if not rules:
        return []
    rules["last"] = max(1, rules.get("last", 0))
    words = ["forget", "--json", "--host", cluster, "--tag", f"{SNAPSHOT_TAG},{PROVEN_TAG}", "--group-by", "host"]
    for name in KEEP_RULES:
        if name in rules:
            words += [f"--keep-{name}", str(rules[name])]
    return words


def forget_files_arguments(cluster: str, host: str) -> list[str]:
    """Return restic's arguments for the retention of a host's own files."""
    tags = f"{FILES_TAG},node={host}"
    return ["forget", "--json", "--host", cluster, "--tag", tags, "--group-by", "host", "--keep-last", str(KEEP_FILES)]


def restic_fault(words: str, repository: str, rc: int) -> BackupError:
    """Return the error for what restic said when it failed, in words that say what to do.

    From 0.17 on restic tells the reasons apart by its exit code, before by what it says alone.
    """
    lines = [_message(line.strip()) for line in words.splitlines() if line.strip()]
    fatal = next((line for line in lines if line.startswith("Fatal:")), lines[-1] if lines else "it said nothing")
    reason = fatal[len("Fatal:") :].strip() if fatal.startswith("Fatal:") else fatal
    there = f"repository {shown_repository(repository)}"
    if rc == 12 or "wrong password" in words:
        return BackupError(
            f"{there}: wrong password: none of its keys opens with the one that was given. "
            "Give the password that the repository was made with (plainkube_backup_password)"
        )
    if rc == 11 or "already locked" in words:
        return RepositoryBusy(f"{there}: somebody else works in it: {reason}")
    absent = ("no such file or directory", "does not exist", "NoSuchBucket", "<config/> not found")
    if rc == 10 or any(text in reason for text in absent):
        return RepositoryMissing(
            f"{there}: there is none at this address: {reason}. Is its disk mounted? Running site.yml makes a new one"
        )
    return BackupError(f"{there}: {reason}")


def _message(line: str) -> str:
    """Return the message in a line of restic's that may be JSON, as it is from 0.17 on for commands with --json."""
    try:
        said = json.loads(line)
    except ValueError:
        return line
    return str(said.get("message", line)) if isinstance(said, dict) else line


# --- Metrics and what is remembered of runs ---------------------------------------------------------------------------

RUNS = ("backup", "check", "rehearsal")


@dataclass(frozen=True)
class Record:
    """What is known of one kind of run on this host. Times are seconds since 1970, 0 for never."""

    last_run: float = 0.0
    last_success: float = 0.0
    ok: bool = False
    proven: bool = True
    seconds: float = 0.0
    reason: str = ""
    snapshot: Mapping[str, Any] = field(default_factory=dict)


def record_from(values: Any) -> Record:
    """Return a record as it was noted, an empty one for anything else."""
    names = {item.name for item in fields(Record)}
    return Record(**values) if isinstance(values, dict) and set(values) <= names else Record()


@dataclass(frozen=True)
class Metric:
    """One metric with its value for one cluster."""

    name: str
    help: str
    value: float


def metrics_of(run: str, record: Record) -> list[Metric]:
    """Return the metrics of one kind of run."""
    prefix = f"plainkube_etcd_{run}"
    found = [
        Metric(f"{prefix}_last_run_timestamp_seconds", f"When the last {run} ended.", record.last_run),
        Metric(f"{prefix}_last_run_ok", f"Whether the last {run} did what it is for.", float(record.ok)),
        Metric(
            f"{prefix}_last_success_timestamp_seconds",
            f"When a {run} ended well for the last time.",
            record.last_success,
        ),
        Metric(f"{prefix}_seconds", f"How long the last {run} took.", record.seconds),
    ]
    if run == "check":
        return found
    snapshot = record.snapshot
    about = "the newest stored snapshot" if run == "backup" else "the snapshot that was restored"
    found.append(
        Metric(f"{prefix}_proven", f"Whether {about} was found sound.", float(record.proven and bool(snapshot)))
    )
    if snapshot:
        found += [
            Metric(f"{prefix}_snapshot_timestamp_seconds", f"When {about} was made.", snapshot["timestamp"]),
            Metric(f"{prefix}_snapshot_bytes", f"Size of {about}.", snapshot["size"]),
            Metric(f"{prefix}_snapshot_revision", f"Revision of {about}.", snapshot["revision"]),
            Metric(f"{prefix}_snapshot_keys", f"Number of keys in {about}.", snapshot["key_count"]),
        ]
    return found


def metrics_text(run: str, cluster: str, record: Record) -> str:
    """Return the metrics of one kind of run as a file for node_exporter's textfile collector."""
    lines = []
    for metric in metrics_of(run, record):
        lines += [
            f"# HELP {metric.name} {metric.help}",
            f"# TYPE {metric.name} gauge",
            f'{metric.name}{{cluster="{cluster}"}} {metric.value:.17g}',
        ]
    return "\n".join(lines) + "\n"
