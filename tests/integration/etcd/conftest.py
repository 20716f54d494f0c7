# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the tests with real etcd servers share; etcd_servers.py and run_module.py have the rest."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from etcd_servers import V3_7, EtcdServers, Pki, cluster


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """Certificates for servers and clients on loopback."""
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServers]:
    """Three running members of the newest version without TLS, shared by the tests of a file that only read."""
    with cluster(V3_7, folder=tmp_path_factory.mktemp("three")) as servers:
        yield servers
