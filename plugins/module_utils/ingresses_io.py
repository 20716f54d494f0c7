# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reading a cluster's Ingresses and all that they name: one paged list for each kind."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from typing import Any

from ansible_collections.plainkube.cluster.plugins.module_utils import ingresses
from ansible_collections.plainkube.cluster.plugins.module_utils.audits import AuditError
from ansible_collections.plainkube.cluster.plugins.module_utils.kubernetes_api import RESOURCES, Api, Forbidden

try:
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm

    HAS_CRYPTOGRAPHY = True
except ImportError:
    HAS_CRYPTOGRAPHY = False

Object = dict[str, Any]

# How much of secrets is read.
NOTHING, NAMES, CERTIFICATES = "nothing", "names", "certificates"
SECRETS = (NOTHING, NAMES, CERTIFICATES)
CONTROLLER_KINDS = ("Deployment", "DaemonSet")


def read_cluster(api: Api, secrets: str) -> ingresses.Found:
    """Return what the checks need of a cluster. Raises AuditError with every right that is missing, and ApiErrors."""
    found = ingresses.Found()
    missing: list[str] = []

    def each(kind: str, keep: Callable[[Object], None]) -> None:
        try:
            for thing in api.list(RESOURCES[kind].path()):
                keep(thing)
        except Forbidden as error:
            missing.append(str(error))

    def keep_class(thing: Object) -> None:
        found.classes[thing["metadata"]["name"]] = thing

    def keep_service(thing: Object) -> None:
        found.services[key_of(thing)] = ingresses.service_kept(thing)

    each("Ingress", found.ingresses.append)
    each("IngressClass", keep_class)
    each("Service", keep_service)
    for kind in CONTROLLER_KINDS:

        def keep_controller(thing: Object, kind: str = kind) -> None:
            controller = ingresses.controller_in(kind, thing)
            if controller:
                found.controllers.append(controller)

        each(kind, keep_controller)
    try:
        if secrets != NOTHING:
            found.secrets = {key_of(thing) for thing in api.list_metadata(RESOURCES["Secret"].path())}
        if secrets == CERTIFICATES:
            found.certificates = read_certificates(api, found)
    except Forbidden as error:
        missing.append(f"{error}, or leave secrets out (secrets: {NOTHING})")
    if missing:
        raise AuditError("; ".join(missing) + "; docs/ingress-migration.md has a ClusterRole with all that is read")
    return found


def key_of(thing: Mapping[str, Any]) -> ingresses.Key:
    """Return namespace and name of an object."""
    return thing["metadata"]["namespace"], thing["metadata"]["name"]


def read_certificates(api: Api, found: ingresses.Found) -> dict[ingresses.Key, ingresses.Certificate]:
    """Return the certificates that Ingresses name. Of a secret nothing else is kept. Raises ApiErrors."""
    named = {
        key
        for thing in found.ingresses
        for _words, key in ingresses.secrets_named(ingresses.ingress_of(thing, found.classes))
    } & (found.secrets or set())
    if not named:
        return {}
    path = RESOURCES["Secret"].path()
    held = {
        key_of(thing): certificate_in(thing.get("data") or {})
        for thing in api.list(path, fieldSelector="type=kubernetes.io/tls")
        if key_of(thing) in named
    }
    # Controllers take a secret of any type that has the keys.
    for key in sorted(named - set(held)):
        thing = api.get(RESOURCES["Secret"].path(*key))
        if thing is not None:
            held[key] = certificate_in(thing.get("data") or {})
    return held


def certificate_in(data: Mapping[str, str]) -> ingresses.Certificate:
    """Return what a TLS secret's data says of its certificate, without any of its content."""
    missing = [name for name in ("tls.crt", "tls.key") if not data.get(name)]
    if missing:
        return ingresses.Certificate(fault=f"it has no {' and no '.join(missing)}")
    try:
        certificate = x509.load_pem_x509_certificate(base64.b64decode(data["tls.crt"], validate=True))
        names = tuple(str(name) for name in _names_of(certificate))
        return ingresses.Certificate(names, certificate.not_valid_after_utc)
    except (ValueError, TypeError, binascii.Error, UnsupportedAlgorithm, x509.DuplicateExtension):
        return ingresses.Certificate(fault="tls.crt holds no certificate that can be read")


def _names_of(certificate: x509.Certificate) -> list[Any]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    names = extension.value
    return [*names.get_values_for_type(x509.DNSName), *names.get_values_for_type(x509.IPAddress)]
