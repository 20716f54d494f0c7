# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Who a node is and how it is reached: machine-id, SSH keys, known hosts, and waiting until it answers."""

from __future__ import annotations

import io
import socket
import tarfile
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .model import Lab, LabError, Node
from .system import cache_folder, private_folder, run, say, write_private

HOST_KEY = "etc/ssh/ssh_host_ed25519_key"


def lab_cache() -> Path:
    return private_folder(cache_folder() / "lab")


def lab_folder(lab: str) -> Path:
    """What belongs to one lab: known_hosts, and a folder for each node."""
    return lab_cache() / "labs" / lab


def identity_file(node: Node) -> Path:
    """A tar archive that is unpacked over the node's root before its services start."""
    return lab_folder(node.lab) / node.name / "identity.tar"


def login_key() -> Path:
    """The private key that opens every node of every lab of this user; made once."""
    key = lab_cache() / "id_ed25519"
    if not key.exists():
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "plainkube-lab", "-f", key])
    return key


def identity_files(
    node: Node, machine_id: str, host_key: bytes, host_key_public: bytes, login: bytes
) -> dict[str, tuple[int, bytes]]:
    """Path -> mode and content of what makes one node different from the others."""
    hosts = f"127.0.0.1 localhost\n127.0.1.1 {node.name}\n::1 localhost ip6-localhost ip6-loopback\n"
    files = {
        "etc/machine-id": (0o444, f"{machine_id}\n".encode()),
        "etc/hosts": (0o644, hosts.encode()),
        HOST_KEY: (0o600, host_key),
        f"{HOST_KEY}.pub": (0o644, host_key_public),
        "root/.ssh/authorized_keys": (0o600, login),
    }
    if node.kind == "vm":  # a container has its name from podman, as a mount that cannot be replaced
        files["etc/hostname"] = (0o644, f"{node.name}\n".encode())
    return files


def pack_tree(files: dict[str, tuple[int, bytes]]) -> bytes:
    """A tar archive of these files, owned by root, the same bytes for the same input."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, (mode, content) in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.mode, entry.size = mode, len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def prepare_identities(lab: Lab) -> None:
    """Makes what is missing of the nodes' identities, and the lab's known_hosts and ssh_config."""
    login = login_key().with_suffix(".pub").read_bytes()
    lines = []
    for node in lab.nodes:
        archive = identity_file(node)
        folder = private_folder(archive.parent)
        if not archive.exists():
            key = folder / "key"
            for leftover in (key, key.with_suffix(".pub")):
                leftover.unlink(missing_ok=True)
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", node.name, "-f", key])
            files = identity_files(
                node, uuid.uuid4().hex, key.read_bytes(), key.with_suffix(".pub").read_bytes(), login
            )
            write_private(archive, pack_tree(files))
            key.unlink()
            key.with_suffix(".pub").unlink()
        kind, key_public = read_identity(node, f"{HOST_KEY}.pub").split()[:2]
        lines.append(f"{node.known_hosts_name} {kind} {key_public}\n")
    known_hosts = lab_folder(lab.name) / "known_hosts"
    write_private(known_hosts, "".join(lines).encode())
    settings = ssh_config(lab.nodes, login_key(), known_hosts)
    write_private(lab_folder(lab.name) / "ssh_config", settings.encode())


def read_identity(node: Node, name: str) -> str:
    """One file of a node's identity."""
    with tarfile.open(identity_file(node)) as archive:
        member = archive.extractfile(name)
        assert member is not None
        return member.read().decode()


def ssh_config(nodes: tuple[Node, ...], key: Path, known_hosts: Path) -> str:
    """Settings for `ssh -F FILE NODE`, for people and tests; they trust only the lab's own known_hosts."""
    lines = ["# Made by plainkube's lab."]
    for node in nodes:
        lines += [f"Host {node.name}", f"  HostName {node.address}", f"  Port {node.port}"]
    lines += [
        "Host *",
        "  User root",
        f'  IdentityFile "{key}"',
        "  IdentitiesOnly yes",
        f'  UserKnownHostsFile "{known_hosts}"',
        "  GlobalKnownHostsFile none",
        "  StrictHostKeyChecking yes",
        "  BatchMode yes",
        "  ConnectTimeout 5",
        "  ServerAliveInterval 5",
    ]
    return "\n".join(lines) + "\n"


def ssh_command(node: Node, *command: str) -> list[str]:
    return ["ssh", "-F", str(lab_folder(node.lab) / "ssh_config"), node.name, *command]


def answers_ssh(node: Node) -> bool:
    """Whether something at the node's SSH port says so; costs no login."""
    try:
        with socket.create_connection((node.address, node.port), timeout=2) as connection:
            connection.settimeout(2)
            return connection.recv(4).startswith(b"SSH")
    except OSError:
        return False


def system_state(node: Node) -> str:
    """What systemd says of the whole node: running, degraded, starting, ...; or why it could not be asked."""
    try:
        result = run(ssh_command(node, "systemctl", "is-system-running"), check=False, timeout=20)
    except LabError as error:
        return str(error)
    return result.stdout.strip() or result.stderr.strip().rpartition("\n")[2] or "no answer"


def failed_units(node: Node) -> str:
    result = run(ssh_command(node, "systemctl", "--failed", "--plain", "--no-legend"), check=False, timeout=20)
    return ", ".join(line.split()[0] for line in result.stdout.splitlines() if line.strip())


def wait_until_ready(nodes: list[Node], is_alive: Callable[[Node], bool], deadline: float) -> dict[Node, str]:
    """Waits for all nodes at once.

    Returns, for each node that is not ready within `deadline` seconds or that died, what it last said.
    """

    def wait(node: Node) -> str:
        end = time.monotonic() + deadline
        pause = 0.3 if node.kind == "container" else 2
        state = "nothing answers at its SSH port"
        tries = 0
        while not answers_ssh(node):
            tries += 1
            if tries % 10 == 0 and not is_alive(node):
                return "it stopped"
            if time.monotonic() > end:
                return state
            time.sleep(pause)
        while (state := system_state(node)) not in ("running", "degraded"):
            if time.monotonic() > end:
                return state
            time.sleep(pause)
        if state == "degraded":
            say(f"{node.name}: up, but these units failed: {failed_units(node)}")
        return ""

    with ThreadPoolExecutor(max_workers=max(1, len(nodes))) as pool:
        answers = dict(zip(nodes, pool.map(wait, nodes)))
    return {node: answer for node, answer in answers.items() if answer}
