# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""plainkube.cluster.etcd_member against real servers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from etcd_servers import V3_3, V3_4, V3_5, V3_6, V3_7, EtcdServers, Member, Pki, cluster, wait_until
from run_module import run_module

Answer = dict[str, Any]


def ask(servers: EtcdServers, check: bool = False, **arguments: Any) -> Answer:
    return run_module("etcd_member", servers.arguments(wait=30, **arguments), check=check, diff=True)


def do(servers: EtcdServers, check: bool = False, **arguments: Any) -> Answer:
    answer = ask(servers, check, **arguments)
    assert not answer.get("failed"), answer["msg"]
    return answer


def refused(servers: EtcdServers, **arguments: Any) -> str:
    """Return the message of a refusal, which is the same in check mode, and leaves the list of members alone."""
    before = listed(servers)
    answers = [ask(servers, check, **arguments) for check in (True, False)]
    assert [answer.get("failed") for answer in answers] == [True, True]
    assert answers[0]["msg"] == answers[1]["msg"]
    assert listed(servers) == before
    message: str = answers[0]["msg"]
    return message


def listed(servers: EtcdServers) -> list[tuple[str, bool]]:
    """Return names of the members and whether they are learners, as a running member has them."""
    member = next(member for member in servers.members if member.running)
    entries = member.call("cluster/member/list")["members"]
    return sorted((entry.get("name", ""), entry.get("isLearner", False)) for entry in entries)


def join(servers: EtcdServers, member: Member, initial_cluster: str) -> None:
    """Start a member that has been added to the list."""
    member.flags = {"initial-cluster": initial_cluster, "initial-cluster-state": "existing"}
    # A learner never says that it is healthy.
    member.start(wait=False)


@pytest.mark.parametrize(("version", "tls"), [(V3_4, False), (V3_5, False), (V3_7, True)])
def test_a_member_joins_as_a_learner_gets_its_vote_and_leaves(
    version: str, tls: bool, pki: Pki, tmp_path: Path
) -> None:
    with cluster(version, tls=pki if tls else False, folder=tmp_path) as servers:
        revision = servers.fill(300)
        new = servers.add("m3")
        old = [("m0", False), ("m1", False), ("m2", False)]
        wanted = {"name": "m3", "peer_urls": [new.peer_url], "endpoints": servers.endpoints[:3]}

        would = do(servers, check=True, **wanted)
        assert (would["changed"], would["action"], listed(servers)) == (True, "add", old)
        added = do(servers, **wanted)
        assert (added["changed"], added["action"], added["member"]["learner"]) == (True, "add", True)
        assert listed(servers) == [("", True), *old]
        assert would["members"] == added["members"]
        assert would["initial_cluster"] == added["initial_cluster"]
        assert f"+(not started) {new.peer_url} learner" in _diff(added["diff"])
        again = do(servers, **wanted)
        assert (again["changed"], again["action"], again["initial_cluster"]) == (False, "", added["initial_cluster"])

        second = {"peer_urls": ["http://127.0.0.1:9"], "endpoints": servers.endpoints[:3]}
        assert "there is a learner already" in refused(servers, **second)

        join(servers, new, added["initial_cluster"])
        wait_until(lambda: new.name in dict(listed(servers)), "the learner has started")
        info = run_module("etcd_info", servers.arguments(endpoints=servers.endpoints[:3]))
        assert (info["learners"], info["unreadable"], info["problems"], info["quorum"]["voters"]) == (["m3"], [], [], 3)
        assert info["members"][3]["version"] == version

        promoted = do(servers, **{**wanted, "state": "promoted"})
        assert (promoted["action"], promoted["member"]["name"], promoted["member"]["learner"]) == (
            "promote",
            "m3",
            False,
        )
        assert listed(servers) == [*old, ("m3", False)]
        assert len({member.hash(revision) for member in servers.members}) == 1
        assert do(servers, **{**wanted, "state": "promoted"})["changed"] is False

        assert do(servers, check=True, state="absent", name="m3")["action"] == "remove"
        assert len(listed(servers)) == 4
        gone = do(servers, state="absent", name="m3")
        assert (gone["changed"], gone["member"]["name"], listed(servers)) == (True, "m3", old)
        new.stop()
        assert do(servers, state="absent", name="m3")["changed"] is False
        assert do(servers, state="absent", peer_urls=[new.peer_url])["changed"] is False


def _diff(diff: dict[str, str]) -> set[str]:
    before, after = (set(diff[side].splitlines()) for side in ("before", "after"))
    return {f"-{line}" for line in before - after} | {f"+{line}" for line in after - before}


@pytest.mark.parametrize("version", [V3_6, V3_7])
def test_a_lost_member_is_removed_first_and_replaced_then(version: str, tmp_path: Path) -> None:
    with cluster(version, folder=tmp_path) as servers:
        revision = servers.fill(200)
        lost, other = servers.followers()
        lost.kill()
        lost.wipe()
        new = servers.add("new")
        wanted = {"name": "new", "peer_urls": [new.peer_url]}
        assert f"{lost.name} (" in (message := refused(servers, **wanted)) and "is not healthy" in message
        # The two that are left are the quorum; only the lost one may go.
        assert "the cluster would lose its quorum" in refused(servers, state="absent", name=other.name)

        # A host that comes back under its old name with another address.
        assert "remove the old one first" in refused(servers, name=lost.name, peer_urls=[new.peer_url])
        assert do(servers, state="absent", name=lost.name)["changed"] is True
        servers.members.remove(lost)
        added = do(servers, **wanted)
        join(servers, new, added["initial_cluster"])
        do(servers, state="promoted", **wanted)
        assert len({member.hash(revision) for member in servers.members}) == 1
        servers.put("after", "x")


def test_the_leader_hands_over_before_it_is_removed(tmp_path: Path) -> None:
    with cluster(V3_7, folder=tmp_path) as servers:
        leader = servers.leader()
        assert do(servers, state="absent", peer_urls=[leader.peer_url])["member"]["name"] == leader.name
        log = leader.log.read_text()
        assert "leadership" in log or "transfer" in log
        leader.stop()
        servers.members.remove(leader)
        assert servers.leader() in servers.members
        # Of two, one cannot be removed while the other is down.
        survivor, lost = servers.leader(), servers.followers()[0]
        lost.kill()
        message = ask(servers, state="absent", name=survivor.name)["msg"]
        assert "lose its quorum" in message


def test_a_learner_that_does_not_start_is_not_promoted(tmp_path: Path) -> None:
    with cluster(V3_7, members=1, folder=tmp_path) as servers:
        assert "add it as a learner" in refused(servers, peer_urls=["http://127.0.0.1:9"], learner=False)
        do(servers, peer_urls=["http://127.0.0.1:9"])
        answer = run_module(
            "etcd_member",
            servers.arguments(state="promoted", peer_urls=["http://127.0.0.1:9"], wait=1),
        )
        assert "it does not answer" in answer["msg"]
        assert listed(servers) == [("", True), ("m0", False)]
        assert "the only member with a vote" in refused(servers, state="absent", name="m0")
        assert do(servers, state="absent", peer_urls=["http://127.0.0.1:9"])["changed"] is True


def test_without_learners_a_member_is_added_with_its_vote(tmp_path: Path) -> None:
    with cluster(V3_3, folder=tmp_path) as servers:
        new = servers.add("m3")
        wanted = {"name": "m3", "peer_urls": [new.peer_url], "endpoints": servers.endpoints[:3]}
        assert "etcd knows learners from 3.4 on" in refused(servers, **wanted)
        added = do(servers, learner=False, **wanted)
        assert listed(servers)[0] == ("", False)
        join(servers, new, added["initial_cluster"])
        new.wait_healthy()
        assert ("m3", False) in listed(servers)


def test_names_and_urls_that_do_not_belong_together_are_refused(three: EtcdServers) -> None:
    one, two = three.member(0), three.member(1)
    message = refused(three, name=one.name, peer_urls=[two.peer_url])
    assert f"{two.peer_url} is member {two.name}" in message and f"not {one.name}" in message
    assert "there is no member ghost to promote" in refused(three, state="promoted", name="ghost")
    assert "name or peer_urls is needed" in refused(three, state="absent")
    assert "where will the others find the member" in refused(three, name="m3")


def test_nothing_is_changed_without_quorum(tmp_path: Path) -> None:
    with cluster(V3_7, folder=tmp_path) as servers:
        servers.member(1).kill()
        servers.member(2).kill()
        for arguments in (
            {"state": "absent", "name": "m2"},
            {"state": "absent", "name": "m0"},
            {"peer_urls": ["http://127.0.0.1:9"]},
        ):
            answer = ask(servers, timeout=2, **arguments)
            assert answer["failed"] and "quorum" in answer["msg"]
