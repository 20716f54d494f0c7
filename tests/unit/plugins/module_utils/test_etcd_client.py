# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import os
import ssl
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.plainkube.cluster.plugins.doc_fragments.etcd_connection import ModuleDocFragment
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_client import (
    CONNECTION_ARGUMENTS,
    Connection,
    Etcdctl,
    EtcdError,
    Finished,
    as_int,
    connection_from,
    decode,
    encode,
    endpoint_faults,
    last_words,
    run_command,
    why,
)
from yaml import safe_load

DEFAULTS = {name: option.get("default") for name, option in CONNECTION_ARGUMENTS.items()}


def parameters(**more: Any) -> dict[str, Any]:
    return {**DEFAULTS, "endpoints": ["https://10.0.0.1:2379/"], **more}


def program(folder: Path, text: str) -> str:
    """Write an executable and return its path."""
    path = folder / "program"
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(0o755)
    return str(path)


# --- Connection -------------------------------------------------------------------------------------------------------


def test_the_documentation_has_the_same_options() -> None:
    options = safe_load(ModuleDocFragment.DOCUMENTATION)["options"]
    told = {name: {k: v for k, v in option.items() if k != "description"} for name, option in options.items()}
    assert told == CONNECTION_ARGUMENTS


def test_a_connection_has_its_endpoints_without_a_slash_and_can_be_narrowed() -> None:
    connection = connection_from(parameters())
    assert connection == Connection(("https://10.0.0.1:2379",))
    assert connection.only("http://other:1").endpoints == ("http://other:1",)


@pytest.mark.parametrize(
    ("endpoint", "sound"),
    [
        ("https://10.0.0.1:2379", True),
        ("http://[2001:db8::1]:2379", True),
        ("https://etcd.example:2379", True),
        ("10.0.0.1:2379", False),
        ("etcd.example", False),
        ("https://10.0.0.1", False),
        ("https://10.0.0.1:port", False),
        ("https://10.0.0.1:99999", False),
        ("https://10.0.0.1:2379/v3", False),
        ("https://name:word@10.0.0.1:2379", False),
        ("unix:///run/etcd.sock", False),
        ("", False),
    ],
)
def test_an_endpoint_is_a_url_of_scheme_host_and_port(endpoint: str, sound: bool) -> None:
    assert (endpoint_faults(endpoint) == []) is sound


def test_all_faults_of_a_connection_are_told_at_once(tmp_path: Path) -> None:
    wrong = parameters(
        endpoints=["h:1", "http://a:1", "http://a:1/"], timeout=-1, client_cert=str(tmp_path / "none"), ca_cert="/none"
    )
    with pytest.raises(EtcdError) as caught:
        connection_from(wrong)
    for fault in ("'h:1'", "stands there twice", "found -1", "without client_key", "ca_cert: /none: No such file"):
        assert fault in str(caught.value)
    with pytest.raises(EtcdError, match="the list is empty"):
        connection_from(parameters(endpoints=[]))


# --- Programs ---------------------------------------------------------------------------------------------------------


def test_a_program_gets_its_input_and_no_foreign_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETCDCTL_ENDPOINTS", "http://elsewhere:1")
    monkeypatch.setenv("ETCD_NAME", "other")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:1")
    path = program(tmp_path, "import os, sys\nprint(sys.argv[1:], sys.stdin.read(), *sorted(os.environ))\nsys.exit(3)")
    finished = run_command([path, "a b", "$HOME"], 20, {"ETCDCTL_API": "3"}, input="text")
    assert finished.rc == 3
    assert finished.stdout.startswith("['a b', '$HOME'] text ")
    names = finished.stdout.split()
    assert "ETCDCTL_API" in names
    assert not {"ETCDCTL_ENDPOINTS", "ETCD_NAME", "HTTPS_PROXY"} & set(names)


def test_a_program_and_all_that_it_started_are_killed_at_the_deadline(tmp_path: Path) -> None:
    note = tmp_path / "child"
    path = program(
        tmp_path,
        "import subprocess, time\n"
        f"child = subprocess.Popen(['sleep', '60'])\nopen({str(note)!r}, 'w').write(str(child.pid))\ntime.sleep(60)",
    )
    begin = time.monotonic()
    with pytest.raises(EtcdError, match=r"did not end within 1 s and was killed"):
        run_command([path], 1)
    assert time.monotonic() - begin < 5
    child = int(note.read_text())
    until = time.monotonic() + 5
    while time.monotonic() < until and Path(f"/proc/{child}").exists() and "Z" not in _state(child):
        time.sleep(0.01)
    assert not Path(f"/proc/{child}").exists() or "Z" in _state(child)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(EtcdError, match=r"there is no program /none/etcdctl .* name its path with etcdctl"):
        run_command(["/none/etcdctl"], 1)


@pytest.mark.parametrize(
    ("stderr", "words"),
    [
        ("Error: context deadline exceeded\n", "context deadline exceeded"),
        ('{"level":"warn","msg":"retrying"}\nError: no leader\n', "no leader"),
        ('{"level":"fatal","msg":"cannot open","error":"file is gone"}\n', "cannot open: file is gone"),
        ("", "it said nothing"),
        ("{broken\n", "{broken"),
    ],
)
def test_the_last_words_of_a_program_say_why(stderr: str, words: str) -> None:
    assert last_words(Finished(1, "", stderr)) == words


def test_etcdctl_gets_times_and_certificates_by_path() -> None:
    secure = Connection(("https://a:1", "https://b:2"), "/ca", "/crt", "/key")
    assert Etcdctl(secure).flags(2.5) == [
        "--endpoints=https://a:1,https://b:2",
        "--dial-timeout=2500ms",
        "--command-timeout=2500ms",
        "--cacert=/ca",
        "--cert=/crt",
        "--key=/key",
    ]
    assert Etcdctl(secure.only("http://c:3")).flags(1)[3:] == []


def test_what_etcdctl_prints_is_read_and_its_failure_is_told(tmp_path: Path) -> None:
    path = program(
        tmp_path,
        "import os, sys\nassert os.environ['ETCDCTL_API'] == '3'\n"
        "if 'bad' in sys.argv: sys.exit('Error: it went wrong')\n"
        "print('no JSON' if 'odd' in sys.argv else '{\"id\": 18446744073709551615}')",
    )
    etcdctl = Etcdctl(Connection(("http://a:1",), etcdctl=path))
    assert etcdctl.json("member", "list") == {"id": 2**64 - 1}
    with pytest.raises(EtcdError, match=r"^etcdctl bad at http://a:1: it went wrong$"):
        etcdctl.json("bad")
    with pytest.raises(EtcdError, match=r"etcdctl odd at http://a:1: found 'no JSON', wanted JSON"):
        etcdctl.json("odd")


# --- Answers ----------------------------------------------------------------------------------------------------------


def test_bytes_and_numbers_of_the_gateway() -> None:
    assert decode(encode(bytes(range(256)))) == bytes(range(256))
    assert (encode("ü"), decode(None)) == ("w7w=", b"")
    assert [as_int("18446744073709551615"), as_int(None), as_int(7), as_int(None, -1)] == [2**64 - 1, 0, 7, -1]


@pytest.mark.parametrize(
    ("error", "endpoint", "words"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "https://a:1", "nothing listens there"),
        (TimeoutError("timed out"), "https://a:1", "no answer within 5 s"),
        (ConnectionResetError(104, "reset"), "http://a:1", "write the endpoint with https://"),
        (ConnectionResetError(104, "reset"), "https://a:1", "see client_cert"),
        (ssl.SSLEOFError(8, "EOF occurred"), "https://a:1", "see client_cert"),
        (OSError(113, os.strerror(113)), "https://a:1", "No route to host"),
        (ValueError("odd"), "http://a:1", "does not speak HTTP"),
    ],
)
def test_what_the_network_says_is_told_in_words(error: Exception, endpoint: str, words: str) -> None:
    assert words in why(error, endpoint, 5)
