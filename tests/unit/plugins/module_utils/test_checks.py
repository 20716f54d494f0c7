# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import http.server
import ipaddress
import itertools
import json
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils import checks, commands, network_checks
from ansible_collections.plainkube.cluster.plugins.module_utils.check_results import Result
from ansible_collections.plainkube.cluster.plugins.module_utils.checks import (
    CheckError,
    attempt,
    decode_answer,
    encode_query,
    failure_text,
    faults_of,
    journal_unit,
    judge_members,
    pick,
    quorum,
    unready_nodes,
    wait_for,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

PLAIN = serialization.NoEncryption()


def make_certificate(folder: Path, name: str, issuer: str = "", sans: list[str] | None = None) -> None:
    """Write <name>.crt and <name>.key, signed by <issuer> of the same folder or by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    signer, issuer_name = key, subject
    if issuer:
        signer = serialization.load_pem_private_key((folder / f"{issuer}.key").read_bytes(), None)  # type: ignore[assignment]
        issuer_name = x509.load_pem_x509_certificate((folder / f"{issuer}.crt").read_bytes()).subject
    now = datetime.now(timezone.utc)
    names: list[x509.GeneralName] = [
        x509.IPAddress(ipaddress.ip_address(san)) if san[0].isdigit() else x509.DNSName(san) for san in sans or ["none"]
    ]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=not issuer, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(signer, hashes.SHA256())
    )
    (folder / f"{name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    (folder / f"{name}.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, PLAIN))


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki")
    make_certificate(folder, "ca")
    make_certificate(folder, "other-ca")
    make_certificate(folder, "server", "ca", ["127.0.0.1", "etcd.example"])
    make_certificate(folder, "client", "ca")
    return folder


Serve = Callable[..., str]


@pytest.fixture
def serve(pki: Path) -> Iterator[Serve]:
    """Start HTTP servers on loopback: serve(status, body, tls) returns the URL."""
    servers = []

    def start(status: int = 200, body: str = "ok", tls: bool = False) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write((body or self.path).encode())

            do_POST = do_GET

            def log_message(self, *_words: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, *_words: object) -> None:
                pass

        server = Server(("127.0.0.1", 0), Handler)
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(pki / "server.crt", pki / "server.key")
            context.load_verify_locations(pki / "ca.crt")
            context.verify_mode = ssl.CERT_REQUIRED
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def tls(pki: Path, **change: Any) -> dict[str, Any]:
    names = {"ca": "ca.crt", "certificate": "client.crt", "key": "client.key", **change}
    return {key: str(pki / name) for key, name in names.items() if name}


# --- http ---


@pytest.mark.parametrize(
    ("status", "body", "wish", "ok"),
    [
        (200, "ok", {}, True),
        (503, "etcd failed", {}, False),
        (401, "no", {"status": 401}, True),
        (200, "ok", {"contains": "ok"}, True),
        (200, "not yet", {"contains": "ok"}, False),
    ],
)
def test_http(serve: Serve, status: int, body: str, wish: dict[str, Any], ok: bool) -> None:
    result = attempt({"type": "http", "url": serve(status, body) + "/readyz", **wish})
    assert (result.ok, result.seen) == (ok, f"{status}: {body}")


def test_http_asks_for_the_whole_path(serve: Serve) -> None:
    assert attempt({"type": "http", "url": serve(200, "") + "/a/b?c=d", "contains": "/a/b?c=d"}).ok


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, None),
        ({"ca": "other-ca.crt"}, "certificate is not accepted"),
        ({"certificate": "", "key": ""}, ""),
        ({"ca": "missing.crt"}, "missing.crt: No such file"),
        ({"certificate": "missing.crt"}, "missing.crt: No such file"),
    ],
)
def test_https_with_client_certificate(serve: Serve, pki: Path, change: dict[str, str], told: str | None) -> None:
    result = attempt({"type": "http", "url": serve(tls=True), **tls(pki, **change)})
    assert result.ok is (told is None)
    assert told is None or told in result.seen


@pytest.mark.parametrize(("name", "ok"), [("etcd.example", True), ("elsewhere.example", False)])
def test_server_name_takes_the_place_of_the_address(serve: Serve, pki: Path, name: str, ok: bool) -> None:
    assert attempt({"type": "http", "url": serve(tls=True), "server_name": name, **tls(pki)}).ok is ok


def test_http_failures_have_reasons(closed_port: int) -> None:
    assert "refused" in attempt({"type": "http", "url": f"http://127.0.0.1:{closed_port}/"}).seen
    assert "no http or https URL" in attempt({"type": "http", "url": "127.0.0.1:2379"}).seen


def test_silent_server_is_no_answer_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        assert attempt({"type": "http", "url": url, "timeout": 0.1}).seen == "no answer in time"


def test_insecure_is_for_this_host_alone(serve: Serve, pki: Path) -> None:
    foreign = {**tls(pki, ca="other-ca.crt"), "type": "http", "insecure": True}
    assert attempt({**foreign, "url": serve(tls=True)}).ok
    assert "this host alone" in attempt({**foreign, "url": "https://192.0.2.1/"}).seen


def test_http_any(serve: Serve) -> None:
    good, bad = serve(200), serve(500)
    assert attempt({"type": "http_any", "urls": [bad, good]}).ok
    assert not attempt({"type": "http_any", "urls": [bad]}).ok
    assert attempt({"type": "http_any", "urls": []}).ok


def test_http_all_wants_every_answer_and_names_those_that_are_wrong(serve: Serve) -> None:
    good, found, bad = serve(200), serve(302), serve(404)
    requests = [{"url": good}, {"url": found, "status": 302, "host": "ready.example.org"}]
    assert attempt({"type": "http_all", "requests": requests}).ok
    result = attempt({"type": "http_all", "requests": [*requests, {"url": bad}]})
    assert not result.ok
    assert result.seen.startswith(f"{bad} 404")
    assert result.expected == f"{bad} answers 200"
    assert attempt({"type": "http_all", "requests": []}).ok


def test_another_name_than_the_url_s_can_be_asked_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        asked: list[bytes] = []

        def answer() -> None:
            connection, _ = server.accept()
            asked.append(connection.recv(4096))
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/ready"
        assert attempt({"type": "http", "url": url, "host": "ready.example.org"}).ok
        thread.join()
    assert asked[0].count(b"Host:") == 1
    assert b"Host: ready.example.org" in asked[0]


# --- tcp, file, command ---


def test_http_asks_for_another_name(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    url = serve(200, "ok")
    sent: list[bytes] = []
    real = socket.socket.sendall

    def noted(self: socket.socket, data: bytes, *rest: int) -> None:
        sent.append(data)
        real(self, data, *rest)

    monkeypatch.setattr(socket.socket, "sendall", noted)
    assert attempt({"type": "http", "url": url, "host": "probe.example.org"}).ok
    assert b"Host: probe.example.org\r\n" in sent[0]


@pytest.mark.parametrize(
    ("status", "body", "contains", "ok", "seen"),
    [
        (200, '{"responses":["probe-1"]}', "probe", True, "probe-1"),
        (200, '{"responses":["other"]}', "probe", False, "other"),
        # Whatever is answered is an answer from outside.
        (200, '{"responses":["Client sent an HTTP request to an HTTPS server."]}', "", True, "Client sent"),
        (200, '{"errors":["dial tcp 192.0.2.1:80: i/o timeout"]}', "", False, "i/o timeout"),
        (200, "{}", "", False, "no answer in time"),
        (400, "host and/or port param are invalid", "", False, "the pod says 400: host and/or port"),
    ],
)
def test_dial(serve: Serve, status: int, body: str, contains: str, ok: bool, seen: str) -> None:
    via = serve(status, body).removeprefix("http://")
    result = attempt({"type": "dial", "via": via, "target": "web.example.org:80", "contains": contains})
    assert result.ok == ok
    assert seen in result.seen
    assert result.expected.startswith(f"the pod at {via} reaches web.example.org:80")


def test_dial_tells_a_pod_that_is_silent_from_a_way_that_is_closed(closed_port: int) -> None:
    result = attempt({"type": "dial", "via": f"127.0.0.1:{closed_port}", "target": "192.0.2.1:80"})
    assert "the pod itself does not answer this host" in result.seen


def test_dial_asks_the_pod_for_the_target(serve: Serve) -> None:
    via = serve(200, "").removeprefix("http://")
    result = attempt({"type": "dial", "via": via, "target": "[2001:db8::1]:80"})
    assert "/dial?host=2001%3Adb8%3A%3A1&port=80&request=hostname&protocol=http&tries=1" in result.seen


def test_what_does_not_apply_is_neither_passed_nor_failed() -> None:
    result = attempt({"type": "not_applicable", "why": "there is only one node"})
    assert (result.ok, result.state, result.seen) == (True, "not applicable", "there is only one node")
    assert [Result(ok, "", "").state for ok in (True, False)] == ["passed", "failed"]


def rules_of_proxy(monkeypatch: pytest.MonkeyPatch, folder: Path, program: str) -> Result:
    """Do the check of kube-proxy's rules with this as nft."""
    nft = folder / "nft"
    nft.write_text(f"#!/bin/sh\n{program}\n")
    nft.chmod(0o755)
    monkeypatch.setattr(commands, "PATH", f"{folder}:/usr/bin:/bin")
    return attempt({"type": "proxy_rules"})


def test_rules_of_kube_proxy_are_counted_by_their_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recorded = Path(__file__).parent / "recorded" / "kube-proxy.nft.json"
    result = rules_of_proxy(monkeypatch, tmp_path, f"cat {recorded}")
    assert result.state == "passed"
    assert "22 fixed" in result.seen
    assert "for 7 ports of Services" in result.seen


def test_rules_that_no_service_explains_are_a_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rules = [{"rule": {"chain": "mine", "expr": []}}] * 100
    (tmp_path / "rules.json").write_text(json.dumps({"nftables": rules}))
    assert rules_of_proxy(monkeypatch, tmp_path, f"cat {tmp_path}/rules.json").state == "failed"


def test_a_host_without_the_table_has_nothing_to_prove(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = rules_of_proxy(monkeypatch, tmp_path, "echo No such file or directory >&2; exit 1")
    assert result.state == "not applicable"
    assert "No such file or directory" in result.seen


def test_a_pod_that_is_not_on_this_host_is_said_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(network_checks, "NETWORK_NAMESPACES", str(tmp_path))
    result = attempt({"type": "unfragmented", "source": "192.0.2.1", "host": "192.0.2.2", "port": 8081})
    assert result.seen == "no network namespace of this host has the address 192.0.2.1"


def test_tcp(closed_port: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert attempt({"type": "tcp", "host": "127.0.0.1", "port": server.getsockname()[1]}).ok
    result = attempt({"type": "tcp", "host": "127.0.0.1", "port": closed_port})
    assert (result.ok, "refused" in result.seen) == (False, True)


def test_file(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert attempt({"type": "file", "path": str(tmp_path / "a")}).ok
    assert attempt({"type": "file", "path": str(tmp_path / "b")}).seen == "it is not there"


@pytest.mark.parametrize(
    ("argv", "contains", "ok", "seen"),
    [
        ([sys.executable, "-c", "print('fine')"], "fine", True, "exit code 0: fine"),
        ([sys.executable, "-c", "print('bad')"], "fine", False, "exit code 0: bad"),
        ([sys.executable, "-c", "raise SystemExit('why')"], "", False, "exit code 1: why"),
        (["/nonexistent/program"], "", False, "there is no /nonexistent/program"),
        ([sys.executable, "-c", "import time; time.sleep(9)"], "", False, "it did not end within 0.3 s"),
    ],
)
def test_command(argv: list[str], contains: str, ok: bool, seen: str) -> None:
    timeout = 0.3 if "sleep" in argv[-1] else 20
    result = attempt({"type": "command", "argv": argv, "contains": contains, "timeout": timeout})
    assert (result.ok, result.seen) == (ok, seen)


# --- dns ---

QUESTION = b"\x03api\x07example\x00"


def answer(identifier: int, records: list[tuple[int, bytes]], code: int = 0) -> bytes:
    """A DNS answer whose records' names point at the question's."""
    header = identifier.to_bytes(2, "big") + bytes([0x81, 0x80 | code, 0, 1, 0, len(records), 0, 0, 0, 0])
    packed = (
        b"\xc0\x0c" + kind.to_bytes(2, "big") + b"\0\1\0\0\0\x1e" + len(data).to_bytes(2, "big") + data
        for kind, data in records
    )
    return header + QUESTION + b"\0\1\0\1" + b"".join(packed)


def test_encode_query() -> None:
    expected = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + QUESTION + b"\x00\x1c\x00\x01"
    assert encode_query(0x1234, "api.example.", "AAAA") == expected


@pytest.mark.parametrize("name", ["", "a..b", "a" * 64])
def test_names_that_cannot_be_asked(name: str) -> None:
    with pytest.raises(ValueError):
        encode_query(1, name, "A")


@pytest.mark.parametrize(
    ("packet", "kind", "expected"),
    [
        (answer(7, [(1, b"\x0a\x60\0\x01")]), "A", ("NOERROR", ["10.96.0.1"])),
        (
            answer(7, [(5, b"\x01b\0"), (1, b"\x0a\0\0\x01"), (1, b"\x0a\0\0\x02")]),
            "A",
            ("NOERROR", ["10.0.0.1", "10.0.0.2"]),
        ),
        (answer(7, [(28, bytes(15) + b"\x01")]), "AAAA", ("NOERROR", ["::1"])),
        (answer(7, [], code=3), "A", ("NXDOMAIN", [])),
        (answer(7, [], code=11), "A", ("code 11", [])),
    ],
)
def test_decode_answer(packet: bytes, kind: str, expected: tuple[str, list[str]]) -> None:
    assert decode_answer(packet, 7, kind) == expected


def test_damaged_answers_are_refused_at_any_length() -> None:
    whole = answer(7, [(1, b"\x0a\x60\0\x01")])
    for length in range(len(whole)):
        with pytest.raises(ValueError):
            decode_answer(whole[:length], 7, "A")
    with pytest.raises(ValueError, match="none to this query"):
        decode_answer(whole, 8, "A")
    with pytest.raises(ValueError, match="none to this query"):
        decode_answer(encode_query(7, "api.example", "A"), 7, "A")


@pytest.fixture
def dns_server() -> Iterator[int]:
    """Knows api.example as 10.96.0.1 and nothing else; for fails.example it fails."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
        channel.bind(("127.0.0.1", 0))

        def work() -> None:
            while True:
                try:
                    query, peer = channel.recvfrom(512)
                except OSError:
                    return
                identifier = int.from_bytes(query[:2], "big")
                known = QUESTION in query
                code = 0 if known else 2 if b"fails" in query else 3
                channel.sendto(answer(identifier, [(1, b"\x0a\x60\0\x01")] if known else [], code), peer)

        threading.Thread(target=work, daemon=True).start()
        yield channel.getsockname()[1]


@pytest.mark.parametrize(
    ("wish", "ok", "seen"),
    [
        ({"name": "api.example"}, True, "NOERROR: 10.96.0.1"),
        ({"name": "api.example", "expect": "10.96.0.1"}, True, "NOERROR: 10.96.0.1"),
        ({"name": "api.example", "expect": ["10.96.0.2"]}, False, "NOERROR: 10.96.0.1"),
        ({"name": "x.example"}, False, "NXDOMAIN: no address"),
        ({"name": "api.example", "record": "MX"}, False, "record 'MX' is not one of A, AAAA"),
    ],
)
def test_dns(dns_server: int, wish: dict[str, Any], ok: bool, seen: str) -> None:
    result = attempt({"type": "dns", "server": "127.0.0.1", "port": dns_server, **wish})
    assert (result.ok, result.seen) == (ok, seen)


@pytest.mark.parametrize(
    ("cache_up", "behind_up", "wish", "seen"),
    [
        (True, True, {}, ""),
        (True, True, {"outside": ["nobody.example"]}, ""),
        (False, True, {}, "the cache does not answer for api.example: Connection refused"),
        (True, True, {"expect": "10.96.0.9"}, "the cache says NOERROR: 10.96.0.1; cluster DNS behind it, at 127.0.0.1"),
        (True, False, {"name": "x.example"}, "cluster DNS behind it, at 127.0.0.1, is down: Connection refused"),
        (True, True, {"outside": ["fails.example"]}, "SERVFAIL for fails.example: the name servers of the site"),
    ],
)
def test_dns_chain_tells_who_is_silent(
    dns_server: int, cache_up: bool, behind_up: bool, wish: dict[str, Any], seen: str
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = closed.getsockname()[1]
    definition = {
        "type": "dns_chain",
        "server": "127.0.0.1",
        "port": dns_server if cache_up else nobody,
        "behind": "127.0.0.1",
        "behind_port": dns_server if behind_up else nobody,
        "name": "api.example",
        "expect": "10.96.0.1",
        **wish,
    }
    result = attempt(definition)
    assert result.ok == (not seen)
    assert seen in result.seen


def test_dns_without_a_server() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        definition = {
            "type": "dns",
            "server": "127.0.0.1",
            "port": silent.getsockname()[1],
            "name": "a",
            "timeout": 0.1,
        }
        assert attempt(definition).seen == "no answer in time"


# --- etcd ---


@pytest.mark.parametrize("total", range(1, 8))
def test_judge_members_holds_its_laws(total: int) -> None:
    names = [f"m{number}" for number in range(total)]
    for states in itertools.product([True, False], repeat=total):
        healthy = dict(zip(names, states, strict=True))
        count = sum(states)
        assert judge_members(healthy, "all") is (count == total)
        assert judge_members(healthy, "quorum") is (count >= total // 2 + 1)
        for own in names:
            safe = judge_members(healthy, "others_safe", own)
            left = count - healthy[own]
            if total >= 3:
                # The law: with the own member down, a majority of all members is healthy still.
                assert safe is (left >= quorum(total))
            else:
                assert safe is (left == total - 1)
            # Its own state does not matter for what the others can bear.
            assert safe is judge_members({**healthy, own: not healthy[own]}, "others_safe", own)


def test_at_most_one_of_three_restarts_while_all_ask_at_once() -> None:
    healthy = {"a": True, "b": True, "c": True}
    assert judge_members(healthy, "others_safe", "a")
    healthy["a"] = False
    assert not any(judge_members(healthy, "others_safe", own) for own in ("b", "c"))


def test_etcd_members(serve: Serve, pki: Path, closed_port: int) -> None:
    good = serve(200, '{"health":"true","reason":""}', tls=True)
    also_good = serve(200, '{"health":true}', tls=True)
    bad = serve(503, '{"health":"false","reason":"RAFT NO LEADER"}', tls=True)
    silent = f"https://127.0.0.1:{closed_port}"

    def ask(endpoints: list[str], **wish: Any) -> Result:
        return attempt({"type": "etcd_members", "endpoints": endpoints, **tls(pki), **wish})

    assert ask([good, also_good + "/"]).ok
    assert ask([good, also_good, bad], expect_healthy="quorum").ok
    assert ask([good, also_good, bad], expect_healthy="others_safe", own=bad).ok
    result = ask([good, bad, silent], expect_healthy="others_safe", own=good)
    assert not result.ok
    assert result.expected == "at least 2 of 3 etcd members besides this host's own are healthy"
    assert result.seen == f"{good} healthy; {bad} unhealthy RAFT NO LEADER; {silent} Connection refused"


def test_etcd_that_talks_nonsense_is_not_healthy(serve: Serve) -> None:
    assert not attempt({"type": "etcd_members", "endpoints": [serve(200, "[]"), serve(200, "hello")]}).ok


MEMBERS = {"members": [{"name": "a", "clientURLs": ["https://a"]}, {"name": "b"}]}


@pytest.mark.parametrize(
    ("member", "data", "ok", "seen"),
    [
        ("a", True, True, "the data is there"),
        ("a", False, False, "member a has run before and its data is gone"),
        ("b", False, True, "the cluster waits for it"),
        ("c", False, False, "the running cluster has no member c, and would not let it in"),
    ],
)
def test_etcd_first_start(
    serve: Serve, tmp_path: Path, closed_port: int, member: str, data: bool, ok: bool, seen: str
) -> None:
    if data:
        (tmp_path / "member/wal").mkdir(parents=True)
    definition = {"type": "etcd_first_start", "data_dir": str(tmp_path), "member": member}
    silent = f"http://127.0.0.1:{closed_port}"
    result = attempt({**definition, "endpoints": [silent, serve(200, json.dumps(MEMBERS))]})
    assert (result.ok, result.seen) == (ok, seen)
    assert attempt({**definition, "endpoints": [silent]}).ok


# --- nodes ---


def node(name: str, **ready: str) -> dict[str, Any]:
    conditions = [{"type": "MemoryPressure", "status": "False"}, *([{"type": "Ready", **ready}] if ready else [])]
    return {"metadata": {"name": name}, "status": {"conditions": conditions}}


NODES = [
    node("a", status="True"),
    node("b", status="False", message="no network"),
    node("c", status="Unknown"),
    node("d"),
]


@pytest.mark.parametrize(
    ("names", "faults"),
    [
        (["a"], {}),
        (["a", "b"], {"b": "is not ready: no network"}),
        (["c", "d"], dict.fromkeys("cd", "is not ready: it says nothing about it")),
        (["e"], {"e": "is not registered"}),
    ],
)
def test_unready_nodes(names: list[str], faults: dict[str, str]) -> None:
    assert unready_nodes(NODES, names) == faults


def test_nodes_ready(serve: Serve) -> None:
    url = serve(200, json.dumps({"kind": "NodeList", "items": NODES}))
    assert attempt({"type": "nodes_ready", "url": url, "names": ["a"]}).ok
    result = attempt({"type": "nodes_ready", "url": url, "names": ["a", "b", "x"]})
    assert (result.ok, result.seen) == (False, "b is not ready: no network; x is not registered")


def test_node_ready(serve: Serve) -> None:
    assert attempt({"type": "node_ready", "url": serve(200, json.dumps(NODES[0])), "name": "a"}).ok
    assert attempt({"type": "node_ready", "url": serve(404, "{}"), "name": "x"}).seen == "x is not registered"
    assert attempt({"type": "node_ready", "url": serve(403, "forbidden"), "name": "a"}).seen == "403: forbidden"


# --- sets of checks ---


def test_wait_for_polls_all_at_once_until_each_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = time.monotonic()

    def later(definition: dict[str, Any]) -> Result:
        return Result(time.monotonic() - begin > definition["after"], "seen", "expected")

    monkeypatch.setitem(checks.KINDS, "later", checks.Kind(later, frozenset({"after"})))
    results = wait_for({name: {"type": "later", "after": 0.3} for name in "abc"}, 5)
    assert [results[name].ok for name in "abc"] == [True] * 3
    assert time.monotonic() - begin < 2


@pytest.mark.parametrize(("deadline", "least"), [(0, 1), (0.3, 2)])
def test_wait_for_ends_at_the_deadline(monkeypatch: pytest.MonkeyPatch, deadline: float, least: int) -> None:
    tries = []

    def never(definition: dict[str, Any]) -> Result:
        tries.append(1)
        return Result(False, "no", "yes")

    monkeypatch.setitem(checks.KINDS, "never", checks.Kind(never, frozenset()))
    assert wait_for({"a": {"type": "never"}}, deadline)["a"] == Result(False, "no", "yes")
    assert len(tries) == 1 if deadline == 0 else len(tries) >= least


def test_a_check_that_breaks_is_a_failed_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(definition: dict[str, Any]) -> Result:
        raise RuntimeError("what nobody thought of")

    monkeypatch.setitem(checks.KINDS, "broken", checks.Kind(broken, frozenset()))
    result = wait_for({"a": {"type": "broken"}}, 0)["a"]
    assert (result.ok, "what nobody thought of" in result.seen) == (False, True)


def test_pick_names_what_is_known() -> None:
    assert pick({"a": 1, "b": 2}, ["b", "b"]) == {"b": 2}
    with pytest.raises(CheckError, match=r"check 'x, y'\. Defined checks: a, b"):
        pick({"a": 1, "b": 2}, ["y", "x", "a"])


@pytest.mark.parametrize(
    ("definition", "fault"),
    [
        ({"type": "tcp", "host": "a", "port": 1, "unit": "x", "hint": "h", "timeout": 1}, None),
        ({"type": "htpp"}, "type is 'htpp', known types: http"),
        ("text", "type is 'text'"),
        ({"type": "tcp", "host": "a"}, "missing port"),
        ({"type": "http", "url": "u", "cacert": "x"}, "unknown cacert (known: ca,"),
        ({"type": "etcd_members", "endpoints": ["a"], "expect_healthy": "most"}, "expect_healthy is 'most'"),
        ({"type": "etcd_members", "endpoints": ["a"], "expect_healthy": "others_safe", "own": "b"}, "own is 'b'"),
        ({"type": "etcd_members", "endpoints": ["a"], "expect_healthy": "others_safe", "own": "a"}, None),
    ],
)
def test_faults_of_definitions(definition: Any, fault: str | None) -> None:
    faults = faults_of({"c": definition})
    assert len(faults) == (0 if fault is None else 1)
    assert fault is None or fault in faults[0]


def test_failure_text() -> None:
    text = failure_text("etcd", {"type": "tcp", "hint": "start it"}, Result(False, "refused", "port 1 is open"))
    assert text == "etcd: expected that port 1 is open\n  seen: refused\n  what to do: start it"


@pytest.mark.parametrize(
    ("definition", "unit"),
    [
        ({"type": "unit", "name": "a"}, "a"),
        ({"type": "tcp", "unit": "b"}, "b"),
        ({"type": "node_ready", "name": "n"}, ""),
    ],
)
def test_journal_unit(definition: dict[str, Any], unit: str) -> None:
    assert journal_unit(definition) == unit
