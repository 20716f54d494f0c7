# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Snapshots with damage: what etcd's own programs say of it, and what ours do."""

from __future__ import annotations

import hashlib
import random
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils.bbolt import (
    DIGEST_BYTES,
    META_CHECKED,
    DamagedDatabase,
    fnv64a,
    open_database,
    verify_snapshot,
)
from etcd_servers import V3_5, V3_7, binaries, cluster
from run_module import run_module

PAGE = 4096
META_FIELDS = {"root": 32, "freelist": 48, "pages": 56, "transaction": 64}
Change = Callable[[bytearray], object]


@pytest.fixture(scope="module", params=[V3_5, V3_7])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, bytes]:
    """A version, and a snapshot of a server of it which has two levels of pages."""
    folder = tmp_path_factory.mktemp("damage")
    with cluster(request.param, members=1, folder=folder) as servers:
        servers.fill(2500, size=300)
        servers.delete("/registry/pods/000007")
        servers.etcdctl("lease", "grant", "600")
        servers.etcdctl("snapshot", "save", str(folder / "whole.db"))
    return request.param, (folder / "whole.db").read_bytes()


def refusal(content: bytes, folder: Path) -> str:
    """Return what is said of a file with this content; that it is refused is asserted."""
    path = folder / "damaged.db"
    path.write_bytes(content)
    with pytest.raises(DamagedDatabase) as raised:
        verify_snapshot(str(path))
    return str(raised.value)


def resealed(content: bytearray) -> bytes:
    """Return content with the SHA-256 that it should have, as if the server had sent it so."""
    body = bytes(content[:-DIGEST_BYTES])
    return body + hashlib.sha256(body).digest()


def set_meta(content: bytearray, number: int, **values: int) -> None:
    """Change fields of a meta page, and its checksum to go with them."""
    base = number * PAGE
    for name, value in values.items():
        struct.pack_into("<Q", content, base + META_FIELDS[name], value)
    checked = bytes(content[base + META_CHECKED.start : base + META_CHECKED.stop])
    struct.pack_into("<Q", content, base + META_CHECKED.stop, fnv64a(checked))


def key_leaf(content: bytes) -> int:
    """Return where a page begins that holds revisions of keys."""
    for base in range(2 * PAGE, len(content) - PAGE, PAGE):
        number, flags, count, _overflow = struct.unpack_from("<QHHI", content, base)
        if number == base // PAGE and flags == 2 and count > 3 and content[base + 16 * (count + 1) + 8] == ord("_"):
            return base
    raise AssertionError("no such page")


def test_the_whole_file_is_sound(whole: tuple[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "whole.db"
    path.write_bytes(whole[1])
    proof = verify_snapshot(str(path))
    assert (proof.key_count, proof.entries, proof.lease_count) == (2499, 2501, 1)
    assert proof.digest == hashlib.sha256(whole[1]).hexdigest()
    assert [member["name"] for member in proof.members] == ["m0"]


def test_one_flipped_bit_anywhere(whole: tuple[str, bytes], tmp_path: Path) -> None:
    chosen = random.Random(4)
    offsets = [0, 20, PAGE, PAGE + 60, len(whole[1]) - 1, len(whole[1]) - 33]
    for offset in [*offsets, *(chosen.randrange(len(whole[1])) for _ in range(200))]:
        content = bytearray(whole[1])
        content[offset] ^= 1 << chosen.randrange(8)
        message = refusal(content, tmp_path)
        assert "SHA-256" in message or "meta page" in message or "bytes" in message, (offset, message)


# Name, damage, what is said here, and whether `etcdutl snapshot status` finds nothing wrong.
ROWS: list[tuple[str, Callable[[bytes], bytes], str, bool]] = [
    ("one bit flipped", lambda whole: bytes([*whole[:9000], whole[9000] ^ 4, *whole[9001:]]), "changed after", True),
    ("digest missing", lambda whole: whole[:-32], "the SHA-256 that ends a snapshot is missing", True),
    ("20 bytes cut", lambda whole: whole[:-20], "the last 20 bytes are missing", True),
    ("2 bytes appended", lambda whole: whole + b"xx", "2 bytes too many", True),
    ("512 bytes appended", lambda whole: whole + bytes(512), "512 bytes too many", True),
    ("truncated", lambda whole: whole[: len(whole) * 2 // 3], "bytes are missing", False),
    ("truncated to a snapshot's length", lambda whole: whole[: PAGE * 20 + 32], "bytes are missing", False),
    ("empty", lambda whole: b"", "the file is empty", False),
    ("another format", lambda whole: b"SQLite format 3\0" * 3000, "magic number", False),
    ("first page only", lambda whole: whole[:PAGE], "meta page 1", False),
    ("nothing but zeros", lambda whole: bytes(len(whole)), "magic number", False),
    ("a page of zeros", lambda whole: whole[: 4 * PAGE] + bytes(PAGE) + whole[5 * PAGE :], "changed after", False),
]


@pytest.mark.parametrize(("name", "damage", "said", "silent"), ROWS, ids=[row[0] for row in ROWS])
def test_every_row(
    whole: tuple[str, bytes], tmp_path: Path, name: str, damage: Callable[[bytes], bytes], said: str, silent: bool
) -> None:
    """What etcd's own program finds nothing wrong with is refused here all the same."""
    version, content = whole
    message = refusal(damage(content), tmp_path)
    assert said in message and str(tmp_path / "damaged.db") in message, message
    answer = run_module("etcd_snapshot_info", {"path": str(tmp_path / "damaged.db")})
    assert answer["exists"] and not answer["sound"] and said in answer["fault"]
    finished = subprocess.run(
        [binaries(version) / "etcdutl", "snapshot", "status", tmp_path / "damaged.db"], capture_output=True, check=False
    )
    assert (finished.returncode == 0) == silent, "what etcdutl finds is not what stands here"


# What the server itself would send with a digest that is right: here only the structure can tell.
def _swap_elements(content: bytearray) -> None:
    base = key_leaf(content) + 16
    first, second = content[base : base + 16], content[base + 16 : base + 32]
    (one,), (two,) = struct.unpack_from("<I", first, 4), struct.unpack_from("<I", second, 4)
    struct.pack_into("<I", first, 4, one - 16)
    struct.pack_into("<I", second, 4, two + 16)
    content[base : base + 16], content[base + 16 : base + 32] = second, first


STRUCTURE: list[tuple[str, Change, str]] = [
    ("meta pages with different roots", lambda c: set_meta(c, 1, root=2), "meta pages disagree: root"),
    ("meta pages too far apart", lambda c: set_meta(c, 1, transaction=1), "meta pages disagree: transactions"),
    ("a meta page with a wrong checksum", lambda c: c.__setitem__(PAGE + 57, c[PAGE + 57] ^ 1), "meta page 1: found c"),
    ("a root outside", lambda c: (set_meta(c, 0, root=1 << 40), set_meta(c, 1, root=1 << 40)), "points to page"),
    ("a page with another's number", lambda c: c.__setitem__(key_leaf(c), c[key_leaf(c)] ^ 1), "its header says"),
    ("a page of another kind", lambda c: c.__setitem__(key_leaf(c) + 8, 0x10), "flags 0x10"),
    ("more elements than fit", lambda c: struct.pack_into("<H", c, key_leaf(c) + 10, 5000), "do not fit"),
    ("an empty page", lambda c: struct.pack_into("<H", c, key_leaf(c) + 10, 0), "it is empty"),
    ("an element beyond its page", lambda c: struct.pack_into("<I", c, key_leaf(c) + 28, 90000), "out of the page"),
    ("elements out of order", _swap_elements, "order"),
    ("a page that runs over everything", lambda c: struct.pack_into("<I", c, key_leaf(c) + 12, 1 << 30), "further"),
]


@pytest.mark.parametrize(("name", "change", "said"), STRUCTURE, ids=[row[0] for row in STRUCTURE])
def test_damage_that_the_digest_cannot_tell(
    whole: tuple[str, bytes], tmp_path: Path, name: str, change: Change, said: str
) -> None:
    content = bytearray(whole[1])
    change(content)
    message = refusal(resealed(content), tmp_path)
    assert said in message and "changed after" not in message, message


def test_a_page_in_two_places(whole: tuple[str, bytes], tmp_path: Path) -> None:
    """Two branches that lead to one page: the second would be read twice, and another page not at all."""
    content = bytearray(whole[1])
    for base in range(2 * PAGE, len(content) - PAGE, PAGE):
        number, flags, count, _overflow = struct.unpack_from("<QHHI", content, base)
        if number == base // PAGE and flags == 1 and count > 3:
            struct.pack_into("<Q", content, base + 16 + 16 + 8, struct.unpack_from("<Q", content, base + 16 + 8)[0])
    message = refusal(resealed(content), tmp_path)
    assert "two places" in message or "not between" in message


def test_a_database_without_digest_is_told_from_a_snapshot(whole: tuple[str, bytes], tmp_path: Path) -> None:
    """A copy of a stopped member's file can be read, and is no snapshot."""
    path = tmp_path / "db"
    path.write_bytes(whole[1][:-DIGEST_BYTES] + bytes(16 * PAGE))
    with open_database(str(path)) as database:
        assert database.key_count == 2499
    with pytest.raises(DamagedDatabase, match="bytes too many"):
        verify_snapshot(str(path))


def test_all_faults_are_named_at_once(whole: tuple[str, bytes], tmp_path: Path) -> None:
    content = bytearray(whole[1])
    set_meta(content, 1, root=2)
    content[key_leaf(content) + 8] = 0x10
    message = refusal(content, tmp_path)
    for said in ("disagree", "flags 0x10", "changed after"):
        assert said in message


def test_a_file_that_is_not_there_or_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        verify_snapshot(str(tmp_path / "none"))
    with pytest.raises(OSError):
        verify_snapshot(str(tmp_path))
