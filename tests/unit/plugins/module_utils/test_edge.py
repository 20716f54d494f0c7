# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Services of the edge: one wrong thing gives one fault that names it, and what is left out is filled in."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils import edge

HTTP = {"name": "web", "kind": "http", "port": 80}
SHARES = [{"address": "192.0.2.8", "weight": 90}, {"address": "192.0.2.9", "weight": 0, "port": 2525}]
SHARED = {"name": "mail", "kind": "tcp", "port": 25, "backends": "addresses", "shares": SHARES}
TCP = {"name": "mail", "kind": "tcp", "port": 25, "backends": "addresses", "addresses": ["192.0.2.8"]}
API = {"name": "api", "kind": "api"}
SHOP = {"name": "shop", "kind": "http", "port": 81, "backends": "cluster_service", "service": "shop/web"}
TOPOLOGY = {
    "ingress": [{"name": "a", "address": "192.0.2.1"}, {"name": "b", "address": "192.0.2.2"}],
    "control_plane": [{"name": "c", "address": "192.0.2.3"}],
}
PAIR = {"certificate": "/c/site.pem", "key": "/c/site.key"}


def test_sound_services_have_no_fault() -> None:
    given = [
        HTTP,
        TCP,
        {**SHARED, "name": "shared", "port": 26},
        API,
        SHOP,
        {**HTTP, "name": "tls", "port": 443, "certificates": [PAIR]},
    ]
    assert list(edge.service_faults(given)) == []
    assert list(edge.overlap_faults(edge.services(given, TOPOLOGY, 6443))) == []


@pytest.mark.parametrize(
    ("service", "found"),
    [
        ({**HTTP, "name": "Web"}, "service Web: this name"),
        ({**HTTP, "name": "metrics"}, "service metrics: this name"),
        ({**HTTP, "port": 0}, "service web: port 0"),
        ({**HTTP, "backend_port": 65536}, "service web: backend_port 65536"),
        ({"name": "web", "kind": "http"}, "service web: no port"),
        ({**HTTP, "port": 8404}, "service web: port 8404"),
        ({**HTTP, "address": "web.example.org"}, "service web: address web.example.org"),
        ({**HTTP, "trusted_forwarders": ["192.0.2.1/24"]}, "service web: trusted_forwarders 192.0.2.1/24"),
        ({**TCP, "trusted_forwarders": ["192.0.2.0/24"]}, "service mail: trusted_forwarders with kind tcp"),
        ({**TCP, "certificates": [PAIR]}, "service mail: certificates with kind tcp"),
        ({**TCP, "addresses": []}, "service mail: backends addresses with no addresses"),
        ({**TCP, "shares": SHARES}, "service mail: backends addresses with addresses and shares"),
        ({**HTTP, "shares": SHARES}, "service web: shares that nothing reads"),
        ({**SHARED, "shares": [{"address": "mail", "weight": 1}]}, "service mail: shares with address mail"),
        ({**SHARED, "shares": [{**SHARES[0], "weight": 257}]}, "service mail: weight 257 of 192.0.2.8"),
        ({**SHARED, "shares": [{**SHARES[0], "port": 0}]}, "service mail: port 0 of 192.0.2.8"),
        ({**SHARED, "shares": [{**SHARES[0], "weight": 0}]}, "service mail: shares that weigh nothing at all"),
        ({**TCP, "addresses": ["192.0.2.8:25"]}, "service mail: addresses 192.0.2.8:25"),
        ({**HTTP, "addresses": ["192.0.2.8"]}, "service web: addresses that nothing reads"),
        ({**API, "backends": "addresses", "addresses": ["192.0.2.8"]}, "service api: an API service with backends"),
        ({**API, "proxy_protocol": True}, "service api: an API service with backends"),
        ({**SHOP, "service": "web"}, "service shop: service web"),
        ({**SHOP, "service": ""}, "service shop: no service"),
        ({**SHOP, "backend_port": 80}, "service shop: backend_port with backends cluster_service"),
        ({**HTTP, "service_port": "http"}, "service web: service_port that nothing reads"),
        ({**HTTP, "reach": "pods"}, "service web: reach that nothing reads"),
        ({**HTTP, "slots": 0}, "service web: slots 0"),
        ({**HTTP, "check_path": "ping"}, "service web: check_path ping"),
    ],
)
def test_one_wrong_thing_gives_one_fault(service: dict[str, Any], found: str) -> None:
    ((words, _wanted, _remedy),) = edge.service_faults([service])
    assert words.startswith(found)


def test_names_are_given_once() -> None:
    ((found, _, _),) = edge.service_faults([HTTP, {**HTTP, "port": 81}])
    assert found == "2 services called web"


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        ({}, {"port": 81}, False),
        ({}, {}, True),
        ({"address": "192.0.2.5"}, {"address": "192.0.2.6"}, False),
        ({"address": "192.0.2.5"}, {"address": "192.0.2.5"}, True),
        ({"address": "192.0.2.5"}, {}, True),
        ({"address": "192.0.2.5"}, {"address": "::"}, True),
    ],
)
def test_a_port_is_listened_at_once(one: dict[str, Any], other: dict[str, Any], overlap: bool) -> None:
    complete = [edge.completed({**HTTP, **one}, 6443), edge.completed({**HTTP, "name": "b", **other}, 6443)]
    assert bool(list(edge.overlap_faults(complete))) is overlap


def test_the_api_s_port_counts_though_nobody_wrote_it() -> None:
    complete = [edge.completed(API, 6443), edge.completed({**HTTP, "port": 6443}, 6443)]
    ((found, _, _),) = edge.overlap_faults(complete)
    assert found == "services api and web at 0.0.0.0 and 0.0.0.0 port 6443"


def test_services_without_ports_are_one_fault_each_and_no_overlap() -> None:
    complete = [edge.completed({"name": name, "kind": "http"}, 6443) for name in "ab"]
    assert list(edge.overlap_faults(complete)) == []


def test_ingress_hosts_are_needed_where_traffic_goes_to_them() -> None:
    complete = [edge.completed(item, 6443) for item in (HTTP, TCP, API, SHOP)]
    ((found, _, _),) = edge.empty_faults(complete, {"ingress": []})
    assert found.startswith("service web: ")
    assert list(edge.empty_faults(complete, TOPOLOGY)) == []


def chosen(service: dict[str, Any], *keys: str) -> list[Any]:
    (complete,) = edge.services([service], TOPOLOGY, 6443)
    return [complete[key] for key in keys]


@pytest.mark.parametrize(
    ("service", "wanted"),
    [
        (HTTP, ["http", 80, "cluster_ingress", True, 80, 8082, "/ping"]),
        ({**HTTP, "port": 443, "certificates": [PAIR]}, ["http", 443, "cluster_ingress", True, 80, 8082, "/ping"]),
        ({"name": "t", "kind": "tcp", "port": 443}, ["tcp", 443, "cluster_ingress", True, 443, 8082, "/ping"]),
        (API, ["tcp", 6443, "inventory_control_plane", False, 6443, 0, "/readyz"]),
        ({**API, "port": 443}, ["tcp", 443, "inventory_control_plane", False, 6443, 0, "/readyz"]),
        (TCP, ["tcp", 25, "addresses", False, 25, 0, ""]),
        (SHOP, ["http", 81, "cluster_service", True, 80, 0, ""]),
    ],
)
def test_what_is_left_out_is_filled_in(service: dict[str, Any], wanted: list[Any]) -> None:
    keys = ("mode", "port", "backends", "dynamic", "backend_port", "check_port", "check_path")
    assert chosen(service, *keys) == wanted


@pytest.mark.parametrize(
    ("service", "servers"),
    [
        (SHOP, []),
        (
            HTTP,
            [{"name": "a", "address": "192.0.2.1", "port": 80}, {"name": "b", "address": "192.0.2.2", "port": 80}],
        ),
        (API, [{"name": "c", "address": "192.0.2.3", "port": 6443}]),
        (TCP, [{"name": "server1", "address": "192.0.2.8", "port": 25}]),
        (
            SHARED,
            [
                {"name": "server1", "address": "192.0.2.8", "port": 25, "weight": 90},
                {"name": "server2", "address": "192.0.2.9", "port": 2525, "weight": 0},
            ],
        ),
        (
            {**HTTP, "backends": "inventory_ingress", "backend_port": 8080},
            [
                {"name": "a", "address": "192.0.2.1", "port": 8080},
                {"name": "b", "address": "192.0.2.2", "port": 8080},
            ],
        ),
        (TCP, [{"name": "server1", "address": "192.0.2.8", "port": 25}]),
    ],
)
def test_servers_come_from_the_inventory(service: dict[str, Any], servers: list[dict[str, Any]]) -> None:
    assert chosen(service, "servers") == [servers]


def test_the_watcher_is_told_what_it_needs() -> None:
    assert chosen({**SHOP, "service_port": 8080, "reach": "pods"}, "watched") == [
        {
            "name": "shop",
            "backends": "cluster_service",
            "namespace": "shop",
            "service": "web",
            "reach": "pods",
            "port": "8080",
        }
    ]
    (watched,) = chosen(HTTP, "watched")
    assert (watched["backends"], watched["port"]) == ("cluster_ingress", 80)


@pytest.mark.parametrize(
    ("service", "reuses"),
    [
        (HTTP, True),
        (SHOP, False),
        ({**SHOP, "reuse_connections": True}, True),
        ({**HTTP, "reuse_connections": False}, False),
    ],
)
def test_connections_to_pods_are_not_used_twice(service: dict[str, Any], reuses: bool) -> None:
    assert chosen(service, "reuse_connections") == [reuses]


def test_each_certificate_has_a_file_of_its_own() -> None:
    (certificates,) = chosen({**HTTP, "certificates": [PAIR, PAIR]}, "certificates")
    assert [pair["path"] for pair in certificates] == [
        "/etc/haproxy/certificates/web-1.pem",
        "/etc/haproxy/certificates/web-2.pem",
    ]


def found(*ports: dict[str, Any], kind: str = "NodePort") -> dict[str, Any]:
    return {"shop/web": {"spec": {"type": kind, "ports": list(ports)}}}


NODE_PORT = {"name": "http", "port": 80, "nodePort": 30080}


@pytest.mark.parametrize(
    ("more", "there", "words"),
    [
        ({}, found(NODE_PORT), ""),
        ({"service_port": "http"}, found(NODE_PORT, {"name": "other", "port": 9}), ""),
        ({"service_port": "80"}, found(NODE_PORT, {"name": "other", "port": 9}), ""),
        ({"reach": "pods"}, found({"port": 80}, kind="ClusterIP"), ""),
        ({}, {}, "found no Service shop/web in the cluster"),
        ({}, found({"port": 80}, kind="ClusterIP"), "of type ClusterIP and has no node port"),
        ({}, found(NODE_PORT, {"name": "other", "port": 9}), "has the TCP ports http 80, other 9; wanted one port"),
        ({"service_port": "https"}, found(NODE_PORT), "has the TCP ports http 80; wanted port https"),
        ({}, found({**NODE_PORT, "protocol": "UDP"}), "has the TCP ports none"),
    ],
)
def test_what_the_cluster_lacks_is_said(more: dict[str, Any], there: dict[str, Any], words: str) -> None:
    complete = [edge.completed({**SHOP, **more}, 6443), edge.completed(HTTP, 6443)]
    faults = edge.cluster_faults(complete, there)
    assert len(faults) == bool(words)
    assert words in "".join(faults)
