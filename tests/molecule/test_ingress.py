# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What comes in through the ingress controller, as a client outside of the cluster sees it."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from functools import partial
from http.client import HTTPConnection, HTTPSConnection
from typing import Any

import pytest
from kubernetes import client
from lab_cluster import Host

NAME, NAME_OF_ROUTE = "shop.example.org", "route.example.org"
CLASS = "traefik"
PATIENCE_SECONDS = 60.0


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


def ask(make: Callable[[], HTTPConnection], path: str, name: str = NAME) -> tuple[int, str]:
    connection = make()
    try:
        connection.request("GET", path, headers={"Host": name})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def ask_until_well(make: Callable[[], HTTPConnection], path: str, name: str = NAME) -> tuple[int, str]:
    """Return the first answer of the pod; until its route is known there is none."""
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        answer = ask(make, path, name)
        if answer[0] == 200 or time.monotonic() > end:
            return answer
        time.sleep(0.2)


@pytest.mark.on("ingress")
def test_a_pod_is_reached_over_http_and_https(host: Host, shop: str, facts: dict[str, Any]) -> None:
    address = facts["address"]
    unknown = ssl.create_default_context()
    # The default certificate is of Traefik's own making.
    unknown.check_hostname, unknown.verify_mode = False, ssl.CERT_NONE
    over_http = partial(HTTPConnection, address, 80, timeout=5)
    over_https = partial(HTTPSConnection, address, 443, timeout=5, context=unknown)
    assert ask_until_well(over_http, "/hostname") == (200, "shop")
    assert ask_until_well(over_https, "/hostname") == (200, "shop")
    # Every request has an identity, by which its line of the access log is found.
    assert ask(over_http, "/header?key=traceparent")[1].startswith("00-")
    assert ask(partial(HTTPConnection, address, 8082, timeout=5), "/ping")[0] == 200


@pytest.mark.on("ingress")
def test_a_route_of_the_gateway_api_is_served(
    host: Host, api: client.ApiClient, shop: str, facts: dict[str, Any]
) -> None:
    route = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": "shop"},
        "spec": {
            "parentRefs": [{"name": CLASS, "namespace": "plainkube-ingress"}],
            "hostnames": [NAME_OF_ROUTE],
            "rules": [{"backendRefs": [{"name": "shop", "port": 8080}]}],
        },
    }
    client.CustomObjectsApi(api).create_namespaced_custom_object(
        "gateway.networking.k8s.io", "v1", shop, "httproutes", route
    )
    over_http = partial(HTTPConnection, facts["address"], 80, timeout=5)
    assert ask_until_well(over_http, "/hostname", NAME_OF_ROUTE) == (200, "shop")


@pytest.mark.on("ingress")
def test_the_controller_has_no_right_that_it_does_not_need(host: Host, api: client.ApiClient, name: str) -> None:
    pods = (
        client.CoreV1Api(api)
        .list_namespaced_pod(
            "plainkube-ingress", field_selector=f"spec.nodeName={name}", label_selector="app.kubernetes.io/name=traefik"
        )
        .items
    )
    assert pods
    for pod in pods:
        [container] = pod.spec.containers
        security = container.security_context
        assert security.run_as_non_root
        assert security.read_only_root_filesystem
        assert not security.allow_privilege_escalation
        assert security.capabilities.drop == ["ALL"]
        assert not security.capabilities.add
        assert not pod.spec.host_network
