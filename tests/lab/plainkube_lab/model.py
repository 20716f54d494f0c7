# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a lab is, read from an Ansible inventory. Pure: no input or output."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import Any

KINDS = ("container", "vm")
SUITES = ("bookworm", "trixie")
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?")
# With user networking each virtual machine is alone behind the machine's loopback address.
VM_ADDRESS = "127.0.0.1"
LABEL = "io.plainkube.lab"


class LabError(Exception):
    """Something the person who called has to know; the message says what to do."""


@dataclass(frozen=True)
class Forward:
    """A port of this machine's loopback address that leads to a port of a virtual machine."""

    port: int
    node_port: int


@dataclass(frozen=True)
class Node:
    """One host of the inventory. Memory in MiB."""

    lab: str
    name: str
    address: str
    port: int
    kind: str = "container"
    suite: str = "bookworm"
    memory: int = 4096
    cpus: int = 2
    forwards: tuple[Forward, ...] = ()
    address_ipv6: str = ""

    @property
    def container(self) -> str:
        """Name of the node's container; its volumes start with it."""
        return f"plainkube-{self.lab}-{self.name}"

    @property
    def subnet_ipv6(self) -> str:
        """The /64 of the node's IPv6 address."""
        return str(ipaddress.IPv6Network(f"{self.address_ipv6}/64", strict=False))

    @property
    def known_hosts_name(self) -> str:
        """The node's name in a known_hosts file."""
        return self.address if self.port == 22 else f"[{self.address}]:{self.port}"


@dataclass(frozen=True)
class Lab:
    """All nodes of an inventory."""

    name: str
    nodes: tuple[Node, ...] = field(default_factory=tuple)

    def of_kind(self, kind: str) -> list[Node]:
        return [node for node in self.nodes if node.kind == kind]

    @property
    def network(self) -> str:
        """Name of the containers' network."""
        return f"plainkube-{self.name}"

    @property
    def subnet(self) -> str:
        """The /24 that all containers' addresses are in; only for labs that have containers."""
        return str(ipaddress.IPv4Network(f"{self.of_kind('container')[0].address}/24", strict=False))

    @property
    def subnet_ipv6(self) -> str:
        """The /64 that containers' IPv6 addresses are in, empty where none has one."""
        return next((node.subnet_ipv6 for node in self.of_kind("container") if node.address_ipv6), "")


def parse_inventory(data: dict[str, Any]) -> Lab:
    """Reads the answer of `ansible-inventory --list`. Raises LabError with one line for each fault."""
    hosts: dict[str, dict[str, Any]] = data.get("_meta", {}).get("hostvars", {})
    if not hosts:
        raise LabError("the inventory has no host with variables: each host of a lab needs at least ansible_host")
    faults: list[str] = []
    names = sorted({str(variables.get("lab_name", "")) for variables in hosts.values()})
    if len(names) != 1 or not NAME.fullmatch(names[0]):
        found = ", ".join(map(repr, names))
        faults.append(f"lab_name is {found}: give all hosts one name of lower case letters, digits and dashes")
    nodes = []
    for host in sorted(hosts):
        node, problems = _parse_host(names[0], host, hosts[host])
        faults += problems
        if node:
            nodes.append(node)
    faults += _conflicts(nodes)
    if faults:
        raise LabError("\n".join(faults))
    return Lab(names[0], tuple(nodes))


def _parse_host(lab: str, host: str, variables: dict[str, Any]) -> tuple[Node | None, list[str]]:
    faults: list[str] = []

    def choice(name: str, choices: tuple[str, ...]) -> str:
        value = str(variables.get(name, choices[0]))
        if value not in choices:
            faults.append(f"{host}: {name} is {value!r}, not one of {', '.join(choices)}")
        return value

    def number(name: str, default: int, lowest: int, highest: int) -> int:
        value = variables.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
            faults.append(f"{host}: {name} is {value!r}, not a number from {lowest} to {highest}")
            return default
        return value

    if not NAME.fullmatch(host):
        faults.append(f"{host!r} is not a name of lower case letters, digits and dashes")
    kind = choice("lab_kind", KINDS)
    address = str(variables.get("ansible_host", ""))
    try:
        ipaddress.IPv4Address(address)
    except ValueError:
        faults.append(f"{host}: ansible_host is {address!r}, not an IPv4 address")
    address_ipv6 = str(variables.get("plainkube_address_ipv6", "")) if kind == "container" else ""
    try:
        ipaddress.IPv6Address(address_ipv6 or "::")
    except ValueError:
        faults.append(f"{host}: plainkube_address_ipv6 is {address_ipv6!r}, not an IPv6 address")
        address_ipv6 = ""
    port = number("ansible_port", 22, 1, 65535)
    if kind == "vm" and (address != VM_ADDRESS or port == 22):
        faults.append(f"{host}: a virtual machine needs ansible_host {VM_ADDRESS} and an ansible_port other than 22")
    if kind == "container" and port != 22:
        faults.append(f"{host}: ansible_port is {port}, but a container answers at port 22")
    forwards = []
    for entry in variables.get("lab_forwards", []):
        if not isinstance(entry, dict) or {key: type(entry.get(key)) for key in entry} != {
            "port": int,
            "node_port": int,
        }:
            faults.append(
                f"{host}: lab_forwards has {entry!r}, not {{port: number here, node_port: number in the node}}"
            )
            continue
        forwards.append(Forward(**entry))
    if forwards and kind != "vm":
        faults.append(f"{host}: lab_forwards is for virtual machines; a container has an address of its own")
    node = Node(
        lab=lab,
        name=host,
        address=address,
        port=port,
        kind=kind,
        suite=choice("lab_suite", SUITES),
        memory=number("lab_memory", 4096, 256, 65536),
        cpus=number("lab_cpus", 2, 1, 64),
        forwards=tuple(forwards),
        address_ipv6=address_ipv6,
    )
    return (None if faults else node), faults


def _conflicts(nodes: list[Node]) -> list[str]:
    """Addresses and ports that two nodes want, and containers outside the first one's /24."""
    faults = []
    taken: dict[tuple[str, int], str] = {}
    for node in nodes:
        for port in (node.port, *(forward.port for forward in node.forwards)):
            other = taken.setdefault((node.address, port), node.name)
            if other != node.name:
                faults.append(f"{node.name}: address {node.address} port {port} is used by {other} too")
    containers = [node for node in nodes if node.kind == "container"]
    if containers:
        network = ipaddress.IPv4Network(f"{containers[0].address}/24", strict=False)
        first, last = network[2], network[254]
        for node in containers:
            if not first <= ipaddress.IPv4Address(node.address) <= last:
                faults.append(
                    f"{node.name}: address {node.address} is not from {first} to {last},"
                    f" the network of {containers[0].name}"
                )
        networks = sorted({node.subnet_ipv6 for node in containers if node.address_ipv6})
        if len(networks) > 1:
            faults.append(
                f"plainkube_address_ipv6 is in {', '.join(networks)}: give all containers one of the same /64"
            )
    return faults
