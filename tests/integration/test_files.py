# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""plainkube.cluster.files through real ansible-playbook runs against this machine, in a folder of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
SECRET = "correct-horse-battery-staple"
USER = {"owner": str(os.getuid()), "group": str(os.getgid())}

Item = dict[str, Any]


class Project:
    """A playbook with one small role that writes below one folder."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.target = base / "target"
        self.target.mkdir()
        self.templates = base / "roles" / "small" / "templates"
        self.templates.mkdir(parents=True)

    def template(self, name: str, text: str) -> None:
        path = self.templates / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def item(self, name: str, **options: Any) -> Item:
        return {"path": str(self.target / name), "mode": "0644", **USER, **options}

    def run(self, items: list[Item], *options: str, **variables: Any) -> Run:
        tasks = self.base / "roles" / "small" / "tasks"
        tasks.mkdir(exist_ok=True)
        task = {"name": "Write", "plainkube.cluster.files": {"items": items}, "register": "written"}
        show = {
            "name": "Show",
            "ansible.builtin.copy": {"content": "{{ written | to_json }}", "dest": "{{ report }}", "mode": "0600"},
        }
        show.update(check_mode=False, diff=False)
        (tasks / "main.yml").write_text(json.dumps([task, show]))
        play = {
            "hosts": "localhost",
            "connection": "local",
            "gather_facts": False,
            "roles": ["small"],
            "vars": {"secret_word": SECRET},
        }
        playbook = self.base / "play.yml"
        playbook.write_text(json.dumps([play]))
        report = self.base / "report.json"
        report.unlink(missing_ok=True)
        extra = {"ansible_python_interpreter": sys.executable, "report": str(report), **variables}
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("ansible-playbook")),
                "-i",
                "localhost,",
                str(playbook),
                "-e",
                json.dumps(extra),
                *options,
            ],
            cwd=CHECKOUT,
            env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(CHECKOUT / "collections"), "ANSIBLE_NOCOLOR": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return Run(done.returncode, done.stdout, json.loads(report.read_text()) if report.exists() else {})


class Run:
    def __init__(self, code: int, output: str, result: dict[str, Any]) -> None:
        self.code, self.output, self.result = code, output, result

    @property
    def changed(self) -> bool:
        assert self.code == 0, self.output
        return bool(self.result["changed"])

    def reasons(self) -> dict[str, list[str]]:
        return {Path(row["path"]).name: row["reasons"] for row in self.result["files"] if row["changed"]}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_writes_once_and_shows_what_it_would_write(project: Project) -> None:
    project.template(
        "etc/a.conf.j2", "greeting={{ greeting }}\n{% if greeting %}\nmore=1\n{% endif %}\n{% include 'part.j2' %}\n"
    )
    project.template("part.j2", "part={{ greeting | upper }}\n")
    items = [
        project.item("etc/a.conf", template="etc/a.conf.j2"),
        project.item("etc/key", content="{{ secret_word }}\n", mode="0600", secret=True),
        project.item("etc/folder", state="directory", mode="0750"),
    ]

    predicted = project.run(items, "--check", "--diff", "-vvv", greeting="hello")
    assert predicted.changed
    assert "+greeting=hello" in predicted.output
    assert "+part=HELLO" in predicted.output
    assert list(project.target.iterdir()) == []

    first = project.run(items, "--diff", "-vvv", greeting="hello")
    assert first.changed
    assert (project.target / "etc/a.conf").read_text() == "greeting=hello\nmore=1\npart=HELLO\n"
    assert (project.target / "etc/key").read_text() == SECRET + "\n"
    assert (project.target / "etc/key").stat().st_mode & 0o7777 == 0o600
    assert (project.target / "etc/folder").stat().st_mode & 0o7777 == 0o750
    before = {path: path.stat().st_ctime_ns for path in project.target.rglob("*")}

    second = project.run(items, greeting="hello")
    assert not second.changed
    assert {path: path.stat().st_ctime_ns for path in project.target.rglob("*")} == before

    third = project.run(items, "--diff", "-vvv", greeting="bye", secret_word=SECRET[::-1])
    assert third.reasons() == {"a.conf": ["content"], "key": ["content"]}
    for run in (predicted, first, third):
        assert SECRET not in run.output
        assert SECRET[::-1] not in run.output


def test_a_complaining_validator_leaves_everything_as_it_was(project: Project) -> None:
    (project.target / "old.conf").write_text("old\n")
    complain = f"{sys.executable} -c 'import sys; sys.exit(open(sys.argv[1]).read())' %s"
    items = [
        project.item("old.conf", content="bad one\n", validate=complain),
        project.item("other.conf", content="bad two\n", validate=complain),
        project.item("hidden.conf", content=SECRET + "\n", validate=complain, secret=True),
        project.item("deep/er/new.conf", content="new\n"),
    ]
    run = project.run(items, "-vvv")
    assert run.code != 0
    assert "bad one" in run.output
    assert "bad two" in run.output
    assert "hidden.conf was not replaced" in run.output
    assert SECRET not in run.output
    assert [path.name for path in project.target.rglob("*")] == ["old.conf"]
    assert (project.target / "old.conf").read_text() == "old\n"


def test_a_validator_sees_other_new_files_of_the_list(project: Project) -> None:
    same = f"/usr/bin/cmp %s {project.target}/a/ca.crt"
    items = [project.item("service.conf", content="x\n", validate=same), project.item("a/ca.crt", content="x\n")]
    assert project.run(items).changed


def test_what_a_killed_run_left_is_cleared(project: Project) -> None:
    (project.target / "a.conf").write_text("same\n")
    (project.target / "a.conf").chmod(0o644)
    for name in ("a.conf", "b.conf"):
        (project.target / f"{name}.plainkube-new").write_text("hal")
    items = [project.item("a.conf", content="same\n"), project.item("b.conf", content="b\n")]
    run = project.run(items)
    assert run.reasons() == {"a.conf": ["left-over temporary file"], "b.conf": ["new", "left-over temporary file"]}
    assert sorted(path.name for path in project.target.iterdir()) == ["a.conf", "b.conf"]
    assert not project.run(items).changed


def test_mode_links_binary_and_absence(project: Project) -> None:
    target = project.target
    (target / "loose").write_text("x\n")
    (target / "loose").chmod(0o666)
    (target / "elsewhere").write_text("kept\n")
    (target / "link").symlink_to(target / "elsewhere")
    (target / "binary").write_bytes(b"\xff\x00")
    (target / "gone" / "inner").mkdir(parents=True)
    items = [
        project.item("loose", content="x\n", mode="0600"),
        project.item("link", content="own\n"),
        project.item("binary", content="text\n"),
        {"path": str(target / "gone"), "state": "absent"},
        {"path": str(target / "never-there"), "state": "absent"},
    ]
    run = project.run(items, "--diff")
    assert set(run.reasons()) == {"loose", "link", "binary", "gone"}
    assert "loose (file, " in run.output and "0666)" in run.output and "0600)" in run.output
    assert "-(binary, 2 bytes)" in run.output
    assert (target / "elsewhere").read_text() == "kept\n"
    assert not (target / "link").is_symlink()
    assert not (target / "gone").exists()
    assert not project.run(items).changed


def test_all_faults_of_a_list_at_once(project: Project) -> None:
    items = [
        {"path": "relative", "content": "x", "mode": "0644"},
        project.item("a", content="x", template="y.j2"),
        project.item("b", content="x", mode=420),
        project.item("c", content="x", moed="0644"),
    ]
    run = project.run(items)
    assert run.code != 0
    for words in ("path is relative", "both template and content", "mode is 420", "Rename it to mode"):
        assert words in run.output


def test_all_failing_templates_are_named(project: Project) -> None:
    project.template("a.j2", "{{ not_there }}\n")
    project.template("b.j2", "{% if %}\n")
    items = [project.item(name, template=f"{name}.j2") for name in ("a", "b", "missing")]
    run = project.run(items)
    assert run.code != 0
    for words in ("Template a.j2", "'not_there' is undefined", "Template b.j2", "Template missing.j2"):
        assert words in run.output
    assert list(project.target.iterdir()) == []


def test_unknown_owner_fails_only_when_it_matters(project: Project) -> None:
    items = [project.item("a", content="x", owner="nobody-yet"), project.item("b", content="x", group="nothing-yet")]
    assert project.run(items, "--check").changed
    run = project.run(items)
    assert "no user nobody-yet" in run.output
    assert "no group nothing-yet" in run.output
    assert list(project.target.iterdir()) == []


def test_twenty_templates_are_one_call(project: Project) -> None:
    project.template("same.j2", "{{ greeting }}\n")
    items = [project.item(f"file-{number}", template="same.j2") for number in range(20)]
    run = project.run(items, "-vvv", greeting="hello")
    assert run.changed
    assert len(list(project.target.iterdir())) == 20
    write, _, _ = run.output.partition("TASK [small : Show]")
    assert write.count("Using module file") == 1
