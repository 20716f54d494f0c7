# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""plainkube.cluster.etcd_snapshot and etcd_snapshot_info with real servers."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import signal
import socket
import stat
import struct
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils.bbolt import open_database
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_snapshot_io import LOCK_NAME, WORK_PREFIX
from etcd_servers import V3_3, V3_4, V3_5, V3_6, V3_7, EtcdServers, Pki, binaries, cluster, wait_until
from run_module import run_module, start_module

SECRET = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def filled(three: EtcdServers) -> EtcdServers:
    """Three members with keys that were written, overwritten and deleted."""
    three.fill(500)
    three.put("/secret", SECRET)
    three.put("/twice", "one")
    three.put("/twice", "two")
    three.put("/gone", "soon")
    three.delete("/gone")
    return three


def snapshot(servers: EtcdServers, dest: Path, check: bool = False, **options: Any) -> dict[str, Any]:
    return run_module("etcd_snapshot", servers.arguments(dest=str(dest), **options), check=check)


def visible(folder: Path) -> list[str]:
    """Return what is in a folder, without the file that runs lock."""
    return sorted(path.name for path in folder.iterdir() if path.name != LOCK_NAME)


def current(servers: EtcdServers, member: int = 0) -> dict[str, Any]:
    return servers.member(member).status()


def key_count(servers: EtcdServers) -> int:
    """Return how many keys the cluster says that it has."""
    answer = servers.member(0).call("kv/range", key="AA==", range_end="AA==", count_only=True)
    return int(answer["count"])


# --- What is taken ----------------------------------------------------------------------------------------------------


def test_a_snapshot_is_taken_of_a_follower_proven_and_described(filled: EtcdServers, tmp_path: Path) -> None:
    dest = tmp_path / "snapshots"
    answer = snapshot(filled, dest)
    assert answer["changed"] and answer["stderr_text"] == "", answer
    manifest, path = answer["manifest"], Path(answer["path"])
    assert visible(dest) == [path.name, path.name + ".json"]
    assert json.loads(Path(answer["manifest_path"]).read_text()) == manifest
    status = current(filled)
    assert manifest["revision"] == int(status["header"]["revision"])
    assert manifest["key_count"] == key_count(filled)
    assert manifest["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert manifest["size"] == path.stat().st_size
    assert manifest["cluster_id"] == f"{int(status['header']['cluster_id']):x}"
    assert manifest["member"] in {member.name for member in filled.followers()}
    assert manifest["verified"] == "file" and manifest["etcd_version"] == V3_7
    assert {member["name"] for member in manifest["members"]} == {"m0", "m1", "m2"}


def test_nobody_else_may_read_it_and_no_secret_is_told(filled: EtcdServers, tmp_path: Path) -> None:
    dest = tmp_path / "snapshots"
    answer = snapshot(filled, dest)
    assert {stat.S_IMODE(path.stat().st_mode) for path in dest.iterdir()} == {0o600}
    assert stat.S_IMODE(dest.stat().st_mode) == 0o700
    assert SECRET.encode() in Path(answer["path"]).read_bytes()
    assert SECRET not in json.dumps(answer) and SECRET not in Path(answer["manifest_path"]).read_text()


def test_the_file_is_private_while_it_is_written(filled: EtcdServers, tmp_path: Path) -> None:
    """A program in etcdctl's place looks at the modes at the moment when it is called."""
    spy = tmp_path / "spy"
    spy.write_text(
        "#!/bin/sh\nfor word; do case $word in */snapshot.db)\n"
        f'stat -c "%a" "$(dirname $word)" "$word.part" > {tmp_path}/modes;; esac; done\n'
        f'exec {binaries(V3_7) / "etcdctl"} "$@"\n'
    )
    spy.chmod(0o755)
    answer = snapshot(filled, tmp_path / "snapshots", etcdctl=str(spy))
    assert answer["changed"], answer
    assert (tmp_path / "modes").read_text().split() == ["700", "600"]


@pytest.mark.parametrize("version", [V3_3, V3_4, V3_5, V3_6])
def test_older_versions(version: str, tmp_path: Path) -> None:
    with cluster(version, members=1, folder=tmp_path) as servers:
        servers.fill(300)
        servers.put("/a", "1")
        servers.delete("/a")
        servers.etcdctl("compact", "2")
        answer = snapshot(servers, tmp_path / "snapshots")
        assert answer.get("changed"), answer
        manifest = answer["manifest"]
        assert (manifest["key_count"], manifest["revision"]) == (300, int(current(servers)["header"]["revision"]))
        assert manifest["etcd_version"].startswith(version)


def test_with_tls_and_client_certificates(pki: Pki, tmp_path: Path) -> None:
    with cluster(V3_7, members=1, tls=pki, folder=tmp_path) as servers:
        servers.put("/a", "1")
        answer = snapshot(servers, tmp_path / "snapshots", verify="restore")
        assert answer.get("changed"), answer
        assert answer["manifest"]["key_count"] == 1
        refused = run_module(
            "etcd_snapshot",
            servers.arguments(dest=str(tmp_path / "other"), client_cert=None, client_key=None),
        )
        assert refused["failed"] and "client_cert" in refused["msg"]
        assert not (tmp_path / "other").exists() or visible(tmp_path / "other") == []


def test_a_client_certificate_that_is_over_is_named(pki: Pki, tmp_path: Path) -> None:
    over = pki.issue("over", valid=timedelta(hours=-1))
    with cluster(V3_7, members=1, tls=pki, folder=tmp_path) as servers:
        certificate = {"client_cert": over["certificate"], "client_key": over["key"]}
        answer = snapshot(servers, tmp_path / "snapshots", **certificate)
    assert answer["failed"] and not (tmp_path / "snapshots").exists(), answer
    assert over["certificate"] in answer["msg"] and "expired" in answer["msg"], answer


def test_a_client_without_the_right_is_told_so(tmp_path: Path) -> None:
    pki = Pki(tmp_path / "pki")
    pki.client = pki.issue("root", common_name="root")
    guest = pki.issue("guest", common_name="guest")
    with cluster(V3_7, members=1, tls=pki, folder=tmp_path) as servers:
        servers.put("/secret", SECRET)
        for user in ("root", "guest"):
            servers.etcdctl("user", "add", user, "--no-password")
        servers.etcdctl("user", "grant-role", "root", "root")
        servers.etcdctl("auth", "enable")
        certificate = {"client_cert": guest["certificate"], "client_key": guest["key"]}
        refused = snapshot(servers, tmp_path / "snapshots", **certificate)
        assert refused["failed"] and "permission denied" in refused["msg"], refused
        assert not (tmp_path / "snapshots").exists() or visible(tmp_path / "snapshots") == []
        answer = snapshot(servers, tmp_path / "snapshots")
        assert answer.get("changed") and answer["manifest"]["auth_enabled"], answer


def test_values_larger_than_etcd_takes_by_default(tmp_path: Path) -> None:
    large = os.urandom(3_000_000)
    with cluster(V3_7, members=1, folder=tmp_path, max_request_bytes=8_000_000) as servers:
        servers.put("/large", large)
        servers.fill(50)
        answer = snapshot(servers, tmp_path / "snapshots", verify="restore")
    assert answer.get("changed") and answer["manifest"]["key_count"] == 51, answer
    with open_database(answer["path"]) as database:
        assert [key.value for key in database.keys(b"/large")] == [large]


def test_a_learner_alone_is_no_source(tmp_path: Path) -> None:
    with cluster(V3_7, members=1, folder=tmp_path) as servers:
        servers.fill(10)
        first = servers.member(0)
        learner = servers.add("learner")
        learner.flags["initial-cluster"] = f"{first.name}={first.peer_url},learner={learner.peer_url}"
        learner.flags["initial-cluster-state"] = "existing"
        first.etcdctl("member", "add", "learner", f"--peer-urls={learner.peer_url}", "--learner")
        learner.start(wait=False)
        wait_until(lambda: "SERVING" in learner.last_log(), "the learner answers")
        answer = snapshot(servers, tmp_path / "snapshots", endpoints=[learner.endpoint])
    assert answer["failed"] and "learner" in answer["msg"], answer


@pytest.mark.parametrize("version", [V3_4, V3_5, V3_6])
def test_a_restore_proves_it(version: str, tmp_path: Path) -> None:
    with cluster(version, members=1, folder=tmp_path) as servers:
        servers.fill(200)
        servers.delete("/registry/pods/000003")
        servers.etcdctl("compact", "2")
        answer = snapshot(servers, tmp_path / "snapshots", verify="restore", etcd=str(binaries(version) / "etcd"))
        assert answer.get("changed"), answer
        manifest = answer["manifest"]
        assert manifest["verified"] == "restore"
        assert manifest["hash_kv"]["value"] == servers.member(0).hash(manifest["revision"])[0]
        assert manifest["hash_kv"]["compact_revision"] == 2
        assert len(visible(tmp_path / "snapshots")) == 2


def test_while_keys_are_written_compacted_and_defragmented(filled: EtcdServers, tmp_path: Path) -> None:
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            revision = filled.put(f"/busy/{number % 50}", os.urandom(512))
            if number % 60 == 0:
                with contextlib.suppress(OSError):
                    filled.member(0).call("kv/compaction", revision=revision - 10)
                for member in filled.members:
                    member.call("maintenance/defragment")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _number in range(4):
            answer = snapshot(filled, tmp_path)
            assert answer.get("changed"), answer
        # Compacted so often, a restored copy may find nothing to be compared with; then that is said.
        compared = snapshot(filled, tmp_path, verify="restore")
        assert compared.get("changed") or "see what compacts so often" in compared["msg"], compared
    finally:
        stop.set()
        writer.join()
    with open_database(answer["path"]) as database:
        assert len(list(database.select(bool))) == database.key_count == answer["manifest"]["key_count"]


# --- Which member -----------------------------------------------------------------------------------------------------


def test_a_member_that_is_down_is_no_obstacle_and_without_quorum_it_is_said(tmp_path: Path) -> None:
    with cluster(V3_7, folder=tmp_path) as servers:
        servers.fill(100)
        follower = servers.followers()[0]
        follower.kill()
        answer = snapshot(servers, tmp_path / "snapshots")
        assert answer.get("changed"), answer
        assert answer["manifest"]["member"] != follower.name
        servers.leader().kill()
        survivor = next(member for member in servers.members if member.running)
        refused = snapshot(servers, tmp_path / "snapshots")
        assert refused["failed"] and "no member is fit" in refused["msg"], refused
        answer = snapshot(servers, tmp_path / "snapshots", without_quorum=True)
        assert answer.get("changed"), answer
        assert (answer["manifest"]["member"], answer["manifest"]["key_count"]) == (survivor.name, 100)


def test_the_leader_ends_during_the_run(tmp_path: Path) -> None:
    with cluster(V3_7, folder=tmp_path) as servers:
        servers.fill(2000, size=4096)
        process = start_module("etcd_snapshot", servers.arguments(dest=str(tmp_path / "snapshots")))
        servers.leader().kill()
        answer = json.loads(process.communicate(timeout=60)[0])
        # Either it was taken of one that is still there, or a person is told; there is no third.
        if answer.get("failed"):
            assert visible(tmp_path / "snapshots") == []
        else:
            with open_database(answer["path"]) as database:
                assert database.key_count == 2000


def test_while_the_leader_changes_again_and_again(tmp_path: Path) -> None:
    stop = threading.Event()
    with cluster(V3_7, folder=tmp_path) as servers:
        servers.fill(2000, size=4096)
        moves = 0

        def move() -> None:
            nonlocal moves
            while not stop.is_set():
                leader = servers.leader()
                target = next(member for member in servers.members if member is not leader)
                identity = f"{int(target.status()['header']['member_id']):x}"
                moves += leader.etcdctl("move-leader", identity, check=False).returncode == 0

        mover = threading.Thread(target=move)
        mover.start()
        try:
            # In the time of an election there is no leader; that is said, and a later run succeeds.
            answers = [snapshot(servers, tmp_path / "snapshots") for _number in range(6)]
        finally:
            stop.set()
            mover.join()
        taken = [answer for answer in answers if answer.get("changed")]
        assert moves and taken, answers
        for answer in answers:
            assert answer in taken or "leader" in answer["msg"], answer
        for answer in taken:
            with open_database(answer["path"]) as database:
                assert database.key_count == 2000
        assert len(visible(tmp_path / "snapshots")) == 2 * len({answer["path"] for answer in taken})


def test_another_cluster_is_refused(filled: EtcdServers, tmp_path: Path) -> None:
    identity = f"{int(current(filled)['header']['cluster_id']):x}"
    assert snapshot(filled, tmp_path, cluster_id=f"0x{identity.upper()}")["changed"]
    before = visible(tmp_path)
    refused = snapshot(filled, tmp_path, cluster_id="abc123")
    assert refused["failed"] and identity in refused["msg"] and "wanted abc123" in refused["msg"]
    assert visible(tmp_path) == before


def test_endpoints_of_two_clusters_are_refused(filled: EtcdServers, tmp_path: Path) -> None:
    with cluster(V3_7, members=1, folder=tmp_path, token="other") as other:
        arguments = filled.arguments(dest=str(tmp_path / "snapshots"), endpoints=[*filled.endpoints, *other.endpoints])
        refused = run_module("etcd_snapshot", arguments)
        assert refused["failed"] and "different clusters" in refused["msg"], refused


def test_an_endpoint_that_hangs_is_given_up(filled: EtcdServers, tmp_path: Path) -> None:
    follower = filled.followers()[0]
    follower.freeze()
    try:
        answer = snapshot(filled, tmp_path, timeout=2.0)
    finally:
        follower.thaw()
        follower.wait_healthy()
    assert answer.get("changed"), answer
    assert answer["manifest"]["member"] != follower.name


def test_nobody_answers(tmp_path: Path) -> None:
    for check in (True, False):
        answer = run_module(
            "etcd_snapshot", {"endpoints": ["http://127.0.0.1:9"], "dest": str(tmp_path / "snapshots")}, check=check
        )
        assert answer["failed"] and "no endpoint of etcd answers" in answer["msg"] and "refused" in answer["msg"]


def test_an_alarm_is_recorded_and_is_no_obstacle(tmp_path: Path) -> None:
    with cluster(V3_7, members=1, folder=tmp_path, quota_backend_bytes="2000000") as servers:
        with contextlib.suppress(OSError):
            for _ in range(50):
                servers.fill(100, size=4096)
        answer = snapshot(servers, tmp_path / "snapshots", without_quorum=True)
        assert answer.get("changed"), answer
        member = answer["manifest"]["member_id"]
        assert answer["manifest"]["alarms"] == [{"member_id": member, "alarm": "NOSPACE"}]


# --- When nothing is to be done ---------------------------------------------------------------------------------------


def test_a_young_one_of_the_same_revision_is_enough(filled: EtcdServers, tmp_path: Path) -> None:
    first = snapshot(filled, tmp_path)
    again = snapshot(filled, tmp_path, min_age=3600)
    assert not again["changed"]
    assert (again["path"], again["manifest"]) == (first["path"], first["manifest"])
    assert snapshot(filled, tmp_path, min_age=3600, verify="restore")["changed"], "it was proven as a file only"
    filled.put("/new", "1")
    assert snapshot(filled, tmp_path, min_age=3600)["changed"]


def test_one_that_was_damaged_since_is_not_enough(filled: EtcdServers, tmp_path: Path) -> None:
    first = snapshot(filled, tmp_path, name="{revision}-{time}.db")
    flip(Path(first["path"]), Path(first["path"]).stat().st_size // 2)
    again = snapshot(filled, tmp_path, min_age=3600, name="{time}.db")
    assert again["changed"] and again["path"] != first["path"]
    assert Path(first["path"]).exists()


def test_one_from_the_future_is_not_young(filled: EtcdServers, tmp_path: Path) -> None:
    first = snapshot(filled, tmp_path, name="future.db")
    manifest = Path(first["manifest_path"])
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "taken_at": "2999-01-01T00:00:00Z"}))
    assert snapshot(filled, tmp_path, min_age=3600)["changed"]


def test_check_mode_says_what_it_would_do_and_writes_nothing(filled: EtcdServers, tmp_path: Path) -> None:
    dest = tmp_path / "not" / "there"
    answer = snapshot(filled, dest, check=True)
    assert answer["changed"] and not dest.parent.exists()
    assert answer["source"]["endpoint"] in filled.endpoints
    assert answer["path"].startswith(f"{dest}/etcd-") and answer["space"]["free"] > answer["space"]["wanted"] > 0
    first = snapshot(filled, dest)
    before = visible(dest)
    again = snapshot(filled, dest, check=True, min_age=3600)
    assert not again["changed"] and again["path"] == first["path"] and visible(dest) == before
    stale = dest / f"{WORK_PREFIX}1"
    stale.mkdir()
    assert snapshot(filled, dest, check=True)["changed"] and stale.exists()


def test_a_fixed_name_is_replaced_by_a_proven_one_only(filled: EtcdServers, tmp_path: Path) -> None:
    first = snapshot(filled, tmp_path, name="etcd.db")
    refused = snapshot(filled, tmp_path, name="etcd.db", etcdctl=str(damaging(tmp_path)))
    assert refused["failed"], refused
    assert json.loads(Path(first["manifest_path"]).read_text()) == first["manifest"]
    assert hashlib.sha256(Path(first["path"]).read_bytes()).hexdigest() == first["manifest"]["sha256"]
    filled.put("/replaced", "1")
    second = snapshot(filled, tmp_path, name="etcd.db")
    assert second["path"] == first["path"] and second["manifest"]["revision"] > first["manifest"]["revision"]


# --- When something goes wrong ----------------------------------------------------------------------------------------


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as stream:
        stream.seek(offset)
        byte = stream.read(1)[0]
        stream.seek(offset)
        stream.write(bytes([byte ^ 1]))


def damaging(folder: Path, command: str = 'printf X | dd of="$last" bs=1 seek=20000 conv=notrunc 2>/dev/null') -> Path:
    """Return a program in etcdctl's place which does harm to what etcdctl wrote, and ends well."""
    program = folder / "damaging-etcdctl"
    program.write_text(
        f'#!/bin/sh\n{binaries(V3_7) / "etcdctl"} "$@" || exit\n'
        f"for last; do :; done\ncase $last in */snapshot.db) {command};; esac\nexit 0\n"
    )
    program.chmod(0o755)
    return program


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ('printf X | dd of="$last" bs=1 seek=20000 conv=notrunc 2>/dev/null', "SHA-256"),
        ('truncate -s -32 "$last"', "is missing"),
        ('truncate -s -20 "$last"', "the last 20 bytes are missing"),
        ('printf xx >> "$last"', "2 bytes too many"),
        ('truncate -s 100000 "$last"', "are missing"),
        (': > "$last"', "the file is empty"),
    ],
)
def test_what_came_damaged_is_never_kept(filled: EtcdServers, tmp_path: Path, command: str, said: str) -> None:
    program = damaging(tmp_path, command)
    dest = tmp_path / "snapshots"
    answer = snapshot(filled, dest, etcdctl=str(program))
    # What happens after the proof of a file that was whole is seen too.
    assert answer["failed"] and (said in answer["msg"] or "were proven" in answer["msg"]), answer
    assert visible(dest) == []


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_the_server_ends_in_mid_stream(end: str, tmp_path: Path) -> None:
    """etcdctl is held as soon as bytes have come; what has not been sent then is more than fits on the way."""
    holding = tmp_path / "holding-etcdctl"
    holding.write_text(
        "#!/bin/sh\nfor last; do :; done\n"
        f'{binaries(V3_7) / "etcdctl"} "$@" & child=$!\n'
        'until [ -s "$last.part" ]; do :; done\n'
        f"kill -STOP $child; touch {tmp_path}/held\n"
        f"until [ -e {tmp_path}/go ]; do sleep 0.02; done\n"
        "kill -CONT $child; wait $child\n"
    )
    holding.chmod(0o755)
    dest = tmp_path / "snapshots"
    with cluster(V3_7, members=1, folder=tmp_path) as servers:
        servers.fill(5000, size=8192)
        process = start_module("etcd_snapshot", servers.arguments(dest=str(dest), etcdctl=str(holding)))
        wait_until((tmp_path / "held").exists, "bytes have come")
        server = servers.member(0).process
        assert server
        server.send_signal(signal.SIGKILL if end == "kill" else signal.SIGTERM)
        if end == "kill":
            server.wait()
        (tmp_path / "go").touch()
        answer = json.loads(process.communicate(timeout=60)[0])
    if end == "stop" and answer.get("changed"):
        # A server that is asked to end may finish what it has begun.
        assert answer["manifest"]["key_count"] == 5000
    else:
        assert answer["failed"] and "was not sent" in answer["msg"], answer
        assert visible(dest) == []


class Resetting:
    """Passes one server's connections on, and breaks each off with a reset after some bytes of answers."""

    def __init__(self, port: int, after: int) -> None:
        self.target, self.after, self.resets = port, after, 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self.socket.accept()[0]
                server = socket.create_connection(("127.0.0.1", self.target))
                threading.Thread(target=self._asked, args=(client, server), daemon=True).start()
                threading.Thread(target=self._answered, args=(client, server), daemon=True).start()

    def _asked(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while part := client.recv(65536):
                server.sendall(part)

    def _answered(self, client: socket.socket, server: socket.socket) -> None:
        sent = 0
        with contextlib.suppress(OSError):
            while (part := server.recv(65536)) and sent < self.after:
                client.sendall(part)
                sent += len(part)
            if sent >= self.after:
                self.resets += 1
                # Closing with a linger of no seconds sends a reset instead of an orderly end.
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # Before the close: the other thread still reads from this socket, which would hold the close back.
            client.shutdown(socket.SHUT_RD)
        client.close()
        server.close()

    def close(self) -> None:
        self.socket.close()


def test_connections_that_are_reset_in_mid_stream(tmp_path: Path) -> None:
    dest = tmp_path / "snapshots"
    with cluster(V3_7, members=1, folder=tmp_path) as servers:
        servers.fill(200, size=8192)
        port = int(servers.endpoints[0].rsplit(":", 1)[1])
        proxy = Resetting(port, after=500_000)
        try:
            answer = snapshot(servers, dest, endpoints=[proxy.endpoint])
        finally:
            proxy.close()
        assert proxy.resets
        assert answer["failed"] and "was not sent" in answer["msg"], answer
        assert visible(dest) == []
        assert snapshot(servers, dest)["manifest"]["key_count"] == 200


def test_the_disk_is_full(filled: EtcdServers, tmp_path: Path) -> None:
    """A file that may not grow stands for a disk that is full without a warning."""
    full = tmp_path / "full-etcdctl"
    full.write_text(f'#!/bin/sh\nulimit -f 40\nexec {binaries(V3_7) / "etcdctl"} "$@"\n')
    full.chmod(0o755)
    first = snapshot(filled, tmp_path / "snapshots")
    before = visible(tmp_path / "snapshots")
    answer = snapshot(filled, tmp_path / "snapshots", etcdctl=str(full))
    assert answer["failed"] and "was not sent" in answer["msg"] and "too large" in answer["msg"], answer
    assert visible(tmp_path / "snapshots") == before and Path(first["path"]).exists()


def test_what_a_killed_run_left_is_removed(filled: EtcdServers, tmp_path: Path) -> None:
    slow = tmp_path / "slow-etcdctl"
    slow.write_text(
        "#!/bin/sh\nfor last; do :; done\n"
        'case $last in */snapshot.db) head -c 100000 /dev/zero > "$last.part"; '
        f"echo $$ > {tmp_path}/pid; sleep 60;; esac\n"
        f'exec {binaries(V3_7) / "etcdctl"} "$@"\n'
    )
    slow.chmod(0o755)
    dest = tmp_path / "snapshots"
    process = start_module("etcd_snapshot", filled.arguments(dest=str(dest), etcdctl=str(slow)))
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip(), "etcdctl writes")
    process.kill()
    process.communicate()
    os.killpg(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    assert [name[: len(WORK_PREFIX)] for name in visible(dest)] == [WORK_PREFIX]
    answer = snapshot(filled, dest)
    assert answer.get("changed"), answer
    assert visible(dest) == [Path(answer["path"]).name, Path(answer["manifest_path"]).name]


def test_two_runs_at_once_wait_for_each_other(filled: EtcdServers, tmp_path: Path) -> None:
    arguments = filled.arguments(dest=str(tmp_path), min_age=3600)
    processes = [start_module("etcd_snapshot", arguments) for _ in range(3)]
    answers = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    assert sorted(answer.get("changed", answer) for answer in answers) == [False, False, True]
    assert len({answer["path"] for answer in answers}) == 1 and len(visible(tmp_path)) == 2


def test_a_run_that_holds_the_folder_too_long_is_named(filled: EtcdServers, tmp_path: Path) -> None:
    with (tmp_path / LOCK_NAME).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        answer = snapshot(filled, tmp_path, deadline=0.5)
    assert answer["failed"] and "another run" in answer["msg"] and str(tmp_path) in answer["msg"]


def test_too_little_space_is_said_before(filled: EtcdServers, tmp_path: Path) -> None:
    for check in (True, False):
        answer = snapshot(filled, tmp_path / "snapshots", check=check, min_free="900T")
        assert answer["failed"] and "bytes free, wanted" in answer["msg"], answer
    assert visible(tmp_path / "snapshots") == []


def test_folders_that_cannot_be(filled: EtcdServers, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    answer = snapshot(filled, tmp_path / "file")
    assert answer["failed"] and "is no folder" in answer["msg"]
    public = tmp_path / "public"
    public.mkdir()
    public.chmod(0o777)
    answer = snapshot(filled, public)
    assert answer["failed"] and "by everybody" in answer["msg"] and not list(public.iterdir())
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real").mkdir()
    assert snapshot(filled, tmp_path / "link")["changed"] and len(visible(tmp_path / "real")) == 2


def test_a_file_that_links_elsewhere_is_replaced_and_not_followed(filled: EtcdServers, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("stays")
    dest = tmp_path / "snapshots"
    dest.mkdir(0o700)
    (dest / "etcd.db").symlink_to(tmp_path / "precious")
    assert snapshot(filled, dest, name="etcd.db")["changed"]
    assert (tmp_path / "precious").read_text() == "stays" and not (dest / "etcd.db").is_symlink()


def test_parameters_that_are_no_good_are_named_all_at_once(filled: EtcdServers, tmp_path: Path) -> None:
    answer = snapshot(filled, tmp_path, name="../{time}.db", min_age=-1, deadline=0)
    assert answer["failed"] and not visible(tmp_path)
    for option in ("name", "min_age", "deadline"):
        assert f"{option}: found" in answer["msg"]


def test_a_program_that_is_not_there(filled: EtcdServers, tmp_path: Path) -> None:
    answer = snapshot(filled, tmp_path, etcdctl="no-such-etcdctl")
    assert answer["failed"] and "there is no program no-such-etcdctl" in answer["msg"]
    assert visible(tmp_path) == []


def test_the_deadline_ends_etcdctl(filled: EtcdServers, tmp_path: Path) -> None:
    hanging = tmp_path / "hanging-etcdctl"
    hanging.write_text("#!/bin/sh\nfor last; do :; done\ncase $last in */snapshot.db) sleep 60;; esac\n")
    hanging.chmod(0o755)
    answer = snapshot(filled, tmp_path / "snapshots", etcdctl=str(hanging), deadline=1)
    assert answer["failed"] and "did not end within 2 s and was killed" in answer["msg"]
    assert visible(tmp_path / "snapshots") == []


# --- Reading snapshots ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Two snapshots of one cluster, between which keys came, went and changed."""
    folder = tmp_path_factory.mktemp("pair")
    with cluster(V3_7, members=1, folder=folder) as servers:
        servers.fill(150)
        for key, value in (("/same", "1"), ("/changed", "1"), ("/removed", "1"), ("/again", "1")):
            servers.put(key, value)
        first = snapshot(servers, folder, name="first.db")["path"]
        servers.put("/changed", "2")
        servers.put("/again", "1")
        servers.put(b"/added\xff", "1")
        servers.delete("/removed")
        second = snapshot(servers, folder, name="second.db")["path"]
    yield first, second


def test_info_proves_and_tells_the_manifest(pair: tuple[str, str]) -> None:
    for check in (False, True):
        answer = run_module("etcd_snapshot_info", {"path": pair[0]}, check=check)
        assert not answer["changed"] and answer["exists"] and answer["sound"], answer
        assert answer["snapshot"]["key_count"] == 154
        assert answer["snapshot"]["sha256"] == answer["manifest"]["sha256"]
        assert "keys" not in answer


def test_info_reads_keys_and_prefixes(pair: tuple[str, str]) -> None:
    answer = run_module("etcd_snapshot_info", {"path": pair[1], "keys": ["/changed", "/removed"], "values": True})
    assert [(key["key"], key["value"], key["version"]) for key in answer["keys"]] == [("/changed", "2", 2)]
    assert answer["missing"] == ["/removed"]
    answer = run_module("etcd_snapshot_info", {"path": pair[1], "prefix": "/registry/pods/00014"})
    assert [key["key"] for key in answer["keys"]] == [f"/registry/pods/{number:06}" for number in range(140, 150)]
    assert all("value" not in key for key in answer["keys"])
    answer = run_module("etcd_snapshot_info", {"path": pair[1], "prefix": "/added", "values": True})
    assert answer["keys"][0]["key_base64"] == "L2FkZGVk/w==" and answer["keys"][0]["value_base64"] == "MQ=="


def test_info_compares(pair: tuple[str, str]) -> None:
    answer = run_module("etcd_snapshot_info", {"path": pair[1], "compare_with": pair[0]})
    assert answer["difference"] == {
        "added": ["/added\\xff"],
        "removed": ["/removed"],
        "changed": ["/changed"],
        "equal": False,
    }
    same = run_module("etcd_snapshot_info", {"path": pair[1], "compare_with": pair[1], "prefix": "/"})
    assert same["difference"]["equal"]


def test_info_of_nothing_and_of_damage(pair: tuple[str, str], tmp_path: Path) -> None:
    answer = run_module("etcd_snapshot_info", {"path": str(tmp_path / "none.db")})
    assert not answer.get("failed") and not answer["exists"] and not answer["sound"]
    damaged = tmp_path / "damaged.db"
    damaged.write_bytes(Path(pair[0]).read_bytes())
    flip(damaged, 20_000)
    answer = run_module("etcd_snapshot_info", {"path": str(damaged)})
    assert not answer.get("failed") and answer["exists"] and not answer["sound"] and "SHA-256" in answer["fault"]
    answer = run_module("etcd_snapshot_info", {"path": str(damaged), "prefix": "/"})
    assert answer["failed"] and "SHA-256" in answer["msg"]


def test_info_sees_a_manifest_of_another_file(pair: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "a.db").write_bytes(Path(pair[0]).read_bytes())
    (tmp_path / "a.db.json").write_bytes(Path(pair[1] + ".json").read_bytes())
    answer = run_module("etcd_snapshot_info", {"path": str(tmp_path / "a.db")})
    assert not answer["sound"] and "its manifest recorded" in answer["fault"]
