# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether a certificate and its key, as files that a person keeps, can be shown to clients; for the controller."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from ansible_collections.plainkube.cluster.plugins.module_utils.certificates import moment
from ansible_collections.plainkube.cluster.plugins.module_utils.contract import INVENTORY, Fault
from ansible_collections.plainkube.cluster.plugins.plugin_utils.x509 import (
    UNREADABLE,
    common_name,
    load_certificates,
    public_digest,
)
from cryptography.hazmat.primitives import serialization

# What was found, what was wanted, what to do.
Words = tuple[str, str, str]


def instance_faults(instances: Any, now: datetime) -> list[Fault]:
    """Return what is wrong with the default certificates of the ingress controller's instances.

    instances: as somebody wrote them. What is no list of instances with two paths is the contract's business.
    """
    return [
        Fault(INVENTORY, f"plainkube_ingress_instances[{number}].{key}", *words)
        for number, instance in enumerate(instances if isinstance(instances, list) else [])
        if isinstance(instance, Mapping)
        and all(str(instance.get(name) or "").startswith("/") for name in ("certificate", "certificate_key"))
        for key, words in pair_faults(str(instance["certificate"]), str(instance["certificate_key"]), now)
    ]


def edge_faults(hosts: Mapping[str, Mapping[str, Any]], now: datetime) -> list[Fault]:
    """Return what is wrong with the certificates of the edge's services.

    hosts: the variables of the hosts of the edge, as somebody wrote them. Hosts that share a certificate share its
    fault; what all of them have is the inventory's.
    """
    sharing: dict[tuple[str, str, str], list[str]] = {}
    for host, variables in hosts.items():
        for path, pair in _edge_pairs(variables.get("plainkube_edge_services")):
            sharing.setdefault((path, str(pair["certificate"]), str(pair["key"])), []).append(host)
    return [
        Fault(
            INVENTORY if 1 < len(names) == len(hosts) else ", ".join(sorted(names)),
            f"{path}.{'key' if key == 'certificate_key' else key}",
            *words,
        )
        for (path, certificate_path, key_path), names in sharing.items()
        for key, words in pair_faults(certificate_path, key_path, now)
    ]


def _edge_pairs(services: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each pair of files with its place; what is no such list is the contract's business."""
    for number, service in enumerate(services if isinstance(services, list) else []):
        pairs = service.get("certificates") if isinstance(service, Mapping) else None
        for place, pair in enumerate(pairs if isinstance(pairs, list) else []):
            if isinstance(pair, Mapping) and pair.get("certificate") and pair.get("key"):
                yield f"plainkube_edge_services[{number}].certificates[{place}]", pair


def pair_faults(certificate_path: str, key_path: str, now: datetime) -> Iterator[tuple[str, Words]]:
    """Yield what is wrong with a certificate (its chain behind it) and its key, each with whose fault it is."""
    try:
        chain = load_certificates(Path(certificate_path).expanduser().read_bytes())
    except OSError as error:
        yield "certificate", (f"{certificate_path}: {error.strerror}", "a file that can be read", "Correct the path.")
        chain = None
    if chain == []:
        wanted = "PEM that begins with the server's certificate"
        remedy = "Begin it with -----BEGIN CERTIFICATE-----; openssl x509 -inform der changes DER into PEM."
        yield "certificate", (f"no certificate in {certificate_path}", wanted, remedy)
    key = None
    try:
        key = serialization.load_pem_private_key(Path(key_path).expanduser().read_bytes(), password=None)
    except OSError as error:
        yield "certificate_key", (f"{key_path}: {error.strerror}", "a file that can be read", "Correct the path.")
    except UNREADABLE as error:
        locked = isinstance(error, TypeError)
        found = f"a key with a password in {key_path}" if locked else f"no private key in {key_path}"
        remedy = "Take the password off: openssl pkey -in OLD -out NEW." if locked else "Name the file of the key."
        yield "certificate_key", (found, "a private key as PEM without a password", remedy)
    if not chain:
        return
    leaf = chain[0]
    name = common_name(leaf.subject) or f"serial number {leaf.serial_number:x}"
    if key and public_digest(leaf.public_key()) != public_digest(key.public_key()):  # type: ignore[arg-type]
        found = f"{key_path}, which is not the key of {name} in {certificate_path}"
        remedy = "Name the key that the certificate was made for; in a file of several the server's must come first."
        yield "certificate_key", (found, "the key of the certificate", remedy)
    if leaf.not_valid_after_utc <= now:
        found = f"{name} in {certificate_path}, which expired on {moment(leaf.not_valid_after_utc)}"
        yield "certificate", (found, "a certificate that is valid", "Renew it.")
    if leaf.not_valid_before_utc > now:
        found = f"{name} in {certificate_path}, which is valid from {moment(leaf.not_valid_before_utc)}"
        yield "certificate", (found, "a certificate that is valid", "See whether the controller's clock is right.")
