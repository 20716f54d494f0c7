# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a cluster holds after its etcd was destroyed, restored, restored wrongly, or half restored.

The tests stand in the order in which the cluster goes through them; each leaves it well.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from etcd_faults import ETCDCTL, NAMESPACE, api, cluster_name, command, destroy, hashes, names, play, put, restore
from faults_lab import FOLDER, KilledRun, Lab
from kubernetes import client, watch
from plainkube_lab.access import lab_folder, ssh_command


def leftovers(lab: Lab) -> dict[str, str]:
    return lab.each(lab.members("etcd"), "ls -d /var/lib/etcd.restore-* /var/lib/etcd-restore 2>/dev/null; true")


@pytest.fixture(scope="module")
def snapshot(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A snapshot with the object "kept", on the controller; "later" is written after it."""
    host = lab.members("etcd")[1]
    put(lab, "kept")
    lab.ssh(host, f"{ETCDCTL} snapshot save /root/faults.db")
    path = tmp_path_factory.mktemp("snapshot") / "etcd.db"
    copied = subprocess.run(ssh_command(lab.nodes[host], "cat /root/faults.db"), capture_output=True, check=True)
    path.write_bytes(copied.stdout)
    lab.ssh(host, "rm /root/faults.db")
    put(lab, "later")
    yield path
    for name in names(lab):
        api(lab).delete_namespaced_config_map(name, NAMESPACE)


# Nothing happens


def test_without_the_name_of_the_cluster_nothing_is_changed(lab: Lab, snapshot: Path) -> None:
    before = lab.processes()
    run = play(lab, "restore-etcd.yml", confirm="another", etcd_restore_snapshot=str(snapshot))
    assert run.code != 0
    assert f"-e confirm={cluster_name(lab)} (found: confirm=another)" in " ".join(run.output.split())
    assert lab.processes() == before


def test_check_mode_says_what_it_would_do_and_does_nothing(lab: Lab, snapshot: Path) -> None:
    before = lab.processes()
    run = restore(lab, "--check", etcd_restore_snapshot=str(snapshot))
    for name in ("Swap the data", "Stop what writes to etcd", "Start the API servers"):
        assert name in run.output
    assert lab.processes() == before
    assert set(leftovers(lab).values()) == {""}


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({}, "it was changed after etcd wrote it"),
        ({"etcd_restore_quota_bytes": 4096}, "the restored cluster would refuse writes at once"),
    ],
    ids=["damaged", "quota"],
)
def test_a_file_that_is_no_good_leaves_everything_running(
    lab: Lab, snapshot: Path, tmp_path: Path, extra: dict[str, Any], words: str
) -> None:
    content = bytearray(snapshot.read_bytes())
    if "etcd_restore_quota_bytes" not in extra:
        content[len(content) // 2] ^= 1
    bad = tmp_path / "bad.db"
    bad.write_bytes(content)
    before = lab.processes()
    run = play(lab, "restore-etcd.yml", etcd_restore_snapshot=str(bad), **extra)
    assert run.code != 0
    assert words in " ".join(run.output.split())
    assert lab.processes() == before
    assert set(leftovers(lab).values()) == {""}


def test_a_member_that_does_not_come_up_brings_the_old_data_back(lab: Lab, snapshot: Path) -> None:
    host = lab.members("etcd")[2]
    drop_in = "/run/systemd/system/etcd.service.d"
    text = "[Service]\nExecStartPre=/bin/false\n"
    lab.ssh(host, f"mkdir -p {drop_in} && cat > {drop_in}/broken.conf && systemctl daemon-reload", text)
    try:
        run = play(lab, "restore-etcd.yml", etcd_restore_snapshot=str(snapshot), etcd_restore_deadline=45)
    finally:
        lab.ssh(host, f"rm -r {drop_in} && systemctl daemon-reload && systemctl restart --no-block etcd")
    assert run.code != 0
    assert "The restore was broken off and the old data is back" in " ".join(run.output.split())
    lab.converge()
    assert {"kept", "later"} <= names(lab)
    assert len(hashes(lab)) == 1
    assert set(leftovers(lab).values()) == {""}


# The cluster comes back


def test_two_of_three_hosts_destroyed(lab: Lab, snapshot: Path) -> None:
    remembered = api(lab).list_namespaced_config_map(NAMESPACE).metadata.resource_version
    for host in lab.members("etcd")[1:]:
        destroy(lab, host)
    run = restore(lab, etcd_restore_snapshot=str(snapshot))
    assert names(lab) == {"kept"}
    assert len(hashes(lab)) == 1
    assert set(leftovers(lab).values()) == {""}
    # A client that goes on watching from what it knows is told that this is no longer the past.
    with pytest.raises(client.ApiException) as error:
        list(
            watch.Watch().stream(
                api(lab).list_namespaced_config_map, NAMESPACE, resource_version=remembered, timeout_seconds=20
            )
        )
    assert error.value.status == 410
    assert run.code == 0
    assert lab.converge().changed == set()


def test_undoing_a_finished_restore(lab: Lab, snapshot: Path) -> None:
    put(lab, "before-undo")
    before = names(lab)
    restore(lab, etcd_restore_snapshot=str(snapshot))
    assert names(lab) == {"kept"}
    restore(lab, etcd_restore_undo=True)
    assert names(lab) == before
    assert len(hashes(lab)) == 1


def test_a_survivor_gives_what_it_has(lab: Lab, snapshot: Path) -> None:
    put(lab, "survives")
    before = names(lab)
    survivor, *lost = lab.members("etcd")
    for host in lost:
        destroy(lab, host)
    restore(lab, etcd_restore_from_member=survivor)
    assert names(lab) == before
    assert len(hashes(lab)) == 1


@pytest.mark.long
def test_a_survivor_that_does_not_run_gives_its_database(lab: Lab, snapshot: Path) -> None:
    before = names(lab)
    survivor, *lost = lab.members("etcd")
    for host in lost:
        destroy(lab, host)
    lab.ssh(survivor, "systemctl stop etcd")
    restore(lab, etcd_restore_from_member=survivor)
    assert names(lab) == before
    assert len(hashes(lab)) == 1


def test_all_hosts_destroyed(lab: Lab, snapshot: Path) -> None:
    for host in lab.members("etcd"):
        destroy(lab, host)
    restore(lab, etcd_restore_snapshot=str(snapshot))
    assert names(lab) == {"kept"}
    assert len(hashes(lab)) == 1


# Killed runs

MOMENTS = [
    "Restore it beside the live data",
    "Stop the members",
    "Swap the data",
    "Start all members together",
    "End the restore and keep the old data",
]


@pytest.mark.parametrize(
    "task", [pytest.param(task, marks=() if task == "Swap the data" else pytest.mark.long) for task in MOMENTS]
)
def test_a_killed_run_is_finished_by_the_next(lab: Lab, snapshot: Path, task: str) -> None:
    put(lab, "not-in-the-snapshot")
    KilledRun(command(lab, "restore-etcd.yml", etcd_restore_snapshot=str(snapshot))).at_task(task)
    restore(lab, etcd_restore_snapshot=str(snapshot))
    assert names(lab) == {"kept"}
    assert len(hashes(lab)) == 1
    assert set(leftovers(lab).values()) == {""}


# One member


def test_a_lost_member_is_rebuilt_while_the_others_go_on(lab: Lab) -> None:
    lost = lab.members("etcd")[2]
    before = lab.processes()
    destroy(lab, lost)
    run = play(lab, "replace-etcd-member.yml", member=lost)
    assert run.code == 0, run.output[-6000:]
    assert len(hashes(lab)) == 1
    after = lab.processes()
    others = [key for key in before if key != (lost, "etcd.service")]
    assert {key: after[key].pid for key in others} == {key: before[key].pid for key in others}
    again = play(lab, "replace-etcd-member.yml", member=lost)
    assert again.code == 0, again.output[-6000:]
    assert again.changed_themselves == set()
    assert lab.converge().changed == set()


# Space


def file_sizes(lab: Lab) -> dict[str, int]:
    return {
        host: int(size)
        for host, size in lab.each(lab.members("etcd"), "stat -c %s /var/lib/etcd/member/snap/db").items()
    }


def test_members_give_back_the_space_that_they_do_not_use(lab: Lab) -> None:
    host = lab.members("etcd")[0]
    write = f"{ETCDCTL} put /faults/large > /dev/null"
    for _ in range(30):
        lab.ssh(host, write, "x" * 1_000_000)
    lab.ssh(host, f"{ETCDCTL} del /faults/large")
    revision = json.loads(lab.ssh(host, f"{ETCDCTL} endpoint status -w json"))[0]["Status"]["header"]["revision"]
    lab.ssh(host, f"{ETCDCTL} compact --physical {revision}")
    before, pids = file_sizes(lab), lab.processes()
    wish = {"defragment_min_megabytes": 10}

    look = play(lab, "defragment-etcd.yml", "--check", **wish)
    assert look.code == 0, look.output[-4000:]
    assert "about to be defragmented" in " ".join(look.output.split())
    assert file_sizes(lab) == before

    run = play(lab, "defragment-etcd.yml", **wish)
    assert run.code == 0, run.output[-4000:]
    assert all(size < before[host] - 20_000_000 for host, size in file_sizes(lab).items())
    assert lab.processes() == pids
    again = play(lab, "defragment-etcd.yml", **wish)
    assert again.code == 0, again.output[-4000:]
    assert again.changed_themselves == set()


# New hosts


@pytest.fixture
def moved(lab: Lab) -> Iterator[Lab]:
    """An empty host with another name and address, and the controller's folder of the lost cluster."""
    found = Lab(FOLDER / "inventories/faults-moved")
    found.renew()
    shutil.copytree(lab_folder(lab.description.name) / "state", lab_folder(found.description.name) / "state")
    yield found
    found.lab("destroy")


def test_a_lost_cluster_comes_back_on_a_host_with_another_address(
    lab: Lab, snapshot: Path, moved: Lab, tmp_path: Path
) -> None:
    extra = {"plainkube_cluster_name": cluster_name(lab)}
    moved.converge(extra=extra)
    file = tmp_path / "etcd.db"
    shutil.copy(snapshot, file)
    # As a backup's manifest names the cluster that it is of.
    file.with_name("etcd.db.json").write_text(json.dumps({"cluster_id": "1057c1a57e4"}))
    wish = {**extra, "etcd_restore_snapshot": str(file), "etcd_restore_lost_nodes": sorted(lab.nodes)}
    wish["confirm"] = cluster_name(lab)
    refused = play(moved, "restore-etcd.yml", **wish)
    assert refused.code != 0
    other = re.search(r"is a snapshot of the cluster ([0-9a-f]+)", " ".join(refused.output.split()))
    assert other, refused.output[-4000:]
    restore(moved, **wish, etcd_restore_cluster_id=other[1])
    assert names(moved) == {"kept"}
    assert {node.metadata.name for node in api(moved).list_node().items} == set(moved.nodes)
    # What is restored is of other nodes and of another number of them; a run makes it fit these.
    moved.converge(extra=extra)
    assert moved.converge(extra=extra).changed == set()
