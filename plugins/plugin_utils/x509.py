# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reading and signing certificates. For the controller alone: hosts have no cryptography package."""

from __future__ import annotations

import hashlib
import ipaddress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

from ansible_collections.plainkube.cluster.plugins.module_utils.certificates import (
    BACKDATE,
    CertificateError,
    Issued,
    Leaf,
    moment,
    validity,
)
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

USAGES = {"server": ExtendedKeyUsageOID.SERVER_AUTH, "client": ExtendedKeyUsageOID.CLIENT_AUTH}
# Whatever a damaged or foreign file makes the parsers raise.
UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion, x509.DuplicateExtension)

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
Extension = TypeVar("Extension", bound=x509.ExtensionType)


@dataclass(frozen=True)
class Authority:
    """A certificate authority with its key."""

    name: str
    certificate: x509.Certificate
    key: PrivateKey

    @property
    def is_root(self) -> bool:
        return self.certificate.subject == self.certificate.issuer

    @property
    def chain(self) -> list[x509.Certificate]:
        """What a leaf's file has to carry beside the leaf, for clients that trust only the root."""
        return [] if self.is_root else [self.certificate]

    @property
    def common_name(self) -> str:
        return common_name(self.certificate.subject)

    @property
    def not_after(self) -> datetime:
        return self.certificate.not_valid_after_utc


def new_key() -> ec.EllipticCurvePrivateKey:
    """Return a new P-256 key: 128 bits of strength, and the curve that TLS libraries verify fastest."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: PrivateKey) -> bytes:
    """Return a private key as PEM (PKCS#8, not encrypted)."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def public_pem(key: PrivateKey) -> bytes:
    """Return the public half of a private key as PEM."""
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def certificate_pem(certificates: list[x509.Certificate]) -> str:
    """Return certificates as one PEM text."""
    return "".join(certificate.public_bytes(serialization.Encoding.PEM).decode("ascii") for certificate in certificates)


def public_digest(key: CertificatePublicKeyTypes) -> str:
    """Return the SHA-256 of a public key's SubjectPublicKeyInfo."""
    return hashlib.sha256(
        key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    ).hexdigest()


def fingerprint(certificate: x509.Certificate) -> str:
    """Return the SHA-256 of a certificate."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def load_key(pem: bytes, where: str) -> PrivateKey:
    """Return the private key in a PEM. Raises CertificateError that names where it came from."""
    try:
        # The primality tests of an RSA key would take half a second of each run, for a file that only we write.
        key = serialization.load_pem_private_key(pem, password=None, unsafe_skip_rsa_key_validation=True)
    except UNREADABLE as error:
        raise CertificateError(f"{where} is not a private key") from error
    if not isinstance(key, (ec.EllipticCurvePrivateKey, rsa.RSAPrivateKey)):
        raise CertificateError(f"{where} is a key of an unexpected kind, wanted an EC or RSA key")
    return key


def load_public_key(pem: bytes, where: str) -> PublicKey:
    """Return the public key in a PEM. Raises CertificateError that names where it came from."""
    try:
        key = serialization.load_pem_public_key(pem)
    except UNREADABLE as error:
        raise CertificateError(f"{where} is not a public key") from error
    if not isinstance(key, (ec.EllipticCurvePublicKey, rsa.RSAPublicKey)):
        raise CertificateError(f"{where} is a key of an unexpected kind, wanted an EC or RSA key")
    return key


def load_certificates(pem: bytes) -> list[x509.Certificate]:
    """Return the certificates in a PEM, or an empty list when it is damaged."""
    try:
        return x509.load_pem_x509_certificates(pem)
    except UNREADABLE:
        return []


def common_name(name: x509.Name) -> str:
    """Return the first common name, or an empty text."""
    return next((str(attribute.value) for attribute in name.get_attributes_for_oid(NameOID.COMMON_NAME)), "")


def _extension(certificate: x509.Certificate, kind: type[Extension]) -> Extension | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def read_issued(certificate: x509.Certificate) -> Issued | None:
    """Return what a leaf says, or None when it cannot be understood."""
    try:
        names = _extension(certificate, x509.SubjectAlternativeName)
        usages = _extension(certificate, x509.ExtendedKeyUsage)
        known = {oid: name for name, oid in USAGES.items()}
        return Issued(
            common_name=common_name(certificate.subject),
            organizations=tuple(
                sorted(
                    str(part.value) for part in certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
                )
            ),
            dns_names=tuple(sorted(names.get_values_for_type(x509.DNSName))) if names else (),
            ip_addresses=tuple(sorted(map(str, names.get_values_for_type(x509.IPAddress)))) if names else (),
            usages=tuple(sorted(known.get(usage, usage.dotted_string) for usage in usages)) if usages else (),
            issuer=common_name(certificate.issuer),
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
            public_key=public_digest(certificate.public_key()),
        )
    except UNREADABLE:
        return None


def is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Say whether the issuer's key signed the certificate under the issuer's name."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (*UNREADABLE, InvalidSignature):
        return False
    return True


def _name(common: str, organizations: tuple[str, ...] = ()) -> x509.Name:
    return x509.Name(
        [
            *(x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization) for organization in organizations),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )


def _key_usage(authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _sign(
    builder: x509.CertificateBuilder, public_key: PublicKey, issuer_key: PrivateKey, issuer: x509.Certificate | None
) -> x509.Certificate:
    if issuer is None:
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    else:
        identifier = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
            issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        )
    return (
        builder.public_key(public_key)
        .serial_number(x509.random_serial_number())
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(identifier, critical=False)
        .sign(issuer_key, hashes.SHA256())
    )


def issue_leaf(leaf: Leaf, public_key: PublicKey, authority: Authority, host: str, now: datetime) -> x509.Certificate:
    """Return a certificate for the leaf of a host. Raises CertificateError when the authority's time is over."""
    if now >= authority.not_after:
        raise CertificateError(
            f"authority {authority.name} expired on {moment(authority.not_after)} and can sign nothing:"
            " replace it first"
        )
    not_before, not_after = validity(leaf, host, now, authority.not_after)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(leaf.common_name, leaf.organizations))
        .issuer_name(authority.certificate.subject)
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([USAGES[usage] for usage in leaf.usages]), critical=False)
    )
    names: list[x509.GeneralName] = [x509.DNSName(name) for name in leaf.dns_names]
    names.extend(x509.IPAddress(ipaddress.ip_address(address)) for address in leaf.ip_addresses)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return _sign(builder, public_key, authority.key, authority.certificate)


def make_authority(
    name: str, common: str, lifetime: timedelta, path_length: int, issuer: Authority | None, now: datetime
) -> Authority:
    """Return a new authority with a new key, signed by the issuer or by itself, and never valid beyond its issuer."""
    key = new_key()
    not_before = now.replace(microsecond=0) - BACKDATE
    not_after = not_before + lifetime
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(common))
        .issuer_name(issuer.certificate.subject if issuer else _name(common))
        .not_valid_before(not_before)
        .not_valid_after(min(not_after, issuer.not_after) if issuer else not_after)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
    )
    issuer_key = issuer.key if issuer else key
    return Authority(name, _sign(builder, key.public_key(), issuer_key, issuer.certificate if issuer else None), key)


def path_length(certificate: x509.Certificate) -> int | None:
    """Return how many authorities may stand below this one (None: any number). Raises CertificateError for a leaf."""
    constraints = _extension(certificate, x509.BasicConstraints)
    if not isinstance(constraints, x509.BasicConstraints) or not constraints.ca:
        raise CertificateError(f"the certificate of {common_name(certificate.subject)} is not an authority's")
    return constraints.path_length
