# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""plainkube.cluster.artifacts through real ansible-playbook runs against this machine, in a folder of their own."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
ARCH = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]


def packed(**files: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"suite/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content.encode()))
    return stream.getvalue()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Project:
    """A catalogue of one archive (pinned) and one plain file (the sum is published), and a host to put them on."""

    def __init__(self, base: Path, url: str) -> None:
        self.base = base
        self.root = base / "root"
        self.links = base / "bin"
        self.mirror = base / "mirror"
        self.suites = {version: packed(server=f"server {version}", client="client") for version in ("1.0", "2.0")}
        self.tool = b"tool" * 5000
        links = str(self.links)
        self.catalogue: dict[str, Any] = {
            "architectures": ["amd64", "arm64"],
            "artifacts": [
                {
                    "names": ["suite"],
                    "versions": ["2.0", "1.0"],
                    "kind": "archive",
                    "file": "suite-{version}-{arch}.tgz",
                    "url": url + "/releases/suite-{version}-{arch}.tgz",
                    "members_in": "suite/",
                    "members": ["server", "client"],
                    "links": links,
                },
                {
                    "names": ["tool"],
                    "versions": ["1.0"],
                    "kind": "file",
                    "file": "linux/{arch}/tool",
                    "url": url + "/tool-{arch}",
                    "published": url + "/tool-{arch}.sha256",
                    "links": links,
                },
            ],
            "checksums": {"suite": {version: {ARCH: digest(content)} for version, content in self.suites.items()}},
        }

    def serve(self, web: Any) -> None:
        """Be the publisher of both."""
        for version, content in self.suites.items():
            web.files[f"/releases/suite-{version}-{ARCH}.tgz"] = content
        web.files[f"/tool-{ARCH}"] = self.tool
        web.files[f"/tool-{ARCH}.sha256"] = f"{digest(self.tool)}\n".encode()

    def fill_mirror(self, built: bool = False) -> None:
        """Be a mirror folder; with built its suite was built here and has other bytes than the publisher's."""
        files = {
            f"suite/{version}/suite-{version}-{ARCH}.tgz": packed(server=f"built {version}", client="")
            if built
            else content
            for version, content in self.suites.items()
        }
        files[f"tool/1.0/linux/{ARCH}/tool"] = self.tool
        for name, content in files.items():
            path = self.mirror / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            path.with_name(path.name + ".sha256").write_text(f"{digest(content)}  {path.name}\n")
            if built:
                path.with_name(path.name + ".built").write_text("module v1\n")

    def command(self, items: dict[str, str], *options: str, **arguments: Any) -> list[str]:
        (self.base / "catalogue.json").write_text(json.dumps(self.catalogue))
        task = {
            "name": "Install",
            "plainkube.cluster.artifacts": {
                "items": [{"name": name, "version": version} for name, version in items.items()],
                "root": str(self.root),
                "catalogue": str(self.base / "catalogue.json"),
                **arguments,
            },
        }
        play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": [task]}
        (self.base / "play.yml").write_text(json.dumps([play]))
        return [sys.executable, "-m", "ansible.cli.playbook", "-i", "localhost,", str(self.base / "play.yml"), *options]

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg"),
            "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.json",
            "ANSIBLE_COLLECTIONS_PATH": str(CHECKOUT / "collections"),
            "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
            "ANSIBLE_LOCAL_TEMP": str(self.base / "local"),
            "ANSIBLE_REMOTE_TEMP": str(self.base / "remote"),
        }

    def run(self, items: dict[str, str], *options: str, **arguments: Any) -> dict[str, Any]:
        """Return the task's result; fails the test when ansible-playbook itself is not content."""
        answer = subprocess.run(
            self.command(items, *options, **arguments),
            cwd=self.base,
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        try:
            result: dict[str, Any] = json.loads(answer.stdout[answer.stdout.index("{") :])["plays"][0]["tasks"][0]
        except (ValueError, IndexError, KeyError):
            pytest.fail(answer.stdout + answer.stderr)
        found: dict[str, Any] = result["hosts"]["localhost"]
        assert answer.returncode == (2 if found.get("failed") else 0)
        return found

    def faults(self, items: dict[str, str], **arguments: Any) -> list[str]:
        result = self.run(items, **arguments)
        assert result["failed"]
        assert not self.links.exists(), "a link was set although there was a fault"
        files = [path for path in self.root.rglob("*") if path.is_file() and path.name != ".lock"]
        assert all((path.parent / ".plainkube.json").exists() for path in files), "something half-written is visible"
        assert not [path for path in files if path.name.endswith(".plainkube-new")]
        faults: list[str] = result["faults"]
        assert all(fault in result["msg"] for fault in faults)
        return faults

    def in_use(self) -> dict[str, str]:
        return {path.name: path.read_text()[:12] for path in sorted(self.links.iterdir())}


BOTH = {"suite": "2.0", "tool": "1.0"}
INSTALLED = {"client": "client", "server": "server 2.0", "tool": "tooltooltool"}


@pytest.fixture
def project(tmp_path: Path, web: Any) -> Project:
    return Project(tmp_path, web.url)


def test_upstream_check_then_install_then_nothing(project: Project, web: Any) -> None:
    project.serve(web)
    result = project.run(BOTH, "--check", "--diff")
    assert result["changed"]
    assert (result["diff"]["before"], result["diff"]["after"]) == (
        "suite: absent\ntool: absent\n",
        "suite: 2.0\ntool: 1.0\n",
    )
    assert not project.root.exists()
    assert web.asked == []

    result = project.run(BOTH)
    assert result["changed"]
    assert project.in_use() == INSTALLED
    assert os.access(project.links / "server", os.X_OK)

    web.asked.clear()
    for options in ((), ("--check",)):
        result = project.run(BOTH, *options)
        assert not result["changed"]
        assert web.asked == []
    assert [item["before"] for item in result["items"]] == ["2.0", "1.0"]
    assert result["architecture"] == ARCH


def test_going_back_is_a_link_change_that_needs_no_source(project: Project, web: Any) -> None:
    project.serve(web)
    project.run({"suite": "1.0"})
    result = project.run({"suite": "2.0"}, "--diff")
    assert (result["diff"]["before"], result["diff"]["after"]) == ("suite: 1.0\n", "suite: 2.0\n")
    web.files.clear()
    assert project.run({"suite": "1.0"})["changed"]
    assert project.in_use()["server"] == "server 1.0"


@pytest.mark.parametrize("source", ["push", "file", "http"])
@pytest.mark.parametrize("built", [False, True])
def test_a_mirror_in_each_of_its_forms(project: Project, web: Any, source: str, built: bool) -> None:
    project.fill_mirror(built)
    for path in project.mirror.rglob("*"):
        if path.is_file():
            web.files[f"/mirror/{path.relative_to(project.mirror)}"] = path.read_bytes()
    sources = {
        "push": {"source": "push", "folder": str(project.mirror)},
        "file": {"source": f"file://{project.mirror}"},
        "http": {"source": f"{web.url}/mirror"},
    }
    assert project.run(BOTH, **sources[source])["changed"]
    assert project.in_use()["server"] == ("built 2.0" if built else "server 2.0")
    assert not list((project.base / "remote").rglob("*suite*")), "a pushed file was left behind"


@pytest.mark.parametrize("source", ["push", "file", "http"])
def test_a_mirror_cannot_replace_a_pinned_file(project: Project, web: Any, source: str) -> None:
    project.suites["2.0"] = packed(server="evil", client="")
    project.fill_mirror()
    path = f"suite/2.0/suite-2.0-{ARCH}.tgz"
    web.files = {
        f"/{path}{suffix}": Path(f"{project.mirror / path}{suffix}").read_bytes() for suffix in ("", ".sha256")
    }
    where = {"push": "push", "file": f"file://{project.mirror}", "http": web.url}[source]
    [fault] = project.faults({"suite": "2.0"}, source=where, folder=str(project.mirror))
    wanted = project.catalogue["checksums"]["suite"]["2.0"][ARCH]
    assert f"has SHA-256 {digest(project.suites['2.0'])}, wanted {wanted} (pinned in the catalogue)" in fault


def test_all_faulty_items_are_said_at_once(project: Project, web: Any) -> None:
    project.serve(web)
    del web.files[f"/releases/suite-2.0-{ARCH}.tgz"]
    web.files[f"/tool-{ARCH}"] = b"something else"
    missing, wrong = project.faults(BOTH)
    assert f"suite 2.0: {web.url}/releases/suite-2.0-{ARCH}.tgz: the server answered 404 Not Found. See that" in missing
    assert (
        f"tool 1.0: {web.url}/tool-{ARCH} has SHA-256 {digest(b'something else')}, wanted {digest(project.tool)}"
        in wrong
    )
    assert f"(published at {web.url}/tool-{ARCH}.sha256)" in wrong

    project.serve(web)
    assert project.run(BOTH)["changed"]
    assert project.in_use() == INSTALLED


def test_a_connection_that_breaks_off(project: Project, web: Any) -> None:
    project.serve(web)
    web.ranges = False
    web.break_off[f"/tool-{ARCH}"] = 99
    [fault] = project.faults(BOTH)
    assert "the connection broke off after 10000 of 20000 bytes (tried 3 times)" in fault
    web.break_off[f"/tool-{ARCH}"] = 1
    assert project.run(BOTH)["changed"]
    assert project.in_use() == INSTALLED


def test_a_source_that_does_not_answer(project: Project, web: Any) -> None:
    faults = project.faults(BOTH, source="http://127.0.0.1:9/mirror")
    assert len(faults) == 2
    for fault in faults:
        assert "the mirror's checksum cannot be had: http://127.0.0.1:9/mirror/" in fault
        assert "Connection refused. Fill the mirror (tools/artifacts fill" in fault


@pytest.mark.parametrize(
    ("items", "arguments", "said"),
    [
        (
            {"siute": "2.0", "suite": "3.0"},
            {},
            ["'siute' is not in the catalogue; it has suite, tool", "suite '3.0' is"],
        ),
        (BOTH, {"source": "mirror"}, ["artifact source 'mirror' is none of upstream, push,"]),
        (BOTH, {"source": "push", "folder": "/nowhere"}, ["/nowhere/suite/2.0/", "/nowhere/tool/1.0/linux/"]),
        (BOTH, {"source": "file:///nowhere"}, ["/nowhere/suite/2.0/", "/nowhere/tool/1.0/linux/"]),
    ],
)
def test_wrong_input(project: Project, items: dict[str, str], arguments: dict[str, Any], said: list[str]) -> None:
    faults = project.faults(items, **arguments)
    assert len(faults) == len(said)
    for fault, part in zip(faults, said):
        assert part in fault


def test_a_strangers_file_is_not_overwritten(project: Project, web: Any) -> None:
    project.serve(web)
    project.links.mkdir()
    (project.links / "server").write_text("mine")
    result = project.run(BOTH)
    assert result["faults"] == [
        f"suite 2.0: {project.links}/server is no link but a file or folder of somebody else: "
        "move it away and run again"
    ]
    assert (project.links / "server").read_text() == "mine"


def test_the_contracts_variables_are_the_defaults(project: Project) -> None:
    project.fill_mirror()
    variables = {
        "plainkube_artifact_source": "{{ how }}",
        "plainkube_artifact_folder": str(project.mirror),
        "how": "push",
    }
    assert project.run(BOTH, "-e", json.dumps(variables))["changed"]
    assert project.in_use() == INSTALLED


def test_a_run_whose_controller_was_killed_is_finished_by_the_next(project: Project, web: Any) -> None:
    project.serve(web)
    path = f"/tool-{ARCH}"
    web.hold[path] = threading.Event()
    first = subprocess.Popen(
        project.command(BOTH),
        cwd=project.base,
        env=project.environment(),
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while path not in web.asked:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.kill()
    first.wait()
    assert not project.links.exists()

    # The orphan goes on once the next run has looked at the host: that waits for it, or does all itself.
    def release() -> None:
        while web.asked.count(f"{path}.sha256") < 2:
            time.sleep(0.05)
        web.hold.pop(path).set()

    releaser = threading.Thread(target=release, daemon=True)
    releaser.start()
    assert project.run(BOTH)["changed"]
    releaser.join()
    assert project.in_use() == INSTALLED
    assert not list(project.root.rglob("*.plainkube-new"))
    assert not project.run(BOTH)["changed"]


@pytest.mark.parametrize("source", ["upstream", "http", "file", "push"])
def test_what_cannot_be_had_is_said_before_anything_is_installed(project: Project, web: Any, source: str) -> None:
    place = {"http": web.url + "/mirror", "file": f"file://{project.mirror}"}.get(source, source)
    arguments = {"source": place, "folder": str(project.mirror), "state": "available"}
    # The publisher still serves a checksum or it is pinned, but the files are gone.
    web.files[f"/tool-{ARCH}.sha256"] = digest(project.tool).encode()
    answer = project.run(BOTH, **arguments)
    assert answer["failed"]
    assert [fault.split(":")[0] for fault in answer["faults"]] == ["suite 2.0", "tool 1.0"]
    assert not project.links.exists()

    project.serve(web)
    project.fill_mirror()
    for path in project.mirror.rglob("*"):
        if path.is_file():
            web.files[f"/mirror/{path.relative_to(project.mirror)}"] = path.read_bytes()
    answer = project.run(BOTH, **arguments)
    assert (answer.get("failed", False), answer["changed"]) == (False, False)
    assert not project.links.exists()
