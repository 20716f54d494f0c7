# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The running cluster under test: what its inventory (LAB_INVENTORY) describes, and its hosts over SSH."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import testinfra

NETWORK = "{{ {'kind': plainkube_network, 'backend': plainkube_network_backend} | combine(cluster_network) }}"
CHECKOUT = Path(__file__).resolve().parents[2]
Host = testinfra.host.Host


@cache
def inventory() -> Path:
    """Return the inventory under test."""
    return Path(os.environ["LAB_INVENTORY"]).resolve()


@cache
def description() -> dict[str, Any]:
    """Return what playbooks/describe-cluster.yml says, with each host's way in."""
    play = [
        {
            "hosts": "all",
            "gather_facts": False,
            "tasks": [
                {"ansible.builtin.import_role": {"name": "plainkube.cluster.cluster", "tasks_from": "contract"}},
                {
                    "ansible.builtin.debug": {
                        "msg": {
                            "topology": "{{ cluster_topology }}",
                            "state_dir": "{{ plainkube_state_dir }}",
                            "kubeconfig": "{{ cluster_admin_kubeconfig }}",
                            "network": NETWORK,
                            "address": "{{ plainkube_address }}",
                            "families": "{{ cluster_pod_cidrs | length }}",
                            "ndots": "{{ plainkube_dns_ndots }}",
                            "connection": "{{ ansible_host | default(inventory_hostname) }}",
                            "port": "{{ ansible_port | default(22) }}",
                            "user": "{{ ansible_user }}",
                            "key": "{{ ansible_ssh_private_key_file }}",
                            "arguments": "{{ ansible_ssh_common_args }}",
                            "lab": "{{ lab_kind | default('container') }}",
                        }
                    }
                },
            ],
        }
    ]
    folder = CHECKOUT / ".cache"
    folder.mkdir(exist_ok=True)
    playbook = folder / f"describe-{os.getpid()}.yml"
    playbook.write_text(json.dumps(play))
    try:
        done = subprocess.run(
            ["ansible-playbook", "-i", str(inventory()), str(playbook)],
            cwd=CHECKOUT,
            env={
                **os.environ,
                "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
                "ANSIBLE_DEPRECATION_WARNINGS": "False",
            },
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        playbook.unlink()
    plays = json.loads(done.stdout[done.stdout.index("{") :])["plays"]
    found: dict[str, Any] = {host: result["msg"] for host, result in plays[0]["tasks"][-1]["hosts"].items()}
    return found


def members(group: str) -> list[str]:
    """Return the names of the hosts that are etcd, control_plane, workers, nodes or all."""
    some = next(iter(description().values()))
    return [host["name"] for host in some["topology"][group]]


@cache
def _ssh_files() -> tempfile.TemporaryDirectory[str]:
    """Return the folder of this run's SSH configurations; it goes when the run ends."""
    return tempfile.TemporaryDirectory()


@cache
def connect(name: str) -> Host:
    """Return a host over SSH, one connection for all tests."""
    facts = description()[name]
    file = Path(_ssh_files().name) / name
    # The options of ansible_ssh_common_args are all of the form -o Name=value.
    options = [word for word in facts["arguments"].split() if word != "-o"]
    lines = [f"Host {name}", f"HostName {facts['connection']}", f"Port {facts['port']}", f"User {facts['user']}"]
    lines += [f"IdentityFile {facts['key']}", *(option.replace("=", " ", 1) for option in options)]
    file.write_text("\n".join(lines) + "\n")
    return testinfra.get_host(f"ssh://{name}?ssh_config={file}&controlpersist=60")
