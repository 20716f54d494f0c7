# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils import etcd_restore as plan
from ansible_collections.plainkube.cluster.plugins.module_utils.bbolt import SnapshotProof
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_cluster import (
    Alarm,
    Hash,
    Member,
    Seen,
    Status,
    View,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_restore import (
    FINISHED,
    ROLLED_BACK,
    ROLLING_BACK,
    STAGED,
    SWAPPED,
    SWAPPING,
    Expectation,
    Host,
    Journal,
    Request,
    RestoreError,
    There,
    Tool,
)

PATH = "/backup/etcd.db"
DIGEST = "ab" * 32
MEMBERS = {name: (f"https://10.0.0.{number}:2380",) for number, name in enumerate(("alpha", "beta", "gamma"), 1)}
REQUEST = Request("t1", "alpha", MEMBERS["alpha"], MEMBERS, 1_000_000_000)
UTILITY = Tool("etcdutl", (3, 7), True)
HOST = Host("/var/lib/etcd", 10**12, (3, 7), UTILITY)
PROOF = SnapshotProof(
    size=20_512,
    digest=DIGEST,
    page_size=4096,
    revision=21,
    compact_revision=0,
    key_count=20,
    entries=20,
    members=[{"id": "1", "name": "alpha", "peer_urls": [], "client_urls": [], "learner": False}],
    cluster_version="3.7.0",
    storage_version="3.7.0",
    consistent_index=25,
    term=2,
    alarms=[],
    lease_count=0,
    auth_enabled=False,
)
NOTHING_KNOWN = Expectation()
JOURNAL = Journal("t1", STAGED, REQUEST.fingerprint(DIGEST), DIGEST, 1_000_000_021, 20)


def faults(
    request: Request = REQUEST,
    expected: Expectation = NOTHING_KNOWN,
    proof: SnapshotProof = PROOF,
    manifest: dict[str, Any] | None = None,
    host: Host = HOST,
) -> str:
    return "\n".join(plan.proof_faults(request, expected, PATH, proof, manifest or {}, host))


# The request


def test_a_good_request_has_no_faults() -> None:
    assert plan.request_faults(REQUEST) == []
    assert REQUEST.initial_cluster == (
        "alpha=https://10.0.0.1:2380,beta=https://10.0.0.2:2380,gamma=https://10.0.0.3:2380"
    )


def test_members_have_one_url_or_several() -> None:
    assert plan.parse_members({"a": "x", "b": ["y", "z"]}) == {"a": ("x",), "b": ("y", "z")}


@pytest.mark.parametrize("urls", [None, 1, {"a": 1}, [1]])
def test_members_that_are_none(urls: Any) -> None:
    with pytest.raises(RestoreError, match="members: alpha: found"):
        plan.parse_members({"alpha": urls})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "delta"}, "delta is not among the members (alpha at https://10.0.0.1:2380; beta"),
        ({"peer_urls": ("https://10.0.0.9:2380",)}, "found https://10.0.0.9:2380, but the members' list has alpha at"),
        ({"token": "a b"}, "token: found 'a b'"),
        ({"token": ""}, "token: found ''"),
        ({"token": "../x"}, "token: found '../x'"),
        ({"bump_revision": -1}, "bump_revision: found -1"),
        ({"members": {**MEMBERS, "beta": ()}}, "beta has no peer URL"),
        ({"members": {**MEMBERS, "beta": ("10.0.0.2:2380",)}}, "beta: found '10.0.0.2:2380', wanted a URL"),
        ({"members": {**MEMBERS, "beta": MEMBERS["gamma"]}}, "https://10.0.0.3:2380 stands there for beta and gamma"),
        ({"members": {}}, "alpha is not among the members (nobody)"),
    ],
)
def test_what_is_wrong_with_a_request(change: dict[str, Any], words: str) -> None:
    assert words in "\n".join(plan.request_faults(replace(REQUEST, **change)))


def test_all_faults_of_a_request_at_once() -> None:
    assert len(plan.request_faults(replace(REQUEST, name="delta", token="/", bump_revision=-1))) == 3


def test_the_fingerprint_tells_requests_apart_but_not_their_tokens() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"bump_revision": 1},
        {"name": "beta", "peer_urls": MEMBERS["beta"]},
        {"members": {"alpha": MEMBERS["alpha"]}},
        {"raw": True},
    ]
    prints = [replace(REQUEST, **change).fingerprint(DIGEST) for change in changes]
    assert len({*prints, REQUEST.fingerprint("cd" * 32)}) == len(changes) + 1
    assert replace(REQUEST, token="t2").fingerprint(DIGEST) == prints[0]


# The file


def test_a_good_file_has_no_faults() -> None:
    manifest = {"sha256": DIGEST, "size": 20_512, "revision": 21, "cluster_id": "0xCB60"}
    expected = Expectation(DIGEST.upper(), ("1", "00cb60"), 1_000_000_021, 8 * 2**30)
    assert faults(expected=expected, manifest=manifest) == ""


@pytest.mark.parametrize(
    ("expected", "manifest", "words"),
    [
        (Expectation(sha256="cd" * 32), {}, f"{PATH} has the SHA-256 {DIGEST}, wanted {'cd' * 32}: it is another file"),
        (Expectation(), {"sha256": "cd" * 32}, f"has sha256 {DIGEST}, but its manifest recorded {'cd' * 32}"),
        (Expectation(), {"size": 1}, "has size 20512, but its manifest recorded 1"),
        (Expectation(), {"revision": 20}, "has revision 21, but its manifest recorded 20"),
        (Expectation(cluster_ids=("a", "b")), {"cluster_id": "c"}, "a snapshot of the cluster c, wanted a or b"),
        (Expectation(quota_bytes=20_512), {}, "has 0.0 MB, the quota of this member is 0.0 MB"),
    ],
)
def test_what_does_not_fit_the_file(expected: Expectation, manifest: dict[str, Any], words: str) -> None:
    assert words in faults(expected=expected, manifest=manifest)
    assert faults(expected=expected, manifest=manifest).count("\n") == 0


@pytest.mark.parametrize(
    ("storage", "cluster", "server", "words"),
    [
        ("3.7.0", "3.7.0", (3, 7), ""),
        ("3.6.0", "3.6.0", (3, 7), ""),
        ("", "3.5.0", (3, 6), ""),
        ("", "", (3, 7), ""),
        ("", "3.5.0", (3, 7), "is of etcd 3.5, this host has 3.7: data moves one minor release at a time"),
        ("3.7.0", "3.7.0", (3, 6), "is of etcd 3.7, which the older etcd 3.6 of this host does not understand"),
        ("3.7.0", "3.6.0", (3, 6), "is of etcd 3.7, which the older etcd 3.6"),
        ("3.7.0", "3.7.0", (4, 0), "data moves one minor release at a time"),
        ("3.7.0", "3.7.0", None, "no etcd was found on this host"),
    ],
)
def test_versions(storage: str, cluster: str, server: tuple[int, int] | None, words: str) -> None:
    proof = replace(PROOF, storage_version=storage, cluster_version=cluster)
    found = faults(proof=proof, host=replace(HOST, server_version=server))
    assert words in found if words else found == ""


@pytest.mark.parametrize(
    ("tool", "bump", "words"),
    [
        (Tool("etcdutl", (3, 5), False), 1, "etcdutl 3.5 cannot raise the revision"),
        (Tool("etcdutl", (3, 5), False), 0, ""),
        (Tool("etcdctl", (3, 4), True), 1, "etcdctl is of 3.4, older than the data, which is of 3.5"),
        (None, 1, "no program on this host can restore (found etcdctl 3.7)"),
    ],
)
def test_programs(tool: Tool | None, bump: int, words: str) -> None:
    host = replace(HOST, server_version=(3, 5), tool=tool, tools_seen="found etcdctl 3.7")
    proof = replace(PROOF, storage_version="", cluster_version="3.5.0")
    found = faults(replace(REQUEST, bump_revision=bump), proof=proof, host=host)
    assert words in found if words else found == ""


@pytest.mark.parametrize(
    ("etcdutl", "etcdctl", "chosen"),
    [
        (UTILITY, None, UTILITY),
        (UTILITY, Tool("etcdctl", (3, 5), True), UTILITY),
        (None, Tool("etcdctl", (3, 5), True), Tool("etcdctl", (3, 5), True)),
        (None, Tool("etcdctl", (3, 6), False), None),
        (None, None, None),
    ],
)
def test_the_program_to_restore_with(etcdutl: Tool | None, etcdctl: Tool | None, chosen: Tool | None) -> None:
    assert plan.choose_tool(etcdutl, etcdctl) == chosen


def test_space_is_wanted_twice_and_not_again_for_a_copy_that_is_there() -> None:
    needed = plan.needed_bytes(PROOF.size)
    assert needed > 2 * PROOF.size
    assert faults(host=replace(HOST, free_bytes=needed)) == ""
    assert "0.0 MB, its log" in faults(host=replace(HOST, free_bytes=needed - 1))
    assert faults(host=replace(HOST, free_bytes=needed - 1, copied=True)) == ""


def test_a_revision_that_clients_have_seen_is_never_gone_below() -> None:
    newer = Expectation(revision=1_000_000_500)
    assert plan.with_whole_bump(REQUEST, NOTHING_KNOWN, PROOF) == REQUEST
    assert plan.with_whole_bump(REQUEST, newer, PROOF).bump_revision == 2_000_000_479
    assert faults(expected=newer) == ""
    without = replace(REQUEST, bump_revision=0)
    assert plan.with_whole_bump(without, newer, PROOF) == without
    assert "at revision 21, but clients have seen 1000000500" in faults(without, newer)
    assert faults(without, Expectation(revision=21)) == ""


def test_all_faults_of_a_file_at_once() -> None:
    expected = Expectation(sha256="cd" * 32, cluster_ids=("a",), revision=2 * 10**9, quota_bytes=1)
    host = replace(HOST, free_bytes=0, tool=None)
    found = faults(replace(REQUEST, bump_revision=0), expected, manifest={"cluster_id": "b"}, host=host)
    assert found.count("\n") == 5


def test_what_a_person_is_told() -> None:
    alarms = [{"member_id": "1", "alarm": "NOSPACE"}, {"member_id": "2", "alarm": "NOSPACE"}]
    old = replace(HOST, tool=Tool("etcdctl", (3, 4), True))
    told = plan.warnings(
        replace(REQUEST, raw=True, bump_revision=0),
        Expectation(cluster_ids=("a",)),
        PATH,
        replace(PROOF, alarms=alarms),
        {},
        old,
    )
    for words in ("without a digest", "no manifest", "not raised", "keeps the old members", "the alarm NOSPACE, which"):
        assert sum(words in warning for warning in told) == 1
    assert plan.warnings(REQUEST, Expectation(cluster_ids=("a",)), PATH, PROOF, {"cluster_id": "a"}, HOST) == []


# The copy


def test_the_command() -> None:
    command = plan.restore_command(REQUEST, UTILITY, PATH, "/d")
    assert command[:4] == ["etcdutl", "snapshot", "restore", PATH]
    assert {"--bump-revision=1000000000", "--mark-compacted", "--initial-cluster-token=t1"} < set(command)
    assert "--skip-hash-check" not in command
    other = plan.restore_command(replace(REQUEST, bump_revision=0, raw=True), UTILITY, PATH, "/d")
    assert "--skip-hash-check" in other
    assert not [word for word in other if word.startswith(("--bump", "--mark"))]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, ""),
        ({"revision": 21}, "found revision 21 after the restore, wanted 1000000021"),
        ({"entries": 20}, "found entries 20 after the restore, wanted 21"),
        ({"members": ["alpha"]}, "found members ['alpha'] after the restore, wanted ['alpha', 'beta', 'gamma']"),
    ],
)
def test_a_copy_is_measured_by_what_went_in(change: dict[str, Any], words: str) -> None:
    copy = {"revision": 1_000_000_021, "entries": 21, "members": sorted(MEMBERS), **change}
    found = plan.copy_faults(REQUEST, PROOF, UTILITY, copy, "/d")
    assert len(found) == bool(words)
    assert words in "".join(found)


def test_old_programs_leave_the_old_members_in_the_database() -> None:
    copy = {"revision": 1_000_000_021, "entries": 21, "members": ["old"]}
    assert plan.copy_faults(REQUEST, PROOF, Tool("etcdctl", (3, 4), True), copy, "/d") == []


# Folders and journal


def test_a_mount_point_is_swapped_one_level_below() -> None:
    plain, mount = plan.layout("/var/lib/etcd", False, "t1"), plan.layout("/var/lib/etcd", True, "t1")
    assert (plain.live, plain.kept) == ("/var/lib/etcd", "/var/lib/etcd.before-t1")
    assert (mount.live, mount.kept) == ("/var/lib/etcd/member", "/var/lib/etcd/before-t1")
    assert all(path.startswith("/var/lib/etcd/") for path in (mount.staged, mount.undone, mount.journal))


def test_a_journal_is_read_as_it_was_written() -> None:
    assert plan.parse_journal(JOURNAL.text(), "/j") == JOURNAL


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"token": 1}', JOURNAL.at("elsewhere").text()])
def test_a_journal_that_is_none(text: str) -> None:
    with pytest.raises(RestoreError, match="/j"):
        plan.parse_journal(text, "/j")


NOTHING = There(True, False, False, False)
COPY = There(True, True, False, False)


@pytest.mark.parametrize(
    ("journal", "there", "wanted"),
    [
        (None, NOTHING, True),
        (JOURNAL, COPY, False),
        (JOURNAL, NOTHING, True),
        (replace(JOURNAL, token="t0"), COPY, True),
        (replace(JOURNAL, fingerprint="other"), COPY, True),
        (replace(JOURNAL, token="t0", phase=FINISHED), NOTHING, True),
        (replace(JOURNAL, token="t0", phase=ROLLED_BACK), NOTHING, True),
        (JOURNAL.at(SWAPPING), COPY, False),
        (JOURNAL.at(SWAPPED), NOTHING, False),
        (JOURNAL.at(FINISHED), NOTHING, False),
    ],
)
def test_when_a_copy_is_to_be_made(journal: Journal | None, there: There, wanted: bool) -> None:
    assert plan.must_stage(journal, "t1", REQUEST.fingerprint(DIGEST), there) == wanted


@pytest.mark.parametrize(
    ("journal", "words"),
    [
        (replace(JOURNAL, token="t0", phase=SWAPPING), r"the restore t0 .* is not over \(swapping\)"),
        (replace(JOURNAL, token="t0", phase=SWAPPED), r"the restore t0 .* is not over \(swapped\)"),
        (replace(JOURNAL, fingerprint="other", phase=SWAPPED), "is not over"),
        (replace(JOURNAL, token="t0", phase=ROLLING_BACK), "is not over"),
        (JOURNAL.at(ROLLING_BACK), "t1 is being undone"),
        (JOURNAL.at(ROLLED_BACK), "t1 was undone: choose a new token"),
        (replace(JOURNAL, fingerprint="other", phase=FINISHED), "t1 was used for another restore"),
    ],
)
def test_what_is_in_the_way_of_a_copy(journal: Journal, words: str) -> None:
    with pytest.raises(RestoreError, match=words):
        plan.must_stage(journal, "t1", REQUEST.fingerprint(DIGEST), COPY)


# The swap and the way back: a model of the host, which a run may leave at any moment


class Killed(Exception):
    """The run ends here."""


MOVES = {
    "keep-old": ("live", "kept"),
    "put-new": ("staged", "live"),
    "set-new-aside": ("live", "undone"),
    "put-old": ("kept", "live"),
}


class Model:
    """A host as the module changes it: folders with what is in them, and the journal. Each change may be the last."""

    def __init__(self, had_data: bool) -> None:
        self.folders: dict[str, str] = {"staged": "new", **({"live": "old"} if had_data else {})}
        self.journal = replace(JOURNAL)
        self.left = 1000

    def change(self) -> None:
        if not self.left:
            raise Killed
        self.left -= 1

    @property
    def there(self) -> There:
        return There(*(name in self.folders for name in ("live", "staged", "kept", "undone")))

    def note(self, journal: Journal) -> None:
        self.change()
        self.journal = journal

    def rename(self, steps: tuple[str, ...]) -> None:
        for step in steps:
            source, target = MOVES[step]
            self.change()
            assert target not in self.folders, f"{step} would overwrite {target}"
            self.folders[target] = self.folders.pop(source)

    def remove(self, name: str) -> None:
        self.change()
        self.folders.pop(name, None)

    def swap(self) -> None:
        steps = plan.swap_steps(self.journal, "t1", self.there)
        if steps is None:
            return
        if self.journal.phase == STAGED:
            self.note(replace(self.journal.at(SWAPPING), had_data="keep-old" in steps))
        self.rename(steps)
        self.note(self.journal.at(SWAPPED))

    def roll_back(self) -> None:
        steps = plan.rollback_steps(self.journal, self.there)
        if steps is None:
            return
        if self.journal.phase != STAGED:
            self.note(self.journal.at(ROLLING_BACK))
        self.rename(steps)
        self.remove("staged")
        self.remove("undone")
        self.note(self.journal.at(ROLLED_BACK))

    def cut_off(self, verb: str, after: int) -> None:
        """Do something that ends after this many changes."""
        self.left = after
        with suppress(Killed):
            getattr(self, verb)()
        self.left = 1000


@pytest.mark.parametrize(("had_data", "after"), list(product([True, False], range(6))))
def test_a_swap_that_was_cut_off_is_finished_by_the_next(had_data: bool, after: int) -> None:
    host = Model(had_data)
    host.cut_off("swap", after)
    host.swap()
    assert host.folders == {"live": "new", **({"kept": "old"} if had_data else {})}
    assert host.journal.phase == SWAPPED
    host.left = 0
    host.swap()


@pytest.mark.parametrize(("had_data", "after", "then"), list(product([True, False], range(6), range(8))))
def test_a_swap_that_was_cut_off_is_undone(had_data: bool, after: int, then: int) -> None:
    """Also when the way back is cut off."""
    host = Model(had_data)
    host.cut_off("swap", after)
    host.cut_off("roll_back", then)
    host.roll_back()
    assert host.folders == ({"live": "old"} if had_data else {})
    assert host.journal.phase == ROLLED_BACK
    host.left = 0
    host.roll_back()


@pytest.mark.parametrize("there", [There(*row) for row in product([True, False], repeat=4)], ids=str)
def test_folders_that_tell_nothing_certain_are_left_alone(there: There) -> None:
    """Whatever is there: a rename never overwrites anything, and never takes something that is not there."""
    for phase, had_data in product((STAGED, SWAPPING, SWAPPED, FINISHED, ROLLING_BACK), [True, False]):
        for verb in ("swap", "roll_back"):
            host = Model(True)
            names = zip(("live", "staged", "kept", "undone"), (there.live, there.staged, there.kept, there.undone))
            host.folders = {name: name for name, exists in names if exists}
            host.journal = replace(JOURNAL, phase=phase, had_data=had_data)
            before = dict(host.folders)
            try:
                getattr(host, verb)()
            except RestoreError as error:
                assert host.folders == before
                refusals = ("these of its folders are there", "cannot be swapped in", "which would go back")
                assert any(words in str(error) for words in refusals)


@pytest.mark.parametrize(
    ("journal", "words"),
    [
        (None, "there is no restored copy t1 on this host"),
        (replace(JOURNAL, token="t0"), "there is no restored copy t1"),
        (replace(JOURNAL, token="t0", phase=SWAPPED), "the restore t0 .* is not over"),
        (JOURNAL.at(ROLLING_BACK), "t1 is rolling-back: it cannot be swapped in"),
        (JOURNAL.at(ROLLED_BACK), "t1 is rolled-back: it cannot be swapped in"),
    ],
)
def test_what_cannot_be_swapped_in(journal: Journal | None, words: str) -> None:
    with pytest.raises(RestoreError, match=words):
        plan.swap_steps(journal, "t1", COPY)


def test_a_copy_that_went_away_is_not_swapped_in() -> None:
    with pytest.raises(RestoreError, match="these of its folders are there: live"):
        plan.swap_steps(JOURNAL, "t1", NOTHING)


def test_a_finished_restore_is_not_taken_back() -> None:
    with pytest.raises(RestoreError, match="clients have seen its revisions, which would go back"):
        plan.rollback_steps(JOURNAL.at(FINISHED), There(True, False, True, False))


@pytest.mark.parametrize("phase", plan.PHASES)
def test_a_journal_knows_which_restore_clients_have_seen(phase: str) -> None:
    assert replace(JOURNAL, phase=phase, former="t0").latest_finished == ("t1" if phase == FINISHED else "t0")


def test_a_journal_of_another_release_is_understood() -> None:
    noted = json.loads(replace(JOURNAL, former="t0").text())
    del noted["former"]
    assert plan.parse_journal(json.dumps({**noted, "was_finished": True}), "journal") == JOURNAL


@pytest.mark.parametrize(("phase", "wanted"), [(SWAPPED, True), (FINISHED, False)])
def test_finishing(phase: str, wanted: bool) -> None:
    assert plan.may_finish(JOURNAL.at(phase), "t1") == wanted


@pytest.mark.parametrize("journal", [None, JOURNAL, replace(JOURNAL, token="t0", phase=SWAPPED)])
def test_what_cannot_be_finished(journal: Journal | None) -> None:
    with pytest.raises(RestoreError, match="its data is not live"):
        plan.may_finish(journal, "t1")


# The running cluster


def member(number: int, revision: int = 1_000_000_021, value: int = 7, **more: Any) -> Seen:
    status = Status(
        member_id=number,
        cluster_id=more.pop("cluster_id", 9),
        version="3.7.3",
        leader_id=1,
        raft_term=2,
        raft_index=8,
        applied_index=8,
        revision=revision,
        db_size=1,
        alarms=more.pop("alarms", ()),
    )
    hashed = Hash(value, revision, revision)
    described = Member(number, f"m{number}", ())
    return Seen(f"https://10.0.0.{number}:2379", described, status, **{"healthy": True, "hash": hashed, **more})


def judged(*members: Seen) -> tuple[list[str], str]:
    view = View(members)
    return plan.cluster_faults(view), plan.not_yet(view, 3, JOURNAL)


def test_a_restored_cluster_that_is_well() -> None:
    assert judged(member(1), member(2), member(3)) == ([], "")


@pytest.mark.parametrize(
    ("third", "words"),
    [
        (None, "2 of 3 members answer"),
        (member(3, healthy=False, health_reason="no leader"), "m3 (3) is not healthy: no leader"),
        (member(3, alarms=(Alarm(5, "NOSPACE"),)), "alarm NOSPACE of 5"),
        (member(3, hash=None), "could not be compared yet"),
        (member(3, revision=1_000_000_020), "m3 (3) has revision"),
        (member(3, hash=Hash(7, 1_000_000_021, 0)), "could not be compared yet"),
    ],
)
def test_what_a_restored_cluster_still_needs(third: Seen | None, words: str) -> None:
    found = judged(member(1), member(2), *([third] if third else []))
    assert found[0] == []
    assert words in found[1]


@pytest.mark.parametrize(
    ("third", "words"),
    [
        (member(3, value=8), "the members' data differ"),
        (member(3, cluster_id=10), "the members belong to different clusters"),
    ],
)
def test_what_waiting_does_not_mend(third: Seen, words: str) -> None:
    assert words in "; ".join(judged(member(1), member(2), third)[0])
