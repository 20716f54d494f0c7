# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ways to talk to etcd: its programs through one command runner, and HTTP to its JSON gateway and to /v2/keys.

Every wait has an end: a command's process group is killed at its deadline, and a deadline holds for a whole exchange
with a server, not for each of its packets. Nothing goes through a proxy of the environment.

The heavy modules of the standard library are imported where they are used.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError

if TYPE_CHECKING:
    import http.client
    import socket
    import ssl

# The part of a module's argument_spec that says how to reach etcd; documented in doc_fragments/etcd_connection.py.
CONNECTION_ARGUMENTS: dict[str, dict[str, Any]] = {
    "endpoints": {"type": "list", "elements": "str", "default": ["https://127.0.0.1:2379"]},
    "ca_cert": {"type": "path"},
    "client_cert": {"type": "path"},
    "client_key": {"type": "path"},
    "timeout": {"type": "float", "default": 5.0},
    "etcdctl": {"type": "str", "default": "etcdctl"},
    "etcdutl": {"type": "str", "default": "etcdutl"},
}

# Of etcdctl. Version 3.3 speaks the old API unless it is told. One stream keeps one processor busy: with more of them
# etcdctl spends twice the time, which the server has to do without. And it collects its garbage less often; with one
# processor it takes no more memory so than it takes by itself.
ENVIRONMENT = {"ETCDCTL_API": "3", "GOMAXPROCS": "1", "GOGC": "200"}
# A program gets this much longer than its own timeout, so that it can say itself what it waited for.
GRACE_SECONDS = 1.0
# Where the API stands: from 3.4 on, in 3.3 and 3.4, before.
GATEWAY_PREFIXES = ("/v3", "/v3beta", "/v3alpha")
READ_BYTES = 256 * 1024
CLOSED_HINT = (
    "it closed the connection without an answer: if it wants a client certificate, see client_cert and client_key; "
    "if it does not speak TLS, write the endpoint with http://"
)
CLIENT_HINT = "see client_cert and client_key"
KEY_NOT_FOUND = 100
HISTORY_LOST = 401
# Environment variables that would change what a program does. etcdctl ends if one of its own says what a flag says too.
FOREIGN_PREFIXES = ("ETCDCTL_", "ETCD_")
PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy")


class EtcdError(PlainkubeError):
    """Something about etcd that a person has to know."""


class Unreachable(EtcdError):
    """An endpoint that could not be asked: no connection, no TLS, no answer in time."""


class Refused(EtcdError):
    """An answer that says no. reason: what the server said; status: of HTTP; code: of gRPC, or of the v2 API."""

    def __init__(self, message: str, reason: str = "", status: int = 0, code: int = 0) -> None:
        super().__init__(message)
        self.reason = reason
        self.status = status
        self.code = code


class HistoryLost(EtcdError):
    """Events that a watch of /v2/keys wanted are no longer kept (etcd keeps the last 1000): read everything anew."""


# --- Connection -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Connection:
    """Where etcd answers, what proves who is who, and how long one exchange may take."""

    endpoints: tuple[str, ...]
    ca_cert: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    timeout: float = 5.0
    etcdctl: str = "etcdctl"
    etcdutl: str = "etcdutl"

    def only(self, endpoint: str) -> Connection:
        """Return the same connection to one endpoint, which need not be one of these."""
        return replace(self, endpoints=(endpoint,))


def connection_from(params: Mapping[str, Any]) -> Connection:
    """Return the connection that a module's parameters describe. Raises EtcdError with all faults at once."""
    endpoints = tuple(str(endpoint).rstrip("/") for endpoint in params["endpoints"] or ())
    faults = [fault for endpoint in endpoints for fault in endpoint_faults(endpoint)]
    if not endpoints:
        faults.append("endpoints: the list is empty: name at least one, such as https://127.0.0.1:2379")
    if len(set(endpoints)) < len(endpoints):
        faults.append(f"endpoints: one stands there twice: {', '.join(endpoints)}")
    if params["timeout"] <= 0:
        faults.append(f"timeout: found {params['timeout']:g}, wanted a number of seconds above 0")
    if bool(params.get("client_cert")) != bool(params.get("client_key")):
        given, missing = ("client_cert", "client_key") if params.get("client_cert") else ("client_key", "client_cert")
        faults.append(f"{given} is given without {missing}: they go together")
    for name in ("ca_cert", "client_cert", "client_key"):
        path = params.get(name)
        if path:
            try:
                open(path, "rb").close()
            except OSError as error:
                faults.append(f"{name}: {path}: {error.strerror}")
            else:
                faults += expiry_faults(name, path) if name == "client_cert" else []
    if faults:
        raise EtcdError("; ".join(faults))
    return Connection(
        endpoints=endpoints,
        ca_cert=params.get("ca_cert") or None,
        client_cert=params.get("client_cert") or None,
        client_key=params.get("client_key") or None,
        timeout=float(params["timeout"]),
        etcdctl=params.get("etcdctl") or "etcdctl",
        etcdutl=params.get("etcdutl") or "etcdutl",
    )


def expiry_faults(name: str, path: str) -> list[str]:
    """Return whether a certificate is over. etcd would break such a client's connections off without a reason."""
    # Without openssl it is left to the server to refuse it.
    with contextlib.suppress(EtcdError):
        done = run_command(["openssl", "x509", "-noout", "-enddate", "-checkend", "0", "-in", path], 10.0)
        words = done.stdout.splitlines()
        if done.rc and words and words[0].startswith("notAfter="):
            end = words[0].partition("=")[2]
            return [f"{name}: {path} expired on {end}: renew it; where site.yml made it, run that"]
    return []


def endpoint_faults(endpoint: str) -> list[str]:
    """Return what is wrong with an endpoint's URL."""
    wanted = "wanted a URL such as https://10.0.0.1:2379 or https://[2001:db8::1]:2379"
    try:
        parts = urlsplit(endpoint)
        port = parts.port
    except ValueError as error:
        return [f"endpoint {endpoint!r}: {error}: {wanted}"]
    if parts.scheme not in ("http", "https") or not parts.hostname or not port:
        return [f"endpoint {endpoint!r}: {wanted}"]
    if parts.path or parts.query or parts.username is not None:
        return [f"endpoint {endpoint!r} has more than scheme, host and port: {wanted}"]
    return []


@lru_cache(maxsize=8)
def tls_context(ca_cert: str | None, client_cert: str | None, client_key: str | None) -> ssl.SSLContext:
    """Return what TLS connections are made with. Raises EtcdError that names the file which is no good."""
    import ssl

    try:
        context = ssl.create_default_context(cafile=ca_cert)
    except (OSError, ValueError) as error:
        raise EtcdError(f"ca_cert {ca_cert}: it holds no certificate that can be read: {error}") from error
    # From Python 3.13 on the default is stricter than etcd, and than the certificates of older installers.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if client_cert:
        try:
            # A key with a passphrase would ask for it on a terminal.
            context.load_cert_chain(client_cert, client_key, password=lambda: b"")
        except (OSError, ValueError) as error:
            raise EtcdError(
                f"client_cert {client_cert} with client_key {client_key}: not a certificate with its own key: {error}"
            ) from error
    return context


# --- Programs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finished:
    """What a program left behind."""

    rc: int
    stdout: str
    stderr: str


def run_command(
    argv: list[str],
    deadline: float,
    environment: Mapping[str, str] | None = None,
    input: str | None = None,
) -> Finished:
    """Run a program, without a shell, for at most deadline seconds; then it and all that it started are killed.

    environment is added to this process's own, of which nothing is passed on that configures etcd or a proxy.
    Raises EtcdError if the program is not there or did not end in time; how it ended is the caller's to judge.
    """
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(FOREIGN_PREFIXES) and name.lower() not in PROXY_VARIABLES
    }
    # Ansible's PATH on a host often has no /usr/local/bin, where this collection links what it installs.
    inherited["PATH"] = os.pathsep.join([inherited.get("PATH", os.defpath), "/usr/local/bin"])
    inherited.update(environment or {}, LC_ALL="C")
    argv = [program_path(argv[0], inherited["PATH"]), *argv[1:]]
    try:
        process = subprocess.Popen(
            argv,
            env=inherited,
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise EtcdError(f"{argv[0]} cannot be run: {error.strerror}") from error
    try:
        stdout, stderr = process.communicate(input, timeout=deadline)
    except BaseException as error:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                with contextlib.suppress(OSError):
                    stream.close()
        if isinstance(error, subprocess.TimeoutExpired):
            raise EtcdError(f"'{' '.join(argv)}' did not end within {deadline:g} s and was killed") from None
        raise
    return Finished(process.returncode, stdout, stderr)


def program_path(name: str, search: str) -> str:
    """Return where a program is. Raises EtcdError if it is nowhere."""
    import shutil

    found = shutil.which(name, path=search)
    if not found:
        option = Path(name).name
        raise EtcdError(
            f"there is no program {name} on this host (looked in {search}): "
            + ("install etcd's client programs, " if option == name else "")
            + f"or name its path with {option if option in ('etcdctl', 'etcdutl') else 'the option for it'}"
        )
    return found


def last_words(finished: Finished) -> str:
    """Return the line of a failed program that says why."""
    lines = [line.strip() for line in (finished.stderr or finished.stdout).splitlines() if line.strip()]
    for line in reversed(lines):
        if line.startswith("{"):
            # A line of the structured log; its message may be all that there is.
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                line = ": ".join(str(entry[key]) for key in ("msg", "error") if entry.get(key))
        if line:
            return line[len("Error: ") :] if line.startswith("Error: ") else line
    return "it said nothing"


class Etcdctl:
    """etcdctl against the endpoints of a connection, one command at a time."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def json(self, *arguments: str, deadline: float | None = None) -> Any:
        """Return what a command prints as JSON. Raises EtcdError if it fails or prints something else."""
        text = self.text("--write-out=json", *arguments, deadline=deadline)
        try:
            return json.loads(text)
        except ValueError:
            raise EtcdError(f"{self._title(arguments)}: found {_short(text)!r}, wanted JSON") from None

    def text(self, *arguments: str, deadline: float | None = None) -> str:
        """Return what a command prints. deadline: seconds, by default the connection's timeout. Raises EtcdError."""
        finished = self.run(*arguments, deadline=deadline)
        if finished.rc:
            raise EtcdError(f"{self._title(arguments)}: {_short(last_words(finished))}")
        return finished.stdout

    def run(self, *arguments: str, deadline: float | None = None) -> Finished:
        """Run a command and return how it ended, for those whose exit code is part of the answer."""
        seconds = self.connection.timeout if deadline is None else deadline
        return run_command(
            [self.connection.etcdctl, *self.flags(seconds), *arguments],
            seconds + GRACE_SECONDS,
            ENVIRONMENT,
        )

    def flags(self, seconds: float) -> list[str]:
        """Return the flags that every command gets."""
        connection = self.connection
        limit = f"{max(1, round(seconds * 1000))}ms"
        flags = [
            f"--endpoints={','.join(connection.endpoints)}",
            f"--dial-timeout={limit}",
            f"--command-timeout={limit}",
        ]
        if any(endpoint.startswith("https:") for endpoint in connection.endpoints):
            files = {"cacert": connection.ca_cert, "cert": connection.client_cert, "key": connection.client_key}
            flags += [f"--{name}={path}" for name, path in files.items() if path]
        return flags

    def _title(self, arguments: tuple[str, ...]) -> str:
        words = " ".join(word for word in arguments if not word.startswith("--write-out"))
        return f"etcdctl {words} at {', '.join(self.connection.endpoints)}"


# --- HTTP -------------------------------------------------------------------------------------------------------------


class _DeadlineReader(io.RawIOBase):
    """Reads from a socket until its owner's deadline, however slowly the bytes come."""

    def __init__(self, owner: _DeadlineSocket) -> None:
        self._owner = owner

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._owner.arm()
        return self._owner.socket.recv_into(buffer)


class _DeadlineSocket:
    """The part of a socket that http.client uses, with one deadline for all that happens on it."""

    def __init__(self, stream: socket.socket, deadline: float) -> None:
        self.socket = stream
        self.deadline = deadline

    def arm(self) -> None:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("no answer in time")
        self.socket.settimeout(left)

    def sendall(self, content: Any) -> None:
        self.arm()
        self.socket.sendall(content)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_DeadlineReader(self), READ_BYTES)

    def close(self) -> None:
        self.socket.close()

    def closed_by_peer(self) -> bool:
        """Return whether the server closed an idle connection: then, and only then, something can be read from it."""
        import select

        watch = select.poll()
        watch.register(self.socket, select.POLLIN | select.POLLHUP)
        return bool(watch.poll(0))


class HttpEndpoint:
    """One endpoint over HTTP/1.1 with a connection that is kept. Not for use by several threads at once."""

    def __init__(self, connection: Connection, endpoint: str) -> None:
        self.connection = connection
        self.endpoint = endpoint.rstrip("/")
        self._open: http.client.HTTPConnection | None = None
        self._stream: _DeadlineSocket | None = None

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._open:
            self._open.close()
        self._open = self._stream = None

    def request(
        self, method: str, target: str, body: bytes | None = None, deadline: float | None = None
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Return status, headers and body. deadline: seconds for all of it. Raises Unreachable."""
        seconds = self.connection.timeout if deadline is None else deadline
        try:
            response, _stream = self.start(method, target, body, seconds)
            content = response.read()
        except BaseException as error:
            self.close()
            raise self.explained(error, seconds) from error
        if response.will_close:
            self.close()
        return response.status, response.headers, content

    def start(
        self, method: str, target: str, body: bytes | None, seconds: float
    ) -> tuple[http.client.HTTPResponse, _DeadlineSocket]:
        """Send a request and return the answer, its body unread, and the socket whose deadline may be moved.

        Raises whatever the network does.
        """
        until = time.monotonic() + seconds
        if self._stream and self._stream.closed_by_peer():
            self.close()
        if not self._open or not self._stream:
            self._open, self._stream = self._connect(until)
        self._stream.deadline = until
        headers = {} if body is None else {"Content-Type": "application/json"}
        self._open.request(method, target, body, headers)
        return self._open.getresponse(), self._stream

    def _connect(self, until: float) -> tuple[http.client.HTTPConnection, _DeadlineSocket]:
        import http.client
        import socket

        parts = urlsplit(self.endpoint)
        host, port = str(parts.hostname), parts.port or 2379
        left = until - time.monotonic()
        raw = socket.create_connection((host, port), max(left, 0.001))
        try:
            # Answers to small requests must not wait for more bytes.
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if parts.scheme == "https":
                files = self.connection.ca_cert, self.connection.client_cert, self.connection.client_key
                raw.settimeout(max(until - time.monotonic(), 0.001))
                raw = tls_context(*files).wrap_socket(raw, server_hostname=host)
        except BaseException:
            raw.close()
            raise
        opened = http.client.HTTPConnection(host, port)
        stream = _DeadlineSocket(raw, until)
        opened.sock = stream
        return opened, stream

    def explained(self, error: BaseException, seconds: float) -> BaseException:
        """Return the error to raise for one that the network raised."""
        import http.client

        if isinstance(error, (OSError, http.client.HTTPException)):
            return Unreachable(f"{self.endpoint}: {why(error, self.endpoint, seconds)}")
        return error


def why(error: Exception, endpoint: str, seconds: float) -> str:
    """Return in words of people why an endpoint could not be asked, and what to do about it."""
    import socket
    import ssl

    reason = str(getattr(error, "reason", "") or "")
    text = str(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}: see ca_cert and the names in the certificate"
    if isinstance(error, ssl.SSLError):
        if isinstance(error, ssl.SSLEOFError):
            return CLOSED_HINT
        if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
            return "it does not speak TLS: write the endpoint with http://"
        if "ALERT" in reason or "alert" in text:
            words = reason.replace("_", " ").lower() or text
            return f"it does not accept this client ({words}): {CLIENT_HINT}"
        return f"TLS failed: {text}"
    # TimeoutError and socket.timeout are two classes before Python 3.10.
    if isinstance(error, (TimeoutError, socket.timeout)):
        return f"no answer within {round(seconds, 1):g} s"
    if isinstance(error, socket.gaierror):
        return f"its name is not known: {error.strerror}"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused: nothing listens there"
    if isinstance(error, (ConnectionResetError, BrokenPipeError)) or type(error).__name__ == "RemoteDisconnected":
        if endpoint.startswith("http:"):
            return "it closed the connection without an answer: if it speaks TLS, write the endpoint with https://"
        return CLOSED_HINT
    if isinstance(error, OSError):
        return str(error.strerror or error)
    return f"it does not speak HTTP: {error!r}"


def http_get(
    connection: Connection, endpoint: str, path: str, deadline: float | None = None
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Return status, headers and body of a GET of path, such as /version, /health, /readyz or /metrics.

    Raises Unreachable.
    """
    asked = HttpEndpoint(connection, endpoint)
    try:
        return asked.request("GET", path, deadline=deadline)
    finally:
        asked.close()


def as_int(value: Any, default: int = 0) -> int:
    """Return a number of the API: 64-bit ones come as text from the gateway, and a zero is left out."""
    return default if value is None else int(value)


def encode(value: str | bytes) -> str:
    """Return a key or value as the gateway wants it."""
    return base64.b64encode(value.encode() if isinstance(value, str) else value).decode()


def decode(value: str | None) -> bytes:
    """Return the bytes of a key or value that the gateway sent; empty ones are left out by it."""
    return binascii.a2b_base64(value or "")


class Gateway:
    """The gRPC API of one endpoint as JSON over HTTP. Bytes are base64, 64-bit numbers are text, zeros are left out."""

    def __init__(self, connection: Connection, endpoint: str) -> None:
        self.connection = connection
        self.endpoint = endpoint.rstrip("/")
        self._http = HttpEndpoint(connection, endpoint)
        self._prefix = ""

    def close(self) -> None:
        """Close the connection that is kept."""
        self._http.close()

    def get(self, path: str, deadline: float | None = None) -> tuple[int, bytes]:
        """Return status and body of a page that stands beside the gateway, over the same connection."""
        status, _headers, body = self._http.request("GET", path, deadline=deadline)
        return status, body

    def call(self, path: str, body: Mapping[str, Any] | bytes, deadline: float | None = None) -> dict[str, Any]:
        """Return the answer to one call, such as kv/range. body: may be JSON already. deadline: seconds.

        Raises Unreachable, or Refused with what the server said.
        """
        content = body if isinstance(body, bytes) else _json_bytes(body)
        status, answer = 404, b""
        for prefix in [self._prefix] if self._prefix else GATEWAY_PREFIXES:
            status, _headers, answer = self._http.request("POST", f"{prefix}/{path}", content, deadline)
            if not _no_such_path(status, answer):
                self._prefix = prefix
                break
        if status != 200:
            raise self._refused(path, status, answer)
        try:
            parsed = json.loads(answer)
        except ValueError:
            parsed = None
        if not isinstance(parsed, dict):
            raise Refused(f"{self.endpoint} {path}: found {_short_bytes(answer)!r}, wanted JSON", status=status)
        return parsed

    def stream(
        self, path: str, body: Mapping[str, Any], deadline: float | None = None, pause: float | None = None
    ) -> Iterator[dict[str, Any]]:
        """Yield the messages of a call that answers with many, such as maintenance/snapshot or watch.

        pause: seconds that the next message may take, by default the connection's timeout; deadline: seconds for all.
        The connection is the stream's own and ends with it. That the messages end without an error does not mean that
        they were all: a snapshot is complete only if its last message says that no bytes remain.
        Raises Unreachable, or Refused with what the server said, also in mid-stream.
        """
        seconds = self.connection.timeout if pause is None else pause
        until = None if deadline is None else time.monotonic() + deadline
        own = HttpEndpoint(self.connection, self.endpoint)
        try:
            if not self._prefix:
                # The call that shows which prefix it is; it costs the server next to nothing.
                self.call("maintenance/status", {}, seconds)
            response, stream = own.start("POST", f"{self._prefix}/{path}", _json_bytes(body), seconds)
            if response.status != 200:
                raise self._refused(path, response.status, response.read())
            begun: list[bytes] = []
            while True:
                stream.deadline = time.monotonic() + seconds
                if until is not None:
                    stream.deadline = min(stream.deadline, until)
                # Not readline(), which takes the end of a connection in mid-stream for the end of the answer.
                *lines, rest = response.read1(READ_BYTES).split(b"\n")
                if not lines and not rest:
                    break
                for line in lines:
                    whole = b"".join([*begun, line])
                    begun = []
                    if whole.strip():
                        yield self._message(path, whole)
                begun.append(rest)
            if b"".join(begun).strip():
                yield self._message(path, b"".join(begun))
        except GeneratorExit:
            raise
        except BaseException as error:
            raise own.explained(error, seconds) from error
        finally:
            own.close()

    def _message(self, path: str, line: bytes) -> dict[str, Any]:
        try:
            message = json.loads(line)
        except ValueError:
            raise Unreachable(f"{self.endpoint} {path}: the stream broke off in the middle of a message") from None
        if "error" in message:
            raise self._refused(path, 200, line)
        result: dict[str, Any] = message.get("result", message)
        return result

    def _refused(self, path: str, status: int, answer: bytes) -> Refused:
        reason, code = _reason(answer)
        if _no_such_path(status, answer):
            reason = (
                "the JSON gateway is not served here: is it etcd 3.3 or newer, with --enable-grpc-gateway, "
                "and not moved elsewhere by --listen-client-http-urls?"
            )
        elif status == 400 and "HTTP request to an HTTPS server" in reason:
            reason = "it speaks TLS: write the endpoint with https://"
        return Refused(f"{self.endpoint} {path}: {reason}", reason, status, code)


def _json_bytes(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


def _no_such_path(status: int, answer: bytes) -> bool:
    """Return whether nothing stands at a path. (A missing key or member is 404 too, but as JSON with an error.)"""
    return status == 404 and not answer.lstrip().startswith(b"{")


def _reason(answer: bytes) -> tuple[str, int]:
    """Return what the server said and the gRPC code, from an error in any of the gateway's shapes."""
    try:
        parsed = json.loads(answer)
    except ValueError:
        return _short_bytes(answer) or "an empty answer", 0
    if not isinstance(parsed, dict):
        return _short_bytes(answer), 0
    error = parsed.get("error")
    inner = error if isinstance(error, dict) else parsed
    code = as_int(inner.get("code") or inner.get("grpc_code"))
    return str(inner.get("message") or error or parsed), code


def _short(text: str, at_most: int = 300) -> str:
    text = " ".join(text.split())
    return text if len(text) <= at_most else text[:at_most] + "..."


def _short_bytes(content: bytes) -> str:
    return _short(content[:1000].decode("utf-8", "replace"))


class KeysV2:
    """The old store of one endpoint under /v2/keys."""

    def __init__(self, connection: Connection, endpoint: str) -> None:
        self.connection = connection
        self.endpoint = endpoint.rstrip("/")
        self._http = HttpEndpoint(connection, endpoint)
        # A watch that finds nothing in time leaves its connection in the middle of an answer.
        self._waiting = HttpEndpoint(connection, endpoint)

    def close(self) -> None:
        """Close the connections that are kept."""
        self._http.close()
        self._waiting.close()

    def get(
        self, path: str, recursive: bool = False, quorum: bool = True, deadline: float | None = None
    ) -> tuple[dict[str, Any] | None, int]:
        """Return the node at path, None if there is none, and the store's index at that moment.

        With quorum the answer is that of the leader, without it what this member knows.
        Raises Unreachable, Refused.
        """
        options = {"recursive": recursive, "quorum": quorum}
        query = urlencode({name: "true" for name, wanted in options.items() if wanted})
        status, headers, answer = self._http.request("GET", _key_target(path, query), deadline=deadline)
        parsed = self._parsed(path, status, answer)
        if as_int(parsed.get("errorCode")) == KEY_NOT_FOUND:
            return None, as_int(parsed.get("index"))
        self._require_good(path, status, parsed)
        return parsed["node"], as_int(headers.get("X-Etcd-Index"))

    def wait(self, path: str, index: int, deadline: float) -> dict[str, Any] | None:
        """Return the first event at or below path from index on, or None if there is none within deadline seconds.

        An event has action, node and, if there was one before, prevNode.
        Raises HistoryLost if etcd no longer keeps the events since index, Unreachable, Refused.
        """
        until = time.monotonic() + deadline
        query = urlencode({"wait": "true", "recursive": "true", "waitIndex": str(index)})
        while True:
            left = until - time.monotonic()
            if left <= 0:
                return None
            try:
                status, _headers, answer = self._waiting.request("GET", _key_target(path, query), deadline=left)
            except Unreachable:
                if time.monotonic() >= until:
                    return None
                raise
            if status == 200 and not answer.strip():
                # The server gives up a long wait without an event.
                continue
            parsed = self._parsed(path, status, answer)
            if as_int(parsed.get("errorCode")) == HISTORY_LOST:
                raise HistoryLost(f"{self.endpoint}: the events of {path} from index {index} on are no longer kept")
            self._require_good(path, status, parsed)
            return parsed

    def _parsed(self, path: str, status: int, answer: bytes) -> dict[str, Any]:
        try:
            parsed = json.loads(answer)
        except ValueError:
            parsed = None
        if not isinstance(parsed, dict):
            reason = _short_bytes(answer) or "an empty answer"
            if status == 404:
                reason = "the v2 API is not served here: it needs etcd 3.5 or older, and from 3.4 on --enable-v2"
            raise Refused(f"{self.endpoint} /v2/keys{path}: {reason}", reason, status)
        return parsed

    def _require_good(self, path: str, status: int, parsed: dict[str, Any]) -> None:
        if status == 200 and "node" in parsed:
            return
        reason = f"{parsed.get('message', 'no node in the answer')} {parsed.get('cause', '')}".strip()
        code = as_int(parsed.get("errorCode"))
        raise Refused(f"{self.endpoint} /v2/keys{path}: {reason}", reason, status, code)


def _key_target(path: str, query: str) -> str:
    return f"/v2/keys{quote(path if path.startswith('/') else '/' + path)}" + (f"?{query}" if query else "")
