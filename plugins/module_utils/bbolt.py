# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reads etcd's database file without etcd: proves that it is whole, and gives out what stands in it.

The file is a bbolt database: pages of one size; the first two are meta pages, which name the root of a tree of pages
with the buckets, each a tree of its own. Bucket "key" holds every revision of every key; the others are small. A
snapshot is such a file, every page of it, and behind it the SHA-256 of that.

Memory stays the same whatever the size of the file: pages are read one by one, not mapped, since mapped pages count
as the process's own.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import mmap
import os
import select
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Optional

from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_client import EtcdError

MAGIC = 0xED0CDAED
FORMAT_VERSION = 2
META_PAGE = struct.Struct("<QHHIIIIIQQQQQQ")  # page header, then the meta itself
META_CHECKED = slice(16, 72)
PAGE_HEADER = struct.Struct("<QHHI")
_unpack_header = PAGE_HEADER.unpack_from
BRANCH, LEAF, META, FREELIST = 0x01, 0x02, 0x04, 0x10
TREE_FLAGS = frozenset((BRANCH, LEAF))
BRANCH_ELEMENT = struct.Struct("<IIQ")
LEAF_ELEMENT = struct.Struct("<IIII")
ELEMENT_BYTES = 16
BUCKET_FLAG = 0x01
BUCKET_HEADER = struct.Struct("<QQ")
NO_FREELIST = 0xFFFF_FFFF_FFFF_FFFF
PAGE_SIZES = tuple(1 << power for power in range(9, 17))
DEEPEST = 64  # levels of a tree; what points deeper points in a circle

DIGEST_BYTES = 32
# Every page size is a multiple of this, so whatever is left over behind a file's last sector is not a page.
SECTOR = 512
HASH_CHUNK = 256 << 10
READ_AHEAD = 16  # pages
LONGEST_RUN = 256 << 20  # bytes that a page may run over; four values, the largest that etcd could be told to take

# A revision's name: eight bytes of it, "_", eight of the place within its transaction, and "t" if the key was deleted.
TOMBSTONE_BYTES = 18
# A revision's name and what becomes of it, held at once when keys are counted the slow way.
NAMES_AT_ONCE = 100_000


WORKER_PROGRAM = f"from {__name__} import worker; worker()"
TOLD = b"ended"
WORTH_A_WORKER = 32 << 20  # bytes; a smaller file is read before another process is there
FOLLOW_MILLISECONDS = 10
WRITE_OUT = 32 << 20  # bytes


class DamagedDatabase(EtcdError):
    """A database file that is not what etcd wrote."""


class Meta(NamedTuple):
    """What a meta page says. pages: the number of pages in use, counted from the file's start."""

    page_size: int
    root: int
    freelist: int
    pages: int
    transaction: int


@dataclass(frozen=True)
class KeyValue:
    """A key as it was at one revision."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int


@dataclass(frozen=True)
class Lease:
    """A lease and the seconds that it was granted for."""

    id: int
    ttl: int


@dataclass(frozen=True)
class SnapshotProof:
    """What is known of a snapshot that was found whole.

    digest: SHA-256 of the file, as sha256sum prints it. Ids are text in hexadecimal digits, as etcdctl prints them.
    key_count: keys that exist at the revision; entries: all revisions of keys that are kept.
    """

    size: int
    digest: str
    page_size: int
    revision: int
    compact_revision: int
    key_count: int
    entries: int
    members: list[dict[str, Any]]
    cluster_version: str
    storage_version: str
    consistent_index: int
    term: int
    alarms: list[dict[str, str]]
    lease_count: int
    auth_enabled: bool


class Worker:
    """A process of its own for a part of the work, so that two processors are used.

    It is started anew and is no copy of this one, which may have threads. It has none, and makes Copies of itself.
    """

    def __init__(self, work: str, descriptor: int, *arguments: Any) -> None:
        """Begin work on an open file; its first argument is that file. What is done here is a key of WORKS."""
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", WORKER_PROGRAM, work, str(descriptor), json.dumps(arguments)],
            # A module comes to its host as an archive that only this process has in its path.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # What could not be told to one that has ended must not be tried again when the pipe is closed.
            bufsize=0,
            pass_fds=[descriptor],
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_reason: object) -> None:
        """End the work if it has not ended."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                stream.close()

    def tell(self) -> None:
        """Tell the worker what it waits for: that nothing more comes."""
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(TOLD)

    def result(self) -> Any:
        """Wait for the end of the work, and return what it returned or raise what it raised."""
        assert self._process.stdout
        content = self._process.stdout.read()
        return heard(content, self._process.wait())


def worker() -> None:
    """Do what a Worker was made for: this is its process."""
    work, descriptor, arguments = sys.argv[1:4]
    sys.stdout.buffer.write(said(lambda: WORKS[work](int(descriptor), *json.loads(arguments))))


class Copy:
    """A copy of this process for a part of the work. It begins at once, but only a process without threads makes some.

    Use as a context.
    """

    def __init__(self, work: Callable[[], Any]) -> None:
        """Begin work that returns what JSON can say."""
        reader, writer = os.pipe()
        self._process = os.fork()
        if not self._process:
            # Nothing of what its parent has still to do is done here.
            code = 1
            try:
                with open(writer, "wb") as stream:
                    stream.write(said(work))
                code = 0
            finally:
                os._exit(code)
        os.close(writer)
        self._answer = os.fdopen(reader, "rb")

    def __enter__(self) -> Copy:
        return self

    def __exit__(self, *_reason: object) -> None:
        """End the work if it has not ended."""
        self._answer.close()
        if self._process:
            os.kill(self._process, signal.SIGKILL)
            os.waitpid(self._process, 0)

    def result(self) -> Any:
        """Wait for the end of the work, and return what it returned or raise what it raised."""
        content = self._answer.read()
        process, self._process = self._process, 0
        return heard(content, os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))


def said(work: Callable[[], Any]) -> bytes:
    """Do some work, and return what came of it for another process."""
    try:
        answer: dict[str, Any] = {"result": work()}
    except DamagedDatabase as error:
        answer = {"damaged": str(error)}
    except OSError as error:
        answer = {"errno": error.errno, "strerror": error.strerror, "filename": error.filename}
    return json.dumps(answer).encode()


def heard(content: bytes, code: int) -> Any:
    """Return what the work of another process returned, or raise what it raised. code: how the process ended."""
    if code or not content:
        raise OSError(errno.ECHILD, f"a process that checked a part ended with {code}")
    answer = json.loads(content)
    if "damaged" in answer:
        raise DamagedDatabase(answer["damaged"])
    if "errno" in answer:
        raise OSError(answer["errno"], answer["strerror"], answer["filename"])
    return answer["result"]


# --- Pages ------------------------------------------------------------------------------------------------------------


class Checked(NamedTuple):
    """What leaf pages of bucket key hold: keys that exist by them, entries, and the last entry's key."""

    alive: int
    entries: int
    last: bytes


class Element(NamedTuple):
    """One entry of a leaf page."""

    flags: int
    key: bytes
    value: bytes


# A leaf page: its number, its content, the count of its elements, the key that none of them is below, and the one that
# all of them are below.
Leaf = tuple[int, bytes, int, bytes, Optional[bytes]]
# Neighbours in a tree: the key that each is not below with its page, and the key that all of them are below.
Subtrees = tuple[list[tuple[bytes, int]], Optional[bytes]]


def whole(root: int) -> Subtrees:
    """Return a tree from its root page."""
    return [(b"", root)], None


def fnv64a(content: bytes) -> int:
    """Return the checksum that bbolt writes into its meta pages."""
    digest = 0xCBF29CE484222325
    for byte in content:
        digest = (digest ^ byte) * 0x100000001B3 & 0xFFFF_FFFF_FFFF_FFFF
    return digest


def parse_meta(page: bytes, number: int) -> Meta:
    """Return what meta page 0 or 1 says. Raises DamagedDatabase."""
    if len(page) < META_PAGE.size:
        raise DamagedDatabase(f"meta page {number}: found {len(page)} bytes, wanted {META_PAGE.size}")
    fields = META_PAGE.unpack_from(page)
    _id, page_flags, _count, _overflow, magic, version, page_size, _flags, root, _sequence = fields[:10]
    freelist, pages, transaction, checksum = fields[10:]
    if magic != MAGIC:
        raise DamagedDatabase(f"meta page {number}: found magic number {magic:#x}, wanted {MAGIC:#x} of a bbolt file")
    if version != FORMAT_VERSION:
        raise DamagedDatabase(f"meta page {number}: found format version {version}, wanted {FORMAT_VERSION}")
    wanted = fnv64a(page[META_CHECKED])
    if checksum != wanted:
        raise DamagedDatabase(f"meta page {number}: found checksum {checksum:#018x}, its content has {wanted:#018x}")
    if not page_flags & META or page_size not in PAGE_SIZES:
        raise DamagedDatabase(
            f"meta page {number}: found page flags {page_flags:#x} and page size {page_size}, "
            f"wanted flag {META:#x} and a size of {PAGE_SIZES[0]} to {PAGE_SIZES[-1]}"
        )
    return Meta(page_size, root, freelist, pages, transaction)


def disagreements(first: Meta, second: Meta) -> list[str]:
    """Return how the meta pages of a snapshot contradict each other: both are written from one transaction."""
    names = [
        name for name in ("page_size", "root", "freelist", "pages") if getattr(first, name) != getattr(second, name)
    ]
    found = [f"{name} {getattr(first, name)} and {getattr(second, name)}" for name in names]
    if second.transaction != first.transaction - 1:
        found.append(
            f"transactions {first.transaction} and {second.transaction} (wanted {first.transaction - 1} in the second)"
        )
    return [f"its two meta pages disagree: {', '.join(found)}"] if found else []


def read_metas(descriptor: int) -> tuple[list[Meta], list[str]]:
    """Return the sound meta pages of a database file and what is wrong with the others."""
    metas, faults = [], []
    try:
        metas.append(parse_meta(os.pread(descriptor, META_PAGE.size, 0), 0))
        # The second stands one page behind the first, whose size only the first tells.
        sizes: tuple[int, ...] = (metas[0].page_size,)
    except DamagedDatabase as error:
        faults.append(str(error))
        sizes = PAGE_SIZES
    fault = ""
    for size in sizes:
        try:
            metas.append(parse_meta(os.pread(descriptor, META_PAGE.size, size), 1))
            return metas, faults
        except DamagedDatabase as error:
            fault = fault or str(error)
    return metas, [*faults, fault if len(sizes) == 1 else "meta page 1: not found behind a page of any size"]


class _Pages:
    """The pages of one file, read when asked for."""

    def __init__(self, descriptor: int, meta: Meta) -> None:
        self.descriptor = descriptor
        self._size = meta.page_size
        self._last = meta.pages
        # One bit for each page that was seen to belong somewhere: each belongs to one place only.
        self.owned = bytearray(meta.pages // 8 + 1)
        # Pages that were written one after the other mostly stand one behind the other: then some are read at once.
        self._window = b""
        self._window_begin = self._window_end = 0

    def read(self, page: int, what: str) -> tuple[bytes, int, int, int]:
        """Return a page with those that it runs over into, its flags, count of elements and count of further pages.

        Raises DamagedDatabase. what: the bucket, for messages.
        """
        size = self._size
        if not self._window_begin <= page < self._window_end:
            if not 2 <= page < self._last:
                raise DamagedDatabase(f"bucket {what}: something points to page {page}, wanted 2 to {self._last - 1}")
            width = READ_AHEAD if page == self._window_end else 1
            self._window = os.pread(self.descriptor, width * size, page * size)
            # What a snapshot has behind its last page is none.
            self._window_begin, self._window_end = page, min(page + width, self._last)
        at = (page - self._window_begin) * size
        content = self._window[at : at + size]
        if len(content) < size:
            raise DamagedDatabase(f"page {page} of bucket {what}: found {len(content)} bytes, wanted {size}")
        number, flags, count, overflow = _unpack_header(content)
        if number != page or flags not in TREE_FLAGS:
            raise DamagedDatabase(
                f"page {page} of bucket {what}: its header says page {number} with flags {flags:#x}, "
                f"wanted page {page} with flags {BRANCH:#x} or {LEAF:#x}"
            )
        if overflow:
            end = min(self._last, page + LONGEST_RUN // size)
            if page + overflow >= end:
                raise DamagedDatabase(
                    f"page {page} of bucket {what}: it has {overflow} further pages, wanted an end before page {end}"
                )
            content = os.pread(self.descriptor, size * (overflow + 1), page * size)
            if len(content) < size * (overflow + 1):
                raise DamagedDatabase(
                    f"page {page} of bucket {what}: found {len(content)} bytes, wanted {size * (overflow + 1)}"
                )
        return content, flags, count, overflow

    def own(self, page: int, overflow: int, what: str) -> None:
        """Note that pages belong to a bucket. Raises DamagedDatabase if one belongs somewhere already."""
        owned = self.owned
        if not overflow and not owned[page >> 3] & 1 << (page & 7):
            owned[page >> 3] |= 1 << (page & 7)
            return
        for number in range(page, page + overflow + 1):
            bit = 1 << (number & 7)
            if owned[number >> 3] & bit:
                raise DamagedDatabase(f"page {number} of bucket {what}: it belongs to two places of the tree")
            owned[number >> 3] |= bit

    def own_all(self, owned: bytes, what: str) -> None:
        """Note all pages that another process found to belong to a bucket. Raises DamagedDatabase as own does."""
        mine, others = int.from_bytes(self.owned, "little"), int.from_bytes(owned, "little")
        if mine & others:
            page = (mine & others).bit_length() - 1
            raise DamagedDatabase(f"page {page} of bucket {what}: it belongs to two places of the tree")
        self.owned = bytearray((mine | others).to_bytes(len(self.owned), "little"))

    def branches(self, page: int, content: bytes, count: int, what: str) -> list[tuple[bytes, int]]:
        """Return the first key and the page of each child. Raises DamagedDatabase unless they are in order."""
        if PAGE_HEADER.size + count * ELEMENT_BYTES > len(content):
            raise DamagedDatabase(f"page {page} of bucket {what}: its {count} children do not fit into it")
        children = []
        before: bytes | None = None
        at = PAGE_HEADER.size
        for position, length, child in BRANCH_ELEMENT.iter_unpack(content[at : at + count * ELEMENT_BYTES]):
            begin = at + position
            key = content[begin : begin + length]
            if len(key) != length or not key or (before is not None and key <= before):
                raise DamagedDatabase(
                    f"page {page} of bucket {what}: the key of a child is out of the page or its order"
                )
            children.append((key, child))
            before = key
            at += ELEMENT_BYTES
        return children

    def elements(self, page: int, content: bytes, count: int, what: str) -> list[Element]:
        """Return the elements of a leaf page. Raises DamagedDatabase unless they are in order."""
        found: list[Element] = []
        before: bytes | None = None
        at = PAGE_HEADER.size
        for flags, position, key_length, value_length in leaf_fields(page, content, count, what):
            begin = at + position
            middle = begin + key_length
            end = middle + value_length
            key = content[begin:middle]
            if end > len(content) or flags not in (0, BUCKET_FLAG) or (before is not None and key <= before):
                raise DamagedDatabase(
                    f"page {page} of bucket {what}: element {len(found)} is out of the page or its order"
                )
            found.append(Element(flags, key, content[middle:end]))
            before = key
            at += ELEMENT_BYTES
        return found

    def leaves(self, subtrees: Subtrees, what: str, own: bool = False) -> Iterator[Leaf]:
        """Yield the leaf pages below some pages in order. own: note whose pages they are, once for each tree.

        Raises DamagedDatabase.
        """
        # For each level, deepest last: the children that are still to come, last first, and what all of them are below.
        levels: list[Subtrees] = [(subtrees[0][::-1], subtrees[1])]
        while levels:
            children, limit = levels[-1]
            if not children:
                levels.pop()
                continue
            least, page = children.pop()
            below = children[-1][0] if children else limit
            content, flags, count, overflow = self.read(page, what)
            if own:
                self.own(page, overflow, what)
            if flags == LEAF:
                if not count and len(levels) > 1:
                    raise DamagedDatabase(f"page {page} of bucket {what}: it is empty")
                yield page, content, count, least, below
                continue
            if len(levels) > DEEPEST:
                raise DamagedDatabase(f"page {page} of bucket {what}: the tree is deeper than {DEEPEST} levels")
            found = self.branches(page, content, count, what)
            if not found or found[0][0] < least or (below is not None and found[-1][0] >= below):
                raise DamagedDatabase(f"page {page} of bucket {what}: its keys are not between those of its neighbours")
            found.reverse()
            levels.append((found, below))


def leaf_fields(page: int, content: bytes, count: int, what: str) -> Iterator[tuple[Any, ...]]:
    """Yield flags, place (from this element's own), key length and value length of a leaf page's elements.

    Raises DamagedDatabase if they do not fit into the page.
    """
    end = PAGE_HEADER.size + count * ELEMENT_BYTES
    if end > len(content):
        raise DamagedDatabase(f"page {page} of bucket {what}: its {count} elements do not fit into it")
    return LEAF_ELEMENT.iter_unpack(content[PAGE_HEADER.size : end])


def inline_count(content: bytes, what: str) -> int:
    """Return the count of elements of a page that stands within another. Raises DamagedDatabase if it is none."""
    if len(content) < PAGE_HEADER.size:
        raise DamagedDatabase(f"bucket {what}: found {len(content)} bytes, wanted a page")
    _number, flags, count, _overflow = PAGE_HEADER.unpack_from(content)
    if flags != LEAF:
        raise DamagedDatabase(f"bucket {what}: its page has the flags {flags:#x}, wanted {LEAF:#x}")
    return int(count)


# --- Protocol buffers -------------------------------------------------------------------------------------------------


def varint(content: bytes | mmap.mmap, at: int) -> tuple[int, int]:
    """Return the number that begins at a place, and the place behind it. Raises IndexError behind the end."""
    value = shift = 0
    while True:
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def protobuf_fields(content: bytes) -> dict[int, Any]:
    """Return {field number: number or bytes} of a flat message. Raises ValueError if it is none."""
    return {
        number: value if isinstance(value, int) else content[value[0] : value[1]]
        for number, value in protobuf_places(content, 0, len(content)).items()
    }


def protobuf_places(content: bytes | mmap.mmap, at: int, end: int) -> dict[int, Any]:
    """Return {field number: number, or begin and end of bytes} of a flat message. Raises ValueError if it is none."""
    fields: dict[int, Any] = {}
    try:
        while at < end:
            # Nearly all numbers take one byte: a call for each of them would be what takes the time.
            tag = content[at]
            at += 1
            if tag > 0x7F:
                tag, at = varint(content, at - 1)
            value = content[at]
            at += 1
            if value > 0x7F:
                value, at = varint(content, at - 1)
            kind = tag & 7
            if kind == 2:
                begin = at
                at += value
                fields[tag >> 3] = begin, at
            elif kind:
                raise ValueError(f"found field type {kind}")
            else:
                fields[tag >> 3] = value
    except IndexError:
        raise ValueError("the message ends within a number") from None
    if at > end:
        raise ValueError("a field ends behind the message")
    return fields


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def parse_key_value(content: bytes) -> KeyValue:
    """Return one revision of a key. Raises ValueError."""
    fields = protobuf_fields(content)
    return KeyValue(
        key=fields.get(1, b""),
        value=fields.get(5, b""),
        create_revision=fields.get(2, 0),
        mod_revision=fields.get(3, 0),
        version=fields.get(4, 0),
        lease=_signed(fields.get(6, 0)),
    )


def key_of(content: bytes) -> bytes:
    """Return the key of one stored revision without reading the rest of it. Raises IndexError."""
    if not content:
        # A restore with a raised revision writes an entry without a key.
        return b""
    length = content[1]
    if length < 0x80:
        return content[2 : 2 + length]
    length, begin = varint(content, 1)
    return content[begin : begin + length]


def encode_varint(value: int) -> bytes:
    """Return a number as protocol buffers write it."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


# --- Database ---------------------------------------------------------------------------------------------------------


class Database:
    """An open database file whose pages were checked. Use as a context, or close it."""

    def __init__(self, path: str, descriptor: int, meta: Meta, beside: bool = False) -> None:
        """Take over an open file and check it. beside: with a copy of this process, which has no threads then."""
        self.path = path
        self.meta = meta
        self.pages = meta.pages
        self._descriptor = descriptor
        self._pages = _Pages(descriptor, meta)
        self._buckets: dict[str, tuple[int, bytes]] = {}  # name -> root page, or 0 and the page that it has inline
        self.entries = 0
        self._last_revision = 0
        self._alive: int | None = None
        try:
            self._check(beside)
        except DamagedDatabase as error:
            self.close()
            raise DamagedDatabase(f"{path}: {error}") from None
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_reason: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = self._pages.descriptor = -1

    # What etcd keeps beside the keys

    def buckets(self) -> list[str]:
        """Return the names of the buckets."""
        return sorted(self._buckets)

    def entry(self, bucket: str, key: bytes) -> bytes | None:
        """Return one value of a small bucket."""
        return next((value for name, value in self.items(bucket) if name == key), None)

    def items(self, bucket: str) -> Iterator[tuple[bytes, bytes]]:
        """Yield keys and values of a bucket as they stand there, none if there is no such bucket."""
        for _page, elements in self._leaf_elements(bucket):
            for element in elements:
                yield element.key, element.value

    @property
    def revision(self) -> int:
        """The revision that the store is at, as a member that starts from this file would say."""
        return max(1, self._last_revision, self.compact_revision, self._revision_entry(b"scheduledCompactRev"))

    @property
    def compact_revision(self) -> int:
        """The revision up to which the history was thrown away."""
        return self._revision_entry(b"finishedCompactRev")

    @property
    def consistent_index(self) -> int:
        """The raft index of the last entry that was applied to this file."""
        return int.from_bytes(self.entry("meta", b"consistent_index") or b"", "big")

    @property
    def term(self) -> int:
        """The raft term of that entry, 0 where etcd did not write it (3.4 and older)."""
        return int.from_bytes(self.entry("meta", b"term") or b"", "big")

    @property
    def storage_version(self) -> str:
        """The version of the layout, empty where etcd did not write it (3.5 and older)."""
        return (self.entry("meta", b"storageVersion") or b"").decode("utf-8", "replace")

    @property
    def cluster_version(self) -> str:
        """The version of the cluster, such as 3.5.0; empty in a database that was never served."""
        return (self.entry("cluster", b"clusterVersion") or b"").decode("utf-8", "replace")

    @property
    def members(self) -> list[dict[str, Any]]:
        """The members: id, name, peer_urls, client_urls, learner; sorted by id."""
        found = []
        for key, value in self.items("members"):
            try:
                member = json.loads(value)
                found.append(
                    {
                        "id": f"{int(key, 16):x}",
                        "name": member.get("name", ""),
                        "peer_urls": member.get("peerURLs") or [],
                        "client_urls": member.get("clientURLs") or [],
                        "learner": bool(member.get("isLearner")),
                    }
                )
            except (ValueError, AttributeError):
                raise DamagedDatabase(f"{self.path}: bucket members: entry {key!r} is no description of one") from None
        return found

    @property
    def removed_members(self) -> list[str]:
        """The ids of members that were removed for ever."""
        return [key.decode("ascii", "replace") for key, _value in self.items("members_removed")]

    @property
    def alarms(self) -> list[dict[str, str]]:
        """The alarms that are on: member_id and alarm (NOSPACE, CORRUPT)."""
        names = {1: "NOSPACE", 2: "CORRUPT"}
        found = []
        for key, _value in self.items("alarm"):
            fields = self._fields("alarm", key)
            kind = fields.get(2, 0)
            found.append({"member_id": f"{fields.get(1, 0):x}", "alarm": names.get(kind, str(kind))})
        return found

    @property
    def leases(self) -> list[Lease]:
        """The leases."""
        found = []
        for _key, value in self.items("lease"):
            fields = self._fields("lease", value)
            found.append(Lease(_signed(fields.get(1, 0)), fields.get(2, 0)))
        return found

    @property
    def lease_count(self) -> int:
        """The number of leases."""
        return sum(len(elements) for _page, elements in self._leaf_elements("lease"))

    @property
    def auth_enabled(self) -> bool:
        """Whether users have to say who they are."""
        return self.entry("auth", b"authEnabled") == b"\x01"

    # Keys

    def keys(self, prefix: bytes = b"") -> Iterator[KeyValue]:
        """Yield the keys that begin with prefix as they are at the last revision, in order of their names."""
        return self.select(lambda key: key.startswith(prefix))

    def select(self, wanted: Callable[[bytes], bool]) -> Iterator[KeyValue]:
        """Yield the keys whose names are wanted as they are at the last revision, in order of their names.

        Holds the names of these keys in memory, not their values.
        """
        places: dict[bytes, tuple[int, int]] = {}
        for page, elements in self._leaf_elements("key"):
            for index, element in enumerate(elements):
                key = self._key_of(page, element)
                if not wanted(key):
                    continue
                if len(element.key) == TOMBSTONE_BYTES:
                    places.pop(key, None)
                elif key:
                    places[key] = page, index
        inline = self._buckets["key"][1]
        for key in sorted(places):
            page, index = places[key]
            if page:
                content, _flags, count, _overflow = self._pages.read(page, "key")
            else:
                content, count = inline, inline_count(inline, "key")
            yield self._key_value(page, self._pages.elements(page, content, count, "key")[index])

    @property
    def key_count(self) -> int:
        """The number of keys that exist at the last revision."""
        if self._alive is None:
            self._alive = self._count_by_name()
        return self._alive

    # Inside

    def _check(self, beside: bool) -> None:
        """Read every page that belongs to something. Raises DamagedDatabase."""
        for page, content, count, _least, _below in self._pages.leaves(whole(self.meta.root), "(root)", own=True):
            for element in self._pages.elements(page, content, count, "(root)"):
                name = element.key.decode("utf-8", "replace")
                if element.flags != BUCKET_FLAG or len(element.value) < BUCKET_HEADER.size:
                    raise DamagedDatabase(f"page {page} of bucket (root): entry {name!r} is no bucket")
                root = BUCKET_HEADER.unpack_from(element.value)[0]
                self._buckets[name] = root, b"" if root else element.value[BUCKET_HEADER.size :]
        if "key" not in self._buckets or "meta" not in self._buckets:
            raise DamagedDatabase(
                f"found the buckets {', '.join(self.buckets()) or 'none'}, wanted key and meta among them: "
                "this is no database of etcd"
            )
        self._check_freelist()
        for name in self._buckets:
            if name != "key":
                for _page, _elements in self._leaf_elements(name, own=True):
                    pass
        self._check_revisions(beside)

    def _check_freelist(self) -> None:
        """Own the freelist's pages, where it is written at all. Raises DamagedDatabase."""
        page, size = self.meta.freelist, self.meta.page_size
        if page == NO_FREELIST:
            return
        content = os.pread(self._descriptor, size, page * size) if 2 <= page < self.meta.pages else b""
        if len(content) < size:
            raise DamagedDatabase(f"page {page}, the list of free pages, is not within the {self.meta.pages} pages")
        number, flags, _count, overflow = PAGE_HEADER.unpack_from(content)
        if number != page or flags != FREELIST or page + overflow >= self.meta.pages:
            raise DamagedDatabase(
                f"page {page}: its header says page {number}, flags {flags:#x}; wanted page {page}, "
                f"flags {FREELIST:#x}: the list of free pages"
            )
        self._pages.own(page, overflow, "free pages")

    def _leaf_elements(self, bucket: str, own: bool = False) -> Iterator[tuple[int, list[Element]]]:
        """Yield the leaf pages of a bucket with their elements. Raises DamagedDatabase."""
        if bucket not in self._buckets:
            return
        root, inline = self._buckets[bucket]
        if not root:
            yield 0, self._pages.elements(0, inline, inline_count(inline, bucket), bucket)
            return
        for page, content, count, least, below in self._pages.leaves(whole(root), bucket, own):
            elements = self._pages.elements(page, content, count, bucket)
            if elements and (elements[0].key < least or (below is not None and elements[-1].key >= below)):
                raise DamagedDatabase(
                    f"page {page} of bucket {bucket}: its keys are not between those of its neighbours"
                )
            yield page, elements

    def _check_revisions(self, beside: bool) -> None:
        """Check every entry of bucket key, and count the keys that exist. beside: with a copy of this process."""
        root, inline = self._buckets["key"]
        if root:
            content, flags, count, overflow = self._pages.read(root, "key")
            if beside and flags == BRANCH and count > 1:
                self._pages.own(root, overflow, "key")
                halves = self._check_halves(self._pages.branches(root, content, count, "key"))
            else:
                halves = [check_leaves(self._pages.leaves(whole(root), "key", own=True), self.compact_revision)]
        else:
            leaf = 0, inline, inline_count(inline, "key"), b"", None
            halves = [check_leaves(iter([leaf]), self.compact_revision)]
        self.entries = sum(half.entries for half in halves)
        self._last_revision = int.from_bytes(halves[-1].last[:8], "big")
        settled = self._revision_entry(b"scheduledCompactRev") <= self.compact_revision
        self._alive = sum(half.alive for half in halves) if settled else None

    def _check_halves(self, children: list[tuple[bytes, int]]) -> list[Checked]:
        """Check all that is below some pages, the second half of it in a copy of this process."""
        middle = len(children) // 2
        first, second = (children[:middle], children[middle][0]), children[middle:]
        compacted = self.compact_revision

        def check_second() -> list[Any]:
            pages = _Pages(self._descriptor, self.meta)
            found = check_leaves(pages.leaves((second, None), "key", own=True), compacted)
            return [found.alive, found.entries, found.last.hex(), pages.owned.hex()]

        with Copy(check_second) as other:
            found = check_leaves(self._pages.leaves(first, "key", own=True), compacted)
            alive, entries, last, owned = other.result()
        self._pages.own_all(bytes.fromhex(owned), "key")
        return [found, Checked(alive, entries, bytes.fromhex(last))]

    def _count_by_name(self) -> int:
        """Count the keys that exist by their names, a part of the names at a time, so that memory stays small."""
        parts = 1 + self.entries // NAMES_AT_ONCE
        total = 0
        for part in range(parts):
            alive: set[int] = set()
            for page, elements in self._leaf_elements("key"):
                for element in elements:
                    key = self._key_of(page, element)
                    # Two keys with one hash of 64 bits in one file: once in a billion files of this size.
                    name = hash(key)
                    if key and name % parts == part:
                        if len(element.key) == TOMBSTONE_BYTES:
                            alive.discard(name)
                        else:
                            alive.add(name)
            total += len(alive)
        return total

    def _key_of(self, page: int, element: Element) -> bytes:
        try:
            return key_of(element.value)
        except IndexError:
            raise DamagedDatabase(f"{self.path}: page {page} of bucket key: an entry holds no key") from None

    def _key_value(self, page: int, element: Element) -> KeyValue:
        try:
            return parse_key_value(element.value)
        except ValueError as error:
            raise DamagedDatabase(f"{self.path}: page {page} of bucket key: an entry is damaged: {error}") from None

    def _fields(self, bucket: str, content: bytes) -> dict[int, Any]:
        try:
            return protobuf_fields(content)
        except ValueError as error:
            raise DamagedDatabase(f"{self.path}: bucket {bucket}: an entry is damaged: {error}") from None

    def _revision_entry(self, name: bytes) -> int:
        return int.from_bytes((self.entry("meta", name) or b"")[:8], "big")


def check_leaves(leaves: Iterator[Leaf], compacted: int) -> Checked:
    """Check every entry of leaf pages of bucket key, and count the keys that they make exist."""
    try:
        return _check_entries(leaves, compacted)
    except IndexError:
        raise DamagedDatabase("bucket key: an entry ends within a number") from None


def _check_entries(leaves: Iterator[Leaf], compact_revision: int) -> Checked:
    """Check every entry of leaf pages of bucket key, and count the keys that they make exist.

    Of the revisions up to the last compaction one entry is left for each key that existed then, so each counts.
    Behind it a key appears with an entry that says it was created in it, and goes with a tombstone. Only while a
    compaction is under way this does not hold, and names have to be compared.

    This loop sees millions of entries: it compares slices of the page, and makes no object that it can do without.
    """
    compacted = compact_revision.to_bytes(8, "big") + b"~"  # above all of that revision, below the next
    alive = entries = 0
    before = last = b""
    # The bytes that a revision takes as a number of protocol buffers, and the first revision that takes more.
    length, longer = 0, b""
    header, step, iter_unpack = PAGE_HEADER.size, ELEMENT_BYTES, LEAF_ELEMENT.iter_unpack
    for page, content, count, least, below in leaves:
        size = len(content)
        at, end = header, header + count * step
        if end > size:
            raise DamagedDatabase(f"page {page} of bucket key: its {count} elements do not fit into it")
        first = b""
        for flags, position, key_length, value_length in iter_unpack(content[at:end]):
            begin = at + position
            middle = begin + key_length
            at += step
            last = content[begin:middle]
            # 17 bytes of a revision, 18 of one with a tombstone.
            if flags or last <= before or middle + value_length > size or not 16 < key_length < 19 or last[8] != 0x5F:
                raise DamagedDatabase(
                    f"page {page} of bucket key: an entry is out of the page or its order, or no revision"
                )
            first = first or last
            before = last
            if not value_length:
                # What a restore with a raised revision writes: a revision without a key.
                continue
            if content[middle] != 0x0A:
                raise DamagedDatabase(f"page {page} of bucket key: an entry holds no key")
            if key_length == 18:
                if last[17] != 0x74:
                    raise DamagedDatabase(f"page {page} of bucket key: an entry is no revision")
                if last > compacted:
                    alive -= 1
            elif last < compacted:
                alive += 1
            else:
                if last >= longer:
                    length = len(encode_varint(int.from_bytes(last[:8], "big")))
                    longer = (1 << 7 * length).to_bytes(9, "big")[1:]
                name_length = content[middle + 1]
                if name_length < 0x80:
                    begin = middle + 3 + name_length
                else:
                    name_length, begin = varint(content, middle + 1)
                    begin += name_length + 1
                # create_revision and, behind a tag of one byte, mod_revision are the same: the key was created here. If
                # the first were shorter, its slice would hold that tag where the second has the next one.
                middle = begin + length
                if content[begin:middle] == content[middle + 1 : middle + 1 + length]:
                    alive += 1
        entries += count
        if count and (first < least or (below is not None and last >= below)):
            raise DamagedDatabase(f"page {page} of bucket key: its keys are not between those of its neighbours")
    return Checked(alive, entries, last)


def open_database(path: str) -> Database:
    """Return a database file, a snapshot or a member's db, after reading every page that belongs to something.

    Of two meta pages one has to be sound, as for etcd itself. The file must not be in use by a member.
    Raises DamagedDatabase, OSError.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        metas, faults = read_metas(descriptor)
        if not metas:
            found = os.fstat(descriptor).st_size
            raise DamagedDatabase(
                f"{path}: " + (f"{'; '.join(faults)}: this is no database of etcd" if found else "the file is empty")
            )
    except BaseException:
        os.close(descriptor)
        raise
    return Database(path, descriptor, max(metas, key=lambda meta: meta.transaction))


# --- Snapshots --------------------------------------------------------------------------------------------------------


class Digests(NamedTuple):
    """SHA-256 of a snapshot: computed over all but the end, what the end says, and of the whole file."""

    size: int
    found: str
    written: str
    file: str


class Digest:
    """Computes the digests of a snapshot from its bytes as they come."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        # The last bytes are kept back: they may be the digest of all before them.
        self._tail = b""
        self._buffer = memoryview(bytearray(HASH_CHUNK))
        self.size = 0

    def update(self, content: bytes | memoryview) -> None:
        """Take the next bytes."""
        self.size += len(content)
        if len(content) < DIGEST_BYTES:
            content = self._tail + content
        else:
            self._hash.update(self._tail)
        self._hash.update(content[:-DIGEST_BYTES])
        self._tail = bytes(content[-DIGEST_BYTES:])

    def result(self) -> Digests:
        """Return the digests of all bytes that came."""
        whole_file = self._hash.copy()
        whole_file.update(self._tail)
        return Digests(self.size, self._hash.hexdigest(), self._tail.hex(), whole_file.hexdigest())

    def follow(self, descriptor: int) -> bool:
        """Take the next bytes of a file. Returns whether there were any. Raises OSError."""
        length = os.preadv(descriptor, [self._buffer], self.size)
        self.update(self._buffer[:length])
        return length > 0


def digests_of(descriptor: int) -> Digests:
    """Return the digests of an open file. Raises OSError."""
    digest = Digest()
    while digest.follow(descriptor):
        pass
    return digest.result()


def digest_of(path: str) -> Digests:
    """Return the digests of a file. Raises OSError."""
    with open(path, "rb") as stream:
        return digests_of(stream.fileno())


def wanted_size(descriptor: int) -> int:
    """Return the length that a snapshot has to have by its first page, 0 if that is not there or not sound."""
    try:
        meta = parse_meta(os.pread(descriptor, META_PAGE.size, 0), 0)
    except DamagedDatabase:
        return 0
    return meta.pages * meta.page_size + DIGEST_BYTES


def size_fault(size: int, wanted: int) -> str:
    """Return what is wrong with the length of a snapshot, empty if nothing is."""
    if size == wanted:
        return ""
    found = f"found {size} bytes, wanted {wanted}"
    if size == wanted - DIGEST_BYTES:
        return (
            f"{found}: the SHA-256 that ends a snapshot is missing "
            "(it was cut off, or the file was copied from a member's data folder)"
        )
    if size < wanted:
        return f"{found}: the last {wanted - size} bytes are missing"
    return f"{found}: {size - wanted} bytes too many"


def verify_snapshot(path: str) -> SnapshotProof:
    """Prove that a snapshot is what etcd sent: its length, SHA-256, both meta pages, and every page in use.

    Raises DamagedDatabase with all faults, and OSError.
    """
    with open(path, "rb") as stream:
        descriptor = stream.fileno()
        if os.fstat(descriptor).st_size < WORTH_A_WORKER:
            return prove(path, descriptor, lambda: digests_of(descriptor))
        with Worker("prove", descriptor, path) as prover:
            return SnapshotProof(**prover.result())


def prove_beside(descriptor: int, path: str) -> dict[str, Any]:
    """Do what verify_snapshot does with an open file, with copies of this process: the work of a Worker."""
    with Copy(lambda: digests_of(descriptor)) as hashing:
        return asdict(prove(path, descriptor, lambda: Digests(*hashing.result()), beside=True))


def follow_and_prove(descriptor: int, path: str) -> dict[str, Any]:
    """Do what verify_snapshot does with a file that is still being written: the work of a Worker.

    Its digest is computed meanwhile. The proof begins as soon as the file has the length that its first page says, or
    when this process is told that no more comes.
    """
    digest = Digest()
    sent = wanted = 0
    control = select.poll()
    control.register(sys.stdin, select.POLLIN)
    while True:
        ended = bool(control.poll(0))
        more = digest.follow(descriptor)
        if digest.size - sent >= WRITE_OUT:
            # A hint to forget what was written, but what is not yet on the disk has to go there first: it is sent on
            # its way now, while more comes, and stays in memory. The fsync at the end finds little left to do.
            os.posix_fadvise(descriptor, sent, digest.size - sent, os.POSIX_FADV_DONTNEED)
            sent = digest.size
        if ended and os.read(sys.stdin.fileno(), len(TOLD)) != TOLD:
            raise OSError(errno.EPIPE, "the process that took the snapshot is gone")
        while more:
            more = digest.follow(descriptor)
        wanted = wanted or wanted_size(descriptor)
        if ended or 0 < wanted <= digest.size:
            break
        control.poll(FOLLOW_MILLISECONDS)
    return asdict(prove(path, descriptor, digest.result, beside=True))


WORKS: dict[str, Callable[..., Any]] = {"prove": prove_beside, "follow": follow_and_prove}


def prove(path: str, descriptor: int, digests: Callable[[], Digests], beside: bool = False) -> SnapshotProof:
    """Do what verify_snapshot does with an open file. digests: returns those of the file, asked for at the end.

    beside: with a copy of this process, which has no threads then.
    """
    size = os.fstat(descriptor).st_size
    if not size:
        raise DamagedDatabase(f"{path}: the file is empty")
    metas, faults = read_metas(descriptor)
    if len(metas) == 2:
        faults += disagreements(*metas)
    wanted = metas[0].pages * metas[0].page_size + DIGEST_BYTES if metas else 0
    faults += [size_fault(size, wanted)] if metas and size != wanted else []
    database = None
    try:
        if metas:
            newest = max(metas, key=lambda meta: meta.transaction)
            try:
                database = Database(path, os.dup(descriptor), newest, beside)
            except DamagedDatabase as error:
                faults.append(str(error)[len(path) + 2 :])
        known = digests()
        # Where the length is wrong the last 32 bytes are no digest, and comparing them says nothing more.
        if size == wanted and known.found != known.written:
            faults.append(
                f"its content has the SHA-256 {known.found}, its last {DIGEST_BYTES} bytes say {known.written}: "
                "it was changed after etcd wrote it"
            )
        if faults or not database:
            raise DamagedDatabase(f"{path} is no sound snapshot: {'; '.join(faults)}")
        return proof_of(database, size, known.file)
    finally:
        if database:
            database.close()


def proof_of(database: Database, size: int, digest: str) -> SnapshotProof:
    """Return what is known of a database that was checked."""
    return SnapshotProof(
        size=size,
        digest=digest,
        page_size=database.meta.page_size,
        revision=database.revision,
        compact_revision=database.compact_revision,
        key_count=database.key_count,
        entries=database.entries,
        members=database.members,
        cluster_version=database.cluster_version,
        storage_version=database.storage_version,
        consistent_index=database.consistent_index,
        term=database.term,
        alarms=database.alarms,
        lease_count=database.lease_count,
        auth_enabled=database.auth_enabled,
    )
