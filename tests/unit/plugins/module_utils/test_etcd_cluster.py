# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_client import EtcdError
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_cluster import (
    Alarm,
    Hash,
    Member,
    Position,
    Seen,
    Status,
    Unreadable,
    View,
    add_refusal,
    assemble,
    best_snapshot_member,
    cluster_facts,
    data_agree,
    fragmentation,
    lag,
    list_faults,
    parse_alarms,
    parse_errors,
    parse_hash,
    parse_members,
    parse_status,
    parse_version,
    problems,
    promote_refusal,
    remove_refusal,
    revision_faults,
    safe_to_stop,
    stop_refusal,
)
from etcd_views import seen


def cluster(total: int, down: int = 0, learners: int = 0) -> View:
    """Return a cluster whose last members with a vote are down."""
    voters = [seen(number, answers=number <= total - down) for number in range(1, total + 1)]
    return View((*voters, *(seen(total + 1 + number, learner=True) for number in range(learners))))


def changed(view: View, number: int, **what: Any) -> View:
    """Return the view with one member's status changed."""
    members = [
        replace(one, status=replace(one.status, **what)) if one.id == number and one.status else one
        for one in view.members
    ]
    return replace(view, members=tuple(members))


# --- Answers of servers -----------------------------------------------------------------------------------------------


def test_a_status_of_the_newest_version_is_read() -> None:
    status = parse_status(
        {
            "header": {"cluster_id": "7", "member_id": "18446744073709551615", "revision": "5", "raft_term": "2"},
            "version": "3.7.3",
            "dbSize": "73728",
            "leader": "9",
            "raftIndex": "12",
            "raftTerm": "2",
            "raftAppliedIndex": "11",
            "dbSizeInUse": "65536",
            "storageVersion": "3.7.0",
            "dbSizeQuota": "2147483648",
            "isLearner": True,
            "errors": ["memberID:13803658152347727308 alarm:NOSPACE ", "etcdserver: no leader"],
        }
    )
    assert status == Status(
        member_id=2**64 - 1,
        cluster_id=7,
        version="3.7.3",
        leader_id=9,
        raft_term=2,
        raft_index=12,
        applied_index=11,
        revision=5,
        db_size=73728,
        db_size_in_use=65536,
        db_quota=2147483648,
        storage_version="3.7.0",
        learner=True,
        alarms=(Alarm(13803658152347727308, "NOSPACE"),),
    )


def test_an_old_status_leaves_out_what_it_does_not_know() -> None:
    status = parse_status({"header": {"member_id": "1"}, "version": "3.3.25", "raftIndex": "12", "leader": "1"})
    assert (status.applied_index, status.db_size_in_use, status.alarms, status.revision) == (12, None, None, 0)


def test_a_list_of_members_is_in_the_order_of_names_and_what_has_not_started_is_last() -> None:
    entries = [{"ID": "1", "peerURLs": ["x"], "isLearner": True}, {"ID": "3", "name": "b"}, {"ID": 2, "name": "a"}]
    members = parse_members({"members": entries})
    assert [(member.id, member.learner) for member in members] == [(2, False), (3, False), (1, True)]
    assert members[2].title == "not started (1)"
    assert parse_members({}) == ()


def test_alarms_are_read_in_every_form() -> None:
    assert parse_alarms({"alarms": [{"memberID": "5", "alarm": "CORRUPT"}]}) == (Alarm(5, "CORRUPT"),)
    assert parse_alarms({"alarms": [{"memberID": 5, "alarm": 1}]}) == (Alarm(5, "NOSPACE"),)
    assert parse_errors(["etcdserver: no leader"]) == ()


def test_never_compacted_is_the_same_in_every_version() -> None:
    assert parse_hash({"hash": 5, "compact_revision": "-1"}, 9) == parse_hash({"hash": 5}, 9) == Hash(5, 9, 0)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("3.5.16", (3, 5, 16)), ("v3.6.0-rc.1", (3, 6, 0)), ("3.4.23+dfsg-4", (3, 4, 23)), ("3.6", (3, 6, 0))],
)
def test_versions(text: str, numbers: tuple[int, int, int]) -> None:
    assert parse_version(text) == numbers
    with pytest.raises(EtcdError, match="wanted one such as"):
        parse_version("not known")


# --- Votes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("total", range(1, 8))
@pytest.mark.parametrize("down", range(8))
def test_a_member_is_safe_to_stop_exactly_if_those_left_are_a_majority(total: int, down: int) -> None:
    if down > total:
        return
    view = cluster(total, down)
    assert view.quorum == total // 2 + 1
    assert view.margin == total - down - view.quorum
    for one in view.members:
        others = sum(other.healthy for other in view.members if other is not one)
        assert safe_to_stop(view, one) is (others > total / 2)
        assert bool(stop_refusal(view, one)) is not safe_to_stop(view, one)


@pytest.mark.parametrize("total", range(1, 8))
@pytest.mark.parametrize("down", range(8))
def test_a_member_may_be_removed_exactly_if_those_left_can_commit(total: int, down: int) -> None:
    if down > total:
        return
    view = cluster(total, down)
    for one in view.members:
        healthy = sum(other.healthy for other in view.members if other is not one)
        assert (remove_refusal(view, one) == "") is (total > 1 and healthy > (total - 1) / 2)


def test_of_three_with_one_down_only_that_one_may_go() -> None:
    view = cluster(3, down=1)
    assert [bool(remove_refusal(view, one)) for one in view.members] == [True, True, False]
    assert [safe_to_stop(view, one) for one in view.members] == [False, False, True]


@pytest.mark.parametrize(
    ("view", "learner", "words"),
    [
        (cluster(3), True, ""),
        (cluster(3), False, ""),
        (cluster(1), True, ""),
        (cluster(1), False, "add it as a learner"),
        (cluster(2), False, ""),
        (cluster(3, down=1), True, "repair or remove it first"),
        (cluster(3, learners=1), True, "there is a learner already"),
        (cluster(3, learners=1), False, "there is a learner already"),
        (cluster(3, down=3), True, "no quorum"),
    ],
)
def test_a_member_is_added_only_to_a_cluster_that_is_well(view: View, learner: bool, words: str) -> None:
    refusal = add_refusal(view, learner)
    assert words in refusal and bool(words) is bool(refusal)


def test_a_learner_is_promoted_when_it_has_caught_up() -> None:
    view = cluster(3, learners=1)
    assert promote_refusal(view, view.learners[0]) == ""
    late = changed(changed(view, 1, raft_index=5000), 4, applied_index=100)
    assert "4900 raft entries behind" in promote_refusal(late, late.learners[0])
    silent = replace(view.learners[0], status=None)
    assert "does not answer" in promote_refusal(view, silent)
    # Of two, one is down: no quorum. Of three, one is down: four need three.
    weak = cluster(3, down=1, learners=1)
    assert promote_refusal(weak, weak.learners[0]) == ""
    weaker = cluster(5, down=2, learners=1)
    assert promote_refusal(weaker, weaker.learners[0]) == ""
    lost = cluster(3, down=3, learners=1)
    assert "no quorum" in promote_refusal(lost, lost.learners[0])


def test_a_learner_has_no_vote_and_may_always_go() -> None:
    view = cluster(3, down=1, learners=1)
    learner = view.learners[0]
    assert (len(view.voters), view.quorum, view.margin) == (3, 2, 0)
    assert safe_to_stop(view, learner) and remove_refusal(view, learner) == ""


def test_a_member_is_not_stopped_when_the_others_are_behind_or_differ() -> None:
    behind = changed(cluster(3), 2, applied_index=100 - 1)
    assert safe_to_stop(behind, behind.members[0])
    behind = changed(changed(cluster(3), 1, raft_index=5000, applied_index=5000), 2, applied_index=4990)
    assert "m3" in stop_refusal(behind, behind.members[0])
    view = cluster(3)
    differ = replace(view, members=(*view.members[:2], replace(view.members[2], hash=Hash(1, 50, 10))))
    assert "data differ" in stop_refusal(differ, differ.members[0])


# --- Data -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hashes", "agree"),
    [
        ([Hash(9, 50, 1), Hash(9, 50, 1), Hash(9, 50, 1)], True),
        ([Hash(9, 50, 1), Hash(8, 50, 1), Hash(9, 50, 1)], False),
        ([Hash(9, 50, 1), None, Hash(9, 50, 1)], True),
        ([Hash(9, 50, 1), Hash(8, 50, 2), None], None),
        ([Hash(9, 50, 1), Hash(8, 51, 1), None], None),
        ([None, None, None], None),
    ],
)
def test_data_agree_only_if_hashes_of_one_revision_and_one_compaction_are_equal(
    hashes: list[Hash | None], agree: bool | None
) -> None:
    members = tuple(replace(one, hash=value) for one, value in zip(cluster(3).members, hashes))
    view = View(members)
    assert data_agree(view) is agree
    # Whoever belongs to another cluster, or has an impossible revision, differs whatever the hashes say.
    assert data_agree(replace(view, revision_faults=("x",))) is False
    assert data_agree(changed(view, 1, cluster_id=8)) is False


def test_a_revision_may_be_ahead_by_no_more_than_the_log() -> None:
    assert revision_faults([Position("a", 50, 100, 100), Position("b", 50, 100, 100)]) == []
    # Behind by some entries, of which not all raise the revision.
    assert revision_faults([Position("a", 50, 100, 100), Position("b", 45, 90, 90)]) == []
    # Ahead in the log with the same revision: leases, or a compaction.
    assert revision_faults([Position("a", 50, 100, 100), Position("b", 50, 90, 90)]) == []
    # What a write between two reads of one member makes look odd.
    assert revision_faults([Position("a", 51, 100, 101), Position("b", 50, 100, 100)]) == []
    for ahead in (Position("a", 51, 100, 100), Position("a", 1051, 100, 100), Position("a", 50, 80, 90)):
        (fault,) = revision_faults([ahead, Position("b", 49 if ahead.revision == 50 else 50, 100, 100)])
        assert fault.startswith("a is ") and "one log" in fault


def test_the_lag_is_counted_from_the_leader() -> None:
    view = changed(changed(cluster(3), 1, raft_index=120, applied_index=110), 3, applied_index=90)
    assert [lag(view, one) for one in view.members] == [10, 20, 30]
    assert lag(view, Seen("x")) is None
    # Without a leader the most advanced one counts.
    lost = View(tuple(replace(one, status=replace(one.status, leader_id=0)) for one in view.members if one.status))
    assert (lost.leader, [lag(lost, one) for one in lost.members]) == (None, [0, 10, 20])


def test_a_deposed_leader_does_not_count() -> None:
    view = changed(changed(cluster(3), 2, raft_term=3, leader_id=2), 3, raft_term=3, leader_id=2)
    assert view.leader and view.leader.name == "m2"


def test_fragmentation() -> None:
    status = cluster(1).members[0].status
    assert status
    assert fragmentation(status) == pytest.approx(0.4)
    assert fragmentation(replace(status, db_size_in_use=None)) is None
    assert fragmentation(replace(status, db_size_in_use=2000)) == 0.0


# --- Snapshot ---------------------------------------------------------------------------------------------------------


def test_a_snapshot_is_taken_of_a_healthy_follower_that_has_caught_up() -> None:
    assert best_snapshot_member(cluster(3)).name == "m2"
    assert best_snapshot_member(changed(cluster(3), 2, applied_index=50)).name == "m3"
    assert best_snapshot_member(cluster(3, down=2)).name == "m1"
    assert best_snapshot_member(cluster(1, learners=1)).name == "m1"
    behind = changed(changed(changed(cluster(3), 1, raft_index=9000, applied_index=9000), 2, applied_index=8990), 3)
    assert best_snapshot_member(behind).name == "m2"
    assert best_snapshot_member(changed(behind, 2, applied_index=0)).name == "m1"


def test_without_quorum_a_snapshot_needs_to_be_wanted() -> None:
    ill = View(tuple(replace(one, healthy=False, health_reason="no leader") for one in cluster(3, down=1).members))
    with pytest.raises(EtcdError, match=r"no member is fit for a snapshot: m1 \(1\): no leader; .*"):
        best_snapshot_member(ill)
    assert best_snapshot_member(changed(ill, 2, applied_index=200), without_quorum=True).name == "m2"
    with pytest.raises(EtcdError, match="no member is fit"):
        best_snapshot_member(cluster(3, down=3), without_quorum=True)


# --- One view of many answers -----------------------------------------------------------------------------------------


def answered(number: int, endpoint: str, **status: Any) -> Seen:
    """Return what was found at an endpoint: no member is known yet, but a list."""
    whole = seen(number, **status)
    members = tuple(one.member for one in cluster(3).members if one.member)
    return replace(whole, endpoint=endpoint, member=None, known=members)


def test_members_are_found_by_id_at_any_endpoint_and_by_url_when_they_say_nothing() -> None:
    found = {
        "https://127.0.0.1:1": answered(1, "https://127.0.0.1:1"),
        "http://c3": Seen("http://c3", health_reason="connection refused"),
        # The same member once more, where its list says that it is.
        "http://c1": answered(1, "http://c1"),
    }
    view = assemble(found, ["https://127.0.0.1:1", "http://c3"], [Unreadable("status", "http://c3", "x")], {})
    assert [(one.name, one.endpoint, one.status is not None) for one in view.members] == [
        ("m1", "https://127.0.0.1:1", True),
        ("m2", "http://c2", False),
        ("m3", "http://c3", False),
    ]
    assert view.members[2].health_reason == "connection refused"
    assert view.strangers == ()


def test_who_is_on_no_list_is_a_stranger() -> None:
    found = {"http://c1": answered(1, "http://c1"), "http://x": answered(9, "http://x", cluster_id=8, raft_term=1)}
    view = assemble(found, list(found), [], {"http://c1": "3.7.0", "http://x": "3.6.0"})
    assert [one.endpoint for one in view.strangers] == ["http://x"]
    assert (len(view.members), view.cluster_version, view.cluster_ids) == (3, "3.7.0", [7, 8])
    assert any("is no member of this cluster" in text for text in problems(view))


def test_without_any_list_there_is_one_entry_for_each_endpoint() -> None:
    found = {"http://c1": replace(answered(1, "http://c1"), known=None), "http://c2": Seen("http://c2")}
    assert [one.endpoint for one in assemble(found, list(found), [], {}).members] == ["http://c1", "http://c2"]


def test_members_that_know_other_members_are_told() -> None:
    view = cluster(3)
    whole = tuple(one.member for one in view.members if one.member)
    lists = [whole, whole, (*whole, Member(8, "zombie", ("http://z",)))]
    odd = View(tuple(replace(one, known=known) for one, known in zip(view.members, lists)))
    (fault,) = list_faults(odd)
    assert fault.startswith("m3 (3) knows other members than m1 (1): ") and "zombie" in fault
    # It may not have heard of it yet.
    assert list_faults(changed(odd, 3, applied_index=90)) == []


# --- Telling ----------------------------------------------------------------------------------------------------------


def test_a_cluster_that_is_well_has_no_problems() -> None:
    facts = cluster_facts(cluster(3))
    assert (facts["problems"], facts["healthy"], facts["data_agree"]) == ([], True, True)
    assert facts["members"][0]["fragmentation"] == 0.4
    assert (facts["compact_revision"], facts["hash_revision"], facts["leader"]) == (10, 50, "m1")


@pytest.mark.parametrize(
    ("view", "words"),
    [
        (cluster(3, down=3), "no quorum: 0 of 3"),
        (cluster(3, down=1), "m3 (3) is not healthy: down"),
        (changed(cluster(3), 2, alarms=(Alarm(2, "NOSPACE"),)), "alarm NOSPACE of m2 (2): compact"),
        (changed(cluster(3), 2, alarms=(Alarm(77, "CORRUPT"),)), "alarm CORRUPT of 4d: replace"),
        (changed(cluster(3), 2, version="3.6.14"), "different minor versions, 3.6 and 3.7"),
        (changed(cluster(1), 1, version="3.5.1"), "loses data when it is killed"),
        (changed(cluster(3), 2, cluster_id=8), "different clusters"),
        (changed(changed(cluster(3), 1, raft_index=5000, applied_index=5000), 2, applied_index=4999), "m3 (3) is 4900"),
        (replace(cluster(3), revision_faults=("odd",)), "data differ"),
    ],
)
def test_what_is_wrong_is_said_in_sentences(view: View, words: str) -> None:
    assert any(words in text for text in problems(view)), problems(view)
