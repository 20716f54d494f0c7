# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Nodes as virtual machines under QEMU's emulation, each with its own kernel, modules, sysctls, cgroups and reboots."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from .access import identity_file, lab_folder, read_identity
from .model import LabError, Node
from .system import run


def machine_folder(node: Node) -> Path:
    return identity_file(node).parent


def qemu_arguments(node: Node, image: Path, folder: Path, machine_id: str) -> list[str]:
    """Arguments of QEMU for one node; it goes to the background once the machine runs, and stays through reboots."""
    forwards = [(node.port, 22), *((forward.port, forward.node_port) for forward in node.forwards)]
    network = ",".join(f"hostfwd=tcp:{node.address}:{port}-:{node_port}" for port, node_port in forwards)
    kernel = [
        "root=/dev/vda rw console=ttyS0 net.ifnames=0",
        # On a busy machine emulated processors stand still for long: no reason to complain.
        "rcupdate.rcu_cpu_stall_suppress=1 nowatchdog",
        # systemd reads these before any service runs.
        f"systemd.hostname={node.name} systemd.machine_id={machine_id}",
    ]
    return [
        "qemu-system-x86_64", "-name", f"plainkube-{node.lab}-{node.name}",
        "-nodefaults", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", str(node.cpus), "-m", str(node.memory),
        "-kernel", str(image / "vmlinuz"), "-initrd", str(image / "initrd.img"), "-append", " ".join(kernel),
        # A lab's disk need not survive a crash of this machine.
        "-drive", f"file={folder / 'disk.qcow2'},if=virtio,format=qcow2,cache=unsafe",
        "-drive", f"file={folder / 'identity.tar'},if=virtio,format=raw,readonly=on",
        "-netdev", f"user,id=net0,{network}", "-device", "virtio-net-pci,netdev=net0",
        "-object", "rng-random,id=rng0,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng0",
        "-display", "none", "-monitor", "none", "-serial", f"file:{folder / 'console.log'}",
        "-pidfile", str(folder / "qemu.pid"), "-daemonize",
    ]  # fmt: skip


def running_pid(folder: Path) -> int | None:
    """The process of the machine in this folder, if it runs: its command line must name the folder's pid file."""
    pid_file = folder / "qemu.pid"
    try:
        pid = int(pid_file.read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    return pid if os.fsencode(pid_file) in command else None


def is_running(node: Node) -> bool:
    return running_pid(machine_folder(node)) is not None


def has_disk(node: Node) -> bool:
    return (machine_folder(node) / "disk.qcow2").exists()


def make_disk(node: Node, image: Path) -> None:
    """Gives the machine its own copy-on-write disk, and remembers the image below it: its kernel belongs to it too."""
    folder = machine_folder(node)
    (folder / "image").unlink(missing_ok=True)
    (folder / "image").symlink_to(image)
    disk = folder / "disk.qcow2"
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", image / "disk.img", disk])


def start(node: Node) -> None:
    """Starts the machine on its own disk."""
    folder = machine_folder(node)
    run(qemu_arguments(node, folder / "image", folder, read_identity(node, "etc/machine-id").strip()))


def wait_until_stopped(node: Node, deadline: float) -> None:
    end = time.monotonic() + deadline
    while is_running(node):
        if time.monotonic() > end:
            console = machine_folder(node) / "console.log"
            raise LabError(f"{node.name}: did not power off within {deadline:.0f} s; its console is {console}")
        time.sleep(0.5)


def journal(node: Node) -> str:
    """The last lines of the machine's console."""
    try:
        return "\n".join((machine_folder(node) / "console.log").read_text(errors="replace").splitlines()[-40:])
    except FileNotFoundError:
        return "(no console output)"


def remove(lab: str) -> list[str]:
    """Ends all machines of a lab; returns their names. Their files go with the lab's folder."""
    names = []
    for pid_file in sorted(lab_folder(lab).glob("*/qemu.pid")):
        pid = running_pid(pid_file.parent)
        if pid is None:
            continue
        os.kill(pid, signal.SIGTERM)
        while running_pid(pid_file.parent) is not None:
            time.sleep(0.1)
        names.append(pid_file.parent.name)
    return names
