# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Judging a v2 store, keeping track of it while it changes, and the steps of a migration."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils import etcd_migrations as plan
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_cluster import Member, Seen, Status, View
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_migrations import (
    Census,
    Change,
    Leaf,
    MigrationError,
    Mirror,
    Rules,
)

EXPIRATION = "2026-11-21T17:02:38.5Z"
MOMENT = 1795280558.5


def event(action: str, key: str, index: int, value: str | None = None, **more: Any) -> dict[str, Any]:
    node: dict[str, Any] = {"key": key, "modifiedIndex": index, "createdIndex": 1}
    if value is not None:
        node["value"] = value
    return {"action": action, "node": {**node, **more}}


def looked(*leaves: Leaf, index: int = 10, profile: str = "plain") -> Mirror:
    """Return a mirror after its first look."""
    mirror = Mirror(profile)
    mirror.begin(index)
    for leaf in leaves:
        mirror.read(leaf)
    mirror.end()
    return mirror


class TestAnswers:
    def test_yields_keys_of_all_depths_with_the_lifetime_of_their_folder(self) -> None:
        node = {
            "dir": True,
            "nodes": [
                {"key": "/a", "value": "1", "modifiedIndex": 3},
                {
                    "key": "/b",
                    "dir": True,
                    "expiration": EXPIRATION,
                    "modifiedIndex": 4,
                    "nodes": [
                        {"key": "/b/c", "value": "", "modifiedIndex": 5},
                        {"key": "/b/d", "modifiedIndex": 6, "expiration": "2026-11-21T17:00:00Z"},
                    ],
                },
                {"key": "/empty", "dir": True, "modifiedIndex": 7},
            ],
        }
        expiring: dict[str, float] = {}
        assert sorted(plan.leaves(node, expiring=expiring)) == [
            Leaf("/a", "1", 3, None),
            Leaf("/b/c", "", 5, MOMENT),
            Leaf("/b/d", "", 6, MOMENT - 158.5),
        ]
        assert expiring == {"/b/": MOMENT}
        assert list(plan.folders(node)) == [("/b", MOMENT), ("/empty", None)]

    @pytest.mark.parametrize(
        ("text", "moment"),
        [("", None), (None, None), (EXPIRATION, MOMENT), ("2026-11-21T17:02:38Z", MOMENT - 0.5)],
    )
    def test_reads_a_moment(self, text: str | None, moment: float | None) -> None:
        assert plan.parse_expiration(text) == moment


class TestLeases:
    @pytest.mark.parametrize(
        ("left", "seconds"), [(-5, 2), (0.1, 2), (2, 2), (2.1, 3), (60, 60), (60.1, 65), (600, 600), (601, 660)]
    )
    def test_a_lease_is_never_shorter_than_what_is_left(self, left: float, seconds: int) -> None:
        assert plan.bucket(left) == seconds
        assert plan.bucket(left) >= left

    @pytest.mark.parametrize(
        ("key", "expires", "seconds"),
        [
            ("/registry/events/default/x", 1.0, 3600),
            ("/kubernetes.io/events/x", None, 3600),
            ("/registry/masterleases/10.0.0.1", None, 15),
            ("/registry/pods/x", 50.0, 0),
            ("/registry", None, 0),
            ("/events", None, 0),
        ],
    )
    def test_kubernetes_decides_by_kind(self, key: str, expires: float | None, seconds: int) -> None:
        assert plan.lease_seconds("kubernetes", key, expires, 0.0) == seconds

    def test_plain_decides_by_what_is_left(self) -> None:
        assert plan.lease_seconds("plain", "/registry/events/x", None, 0.0) == 0
        assert plan.lease_seconds("plain", "/a", 110.0, 100.0) == 10


class TestCensus:
    def taken(self, *leaves: Leaf, rules: Rules | None = None, hidden: list[str] | None = None) -> list[str]:
        rules = rules or Rules()
        census = Census(hidden=[] if hidden is None else hidden)
        for leaf in leaves:
            census.add(leaf, plan.size_of(leaf.key) + plan.size_of(leaf.value), rules)
        return plan.census_faults(census, rules)

    def test_nothing_speaks_against_what_v3_can_hold(self) -> None:
        assert not self.taken(Leaf("/a", "ä🙂", 1), Leaf("/b", "", 2), Leaf("/c", "x" * 1_500_000, 3))

    def test_names_what_speaks_against_it_all_at_once(self) -> None:
        rules = Rules(hidden_keys="refuse", quota_bytes=1000)
        faults = self.taken(Leaf("/a", "\ufffd", 1), Leaf("/big", "x" * 1_572_800, 2), rules=rules, hidden=["/_h"])
        text = "; ".join(faults)
        assert len(faults) == 4
        for words in ("U+FFFD", "/a", "/big", "/_h", "quota_bytes"):
            assert words in text

    def test_a_key_with_lost_bytes_counts_too(self) -> None:
        assert self.taken(Leaf("/\ufffd", "", 1))
        assert not self.taken(Leaf("/\ufffd", "", 1), rules=Rules(allow_replacement_characters=True))

    @pytest.mark.parametrize(("choice", "count"), [("copy", 1), ("refuse", 1), ("leave", 0)])
    def test_hidden_keys_that_nobody_could_look_for(self, choice: str, count: int) -> None:
        assert len(plan.census_faults(Census(), Rules(hidden_keys=choice))) == count

    @pytest.mark.parametrize(("choice", "count"), [("copy", 0), ("refuse", 1), ("leave", 0)])
    def test_hidden_keys_that_are_there(self, choice: str, count: int) -> None:
        assert len(self.taken(rules=Rules(hidden_keys=choice), hidden=["/_h"])) == count

    def test_names_only_a_few_of_many(self) -> None:
        found = plan.Found()
        for number in range(12):
            found.add(f"/{number}")
        assert str(found) == "/0, /1, /2, /3, /4 and 7 more"


def seen(number: int, *, healthy: bool = True, learner: bool = False) -> Seen:
    member = Member(number, f"m{number}", (f"http://127.0.0.1:{number}",), (), learner)
    status = Status(number, 9, "3.4.23", 1, 2, 100, 100, 1, 20_000)
    return Seen(f"http://m{number}", member, status, healthy=healthy, health_reason="" if healthy else "no leader")


class TestSource:
    VIEW = View((seen(1), seen(2), seen(3)))
    ENDPOINTS = ("http://m1", "http://m2", "http://m3")
    INDEXES = dict.fromkeys(ENDPOINTS, 50)
    EMPTY = dict.fromkeys(ENDPOINTS, 0)

    def faults(self, **other: Any) -> list[str]:
        given = {"view": self.VIEW, "endpoints": self.ENDPOINTS, "indexes": self.INDEXES, "v3_keys": self.EMPTY}
        given.update(other)
        return plan.source_faults(given["view"], given["endpoints"], given["indexes"], 50, given["v3_keys"])

    def test_a_sound_cluster_has_none(self) -> None:
        assert self.faults() == []

    @pytest.mark.parametrize(
        ("other", "words"),
        [
            ({"view": View((seen(1), seen(2), seen(3, healthy=False)))}, "not healthy"),
            ({"view": View((seen(1), seen(2), seen(3, learner=True)))}, "learner"),
            ({"endpoints": ENDPOINTS[:2]}, "3 members"),
            ({"indexes": {**INDEXES, "http://m2": 49}}, "http://m2 lags"),
            ({"v3_keys": {**EMPTY, "http://m2": 5}}, "differ"),
            ({"v3_keys": dict.fromkeys(ENDPOINTS, 5)}, "not empty"),
        ],
    )
    def test_says_what_is_wrong(self, other: dict[str, Any], words: str) -> None:
        assert any(words in fault for fault in self.faults(**other))

    def test_says_where_space_is_missing(self) -> None:
        assert plan.room_faults("/x", 10**10, 10**9, 3) == []
        assert "/x" in plan.room_faults("/x", 3 * 10**9, 10**9, 3)[0]


class TestMirror:
    def test_a_copy_that_has_everything_lacks_nothing(self) -> None:
        mirror = looked(Leaf("/a", "1", 3), Leaf("/b", "2", 4))
        assert mirror.take() == {"/a": "1", "/b": "2"}
        assert mirror.take() == {}
        assert plan.compare({key: held.mark for key, held in mirror.keys.items()}, mirror.base) == ([], [], [])

    @pytest.mark.parametrize("action", ["set", "create", "update", "compareAndSwap"])
    def test_an_event_that_writes(self, action: str) -> None:
        mirror = looked(Leaf("/a", "1", 3))
        mirror.take()
        mirror.apply(event(action, "/a", 11, "2"))
        assert mirror.pending == {"/a": "2"}
        assert not mirror.unseen

    @pytest.mark.parametrize("action", ["delete", "expire", "compareAndDelete"])
    def test_an_event_that_removes(self, action: str) -> None:
        mirror = looked(Leaf("/a", "1", 3), Leaf("/b", "1", 3))
        mirror.take()
        mirror.apply(event(action, "/a", 11))
        assert mirror.pending == {"/a": None}

    def test_what_comes_and_goes_between_two_copies_is_not_copied(self) -> None:
        mirror = looked()
        mirror.apply(event("create", "/a", 11, "1"))
        mirror.apply(event("delete", "/a", 12))
        assert mirror.take() == {}

    def test_what_changes_back_is_not_copied(self) -> None:
        mirror = looked(Leaf("/a", "1", 3))
        mirror.take()
        mirror.apply(event("set", "/a", 11, "2"))
        mirror.apply(event("set", "/a", 12, "1"))
        assert mirror.pending == {}

    def test_a_folder_goes_with_all_that_is_in_it_and_nothing_beside(self) -> None:
        mirror = looked(Leaf("/a/b", "1", 3), Leaf("/a/c/d", "1", 4), Leaf("/ab", "1", 5))
        mirror.take()
        mirror.apply(event("delete", "/a", 11, dir=True))
        assert mirror.pending == {"/a/b": None, "/a/c/d": None}

    def test_a_folder_in_place_of_a_key(self) -> None:
        mirror = looked(Leaf("/a", "1", 3))
        mirror.take()
        mirror.apply(event("set", "/a", 11, dir=True))
        assert mirror.pending == {"/a": None}

    def test_an_event_older_than_what_was_read_changes_nothing(self) -> None:
        mirror = looked(Leaf("/a", "new", 12), index=10)
        mirror.apply(event("set", "/a", 11, "old"))
        assert mirror.pending == {"/a": "new"}

    def test_a_missing_index_is_noticed(self) -> None:
        mirror = looked()
        mirror.apply(event("set", "/a", 12, "1"))
        assert mirror.unseen

    def test_an_index_without_any_event_is_noticed(self) -> None:
        mirror = looked()
        mirror.skip_to(10)
        assert not mirror.unseen
        mirror.skip_to(11)
        assert mirror.unseen

    def test_a_hidden_key_is_noticed_and_remembered(self) -> None:
        mirror = looked()
        mirror.apply(event("set", "/x/_h/y", 11, "1"))
        assert mirror.unseen
        assert mirror.hidden == {"/x/_h"}

    def test_a_lifetime_of_a_folder_is_a_reason_to_look_again(self) -> None:
        mirror = looked()
        mirror.apply(event("update", "/a", 11, dir=True, expiration=EXPIRATION))
        assert mirror.unseen

    def test_a_second_look_finds_what_events_did_not_show(self) -> None:
        mirror = looked(Leaf("/same", "1", 3), Leaf("/gone", "1", 4), Leaf("/other", "1", 5))
        mirror.take()
        mirror.begin(20)
        for leaf in (Leaf("/same", "1", 3), Leaf("/other", "2", 15), Leaf("/new", "1", 16)):
            mirror.read(leaf)
        mirror.end()
        assert mirror.pending == {"/gone": None, "/other": "2", "/new": "1"}

    def test_what_is_written_during_a_look_is_not_taken_for_gone(self) -> None:
        mirror = looked()
        mirror.begin(20)
        mirror.hold(Leaf("/later", "1", 21))
        mirror.end()
        assert "/later" in mirror.keys

    def test_a_copy_of_a_former_run_is_corrected(self) -> None:
        base = {"/a": plan.digest("1"), "/b": plan.digest("1"), "/c": plan.digest("1")}
        mirror = Mirror("plain", base)
        mirror.begin(5)
        mirror.read(Leaf("/a", "1", 1))
        mirror.read(Leaf("/b", "2", 2))
        mirror.end()
        assert mirror.pending == {"/b": "2", "/c": None}

    def test_keys_with_a_lifetime_wait_for_the_end(self) -> None:
        mirror = looked(Leaf("/a", "1", 3), Leaf("/ttl", "1", 4, MOMENT))
        assert mirror.take() == {"/a": "1"}
        assert mirror.pending == {"/ttl": "1"}
        assert mirror.permanent == 1

    def test_unless_they_are_many(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(plan, "LATE_AT_MOST", 3)
        mirror = looked(*(Leaf(f"/{number}", "1", number, MOMENT) for number in range(5)))
        assert len(mirror.take()) == 5

    def test_a_renewed_lifetime_is_a_change(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(plan, "LATE_AT_MOST", 0)
        mirror = looked(Leaf("/a", "1", 3, MOMENT))
        assert mirror.take() == {"/a": "1"}
        mirror.hold(Leaf("/a", "1", 11, MOMENT + 30))
        assert mirror.pending == {"/a": "1"}

    def test_kubernetes_copies_them_at_once(self) -> None:
        mirror = looked(Leaf("/registry/events/x", "1", 3, MOMENT), profile="kubernetes")
        assert mirror.take() == {"/registry/events/x": "1"}

    def test_a_new_key_in_a_folder_that_expires(self) -> None:
        mirror = looked()
        mirror.expiring["/a/"] = MOMENT
        mirror.apply(event("create", "/a/b", 11, "1"))
        assert mirror.keys["/a/b"].expires == MOMENT

    @pytest.mark.parametrize("seed", range(20))
    def test_any_order_of_reading_and_writing_ends_in_the_store(self, seed: int) -> None:
        """A store changes at random while it is read folder by folder; what is copied meanwhile is at random too."""
        chance = random.Random(seed)
        store: dict[str, tuple[str, int]] = {}
        index = 0
        events: list[dict[str, Any]] = []

        def change() -> None:
            nonlocal index
            index += 1
            key = f"/{chance.randrange(4)}/{chance.randrange(6)}"
            if chance.random() < 0.1:
                folder = key.rpartition("/")[0]
                for below in [name for name in store if name.startswith(folder + "/")]:
                    del store[below]
                events.append(event("delete", folder, index, dir=True))
            elif chance.random() < 0.3 and key in store:
                del store[key]
                events.append(event("delete", key, index))
            else:
                store[key] = str(chance.randrange(3)), index
                events.append(event("set", key, index, store[key][0]))

        for _ in range(30):
            change()
        mirror, copy = Mirror(), {}
        for look in range(3):
            begin = index
            mirror.begin(begin)
            for folder in range(4):
                for _ in range(chance.randrange(5)):
                    change()
                for key, (value, modified) in store.items():
                    if key.startswith(f"/{folder}/"):
                        mirror.read(Leaf(key, value, modified))
                if chance.random() < 0.5 or look == 0:
                    for key, taken in mirror.take().items():
                        copy[key] = taken
            mirror.end()
            for one in events:
                mirror.apply(one)
            assert not mirror.unseen
        copy.update(mirror.take())
        assert {key: value for key, value in copy.items() if value is not None} == {
            key: value for key, (value, _modified) in store.items()
        }


class TestComparison:
    def test_names_what_differs(self) -> None:
        one, two = plan.digest("1"), plan.digest("2")
        difference = plan.compare({"/a": one, "/b": one, "/c": one}, {"/b": two, "/c": one + b"1234", "/d": one})
        assert difference == (["/a"], ["/d"], ["/b"])
        assert str(difference) == (
            "1 keys missing (/a); 1 keys that should not be there (/d); 1 keys with another value (/b)"
        )
        assert not plan.compare({"/a": one}, {"/a": one})

    def test_a_copy_read_back_is_the_copy(self) -> None:
        marks = {b"/a": (plan.digest("1"), 0), "/ä".encode(): (plan.digest("2"), 77)}
        assert plan.base_of(marks, "kubernetes") == {"/a": plan.digest("1"), "/ä": plan.digest("2")}
        # A lease that was granted earlier is to be granted anew.
        assert plan.base_of(marks, "plain")["/ä"] != plan.digest("2")


class TestRequests:
    def test_a_batch_keeps_to_what_a_server_takes(self) -> None:
        wanted = [Change(f"/{number:03}", "x" * 100) for number in range(300)]
        portions = list(plan.batches(wanted))
        assert [len(portion) for portion in portions] == [128, 128, 44]
        assert [change for portion in portions for change in portion] == wanted
        assert [len(portion) for portion in plan.batches(wanted, 128, 1000)] == [5] * 60

    def test_bytes_count_not_characters(self) -> None:
        wanted = [Change("/a", "🙂" * 200), Change("/b", "🙂" * 200)]
        assert len(list(plan.batches(wanted, 128, 1000))) == 2

    def test_one_that_is_too_large_goes_alone(self) -> None:
        assert [len(portion) for portion in plan.batches([Change("/a", "x" * 99), Change("/b", "")], 128, 90)] == [1, 1]

    def test_a_transaction(self) -> None:
        body = plan.transaction([Change("/a", "1"), Change("/b", None), Change("/c", "", 5)], {5: "77"})
        assert json.loads(body) == {
            "success": [
                {"requestPut": {"key": "L2E=", "value": "MQ=="}},
                {"requestDeleteRange": {"key": "L2I="}},
                {"requestPut": {"key": "L2M=", "value": "", "lease": "77"}},
            ]
        }


class TestJournal:
    def test_the_way_to_the_end(self) -> None:
        entry = plan.Entry("x", "")
        for state in ("copying", "copied", "staged", "freezing", "frozen", "swapping", "swapped", "done", "copying"):
            entry = entry.at(state, **{state: 1})
        assert entry.facts["frozen"] == 1

    @pytest.mark.parametrize(
        ("state", "following"),
        [("", "frozen"), ("copying", "frozen"), ("staged", "swapping"), ("done", "undoing"), ("undone", "done")],
    )
    def test_a_step_that_does_not_follow(self, state: str, following: str) -> None:
        with pytest.raises(MigrationError):
            plan.Entry("x", state).at(following)

    @pytest.mark.parametrize("state", sorted(plan.TO_UNDO))
    def test_whatever_touched_something_can_be_undone(self, state: str) -> None:
        assert plan.Entry("x", state).at(plan.UNDOING).at(plan.UNDONE).at(plan.COPYING)

    @pytest.mark.parametrize(
        "content", [None, [], {}, {"id": "x", "state": "odd", "facts": {}}, {"id": 1, "state": "done", "facts": {}}]
    )
    def test_says_what_is_no_journal(self, content: Any) -> None:
        with pytest.raises(MigrationError):
            plan.parse_entry(content, "/journal")


class TestStill:
    @pytest.mark.parametrize(
        ("events", "unseen", "words"),
        [
            ([], False, ""),
            ([event("expire", "/a", 11)], False, ""),
            ([event("set", "/a", 10)], False, ""),
            ([event("expire", "/a", 11), event("set", "/b", 12)], False, "set of /b at index 12"),
            ([], True, "events do not show"),
        ],
    )
    def test_only_lifetimes_may_run_out(self, events: list[dict[str, Any]], unseen: bool, words: str) -> None:
        found = plan.moved(events, 10, unseen)
        assert words in found
        assert bool(found) == bool(words)
