# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Certificates for the edge: those that cannot be used are named before anything is changed."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from ansible_collections.plainkube.cluster.plugins.filter.edge_certificates import edge_certificates
from ansible_collections.plainkube.cluster.plugins.plugin_utils import x509 as ours
from ansible_collections.plainkube.cluster.plugins.plugin_utils.edge_certificates import read_pair
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NOW = datetime(2026, 11, 21, 12, tzinfo=timezone.utc)
DAY = timedelta(days=1)
KEY, OTHER_KEY = ours.new_key(), ours.new_key()


def certificate(begin: datetime, end: datetime) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "www.example.org")])
    builder = x509.CertificateBuilder(name, name, KEY.public_key(), x509.random_serial_number(), begin, end)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def locked(key: ec.EllipticCurvePrivateKey) -> bytes:
    secret = serialization.BestAvailableEncryption(b"hush")
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secret)


VALID = certificate(NOW - DAY, NOW + DAY)


@pytest.mark.parametrize(
    ("shown", "key", "words"),
    [
        (VALID, ours.key_pem(KEY), ""),
        (VALID, ours.key_pem(OTHER_KEY), "of another certificate"),
        (certificate(NOW - 2 * DAY, NOW), ours.key_pem(KEY), "expired at 2026-11-21 12:00 UTC"),
        (certificate(NOW + DAY, NOW + 2 * DAY), ours.key_pem(KEY), "valid from 2026-11-22 12:00 UTC on"),
        (b"nothing\n", ours.key_pem(KEY), "found no certificate in"),
        (VALID, locked(KEY), "is not a private key, or has a passphrase"),
        (VALID, b"nothing\n", "is not a private key"),
    ],
)
def test_a_certificate_that_cannot_be_used_is_said(shown: bytes, key: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "site.pem").write_bytes(shown)
    (tmp_path / "site.key").write_bytes(key)
    text, faults = read_pair(str(tmp_path / "site.pem"), str(tmp_path / "site.key"), NOW)
    assert len(faults) == bool(words)
    assert words in "".join(faults)
    assert "PRIVATE KEY" not in "".join(faults)
    if not words:
        assert text.encode() == shown + key


def test_keys_that_nobody_uses_any_more_go() -> None:
    there = ["/etc/haproxy/certificates/old-1.pem"]
    assert edge_certificates([], there)["files"] == [{"path": there[0], "state": "absent"}]


def test_files_that_are_missing_are_named_all_at_once(tmp_path: Path) -> None:
    service = {
        "name": "web",
        "certificates": [
            {
                "certificate": str(tmp_path / "a"),
                "key": str(tmp_path / "b"),
                "path": "/etc/haproxy/certificates/web-1.pem",
            }
        ],
    }
    answer = edge_certificates([service])
    assert len(answer["faults"]) == 2
    assert all(words.startswith("service web: found no readable file") for words in answer["faults"])
    (item,) = answer["files"]
    assert (item["mode"], item["secret"]) == ("0600", True)
