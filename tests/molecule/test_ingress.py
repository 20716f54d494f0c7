# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What comes in through the ingress controller, as a client outside of the cluster sees it."""

from __future__ import annotations

import ssl
from functools import partial
from http.client import HTTPConnection, HTTPSConnection
from typing import Any

import pytest
from kubernetes import client
from lab_cluster import Host
from web_requests import ask, ask_until_well

NAME_OF_ROUTE = "route.example.org"
CLASS = "traefik"


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
