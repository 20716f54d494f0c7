# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Installing on a host's disk: whole or not at all."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils import artifacts_io
from ansible_collections.plainkube.cluster.plugins.module_utils.artifacts import MANIFEST, compare, is_change

Item = dict[str, Any]


def archive_of(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Host:
    """A root and a folder for links, with one archive of two members and a folder."""

    def __init__(self, base: Path) -> None:
        self.root = str(base / "root")
        self.links = base / "bin"
        files = {"./tool-1/tool": b"one", "./tool-1/helper": b"two", "./tool-1/cfg/a/b.yaml": b"{}", "./LICENSE": b"-"}
        self.archive = archive_of(base / "tool.tar.gz", files)
        self.item: Item = {
            "name": "tool",
            "version": "1",
            "kind": "archive",
            "members_in": "tool-1/",
            "members": ["tool", "helper", "cfg/"],
            "links": str(self.links),
            "reference": "",
            "pinned": {},
            "path": str(self.archive),
            "sha256": sha256(self.archive),
            "advice": "Do something.",
        }
        self.folder = Path(self.root, "tool", "1")

    def plan(self) -> dict[str, Any]:
        [state] = artifacts_io.look(self.root, [self.item])
        return compare(self.root, self.item, state, "amd64")

    def act(self, **changes: Any) -> list[str]:
        return artifacts_io.act(self.root, [{**self.item, **changes}], "amd64")

    def visible(self) -> list[str]:
        return sorted(str(path.relative_to(self.root)) for path in Path(self.root).rglob("*") if path.name != ".lock")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_only_the_named_members_are_installed_with_links_and_a_manifest(host: Host) -> None:
    assert host.act() == []
    assert sorted(path.relative_to(host.folder).as_posix() for path in host.folder.rglob("*") if path.is_file()) == [
        MANIFEST,
        "cfg/a/b.yaml",
        "helper",
        "tool",
    ]
    assert (host.links / "tool").read_bytes() == b"one"
    assert os.access(host.folder / "tool", os.X_OK)
    assert not os.access(host.folder / "cfg/a/b.yaml", os.X_OK)
    assert not is_change(host.plan())


def test_looking_writes_nothing(host: Host) -> None:
    assert is_change(host.plan())
    assert not Path(host.root).exists()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "tool").write_bytes(b"ONE"), "tool altered"),
        (lambda folder: (folder / "tool").write_bytes(b"longer"), "tool altered"),
        (lambda folder: (folder / "tool").unlink(), "tool missing"),
        (lambda folder: (folder / "tool").chmod(0o644), "tool has mode 0644, wanted 0755"),
        (lambda folder: (folder / MANIFEST).unlink(), ""),
        (lambda folder: (folder / MANIFEST).write_text("{"), ""),
    ],
)
def test_damage_is_seen_and_healed(host: Host, damage: Any, said: str) -> None:
    host.act()
    damage(host.folder)
    plan = host.plan()
    assert plan["install"]
    assert said in plan["before"]
    assert host.act() == []
    assert not is_change(host.plan())
    assert (host.links / "tool").read_bytes() == b"one"


def test_a_touched_file_with_its_old_bytes_is_intact(host: Host) -> None:
    host.act()
    os.utime(host.folder / "tool", ns=(1, 1))
    assert not is_change(host.plan())


def test_a_version_beside_stays_and_going_back_is_a_link_change(host: Host) -> None:
    host.act()
    newer = archive_of(
        host.archive.with_name("2.tgz"), {"tool-1/tool": b"new", "tool-1/helper": b"", "tool-1/cfg/c": b""}
    )
    assert host.act(version="2", path=str(newer), sha256=sha256(newer)) == []
    assert (host.links / "tool").read_bytes() == b"new"
    assert {key: host.plan()[key] for key in ("install", "before")} == {"install": False, "before": "2"}
    assert host.act(path="") == []
    assert (host.links / "tool").read_bytes() == b"one"


def test_a_wrong_checksum_installs_nothing_and_moves_no_link(host: Host) -> None:
    [fault] = host.act(sha256="0" * 64, proof="pinned in the catalogue")
    assert f"has SHA-256 {host.item['sha256']}, wanted {'0' * 64} (pinned in the catalogue)" in fault
    assert fault.startswith("tool 1: ")
    assert host.visible() == ["tool"]
    assert not host.links.exists()


def test_a_member_that_is_not_there_and_half_an_archive_are_named(host: Host) -> None:
    [fault] = host.act(members=["tool", "hepler", "conf/"])
    assert "does not hold conf/, hepler" in fault
    half = host.archive.with_name("half.tgz")
    whole = gzip.compress(os.urandom(10000) + gzip.decompress(host.archive.read_bytes()))
    half.write_bytes(whole[: len(whole) // 2])
    [fault] = host.act(path=str(half), sha256=sha256(half))
    assert "is no whole tar archive" in fault
    assert host.visible() == ["tool"]


def test_a_path_that_leads_out_of_the_archive_is_not_followed(host: Host) -> None:
    sly = archive_of(host.archive.with_name("sly.tgz"), {"tool-1/cfg/../../../../evil": b"x", "tool-1/tool": b"1"})
    [fault] = host.act(path=str(sly), sha256=sha256(sly), members=["tool", "cfg/"])
    assert "does not hold cfg/" in fault
    assert not list(Path(host.root).parent.rglob("evil"))


def test_one_fault_leaves_all_links_alone_and_all_faults_are_said(host: Host) -> None:
    bad = {**host.item, "name": "other", "links": "", "path": "/nowhere/other.tgz"}
    worse = {**host.item, "name": "third", "links": "", "sha256": "1" * 64}
    faults = artifacts_io.act(host.root, [host.item, bad, worse], "amd64")
    assert [fault.split(":")[0] for fault in faults] == ["other 1", "third 1"]
    assert "/nowhere/other.tgz does not exist on this host. Do something." in faults[0]
    assert not host.links.exists()
    assert host.act() == []
    assert (host.links / "tool").exists()


def test_a_full_disk_is_said_and_leaves_nothing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(artifacts_io, "_extract", full)
    [fault] = host.act()
    assert "tool 1: no space left on the disk of" in fault
    assert "MB free" in fault
    assert host.visible() == ["tool"]


def test_leftovers_of_a_killed_run_are_removed(host: Host) -> None:
    host.act()
    left = Path(host.root, "tool", "0.plainkube-new")
    (left / "deep").mkdir(parents=True)
    assert host.plan()["clean"]
    assert host.act() == []
    assert not left.exists()
    assert not is_change(host.plan())


def test_a_pushed_file_is_removed_once_installed(host: Host) -> None:
    pushed = host.archive.with_name("pushed")
    pushed.write_bytes(host.archive.read_bytes())
    assert host.act(path="", pushed=str(pushed)) == []
    assert not pushed.exists()


@pytest.mark.parametrize(("built", "wrong"), [(False, True), (True, False)])
def test_a_mirror_folders_own_note_counts_only_for_what_was_built(host: Host, built: bool, wrong: bool) -> None:
    host.archive.with_name("tool.tar.gz.sha256").write_text(f"{sha256(host.archive)}  tool.tar.gz\n")
    if built:
        host.archive.with_name("tool.tar.gz.built").write_text("module v1\n")
    assert bool(host.act(sha256="0" * 64)) is wrong


FAKE_CTR = """#!/bin/sh
[ -e {base}/down ] && {{ echo "ctr: no socket" >&2; exit 1; }}
case "$3 $4" in
  "images ls") cat {base}/loaded 2>/dev/null; exit 0;;
  "images import") echo {reference} > {base}/loaded;;
  "images label") echo "$5 $6" > {base}/labelled;;
esac
"""


def test_an_image_is_kept_and_loaded_when_containerd_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "ctr"
    program.write_text(FAKE_CTR.format(base=tmp_path, reference="example.com/pause:1"))
    program.chmod(0o755)
    monkeypatch.setattr(artifacts_io.shutil, "which", lambda *_arguments, **_options: str(program))
    image = tmp_path / "pause-1-linux-amd64.tar"
    image.write_bytes(b"image")
    item: Item = {
        "name": "pause",
        "version": "1",
        "kind": "image",
        "members_in": "",
        "members": ["pause.tar"],
        "links": "",
        "reference": "example.com/pause:1",
        "pinned": {},
        "path": str(image),
        "sha256": sha256(image),
        "advice": "",
    }
    root = str(tmp_path / "root")
    (tmp_path / "down").touch()
    [fault] = artifacts_io.act(root, [item], "amd64")
    assert "pause 1: containerd does not take" in fault
    assert "ctr: no socket" in fault
    (tmp_path / "down").unlink()
    assert artifacts_io.act(root, [item], "amd64") == []
    assert artifacts_io.look(root, [item])[0]["image"] is True
    assert (tmp_path / "labelled").read_text() == "example.com/pause:1 io.cri-containerd.pinned=pinned\n"
    [fault] = artifacts_io.act(root, [{**item, "reference": "example.com/other:1"}], "amd64")
    assert "has no image example.com/other:1" in fault
