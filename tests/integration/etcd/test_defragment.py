# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""plainkube.cluster.etcd_defragment against real servers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from etcd_servers import V3_3, V3_4, V3_7, EtcdServers, cluster, wait_until
from run_module import run_module

Answer = dict[str, Any]
# Small files make quick tests.
SMALL = {"min_size": 1_000_000}


def fragment(servers: EtcdServers) -> int:
    """Write much, delete most of it, and return the revision when the room is free on all members."""
    for number in range(20):
        servers.put(f"large/{number:02}", b"x" * 250_000)
    servers.member(0).call("kv/deleterange", key="bGFyZ2UvMA==", range_end="bGFyZ2UvMTk=")  # large/0 to large/19
    revision = servers.put("last", "one")
    servers.member(0).call("kv/compaction", revision=revision, physical=True)

    def free() -> bool:
        # Pages that were given back can be used, and are counted, from the next write on.
        servers.put("last", "two")
        sizes = [member.status() for member in servers.members]
        return all(int(size["dbSizeInUse"]) < int(size["dbSize"]) / 2 for size in sizes)

    wait_until(free, "the room is free on all members")
    return servers.put("last", "three")


def sizes(servers: EtcdServers) -> dict[str, int]:
    return {member.name: int(member.status()["dbSize"]) for member in servers.members}


def run(servers: EtcdServers, check: bool = False, **more: Any) -> Answer:
    return run_module("etcd_defragment", servers.arguments(**{**SMALL, **more}), check=check)


@pytest.mark.parametrize("version", [V3_4, V3_7])
def test_followers_come_first_and_the_leader_is_another_when_its_turn_comes(version: str, tmp_path: Path) -> None:
    with cluster(version, folder=tmp_path) as servers:
        revision = fragment(servers)
        leader, before = servers.leader(), sizes(servers)
        would = run(servers, check=True)
        assert would["changed"] is True
        assert (sizes(servers), servers.leader()) == (before, leader)

        answer = run(servers)
        assert not answer.get("failed"), answer["msg"]
        after = sizes(servers)
        names = [member["name"] for member in answer["members"]]
        assert names[-1] == leader.name and sorted(names) == ["m0", "m1", "m2"]
        assert names == [member["name"] for member in would["members"]]
        assert all(member["defragmented"] for member in answer["members"])
        assert {member["name"]: member["size_after"] for member in answer["members"]} == after
        assert all(after[name] < before[name] / 2 for name in names)
        assert servers.leader().name == answer["leader_moved_to"] == would["leader_moved_to"] != leader.name
        assert len({member.hash(revision) for member in servers.members}) == 1

        again = run(servers)
        assert (again["changed"], again["leader_moved_to"]) == (False, "")
        assert all("wanted at least" in member["reason"] for member in again["members"])


def test_small_files_are_left_alone(three: EtcdServers) -> None:
    answer = run_module("etcd_defragment", three.arguments(min_fragmentation=0.0))
    assert answer["changed"] is False
    assert all("wanted at least 104857600" in member["reason"] for member in answer["members"])


def test_nothing_is_done_while_a_member_is_down_or_the_data_differ(tmp_path: Path) -> None:
    with cluster(V3_7, folder=tmp_path) as servers:
        fragment(servers)
        servers.followers()[0].kill()
        before = {member.name: int(member.status()["dbSize"]) for member in servers.members if member.running}
        for check in (True, False):
            answer = run(servers, check=check)
            assert answer["failed"] and "not all members are healthy" in answer["msg"]
        assert before == {member.name: int(member.status()["dbSize"]) for member in servers.members if member.running}


def test_a_cluster_of_one_out_of_space_gets_its_room_back(tmp_path: Path) -> None:
    with cluster(V3_7, members=1, folder=tmp_path, quota_backend_bytes=6_000_000) as servers:
        member = servers.member(0)
        # Old values of one key fill the file.
        with pytest.raises(OSError):
            for _number in range(40):
                servers.put("one", b"x" * 900_000)
        wait_until(lambda: "NOSPACE" in str(member.status()), "the alarm is on")
        member.call("kv/compaction", revision=int(member.status()["header"]["revision"]), physical=True)

        def free() -> bool:
            servers.delete("none")
            status = member.status()
            return int(status["dbSizeInUse"]) < int(status["dbSize"]) * 0.5

        wait_until(free, "the room is free")
        before = sizes(servers)
        answer = run(servers)
        assert not answer.get("failed"), answer["msg"]
        assert (answer["changed"], answer["leader_moved_to"]) == (True, "")
        assert sizes(servers)["m0"] < before["m0"] / 2


def test_learners_are_left_alone(tmp_path: Path) -> None:
    with cluster(V3_7, members=1, folder=tmp_path) as servers:
        fragment(servers)
        learner = servers.add("learner")
        added = run_module(
            "etcd_member",
            servers.arguments(name="learner", peer_urls=[learner.peer_url], endpoints=servers.endpoints[:1]),
        )
        learner.flags = {"initial-cluster": added["initial_cluster"], "initial-cluster-state": "existing"}
        learner.start(wait=False)
        wait_until(lambda: "learner" in str(servers.member(0).call("cluster/member/list")), "it has started")
        answer = run(servers, endpoints=servers.endpoints[:1])
        assert not answer.get("failed"), answer["msg"]
    reasons = {member["name"]: member["reason"] for member in answer["members"]}
    assert reasons["m0"] == ""
    assert reasons.get("learner", "it is a learner") == "it is a learner"


def test_a_version_that_does_not_tell_its_use_is_left_alone(tmp_path: Path) -> None:
    with cluster(V3_3, members=1, folder=tmp_path) as servers:
        answer = run(servers, min_size=0)
    assert (answer["changed"], len(answer["members"])) == (False, 1)
    assert "does not tell" in answer["members"][0]["reason"]


def test_a_threshold_that_makes_no_sense_is_refused(three: EtcdServers) -> None:
    answer = run(three, min_fragmentation=45)
    assert "min_fragmentation: found 45" in answer["msg"]
