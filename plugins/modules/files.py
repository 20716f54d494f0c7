#!/usr/bin/python
# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: files
short_description: Write a list of files, folders and templates in one round trip
version_added: 0.1.0
author: Plainkube contributors (@plainkube)
description:
  - Renders templates on the controller as M(ansible.builtin.template) does, sends all files in one call,
    and writes those that differ.
  - A file appears under its name only when it is whole and has its owner and mode
    (temporary name beside it, fsync, rename).
  - A symbolic link where a file is wanted is replaced by the file; what it pointed to is left alone.
    A link to a folder is accepted where a folder is wanted.
  - Folders above an item that are missing and no item of their own are made with mode 0755 and owner root.
  - All faults in the list are reported at once, and so are all validators' complaints. Then nothing is changed.
  - What does not exist yet is put in place before the validators run, since a configuration may name another
    new file of the same list. It is taken away again when one of them complains.
options:
  items:
    description:
      - What must be there, or must not.
      - O(items[].template) or O(items[].content), and O(items[].mode), are needed for a file.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description:
          - Absolute path on the host.
          - Without it a template says it by its own name, V(etc/x.conf.j2) becomes V(/etc/x.conf).
        type: str
      state:
        description:
          - With V(absent), a file, link or folder with all that is in it is removed;
            a folder that contains a mount point is refused.
          - Other options are ignored then, so that a list can compute its states.
        type: str
        choices: [file, directory, absent]
        default: file
      template:
        description: Template in the C(templates) folder of the calling role. C(ansible_managed) is not provided.
        type: str
      content:
        description: The file's text.
        type: str
      owner:
        description: Name or number of the user. In check mode it need not exist yet.
        type: str
        default: root
      group:
        description: Name or number of the group. In check mode it need not exist yet.
        type: str
        default: root
      mode:
        description: Four octal digits in quotes. A directory's default is V("0755").
        type: str
      secret:
        description: Show the content neither in a difference nor in a validator's complaint.
        type: bool
        default: false
      validate:
        description:
          - Command that must succeed before the file is replaced. V(%s) becomes the path of the new file, which has
            the same base name in a private folder. No shell is involved. It is not run in check mode.
        type: str
  payload:
    description: The items as the action plugin sends them to the host. Not for playbooks.
    type: str
attributes:
  check_mode:
    support: full
    description: Writes nothing and runs no validator.
  diff_mode:
    support: full
    description: One entry for each item that changes, with owner and mode in its header.
"""

EXAMPLES = r"""
- name: Write the member's configuration
  plainkube.cluster.files:
    items:
      - {path: /etc/etcd/pki, state: directory, group: etcd, mode: "0750"}
      - {template: etc/systemd/system/etcd.service.j2, mode: "0600"}
      - {template: etc/haproxy/haproxy.cfg.j2, mode: "0644", validate: /usr/sbin/haproxy -c -q -f %s}
      - {path: /etc/kubernetes/pki/signer.key, content: "{{ signer_key }}", mode: "0600", secret: true}
      - {path: /etc/cni/net.d/old.conflist, state: absent}
"""

RETURN = r"""
files:
  description: Every item in the order of the list.
  returned: success
  type: list
  elements: dict
  contains:
    path:
      description: Path on the host.
      type: str
      sample: /etc/systemd/system/etcd.service
    changed:
      description: Whether it was changed, or would be in check mode.
      type: bool
    reasons:
      description: What differed.
      type: list
      elements: str
      sample: [content, "mode 0644 -> 0600"]
"""

import contextlib
import grp
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.plainkube.cluster.plugins.module_utils import files
from ansible_collections.plainkube.cluster.plugins.module_utils.files import FilesError, Found, Wanted
from ansible_collections.plainkube.cluster.plugins.module_utils.files_io import (
    TEMPORARY_SUFFIX,
    sync_folder,
    write_atomically,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.payload import unpack

VALIDATOR_SECONDS = 60
# A file system in memory, so that what a killed run leaves of a secret never reaches a disk.
CANDIDATES_FOLDER = "/run"


class Change:
    """One item with what was found at its path and what follows from that."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.found = look(wanted)
        self.reasons = files.reasons(wanted, self.found)
        self.leftover = wanted.state == files.FILE and os.path.lexists(wanted.path + TEMPORARY_SUFFIX)

    @property
    def is_new(self) -> bool:
        return self.found.kind == files.ABSENT and bool(self.reasons)


def wanted_of(item: dict[str, Any]) -> Wanted:
    """Return an item of the payload with its names resolved as far as this host knows them."""
    if item["state"] == files.ABSENT:
        return Wanted(path=item["path"], state=files.ABSENT)
    content = item.get("content")
    return Wanted(
        path=item["path"],
        state=item["state"],
        mode=int(item["mode"], 8),
        owner=item["owner"],
        group=item["group"],
        uid=identity(item["owner"], lambda name: pwd.getpwnam(name).pw_uid),
        gid=identity(item["group"], lambda name: grp.getgrnam(name).gr_gid),
        content=None if content is None else content.encode("utf-8", "surrogateescape"),
        secret=item.get("secret", False),
        validate=item.get("validate", ""),
    )


def identity(name: str, resolve: Any) -> int | None:
    """Return the number behind a name or number, None when this host does not know the name."""
    try:
        return int(name) if name.isdigit() else int(resolve(name))
    except KeyError:
        return None


def name_of(number: int, resolve: Any) -> str:
    try:
        return str(resolve(number)[0])
    except KeyError:
        return str(number)


def look(wanted: Wanted) -> Found:
    """Return what is at the path. Raises OSError."""
    path = Path(wanted.path)
    try:
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            if wanted.state != files.DIRECTORY or not path.exists():
                return Found(files.LINK, target=str(path.readlink()))
            status = path.stat()
    except FileNotFoundError:
        return Found(files.ABSENT)
    kind, content = files.OTHER, b""
    names: tuple[str, ...] = ()
    if stat.S_ISREG(status.st_mode):
        kind, content = files.FILE, path.read_bytes()
    elif stat.S_ISDIR(status.st_mode):
        kind = files.DIRECTORY
        names = tuple(sorted(entry.name for entry in path.iterdir())) if wanted.state == files.ABSENT else ()
    return Found(
        kind=kind,
        mode=stat.S_IMODE(status.st_mode),
        owner=name_of(status.st_uid, pwd.getpwuid),
        group=name_of(status.st_gid, grp.getgrgid),
        uid=status.st_uid,
        gid=status.st_gid,
        content=content,
        names=names,
    )


def look_at_all(items: Sequence[dict[str, Any]], check_mode: bool) -> list[Change]:
    """Return every item compared with the host. Raises FilesError with all that stands in the way."""
    changes, faults = [], []
    for item in items:
        wanted = wanted_of(item)
        try:
            change = Change(wanted)
        except NotADirectoryError:
            faults.append(f"{wanted.path}: something above it is not a directory. Look at it and move it away.")
            continue
        except OSError as error:
            faults.append(f"{wanted.path} cannot be read: {error.strerror}.")
            continue
        changes.append(change)
        faults += filter(None, [files.kind_fault(wanted, change.found)])
        if not check_mode and wanted.state != files.ABSENT:
            if wanted.uid is None:
                faults.append(
                    f"{wanted.path}: this host has no user {wanted.owner}. Make the user first, or correct owner."
                )
            if wanted.gid is None:
                faults.append(
                    f"{wanted.path}: this host has no group {wanted.group}. Make the group first, or correct group."
                )
        if wanted.state == files.ABSENT and change.found.kind == files.DIRECTORY:
            mounts = files.mounts_below(
                wanted.path, Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
            )
            if mounts:
                faults.append(
                    f"{wanted.path} is to be removed, but {', '.join(mounts)} is mounted there. Unmount it first."
                )
    if faults:
        raise FilesError(faults)
    return changes


@contextlib.contextmanager
def about(path: str) -> Iterator[None]:
    """Name the path in what goes wrong with it."""
    try:
        yield
    except OSError as error:
        raise FilesError(
            [f"{path} cannot be changed: {error.strerror}. Mend this and run again: the rest follows."]
        ) from error


def make_directory(path: str, mode: int, uid: int, gid: int) -> None:
    os.mkdir(path, 0o700)  # noqa: PTH102 - the mode of Path.mkdir() says the same with more words
    os.chown(path, uid, gid)
    Path(path).chmod(mode)
    sync_folder(str(Path(path).parent))


def put(change: Change) -> None:
    """Make one path what is wanted; every folder above it exists."""
    wanted = change.wanted
    assert wanted.uid is not None and wanted.gid is not None
    if wanted.state == files.DIRECTORY and change.is_new:
        make_directory(wanted.path, wanted.mode, wanted.uid, wanted.gid)
    elif wanted.state == files.DIRECTORY:
        os.chown(wanted.path, wanted.uid, wanted.gid)
        Path(wanted.path).chmod(wanted.mode)
    else:
        write_atomically(wanted.path, wanted.content or b"", wanted.mode, wanted.uid, wanted.gid)


def remove(path: str) -> None:
    if Path(path).is_dir() and not Path(path).is_symlink():
        shutil.rmtree(path)
    else:
        Path(path).unlink()
    sync_folder(str(Path(path).parent))


def complaints(changes: Sequence[Change]) -> list[str]:
    """Run the validator of each file that differs on a private copy and return what they complain about."""
    to_check = [change.wanted for change in changes if change.wanted.validate and change.reasons]
    if not to_check:
        return []
    faults = []
    base = CANDIDATES_FOLDER if os.access(CANDIDATES_FOLDER, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="plainkube-", dir=base) as folder:
        for number, wanted in enumerate(to_check):
            candidate = Path(folder, str(number), Path(wanted.path).name)
            candidate.parent.mkdir(mode=0o700)
            candidate.touch(mode=0o600)
            candidate.write_bytes(wanted.content or b"")
            argv = files.validator_argv(wanted.validate, str(candidate))
            problem = run_validator(argv, wanted.secret)
            if problem:
                faults.append(f"{wanted.path} was not replaced: {wanted.validate!r} {problem}")
    return faults


def run_validator(argv: Sequence[str], secret: bool) -> str:
    """Return what is wrong in words, empty when the validator is content."""
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=VALIDATOR_SECONDS,
            check=False,
            env=environment,
        )
    except FileNotFoundError:
        return f"cannot run, since this host has no program {argv[0]}. Install it first."
    except OSError as error:
        return f"cannot run: {error.strerror}."
    except subprocess.TimeoutExpired:
        return f"did not end within {VALIDATOR_SECONDS} seconds."
    if done.returncode == 0:
        return ""
    said = (
        "its words are kept back, since the file is secret"
        if secret
        else done.stdout.decode("utf-8", "replace").strip()[-2000:]
    )
    return f"ended with {done.returncode}: {said or 'it said nothing'}"


def act(changes: Sequence[Change]) -> None:
    """Change what differs: first what is new, then, with the validators' consent, what was there. Raises FilesError."""
    for change in changes:
        if change.leftover:
            with contextlib.suppress(FileNotFoundError):
                Path(change.wanted.path + TEMPORARY_SUFFIX).unlink()
    present = [change for change in changes if change.reasons and change.wanted.state != files.ABSENT]
    made: list[str] = []
    try:
        make_new(present, made)
        faults = complaints(present)
        if faults:
            raise FilesError(faults)
    except FilesError:
        for path in map(Path, reversed(made)):
            path.rmdir() if path.is_dir() else path.unlink()
        raise
    for change in present:
        if change.wanted.path not in made:
            with about(change.wanted.path):
                put(change)
    for change in changes:
        if change.reasons and change.wanted.state == files.ABSENT:
            with about(change.wanted.path):
                remove(change.wanted.path)


def make_new(present: Sequence[Change], made: list[str]) -> None:
    """Make folders and those new files that need no validator's consent, outermost first, noting each in made."""
    new = {change.wanted.path: change for change in present if change.is_new}
    above = {str(parent) for path in new for parent in Path(path).parents if parent.exists()}
    parents = files.missing_parents(new, above)
    for path in sorted([*parents, *new]):
        if path in parents:
            with about(path):
                make_directory(path, 0o755, os.geteuid(), os.getegid())
        elif not new[path].wanted.validate:
            with about(path):
                put(new[path])
        else:
            continue
        made.append(path)


def main() -> None:
    module = AnsibleModule(
        argument_spec={"items": {"type": "list", "elements": "dict"}, "payload": {"type": "str", "no_log": True}},
        supports_check_mode=True,
    )
    if not module.params["payload"]:
        module.fail_json(
            msg="plainkube.cluster.files needs its action plugin, which renders the templates: call it from a playbook."
        )
    try:
        changes = look_at_all(unpack(module.params["payload"]), module.check_mode)
        if not module.check_mode:
            act(changes)
    except FilesError as error:
        module.fail_json(msg=str(error), faults=error.faults)
    rows = []
    for change in changes:
        why = change.reasons + (["left-over temporary file"] if change.leftover else [])
        rows.append({"path": change.wanted.path, "changed": bool(why), "reasons": why})
    result: dict[str, Any] = {"changed": any(row["changed"] for row in rows), "files": rows}
    if module._diff:
        result["diff"] = [files.diff(change.wanted, change.found) for change in changes if change.reasons]
    module.exit_json(**result)


if __name__ == "__main__":
    main()
