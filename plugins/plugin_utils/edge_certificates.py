# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Certificates that somebody else made, and that the edge is to show to its clients. For the controller alone."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from ansible_collections.plainkube.cluster.plugins.module_utils.certificates import CertificateError
from ansible_collections.plainkube.cluster.plugins.plugin_utils import x509


def read_pair(certificate_path: str, key_path: str, now: datetime) -> tuple[str, list[str]]:
    """Return certificate, chain and key as one text for haproxy, and what keeps them from being used."""
    texts, faults = [], []
    for path in (certificate_path, key_path):
        try:
            text = Path(path).expanduser().read_bytes()
            texts.append(text if text.endswith(b"\n") else text + b"\n")
        except OSError as error:
            faults.append(
                f"found no readable file {path} ({error.strerror}); wanted a certificate or key on the controller. "
                "Correct the path."
            )
    if faults:
        return "", faults
    chain = x509.load_certificates(texts[0])
    if not chain:
        return "", [f"found no certificate in {certificate_path}; wanted PEM. Convert it, or name another file."]
    try:
        key = x509.load_key(texts[1], key_path)
    except CertificateError as error:
        return "", [
            f"found that {error}, or has a passphrase; wanted one in PEM without. Convert it with openssl pkey."
        ]
    leaf = chain[0]
    if x509.public_digest(leaf.public_key()) != x509.public_digest(key.public_key()):
        faults.append(
            f"found the key {key_path} of another certificate than {certificate_path}; wanted its own, and the "
            "server's certificate first in its file. Name the files that belong together."
        )
    if leaf.not_valid_after_utc <= now:
        faults.append(
            f"found that {certificate_path} expired at {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; "
            "wanted a valid one. Renew it."
        )
    if leaf.not_valid_before_utc > now:
        faults.append(
            f"found that {certificate_path} is valid from {leaf.not_valid_before_utc:%Y-%m-%d %H:%M} UTC on; "
            "wanted one that is valid now. Wait for that day, or set the controller's clock."
        )
    return b"".join(texts).decode("utf-8", "replace"), faults
