# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""plainkube.cluster.etcd_info against real servers, well and ill."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from etcd_servers import V3_3, V3_4, V3_5, V3_5_OLD, V3_6, V3_7, EtcdServers, Member, Pki, binaries, cluster, wait_until
from run_module import run_module

Answer = dict[str, Any]


def info(servers: EtcdServers, **more: Any) -> Answer:
    answer = run_module("etcd_info", servers.arguments(**more))
    assert not answer.get("failed"), answer["msg"]
    assert answer["changed"] is False
    return answer


def of(answer: Answer, key: str) -> dict[str, Any]:
    return {member["name"]: member[key] for member in answer["members"]}


@pytest.mark.parametrize(
    ("version", "tls"), [(V3_3, False), (V3_4, True), (V3_5_OLD, False), (V3_5, True), (V3_6, False), (V3_7, True)]
)
def test_a_sound_cluster_of_any_version_is_told_completely(version: str, tls: bool, pki: Pki, tmp_path: Path) -> None:
    with cluster(version, tls=pki if tls else False, folder=tmp_path) as servers:
        revision = servers.fill(250)
        # One endpoint is enough to find all.
        answer = info(servers, endpoints=servers.endpoints[1:2])
        leader = servers.leader().name
        hashes = {member.name: member.hash(revision)[0] for member in servers.members}
    assert (answer["problems"], answer["unreadable"], answer["healthy"]) == ([], [], True)
    assert [member["name"] for member in answer["members"]] == ["m0", "m1", "m2"]
    assert of(answer, "version") == dict.fromkeys(hashes, version)
    assert of(answer, "hash") == hashes
    assert of(answer, "safe_to_stop") == dict.fromkeys(hashes, True)
    # To ask 3.3 for its alarms writes to its log.
    assert max(of(answer, "lag").values()) <= (3 if version == V3_3 else 0)
    assert of(answer, "endpoint") == {member.name: member.endpoint for member in servers.members}
    assert of(answer, "leader") == {name: name == leader for name in hashes}
    assert (answer["leader"], answer["revision"], answer["hash_revision"]) == (leader, revision, revision)
    assert (answer["data_agree"], answer["data_compared"]) == (True, list(hashes))
    assert answer["quorum"] == {"voters": 3, "healthy": 3, "wanted": 2, "margin": 1, "reached": True}
    assert answer["cluster_version"] == version.rpartition(".")[0] + ".0"
    assert (answer["alarms"], answer["learners"], answer["compact_revision"]) == ([], [], 0)
    known = version != V3_3
    assert all((size is not None) == known for size in of(answer, "db_size_in_use").values())
    assert all((quota is not None) == (version in (V3_6, V3_7)) for quota in of(answer, "db_quota").values())


def test_members_are_lost_one_after_the_other(tmp_path: Path) -> None:
    with cluster(V3_7, folder=tmp_path) as servers:
        revision = servers.fill(10)
        last, lost, hung = servers.leader(), *servers.followers()
        lost.kill()
        answer = info(servers)
        assert answer["quorum"] == {"voters": 3, "healthy": 2, "wanted": 2, "margin": 0, "reached": True}
        assert of(answer, "safe_to_stop") == {last.name: False, hung.name: False, lost.name: True}
        assert (answer["data_agree"], len(answer["data_compared"])) == (True, 2)
        assert [fault["endpoint"] for fault in answer["unreadable"]] == [lost.endpoint]
        assert "only 1 of the other 2" in of(answer, "unsafe_reason")[last.name]
        assert any(text.startswith(f"{lost.name} (") for text in answer["problems"])

        # The second one does not end but hangs, and the survivor gives up to lead after some time.
        hung.freeze()
        wait_until(lambda: "leader" not in last.status(), "the survivor has no leader")
        begin = time.monotonic()
        answer = info(servers, endpoints=[last.endpoint], timeout=4)
        assert time.monotonic() - begin < 5.5
        assert answer["quorum"] == {"voters": 3, "healthy": 0, "wanted": 2, "margin": -2, "reached": False}
        assert answer["leader"] == ""
        assert answer["problems"][0].startswith("no quorum: 0 of 3")
        own = next(member for member in answer["members"] if member["name"] == last.name)
        assert (own["revision"], own["answers"], own["healthy"], own["safe_to_stop"]) == (revision, True, False, False)
        assert own["hash"] == last.hash(revision)[0]
        faults = {(fault["what"], fault["endpoint"]) for fault in answer["unreadable"]}
        assert {("status", lost.endpoint), ("status", hung.endpoint), ("health", last.endpoint)} <= faults


def test_an_endpoint_that_hangs_costs_no_more_than_the_time(three: EtcdServers) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        begin = time.monotonic()
        answer = info(three, endpoints=[endpoint, *three.endpoints], timeout=2)
        assert time.monotonic() - begin < 3.5
    assert answer["unreadable"] == [{"what": "status", "endpoint": endpoint, "why": "no answer within 1 s"}]
    assert (answer["data_agree"], answer["quorum"]["margin"], len(answer["members"])) == (True, 1, 3)


# --- Data that differ -------------------------------------------------------------------------------------------------


def restore(member: Member, snapshot: Path, *options: str) -> None:
    """Put a snapshot in place of a member's data."""
    member.wipe()
    servers = member.cluster
    finished = subprocess.run(
        [
            str(binaries(servers.version) / "etcdutl"),
            "snapshot",
            "restore",
            str(snapshot),
            f"--name={member.name}",
            f"--data-dir={member.data_dir}",
            f"--initial-cluster={servers.initial_cluster}",
            f"--initial-advertise-peer-urls={member.peer_url}",
            f"--initial-cluster-token={servers.token}",
            *options,
        ],
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize("version", [V3_5, V3_7])
def test_members_that_hold_different_data_are_found_though_all_are_healthy(version: str, tmp_path: Path) -> None:
    with cluster(version, folder=tmp_path) as servers:
        older, newer = tmp_path / "older.db", tmp_path / "newer.db"
        servers.put("key", "first")
        servers.members[0].etcdctl("snapshot", "save", str(older))
        # The same revision with another value would differ as well; this one differs by a revision too.
        servers.put("key", "second")
        servers.members[0].etcdctl("snapshot", "save", str(newer))
        servers.kill()
        restore(servers.member(0), older)
        restore(servers.member(1), newer)
        restore(servers.member(2), newer)
        servers.start()
        servers.put("other", "x")
        answer = info(servers)
    assert of(answer, "healthy") == {"m0": True, "m1": True, "m2": True}
    assert of(answer, "lag") == {"m0": 0, "m1": 0, "m2": 0}
    assert (answer["quorum"]["margin"], answer["data_agree"], answer["healthy"]) == (1, False, False)
    assert of(answer, "safe_to_stop") == {"m0": False, "m1": False, "m2": False}
    assert any("data differ" in text for text in answer["problems"])


def test_one_value_that_differs_at_the_same_revision_is_found(tmp_path: Path) -> None:
    with cluster(V3_6, folder=tmp_path) as servers:
        snapshots = []
        for value in ("one", "two"):
            with cluster(V3_6, members=1, folder=tmp_path) as source:
                source.put("key", value)
                snapshots.append(tmp_path / f"{value}.db")
                source.members[0].etcdctl("snapshot", "save", str(snapshots[-1]))
        servers.kill()
        restore(servers.member(0), snapshots[0])
        restore(servers.member(1), snapshots[1])
        restore(servers.member(2), snapshots[0])
        servers.start()
        answer = info(servers)
    hashes = of(answer, "hash")
    assert hashes["m0"] == hashes["m2"] != hashes["m1"]
    assert len(set(of(answer, "revision").values())) == 1
    assert (answer["data_agree"], of(answer, "healthy")) == (False, {"m0": True, "m1": True, "m2": True})


def test_one_member_restored_with_a_bump_is_found_by_its_revision(tmp_path: Path) -> None:
    with cluster(V3_7, folder=tmp_path) as servers:
        servers.fill(50)
        snapshot = tmp_path / "snapshot.db"
        servers.members[0].etcdctl("snapshot", "save", str(snapshot))
        servers.kill()
        restore(servers.member(0), snapshot)
        restore(servers.member(1), snapshot)
        restore(servers.member(2), snapshot, "--bump-revision=1000", "--mark-compacted")
        servers.start()
        answer = info(servers)
    assert of(answer, "healthy") == {"m0": True, "m1": True, "m2": True}
    assert answer["data_agree"] is False
    assert any("cannot both come from one log" in text for text in answer["problems"])


def test_the_data_are_not_compared_when_nobody_wants_it(three: EtcdServers) -> None:
    answer = info(three, compare_data=False)
    assert (answer["data_agree"], answer["hash_revision"], answer["healthy"]) == (None, None, True)


def test_a_busy_cluster_is_not_suspected(three: EtcdServers) -> None:
    over = threading.Event()

    def write() -> None:
        while not over.is_set():
            three.put("busy", "x" * 100)

    writers = [threading.Thread(target=write) for _number in range(3)]
    for writer in writers:
        writer.start()
    try:
        answers = [info(three) for _number in range(5)]
    finally:
        over.set()
        for writer in writers:
            writer.join()
    assert [answer["data_agree"] for answer in answers] == [True] * 5
    assert [answer["problems"] for answer in answers] == [[]] * 5


# --- Other ills -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [V3_4, V3_7])
def test_a_cluster_without_space_says_so_and_its_members_are_not_called_ill(version: str, tmp_path: Path) -> None:
    with cluster(version, folder=tmp_path, quota_backend_bytes=2_000_000) as servers:
        member = servers.member(0)
        for number in range(40):
            put = member.etcdctl("put", f"key{number}", "x" * 100_000, check=False)
            if put.returncode:
                break
        assert "database space exceeded" in put.stderr
        wait_until(lambda: "NOSPACE" in str(member.status()), "the alarm is on")
        answer = info(servers)
    assert {alarm["alarm"] for alarm in answer["alarms"]} == {"NOSPACE"}
    assert any(text.startswith("alarm NOSPACE of m") for text in answer["problems"])
    assert (answer["quorum"]["healthy"], answer["data_agree"]) == (3, True)


def test_a_member_that_etcd_calls_corrupt_is_named(tmp_path: Path) -> None:
    with cluster(V3_7, folder=tmp_path) as servers:
        member = servers.followers()[0]
        header = member.status()["header"]
        member.call("maintenance/alarm", action="ACTIVATE", alarm="CORRUPT", memberID=header["member_id"])
        answer = info(servers)
        refused = member.etcdctl("put", "a", "b", check=False)
    assert refused.returncode and "corrupt" in refused.stderr
    assert [(alarm["alarm"], alarm["member"]) for alarm in answer["alarms"]] == [("CORRUPT", member.name)]
    assert any(text.startswith(f"alarm CORRUPT of {member.name}") for text in answer["problems"])


def test_a_learner_that_never_started_is_told_and_has_no_vote(tmp_path: Path) -> None:
    with cluster(V3_7, members=1, folder=tmp_path) as servers:
        servers.etcdctl("member", "add", "new", "--peer-urls=http://127.0.0.1:9", "--learner")
        answer = info(servers)
    assert [(member["name"], member["learner"], member["answers"]) for member in answer["members"]] == [
        ("m0", False, True),
        ("", True, False),
    ]
    assert (answer["quorum"]["voters"], answer["learners"], answer["data_agree"]) == (1, [""], True)
    assert answer["members"][0]["unsafe_reason"] == "it is the only member with a vote"


def test_endpoints_of_two_clusters_are_told_apart(three: EtcdServers, tmp_path: Path) -> None:
    with cluster(V3_7, members=1, folder=tmp_path, prefix="other") as other:
        answer = info(three, endpoints=[*three.endpoints, *other.endpoints])
    assert [member["name"] for member in answer["members"]] == ["m0", "m1", "m2"]
    assert any("belong to different clusters" in text for text in answer["problems"])
    assert (answer["cluster_id"], answer["data_agree"]) == ("", False)


def test_it_works_without_the_gateway(tmp_path: Path) -> None:
    with cluster(V3_7, folder=tmp_path, enable_grpc_gateway="false") as servers:
        servers.etcdctl("put", "key", "value")
        answer = info(servers)
        assert (answer["problems"], answer["data_agree"], len(answer["data_compared"])) == ([], True, 3)
        bare = run_module("etcd_info", servers.arguments(etcdctl="etcdctl-that-is-nowhere"))
    assert bare["failed"] and "there is no program etcdctl-that-is-nowhere" in bare["msg"]


def test_nobody_answers(tmp_path: Path, pki: Pki) -> None:
    with cluster(V3_7, members=1, tls=True, folder=tmp_path) as servers:
        answer = run_module("etcd_info", servers.arguments(ca_cert=pki.ca["certificate"]))
        servers.kill()
        silent = run_module("etcd_info", servers.arguments())
    assert answer["failed"] and silent["failed"]
    wanted = f"no endpoint of etcd answers: {servers.endpoints[0]}: "
    assert answer["msg"].startswith(wanted + "its certificate is not accepted")
    assert silent["msg"].startswith(wanted + "connection refused")


def test_all_wrong_options_are_told_at_once() -> None:
    answer = run_module(
        "etcd_info",
        {"endpoints": ["10.0.0.1:2379", "https://h"], "timeout": 0, "client_key": "/none", "ca_cert": "/none/ca"},
    )
    assert answer["failed"]
    for fault in ("'10.0.0.1:2379'", "'https://h'", "timeout", "client_key is given without", "/none/ca"):
        assert fault in answer["msg"]
