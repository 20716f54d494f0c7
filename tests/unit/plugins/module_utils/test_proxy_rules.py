# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""kube-proxy's rules, as it wrote them on a real host, followed for each kind of Service and sender."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils import proxy_rules
from ansible_collections.plainkube.cluster.plugins.module_utils.proxy_rules import Packet, Table, follow

RECORDED = json.loads((Path(__file__).parent / "recorded" / "kube-proxy.nft.json").read_text(encoding="utf-8"))
TABLE = Table(RECORDED)
HERE, THERE = ("10.244.1.4", 8080), ("10.244.0.4", 8080)
WEB, WEB_LOCAL, WEB_INTERNAL, NOBODY = "10.96.196.49", "10.96.14.117", "10.96.252.149", "10.96.144.72"
HOST = "192.0.2.11"


@pytest.mark.parametrize(
    ("packet", "endpoints", "masqueraded"),
    [
        # To a cluster IP, only pods keep their address.
        (Packet("pod", WEB, "tcp", 80), [HERE, THERE], False),
        (Packet("host", WEB, "tcp", 80), [HERE, THERE], True),
        # Internal traffic policy Local: the endpoints of this host alone.
        (Packet("pod", WEB_INTERNAL, "tcp", 80), [HERE], False),
        # Node ports: with policy Cluster everybody's packets get this host's address, with Local nobody's from outside.
        (Packet("outside", HOST, "tcp", 30080), [HERE, THERE], True),
        (Packet("outside", HOST, "tcp", 32322), [HERE], False),
        (Packet("host", HOST, "tcp", 32322), [HERE, THERE], True),
        (Packet("pod", HOST, "tcp", 32322), [HERE, THERE], False),
        # An external address.
        (Packet("outside", "198.51.100.7", "tcp", 80), [HERE], False),
        (Packet("pod", "10.96.0.10", "udp", 53), [("10.244.0.2", 53), ("10.244.1.2", 53)], False),
        (Packet("pod", "10.96.0.1", "tcp", 443), [("192.0.2.11", 6443)], False),
    ],
    ids=str,
)
def test_a_packet_reaches(packet: Packet, endpoints: list[tuple[str, int]], masqueraded: bool) -> None:
    fate = follow(TABLE, packet)
    assert (set(fate.endpoints), fate.masqueraded) == (set(endpoints), masqueraded)
    assert (fate.verdict, fate.unknown) == ("", [])
    assert fate.chains


@pytest.mark.parametrize(
    ("packet", "verdict"),
    [
        (Packet("pod", NOBODY, "tcp", 80), "rejected"),
        (Packet("outside", HOST, "tcp", 32263), "rejected"),
        # A port that the Service does not have, and an address that no Service has.
        (Packet("pod", WEB, "tcp", 81), "rejected"),
        (Packet("pod", "10.96.99.99", "tcp", 80), "dropped"),
        # A node port on an address that is not for node ports, and a port that is nobody's.
        (Packet("outside", "127.0.0.1", "tcp", 30080), ""),
        (Packet("outside", HOST, "tcp", 22), ""),
    ],
    ids=str,
)
def test_a_packet_reaches_nobody(packet: Packet, verdict: str) -> None:
    fate = follow(TABLE, packet)
    assert (fate.endpoints, fate.verdict, fate.unknown) == ([], verdict, [])


def test_session_affinity_is_told_with_its_time() -> None:
    fate = follow(TABLE, Packet("pod", WEB, "tcp", 80))
    assert fate.affinity_seconds == 10800
    assert [proxy_rules.chain_kind(chain) for chain in fate.chains] == ["service", "endpoint", "endpoint"]
    assert follow(TABLE, Packet("pod", WEB_LOCAL, "tcp", 80)).affinity_seconds == 0


def test_source_ranges_of_a_load_balancer_are_told() -> None:
    fate = follow(TABLE, Packet("outside", "203.0.113.9", "tcp", 80))
    assert fate.only_from == ["198.51.100.0/24"]
    assert set(fate.endpoints) == {HERE}


def without_random_maps(listing: dict[str, Any]) -> dict[str, Any]:
    """Return rules as kube-proxy wrote them before 1.36: a chain for each endpoint, which knows its own packets."""
    old = copy.deepcopy(listing)
    chain = "service-O7KUWILH-shop/web-local/tcp/http"
    endpoint = "endpoint-AAAAAAAA-shop/web-local/tcp/http__10.244.1.4/8080"
    for entry in old["nftables"]:
        if entry.get("rule", {}).get("chain") == chain:
            data = {"set": [[0, {"goto": {"target": endpoint}}]]}
            entry["rule"]["expr"] = [{"vmap": {"key": {"numgen": {"mode": "random", "mod": 1}}, "data": data}}]
    saddr = {"payload": {"protocol": "ip", "field": "saddr"}}
    for expr in (
        [{"match": {"op": "==", "left": saddr, "right": "10.244.1.4"}}, {"jump": {"target": "mark-for-masquerade"}}],
        [{"dnat": {"addr": "10.244.1.4", "port": 8080}}],
    ):
        old["nftables"].append({"rule": {"chain": endpoint, "expr": expr}})
    return old


def test_rules_of_older_releases_are_followed_too() -> None:
    fate = follow(Table(without_random_maps(RECORDED)), Packet("pod", WEB_LOCAL, "tcp", 80))
    assert (fate.endpoints, fate.masqueraded, fate.unknown) == ([HERE], False, [])


def test_a_rule_that_is_not_known_is_named_and_not_guessed() -> None:
    strange = copy.deepcopy(RECORDED)
    rule = {"chain": "service-O7KUWILH-shop/web-local/tcp/http", "expr": [{"tproxy": {}}, {"drop": None}]}
    strange["nftables"].insert(0, {"rule": rule})
    fate = follow(Table(strange), Packet("pod", WEB_LOCAL, "tcp", 80))
    assert fate.unknown == ["rule 1 of chain service-O7KUWILH-shop/web-local/tcp/http: tproxy"]
    assert set(fate.endpoints) == {HERE, THERE}


def test_a_circle_ends() -> None:
    rules = [{"rule": {"chain": name, "expr": [{"jump": {"target": other}}]}} for name, other in ("ab", "ba")]
    rules.append({"rule": {"chain": "services", "expr": [{"goto": {"target": "a"}}]}})
    assert follow(Table({"nftables": rules}), Packet("pod", WEB, "tcp", 80)).unknown == [
        "chain a: it leads in a circle"
    ]


def test_an_empty_table_is_not_there() -> None:
    assert TABLE.there
    assert not Table({"nftables": []}).there


def test_each_rule_is_counted_with_its_reason() -> None:
    counts = proxy_rules.count(TABLE)
    rules = [entry for entry in RECORDED["nftables"] if "rule" in entry]
    assert counts.rules == len(rules)
    assert counts.kinds["external"] == (3, 10)
    # kubernetes, kube-dns, web, web-local, web-internal-local, web-plain, web-balanced
    assert counts.ports == 7
    assert "10 in 3 chains external-*" in "\n".join(proxy_rules.counts_in_words(counts))


def test_the_service_of_a_chain_is_in_its_name() -> None:
    name = "endpoint-2KG2XNN3-shop/web/tcp/http__10.244.0.4/8080"
    assert proxy_rules.service_of(name) == "shop/web/tcp/http"
    assert proxy_rules.service_of("service-endpoints-check") == ""
    assert proxy_rules.service_of("local-YBWUGQPM-shop/web-internal-local/tcp/") == "shop/web-internal-local/tcp/"
