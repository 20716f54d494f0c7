# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Moving keys from v2 to v3 with real servers of several versions, real writers, and runs that are killed."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from etcd_servers import CHECKOUT, V3_3, V3_4, V3_5, V3_5_OLD, V3_6, V3_7, Pki, binaries, wait_until
from old_cluster import KeyWriter, OldCluster, old_cluster
from run_module import run_module, start_module

KEYS = {
    "/a": "1",
    "/registry/pods/default/a": '{"kind": "Pod"}',
    "/registry/empty": "",
    "/registry/späße 🙂/x%2Fy": "ä\n\u0000🙂",
    "/_hidden/inside/_deeper/key": "secret",
    "/registry/_too": "secret too",
}


@pytest.fixture
def one() -> Iterator[OldCluster]:
    """A cluster of one member with a few keys, hidden ones among them."""
    with old_cluster(members=1) as cluster:
        fill(cluster)
        yield cluster


def fill(cluster: OldCluster) -> None:
    for key, value in KEYS.items():
        cluster.put(key, value)


def migrate(cluster: OldCluster, check: bool = False, **more: Any) -> dict[str, Any]:
    return run_module("etcd_migrate", cluster.arguments(**more), check=check)


def require_migrated(cluster: OldCluster, wanted: dict[str, str]) -> None:
    """See that the new cluster holds exactly this, on all members, and that nothing is left to do."""
    assert cluster.new_keys() == wanted
    hashes = {member.hash() for member in cluster.servers.members}
    assert len(hashes) == 1
    again = migrate(cluster)
    assert not again.get("failed"), again
    assert not again["changed"]
    assert not again["to_do"]


def require_untouched(cluster: OldCluster, wanted: dict[str, str]) -> None:
    """See that the old cluster serves what it had."""
    cluster.wait_healthy()
    assert cluster.old_keys() == wanted
    for member in cluster.servers.members:
        assert not list(member.folder.glob("data.before-*"))
        assert not list(member.folder.glob("data.restore-*"))


def listed(keys: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in keys.items() if "/_" not in key}


def script(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return str(path)


def lease_left(cluster: OldCluster, key: str) -> int:
    """Return the seconds that a key of the new cluster has left, 0 if it stays."""
    found = json.loads(cluster.servers.run_etcdctl(cluster.target, cluster.endpoints, "get", key, "-w", "json").stdout)
    lease = found["kvs"][0].get("lease", 0)
    if not lease:
        return 0
    shown = cluster.servers.run_etcdctl(
        cluster.target, cluster.endpoints, "lease", "timetolive", f"{lease:x}", "-w", "json"
    )
    return int(json.loads(shown.stdout)["ttl"])


class TestUnderAWriter:
    @pytest.mark.parametrize(("version", "target"), [(V3_3, V3_5), (V3_4, V3_6), (V3_5_OLD, V3_7)])
    def test_no_key_is_lost_or_changed(self, version: str, target: str) -> None:
        with old_cluster(version, target) as cluster:
            fill(cluster)
            cluster.fill(2000)
            before = cluster.old_keys()
            writer = KeyWriter(cluster, 200)
            writer.start()
            answer = migrate(cluster, **writer.arguments())
            assert not answer.get("failed"), answer
            assert answer["changed"]
            acknowledged = writer.acknowledged()
            # What was deleted last is not there; what was acknowledged last is.
            wanted = {**KEYS, **before, **acknowledged}
            require_migrated(cluster, {key: value for key, value in wanted.items() if value is not None})
            assert answer["last_changes"] > 0
            assert answer["freeze_seconds"] < 10
            assert answer["revision"] > 1_000_000_000
            assert answer["census"]["hidden_keys"] == ["/_hidden", "/_hidden/inside/_deeper", "/registry/_too"]
            for member in cluster.servers.members:
                (kept,) = member.folder.glob("data.before-*")
                assert (kept / "member" / "snap" / "db").exists()

    def test_with_certificates(self, pki: Pki) -> None:
        with old_cluster(members=1, pki=pki) as cluster:
            fill(cluster)
            answer = migrate(cluster)
            assert not answer.get("failed"), answer
            require_migrated(cluster, KEYS)

    def test_a_value_larger_than_v3_takes_by_default(self, one: OldCluster) -> None:
        large = "x" * 2_500_000
        # In the body: an address cannot be that long.
        connection = http.client.HTTPConnection("127.0.0.1", one.servers.member(0).client_port, timeout=30)
        connection.request(
            "PUT", "/v2/keys/large", f"value={large}", {"Content-Type": "application/x-www-form-urlencoded"}
        )
        assert connection.getresponse().status == 201
        connection.close()
        refused = migrate(one)
        assert refused["failed"] and "/large" in refused["msg"] and "max_request_bytes" in refused["msg"], refused
        answer = migrate(one, max_request_bytes=4_000_000)
        assert not answer.get("failed"), answer
        require_migrated(one, {**KEYS, "/large": large})

    def test_more_events_than_the_server_keeps(self, one: OldCluster) -> None:
        """A burst during the freeze command, faster than events can be followed: they are lost, the keys are not."""
        burst = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from old_cluster import write_burst
write_burst({one.servers.member(0).client_port}, 3000)
"""
        answer = migrate(one, freeze_command=[sys.executable, "-c", burst])
        assert not answer.get("failed"), answer
        assert answer["last_changes"] == 3000
        require_migrated(one, {**KEYS, **{f"/burst/{number}": "x" for number in range(3000)}})

    def test_a_hidden_key_of_the_last_moment(self, one: OldCluster) -> None:
        """No event shows it, and no list; nobody knew of it when the run began."""
        late = script(
            one.folder,
            "late",
            f"{sys.executable} -c 'import urllib.request as r; r.urlopen(r.Request(\"{one.endpoints[0]}"
            '/v2/keys/new/_hidden/key?value=x", method="PUT"))\'\n',
        )
        answer = migrate(one, freeze_command=[late])
        assert not answer.get("failed"), answer
        require_migrated(one, {**KEYS, "/new/_hidden/key": "x"})


class TestLifetimes:
    def test_they_go_on_and_run_out(self) -> None:
        with old_cluster(members=1) as cluster:
            cluster.put("/gone", "x", ttl=1)
            cluster.put("/short", "x", ttl=60)
            cluster.put("/long", "x", ttl=5000)
            cluster.request("PUT", "/folder", dir="true", ttl=300)
            cluster.put("/folder/key", "x")
            cluster.put("/stays", "x")
            # The writers' last change: a lifetime is renewed without an event.
            renewed = script(
                cluster.folder,
                "renew",
                f"{sys.executable} -c 'import urllib.request as r; r.urlopen(r.Request(\"{cluster.endpoints[0]}"
                '/v2/keys/short?refresh=true&ttl=120&prevExist=true", method="PUT"))\'\nsleep 1',
            )
            answer = migrate(cluster, freeze_command=[renewed])
            assert not answer.get("failed"), answer
            assert set(cluster.new_keys()) == {"/short", "/long", "/folder/key", "/stays"}
            assert 100 < lease_left(cluster, "/short") <= 120
            assert 4900 < lease_left(cluster, "/long") <= 5040
            assert 270 < lease_left(cluster, "/folder/key") <= 300
            assert lease_left(cluster, "/stays") == 0

    def test_kubernetes(self) -> None:
        with old_cluster(members=1) as cluster:
            cluster.put("/registry/events/default/x", "x", ttl=5)
            cluster.put("/registry/masterleases/10.0.0.1", "x", ttl=15)
            cluster.put("/registry/pods/default/x", "x")
            answer = migrate(cluster, profile="kubernetes")
            assert not answer.get("failed"), answer
            assert 3500 < lease_left(cluster, "/registry/events/default/x") <= 3600
            assert 0 < lease_left(cluster, "/registry/masterleases/10.0.0.1") <= 15
            assert lease_left(cluster, "/registry/pods/default/x") == 0


class TestRefused:
    def test_all_faults_of_the_store_at_once(self, one: OldCluster) -> None:
        one.put("/bytes", b"\xff\xfe")  # type: ignore[arg-type]
        one.servers.run_etcdctl(V3_4, one.endpoints, "put", "/already", "here")
        one.put("/large", "x" * 3000)
        arguments: dict[str, Any] = {"hidden_keys": "refuse", "quota_bytes": 1000, "max_request_bytes": 2000}
        answer = migrate(one, check=True, **arguments)
        assert not answer.get("failed"), answer
        assert answer["changed"]
        text = "\n".join(answer["faults"])
        for words in ("U+FFFD", "/bytes", "v3 store is not empty", "/_hidden", "quota_bytes", "/large"):
            assert words in text
        assert answer["census"]["hidden_keys"] == ["/_hidden", "/_hidden/inside/_deeper", "/registry/_too"]
        assert not (one.folder / "work").exists()
        one.servers.run_etcdctl(V3_4, one.endpoints, "del", "/already")
        # A scratch server with such a quota would refuse before all is known.
        del arguments["quota_bytes"]
        refused = migrate(one, **arguments)
        assert refused.get("failed"), refused
        assert "/_hidden" in refused["msg"] and "/bytes" in refused["msg"]
        require_untouched(one, {**listed(KEYS), "/bytes": "\ufffd\ufffd", "/large": "x" * 3000})

    def test_hidden_keys_where_nobody_can_look(self, one: OldCluster) -> None:
        answer = run_module("etcd_migrate", one.arguments(phase="census", members=[]))
        assert any("hidden keys" in fault for fault in answer["faults"])

    def test_a_member_that_is_down_and_then_has_caught_up(self) -> None:
        with old_cluster() as cluster:
            fill(cluster)
            late = cluster.services[cluster.follower().name]
            late.kill()
            cluster.fill(300)
            answer = migrate(cluster, check=True)
            assert any("not healthy" in fault for fault in answer["faults"])
            refused = migrate(cluster)
            assert refused["failed"] and "not healthy" in refused["msg"]
            late.run("start-old")
            cluster.wait_healthy()
            wanted = {**cluster.old_keys(), **KEYS}
            answer = migrate(cluster)
            assert not answer.get("failed"), answer
            require_migrated(cluster, wanted)

    def test_a_write_that_found_no_quorum(self) -> None:
        """It is in the log of one member only. Whatever becomes of it, the new cluster holds what the old one had."""
        with old_cluster() as cluster:
            fill(cluster)
            leader = cluster.servers.leader()
            others = [cluster.services[member.name] for member in cluster.servers.members if member is not leader]
            for service in others:
                service.kill()
            with contextlib.suppress(OSError, urllib.error.HTTPError):
                cluster.servers.http(f"{leader.endpoint}/v2/keys/tail?value=x", method="PUT", seconds=1)
            assert migrate(cluster, timeout=2)["failed"]
            for service in others:
                service.run("start-old")
            cluster.wait_healthy()
            wanted = {**cluster.old_keys(), **KEYS}
            answer = migrate(cluster)
            assert not answer.get("failed"), answer
            require_migrated(cluster, wanted)

    def test_members_that_differ_after_etcdctl_migrate(self) -> None:
        with old_cluster() as cluster:
            cluster.fill(50)
            late = cluster.follower()
            cluster.services[late.name].kill()
            cluster.fill(60)
            for member in cluster.servers.members:
                cluster.services[member.name].kill()
                subprocess.run(
                    [str(binaries(V3_4) / "etcdctl"), "migrate", f"--data-dir={member.data_dir}"],
                    env={"ETCDCTL_API": "3"},
                    check=True,
                    capture_output=True,
                )
            cluster.start()
            answer = migrate(cluster, check=True)
            assert any("differ" in fault for fault in answer["faults"]), answer
            assert migrate(cluster)["failed"]


class TestRolledBack:
    def test_a_writer_that_is_not_frozen(self, one: OldCluster) -> None:
        writer = KeyWriter(one, 100)
        writer.start()
        thawed = one.folder / "thawed"
        answer = migrate(one, thaw_command=["touch", str(thawed)])
        assert answer.get("failed"), answer
        assert "not frozen" in answer["msg"] and "/registry/live/" in answer["msg"]
        assert thawed.exists()
        writer.stop()
        acknowledged = {key: value for key, value in writer.acknowledged().items() if value is not None}
        require_untouched(one, {**listed(KEYS), **acknowledged})
        answer = migrate(one)
        assert not answer.get("failed"), answer
        require_migrated(one, {**KEYS, **acknowledged})

    def test_a_write_after_the_proof(self, one: OldCluster) -> None:
        """It comes when nobody looks any more, just before the member stops: its log tells."""
        arguments = one.arguments()
        stop = " ".join(arguments["members"][0]["stop_command"])
        late = script(
            one.folder,
            "late",
            f"{sys.executable} -c 'import urllib.request as r; r.urlopen(r.Request(\"{one.endpoints[0]}"
            f'/v2/keys/late?value=x", method="PUT"))\' 2>/dev/null\n{stop}',
        )
        arguments["members"][0]["stop_command"] = [late]
        answer = run_module("etcd_migrate", arguments)
        assert answer.get("failed"), answer
        assert "after the freeze" in answer["msg"] and "/late" in answer["msg"]
        require_untouched(one, {**listed(KEYS), "/late": "x"})

    def test_a_new_cluster_that_does_not_start(self, one: OldCluster) -> None:
        arguments = one.arguments(deadline=2)
        arguments["members"][0]["new_start_command"] = ["true"]
        answer = run_module("etcd_migrate", arguments)
        assert answer.get("failed"), answer
        assert answer["state"] == "undone"
        assert "the old cluster serves as before" in answer["msg"]
        require_untouched(one, listed(KEYS))
        answer = migrate(one)
        assert not answer.get("failed"), answer
        require_migrated(one, KEYS)

    def test_a_copy_that_outgrows_the_quota(self, one: OldCluster) -> None:
        # So much that the server has committed some of it before all is there: only then does it look at its size.
        one.fill(5000, 500)
        before = one.old_keys()
        wrapper = script(one.folder, "etcd", f'exec {one.arguments()["etcd"]} "$@" --quota-backend-bytes=300000\n')
        answer = migrate(one, etcd=wrapper)
        assert answer.get("failed"), answer
        assert "quota_bytes" in answer["msg"]
        require_untouched(one, before)

    def test_the_source_dies_in_the_middle(self, one: OldCluster) -> None:
        service = one.services[one.servers.member(0).name]
        etcd = one.arguments()["etcd"]
        # The scratch server starts after the source was examined and before it is read.
        wrapper = script(one.folder, "etcd", f'[ "$1" = --version ] || kill -9 {service.pid}\nexec {etcd} "$@"')
        answer = migrate(one, etcd=wrapper)
        assert answer.get("failed"), answer
        assert answer["state"] == "copying"
        service.run("start-old")
        require_untouched(one, listed(KEYS))
        answer = migrate(one)
        assert not answer.get("failed"), answer
        require_migrated(one, KEYS)


class TestKilled:
    """Killed after each step that a journal notes, and run again."""

    def killed(self, arguments: dict[str, Any], journal: str, state: str) -> None:
        sent = json.dumps({"ANSIBLE_MODULE_ARGS": {**arguments, "_ansible_remote_tmp": "/tmp"}})
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("killed_module.py")), journal, state],
            input=sent,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT / "collections")},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == -9, done.stdout + done.stderr

    @pytest.mark.parametrize(
        ("journal", "state"),
        [
            ("migration", "copying"),
            ("migration", "copied"),
            ("restore", "staged"),
            ("migration", "staged"),
            ("migration", "freezing"),
            ("migration", "frozen"),
            ("migration", "swapping"),
            ("restore", "swapping"),
            ("restore", "swapped"),
            ("migration", "swapped"),
            ("migration", "done"),
            ("restore", "finished"),
        ],
    )
    def test_the_next_run_ends_it(self, one: OldCluster, journal: str, state: str) -> None:
        writer = KeyWriter(one, 100)
        writer.start()
        arguments = one.arguments(**writer.arguments())
        self.killed(arguments, journal, state)
        answer = run_module("etcd_migrate", arguments)
        assert not answer.get("failed"), answer
        assert answer["state"] == "done"
        acknowledged = {key: value for key, value in writer.acknowledged().items() if value is not None}
        require_migrated(one, {**KEYS, **acknowledged})
        leftovers = [path for path in one.servers.member(0).folder.glob("data.restore-*") if path.is_dir()]
        assert not leftovers

    @pytest.mark.parametrize(("journal", "state"), [("migration", "undoing"), ("restore", "rolling-back")])
    def test_also_when_it_was_being_undone(self, one: OldCluster, journal: str, state: str) -> None:
        arguments = one.arguments(deadline=1)
        arguments["members"][0]["new_start_command"] = ["true"]
        self.killed(arguments, journal, state)
        undone = run_module("etcd_migrate", one.arguments(phase="undo"))
        assert undone["changed"], undone
        assert undone["undone"] == "undoing"
        require_untouched(one, listed(KEYS))
        assert not run_module("etcd_migrate", one.arguments(phase="undo"))["changed"]
        answer = migrate(one)
        assert not answer.get("failed"), answer
        require_migrated(one, KEYS)


def test_members_on_several_hosts() -> None:
    """Phase by phase, as the playbook does it, each member's data handled by calls of its own."""
    with old_cluster() as cluster:
        fill(cluster)
        cluster.fill(500)
        members = cluster.servers.members
        here = [{"name": members[0].name, "data_dir": str(members[0].data_dir)}]
        everything = {member.name: [member.peer_url] for member in members}

        def phase(name: str, **more: Any) -> dict[str, Any]:
            answer = run_module("etcd_migrate", cluster.arguments(phase=name, **{"members": here, **more}))
            assert not answer.get("failed"), answer
            return answer

        def each(state: str, **more: Any) -> None:
            programs = {name: cluster.arguments()[name] for name in ("etcd", "etcdctl", "etcdutl", "endpoints")}
            for member in members:
                own = {"data_dir": str(member.data_dir), "name": member.name, "token": copied["id"]}
                answer = run_module("etcd_restore", {"state": state, **own, **programs, **more})
                assert not answer.get("failed"), answer

        copied = phase("copy")
        assert copied["changed"]
        each(
            "staged",
            snapshot=copied["snapshot"]["path"],
            sha256=copied["snapshot"]["sha256"],
            bump_revision=copied["snapshot"]["bump_revision"],
            members=everything,
        )
        cluster.put("/after", "the copy")
        cluster.request("DELETE", "/a")
        frozen = phase("freeze")
        wanted = {**cluster.old_keys(), **KEYS}
        del wanted["/a"]
        assert frozen["last_changes"] == 2
        cluster.stop()
        for member in members:
            own = [{"name": member.name, "data_dir": str(member.data_dir)}]
            phase("check_stopped", members=own, raft_index=frozen["raft_index"])
        each("swapped")
        for service in cluster.services.values():
            service.run("start-new")
        done = phase("finish")
        assert done["changed"] and done["keys"] == len(wanted)
        each("finished")
        assert not phase("finish")["changed"]
        assert not phase("copy")["changed"]
        require_migrated(cluster, wanted)


def test_two_runs_at_once(one: OldCluster) -> None:
    held = one.folder / "held"
    waiting = script(one.folder, "wait", f"touch {held}; while [ -e {held} ]; do sleep 0.05; done")
    arguments = one.arguments(freeze_command=[waiting])
    first = start_module("etcd_migrate", arguments)
    wait_until(held.exists, "the first run is freezing")
    second = run_module("etcd_migrate", arguments)
    held.unlink()
    answer = json.loads(first.communicate(timeout=60)[0])
    assert second["failed"] and "another" in second["msg"]
    assert not answer.get("failed"), answer
    require_migrated(one, KEYS)


class TestPlaybook:
    """As an operator runs it; its services are the tests' own."""

    def play(self, cluster: OldCluster, **variables: Any) -> subprocess.CompletedProcess[str]:
        programs = Path(cluster.arguments()["etcd"]).parent
        hosts = {
            member.name: {
                "etcd_migrate_endpoint": member.endpoint,
                "etcd_migrate_data_dir": str(member.data_dir),
                "etcd_migrate_unit": f"old-{member.name}.service",
                "etcd_migrate_new_unit": f"new-{member.name}.service",
                "etcd_migrate_options": {"work_dir": str(member.folder / "work"), "deadline": 5},
                "etcd_migrate_programs": str(programs),
                "ansible_connection": "local",
                "ansible_python_interpreter": sys.executable,
            }
            for member in cluster.servers.members
        }
        inventory = cluster.folder / "inventory.json"
        inventory.write_text(
            json.dumps({"all": {"vars": {"etcd_migrate_name": "old"}, "children": {"etcd": {"hosts": hosts}}}})
        )
        folder = cluster.folder / "bin"
        bin_folder = folder if folder.exists() else cluster.systemctl()
        return subprocess.run(
            [
                str(Path(sys.executable).with_name("ansible-playbook")),
                f"--inventory={inventory}",
                f"--extra-vars={json.dumps(variables)}",
                str(CHECKOUT / "playbooks/migrate-etcd.yml"),
            ],
            env={
                **os.environ,
                "PATH": f"{bin_folder}:{os.environ['PATH']}",
                "ANSIBLE_COLLECTIONS_PATH": str(CHECKOUT / "collections"),
                "ANSIBLE_LOCALHOST_WARNING": "false",
            },
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            timeout=150,
        )

    def test_three_members(self) -> None:
        with old_cluster() as cluster:
            fill(cluster)
            announced = self.play(cluster)
            assert announced.returncode == 0, announced.stdout + announced.stderr
            assert "Nothing speaks against it" in announced.stdout
            assert "changed=0" in announced.stdout and "changed=1" not in announced.stdout
            wanted = {**cluster.old_keys(), **KEYS}
            done = self.play(cluster, confirm="old")
            assert done.returncode == 0, done.stdout + done.stderr
            require_migrated(cluster, wanted)
            again = self.play(cluster, confirm="old")
            assert again.returncode == 0, again.stdout + again.stderr
            assert "changed=1" not in again.stdout

    def test_what_fails_puts_the_old_cluster_back(self, one: OldCluster) -> None:
        (one.services["m0"].folder / "start-new").write_text("#!/bin/sh\nexit 1\n")
        done = self.play(one, confirm="old")
        assert done.returncode == 2
        assert "The old cluster serves as before" in done.stdout
        require_untouched(one, listed(KEYS))

    def test_another_name(self, one: OldCluster) -> None:
        done = self.play(one, confirm="other")
        assert done.returncode == 2
        assert "found 1 members" in done.stdout
