# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""playbooks/migrate-etcd.yml on hosts with systemd: an etcd of another installer, under a writer, in a killed run."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from etcd_faults import command, play
from etcd_servers import V3_4, V3_6, binaries
from faults_lab import FOLDER, KilledRun, Lab, Run, wait_for

MEMBERS = ["first", "second", "third"]
WRITER = "writer"
NOTES = "/root/acknowledged"
SEEDS = 500
NEW = "/opt/new-etcd"
NAME = "legacy"
DATA = "/var/lib/legacy-etcd"

UNIT = """[Unit]
Description={version} of etcd
[Service]
Type=notify
ExecStart={program} --name={name} --data-dir={data} {flags} \\
  --listen-client-urls=http://{address}:2379,http://127.0.0.1:2379 --advertise-client-urls=http://{address}:2379 \\
  --listen-peer-urls=http://{address}:2380 --initial-advertise-peer-urls=http://{address}:2380 \\
  --initial-cluster={cluster} --initial-cluster-token=legacy
"""
WRITERS_UNIT = """[Unit]
Description=What writes to etcd
[Service]
ExecStart=/usr/bin/python3 /root/v2_writer.py {notes} {urls}
"""
FILL = """
import sys, urllib.parse, urllib.request
for number in range(int(sys.argv[1])):
    data = urllib.parse.urlencode({"value": "x" * 1000}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:2379/v2/keys/seed/{number}", data, method="PUT")
    urllib.request.urlopen(request).read()
"""


def url(lab: Lab, host: str) -> str:
    return f"http://{lab.nodes[host].address}:2379"


@pytest.fixture(scope="module")
def old() -> Iterator[Lab]:
    """Three members with keys in v2, and a writer that goes on; etcd 3.6 lies beside, unused."""
    lab = Lab(FOLDER / "inventories/faults-old-etcd")
    lab.renew()
    cluster = ",".join(f"{host}=http://{lab.nodes[host].address}:2380" for host in MEMBERS)
    for host in MEMBERS:
        for version, folder in ((V3_4, "/opt/old-etcd"), (V3_6, NEW)):
            lab.ssh(host, f"mkdir -p {folder}")
            for program in binaries(version).iterdir():
                lab.send(host, program.read_bytes(), f"{folder}/{program.name}")
            lab.ssh(host, f"chmod 0755 {folder}/*")
        place = {"name": host, "address": lab.nodes[host].address, "cluster": cluster, "data": DATA}
        for unit, version, program, flags in (
            ("etcd", V3_4, "/opt/old-etcd/etcd", "--enable-v2"),
            ("etcd-new", V3_6, f"{NEW}/etcd", "--initial-cluster-state=new"),
        ):
            text = UNIT.format(version=version, program=program, flags=flags, **place)
            lab.ssh(host, f"cat > /etc/systemd/system/{unit}.service", text)
        lab.ssh(host, f"mkdir -m 0700 {DATA} && systemctl daemon-reload")
    lab.each(MEMBERS, "systemctl start etcd")
    lab.ssh(MEMBERS[0], f"python3 - {SEEDS}", FILL)
    lab.send(WRITER, (FOLDER / "v2_writer.py").read_bytes(), "/root/v2_writer.py")
    text = WRITERS_UNIT.format(notes=NOTES, urls=" ".join(url(lab, host) for host in MEMBERS))
    lab.ssh(WRITER, "cat > /etc/systemd/system/writer.service && systemctl daemon-reload", text)
    lab.ssh(WRITER, "systemctl start writer")
    wait_for("the writer writes", lambda: last_acknowledged(lab) > 0, 30)
    yield lab
    lab.lab("destroy")


def last_acknowledged(lab: Lab) -> int:
    return int(lab.ssh(WRITER, f"tail -n 1 {NOTES} 2>/dev/null || true").strip() or -1)


EXTRA = {
    "etcd_migrate_name": NAME,
    "etcd_migrate_data_dir": DATA,
    "etcd_migrate_new_unit": "etcd-new.service",
    "etcd_migrate_programs": NEW,
    "etcd_migrate_writer_units": ["writer.service"],
}


def migrate(lab: Lab, *words: str) -> Run:
    return play(lab, "migrate-etcd.yml", *words, **{**EXTRA, "confirm": NAME})


def active(lab: Lab, unit: str) -> set[str]:
    hosts = [WRITER] if unit == "writer" else MEMBERS
    answers = lab.each(hosts, f"systemctl is-active {unit} || true")
    return {host for host, answer in answers.items() if answer.strip() == "active"}


@pytest.mark.parametrize("words", [(), ("--check",)], ids=["unnamed", "check"])
def test_without_confirmation_it_says_what_speaks_against_it_and_changes_nothing(
    old: Lab, words: tuple[str, ...]
) -> None:
    run = play(old, "migrate-etcd.yml", *words, **EXTRA, **({"confirm": NAME} if words else {"confirm": ""}))
    if not words:
        # An empty answer is no confirmation.
        assert run.code != 0
        assert "confirm that same name" in " ".join(run.output.split())
    else:
        assert run.code == 0, run.output[-4000:]
        assert "Nothing speaks against it." in run.output
        assert run.changed_themselves == set()
    assert active(old, "etcd") == set(MEMBERS)
    assert active(old, "writer") == {WRITER}


def test_killed_between_the_old_and_the_new_data_the_next_run_moves_every_key(old: Lab) -> None:
    KilledRun(command(old, "migrate-etcd.yml", **{**EXTRA, "confirm": NAME})).at_task("Change to the new data")
    # The writer was stopped by the run that died; what it wrote until then counts, and so does what comes now.
    run = migrate(old)
    assert run.code == 0, run.output[-6000:]
    assert active(old, "etcd") == set()
    assert active(old, "etcd-new") == set(MEMBERS)
    assert active(old, "writer") == set()

    last = last_acknowledged(old)
    endpoints = ",".join(url(old, host) for host in MEMBERS)
    etcdctl = f"{NEW}/etcdctl --endpoints={endpoints}"
    counted = {
        prefix: len(json.loads(old.ssh(MEMBERS[0], f"{etcdctl} get --prefix {prefix} --keys-only -w json"))["kvs"])
        for prefix in ("/seed/", "/written/")
    }
    assert counted["/seed/"] == SEEDS
    # One more may have been taken than the writer was told of when it was stopped.
    assert counted["/written/"] in (last + 1, last + 2)
    value = old.ssh(MEMBERS[0], f"{etcdctl} get /written/{last} --print-value-only").strip()
    assert value == f"value {last}"
    hashes = json.loads(old.ssh(MEMBERS[0], f"{etcdctl} endpoint hashkv -w json"))
    assert len({member["HashKV"]["hash"] for member in hashes}) == 1
    for host, folders in old.each(MEMBERS, f"ls -d {DATA}.before-*/member").items():
        assert len(folders.split()) == 1, host


def test_a_second_run_has_nothing_to_do(old: Lab) -> None:
    again = migrate(old)
    assert again.code == 0, again.output[-6000:]
    assert again.changed_themselves == set()
    assert active(old, "etcd-new") == set(MEMBERS)
