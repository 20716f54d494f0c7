# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Looking for what an installation left on a host, and removing it."""

from __future__ import annotations

import contextlib
import json
import os
import posixpath
import pwd
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from ansible_collections.plainkube.cluster.plugins.module_utils import commands, reset, units_io
from ansible_collections.plainkube.cluster.plugins.module_utils.reset import (
    FolderFact,
    Process,
    ResetError,
    Step,
    UnitFact,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.units import UnitError

# Longer than an API server needs to drain, and shorter than anyone likes to wait for a dead one.
STOP_SECONDS = 20
POD_SECONDS = 60
DEATH_SECONDS = 10
UNMOUNT_SECONDS = 10
COMMAND_SECONDS = 30
HEAD_BYTES = 1024
# The options of ip(8) for both families of addresses.
FAMILIES = ("-4", "-6")
NETWORK_UNITS = ("node-routes.service", "flanneld.service")
FLANNEL_CONFIGURATION = "/etc/plainkube/flannel.json"
CRICTL = ("/usr/local/bin/crictl", "--runtime-endpoint=unix:///run/containerd/containerd.sock")


def run(argv: Sequence[str], text: str = "", timeout: float = COMMAND_SECONDS) -> str:
    """Return what a command printed. Raises ResetError with its own words."""
    return commands.output(argv, ResetError, timeout, text, errors="surrogateescape")


def answer(argv: Sequence[str]) -> str:
    """Return what a command printed, and nothing where the host has no such command or what it asks for."""
    try:
        return run(argv)
    except ResetError:
        return ""


def matching(pattern: str) -> list[str]:
    """Return the absolute paths that fit a pattern, sorted."""
    return sorted(str(path) for path in Path("/").glob(pattern[1:]))


# Look


def look() -> reset.Facts:
    """Return what of ours is on this host. Raises UnitError when systemd does not answer."""
    headed, temporary = _our_files()
    links = dict(_our_links())
    store = os.path.lexists(reset.STORE)
    temporary += matching(reset.TEMPORARY_FOLDERS)
    if not (headed or temporary or links or store):
        return reset.Facts()
    units = _units(headed)
    running = {unit.name for unit in units if unit.running}
    etcd_data = reset.data_directory(_text(posixpath.join(reset.UNIT_FOLDER, "etcd.service")))
    sysusers = _text(reset.SYSUSERS)
    mounts = reset.mount_points(_text("/proc/self/mountinfo"))
    return reset.Facts(
        units=units,
        header_files=headed,
        temporary_files=temporary,
        links=links,
        store=store,
        folders=_folders(etcd_data, mounts),
        mounts=mounts,
        namespaces=matching("/run/netns/cni-*"),
        processes=list(_processes()),
        pods=_pods() if "containerd.service" in running else {},
        cgroups=matching("/sys/fs/cgroup/kubepods*") + matching("/sys/fs/cgroup/*/kubepods*"),
        interfaces={link["ifname"]: link.get("master", "") for link in _json(["ip", "-j", "link", "show"], [])},
        routes=reset.lasting_routes(_routes("proto", "76") + _flannel_routes()),
        learned_routes=reset.lasting_routes(_routes("proto", reset.KUBE_ROUTER_PROTOCOL)),
        tables=re.findall(r"^table (\S+) (\S+)$", answer(["nft", "list", "tables"]), re.MULTILINE),
        iptables=packet_filters(),
        ip_sets=ip_sets(),
        rules=[
            line.partition(":")[2].strip()
            for family in FAMILIES
            for line in answer(["ip", family, "-N", "rule", "show", "table", reset.KUBE_ROUTER_TABLE]).splitlines()
        ],
        users={entry.pw_name: entry.pw_gecos for entry in pwd.getpwall()},
        sysusers=sysusers,
        bridge=reset.bridge_name("".join(_text(posixpath.join(reset.UNIT_FOLDER, name)) for name in NETWORK_UNITS)),
        etcd_data=etcd_data,
    )


def packet_filters() -> dict[str, str]:
    """Return what iptables-save and its twin print, by the name of the command without -save."""
    return {name: answer([f"{name}-save"]) for name in ("iptables", "ip6tables")}


def ip_sets() -> list[str]:
    """Return the names of the kernel's sets of addresses."""
    return answer(["ipset", "list", "-name"]).split()


def _routes(*chosen: str) -> str:
    """Return routes of both families of addresses as ip prints them."""
    return "".join(answer(["ip", family, "route", "show", *chosen]) for family in FAMILIES)


def _flannel_routes() -> str:
    """Return the routes to other hosts' pods, which flannel marks in no way, as ip prints them."""
    networks = reset.pod_networks(_text(FLANNEL_CONFIGURATION))
    return "".join(answer(["ip", "route", "show", "root", network, "proto", "boot"]) for network in networks)


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""


def _json(argv: Sequence[str], otherwise: Any) -> Any:
    try:
        return json.loads(answer(argv))
    except ValueError:
        return otherwise


def _our_files() -> tuple[list[str], list[str]]:
    """Return files with our header, and what killed runs left of files that they were writing."""
    headed, temporary = [], []
    for path in (path for place in reset.HEADER_PLACES for path in _files_at(place)):
        if reset.TEMPORARY.search(path):
            temporary.append(path)
        elif _has_header(path):
            headed.append(path)
    return headed, temporary


def _files_at(place: str) -> Iterator[str]:
    if os.path.isfile(place):  # noqa: PTH113 - one kind of path in this loop
        yield place
    for folder, _, names in os.walk(place):
        for path in (posixpath.join(folder, name) for name in names):
            # A link leads to what is looked at in its own place.
            if not os.path.islink(path):  # noqa: PTH114
                yield path


def _has_header(path: str) -> bool:
    try:
        with open(path, "rb") as stream:
            return reset.HEADER.encode() in b"".join(stream.read(HEAD_BYTES).splitlines(keepends=True)[:3])
    except OSError:
        return False


def _our_links() -> Iterator[tuple[str, str]]:
    for place in reset.LINK_PLACES:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for entry in os.scandir(place):
                target = os.readlink(entry.path) if entry.is_symlink() else ""  # noqa: PTH115
                if reset.is_below(target, reset.STORE):
                    yield entry.path, target


def _units(headed: Sequence[str]) -> list[UnitFact]:
    names = [posixpath.basename(path) for path in headed if reset.is_unit_file(path)]
    names += [unit for path, unit in reset.CONFIGURED_UNITS.items() if path in headed and unit not in names]
    units = units_io.show(names)
    return [
        UnitFact(
            name,
            running=units[name].active not in ("inactive", "failed"),
            enabled=units[name].unit_file in ("enabled", "enabled-runtime"),
        )
        for name in names
    ]


def _folders(etcd_data: str, mounts: Sequence[str]) -> dict[str, FolderFact]:
    patterns = {pattern for component in reset.FOLDERS for pattern in reset.places(component, etcd_data)}
    found = {}
    for path in sorted({path for pattern in patterns for path in matching(pattern)}):
        real = os.path.realpath(path)
        inside = os.listdir(real) if os.path.isdir(real) else [""]  # noqa: PTH112, PTH208
        found[path] = FolderFact(
            real=real,
            keep=real in mounts or os.path.islink(path),  # noqa: PTH114
            empty=not set(inside) - {reset.LOST_AND_FOUND} and os.stat(real).st_uid == 0,  # noqa: PTH116
        )
    return found


def _processes() -> Iterator[Process]:
    for folder in matching("/proc/[0-9]*"):
        fields = _text(f"{folder}/stat").rpartition(")")[2].split()
        # Z: it is dead, and waits for its parent to notice.
        if len(fields) < 2 or fields[0] == "Z":
            continue
        try:
            program = os.readlink(f"{folder}/exe").removesuffix(" (deleted)")  # noqa: PTH115
        except OSError:
            program = ""
        yield Process(int(posixpath.basename(folder)), int(fields[1]), program, _text(f"{folder}/cgroup"))


def _pods() -> dict[str, str]:
    """Return {identity: namespace/name} of the pods that containerd has."""
    items = _json([*CRICTL, "pods", "--output=json"], {}).get("items") or []
    return {item["id"]: f"{item['metadata']['namespace']}/{item['metadata']['name']}" for item in items}


# Act


def act() -> None:
    """Remove all that is ours. Raises ResetError with what did not go and why."""
    complaints: list[str] = []
    for stage in reset.STAGES:
        facts = look()
        require_removable(facts)
        if stage == "last":
            _prune()
        steps = [step for step in reset.make_plan(facts) if step.stage == stage]
        for kind, same in groupby(steps, key=lambda step: step.kind):
            complaints += _do(kind, list(same))
        if steps and stage == "evidence":
            complaints += _tried(lambda: units_io.systemctl("daemon-reload", []))
            # Let systemd forget that units had failed which are gone now.
            for unit in facts.units:
                _tried(lambda unit=unit: units_io.systemctl("reset-failed", [unit.name]))  # type: ignore[misc]
    left = reset.make_plan(look())
    if left:
        names = "".join(f"\n  {step}" for step in left)
        said = "".join(f"\n  {complaint}" for complaint in complaints)
        raise ResetError(f"This is still there after the reset:{names}\nWhat went wrong:{said or ' nothing was said'}")


def require_removable(facts: reset.Facts) -> None:
    """Raise ResetError when a person has to clear something up first."""
    faults = reset.faults(facts)
    if faults:
        raise ResetError("\n".join(faults))


def _tried(action: Callable[[], Any]) -> list[str]:
    """Return what an action complained about: what really stays is seen at the end."""
    try:
        action()
    except (ResetError, UnitError, OSError) as error:
        return [str(error)]
    return []


def _do(kind: str, steps: list[Step]) -> list[str]:
    """Carry out steps of one kind, together where one command can. Returns complaints."""
    targets = [step.target for step in steps]
    if kind == "stop":
        return _stop(targets)
    if kind == "disable":
        return _tried(lambda: units_io.systemctl("disable", targets))
    if kind == "pod":
        pods = [step.detail for step in steps]
        return _tried(lambda: run([*CRICTL, "--timeout=30s", "rmp", "--force", *pods], timeout=POD_SECONDS))
    if kind == "kill":
        return _kill([int(target) for target in targets])
    return [complaint for step in steps for complaint in _tried(lambda step=step: ONE[kind](step))]  # type: ignore[misc]


def _stop(names: list[str]) -> list[str]:
    try:
        units_io.systemctl("stop", names, timeout=STOP_SECONDS)
    except UnitError:
        # One that waits for a peer which is gone will not end by itself.
        for name in names:
            _tried(lambda name=name: run(["systemctl", "kill", "--signal=SIGKILL", name]))  # type: ignore[misc]
        return _tried(lambda: units_io.systemctl("stop", names, timeout=STOP_SECONDS))
    return []


def _kill(pids: list[int]) -> list[str]:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + DEATH_SECONDS
    while time.monotonic() < deadline:
        if not {process.pid for process in _processes()} & set(pids):
            return []
        time.sleep(0.1)
    return [f"processes {', '.join(map(str, pids))} do not end"]


def _unmount(step: Step) -> None:
    try:
        run(["umount", step.target], timeout=UNMOUNT_SECONDS)
    except ResetError:
        # In use, or on a server that does not answer: out of the tree at least.
        run(["umount", "--force", "--lazy", step.target], timeout=UNMOUNT_SECONDS)


def _remove_cgroup(step: Step) -> None:
    for folder, _, _ in os.walk(step.target, topdown=False):
        with contextlib.suppress(FileNotFoundError):
            Path(folder).rmdir()


def _stop_slice(step: Step) -> None:
    """With the systemd driver the folder is a slice, and systemd's to remove."""
    if step.target.endswith(".slice"):
        units_io.systemctl("stop", [posixpath.basename(step.target)])
    _remove_cgroup(step)


def _remove_namespace(step: Step) -> None:
    # The file is what a mount was put on; its pod may be long gone.
    with contextlib.suppress(ResetError):
        run(["umount", "--lazy", step.target], timeout=UNMOUNT_SECONDS)
    Path(step.target).unlink()


def _remove(step: Step) -> None:
    path = Path(step.target)
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    _require_no_mounts(step.target)
    shutil.rmtree(path)


def _empty(step: Step) -> None:
    real = os.path.realpath(step.target)
    _require_no_mounts(real)
    for entry in os.scandir(real):
        if entry.is_dir(follow_symlinks=False):
            if entry.name != reset.LOST_AND_FOUND:
                shutil.rmtree(entry.path)
        else:
            Path(entry.path).unlink()
    # Its user goes, and whoever gets the number next must not get the folder.
    os.chown(real, 0, 0)


def _require_no_mounts(folder: str) -> None:
    """Raise ResetError when something is still mounted inside: removing would reach into it."""
    inside = [point for point in reset.mount_points(_text("/proc/self/mountinfo")) if reset.is_below(point, folder)]
    if inside:
        raise ResetError(f"{folder} was left as it is, since {', '.join(inside)} could not be unmounted")


def _prune() -> None:
    for pattern in reset.PRUNED:
        for folder in matching(pattern):
            with contextlib.suppress(OSError):
                Path(folder).rmdir()


ONE: dict[str, Callable[[Step], Any]] = {
    "unmount": _unmount,
    "namespace": _remove_namespace,
    "link": lambda step: run(["ip", "link", "delete", step.target]),
    # Network, "via", address: what comes behind them ip prints in words that it does not read.
    "route": lambda step: run(["ip", "route", "delete", *step.target.split()[:3]]),
    "rule": lambda step: run(["ip", "rule", "delete", *step.target.split()]),
    "set": lambda step: run(["ipset", "destroy", step.target]),
    "table": lambda step: run(["nft", "delete", "table", *step.target.split()]),
    "iptables": lambda step: run([f"{step.target}-restore", "--noflush"], text=step.detail),
    "cgroup": _stop_slice,
    "remove": _remove,
    "empty": _empty,
    "user": lambda step: run(["userdel", step.target]),
}
