# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Where a host and the API do not agree about a Service: the rules are those of a real host, the API is bent."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils import plain_text, service_paths
from ansible_collections.plainkube.cluster.plugins.module_utils.proxy_rules import Table
from ansible_collections.plainkube.cluster.plugins.module_utils.service_paths import Facts, Host

RECORDED = json.loads((Path(__file__).parent / "recorded" / "kube-proxy.nft.json").read_text(encoding="utf-8"))
NODES = {"node1": "192.0.2.11", "node2": "192.0.2.12"}
HOST = Host("node1", "192.0.2.11", NODES)
ROUTES = {
    "10.244.1.4": {"dst": "10.244.1.0/24", "dev": "cni0", "protocol": "kernel"},
    "10.244.0.4": {"dst": "10.244.0.0/24", "gateway": "192.0.2.12", "dev": "eth0", "protocol": "76"},
}
FACTS = Facts({"ip": Table(RECORDED)}, ROUTES)


def endpoint(address: str, node: str, **more: Any) -> dict[str, Any]:
    base = {"ports": {"http": 8080}, "ready": True, "serving": True, "terminating": False}
    return {**base, "address": address, "node": node, "pod": f"web-on-{node}", **more}


HERE, THERE = endpoint("10.244.1.4", "node1"), endpoint("10.244.0.4", "node2")
WEB: dict[str, Any] = {
    "namespace": "shop",
    "name": "web",
    "type": "NodePort",
    "headless": False,
    "external_name": "",
    "cluster_ips": ["10.96.196.49"],
    "external_ips": [],
    "load_balancer_ips": [],
    "affinity_seconds": 10800,
    "internal_policy": "Cluster",
    "external_policy": "Cluster",
    "source_ranges": [],
    "prefers_near": False,
    "selector": {"app": "web"},
    "ports": [{"name": "http", "protocol": "tcp", "port": 80, "target": "web", "node_port": 30080}],
    "endpoints": [HERE, THERE],
    "pods": [{"name": "web-on-node1", "node": "node1", "ready": True, "state": "Running"}],
    "policies": [],
}
NOBODY = {
    **WEB,
    "name": "nobody",
    "cluster_ips": ["10.96.144.72"],
    "ports": [{"name": "", "protocol": "tcp", "port": 80, "target": "80", "node_port": 32263}],
    "selector": {"app": "nobody"},
    "endpoints": [],
    "pods": [],
}


def wrong(view: dict[str, Any], facts: Facts = FACTS) -> list[str]:
    return service_paths.differences(view, service_paths.entries(view, HOST, facts), HOST, facts)


def explained(view: dict[str, Any], facts: Facts = FACTS) -> str:
    found = service_paths.entries(view, HOST, facts)
    return service_paths.text(view, found, HOST, facts, wrong(view, facts), True)


def test_a_host_that_agrees_has_nothing_to_say() -> None:
    assert wrong(WEB) == []
    assert wrong(NOBODY) == []
    assert service_paths.short_text(WEB, service_paths.entries(WEB, HOST, FACTS), HOST, FACTS, []) == (
        "node1 agrees with the API: 2 ways in, 2 endpoints"
    )


@pytest.mark.parametrize(
    ("endpoints", "says"),
    [
        ([HERE], "on to 10.244.0.4:8080, which is of no endpoint in the API: its pod is gone"),
        ([HERE, {**THERE, "ready": False, "serving": False}], "on to 10.244.0.4:8080, which is not ready"),
        (
            [HERE, {**THERE, "ready": False, "terminating": True}],
            "on to 10.244.0.4:8080, which is terminating, still serving",
        ),
        (
            [HERE, THERE, endpoint("10.244.1.9", "node1")],
            "no packet to cluster IP 10.96.196.49:80 tcp on to 10.244.1.9",
        ),
        ([], "on to 10.244.1.4:8080, which is of no endpoint"),
    ],
)
def test_rules_that_are_behind_are_named(endpoints: list[dict[str, Any]], says: str) -> None:
    found = wrong({**WEB, "endpoints": endpoints})
    assert any(says in line for line in found), found
    assert all("journalctl -u kube-proxy" in line for line in found if "packet" in line)


def test_a_service_that_the_rules_do_not_have_yet_is_named() -> None:
    new = {**WEB, "cluster_ips": ["10.96.50.50"], "ports": [{**WEB["ports"][0], "node_port": 0}]}
    (line, *_) = wrong(new)
    assert "packets to cluster IP 10.96.50.50:80 tcp are dropped on node1, though the API has 2 endpoints" in line
    rejected = {**NOBODY, "endpoints": [endpoint("10.244.1.4", "node1", ports={"": 8080})]}
    assert any("are rejected on node1, though the API has 1 endpoint" in line for line in wrong(rejected))


def test_while_nobody_is_ready_those_that_leave_still_count() -> None:
    leaving = [{**end, "ready": False, "terminating": True} for end in (HERE, THERE)]
    assert wrong({**WEB, "endpoints": leaving}) == []


def test_a_policy_local_wants_the_endpoints_of_this_host_alone() -> None:
    local = {
        **WEB,
        "name": "web-local",
        "cluster_ips": ["10.96.14.117"],
        "external_policy": "Local",
        "ports": [{**WEB["ports"][0], "node_port": 32322}],
    }
    assert wrong(local) == []
    assert any("10.244.0.4:8080" in line for line in wrong({**local, "external_policy": "Cluster"}))


def test_endpoints_may_be_left_out_where_near_ones_are_preferred() -> None:
    more = {**WEB, "endpoints": [HERE, THERE, endpoint("10.244.1.9", "node1")]}
    assert wrong({**more, "prefers_near": True}) == []


@pytest.mark.parametrize(
    ("address", "route", "says"),
    [
        (
            "10.244.0.4",
            {"dst": "default", "gateway": "192.0.2.1", "dev": "eth0"},
            "is the default route: nothing on node1",
        ),
        (
            "10.244.0.4",
            {"dst": "10.244.0.0/24", "gateway": "192.0.2.13", "dev": "eth0"},
            "leads to 192.0.2.13, which is",
        ),
        ("10.244.1.4", {"dst": "10.244.1.0/24", "gateway": "192.0.2.12", "dev": "eth0"}, "but the pod is on this host"),
        (
            "10.244.0.4",
            {"dst": "10.244.0.0/24", "gateway": "192.0.2.99", "dev": "eth0"},
            "192.0.2.99, which is no node",
        ),
        ("10.244.0.4", {"fault": "Network is unreachable"}, "Network is unreachable"),
    ],
)
def test_a_route_that_leads_elsewhere_is_named(address: str, route: dict[str, str], says: str) -> None:
    host = Host("node1", "192.0.2.11", {**NODES, "node3": "192.0.2.13"})
    facts = Facts(FACTS.tables, {**ROUTES, address: route})
    found = service_paths.differences(WEB, service_paths.entries(WEB, host, facts), host, facts)
    assert any(says in line for line in found), found


def test_a_route_of_ipv6_is_not_held_against_addresses_of_ipv4() -> None:
    far = next(endpoint for endpoint in WEB["endpoints"] if endpoint["node"] == "node2")
    view = {**WEB, "endpoints": [{**far, "address": "fd00:10:244::4"}]}
    host = Host("node1", "192.0.2.11", NODES)
    route = {"dst": "fd00:10:244::/64", "gateway": "2001:db8::12", "dev": "eth0"}
    assert service_paths.differences(view, [], host, Facts({}, {"fd00:10:244::4": route})) == []
    assert service_paths.differences(view, [], host, Facts({}, {"fd00:10:244::4": {**route, "dst": "default"}})) != []


def test_tunnels_and_routers_are_ways_too() -> None:
    tunnel = {"dst": "10.244.0.0/24", "gateway": "10.244.0.0", "dev": "flannel.1"}
    assert wrong(WEB, Facts(FACTS.tables, {**ROUTES, "10.244.0.4": tunnel})) == []
    router = {"dst": "10.244.0.0/24", "gateway": "192.0.2.1", "dev": "eth0"}
    to_node = {"dst": "default", "gateway": "192.0.2.1", "dev": "eth0"}
    assert wrong(WEB, Facts(FACTS.tables, {**ROUTES, "10.244.0.4": router, "192.0.2.12": to_node})) == []
    assert wrong(WEB, Facts(FACTS.tables, {**ROUTES, "10.244.0.4": router})) != []


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ({"code": "NOERROR", "addresses": ["10.96.0.99"]}, "says 10.96.0.99, the API says 10.96.196.49"),
        ({"code": "NXDOMAIN", "addresses": []}, "says NXDOMAIN, the API says 10.96.196.49"),
        ({"code": "", "addresses": [], "fault": "no answer within 2 s"}, "no answer within 2 s"),
        ({"code": "NOERROR", "addresses": ["10.96.196.49"]}, ""),
    ],
)
def test_a_name_server_that_says_something_else_is_named(answer: dict[str, Any], says: str) -> None:
    asked = {"server": "10.96.0.10", "name": "web.shop.svc.cluster.local", **answer}
    found = wrong(WEB, Facts(FACTS.tables, ROUTES, [asked]))
    assert [says in line for line in found] == ([True] if says else [])


def test_the_reason_for_no_endpoint_is_told() -> None:
    assert "its selector app=nobody selects no pod in namespace shop" in explained(NOBODY)
    crashing = {"name": "web-1", "node": "node2", "ready": False, "state": "CrashLoopBackOff"}
    assert "web-1 on node2: CrashLoopBackOff" in explained({**NOBODY, "pods": [crashing]})
    well = {**crashing, "ready": True, "state": "Running"}
    assert "does targetPort fit" in explained({**NOBODY, "pods": [well]})
    assert "It has no selector" in explained({**NOBODY, "selector": {}})


def test_the_explanation_follows_the_packet_and_fits_a_terminal() -> None:
    text = explained(WEB)
    for words in (
        "Service shop/web (NodePort), as node1 carries it",
        "cluster IP 10.96.196.49:80 tcp (http)",
        "by service-PDW4WQJE-shop/web/tcp/http",
        "from this host  to one of the 2 endpoints by chance, with this host's address (masquerade)",
        "node port 192.0.2.11:30080 tcp (http)",
        "a client keeps its endpoint for 3 h (session affinity)",
        "pod web-on-node2 on node2; via 192.0.2.12 on eth0 (route 10.244.0.0/24)",
        "no NetworkPolicy selects its pods",
    ):
        assert words in text
    assert "What is not as it should be" not in text
    assert max(len(line) for line in text.splitlines()) <= plain_text.WIDTH
    # YAML would show a text with such lines as one long word.
    assert not any(line != line.rstrip() for line in text.splitlines())


def test_services_without_addresses_are_explained_without_rules() -> None:
    assert "DNS answers with its endpoints" in explained({**WEB, "headless": True, "cluster_ips": [], "ports": []})
    elsewhere = {**NOBODY, "external_name": "www.example.org", "cluster_ips": [], "ports": []}
    assert "It is a name for www.example.org and nothing else" in explained(elsewhere)
    assert "No endpoint" not in explained(elsewhere)


def test_what_could_not_be_read_is_said_first() -> None:
    facts = Facts(unreadable=["kube-proxy's rules: there is no nft on this host"])
    text = explained(WEB, facts)
    assert text.index("? kube-proxy's rules: there is no nft") < text.index("Endpoints")
    assert "route not read" in text
    assert "does not carry" in service_paths.short_text(WEB, [], HOST, facts, [])


def test_rules_that_are_not_understood_are_no_agreement() -> None:
    strange = copy.deepcopy(RECORDED)
    for entry in strange["nftables"]:
        if entry.get("rule", {}).get("chain") == "services":
            entry["rule"]["expr"] = [{"tproxy": {}}]
    facts = Facts({"ip": Table(strange)}, ROUTES)
    assert any("not understood here" in line for line in wrong(WEB, facts))


def test_without_the_api_the_rules_are_searched_by_name() -> None:
    facts = Facts(FACTS.tables, unreadable=["the API: no answer"])
    found = service_paths.entries_by_name("shop", "web", facts)
    text = service_paths.text_without_api("shop", "web", found, HOST, facts)
    assert [entry.title for entry in found] == ["cluster IP 10.96.196.49:80 tcp", "node port 192.0.2.11:30080 tcp"]
    assert "to one of 10.244.0.4:8080, 10.244.1.4:8080 by chance" in text
    assert "? the API: no answer" in text
    short = service_paths.short_text_without_api("shop", "web", found, HOST, facts)
    assert "shop/web has 2 ways in, to 10.244.0.4:8080, 10.244.1.4:8080" in short
    assert "No chain of kube-proxy" in service_paths.text_without_api("shop", "x", [], HOST, facts)
