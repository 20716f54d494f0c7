# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is on a host is explained, what is missing is missed, and what is not known is never left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils import host_views, plain_text, proxy_rules
from ansible_collections.plainkube.cluster.plugins.module_utils.host_views import Chain, Facts, FilterTable, explain

RECORDED = json.loads((Path(__file__).parent / "recorded" / "kube-proxy.nft.json").read_text(encoding="utf-8"))
PROXY = proxy_rules.Table(RECORDED)
NODES = [{"name": "node1", "address": "192.0.2.11"}, {"name": "node2", "address": "192.0.2.12"}]
CLUSTER = {"topology": {"etcd": [], "control_plane": [], "nodes": NODES, "ingress": [], "edge": []}}
NOW = 1_800_000_000.0
DAY = 86400


def listener(port: int, process: str, address: str = "0.0.0.0", protocol: str = "tcp") -> dict[str, Any]:
    return {"protocol": protocol, "address": address, "port": port, "process": process, "pid": 1}


# What ip -j printed on a node, shortened.
LINKS = [
    {"ifname": "lo", "mtu": 65536, "addr_info": [{"local": "127.0.0.1", "prefixlen": 8}]},
    {
        "ifname": "eth0",
        "mtu": 1500,
        "linkinfo": {"info_kind": "veth"},
        "addr_info": [{"local": "192.0.2.11", "prefixlen": 24}, {"local": "fe80::aff:fe59:5e0b", "prefixlen": 64}],
    },
    {"ifname": "cni0", "mtu": 1500, "addr_info": [{"local": "10.244.1.1", "prefixlen": 24}]},
    {"ifname": "veth60f9cf81", "master": "cni0", "mtu": 1500, "addr_info": []},
    {"ifname": "veth5d7cae3a", "master": "cni0", "mtu": 1500, "addr_info": []},
]
ROUTES = [
    {"dst": "default", "gateway": "192.0.2.1", "dev": "eth0", "protocol": "static", "metric": 100},
    {"dst": "192.0.2.0/24", "dev": "eth0", "protocol": "kernel", "scope": "link", "prefsrc": "192.0.2.11"},
    {"dst": "10.244.0.0/24", "gateway": "192.0.2.12", "dev": "eth0", "protocol": "76"},
    {"dst": "10.244.1.0/24", "dev": "cni0", "protocol": "kernel", "scope": "link", "prefsrc": "10.244.1.1"},
    {"type": "local", "dst": "192.0.2.11", "dev": "eth0", "table": "local", "protocol": "kernel"},
    {"dst": "fe80::/64", "dev": "eth0", "protocol": "kernel", "metric": 256},
]
RULES = [
    {"priority": 0, "src": "all", "table": "local"},
    {"priority": 32766, "src": "all", "table": "main"},
    {"priority": 32767, "src": "all", "table": "default"},
]
FILTER = FilterTable(
    "ip",
    "filter",
    [Chain("INPUT", ["KUBE-FIREWALL"]), Chain("OUTPUT", ["KUBE-FIREWALL"]), Chain("KUBE-FIREWALL", [""])],
)
WELL = Facts(
    now=NOW,
    units={"kubelet.service": {"state": "active", "well": True, "since": NOW - 7200}},
    listeners=[
        listener(22, "sshd"),
        listener(10250, "kubelet", "::"),
        listener(10256, "kube-proxy", "::"),
        listener(6443, "haproxy", "127.0.0.1"),
        listener(10248, "kubelet", "127.0.0.1"),
        listener(10249, "kube-proxy", "127.0.0.1"),
        listener(44211, "containerd", "127.0.0.1"),
    ],
    links=LINKS,
    routes=ROUTES,
    rules=RULES,
    tables=[
        FilterTable(
            "ip",
            "kube-proxy",
            [Chain(name, [""] * len(rules)) for name, rules in PROXY.chains.items()],
            proxy_rules.count(PROXY),
        ),
        FILTER,
    ],
    mounts=["/", "/proc/sys/net", "/var/lib/kubelet", "/run/netns/cni-1", "/run/netns/cni-2"],
    certificates={"/etc/kubernetes/pki/kubelet.crt": NOW + 300 * DAY},
)


SSH_IS_FOR = "Ansible, and you"


def explained(**changes: Any) -> dict[str, Any]:
    return explain(Facts(**{**WELL.__dict__, **changes}), CLUSTER, "node1", "192.0.2.11")


@pytest.mark.parametrize(("port", "process"), [(2222, "sshd"), (22, "systemd")])
def test_ssh_may_be_forwarded_from_another_port_or_started_by_systemd(port: int, process: str) -> None:
    others = [item for item in WELL.listeners if item["process"] != "sshd"]
    answer = explained(listeners=[listener(port, process), *others])
    assert (answer["wrong"], answer["unknown"]) == ([], [])
    assert f"nobody listens at tcp 22, where sshd should: {SSH_IS_FOR}" in explained(listeners=others)["wrong"]


def test_nothing_is_wrong_and_nothing_unknown_on_a_host_that_is_as_it_should_be() -> None:
    answer = explained()
    assert (answer["wrong"], answer["unknown"], answer["unreadable"]) == ([], [], [])
    text = host_views.text(answer, "node1", "192.0.2.11")
    for words in (
        "node1 (192.0.2.11) is one of the nodes",
        "kubelet  active for 2 h  starts and watches this node's pods",
        "tcp [::]:10250",
        "tcp 127.0.0.1:44211  containerd",
        "this host's address in the cluster: 192.0.2.11/24",
        "2 ends of pods' interfaces on cni0",
        "pods of node2, by node-routes",
        "7 ports of Services",
        "1 in 1 chain of kubelet: drops packets from outside to addresses of loopback",
        "2  /run/netns/*      network namespaces of pods",
        "300 d  /etc/kubernetes/pki/kubelet.crt",
    ):
        assert words in text, words
    assert "somebody else" not in text
    assert max(len(line) for line in text.splitlines()) <= plain_text.WIDTH
    assert not any(line != line.rstrip() for line in text.splitlines())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"units": {"kube-proxy.service": {"state": "failed (failed)", "well": False, "since": 0}}},
            "kube-proxy.service is failed (failed): carries Services",
        ),
        ({"listeners": WELL.listeners[:1]}, "nobody listens at tcp 10250, where kubelet should: logs, exec"),
        (
            {"listeners": [*WELL.listeners, listener(10249, "kube-proxy")]},
            "kube-proxy listens at 0.0.0.0 port 10249, where others reach it; it is for the host alone",
        ),
        ({"certificates": {"/etc/etcd/pki/peer.crt": NOW + 3 * DAY}}, "/etc/etcd/pki/peer.crt ends in 3 days"),
    ],
)
def test_what_is_wrong_is_said(changes: dict[str, Any], says: str) -> None:
    answer = explained(**changes)
    assert any(says in line for line in answer["wrong"]), answer["wrong"]
    assert "What is not as it should be" in host_views.text(answer, "node1", "192.0.2.11")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"listeners": [*WELL.listeners, listener(111, "rpcbind")]}, "tcp 0.0.0.0:111: rpcbind"),
        ({"listeners": [*WELL.listeners, listener(68, "", "::", "udp")]}, "udp [::]:68: a process that cannot be seen"),
        # Somebody else's program on a port of ours is not ours.
        ({"listeners": [*WELL.listeners, listener(10250, "nginx", "192.0.2.11")]}, "tcp 192.0.2.11:10250: nginx"),
        ({"links": [*LINKS, {"ifname": "docker0", "addr_info": []}]}, "interface docker0"),
        (
            {"routes": [*ROUTES, {"dst": "198.51.100.0/24", "gateway": "192.0.2.9", "protocol": "99"}]},
            "198.51.100.0/24 via",
        ),
        ({"rules": [*RULES, {"priority": 5, "src": "192.0.2.9", "table": "200"}]}, "src 192.0.2.9 table 200"),
        ({"tables": [FilterTable("inet", "firewalld", [Chain("a", ["", ""])])]}, "table inet firewalld: 2 rules"),
        ({"tables": [FilterTable("ip", "filter", [*FILTER.chains, Chain("DOCKER", [""])])]}, "chain DOCKER (1 rule)"),
        (
            {"tables": [FilterTable("ip", "filter", [*FILTER.chains, Chain("FORWARD", ["", "KUBE-ROUTER-FORWARD"])])]},
            "table ip filter: 1 rule of chain FORWARD",
        ),
        ({"old_tables": ["nat"]}, "iptables-legacy-save shows: nat"),
        ({"mounts": ["/mnt/nfs"]}, "mount /mnt/nfs"),
        ({"other_services": ["ssh.service", "cron.service"]}, "services: ssh, cron"),
    ],
)
def test_what_is_not_known_is_somebody_else_s(changes: dict[str, Any], says: str) -> None:
    answer = explained(**changes)
    assert any(says in line for line in answer["unknown"]), answer["unknown"]
    assert says.split(" via")[0] in host_views.text(answer, "node1", "192.0.2.11")


def test_a_tunnel_s_port_is_the_kernel_s_own() -> None:
    cluster = {**CLUSTER, "network": "flannel", "backend": "vxlan"}
    facts = Facts(**{**WELL.__dict__, "listeners": [*WELL.listeners, listener(8472, "", "0.0.0.0", "udp")]})
    answer = explain(facts, cluster, "node1", "192.0.2.11")
    assert answer["unknown"] == []
    text = host_views.text(answer, "node1", "192.0.2.11")
    assert "udp 0.0.0.0:8472" in text
    assert text.count("8472") == 1


def test_plain_routes_of_flannel_are_its_own() -> None:
    route = {"dst": "10.244.0.0/24", "gateway": "192.0.2.12", "dev": "eth0", "flags": []}
    (found,) = host_views.routes(Facts(routes=[route]), {**CLUSTER, "network": "flannel"})
    assert found["what_for"] == "pods of node2, by flanneld"


def test_routes_of_ipv6_lead_to_nodes_by_their_ipv6_addresses() -> None:
    route = {"dst": "fd00:10:244:1::/64", "gateway": "2001:db8::12", "dev": "eth0", "protocol": "76"}
    nodes = [{"name": "node2", "address": "192.0.2.12", "address_ipv6": "2001:db8::12"}]
    (found,) = host_views.routes(Facts(routes=[route]), {**CLUSTER, "topology": {"nodes": nodes}})
    assert found["what_for"] == "pods of node2, by node-routes"


def test_rules_of_kube_router_for_its_bridge_are_its_own() -> None:
    chains = [Chain("FORWARD", ["KUBE-ROUTER-FORWARD", "@kube-bridge"]), Chain("KUBE-ROUTER-FORWARD", [""])]
    assert explained(tables=[FilterTable("ip", "filter", chains)])["unknown"] == []
    assert explained(tables=[FilterTable("ip", "filter", [*chains, Chain("INPUT", ["@docker0"])])])["unknown"] != []


def test_a_half_broken_host_is_explained_as_far_as_it_can_be_read() -> None:
    answer = explained(tables=[], links=[], unreadable=["packet filter: nft: there is no nft on this host"])
    text = host_views.text(answer, "node1", "192.0.2.11")
    assert "? packet filter: nft: there is no nft on this host" in text
    assert "Units" in text


def test_a_learned_default_route_is_no_route_to_pods() -> None:
    (route,) = host_views.routes(
        Facts(routes=[{"dst": "default", "gateway": "192.0.2.12", "protocol": "dhcp"}]), CLUSTER
    )
    assert "pods" not in route["what_for"]
