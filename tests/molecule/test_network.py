# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The pod network as it is on hosts, whichever was chosen."""

from __future__ import annotations

import ipaddress
import json
from typing import Any

import pytest
from kubernetes import client
from lab_cluster import Host, members

# What each network puts on a host beside the bridge: its interfaces, for IPv4 and IPv6 where it carries both, and the
# certificate that it reads the API with.
INTERFACES = {("flannel", "vxlan"): ["flannel.1", "flannel-v6.1"], ("flannel", "wireguard"): ["flannel-wg"]}
IDENTITIES = {"bridge": "node-routes", "flannel": "flannel", "kube_router": "kube-router"}
BRIDGES = {"kube_router": "kube-bridge"}


def tunnels(facts: dict[str, Any]) -> list[str]:
    """Return the interfaces of a network, one for each family of addresses; none without a tunnel."""
    return INTERFACES.get((facts["network"]["kind"], facts["network"]["backend"]), [])[: int(facts["families"])]


def links(host: Host) -> dict[str, dict[str, Any]]:
    return {link["ifname"]: link for link in json.loads(host.check_output("ip -j link show"))}


@pytest.mark.on("nodes")
def test_pods_of_every_other_node_have_a_way(host: Host, name: str, facts: dict[str, Any], api: Any) -> None:
    """With a tunnel through its interface, without one straight to the other node."""
    nodes = {node.metadata.name: node for node in client.CoreV1Api(api).list_node().items}
    addresses = {node["name"]: [node["address"], node["address_ipv6"]] for node in facts["topology"]["nodes"]}
    for other in set(nodes) - {name}:
        networks = nodes[other].spec.pod_cidrs
        assert len(networks) == int(facts["families"])
        for number, network in enumerate(networks):
            pod_address = str(ipaddress.ip_network(network)[2])
            (route,) = json.loads(host.check_output("ip -j route get %s", pod_address))
            if tunnels(facts):
                assert route["dev"] == tunnels(facts)[number], other
            else:
                assert route["gateway"] == addresses[other][number], other


@pytest.mark.on("nodes")
def test_packets_of_pods_are_as_long_as_the_link_leaves(host: Host, facts: dict[str, Any]) -> None:
    found = links(host)
    (own,) = json.loads(host.check_output("ip -j address show to %s", facts["address"]))
    # A bridge has the MTU of what is connected to it: where no pod runs, what the next one gets has to be asked for.
    (plugin, *_) = json.loads(host.check_output("cat /etc/cni/net.d/10-plainkube.conflist"))["plugins"]
    bridge = BRIDGES.get(facts["network"]["kind"], "cni0")
    assert plugin.get("mtu", found[bridge]["mtu"]) == own["mtu"] - facts["network"]["overhead"]
    flannels = sorted(link for link in found if link.startswith("flannel"))
    assert flannels == sorted(tunnels(facts))


@pytest.mark.on("nodes")
def test_packet_filters_are_ours_and_readable(host: Host, facts: dict[str, Any]) -> None:
    for family in ("ip", "ip6")[: int(facts["families"])]:
        assert "pods to the outside" in host.check_output("nft list table %s plainkube_pods", family)
    assert "FLANNEL" not in host.check_output("nft list ruleset").upper()


@pytest.mark.on("nodes")
def test_a_network_speaks_for_its_own_node_alone(host: Host, name: str, facts: dict[str, Any]) -> None:
    """Who could note another address on another node would draw its pods' packets."""
    pki, identity = "/etc/kubernetes/pki", IDENTITIES[facts["network"]["kind"]]
    for other in set(members("nodes")) - {name}:
        answer = host.check_output(
            "curl --silent --cacert %s/ca.crt --cert %s.crt --key %s.key --request PATCH --data %s "
            "--header 'Content-Type: application/merge-patch+json' https://127.0.0.1:6443/api/v1/nodes/%s/status",
            pki,
            f"{pki}/{identity}",
            f"{pki}/{identity}",
            json.dumps({"metadata": {"annotations": {"example.org/from": name}}}),
            other,
        )
        assert f'nodes \\"{other}\\" is forbidden' in answer


@pytest.mark.on("nodes")
def test_policies_are_enforced_and_nothing_answers_outside_of_the_host(host: Host, facts: dict[str, Any]) -> None:
    """That each way is allowed or denied as it should be is proven by verify-cluster."""
    for command in ("iptables", "ip6tables")[: int(facts["families"])]:
        assert "-j KUBE-ROUTER-FORWARD" in host.check_output("%s -S FORWARD", command)
    listening = host.check_output("ss -Hltn 'sport = 20241 or sport = 20244'")
    assert {line.split()[3].rpartition(":")[0] for line in listening.splitlines()} == {"127.0.0.1"}
    # Anybody on the host could change routes there.
    assert host.check_output("ss -Hltn 'sport = 50051'") == ""


@pytest.mark.on("nodes")
@pytest.mark.parametrize("path", ["api/v1/secrets", "api/v1/configmaps"])
def test_the_firewall_reads_what_it_needs_and_no_more(host: Host, path: str) -> None:
    pki = "/etc/kubernetes/pki"
    answer = host.check_output(
        "curl --silent --cacert %s/ca.crt --cert %s.crt --key %s.key https://127.0.0.1:6443/%s",
        pki,
        f"{pki}/kube-router",
        f"{pki}/kube-router",
        path,
    )
    assert "plainkube:kube-router" in answer
    assert "forbidden" in answer
