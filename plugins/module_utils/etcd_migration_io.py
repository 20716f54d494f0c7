# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The parts that a move from the v2 store of etcd to v3 is made of: the files of a migration and of a member, the old
store as it is read and followed, a writer for the new one."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import mmap
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ansible_collections.plainkube.cluster.plugins.module_utils import etcd_migrations as plan
from ansible_collections.plainkube.cluster.plugins.module_utils import etcd_v2_files as files
from ansible_collections.plainkube.cluster.plugins.module_utils.bbolt import (
    TOMBSTONE_BYTES,
    open_database,
    parse_key_value,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_client import (
    Connection,
    EtcdError,
    Gateway,
    HistoryLost,
    KeysV2,
    decode,
    encode,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_migrations import (
    Change,
    Entry,
    MigrationError,
    Mirror,
    Rules,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.files_io import write_atomically

# Reading one folder of the old store, and writing one batch into the copy.
READ_SECONDS = 120.0
WRITE_SECONDS = 60.0
# How long a watch has to be silent before it is believed that there is nothing to hear.
QUIET_SECONDS = 0.25
# Folders are listed down to here, and read as a whole from here on: what is in memory at a time is one of them.
LISTED_DEPTH = 2
# Enough to keep a scratch server busy on two cores; more do not help it.
WRITERS = 2
BATCHES_WAITING = 8
SCRATCH_OPERATIONS = 256
READ_BACK_AT_ONCE = 100
ABSENT_KEY = "/_plainkube-absent"
# Stands in whatever names a hidden key.
HIDDEN_MARK = b"/_"


# --- Files of a migration ---------------------------------------------------------------------------------------------


class Workshop:
    """The private folder of a migration: its journal, its scratch server, the snapshot, the last changes."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.journal = f"{folder}/journal.json"
        self.snapshot = f"{folder}/snapshot.db"
        self.changes = f"{folder}/last-changes.json"
        self.scratch = f"{folder}/scratch"

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Make the folder, and keep other runs away from it. Raises MigrationError if one is there already."""
        Path(self.folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fchmod(descriptor, 0o700)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise MigrationError(f"{self.folder}: another migration is at work here: wait for its end") from None
        finally:
            os.close(descriptor)

    def read(self) -> Entry:
        """Return what the journal says. Raises MigrationError."""
        try:
            return plan.parse_entry(json.loads(Path(self.journal).read_bytes()), self.journal)
        except FileNotFoundError:
            return Entry("", "")
        except (OSError, ValueError) as error:
            raise MigrationError(f"{self.journal}, the journal of the migration, cannot be read: {error}") from error

    def note(self, entry: Entry) -> Entry:
        """Write the journal so that it survives a power cut."""
        content = {"id": entry.id, "state": entry.state, "facts": entry.facts}
        self._write(self.journal, json.dumps(content, indent=2, sort_keys=True))
        return entry

    def keep_changes(self, content: Mapping[str, Any]) -> None:
        """Write the last changes so that they survive a power cut."""
        self._write(self.changes, json.dumps(content))

    def read_changes(self) -> dict[str, Any]:
        """Return the last changes. Raises MigrationError."""
        try:
            content: dict[str, Any] = json.loads(Path(self.changes).read_bytes())
        except (OSError, ValueError) as error:
            raise MigrationError(
                f"{self.changes}, the last changes of the old store, cannot be read: {error}"
            ) from error
        return content

    def _write(self, path: str, text: str) -> None:
        try:
            write_atomically(path, text.encode("utf-8", "surrogatepass"), 0o600)
        except OSError as error:
            raise MigrationError(f"{path} cannot be written: {error.strerror}") from error

    def clear(self) -> None:
        """Remove what former runs left, but the journal."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        for path in (self.snapshot, self.changes):
            with contextlib.suppress(FileNotFoundError):
                Path(path).unlink()


# --- A member's own files ---------------------------------------------------------------------------------------------


class Log:
    """Reads on in the write-ahead log of a member, running or stopped, from where it was read before."""

    def __init__(self, data_dir: str) -> None:
        self.data_dir = data_dir
        self.folder = Path(data_dir, "member", "wal")
        self._name = ""
        self._position = 0

    def advance(self, after: int = 0, having: bytes = b"") -> Iterator[tuple[int, bytes]]:
        """Yield raft index and data of the entries since the last call, after a raft index and with some bytes in them.

        Raises MigrationError.
        """
        try:
            names = [path.name for path in self.folder.glob("*.wal")]
            ordered = sorted(names, key=files.first_index) if self._name else files.files_after(names, after)
            for name in ordered:
                if name >= self._name:
                    yield from self._read(name, self._position if name == self._name else 0, after, having)
        except OSError as error:
            raise MigrationError(f"{self.folder}, the log of a member, cannot be read: {error}") from error

    def skip(self) -> None:
        """Pass over what is there now, but for the last record, which may be half of one. Raises MigrationError."""
        try:
            self._name = max((path.name for path in self.folder.glob("*.wal")), key=files.first_index)
            with (self.folder / self._name).open("rb") as stream:
                content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            with content:
                self._position = files.last_record(content)
        except (OSError, ValueError) as error:
            raise MigrationError(f"{self.folder}, the log of a member, cannot be read: {error}") from error

    def _read(self, name: str, start: int, after: int, having: bytes) -> Iterator[tuple[int, bytes]]:
        with open(self.folder / name, "rb") as stream:
            if not os.fstat(stream.fileno()).st_size:
                return
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                self._name, self._position = name, start
                for end, raft_index, data in files.log_entries(content, start, after, having):
                    self._position = end
                    if data:
                        yield raft_index, data


def hidden_in_snapshot(data_dir: str) -> set[str]:
    """Return the hidden folders and keys in the newest snapshot of a member's v2 store. Raises MigrationError."""
    snapshots = sorted(Path(data_dir, "member", "snap").glob("*.snap"))
    if not snapshots:
        return set()
    try:
        with snapshots[-1].open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            # Taking a large store apart takes long, and nearly none has such a key.
            if content.find(HIDDEN_MARK) < 0:
                return set()
            store, _index = files.snapshot_store(content[:])
    except (OSError, ValueError, files.DamagedFile) as error:
        raise MigrationError(f"{snapshots[-1]}: {error}") from error
    return {root for path in files.stored_paths(store) for root in files.hidden_roots(path)}


def hidden_in_log(log: Log) -> set[str]:
    """Return the hidden folders and keys that were written since a log was last read. Raises MigrationError."""
    found: set[str] = set()
    for raft_index, data in log.advance(having=HIDDEN_MARK):
        write = files.write_of(raft_index, data)
        if write:
            found.update(files.hidden_roots(write.path))
    return found


# --- The source -------------------------------------------------------------------------------------------------------


class Follower(threading.Thread):
    """Collects the events of the v2 store from an index on."""

    def __init__(self, connection: Connection, endpoint: str, start: int) -> None:
        super().__init__(daemon=True)
        self._keys = KeysV2(connection, endpoint)
        self._changed = threading.Condition()
        self._ended = False
        self._quiet_since = 0.0
        self.next = start
        self.events: deque[dict[str, Any]] = deque()
        self.error: EtcdError | None = None

    def run(self) -> None:
        while not self._ended:
            asked = time.monotonic()
            try:
                event = self._keys.wait("/", self.next, QUIET_SECONDS)
            except EtcdError as error:
                with self._changed:
                    self.error = error
                    self._changed.notify_all()
                return
            with self._changed:
                if event:
                    self.events.append(event)
                    self.next = event["node"]["modifiedIndex"] + 1
                else:
                    self._quiet_since = asked
                self._changed.notify_all()
        self._keys.close()

    def settle(self, index: int) -> None:
        """Return once all events up to an index that the asked member has are there. Raises EtcdError."""
        called = time.monotonic()
        with self._changed:
            done = self._changed.wait_for(
                lambda: self.error or self.next > index or self._quiet_since > called, READ_SECONDS
            )
            if self.error:
                raise self.error
            if not done:
                raise MigrationError(f"the events up to index {index} did not come within {READ_SECONDS:.0f} s")

    def end(self) -> None:
        """Let the thread end; it may take until its watch does."""
        self._ended = True


class Source:
    """The v2 store of a running cluster, asked at one of its members."""

    def __init__(self, connection: Connection, endpoint: str, find_hidden: Callable[[], set[str]]) -> None:
        """find_hidden: returns the paths that no list shows and that have to be asked for, as many as exist by then."""
        self.connection = connection
        self.endpoint = endpoint
        self.keys = KeysV2(connection, endpoint)
        self.follower: Follower | None = None
        self.hidden_there: set[str] = set()
        self._find_hidden = find_hidden

    def index(self) -> int:
        """Return the index of the store, which the asked member has then too. Raises EtcdError."""
        return self.keys.get(ABSENT_KEY, quorum=True, deadline=max(self.connection.timeout, 10.0))[1]

    def follow(self) -> int:
        """Begin to follow the events, anew if that was done before, and return the index that they begin after."""
        if self.follower:
            self.follower.end()
        index = self.index()
        self.follower = Follower(self.connection, self.endpoint, index + 1)
        self.follower.start()
        return index

    def end(self) -> None:
        """Stop to follow."""
        if self.follower:
            self.follower.end()
        self.keys.close()

    def look(self, mirror: Mirror, each: Callable[[plan.Leaf], None], copy: Callable[[], None]) -> None:
        """Read everything into the mirror. each: gets every key; copy: is called after each folder."""
        mirror.begin(self.follow())
        waiting: list[tuple[str, float | None, int]] = [("/", None, 0)]
        hidden = self._find_hidden()
        waiting += [(path, None, LISTED_DEPTH) for path in sorted(hidden)]
        while waiting:
            path, expires, depth = waiting.pop()
            whole = depth >= LISTED_DEPTH
            node, _index = self.keys.get(path, recursive=whole, quorum=False, deadline=READ_SECONDS)
            if node is None:
                # It went since it was listed; an event tells of that.
                continue
            if path in hidden:
                self.hidden_there.add(path)
            for leaf in plan.leaves(node, expires, mirror.expiring):
                mirror.read(leaf)
                each(leaf)
            if not whole:
                waiting += [(below, until, depth + 1) for below, until in plan.folders(node, expires)]
            copy()
        mirror.end()

    def drain(self, mirror: Mirror) -> list[dict[str, Any]]:
        """Bring the mirror to the store's index, and return the events that did so.

        Where events were lost, the mirror is left marked as one that has to look again.
        """
        assert self.follower
        index = self.index()
        if index > mirror.index:
            try:
                self.follower.settle(index)
            except HistoryLost:
                mirror.unseen = True
        events = []
        while self.follower.events:
            event = self.follower.events.popleft()
            mirror.apply(event)
            events.append(event)
        mirror.skip_to(index)
        return events


# --- The copy ---------------------------------------------------------------------------------------------------------


def scratch_flags(rules: Rules) -> tuple[str, ...]:
    """Return the flags of the server that the copy is made in."""
    return (
        f"--max-txn-ops={SCRATCH_OPERATIONS}",
        f"--max-request-bytes={2 * max(rules.max_request_bytes, plan.REQUEST_BYTES)}",
        f"--quota-backend-bytes={rules.quota_bytes}",
        # What a power cut takes here is made anew.
        "--unsafe-no-fsync",
        # With one member there is nobody to wait for before it leads itself.
        "--heartbeat-interval=10",
        "--election-timeout=100",
        "--log-level=error",
    )


class Writer:
    """Writes changes into a v3 store, several batches at a time."""

    def __init__(self, connection: Connection, endpoint: str, operations: int, size: int) -> None:
        self.connection = connection
        self.endpoint = endpoint
        self.operations = operations
        self.size = size
        self._pool = ThreadPoolExecutor(WRITERS)
        self._own = threading.local()
        self._waiting: deque[Future[None]] = deque()
        self._leases: dict[int, str] = {}
        self._granter = Gateway(connection, endpoint)
        self.written = 0

    def write(self, wanted: Iterable[Change]) -> None:
        """Write changes of different keys, in any order. They are there once flush has returned."""
        for batch in plan.batches(wanted, self.operations, self.size):
            for seconds in {change.lease for change in batch if change.lease} - self._leases.keys():
                granted = self._granter.call("lease/grant", {"TTL": str(seconds)}, WRITE_SECONDS)
                self._leases[seconds] = granted["ID"]
            while len(self._waiting) >= BATCHES_WAITING:
                self._waiting.popleft().result()
            self._waiting.append(self._pool.submit(self._send, batch))
            self.written += len(batch)

    def _send(self, batch: list[Change]) -> None:
        if not hasattr(self._own, "gateway"):
            self._own.gateway = Gateway(self.connection, self.endpoint)
        self._own.gateway.call("kv/txn", plan.transaction(batch, self._leases), WRITE_SECONDS)

    def flush(self) -> None:
        """Return once everything is written. Raises EtcdError."""
        while self._waiting:
            self._waiting.popleft().result()

    def end(self) -> None:
        """Let the threads end; what is still to be written is dropped."""
        for waiting in self._waiting:
            waiting.cancel()
        self._pool.shutdown(wait=True)


def snapshot_marks(path: str) -> dict[bytes, tuple[bytes, int]]:
    """Return the SHA-256 of the value, and the lease, of each key in a snapshot. Raises DamagedDatabase, OSError."""
    places: dict[bytes, tuple[bytes, int]] = {}
    with open_database(path) as database:
        # In order of revisions: the last one of a key counts.
        for revision, content in database.items("key"):
            found = parse_key_value(content)
            if len(revision) == TOMBSTONE_BYTES:
                places.pop(found.key, None)
            else:
                places[found.key] = hashlib.sha256(found.value).digest(), found.lease
    return places


# --- The new cluster --------------------------------------------------------------------------------------------------


def read_back(gateway: Gateway, changes: list[Change]) -> None:
    """See that the new cluster holds the last changes. Raises MigrationError, EtcdError."""
    wanted: dict[str, bytes] = {}
    found: dict[str, bytes] = {}
    for start in range(0, len(changes), READ_BACK_AT_ONCE):
        portion = changes[start : start + READ_BACK_AT_ONCE]
        body = {"success": [{"requestRange": {"key": plan.encoded(change.key).decode()}} for change in portion]}
        answer = gateway.call("kv/txn", body, WRITE_SECONDS)
        for change, response in zip(portion, answer.get("responses", ())):
            # A key with a lease may have ended its life meanwhile.
            if change.value is not None and not change.lease:
                wanted[change.key] = plan.digest(change.value)
            for pair in response.get("response_range", {}).get("kvs", ()):
                found[change.key] = hashlib.sha256(decode(pair.get("value"))).digest()
                if change.lease and change.value is not None:
                    wanted[change.key] = plan.digest(change.value)
    difference = plan.compare(wanted, found)
    if difference:
        raise MigrationError(f"the last changes are not in the new cluster as they should be: {difference}")


def try_writing(gateway: Gateway, id: str) -> None:
    """Write, read and delete a key. Raises MigrationError, EtcdError."""
    key = encode(f"plainkube/migration/{id}")
    gateway.call("kv/put", {"key": key, "value": encode(id)})
    found = gateway.call("kv/range", {"key": key}).get("kvs") or [{}]
    gateway.call("kv/deleterange", {"key": key})
    if decode(found[0].get("value")) != id.encode():
        raise MigrationError(f"the new cluster did not return what was written into it: {found[0]}")


def count_all(gateway: Gateway) -> dict[str, Any]:
    """Return the answer to a count of all keys."""
    return gateway.call("kv/range", {"key": encode(b"\0"), "range_end": encode(b"\0"), "count_only": True})
