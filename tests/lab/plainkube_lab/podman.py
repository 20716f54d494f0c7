# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Nodes as containers that a kubelet works in: why each option is there stands beside it."""

from __future__ import annotations

import ipaddress
import json
import subprocess
from pathlib import Path
from typing import Any

from .access import identity_file, lab_cache
from .model import LABEL, Lab, Node
from .system import cache_folder, run

MIRROR_MOUNT = "/srv/plainkube-mirror"
# containerd's overlays do not work on the container's own overlay; the others keep data off its layer.
VOLUMES = {"containerd": "/var/lib/containerd", "kubelet": "/var/lib/kubelet", "etcd": "/var/lib/etcd"}
CONTAINERS_CONF = """\
# Made by plainkube's lab for its own calls of podman; the machine's own settings are not touched.
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
"""


def podman(*arguments: str | Path, check: bool = True, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Runs podman with the lab's own settings."""
    settings = lab_cache() / "containers.conf"
    if not settings.exists() or settings.read_text() != CONTAINERS_CONF:
        settings.write_text(CONTAINERS_CONF)
    return run(["podman", *arguments], env={"CONTAINERS_CONF": str(settings)}, check=check, timeout=timeout)


def mac_address(address: str) -> str:
    """A locally administered hardware address, made from an IPv4 address."""
    return ":".join(f"{number:02x}" for number in (2, 0, *ipaddress.IPv4Address(address).packed))


def run_arguments(node: Node, network: str, image: str, identity: Path, mirror: Path) -> list[str]:
    """Arguments of `podman run` for one node."""
    volumes: list[str] = []
    for name, path in VOLUMES.items():
        volumes += ["--volume", f"{node.container}-{name}:{path}:suid,dev"]
    return [
        "run", "--detach", "--name", node.container, "--hostname", node.name,
        "--label", f"{LABEL}={node.lab}", "--label", f"{LABEL}.node={node.name}",
        # A kubelet mounts, makes cgroups and sets sysctls.
        "--privileged",
        # podman's own preparation for systemd would give all nodes one shared tree of cgroups.
        "--systemd=false", "--env", "container=podman",
        "--tmpfs", "/run:rw,mode=755", "--tmpfs", "/tmp:rw,mode=1777",
        # runc in the node looks for pods' cgroups below its own root.
        "--cgroupns=private",
        # The signal that makes systemd shut down in order.
        "--stop-signal", "SIGRTMIN+3", "--stop-timeout", "30",
        # Bounded, as real hosts are; podman's usual 2048 processes are too few for a host full of pods.
        "--memory", f"{node.memory}m", "--pids-limit", "16384",
        # A file mounted over /etc/hosts could not be replaced.
        "--no-hosts", "--network", network, "--ip", node.address,
        *(["--ip6", node.address_ipv6] if node.address_ipv6 else []),
        # A restarted node keeps its hardware address: with a new one, neighbours talk to the old one for half a minute.
        "--mac-address", mac_address(node.address),
        "--volume", f"{identity}:/srv/plainkube-lab/identity.tar:ro",
        "--volume", f"{mirror}:{MIRROR_MOUNT}:ro",
        *volumes,
        image, "/usr/local/sbin/lab-init",
    ]  # fmt: skip


def containers(lab: str) -> dict[str, dict[str, Any]]:
    """Node name -> podman's description, of all containers of a lab, running or not."""
    answer = podman("ps", "--all", "--filter", f"label={LABEL}={lab}", "--format", "json").stdout
    return {entry["Labels"][f"{LABEL}.node"]: entry for entry in json.loads(answer or "[]")}


def ensure_network(lab: Lab) -> None:
    if podman("network", "exists", lab.network, check=False).returncode == 0:
        return
    # Nodes then use this machine's name servers instead of one more service.
    subnets = ["--subnet", lab.subnet]
    if lab.subnet_ipv6:
        subnets += ["--ipv6", "--subnet", lab.subnet_ipv6]
    podman("network", "create", "--disable-dns", "--label", f"{LABEL}={lab.name}", *subnets, lab.network)


def ensure_volumes(node: Node) -> None:
    for name in VOLUMES:
        volume = f"{node.container}-{name}"
        if podman("volume", "exists", volume, check=False).returncode:
            podman("volume", "create", "--label", f"{LABEL}={node.lab}", volume)


def start(node: Node, lab: Lab, image: str) -> None:
    """Makes and starts the node's container."""
    mirror = cache_folder() / "mirror"
    mirror.mkdir(parents=True, exist_ok=True)
    ensure_volumes(node)
    podman(*run_arguments(node, lab.network, image, identity_file(node), mirror))


def journal(node: Node) -> str:
    """The last lines of a node that did not come up."""
    lines = podman("exec", node.container, "journalctl", "--no-pager", "--lines=40", check=False, timeout=30)
    logs = podman("logs", "--tail", "20", node.container, check=False, timeout=30)
    return (logs.stdout + logs.stderr + lines.stdout).strip()


def is_running(node: Node) -> bool:
    return podman("inspect", "--format", "{{.State.Running}}", node.container, check=False).stdout.strip() == "true"


def remove(lab: str) -> list[str]:
    """Removes all that carries the lab's label; returns what."""
    label = f"label={LABEL}={lab}"
    names = [entry["Names"][0] for entry in containers(lab).values()]
    if names:
        podman("rm", "--force", "--time", "0", *names)
    volumes = podman("volume", "ls", "--quiet", "--filter", label).stdout.split()
    if volumes:
        podman("volume", "rm", *volumes)
    networks = podman("network", "ls", "--quiet", "--filter", label).stdout.split()
    if networks:
        podman("network", "rm", *networks)
    return [*names, *volumes, *networks]
