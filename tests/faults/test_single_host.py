# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One host: what site.yml says when it is wrong, and what it leaves behind when its process is killed.

The tests stand in the order in which the host goes through them: empty at first, a cluster at the end.
"""

from __future__ import annotations

import base64
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from faults_lab import KilledRun, Lab, Run
from plainkube_lab.access import lab_folder

HOST = "alone"
# Where the collection writes; anything else that a host writes meanwhile is its own business.
WRITTEN_FOLDERS = "/etc /opt /usr /var/lib/etcd /var/lib/kubelet /var/lib/containerd"
KILLS = 10
# How the files of private keys begin in base64.
ENCODED_KEYS = [
    base64.b64encode(f"-----BEGIN {kind}PRIVATE KE".encode()).decode().rstrip("=")[:-1] for kind in ("", "EC ", "RSA ")
]


# Wrong hosts and wrong sources, found before anything is written


def refused(single: Lab, extra: dict[str, Any] | None = None) -> str:
    """Return what a run says that must end before it changes anything."""
    marker = "/run/plainkube-faults-marker"
    single.ssh(HOST, f"touch {marker}")
    run = single.site(extra=extra)
    assert run.code != 0, run.output[-3000:]
    assert run.changed == set()
    assert single.ssh(HOST, f"find {WRITTEN_FOLDERS} -newer {marker} -type f") == ""
    return " ".join(run.output.split())


def test_a_taken_port_and_a_full_disk_are_named_together(single: Lab) -> None:
    single.ssh(HOST, "systemd-run --unit=squatter /usr/bin/python3 -m http.server 10250")
    single.ssh(HOST, "mkdir -p /var/lib/etcd && mount -t tmpfs -o size=100m tmpfs /var/lib/etcd")
    try:
        said = refused(single)
    finally:
        single.ssh(HOST, "umount /var/lib/etcd; systemctl stop squatter")
    assert f"{HOST}: found python3" in said
    assert "on 0.0.0.0 port 10250; wanted the port free for kubelet. Stop it, or give it another port" in said
    assert f"{HOST}: found 100 MiB free for /var/lib/etcd; wanted at least 2048 MiB. Make room or enlarge it" in said


@contextmanager
def empty_mirror(address: str, folder: Path) -> Iterator[str]:
    """Serve nothing at an address of this machine; yield its URL."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "http.server", "--bind", address, "--directory", str(folder), str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 20
        while True:
            try:
                socket.create_connection((address, port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < end
                time.sleep(0.1)
        yield f"http://{address}:{port}"
    finally:
        server.terminate()
        server.wait()


def test_a_mirror_that_answers_404_is_named(single: Lab, tmp_path: Path) -> None:
    gateway = single.nodes[HOST].address.rpartition(".")[0] + ".1"
    with empty_mirror(gateway, tmp_path) as mirror:
        said = refused(single, {"plainkube_artifact_source": mirror})
    assert mirror in said
    assert "404" in said
    assert "plainkube_artifact_source" in said


def test_a_mirror_folder_that_is_not_there_is_named(single: Lab) -> None:
    said = refused(single, {"plainkube_artifact_source": "file:///srv/nothing"})
    assert "/srv/nothing" in said
    assert "plainkube_artifact_source" in said


# What is printed


def secrets_of(text: str) -> set[str]:
    """Return what nobody may print of a file: the lines of its private keys, also of those in a kubeconfig."""
    encoded = re.findall(r"client-key-data: *(\S+)", text)
    whole = "\n".join([text, *(base64.b64decode(key).decode() for key in encoded)])
    keys = re.findall(r"-BEGIN [A-Z ]*PRIVATE KEY-+\n(.+?)\n-+END", whole, re.DOTALL)
    # A key's last line may be of its public half alone, which certificates and requests for them show too.
    return {line for key in keys for line in key.splitlines()[:-1]}.union(encoded)


def test_a_look_at_an_empty_host_and_a_first_run_print_no_secret(single: Lab) -> None:
    looked = single.converge("--check", "--diff", "-vvv")
    ran = single.converge("--diff", "-vvv")
    state = lab_folder(single.description.name) / "state"
    texts = [path.read_text() for path in state.rglob("*") if path.is_file()]
    texts.append(single.ssh(HOST, "grep -rlsE 'PRIVATE KEY-|client-key-data' /etc /var/lib/kubelet | xargs cat"))
    secrets = {(state / "secrets" / "encryption-key").read_text().strip()}.union(*map(secrets_of, texts))
    assert len(secrets) > 20
    for run in (looked, ran):
        assert [secret for secret in secrets if secret in run.output] == []
        # Nor as base64, the way in which files and manifests travel.
        assert [word for word in ("PRIVATE KEY-", *ENCODED_KEYS) if word in run.output] == []
    single.renew()


# Killed runs


def assert_whole(single: Lab, extra: dict[str, Any] | None = None) -> Run:
    """Run site.yml to its end, which includes verify, and see that nothing old or half-written is left."""
    run = single.converge(extra=extra)
    # In check mode a unit that runs with old inputs would be a change, and so would a file that differs.
    look = single.converge("--check", extra=extra)
    assert look.changed == set(), look.output[-3000:]
    again = single.converge(extra=extra)
    assert again.changed == set(), again.output[-3000:]
    left = single.ssh(HOST, "find /etc /opt /usr/local /var/lib/kubelet /var/lib/etcd -name '*plainkube-new*'")
    assert left == ""
    state = lab_folder(single.description.name) / "state"
    assert [str(path) for path in state.rglob("*") if "plainkube-new" in path.name] == []
    return run


def test_runs_killed_one_after_the_other_and_then_one_that_ends(single: Lab) -> None:
    # Where the most is half done: binaries on their way, the first start, files that no process has read yet.
    for task, seconds in (
        ("etcd : Install the etcd binaries", 0.7),
        ("control_plane : Run the control plane with its present inputs", 2.0),
        ("node : Write the kubelet's unit and configuration", 0.5),
    ):
        KilledRun(single.site_command()).at_task(task, seconds)
    assert_whole(single)


def test_a_change_killed_between_its_files_and_the_restart_is_finished_by_the_next_run(single: Lab) -> None:
    extra = {"control_plane_apiserver_extra_arguments": {"event-ttl": "3h"}}
    single.converge()
    KilledRun(single.site_command(extra=extra)).at_task("control_plane : Run the control plane with its present inputs")
    flag = "tr '\\0' ' ' < /proc/$(systemctl show -P MainPID kube-apiserver)/cmdline | grep -c event-ttl=3h || true"
    assert single.ssh(HOST, flag).strip() == "0", "the kill came too late for this test to prove anything"
    before = single.processes()
    assert_whole(single, extra)
    after = single.processes()
    assert single.ssh(HOST, flag).strip() == "1"
    changed = {unit for (_, unit), process in after.items() if process.pid != before[HOST, unit].pid}
    assert changed == {"kube-apiserver.service"}


@pytest.fixture(scope="module")
def full_run_seconds(single: Lab) -> float:
    """Return how long a run on an empty host takes."""
    single.renew()
    return single.converge().seconds


@pytest.mark.long
@pytest.mark.parametrize("kill", range(KILLS))
def test_a_run_killed_on_an_empty_host_is_finished_by_the_next_one(
    single: Lab, full_run_seconds: float, kill: int
) -> None:
    single.renew()
    moment = full_run_seconds * (kill + 0.5) / KILLS
    KilledRun(single.site_command()).after(moment)
    run = assert_whole(single)
    print(f"killed after {moment:.0f} s of {full_run_seconds:.0f} s; the next run took {run.seconds:.0f} s")
