# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a running cluster promises while it is changed, loses a host, gains one, is scanned or was asked wrongly."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from faults_lab import ALL, CHECKOUT, FOLDER, UNITS, Lab, wait_for
from kubernetes import client, config
from plainkube_lab import podman
from plainkube_lab.access import lab_folder
from plainkube_lab.model import LABEL
from plainkube_lab.system import cache_folder

CLUSTER_DNS, CACHE = "10.96.0.10", "169.254.20.10"
CACHE_SECONDS = 30
ETCD, OLDER_ETCD = "etcd.service", "3.6.14"
# Of each kind that the tests take apart: all with FAULTS=all, otherwise one.
CONTROL_PLANE = ["alpha", "beta", "gamma"]


def api_at(lab: Lab, host: str) -> client.CoreV1Api:
    """Return the API as the administrator sees it at one host's API server."""
    settings = client.Configuration()
    kubeconfig = lab_folder(lab.description.name) / "state" / "admin.conf"
    config.load_kube_config(str(kubeconfig), client_configuration=settings)
    settings.host = f"https://{lab.nodes[host].address}:6443"
    return client.CoreV1Api(client.ApiClient(settings))


def is_ready(api: client.CoreV1Api, name: str) -> bool:
    """Return whether a node says that it is Ready."""
    try:
        conditions = api.read_node(name).status.conditions
    except client.ApiException as error:
        if error.status == 404:
            return False
        raise
    return any(condition.type == "Ready" and condition.status == "True" for condition in conditions)


# CIS benchmark


def scan(lab: Lab, host: str, targets: str) -> dict[str, Any]:
    """Return kube-bench's report of a host."""
    folder = "/tmp/kube-bench"
    archive = next((cache_folder() / "mirror/kube-bench/0.15.6").glob("*_linux_amd64.tar.gz"))
    with tarfile.open(archive) as members:
        assert {"kube-bench", "cfg/config.yaml"} <= {name.removeprefix("./") for name in members.getnames()}
    lab.ssh(host, f"mkdir -p {folder}")
    lab.send(host, archive.read_bytes(), f"{folder}/archive.tar.gz")
    lab.ssh(host, f"tar -xzf {folder}/archive.tar.gz -C {folder}")
    lab.send(host, (FOLDER / "kube-bench-config.yaml").read_bytes(), f"{folder}/cfg/config.yaml")
    command = (
        f"cd {folder} && ./kube-bench run -D cfg --config cfg/config.yaml --benchmark cis-1.12 --targets {targets}"
    )
    report: dict[str, Any] = json.loads(lab.ssh(host, f"{command} --json 2>/dev/null"))
    lab.ssh(host, f"rm -r {folder}")
    print(host, report["Totals"])
    return report


def scored_failures(report: dict[str, Any]) -> set[str]:
    """Return the numbers of the scored checks that failed."""
    results = [result for part in report["Controls"] for section in part["tests"] for result in section["results"]]
    assert len(results) > 20, "kube-bench checked next to nothing"
    return {result["test_number"] for result in results if result["scored"] and result["status"] == "FAIL"}


def test_cis_benchmark_finds_nothing_on_a_control_plane_host(lab: Lab) -> None:
    host = lab.members("control_plane")[0]
    assert scored_failures(scan(lab, host, "master,etcd,controlplane,node")) == set()


def test_cis_benchmark_finds_nothing_on_a_worker(lab: Lab) -> None:
    assert scored_failures(scan(lab, lab.worker, "node")) == set()


# A changed setting


def test_a_changed_setting_restarts_what_it_is_for_and_one_host_at_a_time(lab: Lab) -> None:
    flag = {"control_plane_apiserver_extra_arguments": {"event-ttl": "2h"}}
    setting = {"etcd_heartbeat_milliseconds": 150}
    steps: list[tuple[dict[str, Any], list[str]]] = [
        (flag, ["kube-apiserver.service"]),
        ({**flag, **setting}, ["etcd.service"]),
        ({}, ["etcd.service", "kube-apiserver.service"]),
    ]
    before = lab.processes()
    for extra, units in steps:
        with lab.asking(lab.worker, "api", f"/api/v1/nodes/{lab.worker}") as findings:
            run = lab.converge(extra=extra)
            found = findings()
        after = lab.processes()
        restarted = {key for key, process in after.items() if process.pid != before[key].pid}
        groups = {"etcd.service": "etcd", "kube-apiserver.service": "control_plane"}
        assert restarted == {(host, unit) for unit in units for host in lab.members(groups[unit])}, extra
        for unit in units:
            turns = sorted((after[key] for key in restarted if key[1] == unit), key=lambda process: process.stopped)
            for first, second in zip(turns, turns[1:], strict=False):
                assert first.ready <= second.stopped, f"{unit}: two hosts at once: {turns}"
        assert found["failed"] == [], extra
        # It asked during the whole run, twice a second unless an answer took longer.
        assert found["asked"] > run.seconds / 2, found
        before = after


# Another version of etcd


def test_etcd_moves_one_minor_back_and_forth_member_after_member(lab: Lab) -> None:
    older = {"etcd_version": OLDER_ETCD, "etcd_allow_downgrade": True}
    fill = [str(CHECKOUT / "tools" / "artifacts"), "fill", "--only", f"etcd={OLDER_ETCD}"]
    subprocess.run([sys.executable, *fill], cwd=CHECKOUT, check=True)
    pids = {key: process.pid for key, process in lab.processes().items()}
    refused = lab.site(extra={"etcd_version": OLDER_ETCD})
    assert refused.code != 0
    assert """If that is meant, say so: -e '{"etcd_allow_downgrade": true}'""" in " ".join(refused.output.split())
    assert {key: process.pid for key, process in lab.processes().items()} == pids
    members = lab.members("etcd")
    for extra, version in [(older, OLDER_ETCD), ({}, "3.7.")]:
        with lab.asking(lab.worker, "api", f"/api/v1/nodes/{lab.worker}") as findings:
            before, leader = lab.processes(), leader_of_etcd(lab)
            lab.converge(extra=extra)
            after = lab.processes()
            found = findings()
        assert {host for host in members if after[host, ETCD].pid != before[host, ETCD].pid} == set(members)
        turns = sorted(members, key=lambda host: after[host, ETCD].stopped)
        assert turns[-1] == leader, "the leader goes last"
        for first, second in zip(turns, turns[1:], strict=False):
            assert after[first, ETCD].ready <= after[second, ETCD].stopped
        said = lab.each(members, "set -a; . /etc/etcd/etcdctl.env; etcdctl endpoint status -w json")
        versions = [entry["Status"]["version"] for text in said.values() for entry in json.loads(text)]
        assert all(found_version.startswith(version) for found_version in versions), versions
        assert found["failed"] == [], found
        snapshots = lab.each(members, "ls /var/lib/etcd-snapshots 2>/dev/null || true")
        assert any(text.strip() for text in snapshots.values()), "no snapshot was taken before the move"


def leader_of_etcd(lab: Lab) -> str:
    """Return the host whose member leads."""
    host = lab.members("etcd")[0]
    text = lab.ssh(host, "set -a; . /etc/etcd/etcdctl.env; etcdctl endpoint status -w json")
    leader = next(
        entry["Endpoint"]
        for entry in json.loads(text)
        if entry["Status"]["leader"] == entry["Status"]["header"]["member_id"]
    )
    return next(name for name, node in lab.nodes.items() if f"//{node.address}:" in leader)


# A lost host


@pytest.fixture(scope="module")
def web_service(lab: Lab) -> Iterator[str]:
    """Yield the address of a Service with a pod on every host."""
    first = lab.members("control_plane")[0]
    core = api_at(lab, first)
    apps = client.AppsV1Api(core.api_client)
    namespace, labels = "lost-host", {"app": "web"}
    images = core.list_node().items[0].status.images or []
    image = next(name for entry in images for name in entry.names or [] if "agnhost" in name)
    core.create_namespace({"metadata": {"name": namespace}})
    ports = [{"port": 80, "targetPort": 8080}]
    service = core.create_namespaced_service(
        namespace, {"metadata": {"name": "web"}, "spec": {"selector": labels, "ports": ports}}
    )
    probe = {"httpGet": {"path": "/hostname", "port": 8080}, "periodSeconds": 2}
    container = {"name": "web", "image": image, "args": ["netexec"], "readinessProbe": probe}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
    apps.create_namespaced_daemon_set(
        namespace,
        {"metadata": {"name": "web"}, "spec": {"selector": {"matchLabels": labels}, "template": template}},
    )

    def all_ready() -> bool:
        status = apps.read_namespaced_daemon_set("web", namespace).status
        return bool(status.number_ready == len(lab.nodes))

    wait_for("a web server on every host", all_ready, 120)
    yield f"http://{service.spec.cluster_ip}/hostname"
    api_at(lab, first).delete_namespace(namespace)


@pytest.mark.parametrize("lost", CONTROL_PLANE if ALL else CONTROL_PLANE[:1])
def test_a_lost_control_plane_host_is_not_missed_and_comes_back_by_itself(
    lab: Lab, web_service: str, lost: str
) -> None:
    others = [host for host in lab.nodes if host != lost]
    left = next(host for host in lab.members("control_plane") if host != lost)
    api = api_at(lab, left)
    name = f"{CLUSTER_DNS}/kubernetes.default.svc.cluster.local"
    with ExitStack() as stack:
        api_answers = [
            stack.enter_context(lab.asking(host, "api", f"/api/v1/nodes/{host}")) for host in (left, lab.worker)
        ]
        # Until the host is known to be lost, a part of the tries goes there: clients ask again, and that must help.
        dns_answers = stack.enter_context(lab.asking(lab.worker, "dns", name, tries=20, patience=1))
        web_answers = stack.enter_context(lab.asking(left, "http", web_service, tries=20, patience=1))
        lab.stop_node(lost)
        try:
            noticed = wait_for(f"{lost} is known to be lost", lambda: not is_ready(api, lost), 120)
            # The end of a lease, and the Services' rules after it.
            time.sleep(10)
            during = [findings() for findings in (*api_answers, dns_answers, web_answers)]
            print(f"{lost} was noticed after {noticed:.0f} s")
            with (
                lab.asking(lab.worker, "dns", name, tries=1, patience=2) as dns_later,
                lab.asking(lab.worker, "http", web_service, tries=1, patience=2) as web_later,
            ):
                time.sleep(10)
                later = [dns_later(), web_later()]
        finally:
            lab.start_node(lost)
    for found in (*during, *later):
        assert found["failed"] == [], found
    assert all(found["asked"] for found in (*during, *later))
    back = wait_for(f"{lost} is Ready again", lambda: is_ready(api, lost), 240)
    print(f"{lost} was Ready {back:.0f} s after its start, of {len(others) + 1} hosts")
    everything = {(host, unit) for host in lab.members("control_plane") for unit in UNITS}
    wait_for(f"all units of {lost} run", lambda: everything <= set(lab.processes()), 60)
    lab.converge()


# Names


def test_known_names_are_answered_while_the_cluster_has_no_name_server(lab: Lab) -> None:
    first, name = lab.members("control_plane")[0], "kubernetes.default.svc.cluster.local"
    apps = client.AppsV1Api(api_at(lab, first).api_client)

    def scale(replicas: int) -> None:
        apps.patch_namespaced_deployment_scale("coredns", "kube-system", {"spec": {"replicas": replicas}})

    def answers() -> bool:
        with lab.asking(lab.worker, "dns", f"{CLUSTER_DNS}/{name}", tries=1, patience=1) as asked:
            time.sleep(1)
            return not asked()["failed"]

    before = apps.read_namespaced_deployment_scale("coredns", "kube-system").spec.replicas
    assert answers()
    with lab.asking(lab.worker, "dns", f"{CACHE}/{name}", tries=1, patience=2) as of_cache:
        time.sleep(1)
        scale(0)
        try:
            wait_for("the cluster has no name server", lambda: not answers(), 60)
            # Longer than the cache believes a name.
            time.sleep(CACHE_SECONDS + 5)
        finally:
            scale(before)
        wait_for("the cluster has its name servers again", answers, 60)
        known = of_cache()
    assert known["asked"] > 2 * CACHE_SECONDS
    assert known["failed"] == []


# A new host


@pytest.fixture
def joining(lab: Lab, tmp_path: Path) -> Iterator[tuple[Lab, str]]:
    """Yield the lab with one more worker, and its name; take it away afterwards."""
    name = "epsilon"
    shutil.copytree(lab.inventory, tmp_path / "inventory")
    network = lab.nodes[lab.worker].address.rpartition(".")[0]
    addition = {"workers": {"hosts": {name: {"ansible_host": f"{network}.15"}}}}
    (tmp_path / "inventory" / "joining.yml").write_text(yaml.safe_dump({"all": {"children": addition}}))
    larger = Lab(tmp_path / "inventory")
    larger.lab("create")
    yield larger, name
    api = api_at(lab, lab.members("control_plane")[0])
    if name in [node.metadata.name for node in api.list_node().items]:
        api.delete_node(name)
    podman.podman("rm", "--force", "--time", "0", larger.nodes[name].container)
    volumes = podman.podman("volume", "ls", "--quiet", "--filter", f"label={LABEL}={lab.description.name}").stdout
    mine = [volume for volume in volumes.split() if volume.startswith(larger.nodes[name].container)]
    podman.podman("volume", "rm", *mine)


def test_a_new_host_joins_without_a_restart_on_the_others(lab: Lab, joining: tuple[Lab, str]) -> None:
    larger, name = joining
    before = lab.processes()
    run = larger.converge()
    # The first control-plane host's recap counts the new node's labels, which the controller sets through the API.
    assert run.changed_themselves == {name}
    after = lab.processes()
    assert {key: process.pid for key, process in after.items()} == {key: process.pid for key, process in before.items()}
    assert is_ready(api_at(lab, lab.members("control_plane")[0]), name)
    routes = lab.ssh(lab.worker, "ip route show proto 76")
    assert f"via {larger.nodes[name].address} " in routes
    again = larger.converge()
    assert again.changed == set(), again.output[-9000:]


# Wrong input


def refused(lab: Lab, *words: str) -> str:
    """Return what a run says that must end before it changes anything."""
    marker = "/run/plainkube-faults-marker"
    lab.each([*lab.nodes], f"touch {marker}")
    run = lab.site(*words)
    written = lab.each([*lab.nodes], f"find /etc /opt /usr /var/lib/kubelet/config.yaml -xdev -newer {marker} -type f")
    assert run.code != 0
    assert run.changed == set()
    assert set(written.values()) == {""}, written
    return " ".join(run.output.split())


def test_a_copied_machine_is_named(lab: Lab) -> None:
    first, copy = lab.members("control_plane")[0], lab.worker
    ids = lab.each([first, copy], "cat /etc/machine-id")
    lab.ssh(copy, "cat > /etc/machine-id", ids[first])
    try:
        said = refused(lab)
    finally:
        lab.ssh(copy, "cat > /etc/machine-id", ids[copy])
    assert (
        f"{first}, {copy}: found the same machine-id {ids[first].strip()}; wanted one of its own on each host" in said
    )
    assert "run systemd-machine-id-setup" in said


def overlay(lab: Lab, folder: Path, hosts: dict[str, dict[str, str]]) -> Lab:
    """Return the lab with more variables or more workers."""
    shutil.copytree(lab.inventory, folder / "inventory")
    addition = {"all": {"children": {"workers": {"hosts": hosts}}}}
    (folder / "inventory" / "overlay.yml").write_text(yaml.safe_dump(addition))
    return Lab(folder / "inventory")


def test_an_unreachable_host_is_named(lab: Lab, tmp_path: Path) -> None:
    network = lab.nodes[lab.worker].address.rpartition(".")[0]
    wrong = overlay(lab, tmp_path, {"absent": {"ansible_host": f"{network}.99"}})
    del wrong.nodes["absent"]
    said = refused(wrong)
    assert "fatal: [absent]: UNREACHABLE!" in said
    assert f"Make sure this host can be reached over ssh: ssh: connect to host {network}.99 port 22" in said


def test_a_clock_two_minutes_off_is_named(lab: Lab, tmp_path: Path) -> None:
    # The lab's hosts share this machine's clock, so one host's Python is told another time.
    name, folder = lab.worker, "/srv/plainkube-faults"
    skew = "import time\n_time = time.time\ntime.time = lambda: _time() + 120\n"
    lab.ssh(name, f"mkdir -p {folder} && cat > {folder}/sitecustomize.py", skew)
    lab.ssh(name, f"cat > {folder}/python", f'#!/bin/sh\nPYTHONPATH={folder} exec /usr/bin/python3 "$@"\n')
    lab.ssh(name, f"chmod 0755 {folder}/python")
    try:
        said = refused(overlay(lab, tmp_path, {name: {"ansible_python_interpreter": f"{folder}/python"}}))
    finally:
        lab.ssh(name, f"rm -r {folder}")
    assert f"{name}: found a clock 120" in said or f"{name}: found a clock 119" in said
    assert "s ahead of the others" in said
    assert "Run a time service there" in said


# Certificates that live for minutes


@pytest.mark.long
def test_kubelets_renew_their_client_certificates_by_themselves(lab: Lab) -> None:
    host = lab.worker
    path = "/var/lib/kubelet/pki/kubelet-client-current.pem"
    minutes = 10
    lab.converge(extra={"plainkube_kubelet_certificate_minutes": minutes})
    # The first certificate lives for months; without it the kubelet asks for one, as after a long time switched off.
    lab.ssh(host, f"systemctl stop kubelet && rm {path} /etc/kubernetes/kubelet.conf && systemctl start kubelet")
    serial = f"openssl x509 -noout -serial -in {path} 2>/dev/null || true"
    wait_for("a first short-lived certificate", lambda: bool(lab.ssh(host, serial)), 60)
    first = lab.ssh(host, serial)
    process = lab.processes([host])[host, "kubelet.service"]
    api = api_at(lab, lab.members("control_plane")[0])
    wait_for("the node is Ready", lambda: is_ready(api, host), 60)
    unready: list[float] = []

    def renewed() -> bool:
        if not is_ready(api, host):
            unready.append(time.monotonic())
        return lab.ssh(host, serial) != first

    took = wait_for("a certificate of another serial number", renewed, minutes * 60, pause=5)
    print(f"renewed after {took:.0f} s of {minutes} minutes")
    # Past the end of the first one, the second one must do.
    with lab.asking(host, "api", f"/api/v1/nodes/{host}") as findings:
        time.sleep(max(0.0, minutes * 60 - took) + 30)
        found = findings()
    assert not unready
    assert is_ready(api, host)
    assert lab.processes([host])[host, "kubelet.service"].pid == process.pid
    assert found["asked"]
    lab.converge()
