# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""tools/artifacts: the plan, the recipes, the archives, and the mirror that a download fills."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(CHECKOUT / "tools"))

from ansible_collections.plainkube.cluster.plugins.module_utils.catalogue import load, resolve  # noqa: E402
from mirror import command, fill, oci, planning, recipes  # noqa: E402

CATALOGUE = load()


def titles(artifacts: list[Any]) -> list[str]:
    return [artifact.title for artifact in artifacts]


# The plan


def test_a_release_brings_what_goes_with_it() -> None:
    chosen = titles(planning.select(CATALOGUE, ["1.36.4"]))
    assert {"kubelet 1.36.4", "etcd 3.6.14", "kube-bench 0.15.6", "agnhost 2.66.1"} <= set(chosen)
    assert "kubelet 1.37.1" not in chosen
    assert len(chosen) == len(set(chosen))


def test_several_releases_share_and_everything_is_more() -> None:
    both = planning.select(CATALOGUE, ["1.37.1", "1.36.4"])
    assert {"etcd 3.7.3", "etcd 3.6.14"} <= set(titles(both))
    assert titles(both).count("runc 1.4.3") == 1
    everything = planning.select(CATALOGUE, ["1.37.1"], everything=True, architectures=["amd64", "arm64"])
    assert len(everything) == 2 * sum(len(entry["names"]) * len(entry["versions"]) for entry in CATALOGUE["artifacts"])


def test_what_shares_a_component_s_version_comes_in_it() -> None:
    catalogue = {
        **CATALOGUE,
        "artifacts": [
            {**entry, "versions": ["1.15.0", "1.14.7"]} if entry["names"] == ["coredns-binary"] else entry
            for entry in CATALOGUE["artifacts"]
        ],
    }
    chosen = titles(planning.select(catalogue, ["1.37.1"]))
    assert [title for title in chosen if title.startswith("coredns")] == ["coredns 1.14.7", "coredns-binary 1.14.7"]


def test_what_is_on_demand_comes_only_when_it_is_named() -> None:
    brought = {title.split()[0] for title in titles(planning.select(CATALOGUE, ["1.37.1"]))}
    assert not brought & {"versitygw", "flannel"}
    assert titles(planning.select(CATALOGUE, ["1.37.1"], ["versitygw"])) == ["versitygw 1.8.0"]


def test_only_narrows_or_names_a_version() -> None:
    assert titles(planning.select(CATALOGUE, ["1.36.4"], ["etcd", "containerd=2.3.4"])) == [
        "etcd 3.6.14",
        "containerd 2.3.4",
    ]


def test_all_faults_of_a_plan_are_said() -> None:
    with pytest.raises(planning.PlanError) as caught:
        planning.select(CATALOGUE, ["1.30.0"], ["etdc", "runc=0.1"])
    for part in ("'1.30.0' is unknown", "'etdc' is not in the catalogue", "runc '0.1' is not"):
        assert part in str(caught.value)


# Recipes


def test_all_kubernetes_executables_are_one_build() -> None:
    builds = recipes.group_builds(planning.select(CATALOGUE, ["1.37.1"]))
    kubernetes = [build for build in builds if build.recipe["module"] == "k8s.io/kubernetes"]
    assert [len(build.artifacts) for build in kubernetes] == [6, 1, 1]
    assert kubernetes[0].packages["kube-proxy"] == "k8s.io/kubernetes/cmd/kube-proxy"
    assert [build.module_version for build in kubernetes] == ["v1.37.1"] * 3


GO_MOD = """\
module k8s.io/kubernetes // a comment

go 1.26.0

require (
\tgithub.com/a/b v1.2.3 // indirect
\tk8s.io/api v0.0.0
\tk8s.io/client-go v0.0.0
)

replace github.com/a/b v1.2.3 => github.com/fork/b v1.2.4

replace (
\tk8s.io/api => ./staging/src/k8s.io/api
)

exclude github.com/c/d v1.0.0
"""


def test_a_wrapper_repeats_replaces_and_publishes_folders() -> None:
    lines = recipes.wrapper_go_mod(GO_MOD, ["k8s.io/kubernetes"], "v1.37.1", "v0.37.1").splitlines()
    assert lines[2:] == [
        "go 1.26.0",
        "",
        "require k8s.io/kubernetes v1.37.1",
        "replace github.com/a/b v1.2.3 => github.com/fork/b v1.2.4",
        "replace k8s.io/api => k8s.io/api v0.37.1",
        "replace k8s.io/client-go => k8s.io/client-go v0.37.1",
        "exclude github.com/c/d v1.0.0",
    ]


def test_a_recipe_replaces_what_cannot_be_had() -> None:
    chosen = {"github.com/a/b": "v1.2.2", "x/y": "v1.0.0"}
    lines = recipes.wrapper_go_mod(GO_MOD, ["k8s.io/kubernetes"], "v1.37.1", replace=chosen).splitlines()
    assert [line for line in lines if line.startswith("replace")] == [
        "replace github.com/a/b => github.com/a/b v1.2.2",
        "replace x/y => x/y v1.0.0",
    ]


def test_folders_of_published_siblings_are_left_out() -> None:
    text = recipes.wrapper_go_mod("go 1.26\nreplace x/api => ../api\n", ["x/server", "x/ctl"], "v3.7.3")
    assert "replace" not in text
    assert "require x/ctl v3.7.3" in text


def test_a_sibling_that_nobody_publishes_becomes_a_folder_of_the_build() -> None:
    text = recipes.wrapper_go_mod("go 1.26\nreplace x/ext => ./pkg/ext\n", ["x/server"], "v3.7.10", stubs=["x/ext"])
    assert "replace x/ext => ./stubs/x/ext" in text


def test_joined_files_are_one_file_of_many_documents() -> None:
    assert recipes.joined_yaml([b"a: 1\n", b"b: 2\n\n"]) == b"---\na: 1\n---\nb: 2\n"


def test_go_sums_are_merged_once_each() -> None:
    assert recipes.merged_go_sum(["b 1\na 1\n", "a 1\n\nc 1"]) == "a 1\nb 1\nc 1\n"


def test_flags_and_environment_of_a_static_build_with_c() -> None:
    [build] = recipes.group_builds([resolve(CATALOGUE, "runc", "1.4.3", "arm64")])
    assert recipes.go_arguments(build.recipe)[-1] == "-tags=seccomp,urfave_cli_no_docs,netgo,osusergo"
    assert recipes.linker_flags(build.recipe) == "-s -w -extldflags=-static"
    environment = recipes.go_environment(build, "amd64")
    assert (environment["CGO_ENABLED"], environment["CC"]) == ("1", "aarch64-linux-gnu-gcc")
    assert "CC" not in recipes.go_environment(build, "arm64")


@pytest.mark.parametrize(
    ("need", "arch", "package"),
    [
        ("libseccomp", "amd64", "libseccomp-dev"),
        ("gcc", "amd64", "gcc"),
        ("libseccomp", "arm64", "libseccomp-dev:arm64"),
        ("gcc", "arm64", "gcc-aarch64-linux-gnu libc6-dev-arm64-cross"),
    ],
)
def test_what_is_missing_is_named_as_a_debian_package(need: str, arch: str, package: str) -> None:
    assert recipes.debian_package(need, arch, "amd64") == package


def test_the_pause_image_is_compiled_with_its_version() -> None:
    [build] = recipes.group_builds([resolve(CATALOGUE, "pause", "3.10.2", "amd64")])
    assert "-DVERSION=v3.10.2" in recipes.c_command(build, "pause.c", "pause", "amd64")


# Archives


def image_of(name: str, version: str, executable: bytes = b"\x7fELF") -> bytes:
    stream = io.BytesIO()
    oci.write_image(stream, resolve(CATALOGUE, name, version, "amd64").image, "amd64", executable)
    return stream.getvalue()


def test_an_image_archive_follows_from_its_contents_and_fits_together() -> None:
    content = image_of("coredns", "1.14.7")
    assert content == image_of("coredns", "1.14.7")
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        files = {entry.name: archive.extractfile(entry) for entry in archive if entry.isreg()}
        blobs = {name: stream.read() for name, stream in files.items() if stream}

    def blob(described: dict[str, Any]) -> bytes:
        found = blobs["blobs/" + described["digest"].replace(":", "/")]
        assert len(found) == described["size"]
        assert "sha256:" + hashlib.sha256(found).hexdigest() == described["digest"]
        return found

    assert json.loads(blobs["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    [described] = json.loads(blobs["index.json"])["manifests"]
    assert described["annotations"]["io.containerd.image.name"] == "registry.k8s.io/coredns/coredns:v1.14.7"
    manifest = json.loads(blob(described))
    config = json.loads(blob(manifest["config"]))
    assert config["config"]["User"] == "65532:65532"
    assert config["config"]["Entrypoint"] == ["/coredns"]
    [layer] = manifest["layers"]
    assert config["rootfs"]["diff_ids"] == [layer["digest"]]
    with tarfile.open(fileobj=io.BytesIO(blob(layer))) as root:
        entry = root.getmember("coredns")
        assert (entry.mode, entry.mtime, entry.uid) == (0o755, 0, 0)
        assert entry.pax_headers["SCHILY.xattr.security.capability"].encode("latin-1").hex() == (
            "0100000200040000000000000000000000000000"  # revision 2, effective, permitted: bit 10
        )


def test_agnhost_starts_as_upstreams_does() -> None:
    config = oci.image_config(resolve(CATALOGUE, "agnhost", "2.66.1", "arm64").image, "arm64", "sha256:0")
    assert config["architecture"] == "arm64"
    assert config["config"]["Cmd"] == ["pause"]
    assert "User" not in config["config"]


def test_a_release_archive_follows_from_its_contents() -> None:
    def packed() -> bytes:
        stream = io.BytesIO()
        oci.write_tar_gz(stream, [("./bridge", b"x", 0o755)])
        return stream.getvalue()

    assert packed() == packed()
    assert packed()[4:8] == bytes(4), "the header holds a time"
    with tarfile.open(fileobj=io.BytesIO(packed())) as archive:
        assert [(entry.name, entry.mode) for entry in archive] == [("./bridge", 0o755)]


# The mirror


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(fill, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def runc(url: str, sha256: str = "") -> Any:
    wanted = resolve(CATALOGUE, "runc", "1.4.3", "amd64")
    return dataclasses.replace(wanted, url=f"{url}/runc.amd64", published=f"{url}/runc.sha256sum", sha256=sha256)


def test_a_download_is_checked_noted_and_not_repeated(web: Any, tmp_path: Path, cache: Path) -> None:
    web.files["/runc.amd64"] = b"runc"
    digest = hashlib.sha256(b"runc").hexdigest()
    web.files["/runc.sha256sum"] = f"{'0' * 64}  runc.arm64\n{digest}  runc.amd64\n".encode()
    mirror, wanted = fill.Mirror(tmp_path / "mirror"), runc(web.url)
    assert fill.fill(mirror, [wanted], "download") == []
    path = tmp_path / "mirror/runc/1.4.3/runc.amd64"
    assert path.read_bytes() == b"runc"
    assert path.with_name("runc.amd64.sha256").read_text() == f"{digest}  runc.amd64\n"
    assert not path.with_name("runc.amd64.built").exists()
    web.asked.clear()
    assert fill.fill(mirror, [wanted], "download") == []
    assert web.asked == []


def test_a_broken_off_download_is_gone_on_with_by_the_next_run(web: Any, tmp_path: Path, cache: Path) -> None:
    content = b"0123456789" * 1000
    web.files["/runc.amd64"] = content
    (cache / "downloads").mkdir(parents=True)
    (cache / "downloads/runc-1.4.3-amd64").write_bytes(content[:6000])
    mirror = fill.Mirror(tmp_path / "mirror")
    assert fill.fill(mirror, [runc(web.url, hashlib.sha256(content).hexdigest())], "download") == []
    assert (tmp_path / "mirror/runc/1.4.3/runc.amd64").read_bytes() == content


def test_wrong_bytes_never_reach_the_mirror_and_all_faults_are_said(web: Any, tmp_path: Path, cache: Path) -> None:
    web.files["/runc.amd64"] = b"other"
    wrong = runc(web.url, "0" * 64)
    missing = dataclasses.replace(wrong, name="crictl", url=f"{web.url}/nothing")
    faults = fill.fill(fill.Mirror(tmp_path / "mirror"), [wrong, missing], "download")
    assert [fault.split(":")[0] for fault in faults] == ["runc 1.4.3", "crictl 1.4.3"]
    assert f"wanted {'0' * 64}" in faults[0]
    assert "404" in faults[1]
    assert not [path for path in (tmp_path / "mirror").rglob("*") if path.is_file()]


def test_auto_builds_what_no_publisher_serves(web: Any, capsys: pytest.CaptureFixture[str]) -> None:
    progress = fill.Progress(1)
    silent = runc("http://127.0.0.1:9")
    web.files["/runc.sha256sum"] = b"x"
    assert fill._divide([silent, runc(web.url)], "auto", progress) == ([runc(web.url)], [silent])
    assert capsys.readouterr().out.count("127.0.0.1:9 does not answer") == 1


def test_the_command_tells_and_verifies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mirror = fill.Mirror(tmp_path)
    wanted = resolve(CATALOGUE, "runc", "1.4.3", "amd64")
    mirror.publish(wanted, lambda stream: stream.write(b"built here") and None, "github.com/opencontainers/runc v1.4.3")
    arguments = ["--mirror", str(tmp_path), "--arch", "amd64", "--only", "runc"]
    assert command.main(["list", *arguments]) == 0
    assert "built from github.com/opencontainers/runc v1.4.3" in capsys.readouterr().out
    assert command.main(["verify", *arguments]) == 0
    mirror.path(wanted).write_bytes(b"altered")
    assert command.main(["verify", *arguments]) == 1
    assert "remove the file and run fill" in capsys.readouterr().err
    assert command.main(["fill", "--only", "rnuc"]) == 2
    assert "'rnuc' is not in the catalogue" in capsys.readouterr().err


def test_the_program_explains_itself() -> None:
    program = str(CHECKOUT / "tools/artifacts")
    answer = subprocess.run([sys.executable, program, "--help"], capture_output=True, text=True, check=True)
    assert "tools/artifacts fill --kubernetes" in answer.stdout
