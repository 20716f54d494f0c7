# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a host has, compared with what it shall have."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils.artifacts import (
    compare,
    covers,
    diff_of,
    is_change,
    report,
    source_fault,
    wanted_links,
)

ROOT = "/opt/plainkube"
ITEM: dict[str, Any] = {
    "name": "etcd",
    "version": "3.7.3",
    "kind": "archive",
    "members": ["etcd", "etcdctl"],
    "links": "/usr/local/bin",
    "reference": "",
    "pinned": {"arm64": "c" * 64},
}
IMAGE: dict[str, Any] = {
    **ITEM,
    "name": "pause",
    "version": "3.10.2",
    "kind": "image",
    "members": ["pause.tar"],
    "links": "",
    "reference": "registry.k8s.io/pause:3.10.2",
}
LINKS = wanted_links(ROOT, ITEM)
ABSENT: dict[str, Any] = {
    "manifest": None,
    "damaged": {},
    "links": dict.fromkeys(LINKS),
    "image": None,
    "leftovers": [],
}
FILES: dict[str, Any] = {"etcd": {}, "etcdctl": {}}
PRESENT = {**ABSENT, "manifest": {"sha256": "a" * 64, "built": False, "files": FILES}, "links": LINKS}


def test_links_name_what_is_installed() -> None:
    assert LINKS == {
        "/usr/local/bin/etcd": "/opt/plainkube/etcd/3.7.3/etcd",
        "/usr/local/bin/etcdctl": "/opt/plainkube/etcd/3.7.3/etcdctl",
    }
    assert wanted_links(ROOT, {**ITEM, "members": ["kube-bench", "cfg/"]}).keys() == {"/usr/local/bin/kube-bench"}
    assert wanted_links(ROOT, IMAGE) == {}


def test_a_bare_host_needs_everything() -> None:
    plan = compare(ROOT, ITEM, ABSENT, "amd64")
    assert (plan["install"], plan["links"], plan["before"], plan["after"]) == (True, LINKS, "absent", "3.7.3")
    assert is_change(plan)


def test_a_complete_host_needs_nothing() -> None:
    plan = compare(ROOT, ITEM, PRESENT, "amd64")
    assert not is_change(plan)
    assert plan["before"] == plan["after"] == "3.7.3"


def test_another_version_in_use_needs_only_links() -> None:
    old = {path: target.replace("3.7.3", "3.6.14") for path, target in LINKS.items()}
    plan = compare(ROOT, ITEM, {**PRESENT, "links": old}, "amd64")
    assert (plan["install"], plan["links"], plan["before"]) == (False, LINKS, "3.6.14")


@pytest.mark.parametrize(
    ("change", "arch", "before"),
    [
        ({"damaged": {"etcd": "altered"}}, "amd64", "3.7.3 (etcd altered)"),
        ({"manifest": {**PRESENT["manifest"], "files": {"etcd": {}}}}, "amd64", "3.7.3 (etcdctl missing)"),
        ({}, "arm64", "3.7.3 (its source has another checksum than the catalogue)"),
    ],
)
def test_an_incomplete_version_is_installed_again(change: dict[str, Any], arch: str, before: str) -> None:
    plan = compare(ROOT, ITEM, {**PRESENT, **change}, arch)
    assert plan["install"]
    assert plan["before"] == before


def test_what_was_built_need_not_match_the_pinned_checksum() -> None:
    built = {**PRESENT, "manifest": {**PRESENT["manifest"], "built": True}}
    assert not is_change(compare(ROOT, ITEM, built, "arm64"))


def test_one_missing_link_is_set_and_a_strangers_file_is_not_touched() -> None:
    path = "/usr/local/bin/etcdctl"
    plan = compare(ROOT, ITEM, {**PRESENT, "links": {**LINKS, path: None}}, "amd64")
    assert plan["links"] == {path: LINKS[path]}
    assert plan["before"] == "3.7.3 (/usr/local/bin/etcdctl leads elsewhere)"
    assert not plan["faults"]
    plan = compare(ROOT, ITEM, {**PRESENT, "links": {**LINKS, path: ""}}, "amd64")
    assert plan["faults"] == [
        f"etcd 3.7.3: {path} is no link but a file or folder of somebody else: move it away and run again"
    ]


@pytest.mark.parametrize(("loaded", "load"), [(True, False), (False, True), (None, True)])
def test_an_image_is_loaded_when_containerd_does_not_say_that_it_has_it(loaded: bool | None, load: bool) -> None:
    manifest = {**PRESENT["manifest"], "files": {"pause.tar": {}}}
    plan = compare(ROOT, IMAGE, {**PRESENT, "manifest": manifest, "links": {}, "image": loaded}, "amd64")
    assert (plan["install"], plan["load"]) == (False, load)
    assert plan["before"] == ("3.10.2 (not loaded into containerd)" if load else "3.10.2")


def test_leftovers_alone_are_cleaned() -> None:
    plan = compare(ROOT, ITEM, {**PRESENT, "leftovers": ["/opt/plainkube/etcd/3.6.14.plainkube-new"]}, "amd64")
    assert plan["clean"]
    assert is_change(plan)
    assert not plan["install"]


def test_the_diff_has_a_line_per_change_and_the_report_one_per_item() -> None:
    plans = [compare(ROOT, ITEM, ABSENT, "amd64"), compare(ROOT, ITEM, PRESENT, "amd64")]
    diff = diff_of([ITEM, ITEM], plans)
    assert (diff["before"], diff["after"]) == ("etcd: absent\n", "etcd: 3.7.3\n")
    assert [item["changed"] for item in report([ITEM, ITEM], plans)] == [True, False]


def test_a_folder_counts_by_what_is_in_it() -> None:
    assert covers(["a", "cfg/"], {"a": {}, "cfg/x.yaml": {}}) == []
    assert covers(["a", "cfg/"], {"a": {}}) == ["cfg/"]


@pytest.mark.parametrize("source", ["upstream", "push", "https://m.example.com/x", "http://m", "file:///srv/mirror"])
def test_sources(source: str) -> None:
    assert source_fault(source) is None


@pytest.mark.parametrize("source", ["", "mirror", "file://srv/mirror", "ftp://m", "/srv/mirror"])
def test_what_is_no_source(source: str) -> None:
    assert source_fault(source) is not None
