# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A real kube-apiserver with its etcd as processes on loopback, and a proxy that makes it answer badly."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import urllib3
from ansible_collections.plainkube.cluster.plugins.module_utils import kubeconfig
from ansible_collections.plainkube.cluster.plugins.module_utils.catalogue import load, resolve
from ansible_collections.plainkube.cluster.plugins.module_utils.certificates import Leaf
from ansible_collections.plainkube.cluster.plugins.module_utils.kubernetes_api import RESOURCES, Api, path_of
from ansible_collections.plainkube.cluster.plugins.module_utils.versions import component_versions, kubernetes_versions
from ansible_collections.plainkube.cluster.plugins.plugin_utils import x509
from mirror.fill import CACHE, HOST_ARCH, Mirror

CHECKOUT = Path(__file__).resolve().parents[3]
START_SECONDS = 60
# The release of Kubernetes that tests run against, one of the catalogue; its newest without it.
VERSION = "PLAINKUBE_KUBERNETES_VERSION"
# What the audit log holds: who wrote which workload, without their contents.
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "Metadata", "verbs": ["create", "patch", "update"], "resources": [{"group": "apps"}]},
        {"level": "None"},
    ],
}
# Namespaces that the API server makes for itself.
OWN_NAMESPACES = frozenset({"default", "kube-system", "kube-public", "kube-node-lease"})
# What tests leave behind in namespaces, in the order in which it can be removed.
LEFTOVERS = (
    "Pod",
    "Deployment",
    "ReplicaSet",
    "StatefulSet",
    "DaemonSet",
    "CronJob",
    "Job",
    "PodDisruptionBudget",
    "NetworkPolicy",
    "ResourceQuota",
    "LimitRange",
    "ServiceAccount",
    "Ingress",
    "Secret",
    "Service",
    "RoleBinding",
    "Role",
)


def programs(version: str, folder: Path) -> dict[str, Path]:
    """Return the paths of kube-apiserver, kubectl and etcd for a Kubernetes version, filled into the mirror first."""
    versions = {"kube-apiserver": version, "kubectl": version, "etcd": component_versions(version)["etcd"]}
    only = [word for name, wanted in versions.items() for word in ("--only", f"{name}={wanted}")]
    subprocess.run([sys.executable, "tools/artifacts", "fill", *only], cwd=CHECKOUT, check=True, capture_output=True)
    mirror, catalogue = Mirror(CACHE / "mirror"), load()
    found = {name: resolve(catalogue, name, wanted, HOST_ARCH) for name, wanted in versions.items()}
    with tarfile.open(mirror.path(found["etcd"])) as archive:
        member = archive.extractfile(f"{found['etcd'].members_in}etcd")
        assert member is not None
        (folder / "etcd").write_bytes(member.read())
        (folder / "etcd").chmod(0o755)
    for name in ("kube-apiserver", "kubectl"):
        path = mirror.path(found[name])
        path.chmod(path.stat().st_mode | 0o111)
    return {
        "etcd": folder / "etcd",
        **{name: mirror.path(found[name]) for name in ("kube-apiserver", "kubectl")},
    }


def free_port() -> int:
    """Return a port of loopback that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def read_log(path: Path) -> str:
    """Return the last lines of a process's log."""
    return "\n".join(path.read_text(errors="replace").splitlines()[-20:])


class ApiServer:
    """One kube-apiserver with its etcd. kubeconfig is the admin's."""

    def __init__(self, folder: Path, version: str = "", durable: bool = False) -> None:
        """Start both and wait until the API is ready. durable: etcd writes to the disk as it does in a cluster."""
        self.folder = folder
        self.version = version or os.environ.get(VERSION) or kubernetes_versions(load())[0]
        self._programs = programs(self.version, folder)
        self._processes: list[subprocess.Popen[bytes]] = []
        now = datetime.now(timezone.utc)
        self._authority = x509.make_authority("tests", "tests", timedelta(days=1), 0, None, now)
        self.url = f"https://127.0.0.1:{free_port()}"
        self.kubeconfig = self._write_kubeconfig("admin", ("system:masters",))
        self.audit_log = folder / "audit.jsonl"
        try:
            self._start(durable)
        except BaseException:
            self.stop()
            raise

    def _start(self, durable: bool) -> None:
        (self.folder / "ca.crt").write_text(x509.certificate_pem([self._authority.certificate]))
        certificate, key = self._issue("kube-apiserver", ("server",), ())
        (self.folder / "server.crt").write_bytes(certificate)
        (self.folder / "server.key").write_bytes(key)
        accounts = x509.new_key()
        (self.folder / "accounts.key").write_bytes(x509.key_pem(accounts))
        (self.folder / "accounts.pub").write_bytes(x509.public_pem(accounts))
        (self.folder / "audit-policy.json").write_text(json.dumps(AUDIT_POLICY))
        etcd = f"http://127.0.0.1:{free_port()}"
        peers = f"http://127.0.0.1:{free_port()}"
        self._run(
            "etcd",
            f"--data-dir={self.folder / 'data'}",
            f"--listen-client-urls={etcd}",
            f"--advertise-client-urls={etcd}",
            f"--listen-peer-urls={peers}",
            f"--initial-advertise-peer-urls={peers}",
            f"--initial-cluster=default={peers}",
            *(() if durable else ("--unsafe-no-fsync",)),
        )
        self._run(
            "kube-apiserver",
            f"--etcd-servers={etcd}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self.url.rpartition(':')[2]}",
            f"--cert-dir={self.folder}",
            f"--tls-cert-file={self.folder / 'server.crt'}",
            f"--tls-private-key-file={self.folder / 'server.key'}",
            f"--client-ca-file={self.folder / 'ca.crt'}",
            f"--service-account-key-file={self.folder / 'accounts.pub'}",
            f"--service-account-signing-key-file={self.folder / 'accounts.key'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-cluster-ip-range=10.96.0.0/24",
            "--authorization-mode=RBAC",
            "--allow-privileged=true",
            # No controller makes default service accounts here, and pods shall be accepted nevertheless.
            "--disable-admission-plugins=ServiceAccount",
            "--endpoint-reconciler-type=none",
            f"--audit-policy-file={self.folder / 'audit-policy.json'}",
            f"--audit-log-path={self.audit_log}",
        )
        self._wait_until_ready()

    def _run(self, name: str, *arguments: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            self._processes.append(subprocess.Popen([self._programs[name], *arguments], stdout=log, stderr=log))

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        certificate = self.folder / "ca.crt"
        with urllib3.PoolManager(ca_certs=str(certificate), retries=False, timeout=2) as pool:
            while True:
                with contextlib.suppress(urllib3.exceptions.HTTPError):
                    if pool.request("GET", f"{self.url}/readyz").status == 200:
                        return
                ended = [process for process in self._processes if process.poll() is not None]
                if ended or time.monotonic() > deadline:
                    logs = "\n".join(read_log(path) for path in sorted(self.folder.glob("*.log")))
                    raise RuntimeError(f"the API server does not become ready:\n{logs}")
                time.sleep(0.05)

    def _issue(self, name: str, usages: tuple[str, ...], groups: tuple[str, ...]) -> tuple[bytes, bytes]:
        """Return certificate and key for a name, as PEM."""
        key = x509.new_key()
        leaf = Leaf(
            name=name,
            certificate="",
            key="",
            authority="tests",
            common_name=name,
            usages=usages,
            lifetime=timedelta(hours=12),
            organizations=groups,
            dns_names=("localhost",),
            ip_addresses=("127.0.0.1",),
        )
        issued = x509.issue_leaf(leaf, key.public_key(), self._authority, "tests", datetime.now(timezone.utc))
        return x509.certificate_pem([issued]).encode(), x509.key_pem(key)

    def _write_kubeconfig(self, user: str, groups: tuple[str, ...] = ()) -> Path:
        certificate, key = self._issue(user, ("client",), groups)
        authority = x509.certificate_pem([self._authority.certificate]).encode()
        path = self.folder / f"{user}.conf"
        path.touch(mode=0o600)
        content = kubeconfig.Kubeconfig("tests", self.url, user, authority, certificate, key)
        path.write_text(json.dumps(kubeconfig.render(content)))
        return path

    def kubeconfig_for(self, user: str, rules: Sequence[dict[str, Any]], namespace: str = "") -> Path:
        """Return the kubeconfig of a user with these rules of a role, in one namespace or in the whole cluster."""
        kind = "Role" if namespace else "ClusterRole"
        where = {"namespace": namespace} if namespace else {}
        group = "rbac.authorization.k8s.io"
        self.apply(
            {
                "apiVersion": f"{group}/v1",
                "kind": kind,
                "metadata": {"name": user, **where},
                "rules": list(rules),
            },
            {
                "apiVersion": f"{group}/v1",
                "kind": f"{kind}Binding",
                "metadata": {"name": user, **where},
                "roleRef": {"apiGroup": group, "kind": kind, "name": user},
                "subjects": [{"apiGroup": group, "kind": "User", "name": user}],
            },
        )
        return self._write_kubeconfig(user)

    def api(self, path: Path | None = None) -> Api:
        """Return the collection's own client, the admin's or that of a kubeconfig."""
        return Api({"kubeconfig": str(path or self.kubeconfig)})

    def kubectl(self, *arguments: str, stdin: str = "", check: bool = True) -> str:
        """Run kubectl as admin and return what it says, stderr included. Raises AssertionError when it fails."""
        done = subprocess.run(
            [self._programs["kubectl"], f"--kubeconfig={self.kubeconfig}", *arguments],
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            env={**os.environ, "KUBECTL_KUBERC": "false"},
        )
        assert done.returncode == 0 or not check, done.stdout
        return done.stdout

    def apply(self, *things: dict[str, Any], field_manager: str = "tests", force: bool = False) -> None:
        """Apply objects as another manager than the modules'. Raises ApiError."""
        api = self.api()
        for thing in things:
            api.apply(thing, field_manager, force)

    def set_status(self, thing: dict[str, Any], status: dict[str, Any]) -> None:
        """Set an object's status, as a controller or kubelet would."""
        wanted = {key: thing[key] for key in ("apiVersion", "kind")}
        metadata = {key: thing["metadata"][key] for key in ("namespace", "name") if key in thing["metadata"]}
        status_code, body = self.api().ask(
            "patch",
            f"{path_of(thing)}/status",
            {**wanted, "metadata": metadata, "status": status},
            fieldManager="controller",
            force="true",
        )
        assert status_code == 200, body

    def make_namespaces(self, names: Iterable[str], labels: dict[str, str] | None = None) -> list[str]:
        """Make namespaces that are not the modules' own."""
        made = list(names)
        things = [
            {
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {"name": name, **({"labels": labels} if labels else {})},
            }
            for name in made
        ]
        for answer in self.api().apply_all(things, "tests"):
            if isinstance(answer, Exception):
                raise answer
        return made

    def clean(self) -> None:
        """Remove all namespaces that tests made, with what is in them, and nodes; there is no controller to do it."""
        api = self.api()
        for kind in LEFTOVERS:
            path = RESOURCES[kind].path()
            found = [{**thing, "apiVersion": RESOURCES[kind].api_version, "kind": kind} for thing in api.list(path)]
            ours = [thing for thing in found if thing["metadata"].get("namespace") != "default" or kind != "Service"]
            api.at_the_same_time(lambda thing: api.ask("delete", path_of(thing), {"gracePeriodSeconds": 0}), ours)
        for node in api.list(RESOURCES["Node"].path()):
            api.delete({**node, "apiVersion": "v1", "kind": "Node"})
        names = [thing["metadata"]["name"] for thing in api.list(RESOURCES["Namespace"].path())]
        api.at_the_same_time(lambda name: self._remove_namespace(api, name), set(names) - OWN_NAMESPACES)

    @staticmethod
    def _remove_namespace(api: Api, name: str) -> None:
        path = RESOURCES["Namespace"].path(name=name)
        api.ask("delete", path, {})
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}, "spec": {"finalizers": []}}
        api.ask("update", f"{path}/finalize", body)

    def stop(self) -> None:
        """End both processes at once: nothing of them is to be kept."""
        for process in reversed(self._processes):
            process.kill()
            process.wait()


Fault = str  # "429", "500", "503", "break" (no answer), "half" (done, but the answer breaks off in its middle)


class FaultProxy:
    """Stands before an API server as its admin, by plain HTTP on loopback, and answers badly when `misbehave` says so.

    misbehave gets number, method and path of a request and returns a fault or None.
    """

    def __init__(self, server: ApiServer) -> None:
        self.misbehave: Callable[[int, str, str], Fault | None] = lambda _number, _method, _path: None
        self.asked: list[tuple[str, str]] = []
        self.faults = 0
        self.retry_after = "0"
        self._lock = threading.Lock()
        admin = server.api()
        pool, target = admin._pool, server.url
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length) if length else None
                with outer._lock:
                    number = len(outer.asked)
                    outer.asked.append((self.command, self.path))
                    fault = outer.misbehave(number, self.command, self.path)
                    outer.faults += fault is not None
                if fault == "break":
                    self.close_connection = True
                    return
                if fault is not None and fault.isdigit():
                    self.give(int(fault), b'{"kind":"Status","status":"Failure","message":"told to by a test"}')
                    return
                headers = {key: self.headers[key] for key in ("Content-Type", "Accept") if key in self.headers}
                reply = pool.request(self.command, target + self.path, body=body, headers=headers, retries=False)
                self.give(reply.status, reply.data, half=fault == "half")

            do_GET = do_PATCH = do_DELETE = do_POST = do_PUT = answer

            def give(self, status: int, data: bytes, half: bool = False) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                if status in (429, 503):
                    self.send_header("Retry-After", outer.retry_after)
                self.end_headers()
                with contextlib.suppress(BrokenPipeError):
                    self.wfile.write(data[: len(data) // 2] if half else data)
                self.close_connection = self.close_connection or half

            def log_message(self, *_arguments: object) -> None:
                """Keep the tests' output clean."""

        class Server(ThreadingHTTPServer):
            # Whoever gives up before its answer came is no error of the proxy's.
            def handle_error(self, request: Any, client_address: Any) -> None:
                """Keep the tests' output clean."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.kubeconfig = server.folder / f"proxy-{self._server.server_port}.conf"
        self.kubeconfig.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "proxy", "cluster": {"server": self.url}}],
                    "users": [{"name": "proxy", "user": {}}],
                    "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "proxy"}}],
                    "current-context": "proxy",
                }
            )
        )
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def writes(self) -> list[tuple[str, str]]:
        """Return the requests that could have changed something."""
        return [(method, path) for method, path in self.asked if method != "GET" and "dryRun" not in path]

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()
