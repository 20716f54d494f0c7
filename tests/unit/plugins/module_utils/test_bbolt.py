# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils import bbolt
from ansible_collections.plainkube.cluster.plugins.module_utils.bbolt import (
    DamagedDatabase,
    Digest,
    KeyValue,
    Meta,
    Worker,
    digest_of,
    disagreements,
    encode_varint,
    fnv64a,
    open_database,
    parse_key_value,
    parse_meta,
    prove,
    size_fault,
    varint,
    verify_snapshot,
)

PAGE = 4096
LEAF, BRANCH = 2, 1
Pair = tuple[bytes, bytes]

# --- A writer of small databases --------------------------------------------------------------------------------------


def page(number: int, flags: int, elements: Iterable[tuple[bytes, bytes]], size: int) -> bytes:
    """Return a page; the value of a branch's element is its child's number as eight bytes."""
    items = list(elements)
    heads, data = b"", b""
    for index, (key, value) in enumerate(items):
        position = 16 * (len(items) - index) + len(data)
        if flags == BRANCH:
            heads += struct.pack("<II", position, len(key)) + value
            data += key
        else:
            bucket = 1 if key.startswith(b"bucket:") else 0
            key = key[len(b"bucket:") :] if bucket else key
            heads += struct.pack("<IIII", bucket, position, len(key), len(value))
            data += key + value
    body = heads + data
    further = (16 + len(body) - 1) // size
    return (struct.pack("<QHHI", number, flags, len(items), further) + body).ljust(size * (further + 1), b"\0")


def inline(elements: Iterable[Pair]) -> bytes:
    content = page(0, LEAF, elements, 1 << 16)
    return struct.pack("<QQ", 0, 0) + content[: len(content.rstrip(b"\0")) + 8]


def meta(number: int, root: int, pages: int, transaction: int, size: int) -> bytes:
    checked = struct.pack("<IIIIQQQQQ", bbolt.MAGIC, 2, size, 0, root, 0, bbolt.NO_FREELIST, pages, transaction)
    return (struct.pack("<QHHI", number, 4, 0, 0) + checked + struct.pack("<Q", fnv64a(checked))).ljust(size, b"\0")


def database(
    leaves: list[list[Pair]],
    buckets: dict[bytes, list[Pair]] | None = None,
    size: int = PAGE,
    inline_keys: bool = False,
    children: int = 1000,
    roots: dict[bytes, int] | None = None,
    first: int = 2,
) -> bytes:
    """Return a database whose bucket key has these leaf pages, with a snapshot's digest behind it.

    children: how many a branch has at most. roots: buckets that begin at one of the pages. first: number of the first
    page behind the meta pages; what stands before it is for the caller to put there.
    """
    pages: list[bytes] = []

    def add(flags: int, elements: Iterable[Pair]) -> int:
        number = first + sum(len(content) for content in pages) // size
        pages.append(page(number, flags, elements, size))
        return number

    if inline_keys:
        key_bucket = inline(leaves[0])
    else:
        nodes = [(leaf[0][0] if leaf else b"", add(LEAF, leaf)) for leaf in leaves]
        while len(nodes) > 1:
            groups = [nodes[at : at + children] for at in range(0, len(nodes), children)]
            nodes = [
                (group[0][0], add(BRANCH, [(key, struct.pack("<Q", at)) for key, at in group])) for group in groups
            ]
        key_bucket = struct.pack("<QQ", nodes[0][1], 0)
    named = {b"meta": [], **(buckets or {})}
    rows = [(b"bucket:" + name, inline(sorted(items))) for name, items in named.items()]
    rows += [(b"bucket:" + name, struct.pack("<QQ", root, 0)) for name, root in (roots or {}).items()]
    rows.append((b"bucket:key", key_bucket))
    top = add(LEAF, sorted(rows))
    count = first + sum(len(content) for content in pages) // size
    content = meta(0, top, count, 8, size) + meta(1, top, count, 7, size) + b"".join(pages)
    return content + hashlib.sha256(content).digest()


def sparse(path: Path, leaves: list[list[Pair]], begin: int) -> Path:
    """Write a database without a digest whose pages stand behind a hole that ends at a place of the file."""
    content = database(leaves, first=begin // PAGE)[: -bbolt.DIGEST_BYTES]
    with path.open("wb") as stream:
        stream.write(content[: 2 * PAGE])
        stream.seek(begin)
        stream.write(content[2 * PAGE :])
    return path


def revision(main: int, sub: int = 0, tombstone: bool = False) -> bytes:
    return struct.pack(">Q", main) + b"_" + struct.pack(">Q", sub) + (b"t" if tombstone else b"")


def put(
    main: int,
    key: bytes,
    value: bytes = b"v",
    created: int | None = None,
    version: int = 1,
    sub: int = 0,
    lease: int = 0,
) -> Pair:
    fields = b"\x0a" + encode_varint(len(key)) + key + b"\x10" + encode_varint(main if created is None else created)
    fields += b"\x18" + encode_varint(main) + b"\x20" + encode_varint(version)
    fields += b"\x2a" + encode_varint(len(value)) + value if value else b""
    fields += b"\x30" + encode_varint(lease % (1 << 64)) if lease else b""
    return revision(main, sub), fields


def delete(main: int, key: bytes, sub: int = 0) -> Pair:
    return revision(main, sub, tombstone=True), b"\x0a" + encode_varint(len(key)) + key


def compacted(finished: int, scheduled: int | None = None) -> dict[bytes, list[Pair]]:
    entries = [(b"finishedCompactRev", revision(finished))]
    entries.append((b"scheduledCompactRev", revision(finished if scheduled is None else scheduled)))
    return {b"meta": entries}


def written(folder: Path, content: bytes) -> str:
    path = folder / "snapshot.db"
    path.write_bytes(content)
    return str(path)


def names(path: str) -> list[bytes]:
    with open_database(path) as opened:
        return [key.key for key in opened.select(lambda key: True)]


# --- Counting ---------------------------------------------------------------------------------------------------------

HISTORIES = {
    "nothing": ([[]], {}, [], 1),
    "one key": ([[put(2, b"/a")]], {}, [b"/a"], 2),
    "overwritten": ([[put(2, b"/a"), put(3, b"/a", created=2, version=2)]], {}, [b"/a"], 3),
    "deleted": ([[put(2, b"/a"), put(3, b"/b"), delete(4, b"/a")]], {}, [b"/b"], 4),
    "came again": ([[put(2, b"/a"), delete(3, b"/a"), put(4, b"/a")]], {}, [b"/a"], 4),
    "one transaction": (
        [[put(2, b"/a"), put(2, b"/b", sub=1), delete(3, b"/a"), put(3, b"/c", sub=1)]],
        {},
        [b"/b", b"/c"],
        3,
    ),
    "compacted": (
        [[put(4, b"/a", created=2, version=3), put(5, b"/b"), put(6, b"/a", created=2, version=4), delete(7, b"/b")]],
        compacted(5),
        [b"/a"],
        7,
    ),
    "compacted at a tombstone that was kept": ([[put(3, b"/b"), delete(5, b"/a")]], compacted(5), [b"/b"], 5),
    "compacted beyond the last entry": ([[put(3, b"/b")]], compacted(9), [b"/b"], 9),
    "compaction under way": (
        # Of /a the first two are gone already, of /b nothing yet; up to revision 6 all is to be compacted.
        [[put(4, b"/a", created=2, version=3), put(5, b"/b"), put(6, b"/b", created=5, version=2), delete(7, b"/a")]],
        {b"meta": [(b"scheduledCompactRev", revision(6))]},
        [b"/b"],
        7,
    ),
    "a raised revision": ([[put(2, b"/a"), (revision(1002), b"")]], {}, [b"/a"], 1002),
    "a raised revision, marked as compacted": (
        [[put(2, b"/a"), (revision(1002), b"")]],
        {b"meta": [(b"scheduledCompactRev", revision(1002))]},
        [b"/a"],
        1002,
    ),
    "long keys and large numbers": (
        [[put(1 << 40, b"/" + b"x" * 200), put((1 << 40) + 1, b"/" + b"x" * 200, created=1 << 40, version=2)]],
        {},
        [b"/" + b"x" * 200],
        (1 << 40) + 1,
    ),
    "numbers that grow": (
        [[put(127, b"/a"), put(128, b"/b"), put(16383, b"/c"), put(16384, b"/d"), put(16385, b"/b", created=128)]],
        {},
        [b"/a", b"/b", b"/c", b"/d"],
        16385,
    ),
}


@pytest.mark.parametrize("case", HISTORIES)
@pytest.mark.parametrize("form", ["pages", "inline", "other page size"])
def test_keys_are_counted_as_etcd_would(case: str, form: str, tmp_path: Path) -> None:
    leaves, buckets, wanted, at = HISTORIES[case]
    content = database(leaves, buckets, 1 << 14 if form == "other page size" else PAGE, form == "inline")
    path = written(tmp_path, content)
    proof = verify_snapshot(path)
    assert (proof.revision, proof.entries) == (at, len(leaves[0]))
    assert proof.key_count == len(wanted)
    assert names(path) == wanted


def test_many_pages_and_a_second_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leaves = [
        [put(100 * leaf + entry + 2, b"/%03d/%02d" % (leaf, entry)) for entry in range(20)] for leaf in range(150)
    ]
    path = written(tmp_path, database(leaves, size=1 << 14))
    alone = verify_snapshot(path)
    monkeypatch.setattr(bbolt, "WORTH_A_WORKER", 0)
    assert verify_snapshot(path) == alone
    assert (alone.key_count, alone.entries) == (3000, 3000)
    with open_database(path) as opened:
        assert [key.key for key in opened.keys(b"/007/1")] == [b"/007/%02d" % number for number in range(10, 20)]
        monkeypatch.setattr(bbolt, "NAMES_AT_ONCE", 1000)
        assert opened._count_by_name() == 3000


def test_damage_that_the_second_process_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leaves = [[put(10 * leaf + 2, b"/%d" % leaf)] for leaf in range(50)]
    content = bytearray(database(leaves))
    content[(2 + 45) * PAGE + 8] = 0x20
    monkeypatch.setattr(bbolt, "WORTH_A_WORKER", 0)
    with pytest.raises(DamagedDatabase, match="page 47 of bucket key: its header says page 47 with flags 0x20"):
        verify_snapshot(written(tmp_path, bytes(content)))


@pytest.mark.parametrize("worth", [0, 1 << 30], ids=["two processes", "one process"])
def test_a_page_of_two_buckets(worth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leaves = [[put(10 * leaf + 2, b"/%d" % leaf)] for leaf in range(50)]
    monkeypatch.setattr(bbolt, "WORTH_A_WORKER", worth)
    for shared in (2, 51):
        with pytest.raises(DamagedDatabase, match=f"page {shared} of bucket key: it belongs to two places"):
            verify_snapshot(written(tmp_path, database(leaves, roots={b"lease": shared})))


@pytest.mark.parametrize("worth", [0, 1 << 30], ids=["two processes", "one process"])
def test_three_levels_and_keys_beyond_a_branch(worth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leaves = [[put(10 * leaf + 2, b"/%d" % leaf)] for leaf in range(27)]
    monkeypatch.setattr(bbolt, "WORTH_A_WORKER", worth)
    assert verify_snapshot(written(tmp_path, database(leaves, children=3))).key_count == 27
    # Above the first key of the next branch, which only the branch of branches tells.
    leaves[2].append(put(10 * 3 + 2, b"/x"))
    with pytest.raises(DamagedDatabase, match="page 4 of bucket key: its keys are not between"):
        verify_snapshot(written(tmp_path, database(leaves, children=3)))


def test_one_bit_of_a_value(tmp_path: Path) -> None:
    content = bytearray(database([[put(2, b"/a", b"value")]]))
    content[content.index(b"value")] ^= 1
    with pytest.raises(DamagedDatabase, match="it was changed after etcd wrote it"):
        verify_snapshot(written(tmp_path, bytes(content)))


def test_values_larger_than_a_page(tmp_path: Path) -> None:
    large = os.urandom(3 * PAGE)
    path = written(tmp_path, database([[put(2, b"/a", large)], [put(3, b"/b")]]))
    assert verify_snapshot(path).key_count == 2
    with open_database(path) as opened:
        assert [key.value for key in opened.keys(b"/")] == [large, b"v"]


def test_what_stands_in_the_small_buckets(tmp_path: Path) -> None:
    member = {
        "id": 10,
        "name": "one",
        "peerURLs": ["http://a:2380"],
        "clientURLs": ["http://a:2379"],
        "isLearner": True,
    }
    buckets = {
        b"alarm": [(b"\x08\x0a\x10\x01", b"")],
        b"auth": [(b"authEnabled", b"\x01")],
        b"cluster": [(b"clusterVersion", b"3.6.0")],
        b"lease": [(struct.pack(">Q", 7), b"\x08\x07\x10\x3c")],
        b"members": [(b"000000000000000a", json.dumps(member).encode())],
        b"members_removed": [(b"000000000000000b", b"removed")],
        b"meta": [
            (b"consistent_index", struct.pack(">Q", 99)),
            (b"term", struct.pack(">Q", 5)),
            (b"storageVersion", b"3.6.0"),
        ],
    }
    path = written(tmp_path, database([[put(2, b"/a", lease=7)]], buckets))
    proof = verify_snapshot(path)
    assert proof.members == [
        {"id": "a", "name": "one", "peer_urls": ["http://a:2380"], "client_urls": ["http://a:2379"], "learner": True}
    ]
    assert proof.alarms == [{"member_id": "a", "alarm": "NOSPACE"}]
    assert (proof.cluster_version, proof.storage_version) == ("3.6.0", "3.6.0")
    assert (proof.consistent_index, proof.term, proof.lease_count, proof.auth_enabled) == (99, 5, 1, True)
    with open_database(path) as opened:
        assert [(lease.id, lease.ttl) for lease in opened.leases] == [(7, 60)]
        assert opened.removed_members == ["000000000000000b"]
        assert list(opened.keys(b"/a")) == [KeyValue(b"/a", b"v", 2, 2, 1, 7)]
        assert list(opened.keys(b"/none")) == []
        assert "key" in opened.buckets()


def test_something_else_than_etcd(tmp_path: Path) -> None:
    rows = [(b"bucket:other", inline([]))]
    content = meta(0, 2, 3, 8, PAGE) + meta(1, 2, 3, 7, PAGE) + page(2, LEAF, rows, PAGE)
    with pytest.raises(DamagedDatabase, match="found the buckets other, wanted key and meta"):
        open_database(written(tmp_path, content))


def test_one_sound_meta_page_is_enough_to_read_and_not_for_a_proof(tmp_path: Path) -> None:
    for number in (0, 1):
        content = bytearray(database([[put(2, b"/a")]]))
        content[number * PAGE + 40] ^= 1
        path = written(tmp_path, bytes(content))
        assert names(path) == [b"/a"]
        with pytest.raises(DamagedDatabase, match=f"meta page {number}"):
            verify_snapshot(path)


# --- Small parts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1, 127, 128, 300, 1 << 32, (1 << 63) - 1, (1 << 64) - 1])
def test_numbers(number: int) -> None:
    encoded = encode_varint(number)
    assert varint(b"x" + encoded + b"y", 1) == (number, 1 + len(encoded))


def test_key_values() -> None:
    _name, content = put(7, b"/k", b"value", created=3, version=4, lease=-5)
    assert parse_key_value(content) == KeyValue(b"/k", b"value", 3, 7, 4, -5)
    with pytest.raises(ValueError, match="ends behind"):
        parse_key_value(content[:3])


def test_meta_pages() -> None:
    sound = meta(0, 5, 9, 3, PAGE)
    assert parse_meta(sound, 0) == Meta(PAGE, 5, bbolt.NO_FREELIST, 9, 3)
    with pytest.raises(DamagedDatabase, match="found 10 bytes"):
        parse_meta(sound[:10], 0)
    first = Meta(PAGE, 5, 1, 9, 3)
    assert disagreements(first, first._replace(transaction=2)) == []
    (fault,) = disagreements(first, first._replace(transaction=3, pages=8))
    assert "pages 9 and 8" in fault and "transactions 3 and 3 (wanted 2 in the second)" in fault


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (1032, ""),
        (1000, "SHA-256 that ends a snapshot is missing"),
        (999, "33 bytes are missing"),
        (1034, "2 bytes too many"),
    ],
)
def test_sizes(size: int, said: str) -> None:
    fault = size_fault(size, 1032)
    assert said in fault and bool(fault) == (size != 1032)


@pytest.mark.parametrize("step", [1, 31, 32, 33, 100, 1000])
@pytest.mark.parametrize("size", [0, 5, 32, 33, 64, 500])
def test_the_digest_takes_bytes_as_they_come(size: int, step: int) -> None:
    content = os.urandom(size)
    digest = Digest()
    for at in range(0, size, step):
        digest.update(content[at : at + step])
    found = digest.result()
    assert found.file == hashlib.sha256(content).hexdigest()
    assert found.found == hashlib.sha256(content[:-32]).hexdigest()
    assert (found.written, found.size) == (content[-32:].hex(), size)


def test_a_file_is_followed_while_it_grows(tmp_path: Path) -> None:
    """The proof comes from a file that was empty when it began, written in pieces by somebody else."""
    content = database([[put(number, b"/%d" % number)] for number in range(2, 60)])
    path = tmp_path / "growing.db"
    with path.open("w+b") as stream, Worker("follow", stream.fileno(), "the snapshot") as follower:
        for at in range(0, len(content), 10_000):
            stream.write(content[at : at + 10_000])
            stream.flush()
        # It has its length and is proven without being told so.
        assert follower.result()["key_count"] == 58


def test_a_file_that_stops_growing_is_proven_as_it_is(tmp_path: Path) -> None:
    content = database([[put(number, b"/%d" % number)] for number in range(2, 60)])
    with (tmp_path / "growing.db").open("w+b") as stream, Worker("follow", stream.fileno(), "the snapshot") as follower:
        stream.write(content[:-40])
        stream.flush()
        follower.tell()
        with pytest.raises(DamagedDatabase, match=r"the snapshot is no sound snapshot: .* 40 bytes are missing"):
            follower.result()


def test_a_worker_that_was_done_before_it_was_told_is_no_fault(tmp_path: Path) -> None:
    content = database([[put(number, b"/%d" % number)] for number in range(2, 60)])
    path = written(tmp_path, content)
    with open(path, "rb") as stream, Worker("follow", stream.fileno(), "the snapshot") as follower:
        # Its answer fits into the pipe: it ends without anybody reading.
        follower._process.wait()
        follower.tell()
        assert follower.result()["key_count"] == 58


def test_a_worker_ends_with_whoever_started_it(tmp_path: Path) -> None:
    with (tmp_path / "growing.db").open("w+b") as stream:
        follower = Worker("follow", stream.fileno(), "the snapshot")
        assert follower._process.stdin
        follower._process.stdin.close()
        # Nothing is told through the pipe, it is closed: the worker ends by itself.
        with pytest.raises(OSError, match="is gone"):
            follower.result()


@pytest.mark.parametrize("begin", [1 << 31, (1 << 32) + 5 * PAGE, 1 << 40], ids=["2 GiB", "4 GiB", "1 TiB"])
def test_pages_far_behind_in_a_file(begin: int, tmp_path: Path) -> None:
    large = os.urandom(3 * PAGE)
    leaves = [[put(number, b"/%d" % number)] for number in range(2, 60)] + [[put(60, b"/large", large)]]
    with open_database(str(sparse(tmp_path / "far.db", leaves, begin))) as opened:
        assert (opened.revision, opened.key_count) == (60, 59)
        assert [key.value for key in opened.keys(b"/large")] == [large]


def test_a_file_of_more_than_2_gib_is_followed_and_proven(tmp_path: Path) -> None:
    path = sparse(tmp_path / "large.db", [[put(number, b"/%d" % number)] for number in range(2, 60)], (1 << 31) + PAGE)
    content = hashlib.sha256()
    with path.open("r+b") as stream:
        while piece := stream.read(256 << 10):
            content.update(piece)
        stream.write(content.digest())
        stream.flush()
        with Worker("follow", stream.fileno(), "the snapshot") as follower:
            found = follower.result()
    content.update(content.digest())
    assert (found["size"], found["key_count"]) == (path.stat().st_size, 58)
    assert found["digest"] == content.hexdigest()


def test_a_copy_that_ends_without_an_answer(tmp_path: Path) -> None:
    """It is killed, as for too much memory: that is no proof."""
    command = (
        f"import os\nfrom {bbolt.__name__} import Copy\n"
        "with Copy(lambda: os.kill(os.getpid(), 9)) as copy:\n"
        "    try: copy.result()\n"
        "    except OSError as error: print(error.strerror)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "a process that checked a part ended with -9\n"


def test_workers_beside_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bbolt, "WORTH_A_WORKER", 0)
    path = written(tmp_path, database([[put(number, b"/%d" % number)] for number in range(2, 60)]))
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        assert verify_snapshot(path).key_count == 58
    finally:
        stop.set()
        thread.join()


def test_a_file_that_shrinks_under_the_reader(tmp_path: Path) -> None:
    content = database([[put(number, b"/%d" % number)] for number in range(2, 60)])
    path = written(tmp_path, content)
    with open(path, "r+b") as stream:

        def shrink() -> bbolt.Digests:
            return digest_of(path)

        stream.truncate(20 * PAGE)
        with pytest.raises(DamagedDatabase, match=r"found 0 bytes, wanted 4096|bytes are missing"):
            prove(path, stream.fileno(), shrink)
