# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a certificate should be, and in which words a present one differs.

Plain data only: plugin_utils/x509.py parses and signs.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError

MISSING = "certificate missing"
DAMAGED = "certificate damaged"
KEY_MISSING = "key missing"
KEY_DAMAGED = "key damaged"
KEY_DOES_NOT_MATCH = "key does not match"
ISSUER_DIFFERS = "issuer differs"
NAMES_DIFFER = "SANs differ"
SUBJECT_DIFFERS = "subject differs"
USAGES_DIFFER = "usages differ"
EXPIRED = "expired"
NEARLY_OVER = "less than a third of the lifetime left"
LONGER_THAN_ASKED = "valid for longer than asked"
INTERRUPTED = "an earlier run was interrupted"
KEY_ATTRIBUTES = "mode or owner of the key differs"
CERTIFICATE_ATTRIBUTES = "mode or owner of the certificate differs"

CERTIFICATE_MODE = 0o644
# A clock that is a little behind the controller's must not refuse a new certificate.
BACKDATE = timedelta(minutes=5)
STAGGER_PERCENT = 10

LEAF_ARGUMENTS: dict[str, dict[str, Any]] = {
    "name": {"type": "str", "required": True},
    "certificate": {"type": "str", "required": True},
    "key": {"type": "str", "required": True, "no_log": False},
    "authority": {"type": "str", "required": True},
    "common_name": {"type": "str", "required": True},
    "organizations": {"type": "list", "elements": "str", "default": []},
    "dns_names": {"type": "list", "elements": "str", "default": []},
    "ip_addresses": {"type": "list", "elements": "str", "default": []},
    "usages": {"type": "list", "elements": "str", "choices": ["server", "client"], "required": True},
    "days": {"type": "int"},
    "minutes": {"type": "int"},
    "owner": {"type": "str", "default": "root"},
    "group": {"type": "str", "default": "root"},
    "mode": {"type": "str", "default": "0600"},
}
DEFAULT_DAYS = 365

_DNS_NAME = re.compile(
    r"(\*\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*", re.ASCII
)
_MODE = re.compile(r"0?[0-7]{3}", re.ASCII)


class CertificateError(PlainkubeError):
    """A certificate, a key or an authority is not as it has to be."""


@dataclass(frozen=True)
class Leaf:
    """What one certificate and its key should be. Names are normalised and sorted, so that equal means the same."""

    name: str
    certificate: str
    key: str
    authority: str
    common_name: str
    usages: tuple[str, ...]
    lifetime: timedelta
    organizations: tuple[str, ...] = ()
    dns_names: tuple[str, ...] = ()
    ip_addresses: tuple[str, ...] = ()
    owner: str = "root"
    group: str = "root"
    mode: int = 0o600


@dataclass(frozen=True)
class Issued:
    """What a certificate says. public_key is the SHA-256 of its SubjectPublicKeyInfo; dates carry a time zone."""

    common_name: str
    organizations: tuple[str, ...]
    dns_names: tuple[str, ...]
    ip_addresses: tuple[str, ...]
    usages: tuple[str, ...]
    issuer: str
    not_before: datetime
    not_after: datetime
    public_key: str


@dataclass(frozen=True)
class Attributes:
    """Mode and owner of a file; owner and group as names and as numbers, since either may be asked for."""

    mode: int
    owners: tuple[str, ...]
    groups: tuple[str, ...]


@dataclass(frozen=True)
class Present:
    """What a host has for one leaf.

    issued is None for a missing or damaged certificate; key is the digest of the key's public half, or None for a
    missing or damaged one; the files' attributes, None for no file, say which of the two it is.
    by_authority: today's authority signed it.
    """

    issued: Issued | None = None
    by_authority: bool = False
    certificate_file: Attributes | None = None
    key: str | None = None
    key_file: Attributes | None = None
    interrupted: bool = False


@dataclass(frozen=True)
class Difference:
    """Why a leaf has to be issued anew, and which attributes to set on files that may stay."""

    issue: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()

    @property
    def reasons(self) -> list[str]:
        return [*self.issue, *self.attributes]


def leaf_faults(item: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with one validated item beyond its types, one sentence each."""
    faults = []
    where = f"certificate {item['name']}"
    for option in ("certificate", "key"):
        if not item[option].startswith("/"):
            faults.append(f"{where}: {option} is '{item[option]}', wanted an absolute path on the host")
    if not item["common_name"]:
        faults.append(f"{where}: common_name is empty")
    if not item["usages"]:
        faults.append(f"{where}: usages is empty, wanted server, client or both")
    if item.get("days") is not None and item.get("minutes") is not None:
        faults.append(f"{where}: days and minutes are both given, wanted one of them")
    for option in ("days", "minutes"):
        if item.get(option) is not None and item[option] < 1:
            faults.append(f"{where}: {option} is {item[option]}, wanted 1 or more")
    if not _MODE.fullmatch(item["mode"]):
        faults.append(f"{where}: mode is '{item['mode']}', wanted three octal digits in quotes such as \"0600\"")
    for address in item["ip_addresses"]:
        try:
            ipaddress.ip_address(address)
        except ValueError:
            faults.append(f"{where}: ip_addresses has '{address}', which is not an IP address")
    faults.extend(
        f"{where}: dns_names has '{name}', which is not a DNS name"
        for name in item["dns_names"]
        if not _DNS_NAME.fullmatch(name.lower()) or _is_address(name)
    )
    if "server" in item["usages"] and not item["dns_names"] and not item["ip_addresses"]:
        faults.append(
            f"{where}: a server's certificate needs dns_names or ip_addresses, since clients ignore its common name"
        )
    return faults


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def leaves(items: Sequence[Mapping[str, Any]]) -> list[Leaf]:
    """Return the leaves that validated items ask for. Raises CertificateError with all faults of all items at once."""
    faults = [fault for item in items for fault in leaf_faults(item)]
    for option in ("name", "certificate", "key"):
        values = [item[option] for item in items]
        faults.extend(
            f"{option} {value} is asked for more than once"
            for value in sorted({v for v in values if values.count(v) > 1})
        )
    paths = {item["certificate"] for item in items} & {item["key"] for item in items}
    faults.extend(f"{path} is asked for as a certificate and as a key" for path in sorted(paths))
    if faults:
        raise CertificateError("; ".join(faults))
    return [_leaf(item) for item in items]


def _leaf(item: Mapping[str, Any]) -> Leaf:
    minutes, days = item.get("minutes"), item.get("days")
    return Leaf(
        name=item["name"],
        certificate=item["certificate"],
        key=item["key"],
        authority=item["authority"],
        common_name=item["common_name"],
        organizations=tuple(sorted(set(item["organizations"]))),
        dns_names=tuple(sorted({name.lower() for name in item["dns_names"]})),
        ip_addresses=normal_addresses(item["ip_addresses"]),
        usages=tuple(sorted(set(item["usages"]))),
        lifetime=timedelta(minutes=minutes) if minutes else timedelta(days=days or DEFAULT_DAYS),
        owner=item["owner"],
        group=item["group"],
        mode=int(item["mode"], 8),
    )


def normal_addresses(addresses: Sequence[str]) -> tuple[str, ...]:
    """Return IP addresses in their shortest form, sorted, each once."""
    return tuple(sorted({str(ipaddress.ip_address(address)) for address in addresses}))


def staggered_lifetime(asked: timedelta, name: str, host: str) -> timedelta:
    """Return asked less 0 to 10 percent, always the same for one certificate of one host.

    So no single date stops all hosts.
    """
    digest = hashlib.sha256(f"{host}/{name}".encode()).digest()
    share = int.from_bytes(digest[:4], "big") / 2**32
    return timedelta(seconds=int(asked.total_seconds() * (1 - share * STAGGER_PERCENT / 100)))


def validity(leaf: Leaf, host: str, now: datetime, authority_not_after: datetime) -> tuple[datetime, datetime]:
    """Return not_before and not_after of a leaf issued now: never longer than asked, and never beyond its authority."""
    now = now.replace(microsecond=0)
    # A leaf of minutes may not lose half its life to backdating.
    not_before = now - min(BACKDATE, leaf.lifetime / 10)
    return not_before, min(not_before + staggered_lifetime(leaf.lifetime, leaf.name, host), authority_not_after)


def time_reason(not_before: datetime, not_after: datetime, now: datetime) -> str | None:
    """Return why a certificate's time is over or nearly so, or None."""
    if now >= not_after:
        return EXPIRED
    if now >= not_after - (not_after - not_before) / 3:
        return NEARLY_OVER
    return None


def differences(leaf: Leaf, present: Present, now: datetime) -> Difference:
    """Compare what should be with what is."""
    attributes = []
    if present.key_file and not _has(present.key_file, leaf, leaf.mode):
        attributes.append(KEY_ATTRIBUTES)
    if present.certificate_file and not _has(present.certificate_file, leaf, CERTIFICATE_MODE):
        attributes.append(CERTIFICATE_ATTRIBUTES)
    return Difference(tuple(_reasons_to_issue(leaf, present, now)), tuple(attributes))


def signed_by_a_namesake(difference: Difference, present: Present, authority: str) -> bool:
    """Say whether a sound certificate names this authority and yet was not signed with its key.

    authority: the common name of the one that the controller has now. An authority of another name is a change that
    somebody asked for; one of the same name means that the controller has lost the old one.
    """
    return ISSUER_DIFFERS in difference.issue and present.issued is not None and present.issued.issuer == authority


def _has(file: Attributes, leaf: Leaf, mode: int) -> bool:
    return file.mode == mode and leaf.owner in file.owners and leaf.group in file.groups


def _reasons_to_issue(leaf: Leaf, present: Present, now: datetime) -> list[str]:
    reasons = []
    issued = present.issued
    if issued is None:
        reasons.append(DAMAGED if present.certificate_file else MISSING)
    if present.key is None:
        reasons.append(KEY_DAMAGED if present.key_file else KEY_MISSING)
    if present.interrupted:
        reasons.append(INTERRUPTED)
    if issued is None:
        return reasons
    if present.key is not None and present.key != issued.public_key:
        reasons.append(KEY_DOES_NOT_MATCH)
    if not present.by_authority:
        reasons.append(ISSUER_DIFFERS)
    if (issued.common_name, issued.organizations) != (leaf.common_name, leaf.organizations):
        reasons.append(SUBJECT_DIFFERS)
    if (issued.dns_names, issued.ip_addresses) != (leaf.dns_names, leaf.ip_addresses):
        reasons.append(NAMES_DIFFER)
    if issued.usages != leaf.usages:
        reasons.append(USAGES_DIFFER)
    if issued.not_after - issued.not_before > leaf.lifetime:
        reasons.append(LONGER_THAN_ASKED)
    over = time_reason(issued.not_before, issued.not_after, now)
    if over:
        reasons.append(over)
    return reasons


def moment(when: datetime) -> str:
    """Return a date and time (with zone UTC) as text for people and programs."""
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


def describe(
    subject: tuple[str, Sequence[str]],
    dns_names: Sequence[str],
    ip_addresses: Sequence[str],
    usages: Sequence[str],
    issuer: str,
    not_after: str,
) -> list[str]:
    """Return a certificate as lines of a diff."""
    common_name, organizations = subject
    return [
        "subject: " + ", ".join([f"CN={common_name}", *(f"O={organization}" for organization in organizations)]),
        "dns_names: " + ", ".join(dns_names),
        "ip_addresses: " + ", ".join(ip_addresses),
        "usages: " + ", ".join(usages),
        "issuer: " + issuer,
        "not_after: " + not_after,
    ]


def describe_present(present: Present) -> list[str]:
    """Return the lines of a diff for what a host has; no line for what is missing."""
    lines = []
    issued = present.issued
    if issued:
        lines = describe(
            (issued.common_name, issued.organizations),
            issued.dns_names,
            issued.ip_addresses,
            issued.usages,
            issued.issuer,
            moment(issued.not_after),
        )
    elif present.certificate_file:
        lines = ["(not a certificate)"]
    for what, file in (("certificate", present.certificate_file), ("key", present.key_file)):
        if file:
            lines.append(f"{what}: {file.mode:04o} {file.owners[0]}:{file.groups[0]}")
    return lines


def describe_leaf(leaf: Leaf, issuer: str, not_after: str) -> list[str]:
    """Return the lines of a diff for what a host will have."""
    lines = describe(
        (leaf.common_name, leaf.organizations), leaf.dns_names, leaf.ip_addresses, leaf.usages, issuer, not_after
    )
    lines.append(f"certificate: {CERTIFICATE_MODE:04o} {leaf.owner}:{leaf.group}")
    lines.append(f"key: {leaf.mode:04o} {leaf.owner}:{leaf.group}")
    return lines
