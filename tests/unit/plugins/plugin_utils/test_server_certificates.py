# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A wrong certificate is refused in words; a right one with its chain is not."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from ansible_collections.plainkube.cluster.plugins.plugin_utils import x509
from ansible_collections.plainkube.cluster.plugins.plugin_utils.server_certificates import edge_faults, instance_faults
from cryptography.hazmat.primitives import serialization

NOW = datetime.now(timezone.utc)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Return the paths of good files and bad ones."""
    made = x509.make_authority("site", "shop.example.org", timedelta(days=30), 0, None, NOW)
    other = x509.make_authority("site", "other.example.org", timedelta(days=30), 0, None, NOW)
    locked = made.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"word")
    )
    chain = x509.certificate_pem([made.certificate, other.certificate]).encode()
    contents = {
        "certificate": chain,
        "key": x509.key_pem(made.key),
        "other": x509.key_pem(other.key),
        "locked": locked,
        "der": made.certificate.public_bytes(serialization.Encoding.DER),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return {name: str(tmp_path / name) for name in [*contents, "missing"]}


def said(files: dict[str, str], certificate: str, key: str, now: datetime = NOW) -> list[str]:
    instances = [{"name": "none"}, {"certificate": files[certificate], "certificate_key": files[key]}]
    return [str(fault) for fault in instance_faults(instances, now)]


def test_a_certificate_with_its_chain_and_key_is_sound(files: dict[str, str]) -> None:
    assert said(files, "certificate", "key") == []


@pytest.mark.parametrize(
    ("certificate", "key", "part"),
    [
        ("certificate", "other", "which is not the key of shop.example.org"),
        ("certificate", "certificate", "no private key in"),
        ("certificate", "locked", "a key with a password"),
        ("certificate", "missing", "missing: No such file"),
        ("missing", "key", "missing: No such file"),
        ("der", "key", "no certificate in"),
        ("key", "key", "no certificate in"),
    ],
)
def test_what_is_wrong_with_the_files_is_said_once(
    files: dict[str, str], certificate: str, key: str, part: str
) -> None:
    [fault] = said(files, certificate, key)
    assert part in fault
    assert fault.startswith("inventory: plainkube_ingress_instances[1].certificate")


@pytest.mark.parametrize(("days", "part"), [(31, "which expired on"), (-1, "which is valid from")])
def test_a_certificate_has_its_time(files: dict[str, str], days: int, part: str) -> None:
    [fault] = said(files, "certificate", "key", NOW + timedelta(days=days))
    assert part in fault


def test_the_edge_s_certificates_are_judged_alike_and_once_for_hosts_that_share_them(files: dict[str, str]) -> None:
    def services(certificate: str, key: str) -> dict[str, object]:
        pairs = [{"certificate": files[certificate], "key": files[key]}]
        return {"plainkube_edge_services": [{"name": "plain"}, {"name": "web", "certificates": pairs}]}

    shared, own = services("certificate", "other"), services("certificate", "missing")
    hosts = {"edge-2": shared, "edge-1": shared, "edge-3": own, "edge-4": services("certificate", "key"), "edge-5": {}}
    faults = [str(fault) for fault in edge_faults(hosts, NOW)]
    place = "plainkube_edge_services[1].certificates[0]"
    assert faults[0].startswith(f"edge-1, edge-2: {place}.key: found {files['other']}, which is not the key of shop")
    assert faults[1].startswith(f"edge-3: {place}.key: found {files['missing']}: No such file")
    assert len(faults) == 2
    [late] = edge_faults({"edge-4": hosts["edge-4"]}, NOW + timedelta(days=31))
    assert "which expired on" in str(late)


@pytest.mark.parametrize("services", [None, "web", [None], [{"certificates": "x"}], [{"certificates": ["x", {}]}]])
def test_services_of_a_wrong_form_are_left_to_the_contract(services: object) -> None:
    assert edge_faults({"edge-1": {"plainkube_edge_services": services}}, NOW) == []
