# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Real clusters from one version to the next, with a writer that notes what was acknowledged."""

from __future__ import annotations

import base64
import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from etcd_servers import V3_4, V3_5, V3_5_OLD, V3_6, V3_7, EtcdServers, Member, binaries, cluster, wait_until
from run_module import run_module


class Writer:
    """Writes one key after the other, to the next member when one does not answer, until it is told to stop."""

    def __init__(self, servers: EtcdServers) -> None:
        self.servers = servers
        self.acknowledged: list[str] = []
        self.failed: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_reason: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        member = 0
        while not self._stop.is_set():
            number += 1
            key = f"/writer/{number:06}"
            for _attempt in self.servers.members:
                try:
                    self._put(self.servers.member(member), key)
                    self.acknowledged.append(key)
                    break
                except OSError as error:
                    self.failed.append(f"{key}: {error}")
                    member = (member + 1) % len(self.servers.members)
            time.sleep(0.005)

    def _put(self, member: Member, key: str) -> None:
        member.call("kv/put", key=encoded(key), value=encoded("written"))


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def gate(servers: EtcdServers, version: str, check: bool = False, **more: Any) -> dict[str, Any]:
    arguments = {**servers.arguments(), "timeout": 10, "version": version, **more}
    return run_module("etcd_version_gate", arguments, check=check)


def info(servers: EtcdServers) -> dict[str, Any]:
    return run_module("etcd_info", servers.arguments(timeout=10))


def roll(servers: EtcdServers, version: str) -> None:
    """Give each member the other binary, as the role does: followers first, the leader last, each behind the gate."""
    leader = servers.leader()
    for member in [*(other for other in servers.members if other is not leader), leader]:
        member.stop()
        member.version = version
        member.start()
        wait_until(lambda: servers.leader(), "there is a leader")
        found = wait_until(lambda: agreed(servers), f"all agree after {member.name}")
        assert found["quorum"]["margin"] == 1
    servers.version = version


def agreed(servers: EtcdServers) -> dict[str, Any] | None:
    found = info(servers)
    return found if found["data_agree"] and found["quorum"]["healthy"] == len(servers.members) else None


@pytest.fixture
def old(tmp_path: Path) -> Iterator[EtcdServers]:
    with cluster(V3_4, folder=tmp_path) as servers:
        yield servers


def forget_the_old_store(servers: EtcdServers) -> None:
    """See that the gate keeps 3.6 away from the log that 3.4 left, and do what it says."""
    for member in servers.members:
        answer = gate(servers, V3_6, data_dir=str(member.data_dir))
        assert f"{member.data_dir}: detected custom v2 content in WAL records" in answer["msg"]
    servers.flags["snapshot-count"] = 50
    roll(servers, servers.version)
    for number in range(200):
        servers.put("/again", str(number))


def test_from_3_4_to_3_7_and_back_to_3_6_with_a_writer(old: EtcdServers) -> None:
    old.fill(300)
    for version, kind in [(V3_5, "up"), (V3_6, "up"), (V3_7, "up"), (V3_6, "down")]:
        if version == V3_6 and kind == "up":
            forget_the_old_store(old)
        more = {"allow_downgrade": kind == "down", "data_dir": str(old.member(0).data_dir)}
        dry = gate(old, version, check=True, **more)
        answer = gate(old, version, **more)
        assert (answer.get("move"), answer["changed"]) == (kind, kind == "down"), answer
        assert dry["changed"] == answer["changed"]
        with Writer(old) as writer:
            roll(old, version)
        # Each member is away once; a request that meets it succeeds at the next one.
        assert len(writer.failed) <= len(old.members), writer.failed
        assert len(writer.acknowledged) > 20
        missing = [key for key in writer.acknowledged if old.get(key) != b"written"]
        assert missing == []
        assert gate(old, version)["move"] == "none"
    assert {member["version"] for member in info(old)["members"]} == {V3_6}


def test_what_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    with cluster(V3_5_OLD, folder=tmp_path, enable_v2="true") as servers:
        servers.put_v2("/old", "content")
        before = [member.process.pid for member in servers.members if member.process]
        data_dir = str(servers.member(0).data_dir)
        # The check of the old store is that of a 3.5 which looks into the log as well.
        etcdutl = str(binaries(V3_5) / "etcdutl")
        answer = gate(servers, V3_6, flags=["enable-v2"], data_dir=data_dir, etcdutl=etcdutl)
        assert answer["failed"]
        said = "\n".join(answer["faults"])
        assert len(answer["faults"]) == 3, said
        assert f"found etcd {V3_5_OLD}, wanted at least 3.5.32" in said
        assert "the flag --enable-v2 is set" in said
        assert f"{data_dir}: " in said
        assert "etcd 3.6 dies on such content" in said
        assert "one minor at a time" in gate(servers, V3_7)["msg"]
        assert [member.process.pid for member in servers.members if member.process] == before


def added(servers: EtcdServers, learner: Member) -> bool:
    with contextlib.suppress(OSError):
        servers.member(0).call("cluster/member/add", peerURLs=[learner.peer_url], isLearner=True)
        return True
    return False


def test_a_cluster_that_is_not_well_does_not_move(tmp_path: Path) -> None:
    with cluster(V3_6, folder=tmp_path) as servers:
        learner = servers.add("learner")
        # A member takes no new ones in until it has known the others for some seconds.
        wait_until(lambda: added(servers, learner), "the learner is added")
        servers.member(2).kill()
        answer = gate(servers, V3_7)
        assert answer["failed"]
        assert "m2" in answer["msg"]
        assert "is not healthy" in answer["msg"]
        assert "is a learner: promote or remove it" in answer["msg"]
        older = gate(servers, V3_5)
        assert "etcd_allow_downgrade" in older["msg"]


def test_nobody_answers(tmp_path: Path) -> None:
    with cluster(V3_7, folder=tmp_path, start=False, members=1) as servers:
        answer = gate(servers, V3_7)
        assert "no endpoint of etcd answers" in answer["msg"]
        # What has never run has nothing to lose.
        assert gate(servers, V3_7, data_dir=str(servers.member(0).data_dir))["move"] == "none"
