# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Certificates for the edge: one file for haproxy of each pair, and none that nobody uses any more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.plainkube.cluster.plugins.filter.edge_certificates import edge_certificates

OLD, NEW = "/etc/haproxy/certificates/old-1.pem", "/etc/haproxy/certificates/web-1.pem"


def service(folder: Path) -> dict[str, Any]:
    pair = {"certificate": str(folder / "site.pem"), "key": str(folder / "site.key"), "path": NEW}
    return {"name": "web", "certificates": [pair]}


def test_a_pair_is_one_secret_file_and_others_go(tmp_path: Path) -> None:
    (tmp_path / "site.pem").write_bytes(b"chain")
    (tmp_path / "site.key").write_bytes(b"key\n")
    wanted, old = edge_certificates([service(tmp_path)], [OLD, NEW])
    assert wanted == {"path": NEW, "content": "chain\nkey\n", "mode": "0600", "secret": True}
    assert old == {"path": OLD, "state": "absent"}


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(AnsibleFilterError, match=r"found no readable file .*/site\.pem .No such file"):
        edge_certificates([service(tmp_path)])
