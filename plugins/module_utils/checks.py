# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Named checks: evidence that something works, asked for in the way its users would ask.

A definition is a dict: `type` names one of KINDS, the other keys are that kind's. Every definition may have `unit`
(whose journal explains a failure), `hint` (what to do about a failure) and `timeout` (seconds for one attempt). A new
kind is one function from a definition to a Result, and one line in KINDS.

The heavy modules of the standard library are imported where they are used: most calls need none of them.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable

from ansible_collections.plainkube.cluster.plugins.module_utils.check_results import (
    Definition,
    Result,
    attempt_seconds,
    reason_of,
    shortened,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError
from ansible_collections.plainkube.cluster.plugins.module_utils.network_checks import (
    attempt_proxy_rules,
    attempt_unfragmented,
)

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 1.0
ANSWER_BYTES_AT_MOST = 8 * 1024 * 1024

# Arguments of the health plugin, for the module and its action plugin.
ARGUMENTS = {
    "checks": {"type": "list", "elements": "str", "required": True},
    "deadline": {"type": "int", "default": 60},
    "definitions": {"type": "dict"},
}


class CheckError(PlainkubeError):
    """A check that is not known or not well defined."""


@dataclass(frozen=True)
class Kind:
    """How a kind of check is done, and the keys that its definition must and may have."""

    attempt: Callable[[Definition], Result]
    required: frozenset[str]
    optional: frozenset[str] = frozenset()


COMMON_KEYS = frozenset({"type", "unit", "hint", "timeout"})
TLS_KEYS = frozenset({"ca", "certificate", "key", "server_name"})
LOOPBACK = ("127.0.0.1", "localhost", "::1")


# --- HTTP -------------------------------------------------------------------------------------------------------------


def get(url: str, definition: Definition) -> tuple[int, str]:
    """Return status and body of a GET, or of a POST of the definition's body, over TLS by its ca, certificate and key.

    A server on this very host may show a certificate of its own making if the definition says insecure. host is the
    name to ask for where it is not the URL's.
    Raises OSError, ValueError.
    """
    import http.client
    import socket
    import ssl
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url} is no http or https URL")
    timeout = attempt_seconds(definition)
    secure = parts.scheme == "https"
    if secure:
        for key in ("ca", "certificate", "key"):
            if definition.get(key):
                # The TLS library does not say which file it could not read.
                open(definition[key], "rb").close()
        context = ssl.create_default_context(cafile=definition.get("ca") or None)
        # From Python 3.13 on the default is stricter than the components that are checked here.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if definition.get("insecure"):
            if parts.hostname not in (*LOOPBACK, definition.get("own_address")):
                raise ValueError("insecure is for servers on this host alone")
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if definition.get("certificate"):
            context.load_cert_chain(definition["certificate"], definition.get("key") or None)
    port = parts.port or (443 if secure else 80)
    stream: socket.socket = socket.create_connection((parts.hostname, port), timeout)
    try:
        if secure:
            stream = context.wrap_socket(stream, server_hostname=definition.get("server_name") or parts.hostname)
        connection = http.client.HTTPConnection(parts.hostname, port)
        connection.sock = stream
        body = definition.get("body")
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = {"Host": definition["host"]} if definition.get("host") else {}
        connection.request("GET" if body is None else "POST", target, body, headers)
        response = connection.getresponse()
        return response.status, response.read(ANSWER_BYTES_AT_MOST).decode("utf-8", "replace")
    except http.client.HTTPException as error:
        raise ValueError(f"no HTTP answer: {error!r}") from None
    finally:
        stream.close()


def attempt_http(definition: Definition) -> Result:
    """GET url: the status is as wanted (200) and the body contains the wanted text."""
    status = int(definition.get("status") or 200)
    contains = definition.get("contains") or ""
    expected = f"{definition['url']} answers {status}" + (f" with '{contains}'" if contains else "")
    try:
        got, body = get(definition["url"], definition)
    except (OSError, ValueError) as error:
        return Result(False, reason_of(error), expected)
    return Result(got == status and contains in body, f"{got}: {shortened(body)}", expected)


def attempt_http_any(definition: Definition) -> Result:
    """At least one of urls answers as wanted; none to ask is well too."""
    urls = [str(url) for url in definition["urls"]]
    results = {url: attempt_http({**definition, "url": url}) for url in urls}
    ok = not urls or any(result.ok for result in results.values())
    seen = "; ".join(f"{url} {result.seen}" for url, result in results.items()) or "there is no other"
    return Result(ok, seen, f"at least one of {', '.join(urls) or 'no URLs'} is well")


def attempt_http_all(definition: Definition) -> Result:
    """Each of requests (url, status, and perhaps host) is answered as wanted; this host's servers need not be known."""
    results: dict[str, Result] = {}

    def ask(request: Definition) -> None:
        results[request["url"]] = attempt_http({**definition, **request, "insecure": True})

    in_parallel([partial(ask, request) for request in definition["requests"]])
    failed = {url: result for url, result in results.items() if not result.ok}
    seen = "; ".join(f"{url} {result.seen}" for url, result in failed.items())
    expected = "; ".join(result.expected for result in (failed or results).values())
    return Result(not failed, seen or f"{len(results)} answers as wanted", expected or "there is nothing to ask")


def attempt_dial(definition: Definition) -> Result:
    """A pod (via: its address and port, agnhost's netexec) reaches target (host:port) and gets an answer that fits."""
    import json
    from urllib.parse import urlencode

    host, _, port = str(definition["target"]).rpartition(":")
    contains = str(definition.get("contains") or "")
    wanted = f" with '{contains}'" if contains else ""
    expected = f"the pod at {definition['via']} reaches {definition['target']} and is answered{wanted}"
    query = urlencode({"host": host.strip("[]"), "port": port, "request": "hostname", "protocol": "http", "tries": 1})
    try:
        status, body = get(f"http://{definition['via']}/dial?{query}", definition)
    except (OSError, ValueError) as error:
        return Result(False, f"the pod itself does not answer this host: {reason_of(error)}", expected)
    try:
        answer = json.loads(body)
        said = [str(line) for line in answer.get("responses") or ()]
        faults = [str(line) for line in answer.get("errors") or ()]
    except (ValueError, AttributeError):
        return Result(False, f"the pod says {status}: {shortened(body)}", expected)
    ok = any(contains in line for line in said)
    return Result(ok, shortened("; ".join(said or faults)) or "no answer in time", expected)


def attempt_not_applicable(definition: Definition) -> Result:
    """There is nothing to prove here, and the reason is said."""
    why = str(definition["why"])
    return Result(True, why, why, applicable=False)


# --- Processes, ports, files, commands --------------------------------------------------------------------------------


def attempt_unit(definition: Definition) -> Result:
    """The systemd unit `name` is active."""
    from ansible_collections.plainkube.cluster.plugins.module_utils.units import UnitError, explain_down, full_name
    from ansible_collections.plainkube.cluster.plugins.module_utils.units_io import show

    name = full_name(definition["name"])
    expected = f"{name} is active"
    try:
        unit = show([name])[name]
    except UnitError as error:
        return Result(False, str(error), expected)
    return Result(unit.running, str(unit) if unit.running else explain_down(unit), expected)


def attempt_tcp(definition: Definition) -> Result:
    """host accepts a connection on port."""
    import socket

    host, port = str(definition["host"]), int(definition["port"])
    expected = f"{host} accepts connections on port {port}"
    try:
        socket.create_connection((host, port), attempt_seconds(definition)).close()
    except OSError as error:
        return Result(False, reason_of(error), expected)
    return Result(True, "connected", expected)


def attempt_file(definition: Definition) -> Result:
    """There is something at path."""
    there = Path(definition["path"]).exists()
    return Result(there, "it is there" if there else "it is not there", f"{definition['path']} exists")


def attempt_command(definition: Definition) -> Result:
    """argv ends with 0 and prints the wanted text."""
    import subprocess

    argv = [str(word) for word in definition["argv"]]
    contains = definition.get("contains") or ""
    expected = f"'{' '.join(argv)}' succeeds" + (f" and prints '{contains}'" if contains else "")
    try:
        done = subprocess.run(
            argv,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=attempt_seconds(definition),
        )
    except FileNotFoundError:
        return Result(False, f"there is no {argv[0]}", expected)
    except subprocess.TimeoutExpired:
        return Result(False, f"it did not end within {attempt_seconds(definition):g} s", expected)
    except OSError as error:
        return Result(False, reason_of(error), expected)
    seen = f"exit code {done.returncode}: {shortened(done.stdout)}"
    return Result(done.returncode == 0 and contains in done.stdout, seen, expected)


# --- DNS --------------------------------------------------------------------------------------------------------------

DNS_TYPES = {"A": 1, "AAAA": 28}
DNS_CODES = {1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED"}


def encode_query(identifier: int, name: str, kind: str) -> bytes:
    """Return a DNS query packet.

    identifier: 16 bits; kind: a key of DNS_TYPES. Raises ValueError for a name that cannot be asked.
    """
    labels = [label.encode("idna") if label else b"" for label in name.rstrip(".").split(".")]
    if not all(0 < len(label) < 64 for label in labels):
        raise ValueError(f"'{name}' is no DNS name")
    question = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    # One question, recursion desired, class IN.
    header = identifier.to_bytes(2, "big") + b"\x01\x00" + b"\x00\x01" + b"\0" * 6
    return header + question + DNS_TYPES[kind].to_bytes(2, "big") + b"\x00\x01"


def _after_name(packet: bytes, at: int) -> int:
    """Return the position behind a name; names in an answer often end with a pointer to an earlier one."""
    while packet[at]:
        if packet[at] >= 0xC0:
            return at + 2
        at += packet[at] + 1
    return at + 1


def decode_answer(packet: bytes, identifier: int, kind: str) -> tuple[str, list[str]]:
    """Return the code (NOERROR, NXDOMAIN...) and the addresses of a DNS answer.

    Raises ValueError if it is none to this query.
    """
    import ipaddress

    if len(packet) < 12 or int.from_bytes(packet[:2], "big") != identifier or not packet[2] & 0x80:
        raise ValueError("the answer is none to this query")
    code = packet[3] & 0x0F
    questions, answers = int.from_bytes(packet[4:6], "big"), int.from_bytes(packet[6:8], "big")
    addresses = []
    try:
        at = 12
        for _question in range(questions):
            at = _after_name(packet, at) + 4
        for _answer in range(answers):
            at = _after_name(packet, at)
            found = int.from_bytes(packet[at : at + 2], "big")
            length = int.from_bytes(packet[at + 8 : at + 10], "big")
            data = packet[at + 10 : at + 10 + length]
            at += 10 + length
            if at > len(packet):
                raise IndexError
            # Other types, such as a CNAME on the way, are passed over.
            if found == DNS_TYPES[kind]:
                addresses.append(str(ipaddress.ip_address(data)))
    except (IndexError, ValueError):
        raise ValueError("the answer is cut off or damaged") from None
    return ("NOERROR" if code == 0 else DNS_CODES.get(code, f"code {code}")), addresses


def ask_name(server: str, port: int, name: str, kind: str, timeout: float) -> tuple[str, list[str]]:
    """Return the code and the addresses that a name server answers with over UDP. Raises OSError, ValueError."""
    import socket

    identifier = int.from_bytes(os.urandom(2), "big")
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as channel:
        channel.settimeout(timeout)
        # Connected, so that a closed port is an error at once and nobody else can answer.
        channel.connect((server, port))
        channel.send(encode_query(identifier, name, kind))
        return decode_answer(channel.recv(4096), identifier, kind)


def attempt_dns(definition: Definition) -> Result:
    """server answers the query for name with at least one address, and with `expect` among them if that is given."""
    kind = str(definition.get("record") or "A").upper()
    server, port, name = str(definition["server"]), int(definition.get("port") or 53), definition["name"]
    wanted = definition.get("expect") or []
    wanted = [wanted] if isinstance(wanted, str) else list(wanted)
    expected = f"{server} port {port} answers {name} {kind} with {', '.join(wanted) if wanted else 'an address'}"
    if kind not in DNS_TYPES:
        return Result(False, f"record '{kind}' is not one of {', '.join(DNS_TYPES)}", expected)
    try:
        code, addresses = ask_name(server, port, name, kind, attempt_seconds(definition))
    except (OSError, ValueError) as error:
        return Result(False, reason_of(error), expected)
    ok = code == "NOERROR" and bool(addresses) and set(wanted) <= set(addresses)
    return Result(ok, f"{code}: {', '.join(addresses) or 'no address'}", expected)


def attempt_dns_chain(definition: Definition) -> Result:
    """The cache at server answers name with `expect`, and answers for each name of `outside`, with whatever.

    What is said about a failure tells who is silent: the cache, the name server behind it, or those of the site.
    """
    cache, behind = str(definition["server"]), str(definition["behind"])
    port, behind_port = int(definition.get("port") or 53), int(definition.get("behind_port") or 53)
    name, wanted, timeout = definition["name"], str(definition["expect"]), attempt_seconds(definition)
    outside = [str(item) for item in definition.get("outside") or []]
    expected = f"the cache at {cache} answers {name} with {wanted}" + "".join(f", and for {item}" for item in outside)
    for asked in (name, *outside):
        try:
            code, addresses = ask_name(cache, port, asked, "A", timeout)
        except (OSError, ValueError) as error:
            return Result(False, f"the cache does not answer for {asked}: {reason_of(error)}", expected)
        if asked == name and wanted not in addresses:
            seen = f"the cache says {code}: {', '.join(addresses) or 'no address'}"
            return Result(False, f"{seen}; {_of_cluster_dns(behind, behind_port, name, timeout)}", expected)
        if asked != name and code in ("SERVFAIL", "REFUSED"):
            seen = f"the cache says {code} for {asked}: the name servers of the site do not answer it"
            return Result(False, seen, expected)
    return Result(True, f"{name} is {wanted}", expected)


def _of_cluster_dns(server: str, port: int, name: str, timeout: float) -> str:
    try:
        code, addresses = ask_name(server, port, name, "A", timeout)
    except (OSError, ValueError) as error:
        return f"cluster DNS behind it, at {server}, is down: {reason_of(error)}"
    return f"cluster DNS behind it, at {server}, says {code}: {', '.join(addresses) or 'no address'}"


# --- etcd -------------------------------------------------------------------------------------------------------------


def quorum(members: int) -> int:
    """Return how many of these members must agree."""
    return members // 2 + 1


def judge_members(healthy: dict[str, bool], wanted: str, own: str = "") -> bool:
    """Return whether a cluster's health is as wanted. healthy: by endpoint, one endpoint per member.

    all: each member; quorum: a majority; others_safe: a majority stays when the member `own` goes down. One or two
    members cannot keep a majority without one; there all others must be healthy, so that the interruption is as short
    as it can be.
    """
    total = len(healthy)
    if wanted == "all":
        return all(healthy.values())
    if wanted == "quorum":
        return sum(healthy.values()) >= quorum(total)
    others = sum(good for endpoint, good in healthy.items() if endpoint != own)
    return others >= min(quorum(total), total - 1)


def _etcd_expected(wanted: str, total: int) -> str:
    if wanted == "all":
        return f"all {total} etcd members are healthy"
    if wanted == "quorum":
        return f"at least {quorum(total)} of {total} etcd members are healthy"
    return f"at least {min(quorum(total), total - 1)} of {total} etcd members besides this host's own are healthy"


def attempt_etcd_members(definition: Definition) -> Result:
    """Enough members say over /health that they are healthy (they only do if they have a leader and can commit)."""
    import json

    endpoints = [str(endpoint).rstrip("/") for endpoint in definition["endpoints"]]
    wanted = definition.get("expect_healthy") or "all"
    own = str(definition.get("own") or "").rstrip("/")
    seen: dict[str, str] = dict.fromkeys(endpoints, "no answer in time")

    def ask(endpoint: str) -> None:
        try:
            _status, body = get(endpoint + "/health", definition)
            answer = json.loads(body)
            good = str(answer.get("health")).lower() == "true"
            seen[endpoint] = "" if good else f"unhealthy {answer.get('reason') or ''}".strip()
        except (OSError, ValueError, AttributeError) as error:
            seen[endpoint] = reason_of(error)

    in_parallel([partial(ask, endpoint) for endpoint in endpoints])
    ok = judge_members({endpoint: not fault for endpoint, fault in seen.items()}, wanted, own)
    return Result(
        ok,
        "; ".join(f"{endpoint} {fault or 'healthy'}" for endpoint, fault in seen.items()),
        _etcd_expected(wanted, len(seen)),
    )


def judge_first_start(member: str, members: list[dict[str, Any]]) -> str:
    """Return why a member without data must not start beside these members of a running cluster; empty if it may.

    members: as etcd's member list has them; one that never ran has no client URLs.
    """
    own = next((item for item in members if item.get("name") == member), None)
    if own is None:
        return f"the running cluster has no member {member}, and would not let it in"
    if own.get("clientURLs"):
        return f"member {member} has run before and its data is gone"
    return ""


def attempt_etcd_first_start(definition: Definition) -> Result:
    """A member without data starts only if no running cluster remembers it with data: its vote would be false."""
    import json

    expected = f"{definition['data_dir']} has the data of member {definition['member']}, or the member never ran"
    if Path(definition["data_dir"], "member", "wal").exists():
        return Result(True, "the data is there", expected)
    for endpoint in definition["endpoints"]:
        try:
            status, body = get(f"{str(endpoint).rstrip('/')}/v3/cluster/member/list", {**definition, "body": "{}"})
        except (OSError, ValueError):
            # A cluster that is only being made does not answer yet.
            continue
        if status == 200:
            fault = judge_first_start(definition["member"], json.loads(body).get("members", []))
            return Result(not fault, fault or "the cluster waits for it", expected)
    return Result(True, "no cluster answers yet", expected)


def attempt_etcd_leads(definition: Definition) -> Result:
    """The member at endpoint leads its cluster."""
    import json

    expected = f"{definition['endpoint']} leads"
    try:
        status, body = get(
            f"{str(definition['endpoint']).rstrip('/')}/v3/maintenance/status", {**definition, "body": "{}"}
        )
        answer = json.loads(body)
        leader, own = answer.get("leader"), answer["header"]["member_id"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return Result(False, reason_of(error) if isinstance(error, (OSError, ValueError)) else "no status", expected)
    return Result(status == 200 and leader == own, "it leads" if leader == own else "another leads", expected)


def attempt_etcd_agreement(definition: Definition) -> Result:
    """All members hold the same data, by HashKV at one revision."""
    from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_client import Connection, EtcdError
    from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_cluster import data_agree, problems
    from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_cluster_io import survey

    endpoints = tuple(str(endpoint).rstrip("/") for endpoint in definition["endpoints"])
    expected = f"all {len(endpoints)} etcd members hold the same data"
    try:
        view = survey(
            Connection(
                endpoints,
                ca_cert=definition.get("ca"),
                client_cert=definition.get("certificate"),
                client_key=definition.get("key"),
                timeout=attempt_seconds(definition),
            )
        )
    except EtcdError as error:
        return Result(False, str(error), expected)
    hashed = [seen.title for seen in view.members if seen.hash]
    if data_agree(view) and len(hashed) == len(view.voters):
        return Result(True, f"the same at revision {view.revision}", expected)
    return Result(False, "; ".join(problems(view)) or f"only {', '.join(hashed) or 'nobody'} told a hash", expected)


# --- Nodes ------------------------------------------------------------------------------------------------------------


def unready_nodes(nodes: list[Any], names: list[str]) -> dict[str, str]:
    """Return which of the named nodes are not ready, and why. nodes: items of a NodeList."""
    faults = dict.fromkeys(names, "is not registered")
    for node in nodes:
        name = node["metadata"]["name"]
        if name not in faults:
            continue
        ready: dict[str, Any] = next(
            (c for c in node.get("status", {}).get("conditions", []) if c["type"] == "Ready"), {}
        )
        if ready.get("status") == "True":
            del faults[name]
        else:
            faults[name] = f"is not ready: {ready.get('message') or ready.get('reason') or 'it says nothing about it'}"
    return faults


def attempt_nodes_ready(definition: Definition) -> Result:
    """The API server at url knows all named nodes as ready."""
    import json

    names = [str(definition["name"])] if "name" in definition else [str(name) for name in definition["names"]]
    expected = f"ready by {definition['url']}: {', '.join(names)}"
    path = f"/api/v1/nodes/{names[0]}" if "name" in definition else "/api/v1/nodes"
    try:
        status, body = get(str(definition["url"]).rstrip("/") + path, definition)
        if status == 404:
            return Result(False, f"{names[0]} is not registered", expected)
        if status != 200:
            return Result(False, f"{status}: {shortened(body)}", expected)
        answer = json.loads(body)
        faults = unready_nodes(answer.get("items", [answer]), names)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Result(False, reason_of(error), expected)
    return Result(not faults, "; ".join(f"{name} {fault}" for name, fault in faults.items()) or "all of them", expected)


# --- All kinds, and how a set of checks is run ------------------------------------------------------------------------

KINDS: dict[str, Kind] = {
    "http": Kind(attempt_http, frozenset({"url"}), TLS_KEYS | {"status", "contains", "insecure", "host"}),
    "http_any": Kind(attempt_http_any, frozenset({"urls"}), TLS_KEYS | {"status", "contains"}),
    "dial": Kind(attempt_dial, frozenset({"via", "target"}), frozenset({"contains"})),
    "not_applicable": Kind(attempt_not_applicable, frozenset({"why"})),
    "unfragmented": Kind(attempt_unfragmented, frozenset({"source", "host", "port"}), frozenset({"bytes"})),
    "proxy_rules": Kind(attempt_proxy_rules, frozenset(), frozenset({"family"})),
    "http_all": Kind(attempt_http_all, frozenset({"requests"}), frozenset({"own_address"})),
    "unit": Kind(attempt_unit, frozenset({"name"})),
    "tcp": Kind(attempt_tcp, frozenset({"host", "port"})),
    "command": Kind(attempt_command, frozenset({"argv"}), frozenset({"contains"})),
    "file": Kind(attempt_file, frozenset({"path"})),
    "dns": Kind(attempt_dns, frozenset({"server", "name"}), frozenset({"record", "port", "expect"})),
    "dns_chain": Kind(
        attempt_dns_chain,
        frozenset({"server", "behind", "name", "expect"}),
        frozenset({"port", "behind_port", "outside"}),
    ),
    "etcd_members": Kind(attempt_etcd_members, frozenset({"endpoints"}), TLS_KEYS | {"expect_healthy", "own"}),
    "etcd_first_start": Kind(attempt_etcd_first_start, frozenset({"data_dir", "member", "endpoints"}), TLS_KEYS),
    "etcd_leads": Kind(attempt_etcd_leads, frozenset({"endpoint"}), TLS_KEYS),
    "etcd_agreement": Kind(attempt_etcd_agreement, frozenset({"endpoints"}), TLS_KEYS),
    "node_ready": Kind(attempt_nodes_ready, frozenset({"url", "name"}), TLS_KEYS),
    "nodes_ready": Kind(attempt_nodes_ready, frozenset({"url", "names"}), TLS_KEYS),
}

ETCD_WISHES = ("all", "quorum", "others_safe")


def pick(definitions: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Return the named definitions, each once. Raises CheckError that says which names are known."""
    unknown = sorted(set(names) - set(definitions))
    if unknown:
        known = ", ".join(sorted(definitions)) or "none"
        raise CheckError(f"No definition of check '{', '.join(unknown)}'. Defined checks: {known}.")
    return {name: definitions[name] for name in names}


def faults_of(definitions: dict[str, Any]) -> list[str]:
    """Return all that is wrong with the definitions themselves, one line for each fault."""
    faults = []
    for name, definition in definitions.items():
        if not isinstance(definition, dict) or definition.get("type") not in KINDS:
            found = definition.get("type") if isinstance(definition, dict) else definition
            faults.append(f"check {name}: type is '{found}', known types: {', '.join(KINDS)}")
            continue
        kind = KINDS[definition["type"]]
        missing = kind.required - set(definition)
        unknown = set(definition) - kind.required - kind.optional - COMMON_KEYS
        if missing:
            faults.append(f"check {name} of type {definition['type']}: missing {', '.join(sorted(missing))}")
        if unknown:
            known = ", ".join(sorted(kind.required | kind.optional | COMMON_KEYS))
            faults.append(
                f"check {name} of type {definition['type']}: unknown {', '.join(sorted(unknown))} (known: {known})"
            )
        wish = definition.get("expect_healthy", "all")
        if wish not in ETCD_WISHES:
            faults.append(f"check {name}: expect_healthy is '{wish}', known: {', '.join(ETCD_WISHES)}")
        elif wish == "others_safe" and definition.get("own") not in (definition.get("endpoints") or []):
            faults.append(
                f"check {name}: own is '{definition.get('own')}', wanted this host's own one of its endpoints"
            )
    return faults


def require_sound(definitions: dict[str, Any]) -> None:
    """Raise CheckError that lists every fault of the definitions."""
    faults = faults_of(definitions)
    if faults:
        raise CheckError("\n".join(faults))


def in_parallel(tasks: list[Callable[[], None]]) -> None:
    """Run all tasks at once and return when all have ended."""
    threads = [threading.Thread(target=task, daemon=True) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def attempt(definition: Definition) -> Result:
    """Do a check once."""
    try:
        return KINDS[definition["type"]].attempt(definition)
    except Exception as error:
        # A check asks the outside world; whatever that does to it is a failed attempt with its reason, not the end of
        # the run.
        return Result(False, f"the check itself failed: {reason_of(error)}", f"check of type {definition['type']}")


def pauses() -> Any:
    """Yield the seconds to wait between attempts: short at first, since most things are ready soon."""
    pause = FIRST_PAUSE
    while True:
        yield pause
        pause = min(pause * 1.5, LONGEST_PAUSE)


def wait_for(definitions: dict[str, Any], deadline: float) -> dict[str, Result]:
    """Do all checks at once, each until it passes or the deadline (seconds from now; 0: once) is over.

    Return the last results.
    """
    end = time.monotonic() + deadline
    results: dict[str, Result] = {}

    def poll(name: str, definition: Definition) -> None:
        for pause in pauses():
            results[name] = attempt(definition)
            if results[name].ok or time.monotonic() + pause > end:
                return
            time.sleep(pause)

    in_parallel([partial(poll, name, definition) for name, definition in definitions.items()])
    return {name: results[name] for name in definitions}


def failure_text(name: str, definition: Definition, result: Result) -> str:
    """Return a failed check for people: what was expected, what was seen, what to do."""
    lines = [f"{name}: expected that {result.expected}", f"  seen: {result.seen}"]
    if definition.get("hint"):
        lines.append(f"  what to do: {definition['hint']}")
    return "\n".join(lines)


def journal_unit(definition: Definition) -> str:
    """Return the unit whose journal explains a failure, or an empty string."""
    return str(definition.get("unit") or (definition["name"] if definition["type"] == "unit" else ""))
