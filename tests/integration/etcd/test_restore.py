# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The module etcd_restore with real servers: what is restored, what is refused, and what a killed run leaves."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils.bbolt import open_database
from etcd_servers import (
    CHECKOUT,
    V3_4,
    V3_5,
    V3_5_OLD,
    V3_6,
    V3_7,
    EtcdServers,
    Member,
    binaries,
    cluster,
    wait_until,
)
from run_module import run_module, start_module

BUMP = 1_000_000_000
PREFIX = "/registry/pods/"


class Restore:
    """A restore of a cluster, taken step by step on each of its members as a playbook does."""

    def __init__(self, servers: EtcdServers, snapshot: Path, token: str = "t1", **options: Any) -> None:
        self.servers = servers
        self.options: dict[str, Any] = {"snapshot": str(snapshot), "token": token, **options}

    def arguments(self, member: Member, state: str, **more: Any) -> dict[str, Any]:
        common = self.servers.arguments(
            state=state,
            data_dir=str(member.data_dir),
            name=member.name,
            members={one.name: one.peer_url for one in self.servers.members},
            etcd=str(binaries(member.version) / "etcd"),
            owner=getpass.getuser(),
            deadline=60,
        )
        return {**common, **self.options, **more}

    def step(self, member: Member, state: str, check: bool = False, **more: Any) -> dict[str, Any]:
        return run_module("etcd_restore", self.arguments(member, state, **more), check)

    def all(self, state: str, check: bool = False, **more: Any) -> list[dict[str, Any]]:
        """Take a step on every member, which must succeed."""
        answers = [self.step(member, state, check, **more) for member in self.servers.members]
        for answer in answers:
            assert not answer.get("failed"), answer["msg"]
        return answers

    def whole(self) -> dict[str, Any]:
        """Restore the whole cluster and return what the check of it found."""
        self.all("staged")
        self.servers.stop()
        self.all("swapped")
        self.servers.start()
        (checked,) = {json.dumps(self.step(self.servers.member(0), "checked"), sort_keys=True)}
        answer: dict[str, Any] = json.loads(checked)
        assert not answer.get("failed"), answer["msg"]
        self.all("finished")
        found: dict[str, Any] = answer["check"]
        return found


def refusal(answer: dict[str, Any]) -> str:
    assert answer.get("failed"), answer
    message: str = answer["msg"]
    return message


def warnings(answer: dict[str, Any]) -> str:
    """Return what people are warned of, in whatever form this version of Ansible hands it on."""
    assert not answer.get("failed"), answer["msg"]
    return json.dumps(answer.get("warnings", []))


def objects(servers: EtcdServers) -> dict[str, Any]:
    """Return all keys with values and revisions as one member has them."""
    answer = json.loads(servers.member(0).etcdctl("get", "", "--prefix", "--write-out=json").stdout)
    return {entry["key"]: entry for entry in answer.get("kvs", [])}


def snapshot_of(member: Member, target: Path) -> Path:
    member.etcdctl("snapshot", "save", str(target))
    return target


def start_watch(servers: EtcdServers, prefix: str, output: Path, revision: int = 0) -> subprocess.Popen[bytes]:
    """Start a client that watches for as long as it lives, from now or a revision; what it prints goes to a file."""
    command = [str(binaries(servers.version) / "etcdctl"), f"--endpoints={','.join(servers.endpoints)}"]
    with output.open("wb") as stream:
        return subprocess.Popen(
            [*command, "watch", "--prefix", f"--rev={revision}", prefix], stdout=stream, stderr=stream
        )


def beside(member: Member) -> list[str]:
    """Return what stands beside a member's data and what is in it at the top."""
    names = [path.name for path in member.data_dir.parent.iterdir() if path.name not in ("data", "log")]
    return sorted([*names, *(f"data/{path.name}" for path in member.data_dir.iterdir() if path.name != "member")])


@pytest.fixture(scope="module")
def taken(three: EtcdServers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot of three running members that are only read and refused."""
    three.fill(300)
    return snapshot_of(three.member(0), tmp_path_factory.mktemp("taken") / "etcd.db")


# The whole way


@pytest.mark.parametrize("version", [V3_7, V3_5])
def test_objects_come_back_and_an_open_watch_is_told(version: str, tmp_path: Path) -> None:
    with cluster(version, folder=tmp_path) as servers:
        servers.fill(250)
        servers.put("/registry/secrets/a", b"\x00\xff" * 40_000)
        snapshot = snapshot_of(servers.member(1), tmp_path / "etcd.db")
        before = objects(servers)
        lost = servers.put("/registry/later", "lost")
        restore = Restore(servers, snapshot, revision=lost)
        seen = tmp_path / "seen"
        watch = start_watch(servers, "/registry/", seen)
        try:
            wait_until(
                lambda: servers.put("/registry/seen", "x") and "PUT" in seen.read_text(), "the watch sees a write"
            )

            proofs = restore.all("proven")
            assert len({proof["sha256"] for proof in proofs}) == 1
            assert {proof["key_count"] for proof in proofs} == {251}
            assert not any(proof["changed"] for proof in proofs)
            assert [proof["running"] for proof in proofs] == [True] * 3

            assert all(answer["changed"] for answer in restore.all("staged", check=True))
            assert beside(servers.member(0)) == []
            assert all(answer["changed"] for answer in restore.all("staged"))
            assert not any(answer["changed"] for answer in restore.all("staged"))
            assert servers.get("/registry/later") == b"lost"

            # At once: members that end one after the other cancel watches for want of a leader.
            servers.kill()
            assert all(answer["changed"] for answer in restore.all("swapped", check=True))
            assert all(answer["changed"] for answer in restore.all("swapped"))
            assert not any(answer["changed"] for answer in restore.all("swapped"))
            servers.start()
            checked = restore.step(servers.member(0), "checked")
            assert not checked.get("failed"), checked
            assert checked["check"]["key_count"] == 251
            assert checked["check"]["disarmed"] == []
            assert not checked["changed"]

            assert all(answer["changed"] for answer in restore.all("finished", check=True))
            assert all(answer["changed"] for answer in restore.all("finished"))
            assert not any(answer["changed"] for answer in restore.all("finished"))
            watch.wait(timeout=30)
        finally:
            watch.kill()
            watch.wait()

        assert "mvcc: required revision has been compacted" in seen.read_text()
        assert objects(servers) == before
        assert servers.put("/registry/later", "again") > lost + BUMP
        for member in servers.members:
            assert beside(member) == ["data.before-t1", "data.restore.json"]
            assert member.data_dir.stat().st_mode & 0o777 == 0o700
            loose = [path for path in member.data_dir.rglob("*") if path.stat().st_mode & 0o077 and not path.is_dir()]
            assert [path.name for path in loose if path.suffix == ".snap"] == []
        ids = {member.status()["header"]["cluster_id"] for member in servers.members}
        assert ids == {str(int(checked["check"]["cluster_id"], 16))}


def test_the_old_etcdctl_restores_with_a_warning(tmp_path: Path) -> None:
    with cluster(V3_4, members=1, folder=tmp_path) as servers:
        servers.fill(50)
        snapshot = snapshot_of(servers.member(0), tmp_path / "etcd.db")
        restore = Restore(servers, snapshot, etcdutl="/nonexistent/etcdutl")
        assert "cannot raise the revision" in refusal(restore.step(servers.member(0), "proven"))
        restore.options["bump_revision"] = 0
        told = warnings(restore.all("proven")[0])
        assert "keeps the old members in the database" in told
        assert "revision is not raised" in told
        assert restore.whole()["key_count"] == 50


def test_a_single_member(tmp_path: Path) -> None:
    with cluster(V3_6, members=1, folder=tmp_path) as servers:
        servers.fill(50)
        snapshot = snapshot_of(servers.member(0), tmp_path / "etcd.db")
        before = objects(servers)
        found = Restore(servers, snapshot).whole()
        assert (found["key_count"], found["revision"] > BUMP) == (50, True)
        assert objects(servers) == before


def test_a_member_on_a_mount_point_is_restored_inside_of_it(taken: Path, tmp_path: Path) -> None:
    """The folder itself cannot be renamed there. The steps run where a file system is mounted on it."""
    with cluster(V3_7, members=1, folder=tmp_path) as servers:
        member = servers.member(0)
        servers.put("/old", "1")
        servers.stop()
        restore = Restore(servers, taken)
        states = ("staged", "swapped", "rolled_back")
        calls = [json.dumps({"ANSIBLE_MODULE_ARGS": restore.arguments(member, state)}) for state in states]
        answers = in_mount(member.data_dir, calls)
        assert [answer["phase"] for answer in answers] == ["staged", "swapped", "rolled-back"], answers
        assert answers[1]["kept"] == f"{member.data_dir}/before-t1"
        assert all(answer["has_data"] for answer in answers)


def in_mount(folder: Path, calls: list[str]) -> list[dict[str, Any]]:
    """Return the answers of module calls that see a mount point at a folder, with what is in it."""
    copy = folder.with_name("mounted")
    script = (
        'cp -a "$0" "$1" && mount -t tmpfs tmpfs "$0" && cp -a "$1/." "$0/" && shift && '
        'for call; do printf %s "$call" | "$PYTHON" -m '
        "ansible_collections.plainkube.cluster.plugins.modules.etcd_restore || exit; echo; done"
    )
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script, str(folder), str(copy), *calls],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT / "collections"), "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    shutil.rmtree(copy)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line]


# What is refused, with the running members left as they are


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: flip(content, len(content) // 2), "SHA-256"),
        (lambda content: content[:-32], "the SHA-256 that ends a snapshot is missing"),
        (lambda content: content[:-20], "the last 20 bytes are missing"),
        (lambda content: content + b"xx", "2 bytes too many"),
        (lambda content: content[: len(content) // 3], "bytes are missing"),
        (lambda content: b"", "the file is empty"),
        (lambda content: b"not a database" * 1000, "wanted 0xed0cdaed of a bbolt file"),
    ],
    ids=["one bit", "no digest", "20 bytes cut", "2 bytes appended", "cut", "empty", "text"],
)
@pytest.mark.parametrize("state", ["proven", "staged"])
def test_a_damaged_file(three: EtcdServers, taken: Path, tmp_path: Path, damage: Any, words: str, state: str) -> None:
    bad = tmp_path / "bad.db"
    bad.write_bytes(damage(taken.read_bytes()))
    restore = Restore(three, bad)
    assert words in refusal(restore.step(three.member(0), state))
    assert words in refusal(restore.step(three.member(0), state, check=True))
    untouched(three)


def flip(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def untouched(servers: EtcdServers) -> None:
    """See that the members run, and that nothing was left beside or in their data."""
    for member in servers.members:
        assert member.healthy()
        assert beside(member) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sha256": "0" * 64}, f"wanted {'0' * 64}: it is another file than the other hosts have"),
        ({"quota_bytes": 4096}, "the restored cluster would refuse writes at once"),
        ({"revision": 5 * BUMP, "bump_revision": 0}, f"but clients have seen {5 * BUMP}: set bump_revision to"),
        ({"name": "m9"}, "m9 is not among the members (m0 at http"),
        ({"peer_urls": ["http://10.0.0.9:2380"]}, "found http://10.0.0.9:2380, but the members' list has"),
        ({"etcd": "/nonexistent/etcd"}, "no etcd was found on this host"),
        ({"etcd": str(binaries(V3_6) / "etcd")}, "which the older etcd 3.6 of this host does not understand"),
        ({"etcdutl": "/nonexistent", "etcdctl": "/nonexistent"}, "no program on this host can restore"),
        ({"etcdutl": "/nonexistent"}, "no program on this host can restore"),
        ({"etcdutl": str(binaries(V3_6) / "etcdutl")}, "is of 3.6, older than the data, which is of 3.7"),
        ({"snapshot": "/nonexistent/etcd.db"}, "/nonexistent/etcd.db cannot be read: No such file or directory"),
        ({"token": "a/b"}, "token: found 'a/b'"),
    ],
)
def test_what_does_not_fit(three: EtcdServers, taken: Path, options: dict[str, Any], words: str) -> None:
    assert words in refusal(Restore(three, taken).step(three.member(0), "staged", **options))
    untouched(three)


def test_all_that_does_not_fit_is_said_at_once(three: EtcdServers, taken: Path) -> None:
    options = {"sha256": "0" * 64, "quota_bytes": 4096, "revision": 5 * BUMP, "bump_revision": 0, "etcd": "/none"}
    assert refusal(Restore(three, taken, **options).step(three.member(0), "proven")).count("; ") >= 3


def test_the_manifest_says_of_which_cluster_a_file_is(three: EtcdServers, taken: Path, tmp_path: Path) -> None:
    copy = tmp_path / "etcd.db"
    shutil.copy(taken, copy)
    manifest = copy.with_name("etcd.db.json")
    own = format(int(three.member(0).status()["header"]["cluster_id"]), "x")
    manifest.write_text(json.dumps({"cluster_id": own, "size": copy.stat().st_size}))
    good = Restore(three, copy, cluster_ids=["1234", own]).step(three.member(0), "proven")
    assert good["cluster_id"] == own
    assert warnings(good) == "[]"

    other = Restore(three, copy, cluster_ids=["1234"])
    assert f"is a snapshot of the cluster {own}, wanted 1234" in refusal(other.step(three.member(0), "proven"))
    manifest.write_text(json.dumps({"cluster_id": own, "size": 5}))
    assert "but its manifest recorded 5" in refusal(other.step(three.member(0), "proven"))
    manifest.write_text("{")
    assert "the manifest of the snapshot, cannot be read" in refusal(other.step(three.member(0), "proven"))
    manifest.unlink()
    assert "has no manifest that says of which cluster it is" in warnings(other.step(three.member(0), "proven"))
    untouched(three)


def test_two_minor_releases_at_once_are_refused(three: EtcdServers, tmp_path: Path) -> None:
    with cluster(V3_5, members=1, folder=tmp_path) as old:
        old.put("/a", "1")
        snapshot = snapshot_of(old.member(0), tmp_path / "etcd.db")
    message = refusal(Restore(three, snapshot).step(three.member(0), "staged"))
    assert (
        "is of etcd 3.5, this host has 3.7: data moves one minor release at a time; restore with 3.5 or 3.6" in message
    )
    untouched(three)


def test_a_running_member_is_not_swapped(three: EtcdServers, taken: Path) -> None:
    restore = Restore(three, taken)
    member = three.member(0)
    assert restore.step(member, "staged")["changed"]
    assert "has " in refusal(restore.step(member, "swapped"))
    assert member.healthy()
    back = restore.step(member, "rolled_back")
    assert (back["changed"], back["phase"]) == (True, "rolled-back")
    assert not restore.step(member, "rolled_back")["changed"]
    assert "was undone: choose a new token" in refusal(restore.step(member, "staged"))
    (member.data_dir.parent / "data.restore.json").unlink()
    untouched(three)


def test_a_full_disk_leaves_nothing(three: EtcdServers, taken: Path) -> None:
    """A limit for the size of files stands for a disk that fills up after it was asked for its free space."""
    member = three.member(0)
    call = json.dumps({"ANSIBLE_MODULE_ARGS": Restore(three, taken).arguments(member, "staged")})
    module = "ansible_collections.plainkube.cluster.plugins.modules.etcd_restore"
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f 8; exec {sys.executable} -m {module}"],
        input=call,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT / "collections"), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "could not restore" in refusal(json.loads(done.stdout))
    untouched(three)


def test_too_little_space_is_known_before(three: EtcdServers, taken: Path, tmp_path: Path) -> None:
    member = three.member(0)
    arguments = {**Restore(three, taken).arguments(member, "proven"), "data_dir": "/mnt/data"}
    script = (
        'mount -t tmpfs -o size=100m tmpfs /mnt && printf %s "$0" | "$PYTHON" -m '
        "ansible_collections.plainkube.cluster.plugins.modules.etcd_restore"
    )
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script, json.dumps({"ANSIBLE_MODULE_ARGS": arguments})],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT / "collections"), "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "/mnt/data: its file system has 104.9 MB free, wanted " in refusal(json.loads(done.stdout))


def test_check_mode_does_not_need_what_is_not_there_yet(three: EtcdServers, tmp_path: Path) -> None:
    restore = Restore(three, tmp_path / "later.db", data_dir=str(tmp_path / "nowhere"), owner="nobody-yet")
    for state in ("known", "proven", "staged", "swapped", "checked", "finished", "rolled_back", "salvaged"):
        answer = restore.step(three.member(0), state, check=True)
        assert not answer.get("failed"), answer
        assert answer["changed"] == (state in ("staged", "swapped", "finished")), state
    assert list(tmp_path.iterdir()) == []


# Disasters


def test_new_hosts_with_other_names_and_addresses(taken: Path, three: EtcdServers, tmp_path: Path) -> None:
    with cluster(V3_7, folder=tmp_path, start=False, prefix="new") as servers:
        restore = Restore(servers, taken)
        for member in servers.members:
            member.folder.mkdir()
        answers = restore.all("staged")
        assert [answer["has_data"] for answer in answers] == [False] * 3
        assert answers[0]["old_members"] == ["m0", "m1", "m2"]
        restore.all("swapped")
        servers.start()
        checked = restore.step(servers.member(0), "checked")
        assert checked["check"]["key_count"] == 300, checked
        restore.all("finished")
        assert {entry["value"] for entry in objects(servers).values()} == {
            entry["value"] for entry in objects(three).values()
        }
        assert [member["name"] for member in servers.member(0).call("cluster/member/list")["members"]].sort() is None
        assert beside(servers.member(0)) == ["data.restore.json"]


def test_lost_quorum_from_the_survivor(tmp_path: Path) -> None:
    with cluster(V3_7, folder=tmp_path) as servers:
        servers.fill(100)
        before = objects(servers)
        survivor = servers.member(1)
        for lost in (servers.member(0), servers.member(2)):
            lost.kill()
            lost.wipe()
        # What runs gives a snapshot without quorum; what does not run is served for a moment.
        running = snapshot_of(survivor, tmp_path / "running.db")
        made = tmp_path / "made.db"
        restore = Restore(servers, made)
        assert "has " in refusal(restore.step(survivor, "salvaged", token=None))
        survivor.stop()
        assert restore.step(survivor, "salvaged", token=None, check=True)["changed"]
        assert not made.exists()
        found = restore.step(survivor, "salvaged", token=None)
        assert warnings(found) == "[]"
        assert not found["raw"]
        assert made.stat().st_mode & 0o777 == 0o600
        assert sorted(path.name for path in tmp_path.iterdir() if "made" in path.name) == ["made.db"]
        proven = Restore(servers, running).step(survivor, "proven")
        assert (found["revision"], found["key_count"]) == (proven["revision"], proven["key_count"])
        assert restore.whole()["key_count"] == 100
        assert objects(servers) == before


@pytest.mark.parametrize("version", [V3_4, V3_5_OLD, V3_5, V3_6, V3_7])
def test_what_stands_only_in_the_log_is_salvaged(version: str, tmp_path: Path) -> None:
    with cluster(version, folder=tmp_path, backend_batch_interval="1h") as servers:
        certain = servers.fill(100)
        # That a write was agreed on stands in the log with the one after it.
        servers.put("/last", "write")
        servers.kill()
        member = servers.member(0)
        assert revision_of(member) < certain
        found = Restore(servers, tmp_path / "made.db").step(member, "salvaged", token=None)
        assert warnings(found) == "[]"
        assert found["revision"] >= certain
        assert found["key_count"] >= 100


def test_of_a_member_with_a_broken_log_the_database_is_salvaged(tmp_path: Path) -> None:
    with cluster(V3_7, members=1, folder=tmp_path) as servers:
        servers.fill(100)
        member = servers.member(0)
        servers.stop()
        made = tmp_path / "made.db"
        # A run that was killed before has left this.
        (tmp_path / "made.db.plainkube-work/data/member").mkdir(parents=True)
        log = min((member.data_dir / "member/wal").glob("*.wal"))
        content = bytearray(log.read_bytes())
        content[2000] ^= 1
        log.write_bytes(content)
        restore = Restore(servers, made)
        found = restore.step(member, "salvaged", token=None)
        assert "without what was written in its last moments" in warnings(found)
        assert found["raw"]
        assert not (tmp_path / "made.db.plainkube-work").exists()
        assert "if it is a copy of a stopped member's database" in refusal(restore.step(member, "proven"))
        restore.options["raw"] = True
        assert "without a digest" in warnings(restore.step(member, "proven"))
        assert restore.whole()["key_count"] == 100


@pytest.mark.parametrize("version", [V3_7, V3_5])
def test_a_finished_restore_is_undone_by_another_one(version: str, tmp_path: Path) -> None:
    """And who watches from a revision that the old data never had is told."""
    with cluster(version, folder=tmp_path) as servers:
        servers.fill(100)
        snapshot = snapshot_of(servers.member(0), tmp_path / "etcd.db")
        servers.put("/registry/later", "not in the snapshot")
        before = objects(servers)
        first = Restore(servers, snapshot)
        first.all("staged")
        servers.stop()
        first.all("swapped")
        servers.start()
        assert not first.step(servers.member(0), "checked").get("failed")
        first.all("finished")
        newest = servers.put("/registry/since", "lost by the undo")
        known = first.all("known")
        assert {(answer["finished"], answer["kept_revision"] > 0) for answer in known} == {("t1", True)}
        assert "which would go back" in refusal(first.step(servers.member(0), "rolled_back"))

        # While everything runs
        found = [
            first.step(member, "salvaged", snapshot=str(tmp_path / f"{member.name}.db")) for member in servers.members
        ]
        assert {answer["key_count"] for answer in found} == {101}
        undo = Restore(servers, tmp_path / "m1.db", token="undo-1", revision=newest)
        undo.all("staged")
        known = undo.all("known")
        # Staged, or rolled back: it is still the first that can be undone.
        assert {(answer["phase"], answer["finished"], answer["kept_revision"] > 0) for answer in known} == {
            ("staged", "t1", True)
        }
        seen = tmp_path / "seen"
        watch = start_watch(servers, "/registry/", seen, newest + 10)
        try:
            servers.kill()
            undo.all("swapped")
            servers.start()
            checked = undo.step(servers.member(0), "checked")
            assert not checked.get("failed"), checked
            undo.all("finished")
            watch.wait(timeout=30)
        finally:
            watch.kill()
            watch.wait()
        assert "mvcc: required revision has been compacted" in seen.read_text()
        assert {key: entry["value"] for key, entry in objects(servers).items()} == {
            key: entry["value"] for key, entry in before.items()
        }
        assert servers.put("/registry/again", "x") > newest + BUMP
        known = undo.all("known")
        assert {(answer["finished"], answer["kept_revision"] > 0) for answer in known} == {("undo-1", True)}


def test_an_alarm_for_space_does_not_come_back(tmp_path: Path) -> None:
    with cluster(V3_7, members=1, folder=tmp_path, quota_backend_bytes=2 * 1024 * 1024) as servers:
        member = servers.member(0)
        for number in range(60):
            done = member.etcdctl("put", f"/big/{number}", "x" * 60_000, check=False)
            if done.returncode:
                break
        assert "database space exceeded" in done.stderr
        snapshot = snapshot_of(member, tmp_path / "etcd.db")
        # Fewer bytes than the file has, whatever etcd left of its quota.
        restore = Restore(servers, snapshot, quota_bytes=1024 * 1024)
        assert "the restored cluster would refuse writes at once" in refusal(restore.step(member, "proven"))
        restore.options["quota_bytes"] = 64 * 1024 * 1024
        assert "the alarm NOSPACE, which comes back" in warnings(restore.step(member, "proven"))
        servers.flags["quota-backend-bytes"] = 64 * 1024 * 1024
        restore.all("staged")
        servers.stop()
        restore.all("swapped")
        member.start(wait=False)
        checked = restore.step(member, "checked")
        assert checked["check"]["disarmed"] == ["NOSPACE"], checked
        assert checked["changed"]
        servers.put("/works", "again")


# Restores that went wrong elsewhere


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bump_revision": 2000}, "differ"),
        ({"token": "other"}, "the restored cluster: after 3 s still: "),
    ],
)
def test_members_restored_in_different_ways_are_found(
    taken: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    """All but the one with another token call themselves healthy."""
    with cluster(V3_7, folder=tmp_path, start=False) as servers:
        for member, more in zip(servers.members, ({}, {}, options), strict=True):
            member.folder.mkdir()
            restore = Restore(servers, taken, **more)
            assert not restore.step(member, "staged").get("failed")
            assert not restore.step(member, "swapped").get("failed")
            member.start(wait=False)
        wait_until(servers.member(0).healthy, "two members are healthy")
        message = refusal(Restore(servers, taken).step(servers.member(0), "checked", deadline=3))
        assert words in message


# Killed runs

# Runs the module and kills it before the change of that number, counted from 0.
KILLER = """
import os, runpy, signal, sys
from ansible_collections.plainkube.cluster.plugins.module_utils import etcd_restore_io as io

left = int(sys.argv.pop())

def deadly(action):
    def run(*words, **named):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return action(*words, **named)
    return run

for place, name in ((io, "_remove"), (io, "_hand_over"), (io.Path, "rename")):
    setattr(place, name, deadly(getattr(place, name)))
runpy.run_module("ansible_collections.plainkube.cluster.plugins.modules.etcd_restore", run_name="__main__")
"""


def killed(arguments: dict[str, Any], before: int) -> bool:
    """Run the module until this change; return whether it was killed there, and did not end before."""
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(before)],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
        env={**os.environ, "PYTHONPATH": str(CHECKOUT / "collections")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stdout + done.stderr
    return done.returncode != 0


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServers]:
    """A member that was stopped, with one key that the snapshot has not."""
    with cluster(V3_7, members=1, folder=tmp_path_factory.mktemp("stopped")) as servers:
        servers.put("/old", "1")
        servers.stop()
        yield servers


def revision_of(member: Member) -> int:
    with open_database(str(member.data_dir / "member/snap/db")) as database:
        return database.revision


@pytest.fixture
def member(stopped: EtcdServers, tmp_path: Path) -> Member:
    """The stopped member, with a copy of its data for this test alone."""
    original = stopped.member(0)
    copied = Member(stopped, original.name, tmp_path, original.client_port, original.peer_port, original.version)
    shutil.copytree(original.data_dir, copied.data_dir)
    return copied


@pytest.mark.parametrize("state", ["staged", "swapped", "finished", "rolled_back"])
def test_a_run_that_is_killed_anywhere_is_finished_by_the_next(
    stopped: EtcdServers, member: Member, taken: Path, tmp_path: Path, state: str
) -> None:
    old = revision_of(member)
    new = Restore(stopped, taken).step(member, "proven")["revision"] + BUMP
    both = ["staged", "swapped"]
    before = {"staged": [], "swapped": ["staged"], "finished": both, "rolled_back": both}
    deaths = 0
    while True:
        restore = Restore(stopped, taken, token=f"t{deaths}")
        for step in before[state]:
            answer = restore.step(member, step)
            assert not answer.get("failed"), answer
        died = killed(restore.arguments(member, state), deaths)
        answer = restore.step(member, state)
        assert not answer.get("failed"), answer
        assert died or not answer["changed"]
        assert revision_of(member) == (new if state in ("swapped", "finished") else old)
        kept = [f"data.before-t{number}" for number in range(deaths + 1)] if state == "finished" else []
        if state != "finished":
            restore.step(member, "rolled_back")
            assert revision_of(member) == old
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["data", "data.restore.json", *kept])
        if not died:
            break
        deaths += 1
    assert deaths >= (2 if state == "finished" else 3)


def test_what_outlives_a_killed_run_does_not_disturb_the_next(
    stopped: EtcdServers, member: Member, taken: Path, tmp_path: Path
) -> None:
    """etcdutl goes on restoring after its run was killed, into a folder that nobody else uses."""
    slow, begun, ended = tmp_path / "etcdutl", tmp_path / "begun", tmp_path / "ended"
    program = binaries(V3_7) / "etcdutl"
    restoring = f'touch {begun}; sleep 2; {program} "$@"; touch {ended}'
    slow.write_text(f'#!/bin/sh\ncase "$*" in *--data-dir*) {restoring};; *) {program} "$@";; esac\n')
    slow.chmod(0o700)
    restore = Restore(stopped, taken)
    first = start_module("etcd_restore", restore.arguments(member, "staged", etcdutl=str(slow)))
    wait_until(begun.exists, "the first run has started the program")
    first.kill()
    first.wait()
    assert restore.step(member, "staged")["changed"]
    wait_until(ended.exists, "the program has ended")
    assert restore.step(member, "swapped")["changed"]
    assert revision_of(member) > BUMP
    assert restore.step(member, "finished")["changed"]
    names = {path.name for path in tmp_path.iterdir()} - {"etcdutl", "begun", "ended"}
    assert names == {"data", "data.before-t1", "data.restore.json"}


def test_a_swap_that_is_killed_anywhere_can_be_undone(
    stopped: EtcdServers, member: Member, taken: Path, tmp_path: Path
) -> None:
    old = revision_of(member)
    deaths = 0
    while True:
        restore = Restore(stopped, taken, token=f"t{deaths}")
        assert not restore.step(member, "staged").get("failed")
        died = killed(restore.arguments(member, "swapped"), deaths)
        answer = restore.step(member, "rolled_back")
        assert not answer.get("failed"), answer
        assert (answer["phase"], answer["has_data"], answer["kept"]) == ("rolled-back", True, "")
        assert revision_of(member) == old
        assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "data.restore.json"]
        if not died:
            break
        deaths += 1
    assert deaths >= 3


def test_another_restore_is_not_begun_over_one_that_is_not_over(
    stopped: EtcdServers, member: Member, taken: Path
) -> None:
    first, second = Restore(stopped, taken, token="t1"), Restore(stopped, taken, token="t2")
    first.step(member, "staged")
    first.step(member, "swapped")
    assert "the restore t1 of the file with SHA-256" in refusal(second.step(member, "staged"))
    assert "the restore t1 of the file" in refusal(second.step(member, "swapped"))
    assert not second.step(member, "rolled_back")["changed"]
    known = second.step(member, "known")
    assert (known["phase"], known["token"], known["changed"]) == ("swapped", "t1", False)


def test_two_runs_at_once(stopped: EtcdServers, member: Member, taken: Path) -> None:
    restore = Restore(stopped, taken)
    running = start_module("etcd_restore", restore.arguments(member, "staged"))
    staging = member.folder / "data.restore-t1"
    try:
        wait_until(lambda: staging.exists() or running.poll() is not None, "the first run is at work")
        second = restore.step(member, "staged")
    finally:
        output, errors = running.communicate(timeout=60)
    # Whether the second came in time for the first is up to the machine; either way one copy is made.
    assert json.loads(output)["changed"], errors
    assert second.get("failed") is None or "another restore is at work here" in second["msg"]
    assert restore.step(member, "known")["phase"] == "staged"


def test_a_lost_member_is_set_aside(stopped: EtcdServers, member: Member, taken: Path, tmp_path: Path) -> None:
    restore = Restore(stopped, taken)
    assert restore.step(member, "set_aside", check=True)["changed"]
    assert restore.step(member, "set_aside")["changed"]
    assert not restore.step(member, "set_aside")["changed"]
    assert list(member.data_dir.iterdir()) == []
    assert (tmp_path / "data.before-t1/member/snap/db").is_file()
