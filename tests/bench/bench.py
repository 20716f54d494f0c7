#!/usr/bin/env python3
# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""make bench: seconds and task counts of a first and a second run, for 1, 3 and 6 hosts in the lab.

Every size gets fresh, booted, empty hosts and a filled mirror; the clock runs over `ansible-playbook site.yml` alone,
which ends with the proof.
The second run is done three times and the median counts, since machines are noisy. The last line is the same as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
LAB = CHECKOUT / "tests" / "lab" / "lab.py"
# Two hosts, by hand, with the same binaries on the same kind of machine: no Ansible, no checks, no proof.
FLOOR_SECONDS = 32
SECOND_RUNS = 3
RECAP = re.compile(
    r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)\s+skipped=(\d+)", re.MULTILINE
)


def write_inventory(folder: Path, name: str, groups: Mapping[str, Any]) -> Path:
    """Write the inventory of a lab of this name into a new folder."""
    shutil.copytree(CHECKOUT / "inventories" / "lab" / "group_vars", folder / "group_vars")
    (folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"vars": {"lab_name": name}, "children": dict(groups)}}))
    # The folder's lab name would win over the file's.
    lab = folder / "group_vars" / "all" / "lab.yml"
    lab.write_text(re.sub(r"^lab_name: .*$", f"lab_name: {name}", lab.read_text(), flags=re.MULTILINE))
    return folder


def inventory(folder: Path, size: int) -> Path:
    """Write an inventory of so many hosts: up to three hold etcd and the control plane, all are workers."""
    names = [f"node{number}" for number in range(1, size + 1)]
    control_plane = names[: 3 if size >= 3 else 1]
    groups = {
        "etcd": {"hosts": dict.fromkeys(control_plane)},
        "control_plane": {"hosts": dict.fromkeys(control_plane)},
        "workers": {"hosts": {name: {"ansible_host": f"10.89.90.{10 + int(name[4:])}"} for name in names}},
    }
    return write_inventory(folder, f"bench-{size}", groups)


@contextlib.contextmanager
def fresh_lab(hosts: Path) -> Iterator[None]:
    """Have an inventory's hosts as on their first day, and remove them at the end."""
    lab = [BIN / "python", LAB]
    subprocess.run([*lab, "destroy", "--inventory", hosts], cwd=CHECKOUT, check=True, capture_output=True)
    try:
        subprocess.run([*lab, "create", "--inventory", hosts], cwd=CHECKOUT, check=True)
        yield
    finally:
        subprocess.run([*lab, "destroy", "--inventory", hosts], cwd=CHECKOUT, check=True, capture_output=True)


def play(hosts: Path) -> tuple[float, dict[str, dict[str, int]]]:
    """Run site.yml and return its seconds and each host's counts. Ends the program when the run fails."""
    begin = time.monotonic()
    done = subprocess.run(
        [BIN / "ansible-playbook", "-i", hosts, "site.yml"],
        cwd=CHECKOUT,
        env={**os.environ, "ANSIBLE_FORCE_COLOR": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.monotonic() - begin
    if done.returncode != 0:
        sys.exit(f"site.yml failed:\n{done.stdout[-4000:]}\n{done.stderr[-2000:]}")
    keys = ("ok", "changed", "unreachable", "failed", "skipped")
    return seconds, {found[0]: dict(zip(keys, map(int, found[1:]))) for found in RECAP.findall(done.stdout)}


def measure(size: int) -> dict[str, Any]:
    """Return the figures for so many hosts."""
    with tempfile.TemporaryDirectory() as folder:
        hosts = inventory(Path(folder) / "inventory", size)
        with fresh_lab(hosts):
            print(f"{size} hosts: first run", flush=True)
            first, counts = play(hosts)
            seconds = []
            for number in range(SECOND_RUNS):
                print(f"{size} hosts: second run, {number + 1} of {SECOND_RUNS}", flush=True)
                again, counts = play(hosts)
                seconds.append(again)
    # Tasks that ran on the first control-plane host, which has the most.
    return {
        "hosts": size,
        "first_run_seconds": round(first, 1),
        "second_run_seconds": round(statistics.median(seconds), 1),
        "second_run_tasks": counts["node1"]["ok"],
        "second_run_changed": sum(host["changed"] for host in counts.values()),
    }


def measured_in_a_lab(
    description: str, size: int, measure: Callable[[Path], dict[str, Any]], table: Callable[[dict[str, Any]], str]
) -> dict[str, Any]:
    """Read the command line of a bench that needs a cluster, print what it measured, and return that.

    measure gets the inventory: of a new lab of size hosts, which is removed at the end, or the one that is named.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inventory", type=Path, help="of a running lab; nothing is made or removed then but objects")
    hosts = parser.parse_args().inventory
    if hosts:
        figures = measure(hosts)
    else:
        subprocess.run([sys.executable, "tools/cluster", "prepare"], cwd=CHECKOUT, check=True)
        with tempfile.TemporaryDirectory() as folder:
            hosts = inventory(Path(folder) / "inventory", size)
            with fresh_lab(hosts):
                play(hosts)
                figures = measure(hosts)
    print("\n" + table(figures) + "\n")
    print(json.dumps(figures))
    return figures


def table(figures: list[dict[str, Any]]) -> str:
    """Return the figures for people."""
    lines = [
        "hosts   first run   second run   tasks on a control-plane host   changed",
        f"  2        {FLOOR_SECONDS:4.0f} s            -                              -         -   by hand: the floor",
    ]
    lines += [
        f"{figure['hosts']:3d}       {figure['first_run_seconds']:5.1f} s      {figure['second_run_seconds']:5.1f} s"
        f"   {figure['second_run_tasks']:29d}   {figure['second_run_changed']:7d}"
        for figure in figures
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure all sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, action="append", help="a size; may be given again (1, 3 and 6)")
    sizes = parser.parse_args().hosts or [1, 3, 6]
    subprocess.run([sys.executable, "tools/cluster", "prepare"], cwd=CHECKOUT, check=True)
    figures = [measure(size) for size in sizes]
    print("\n" + table(figures) + "\n")
    print(json.dumps({"floor_seconds_two_hosts_by_hand": FLOOR_SECONDS, "figures": figures}))


if __name__ == "__main__":
    main()
