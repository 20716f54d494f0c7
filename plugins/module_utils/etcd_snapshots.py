# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Thinking about snapshots of etcd: how they are named, what is recorded of them, whether one is due, what differs.

Nothing here touches a disk or the network.
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

from ansible_collections.plainkube.cluster.plugins.module_utils.bbolt import KeyValue, SnapshotProof
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_client import EtcdError
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_cluster import Hash, Seen, minor_of

DEFAULT_NAME = "etcd-{time}-{revision}.db"
NAME_FIELDS = ("time", "revision", "cluster_id", "member")
MANIFEST_SUFFIX = ".json"
TIME_FORMAT = "%Y%m%dT%H%M%SZ"
FILE, RESTORE = "file", "restore"
VERIFY = (FILE, RESTORE)
# The database may grow while it is read, and its pages are sent whole.
ROOM_FACTOR = 1.1
# What a restored copy has beside its database: etcd makes its log this large at once.
LOG_BYTES = 64_000_000


class SnapshotError(EtcdError):
    """A snapshot that was not taken, or is not what was wanted."""


class UnsoundSnapshot(SnapshotError):
    """A snapshot that came whole and is not what its member serves, or does not restore to what it holds."""


@dataclass(frozen=True)
class Wish:
    """What a caller wants. dest: a folder; min_age: seconds; min_free: bytes that stay free; deadline: seconds."""

    dest: str
    name: str = DEFAULT_NAME
    min_age: int = 0
    min_free: int = 0
    verify: str = FILE
    cluster_id: str = ""
    without_quorum: bool = False
    deadline: float = 600.0
    etcd: str = "etcd"


@dataclass(frozen=True)
class Source:
    """The member to take the snapshot from, as it described itself before."""

    endpoint: str
    title: str
    member_id: int
    name: str
    cluster_id: int
    version: str
    revision: int
    db_size: int


@dataclass(frozen=True)
class Existing:
    """A snapshot in the folder: its file, and what was recorded when it was proven."""

    path: str
    size: int
    manifest: Mapping[str, Any]


# --- Before -----------------------------------------------------------------------------------------------------------


def wish_faults(wish: Wish) -> list[str]:
    """Return all that is wrong with what is wanted."""
    faults = []
    if not wish.dest.startswith("/"):
        faults.append(f"dest: found {wish.dest!r}, wanted the absolute path of a folder")
    if wish.verify not in VERIFY:
        faults.append(f"verify: found {wish.verify!r}, wanted {' or '.join(VERIFY)}")
    for option in ("min_age", "min_free"):
        if getattr(wish, option) < 0:
            faults.append(f"{option}: found {getattr(wish, option)}, wanted 0 or more")
    if wish.deadline <= 0:
        faults.append(f"deadline: found {wish.deadline:g}, wanted a number of seconds above 0")
    if wish.cluster_id and number_of(wish.cluster_id) is None:
        faults.append(f"cluster_id: found {wish.cluster_id!r}, wanted hexadecimal digits as etcdctl shows them")
    return faults + name_faults(wish.name)


def number_of(identity: str) -> int | None:
    """Return an id that is written in hexadecimal digits as a number, None if it is none."""
    try:
        return int(identity, 16)
    except ValueError:
        return None


def name_faults(template: str) -> list[str]:
    """Return what is wrong with the template of a file's name."""
    try:
        fields = [
            field for _text, field, _format, _conversion in string.Formatter().parse(template) if field is not None
        ]
        unknown = sorted({field for field in fields if field not in NAME_FIELDS})
        if unknown:
            known = ", ".join(f"{{{field}}}" for field in NAME_FIELDS)
            return [f"name: {template!r} has {{{unknown[0]}}}, wanted none but {known}"]
        name = template.format(**dict.fromkeys(NAME_FIELDS, "0"))
    except (ValueError, IndexError, AttributeError, KeyError) as error:
        return [f"name: {template!r} is no template: {error}"]
    if not name or "/" in name or name.startswith(".") or name.endswith((MANIFEST_SUFFIX, ".part")):
        return [
            f"name: found {template!r}, wanted a plain file name without a slash, not beginning with a dot and not "
            f"ending with {MANIFEST_SUFFIX} or .part"
        ]
    return []


def source_of(seen: Seen) -> Source:
    """Return the member to take a snapshot from. Raises SnapshotError if it said nothing about itself."""
    if not seen.status:
        raise SnapshotError(f"{seen.title} says nothing about itself")
    return Source(
        endpoint=seen.endpoint,
        title=seen.title,
        member_id=seen.status.member_id,
        name=seen.name,
        cluster_id=seen.status.cluster_id,
        version=seen.status.version,
        revision=seen.status.revision,
        db_size=seen.status.db_size,
    )


def source_faults(wish: Wish, source: Source, cluster_ids: Sequence[int]) -> list[str]:
    """Return why no snapshot should be taken from a member. cluster_ids: of all members that answered."""
    faults = []
    found = sorted(f"{cluster:x}" for cluster in cluster_ids)
    if len(found) > 1:
        faults.append(
            f"the endpoints belong to different clusters, {' and '.join(found)}: name the members of one cluster only"
        )
    elif wish.cluster_id and number_of(wish.cluster_id) != source.cluster_id:
        faults.append(
            f"{source.endpoint} belongs to the cluster {source.cluster_id:x}, wanted {wish.cluster_id}: these are "
            "the endpoints of another cluster, or it was restored since; if it is meant, change cluster_id"
        )
    return faults


def needed_bytes(wish: Wish, db_size: int) -> int:
    """Return what must be free where the snapshot goes. A restore to prove it takes the same again."""
    size = int(db_size * ROOM_FACTOR)
    return size + wish.min_free + (size + LOG_BYTES if wish.verify == RESTORE else 0)


def space_fault(wish: Wish, db_size: int, free: int) -> str:
    """Return why there is too little space, empty if there is enough."""
    needed = needed_bytes(wish, db_size)
    if free >= needed:
        return ""
    return (
        f"{wish.dest}: its file system has {free} bytes free, wanted {needed} for a database of {db_size} bytes "
        f"(verify: {wish.verify}, min_free: {wish.min_free}): free space, or choose another dest"
    )


def recorded_faults(manifest: Any) -> str:
    """Return what a manifest lacks to be relied on, empty if nothing."""
    if not isinstance(manifest, Mapping):
        return "it is no object"
    wanted = {"sha256": str, "size": int, "revision": int, "cluster_id": str, "verified": str, "taken_at": str}
    missing = [name for name, kind in wanted.items() if not isinstance(manifest.get(name), kind)]
    return f"{', '.join(missing)} missing" if missing else ""


def taken_at(manifest: Mapping[str, Any]) -> datetime | None:
    """Return when a snapshot was taken, None if its manifest does not say it well."""
    try:
        moment = datetime.strptime(str(manifest.get("taken_at")), "%Y-%m-%dT%H:%M:%SZ")
    except ValueError:
        return None
    return moment.replace(tzinfo=timezone.utc)


def good_enough(wish: Wish, source: Source, existing: Iterable[Existing], now: datetime) -> Existing | None:
    """Return the newest snapshot that makes another one needless: proven, young, and of the present revision.

    One from the future is not young: it would put off all others until its time has come.
    """
    found = []
    for one in existing:
        moment = taken_at(one.manifest)
        age = (now - moment).total_seconds() if moment else -1.0
        if (
            moment
            and 0 <= age < wish.min_age
            and not recorded_faults(one.manifest)
            and one.size == one.manifest["size"]
            and one.manifest["revision"] == source.revision
            and one.manifest["cluster_id"] == f"{source.cluster_id:x}"
            and (one.manifest["verified"] == RESTORE or wish.verify == FILE)
        ):
            found.append((moment, one))
    return max(found, key=lambda pair: pair[0])[1] if found else None


# --- Afterwards -------------------------------------------------------------------------------------------------------


def file_name(template: str, source: Source, revision: int | str, moment: datetime) -> str:
    """Return the name of a snapshot's file."""
    name = template.format(
        time=moment.strftime(TIME_FORMAT),
        revision=revision,
        cluster_id=f"{source.cluster_id:x}",
        member=source.name or f"{source.member_id:x}",
    )
    return name.replace("/", "_")


def proof_faults(source: Source, proof: SnapshotProof) -> list[str]:
    """Return in what a proven file is not what the member said that it has."""
    faults = []
    ids = [member["id"] for member in proof.members]
    # Before 3.6 another place has the list of members, and this one may be from before a restore.
    if minor_of(source.version) >= (3, 6) and f"{source.member_id:x}" not in ids:
        faults.append(
            f"it lists the members {', '.join(ids) or '(none)'}, wanted {source.member_id:x} among them, from which it "
            "was taken: it is of another cluster"
        )
    if proof.revision < source.revision:
        faults.append(f"it is at revision {proof.revision}, but the member was at {source.revision} before")
    return faults


def restore_faults(proof: SnapshotProof, revision: int, key_count: int, found: Hash, wanted: Hash) -> list[str]:
    """Return in what a restored copy differs from the file, and its data from the member's. (Compacted equally.)"""
    faults = []
    if revision != proof.revision:
        faults.append(f"restored, it is at revision {revision}, wanted {proof.revision}")
    if key_count != proof.key_count:
        faults.append(f"restored, it has {key_count} keys, wanted {proof.key_count}")
    if found.value != wanted.value:
        faults.append(
            f"restored, its HashKV at revision {proof.revision} is {found.value}, the member that it was taken from "
            f"has {wanted.value}: the member's file does not hold what the member serves"
        )
    return faults


def manifest_of(
    source: Source,
    proof: SnapshotProof,
    name: str,
    moment: datetime,
    seconds: float,
    host: str,
    hash_kv: Hash | None = None,
) -> dict[str, Any]:
    """Return what is recorded beside a snapshot. hash_kv: of a restored copy that has the member's."""
    facts = asdict(proof)
    return {
        "file": name,
        "sha256": facts.pop("digest"),
        **facts,
        "cluster_id": f"{source.cluster_id:x}",
        "member_id": f"{source.member_id:x}",
        "member": source.name,
        "endpoint": source.endpoint,
        "etcd_version": source.version,
        "host": host,
        "taken_at": moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "seconds": round(seconds, 3),
        "verified": RESTORE if hash_kv else FILE,
        "hash_kv": asdict(hash_kv) if hash_kv else None,
    }


def manifest_faults(manifest: Mapping[str, Any], proof: SnapshotProof) -> list[str]:
    """Return in what a file is not the one that its manifest was written for."""
    found = {"sha256": proof.digest, "size": proof.size, "revision": proof.revision, "key_count": proof.key_count}
    return [
        f"found {name} {value}, its manifest recorded {manifest[name]}"
        for name, value in found.items()
        if name in manifest and manifest[name] != value
    ]


# --- Keys -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Content:
    """What decides whether a key is the same in two snapshots: its value, not when it came."""

    digest: bytes
    lease: int


def content_of(key: KeyValue) -> Content:
    """Return what is compared of a key."""
    return Content(hashlib.blake2b(key.value, digest_size=16).digest(), key.lease)


@dataclass(frozen=True)
class Difference:
    """Names of keys that only the second has, that only the first has, and whose value or lease is another."""

    added: list[bytes]
    removed: list[bytes]
    changed: list[bytes]


def difference(first: Mapping[bytes, Content], second: Iterable[tuple[bytes, Content]]) -> Difference:
    """Return what happened from the first to the second snapshot."""
    added, changed = [], []
    seen = set()
    for key, content in second:
        seen.add(key)
        before = first.get(key)
        if before is None:
            added.append(key)
        elif (before.digest, before.lease) != (content.digest, content.lease):
            changed.append(key)
    return Difference(sorted(added), sorted(key for key in first if key not in seen), sorted(changed))
