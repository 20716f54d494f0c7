# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What hosts must be like before anything is installed: facts in, faults and warnings in words out.

A host is its facts, as the module preflight_facts reads them, with what was asked of it. Nothing here does any I/O.
"""

from __future__ import annotations

import ipaddress
import re
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.plainkube.cluster.plugins.module_utils.contract import DNS_LABEL
from ansible_collections.plainkube.cluster.plugins.module_utils.host_facts import NETWORK_FOLDER, OWN_NETWORK

OLDEST_PYTHON = (3, 9)
ARCHITECTURES = ("x86_64", "aarch64")
FAMILIES = ("debian", "rhel")
CGROUP_CONTROLLERS = ("cpu", "cpuset", "memory", "pids")
MINIMUM_INODES = 20000
# What a folder already holds is not needed a second time: a tenth stays as reserve.
RESERVE_OF_FILLED_FOLDERS = 0.1
WILDCARD_ADDRESSES = ("0.0.0.0", "::")

Facts = Mapping[str, Any]
Words = tuple[str, str, str]


@dataclass(frozen=True)
class Finding:
    """Something about hosts, in words for the person who mends it."""

    host: str
    found: str
    wanted: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.host}: found {self.found}; wanted {self.wanted}. {self.remedy}"


@dataclass
class Report:
    """Faults stop the run, warnings do not."""

    faults: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)


def evaluate(hosts: Mapping[str, Facts | None]) -> Report:
    """Return everything that would fail later. A host without facts did not answer, which is a fault."""
    report = Report()
    for name, facts in hosts.items():
        if facts is None:
            wanted = "every host of the play to answer"
            report.faults.append(
                Finding(name, "no facts", wanted, "See above why it did not answer, and mend that first.")
            )
            continue
        report.faults += [Finding(name, *words) for check in FAULT_CHECKS for words in check(facts)]
        report.faults += [Finding(name, *words) for words in _name_words(name)]
        report.warnings += [Finding(name, *words) for check in WARNING_CHECKS for words in check(facts)]
    answering = {name: facts for name, facts in hosts.items() if facts is not None}
    for check in SHARED_FAULT_CHECKS:
        report.faults += _together(answering, check)
    report.faults += _twins(answering)
    report.faults += _clock_faults(answering)
    report.warnings += _clock_warnings(answering)
    report.warnings += _link_warnings(answering)
    return report


# One host: each check yields what was found, what was wanted, what to do


def _name_words(name: str) -> Iterator[Words]:
    if len(name) > 63 or not all(DNS_LABEL.fullmatch(label) for label in name.split(".")):
        wanted = "a DNS name in lower case of at most 63 characters, since the node is called so"
        yield (
            f"the inventory name {name!r}",
            wanted,
            "Rename the host in the inventory and keep its address in ansible_host.",
        )


def _system(facts: Facts) -> Iterator[Words]:
    if facts["first_process"] != "systemd" or not facts["systemd_booted"]:
        yield (
            f"{facts['first_process']} as process 1",
            "systemd",
            "Boot the host with systemd; every process becomes a unit.",
        )
    if facts["architecture"] not in ARCHITECTURES:
        wanted = " or ".join(ARCHITECTURES)
        yield (
            f"architecture {facts['architecture']}",
            wanted,
            "Take this host out of the inventory: there are no binaries for it.",
        )
    if facts["family"] not in FAMILIES:
        wanted = "Debian, Ubuntu or one of the RHEL family"
        yield (
            f"distribution {facts['distribution']}",
            wanted,
            "Install another distribution: its package names are not known.",
        )
    if tuple(facts["python_version"][:2]) < OLDEST_PYTHON:
        found = "Python " + ".".join(map(str, facts["python_version"]))
        yield found, "3.9 or newer", "Install a newer one and name it in ansible_python_interpreter."


def _kernel(facts: Facts) -> Iterator[Words]:
    asked = facts["asked"]
    if _numbers(facts["kernel"]) < _numbers(asked["minimum_kernel"]):
        wanted = f"{asked['minimum_kernel']} or newer"
        yield f"kernel {facts['kernel']}", wanted, "Install a newer kernel of the distribution and reboot."
    if not _is_node(asked):
        return
    missing = [module for module in asked["kernel_modules"] if facts["kernel_modules"].get(module) == "missing"]
    if missing:
        remedy = "Install the distribution's package with the kernel's other modules, or another kernel."
        yield f"no kernel module {', '.join(missing)}", "it built in or on disk", remedy


def _control_groups(facts: Facts) -> Iterator[Words]:
    asked = facts["asked"]
    if not _is_node(asked):
        return
    if facts["cgroup_version"] == 1 and not asked["allow_cgroup_v1"]:
        remedy = (
            "Boot with systemd.unified_cgroup_hierarchy=1, or accept version 1 with preflight_allow_cgroup_v1: true "
            "and the kubelet's failCgroupV1: false."
        )
        yield "control groups of version 1", "version 2", remedy
    missing = [controller for controller in CGROUP_CONTROLLERS if controller not in facts["cgroup_controllers"]]
    if missing:
        remedy = "Enable it on the kernel's command line (cgroup_enable=...)."
        yield f"no control group controller {', '.join(missing)}", "it, since the kubelet needs it", remedy


def _memory(facts: Facts) -> Iterator[Words]:
    wanted = facts["asked"]["minimum_memory_mib"]
    if facts["memory_mib"] < wanted:
        remedy = "Give the host more, or lower preflight_minimum_memory_mib if you know better."
        yield f"{facts['memory_mib']} MiB of memory", f"at least {wanted} MiB", remedy


def _swap(facts: Facts) -> Iterator[Words]:
    asked = facts["asked"]
    if facts["swap"] and _is_node(asked) and not asked["allow_swap"]:
        remedy = "Run swapoff -a and take it out of /etc/fstab, or accept it with preflight_allow_swap: true."
        yield f"swap on {', '.join(facts['swap'])}", "none", remedy


def _disk(facts: Facts) -> Iterator[Words]:
    """Folders on one file system share its space, so their needs add up."""
    needs: dict[int, list[tuple[Facts, float]]] = {}
    for folder in facts["folders"]:
        share = RESERVE_OF_FILLED_FOLDERS if folder["filled"] else 1
        needs.setdefault(folder["device"], []).append((folder, folder["minimum_mib"] * share))
    for folders in needs.values():
        first = folders[0][0]
        paths = ", ".join(folder["path"] for folder, _ in folders)
        wanted = round(sum(need for _, need in folders))
        if first["free_mib"] < wanted:
            remedy = "Make room or enlarge it; preflight_minimum_disk_mib says what each folder needs."
            yield f"{first['free_mib']} MiB free for {paths}", f"at least {wanted} MiB", remedy
        if first["inodes"] and first["free_inodes"] < MINIMUM_INODES:
            remedy = "Remove small files there, or make the file system anew with more inodes."
            yield f"{first['free_inodes']} inodes free for {paths}", f"at least {MINIMUM_INODES}", remedy


def _ports(facts: Facts) -> Iterator[Words]:
    for wanted in facts["asked"]["ports"]:
        for listener in facts["listeners"]:
            if listener["process"] != wanted["process"] and _collide(wanted, listener):
                who = (
                    f"{listener['process']} (process {listener['pid']})"
                    if listener["process"]
                    else "an unknown process"
                )
                found = f"{who} on {listener['address']} port {listener['port']}"
                yield (
                    found,
                    f"the port free for {wanted['process']}",
                    f"Stop it, or give it another port: ss -ltnp sport = {listener['port']}",
                )


def _collide(wanted: Facts, listener: Facts) -> bool:
    same_port = int(wanted["port"]) == listener["port"]
    addresses = (wanted["address"], listener["address"])
    return same_port and (addresses[0] == addresses[1] or any(address in WILDCARD_ADDRESSES for address in addresses))


def _address(facts: Facts) -> Iterator[Words]:
    addresses = [ipaddress.ip_address(own) for own in facts["addresses"]]
    own = ", ".join(str(own) for own in addresses if not (own.is_loopback or own.is_link_local)) or "none"
    for key in ("address", "address_ipv6"):
        address, variable = facts["asked"][key], f"plainkube_{key}"
        try:
            wanted = ipaddress.ip_address(address)
        except ValueError:
            # A name instead of an address is the contract's business, and so is none.
            continue
        if wanted not in addresses:
            remedy = f"Set {variable} to the address by which the other hosts reach this one."
            yield f"the addresses {own}", f"{address} among them, which is {variable}", remedy


def _packages(facts: Facts) -> Iterator[Words]:
    missing, sources = facts["missing_programs"], facts["package_sources"]
    if not missing:
        return
    programs = f"{', '.join(missing)} not installed"
    if not sources["names"] and not sources["local"]:
        remedy = (
            f"Configure a source for {facts['package_manager'] or 'packages'}, or install the programs by other means."
        )
        yield f"{programs} and no package source", "a package source", remedy
    unresolved = [name for name, resolved in sources["names"].items() if not resolved]
    if unresolved and len(unresolved) == len(sources["names"]) and not sources["local"]:
        remedy = "Mend the host's name resolution, or its package source or proxy."
        yield f"{programs} and a package source that does not resolve: {', '.join(unresolved)}", "one that does", remedy


def _etcd_data(facts: Facts) -> Iterator[Words]:
    data = facts["etcd_data"]
    if not data["path"]:
        return
    if data["version_2"]:
        remedy = "Move its keys with the playbook migrate-etcd first, or move the folder away if nobody needs them."
        yield f"data of etcd 2 in {data['path']}", "an empty folder or data of etcd 3", remedy
    elif data["proxy"]:
        yield (
            f"the state of an etcd 2 proxy in {data['path']}",
            "an empty folder",
            "Stop the proxy and move the folder away.",
        )
    elif data["database"] and not data["own_unit"]:
        remedy = "If it is needed, make a snapshot of it for the playbook restore-etcd; then move the folder away."
        yield f"a database in {data['path']} that is not this cluster's", "an empty folder", remedy


def _remnants(facts: Facts) -> Iterator[Words]:
    by_installer: dict[str, list[str]] = {}
    for remnant in facts["remnants"]:
        by_installer.setdefault(remnant["of"], []).append(remnant["path"])
    for installer, paths in by_installer.items():
        remedy = "Use its own uninstaller (kubeadm reset, k3s-uninstall.sh...) and delete what is left."
        yield f"{', '.join(paths)} of {installer}", "a host without another Kubernetes", remedy


def _networks(facts: Facts) -> Iterator[Words]:
    if facts["asked"]["network"]["kind"] == "none":
        return
    names = [name for name in facts["foreign_networks"] if name < OWN_NETWORK]
    if names:
        found = f"{', '.join(names)} of another pod network in {NETWORK_FOLDER}"
        yield found, f"nothing that comes before {OWN_NETWORK}, since the first by name is used", "Move it away."


def _cache_of_names(facts: Facts) -> Iterator[Words]:
    address = facts["asked"]["dns_cache_address"]
    if address and address in facts["addresses"] and not facts["dns_cache_is_ours"]:
        remedy = (
            "Remove what has it (another cache of names, such as NodeLocal DNSCache; ip address show to "
            f"{address}), or choose another plainkube_dns_cache_address."
        )
        yield f"the address {address} in use", "it free for the cache of names", remedy


def _circular_names(facts: Facts) -> Iterator[Words]:
    asked = facts["asked"]
    circular = [
        server
        for server in facts["name_servers"]
        if server and server in (asked["dns_cache_address"], asked["dns_service_ip"])
    ]
    if circular and _is_node(asked):
        found = f"name server {', '.join(circular)} in {facts['resolver_file']}, which is the cluster's own"
        remedy = "Name the site's servers there, or in plainkube_dns_servers."
        yield found, "one that knows names outside the cluster: it would be asked by itself for ever", remedy


FAULT_CHECKS: tuple[Callable[[Facts], Iterator[Words]], ...] = (
    _system,
    _kernel,
    _control_groups,
    _memory,
    _swap,
    _disk,
    _ports,
    _address,
    _packages,
    _etcd_data,
    _remnants,
    _networks,
    _cache_of_names,
    _circular_names,
)


def _unknown_modules(facts: Facts) -> Iterator[Words]:
    unknown = [
        module for module in facts["asked"]["kernel_modules"] if facts["kernel_modules"].get(module) == "unknown"
    ]
    if unknown and _is_node(facts["asked"]):
        remedy = "Nothing need be wrong; pods' networks fail if one is missing."
        yield f"a kernel that does not say whether it has {', '.join(unknown)}", "them", remedy


def _slow_etcd_disk(facts: Facts) -> Iterator[Words]:
    measured, wanted = facts["fsync_p99_milliseconds"], facts["asked"]["fsync_p99_warning_milliseconds"]
    if measured is not None and measured > wanted:
        found = f"an etcd disk that takes {measured:.1f} ms for a synchronous write (99th percentile)"
        yield (
            found,
            f"at most {wanted} ms",
            "Put etcd on a faster disk of its own, or expect leader changes under load.",
        )


def _some_package_sources(facts: Facts) -> Iterator[Words]:
    names = facts["package_sources"]["names"]
    unresolved = [name for name, resolved in names.items() if not resolved]
    if facts["missing_programs"] and 0 < len(unresolved) < len(names):
        yield (
            f"package sources that do not resolve: {', '.join(unresolved)}",
            "all to",
            "Remove them or mend name resolution.",
        )


def _name_servers(facts: Facts) -> Iterator[Words]:
    servers = facts["name_servers"]
    if not _is_node(facts["asked"]):
        return
    if not servers:
        yield (
            f"no name server in {facts['resolver_file']}",
            "one",
            "Pods will resolve names of the cluster alone.",
        )
    elif all(_is_loopback(server) for server in servers):
        remedy = (
            "Set plainkube_dns_servers to the servers of the site, or node_resolv_conf and preflight_resolv_conf to a "
            "file that names them."
        )
        found = f"only name servers on loopback in {facts['resolver_file']}"
        yield found, "servers that pods can reach: CoreDNS would ask itself for ever", remedy


WARNING_CHECKS: tuple[Callable[[Facts], Iterator[Words]], ...] = (
    _unknown_modules,
    _slow_etcd_disk,
    _some_package_sources,
    _name_servers,
)


# Networks: what is wrong is mostly wrong on all hosts, and said once


def _changed_network(facts: Facts) -> Iterator[Words]:
    present, asked = facts["network"], facts["asked"]["network"]
    wanted = {key: str(asked[key]) for key in NETWORK_VARIABLES}
    wanted["pod_cidr_ipv6"] = wanted["pod_cidr_ipv6"] or "none"
    remedy = (
        "Nothing can change it while pods run: hosts that have changed and hosts that have not would not reach each "
        "other's pods. Set the variable back, or make the cluster anew with playbooks/reset.yml and site.yml."
    )
    for key, variable in NETWORK_VARIABLES.items():
        # Without a network yet, a host may still get any; only flannel has a backend, and only two families two sizes.
        of_another = (key == "backend" and wanted["kind"] != "flannel") or (
            key == "node_cidr_size_ipv6" and not asked["pod_cidr_ipv6"]
        )
        if key in present and present[key] != wanted[key] and not of_another:
            yield f"{_network_words(key, present)} in the running cluster", f"{wanted[key]} ({variable})", remedy


def _network_words(key: str, present: Mapping[str, str]) -> str:
    return {
        "kind": f"the network {present.get('kind')}",
        "backend": f"flannel's backend {present.get('backend')}",
        "pod_cidr": f"pods' addresses from {present.get('pod_cidr')}",
        "pod_cidr_ipv6": f"pods' IPv6 addresses from {present.get('pod_cidr_ipv6')}"
        if present.get("pod_cidr_ipv6") != "none"
        else "pods without IPv6 addresses",
        "node_cidr_size": f"/{present.get('node_cidr_size')} for each node's pods",
        "node_cidr_size_ipv6": f"/{present.get('node_cidr_size_ipv6')} for each node's pods",
    }[key]


def _too_long_packets(facts: Facts) -> Iterator[Words]:
    network, link = facts["asked"]["network"], facts["link"]
    if not link or not network["mtu"] or not _is_node(facts["asked"]):
        return
    most = link["mtu"] - network["overhead"]
    if network["mtu"] > most:
        added = f", {network['mtu'] + network['overhead']} with what the network adds," if network["overhead"] else ""
        found = f"plainkube_pod_mtu {network['mtu']}{added} on link {link['name']}, which carries {link['mtu']} bytes"
        remedy = "Lower it, leave it at 0 to have it computed, or raise the MTU of the links and of all between them."
        yield found, f"at most {most}", remedy


NETWORK_VARIABLES = {
    "kind": "plainkube_network",
    "backend": "plainkube_network_backend",
    "pod_cidr": "plainkube_pod_cidr",
    "pod_cidr_ipv6": "plainkube_pod_cidr_ipv6",
    "node_cidr_size": "plainkube_node_cidr_size",
    "node_cidr_size_ipv6": "plainkube_node_cidr_size_ipv6",
}
SHARED_FAULT_CHECKS: tuple[Callable[[Facts], Iterator[Words]], ...] = (_changed_network, _too_long_packets)


def _together(hosts: Mapping[str, Facts], check: Callable[[Facts], Iterator[Words]]) -> Iterator[Finding]:
    """Yield each finding of a check once, with the names of all hosts that it holds for."""
    names: dict[Words, list[str]] = {}
    for name, facts in hosts.items():
        for words in check(facts):
            names.setdefault(words, []).append(name)
    for words, alike in names.items():
        yield Finding(", ".join(sorted(alike)), *words)


def _link_warnings(hosts: Mapping[str, Facts]) -> Iterator[Finding]:
    """Pods learn their own host's link alone; only one that routes tells them that another one is smaller."""
    nodes = {name: facts for name, facts in hosts.items() if facts["link"] and _is_node(facts["asked"])}
    mtus = {facts["link"]["mtu"] for facts in nodes.values()}
    if len(mtus) < 2 or any(facts["asked"]["network"]["mtu"] for facts in nodes.values()):
        return
    smallest = min(mtus)
    most = smallest - max(facts["asked"]["network"]["overhead"] for facts in nodes.values())
    larger = sorted(name for name, facts in nodes.items() if facts["link"]["mtu"] > smallest)
    yield Finding(
        ", ".join(larger),
        f"a link that carries more than the {smallest} bytes of another host's",
        "the same MTU on all of them",
        f"Correct the links, or set plainkube_pod_mtu to {most}, so that no pod sends what another host cannot take.",
    )


# All hosts together


def _twins(hosts: Mapping[str, Facts]) -> Iterator[Finding]:
    for names in _alike(hosts, lambda facts: facts["machine_id"]):
        first = hosts[names[0]]
        same_machine = all(
            (hosts[name]["hostname"], hosts[name]["product_uuid"]) == (first["hostname"], first["product_uuid"])
            for name in names
        )
        remedy = (
            "They look like one host under several names: correct ansible_host."
            if same_machine
            else "They are copies: on all but one remove /etc/machine-id, run systemd-machine-id-setup, reboot."
        )
        yield Finding(
            ", ".join(names), f"the same machine-id {first['machine_id']}", "one of its own on each host", remedy
        )
    for names in _alike(hosts, lambda facts: facts["hostname"]):
        remedy = "Name them apart: hostnamectl hostname NAME."
        yield Finding(
            ", ".join(names), f"the same host name {hosts[names[0]]['hostname']}", "one of its own on each host", remedy
        )
    for name, facts in hosts.items():
        if not facts["machine_id"]:
            yield Finding(name, "an empty /etc/machine-id", "an id", "Run systemd-machine-id-setup and reboot.")


def _alike(hosts: Mapping[str, Facts], key: Callable[[Facts], str]) -> Iterator[list[str]]:
    """Yield the names of hosts that share a value, if it is not empty."""
    names: dict[str, list[str]] = {}
    for name, facts in hosts.items():
        names.setdefault(key(facts), []).append(name)
    yield from (alike for value, alike in names.items() if value and len(alike) > 1)


def _clock_faults(hosts: Mapping[str, Facts]) -> Iterator[Finding]:
    """The controller's clock counts as one among the hosts': whichever stands apart from their median is named."""
    if not hosts:
        return
    clocks = {
        name: (facts["clock"]["offset_seconds"], facts["clock"]["uncertainty_seconds"]) for name, facts in hosts.items()
    }
    clocks["the controller"] = (0.0, 0.0)
    median = statistics.median_low(offset for offset, _ in clocks.values())
    allowed = {name: facts["asked"]["maximum_clock_offset_seconds"] for name, facts in hosts.items()}
    allowed["the controller"] = min(allowed.values())
    for name, (offset, uncertainty) in clocks.items():
        apart = offset - median
        if abs(apart) - uncertainty > allowed[name]:
            direction = "ahead of" if apart > 0 else "behind"
            found = f"a clock {abs(apart):.1f} s {direction} the others (known to {uncertainty:.1f} s)"
            remedy = "Run a time service there and wait until timedatectl calls the clock synchronized."
            yield Finding(name, found, f"at most {allowed[name]:g} s", remedy)


def _clock_warnings(hosts: Mapping[str, Facts]) -> Iterator[Finding]:
    free_running = [
        name
        for name, facts in hosts.items()
        if facts["time_synchronized"] is False and facts["asked"]["expect_time_service"]
    ]
    if free_running:
        remedy = "Certificates and etcd leases need agreeing clocks: run systemd-timesyncd or chrony."
        yield Finding(", ".join(free_running), "a clock that no time service keeps", "a synchronized one", remedy)


def _is_node(asked: Facts) -> bool:
    return bool(asked["control_plane"] or asked["worker"])


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _numbers(release: str) -> tuple[int, ...]:
    """Return the first two numbers of a release: (6, 1) of 6.1.0-18-amd64."""
    return tuple(int(number) for number in re.findall(r"[0-9]+", release)[:2])


def clock_offset(sent: float, began: float, ended: float, received: float) -> dict[str, float]:
    """Return by how many seconds a host's clock is ahead, and how far that may be wrong.

    sent and received are times of the controller around a call, began and ended those of the host inside it
    (RFC 5905, section 8).
    """
    offset = ((began - sent) + (ended - received)) / 2
    uncertainty = ((received - sent) - (ended - began)) / 2
    return {"offset_seconds": round(offset, 3), "uncertainty_seconds": round(abs(uncertainty), 3)}
