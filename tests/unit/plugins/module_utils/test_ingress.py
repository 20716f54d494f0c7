# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Instances of the ingress controller: what follows from them, what old ones leave, and each fault has its message."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils import ingress

HOSTS = [{"name": name, "address": f"192.0.2.{number}", "zone": ""} for number, name in enumerate("ab", start=11)]
NAMES = [host["name"] for host in HOSTS]


def resolved(*instances: dict[str, Any], default_class: str = "") -> list[dict[str, Any]]:
    return ingress.resolved("traefik", instances, default_class, HOSTS)


def words(*instances: dict[str, Any], default_class: str = "", hosts: list[str] | None = None) -> list[str]:
    found = ingress.faults("traefik", instances, default_class, NAMES if hosts is None else hosts, {6443: "the API"})
    return [" ".join(parts) for parts in found]


def test_an_empty_list_is_one_instance_named_after_the_controller() -> None:
    [instance] = resolved()
    assert (instance["name"], instance["class"], instance["default"]) == ("traefik", "traefik", True)
    assert (instance["host_names"], instance["every_host"]) == (["a", "b"], True)
    assert instance["status_address"] == "192.0.2.11"
    assert words() == []


def test_none_has_no_instances() -> None:
    assert ingress.resolved("none", [], "", HOSTS) == []


def test_an_instance_may_have_some_hosts_and_of_several_no_class_is_the_default() -> None:
    public, private = {"name": "public", "hosts": ["b"]}, {"name": "private", "hosts": ["a"], "class": "inside"}
    assert [(i["host_names"], i["every_host"], i["default"]) for i in resolved(public, private)] == [
        (["b"], False, False),
        (["a"], False, False),
    ]
    assert [i["default"] for i in resolved(public, private, default_class="inside")] == [False, True]


def test_each_host_is_asked_for_its_own_instances() -> None:
    instances = resolved({"name": "public", "hosts": ["b"]}, {"name": "private", "hosts": ["a"], "http_port": 8080})
    asked = ingress.requests(instances, HOSTS[0])
    assert [(request["url"], request["status"]) for request in asked] == [
        ("http://192.0.2.11:8082/ping", 200),
        ("http://192.0.2.11:8080/ready", 302),
        ("https://192.0.2.11:443/ready", 302),
    ]
    assert ingress.requests(instances, {"name": "c", "address": "192.0.2.13"}) == []
    assert [item["port"] for item in ingress.listens("traefik", instances, "b")] == [80, 443, 8082]


@pytest.mark.parametrize(
    ("instances", "said"),
    [
        ([{"name": "Public"}], ['[0].name "Public" at most 40 letters']),
        ([{"name": "a" * 41}], ["[0].name"]),
        ([{"name": "a", "class": "A b"}], ["[0].class"]),
        ([{"name": "a", "namespaces": ["shop", "Shop"]}], ['[0].namespaces "Shop"']),
        ([{"name": "a", "hosts": ["b", "z"]}], ["[0].hosts z hosts of the ingress group: a, b"]),
        ([{"name": "a", "http_port": 0}], ["[0].http_port 0 a port from 1 to 65535"]),
        ([{"name": "a", "https_port": 80}], ["[0].https_port 80, which is its http_port too"]),
        ([{"name": "a", "ping_port": 6443}], ["[0].ping_port 6443 a port apart from that of the API"]),
        ([{"name": "a", "trusted_proxies": ["192.0.2.0/24", "proxy"]}], ['[0].trusted_proxies "proxy"']),
        ([{"name": "a", "proxy_protocol": ["192.0.2.7/24"]}], ['[0].proxy_protocol "192.0.2.7/24"']),
        ([{"name": "a", "status_address": "lb.example.org"}], ["[0].status_address"]),
        ([{"name": "a", "certificate": "/c.pem"}], ["[0].certificate_key only certificate"]),
        ([{"name": "a", "certificate": "c", "certificate_key": "/k"}], ["[0].certificate"]),
        (
            [{"name": "a", "ingress_nginx": True, "namespaces": ["x", "y"]}],
            ["[0].ingress_nginx true with the namespaces x, y all namespaces, or one"],
        ),
        ([{"name": "a"}, {"name": "a", "class": "b"}], ['[1].name "a" twice']),
        (
            [{"name": "a"}, {"name": "b", "class": "a", "http_port": 81, "https_port": 82, "ping_port": 83}],
            ['[1].class "a", which a has too'],
        ),
        ([{"name": "a"}, {"name": "b", "https_port": 82, "ping_port": 83}], ["[1] port 80 on a, b, which instance a"]),
        (
            [{"name": "a", "hosts": ["b"]}, {"name": "b", "https_port": 8082, "http_port": 81, "ping_port": 82}],
            ["[1] port 8082 on b, which instance a has too"],
        ),
    ],
)
def test_each_fault_is_said(instances: list[dict[str, Any]], said: list[str]) -> None:
    found = words(*instances)
    assert len(found) == len(said), found
    for fault, part in zip(found, said):
        assert fault.startswith(part)


def test_only_traefik_reads_the_annotations_of_ingress_nginx() -> None:
    instance = {"name": "a", "ingress_nginx": True, "namespaces": ["x"]}
    assert words(instance) == []
    [fault] = ingress.faults("nginx", [instance], "", ["a", "b"], {})
    assert fault[0] == "[0].ingress_nginx"


def test_instances_on_different_hosts_or_ports_are_sound() -> None:
    assert words({"name": "a", "hosts": ["a"]}, {"name": "b", "hosts": ["b"]}) == []
    assert words({"name": "a"}, {"name": "b", "http_port": 81, "https_port": 82, "ping_port": 83}) == []


def test_a_default_class_that_no_instance_serves_is_refused() -> None:
    [fault] = words({"name": "public"}, default_class="publik")
    assert 'plainkube_ingress_default_class "publik"' in fault
    assert "the class of an instance: public" in fault
    assert words({"name": "public"}, default_class="public") == []


def found_class(
    name: str, namespaces: str = "", gateway: str = "true", instance: str = "", certificate: str = "false"
) -> dict[str, Any]:
    notes = {
        "plainkube.io/namespaces": namespaces,
        "plainkube.io/gateway": gateway,
        "plainkube.io/certificate": certificate,
    }
    labels = {"app.kubernetes.io/instance": instance or name}
    return {"metadata": {"name": name, "labels": labels, "annotations": notes}}


def left(before: dict[str, Any], *wanted: dict[str, Any]) -> list[str]:
    instances = resolved(*wanted) if wanted else []
    found = ingress.leftovers([before], instances, "plainkube-ingress")
    return [f"{item['kind']} {item['metadata'].get('namespace', '')}/{item['metadata']['name']}" for item in found]


def test_an_instance_as_it_was_leaves_nothing() -> None:
    assert left(found_class("traefik"), {"name": "traefik"}) == []
    assert left(found_class("shop", "x"), {"name": "shop", "namespaces": ["x", "y"]}) == []


def test_an_instance_that_is_wanted_no_more_goes_with_all_its_rights_and_its_class_last() -> None:
    found = left(found_class("old", "x"), {"name": "traefik"})
    assert found[0] == "DaemonSet plainkube-ingress/old"
    assert {"Secret plainkube-ingress/old-certificate", "Gateway plainkube-ingress/old", "GatewayClass /old"} <= {
        *found
    }
    assert [item for item in found if "Binding" in item] == [
        "ClusterRoleBinding /plainkube:ingress-traefik:old",
        "RoleBinding x/plainkube:ingress-traefik:old",
        "RoleBinding plainkube-ingress/plainkube:ingress-traefik:old",
    ]
    assert found[-1] == "IngressClass /old"
    assert "ClusterRoleBinding /plainkube:ingress-traefik:old:every-namespace" in left(found_class("old"))
    assert not [item for item in left(found_class("old", gateway="false")) if "Gateway" in item]


def test_an_instance_of_f5_goes_with_what_it_has_and_traefik_has_not() -> None:
    found = ingress.leftovers([found_class("old", "x", gateway="false")], [], "plainkube-ingress", "nginx")
    objects = [f"{item['kind']} {item['metadata'].get('namespace', '')}/{item['metadata']['name']}" for item in found]
    assert {"Lease plainkube-ingress/old-leader", "RoleBinding x/plainkube:ingress-nginx:old"} <= {*objects}
    assert not [item for item in objects if "-ready" in item or "traefik" in item]
    assert objects[-1] == "IngressClass /old"


RIGHT = "plainkube:ingress-traefik:new"


@pytest.mark.parametrize(
    ("before", "wanted", "objects"),
    [
        (found_class("old", instance="new"), {}, ["GatewayClass /old", "IngressClass /old"]),
        (found_class("new", certificate="true"), {"certificate": "/c", "certificate_key": "/k"}, []),
        (found_class("new", certificate="true"), {}, ["Secret plainkube-ingress/new-certificate"]),
        (found_class("new"), {"gateway": False}, ["Gateway plainkube-ingress/new", "GatewayClass /new"]),
        (found_class("new"), {"namespaces": ["x"]}, [f"ClusterRoleBinding /{RIGHT}:every-namespace"]),
        (found_class("new", "x y"), {"namespaces": ["x"]}, [f"RoleBinding y/{RIGHT}"]),
        (found_class("new", "x"), {}, [f"RoleBinding x/{RIGHT}", f"RoleBinding plainkube-ingress/{RIGHT}"]),
    ],
)
def test_what_an_instance_was_and_is_no_more_is_taken_back(
    before: dict[str, Any], wanted: dict[str, Any], objects: list[str]
) -> None:
    assert left(before, {"name": "new", **wanted}) == objects
