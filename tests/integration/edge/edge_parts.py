# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""haproxy with the role's own configuration, backends and the unit edge-backends, all on loopback."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import jinja2
import yaml
from ansible_collections.plainkube.cluster.plugins.module_utils import edge
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

HERE = Path(__file__).parent
ROLE = HERE.parents[2] / "roles" / "edge"
HAPROXY = "/usr/sbin/haproxy"
PATIENCE = 20.0


def wait_until(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> None:
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, f"not within {patience:g} s: {what}"
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(address: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((address, port)) == 0


class Identities:
    """An authority, and one certificate for everything on loopback."""

    def __init__(self, folder: Path) -> None:
        self.ca, self.pair = folder / "ca.crt", folder / "everything.pem"
        key, authority_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        authority = self._certificate("authority", authority_key.public_key(), authority_key, None)
        names = x509.SubjectAlternativeName(
            [x509.IPAddress(ip_address(f"127.0.{third}.{fourth}")) for third in range(3) for fourth in range(1, 12)]
        )
        leaf = self._certificate("everything", key.public_key(), authority_key, names)
        pem = serialization.Encoding.PEM
        self.ca.write_bytes(authority.public_bytes(pem))
        private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        self.pair.write_bytes(leaf.public_bytes(pem) + private)

    def _certificate(
        self,
        name: str,
        public: ec.EllipticCurvePublicKey,
        signer: ec.EllipticCurvePrivateKey,
        names: x509.SubjectAlternativeName | None,
    ) -> x509.Certificate:
        def named(common: str) -> x509.Name:
            return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])

        now = datetime.now(timezone.utc)
        begin, end = now - timedelta(hours=1), now + timedelta(hours=1)
        serial = x509.random_serial_number()
        builder = x509.CertificateBuilder(named("authority"), named(name), public, serial, begin, end)
        identity = x509.SubjectKeyIdentifier.from_public_key(public)
        signers = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
        builder = builder.add_extension(identity, False).add_extension(signers, False)
        builder = builder.add_extension(x509.BasicConstraints(ca=names is None, path_length=None), True)
        if names:
            builder = builder.add_extension(names, False)
        else:
            usage = dict.fromkeys(
                (
                    "digital_signature",
                    "content_commitment",
                    "key_encipherment",
                    "data_encipherment",
                    "key_agreement",
                    "encipher_only",
                    "decipher_only",
                ),
                False,
            )
            builder = builder.add_extension(x509.KeyUsage(**usage, key_cert_sign=True, crl_sign=True), True)
        return builder.sign(signer, hashes.SHA256())


class Process:
    """A process that is ended with the test."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output)

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self, number: int = signal.SIGTERM) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(number)
            self.process.wait(PATIENCE)


class Backend(Process):
    def __init__(self, folder: Path, name: str, address: str, port: int, certificate: Path | None = None) -> None:
        words = [
            sys.executable,
            str(HERE / "stub_server.py"),
            f"--name={name}",
            f"--address={address}",
            f"--port={port}",
        ]
        super().__init__(words + ([f"--certificate={certificate}"] if certificate else []), folder / f"{name}.log")
        self.name, self.address, self.port = name, address, port
        wait_until(lambda: answers(address, port), f"{name} listens, see {self.log.read_text()}")


class Edge:
    """haproxy and edge-backends as the role makes them, with places of their own."""

    def __init__(
        self,
        folder: Path,
        services: list[dict[str, Any]],
        control_plane: list[str],
        api_port: int,
        ingress: Sequence[str] = (),
    ) -> None:
        self.folder, self.port = folder, services[0]["port"]
        self.hosts = [{"name": f"c{number}", "address": address} for number, address in enumerate(control_plane)]
        ingress_hosts = [{"name": f"i{number}", "address": address} for number, address in enumerate(ingress)]
        self.services = edge.services(services, {"control_plane": self.hosts, "ingress": ingress_hosts}, api_port)
        self.configuration = folder / "haproxy.cfg"
        self.socket = folder / "admin.sock"
        self.metrics_port = free_port()
        self.write_configuration()
        self.haproxy: Process | None = None
        self.watcher: Process | None = None

    def write_configuration(self, **inputs: Any) -> None:
        """Render the role's template as the role does, with files and ports of this test in it."""
        defaults = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text(encoding="utf-8"))
        private = yaml.safe_load((ROLE / "vars" / "main.yml").read_text(encoding="utf-8"))
        variables = {
            **defaults,
            **private,
            "plainkube_cluster_name": "test",
            "edge_services": self.services,
            # Measured in tests is what happens to connections, not how long it takes to be sure of a server.
            "edge_check_interval": "200ms",
            "edge_slow_start": "1s",
            "__edge_effective_timeouts": private["__edge_timeouts"],
            "__edge_socket": str(self.socket),
            "__edge_state_file": str(self.folder / "servers.state"),
            "__edge_folder": str(self.folder),
            "__edge_metrics_port": self.metrics_port,
            "__edge_log": "stderr",
            **inputs,
        }
        environment = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined)
        template = (ROLE / "templates" / "etc" / "haproxy" / "haproxy.cfg.j2").read_text(encoding="utf-8")
        text = environment.from_string(template).render(variables)
        self.configuration.write_text(text + "\n", encoding="utf-8")

    def start(self) -> None:
        self.haproxy = Process([HAPROXY, "-W", "-f", str(self.configuration)], self.folder / "haproxy.log")
        wait_until(self.haproxy_is_up, f"haproxy listens, see {self.haproxy.log}")

    def haproxy_is_up(self) -> bool:
        assert self.haproxy
        assert self.haproxy.process.poll() is None, self.haproxy.log.read_text(encoding="utf-8")
        return answers("127.0.0.1", self.port)

    def watch(self, api: str, identities: Identities) -> None:
        configuration = {
            "servers": [api],
            "ca": str(identities.ca),
            "certificate": str(identities.pair),
            "key": str(identities.pair),
            "socket": str(self.socket),
            "state_file": str(self.folder / "servers.state"),
            "status_file": str(self.folder / "status.json"),
            "services": [service["name"] for service in self.services],
            "backends": [service["watched"] for service in self.services if service["dynamic"]],
        }
        (self.folder / "backends.json").write_text(json.dumps(configuration), encoding="utf-8")
        self.watcher = Process(self.program(), self.folder / "edge-backends.log")

    def program(self, *options: str) -> list[str]:
        # What it shares with other units lies beside it, as on a host.
        program = self.folder / "edge-backends"
        shutil.copy(ROLE / "files" / "edge_backends.py", program)
        shutil.copy(ROLE.parent / "cluster" / "files" / "api_watch.py", self.folder)
        return [sys.executable, "-u", str(program), f"--configuration={self.folder / 'backends.json'}", *options]

    def ask(self, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.program(*options), capture_output=True, text=True, check=False)

    def status(self) -> dict[str, Any]:
        path = self.folder / "status.json"
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"backends": {}}
        return found

    def servers(self) -> dict[str, str]:
        """Return the addresses that are in slots, with their states, as edge-backends reports them."""
        found: dict[str, str] = self.status()["backends"].get(self.services[0]["name"], {}).get("servers", {})
        return found

    def tell(self, command: str) -> str:
        """Return haproxy's answer; empty while it has no socket."""
        with socket.socket(socket.AF_UNIX) as channel:
            if channel.connect_ex(str(self.socket)):
                return ""
            channel.sendall(command.encode() + b"\n")
            answer = b""
            while part := channel.recv(65536):
                answer += part
        return answer.decode()

    def process_id(self) -> str:
        return next((line.split()[1] for line in self.tell("show info").splitlines() if line.startswith("Pid:")), "")

    def reload(self) -> None:
        """Do what the unit's ExecReload does, and wait for the new process."""
        assert self.haproxy
        before = self.process_id()
        saved = self.ask("--save")
        assert saved.returncode == 0, saved.stderr
        self.haproxy.send(signal.SIGUSR2)
        wait_until(lambda: self.process_id() not in ("", before), f"haproxy reloads, see {self.haproxy.log}")

    def end(self) -> None:
        for process in (self.watcher, self.haproxy):
            if process:
                process.end()
