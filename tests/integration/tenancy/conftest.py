# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A real API server for the tests of modules that need nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
from api_servers import ApiServer, FaultProxy

COUNTER = itertools.count(1)


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """A kube-apiserver with etcd for the whole session. Tests share it: take namespaces of your own."""
    server = ApiServer(tmp_path_factory.mktemp("api"))
    yield server
    server.stop()


@pytest.fixture
def clean_server(api_server: ApiServer) -> ApiServer:
    """The same server without anything that tests left there."""
    api_server.clean()
    return api_server


@pytest.fixture
def make_namespaces(api_server: ApiServer) -> Callable[..., list[str]]:
    """Make fresh namespaces: make_namespaces(2, labels={...}) returns their names."""

    def make(count: int = 1, labels: dict[str, str] | None = None) -> list[str]:
        return api_server.make_namespaces([f"test-{next(COUNTER)}" for _ in range(count)], labels)

    return make


@pytest.fixture
def namespace(make_namespaces: Callable[..., list[str]]) -> str:
    """One fresh namespace."""
    return make_namespaces()[0]


@pytest.fixture
def fault_proxy(api_server: ApiServer) -> Iterator[FaultProxy]:
    """A way to the API server that answers badly on demand; its kubeconfig is the way in."""
    proxy = FaultProxy(api_server)
    yield proxy
    proxy.close()
