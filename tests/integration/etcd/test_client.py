# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""module_utils/etcd_client.py against real servers, and against what only pretends to be one."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_client import (
    Connection,
    Etcdctl,
    EtcdError,
    Gateway,
    HistoryLost,
    KeysV2,
    Refused,
    Unreachable,
    connection_from,
    decode,
    encode,
    http_get,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_cluster_io import MemberApi
from etcd_servers import V3_4, V3_7, VERSIONS, EtcdServers, Pki, cluster, free_ports, wait_until


def connect(servers: EtcdServers, **more: Any) -> Connection:
    return connection_from({"timeout": 5.0, **servers.arguments(), **more})


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServers]:
    with cluster(V3_7, members=1, tls=True, folder=tmp_path_factory.mktemp("secure")) as servers:
        yield servers


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServers]:
    with cluster(V3_7, members=1, folder=tmp_path_factory.mktemp("plain")) as servers:
        yield servers


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_answers_in_both_ways(version: str, pki: Pki, tmp_path: Path) -> None:
    with cluster(version, members=1, tls=pki, folder=tmp_path) as servers:
        connection = connect(servers)
        gateway = Gateway(connection, servers.endpoints[0])
        gateway.call("kv/put", {"key": encode("name"), "value": encode(b"\x00\xff")})
        (found,) = gateway.call("kv/range", {"key": encode("name")})["kvs"]
        assert decode(found["value"]) == b"\x00\xff"

        messages = list(gateway.stream("maintenance/snapshot", {}))
        assert int(messages[-1].get("remaining_bytes", 0)) == 0
        assert sum(len(decode(message.get("blob"))) for message in messages) % 512 == 32

        etcdctl = Etcdctl(connection)
        assert [member["name"] for member in etcdctl.json("member", "list")["members"]] == ["m0"]
        assert etcdctl.text("get", "name", "--print-value-only").startswith("\x00")
        status, _headers, body = http_get(connection, servers.endpoints[0], "/version")
        assert (status, version in body.decode()) == (200, True)


def test_a_refused_call_says_why(plain: EtcdServers) -> None:
    gateway = Gateway(connect(plain), plain.endpoints[0])
    with pytest.raises(Refused, match="future revision") as caught:
        gateway.call("kv/range", {"key": encode("x"), "revision": "1000000"})
    assert (caught.value.code, caught.value.status) == (11, 400)
    with pytest.raises(EtcdError, match=r"etcdctl move-leader 1 at http.*: .*"):
        Etcdctl(connect(plain)).text("move-leader", "1")


def test_the_connection_is_kept_and_made_anew_when_the_server_was_restarted(tmp_path: Path) -> None:
    with cluster(V3_7, members=1, folder=tmp_path) as servers:
        gateway = Gateway(connect(servers), servers.endpoints[0])
        gateway.call("maintenance/status", {})
        first = gateway._http._stream
        gateway.call("maintenance/status", {})
        assert gateway._http._stream is first
        servers.member(0).stop()
        servers.member(0).start()
        assert gateway.call("maintenance/status", {})["version"] == V3_7
        assert gateway._http._stream is not first


def test_a_watch_tells_events_and_ends_by_its_own_deadline(plain: EtcdServers) -> None:
    gateway = Gateway(connect(plain), plain.endpoints[0])
    stream = gateway.stream("watch", {"create_request": {"key": encode("seen")}}, deadline=3)
    assert next(stream)["created"] is True
    plain.put("seen", "yes")
    (event,) = next(stream)["events"]
    assert decode(event["kv"]["value"]) == b"yes"
    begin = time.monotonic()
    with pytest.raises(Unreachable, match="no answer"):
        next(stream)
    assert time.monotonic() - begin < 4


def test_a_stream_whose_server_dies_does_not_end_as_if_it_were_complete(tmp_path: Path) -> None:
    with cluster(V3_7, members=1, folder=tmp_path) as servers:
        # More than the sockets' buffers hold.
        for number in range(40):
            servers.put(f"big{number}", b"x" * 1_000_000)
        stream = Gateway(connect(servers), servers.endpoints[0]).stream("maintenance/snapshot", {})
        next(stream)
        servers.member(0).kill()
        with pytest.raises(EtcdError):
            list(stream)


# --- TLS --------------------------------------------------------------------------------------------------------------


def test_tls_that_does_not_fit_is_explained(secure: EtcdServers, plain: EtcdServers, pki: Pki) -> None:
    assert secure.pki
    own, other = secure.pki, pki
    late = own.issue("late", valid=-timedelta(minutes=5))
    good = secure.arguments()

    def message(endpoint: str, **more: Any) -> str:
        with pytest.raises(EtcdError) as caught:
            Gateway(connect(secure, **more), endpoint).call("maintenance/status", {})
        return str(caught.value)

    endpoint = secure.endpoints[0]
    assert "its certificate is not accepted: " in message(endpoint, ca_cert=other.ca["certificate"])
    assert "see client_cert and client_key" in message(endpoint, client_cert=None, client_key=None)
    over = message(endpoint, client_cert=late["certificate"], client_key=late["key"])
    assert f"client_cert: {late['certificate']} expired on " in over
    foreign = {"client_cert": other.client["certificate"], "client_key": other.client["key"]}
    assert "see client_cert and client_key" in message(endpoint, **foreign)
    assert "https://" in message(endpoint.replace("https:", "http:"))
    assert "http://" in message(plain.endpoints[0].replace("http:", "https:"))
    swapped = {**good, "client_key": own.server["key"], "timeout": 5.0}
    with pytest.raises(EtcdError, match="not a certificate with its own key"):
        Gateway(connection_from(swapped), endpoint).call("maintenance/status", {})


def test_a_server_certificate_for_another_name_is_not_accepted(tmp_path: Path) -> None:
    pki = Pki(tmp_path / "pki")
    pki.server = pki.issue("server", sans=("localhost",))
    with cluster(V3_7, members=1, tls=pki, folder=tmp_path, start=False) as servers:
        member = servers.member(0)
        member.start(wait=False)
        connection = connect(servers)

        def answered() -> str:
            try:
                Gateway(connection, member.endpoint).call("maintenance/status", {})
            except Unreachable as error:
                return str(error) if "refused" not in str(error) else ""
            raise AssertionError("it was accepted")

        assert "its certificate is not accepted" in wait_until(answered, "the server answers")


# --- Endpoints that are no servers ------------------------------------------------------------------------------------


class Pretender:
    """Accepts connections and sends what it is told, byte by byte."""

    def __init__(self, content: bytes = b"", pause: float = 0.0) -> None:
        self.content, self.pause = content, pause
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.over = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        kept = []
        while not self.over.is_set():
            try:
                connection, _address = self.socket.accept()
            except OSError:
                return
            kept.append(connection)
            for number in range(len(self.content)):
                if self.over.wait(self.pause):
                    return
                try:
                    connection.sendall(self.content[number : number + 1])
                except OSError:
                    break

    def close(self) -> None:
        self.over.set()
        self.socket.close()


ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\n" + b"{" * 400


@pytest.mark.parametrize("content", [b"", b"H" * 1000, ANSWER], ids=["silent", "endless line", "dripping body"])
def test_the_deadline_holds_for_the_whole_exchange(content: bytes) -> None:
    pretender = Pretender(content, pause=0.05)
    begin = time.monotonic()
    try:
        with pytest.raises(Unreachable, match=r"no answer within 0\.5 s"):
            Gateway(Connection((pretender.endpoint,), timeout=0.5), pretender.endpoint).call("kv/range", {})
    finally:
        pretender.close()
    assert time.monotonic() - begin < 1.5


def test_etcdctl_ends_too_when_an_endpoint_hangs(plain: EtcdServers) -> None:
    pretender = Pretender()
    begin = time.monotonic()
    try:
        with pytest.raises(EtcdError, match=rf"etcdctl endpoint status at {pretender.endpoint}"):
            Etcdctl(connect(plain, timeout=0.5).only(pretender.endpoint)).json("endpoint", "status")
    finally:
        pretender.close()
    assert time.monotonic() - begin < 3


def test_what_is_no_http_server_is_told() -> None:
    pretender = Pretender(b"220 mail.example ESMTP\r\n")
    try:
        with pytest.raises(Unreachable, match="does not speak HTTP"):
            http_get(Connection((pretender.endpoint,)), pretender.endpoint, "/version")
    finally:
        pretender.close()
    (port,) = free_ports(1)
    with pytest.raises(Unreachable, match="nothing listens there"):
        http_get(Connection(("http://127.0.0.1:1",)), f"http://127.0.0.1:{port}", "/version")


# --- Without the gateway ----------------------------------------------------------------------------------------------


def test_etcdctl_is_asked_where_the_gateway_is_off(tmp_path: Path) -> None:
    with cluster(V3_7, members=1, folder=tmp_path, enable_grpc_gateway="false") as servers:
        connection, endpoint = connect(servers), servers.endpoints[0]
        with pytest.raises(Refused, match="the JSON gateway is not served here"):
            Gateway(connection, endpoint).call("maintenance/status", {})
        api = MemberApi(connection, endpoint)
        status = api.status()
        assert (status.version, status.leader_id) == (V3_7, status.member_id)
        assert [member.name for member in api.members()] == ["m0"]
        assert api.hash(status.revision).revision == status.revision
        assert api.alarms() == ()
        api.require_quorum()
        api.defragment(20)
        added = api.add(["http://127.0.0.1:9"], learner=True)
        assert (added.name, added.learner) == ("", True)
        assert [member.id for member in api.members() if member.learner] == [added.id]
        api.remove(added.id)
        assert len(api.members()) == 1


def test_etcdctl_is_asked_where_clients_are_known_by_their_certificates(tmp_path: Path) -> None:
    pki = Pki(tmp_path / "pki")
    pki.client = pki.issue("client", common_name="root")
    with cluster(V3_7, members=1, tls=pki, folder=tmp_path) as servers:
        servers.etcdctl("user", "add", "root", "--no-password")
        servers.etcdctl("user", "grant-role", "root", "root")
        servers.etcdctl("auth", "enable")
        api = MemberApi(connect(servers), servers.endpoints[0])
        assert [member.name for member in api.members()] == ["m0"]
        assert api.hash(api.status().revision).value
        api.require_quorum()


# --- The old store ----------------------------------------------------------------------------------------------------


def test_the_old_store_is_read_and_followed(tmp_path: Path) -> None:
    with cluster(V3_4, members=1, folder=tmp_path, enable_v2="true") as servers:
        keys = KeysV2(connect(servers), servers.endpoints[0])
        first = servers.put_v2("/a b/ü", "one")
        node, index = keys.get("/a b/ü")
        assert node and (node["value"], index) == ("one", first)
        assert keys.get("/none") == (None, first)
        tree, _index = keys.get("/", recursive=True)
        assert tree and tree["nodes"][0]["key"] == "/a b"

        begin = time.monotonic()
        assert keys.wait("/", first + 1, 0.3) is None
        assert 0.2 < time.monotonic() - begin < 1.5
        second = servers.put_v2("/a b/ü", "two")
        event = keys.wait("/", first + 1, 5)
        assert event and (event["node"]["value"], event["node"]["modifiedIndex"]) == ("two", second)
        assert event["prevNode"]["value"] == "one"

        for number in range(1001):
            servers.put_v2("/many", str(number))
        with pytest.raises(HistoryLost, match=f"from index {first} on"):
            keys.wait("/", first, 5)


def test_a_server_without_the_old_store_is_told(plain: EtcdServers) -> None:
    with pytest.raises(Refused, match="--enable-v2"):
        KeysV2(connect(plain), plain.endpoints[0]).get("/")
