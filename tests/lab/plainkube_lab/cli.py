# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The command line: create, status, restart, destroy."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import machines, podman
from .access import answers_ssh, lab_folder, prepare_identities, ssh_command, system_state, wait_until_ready
from .images import ensure_container_image, ensure_machine_image, remove_images
from .model import Lab, LabError, Node, parse_inventory
from .system import locked, run, say, warn

# Seconds until a node must be up; software emulation on a busy machine is slow.
DEADLINES = {"container": 120, "vm": 600}
# Debian package -> a file that shows it is there; for the kind of node that needs it.
NEEDS = {
    "container": {
        "iptables": "iptables",
        "mmdebstrap": "mmdebstrap",
        "netavark": "/usr/lib/podman/netavark",
        "openssh-client": "ssh-keygen",
        "podman": "podman",
        "runc": "runc",
    },
    "vm": {
        "e2fsprogs": "mke2fs",
        "mmdebstrap": "mmdebstrap",
        "openssh-client": "ssh-keygen",
        "qemu-system-x86": "qemu-system-x86_64",
        "qemu-utils": "qemu-img",
    },
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("create", "make and start what is missing, and wait until all nodes answer"),
        ("status", "show the nodes; ends with 1 when one is not up"),
        ("restart", "shut nodes down and start them again"),
        ("destroy", "remove the lab's containers, machines, volumes and network"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument(
            "--inventory", required=True, type=Path, metavar="DIR", help="the inventory that describes the lab"
        )
        if name == "restart":
            command.add_argument("nodes", nargs="*", metavar="NODE", help="only these (default: all)")
        if name == "destroy":
            command.add_argument("--all", action="store_true", help="remove the images too, which all labs share")
    options = parser.parse_args(arguments)
    try:
        lab = read_inventory(options.inventory)
        check_needs(lab)
        if options.command == "create":
            create(lab)
        elif options.command == "status":
            return status(lab)
        elif options.command == "restart":
            restart(lab, options.nodes)
        else:
            destroy(lab, options.all)
    except LabError as error:
        for line in str(error).splitlines():
            warn(line)
        return 1
    except KeyboardInterrupt:
        warn("interrupted; the same command carries on from here")
        return 130
    return 0


def read_inventory(folder: Path) -> Lab:
    """Reads an inventory as Ansible does, with the Ansible of this virtual environment if there is one."""
    if not folder.exists():
        raise LabError(f"{folder}: there is no such inventory")
    beside = Path(sys.executable).parent / "ansible-inventory"
    program = str(beside) if beside.exists() else shutil.which("ansible-inventory")
    if not program:
        raise LabError(
            "ansible-inventory is missing: run this with the Python of the virtual environment that has Ansible"
        )
    return parse_inventory(json.loads(run([program, "--inventory", folder, "--list"]).stdout))


def check_needs(lab: Lab) -> None:
    """Raises LabError with one line for each missing package."""
    faults = []
    packages = {package: file for node in lab.nodes for package, file in NEEDS[node.kind].items()}
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    for package, file in sorted(packages.items()):
        if not shutil.which(file, path=path):
            faults.append(f"{file} is missing: apt-get install {package}")
    if os.geteuid() != 0:
        faults.append("containers with addresses of their own, and building their images, need root: run this as root")
    if faults:
        raise LabError("\n".join(faults))


def create(lab: Lab) -> None:
    begin = time.monotonic()
    with locked(lab_folder(lab.name) / "lock"):
        prepare_identities(lab)
        present = podman.containers(lab.name) if lab.of_kind("container") else {}
        to_make = [node for node in lab.of_kind("container") if node.name not in present]
        to_start = [
            node for node in lab.of_kind("container") if present.get(node.name, {}).get("State", "running") != "running"
        ]
        machines_to_start = [node for node in lab.of_kind("vm") if not machines.is_running(node)]
        images = {suite: ensure_container_image(suite) for suite in sorted({node.suite for node in to_make})}
        without_disk = [node for node in machines_to_start if not machines.has_disk(node)]
        disks = {suite: ensure_machine_image(suite) for suite in sorted({node.suite for node in without_disk})}
        if to_make:
            podman.ensure_network(lab)
        for node in to_make:
            say(f"{node.name}: starting a {node.suite} container at {node.address}")
            podman.start(node, lab, images[node.suite])
        for node in to_start:
            say(f"{node.name}: starting its container again")
            podman.podman("start", node.container)
        for node in without_disk:
            machines.make_disk(node, disks[node.suite])
        for node in machines_to_start:
            say(f"{node.name}: starting a {node.suite} virtual machine, SSH at {node.address} port {node.port}")
            machines.start(node)
        wait(list(lab.nodes))
    started = len(to_make) + len(to_start) + len(machines_to_start)
    what = f"{started} of {len(lab.nodes)} nodes started" if started else f"all {len(lab.nodes)} nodes were up already"
    say(f"{lab.name}: {what}, {time.monotonic() - begin:.1f} s")


def is_running(node: Node) -> bool:
    return podman.is_running(node) if node.kind == "container" else machines.is_running(node)


def journal(node: Node) -> str:
    return podman.journal(node) if node.kind == "container" else machines.journal(node)


def wait(nodes: list[Node]) -> None:
    """Waits until all nodes are up; if some do not come up, shows their journals and raises LabError."""
    late = wait_until_ready(nodes, is_running, max(DEADLINES[node.kind] for node in nodes))
    for node, state in late.items():
        warn(f"{node.name} did not come up: {state}. Its last words:\n{journal(node)}")
    if late:
        raise LabError(f"{len(late)} of {len(nodes)} nodes did not come up: {', '.join(node.name for node in late)}")


def status(lab: Lab) -> int:
    def describe(node: Node) -> str:
        if not is_running(node):
            return "absent or stopped"
        return system_state(node) if answers_ssh(node) else "no answer at its SSH port"

    with ThreadPoolExecutor(max_workers=len(lab.nodes)) as pool:
        states = list(pool.map(describe, lab.nodes))
    for node, state in zip(lab.nodes, states):
        print(f"{node.name:20} {node.kind:10} {node.suite:10} {node.address}:{node.port:<6} {state}")
    return 0 if all(state in ("running", "degraded") for state in states) else 1


def restart(lab: Lab, names: list[str]) -> None:
    unknown = sorted(set(names) - {node.name for node in lab.nodes})
    if unknown:
        raise LabError(
            f"{', '.join(unknown)}: not in the inventory; its hosts are {', '.join(n.name for n in lab.nodes)}"
        )
    chosen = [node for node in lab.nodes if not names or node.name in names]
    begin = time.monotonic()

    def again(node: Node) -> None:
        if node.kind == "container":
            podman.podman("restart", node.container)
        else:
            run(ssh_command(node, "systemctl", "poweroff"), check=False, timeout=30)
            machines.wait_until_stopped(node, 120)
            machines.start(node)

    with locked(lab_folder(lab.name) / "lock"):
        say(f"restarting {', '.join(node.name for node in chosen)}")
        with ThreadPoolExecutor(max_workers=len(chosen)) as pool:
            list(pool.map(again, chosen))
        wait(chosen)
    say(f"{', '.join(node.name for node in chosen)}: up again after {time.monotonic() - begin:.1f} s")


def destroy(lab: Lab, images: bool) -> None:
    begin = time.monotonic()
    with locked(lab_folder(lab.name) / "lock"):
        removed = machines.remove(lab.name)
        if shutil.which("podman"):
            removed += podman.remove(lab.name)
        shutil.rmtree(lab_folder(lab.name))
    if images:
        remove_images()
    say(f"{lab.name}: removed {', '.join(removed) or 'nothing, there was none'}, {time.monotonic() - begin:.1f} s")
