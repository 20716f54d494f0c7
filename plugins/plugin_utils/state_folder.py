# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The controller's own folder of a cluster: authorities, shared secrets and the admin's kubeconfig."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from ansible_collections.plainkube.cluster.plugins.module_utils.certificates import CertificateError
from ansible_collections.plainkube.cluster.plugins.plugin_utils.x509 import (
    Authority,
    load_certificates,
    load_key,
    public_digest,
)

CLUSTER_NAME = "cluster-name"
SERVICE_ACCOUNT_KEY = "secrets/service-account.key"
SERVICE_ACCOUNT_PUBLIC_KEY = "secrets/service-account.pub"
ENCRYPTION_KEY = "secrets/encryption-key"
ADMIN_KUBECONFIG = "admin.conf"
LOCK_SECONDS = 60
RESTORE = (
    "an authority is never replaced by itself, since the whole cluster trusts it;"
    " restore both of its files from a backup of the state folder"
)
MADE_BY = "the role plainkube.cluster.authorities makes it"


def authority_certificate(name: str) -> str:
    return f"pki/{name}.crt"


def authority_key(name: str) -> str:
    return f"pki/{name}.key"


class StateFolder:
    """Reads and names what the folder holds; path may start with ~ and need not exist yet."""

    def __init__(self, path: str) -> None:
        self.path = Path(path).expanduser()
        if not self.path.is_absolute():
            raise CertificateError(f"state_dir is '{path}', wanted an absolute path on the controller")

    def file(self, name: str) -> Path:
        return self.path / name

    def read(self, name: str) -> bytes:
        """Return a file's content. Raises CertificateError that says who makes a missing one."""
        path = self.file(name)
        try:
            return path.read_bytes()
        except FileNotFoundError as error:
            raise CertificateError(f"{path} is missing on the controller: {MADE_BY}") from error
        except OSError as error:
            raise CertificateError(f"{path} on the controller cannot be read: {error.strerror}") from error

    def exists(self, name: str) -> bool:
        return self.file(name).exists()

    def authority(self, name: str) -> Authority:
        """Return an authority whose two halves fit. Raises CertificateError when one is missing or damaged."""
        certificate_name, key_name = authority_certificate(name), authority_key(name)
        if self.exists(certificate_name) and not self.exists(key_name):
            raise CertificateError(
                f"{self.file(key_name)} is missing while {self.file(certificate_name)} is there: {RESTORE}"
            )
        certificates = load_certificates(self.read(certificate_name))
        if len(certificates) != 1:
            raise CertificateError(f"{self.file(certificate_name)} is not one certificate: {RESTORE}")
        key_text = self.read(key_name)
        try:
            key = load_key(key_text, str(self.file(key_name)))
        except CertificateError as error:
            raise CertificateError(f"{error}: {RESTORE}") from error
        if public_digest(key.public_key()) != public_digest(certificates[0].public_key()):
            raise CertificateError(f"{self.file(key_name)} is not the key of {self.file(certificate_name)}: {RESTORE}")
        return Authority(name, certificates[0], key)

    def mode(self, name: str = "") -> int:
        """Return the mode of a file, or of the folder itself."""
        return stat.S_IMODE(self.file(name).stat().st_mode)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the existing folder against other runs. Raises CertificateError when another one keeps it."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            deadline = time.monotonic() + LOCK_SECONDS
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > deadline:
                        raise CertificateError(
                            f"another run has been changing {self.path} for {LOCK_SECONDS} s:"
                            " let it end, then start again"
                        ) from error
                    time.sleep(0.2)
            yield
        finally:
            os.close(descriptor)
