# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The program etcd-backup as hosts have it, with real etcd, real restic and a real S3 server, all on loopback."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_backup import repository_of
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_backup_io import lease_id
from etcd_servers import CACHE, CHECKOUT, V3_7, EtcdServers, binaries, cluster, free_ports, promtool, wait_until
from jinja2 import Environment

ROLE = CHECKOUT / "roles" / "etcd_backup"
PASSWORD = "the password of the repository"
S3_KEY, S3_SECRET = "the-key-of-the-store", "the-secret-of-the-store"
REST_PASSWORD = "the-password-of-the-server"
NAME = "east"


@pytest.fixture(scope="module", autouse=True)
def restic() -> str:
    """Return where restic is, the distribution's as hosts have it."""
    found = shutil.which("restic")
    assert found, "there is no restic on this machine: install the distribution's package restic"
    return found


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the program, laid out as the role does it, apart from this checkout."""
    folder = tmp_path_factory.mktemp("program")
    variables = (ROLE / "vars" / "main.yml").read_text(encoding="utf-8")
    library = folder / "ansible_collections/plainkube/cluster/plugins/module_utils"
    library.mkdir(parents=True)
    (folder / "ansible_collections/__init__.py").touch()
    names = re.findall(r"__etcd_backup_library \}\}/(\w+\.py)", variables)
    assert names
    for name in names:
        shutil.copy(CHECKOUT / "plugins/module_utils" / name, library)
    entry = folder / "etcd-backup"
    entry.write_text((ROLE / "templates/usr/local/lib/plainkube/etcd-backup.j2").read_text(encoding="utf-8"))
    entry.chmod(0o755)
    return entry


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServers]:
    """Three members that know their clients by certificates, as this collection installs them."""
    with cluster(V3_7, tls=True, folder=tmp_path_factory.mktemp("servers")) as running:
        running.fill(200)
        yield running


@dataclass
class Host:
    """One etcd host: its configuration, and the program run with it."""

    program: Path
    folder: Path
    servers: EtcdServers
    repository: str
    name: str = "e1"
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    password: str = PASSWORD

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def metrics_folder(self) -> Path:
        return self.folder / "metrics"

    def configure(self) -> Path:
        """Write the files that the role writes, and return the configuration's."""
        self.metrics_folder.mkdir(exist_ok=True)
        pki = self.servers.pki
        programs = binaries(self.servers.version)
        configuration = {
            "cluster": NAME,
            "host": self.name,
            "endpoints": self.servers.endpoints,
            "environment_file": str(self.folder / "environment"),
            "password_file": str(self.folder / "password"),
            "folder": str(self.folder / "work"),
            "cache": str(self.folder / "cache"),
            "metrics_folder": str(self.metrics_folder),
            "timeout": 2,
            **(pki.client_arguments() if pki else {}),
            **{name: str(programs / name) for name in ("etcd", "etcdctl", "etcdutl")},
            **self.settings,
        }
        path = self.folder / "config.json"
        path.write_text(json.dumps(configuration))
        lines = {"RESTIC_REPOSITORY": self.repository, **self.environment}
        for name, text in (
            ("environment", "".join(f"{key}={value}\n" for key, value in lines.items())),
            ("password", self.password + "\n"),
        ):
            (self.folder / name).touch(0o600)
            (self.folder / name).write_text(text)
        return path

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the program without anything of this environment but the path."""
        return subprocess.Popen(
            [str(self.program), "--config", str(self.configure()), *arguments],
            env={"PATH": os.environ["PATH"]},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the program to its end."""
        process = self.start(*arguments)
        try:
            stdout, stderr = process.communicate(timeout=170)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)

    def good(self, *arguments: str) -> str:
        """Run the program, which has to succeed, and return what it said."""
        done = self.run(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def bad(self, *arguments: str) -> str:
        """Run the program, which has to fail in an orderly way, and return why it did."""
        done = self.run(*arguments)
        assert done.returncode == 1, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert done.stderr.startswith(f"etcd-backup {arguments[0]}: ")
        return done.stderr

    def listed(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.good("list").splitlines()]

    def metrics(self, run: str) -> dict[str, float]:
        """Return the metrics of a run by the end of their names, as a collector would read them."""
        text = (self.metrics_folder / f"plainkube-etcd-{run}.prom").read_text()
        found = {}
        for line in text.splitlines():
            if not line.startswith("#"):
                name, value = re.fullmatch(r'plainkube_etcd_(\w+)\{cluster="east"\} (\S+)', line).groups()
                found[name[len(run) + 1 :]] = float(value)
        return found

    def restic(self, *arguments: str, folder: Path | None = None) -> str:
        """Run restic by hand, as an operator would."""
        done = self.by_hand(*arguments, folder=folder)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def by_hand(self, *arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run restic by hand, whatever comes of it."""
        return subprocess.run(
            ["restic", *arguments],
            cwd=folder,
            env={
                "PATH": os.environ["PATH"],
                "RESTIC_REPOSITORY": repository_of({"RESTIC_REPOSITORY": self.repository, **self.environment}),
                "RESTIC_PASSWORD": self.password,
                "RESTIC_CACHE_DIR": str(self.folder / "cache"),
                **self.environment,
            },
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture(scope="module")
def new_repository(program: Path, servers: EtcdServers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository in which nothing is yet. To make one takes restic seconds."""
    folder = tmp_path_factory.mktemp("new")
    made = Host(program, folder / "e1", servers, str(folder / "repository"))
    assert made.good("init").startswith("made the repository ")
    return folder / "repository"


@pytest.fixture
def host(program: Path, servers: EtcdServers, new_repository: Path, tmp_path: Path) -> Host:
    """A host with a repository of its own in a folder. Restores are tried where they matter."""
    shutil.copytree(new_repository, tmp_path / "repository")
    return Host(program, tmp_path / "e1", servers, str(tmp_path / "repository"), settings={"verify": "file"})


def moment_text(seconds: float) -> str:
    """Return a moment as people may write it, with fractions."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def another(host: Host, name: str) -> Host:
    """Return a second host of the same cluster."""
    return Host(host.program, host.folder.parent / name, host.servers, host.repository, name, dict(host.settings))


def damage_packs(repository: Path) -> None:
    """Flip a bit in the middle of every pack of data in a repository."""
    packs = [path for path in (repository / "data").rglob("*") if path.is_file()]
    assert packs
    for pack in packs:
        content = bytearray(pack.read_bytes())
        content[len(content) // 2] ^= 1
        pack.chmod(0o600)
        pack.write_bytes(content)


class Watcher(threading.Thread):
    """Reads the command lines of all processes again and again, as any user of the host could."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: set[str] = set()
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.01):
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit():
                    with contextlib.suppress(OSError):
                        self.seen.add((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))

    def stop(self) -> set[str]:
        self.done.set()
        self.join()
        return self.seen


# Backups


def test_a_proven_snapshot_is_stored_once_and_told_of(host: Host, servers: EtcdServers) -> None:
    host.settings["verify"] = "restore"
    revision = servers.put("/registry/a", "1")
    said = host.good("backup")
    assert f"revision {revision}, " in said
    assert "proven" in said

    (found,) = host.listed()
    assert (found["revision"], found["key_count"], found["proven"], found["node"]) == (revision, 201, True, "e1")
    metrics = host.metrics("backup")
    assert metrics["last_run_ok"] == metrics["proven"] == 1
    assert metrics["snapshot_revision"] == revision
    assert metrics["snapshot_keys"] == 201
    assert metrics["snapshot_bytes"] == found["size"]
    assert 0 < metrics["seconds"] < 100
    assert abs(metrics["last_success_timestamp_seconds"] - time.time()) < 100
    (notes,) = (path for path in host.metrics_folder.iterdir())
    assert notes.stat().st_mode & 0o777 == 0o644
    assert not list((host.folder / "work").glob("*/*"))

    # Young enough, for this host and for the others.
    assert host.good("backup").startswith("unchanged: nothing to do: snapshot ")
    other = another(host, "e2")
    assert "stored by e1" in other.good("backup")
    assert other.metrics("backup")["snapshot_revision"] == revision

    # Old enough, and nothing happened since.
    assert "has the present revision" in host.good("backup", "--now")
    assert len(host.listed()) == 1
    assert host.metrics("backup")["last_run_ok"] == 1

    servers.put("/registry/a", "2")
    assert f"revision {revision + 1}, " in other.good("backup", "--now")
    assert [item["node"] for item in host.listed()] == ["e1", "e2"]


def test_looking_whether_a_backup_is_due_writes_nothing_into_etcd(host: Host, servers: EtcdServers) -> None:
    before = servers.member(0).status()["header"]["revision"]
    host.good("backup")
    host.good("backup", "--now")
    assert servers.member(0).status()["header"]["revision"] == before
    assert "leases" not in servers.member(0).call("lease/leases")


def test_hosts_that_come_at_once_store_one_snapshot(host: Host, servers: EtcdServers) -> None:
    servers.put("/registry/a", "at once")
    since = moment_text(time.time())
    running = [item.start("backup", "--since", since) for item in (host, another(host, "e2"), another(host, "e3"))]
    said = [process.communicate(timeout=170) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], said
    assert len(host.listed()) == 1
    ends = [stdout.splitlines()[-1] for stdout, _stderr in said]
    assert sorted(re.match(r"\w+", line)[0] for line in ends) == ["stored", "unchanged", "unchanged"], ends


def test_the_turn_of_a_host_that_died_ends_by_itself(host: Host, servers: EtcdServers) -> None:
    servers.put("/registry/a", "after a death")
    lease = str(lease_id(NAME))
    servers.member(0).call("lease/grant", TTL="8", ID=lease)
    began = time.monotonic()
    process = host.start("backup", "--now")
    stdout, stderr = process.communicate(timeout=170)
    assert process.returncode == 0, stderr
    assert "stored snapshot" in stdout
    assert time.monotonic() - began > 3
    assert "leases" not in servers.member(0).call("lease/leases")


def test_without_quorum_a_member_is_backed_up_all_the_same(program: Path, new_repository: Path, tmp_path: Path) -> None:
    with cluster(V3_7, tls=True, folder=tmp_path) as servers:
        revision = servers.put("/registry/a", "1")
        host = Host(program, tmp_path / "e1", servers, str(tmp_path / "repository"))
        shutil.copytree(new_repository, host.repository)
        servers.member(0).kill()
        servers.member(1).kill()
        said = host.good("backup")
        assert "no quorum" in said
        assert f"revision {revision}, " in said
        assert host.listed()[0]["proven"]


def test_files_of_a_host_are_stored_beside_it_when_they_change(host: Host, tmp_path: Path) -> None:
    pki = tmp_path / "pki"
    pki.mkdir()
    (pki / "peer.key").write_text("one")
    host.settings["include"] = [str(pki), str(tmp_path / "encryption.yml")]
    said = host.good("backup")
    assert f"stored this host's files ({pki})" in said
    assert f"{tmp_path}/encryption.yml, which is to be backed up too, is not on this host" in said
    assert "stored this host's files" not in host.good("backup")
    (pki / "peer.key").write_text("two")
    assert "stored this host's files" in host.good("backup")
    assert "stored this host's files" in another(host, "e2").good("backup")
    files = json.loads(host.restic("snapshots", "--json", "--tag", "plainkube-files"))
    assert [item["tags"][1] for item in files] == ["node=e1", "node=e1", "node=e2"]
    assert host.restic("dump", files[1]["id"], str(pki / "peer.key")) == "two"
    assert len(host.listed()) == 1


# Retention


def test_retention_counts_proven_snapshots_alone_and_keeps_the_newest(host: Host, servers: EtcdServers) -> None:
    host.settings["keep"] = {"yearly": 1}
    host.good("backup")
    # Somebody stores a file that nobody proved, and it is newer than all others.
    (host.folder / "etcd.db").write_bytes(b"not proven")
    host.restic("backup", "--host", NAME, "--tag", "plainkube-etcd", "etcd.db", folder=host.folder)
    for number in range(2):
        servers.put("/registry/a", str(number))
        revision = servers.put("/registry/a", "last")
        host.good("backup", "--now")
    found = host.listed()
    assert [item["proven"] for item in found] == [False, True]
    assert found[1]["revision"] == revision
    # Not counted for what is due either.
    assert host.good("backup").startswith("unchanged: nothing to do")


def test_a_clock_that_was_ahead_costs_no_snapshot(host: Host, servers: EtcdServers) -> None:
    """One that claims to be of a later time would count as the newest, and the rules would remove the others."""
    host.good("backup")
    (first,) = host.listed()
    tags = json.loads(host.restic("snapshots", "--json"))[0]["tags"]
    host.restic("forget", first["id"])
    (host.folder / "etcd.db").write_bytes(b"of a host whose clock was ahead")
    words = ["backup", "--time=2099-01-01 00:00:00", "--host", NAME, "--tag", ",".join(tags), "etcd.db"]
    host.restic(*words, folder=host.folder)
    host.settings["keep"] = {"yearly": 1}
    revision = servers.put("/registry/a", "after the clock was set right")
    said = host.bad("backup")
    assert "no old snapshot was forgotten" in said and "restic forget" in said
    assert [item["revision"] for item in host.listed()] == [revision, first["revision"]]
    # What the message says to do mends it.
    host.restic("forget", said.split("restic forget ")[1].split("`")[0])
    servers.put("/registry/a", "later")
    host.good("backup")
    assert len(host.listed()) == 1


# What must not be stored


DAMAGING = """\
#!/bin/sh
# etcdctl with a snapshot that loses a bit on its way to the disk.
for word in "$@"; do last=$word; done
{etcdctl} "$@" || exit
case " $* " in *" snapshot save "*) printf X | dd of="$last" bs=1 seek=20000 conv=notrunc status=none ;; esac
"""


def test_a_damaged_snapshot_is_never_stored(host: Host, servers: EtcdServers, tmp_path: Path) -> None:
    servers.put("/registry/a", "to be damaged")
    host.good("backup", "--now")
    success = host.metrics("backup")["last_success_timestamp_seconds"]
    servers.put("/registry/a", "damaged")
    wrapper = tmp_path / "etcdctl"
    wrapper.write_text(DAMAGING.format(etcdctl=binaries(V3_7) / "etcdctl"))
    wrapper.chmod(0o755)
    host.settings["etcdctl"] = str(wrapper)
    said = host.bad("backup", "--now")
    assert "no sound snapshot" in said
    assert len(host.listed()) == 1
    metrics = host.metrics("backup")
    assert (metrics["last_run_ok"], metrics["proven"]) == (0, 0)
    assert metrics["last_success_timestamp_seconds"] == success
    del host.settings["etcdctl"]
    host.good("backup", "--now")
    assert host.metrics("backup")["proven"] == 1


# Repositories that are not there


def test_a_wrong_password_is_said_and_told(host: Host) -> None:
    host.good("backup")
    success = host.metrics("backup")["last_success_timestamp_seconds"]
    host.password = "not the password at all"
    said = host.bad("backup")
    assert "wrong password" in said
    assert "plainkube_backup_password" in said
    assert host.password not in said
    metrics = host.metrics("backup")
    assert metrics["last_run_ok"] == 0
    assert metrics["last_success_timestamp_seconds"] == success
    assert metrics["snapshot_keys"] > 0


@pytest.mark.parametrize(
    ("repository", "words"),
    [
        ("{folder}/elsewhere", "there is none at this address"),
        ("rest:http://127.0.0.1:{port}/b/", "connection refused"),
    ],
)
def test_a_repository_that_cannot_be_reached_is_said_and_told(host: Host, repository: str, words: str) -> None:
    host.repository = repository.format(folder=host.folder, port=free_ports(1)[0])
    said = host.bad("backup")
    assert words in said
    assert host.repository in said
    assert host.metrics("backup")["last_run_ok"] == 0
    # A timer never makes a repository: the one that is missing may be a disk that is not mounted.
    assert not (host.folder / "elsewhere").exists()


def test_an_existing_repository_is_not_made_again(host: Host) -> None:
    assert host.good("init").startswith("unchanged: ")
    host.password = "another password"
    assert "wrong password" in host.bad("init")


def test_a_lock_of_a_dead_process_holds_nobody_up(host: Host, servers: EtcdServers) -> None:
    host.settings["keep"] = {"daily": 1}
    host.good("backup")
    # A check that reads all data holds a lock for itself; killed, it leaves it behind.
    process = subprocess.Popen(
        ["restic", "check", "--read-data"],
        env={"PATH": os.environ["PATH"], "RESTIC_REPOSITORY": host.repository, "RESTIC_PASSWORD": PASSWORD},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    locks = Path(host.repository, "locks")
    try:
        wait_until(lambda: any(locks.iterdir()), "restic holds a lock")
    finally:
        process.kill()
        process.wait()
    assert any(locks.iterdir())
    servers.put("/registry/a", "after the lock")
    assert "stored snapshot" in host.good("backup", "--now")
    assert not any(locks.iterdir())


# Restores


def test_a_rehearsal_restores_compares_and_leaves_nothing(host: Host, servers: EtcdServers) -> None:
    host.settings["verify"] = "restore"
    revision = servers.put("/registry/a", "rehearsed")
    host.good("backup", "--now")
    watcher = Watcher()
    watcher.start()
    said = host.good("rehearse")
    seen = watcher.stop()
    assert f"revision {revision}" in said
    assert re.search(r"HashKV \d+ as recorded", said)
    assert [line for line in seen if line.startswith(str(binaries(V3_7) / "etcd ")) and str(host.folder) in line]
    metrics = host.metrics("rehearsal")
    assert (metrics["last_run_ok"], metrics["proven"], metrics["snapshot_revision"]) == (1, 1, revision)
    assert not list((host.folder / "work").glob("*/*"))
    processes = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(host.folder) not in processes


def test_a_rehearsal_finds_a_repository_that_lost_a_bit(host: Host) -> None:
    host.good("backup", "--now")
    host.good("check")
    assert host.metrics("check")["last_run_ok"] == 1
    damage_packs(Path(host.repository))
    shutil.rmtree(host.folder / "cache")
    assert "cannot be read back" in host.bad("rehearse")
    metrics = host.metrics("rehearsal")
    assert (metrics["last_run_ok"], metrics["proven"]) == (0, 0)
    host.settings["read_data_subset"] = "100%"
    host.bad("check")
    assert host.metrics("check")["last_run_ok"] == 0


def test_a_rehearsal_finds_a_snapshot_that_was_stored_wrong(host: Host) -> None:
    host.settings["verify"] = "restore"
    host.good("backup", "--now")
    (stored,) = json.loads(host.restic("snapshots", "--json"))
    folder = host.folder / "wrong"
    host.restic("restore", stored["id"], f"--target={folder}")
    tags = [word for tag in stored["tags"] for word in ("--tag", tag)]
    store = ["backup", "--host", NAME, *tags, "etcd.db", "etcd.db.json"]

    note = (folder / "etcd.db.json").read_text()
    manifest = json.loads(note)
    manifest["hash_kv"]["value"] ^= 1
    (folder / "etcd.db.json").write_text(json.dumps(manifest))
    host.restic(*store, folder=folder)
    assert re.search(r"HashKV .* is \d+, .* has \d+", host.bad("rehearse"))
    assert host.metrics("rehearsal")["proven"] == 0

    (folder / "etcd.db.json").write_text(note)
    content = bytearray((folder / "etcd.db").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "etcd.db").write_bytes(content)
    host.restic(*store, folder=folder)
    assert "no sound snapshot" in host.bad("rehearse")


def test_a_snapshot_is_fetched_by_time_by_id_or_as_the_newest(host: Host, servers: EtcdServers, tmp_path: Path) -> None:
    revisions = []
    for number in range(2):
        revisions.append(servers.put("/registry/a", f"fetched {number}"))
        host.good("backup", "--now")
    old, new = host.listed()
    # A host on which the cluster is to be made anew has no etcd yet.
    host.settings.update({"endpoints": ["https://127.0.0.1:1"], "ca_cert": "/nowhere", "client_cert": "/nowhere"})
    target = tmp_path / "restore" / "etcd.db"
    for wanted, revision in (
        ("newest", 1),
        (old["id"][:8], 0),
        (moment_text(old["timestamp"] + 0.001), 0),
        (new["id"], 1),
    ):
        host.good("fetch", "--snapshot", wanted, "--to", str(target))
        manifest = json.loads(target.with_name("etcd.db.json").read_text())
        assert manifest["revision"] == revisions[revision], wanted
        assert target.stat().st_size == manifest["size"]
        assert target.stat().st_mode & 0o777 == target.with_name("etcd.db.json").stat().st_mode & 0o777 == 0o600
    assert host.good("fetch", "--to", str(target)).startswith("unchanged: ")
    assert sorted(path.name for path in target.parent.iterdir()) == ["etcd.db", "etcd.db.json"]
    said = host.bad("fetch", "--snapshot", "2001-01-01", "--to", str(target))
    assert "there are 2" in said
    assert target.exists()


# A program that is killed


def test_a_backup_that_was_ended_leaves_a_note_and_nothing_else(host: Host, servers: EtcdServers) -> None:
    servers.put("/registry/a", "to be ended")
    lease = str(lease_id(NAME))
    servers.member(0).call("lease/grant", TTL="60", ID=lease)
    try:
        process = host.start("backup", "--now")
        assert process.stdout
        assert "waiting" in process.stdout.readline()
        process.terminate()
        _stdout, stderr = process.communicate(timeout=60)
    finally:
        servers.member(0).call("lease/revoke", ID=lease)
    assert process.returncode == 1
    assert "ended by a signal" in stderr
    assert host.metrics("backup")["last_run_ok"] == 0
    assert host.listed() == []


# S3, and secrets


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run an S3 server and return the address of a repository in a bucket of it."""
    folder = tmp_path_factory.mktemp("s3")
    (folder / "data").mkdir()
    (port,) = free_ports(1)
    words = ["--port", f"127.0.0.1:{port}", "posix", str(folder / "data")]
    with storage("versitygw", folder, port, words, {"ROOT_ACCESS_KEY": S3_KEY, "ROOT_SECRET_KEY": S3_SECRET}):
        yield f"s3:http://127.0.0.1:{port}/backups/etcd"


@contextlib.contextmanager
def storage(name: str, folder: Path, port: int, words: list[str], secrets: dict[str, str]) -> Iterator[None]:
    """Run a server that keeps backups, of the mirror, which gets it when it is wanted for the first time."""
    found = list((CACHE / "mirror" / name).glob(f"*/linux/*/{name}"))
    if not found:
        command = [sys.executable, str(CHECKOUT / "tools" / "artifacts"), "fill", "--only", name]
        subprocess.run(command, check=True, cwd=CHECKOUT)
        found = list((CACHE / "mirror" / name).glob(f"*/linux/*/{name}"))
    server = folder / name
    shutil.copy(found[0], server)
    server.chmod(0o755)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(server), *words], env={"PATH": os.environ["PATH"], **secrets}, stdout=log, stderr=log
        )
    try:
        wait_until(lambda: _listens(port), f"{name} listens")
        yield
    finally:
        process.terminate()
        process.wait()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def test_s3_takes_backups_and_gives_them_back_and_no_secret_is_seen(
    program: Path, servers: EtcdServers, tmp_path: Path, s3: str
) -> None:
    keys = {"AWS_ACCESS_KEY_ID": S3_KEY, "AWS_SECRET_ACCESS_KEY": S3_SECRET}
    host = Host(program, tmp_path / "e1", servers, s3, environment=keys, settings={"keep": {"last": 1}})
    watcher = Watcher()
    watcher.start()
    try:
        said = host.bad("backup")
        assert "there is none at this address" in said
        said += host.good("init") + host.good("init")
        for number in range(2):
            revision = servers.put("/registry/a", f"in a bucket {number}")
            said += host.good("backup", "--now")
        said += host.good("rehearse") + host.good("check") + host.good("fetch", "--to", str(tmp_path / "out/etcd.db"))
        (kept,) = host.listed()
        assert kept["revision"] == revision
        host.environment["AWS_SECRET_ACCESS_KEY"] = "not the secret"
        said += host.bad("backup")
    finally:
        seen = watcher.stop()
    assert [line for line in seen if "restic" in line and "backup" in line], "no process of restic was seen"
    for secret in (PASSWORD, S3_KEY, S3_SECRET, "not the secret"):
        assert secret not in said
        assert not [line for line in seen if secret in line]
    kept = [
        path for path in (tmp_path / "e1").rglob("*") if path.is_file() and path.name not in ("environment", "password")
    ]
    assert not [path for path in kept if S3_SECRET.encode() in path.read_bytes()]


# A server that lets hosts append and nothing else


@pytest.fixture
def rest(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Run restic's own server with one user, and return what a host needs to use it."""
    folder = tmp_path / "rest"
    (folder / "data").mkdir(parents=True)
    hashed = base64.b64encode(hashlib.sha1(REST_PASSWORD.encode(), usedforsecurity=False).digest()).decode()
    (folder / "users").write_text(f"east:{{SHA}}{hashed}\n")
    (port,) = free_ports(1)
    words = ["--append-only", f"--listen=127.0.0.1:{port}", f"--path={folder}/data", f"--htpasswd-file={folder}/users"]
    with storage("rest-server", folder, port, words, {}):
        yield {
            "repository": f"rest:http://127.0.0.1:{port}/etcd",
            "environment": {"RESTIC_REST_USERNAME": "east", "RESTIC_REST_PASSWORD": REST_PASSWORD},
        }


def test_a_server_that_only_appends_takes_backups_and_keeps_them_all(
    program: Path, servers: EtcdServers, tmp_path: Path, rest: dict[str, Any]
) -> None:
    host = Host(program, tmp_path / "e1", servers, settings={"keep": {}}, **rest)
    said = host.good("init")
    for number in range(2):
        servers.put("/registry/a", f"appended {number}")
        said += host.good("backup", "--now")
    said += host.good("rehearse") + host.good("check") + host.good("fetch", "--to", str(tmp_path / "out/etcd.db"))
    assert len(host.listed()) == 2

    # Whoever has a host has its password too, and still cannot take a backup away.
    newest = host.listed()[0]["id"]
    removed = host.by_hand("forget", newest)
    assert removed.returncode or "403" in removed.stderr
    # With rules that the hosts are to keep themselves, the backup is stored and the fault is said.
    host.settings["keep"] = {"last": 1}
    servers.put("/registry/a", "appended again")
    told = host.run("backup", "--now")
    assert "but old snapshots could not be forgotten" in told.stdout + told.stderr
    assert len(host.listed()) == 3
    assert REST_PASSWORD not in said + told.stdout + told.stderr


# sftp


@pytest.fixture
def sftp(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Run an SSH server on loopback that lets one key in, and return what a host needs to use it."""
    folder = tmp_path / "sshd"
    folder.mkdir(mode=0o700)
    for name in ("server", "client"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    (port,) = free_ports(1)
    shutil.copy(folder / "client.pub", folder / "authorized")
    (folder / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/server\nAuthorizedKeysFile {folder}/authorized\n"
        f"PidFile none\nStrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\n"
        "PermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    sshd = shutil.which("sshd", path="/usr/sbin:/usr/bin")
    assert sshd, "there is no sshd on this machine: install openssh-server"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([sshd, "-D", "-e", "-f", str(folder / "config")], stdout=log, stderr=log)
    try:
        wait_until(lambda: _listens(port), "the SSH server listens")
        kind, key = (folder / "server.pub").read_text().split()[:2]
        (folder / "known").write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        yield {
            "repository": f"sftp://{user}@127.0.0.1:{port}/{tmp_path}/by-sftp",
            "settings": {"sftp_key": str(folder / "client"), "sftp_known_hosts": str(folder / "known")},
        }
    finally:
        process.terminate()
        process.wait()


def test_sftp_takes_backups_and_refuses_a_server_that_is_not_known(
    program: Path, servers: EtcdServers, tmp_path: Path, sftp: dict[str, Any]
) -> None:
    host = Host(program, tmp_path / "e1", servers, **sftp)
    host.good("init")
    assert "stored snapshot" in host.good("backup")
    host.good("fetch", "--to", str(tmp_path / "out" / "etcd.db"))
    Path(host.settings["sftp_known_hosts"]).write_text("")
    host.bad("backup")
    assert host.metrics("backup")["last_run_ok"] == 0


# Units


def rendered(name: str) -> str:
    """Return a unit as the role writes it with its defaults."""
    values = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text(encoding="utf-8"))
    values |= {
        "__etcd_backup_program": "/usr/local/lib/plainkube/etcd-backup",
        "__etcd_backup_written": ["/srv/backups"],
    }
    text = (ROLE / "templates/etc/systemd/system" / f"{name}.j2").read_text(encoding="utf-8")
    return Environment(trim_blocks=True, keep_trailing_newline=True).from_string(text).render(values)


def test_the_service_is_sandboxed_and_the_units_are_sound(tmp_path: Path) -> None:
    names = ["etcd-backup@.service", "etcd-backup.timer", "etcd-backup-check.timer", "etcd-rehearsal.timer"]
    for name in names:
        (tmp_path / name).write_text(rendered(name).replace("/usr/local/lib/plainkube/etcd-backup", "/bin/true"))
    paths = [str(tmp_path / name) for name in names]
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *paths], capture_output=True, text=True, check=False
    )
    assert [line for line in checked.stderr.splitlines() if str(tmp_path) in line] == []
    judged = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=30", "--no-pager", paths[0]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert judged.returncode == 0, judged.stdout


# --- Alerts -----------------------------------------------------------------------------------------------------------


def test_prometheus_takes_the_rules_and_they_fire_when_they_should(tmp_path: Path) -> None:
    template = ROLE / "templates/etc/plainkube/etcd-backup/prometheus-rules.yml.j2"
    values = {"etcd_backup_cluster": NAME, "etcd_backup_alert_hours": 3}
    (tmp_path / "rules.yml").write_text(Environment().from_string(template.read_text(encoding="utf-8")).render(values))

    def series(name: str, numbers: str) -> dict[str, str]:
        return {"series": f'plainkube_etcd_{name}{{cluster="{NAME}",instance="etcd-1"}}', "values": numbers}

    # Five minutes from number to number. The last good backup is from the beginning, after four hours all goes wrong,
    # after seven nobody tells anything.
    given = [series(f"{name}_last_success_timestamp_seconds", "0x4400") for name in ("backup", "rehearsal")]
    given += [series(f"{name}_last_run_ok", "1x48 0x35") for name in ("backup", "check", "rehearsal")]
    given += [series("backup_proven", "1x48 0x35"), series("backup_last_run_timestamp_seconds", "0+300x84")]
    # Alert -> the last hour in which it is silent, the first in which it fires.
    wanted = {
        "EtcdBackupTooOld": (3, 4),
        "EtcdBackupFailed": (4, 5),
        "EtcdBackupUnproven": (4, 5),
        "EtcdBackupCheckFailed": (4, 5),
        "EtcdRehearsalFailed": (4, 5),
        "EtcdBackupAbsent": (9, 11),
        "EtcdRehearsalTooOld": (360, 361),
    }
    rules = {rule["alert"]: rule for rule in yaml.safe_load((tmp_path / "rules.yml").read_text())["groups"][0]["rules"]}
    assert rules.keys() == wanted.keys()
    checks: list[dict[str, Any]] = []
    for name, (silent, fires) in wanted.items():
        labels = {**rules[name]["labels"]}
        if "max(" not in rules[name]["expr"]:
            # What is told by a host names it; the newest of all hosts names none.
            labels["cluster"] = NAME
            labels.update({} if "absent(" in rules[name]["expr"] else {"instance": "etcd-1"})
        fired = {"exp_labels": labels, "exp_annotations": rules[name]["annotations"]}
        checks.append({"eval_time": f"{silent}h", "alertname": name, "exp_alerts": []})
        checks.append({"eval_time": f"{fires}h", "alertname": name, "exp_alerts": [fired]})
    test = {"interval": "5m", "input_series": given, "alert_rule_test": checks}
    content = {"rule_files": ["rules.yml"], "evaluation_interval": "5m", "tests": [test]}
    (tmp_path / "test.yml").write_text(yaml.safe_dump(content))
    for command in (["check", "rules", "rules.yml"], ["test", "rules", "test.yml"]):
        done = subprocess.run([promtool(), *command], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
