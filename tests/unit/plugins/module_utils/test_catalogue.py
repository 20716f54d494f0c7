# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The shipped catalogue is complete, and each fault of a name, a version or the file has its message."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils.catalogue import (
    CatalogueError,
    describe,
    entries,
    load,
    resolve,
)

CATALOGUE = load()
EVERYTHING = [
    (name, version, arch)
    for name, entry in entries(CATALOGUE).items()
    for version in entry["versions"]
    for arch in CATALOGUE["architectures"]
]


# Their publishers serve no checksums. No cluster installs the last two: tests need them.
BUILT_ONLY = {"flannel", "rest-server", "versitygw"}


# No Go module of it can be had.
FROM_ITS_PUBLISHER_ALONE = {"nginx-ingress"}
# No programs.
SAME_EVERYWHERE = {"gateway-api", "nginx-ingress"}


@pytest.mark.parametrize(("name", "version", "arch"), EVERYTHING)
def test_every_entry_says_from_where_and_how_its_bytes_are_proven(name: str, version: str, arch: str) -> None:
    artifact = resolve(CATALOGUE, name, version, arch)
    assert not re.search(r"\{[a-z]", repr(artifact))
    assert arch in artifact.file or name in SAME_EVERYWHERE
    assert artifact.build.get("module") or name in FROM_ITS_PUBLISHER_ALONE
    if artifact.kind == "image":
        assert artifact.reference.endswith(version)
    elif name in BUILT_ONLY:
        # Proven by Go's own checksum database when it is built.
        assert not artifact.url
    else:
        assert artifact.url.startswith("https://")
        assert artifact.sha256 or artifact.published.startswith("https://")
    if artifact.kind == "archive":
        executables = {member for member in artifact.members if not member.endswith("/")}
        assert executables == set(artifact.build["packages"])


def test_every_pinned_checksum_belongs_to_an_entry_and_to_both_architectures() -> None:
    for name, versions in CATALOGUE["checksums"].items():
        for version, sums in versions.items():
            assert sorted(sums) == ["amd64", "arm64"]
            assert sums["amd64"] == resolve(CATALOGUE, name, version, "amd64").sha256


def test_templates_know_the_parts_of_a_version() -> None:
    build = resolve(CATALOGUE, "kubelet", "1.36.4", "arm64").build
    assert build["packages"] == {"kubelet": "k8s.io/kubernetes/cmd/kubelet"}
    assert build["replace_folders_by"] == "v0.36.4"
    assert build["variables"]["k8s.io/component-base/version.gitMinor"] == "36"


def test_what_a_host_is_told_does_not_depend_on_its_architecture() -> None:
    item = describe(CATALOGUE, "pause", "3.10.2")
    assert item["members"] == ["pause.tar"]
    assert item["reference"] == "registry.k8s.io/pause:3.10.2"
    assert sorted(describe(CATALOGUE, "runc", "1.4.3")["pinned"]) == ["amd64", "arm64"]


@pytest.mark.parametrize(
    ("name", "version", "arch", "said"),
    [
        ("etdc", "3.7.3", "amd64", "artifact 'etdc' is not in the catalogue; it has agnhost"),
        ("etcd", "3.4.0", "amd64", "etcd '3.4.0' is not in the catalogue; it has 3.7.3, 3.6.14"),
        ("etcd", "3.7.3", "riscv64", "no files for architecture 'riscv64'"),
    ],
)
def test_what_is_not_there_is_named(name: str, version: str, arch: str, said: str) -> None:
    with pytest.raises(CatalogueError, match=said):
        resolve(CATALOGUE, name, version, arch)


def test_a_checksum_that_is_none_and_an_unknown_placeholder_are_named() -> None:
    broken: dict[str, Any] = copy.deepcopy(CATALOGUE)
    broken["checksums"]["runc"]["1.4.3"]["amd64"] = "sha256:abc"
    with pytest.raises(CatalogueError, match=r"runc 1.4.3 amd64: checksum 'sha256:abc'"):
        resolve(broken, "runc", "1.4.3", "amd64")
    entries(broken)["etcd"]["url"] = "https://example.com/{relase}"
    with pytest.raises(CatalogueError, match=r"cannot fill in 'https://example.com/\{relase\}'"):
        resolve(broken, "etcd", "3.7.3", "amd64")


@pytest.mark.parametrize(("text", "said"), [("a: [", "is no YAML"), ("artifacts: 3", "holds no list 'artifacts'")])
def test_a_file_that_is_no_catalogue_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "catalogue.yml"
    path.write_text(text)
    with pytest.raises(CatalogueError, match=said):
        load(str(path))
    with pytest.raises(CatalogueError, match="No such file"):
        load(str(tmp_path / "other.yml"))
