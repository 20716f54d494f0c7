# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A cluster that its own timers back up to a store of the lab, and that comes back from there."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from etcd_faults import destroy, hashes, names, put, restore
from faults_lab import CHECKOUT, Lab, wait_for
from plainkube_lab.system import cache_folder

PROGRAM = "/usr/local/lib/plainkube/etcd-backup"
KEY, SECRET, PASSWORD = "plainkube", "kept-by-the-store", "only-for-this-lab"


@pytest.fixture(scope="module")
def store(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An S3 server at the lab's own gateway; yields the repository's address."""
    fill = [sys.executable, str(CHECKOUT / "tools" / "artifacts"), "fill", "--only", "versitygw"]
    subprocess.run(fill, check=True, cwd=CHECKOUT)
    program = next((cache_folder() / "mirror" / "versitygw").glob("*/linux/amd64/versitygw"))
    folder = tmp_path_factory.mktemp("store")
    (folder / "backups").mkdir()
    gateway = lab.nodes[lab.worker].address.rpartition(".")[0] + ".1"
    with socket.create_server((gateway, 0)) as probe:
        port = probe.getsockname()[1]
    with (folder.parent / "store.log").open("wb") as log:
        # The mirror's files are not executable; the loader runs them as they are.
        binary = folder.parent / "versitygw"
        binary.write_bytes(program.read_bytes())
        binary.chmod(0o755)
        process = subprocess.Popen(
            [str(binary), "--port", f"{gateway}:{port}", "posix", str(folder)],
            env={"PATH": os.environ["PATH"], "ROOT_ACCESS_KEY": KEY, "ROOT_SECRET_KEY": SECRET},
            stdout=log,
            stderr=log,
        )
    try:
        wait_for("the store listens", lambda: listens(gateway, port), 30)
        yield f"s3:http://{gateway}:{port}/backups/etcd"
    finally:
        process.terminate()
        process.wait()


def listens(address: str, port: int) -> bool:
    with suppress(OSError), socket.create_connection((address, port), 1):
        return True
    return False


@pytest.fixture(scope="module")
def settings(lab: Lab, store: str) -> dict[str, Any]:
    """What the inventory says of backups: every 20 seconds one if anything was written."""
    found = {
        "plainkube_backup_repository": store,
        "plainkube_backup_password": PASSWORD,
        "plainkube_backup_environment": {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET},
        "etcd_backup_calendar": "*:*:0/20",
        "etcd_backup_delay_minutes": 0,
        "etcd_backup_fresh_minutes": 0,
    }
    lab.converge(extra=found)
    return found


def newest(lab: Lab) -> str:
    """Return the id of the newest snapshot in the repository, as a host tells it; empty if there is none."""
    text = lab.ssh(lab.members("etcd")[0], f"{PROGRAM} list", fatal=False)
    found = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return str(max(found, key=lambda one: one["timestamp"])["id"]) if found else ""


def test_a_second_run_changes_nothing_and_shows_no_secret(lab: Lab, settings: dict[str, Any]) -> None:
    run = lab.converge("-vvv", "--diff", extra=settings)
    assert run.changed == set()
    # The command line of the test itself is not part of what is printed.
    assert PASSWORD not in run.output
    assert SECRET not in run.output


def test_the_units_are_sandboxed(lab: Lab, settings: dict[str, Any]) -> None:
    for host in lab.members("etcd"):
        said = lab.ssh(host, "systemd-analyze security --no-pager etcd-backup@backup.service | tail -1")
        assert float(said.split(":")[1].split()[0]) <= 3.0, said


def test_two_of_three_hosts_come_back_from_what_the_timer_stored(lab: Lab, settings: dict[str, Any]) -> None:
    put(lab, "backed-up")
    # One that is under way may be from before the object. Old ones are forgotten meanwhile, so they are not counted.
    for what in ("a snapshot", "another one"):
        before = newest(lab)
        wait_for(f"the timers have stored {what}", lambda before=before: newest(lab) not in ("", before), 180)
    for host in lab.members("etcd")[1:]:
        destroy(lab, host)
    restore(lab, **settings, etcd_restore_from="repository")
    assert "backed-up" in names(lab)
    assert len(hashes(lab)) == 1


def test_the_rehearsal_and_the_metrics(lab: Lab, settings: dict[str, Any]) -> None:
    host = lab.members("etcd")[0]
    lab.ssh(host, "systemctl start etcd-backup@rehearse.service")
    metrics = lab.ssh(host, "cat /var/lib/prometheus/node-exporter/*.prom")
    assert "rehearsal" in metrics
    assert lab.converge(extra=settings).changed == set()
