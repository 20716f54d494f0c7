# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Thinking about a move of keys from the v2 store of etcd to v3: what speaks against it, what is still to be copied.

How it is known that nothing is missing. Each write into the v2 store raises its index by one, and each has an event.
A look reads all keys, each at an index not below the one that the look began with; the events from there on, applied in
order, bring what was read to any later index. An index without an event says that something was written that events do
not show (a hidden key, a refreshed lifetime, the cluster's own notes): then only another look tells. So a look, and
every index after it accounted for until the writers are frozen, is a comparison of every key and value.

Nothing here touches a network or a disk.
"""

from __future__ import annotations

import binascii
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, NamedTuple

from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_client import EtcdError
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_cluster import View, problems
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_restore import LOG_BYTES, megabytes
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_v2_files import hidden, hidden_roots

REPLACEMENT = "\ufffd"
REMOVALS = frozenset({"delete", "expire", "compareAndDelete"})
EXPIRATION = "expire"
DIGEST_BYTES = 32

# What an etcd server takes in one transaction unless it is told otherwise.
OPERATIONS_AT_MOST = 128
REQUEST_BYTES = 1_572_864
# A request is more than its keys and values.
ROOM_BYTES = 64
# Below this etcd raises the lifetime of a lease by itself.
LEASE_SECONDS_AT_LEAST = 2
# As many keys with a lifetime are copied while the writers are frozen, with the seconds that are left then.
LATE_AT_MOST = 2000
EVENT_SECONDS = 3600
MASTER_LEASE_SECONDS = 15
NAMED_AT_MOST = 5
# The database is larger than keys and values: what it notes about each key, and free pages.
KEY_OVERHEAD = 150
OVERHEAD = 1.3
COPIES_ON_DISK = 3


class MigrationError(EtcdError):
    """A migration that must not go on like this."""


# --- What the v2 API answers ------------------------------------------------------------------------------------------


class Leaf(NamedTuple):
    """A key of the v2 store. expires: seconds since 1970, of the key or of a folder above it."""

    key: str
    value: str
    modified: int
    expires: float | None = None


def parse_expiration(text: str | None) -> float | None:
    """Return when a node expires, in seconds since 1970."""
    if not text:
        return None
    moment = datetime.strptime(text[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=timezone.utc)
    fraction = text[19:].rstrip("Z")
    return moment.timestamp() + (float(f"0{fraction}") if fraction.startswith(".") else 0.0)


def earlier(one: float | None, other: float | None) -> float | None:
    """Return the earlier of two moments that may not come at all."""
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)


def leaves(
    node: Mapping[str, Any], expires: float | None = None, expiring: dict[str, float] | None = None
) -> Iterator[Leaf]:
    """Yield the keys in an answer of the v2 API; what was not asked for recursively is not in it.

    expires: of the folder that it is in. expiring: gets the folders that expire with all that is in them.
    """
    waiting: list[tuple[Mapping[str, Any], float | None]] = [(node, expires)]
    while waiting:
        one, until = waiting.pop()
        if "expiration" in one:
            until = earlier(until, parse_expiration(one["expiration"]))
        if one.get("dir"):
            if until is not None and expiring is not None:
                expiring[one.get("key", "").rstrip("/") + "/"] = until
            waiting += [(child, until) for child in one.get("nodes") or ()]
        elif "key" in one:
            yield Leaf(one["key"], one.get("value", ""), one["modifiedIndex"], until)


def folders(node: Mapping[str, Any], expires: float | None = None) -> Iterator[tuple[str, float | None]]:
    """Yield path and lifetime of the folders that a listing of one folder names."""
    if "expiration" in node:
        expires = earlier(expires, parse_expiration(node["expiration"]))
    for child in node.get("nodes") or ():
        if child.get("dir"):
            yield child["key"], earlier(expires, parse_expiration(child.get("expiration")))


# --- Leases -----------------------------------------------------------------------------------------------------------


def lease_seconds(profile: str, key: str, expires: float | None, now: float) -> int:
    """Return the seconds of the lease that a key gets, 0 for none. Never less than what is left of its life.

    plain: what is left. kubernetes: an hour for events, the time between two renewals for the API servers' own
    addresses, and nothing else expires.
    """
    if profile == "kubernetes":
        kind = key.split("/", 3)[2:3]
        return {"events": EVENT_SECONDS, "masterleases": MASTER_LEASE_SECONDS}.get(kind[0] if kind else "", 0)
    if expires is None:
        return 0
    return bucket(expires - now)


def bucket(left: float) -> int:
    """Return the seconds of the lease for this many seconds that are left: a few leases serve many keys."""
    step = 1 if left <= 60 else 5 if left <= 600 else 60
    return max(LEASE_SECONDS_AT_LEAST, math.ceil(left / step) * step)


# --- Census -----------------------------------------------------------------------------------------------------------


@dataclass
class Found:
    """What was found of one kind: how many, and the first few by name."""

    count: int = 0
    names: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        self.count += 1
        if len(self.names) < NAMED_AT_MOST:
            self.names.append(name)

    def __str__(self) -> str:
        more = self.count - len(self.names)
        return ", ".join(self.names) + (f" and {more} more" if more else "")


@dataclass(frozen=True)
class Rules:
    """What may be migrated and how."""

    profile: str = "plain"
    hidden_keys: str = "copy"
    allow_replacement_characters: bool = False
    max_request_bytes: int = REQUEST_BYTES
    quota_bytes: int = 0


@dataclass
class Census:
    """What the v2 store holds, counted while it is read."""

    keys: int = 0
    bytes: int = 0
    largest_key: str = ""
    largest_bytes: int = 0
    expiring: int = 0
    replaced: Found = field(default_factory=Found)
    too_large: Found = field(default_factory=Found)
    # None: nobody could look.
    hidden: list[str] | None = None

    def add(self, leaf: Leaf, size: int, rules: Rules) -> None:
        self.keys += 1
        self.bytes += size
        if size > self.largest_bytes:
            self.largest_key, self.largest_bytes = leaf.key, size
        if leaf.expires is not None:
            self.expiring += 1
        if size + ROOM_BYTES > rules.max_request_bytes:
            self.too_large.add(leaf.key)
        if REPLACEMENT in leaf.value or REPLACEMENT in leaf.key:
            self.replaced.add(leaf.key)

    @property
    def database_bytes(self) -> int:
        """How large the new database will be, rather too much than too little."""
        return math.ceil((self.bytes + self.keys * KEY_OVERHEAD) * OVERHEAD)

    def facts(self) -> dict[str, Any]:
        """Return what a module reports."""
        return {
            "keys": self.keys,
            "bytes": self.bytes,
            "largest_key": self.largest_key,
            "largest_bytes": self.largest_bytes,
            "expiring_keys": self.expiring,
            "hidden_keys": self.hidden,
            "replaced_values": self.replaced.count,
            "too_large_keys": self.too_large.count,
        }


def census_faults(census: Census, rules: Rules) -> list[str]:
    """Return what in the store itself speaks against a migration."""
    faults = []
    if census.replaced.count and not rules.allow_replacement_characters:
        faults.append(
            f"{census.replaced.count} keys or values hold U+FFFD, which is what the v2 API makes of bytes that are not "
            f"UTF-8, so that the true bytes cannot be read: {census.replaced}; write these keys anew, or set "
            "allow_replacement_characters if U+FFFD is what they hold"
        )
    if census.too_large.count:
        faults.append(
            f"{census.too_large.count} keys do not fit into requests of {rules.max_request_bytes} bytes: "
            f"{census.too_large}; run the new servers with a larger --max-request-bytes and say so with "
            "max_request_bytes, or remove these keys"
        )
    if census.hidden is None and rules.hidden_keys != "leave":
        faults.append(
            "hidden keys (with a part that starts with an underscore) are in no list of the API, and no data folder of "
            "a member is known in which to look for them: name one with members, or set hidden_keys to leave"
        )
    if census.hidden and rules.hidden_keys == "refuse":
        faults.append(
            f"there are hidden keys: {', '.join(census.hidden[:NAMED_AT_MOST])}; remove them, or set hidden_keys to "
            "copy or leave"
        )
    if rules.quota_bytes and census.database_bytes > rules.quota_bytes:
        faults.append(
            f"{census.keys} keys of {census.bytes} bytes are too much for a database that may grow to "
            f"{rules.quota_bytes}: set quota_bytes, here and for the new servers, to at least {census.database_bytes}"
        )
    return faults


def source_faults(
    view: View, endpoints: Iterable[str], indexes: Mapping[str, int], index: int, v3_keys: Mapping[str, int]
) -> list[str]:
    """Return what speaks against a cluster as a source.

    indexes: of the v2 store by endpoint, once it had time to come to index. v3_keys: how many there are, by endpoint.
    """
    endpoints = list(endpoints)
    faults = problems(view)
    if len(view.members) != len(endpoints):
        names = ", ".join(seen.title for seen in view.members)
        faults.append(
            f"the cluster has {len(view.members)} members ({names}) and {len(endpoints)} endpoints are named: "
            "name one endpoint of each member, and remove members that are gone"
        )
    faults += [f"{seen.title} is a learner: promote or remove it first" for seen in view.learners]
    faults += [
        f"{endpoint} lags: its v2 store has index {found} of {index}; wait until it has caught up, or repair it"
        for endpoint, found in sorted(indexes.items())
        if found < index
    ]
    found = ", ".join(f"{endpoint} has {count}" for endpoint, count in sorted(v3_keys.items()))
    if len(set(v3_keys.values())) > 1:
        faults.append(
            f"the members differ in what they have in v3 ({found} keys), as after an `etcdctl migrate` that did not "
            "run on equal data: rebuild the members that are wrong, or put back the data from before"
        )
    elif any(v3_keys.values()):
        faults.append(
            f"the v3 store is not empty ({found} keys), and what is in it would be lost: "
            "save what is needed of it, and delete it first"
        )
    return faults


def room_faults(folder: str, free: int, database_bytes: int, copies: int) -> list[str]:
    """Return whether a folder's file system is too small for the copies that a migration makes there."""
    wanted = copies * (database_bytes + LOG_BYTES)
    if free >= wanted:
        return []
    return [f"{folder}: {megabytes(free)} are free, wanted {megabytes(wanted)}: free space"]


# --- Mirror -----------------------------------------------------------------------------------------------------------


def digest(value: str) -> bytes:
    """Return what stands for a value when it is compared."""
    return hashlib.sha256(value.encode("utf-8", "surrogatepass")).digest()


class Held(NamedTuple):
    """What is known of a key: what the copy must hold of it, when it was written, and when it expires."""

    mark: bytes
    modified: int
    expires: float | None


class Mirror:
    """What the v2 store holds, and how that differs from the copy.

    keys: the store. base: the copy, what is on its way there included. pending: what the copy lacks, by key; None for a
    key that it must not have any more. index: the last one accounted for.
    """

    def __init__(self, profile: str = "plain", base: dict[str, bytes] | None = None) -> None:
        self.profile = profile
        self.keys: dict[str, Held] = {}
        self.base: dict[str, bytes] = {} if base is None else base
        self.pending: dict[str, str | None] = {}
        self.index = 0
        self.unseen = False
        self.hidden: set[str] = set()
        self.late = 0
        self._seen: set[str] = set()
        # Folders that expire with all that is in them.
        self.expiring: dict[str, float] = {}
        self._began = 0

    # A look

    def begin(self, index: int) -> None:
        """Begin to read everything; what is read is at this index or newer."""
        self.index = self._began = index
        self.unseen = False
        self._seen = set()
        self.expiring.clear()

    def read(self, leaf: Leaf) -> None:
        """Take a key that was read."""
        self._seen.add(leaf.key)
        self.hold(leaf)

    def end(self) -> None:
        """Everything has been read: what was not among it is gone, unless it came later."""
        gone = [key for key, held in self.keys.items() if key not in self._seen and held.modified <= self._began]
        for key in gone:
            self.drop(key)
        # A copy from another run may hold what no look of this one has seen.
        for key in self.base:
            if key not in self.keys:
                self.pending[key] = None
        self._seen = set()

    # Events

    def apply(self, event: Mapping[str, Any]) -> None:
        """Take the next event."""
        node = event["node"]
        key, index = node["key"], node["modifiedIndex"]
        if index <= self.index:
            return
        if index != self.index + 1:
            self.unseen = True
        self.index = index
        if hidden(key):
            # Events of these come by chance only.
            self.hidden.update(hidden_roots(key))
            self.unseen = True
        elif event["action"] in REMOVALS:
            if node.get("dir"):
                prefix = key.rstrip("/") + "/"
                for below in [name for name, held in self.keys.items() if name.startswith(prefix)]:
                    if self.keys[below].modified < index:
                        self.drop(below)
            self._drop_older(key, index)
        elif node.get("dir"):
            self._drop_older(key, index)
            if "expiration" in node or "expiration" in event.get("prevNode", {}):
                self.unseen = True
        else:
            held = self.keys.get(key)
            if held is None or held.modified < index:
                expires = parse_expiration(node.get("expiration"))
                for path, until in self.expiring.items():
                    if key.startswith(path):
                        expires = earlier(expires, until)
                self.hold(Leaf(key, node.get("value", ""), index, expires))

    def skip_to(self, index: int) -> None:
        """Account for indexes that have no event that can be seen."""
        if index > self.index:
            self.index = index
            self.unseen = True

    def _drop_older(self, key: str, index: int) -> None:
        held = self.keys.get(key)
        if held and held.modified < index:
            self.drop(key)

    # Keys

    def hold(self, leaf: Leaf) -> None:
        """Know what a key is, and whether the copy has it so."""
        mark = digest(leaf.value)
        if leaf.expires is not None and self.profile == "plain":
            # A lifetime that was renewed is a change, even where the value is the same.
            mark += str(math.floor(leaf.expires)).encode()
        self.keys[leaf.key] = Held(mark, leaf.modified, leaf.expires)
        if self.base.get(leaf.key) == mark:
            self.pending.pop(leaf.key, None)
        else:
            self.pending[leaf.key] = leaf.value

    def drop(self, key: str) -> None:
        """Know that a key is gone."""
        self.keys.pop(key, None)
        if key in self.base:
            self.pending[key] = None
        else:
            self.pending.pop(key, None)

    def is_late(self, key: str) -> bool:
        """Return whether a key is copied only at the end, since the lease that it gets tells the seconds left then."""
        held = self.keys.get(key)
        return held is not None and held.expires is not None and self.profile == "plain" and self.late <= LATE_AT_MOST

    def take(self) -> dict[str, str | None]:
        """Return what can be copied now, and count it as copied."""
        self.late = sum(
            1 for key in self.pending if (held := self.keys.get(key)) is not None and held.expires is not None
        )
        taken = {key: value for key, value in self.pending.items() if not self.is_late(key)}
        for key, value in taken.items():
            if value is None:
                self.base.pop(key, None)
            else:
                self.base[key] = self.keys[key].mark
            del self.pending[key]
        return taken

    def lease(self, key: str, now: float) -> int:
        """Return the seconds of the lease that a key gets now, 0 for none."""
        held = self.keys.get(key)
        return lease_seconds(self.profile, key, held.expires if held else None, now)

    @property
    def permanent(self) -> int:
        """The number of keys that stay until somebody removes them."""
        return sum(1 for key in self.keys if not self.lease(key, 0.0))


def base_of(marks: Mapping[bytes, tuple[bytes, int]], profile: str) -> dict[str, bytes]:
    """Return what a copy holds, from the digest of the value and the lease of each of its keys."""
    # How much of its life was left is not known any more: what has a lease is to be copied again.
    return {
        key.decode("utf-8", "surrogatepass"): mark + b"?" if lease and profile == "plain" else mark
        for key, (mark, lease) in marks.items()
    }


class Difference(NamedTuple):
    """How a copy differs from what it should hold, by key."""

    missing: list[str]
    extra: list[str]
    other: list[str]

    def __bool__(self) -> bool:
        return any(self[:3])

    def __str__(self) -> str:
        parts = []
        for names, what in zip(self, ("missing", "that should not be there", "with another value")):
            if names:
                shown = ", ".join(sorted(names)[:NAMED_AT_MOST])
                parts.append(f"{len(names)} keys {what} ({shown}{', ...' if len(names) > NAMED_AT_MOST else ''})")
        return "; ".join(parts) or "no difference"


def compare(wanted: Mapping[str, bytes], found: Mapping[str, bytes]) -> Difference:
    """Compare every key and value, by digests; what stands behind a digest is not part of the value."""
    return Difference(
        [key for key in wanted if key not in found],
        [key for key in found if key not in wanted],
        [key for key, mark in wanted.items() if key in found and mark[:DIGEST_BYTES] != found[key][:DIGEST_BYTES]],
    )


# --- Requests ---------------------------------------------------------------------------------------------------------


class Change(NamedTuple):
    """One change of the copy. value None: the key goes. lease: seconds, 0 for none."""

    key: str
    value: str | None
    lease: int = 0


def changes(taken: Mapping[str, str | None], mirror: Mirror, now: float) -> Iterator[Change]:
    """Yield what to do to the copy."""
    for key, value in taken.items():
        yield Change(key, value, 0 if value is None else mirror.lease(key, now))


def batches(
    wanted: Iterable[Change], operations: int = OPERATIONS_AT_MOST, size: int = REQUEST_BYTES
) -> Iterator[list[Change]]:
    """Yield the changes in portions that a server takes in one transaction each; no key stands in one twice."""
    batch: list[Change] = []
    used = 0
    for change in wanted:
        own = size_of(change.key) + size_of(change.value or "") + ROOM_BYTES
        if batch and (len(batch) >= operations or used + own > size):
            yield batch
            batch, used = [], 0
        batch.append(change)
        used += own
    if batch:
        yield batch


def size_of(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def encoded(text: str) -> bytes:
    return binascii.b2a_base64(text.encode("utf-8", "surrogatepass"), newline=False)


def transaction(batch: Iterable[Change], leases: Mapping[int, str]) -> bytes:
    """Return a transaction as JSON. leases: the id of the lease for each number of seconds.

    It is put together here, since nothing in it needs to be escaped and nearly all the time of a copy would go there.
    """
    operations = []
    for change in batch:
        key = encoded(change.key)
        if change.value is None:
            operations.append(b'{"requestDeleteRange":{"key":"%b"}}' % key)
        else:
            lease = b',"lease":"%b"' % leases[change.lease].encode() if change.lease else b""
            operations.append(b'{"requestPut":{"key":"%b","value":"%b"%b}}' % (key, encoded(change.value), lease))
    return b'{"success":[%b]}' % b",".join(operations)


# --- The journal ------------------------------------------------------------------------------------------------------

COPYING = "copying"  # the copy is being made; the old cluster has not been touched
COPIED = "copied"  # the copy is a proven snapshot
STAGED = "staged"  # all members of this host have the restored copy beside their data
FREEZING = "freezing"  # the writers may have been stopped
FROZEN = "frozen"  # the last changes are on disk
SWAPPING = "swapping"  # members may have been stopped, folders renamed
SWAPPED = "swapped"  # all members of this host run on the new data
DONE = "done"  # everything was compared: writers may come back
UNDOING = "undoing"  # the old data is being put back
UNDONE = "undone"  # the old cluster serves as before

NEXT: dict[str, tuple[str, ...]] = {
    "": (COPYING,),
    COPYING: (COPYING, COPIED, UNDOING),
    COPIED: (COPYING, STAGED, FREEZING, UNDOING),
    STAGED: (COPYING, FREEZING, UNDOING),
    FREEZING: (FREEZING, FROZEN, UNDOING),
    FROZEN: (SWAPPING, UNDOING, SWAPPED, DONE),
    SWAPPING: (SWAPPED, UNDOING),
    SWAPPED: (DONE, UNDOING),
    DONE: (COPYING,),
    UNDOING: (UNDOING, UNDONE),
    UNDONE: (COPYING, UNDOING),
}
# Whoever finds these has to put the old cluster back before anything else.
TO_UNDO = frozenset({FREEZING, FROZEN, SWAPPING, SWAPPED, UNDOING})


@dataclass(frozen=True)
class Entry:
    """What the journal says: the migration's name, how far it is, and what is known."""

    id: str
    state: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    def at(self, state: str, **facts: Any) -> Entry:
        """Return the next entry. Raises MigrationError for a step that does not follow."""
        if state not in NEXT[self.state]:
            raise MigrationError(f"the migration {self.id} is {self.state}: it cannot become {state}")
        return Entry(self.id, state, {**self.facts, **facts})


def parse_entry(parsed: Any, path: str) -> Entry:
    """Return what a journal says. Raises MigrationError."""
    if (
        not isinstance(parsed, dict)
        or parsed.get("state") not in NEXT
        or not isinstance(parsed.get("id"), str)
        or not isinstance(parsed.get("facts"), dict)
    ):
        raise MigrationError(f"{path} is no journal of a migration: see what it is, then move it away")
    return Entry(parsed["id"], parsed["state"], parsed["facts"])


def moved(events: Iterable[Mapping[str, Any]], after: int, unseen: bool) -> str:
    """Return what was written after an index by somebody, empty if at most lifetimes ran out."""
    for event in events:
        node = event["node"]
        if node["modifiedIndex"] > after and event["action"] != EXPIRATION:
            return f"{event['action']} of {node['key']} at index {node['modifiedIndex']}"
    return "something that events do not show" if unseen else ""
