# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Real etcd servers of several versions on loopback, and where their programs come from.

3.3, 3.4 and 3.5.16 are Debian's packages, unpacked without being installed; the others are built from their Go modules
by tools/artifacts. Both are kept outside the checkout and made when they are wanted for the first time.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import ipaddress
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

CHECKOUT = Path(__file__).resolve().parents[3]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "plainkube"

# Version -> Debian suite whose packages have it. The suites' own fixes do not change the upstream version.
DEBIAN = {"3.3.25": "bullseye", "3.4.23": "bookworm", "3.5.16": "trixie"}
V3_3, V3_4, V3_5_OLD = DEBIAN
# Versions of data/catalogue.yml.
V3_5, V3_6, V3_7 = "3.5.35", "3.6.14", "3.7.3"
VERSIONS = (V3_3, V3_4, V3_5_OLD, V3_5, V3_6, V3_7)

START_SECONDS = 30.0
KEEP_LOGS = "PLAINKUBE_KEEP_ETCD"  # set to keep folders of servers after their test


# --- Programs ---------------------------------------------------------------------------------------------------------


def binaries(version: str) -> Path:
    """Return the folder with etcd, etcdctl and, from 3.5 on, etcdutl of a version."""
    make = _from_debian if version in DEBIAN else _from_mirror
    return made_once(CACHE / "etcd" / version, lambda folder: make(version, folder))


def promtool() -> Path:
    """Return Prometheus' own checker of rules, from Debian's package."""
    folder = made_once(
        CACHE / "etcd" / "promtool",
        lambda target: (unpack_debian("bookworm", target.parent, "prometheus") / "usr/bin/promtool").rename(
            target / "promtool"
        ),
    )
    return folder / "promtool"


def made_once(folder: Path, make: Callable[[Path], object]) -> Path:
    """Return a folder, after making it if it is not there. make: gets an empty one, in a folder of its own."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (folder.parent / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
                    made = Path(temporary, "bin")
                    made.mkdir()
                    make(made)
                    made.rename(folder)
    return folder


def _from_mirror(version: str, target: Path) -> None:
    command = [sys.executable, str(CHECKOUT / "tools" / "artifacts"), "fill", "--only", f"etcd={version}"]
    subprocess.run(command, check=True, cwd=CHECKOUT)
    (archive,) = (CACHE / "mirror" / "etcd" / version).glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        for entry in opened:
            if entry.isfile() and Path(entry.name).name in ("etcd", "etcdctl", "etcdutl"):
                entry.name = Path(entry.name).name
                opened.extract(entry, target, filter="data")


def _from_debian(version: str, target: Path) -> None:
    work = target.parent
    root = unpack_debian(DEBIAN[version], work, "etcd-server", "etcd-client")
    for package in work.glob("*.deb"):
        if f"_{version}" not in package.name:
            raise RuntimeError(f"{DEBIAN[version]} has {package.name}, wanted version {version}")
    for program in (root / "usr/bin").iterdir():
        if program.name in ("etcd", "etcdctl", "etcdutl"):
            program.rename(target / program.name)


def unpack_debian(suite: str, work: Path, *packages: str) -> Path:
    """Return a folder with Debian's packages of a suite, taken from where this machine takes its own packages."""
    lines = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Label: Debian"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    if not lines:
        raise RuntimeError(f"this machine has no package source of Debian: {', '.join(packages)} cannot be had")
    for folder in ("lists/partial", "archives/partial", "etc"):
        (work / folder).mkdir(parents=True)
    (work / "status").touch()
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (work / "etc/sources.list").write_text(f"deb [signed-by={keyring}] {lines[0]} {suite} main\n")
    places = {
        "Dir::Etc::SourceList": work / "etc/sources.list",
        "Dir::Etc::SourceParts": "-",
        "Dir::State::Lists": work / "lists",
        "Dir::State::Status": work / "status",
        "Dir::Cache": work,
        "Acquire::Languages": "none",
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
        "APT::Sandbox::User": "",
    }
    options = [f"--option={name}={value}" for name, value in places.items()]
    for arguments in (["update"], ["download", *packages]):
        command = ["apt-get", "--quiet", *options, *arguments]
        subprocess.run(command, cwd=work, check=True, stdout=sys.stderr)
    for package in work.glob("*.deb"):
        subprocess.run(["dpkg-deb", "--extract", str(package), str(work / "root")], check=True)
    return work / "root"


# --- Certificates -----------------------------------------------------------------------------------------------------


class Pki:
    """An authority with certificates for servers and clients on loopback, all in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.ca = self.issue("ca", authority=True)
        # The server is a client too: its own gateway asks it over TLS. Without a CN, since with one a server that has
        # authentication on would refuse its gateway.
        self.server = self.issue("server")
        self.client = self.issue("client", common_name="client")

    def issue(
        self,
        name: str,
        common_name: str = "",
        authority: bool = False,
        sans: tuple[str, ...] = ("127.0.0.1", "localhost"),
        issuer: str = "ca",
        valid: timedelta = timedelta(hours=1),
    ) -> dict[str, str]:
        """Write <name>.crt and <name>.key and return their paths as certificate and key. A negative valid is over."""
        key = ec.generate_private_key(ec.SECP256R1())
        words = [x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, name)]
        if common_name or authority:
            words.append(x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name or name))
        subject = x509.Name(words)
        signer: Any = key
        issuer_name = subject
        if not authority:
            signer = serialization.load_pem_private_key((self.folder / f"{issuer}.key").read_bytes(), None)
            issuer_name = x509.load_pem_x509_certificate((self.folder / f"{issuer}.crt").read_bytes()).subject
        now = datetime.now(timezone.utc)
        names: list[x509.GeneralName] = [
            x509.IPAddress(ipaddress.ip_address(san)) if san[0].isdigit() else x509.DNSName(san) for san in sans
        ]
        usages = [x509.ExtendedKeyUsageOID.SERVER_AUTH, x509.ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + valid)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if not authority:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        certificate = builder.sign(signer, hashes.SHA256())
        paths = {"certificate": self.folder / f"{name}.crt", "key": self.folder / f"{name}.key"}
        paths["certificate"].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        form = serialization.PrivateFormat.PKCS8
        paths["key"].touch(0o600)
        paths["key"].write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
        return {kind: str(path) for kind, path in paths.items()}

    def client_arguments(self) -> dict[str, str]:
        """Return the parameters of a module that let it in."""
        return {
            "ca_cert": self.ca["certificate"],
            "client_cert": self.client["certificate"],
            "client_key": self.client["key"],
        }


# --- Servers ----------------------------------------------------------------------------------------------------------


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that are free now; below what the kernel hands out to clients, so that they stay so."""
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(found) < count:
            port = 10000 + int.from_bytes(os.urandom(2), "big") % 20000
            probe = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                found.append(port)
    return found


def wait_until(condition: Callable[[], Any], what: str, seconds: float = START_SECONDS) -> Any:
    """Return what condition returns as soon as it is true. Raises AssertionError that says what did not come."""
    until = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > until:
            raise AssertionError(f"after {seconds:g} s still not: {what}")
        time.sleep(0.02)


@dataclass
class Member:
    """One server: its folder, its ports, its process."""

    cluster: EtcdServers
    name: str
    folder: Path
    client_port: int
    peer_port: int
    version: str
    flags: dict[str, Any] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def data_dir(self) -> Path:
        return self.folder / "data"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def endpoint(self) -> str:
        return f"{self.cluster.scheme}://127.0.0.1:{self.client_port}"

    @property
    def peer_url(self) -> str:
        return f"{self.cluster.scheme}://127.0.0.1:{self.peer_port}"

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def command(self) -> list[str]:
        """Return the server's command line. A flag of None is left out, also one of those that stand here."""
        flags: dict[str, Any] = {
            "name": self.name,
            "data-dir": self.data_dir,
            "listen-client-urls": self.endpoint,
            "advertise-client-urls": self.endpoint,
            "listen-peer-urls": self.peer_url,
            "initial-advertise-peer-urls": self.peer_url,
            "initial-cluster": self.cluster.initial_cluster,
            "initial-cluster-state": "new",
            "initial-cluster-token": self.cluster.token,
            "logger": None if self.version.startswith("3.3.") else "zap",
        }
        pki = self.cluster.pki
        if pki:
            for kind in ("", "peer-"):
                flags[f"{kind}cert-file"] = pki.server["certificate"]
                flags[f"{kind}key-file"] = pki.server["key"]
                flags[f"{kind}trusted-ca-file"] = pki.ca["certificate"]
                flags[f"{kind}client-cert-auth"] = "true"
        flags.update(self.cluster.flags)
        flags.update(self.flags)
        words = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items() if value is not None]
        return [str(binaries(self.version) / "etcd"), *words]

    def start(self, wait: bool = True) -> None:
        """Start the server and, if wanted, wait until it says that it is healthy."""
        assert not self.running, f"{self.name} runs already"
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={"PATH": os.environ["PATH"], "HOME": str(self.folder)},
            )
        if wait:
            self.wait_healthy()

    def wait_healthy(self, seconds: float = START_SECONDS) -> None:
        """Wait until the server says that it is healthy: it has a leader and can commit."""

        def healthy() -> bool:
            assert self.running, f"{self.name} has ended:\n{self.last_log()}"
            return self.healthy()

        try:
            wait_until(healthy, f"{self.name} is healthy", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.last_log()}") from None

    def healthy(self) -> bool:
        with contextlib.suppress(OSError, ValueError):
            return str(json.loads(self.cluster.http(self.endpoint + "/health")).get("health")).lower() == "true"
        return False

    def last_log(self, lines: int = 30) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self) -> None:
        """End the server as a service manager does."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the server as a power cut does."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Let the server hang: it keeps its ports and answers nothing."""
        assert self.process
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGCONT)

    def _end(self, how: signal.Signals) -> None:
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(how)
            self.process.send_signal(signal.SIGCONT)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process = None

    def wipe(self) -> None:
        """Remove the data of a server that does not run."""
        assert not self.running
        shutil.rmtree(self.data_dir, ignore_errors=True)

    def etcdctl(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run this version's etcdctl against this server."""
        return self.cluster.run_etcdctl(self.version, [self.endpoint], *arguments, check=check)

    def call(self, path: str, **body: Any) -> dict[str, Any]:
        """Ask this server through its gateway."""
        prefix = "v3beta" if self.version.startswith("3.3.") else "v3"
        answer: dict[str, Any] = json.loads(
            self.cluster.http(f"{self.endpoint}/{prefix}/{path}", json.dumps(body).encode())
        )
        return answer

    def status(self) -> dict[str, Any]:
        return self.call("maintenance/status")

    def hash(self, revision: int = 0) -> tuple[int, int]:
        """Return HashKV and the compact revision that it goes with."""
        try:
            answer = self.call("maintenance/hashkv", revision=revision)
        except urllib.error.HTTPError:
            # Before 3.5 the gateway does not have it.
            done = self.etcdctl("endpoint", "hashkv", f"--rev={revision}", "--write-out=json")
            answer = json.loads(done.stdout)[0]["HashKV"]
        return int(answer["hash"]), max(0, int(answer.get("compact_revision", 0)))


class EtcdServers:
    """A cluster of servers; member(0) is the first."""

    def __init__(
        self,
        folder: Path,
        version: str,
        members: int = 3,
        pki: Pki | None = None,
        prefix: str = "m",
        token: str = "tests",
        **flags: Any,
    ) -> None:
        """Describe the cluster; nothing runs yet. flags: of every server, _ for -, such as enable_v2="true"."""
        self.folder = folder
        self.version = version
        self.pki = pki
        self.token = token
        self.scheme = "https" if pki else "http"
        # Elections in tests need not wait for a slow network; a machine under load needs some patience.
        self.flags: dict[str, Any] = {"heartbeat-interval": 50, "election-timeout": 500}
        self.flags.update({name.replace("_", "-"): value for name, value in flags.items()})
        self.members: list[Member] = []
        for number in range(members):
            self.add(f"{prefix}{number}")
        self.initial_cluster = ",".join(f"{member.name}={member.peer_url}" for member in self.members)

    def add(self, name: str, version: str = "", **flags: Any) -> Member:
        """Describe one more server (it joins only after `member add` and with initial_cluster_state="existing")."""
        client, peer = free_ports(2)
        named = {flag.replace("_", "-"): value for flag, value in flags.items()}
        member = Member(self, name, self.folder / name, client, peer, version or self.version, named)
        self.members.append(member)
        return member

    def member(self, number: int) -> Member:
        return self.members[number]

    @property
    def endpoints(self) -> list[str]:
        return [member.endpoint for member in self.members]

    def arguments(self, **more: Any) -> dict[str, Any]:
        """Return the parameters that connect a module to this cluster, with the programs of its version."""
        programs = {name: str(binaries(self.version) / name) for name in ("etcdctl", "etcdutl")}
        return {"endpoints": self.endpoints, **programs, **(self.pki.client_arguments() if self.pki else {}), **more}

    def start(self) -> None:
        """Start all servers together, since a quorum can only form so."""
        for member in self.members:
            member.start(wait=False)
        for member in self.members:
            member.wait_healthy()

    def stop(self) -> None:
        for member in self.members:
            if member.running:
                assert member.process
                member.process.send_signal(signal.SIGTERM)
                member.process.send_signal(signal.SIGCONT)
        for member in self.members:
            member.stop()

    def kill(self) -> None:
        for member in self.members:
            member.kill()

    def leader(self) -> Member:
        """Return the member that leads, waiting until one does."""

        def found() -> Member | None:
            for member in self.members:
                with contextlib.suppress(OSError, ValueError):
                    status = member.status()
                    if status["header"]["member_id"] == status.get("leader"):
                        return member
            return None

        leader: Member = wait_until(found, "there is a leader")
        return leader

    def followers(self) -> list[Member]:
        leader = self.leader()
        return [member for member in self.members if member is not leader and member.running]

    def http(self, url: str, body: bytes | None = None, method: str | None = None, seconds: float = 5.0) -> bytes:
        """Return the body of an answer. Raises OSError, also for a status that is an error."""
        context = None
        if self.pki:
            context = ssl.create_default_context(cafile=self.pki.ca["certificate"])
            context.load_cert_chain(self.pki.client["certificate"], self.pki.client["key"])
        handlers: list[Any] = [urllib.request.ProxyHandler({})]
        if context:
            handlers.append(urllib.request.HTTPSHandler(context=context))
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"} if body else {}, method=method)
        with urllib.request.build_opener(*handlers).open(request, timeout=seconds) as answer:
            content: bytes = answer.read()
            return content

    def run_etcdctl(
        self, version: str, endpoints: list[str], *arguments: str, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        flags = [f"--endpoints={','.join(endpoints)}"]
        if self.pki:
            flags += [
                f"--cacert={self.pki.ca['certificate']}",
                f"--cert={self.pki.client['certificate']}",
                f"--key={self.pki.client['key']}",
            ]
        done = subprocess.run(
            [str(binaries(version) / "etcdctl"), *flags, *arguments],
            env={"PATH": os.environ["PATH"], "ETCDCTL_API": "3", "HOME": str(self.folder)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert not check or done.returncode == 0, f"etcdctl {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done

    def etcdctl(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run etcdctl of the cluster's version against all servers."""
        return self.run_etcdctl(self.version, self.endpoints, *arguments, check=check)

    def _any(self) -> Member:
        return next(member for member in self.members if member.running)

    def put(self, key: str | bytes, value: str | bytes, **more: Any) -> int:
        """Write a key and return the revision."""
        answer = self._any().call("kv/put", key=_base64(key), value=_base64(value), **more)
        return int(answer["header"]["revision"])

    def fill(self, count: int, size: int = 64, prefix: str = "/registry/pods/") -> int:
        """Write count keys, 100 in each transaction, and return the revision."""
        revision = 0
        for start in range(0, count, 100):
            puts = [
                {"request_put": {"key": _base64(f"{prefix}{number:06}"), "value": _base64(os.urandom(size))}}
                for number in range(start, min(start + 100, count))
            ]
            revision = int(self._any().call("kv/txn", success=puts)["header"]["revision"])
        return revision

    def get(self, key: str | bytes) -> bytes | None:
        """Return the value of a key as the whole cluster has it, None if there is no such key."""
        found = self._any().call("kv/range", key=_base64(key)).get("kvs")
        return base64.b64decode(found[0].get("value", "")) if found else None

    def delete(self, key: str | bytes) -> None:
        self._any().call("kv/deleterange", key=_base64(key))

    def put_v2(self, path: str, value: str, **options: Any) -> int:
        """Write a key of the old store and return its index."""
        form = urllib.parse.urlencode({"value": value, **options}).encode()
        url = f"{self._any().endpoint}/v2/keys{urllib.parse.quote(path)}"
        request = urllib.request.Request(url, form, method="PUT")
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5) as answer:
            return int(json.loads(answer.read())["node"]["modifiedIndex"])


def _base64(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


@contextlib.contextmanager
def cluster(
    version: str,
    members: int = 3,
    tls: bool | Pki = False,
    folder: Path | None = None,
    start: bool = True,
    **flags: Any,
) -> Iterator[EtcdServers]:
    """Run a cluster while the block runs. What the servers said is shown if the block fails.

    flags: of every server, _ for -. A Pki as tls is used instead of one of its own.
    """
    base = Path(tempfile.mkdtemp(prefix="etcd-", dir=folder))
    pki = tls if isinstance(tls, Pki) else Pki(base / "pki") if tls else None
    servers = EtcdServers(base, version, members, pki, **flags)
    try:
        if start:
            servers.start()
        yield servers
    except BaseException:
        for member in servers.members:
            if member.log.exists():
                print(f"--- {member.name} {member.version}, last lines:\n{member.last_log(15)}", file=sys.stderr)
        raise
    finally:
        servers.kill()
        if not os.environ.get(KEEP_LOGS):
            shutil.rmtree(base, ignore_errors=True)
