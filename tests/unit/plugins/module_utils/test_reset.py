# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

from dataclasses import replace

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils import reset
from ansible_collections.plainkube.cluster.plugins.module_utils.reset import (
    STAGES,
    SYSUSERS,
    Facts,
    FolderFact,
    Process,
    UnitFact,
    bridge_name,
    clear_policies,
    data_directory,
    faults,
    make_diff,
    make_plan,
    mount_points,
    plan_iptables,
    policy_chains,
    policy_sets,
    sysusers_names,
)

POD = "0::/kubepods/burstable/pod1/c1"
SHIM = "/opt/plainkube/containerd/2.3.7/containerd-shim-runc-v2"
UNITS = "/etc/systemd/system"


def unit(name: str, running: bool = False, enabled: bool = False) -> Facts:
    return Facts(units=[UnitFact(f"{name}.service", running, enabled)], header_files=[f"{UNITS}/{name}.service"])


def folder(path: str, keep: bool = False, empty: bool = False) -> dict[str, FolderFact]:
    return {path: FolderFact(path, keep, empty)}


def planned(facts: Facts) -> list[tuple[str, str]]:
    return [(step.kind, step.target) for step in make_plan(facts)]


WORKER = Facts(
    units=[
        UnitFact("containerd.service", True, True),
        UnitFact("kubelet.service", True, True),
        UnitFact("etcd-backup.timer", True, False),
        UnitFact("haproxy.service", True, True),
    ],
    header_files=[
        f"{UNITS}/containerd.service",
        f"{UNITS}/kubelet.service",
        "/etc/haproxy/haproxy.cfg",
        "/etc/sysctl.d/95-plainkube.conf",
        "/etc/kubernetes/kube-proxy.yml",
        SYSUSERS,
    ],
    temporary_files=["/etc/crictl.yaml.plainkube-new"],
    links={"/usr/local/bin/kubelet": "/opt/plainkube/kubelet/1.37.1/kubelet"},
    store=True,
    folders={
        **folder("/etc/kubernetes"),
        **folder("/var/lib/kubelet", keep=True),
        **folder("/var/lib/containerd"),
        **folder("/var/lib/etcd"),
    },
    mounts=["/", "/var/lib/kubelet", "/var/lib/kubelet/pods/1/volumes/nfs", "/data", "/run/netns/cni-1"],
    namespaces=["/run/netns/cni-1"],
    pods={"abc": "kube-system/coredns-1"},
    processes=[Process(20, 1, "/coredns", POD)],
    interfaces={"eth0": "", "cni0": "", "veth1": "cni0"},
    tables=[("ip", "kube-proxy"), ("inet", "firewalld"), ("ip", "cni_hostport")],
    users={"etcd": "etcd member", "kube-scheduler": "somebody's own"},
    sysusers='u etcd - "etcd member" /var/lib/etcd /usr/sbin/nologin\nu kube-scheduler - "Kubernetes scheduler" / -\n',
)


def test_a_host_loses_what_is_ours_in_order() -> None:
    assert planned(WORKER) == [
        ("stop", "kubelet.service"),
        ("stop", "etcd-backup.timer"),
        ("pod", "kube-system/coredns-1"),
        ("stop", "containerd.service"),
        ("stop", "haproxy.service"),
        ("disable", "containerd.service"),
        ("disable", "kubelet.service"),
        ("disable", "haproxy.service"),
        ("unmount", "/run/netns/cni-1"),
        ("unmount", "/var/lib/kubelet/pods/1/volumes/nfs"),
        ("namespace", "/run/netns/cni-1"),
        ("table", "ip cni_hostport"),
        ("remove", "/etc/kubernetes"),
        ("remove", "/var/lib/containerd"),
        ("empty", "/var/lib/kubelet"),
        ("remove", "/etc/crictl.yaml.plainkube-new"),
        ("remove", "/etc/haproxy/haproxy.cfg"),
        ("remove", "/etc/sysctl.d/95-plainkube.conf"),
        ("remove", "/usr/local/bin/kubelet"),
        ("remove", f"{UNITS}/containerd.service"),
        ("remove", f"{UNITS}/kubelet.service"),
        ("remove", "/opt/plainkube"),
        ("user", "etcd"),
        ("remove", SYSUSERS),
    ]


def test_an_api_server_stops_while_it_still_has_etcd() -> None:
    names = ["etcd", "kube-apiserver", "kube-scheduler", "containerd"]
    facts = Facts(units=[UnitFact(f"{name}.service", running=True) for name in names])
    assert [target.split(".")[0] for _, target in planned(facts)] == [
        "containerd",
        "kube-scheduler",
        "kube-apiserver",
        "etcd",
    ]


def test_steps_come_stage_by_stage() -> None:
    stages = [step.stage for step in make_plan(WORKER)]
    assert stages == sorted(stages, key=STAGES.index)


def test_evidence_outlives_what_it_proves() -> None:
    stages = {step.target: STAGES.index(step.stage) for step in make_plan(WORKER)}
    assert stages["/var/lib/containerd"] < stages[f"{UNITS}/containerd.service"]
    assert stages["/etc/kubernetes"] < stages["/etc/haproxy/haproxy.cfg"]
    assert stages["etcd"] < stages[SYSUSERS]


FOREIGN = Facts(
    folders={
        path: FolderFact(path)
        for path in (
            "/etc/kubernetes",
            "/var/lib/etcd",
            "/var/lib/containerd",
            "/etc/haproxy/certificates",
            "/etc/plainkube/edge",
            "/var/lib/edge-backends",
        )
    },
    mounts=["/var/lib/kubelet/pods/1/volumes/x"],
    namespaces=["/run/netns/cni-1"],
    processes=[Process(7, 1, "/usr/bin/containerd-shim-runc-v2"), Process(8, 7, "/pause", POD)],
    cgroups=["/sys/fs/cgroup/kubepods"],
    interfaces={"cni0": "", "veth1": "cni0", "flannel.1": "", "flannel-wg": "", "wg0": ""},
    routes=["10.1.0.0/24 via 192.0.2.1"],
    tables=[("ip", "kube-proxy"), ("ip", "plainkube_pods"), ("ip", "filter")],
    iptables={"iptables": "*filter\n:INPUT ACCEPT [0:0]\n:KUBE-FIREWALL - [0:0]\nCOMMIT\n"},
    users={"etcd": "etcd member"},
)


def test_somebody_else_s_cluster_stays() -> None:
    assert make_plan(FOREIGN) == []


@pytest.mark.parametrize(
    ("component", "goes"),
    [
        ("etcd", {"/var/lib/etcd"}),
        ("haproxy", {"/etc/kubernetes"}),
        ("edge-backends", {"/etc/haproxy/certificates", "/etc/plainkube/edge", "/var/lib/edge-backends"}),
        ("containerd", {"/var/lib/containerd", "/run/netns/cni-1"}),
        (
            "kubelet",
            {
                "/etc/kubernetes",
                "/var/lib/kubelet/pods/1/volumes/x",
                "/sys/fs/cgroup/kubepods",
                "8",
                "ip filter",
            },
        ),
        ("kube-proxy", {"/etc/kubernetes", "ip kube-proxy"}),
        ("node-routes", {"cni0", "veth1", "10.1.0.0/24 via 192.0.2.1", "ip plainkube_pods"}),
        (
            "flanneld",
            {
                "/etc/kubernetes",
                "cni0",
                "veth1",
                "flannel.1",
                "flannel-wg",
                "10.1.0.0/24 via 192.0.2.1",
                "ip plainkube_pods",
            },
        ),
    ],
)
def test_only_components_that_are_ours_are_removed(component: str, goes: set[str]) -> None:
    own = unit(component)
    facts = replace(FOREIGN, units=own.units, header_files=own.header_files)
    assert {step.target for step in make_plan(facts)} - set(own.header_files) == goes


def test_the_pod_networks_are_read_from_flannels_configuration() -> None:
    text = '{\n  "Comment": "x",\n  "Network": "10.244.0.0/16",\n'
    assert reset.pod_networks(text) == ["10.244.0.0/16"]
    text += '  "EnableIPv6": true,\n  "IPv6Network": "fd00:10:244::/48",\n'
    assert reset.pod_networks(text) == ["10.244.0.0/16", "fd00:10:244::/48"]
    assert reset.pod_networks("") == []


def test_routes_that_outlast_their_interface_are_named() -> None:
    text = (
        "10.244.1.0/24 via 192.0.2.12 dev eth0 \n"
        "10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink \n"
        "10.244.0.0/16 dev flannel-wg scope link \n"
        "10.244.3.0/24 dev cni0 scope link \n"
        "fd00:10:244:1::/64 via 2001:db8::12 dev eth0 metric 1024 pref medium\n"
        "fd00:10:244:2::/64 via fd00:10:244:2:: dev flannel-v6.1 metric 1024 onlink pref medium\n"
    )
    assert reset.lasting_routes(text) == [
        "10.244.1.0/24 via 192.0.2.12 dev eth0",
        "fd00:10:244:1::/64 via 2001:db8::12 dev eth0 metric 1024 pref medium",
    ]


def test_a_link_to_our_store_is_evidence_too() -> None:
    link = {"/usr/local/bin/etcd": "/opt/plainkube/etcd/3.7.3/etcd"}
    assert planned(Facts(links=link, folders=folder("/var/lib/etcd"))) == [
        ("remove", "/var/lib/etcd"),
        ("remove", "/usr/local/bin/etcd"),
    ]


def test_foreign_cni_configurations_stay() -> None:
    own = unit("node-routes")
    paths = ["/etc/cni/net.d/10-plainkube.conflist", "/etc/cni/net.d/99-other.conflist"]
    facts = replace(own, folders={path: FolderFact(path) for path in paths})
    assert planned(facts)[0] == ("remove", paths[0])
    assert paths[1] not in [step.target for step in make_plan(facts)]


@pytest.mark.parametrize(
    ("found", "step"),
    [
        (FolderFact("/var/lib/etcd"), "/var/lib/etcd"),
        (FolderFact("/var/lib/etcd", keep=True), "contents of /var/lib/etcd (a mount point or link, itself kept)"),
        (FolderFact("/var/lib/etcd", keep=True, empty=True), None),
        (FolderFact("/var/lib/etcd", empty=True), "/var/lib/etcd"),
    ],
)
def test_mount_points_are_emptied_and_kept(found: FolderFact, step: str | None) -> None:
    facts = replace(unit("etcd"), folders={"/var/lib/etcd": found})
    assert [str(step) for step in make_plan(facts) if step.stage == "data"] == ([step] if step else [])


def test_etcd_s_data_is_found_where_its_unit_has_it() -> None:
    assert data_directory("ExecStart=/usr/local/bin/etcd \\\n  --data-dir=/data/etcd/ \\\n") == "/data/etcd"
    facts = replace(unit("etcd"), etcd_data="/data/etcd", folders={**folder("/data/etcd"), **folder("/var/lib/etcd")})
    assert ("remove", "/data/etcd") in planned(facts)
    assert ("remove", "/var/lib/etcd") not in planned(facts)


@pytest.mark.parametrize(
    ("component", "mounts", "words"),
    [
        ("etcd", ["/var/lib/etcd/wal"], "/var/lib/etcd/wal is a file system of its own"),
        ("kubelet", ["/etc/kubernetes/extra"], "/etc/kubernetes/extra"),
        ("kubelet", ["/var/lib/kubelet", "/var/lib/kubelet/pods/1/volumes/x", "/var/lib/kubelet2"], ""),
        ("etcd", ["/var/lib/etcd"], ""),
    ],
)
def test_file_systems_that_nobody_of_ours_mounted_are_a_reason_to_stop(
    component: str, mounts: list[str], words: str
) -> None:
    folders = {path: FolderFact(path) for path in ("/var/lib/etcd", "/etc/kubernetes", "/var/lib/kubelet")}
    found = "".join(faults(replace(unit(component), mounts=mounts, folders=folders)))
    assert words in found
    assert bool(found) == bool(words)


def test_data_in_a_folder_of_everybody_is_never_emptied() -> None:
    assert "/data" in faults(replace(unit("etcd"), etcd_data="/data"))[0]


def test_processes_of_pods_and_all_below_our_shims_end() -> None:
    facts = Facts(
        units=[UnitFact("kubelet.service"), UnitFact("containerd.service")],
        processes=[
            Process(1, 0, "/usr/lib/systemd/systemd"),
            Process(5, 1, SHIM, "0::/system.slice/containerd.service"),
            Process(6, 5, "/pause", POD),
            Process(7, 6, "/bin/sh", "0::/somewhere"),
            Process(8, 1, "/app", "0::/kubepods.slice/kubepods-pod1.slice/c"),
            Process(9, 1, "/usr/bin/python3", "0::/system.slice/ssh.service"),
            Process(10, 1, "/app", "0::/docker/1/kubepods/pod1"),
        ],
    )
    assert [step.target for step in make_plan(facts) if step.kind == "kill"] == ["5", "6", "7", "8"]


def test_processes_that_end_with_their_unit_or_pod_are_not_listed() -> None:
    facts = Facts(
        units=[UnitFact("kubelet.service", True), UnitFact("containerd.service", True)],
        pods={"1": "a/b"},
        processes=[
            Process(5, 1, SHIM, "0::/system.slice/containerd.service"),
            Process(6, 5, "/pause", POD),
            Process(8, 1, SHIM, "0::/user.slice"),
        ],
    )
    assert [step.target for step in make_plan(facts) if step.kind == "kill"] == ["8"]


SAVED = """\
# Generated by iptables-save
*mangle
:PREROUTING ACCEPT [0:0]
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
*filter
:INPUT ACCEPT [1:2]
:KUBE-FIREWALL - [0:0]
:mine - [0:0]
-A INPUT -j KUBE-FIREWALL
-A INPUT -s 192.0.2.1/32 -j mine
-A KUBE-FIREWALL -j DROP
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
-A PREROUTING -p tcp -j DNAT --to-destination 192.0.2.9
COMMIT
*raw
:PREROUTING DROP [0:0]
COMMIT
"""


def test_chains_of_the_kubelet_go_and_the_host_s_own_rules_stay() -> None:
    whole, restore = plan_iptables(SAVED)
    assert whole == ["mangle"]
    assert restore == "*filter\n:KUBE-FIREWALL - [0:0]\n-D INPUT -j KUBE-FIREWALL\n-X KUBE-FIREWALL\nCOMMIT\n"


def test_a_table_of_the_older_kernel_interface_is_not_deleted() -> None:
    facts = replace(unit("kubelet"), iptables={"iptables": SAVED}, tables=[])
    assert [step.target for step in make_plan(facts) if step.stage == "network"] == ["iptables"]
    assert "DROP" not in make_diff(make_plan(facts))["before"]


WITH_POLICIES = """\
*filter
:INPUT ACCEPT [1:2]
:FORWARD ACCEPT [0:0]
:DOCKER-USER - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-ROUTER-INPUT - [0:0]
:KUBE-POD-FW-ABC2 - [0:0]
-A INPUT -m comment --comment "kube-router netpol - 4IA2" -j KUBE-ROUTER-INPUT
-A INPUT -j KUBE-FIREWALL
-A FORWARD -i kube-bridge -m comment --comment "allow outbound traffic from pods" -j ACCEPT
-A FORWARD -o eth0 -m comment --comment "allow outbound node port traffic on node interface with which node ip is associated" -j ACCEPT
-A FORWARD -o eth0 -j ACCEPT
-A KUBE-ROUTER-INPUT -s 10.244.0.2/32 -j KUBE-POD-FW-ABC2
COMMIT
"""  # noqa: E501


def test_policies_can_go_alone() -> None:
    assert policy_chains(WITH_POLICIES) == ["KUBE-ROUTER-INPUT", "KUBE-POD-FW-ABC2"]
    assert clear_policies(WITH_POLICIES).splitlines() == [
        "*filter",
        ":KUBE-ROUTER-INPUT - [0:0]",
        ":KUBE-POD-FW-ABC2 - [0:0]",
        '-D INPUT -m comment --comment "kube-router netpol - 4IA2" -j KUBE-ROUTER-INPUT',
        "-X KUBE-ROUTER-INPUT",
        "-X KUBE-POD-FW-ABC2",
        "COMMIT",
    ]
    assert clear_policies(SAVED) == ""
    assert policy_sets(["KUBE-SRC-AB2", "inet6:KUBE-DST-C3", "kube-router-pod-subnets", "mine"]) == [
        "KUBE-SRC-AB2",
        "inet6:KUBE-DST-C3",
    ]


def test_the_rules_that_kube_router_adds_to_the_host_s_chains_go_with_its_own() -> None:
    whole, restore = plan_iptables(WITH_POLICIES)
    assert whole == []
    deleted = [line for line in restore.splitlines() if line.startswith("-D FORWARD")]
    assert len(deleted) == 2
    assert "-D FORWARD -o eth0 -j ACCEPT" not in restore


def test_kube_router_loses_bridge_routes_tunnels_and_sets_after_the_rules_that_name_them() -> None:
    facts = Facts(
        units=[UnitFact("kubelet.service"), UnitFact("kube-router.service")],
        interfaces={"eth0": "", "kube-bridge": "", "veth1": "kube-bridge", "veth2": "br0", "tun-0123456789a": ""},
        routes=["10.1.0.0/24 via 192.0.2.1"],
        learned_routes=["10.244.1.0/24 via 192.0.2.2 dev eth0"],
        rules=["from 10.244.0.0/24 lookup 77"],
        iptables={"iptables": WITH_POLICIES},
        ip_sets=["KUBE-SRC-AB2", "kube-router-node-ips", "somebody-s"],
        tables=[("ip", "plainkube_pods")],
    )
    steps = [(step.kind, step.target) for step in make_plan(facts) if step.stage == "network"]
    assert steps == [
        ("link", "veth1"),
        ("link", "kube-bridge"),
        ("route", "10.244.1.0/24 via 192.0.2.2 dev eth0"),
        ("link", "tun-0123456789a"),
        ("rule", "from 10.244.0.0/24 lookup 77"),
        ("table", "ip plainkube_pods"),
        ("iptables", "iptables"),
        ("set", "KUBE-SRC-AB2"),
        ("set", "kube-router-node-ips"),
    ]
    assert [step for step in make_plan(replace(facts, units=[])) if step.stage == "network"] == []


def test_small_readers() -> None:
    assert bridge_name("ExecStart=x \\\n  --bridge=br-pods \\\n") == "br-pods"
    assert bridge_name("") == "cni0"
    assert mount_points("36 35 98:0 / /mnt/a\\040b rw - ext4 /dev/x rw\n\n") == ["/mnt/a b"]
    assert sysusers_names('u etcd - "etcd member" / -\ng x - -\n# u no - "no"\n') == {"etcd": "etcd member"}
