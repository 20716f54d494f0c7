# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Files, folders and their absence as a list: what is wrong with the list, what differs on a host, and how to show it.

Everything here takes plain data; the module reads the host and writes to it.
"""

from __future__ import annotations

import difflib
import os.path
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError

FILE, DIRECTORY, ABSENT = "file", "directory", "absent"
STATES = (FILE, DIRECTORY, ABSENT)
LINK, OTHER = "link", "other"
KINDS_IN_WORDS = {FILE: "a file", DIRECTORY: "a directory", OTHER: "neither a file nor a directory"}

KEYS: dict[str, type] = {
    "path": str,
    "state": str,
    "template": str,
    "content": str,
    "owner": str,
    "group": str,
    "mode": str,
    "secret": bool,
    "validate": str,
}
ONLY_FOR_FILES = ("template", "content", "validate", "secret")
MODE = re.compile(r"[0-7]{4}")
PLACEHOLDER = "%s"
TEMPLATE_SUFFIX = ".j2"
DEFAULT_DIRECTORY_MODE = "0755"


class FilesError(PlainkubeError):
    """The list is wrong, or the host does not allow what it asks for."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = list(faults)
        super().__init__("\n".join(self.faults))


@dataclass(frozen=True)
class Wanted:
    """How a path must be. uid and gid are None while the host does not know the name (check mode on a bare host)."""

    path: str
    state: str
    mode: int = 0
    owner: str = "root"
    group: str = "root"
    uid: int | None = None
    gid: int | None = None
    content: bytes | None = None
    secret: bool = False
    validate: str = ""


@dataclass(frozen=True)
class Found:
    """How a path is: file, directory, absent, link or other; where a link leads; the names in a directory."""

    kind: str
    mode: int = 0
    owner: str = ""
    group: str = ""
    uid: int = -1
    gid: int = -1
    content: bytes = b""
    target: str = ""
    names: tuple[str, ...] = ()


def completed(items: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the items as plain dicts with their defaults filled in.

    Raises FilesError with every fault of every item.
    """
    whole, faults = [], []
    for number, item in enumerate(items, start=1):
        if not isinstance(item, Mapping):
            faults.append(
                f"items[{number}]: found {_shown(item)}; wanted a mapping such as {{path: /etc/x, state: absent}}."
            )
            continue
        given = {str(key): value for key, value in item.items() if value is not None}
        name = f"items[{number}] ({given.get('path') or given.get('template') or 'without a path'})"
        own_faults = list(_item_faults(given))
        faults += [f"{name}: {fault}" for fault in own_faults]
        if not own_faults:
            whole.append(_with_defaults(given))
    faults += _list_faults(whole)
    if faults:
        raise FilesError(faults)
    return whole


def _with_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    state = str(given.get("state", FILE))
    path = str(given["path"]) if "path" in given else _path_of_template(str(given["template"]))
    if state == ABSENT:
        return {"path": path, "state": state}
    item: dict[str, Any] = {
        "path": path,
        "state": state,
        "owner": str(given.get("owner", "root")),
        "group": str(given.get("group", "root")),
        "mode": str(given.get("mode", DEFAULT_DIRECTORY_MODE)),
    }
    if state == FILE:
        item.update(secret=bool(given.get("secret", False)), validate=str(given.get("validate", "")))
        item.update({key: str(given[key]) for key in ("template", "content") if key in given})
    return item


def _path_of_template(template: str) -> str:
    return "/" + (template[: -len(TEMPLATE_SUFFIX)] if template.endswith(TEMPLATE_SUFFIX) else template)


def _item_faults(item: Mapping[str, Any]) -> Iterator[str]:
    for key, value in item.items():
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1)
            yield f"{key} is a name that nothing reads. " + (
                f"Rename it to {near[0]}." if near else f"Known are {', '.join(KEYS)}."
            )
        elif not isinstance(value, KEYS[key]):
            yield _wrong_type(key, value)
    state = item.get("state", FILE)
    if state not in STATES:
        yield f"state is {_shown(state)}; wanted one of {', '.join(STATES)}."
        return
    if "path" not in item and not ("template" in item and state != DIRECTORY):
        yield "it has no path. Give the absolute path on the host."
    yield from _path_faults(item)
    if state == FILE:
        yield from _file_faults(item)
    elif state == DIRECTORY:
        for key in ONLY_FOR_FILES:
            if item.get(key):
                yield f"{key} does not go with state directory. Remove one of the two."
    mode = item.get("mode")
    if isinstance(mode, str) and not MODE.fullmatch(mode):
        yield f'mode is {_shown(mode)}; wanted four octal digits in quotes such as "0644".'


def _wrong_type(key: str, value: Any) -> str:
    found = f"{key} is {_shown(value) if key != 'content' else 'no text'} ({type(value).__name__})"
    if key == "mode":
        return (
            f'{found}; wanted four octal digits in quotes such as "0644". Without quotes YAML makes a number of them.'
        )
    if key == "content":
        return f"{found}; wanted text. Turn data into text with a filter such as to_nice_json."
    return f"{found}; wanted {'true or false' if KEYS[key] is bool else 'text'}."


def _path_faults(item: Mapping[str, Any]) -> Iterator[str]:
    template = item.get("template")
    if isinstance(template, str) and (
        template.startswith("/") or os.path.normpath(template) != template or template.startswith("..")
    ):
        yield f"template is {_shown(template)}; wanted a path inside the role's templates folder such as etc/x.conf.j2."
    elif isinstance(template, str) and "path" not in item and not template.endswith(TEMPLATE_SUFFIX):
        yield f"template is {_shown(template)}, without {TEMPLATE_SUFFIX}, and path is missing. Rename it or give path."
    path = item.get("path")
    if not isinstance(path, str):
        return
    if not path.startswith("/"):
        yield f"path is relative; wanted an absolute one such as /{path.lstrip('./')}."
    elif os.path.normpath(path) != path or path.startswith("//"):
        yield f"path has needless parts; wanted {'/' + os.path.normpath(path).lstrip('/')}."
    elif item.get("state") == ABSENT and path.count("/") < 2:
        yield "path is at the root of the file system, and that much is never removed. Name what is inside."


def _file_faults(item: Mapping[str, Any]) -> Iterator[str]:
    if "template" in item and "content" in item:
        yield "both template and content are given. Keep one."
    elif "template" not in item and "content" not in item:
        yield "neither template nor content is given. Add one, or state directory or absent."
    if "mode" not in item:
        yield 'it has no mode. Say who may read the file: mode: "0644", or "0600" for a secret.'
    validate = item.get("validate")
    if isinstance(validate, str) and validate:
        try:
            words = shlex.split(validate)
        except ValueError as error:
            words = []
            yield f"validate {_shown(validate)} cannot be split into words: {error}."
        if words and sum(word.count(PLACEHOLDER) for word in words) != 1:
            yield f"validate is {_shown(validate)}; wanted one {PLACEHOLDER}, which becomes the path of the new file."


def _list_faults(items: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    times: dict[str, int] = {}
    for item in items:
        times[item["path"]] = times.get(item["path"], 0) + 1
    for path, count in times.items():
        if count > 1:
            yield f"{path} is listed {count} times. Keep one item for each path."
    wanted = {item["path"]: item["state"] for item in items if item["state"] != ABSENT}
    for path in (item["path"] for item in items if item["state"] == ABSENT):
        for inner in wanted:
            if inner.startswith(path + "/"):
                yield f"{path} is to be absent, yet {inner} is to be there. Remove one of the two items."
    for path in (path for path, state in wanted.items() if state == FILE):
        for inner in wanted:
            if inner.startswith(path + "/"):
                yield f"{path} is to be a file, yet {inner} is to be inside it. Correct one of the two paths."


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def validator_argv(validate: str, path: str) -> list[str]:
    """Return the validator's words with %s replaced by path; no shell sees them."""
    return [word.replace(PLACEHOLDER, path) for word in shlex.split(validate)]


# Comparison


def kind_fault(wanted: Wanted, found: Found) -> str:
    """Return why a path cannot be made what is wanted, or an empty text; a file may replace a link."""
    if wanted.state == ABSENT or found.kind in (ABSENT, wanted.state) or (wanted.state == FILE and found.kind == LINK):
        return ""
    kind = f"a link to {found.target}, which does not exist" if found.kind == LINK else KINDS_IN_WORDS[found.kind]
    return f"{wanted.path}: found {kind}; wanted {KINDS_IN_WORDS[wanted.state]}. Look at it and move it away."


def reasons(wanted: Wanted, found: Found) -> list[str]:
    """Return in words what differs; nothing when the path is as wanted."""
    if wanted.state == ABSENT:
        return [] if found.kind == ABSENT else ["removed"]
    if found.kind == ABSENT:
        return ["new"]
    differences = []
    if found.kind == LINK:
        differences.append(f"was a link to {found.target}")
    elif wanted.content is not None and wanted.content != found.content:
        differences.append("content")
    if found.kind != LINK:
        if wanted.uid != found.uid:
            differences.append(f"owner {found.owner} -> {wanted.owner}")
        if wanted.gid != found.gid:
            differences.append(f"group {found.group} -> {wanted.group}")
        if wanted.mode != found.mode:
            differences.append(f"mode {found.mode:04o} -> {wanted.mode:04o}")
    return differences


def missing_parents(paths: Iterable[str], existing: Iterable[str]) -> list[str]:
    """Return the folders above paths that neither exist nor are listed themselves, outermost first."""
    listed = set(paths)
    there = set(existing)
    parents = set()
    for path in listed:
        for parent in map(str, PurePosixPath(path).parents):
            if parent in there or parent == "/":
                break
            parents.add(parent)
    return sorted(parents - listed)


def mounts_below(path: str, mountinfo: str) -> list[str]:
    """Return the mount points at path or inside it, from the text of /proc/self/mountinfo."""
    points = set()
    for line in mountinfo.splitlines():
        fields = line.split()
        if len(fields) > 4:
            point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), fields[4])
            if point == path or point.startswith(path + "/"):
                points.add(point)
    return sorted(points)


# Showing


def diff(wanted: Wanted, found: Found) -> dict[str, str]:
    """Return the difference of one path as Ansible's callbacks show it; what is secret or binary only by its size."""
    before, after = _found_text(wanted, found), _wanted_text(wanted, found)
    if before == after:
        before, after = _lines(_found_attributes(found)), _lines(_wanted_attributes(wanted))
    return {
        "before_header": f"{wanted.path} ({_found_attributes(found)})",
        "after_header": f"{wanted.path} ({_wanted_attributes(wanted)})",
        "before": before,
        "after": after,
    }


def _lines(text: str) -> str:
    return "" if text == ABSENT else text + "\n"


def _found_attributes(found: Found) -> str:
    if found.kind == ABSENT:
        return ABSENT
    if found.kind == LINK:
        return f"link to {found.target}"
    return f"{found.kind}, {found.owner}:{found.group} {found.mode:04o}"


def _wanted_attributes(wanted: Wanted) -> str:
    return ABSENT if wanted.state == ABSENT else f"{wanted.state}, {wanted.owner}:{wanted.group} {wanted.mode:04o}"


def _found_text(wanted: Wanted, found: Found) -> str:
    if found.kind == FILE:
        # What is about to be removed may be secret: no item says that it is not.
        hidden = wanted.state == ABSENT
        return f"({len(found.content)} bytes)\n" if hidden else _content_text(found.content, wanted.secret)
    if found.kind == DIRECTORY and wanted.state == ABSENT:
        return "".join(f"{name}\n" for name in ("directory", *found.names))
    return ""


def _wanted_text(wanted: Wanted, found: Found) -> str:
    if wanted.content is None:
        return ""
    text = _content_text(wanted.content, wanted.secret)
    if found.kind == FILE and found.content != wanted.content and text == _found_text(wanted, found):
        return text.replace(")\n", ", other content)\n")
    return text


def _content_text(content: bytes, secret: bool) -> str:
    if secret:
        return f"(secret, {len(content)} bytes)\n"
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = "\0"
    return f"(binary, {len(content)} bytes)\n" if "\0" in text else text
