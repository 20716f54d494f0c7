# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Modules that explain read what they can of a host, and say why the rest could not be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils import commands, host_reading, units_io
from ansible_collections.plainkube.cluster.plugins.module_utils.units import Unit, UnitError
from ansible_collections.plainkube.cluster.plugins.modules import host_info, service_path_info

RECORDED = Path(__file__).parents[1] / "module_utils" / "recorded" / "kube-proxy.nft.json"
OPTIONS: dict[str, Any] = {
    "service": "shop/web",
    "view": {},
    "nodes": {"node1": "192.0.2.11", "node2": "192.0.2.12"},
    "unreadable": ["the API: no answer"],
    "node": "node1",
    "address": "192.0.2.11",
    "dns_servers": [],
    "cluster_domain": "cluster.local",
}
VIEW: dict[str, Any] = {
    "cluster_ips": ["10.96.196.49"],
    "endpoints": [{"address": "10.244.0.4", "node": "node2"}],
}


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of programs, which are all that a host has."""
    monkeypatch.setattr(commands, "PATH", f"{tmp_path}")
    return tmp_path


def program(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def running_proxy(monkeypatch: pytest.MonkeyPatch, active: str = "active") -> None:
    monkeypatch.setattr(units_io, "show", lambda names: dict.fromkeys(names, Unit(load="loaded", active=active)))


def test_rules_and_routes_are_read(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running_proxy(monkeypatch)
    program(programs, "nft", f"/bin/cat {RECORDED}")
    program(programs, "ip", """echo '[{"dst":"10.244.0.0/24","gateway":"192.0.2.12","dev":"eth0","flags":[]}]'""")
    facts = service_path_info.look({**OPTIONS, "view": VIEW, "unreadable": []})
    assert facts.tables["ip"].there
    assert facts.routes["10.244.0.4"] == {"dst": "10.244.0.0/24", "gateway": "192.0.2.12", "dev": "eth0"}
    # Whether a router is between the hosts is told by the route to the node itself.
    assert "192.0.2.12" in facts.routes
    assert facts.unreadable == []


def test_a_host_without_nft_and_with_kube_proxy_down_says_so(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running_proxy(monkeypatch, "failed")
    facts = service_path_info.look(OPTIONS)
    assert facts.tables == {}
    assert facts.unreadable == [
        "the API: no answer",
        "kube-proxy's rules: nft -j list table ip kube-proxy: there is no nft on this host",
        "kube-proxy.service is failed (dead): its rules are those of the moment when it stopped",
    ]


def test_a_table_without_rules_and_a_missing_route_are_said(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running_proxy(monkeypatch)
    program(programs, "nft", "echo '{\"nftables\": []}'")
    program(programs, "ip", "echo 'RTNETLINK answers: Network is unreachable' >&2; exit 2")
    facts = service_path_info.look({**OPTIONS, "view": VIEW})
    assert any("table ip kube-proxy has none" in line for line in facts.unreadable)
    assert "Network is unreachable" in facts.routes["10.244.0.4"]["fault"]


def test_a_service_without_addresses_needs_no_rules(programs: Path) -> None:
    facts = service_path_info.look({**OPTIONS, "view": {"cluster_ips": [], "endpoints": []}, "unreadable": []})
    assert (facts.tables, facts.unreadable) == ({}, [])


def test_a_name_server_that_is_not_there_is_a_fault_of_its_answer() -> None:
    answer = service_path_info.ask("127.0.0.53x", "web.shop.svc.cluster.local")
    assert answer["fault"]
    assert answer["addresses"] == []


def test_a_host_is_read_as_far_as_it_can_be(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_names: list[str]) -> dict[str, Unit]:
        raise UnitError("There is no systemctl on this host. Hosts must run systemd.")

    monkeypatch.setattr(units_io, "show", gone)
    program(programs, "ip", "echo '[]'")
    facts = host_info.look(("-4", "-6"))
    assert facts.routes == []
    for words in (
        "units: There is no systemctl",
        "services: systemctl",
        "packet filter: nft -j -t list ruleset: there",
    ):
        assert any(line.startswith(words) for line in facts.unreadable), facts.unreadable


def test_tables_of_nftables_are_sorted_and_those_of_kube_proxy_counted(programs: Path) -> None:
    rules = json.loads(RECORDED.read_text(encoding="utf-8"))["nftables"]
    jump = {"family": "ip", "table": "filter", "chain": "INPUT", "expr": [{"jump": {"target": "KUBE-FIREWALL"}}]}
    others = [{"table": {"family": "ip", "name": "filter"}}, {"rule": jump}]
    (programs / "rules.json").write_text(json.dumps({"nftables": [{"metainfo": {}}, *others, *rules]}))
    program(programs, "nft", f"/bin/cat {programs}/rules.json")
    tables = {table.name: table for table in host_info.filter_tables()}
    assert [(chain.name, chain.targets) for chain in tables["filter"].chains] == [("INPUT", ["KUBE-FIREWALL"])]
    counts = tables["kube-proxy"].counts
    assert counts is not None
    assert counts.ports == 7
    assert tables["filter"].counts is None


def test_a_rule_for_an_interface_is_known_by_it() -> None:
    # As iptables-nft writes it.
    match = {"match": {"op": "==", "left": {"meta": {"key": "oifname"}}, "right": "kube-bridge"}}
    comment = {"xt": {"type": "match", "name": "comment"}}
    assert host_info.target_of({"expr": [match, comment, {"accept": None}]}) == "@kube-bridge"
    assert host_info.target_of({"expr": [match, {"jump": {"target": "KUBE-ROUTER-FORWARD"}}]}) == "KUBE-ROUTER-FORWARD"
    assert host_info.target_of({"expr": [{"accept": None}]}) == ""


def test_the_end_of_a_certificate_is_a_time() -> None:
    assert host_info.end_of("notAfter=Nov 21 20:52:11 2027 GMT\n") == 1826830331.0
    with pytest.raises(host_reading.ReadError, match="openssl says"):
        host_info.end_of("unable to load certificate")
