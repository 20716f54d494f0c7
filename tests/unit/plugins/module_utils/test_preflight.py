# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Sound hosts pass in silence; each wrong fact earns one fault or one warning that says what to do."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils import preflight
from ansible_collections.plainkube.cluster.plugins.module_utils.preflight import Report, evaluate

ASKED: dict[str, Any] = {
    "etcd": True,
    "control_plane": True,
    "worker": True,
    "address": "192.0.2.11",
    "address_ipv6": "",
    "ports": [
        {"port": 6443, "address": "192.0.2.11", "process": "kube-apiserver"},
        {"port": 6443, "address": "127.0.0.1", "process": "haproxy"},
        {"port": 10250, "address": "0.0.0.0", "process": "kubelet"},
    ],
    "etcd_data_dir": "/var/lib/etcd",
    "network": {
        "kind": "flannel",
        "backend": "vxlan",
        "pod_cidr": "10.244.0.0/16",
        "pod_cidr_ipv6": "",
        "node_cidr_size": 24,
        "node_cidr_size_ipv6": 0,
        "overhead": 50,
        "mtu": 0,
    },
    "kernel_modules": ["overlay", "nf_tables"],
    "programs": ["conntrack"],
    "resolv_conf": "/etc/resolv.conf",
    "dns_cache_address": "169.254.20.10",
    "dns_service_ip": "10.96.0.10",
    "minimum_memory_mib": 1700,
    "minimum_disk_mib": {"/opt": 1000, "/var/lib/etcd": 2000},
    "minimum_kernel": "5.13",
    "allow_cgroup_v1": False,
    "allow_swap": False,
    "maximum_clock_offset_seconds": 2.0,
    "expect_time_service": True,
    "fsync_p99_warning_milliseconds": 10.0,
}
FOLDER = {"device": 1, "free_mib": 3000, "inodes": 10**6, "free_inodes": 10**6, "filled": False}
SOUND: dict[str, Any] = {
    "asked": ASKED,
    "clock": {"offset_seconds": 0.1, "uncertainty_seconds": 0.2},
    "first_process": "systemd",
    "systemd_booted": True,
    "systemd_version": 252,
    "kernel": "6.1.0-18-amd64",
    "architecture": "x86_64",
    "distribution": "Debian GNU/Linux 12 (bookworm)",
    "family": "debian",
    "python_version": [3, 11, 2],
    "hostname": "a",
    "machine_id": "1" * 32,
    "product_uuid": "",
    "memory_mib": 4000,
    "swap": [],
    "addresses": ["127.0.0.1", "192.0.2.11", "::1"],
    "time_synchronized": True,
    "cgroup_version": 2,
    "cgroup_controllers": ["cpu", "cpuset", "io", "memory", "pids"],
    "package_manager": "apt-get",
    "missing_programs": [],
    "package_sources": {"names": {}, "local": False},
    "kernel_modules": {"overlay": "loaded", "nf_tables": "builtin"},
    "folders": [
        {"path": "/opt", "minimum_mib": 1000, **FOLDER},
        {"path": "/var/lib/etcd", "minimum_mib": 2000, **FOLDER},
    ],
    "listeners": [
        {"address": "192.0.2.11", "port": 6443, "process": "kube-apiserver", "pid": 1},
        {"address": "127.0.0.1", "port": 6443, "process": "haproxy", "pid": 2},
        {"address": "::", "port": 10250, "process": "kubelet", "pid": 3},
    ],
    "resolver_file": "/etc/resolv.conf",
    "name_servers": ["192.0.2.53"],
    "dns_cache_is_ours": False,
    "etcd_data": {"path": "/var/lib/etcd", "database": True, "version_2": False, "proxy": False, "own_unit": True},
    "remnants": [],
    "foreign_networks": [],
    "network": {
        "kind": "flannel",
        "backend": "vxlan",
        "pod_cidr": "10.244.0.0/16",
        "pod_cidr_ipv6": "none",
        "node_cidr_size": "24",
    },
    "link": {"name": "eth0", "mtu": 1500},
    "fsync_p99_milliseconds": 3.0,
}


def host(changes: dict[str, Any] | None = None, number: int = 11, **asked: Any) -> dict[str, Any]:
    """Return a sound host's facts with some replaced; a key such as etcd_data.own_unit reaches inside."""
    facts = copy.deepcopy(SOUND)
    address = f"192.0.2.{number}"
    facts.update(hostname=f"host-{number}", machine_id=f"{number:032}", addresses=["127.0.0.1", address])
    facts["asked"].update(address=address, ports=[], **asked)
    if number == 11:
        facts["asked"]["ports"] = asked.get("ports", ASKED["ports"])
    for key, value in (changes or {}).items():
        outer, _, inner = key.partition(".")
        if inner:
            facts[outer][inner] = value
        else:
            facts[outer] = value
    return facts


def report_of(changes: dict[str, Any] | None = None, **asked: Any) -> Report:
    """Return the report on three hosts of which the first has changes."""
    return evaluate({"a": host(changes, **asked), "b": host(number=12), "c": host(number=13)})


def test_an_installed_cluster_passes_in_silence() -> None:
    assert report_of() == Report()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"first_process": "init"}, ["init as process 1", "systemd"]),
        ({"systemd_booted": False}, ["wanted systemd"]),
        ({"architecture": "riscv64"}, ["riscv64", "x86_64 or aarch64"]),
        ({"family": "alpine", "distribution": "Alpine Linux"}, ["Alpine Linux"]),
        ({"python_version": [3, 8, 10]}, ["Python 3.8.10", "3.9"]),
        ({"kernel": "5.10.0-28-amd64"}, ["5.10.0-28-amd64", "5.13"]),
        ({"kernel_modules.overlay": "missing"}, ["no kernel module overlay"]),
        ({"cgroup_version": 1}, ["version 1", "preflight_allow_cgroup_v1"]),
        ({"cgroup_controllers": ["cpu", "cpuset", "pids"]}, ["controller memory"]),
        ({"memory_mib": 1000}, ["1000 MiB", "1700 MiB"]),
        ({"swap": ["/dev/sda2"]}, ["/dev/sda2", "swapoff"]),
        ({"addresses": ["127.0.0.1", "198.51.100.7", "fe80::1"]}, ["the addresses 198.51.100.7;", "192.0.2.11"]),
        ({"etcd_data.own_unit": False}, ["a database in /var/lib/etcd", "restore-etcd"]),
        ({"etcd_data.version_2": True}, ["etcd 2", "migrate-etcd"]),
        ({"etcd_data.proxy": True}, ["proxy"]),
        ({"remnants": [{"path": "/etc/rancher/k3s", "of": "k3s"}]}, ["/etc/rancher/k3s of k3s"]),
        ({"foreign_networks": ["10-calico.conflist", "87-podman.conflist"]}, ["found 10-calico.conflist of"]),
        ({"machine_id": ""}, ["empty /etc/machine-id"]),
        ({"missing_programs": ["socat"]}, ["socat", "no package source"]),
        (
            {"missing_programs": ["socat"], "package_sources": {"names": {"deb.example.org": False}, "local": False}},
            ["socat", "does not resolve: deb.example.org"],
        ),
        ({"clock.offset_seconds": 120.0}, ["119.9 s ahead"]),
        ({"addresses": ["192.0.2.11", "169.254.20.10"]}, ["169.254.20.10 in use", "plainkube_dns_cache_address"]),
        ({"name_servers": ["192.0.2.53", "169.254.20.10"]}, ["169.254.20.10", "by itself for ever"]),
        ({"name_servers": ["10.96.0.10"]}, ["10.96.0.10 in /etc/resolv.conf", "plainkube_dns_servers"]),
        ({"clock.offset_seconds": -120.0}, ["behind"]),
    ],
)
def test_one_wrong_fact_is_one_fault_that_names_the_host(changes: dict[str, Any], words: list[str]) -> None:
    report = report_of(changes)
    assert len(report.faults) == 1, report
    for word in ["a: found", *words]:
        assert word in str(report.faults[0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fsync_p99_milliseconds": 12.34}, ["12.3 ms", "10"]),
        ({"kernel_modules.nf_tables": "unknown"}, ["does not say", "nf_tables"]),
        ({"time_synchronized": False}, ["no time service"]),
        ({"name_servers": ["127.0.0.53"]}, ["loopback", "node_resolv_conf"]),
        ({"name_servers": []}, ["no name server"]),
        (
            {
                "missing_programs": ["socat"],
                "package_sources": {"names": {"x.org": False, "y.org": True}, "local": False},
            },
            ["x.org"],
        ),
    ],
)
def test_what_is_only_unwise_is_a_warning(changes: dict[str, Any], words: list[str]) -> None:
    report = report_of(changes)
    assert report.faults == []
    assert len(report.warnings) == 1, report
    for word in ["a: found", *words]:
        assert word in str(report.warnings[0])


@pytest.mark.parametrize(
    ("changes", "asked"),
    [
        ({"cgroup_version": 1}, {"allow_cgroup_v1": True}),
        ({"swap": ["/dev/zram0"]}, {"allow_swap": True}),
        ({"swap": ["/dev/sda2"], "cgroup_version": 1}, {"control_plane": False, "worker": False}),
        ({"time_synchronized": False}, {"expect_time_service": False}),
        ({"fsync_p99_milliseconds": None}, {}),
        ({"etcd_data.path": "", "etcd_data.own_unit": False}, {}),
        ({"foreign_networks": ["87-podman-bridge.conflist"]}, {}),
        # A network that somebody brought.
        (
            {"foreign_networks": ["05-own.conflist"], "network": {"kind": "none"}},
            {"network": {**ASKED["network"], "kind": "none"}},
        ),
        ({"missing_programs": ["socat"], "package_sources": {"names": {}, "local": True}}, {}),
        ({"clock.offset_seconds": 2.5, "clock.uncertainty_seconds": 0.7}, {}),
        ({"name_servers": ["127.0.0.53", "192.0.2.53"]}, {}),
        ({"kernel": "6.18"}, {}),
    ],
)
def test_what_is_allowed_or_harmless_is_silent(changes: dict[str, Any], asked: dict[str, Any]) -> None:
    assert report_of(changes, **asked) == Report()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"kind": "bridge"}, ["found the network flannel in the running cluster; wanted bridge (plainkube_network)"]),
        ({"kind": "none"}, ["found the network flannel in the running cluster; wanted none (plainkube_network)"]),
        ({"backend": "host-gw"}, ["found flannel's backend vxlan", "wanted host-gw (plainkube_network_backend)"]),
        ({"pod_cidr": "10.64.0.0/16"}, ["pods' addresses from 10.244.0.0/16", "wanted 10.64.0.0/16 (plainkube_pod_"]),
        ({"node_cidr_size": 25}, ["/24 for each node's pods", "wanted 25 (plainkube_node_cidr_size)"]),
        (
            {"pod_cidr_ipv6": "fd00::/48", "node_cidr_size_ipv6": 64},
            ["found pods without IPv6 addresses in the", "wanted fd00::/48 (plainkube_pod_cidr_ipv6)"],
        ),
        (
            {"mtu": 1500},
            ["plainkube_pod_mtu 1500, 1550 with what the network adds, on link eth0, which carries 1500", "most 1450"],
        ),
        ({"mtu": 9000, "overhead": 0}, ["plainkube_pod_mtu 9000 on link eth0, which carries 1500 bytes", "most 1500"]),
    ],
)
def test_what_is_wrong_with_the_network_of_all_hosts_is_said_once(asked: dict[str, Any], words: list[str]) -> None:
    network = {**ASKED["network"], **asked}
    hosts = {name: host(number=number, network=network) for name, number in (("a", 11), ("b", 12))}
    (fault,) = evaluate(hosts).faults
    assert fault.host == "a, b"
    for word in words:
        assert word in str(fault)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, ["found pods' IPv6 addresses from fd00::/48 in the", "wanted none (plainkube_pod_cidr_ipv6)"]),
        ({"pod_cidr_ipv6": "fd01::/48", "node_cidr_size_ipv6": 64}, ["wanted fd01::/48 (plainkube_pod_cidr_ipv6)"]),
        ({"pod_cidr_ipv6": "fd00::/48", "node_cidr_size_ipv6": 60}, ["wanted 60 (plainkube_node_cidr_size_ipv6)"]),
    ],
)
def test_the_second_family_of_a_running_cluster_stays_as_it_is(asked: dict[str, Any], words: list[str]) -> None:
    present = {"pod_cidr": "10.244.0.0/16", "pod_cidr_ipv6": "fd00::/48", "node_cidr_size_ipv6": "64"}
    (fault,) = report_of({"network": present}, network={**ASKED["network"], **asked}).faults
    for word in words:
        assert word in str(fault)


def test_the_ipv6_address_is_one_of_the_host_too() -> None:
    assert report_of({"addresses": ["192.0.2.11", "2001:db8::11"]}, address_ipv6="2001:db8::11").faults == []
    (fault,) = report_of({"addresses": ["192.0.2.11", "2001:db8::9"]}, address_ipv6="2001:db8::11").faults
    assert "192.0.2.11, 2001:db8::9; wanted 2001:db8::11 among them, which is plainkube_address_ipv6" in str(fault)


@pytest.mark.parametrize(
    ("present", "asked"),
    [
        # A host without a network, of which the rest of the cluster decides.
        ({}, {"kind": "bridge", "pod_cidr": "10.64.0.0/16"}),
        ({"pod_cidr": "10.244.0.0/16"}, {"kind": "none"}),
        # Only flannel has a backend.
        ({"kind": "bridge", "pod_cidr": "10.244.0.0/16"}, {"kind": "bridge", "backend": "host-gw"}),
        # What the tunnel leaves may be used up.
        ({"kind": "flannel", "backend": "vxlan"}, {"mtu": 1450}),
    ],
)
def test_networks_that_may_be_built(present: dict[str, str], asked: dict[str, Any]) -> None:
    assert report_of({"network": present}, network={**ASKED["network"], **asked}).faults == []


def test_hosts_without_pods_may_have_any_link() -> None:
    network = {**ASKED["network"], "mtu": 1500}
    assert report_of(network=network, worker=False, control_plane=False).faults == []


def test_links_of_different_sizes_are_a_warning_with_what_all_can_take() -> None:
    jumbo = {"link": {"name": "eth0", "mtu": 9000}}
    (warning,) = report_of(jumbo).warnings
    assert warning.host == "a"
    assert "more than the 1500 bytes of another host's" in str(warning)
    assert "plainkube_pod_mtu to 1450" in str(warning)
    chosen = {**ASKED["network"], "mtu": 1400}
    assert report_of(jumbo, network=chosen).warnings == []


@pytest.mark.parametrize(
    ("listener", "collides"),
    [
        (("127.0.0.1", 6443, "haproxy"), False),
        (("192.0.2.11", 6443, "nginx"), True),
        (("127.0.0.1", 6443, "kube-apiserver"), True),
        (("0.0.0.0", 6443, "nginx"), True),
        (("127.0.0.1", 10250, "nginx"), True),
        (("198.51.100.1", 6443, "nginx"), False),
        (("127.0.0.1", 10250, ""), True),
    ],
)
def test_ports_are_for_the_expected_process(listener: tuple[str, int, str], collides: bool) -> None:
    address, port, process = listener
    report = report_of({"listeners": [{"address": address, "port": port, "process": process, "pid": 7}]})
    assert bool(report.faults) == collides
    if collides:
        assert f"port {port}" in str(report.faults[0])


@pytest.mark.parametrize(
    ("free", "filled", "fits"), [(3000, False, True), (2999, False, False), (300, True, True), (299, True, False)]
)
def test_folders_on_one_file_system_share_its_space(free: int, filled: bool, fits: bool) -> None:
    folders = [{**folder, "free_mib": free, "filled": filled} for folder in SOUND["folders"]]
    assert (report_of({"folders": folders}).faults == []) == fits


def test_file_systems_are_judged_apart_and_inodes_too() -> None:
    apart = [{**folder, "free_mib": 2000, "device": number} for number, folder in enumerate(SOUND["folders"])]
    assert report_of({"folders": apart}) == Report()
    few_inodes = [{**folder, "free_inodes": 10} for folder in SOUND["folders"]]
    assert "10 inodes free for /opt, /var/lib/etcd" in str(report_of({"folders": few_inodes}).faults[0])
    without_inodes = [{**folder, "inodes": 0, "free_inodes": 0} for folder in SOUND["folders"]]
    assert report_of({"folders": without_inodes}) == Report()


def test_all_faults_come_at_once_and_silent_hosts_are_faults() -> None:
    report = evaluate({"a": host({"swap": ["/dev/sda2"], "memory_mib": 1}), "b": None, "Bad_Name": host(number=13)})
    text = "\n".join(map(str, report.faults))
    assert len(report.faults) == 4
    for words in ("/dev/sda2", "1 MiB of memory", "b: found no facts", "'Bad_Name'"):
        assert words in text


@pytest.mark.parametrize(
    ("shared", "words"),
    [
        ({"machine_id": "7" * 32}, ["a, b: found the same machine-id", "copies"]),
        ({"machine_id": "7" * 32, "hostname": "x"}, ["same machine-id", "one host under several names"]),
        ({"hostname": "debian"}, ["a, b: found the same host name debian"]),
    ],
)
def test_twins_are_named_together(shared: dict[str, Any], words: list[str]) -> None:
    report = evaluate({"a": host(shared), "b": host(shared, number=12), "c": host(number=13)})
    for word in words:
        assert word in str(report.faults[0])


def test_a_controller_apart_from_all_hosts_is_the_one_that_is_wrong() -> None:
    late = {"clock.offset_seconds": 120.0}
    report = evaluate({"a": host(late), "b": host(late, number=12), "c": host(late, number=13)})
    assert [finding.host for finding in report.faults] == ["the controller"]
    assert "behind" in str(report.faults[0])


def test_one_host_that_differs_from_the_controller_is_the_one_that_is_wrong() -> None:
    report = evaluate({"a": host({"clock.offset_seconds": 120.0})})
    assert [finding.host for finding in report.faults] == ["a"]


def test_the_clock_is_measured_between_the_call_and_its_answer() -> None:
    assert preflight.clock_offset(100.0, 160.5, 161.5, 102.0) == {"offset_seconds": 60.0, "uncertainty_seconds": 0.5}
