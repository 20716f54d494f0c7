# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The files of a migration and of a member; everything that talks to a server is tested with real ones."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils import etcd_migration_io as io
from ansible_collections.plainkube.cluster.plugins.module_utils.bbolt import encode_varint
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_migrations import Entry, MigrationError


def text(field: int, value: bytes | str) -> bytes:
    content = value.encode() if isinstance(value, str) else value
    return encode_varint(field << 3 | 2) + encode_varint(len(content)) + content


def written(raft_index: int, path: str) -> bytes:
    """Return a record of a log: somebody puts a key."""
    request = text(2, "PUT") + text(3, f"/1{path}")
    entry = b"\x08\x00\x10\x01\x18" + encode_varint(raft_index) + text(4, request)
    record = b"\x08\x02\x10\x00" + text(3, entry)
    padding = -len(record) % 8
    return struct.pack("<Q", len(record) | (0x80 | padding) << 56) + record + bytes(padding)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "member/wal").mkdir(parents=True)
    (tmp_path / "member/snap").mkdir()
    return tmp_path


class TestLog:
    FIRST, SECOND = "0000000000000000-0000000000000000.wal", "0000000000000001-0000000000000003.wal"

    def test_reads_on_where_it_ended_also_in_the_next_file(self, data: Path) -> None:
        first = data / "member/wal" / self.FIRST
        first.write_bytes(written(1, "/a") + bytes(512))
        log = io.Log(str(data))
        assert [index for index, _data in log.advance()] == [1]
        assert list(log.advance()) == []
        first.write_bytes(written(1, "/a") + written(2, "/b") + bytes(512))
        (data / "member/wal" / self.SECOND).write_bytes(written(3, "/c") + bytes(512))
        assert [index for index, _data in log.advance()] == [2, 3]
        assert list(log.advance()) == []

    def test_leaves_out_what_came_before(self, data: Path) -> None:
        (data / "member/wal" / self.FIRST).write_bytes(written(1, "/a") + written(2, "/b"))
        (data / "member/wal" / self.SECOND).write_bytes(written(3, "/c") + written(4, "/d"))
        assert [index for index, _data in io.Log(str(data)).advance(3)] == [4]

    def test_passes_over_all_but_what_may_still_be_written(self, data: Path) -> None:
        (data / "member/wal" / self.FIRST).write_bytes(written(1, "/a"))
        second = data / "member/wal" / self.SECOND
        half = written(4, "/d")[:-10]
        second.write_bytes(written(3, "/c") + half + bytes(512))
        log = io.Log(str(data))
        log.skip()
        second.write_bytes(written(3, "/c") + written(4, "/d") + written(5, "/e") + bytes(512))
        assert [index for index, _data in log.advance()] == [4, 5]
        assert list(log.advance()) == []

    def test_what_cannot_be_passed_over(self, data: Path) -> None:
        with pytest.raises(MigrationError, match="the log of a member, cannot be read"):
            io.Log(str(data)).skip()

    def test_knows_hidden_keys_that_were_written_since(self, data: Path) -> None:
        path = data / "member/wal" / self.FIRST
        path.write_bytes(written(1, "/a_b") + written(2, "/x/_h/y"))
        log = io.Log(str(data))
        assert io.hidden_in_log(log) == {"/x/_h"}
        assert io.hidden_in_log(log) == set()


class TestSnapshot:
    def test_the_newest_one_counts(self, data: Path) -> None:
        for number, path in enumerate(("/1/_old", "/1/_new", "/1/plain")):
            store = {"Root": {"Path": "/", "Children": {"1": {"Path": "/1", "Children": {"k": {"Path": path}}}}}}
            content = text(2, text(1, json.dumps(store)) + text(2, b"\x10\x05"))
            (data / f"member/snap/{number}.snap").write_bytes(content)
            assert io.hidden_in_snapshot(str(data)) == ({path[2:]} if "_" in path else set())

    def test_none_is_none(self, data: Path) -> None:
        assert io.hidden_in_snapshot(str(data)) == set()

    def test_a_damaged_one_is_named(self, data: Path) -> None:
        (data / "member/snap/1.snap").write_bytes(b"/_damaged")
        with pytest.raises(MigrationError, match=r"1\.snap"):
            io.hidden_in_snapshot(str(data))


class TestWorkshop:
    def test_a_journal_comes_back_as_it_was_noted(self, tmp_path: Path) -> None:
        shop = io.Workshop(str(tmp_path / "work"))
        assert shop.read() == Entry("", "")
        with shop.alone():
            shop.note(Entry("x", "frozen", {"index": 5}))
            shop.keep_changes({"id": "x", "changes": [["/a", "\ud800", 0]]})
        assert shop.read() == Entry("x", "frozen", {"index": 5})
        assert shop.read_changes()["changes"] == [["/a", "\ud800", 0]]
        assert {path.stat().st_mode & 0o777 for path in (tmp_path / "work").iterdir()} == {0o600}
        assert (tmp_path / "work").stat().st_mode & 0o777 == 0o700

    def test_only_one_run_at_a_time(self, tmp_path: Path) -> None:
        shop = io.Workshop(str(tmp_path))
        with shop.alone(), pytest.raises(MigrationError, match="another"), io.Workshop(str(tmp_path)).alone():
            pass

    @pytest.mark.parametrize("content", ["", "{", "[]", '{"state": "odd"}'])
    def test_a_journal_that_is_none(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "journal.json").write_text(content)
        with pytest.raises(MigrationError, match=r"journal\.json"):
            io.Workshop(str(tmp_path)).read()
