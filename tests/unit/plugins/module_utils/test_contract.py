# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One wrong thing in an inventory gives one fault that names it; a sound inventory gives none."""

from __future__ import annotations

import ipaddress
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.plainkube.cluster.plugins.module_utils import contract
from ansible_collections.plainkube.cluster.plugins.module_utils.contract import Fault, Inventory
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError

SPECIFICATION = yaml.safe_load(
    (Path(__file__).parents[4] / "roles" / "cluster" / "meta" / "argument_specs.yml").read_text(encoding="utf-8")
)["argument_specs"]["main"]["options"]

SOUND = {
    **{name: option["default"] for name, option in SPECIFICATION.items()},
    "plainkube_artifact_folder": "/home/admin/mirror",
    "plainkube_state_dir": "/home/admin/state",
}
GROUPS = {"etcd": ["a", "b", "c"], "control_plane": ["a", "b", "c"], "workers": ["d", "e"], "all": list("abcde")}
HOSTS = {name: {"plainkube_address": f"192.0.2.{number}"} for number, name in enumerate("abcde", start=11)}


def version_words(version: str, overrides: Any) -> list[str]:
    return [] if version == SOUND["plainkube_kubernetes_version"] and not overrides else ["Use another one."]


def faults_of(
    shared: dict[str, Any] | None = None,
    hosts: dict[str, dict[str, Any]] | None = None,
    groups: dict[str, list[str]] | None = None,
    set_names: dict[str, list[str]] | None = None,
    playing: str | None = None,
) -> list[Fault]:
    """Return the faults of the sound inventory with some things in it replaced."""
    values = {name: {**SOUND, **(shared or {}), **own, **(hosts or {}).get(name, {})} for name, own in HOSTS.items()}
    inventory = Inventory(
        groups={**GROUPS, **(groups or {})},
        hosts=values,
        set_names=set_names or {},
        playing=None if playing is None else frozenset(playing),
    )
    return contract.contract_faults(SPECIFICATION, inventory, version_words)


PASSWORD = {"plainkube_backup_password": "correct horse battery"}


@pytest.mark.parametrize(
    "repository",
    [
        "s3:https://s3.example.org/bucket/etcd",
        "sftp:me@host:/srv/b",
        "sftp://me@host:22//srv/b",
        "rest:https://host/b/",
        "/srv/b",
    ],
)
def test_backups_may_go_to_many_places(repository: str) -> None:
    assert faults_of({**PASSWORD, "plainkube_backup_repository": repository}) == []


@pytest.mark.parametrize(
    ("shared", "words"),
    [
        ({"plainkube_backup_repository": "/srv/b"}, "at least 12 characters"),
        ({"plainkube_backup_repository": "/srv/b", "plainkube_backup_password": "short"}, "at least 12 characters"),
        ({**PASSWORD, "plainkube_backup_repository": "/home/me/b"}, "Mount it elsewhere"),
        ({**PASSWORD, "plainkube_backup_repository": "backups"}, "or /folder"),
        ({**PASSWORD, "plainkube_backup_repository": "ftp://host/b"}, "or /folder"),
        ({**PASSWORD, "plainkube_backup_repository": "sftp:host"}, "or /folder"),
        ({**PASSWORD, "plainkube_backup_repository": "rest:https://me:hush@host/b/"}, "RESTIC_REST_PASSWORD"),
        ({"plainkube_backup_environment": {"AWS KEY": "hush"}}, 'see "AWS KEY"'),
        ({"plainkube_backup_environment": {"AWS_KEY": "hush\nhush"}}, 'see "AWS_KEY"'),
    ],
)
def test_a_place_for_backups_is_complete_and_no_secret_is_shown(shared: dict[str, Any], words: str) -> None:
    (fault,) = faults_of(shared)
    assert words in str(fault)
    assert "hush" not in str(fault)
    assert "short" not in str(fault)


def test_secrets_that_differ_between_hosts_are_not_shown() -> None:
    found = faults_of(hosts={"a": PASSWORD, "b": {"plainkube_backup_password": ["hush"]}})
    assert [fault.variable for fault in found if "backup" in fault.variable]
    assert not [fault for fault in found if "horse" in str(fault) or "hush" in str(fault)]


def test_a_rule_for_dots_needs_an_api_server_that_changes_pods() -> None:
    wish = {"plainkube_dns_ndots": 2}
    assert faults_of(wish) == []
    faults = faults_of({**wish, "plainkube_kubernetes_version": "1.35.8"})
    assert [fault.wanted[:22] for fault in faults if fault.variable == "plainkube_dns_ndots"] == [
        "0 before Kubernetes 1."
    ]


def test_zones_and_hosts_of_the_site_are_no_fault() -> None:
    shared = {
        "plainkube_dns_servers": ["192.0.2.53"],
        "plainkube_dns_zones": {"example.org": ["192.0.2.54", "192.0.2.55:5353"]},
        "plainkube_dns_hosts": {"mail.example.org": ["192.0.2.25", "2001:db8::25"]},
    }
    assert faults_of(shared) == []


def test_a_sound_inventory_has_no_fault() -> None:
    assert faults_of(playing="abc") == []


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        # networks
        ("plainkube_pod_cidr", "10.244.0.0", "fits 0 times"),
        ("plainkube_pod_cidr", "10.244.0.0/33", "10.244.0.0/16"),
        ("plainkube_pod_cidr", "fd00::/48", "IPv4"),
        ("plainkube_pod_cidr", "10.244.1.0/16", "Write 10.244.0.0/16"),
        ("plainkube_pod_cidr", "10.244.0.0/22", "/24 fits 4 times"),
        ("plainkube_pod_cidr", "127.0.0.0/8", "127.0.0.0/8"),
        ("plainkube_pod_cidr", "10.64.0.0/10", "overlaps plainkube_pod_cidr"),
        ("plainkube_node_cidr_size", 29, "at most 28"),
        ("plainkube_node_cidr_size", 15, "/15 fits 0 times"),
        ("plainkube_service_cidr", "10.96.0.0/25", "/12 to /24"),
        ("plainkube_service_cidr", "10.244.128.0/20", "overlaps plainkube_pod_cidr 10.244.0.0/16"),
        # names
        ("plainkube_cluster_name", "Prod_1", "a-z"),
        ("plainkube_cluster_domain", "cluster.local.", "dot"),
        ("plainkube_api_names", ["https://api.example.org"], "without https://"),
        # numbers
        ("plainkube_api_port", 443, "1024"),
        ("plainkube_api_port", 31000, "node ports"),
        ("plainkube_api_port", 2379, "etcd"),
        ("plainkube_certificate_days", 366, "365"),
        ("plainkube_kubelet_certificate_minutes", 5, "10"),
        # places
        ("plainkube_artifact_source", "ftp://mirror.example.org", "http(s)://"),
        ("plainkube_artifact_source", "https://", "http(s)://"),
        ("plainkube_artifact_source", "file://relative", "file:///"),
        ("plainkube_artifact_folder", "mirror", "absolute"),
        ("plainkube_state_dir", "~/state", "absolute"),
        ("plainkube_state_dir", "/", "absolute"),
        # versions
        ("plainkube_kubernetes_version", "1.20.0", "Use another one."),
        ("plainkube_versions", {"etcd": "2.3.8"}, "Use another one."),
        # hosts
        ("plainkube_zone", "room 1", "topology.kubernetes.io/zone"),
        ("plainkube_node_labels", {"example.org/gpu": True}, 'example.org/gpu: "true"'),
        ("plainkube_node_labels", {"a/b/c": "x"}, "a/b/c"),
        ("plainkube_node_labels", {"room": "first floor"}, "at most 63"),
        ("plainkube_node_taints", [{"key": "gpu"}], "plainkube_node_taints[0].effect"),
        ("plainkube_node_taints", [{"key": "gpu", "effect": "NoSchedul"}], "Did you mean NoSchedule?"),
        ("plainkube_node_taints", [{"key": "g p", "effect": "PreferNoSchedule"}], "g p"),
        ("plainkube_node_taints", [{"key": "gpu", "effect": "PreferNoSchedule", "vaule": "x"}], "Rename it to value"),
        ("plainkube_node_taints", ["gpu=yes:NoSchedule"], "a mapping"),
        ("plainkube_node_taints", [{"key": "gpu", "effect": "PreferNoSchedule"}] * 2, "twice"),
        # names and who answers for them
        ("plainkube_dns_cache_address", "192.0.2.10", "169.254.0.0/16"),
        ("plainkube_dns_cache_address", "169.254.169.254", "169.254.169.0/24"),
        ("plainkube_dns_cache_address", "dns", "169.254.20.10 is usual"),
        ("plainkube_dns_cache", "yes", "true or false"),
        ("plainkube_dns_servers", ["127.0.0.53"], "that pods can reach"),
        ("plainkube_dns_servers", ["192.0.2.53:5353"], "port 53 is asked"),
        ("plainkube_dns_servers", ["169.254.20.10"], "the nodes' cache"),
        ("plainkube_dns_servers", ["10.96.0.10"], "the cluster's own name server"),
        ("plainkube_dns_zones", {"example.org.": ["192.0.2.53"]}, "without a dot"),
        ("plainkube_dns_zones", {"example.org": "192.0.2.53"}, "a list of IPv4 addresses"),
        ("plainkube_dns_zones", {"example.org": ["192.0.2.53:0"]}, "with :port"),
        ("plainkube_dns_zones", {"example.org": ["10.96.0.10:53"]}, "the cluster's own name server"),
        ("plainkube_dns_zones", {"a.cluster.local": ["192.0.2.53"]}, "a zone of the cluster itself"),
        ("plainkube_dns_ndots", 16, "from 1 to 15"),
        ("plainkube_dns_hosts", {"Mail": ["192.0.2.25"]}, "lower case"),
        ("plainkube_dns_hosts", {"mail.example.org": []}, "a list of addresses"),
        # types and choices
        ("plainkube_kubernetes_version", 1.37, "quotes"),
        ("plainkube_api_port", "https", "a whole number"),
        ("plainkube_api_port", True, "a whole number"),
        ("plainkube_cluster_name", False, "quotes"),
        ("plainkube_api_names", "api.example.org", "a list"),
        ("plainkube_node_labels", ["a=b"], "a mapping"),
        ("plainkube_image_source", "archives", "Did you mean archive?"),
        ("plainkube_network", "weave", "bridge"),
        ("plainkube_network", "kube-router", "Did you mean kube_router?"),
        ("plainkube_network_backend", "hostgw", "Did you mean host-gw?"),
        ("plainkube_network_policy", "yes", "true or false"),
        ("plainkube_pod_mtu", 1000, "from 1280 to 65535"),
        ("plainkube_pod_mtu", -1, "from 1280"),
        # routes by BGP
        ("plainkube_bgp_as_number", 64511, "from 64512 to 65534 or from 4200000000"),
        ("plainkube_bgp_as_number", 65535, "private"),
        ("plainkube_bgp_peers", [{"address": "router.example.org", "as_number": 64600}], "IPv4 address"),
        ("plainkube_bgp_peers", [{"address": "192.0.2.1", "as_number": 0}], "from 1 to 4294967294 in peer 0"),
        ("plainkube_bgp_peers", [{"address": "192.0.2.1"}], "plainkube_bgp_peers[0].as_number"),
        (
            "plainkube_bgp_peers",
            [{"address": "192.0.2.1", "as_number": 64600}, {"address": "192.0.2.1", "as_number": 64601}],
            "192.0.2.1",
        ),
        ("plainkube_bgp_tunnel", "other-segments", "Did you mean other_segments?"),
    ],
)
def test_one_wrong_value_gives_one_fault(variable: str, value: Any, words: str) -> None:
    (fault,) = faults_of({variable: value})
    assert fault.host == "inventory"
    assert words in str(fault)
    # Overlap and lack of room are faults of two variables; they name the other one in words.
    assert variable in str(fault)


@pytest.mark.parametrize(
    ("host", "own", "where", "words"),
    [
        ("b", {"plainkube_address": "192.0.2.11"}, "a, b", "192.0.2.11 on 2 hosts"),
        ("b", {"plainkube_address": "node-b"}, "b", "an IPv4 address"),
        ("b", {"plainkube_address": "127.0.0.1"}, "b", "reach"),
        (
            "b",
            {"plainkube_address": "10.96.4.4"},
            "b",
            "without the hosts' own addresses (plainkube_address 10.96.4.4)",
        ),
        ("b", {"plainkube_zone": "a b"}, "b", "63"),
        ("b", {"plainkube_pod_cidr": "10.20.0.0/16"}, "inventory", "one value for the whole cluster"),
    ],
)
def test_a_fault_of_one_host_names_it(host: str, own: dict[str, Any], where: str, words: str) -> None:
    (fault,) = faults_of(hosts={host: own})
    assert (fault.host, fault.variable) == (where, next(iter(own))) or "10.96.4.4" in str(own)
    assert words in str(fault)


@pytest.mark.parametrize(
    ("groups", "variable", "words"),
    [
        ({"etcd": []}, "plainkube_etcd_group", "an empty group"),
        ({"etcd": ["a", "b"]}, "plainkube_etcd_group", "2 etcd members (a, b)"),
        ({"etcd": [f"e{number}" for number in range(9)]}, "plainkube_etcd_group", "slower"),
        ({"control_plane": []}, "plainkube_control_plane_group", "an empty group"),
        ({"workers": []}, "plainkube_workers_group", "a host that takes workloads"),
    ],
)
def test_groups_have_members(groups: dict[str, list[str]], variable: str, words: str) -> None:
    (fault,) = faults_of(groups=groups)
    assert fault.variable == variable
    assert words in str(fault)


@pytest.mark.parametrize(("workers", "count"), [(["a"], 0), (["d"], 1)])
def test_the_pod_network_has_room_for_one_node_more(workers: list[str], count: int) -> None:
    faults = faults_of({"plainkube_pod_cidr": "10.244.0.0/22"}, groups={"workers": workers})
    assert [fault.variable for fault in faults] == ["plainkube_pod_cidr"] * count


def test_a_missing_group_is_likened_to_those_that_exist() -> None:
    (fault,) = faults_of({"plainkube_workers_group": "worker"})
    assert 'no group "worker"' in fault.found
    assert "Rename group workers to worker, or set plainkube_workers_group to workers" in fault.remedy


def test_ingress_and_edge_may_be_missing_but_not_misspelt() -> None:
    assert faults_of(groups={"ingress": [], "edge": ["f"]}) == []
    (fault,) = faults_of({"plainkube_ingress_group": "front"}, groups={"fronts": ["d"]})
    assert (fault.variable, fault.found) == ("plainkube_ingress_group", 'no group "front"')
    assert "fronts" in fault.remedy


@pytest.mark.parametrize(
    ("groups", "host", "words"),
    [
        ({"ingress": ["d", "f"]}, "f", "a host without a kubelet"),
        ({"edge": ["f", "a"]}, "a", "a host that is in etcd, control_plane too"),
    ],
)
def test_ingress_is_on_nodes_and_the_edge_outside(groups: dict[str, list[str]], host: str, words: str) -> None:
    (fault,) = faults_of(groups=groups)
    assert fault.host == host
    assert words in fault.found


EDGE = {"f": {**SOUND, "plainkube_address": "192.0.2.20"}}
API_SERVICE = {"name": "api", "kind": "api"}


def edge_faults(**own: Any) -> list[Fault]:
    """Return the faults of the sound inventory with a host of the edge that has these values."""
    values = {**{name: {**SOUND, **host} for name, host in HOSTS.items()}, "f": {**EDGE["f"], **own}}
    groups = {**GROUPS, "ingress": ["d"], "edge": ["f"]}
    return contract.contract_faults(SPECIFICATION, Inventory(groups, values, {}), version_words)


@pytest.mark.parametrize(
    ("own", "variable", "words"),
    [
        ({"plainkube_edge_services": [{"name": "web"}]}, "plainkube_edge_services[0].kind", "nothing"),
        (
            {
                "plainkube_edge_services": [
                    {"name": "a", "kind": "tcp", "port": 80},
                    {"name": "b", "kind": "http", "port": 80},
                ]
            },
            "plainkube_edge_services",
            "services a and b at 0.0.0.0 and 0.0.0.0 port 80",
        ),
        ({"plainkube_edge_services": [{"name": "a", "kind": "http"}]}, "plainkube_edge_services", "service a: no port"),
        ({"plainkube_edge_services": [API_SERVICE]}, "plainkube_api_names", "an API service at the edge"),
        (
            {"plainkube_edge_address": "192.0.2.99/24", "plainkube_edge_interface": "eth0"},
            "plainkube_edge_address",
            "an IPv4 address, or nothing",
        ),
        (
            {"plainkube_edge_address": "192.0.2.11", "plainkube_edge_interface": "eth0"},
            "plainkube_edge_address",
            "which is plainkube_address of a",
        ),
        ({"plainkube_edge_address": "192.0.2.99"}, "plainkube_edge_interface", "the interface that gets"),
    ],
)
def test_a_wrong_edge_gives_one_fault(own: dict[str, Any], variable: str, words: str) -> None:
    (fault,) = edge_faults(**own)
    assert fault.variable == variable
    assert words in str(fault)


def test_a_sound_edge_has_no_fault() -> None:
    services = [{"name": "web", "kind": "http", "port": 80}, {"name": "tls", "kind": "tcp", "port": 443}]
    assert edge_faults(plainkube_edge_services=services) == []
    assert edge_faults(plainkube_edge_address="192.0.2.99", plainkube_edge_interface="eth0") == []


def test_services_of_the_edge_need_the_hosts_they_go_to() -> None:
    services = {"plainkube_edge_services": [{"name": "web", "kind": "http", "port": 80}]}
    values = {**{name: {**SOUND, **host} for name, host in HOSTS.items()}, "f": {**EDGE["f"], **services}}
    inventory = Inventory({**GROUPS, "edge": ["f"]}, values, {})
    (fault,) = contract.contract_faults(SPECIFICATION, inventory, version_words)
    assert "no host in the ingress group" in str(fault)


def test_taints_may_not_keep_pods_off_every_worker() -> None:
    taint = {"plainkube_node_taints": [{"key": "gpu", "effect": "NoSchedule"}]}
    assert faults_of(hosts={"d": taint}) == []
    (fault,) = faults_of(hosts={"d": taint, "e": taint})
    assert (fault.host, fault.variable) == ("d, e", "plainkube_node_taints")


@pytest.mark.parametrize(
    ("set_names", "where", "wanted"),
    [
        ({"a": ["plainkube_pod_cird"], "b": []}, "a", "plainkube_pod_cidr"),
        ({"a": ["plainkube_pod_cird"], "b": ["plainkube_pod_cird"]}, "inventory", "plainkube_pod_cidr"),
        ({"a": ["plainkube_x"], "b": ["ansible_host", "plainkube_zone"]}, "a", "a variable of the contract"),
    ],
)
def test_a_misspelt_variable_is_likened_to_those_that_exist(
    set_names: dict[str, list[str]], where: str, wanted: str
) -> None:
    (fault,) = faults_of(set_names=set_names)
    assert (fault.host, fault.wanted) == (where, wanted)


def test_a_name_that_no_node_can_have_is_a_fault() -> None:
    inventory = Inventory(GROUPS, {"node_1": {}, "n" * 64: {}, "node-1.example.org": {}}, {})
    faults = contract.contract_faults(SPECIFICATION, inventory, version_words)
    assert [fault.host for fault in faults] == ["node_1", "n" * 64]


def test_a_play_without_a_member_is_a_fault_where_all_must_be_there() -> None:
    (fault,) = faults_of(playing="abd")
    assert "a run without c" in str(fault)


def test_all_faults_come_at_once() -> None:
    faults = faults_of(
        {"plainkube_service_cidr": "10.244.0.0/16", "plainkube_api_port": 80, "plainkube_kubernetes_version": "1.2.3"},
        hosts={"b": {"plainkube_address": "192.0.2.11", "plainkube_zone": "-"}},
        groups={"etcd": ["a", "b"]},
        set_names={"a": ["plainkube_adress"]},
    )
    assert sorted(fault.variable for fault in faults) == [
        "plainkube_address",
        "plainkube_adress",
        "plainkube_api_port",
        "plainkube_etcd_group",
        "plainkube_kubernetes_version, plainkube_versions",
        "plainkube_service_cidr",
        "plainkube_zone",
    ]


@pytest.mark.parametrize(("name", "text"), [("plainkube_api_port", "6443"), ("plainkube_dns_cache", "true")])
def test_numbers_and_choices_that_came_as_text_are_named_with_the_right_way(name: str, text: str) -> None:
    (fault,) = faults_of({name: text})
    assert (fault.variable, fault.found) == (name, f'the text "{text}"')
    assert fault.remedy == f"""Write {text}; as an extra variable -e '{{"{name}": {text}}}'."""


def test_numbers_as_text_inside_of_other_values_are_named() -> None:
    service = {"name": "web", "kind": "http", "port": "80", "backends": "inventory_control_plane"}
    (fault,) = faults_of({"plainkube_edge_services": [service]})
    assert (fault.variable, fault.found) == ("plainkube_edge_services[0].port", 'the text "80"')
    assert fault.remedy == "Write 80; as an extra variable in JSON."


def test_networks_overlap_exactly_when_they_share_an_address() -> None:
    """Law: a fault about overlap is there if and only if one network holds the other's first address."""
    chance = random.Random(3)

    def network() -> ipaddress.IPv4Network:
        length = chance.randint(12, 20)
        number = int(ipaddress.IPv4Address("10.0.0.0")) + chance.getrandbits(16) * 256
        return ipaddress.IPv4Network((number, length), strict=False)

    seen = set()
    for _ in range(300):
        pods, services = network(), network()
        share = pods.network_address in services or services.network_address in pods
        faults = faults_of({"plainkube_pod_cidr": str(pods), "plainkube_service_cidr": str(services)})
        assert any("overlaps" in fault.found for fault in faults) == share, (pods, services)
        seen.add(share)
    assert seen == {True, False}


@pytest.mark.parametrize(
    ("zones", "words"),
    [
        ({}, []),
        ({"a": "1", "b": "2", "c": "3", "d": "1", "e": "2"}, []),
        ({"a": "1", "b": "2", "c": "3"}, ["not on d, e"]),
        ({"a": "1", "b": "1", "c": "3", "d": "1", "e": "2"}, ["2 of 3 etcd members are in zone 1"]),
        ({"a": "1", "b": "1", "c": "1", "d": "1", "e": "1"}, []),
    ],
)
def test_zones_that_do_not_help_are_worth_a_warning(zones: dict[str, str], words: list[str]) -> None:
    warnings = contract.zone_warnings(
        {name: {"plainkube_zone": zones.get(name, "")} for name in "abcde"}, GROUPS["etcd"]
    )
    assert len(warnings) == len(words)
    assert all(word in warning for word, warning in zip(words, warnings))


DUAL_STACK = {"plainkube_pod_cidr_ipv6": "fd00:10:244::/48", "plainkube_service_cidr_ipv6": "fd00:10:96::/112"}
IPV6_HOSTS = {name: {"plainkube_address_ipv6": f"2001:db8::{number}"} for number, name in enumerate("abcde", start=1)}


def test_both_families_of_addresses_are_no_fault() -> None:
    assert faults_of(DUAL_STACK, hosts=IPV6_HOSTS) == []


@pytest.mark.parametrize(
    ("shared", "variable", "words"),
    [
        ({"plainkube_pod_cidr_ipv6": "10.64.0.0/16"}, "plainkube_pod_cidr_ipv6", "such as fd00:10:244::/48"),
        ({"plainkube_pod_cidr_ipv6": "fd00:10:244:1::/48"}, "plainkube_pod_cidr_ipv6", "Write fd00:10:244::/48"),
        ({"plainkube_pod_cidr_ipv6": "fe80::/48"}, "plainkube_pod_cidr_ipv6", "fe80::/10"),
        ({"plainkube_pod_cidr_ipv6": "::ffff:10:0:0/96"}, "plainkube_pod_cidr_ipv6", "::/8"),
        ({"plainkube_pod_cidr_ipv6": "fd00:10:244::/64"}, "plainkube_pod_cidr_ipv6", "/64 fits 1 times"),
        ({"plainkube_pod_cidr_ipv6": "fd00:10:244::/80"}, "plainkube_pod_cidr_ipv6", "fits 0 times"),
        ({"plainkube_pod_cidr_ipv6": "fd00:20::/40"}, "plainkube_node_cidr_size_ipv6", "at most 56 with"),
        ({"plainkube_pod_cidr_ipv6": "2001:db8::/48"}, "plainkube_pod_cidr_ipv6", "plainkube_address_ipv6 2001:db8::1"),
        ({"plainkube_node_cidr_size_ipv6": 65}, "plainkube_node_cidr_size_ipv6", "at most 64 with"),
        ({"plainkube_service_cidr_ipv6": "fd00:10:96::/107"}, "plainkube_service_cidr_ipv6", "from /108 to /120"),
        ({"plainkube_service_cidr_ipv6": "fd00:10:96::/121"}, "plainkube_service_cidr_ipv6", "from /108 to /120"),
        (
            {"plainkube_service_cidr_ipv6": "fd00:10:244::/112"},
            "plainkube_service_cidr_ipv6",
            "overlaps plainkube_pod_",
        ),
        ({"plainkube_service_cidr_ipv6": ""}, "plainkube_service_cidr_ipv6", "plainkube_pod_cidr_ipv6 set"),
        ({"plainkube_pod_cidr_ipv6": ""}, "plainkube_pod_cidr_ipv6", "plainkube_service_cidr_ipv6 set"),
    ],
)
def test_wrong_networks_of_ipv6_are_named(shared: dict[str, Any], variable: str, words: str) -> None:
    faults = faults_of({**DUAL_STACK, **shared}, hosts=IPV6_HOSTS)
    assert [fault.variable for fault in faults] == [variable] * len(faults)
    assert words in str(faults[0])


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("", "a: plainkube_address_ipv6: found nothing, and plainkube_pod_cidr_ipv6 set"),
        ("192.0.2.1", 'a: plainkube_address_ipv6: found "192.0.2.1"; wanted an IPv6 address'),
        ("2001:db8::1%eth0", 'a: plainkube_address_ipv6: found "2001:db8::1%eth0"; wanted an IPv6 address'),
        ("fe80::1", "a: plainkube_address_ipv6: found fe80::1; wanted an address that other hosts can reach"),
        ("2001:db8::2", "a, b: plainkube_address_ipv6: found 2001:db8::2 on 2 hosts"),
    ],
)
def test_every_node_has_an_ipv6_address_of_its_own(address: str, words: str) -> None:
    (fault,) = faults_of(DUAL_STACK, hosts={**IPV6_HOSTS, "a": {"plainkube_address_ipv6": address}})
    assert str(fault).startswith(words)


def test_all_that_is_wrong_with_ipv6_is_said_at_once() -> None:
    hosts = {**IPV6_HOSTS, "b": {"plainkube_address_ipv6": "x"}, "c": {"plainkube_address_ipv6": ""}}
    faults = faults_of({"plainkube_pod_cidr_ipv6": "fd00::/200"}, hosts=hosts)
    assert {(fault.host, fault.variable) for fault in faults} == {
        ("inventory", "plainkube_pod_cidr_ipv6"),
        ("inventory", "plainkube_service_cidr_ipv6"),
        ("b", "plainkube_address_ipv6"),
        ("c", "plainkube_address_ipv6"),
    }


def test_addresses_of_ipv6_alone_are_asked_for_their_networks() -> None:
    faults = faults_of(hosts=IPV6_HOSTS)
    assert [fault.variable for fault in faults] == ["plainkube_pod_cidr_ipv6", "plainkube_service_cidr_ipv6"]
    assert "nothing, and plainkube_address_ipv6 set" in str(faults[0])


def test_topology_lists_hosts_by_what_they_are_for() -> None:
    hostvars = {
        "b": {"ansible_host": "192.0.2.2", "plainkube_zone": "z"},
        "a": {
            "ansible_host": "203.0.113.1",
            "plainkube_address": "192.0.2.1",
            "plainkube_address_ipv6": "2001:db8::1",
        },
        "192.0.2.9": {},
        "bastion": {},
    }
    found = contract.topology(
        hostvars, {"members": ["b", "a"], "cp": ["a"], "workers": ["192.0.2.9", "a"]}, "members", "cp", "workers"
    )
    assert found["etcd"] == [
        {"name": "a", "address": "192.0.2.1", "address_ipv6": "2001:db8::1", "zone": ""},
        {"name": "b", "address": "192.0.2.2", "address_ipv6": "", "zone": "z"},
    ]
    assert [host["name"] for host in found["nodes"]] == ["192.0.2.9", "a"]
    assert [host["address"] for host in found["all"]] == ["192.0.2.9", "192.0.2.1", "192.0.2.2"]
    assert contract.topology({}, {}, "members", "cp", "workers")["all"] == []


def test_topology_keeps_the_edge_apart() -> None:
    hostvars = {"a": {"ansible_host": "192.0.2.1"}, "e": {"ansible_host": "192.0.2.5"}}
    groups = {"etcd": ["a"], "cp": ["a"], "workers": [], "front": ["a", "e"], "border": ["e"]}
    found = contract.topology(hostvars, groups, "etcd", "cp", "workers", "front", "border")
    assert {kind: [host["name"] for host in found[kind]] for kind in ("ingress", "edge", "all")} == {
        "ingress": ["a"],
        "edge": ["e"],
        "all": ["a"],
    }
    assert found["edge"][0]["address"] == "192.0.2.5"
    assert contract.node_labels(hostvars, found)["a"]["node-role.kubernetes.io/ingress"] == ""


def test_address_in_counts_from_the_network() -> None:
    assert contract.address_in("10.96.0.0/16", 10) == "10.96.0.10"
    for cidr in ("10.96.0.0/30", "10.96.0.1/16", "here"):
        with pytest.raises(PlainkubeError, match=cidr):
            contract.address_in(cidr, 10)


def test_node_labels_are_the_inventorys_with_zone_and_roles() -> None:
    hostvars = {
        "a": {"plainkube_zone": "east"},
        "b": {"plainkube_node_labels": {"example.org/disk": "ssd", "example.org/rank": 1}},
    }
    hosts = contract.topology(hostvars, {"cp": ["a"], "workers": ["b"]}, "etcd", "cp", "workers")
    assert contract.node_labels(hostvars, hosts) == {
        "a": {"topology.kubernetes.io/zone": "east", "node-role.kubernetes.io/control-plane": ""},
        "b": {"example.org/disk": "ssd", "example.org/rank": "1", "node-role.kubernetes.io/worker": ""},
    }


def test_a_router_s_password_is_not_shown() -> None:
    peer = {"address": "192.0.2.1", "as_number": 64600, "password": "hush" * 21}
    [fault] = faults_of({"plainkube_bgp_peers": [peer]})
    assert "at most 80 bytes in peer 0" in str(fault)
    assert "hush" not in str(fault)


def test_a_tunnel_of_kube_router_needs_a_chosen_mtu() -> None:
    tunnel = {"plainkube_network": "kube_router", "plainkube_bgp_tunnel": "other_segments"}
    [fault] = faults_of(tunnel)
    assert fault.variable == "plainkube_pod_mtu"
    assert "1480" in fault.remedy
    assert faults_of({**tunnel, "plainkube_pod_mtu": 1480}) == []
    assert faults_of({**tunnel, "plainkube_network": "bridge"}) == []


def test_faults_of_ingress_instances_are_faults_of_the_contract() -> None:
    instances = [{"name": "traefik", "ping_port": 6443}, {"name": "inside", "hosts": ["z"], "class": "traefik"}]
    ingress = {"ingress": ["d"]}
    found = [str(fault) for fault in faults_of({"plainkube_ingress_instances": instances}, groups=ingress)]
    assert [fault.split(": ")[1] for fault in found] == [
        "plainkube_ingress_instances[0].ping_port",
        "plainkube_ingress_instances[1].hosts",
        "plainkube_ingress_instances[1].class",
    ]
    assert faults_of({"plainkube_ingress_instances": [{"name": "traefik"}]}, groups=ingress) == []
    # Names of nothing are said once, with the names that are read.
    [fault] = faults_of({"plainkube_ingress_instances": [{"name": "traefik", "port": 80}]}, groups=ingress)
    assert fault.variable == "plainkube_ingress_instances[0].port"


ROLE_INPUTS = {
    "node_maximum_pods": {"type": "int"},
    "node_rate": {"type": "float"},
    "kube_proxy_mode": {"type": "str", "choices": ["nftables", "iptables"]},
    "edge_password": {"type": "str", "no_log": True},
}


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"node_maximum_pods": "many"}, 'node_maximum_pods: found "many"; wanted a whole number'),
        ({"node_rate": "fast"}, 'node_rate: found "fast"; wanted a number'),
        ({"kube_proxy_mode": "nftable"}, "Did you mean nftables?"),
        ({"edge_password": ["hush"]}, "edge_password: found a value that is not shown here; wanted text"),
    ],
)
def test_inputs_of_roles_have_the_type_that_the_role_says(inputs: dict[str, Any], words: str) -> None:
    (fault,) = contract.role_input_faults(ROLE_INPUTS, {"a": inputs, "b": {}})
    assert words in str(fault)
    assert fault.host == "a"
    assert "hush" not in str(fault)


@pytest.mark.parametrize(("rate", "sound"), [(1, True), (0.5, True), ("0.5", False), ("2", False)])
def test_inputs_of_roles_are_numbers_and_not_text_of_them(rate: Any, sound: bool) -> None:
    faults = contract.role_input_faults(ROLE_INPUTS, {"a": {"node_maximum_pods": 110, "node_rate": rate}})
    assert [fault.variable for fault in faults] == ([] if sound else ["node_rate"])
