# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Asking and telling systemd, and reading the change times of files."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path, PurePosixPath

from ansible_collections.plainkube.cluster.plugins.module_utils import commands
from ansible_collections.plainkube.cluster.plugins.module_utils.units import (
    FILE_CLOCK_TICK_US,
    OWN_FILES,
    PROPERTIES,
    Change,
    Clock,
    Unit,
    UnitError,
    own_unit_files,
    parse_show,
    with_files_there,
)

LINKS_AT_MOST = 40
JOURNAL_LINES = 20


def _run(argv: list[str], timeout: float) -> str:
    """Return what a command printed. Raises UnitError."""
    return commands.output(argv, UnitError, timeout)


def show(names: list[str]) -> dict[str, Unit]:
    """Return what systemd says about each unit, by name. Raises UnitError."""
    if not names:
        return {}
    # Microseconds by this option exist since systemd 248.
    argv = ["systemctl", "show", "--timestamp=us+utc", "--property=" + ",".join(PROPERTIES), "--", *names]
    units = parse_show(_run(argv, 30), names)
    return {name: with_files_there(unit, *_files_there(name)) for name, unit in units.items()}


def _files_there(name: str) -> tuple[str, list[str]]:
    """Return the unit file that was written for this host, or "", and the drop-ins."""
    fragment = Path(OWN_FILES, name)
    drop_ins = Path(f"{fragment}.d").glob("*.conf")
    # A link there stands for a mask or an alias.
    own = fragment.is_file() and not fragment.is_symlink()
    return str(fragment) if own else "", [str(path) for path in drop_ins]


def systemctl(verb: str, names: list[str], timeout: float = 90, wait: bool = True) -> None:
    """Tell systemd to do something. Raises UnitError."""
    _run(["systemctl", verb, *([] if wait else ["--no-block"]), "--", *names], timeout)


def daemon_reload() -> None:
    """Have systemd read the unit files anew, without forgetting which processes run with the old ones.

    After this, systemd no longer says that a unit file changed since it was read. Where a process crashed and came back
    in between, its start is later than that change though it runs with the old unit. So the files get a change time of
    now first. Raises UnitError.
    """
    argv = ["systemctl", "list-units", "--plain", "--no-legend", "--state=active,activating,reloading"]
    names = [line.split()[0] for line in _run([*argv, "--type=service,timer,socket"], 30).splitlines() if line.strip()]
    stamp([path for unit in show(names).values() if unit.need_daemon_reload for path in own_unit_files(unit)])
    systemctl("daemon-reload", [])


def stamp(paths: list[str]) -> None:
    """Set the change times of files to now and touch nothing else. Files that went away are left out."""
    if not paths:
        return
    for path in paths:
        try:
            # Linux counts a change of owner to "as it is" as a change.
            os.chown(path, -1, -1, follow_symlinks=False)
        except FileNotFoundError:
            continue
    # What starts next must not seem to have started before this.
    time.sleep(2 * FILE_CLOCK_TICK_US / 1_000_000)


def clock() -> Clock:
    """Return both clocks of this host, read together."""
    return Clock(time.time_ns() // 1000, time.monotonic_ns() // 1000)


def journal(unit: str) -> list[str]:
    """Return the last lines that a unit wrote to the journal, or why they cannot be had."""
    argv = ["journalctl", f"--unit={unit}", f"--lines={JOURNAL_LINES}", "--no-pager", "--output=cat", "--quiet"]
    try:
        return _run(argv, 10).splitlines()
    except UnitError as error:
        return [str(error)]


def newest_change(path: str) -> Change | None:
    """Return the newest change at an input: of the links on the way to it, of what they lead to, of all below a folder.

    None if there is nothing at path. Raises UnitError for links that lead in a circle.
    """
    changes = []
    place = Path("/")
    rest = list(PurePosixPath(path).parts[1:])
    links = 0
    while rest:
        part = rest.pop(0)
        if part == "..":
            place = place.parent
            continue
        here = place / part
        try:
            status = here.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > LINKS_AT_MOST:
                raise UnitError(f"{path}: its links lead in a circle")
            changes.append(Change(str(here), status.st_ctime_ns // 1000))
            target = here.readlink()
            place = Path("/") if target.is_absolute() else place
            rest = [step for step in target.parts if step != "/"] + rest
        else:
            place = here
    changes.append(Change(str(place), place.lstat().st_ctime_ns // 1000))
    for folder, folders, files in os.walk(place):
        for below in (Path(folder, name) for name in folders + files):
            try:
                changes.append(Change(str(below), below.lstat().st_ctime_ns // 1000))
            except FileNotFoundError:
                continue
    newest = max(changes, key=lambda change: change.time)
    # People know the path that they wrote down, unless something below a folder is what changed.
    return Change(path, newest.time) if newest.path == str(place) or newest.path == path else newest
