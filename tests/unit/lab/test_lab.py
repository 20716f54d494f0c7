# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a lab reads from an inventory, and what it asks podman, QEMU and SSH for."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.plainkube.cluster.tests.lab.plainkube_lab import access, cli, images, machines, podman
from ansible_collections.plainkube.cluster.tests.lab.plainkube_lab.model import (
    Forward,
    Lab,
    LabError,
    Node,
    parse_inventory,
)

LAB = Path(cli.__file__).resolve().parents[1]
CONTAINER = Node("one", "node1", "10.89.77.11", 22)
VM = Node("one", "machine", "127.0.0.1", 2222, kind="vm", forwards=(Forward(16443, 6443),))


def inventory(**hosts: dict[str, Any]) -> dict[str, Any]:
    return {"_meta": {"hostvars": {name: {"lab_name": "one", **variables} for name, variables in hosts.items()}}}


def test_reads_nodes_with_their_defaults_and_their_own_values() -> None:
    lab = parse_inventory(
        inventory(
            node2={"ansible_host": "10.89.77.12", "lab_suite": "trixie", "lab_memory": 1024},
            node1={"ansible_host": "10.89.77.11"},
            machine={
                "ansible_host": "127.0.0.1",
                "ansible_port": 2222,
                "lab_kind": "vm",
                "lab_forwards": [{"port": 16443, "node_port": 6443}],
            },
        )
    )
    assert lab == Lab("one", (VM, CONTAINER, Node("one", "node2", "10.89.77.12", 22, suite="trixie", memory=1024)))
    assert lab.subnet == "10.89.77.0/24"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"ansible_host": "node1.example"}, "node1: ansible_host is 'node1.example', not an IPv4 address"),
        ({}, "node1: ansible_host is '', not an IPv4 address"),
        ({"lab_kind": "pod"}, "node1: lab_kind is 'pod', not one of container, vm"),
        ({"lab_suite": "sid"}, "node1: lab_suite is 'sid', not one of bookworm, trixie"),
        ({"lab_memory": "4G"}, "node1: lab_memory is '4G', not a number from 256 to 65536"),
        ({"lab_memory": True}, "node1: lab_memory is True, not a number"),
        ({"ansible_port": 2222}, "node1: ansible_port is 2222, but a container answers at port 22"),
        ({"lab_kind": "vm"}, "a virtual machine needs ansible_host 127.0.0.1 and an ansible_port other than 22"),
        ({"lab_forwards": [{"port": 1, "node_port": 2}]}, "lab_forwards is for virtual machines"),
        ({"lab_forwards": [{"port": "1", "node_port": 2}]}, "lab_forwards has {'port': '1', 'node_port': 2}, not"),
        ({"lab_forwards": [{"port": 1}]}, "lab_forwards has {'port': 1}, not"),
        ({"lab_forwards": [{"port": 1, "node_port": 2, "via": 3}]}, "lab_forwards has"),
        ({"lab_name": "My lab"}, "lab_name is 'My lab', 'one': give all hosts one name of lower case letters"),
        ({"lab_name": "two"}, "lab_name is 'one', 'two': give all hosts one name"),
        ({"ansible_host": "10.89.77.12"}, "node2: address 10.89.77.12 port 22 is used by node1 too"),
        ({"ansible_host": "10.89.78.11"}, "node2: address 10.89.77.12 is not from 10.89.78.2 to 10.89.78.254"),
        ({"ansible_host": "10.89.77.1"}, "node1: address 10.89.77.1 is not from 10.89.77.2 to 10.89.77.254"),
        ({"plainkube_address_ipv6": "192.0.2.1"}, "node1: plainkube_address_ipv6 is '192.0.2.1', not an IPv6 address"),
    ],
)
def test_a_wrong_inventory_is_refused_with_words(variables: dict[str, Any], message: str) -> None:
    node1 = {"ansible_host": "10.89.77.11", **variables} if variables else {}
    with pytest.raises(LabError) as error:
        parse_inventory(inventory(node1=node1, node2={"ansible_host": "10.89.77.12"}))
    assert message in str(error.value)


def test_containers_with_ipv6_are_in_one_network() -> None:
    hosts = {
        "node1": {"ansible_host": "10.89.77.11", "plainkube_address_ipv6": "fd00:89::11"},
        "node2": {"ansible_host": "10.89.77.12", "plainkube_address_ipv6": "fd00:89::12"},
        "edge": {"ansible_host": "10.89.77.13"},
    }
    lab = parse_inventory(inventory(**hosts))
    assert lab.subnet_ipv6 == "fd00:89::/64"
    assert Lab("one", (CONTAINER,)).subnet_ipv6 == ""
    options = {node.name: podman.run_arguments(node, lab.network, "i", LAB, LAB) for node in lab.nodes}
    assert {name: "--ip6" in words for name, words in options.items()} == {"node1": True, "node2": True, "edge": False}
    hosts["node2"]["plainkube_address_ipv6"] = "fd00:90::12"
    with pytest.raises(LabError, match=r"is in fd00:89::/64, fd00:90::/64: give all containers one of the same /64"):
        parse_inventory(inventory(**hosts))


def test_all_faults_are_named_at_once() -> None:
    with pytest.raises(LabError) as error:
        parse_inventory(inventory(node1={"lab_kind": "pod"}, Node2={"ansible_host": "10.89.77.12"}))
    assert len(str(error.value).splitlines()) == 3


def test_an_inventory_without_hosts_is_refused() -> None:
    with pytest.raises(LabError, match="no host"):
        parse_inventory({"_meta": {"hostvars": {}}})


def test_a_container_has_all_that_a_kubelet_needs() -> None:
    arguments = podman.run_arguments(CONTAINER, "net", "image", Path("/i.tar"), Path("/mirror"))
    text = " ".join(arguments)
    for needed in (
        "--privileged --systemd=false --env container=podman",
        "--cgroupns=private",
        "--ip 10.89.77.11",
        "--mac-address 02:00:0a:59:4d:0b",
        "--hostname node1",
        "--label io.plainkube.lab=one",
        "--stop-signal SIGRTMIN+3",
        "--memory 4096m",
        "plainkube-one-node1-containerd:/var/lib/containerd",
        "/mirror:/srv/plainkube-mirror:ro",
    ):
        assert needed in text
    assert arguments[-2:] == ["image", "/usr/local/sbin/lab-init"]


def test_a_machine_survives_a_reboot_and_forwards_its_ports() -> None:
    arguments = machines.qemu_arguments(VM, Path("/image"), Path("/folder"), "0" * 32)
    assert "-no-reboot" not in arguments
    assert "user,id=net0,hostfwd=tcp:127.0.0.1:2222-:22,hostfwd=tcp:127.0.0.1:16443-:6443" in arguments
    assert arguments[arguments.index("-append") + 1].endswith(f"systemd.hostname=machine systemd.machine_id={'0' * 32}")


def test_only_a_process_that_names_its_pid_file_is_taken_for_the_machine(tmp_path: Path) -> None:
    assert machines.running_pid(tmp_path) is None
    (tmp_path / "qemu.pid").write_text(f"{os.getpid()}\n")  # a process that is not ours to kill
    assert machines.running_pid(tmp_path) is None


def test_an_identity_keeps_private_things_private() -> None:
    files = access.identity_files(VM, "0" * 32, b"key", b"public", b"login")
    assert files[access.HOST_KEY][0] == files["root/.ssh/authorized_keys"][0] == 0o600
    assert "etc/hostname" in files
    assert "etc/hostname" not in access.identity_files(CONTAINER, "0" * 32, b"", b"", b"")


def test_a_packed_tree_is_root_owned_and_the_same_every_time() -> None:
    files = {"b": (0o600, b"2"), "a": (0o755, b"1")}
    assert access.pack_tree(files) == access.pack_tree(dict(reversed(files.items())))
    with tarfile.open(fileobj=io.BytesIO(access.pack_tree(files))) as archive:
        assert [(m.name, m.mode, m.uid, m.gid) for m in archive] == [("a", 0o755, 0, 0), ("b", 0o600, 0, 0)]


def test_ssh_settings_trust_only_the_labs_own_hosts() -> None:
    text = access.ssh_config((CONTAINER, VM), Path("/key"), Path("/known"))
    assert "Host machine\n  HostName 127.0.0.1\n  Port 2222\n" in text
    assert "StrictHostKeyChecking yes" in text
    assert 'UserKnownHostsFile "/known"' in text


@pytest.mark.parametrize(("node", "name"), [(CONTAINER, "10.89.77.11"), (VM, "[127.0.0.1]:2222")])
def test_known_hosts_name(node: Node, name: str) -> None:
    assert node.known_hosts_name == name


def test_an_image_is_named_by_its_kind_suite_and_files(tmp_path: Path) -> None:
    names = {images.digest(kind, suite) for kind in ("container", "vm") for suite in ("bookworm", "trixie")}
    assert len(names) == 4
    before = images.overlay("container", tmp_path)
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "file").write_text("new")
    assert images.overlay("container", tmp_path) != before


def test_the_package_list_is_what_the_lab_asks_for() -> None:
    needed = {package for needs in cli.NEEDS.values() for package in needs}
    assert (LAB / "packages.txt").read_text().split() == sorted(needed)


def test_each_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.shutil, "which", lambda file, path: None)
    with pytest.raises(LabError) as error:
        cli.check_needs(Lab("one", (CONTAINER,)))
    named = {line.rpartition(" ")[2] for line in str(error.value).splitlines() if "apt-get install" in line}
    assert named == set(cli.NEEDS["container"])
