# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reading .snap files and write-ahead logs, from bytes laid out here as etcd lays them out."""

from __future__ import annotations

import json
import struct

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils import etcd_v2_files as files
from ansible_collections.plainkube.cluster.plugins.module_utils.bbolt import encode_varint


def number(field: int, value: int) -> bytes:
    return encode_varint(field << 3) + encode_varint(value)


def text(field: int, value: bytes | str) -> bytes:
    content = value.encode() if isinstance(value, str) else value
    return encode_varint(field << 3 | 2) + encode_varint(len(content)) + content


def request(method: str, path: str, value: str = "") -> bytes:
    return number(1, 77) + text(2, method) + text(3, path) + text(4, value) + number(5, 0)


def framed(record: bytes) -> bytes:
    """Return a record as it stands in a log: its length first, zeros up to a multiple of eight behind it."""
    padding = -len(record) % 8
    length = len(record) | ((0x80 | padding) << 56 if padding else 0)
    return struct.pack("<Q", length) + record + bytes(padding)


def entry(raft_index: int, data: bytes, kind: int = 0) -> bytes:
    content = number(1, kind) + number(2, 3) + number(3, raft_index) + text(4, data)
    return framed(number(1, 2) + number(2, 0xDEADBEEF) + text(3, content))


def log(*entries: bytes) -> bytes:
    """Return a log that is still written: metadata in front, room that was set aside behind."""
    return framed(number(1, 1) + number(2, 1) + text(3, b"metadata")) + b"".join(entries) + bytes(4096)


def snap(store: object, raft_index: int = 900) -> bytes:
    metadata = text(1, b"") + number(2, raft_index) + number(3, 4)
    return number(1, 0xDEADBEEF) + text(2, text(1, json.dumps(store)) + text(2, metadata))


STORE = {
    "Root": {
        "Path": "/",
        "Children": {
            "0": {"Path": "/0", "Children": {"members": {"Path": "/0/members/x"}}},
            "1": {
                "Path": "/1",
                "Children": {
                    "a": {"Path": "/1/a", "Value": "b", "Children": None},
                    "_x": {"Path": "/1/_x", "Children": {"y": {"Path": "/1/_x/y", "Value": "z"}}},
                },
            },
        },
    },
    "CurrentIndex": 12,
}


class TestHidden:
    @pytest.mark.parametrize(
        ("path", "roots"),
        [
            ("/a/b", []),
            ("/a_b/c_", []),
            ("/_a", ["/_a"]),
            ("/a/_b/c", ["/a/_b"]),
            ("/a/_b/c/_d/e", ["/a/_b", "/a/_b/c/_d"]),
        ],
    )
    def test_names_every_folder_that_has_to_be_asked_for(self, path: str, roots: list[str]) -> None:
        assert files.hidden_roots(path) == roots
        assert files.hidden(path) == bool(roots)


class TestSnapshot:
    def test_lists_hidden_keys_too_and_nothing_of_the_cluster_itself(self) -> None:
        store, raft_index = files.snapshot_store(snap(STORE))
        assert sorted(files.stored_paths(store)) == ["/_x/y", "/a"]
        assert raft_index == 900

    @pytest.mark.parametrize(
        "content", [b"", b"\xff\xff", b"no snapshot", snap([]), snap({"Root": 1}), snap(STORE)[:60]]
    )
    def test_says_what_is_no_snapshot(self, content: bytes) -> None:
        with pytest.raises(files.DamagedFile):
            files.snapshot_store(content)


class TestLog:
    def test_yields_entries_up_to_the_room_that_was_set_aside(self) -> None:
        content = log(entry(5, b"one"), entry(6, b"membership", kind=1), entry(7, b"two"))
        assert [(index, data) for _end, index, data in files.log_entries(content)] == [(5, b"one"), (7, b"two")]

    def test_goes_on_where_it_ended(self) -> None:
        first = log(entry(5, b"one"))[:-4096]
        (end, _index, _data) = list(files.log_entries(first + bytes(64)))[-1]
        assert [index for _end, index, _data in files.log_entries(first + entry(6, b"two") + bytes(64), end)] == [6]

    def test_leaves_out_data_that_nobody_asks_for(self) -> None:
        content = log(entry(5, b"one"), entry(6, b"two /_x"), entry(7, b"three"), entry(8, b"four /_y"))
        found = [(index, data) for _end, index, data in files.log_entries(content, after=6, having=b"/_")]
        assert found == [(6, b""), (8, b"four /_y")]
        (end, _index, _data) = list(files.log_entries(content[: -4096 - len(entry(8, b"four /_y"))], having=b"/_"))[-1]
        assert [data for _end, _index, data in files.log_entries(content, end)] == [b"three", b"four /_y"]

    def test_a_record_that_was_not_taken_apart_is_read_again(self) -> None:
        whole = entry(5, b"one") + entry(6, b"half of it is written, without /_x")
        content = whole[:-20] + bytes(4096)
        (end, _index, _data) = list(files.log_entries(content, having=b"/_"))[-1]
        found = [data for _end, _index, data in files.log_entries(whole + bytes(64), end, having=b"/_") if data]
        assert found == [b"half of it is written, without /_x"]

    @pytest.mark.parametrize("cut", [12, 20, 30])
    def test_half_a_record_at_the_end_is_none(self, cut: int) -> None:
        content = log(entry(5, b"one"), entry(6, b"a longer one"))[:-4096]
        assert [index for _end, index, _data in files.log_entries(content[:-cut])] == [5]

    @pytest.mark.parametrize("method", ["PUT", "POST", "DELETE"])
    def test_knows_a_write(self, method: str) -> None:
        assert files.write_of(9, request(method, "/1/a/b", "c")) == files.Write(9, method, "/a/b")

    def test_knows_a_write_of_an_older_server(self) -> None:
        assert files.write_of(9, number(1, 7) + text(2, request("PUT", "/1/a"))) == files.Write(9, "PUT", "/a")

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\xff",
            request("QGET", "/1/a"),
            request("SYNC", ""),
            request("PUT", "/0/members/1/attributes"),
            # A put into v3: its message stands in field 3.
            number(1, 7) + text(3, text(1, b"key") + text(2, b"value")),
        ],
    )
    def test_nothing_else_is_a_write(self, data: bytes) -> None:
        assert files.write_of(9, data) is None


class TestNames:
    NAMES = ("0000000000000001-00000000000003e8.wal", "0000000000000000-0000000000000000.wal", "2-7d0.wal")

    @pytest.mark.parametrize(("raft_index", "count"), [(0, 3), (998, 3), (999, 2), (1500, 2), (1999, 1), (5000, 1)])
    def test_leaves_out_files_that_end_before(self, raft_index: int, count: int) -> None:
        assert files.files_after(list(self.NAMES), raft_index) == sorted(self.NAMES, key=files.first_index)[-count:]

    def test_knows_a_strange_name(self) -> None:
        with pytest.raises(files.DamagedFile):
            files.first_index("0.tmp")
