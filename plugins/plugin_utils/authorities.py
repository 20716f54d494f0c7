# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Makes what only the controller may hold: authorities, shared secrets and the admin's kubeconfig.

An authority and a shared secret are made once and never replaced: the whole cluster depends on them. Each write is a
rename, in an order that lets the next run tell half-made from half-lost.
"""

from __future__ import annotations

import base64
import binascii
import secrets
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.plainkube.cluster.plugins.module_utils import kubeconfig
from ansible_collections.plainkube.cluster.plugins.module_utils.certificates import (
    INTERRUPTED,
    CertificateError,
    Leaf,
    Present,
    differences,
    moment,
    validity,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.files_io import sync_folder, write_atomically
from ansible_collections.plainkube.cluster.plugins.plugin_utils import x509
from ansible_collections.plainkube.cluster.plugins.plugin_utils.state_folder import (
    CLUSTER_NAME,
    ENCRYPTION_KEY,
    RESTORE,
    SERVICE_ACCOUNT_KEY,
    SERVICE_ACCOUNT_PUBLIC_KEY,
    StateFolder,
    authority_certificate,
    authority_key,
)
from cryptography.hazmat.primitives.asymmetric import rsa

MISSING = "missing"
OPEN_TO_OTHERS = "open to others"
# A signed certificate waits under this name until its key is in place.
PENDING_SUFFIX = ".plainkube-pending"
ENCRYPTION_KEY_BYTES = 32
# RS256 is the one algorithm that every OpenID Connect relying party must know, so that tokens also work outside the
# cluster; 3072 bits are as strong as P-256.
SERVICE_ACCOUNT_KEY_BITS = 3072
# No leaf lives longer, so an authority with more time left than this cuts none short.
WARN_BEFORE = timedelta(days=365)
# Stands for a host's name where lifetimes are staggered.
CONTROLLER = "controller"
RESTORE_SECRET = (
    "it is never replaced by itself, since the running cluster depends on it;"
    " restore it from a backup of the state folder"
)


@dataclass(frozen=True)
class AuthoritySpec:
    """What one authority should be. issuer names the root that signs it; without one it is a root."""

    name: str
    common_name: str
    lifetime: timedelta
    issuer: str | None = None


@dataclass(frozen=True)
class AdminSpec:
    """What the admin's kubeconfig should be. authority names the authority that signs it."""

    path: str
    server: str
    user: str
    organizations: tuple[str, ...]
    lifetime: timedelta
    authority: str


@dataclass(frozen=True)
class Outcome:
    """What became of one file. Reasons are empty when nothing had to change."""

    name: str
    reasons: tuple[str, ...] = ()
    not_after: str | None = None
    fingerprint: str | None = None


def in_order(specs: Sequence[AuthoritySpec]) -> list[AuthoritySpec]:
    """Return roots before those that they sign. Raises CertificateError with all faults at once."""
    names = [spec.name for spec in specs]
    faults = [
        f"authority {name} is asked for more than once" for name in sorted({n for n in names if names.count(n) > 1})
    ]
    roots = {spec.name for spec in specs if spec.issuer is None}
    faults.extend(
        f"authority {spec.name}: issuer is '{spec.issuer}', wanted one of the authorities without an issuer:"
        f" {', '.join(sorted(roots)) or 'there is none'}"
        for spec in specs
        if spec.issuer is not None and spec.issuer not in roots
    )
    if faults:
        raise CertificateError("; ".join(faults))
    return sorted(specs, key=lambda spec: spec.issuer is not None)


class StateMaker:
    """Brings a state folder to what is asked. In check mode it only says what it would do."""

    def __init__(self, folder: StateFolder, now: datetime, check_mode: bool) -> None:
        self.folder = folder
        self.now = now
        self.check_mode = check_mode
        self.outcomes: list[Outcome] = []
        self.warnings: list[str] = []
        self.authorities: dict[str, x509.Authority] = {}

    def make_folder(self) -> None:
        """Make the folder itself, private to its owner."""
        path = self.folder.path
        reasons: list[str] = []
        if not path.exists():
            reasons.append(MISSING)
            if not self.check_mode:
                path.mkdir(mode=0o700, parents=True)
        elif not path.is_dir():
            raise CertificateError(f"state_dir {path} is not a folder: choose another path or move it away")
        if path.exists() and self.folder.mode() & 0o077:
            reasons.append(OPEN_TO_OTHERS)
            if not self.check_mode:
                path.chmod(0o700)
        self.outcomes.append(Outcome(str(path), tuple(reasons)))
        if path.exists() and in_git_work_tree(path):
            self.warnings.append(
                f"the state folder {path} is inside a git work tree that does not ignore it: its private keys"
                " could be committed. Set plainkube_state_dir to a folder outside, or add it to .gitignore."
            )

    def make_parts(self) -> None:
        """Make the folders inside."""
        for part in ("pki", "secrets"):
            if not self.check_mode:
                self.folder.file(part).mkdir(mode=0o700, exist_ok=True)

    def name_cluster(self, cluster: str) -> None:
        """Note whose state this is. Raises CertificateError when it is another cluster's."""
        reasons: tuple[str, ...] = ()
        if self.folder.exists(CLUSTER_NAME):
            found = self.folder.read(CLUSTER_NAME).decode("utf-8", "replace").strip()
            if found != cluster:
                raise CertificateError(
                    f"state_dir {self.folder.path} belongs to cluster '{found}', wanted that of '{cluster}':"
                    " give each cluster a state folder of its own"
                )
        else:
            reasons = (MISSING,)
            self._write(CLUSTER_NAME, f"{cluster}\n".encode())
        self.outcomes.append(Outcome(CLUSTER_NAME, reasons))

    def make_authorities(self, specs: Sequence[AuthoritySpec]) -> None:
        """Make missing authorities, and check that present ones are what is asked."""
        ordered = in_order(specs)
        issuers = {spec.issuer for spec in ordered}
        for spec in ordered:
            if (
                spec.issuer
                and not self.folder.exists(authority_certificate(spec.issuer))
                and self.folder.exists(authority_certificate(spec.name))
            ):
                raise CertificateError(
                    f"{self.folder.file(authority_certificate(spec.issuer))} is missing while {spec.name},"
                    f" which it signed, is there: {RESTORE}"
                )
        for spec in ordered:
            self._authority(spec, path_length=1 if spec.name in issuers else 0)

    def _authority(self, spec: AuthoritySpec, path_length: int) -> None:
        certificate_name, key_name = authority_certificate(spec.name), authority_key(spec.name)
        pending = certificate_name + PENDING_SUFFIX
        reasons: list[str] = []
        if not self.folder.exists(certificate_name) and self.folder.exists(key_name):
            # The key gets its name before the certificate does. With the certificate still waiting, a run died between
            # the two; without, somebody lost it.
            if not self.folder.exists(pending):
                raise CertificateError(
                    f"{self.folder.file(certificate_name)} is missing while {self.folder.file(key_name)} is there:"
                    f" {RESTORE}"
                )
            reasons.append(INTERRUPTED)
            if self.check_mode:
                self.outcomes.append(Outcome(certificate_name, tuple(reasons)))
                return
            self._rename(pending, certificate_name)

        if self.folder.exists(certificate_name):
            authority = self.folder.authority(spec.name)
            self._check_authority(spec, authority, path_length)
            if self._close(key_name):
                reasons.append(OPEN_TO_OTHERS)
        else:
            reasons.append(MISSING)
            if self.check_mode:
                self.outcomes.append(Outcome(certificate_name, tuple(reasons), moment(self.now + spec.lifetime)))
                return
            issuer = self.authorities[spec.issuer] if spec.issuer else None
            authority = x509.make_authority(spec.name, spec.common_name, spec.lifetime, path_length, issuer, self.now)
            self._write(pending, x509.certificate_pem([authority.certificate]).encode(), 0o644)
            self._write(key_name, x509.key_pem(authority.key))
            self._rename(pending, certificate_name)
        self.authorities[spec.name] = authority
        self.outcomes.append(
            Outcome(
                certificate_name, tuple(reasons), moment(authority.not_after), x509.fingerprint(authority.certificate)
            )
        )

    def _check_authority(self, spec: AuthoritySpec, authority: x509.Authority, path_length: int) -> None:
        """Raise CertificateError when a present authority is not the one that is asked for; warn near its end."""
        path = self.folder.file(authority_certificate(spec.name))
        if authority.common_name != spec.common_name:
            raise CertificateError(
                f"{path} is the authority '{authority.common_name}', wanted '{spec.common_name}':"
                f" give it back its name, or choose another state_dir; {RESTORE}"
            )
        allowed = x509.path_length(authority.certificate)
        if allowed is not None and allowed < path_length:
            raise CertificateError(f"{path} may not sign another authority, and {spec.name} is asked to: {RESTORE}")
        issuer = self.authorities[spec.issuer] if spec.issuer else authority
        if not x509.is_issued_by(authority.certificate, issuer.certificate):
            raise CertificateError(f"{path} is not signed by {spec.issuer or 'itself'}: {RESTORE}")
        left = authority.not_after - self.now
        lifetime = authority.not_after - authority.certificate.not_valid_before_utc
        if left <= timedelta(0):
            self.warnings.append(
                f"authority {spec.name} expired on {moment(authority.not_after)}: nothing trusts it any more."
            )
        elif left < min(WARN_BEFORE, lifetime / 3):
            self.warnings.append(
                f"authority {spec.name} has {left.days} days left, until {moment(authority.not_after)}:"
                " certificates that it signs end with it. Plan its replacement."
            )

    def make_service_account_key(self) -> None:
        """Make the key that signs service-account tokens, and keep its public half beside it."""
        reasons: tuple[str, ...] = ()
        if self.folder.exists(SERVICE_ACCOUNT_KEY):
            try:
                key = x509.load_key(self.folder.read(SERVICE_ACCOUNT_KEY), str(self.folder.file(SERVICE_ACCOUNT_KEY)))
            except CertificateError as error:
                raise CertificateError(f"{error}: {RESTORE_SECRET}") from error
            if self._close(SERVICE_ACCOUNT_KEY):
                reasons = (OPEN_TO_OTHERS,)
        elif self.folder.exists(SERVICE_ACCOUNT_PUBLIC_KEY):
            raise CertificateError(
                f"{self.folder.file(SERVICE_ACCOUNT_KEY)} is missing while its public half is there: {RESTORE_SECRET}"
            )
        else:
            reasons = (MISSING,)
            if self.check_mode:
                self.outcomes.extend(
                    Outcome(name, reasons) for name in (SERVICE_ACCOUNT_KEY, SERVICE_ACCOUNT_PUBLIC_KEY)
                )
                return
            key = rsa.generate_private_key(public_exponent=65537, key_size=SERVICE_ACCOUNT_KEY_BITS)
            self._write(SERVICE_ACCOUNT_KEY, x509.key_pem(key))
        self.outcomes.append(Outcome(SERVICE_ACCOUNT_KEY, reasons))
        public = x509.public_pem(key)
        if not self.folder.exists(SERVICE_ACCOUNT_PUBLIC_KEY):
            self._write(SERVICE_ACCOUNT_PUBLIC_KEY, public, 0o644)
            self.outcomes.append(Outcome(SERVICE_ACCOUNT_PUBLIC_KEY, (MISSING,)))
        elif self.folder.read(SERVICE_ACCOUNT_PUBLIC_KEY) != public:
            raise CertificateError(
                f"{self.folder.file(SERVICE_ACCOUNT_PUBLIC_KEY)} is not the public half of"
                f" {self.folder.file(SERVICE_ACCOUNT_KEY)}: {RESTORE_SECRET}"
            )

    def make_encryption_key(self) -> None:
        """Make the key that Secrets are encrypted with. It is never overwritten: without it the data is lost."""
        reasons: tuple[str, ...] = ()
        if self.folder.exists(ENCRYPTION_KEY):
            try:
                size = len(base64.b64decode(self.folder.read(ENCRYPTION_KEY).strip(), validate=True))
            except binascii.Error:
                size = 0
            if size != ENCRYPTION_KEY_BYTES:
                raise CertificateError(
                    f"{self.folder.file(ENCRYPTION_KEY)} is not {ENCRYPTION_KEY_BYTES} bytes in base64:"
                    f" {RESTORE_SECRET}"
                )
            if self._close(ENCRYPTION_KEY):
                reasons = (OPEN_TO_OTHERS,)
        else:
            reasons = (MISSING,)
            # No line break at the end: the value is put between quotes.
            self._write(ENCRYPTION_KEY, base64.b64encode(secrets.token_bytes(ENCRYPTION_KEY_BYTES)))
        self.outcomes.append(Outcome(ENCRYPTION_KEY, reasons))

    def make_admin_kubeconfig(self, cluster: str, spec: AdminSpec, trusted: str) -> None:
        """Make or renew the admin's kubeconfig. trusted names the root that the API server's certificate leads to."""
        path = Path(spec.path).expanduser()
        leaf = Leaf(
            name=path.name,
            certificate=str(path),
            key=str(path),
            authority=spec.authority,
            common_name=spec.user,
            usages=("client",),
            lifetime=spec.lifetime,
            organizations=tuple(sorted(set(spec.organizations))),
        )
        if trusted not in self.authorities or spec.authority not in self.authorities:
            # Only in check mode: the authorities do not exist yet.
            self.outcomes.append(Outcome(str(path), (MISSING,), moment(self.now + spec.lifetime)))
            return
        authority, root = self.authorities[spec.authority], self.authorities[trusted]
        root_pem = x509.certificate_pem([root.certificate]).encode()
        reasons: list[str] = []
        not_after = None
        if not path.exists():
            reasons.append(MISSING)
        else:
            present = read_kubeconfig(path)
            if present is None:
                reasons.append("damaged")
            else:
                there = credentials(present, authority)
                reasons.extend(differences(leaf, there, self.now).issue)
                not_after = moment(there.issued.not_after) if there.issued else None
                if present.server != spec.server:
                    reasons.append("server differs")
                if present.authority != root_pem:
                    reasons.append("trusted authority differs")
                if (present.cluster, present.user) != (cluster, spec.user):
                    reasons.append("names of context or user differ")
            if path.stat().st_mode & 0o077:
                reasons.append(OPEN_TO_OTHERS)
        if reasons:
            not_after = moment(validity(leaf, CONTROLLER, self.now, authority.not_after)[1])
            if not self.check_mode:
                key = x509.new_key()
                certificate = x509.issue_leaf(leaf, key.public_key(), authority, CONTROLLER, self.now)
                content = kubeconfig.render(
                    kubeconfig.Kubeconfig(
                        cluster=cluster,
                        server=spec.server,
                        user=spec.user,
                        authority=root_pem,
                        certificate=x509.certificate_pem([certificate, *authority.chain]).encode(),
                        key=x509.key_pem(key),
                    )
                )
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                write_atomically(str(path), yaml.safe_dump(content, sort_keys=False).encode(), 0o600)
        self.outcomes.append(Outcome(str(path), tuple(reasons), not_after))

    def _write(self, name: str, content: bytes, mode: int = 0o600) -> None:
        if not self.check_mode:
            write_atomically(str(self.folder.file(name)), content, mode)

    def _rename(self, old: str, new: str) -> None:
        self.folder.file(old).rename(self.folder.file(new))
        sync_folder(str(self.folder.file(new).parent))

    def _close(self, name: str) -> bool:
        """Take a secret file's permissions from all but its owner; say whether that was needed."""
        is_open = bool(self.folder.mode(name) & 0o077)
        if is_open and not self.check_mode:
            self.folder.file(name).chmod(0o600)
        return is_open


def credentials(present: kubeconfig.Kubeconfig, authority: x509.Authority) -> Present:
    """Return certificate and key inside a kubeconfig as what differences() compares."""
    certificates = x509.load_certificates(present.certificate)
    try:
        key = x509.public_digest(x509.load_key(present.key, "the key in the kubeconfig").public_key())
    except CertificateError:
        key = None
    return Present(
        issued=x509.read_issued(certificates[0]) if certificates else None,
        by_authority=bool(certificates)
        and x509.is_issued_by(certificates[0], authority.certificate)
        and certificates[1:] == authority.chain,
        key=key,
    )


def read_kubeconfig(path: Path) -> kubeconfig.Kubeconfig | None:
    """Return a kubeconfig that we made, or None for anything else."""
    try:
        return kubeconfig.parse(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError):
        return None


def in_git_work_tree(path: Path) -> bool:
    """Say whether git would take the folder's files into a commit."""
    try:
        # 0: ignored. 1: not ignored. 128: no work tree.
        status = subprocess.run(
            ["git", "-C", str(path), "check-ignore", "--quiet", str(path / "pki")], capture_output=True, check=False
        ).returncode
    except FileNotFoundError:
        return False
    return status == 1


def specs_from(authorities: Sequence[Mapping[str, Any]]) -> list[AuthoritySpec]:
    """Return authorities as they stand in a task's arguments."""
    return [
        AuthoritySpec(item["name"], item["common_name"], timedelta(days=item["days"]), item.get("issuer"))
        for item in authorities
    ]
