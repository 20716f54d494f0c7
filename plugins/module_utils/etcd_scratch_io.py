# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A server of etcd on loopback for a moment, on restored data, which only this process is let into."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from dataclasses import replace
from pathlib import Path

from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_client import (
    Connection,
    EtcdError,
    Gateway,
    as_int,
    last_words,
    program_path,
    run_command,
)

START_SECONDS = 120.0
COMMAND_SECONDS = 30.0
PAUSE_SECONDS = 0.1
PR_SET_PDEATHSIG = 1


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that are free now."""
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in found]


class ScratchServer:
    """A server on a data folder, as a context. Others on this host cannot ask it: what it holds may be secret.

    name and peer_url are what its data was restored with.
    """

    def __init__(self, folder: str, connection: Connection, etcd: str, flags: tuple[str, ...] = ()) -> None:
        """folder: an empty one of its own; the data is to be in its folder data. flags: more of the server's."""
        self.folder = folder
        self.data_dir = f"{folder}/data"
        self.name = "scratch"
        client, peer = free_ports(2)
        self.endpoint = f"https://127.0.0.1:{client}"
        self.peer_url = f"https://127.0.0.1:{peer}"
        self._etcd = etcd
        self._flags = flags
        self._process: subprocess.Popen[bytes] | None = None
        certificate, key = f"{folder}/own.crt", f"{folder}/own.key"
        self.connection = replace(
            connection, endpoints=(self.endpoint,), ca_cert=certificate, client_cert=certificate, client_key=key
        )

    def __enter__(self) -> ScratchServer:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_reason: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the server before its context does."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _start(self) -> None:
        connection = self.connection
        # One certificate for this server and its one client, that nobody else has.
        finished = run_command(
            [
                *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
                *("-keyout", str(connection.client_key), "-out", str(connection.client_cert)),
                *("-days", "2", "-subj", "/O=scratch"),
                *("-addext", "subjectAltName=IP:127.0.0.1", "-addext", "extendedKeyUsage=serverAuth,clientAuth"),
            ],
            COMMAND_SECONDS,
        )
        if finished.rc:
            raise EtcdError(f"openssl could not make a certificate: {last_words(finished)}")
        arguments = [
            program_path(self._etcd, os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/bin"])),
            f"--name={self.name}",
            f"--data-dir={self.data_dir}",
            f"--listen-client-urls={self.endpoint}",
            f"--advertise-client-urls={self.endpoint}",
            f"--listen-peer-urls={self.peer_url}",
            f"--initial-advertise-peer-urls={self.peer_url}",
            f"--initial-cluster={self.name}={self.peer_url}",
            # Nothing is written here, but a database that is larger than the default quota has to start too.
            f"--quota-backend-bytes={16 << 30}",
        ]
        arguments += self._flags
        for kind in ("", "peer-"):
            arguments += [
                f"--{kind}cert-file={connection.client_cert}",
                f"--{kind}key-file={connection.client_key}",
                f"--{kind}trusted-ca-file={connection.ca_cert}",
                f"--{kind}client-cert-auth",
            ]
        with open(f"{self.folder}/log", "wb") as log:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.defpath, "LC_ALL": "C"},
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        gateway = Gateway(connection, self.endpoint)
        until = time.monotonic() + START_SECONDS
        try:
            while True:
                try:
                    if as_int(gateway.call("maintenance/status", {}).get("leader")):
                        return
                except EtcdError as error:
                    if self._process.poll() is not None or time.monotonic() > until:
                        raise EtcdError(
                            f"the scratch server does not come up: {self._last_line()} ({error})"
                        ) from error
                time.sleep(PAUSE_SECONDS)
        finally:
            gateway.close()

    def _last_line(self) -> str:
        lines = Path(f"{self.folder}/log").read_text(errors="replace").splitlines()
        return lines[-1] if lines else "it said nothing"


def _die_with_parent() -> None:
    # In a sandbox without memory that can be written and executed older libraries cannot load it.
    with contextlib.suppress(ImportError, MemoryError, OSError):
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
