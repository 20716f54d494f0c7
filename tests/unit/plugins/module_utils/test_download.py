# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Downloads from a loopback server that does what real ones do on bad days."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils.download import (
    DownloadError,
    checksum_in,
    download,
    fetch_text,
)

SUM, OTHER = "a" * 64, "b" * 64
CONTENT = bytes(range(256)) * 40


def test_a_file_arrives_whole(web: Any, tmp_path: Path) -> None:
    web.files["/file"] = CONTENT
    download(f"{web.url}/file", str(tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_breaks_off_once_is_gone_on_with(web: Any, tmp_path: Path, ranges: bool) -> None:
    web.files["/file"], web.break_off["/file"], web.ranges = CONTENT, 1, ranges
    download(f"{web.url}/file", str(tmp_path / "file"), pause=0)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert len(web.asked) == 2


def test_one_that_always_breaks_off_is_said_with_numbers(web: Any, tmp_path: Path) -> None:
    web.files["/file"], web.break_off["/file"], web.ranges = CONTENT, 9, False
    with pytest.raises(DownloadError, match=r"/file: the connection broke off after 5120 of 10240 bytes \(tried 3"):
        download(f"{web.url}/file", str(tmp_path / "file"), pause=0)


def test_an_answer_that_will_not_change_is_not_asked_for_again(web: Any, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="/file: the server answered 404 Not Found") as caught:
        download(f"{web.url}/file", str(tmp_path / "file"))
    assert caught.value.status == 404
    assert len(web.asked) == 1


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(DownloadError, match=r"http://127.0.0.1:9/x: Connection refused"):
        fetch_text("http://127.0.0.1:9/x")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"{SUM}\n", SUM),
        (SUM.upper(), SUM),
        (f"{SUM}  etcd.tgz\n", SUM),
        (f"{SUM} *etcd.tgz\n", SUM),
        (f"{OTHER}  other.tgz\n{SUM}  ./release/etcd.tgz\n", SUM),
        (f"{OTHER}  other.tgz\n", None),
        (f'{{"assets": [{{"name": "other.tgz"}}, {{"name": "etcd.tgz", "digest": "sha256:{SUM}"}}]}}', SUM),
        ('{"assets": [{"name": "etcd.tgz", "digest": null}]}', None),
        ('{"message": "Not Found"}', None),
        ("{", None),
        ("<html>Not found</html>", None),
        ("", None),
    ],
)
def test_a_checksum_is_found_as_publishers_write_it(text: str, found: str | None) -> None:
    assert checksum_in(text, "linux/etcd.tgz") == found
