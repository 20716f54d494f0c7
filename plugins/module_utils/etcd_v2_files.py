# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reading what a member keeps of the old (v2) store in its files: .snap files and write-ahead logs, bytes in, data out.

The API hides keys with a path component that starts with an underscore, and it does not tell whether a member wrote
something after it was last asked. The files do. Formats: etcd's raftpb, snappb and walpb messages.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from ansible_collections.plainkube.cluster.plugins.module_utils.bbolt import protobuf_fields, protobuf_places
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_client import EtcdError

# Below this is what clients wrote; beside it the cluster keeps its members in the same store.
KEYS_ROOT = "/1"
ENTRY_RECORD = 2
NORMAL_ENTRY = 0
FRAME = struct.Struct("<Q")
LENGTH_BITS = (1 << 56) - 1
WRITING_METHODS = frozenset({"PUT", "POST", "DELETE"})


class DamagedFile(EtcdError):
    """A file of a member that does not have the form that etcd gives it."""


class Write(NamedTuple):
    """A request of a client that a log holds: committed or not, done or refused (of a failed condition)."""

    raft_index: int
    method: str
    path: str


def hidden(path: str) -> bool:
    """Return whether the API leaves a path out of what it lists."""
    return "/_" in path


def hidden_roots(path: str) -> list[str]:
    """Return the hidden folders or keys on the way to a path. Each has to be asked for by its name."""
    parts = path.split("/")
    return ["/".join(parts[: number + 1]) for number, part in enumerate(parts) if part.startswith("_")]


# --- Snapshots --------------------------------------------------------------------------------------------------------


def snapshot_store(content: bytes) -> tuple[dict[str, Any], int]:
    """Return the v2 store that a .snap file holds, and the raft index that it was made at. Raises DamagedFile."""
    try:
        outer = protobuf_fields(protobuf_fields(content).get(2, b""))
        raft_index = int(protobuf_fields(outer.get(2, b"")).get(2, 0))
        store = json.loads(outer.get(1, b""))
    except (ValueError, TypeError) as error:
        raise DamagedFile(f"it is no snapshot of a v2 store: {error}") from None
    if not isinstance(store, dict) or not isinstance(store.get("Root"), dict):
        raise DamagedFile("it holds no v2 store")
    return store, raft_index


def stored_paths(store: dict[str, Any]) -> Iterator[str]:
    """Yield the paths of all keys in a store, hidden ones too."""
    waiting = [store["Root"]]
    while waiting:
        node = waiting.pop()
        children = node.get("Children")
        if children:
            waiting += children.values()
        elif str(node.get("Path", "")).startswith(KEYS_ROOT + "/"):
            yield node["Path"][len(KEYS_ROOT) :]


# --- Logs -------------------------------------------------------------------------------------------------------------


def log_entries(
    content: bytes | mmap.mmap, position: int = 0, after: int = 0, having: bytes = b""
) -> Iterator[tuple[int, int, bytes]]:
    """Yield (where it ends, raft index, data) of each normal entry of one log file from a position on.

    The data of entries up to a raft index, and of those without some bytes, is left out: that is empty. Records without
    these bytes are not taken apart: for all at the end there is one without an index, where the last of them begins,
    since half of that may still come. A file that is still written ends in zeros, or in half a record.
    """
    passed = 0
    for start, size, next_record in _records(content, position):
        # Nearly all records are without, and taking them apart is what takes the time.
        if having and content.find(having, start, start + size) < 0:
            passed = start - FRAME.size
            continue
        try:
            record = protobuf_places(content, start, start + size)
            if record.get(1) != ENTRY_RECORD or 3 not in record:
                continue
            entry = protobuf_places(content, *record[3])
        except (ValueError, TypeError):
            return
        if entry.get(1, 0) == NORMAL_ENTRY and 4 in entry:
            raft_index, (first, last) = int(entry.get(3, 0)), entry[4]
            passed = 0
            yield next_record, raft_index, content[first:last] if raft_index > after else b""
    if passed:
        yield passed, 0, b""


def last_record(content: bytes | mmap.mmap) -> int:
    """Return where the last record of a log file stands; it may be one that is half written."""
    last = FRAME.size
    for start, _size, _next in _records(content, 0):
        last = start
    return last - FRAME.size


def _records(content: bytes | mmap.mmap, position: int) -> Iterator[tuple[int, int, int]]:
    """Yield where each record begins, its size, and where the next one stands."""
    end = len(content)
    while position + FRAME.size <= end:
        (frame,) = FRAME.unpack_from(content, position)
        if frame == 0:
            return
        size = frame & LENGTH_BITS
        start = position + FRAME.size
        if start + size > end:
            return
        position = start + size + ((frame >> 56) & 7 if frame >> 63 else 0)
        yield start, size, position


def write_of(raft_index: int, data: bytes) -> Write | None:
    """Return what a log entry writes into the v2 store, None for all other entries."""
    try:
        request = protobuf_fields(data)
        # The v2 API proposes its request bare; an older server wrapped it.
        if isinstance(request.get(2), bytes) and not isinstance(request.get(3), bytes):
            request = protobuf_fields(request[2])
        method, path = (request.get(number, b"").decode() for number in (2, 3))
    except (ValueError, AttributeError):
        return None
    if method not in WRITING_METHODS or not path.startswith(KEYS_ROOT + "/"):
        return None
    return Write(raft_index, method, path[len(KEYS_ROOT) :])


def first_index(name: str) -> int:
    """Return the raft index that a log file starts with, by its name. Raises DamagedFile."""
    try:
        return int(name.partition("-")[2].partition(".")[0], 16)
    except ValueError:
        raise DamagedFile(f"{name}: not the name of a log of etcd") from None


def files_after(names: list[str], raft_index: int) -> list[str]:
    """Return the log files, in order, that can hold entries after a raft index."""
    ordered = sorted(names, key=first_index)
    first = 0
    for number, name in enumerate(ordered):
        if first_index(name) <= raft_index + 1:
            first = number
    return ordered[first:]
