# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""From where an artifact comes, and which checksum counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils.artifact_sources import supply
from ansible_collections.plainkube.cluster.plugins.module_utils.artifacts import ArtifactsError
from ansible_collections.plainkube.cluster.plugins.module_utils.catalogue import Artifact

SUM, OTHER = "a" * 64, "b" * 64


def artifact(**changes: Any) -> Artifact:
    values: dict[str, Any] = {
        "name": "tool",
        "version": "1",
        "arch": "amd64",
        "kind": "file",
        "file": "linux/amd64/tool",
        "url": "https://example.com/tool",
        "published": "",
        "sha256": SUM,
        "members_in": "",
        "members": ("tool",),
        "links": "",
    }
    return Artifact(**{**values, **changes})


def mirror(folder: Path, note: str, built: bool) -> Path:
    path = folder / "tool/1/linux/amd64/tool"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    path.with_name("tool.sha256").write_text(note)
    if built:
        path.with_name("tool.built").write_text("module v1\n")
    return path


def test_upstream_trusts_the_pinned_sum_without_asking() -> None:
    supplied = supply(artifact(), "upstream", "")
    assert (supplied["url"], supplied["sha256"]) == ("https://example.com/tool", SUM)


def test_upstream_asks_the_publisher_for_what_is_not_pinned(web: Any) -> None:
    published = f"{web.url}/SHA256SUMS"
    wanted = artifact(sha256="", published=published)
    web.files["/SHA256SUMS"] = f"{OTHER}  tool\n".encode()
    assert supply(wanted, "upstream", "")["sha256"] == OTHER
    web.files["/SHA256SUMS"] = f"{OTHER}  another\n".encode()
    with pytest.raises(ArtifactsError, match="holds no SHA-256 for linux/amd64/tool"):
        supply(wanted, "upstream", "")
    web.files.clear()
    with pytest.raises(ArtifactsError, match=r"tool 1: its checksum cannot be had: .*404.*tools/artifacts fill"):
        supply(wanted, "upstream", "")


@pytest.mark.parametrize(("built", "sha256"), [(False, SUM), (True, OTHER)])
@pytest.mark.parametrize("source", ["push", "http"])
def test_a_mirrors_note_counts_only_for_what_was_built(
    web: Any, tmp_path: Path, source: str, built: bool, sha256: str
) -> None:
    if source == "push":
        path = mirror(tmp_path, f"{OTHER}  tool\n", built)
        supplied = supply(artifact(), "push", str(tmp_path))
        assert supplied["local"] == str(path)
    else:
        web.files["/m/tool/1/linux/amd64/tool.sha256"] = f"{OTHER}  tool\n".encode()
        if built:
            web.files["/m/tool/1/linux/amd64/tool.built"] = b"module v1\n"
        supplied = supply(artifact(), f"{web.url}/m/", "")
        assert supplied["url"] == f"{web.url}/m/tool/1/linux/amd64/tool"
    assert (supplied["sha256"], supplied["built"]) == (sha256, built)


def test_a_folder_on_the_host_is_read_by_the_host() -> None:
    supplied = supply(artifact(), "file:///srv/mirror", "")
    assert (supplied["path"], supplied["sha256"]) == ("/srv/mirror/tool/1/linux/amd64/tool", SUM)


def test_an_image_is_pushed_when_the_rest_comes_from_upstream(tmp_path: Path) -> None:
    image = artifact(kind="image", url="", sha256="", image={"reference": "example.com/tool:1"})
    path = mirror(tmp_path, f"{OTHER}  tool\n", True)
    assert supply(image, "upstream", str(tmp_path))["local"] == str(path)


@pytest.mark.parametrize(
    ("note", "said"),
    [
        (None, r"tool does not exist on the controller. Run tools/artifacts fill --mirror .* --only tool=1"),
        ("", r"tool.sha256 holds no SHA-256 for tool"),
    ],
)
def test_what_the_folder_lacks_is_said_with_the_command_that_brings_it(
    tmp_path: Path, note: str | None, said: str
) -> None:
    if note is not None:
        mirror(tmp_path, note, False)
    with pytest.raises(ArtifactsError, match=said):
        supply(artifact(), "push", str(tmp_path))


def test_no_folder_and_no_mirror_are_said(web: Any) -> None:
    with pytest.raises(ArtifactsError, match="set plainkube_artifact_folder"):
        supply(artifact(), "push", "")
    with pytest.raises(ArtifactsError, match=r"tool 1: the mirror's checksum cannot be had: http.*404"):
        supply(artifact(), web.url, "")
