# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What tests of a running cluster share: its hosts over SSH, what the inventory describes, and its API.

LAB_INVENTORY names the inventory. Tests with the argument `host` run once per host of the group that their mark names.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from kubernetes import client, config
from lab_cluster import Host, connect, description, members
from web_requests import NAME


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test with `host` once per host of its group; `all` are the cluster's own."""
    if "host" in metafunc.fixturenames:
        mark = metafunc.definition.get_closest_marker("on")
        group = mark.args[0] if mark else "all"
        metafunc.parametrize("name", members(group))


def pytest_configure(config: pytest.Config) -> None:
    """Make the mark known."""
    config.addinivalue_line(
        "markers", "on(group): run on the hosts that are etcd, control_plane, workers, nodes, ingress, edge or all"
    )


@pytest.fixture
def host(name: str) -> Host:
    """Return the host under test."""
    return connect(name)


@pytest.fixture
def facts(name: str) -> dict[str, Any]:
    """Return what the inventory says of the host under test."""
    found: dict[str, Any] = description()[name]
    return found


@pytest.fixture(scope="session")
def cluster() -> dict[str, Any]:
    """Return what the inventory says of the first control-plane host, and so of the cluster."""
    found: dict[str, Any] = description()[members("control_plane")[0]]
    return found


@pytest.fixture(scope="session")
def api(cluster: dict[str, Any]) -> client.ApiClient:
    """Return the API as its administrator sees it."""
    return config.new_client_from_config(cluster["kubeconfig"])


@pytest.fixture
def namespace(api: client.ApiClient) -> Iterator[str]:
    """Yield a namespace that goes away after the test."""
    core = client.CoreV1Api(api)
    name = f"test-{uuid.uuid4().hex[:8]}"
    core.create_namespace({"metadata": {"name": name}})
    yield name
    core.delete_namespace(name)


@pytest.fixture
def shop(api: client.ApiClient, namespace: str) -> str:
    """Return the namespace with a pod that says its name, a Service and an Ingress before it."""
    container: dict[str, Any] = {
        "name": "shop",
        "image": "registry.k8s.io/e2e-test-images/agnhost:2.66.1",
        "imagePullPolicy": "IfNotPresent",
        "args": ["netexec", "--http-port=8080"],
    }
    labels = {"app": "shop"}
    core = client.CoreV1Api(api)
    core.create_namespaced_pod(
        namespace, {"metadata": {"name": "shop", "labels": labels}, "spec": {"containers": [container]}}
    )
    core.create_namespaced_service(
        namespace, {"metadata": {"name": "shop"}, "spec": {"selector": labels, "ports": [{"port": 8080}]}}
    )
    backend = {"service": {"name": "shop", "port": {"number": 8080}}}
    rule = {"host": NAME, "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}}
    # It names no class: the cluster's default one takes it.
    client.NetworkingV1Api(api).create_namespaced_ingress(
        namespace, {"metadata": {"name": "shop"}, "spec": {"rules": [rule]}}
    )
    return namespace
