# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A broken inventory ends site.yml with one message about everything that is wrong, before any host is contacted."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.plainkube.cluster.plugins.plugin_utils import x509

ROOT = Path(__file__).resolve().parents[2]
PLAYBOOK = Path(sys.executable).parent / "ansible-playbook"


class Site:
    """Runs site.yml against an inventory whose connection program only leaves a mark that it was called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = folder / "contacted"
        self.ssh = folder / "ssh"
        self.ssh.write_text(f"#!/bin/sh\ntouch {self.mark}\nexit 255\n", encoding="utf-8")
        self.ssh.chmod(0o755)

    def play(self, playbook: str, groups: dict[str, Any], shared: dict[str, Any], *arguments: str) -> str:
        """Return what ansible-playbook said; it must have failed, since no host answers."""
        inventory = self.folder / "inventory"
        (inventory / "group_vars").mkdir(parents=True, exist_ok=True)
        variables = {
            "ansible_ssh_executable": str(self.ssh),
            "plainkube_state_dir": str(self.folder / "state"),
            **shared,
        }
        (inventory / "hosts.yml").write_text(yaml.safe_dump({"all": {"children": groups}}), encoding="utf-8")
        (inventory / "group_vars" / "all.yml").write_text(yaml.safe_dump(variables), encoding="utf-8")
        command = [str(PLAYBOOK), "-i", str(inventory), f"playbooks/{playbook}.yml", *arguments]
        answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        said = answer.stdout + answer.stderr
        assert answer.returncode != 0, said
        return said

    def run(self, groups: dict[str, Any], shared: dict[str, Any], *arguments: str) -> str:
        """Return what ansible-playbook said; it must have failed without a contact."""
        said = self.play("site", groups, shared, *arguments)
        assert not self.mark.exists(), said
        assert not (self.folder / "state").exists(), said
        return said


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def hosts(*numbers: int, **variables: Any) -> dict[str, Any]:
    return {"hosts": {f"node-{number}": {"ansible_host": f"192.0.2.{number}", **variables} for number in numbers}}


def faults_in(said: str) -> list[str]:
    """Return the fault lines of the one message, which Ansible shows as an error and again as the task's result."""
    assert said.count("nothing was changed.") == 2, said
    message = said.split("nothing was changed.\n", 1)[1]
    return [line[2:] for line in message.split("Origin:", 1)[0].splitlines() if line.startswith("- ")]


@pytest.mark.parametrize("arguments", [(), ("--check", "--diff")])
def test_everything_wrong_is_said_at_once(site: Site, arguments: tuple[str, ...]) -> None:
    groups = {
        "etcd": hosts(11, 12),
        "control_plane": {
            "hosts": {
                "node-11": {"plainkube_zone": "{{ nowhere.to_be_found }}"},
                "Node_13": {"ansible_host": "192.0.2.12"},
            }
        },
        "workers": {"hosts": {}},
    }
    shared = {
        "plainkube_pod_cidr": "10.96.0.0/12",
        "plainkube_api_port": "https",
        "plainkube_kubernetes_version": "1.20.0",
        "plainkube_pod_network": "10.0.0.0/8",
    }
    faults = faults_in(site.run(groups, shared, *arguments))
    beginnings = [
        "node-11: plainkube_zone: found a value that cannot be rendered",
        "inventory: plainkube_pod_network: found a name that nothing reads",
        'inventory: plainkube_api_port: found "https"; wanted a whole number',
        "inventory: plainkube_workers_group: found an empty group",
        "inventory: plainkube_etcd_group: found 2 etcd members (node-11, node-12)",
        'Node_13: inventory_hostname: found "Node_13"',
        "Node_13, node-12: plainkube_address: found 192.0.2.12 on 2 hosts",
        "inventory: plainkube_service_cidr: found 10.96.0.0/16, which overlaps plainkube_pod_cidr 10.96.0.0/12",
        "inventory: plainkube_kubernetes_version",
    ]
    for beginning in beginnings:
        assert [fault for fault in faults if fault.startswith(beginning)], (beginning, faults)
    assert len(faults) == len(beginnings), faults


def test_a_version_outside_the_matrix_is_said(site: Site) -> None:
    groups = {name: hosts(11) for name in ("etcd", "control_plane", "workers")}
    (fault,) = faults_in(site.run(groups, {"plainkube_versions": {"etcd": "3.1.0"}}))
    assert "etcd 3.1.0 does not go with Kubernetes" in fault


def test_everything_wrong_with_an_ingress_and_an_edge_is_said_at_once(site: Site) -> None:
    authority = x509.make_authority("a", "a", timedelta(days=1), 0, None, datetime.now(timezone.utc))
    certificate, key = site.folder / "shop.pem", site.folder / "shop.key"
    certificate.write_text(x509.certificate_pem([authority.certificate]), encoding="utf-8")
    key.write_bytes(x509.key_pem(x509.new_key()))
    old_certificate, old_key = site.folder / "old.pem", site.folder / "old.key"
    past = x509.make_authority("a", "a", timedelta(days=1), 0, None, datetime.now(timezone.utc) - timedelta(days=2))
    old_certificate.write_text(x509.certificate_pem([past.certificate]), encoding="utf-8")
    old_key.write_bytes(x509.key_pem(past.key))
    services = [
        {
            "name": name,
            "kind": "http",
            "port": 443,
            "certificates": [{"certificate": str(old_certificate), "key": path}],
        }
        for name, path in (("web", "none"), ("shop", str(old_key)))
    ]
    groups = {
        **{name: hosts(11) for name in ("etcd", "control_plane")},
        "workers": hosts(11, 12),
        "ingress": hosts(12),
        "edge": {**hosts(20, 21), "vars": {"plainkube_edge_services": services}},
    }
    shared = {
        "plainkube_pod_mtu": 65536,
        "plainkube_ingress_default_class": "publik",
        "plainkube_ingress_instances": [
            {"name": "public", "certificate": str(certificate), "certificate_key": str(key)},
            {"name": "inside", "hosts": ["node-11"]},
            {"name": "shop", "class": "public", "https_port": 8443, "ping_port": 10250},
        ],
    }
    faults = faults_in(site.run(groups, shared))
    instances = "inventory: plainkube_ingress_instances"
    shown = "inventory: plainkube_edge_services"
    beginnings = [
        "inventory: plainkube_pod_mtu: found 65536",
        f"{instances}[1].hosts: found node-11; wanted hosts of the ingress group: node-12",
        f"{instances}[2].ping_port: found 10250; wanted a port apart from that of kubelet",
        f'{instances}[2].class: found "public", which public has too',
        f"{instances}[2]: found port 80 on node-12, which instance public has too",
        f'{instances}: found plainkube_ingress_default_class "publik"; wanted the class of an instance: inside, public',
        f"{instances}[0].certificate_key: found {key}, which is not the key of a in {certificate}",
        f"{shown}: found services web and shop at 0.0.0.0 and 0.0.0.0 port 443",
        f"{shown}[0].certificates[0].key: found none: No such file or directory",
        f"{shown}[0].certificates[0].certificate: found a in {old_certificate}, which expired",
        f"{shown}[1].certificates[0].certificate: found a in {old_certificate}, which expired",
    ]
    for beginning in beginnings:
        assert [fault for fault in faults if fault.startswith(beginning)], (beginning, faults)
    assert len(faults) == len(beginnings), faults


def test_an_old_certificate_keeps_nobody_from_looking_at_a_cluster(site: Site) -> None:
    groups = {**{name: hosts(11) for name in ("etcd", "control_plane", "workers")}, "edge": hosts(20)}
    pairs = [{"certificate": "none", "key": "none"}]
    backends = {"backends": "inventory_control_plane"}
    services = [{"name": "web", "kind": "http", "port": 80, "certificates": pairs, **backends}]
    shared = {"plainkube_edge_services": services}
    site.play("verify-cluster", groups, shared)
    assert site.mark.exists()


def test_variables_from_the_command_line_count(site: Site) -> None:
    groups = {name: hosts(11) for name in ("etcd", "control_plane", "workers")}
    faults = faults_in(site.run(groups, {}, "-e", '{"plainkube_api_port": 80}', "-e", "plainkube_apiport=6443"))
    assert [fault.split(":")[1].strip() for fault in faults] == ["plainkube_apiport", "plainkube_api_port"]


def test_numbers_that_the_command_line_made_text_are_named(site: Site) -> None:
    groups = {name: hosts(11) for name in ("etcd", "control_plane", "workers")}
    words = ("plainkube_pod_mtu=1400", "ingress_traefik_accept_seconds=30", "verify_workload=false")
    faults = faults_in(site.run(groups, {}, *(word for words in words for word in ("-e", words))))
    assert faults == [
        'node-11: plainkube_pod_mtu: found the text "1400"; wanted a whole number. '
        """Write 1400; as an extra variable -e '{"plainkube_pod_mtu": 1400}'.""",
        'node-11: ingress_traefik_accept_seconds: found the text "30"; wanted a whole number. '
        """Write 30; as an extra variable -e '{"ingress_traefik_accept_seconds": 30}'.""",
        'node-11: verify_workload: found the text "false"; wanted true or false, without quotes. '
        """Write false; as an extra variable -e '{"verify_workload": false}'.""",
    ]


def test_inputs_of_roles_are_checked_before_any_of_them_runs(site: Site) -> None:
    groups = {
        "etcd": hosts(11),
        "control_plane": hosts(11),
        "workers": hosts(11, node_maximum_pods="{{ 100 + 10 }}", etcd_snapshot_dir="{{ known_to_a_role_alone }}"),
    }
    shared = {"kube_proxy_mode": "ipvs", "node_maximum_pods": "many"}
    faults = faults_in(site.run(groups, shared, "-e", '{"verify_workload": "no"}'))
    assert faults == [
        'node-11: kube_proxy_mode: found "ipvs"; wanted one of nftables, iptables. Choose one of them.',
        'node-11: verify_workload: found "no"; wanted true or false, without quotes. '
        "Write it so; text that YAML takes for something else needs quotes.",
    ]


@pytest.mark.parametrize(("limit", "sound"), [("node-11,node-12,node-13", True), ("node-11,node-12", False)])
def test_a_member_of_a_quorum_can_be_demanded(tmp_path: Path, limit: str, sound: bool) -> None:
    groups = {"etcd": hosts(11, 12, 13), "control_plane": hosts(11), "workers": hosts(11, 14)}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"children": groups}}), encoding="utf-8")
    task = {"name": "Check", "run_once": True, "plainkube.cluster.validate_contract": {"require_complete": True}}
    play = [{"name": "Check", "hosts": "all", "gather_facts": False, "tasks": [task]}]
    (tmp_path / "play.yml").write_text(yaml.safe_dump(play), encoding="utf-8")
    command = [str(PLAYBOOK), "-i", str(tmp_path / "hosts.yml"), str(tmp_path / "play.yml"), "--limit", limit]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (answer.returncode == 0) == sound, answer.stdout + answer.stderr
    assert sound or "inventory: --limit: found a run without node-13" in answer.stdout + answer.stderr


@pytest.mark.parametrize(
    ("services", "names", "server"),
    [
        ([{"name": "api", "kind": "api"}], ["192.0.2.20"], "https://192.0.2.11:6443"),
        ([{"name": "web", "kind": "http", "port": 80}], ["api.example.org"], "https://api.example.org:6443"),
        ([], [], "https://192.0.2.11:6443"),
    ],
)
def test_runs_ask_the_api_where_it_is_before_there_is_an_edge(
    tmp_path: Path, services: list[Any], names: list[str], server: str
) -> None:
    groups = {name: hosts(11) for name in ("etcd", "control_plane", "workers")}
    edge = {**hosts(20), "vars": {"plainkube_edge_services": services}}
    inventory = {"all": {"vars": {"plainkube_api_names": names}, "children": {**groups, "edge": edge}}}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(inventory), encoding="utf-8")
    tasks = [
        {
            "name": "Know",
            "ansible.builtin.import_role": {"name": "plainkube.cluster.cluster", "tasks_from": "contract"},
        },
        {"name": "Read", "ansible.builtin.include_vars": str(ROOT / "roles/authorities/defaults/main.yml")},
        {"name": "Say", "ansible.builtin.debug": {"var": "authorities_admin_server"}},
    ]
    play = [{"name": "Say", "hosts": "control_plane", "gather_facts": False, "tasks": tasks}]
    (tmp_path / "play.yml").write_text(yaml.safe_dump(play), encoding="utf-8")
    command = [str(PLAYBOOK), "-i", str(tmp_path / "hosts.yml"), str(tmp_path / "play.yml")]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert f"authorities_admin_server: {server}\n" in answer.stdout, answer.stdout + answer.stderr
