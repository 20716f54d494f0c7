# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils.units import UnitError
from ansible_collections.plainkube.cluster.plugins.module_utils.units_io import newest_change, stamp

TICK = 0.03


def now() -> int:
    """A moment that everything done before is older than, and everything done after is younger than."""
    time.sleep(TICK)
    moment = time.time_ns() // 1000
    time.sleep(TICK)
    return moment


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """bin/etcd -> ../opt/current/etcd, opt/current -> 1, opt/1/etcd, opt/2/etcd, conf/a, conf/d/b."""
    for version in "12":
        (tmp_path / "opt" / version).mkdir(parents=True)
        (tmp_path / "opt" / version / "etcd").write_text(version)
    (tmp_path / "opt/current").symlink_to("1")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/etcd").symlink_to("../opt/current/etcd")
    (tmp_path / "conf/d").mkdir(parents=True)
    (tmp_path / "conf/a").touch()
    (tmp_path / "conf/d/b").touch()
    return tmp_path


def switch(tree: Path) -> None:
    (tree / "opt/new").symlink_to("2")
    (tree / "opt/new").rename(tree / "opt/current")


def put_old_file_in_place(tree: Path) -> None:
    # Written long ago and moved here now, as a package manager does: its mtime is old.
    other = tree / "old"
    other.write_text("x")
    os.utime(other, (1, 1))
    other.rename(tree / "conf/a")


@pytest.mark.parametrize(
    ("change", "path", "blamed"),
    [
        (lambda tree: (tree / "conf/a").write_text("x"), "conf/a", "conf/a"),
        (lambda tree: (tree / "conf/a").write_text("x"), "conf", "conf/a"),
        (lambda tree: (tree / "conf/d/b").chmod(0o600), "conf", "conf/d/b"),
        (lambda tree: (tree / "conf/d/b").unlink(), "conf", "conf/d"),
        (put_old_file_in_place, "conf/a", "conf/a"),
        (lambda tree: (tree / "opt/1/etcd").write_text("x"), "bin/etcd", "bin/etcd"),
        (switch, "bin/etcd", "opt/current"),
    ],
)
def test_newest_change(tree: Path, change: Callable[[Path], None], path: str, blamed: str) -> None:
    before = newest_change(str(tree / path))
    moment = now()
    change(tree)
    after = newest_change(str(tree / path))
    assert before and after
    assert before.time < moment < after.time
    assert after.path == str(tree / blamed)


def test_what_an_input_does_not_lead_to_does_not_count(tree: Path) -> None:
    before = newest_change(str(tree / "bin/etcd"))
    now()
    (tree / "opt/2/etcd").write_text("x")
    assert newest_change(str(tree / "bin/etcd")) == before


@pytest.mark.parametrize("path", ["none", "conf/a/none", "dangling"])
def test_nothing_there(tree: Path, path: str) -> None:
    (tree / "dangling").symlink_to("nowhere")
    assert newest_change(str(tree / path)) is None


def test_links_in_a_circle(tree: Path) -> None:
    (tree / "x").symlink_to("y")
    (tree / "y").symlink_to("x")
    with pytest.raises(UnitError, match="circle"):
        newest_change(str(tree / "x"))


def test_stamp_changes_the_change_time_alone(tree: Path) -> None:
    path = tree / "conf/a"
    os.utime(path, (1, 1))
    before = path.stat()
    moment = now()
    stamp([str(path), str(tree / "gone")])
    after = path.stat()
    assert after.st_ctime_ns // 1000 > moment
    assert (after.st_mtime_ns, after.st_mode, after.st_uid) == (before.st_mtime_ns, before.st_mode, before.st_uid)
    assert after.st_ctime_ns < time.time_ns()
