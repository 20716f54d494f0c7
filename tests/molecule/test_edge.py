# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a host before the cluster passes on, as clients see it that know no other address."""

from __future__ import annotations

import ssl
from functools import partial
from http.client import HTTPConnection, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

import pytest
from kubernetes import client, config
from lab_cluster import Host, members
from web_requests import ask, ask_until_well


@pytest.mark.on("edge")
def test_the_api_is_reached_through_the_edge(host: Host, cluster: dict[str, Any], facts: dict[str, Any]) -> None:
    """Its certificate holds the edge's address: the client verifies it."""
    settings = client.Configuration()
    config.load_kube_config(cluster["kubeconfig"], client_configuration=settings)
    settings.host = f"https://{facts['address']}:{urlsplit(settings.host).port}"
    nodes = client.CoreV1Api(client.ApiClient(settings)).list_node().items
    assert {node.metadata.name for node in nodes} == set(members("nodes"))


@pytest.mark.on("edge")
def test_a_pod_is_reached_through_the_edge(host: Host, shop: str, facts: dict[str, Any]) -> None:
    address = facts["address"]
    unknown = ssl.create_default_context()
    # TLS ends at the ingress, whose default certificate is of its own making.
    unknown.check_hostname, unknown.verify_mode = False, ssl.CERT_NONE
    over_http = partial(HTTPConnection, address, 80, timeout=5)
    through = partial(HTTPSConnection, address, 443, timeout=5, context=unknown)
    assert ask_until_well(over_http, "/hostname") == (200, "shop")
    assert ask_until_well(through, "/hostname") == (200, "shop")
    assert len(ask(over_http, "/header?key=X-Request-Id")[1]) > 8
    assert ask(over_http, "/header?key=X-Forwarded-For")[1]


@pytest.mark.on("edge")
def test_the_edge_runs_nothing_of_a_node(host: Host) -> None:
    for unit in ("haproxy", "edge-backends"):
        assert host.service(unit).is_running
        assert host.service(unit).is_enabled
    for unit in ("kubelet", "containerd", "etcd", "kube-apiserver"):
        assert not host.file(f"/etc/systemd/system/{unit}.service").exists
    assert host.file("/etc/kubernetes").exists is False
