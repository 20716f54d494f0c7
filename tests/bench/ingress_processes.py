# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Debian's nginx and haproxy as processes on loopback with backends of their own, for make bench-ingress to compare.

nginx, and haproxy in its first form, read their configuration anew at each change, as controllers that are built upon
them do. haproxy in its second form is told each change at its runtime socket, and never reloads.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ingress_changes import CHECKOUT, MOST_REPLICAS, NAME, REPLICAS, status_of, wait_until
from mirror.fill import CACHE

# As an application's preStop: the proxies stop using a backend before it is told to stop.
PRE_STOP_SECONDS = 1.0
SLOTS = MOST_REPLICAS + REPLICAS
NGINX = """\
daemon off;
worker_processes 2;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
{shutdown}
events {{ worker_connections 1024; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  map $http_upgrade $connection_upgrade {{ default upgrade; "" ""; }}
  upstream app {{ {servers} keepalive 32; }}
  proxy_http_version 1.1;
  proxy_set_header Host $host;
  proxy_set_header Upgrade $http_upgrade;
  proxy_set_header Connection $connection_upgrade;
  proxy_read_timeout 1h;
  proxy_send_timeout 1h;
  proxy_buffering off;
  proxy_request_buffering off;
  client_body_timeout 1h;
  ssl_certificate {folder}/tls.pem;
  ssl_certificate_key {folder}/tls.pem;
  server {{ listen 127.0.0.1:{http} default_server; return 404; }}
{hosts}}}
"""
NGINX_HOST = """\
  server {{
    listen 127.0.0.1:{http};
    listen 127.0.0.1:{https} ssl;
    server_name {name};
    location / {{ proxy_pass http://app; }}
  }}
"""
HAPROXY = """\
global
  stats socket {folder}/admin.sock mode 600 level admin expose-fd listeners
  nbthread 2
defaults
  mode http
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  timeout http-keep-alive 1h
frontend web
  bind 127.0.0.1:{http}
  bind 127.0.0.1:{https} ssl crt {folder}/tls.pem
  http-request set-var(req.app) req.hdr(host),lower,map({folder}/hosts.map)
  http-request return status 404 unless {{ var(req.app) -m found }}
  default_backend app
backend app
  http-reuse safe
{servers}"""


def program(name: str) -> str:
    """Return the path of nginx or haproxy, empty when it cannot be had.

    Debian's nginx needs no other package, so its file is fetched and unpacked: to install it would start a service.
    """
    installed = shutil.which(name, path="/usr/local/sbin:/usr/sbin:/usr/bin")
    if installed or name != "nginx":
        return installed or ""
    folder = CACHE / "bench" / "nginx"
    binary = folder / "usr" / "sbin" / "nginx"
    if not binary.exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "-qq", "nginx"], cwd=folder, check=False, stderr=subprocess.DEVNULL)
        for package in folder.glob("nginx_*.deb"):
            subprocess.run(["dpkg-deb", "--extract", package, folder], check=True)
    return str(binary) if binary.exists() else ""


class Backends:
    """Backends as processes."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self.running: dict[int, subprocess.Popen[str]] = {}
        self._leaving: list[subprocess.Popen[str]] = []

    def start(self) -> int:
        """Start one and return its port once it listens."""
        process = subprocess.Popen(
            [sys.executable, "-m", "plainkube_load.backend", "--name", f"backend-{next(self._numbers)}"],
            env={**os.environ, "PYTHONPATH": str(CHECKOUT / "tests" / "load")},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout
        port = int(process.stdout.readline().split()[-1])
        self.running[port] = process
        return port

    def stop(self, ports: Sequence[int]) -> None:
        """Tell some to stop; they end what is open first."""
        time.sleep(PRE_STOP_SECONDS)
        for port in ports:
            process = self.running.pop(port)
            process.send_signal(signal.SIGTERM)
            self._leaving.append(process)

    def end(self) -> None:
        """End all at once."""
        for process in (*self.running.values(), *self._leaving):
            process.kill()
            process.wait()


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that nothing listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _number in range(count)]
    ports = [int(server.getsockname()[1]) for server in sockets]
    for server in sockets:
        server.close()
    return ports


class Proxy:
    """A proxy on loopback; a subclass says how it is told of a change."""

    program = ""
    pause = 0.3

    def __init__(self, title: str, folder: Path, certificate: tuple[bytes, bytes]) -> None:
        self.title = title
        self.folder = folder
        self.backends = Backends()
        self.http, self.https = free_ports(2)
        self.targets = [f"http://127.0.0.1:{self.http}", f"https://127.0.0.1:{self.https}"]
        self.names = [NAME]
        self.ports = [self.backends.start() for _number in range(REPLICAS)]
        self._write_certificate(*certificate)
        self._configure()
        with (folder / "output.log").open("wb") as log:
            self.process = subprocess.Popen(self.command(), stdout=log, stderr=log)
        try:
            wait_until(f"{title} serves", lambda: self.statuses(NAME) == {200}, 20)
        except TimeoutError:
            self.end()
            raise RuntimeError(f"{title}: {(folder / 'output.log').read_text()[-2000:]}") from None

    def command(self) -> list[str]:
        """Return the command that runs it in the foreground."""
        raise NotImplementedError

    def _configure(self) -> None:
        """Write its files."""
        raise NotImplementedError

    def _tell(self) -> None:
        """Let it know that its files are others now."""
        raise NotImplementedError

    def _set_servers(self, ports: Sequence[int]) -> None:
        self.ports = [*ports]
        self._configure()
        self._tell()

    def _set_names(self, names: Sequence[str]) -> None:
        self.names = [*names]
        self._configure()
        self._tell()

    def _write_certificate(self, certificate: bytes, key: bytes) -> None:
        (self.folder / "tls.pem").touch(mode=0o600)
        (self.folder / "tls.pem").write_bytes(certificate + key)

    def add_route(self, name: str) -> None:
        """Serve another host name."""
        self._set_names([*self.names, name])

    def remove_route(self, name: str) -> None:
        """Serve it no more."""
        self._set_names([known for known in self.names if known != name])

    def statuses(self, name: str) -> set[int]:
        """Return what it answers to a request for a host name."""
        return {status_of(self.targets[0], name)}

    def change_certificate(self, certificate: bytes, key: bytes) -> None:
        """Serve another certificate."""
        self._write_certificate(certificate, key)
        self._tell()

    def roll(self) -> None:
        """Replace the backends one by one: a new one is there before an old one leaves."""
        for old in self.ports:
            self._set_servers([*self.ports, self.backends.start()])
            time.sleep(self.pause)
            self._set_servers([port for port in self.ports if port != old])
            self.backends.stop([old])

    def scale(self, count: int) -> None:
        """Have so many backends, which come and go one by one."""
        while len(self.ports) < count:
            self._set_servers([*self.ports, self.backends.start()])
            time.sleep(self.pause)
        while len(self.ports) > count:
            leaving = self.ports[-1]
            self._set_servers(self.ports[:-1])
            self.backends.stop([leaving])

    def end(self) -> None:
        """End it and its backends at once."""
        self.process.terminate()
        self.process.wait()
        self.backends.end()


class Nginx(Proxy):
    """nginx that reloads."""

    program = "nginx"

    def __init__(self, title: str, folder: Path, certificate: tuple[bytes, bytes], shutdown: str = "") -> None:
        self.shutdown = f"worker_shutdown_timeout {shutdown};" if shutdown else ""
        super().__init__(title, folder, certificate)

    def command(self) -> list[str]:
        return [program(self.program), "-p", str(self.folder), "-c", str(self.folder / "nginx.conf")]

    def _configure(self) -> None:
        hosts = "".join(NGINX_HOST.format(http=self.http, https=self.https, name=name) for name in self.names)
        servers = " ".join(f"server 127.0.0.1:{port};" for port in self.ports)
        text = NGINX.format(folder=self.folder, shutdown=self.shutdown, servers=servers, hosts=hosts, http=self.http)
        (self.folder / "nginx.conf").write_text(text)

    def _tell(self) -> None:
        self.process.send_signal(signal.SIGHUP)


class Haproxy(Proxy):
    """haproxy that reloads: a new process takes the listeners over, the old one ends with its last connection."""

    program = "haproxy"

    def command(self) -> list[str]:
        return [program(self.program), "-W", "-f", str(self.folder / "haproxy.cfg")]

    def _servers(self) -> list[str]:
        return [f"  server s{port} 127.0.0.1:{port}" for port in self.ports]

    def _configure(self) -> None:
        text = HAPROXY.format(
            folder=self.folder, http=self.http, https=self.https, servers="\n".join([*self._servers(), ""])
        )
        (self.folder / "haproxy.cfg").write_text(text)
        (self.folder / "hosts.map").write_text("".join(f"{name} app\n" for name in self.names))

    def _tell(self) -> None:
        # One reload after the other: a signal that meets a reload can be lost on a busy machine.
        before = self._worker()
        self.process.send_signal(signal.SIGUSR2)
        wait_until(f"{self.title}: a new process serves", lambda: self._worker() not in ("", before))

    def _worker(self) -> str:
        """Return the number of the process that answers at the runtime socket, nothing while none does."""
        with contextlib.suppress(OSError):
            return next((line for line in self._say("show info").splitlines() if line.startswith("Pid:")), "")
        return ""

    def _say(self, command: str) -> str:
        with socket.socket(socket.AF_UNIX) as admin:
            admin.connect(str(self.folder / "admin.sock"))
            admin.sendall(f"{command}\n".encode())
            answer = b""
            while part := admin.recv(4096):
                answer += part
        return answer.decode().strip()


class HaproxyRuntime(Haproxy):
    """haproxy that is told what changes at its runtime socket."""

    def __init__(self, title: str, folder: Path, certificate: tuple[bytes, bytes]) -> None:
        self.slots: list[int] = []
        super().__init__(title, folder, certificate)

    def _servers(self) -> list[str]:
        ports = [*self.ports, *([0] * (SLOTS - len(self.ports)))]
        self.slots = ports
        return [
            f"  server slot{number} 127.0.0.1:{port or 1}{'' if port else ' disabled'}"
            for number, port in enumerate(ports)
        ]

    def _set_servers(self, ports: Sequence[int]) -> None:
        for slot, port in enumerate(self.slots):
            if port and port not in ports:
                self._say(f"set server app/slot{slot} state maint")
                self.slots[slot] = 0
        for port in ports:
            if port not in self.slots:
                slot = self.slots.index(0)
                self._say(f"set server app/slot{slot} addr 127.0.0.1 port {port}")
                self._say(f"set server app/slot{slot} state ready")
                self.slots[slot] = port
        self.ports = [*ports]

    def _set_names(self, names: Sequence[str]) -> None:
        for name in set(names) - set(self.names):
            self._say(f"add map {self.folder}/hosts.map {name} app")
        for name in set(self.names) - set(names):
            self._say(f"del map {self.folder}/hosts.map {name}")
        self.names = [*names]

    def change_certificate(self, certificate: bytes, key: bytes) -> None:
        """Serve another certificate."""
        file = self.folder / "tls.pem"
        self._say(f"set ssl cert {file} <<\n{(certificate + key).decode()}")
        answer = self._say(f"commit ssl cert {file}")
        if "Success" not in answer:
            raise RuntimeError(f"haproxy does not take the certificate: {answer}")
