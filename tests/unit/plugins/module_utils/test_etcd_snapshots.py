# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils.bbolt import KeyValue, SnapshotProof
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_cluster import Hash
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_snapshots import (
    LOG_BYTES,
    Existing,
    Source,
    Wish,
    content_of,
    difference,
    file_name,
    good_enough,
    manifest_faults,
    manifest_of,
    name_faults,
    needed_bytes,
    proof_faults,
    recorded_faults,
    restore_faults,
    source_faults,
    space_fault,
    taken_at,
    wish_faults,
)

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
SOURCE = Source("https://a:2379", "one (a)", 0xA, "one", 0xC1, "3.6.14", 100, 1000)
WISH = Wish("/backups")
PROOF = SnapshotProof(
    size=1032,
    digest="ab" * 32,
    page_size=4096,
    revision=101,
    compact_revision=50,
    key_count=7,
    entries=9,
    members=[{"id": "a", "name": "one", "peer_urls": [], "client_urls": [], "learner": False}],
    cluster_version="3.6.0",
    storage_version="3.6.0",
    consistent_index=200,
    term=3,
    alarms=[],
    lease_count=0,
    auth_enabled=False,
)


def manifest(**changes: Any) -> dict[str, Any]:
    made = manifest_of(SOURCE, PROOF, "etcd.db", NOW - timedelta(minutes=10), 1.23456, "host")
    return {**made, "revision": SOURCE.revision, **changes}


# --- What is wanted ---------------------------------------------------------------------------------------------------


def test_a_plain_wish_is_fine() -> None:
    assert wish_faults(WISH) == []


def test_all_faults_of_a_wish_at_once() -> None:
    wish = Wish("relative", name="a/b", min_age=-1, min_free=-1, verify="maybe", cluster_id="xyz", deadline=0)
    faults = "; ".join(wish_faults(wish))
    for option in ("dest", "name", "min_age", "min_free", "verify", "cluster_id", "deadline"):
        assert f"{option}: found" in faults


@pytest.mark.parametrize("template", ["etcd.db", "{time}", "{cluster_id}-{member}-{revision}.db", "{{literal}}.db"])
def test_names_that_may_be(template: str) -> None:
    assert name_faults(template) == []


@pytest.mark.parametrize(
    "template",
    [
        "",
        "a/b",
        "../a",
        ".hidden",
        "a.json",
        "a.part",
        "{who}",
        "{}",
        "{0}",
        "{time",
        "{time.year}",
        "{time!x}",
        "{time:d}",
    ],
)
def test_names_that_may_not_be(template: str) -> None:
    assert name_faults(template), template


def test_file_names() -> None:
    assert file_name("etcd-{time}-{revision}.db", SOURCE, 101, NOW) == "etcd-20260102T030405Z-101.db"
    assert file_name("{cluster_id}-{member}", replace(SOURCE, name="a/b"), 1, NOW) == "c1-a_b"
    assert file_name("{member}", replace(SOURCE, name=""), 1, NOW) == "a"


@pytest.mark.parametrize(
    ("wanted", "clusters", "said"),
    [
        ("", [0xC1], ""),
        ("c1", [0xC1], ""),
        ("0x00C1", [0xC1], ""),
        ("c2", [0xC1], "belongs to the cluster c1, wanted c2"),
        ("c1", [0xC1, 0xC2], "different clusters, c1 and c2"),
    ],
)
def test_whose_cluster_it_is(wanted: str, clusters: list[int], said: str) -> None:
    faults = source_faults(replace(WISH, cluster_id=wanted), SOURCE, clusters)
    assert said in "".join(faults) and bool(faults) == bool(said)


def test_space() -> None:
    assert needed_bytes(WISH, 1000) == 1100
    assert needed_bytes(replace(WISH, min_free=5), 1000) == 1105
    assert needed_bytes(replace(WISH, verify="restore"), 1000) == 2200 + LOG_BYTES
    assert space_fault(WISH, 1000, 1100) == ""
    assert "has 1099 bytes free, wanted 1100" in space_fault(WISH, 1000, 1099)


# --- Whether one is due -----------------------------------------------------------------------------------------------


def due(wish: Wish, *existing: Existing, now: datetime = NOW, source: Source = SOURCE) -> bool:
    return good_enough(wish, source, existing, now) is None


def test_when_another_one_is_due() -> None:
    there = Existing("/backups/a.db", 1032, manifest())
    hour = replace(WISH, min_age=3600)
    assert due(hour)
    assert not due(hour, there)
    assert due(WISH, there), "without min_age each run takes one"
    assert due(replace(WISH, min_age=600), there), "it is as old as that"
    assert not due(replace(WISH, min_age=601), there)
    assert due(hour, there, source=replace(SOURCE, revision=101)), "something was written since"
    assert due(hour, there, source=replace(SOURCE, cluster_id=0xC2)), "the cluster is another one"
    assert due(hour, replace(there, size=1031)), "the file is not as long as it was"
    assert due(hour, there, now=NOW - timedelta(hours=2)), "it is from the future"
    assert due(replace(hour, verify="restore"), there), "it was proven as a file only"
    assert not due(replace(hour, verify="restore"), replace(there, manifest=manifest(verified="restore")))
    assert due(hour, replace(there, manifest={"taken_at": "2026-01-02T03:00:00Z"})), "its manifest says nothing"
    assert due(hour, replace(there, manifest=manifest(taken_at="yesterday")))


def test_the_newest_of_several_is_named() -> None:
    older = Existing("/backups/older.db", 1032, manifest(taken_at="2026-01-02T02:30:00Z"))
    newer = Existing("/backups/newer.db", 1032, manifest())
    assert good_enough(replace(WISH, min_age=7200), SOURCE, [newer, older], NOW) is newer


def test_moments_and_manifests() -> None:
    assert taken_at(manifest()) == NOW - timedelta(minutes=10)
    assert taken_at({}) is None
    assert recorded_faults(manifest()) == ""
    assert "sha256, size" in recorded_faults({"revision": 1})
    assert recorded_faults([]) == "it is no object"


# --- Afterwards -------------------------------------------------------------------------------------------------------


def test_what_is_recorded() -> None:
    recorded = manifest_of(SOURCE, PROOF, "etcd.db", NOW, 1.23456, "host", Hash(5, 101, 50))
    assert recorded["sha256"] == PROOF.digest and "digest" not in recorded
    assert (recorded["cluster_id"], recorded["member_id"], recorded["seconds"]) == ("c1", "a", 1.235)
    assert (recorded["verified"], recorded["hash_kv"]) == (
        "restore",
        {"value": 5, "revision": 101, "compact_revision": 50},
    )
    assert recorded["taken_at"] == "2026-01-02T03:04:05Z"
    assert manifest()["verified"] == "file" and manifest()["hash_kv"] is None


def test_a_file_and_the_manifest_of_another() -> None:
    assert manifest_faults(manifest(revision=101), PROOF) == []
    faults = "; ".join(manifest_faults(manifest(revision=1, sha256="cd" * 32, key_count=6, size=1), PROOF))
    for name in ("revision 101", "sha256 abab", "key_count 7", "size 1032"):
        assert f"found {name}" in faults


def test_a_proven_file_that_is_not_the_members() -> None:
    assert proof_faults(SOURCE, PROOF) == []
    assert proof_faults(SOURCE, replace(PROOF, revision=100)) == []
    (fault,) = proof_faults(SOURCE, replace(PROOF, revision=99))
    assert "at revision 99, but the member was at 100" in fault
    other = [{**PROOF.members[0], "id": "b"}]
    (fault,) = proof_faults(SOURCE, replace(PROOF, members=other))
    assert "lists the members b, wanted a among them" in fault
    assert proof_faults(replace(SOURCE, version="3.5.35"), replace(PROOF, members=other)) == []


def test_a_restored_copy_that_differs() -> None:
    hashed = Hash(5, 101, 50)
    assert restore_faults(PROOF, 101, 7, hashed, hashed) == []
    faults = "; ".join(restore_faults(PROOF, 100, 6, Hash(6, 101, 50), hashed))
    assert "at revision 100, wanted 101" in faults and "has 6 keys, wanted 7" in faults
    assert "HashKV at revision 101 is 6, the member that it was taken from has 5" in faults


# --- Differences ------------------------------------------------------------------------------------------------------


def key(name: bytes, value: bytes, at: int = 1, lease: int = 0) -> KeyValue:
    return KeyValue(name, value, 1, at, 1, lease)


def test_differences() -> None:
    first = [
        key(b"/same", b"1"),
        key(b"/again", b"1"),
        key(b"/changed", b"1"),
        key(b"/gone", b"1"),
        key(b"/leased", b"1"),
    ]
    second = [
        key(b"/same", b"1"),
        key(b"/again", b"1", at=9),
        key(b"/changed", b"2", at=9),
        key(b"/new", b"1"),
        key(b"/leased", b"1", lease=4),
    ]
    found = difference({one.key: content_of(one) for one in first}, ((one.key, content_of(one)) for one in second))
    assert (found.added, found.removed, found.changed) == ([b"/new"], [b"/gone"], [b"/changed", b"/leased"])
