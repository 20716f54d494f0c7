# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A list of files: its faults in words, what differs on a host, and a difference that keeps secrets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils import files
from ansible_collections.plainkube.cluster.plugins.module_utils.files import FilesError, Found, Wanted, completed

FOLDER = {"path": "/etc/x", "state": "directory"}
GONE = {"path": "/etc/x", "state": "absent"}


def text(path: str = "/etc/x", **options: Any) -> dict[str, Any]:
    return {"path": path, "content": "x\n", "mode": "0644", **options}


def faults_of(*items: Any) -> list[str]:
    try:
        completed(items)
    except FilesError as error:
        return error.faults
    return []


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ({"template": "etc/a.conf.j2", "mode": "0600"}, {"path": "/etc/a.conf", "owner": "root", "mode": "0600"}),
        ({"template": "a.j2", "path": "/b", "mode": "0600"}, {"path": "/b", "secret": False, "validate": ""}),
        (FOLDER, {"mode": "0755", "group": "root"}),
        (text(owner=None, validate=None), {"owner": "root", "validate": ""}),
        ({**GONE, "content": "x", "mode": "0644"}, GONE),
        ({"template": "etc/a.conf.j2", "state": "absent"}, {"path": "/etc/a.conf", "state": "absent"}),
    ],
)
def test_defaults(item: dict[str, Any], expected: dict[str, Any]) -> None:
    whole = completed([item])[0]
    assert {key: whole[key] for key in expected} == expected
    assert whole["state"] != "absent" or set(whole) == {"path", "state"}


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("etc/x.j2", "wanted a mapping"),
        (text(mode=420), "Without quotes"),
        (text(mode="644"), "four octal digits"),
        (text(mode="0948"), "four octal digits"),
        ({"path": "/etc/x", "content": "x"}, "it has no mode"),
        (text(template="x.j2"), "both template and content"),
        ({"path": "/etc/x", "mode": "0644"}, "neither template nor content"),
        (text(content={"a": 1}), "to_nice_json"),
        (text("etc/x"), "wanted an absolute one such as /etc/x"),
        (text("/etc//x/"), "wanted /etc/x."),
        (text("/etc/../x"), "wanted /x."),
        ({"content": "x", "mode": "0644"}, "it has no path"),
        ({"template": "x.conf", "mode": "0644"}, "without .j2"),
        ({"template": "../x.j2", "mode": "0644"}, "inside the role's templates folder"),
        ({"template": "/x.j2", "path": "/x", "mode": "0644"}, "inside the role's templates folder"),
        (text(state="present"), "wanted one of file, directory, absent"),
        (text(secert=True), "Rename it to secret"),
        (text(secret="yes"), "wanted true or false"),
        (text(validate="check it"), "wanted one %s"),
        (text(validate="cmp %s %s"), "wanted one %s"),
        (text(validate="check 'x %s"), "cannot be split"),
        ({**FOLDER, "content": "x"}, "does not go with state directory"),
        ({"path": "/etc", "state": "absent"}, "never removed"),
    ],
)
def test_a_wrong_item_is_one_fault_that_names_it(item: Any, words: str) -> None:
    faults = faults_of(text("/etc/right"), item)
    assert len(faults) == 1, faults
    assert faults[0].startswith("items[2]")
    assert words in faults[0]


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([text(), text()], "/etc/x is listed 2 times"),
        ([text("/etc/x/y"), GONE], "/etc/x is to be absent, yet /etc/x/y is to be there"),
        ([text("/etc/x/y"), text("/etc/x")], "/etc/x is to be a file, yet /etc/x/y"),
    ],
)
def test_items_that_contradict_each_other(items: list[Any], words: str) -> None:
    assert [words in fault for fault in faults_of(*items)] == [True]


def test_all_faults_come_at_once_without_contents() -> None:
    faults = faults_of(text(mode="1", owner=7), text(content=["hidden word"]))
    assert len(faults) == 3
    assert "hidden word" not in "".join(faults)


WANTED = Wanted("/etc/x", "file", 0o644, "root", "root", 0, 0, b"new\n")
FOUND = Found("file", 0o644, "root", "root", 0, 0, b"new\n")


@pytest.mark.parametrize(
    ("found", "wanted", "reasons"),
    [
        (FOUND, WANTED, []),
        (Found("absent"), WANTED, ["new"]),
        (replace(FOUND, content=b"old\n"), WANTED, ["content"]),
        (replace(FOUND, mode=0o600, uid=7, owner="etcd"), WANTED, ["owner etcd -> root", "mode 0600 -> 0644"]),
        (replace(FOUND, mode=0o4644), WANTED, ["mode 4644 -> 0644"]),
        (FOUND, replace(WANTED, group="etcd", gid=None), ["group root -> etcd"]),
        (Found("link", target="/y"), WANTED, ["was a link to /y"]),
        (FOUND, Wanted("/etc/x", "absent"), ["removed"]),
        (Found("absent"), Wanted("/etc/x", "absent"), []),
        (Found("directory", 0o755, "root", "root", 0, 0), Wanted("/etc/x", "directory", 0o755, uid=0, gid=0), []),
    ],
)
def test_what_differs(found: Found, wanted: Wanted, reasons: list[str]) -> None:
    assert files.reasons(wanted, found) == reasons


@pytest.mark.parametrize(
    ("found", "state", "words"),
    [
        (Found("directory"), "file", "found a directory; wanted a file"),
        (FOUND, "directory", "found a file; wanted a directory"),
        (Found("other"), "file", "neither a file nor a directory"),
        (Found("link", target="/y"), "directory", "a link to /y, which does not exist"),
        (Found("link", target="/y"), "file", ""),
        (Found("directory"), "absent", ""),
    ],
)
def test_kinds_that_are_not_replaced(found: Found, state: str, words: str) -> None:
    fault = files.kind_fault(Wanted("/etc/x", state), found)
    assert words in fault if words else fault == ""


SECRET = replace(WANTED, secret=True)


@pytest.mark.parametrize(
    ("found", "wanted", "before", "after"),
    [
        (Found("absent"), WANTED, "", "new\n"),
        (replace(FOUND, content=b"old\n"), WANTED, "old\n", "new\n"),
        (replace(FOUND, content=b"older\n"), SECRET, "(secret, 6 bytes)\n", "(secret, 4 bytes)\n"),
        (replace(FOUND, content=b"old\n"), SECRET, "(secret, 4 bytes)\n", "(secret, 4 bytes, other content)\n"),
        (replace(FOUND, content=b"\xff\xfe"), WANTED, "(binary, 2 bytes)\n", "new\n"),
        (replace(FOUND, content=b"a\0b"), WANTED, "(binary, 3 bytes)\n", "new\n"),
        (replace(FOUND, mode=0o600), WANTED, "file, root:root 0600\n", "file, root:root 0644\n"),
        (Found("absent"), replace(WANTED, content=b""), "", "file, root:root 0644\n"),
        (Found("absent"), Wanted("/etc/x", "directory", 0o755), "", "directory, root:root 0755\n"),
        (Found("directory", names=("a", "b")), Wanted("/etc/x", "absent"), "directory\na\nb\n", ""),
        (replace(FOUND, content=b"key\n"), Wanted("/etc/x", "absent"), "(4 bytes)\n", ""),
    ],
)
def test_a_difference_shows_all_but_secrets(found: Found, wanted: Wanted, before: str, after: str) -> None:
    shown = files.diff(wanted, found)
    assert (shown["before"], shown["after"]) == (before, after)


def test_a_differences_headers_carry_owner_and_mode() -> None:
    shown = files.diff(replace(WANTED, mode=0o600), replace(FOUND, content=b"old\n"))
    assert shown["before_header"] == "/etc/x (file, root:root 0644)"
    assert shown["after_header"] == "/etc/x (file, root:root 0600)"


def test_missing_parents_are_those_that_nobody_lists() -> None:
    paths = ["/srv/a/b/c.conf", "/srv/a", "/etc/new/x"]
    assert files.missing_parents(paths, {"/srv", "/etc"}) == ["/etc/new", "/srv/a/b"]


def test_mounts_inside_a_folder() -> None:
    mountinfo = "\n".join(
        f"{number} 1 0:1 / {point} rw - tmpfs tmpfs rw"
        for number, point in enumerate(["/", "/var/lib/kubelet/pods/a\\040b", "/var/lib/kubelet-other", "/var/lib"])
    )
    assert files.mounts_below("/var/lib/kubelet", mountinfo) == ["/var/lib/kubelet/pods/a b"]


def test_a_validator_gets_words_and_no_shell() -> None:
    assert files.validator_argv("check --file=%s 'two words; rm'", "/a b") == ["check", "--file=/a b", "two words; rm"]
