# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""preflight_facts and preflight through real ansible-playbook runs against this machine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NETWORK = {
    "kind": "bridge",
    "backend": "vxlan",
    "pod_cidr": "10.244.0.0/16",
    "node_cidr_size": 24,
    "overhead": 0,
    "mtu": 0,
}
CHECKOUT = Path(__file__).resolve().parents[2]


def run(folder: Path, *options: str, **host: Any) -> tuple[int, str, dict[str, Any]]:
    """Return exit code, output and the facts of one run of both tasks."""
    asked = {
        "etcd": True,
        "control_plane": False,
        "worker": False,
        "address": "127.0.0.1",
        "etcd_data_dir": str(folder / "etcd"),
        "minimum_memory_mib": 1,
        "minimum_disk_mib": {str(folder): 1},
        "minimum_kernel": "3.0",
        "network": NETWORK,
        **host,
    }
    report = folder / "facts.json"
    keep = {"content": "{{ seen.facts | to_json }}", "dest": str(report), "mode": "0600"}
    tasks = [
        {"name": "Read", "plainkube.cluster.preflight_facts": {"host": asked}, "register": "seen"},
        {"name": "Keep", "ansible.builtin.copy": keep, "check_mode": False},
        {"name": "Judge", "plainkube.cluster.preflight": {"facts": "seen"}, "run_once": True},
    ]
    playbook = folder / "play.yml"
    play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": tasks}
    playbook.write_text(json.dumps([play]))
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "localhost,", str(playbook), *options]
    done = subprocess.run(
        [*command, "-e", f"ansible_python_interpreter={sys.executable}"],
        cwd=CHECKOUT,
        env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(CHECKOUT / "collections"), "ANSIBLE_NOCOLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, json.loads(report.read_text())


def test_a_taken_port_an_old_kernel_and_a_small_disk_in_one_message(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code, output, _ = run(
            tmp_path,
            ports=[{"port": port, "address": "0.0.0.0", "process": "etcd"}],
            minimum_kernel="99.0",
            minimum_disk_mib={str(tmp_path / "new"): 10**9},
        )
    assert code != 0
    assert f"{Path(sys.executable).resolve().name} (process {os.getpid()}) on 127.0.0.1 port {port}" in output
    assert "99.0 or newer" in output
    assert "1000000000 MiB" in output


@pytest.fixture
def link() -> Iterator[tuple[str, str]]:
    """Give this machine one more link, of 1400 bytes; yield its name and its address. Needs root."""
    name, address = f"pk{os.getpid()}", "192.0.2.250"
    try:
        for words in (
            ["link", "add", name, "mtu", "1400", "type", "veth", "peer", "name", f"{name}b"],
            ["address", "add", f"{address}/32", "dev", name],
            ["link", "set", name, "up"],
        ):
            subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
        yield name, address
    finally:
        subprocess.run(["ip", "link", "delete", name], check=False, capture_output=True)


def test_a_taken_port_of_the_ingress_and_too_long_packets_end_site_yml(tmp_path: Path, link: tuple[str, str]) -> None:
    name, address = link
    inventory = tmp_path / "hosts.json"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        variables = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "plainkube_address": address,
            "plainkube_state_dir": str(tmp_path / "state"),
            "plainkube_pod_mtu": 1401,
            "plainkube_ingress_instances": [{"name": "public", "http_port": port}],
        }
        groups = {group: {"hosts": {"node-1": None}} for group in ("etcd", "control_plane", "workers", "ingress")}
        inventory.write_text(json.dumps({"all": {"vars": variables, "children": groups}}))
        # Should nothing be found, nothing may be installed on this machine.
        command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(inventory), "site.yml", "--check"]
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0
    listener = f"{Path(sys.executable).resolve().name} (process {os.getpid()}) on 127.0.0.1 port {port}"
    assert f"node-1: found {listener}; wanted the port free for traefik" in said
    assert f"node-1: found plainkube_pod_mtu 1401 on link {name}, which carries 1400 bytes; wanted at most 1400" in said
    assert "changed=0" in said
    assert "Make what only the controller may hold" not in said


def test_facts_of_this_machine(tmp_path: Path) -> None:
    _, output, facts = run(tmp_path)
    assert facts["memory_mib"] > 0
    assert "127.0.0.1" in facts["addresses"]
    assert facts["fsync_p99_milliseconds"] > 0
    assert facts["link"] == {"name": "lo", "mtu": int(Path("/sys/class/net/lo/mtu").read_text())}
    clock = facts["clock"]
    assert abs(clock["offset_seconds"]) <= clock["uncertainty_seconds"] + 0.01
    assert "ahead of" not in output
    assert "behind" not in output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["facts.json", "play.yml"]


def test_check_mode_does_not_measure_the_disk_and_neither_does_a_member_with_data(tmp_path: Path) -> None:
    assert run(tmp_path, "--check")[2]["fsync_p99_milliseconds"] is None
    database = tmp_path / "etcd" / "member" / "snap" / "db"
    database.parent.mkdir(parents=True)
    database.touch()
    code, output, facts = run(tmp_path)
    assert facts["fsync_p99_milliseconds"] is None
    assert code != 0
    assert f"a database in {tmp_path / 'etcd'} that is not this cluster's" in output


def test_data_of_etcd_2(tmp_path: Path) -> None:
    (tmp_path / "etcd" / "member" / "wal").mkdir(parents=True)
    _, output, _ = run(tmp_path)
    assert "data of etcd 2" in output


def test_wrong_arguments_are_all_named(tmp_path: Path) -> None:
    (tmp_path / "facts.json").write_text("{}")
    code, output, _ = run(tmp_path, minimum_memory_mib="much", sapling=1)
    assert code != 0
    assert "minimum_memory_mib" in output
    assert "sapling" in output
