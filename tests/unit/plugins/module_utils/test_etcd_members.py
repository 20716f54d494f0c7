# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

from dataclasses import replace

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_client import EtcdError
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_cluster import (
    Alarm,
    Hash,
    View,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_members import (
    Wanted,
    candidates,
    defragment_refusal,
    describe,
    find_member,
    initial_cluster,
    members_after,
    next_leader,
    plan_member,
    promotion_refusal,
    wanted_faults,
)
from etcd_views import seen

THREE = View((seen(1), seen(2), seen(3)))
WITH_LEARNER = View((*THREE.members, seen(4, learner=True)))
MEMBERS = tuple(one.member for one in THREE.members if one.member)


@pytest.mark.parametrize(
    ("wanted", "view", "action"),
    [
        (Wanted("present", "m4", ("http://p4",)), THREE, "add"),
        (Wanted("present", "", ("http://p4",), learner=False), THREE, "add"),
        (Wanted("present", "m2", ("http://p2",)), THREE, ""),
        (Wanted("present", "", ("http://p4",)), WITH_LEARNER, ""),
        (Wanted("present", "new", ("http://p4",)), View((*THREE.members, seen(4, learner=True, started=False))), ""),
        (Wanted("promoted", "m4"), WITH_LEARNER, "promote"),
        (Wanted("promoted", "", ("http://p4",)), WITH_LEARNER, "promote"),
        (Wanted("promoted", "m1"), THREE, ""),
        (Wanted("absent", "m3"), THREE, "remove"),
        (Wanted("absent", "", ("http://p3",)), THREE, "remove"),
        (Wanted("absent", "m9"), THREE, ""),
        (Wanted("absent", "m4"), WITH_LEARNER, "remove"),
    ],
)
def test_what_is_to_be_done(wanted: Wanted, view: View, action: str) -> None:
    assert plan_member(view, wanted).action == action


@pytest.mark.parametrize(
    ("wanted", "view", "words"),
    [
        (Wanted("present", "m9", ("http://p2",)), THREE, r"http://p2 is member m2 \(2\), not m9"),
        (Wanted("present", "m2", ("http://new",)), THREE, "remove the old one first"),
        (Wanted("present", "m5", ("http://p5",)), WITH_LEARNER, "there is a learner already"),
        (
            Wanted("present", "m4", ("http://p4",)),
            View((*THREE.members[:2], seen(3, version="3.3.25"))),
            "learner: false",
        ),
        (
            Wanted("present", "m4", ("http://p4",)),
            View((*THREE.members[:2], seen(3, healthy=False))),
            "repair or remove",
        ),
        (Wanted("promoted", "m9"), THREE, r"the members are m1 \(1\), m2 \(2\), m3 \(3\): add it first"),
        (Wanted("absent", "m1"), View((*THREE.members[:2], seen(3, healthy=False))), "would lose its quorum"),
        (Wanted("absent", "m1"), View((seen(1),)), "the only member with a vote"),
    ],
)
def test_what_must_not_be_done(wanted: Wanted, view: View, words: str) -> None:
    with pytest.raises(EtcdError, match=words):
        plan_member(view, wanted)


def test_it_must_be_said_which_member_is_meant() -> None:
    assert len(wanted_faults(Wanted("present"))) == 2
    assert wanted_faults(Wanted("present", "m1")) and wanted_faults(Wanted("absent"))
    assert wanted_faults(Wanted("absent", "m1")) == wanted_faults(Wanted("present", "", ("u",))) == []


def test_a_promotion_waits_for_a_learner_that_is_still_there() -> None:
    wanted = Wanted("promoted", "m4")
    assert promotion_refusal(WITH_LEARNER, wanted) == ""
    assert "no member any more" in promotion_refusal(THREE, wanted)
    silent = View((*THREE.members, replace(WITH_LEARNER.members[3], status=None)))
    assert "does not answer" in promotion_refusal(silent, wanted)
    # Somebody else has promoted it.
    assert promotion_refusal(View((*THREE.members, seen(4))), wanted) == ""
    assert find_member(THREE, wanted) is None


def test_the_list_afterwards_and_how_a_new_member_starts() -> None:
    wanted = Wanted("present", "m4", ("http://p4",))
    added = members_after(MEMBERS, plan_member(THREE, wanted), wanted)
    assert describe(added)[-1] == "(not started) http://p4 learner"
    assert initial_cluster(added, wanted) == "m1=http://p1,m2=http://p2,m3=http://p3,m4=http://p4"
    gone = Wanted("absent", "m2")
    assert [member.name for member in members_after(MEMBERS, plan_member(THREE, gone), gone)] == ["m1", "m3"]
    promoted = Wanted("promoted", "m4")
    members = tuple(one.member for one in WITH_LEARNER.members if one.member)
    assert not any(member.learner for member in members_after(members, plan_member(WITH_LEARNER, promoted), promoted))
    nothing = Wanted("present", "m1", ("http://p1",))
    assert members_after(MEMBERS, plan_member(THREE, nothing), nothing) == MEMBERS


# --- Defragmentation --------------------------------------------------------------------------------------------------


def test_the_leader_is_last_and_what_is_not_worth_it_is_left_alone() -> None:
    view = View(
        (
            seen(1, db_size_in_use=300),
            seen(2, db_size=500, db_size_in_use=100),
            seen(3, db_size_in_use=900),
            seen(4, learner=True),
            seen(5, db_size_in_use=None),
            seen(6, db_size_in_use=300),
        )
    )
    found = candidates(view, 0.45, 800)
    assert [one.seen.name for one in found] == ["m2", "m3", "m4", "m5", "m6", "m1"]
    reasons = [one.left_alone for one in found]
    for reason, words in zip(reasons, ["500 bytes", "10% of its file", "learner", "does not tell", "", ""]):
        assert words in reason and bool(words) is bool(reason)


@pytest.mark.parametrize(
    ("view", "words"),
    [
        (THREE, ""),
        (WITH_LEARNER, ""),
        (View((seen(1),)), ""),
        (View((seen(1), seen(2, alarms=(Alarm(2, "NOSPACE"),)))), ""),
        (View((seen(1), seen(2, alarms=(Alarm(2, "CORRUPT"),)))), "CORRUPT"),
        (View((seen(1), seen(2), seen(3, healthy=False))), "not all members are healthy"),
        (View((seen(1, raft_index=5000), seen(2))), "has not caught up"),
        (View((seen(2), seen(3))), "no leader"),
        (View((seen(1), seen(2, cluster_id=8))), "more than one cluster"),
        (View((seen(1), replace(seen(2), hash=Hash(98, 50, 10)))), "data differ"),
    ],
)
def test_members_are_defragmented_only_while_all_is_well(view: View, words: str) -> None:
    refusal = defragment_refusal(view)
    assert words in refusal and bool(words) is bool(refusal)


def test_the_next_leader_is_a_healthy_follower() -> None:
    assert next_leader(View((seen(1), seen(2, healthy=False), seen(3), seen(4, learner=True)))).name == "m3"
    with pytest.raises(EtcdError, match="no healthy follower"):
        next_leader(View((seen(1), seen(2, learner=True))))
