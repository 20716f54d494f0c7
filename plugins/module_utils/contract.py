# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The contract: what a cluster's inventory and its plainkube_* variables must look like, and what follows from them.

Everything here takes plain data and returns all faults it can find, so that a person mends an inventory once.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Callable, Union

from ansible_collections.plainkube.cluster.plugins.module_utils import edge, ingress
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError

PREFIX = "plainkube_"
INVENTORY = "inventory"

# What may differ from host to host; everything else describes the cluster as a whole.
HOST_VARIABLES = frozenset(
    {
        "plainkube_address",
        "plainkube_address_ipv6",
        "plainkube_artifact_source",
        "plainkube_dns_servers",
        "plainkube_edge_address",
        "plainkube_edge_interface",
        "plainkube_edge_services",
        "plainkube_image_source",
        "plainkube_node_labels",
        "plainkube_node_taints",
        "plainkube_zone",
    }
)
GROUP_VARIABLES = {
    "etcd": "plainkube_etcd_group",
    "control_plane": "plainkube_control_plane_group",
    "workers": "plainkube_workers_group",
    "ingress": "plainkube_ingress_group",
    "edge": "plainkube_edge_group",
}
# A cluster works without hosts of these groups, which are called so unless the inventory says otherwise.
OPTIONAL_GROUPS = frozenset({"ingress", "edge"})

# Every link of IPv6 carries the first (RFC 8200), the second is the longest packet of IPv4.
POD_MTUS = range(1280, 65536)

# Numbers of autonomous systems that anyone may use (RFC 6996), and those that a router may have (RFC 7607).
PRIVATE_AS_NUMBERS = (range(64512, 65535), range(4200000000, 4294967295))
AS_NUMBERS = range(1, 4294967295)
# Bytes that IP-in-IP puts in front of a packet (RFC 2003).
IPIP_OVERHEAD = 20
# What the kernel takes for TCP's signatures (TCP_MD5SIG_MAXKEYLEN).
LONGEST_BGP_PASSWORD = 80

# What no message may show.
SECRET_VARIABLES = frozenset({"plainkube_backup_environment", "plainkube_backup_password", "plainkube_bgp_peers"})

DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
# Names and values of labels in the Kubernetes API.
LABEL_PART = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
LABEL_KEY_WANTED = "a key like example.org/name: a DNS name and / if wanted, then at most 63 letters, digits, -, _ or ."
LABEL_VALUE_WANTED = "at most 63 letters, digits, -, _ or ., beginning and ending with a letter or digit"

# kube-controller-manager refuses to cut a pod network into more than 2^16 parts.
MOST_NODE_NETWORK_BITS = 16
ETCD_SIZES = (1, 3, 5, 7)
NODE_PORTS = range(30000, 32768)
TAKEN_PORTS = {
    2379: "etcd",
    2380: "etcd",
    2381: "etcd",
    9253: "node-dns",
    9254: "node-dns",
    10248: "kubelet",
    10249: "kube-proxy",
    10250: "kubelet",
    10256: "kube-proxy",
    10257: "kube-controller-manager",
    10259: "kube-scheduler",
}
# An address that each host may have for itself: link-local, without what RFC 3927 reserves and where clouds serve
# metadata.
CACHE_NETWORK = ipaddress.IPv4Network("169.254.0.0/16")
NOT_FOR_CACHES = tuple(
    ipaddress.IPv4Network(cidr) for cidr in ("169.254.0.0/24", "169.254.169.0/24", "169.254.255.0/24")
)
# More is cut down by glibc.
MOST_DOTS = 15
# The minor of Kubernetes from which on policies that change objects are for general use.
MUTATING_POLICIES_SINCE = 36
LONGEST_CERTIFICATE_DAYS = 365
BACKUP_REPOSITORY = re.compile(
    r"s3:https?://[^/\s]+/\S+|sftp:(//)?[^/\s:]+(:\d+/|[:/])\S+|rest:https?://[^/\s]+/\S*|/\S+"
)
# The sandbox of the backup's service shows it none of these.
HIDDEN_FROM_SERVICES = ("/home/", "/root/", "/run/user/", "/tmp/", "/var/tmp/")
SHORTEST_BACKUP_PASSWORD = 12
ENVIRONMENT_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# The CSR API signs nothing shorter; 90 days is the collection's own limit.
KUBELET_CERTIFICATE_MINUTES = (10, 90 * 24 * 60)

TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "str": ((str, int), "text"),
    "path": ((str,), "a path"),
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false, without quotes"),
    "list": ((list, tuple), "a list"),
    "dict": ((dict,), "a mapping of names to values"),
}
# What -e name=1 and -e name=true give. Templates would count and compare it as text.
AS_TEXT = {"int": r"-?[0-9]+", "float": r"-?[0-9]+(\.[0-9]+)?", "bool": r"true|false"}

Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]
Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]
Variables = Mapping[str, Any]
VersionFaults = Callable[[str, Mapping[str, str]], Iterable[str]]


@dataclass(frozen=True)
class Family:
    """A family of addresses: how its variables end, and what its networks must be like.

    reserved: networks with a meaning of their own. service_sizes: lengths of the largest and the smallest network of
    Services; the API server has no place for more than 2^20 addresses of them.
    """

    name: str
    suffix: str
    parse_address: Callable[[str], Address]
    parse_network: Callable[[str, bool], Network]
    reserved: tuple[Network, ...]
    example: str
    service_sizes: tuple[int, int]
    smallest_node_network: int
    room: str

    def variable(self, name: str) -> str:
        """Return the name of a variable for this family."""
        return f"{PREFIX}{name}{self.suffix}"

    def address(self, value: Any) -> Address | None:
        """Return an address, None if it is none of this family; one with a link behind % is none for other hosts."""
        try:
            return None if "%" in str(value) else self.parse_address(str(value))
        except ValueError:
            return None

    def network(self, value: Any, strict: bool) -> Network | None:
        """Return a network, None if it is none of this family; strict: an address inside a network is none."""
        try:
            return self.parse_network(str(value), strict)
        except ValueError:
            return None


IPV4 = Family(
    name="IPv4",
    suffix="",
    parse_address=ipaddress.IPv4Address,
    parse_network=ipaddress.IPv4Network,
    reserved=tuple(map(ipaddress.IPv4Network, ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3"))),
    example="10.244.0.0/16",
    service_sizes=(12, 24),
    smallest_node_network=28,
    room="24 gives each node 254 addresses, which is what its 110 pods need.",
)
IPV6 = Family(
    name="IPv6",
    suffix="_ipv6",
    parse_address=ipaddress.IPv6Address,
    parse_network=ipaddress.IPv6Network,
    # What is not unicast, what no router passes on, and what stands for addresses of IPv4.
    reserved=tuple(map(ipaddress.IPv6Network, ("::/8", "fe80::/10", "ff00::/8"))),
    example="fd00:10:244::/48",
    service_sizes=(108, 120),
    smallest_node_network=120,
    room="64 is usual, with a pod network of /48 to /56.",
)


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong, in words for the person who mends it."""

    host: str
    variable: str
    found: str
    wanted: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.host}: {self.variable}: found {self.found}; wanted {self.wanted}. {self.remedy}"


@dataclass(frozen=True)
class Inventory:
    """An inventory as plain data.

    groups: the names of each group's hosts. hosts: the effective plainkube_* values, defaults included, of each host of
    the cluster. set_names: the plainkube_* names that each host of the inventory sets. playing: the hosts of the play,
    if every etcd and control-plane host must be among them.
    """

    groups: Mapping[str, Sequence[str]]
    hosts: Mapping[str, Variables]
    set_names: Mapping[str, Iterable[str]]
    playing: frozenset[str] | None = None


def topology(
    hostvars: Mapping[str, Variables],
    groups: Mapping[str, Sequence[str]],
    etcd_group: str,
    control_plane_group: str,
    workers_group: str,
    ingress_group: str = "ingress",
    edge_group: str = "edge",
) -> dict[str, list[dict[str, str]]]:
    """Return the cluster's hosts by what they are for: lists of name, address, address_ipv6 and zone, sorted by name.

    nodes are all hosts with a kubelet; all are the cluster's own hosts, which those of the edge are not. An address is
    plainkube_address, else ansible_host, else the name: hostvars has what the inventory sets and not the role's
    defaults, so the rule of the default is repeated here.
    """

    def described(names: Iterable[str]) -> list[dict[str, str]]:
        described_hosts = []
        for name in sorted(set(names)):
            variables = hostvars[name]
            address = variables.get("plainkube_address") or variables.get("ansible_host") or name
            described_hosts.append(
                {
                    "name": name,
                    "address": str(address),
                    "address_ipv6": str(variables.get("plainkube_address_ipv6") or ""),
                    "zone": str(variables.get("plainkube_zone") or ""),
                }
            )
        return described_hosts

    etcd = list(groups.get(etcd_group, ()))
    control_plane = list(groups.get(control_plane_group, ()))
    workers = list(groups.get(workers_group, ()))
    every = {host["name"]: host for host in described(etcd + control_plane + workers)}
    ingress = [name for name in groups.get(ingress_group, ()) if name in every]

    def chosen(names: Iterable[str]) -> list[dict[str, str]]:
        return [every[name] for name in sorted(set(names))]

    return {
        "etcd": chosen(etcd),
        "control_plane": chosen(control_plane),
        "workers": chosen(workers),
        "nodes": chosen(control_plane + workers),
        "ingress": chosen(ingress),
        "edge": described(groups.get(edge_group, ())),
        "all": chosen(every),
    }


def node_labels(
    hostvars: Mapping[str, Variables], topology_of_hosts: Mapping[str, Sequence[Mapping[str, str]]]
) -> dict[str, dict[str, str]]:
    """Return the labels of every node by its name: the inventory's, its zone, and the roles that kubectl shows."""
    roles = {
        "node-role.kubernetes.io/control-plane": {host["name"] for host in topology_of_hosts["control_plane"]},
        "node-role.kubernetes.io/worker": {host["name"] for host in topology_of_hosts["workers"]},
        "node-role.kubernetes.io/ingress": {host["name"] for host in topology_of_hosts["ingress"]},
    }
    labels: dict[str, dict[str, str]] = {}
    for host in topology_of_hosts["nodes"]:
        own = hostvars[host["name"]].get("plainkube_node_labels") or {}
        labels[host["name"]] = {
            **{key: str(value) for key, value in own.items()},
            **({"topology.kubernetes.io/zone": host["zone"]} if host["zone"] else {}),
            **{label: "" for label, names in roles.items() if host["name"] in names},
        }
    return labels


def address_in(cidr: str, number: int) -> str:
    """Return the address with this number in the network; number 0 is the network's own. Raises PlainkubeError."""
    try:
        return str(ipaddress.ip_network(cidr)[number])
    except (ValueError, IndexError) as error:
        raise PlainkubeError(
            f"Network {cidr!r} has no address number {number}: {error}. Give a network such as 10.96.0.0/16."
        ) from error


def contract_faults(
    specification: Mapping[str, Any], inventory: Inventory, version_faults: VersionFaults
) -> list[Fault]:
    """Return everything that is wrong with an inventory.

    specification is the options part of an argument specification; version_faults says in words what is wrong with a
    version and its overrides.
    """
    faults = list(_spelling_faults(specification, inventory.set_names))
    hosts, type_faults = _checked_by_type(specification, inventory.hosts)
    faults += type_faults
    faults += _agreement_faults(hosts)
    shared = {variable: value for variables in reversed(list(hosts.values())) for variable, value in variables.items()}
    faults += _group_faults(inventory, shared)
    faults += _name_faults(hosts)
    nodes = _members(inventory, shared, "control_plane", "workers")
    for family in (IPV4, IPV6):
        faults += _address_faults(family, hosts)
        faults += _network_faults(family, hosts, shared, len(nodes))
    faults += _dual_stack_faults(hosts, shared, nodes)
    for variable, check in VALUE_CHECKS.items():
        for host, value in _each(hosts, variable):
            faults += [Fault(host, variable, *words) for words in check(value)]
    if "plainkube_kubernetes_version" in shared:
        version, overrides = str(shared["plainkube_kubernetes_version"]), shared.get("plainkube_versions", {})
        for words in version_faults(version, overrides):
            faults.append(
                Fault(
                    INVENTORY,
                    "plainkube_kubernetes_version, plainkube_versions",
                    _shown(version),
                    "a tested set",
                    words,
                )
            )
    faults += _backup_faults(shared)
    faults += _dns_faults(hosts, shared)
    faults += _edge_faults(inventory, hosts, shared)
    faults += _bgp_faults(shared)
    faults += _ingress_faults(inventory, shared)
    return [_without_secret(fault) for fault in faults]


def role_input_faults(specification: Mapping[str, Any], hosts: Mapping[str, Variables]) -> list[Fault]:
    """Return what is wrong with the type or choice of inputs of roles.

    specification: the options of all roles together, whose names differ. hosts: for each host the inputs that are set.
    """
    secret = SECRET_VARIABLES | {name for name, option in specification.items() if option.get("no_log")}
    return [_without_secret(fault, secret) for fault in _checked_by_type(specification, hosts)[1]]


def _without_secret(fault: Fault, secret_variables: frozenset[str] = SECRET_VARIABLES) -> Fault:
    secret = re.split(r"[.\[]", fault.variable)[0] in secret_variables
    return replace(fault, found="a value that is not shown here") if secret else fault


def _backup_faults(shared: Variables) -> Iterator[Fault]:
    repository, password = shared.get("plainkube_backup_repository"), shared.get("plainkube_backup_password")
    if repository and password is not None and len(password) < SHORTEST_BACKUP_PASSWORD:
        yield Fault(
            INVENTORY,
            "plainkube_backup_password",
            "",
            f"at least {SHORTEST_BACKUP_PASSWORD} characters, since plainkube_backup_repository is set",
            "Make a long one, keep it in a vault, and a copy of it apart from the cluster: without it no backup opens.",
        )
    environment = shared.get("plainkube_backup_environment") or {}
    for name in environment:
        if not ENVIRONMENT_VARIABLE.fullmatch(str(name)) or "\n" in str(environment[name]):
            yield Fault(
                INVENTORY,
                "plainkube_backup_environment",
                "",
                f"names of environment variables and values of one line (see {_shown(str(name))})",
                "Correct it.",
            )


def _dns_faults(hosts: Mapping[str, Variables], shared: Variables) -> Iterator[Fault]:
    """A name server that is asked for what it does not know must not be one that would ask back."""
    circular = {str(shared.get("plainkube_dns_cache_address")): "the address of the nodes' cache"}
    services = IPV4.network(shared.get("plainkube_service_cidr"), strict=False)
    if services is not None:
        circular[str(services[10])] = "the address of the cluster's own name server"
    wanted, remedy = "name servers that do not ask the cluster's", "Name the servers of the site, or none."
    for host, servers in _each(hosts, "plainkube_dns_servers"):
        for server in servers:
            if str(server) in circular:
                yield Fault(host, "plainkube_dns_servers", f"{server}, {circular[str(server)]}", wanted, remedy)
    release = re.match(r"1\.([0-9]+)\.", str(shared.get("plainkube_kubernetes_version")))
    if shared.get("plainkube_dns_ndots") and release and int(release.group(1)) < MUTATING_POLICIES_SINCE:
        yield Fault(
            INVENTORY,
            "plainkube_dns_ndots",
            f"{shared['plainkube_dns_ndots']} with Kubernetes {shared['plainkube_kubernetes_version']}",
            f"0 before Kubernetes 1.{MUTATING_POLICIES_SINCE}, whose API server has no policies that change pods",
            "Set it to 0 until the cluster is moved on; pods can say dnsConfig.options themselves.",
        )
    domain = str(shared.get("plainkube_cluster_domain"))
    for zone, servers in (shared.get("plainkube_dns_zones") or {}).items():
        variable = f"plainkube_dns_zones.{zone}"
        if zone == domain or str(zone).endswith("." + domain):
            remedy_zone = "Take it out; Services and hosts entries make names there."
            yield Fault(INVENTORY, variable, "a zone of the cluster itself", "another zone", remedy_zone)
        for server in servers if isinstance(servers, (list, tuple)) else ():
            if _split_port(str(server))[0] in circular:
                found = f"{server}, {circular[_split_port(str(server))[0]]}"
                yield Fault(INVENTORY, variable, found, wanted, "Name the servers that know the zone.")


def _edge_faults(inventory: Inventory, hosts: Mapping[str, Variables], shared: Variables) -> Iterator[Fault]:
    members = {
        role: _members(inventory, shared, role) for role in ("ingress", "edge") if GROUP_VARIABLES[role] in shared
    }
    at_edge = {name: hosts[name] for name in members.get("edge", ()) if name in hosts}
    variable = "plainkube_edge_services"
    for host, given in _each(at_edge, variable):
        complete = [edge.completed(item, int(shared.get("plainkube_api_port", 0))) for item in given]
        topology_of_hosts = {"ingress": [{"name": name} for name in members.get("ingress", ())]}
        for words in (*edge.overlap_faults(complete), *edge.empty_faults(complete, topology_of_hosts)):
            yield Fault(host, variable, *words)
        if any(item["kind"] == "api" for item in complete) and not shared.get("plainkube_api_names", True):
            wanted = "the name or address by which clients reach the edge, since the API's certificate must hold it"
            yield Fault(
                INVENTORY, "plainkube_api_names", "an empty list, and an API service at the edge", wanted, "Add it."
            )
    addresses = {str(variables.get("plainkube_address")): name for name, variables in hosts.items()}
    for host, variables in at_edge.items():
        address = variables.get("plainkube_edge_address", "")
        if address and address in addresses:
            found = f"{address}, which is plainkube_address of {addresses[address]}"
            yield Fault(host, "plainkube_edge_address", found, "an address of its own", "Choose a free one.")
        if address and not variables.get("plainkube_edge_interface", "here"):
            wanted = "the interface that gets plainkube_edge_address"
            yield Fault(host, "plainkube_edge_interface", "nothing", wanted, "Name it, as ip link shows it.")


def _bgp_faults(shared: Variables) -> Iterator[Fault]:
    tunnel = shared.get("plainkube_bgp_tunnel", "none")
    if tunnel != "none" and shared.get("plainkube_network") == "kube_router" and not shared.get("plainkube_pod_mtu"):
        yield Fault(
            INVENTORY,
            "plainkube_pod_mtu",
            "0",
            f"a number, since plainkube_bgp_tunnel is {tunnel}",
            f"Take the MTU of the smallest link between nodes less {IPIP_OVERHEAD}: {1500 - IPIP_OVERHEAD} for most.",
        )


def _ingress_faults(inventory: Inventory, shared: Variables) -> Iterator[Fault]:
    variable = "plainkube_ingress_instances"
    needed = (variable, "plainkube_ingress", "plainkube_ingress_default_class", "plainkube_ingress_group")
    if any(name not in shared for name in needed):
        return
    hosts = _members(inventory, shared, "ingress")
    taken = {**TAKEN_PORTS, **dict.fromkeys(NODE_PORTS, "node ports")}
    if "plainkube_api_port" in shared:
        taken[shared["plainkube_api_port"]] = "the API"
    words = ingress.faults(
        shared["plainkube_ingress"],
        shared[variable],
        shared["plainkube_ingress_default_class"],
        hosts,
        taken if hosts else {},
    )
    for part, *found_wanted_remedy in words:
        yield Fault(INVENTORY, variable + part, *found_wanted_remedy)


def zone_warnings(hosts: Mapping[str, Variables], etcd_members: Sequence[str]) -> list[str]:
    """Return what a cluster with zones would lose with one of them, though an inventory may want it so."""
    zones = {name: str(variables.get("plainkube_zone") or "") for name, variables in hosts.items()}
    warnings = []
    without = sorted(name for name, zone in zones.items() if not zone)
    if without and len(without) < len(zones):
        warnings.append(
            f"plainkube_zone is set on some hosts but not on {', '.join(without)}: "
            "pods are spread over zones only if all hosts have one."
        )
    of_members = [zones[name] for name in etcd_members if zones.get(name)]
    needed = len(etcd_members) // 2 + 1
    for zone in sorted(set(of_members)):
        if len(etcd_members) >= 3 and of_members.count(zone) >= needed and len(set(zones.values())) > 1:
            warnings.append(
                f"{of_members.count(zone)} of {len(etcd_members)} etcd members are in zone {zone}: "
                f"without that zone the cluster has no quorum of {needed}. Spread the members over three zones."
            )
    return warnings


def _shown(value: Any) -> str:
    """Return a value as a person wrote it, in one line of bearable length."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 120 else text[:117] + "..."


def _each(hosts: Mapping[str, Variables], variable: str) -> Iterator[tuple[str, Any]]:
    """Yield each value of a variable once, with the hosts that have it; what all hosts have is the inventory's."""
    values: dict[str, tuple[list[str], Any]] = {}
    for host, variables in hosts.items():
        if variable in variables:
            value = variables[variable]
            values.setdefault(json.dumps(value, sort_keys=True, default=str), ([], value))[0].append(host)
    for names, value in values.values():
        yield _together(names, hosts), value


def _together(names: Sequence[str], every: Iterable[str]) -> str:
    return INVENTORY if len(names) > 1 and set(names) == set(every) else ", ".join(sorted(names))


def _members(inventory: Inventory, shared: Variables, *roles: str) -> list[str]:
    names = {name for role in roles for name in inventory.groups.get(str(shared.get(GROUP_VARIABLES[role])), ())}
    return sorted(names)


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return near[0] if near else ""


# Names


def _spelling_faults(specification: Mapping[str, Any], set_names: Mapping[str, Iterable[str]]) -> Iterator[Fault]:
    unknown: dict[str, list[str]] = {}
    for host, names in set_names.items():
        for name in names:
            if name.startswith(PREFIX) and name not in specification:
                unknown.setdefault(name, []).append(host)
    for name, hosts in sorted(unknown.items()):
        near = _nearest(name[len(PREFIX) :], [known[len(PREFIX) :] for known in specification])
        near = PREFIX + near if near else ""
        wanted = near or "a variable of the contract"
        remedy = f"Rename it to {near}." if near else "Remove it, or take a name from the README of the role cluster."
        yield Fault(_together(hosts, set_names), name, "a name that nothing reads", wanted, remedy)


def _name_faults(hosts: Iterable[str]) -> Iterator[Fault]:
    for name in hosts:
        if len(name) > 63 or not _is_dns_name(name):
            yield Fault(
                name,
                "inventory_hostname",
                _shown(name),
                "a DNS name in lower case of at most 63 characters, since the node is called so",
                "Rename the host in the inventory and keep its address in ansible_host.",
            )


def _is_dns_name(name: str) -> bool:
    return len(name) <= 253 and all(DNS_LABEL.fullmatch(label) for label in name.split("."))


# Types


def _checked_by_type(
    specification: Mapping[str, Any], hosts: Mapping[str, Variables]
) -> tuple[dict[str, dict[str, Any]], list[Fault]]:
    """Return the hosts with those values that have the specified type and choice, and faults for the others."""
    faults = []
    good: dict[str, dict[str, Any]] = {host: {} for host in hosts}
    for variable, option in specification.items():
        for names, value in _each(hosts, variable):
            faults += [Fault(names, *words) for words in _type_faults(variable, value, option)]
        for host, variables in hosts.items():
            if variable in variables and not list(_type_faults(variable, variables[variable], option)):
                good[host][variable] = _converted(variables[variable], option)
    return good, faults


def _converted(value: Any, option: Mapping[str, Any]) -> Any:
    """Return text that YAML took for a number as text."""
    return str(value) if option.get("type", "str") == "str" else value


def _as_extra(path: str, value: str) -> str:
    """Return how a value is said at the command line so that it keeps its type."""
    return "in JSON" if re.search(r"[.\[]", path) else f"-e '{{\"{path}\": {value}}}'"


def _type_faults(path: str, value: Any, option: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    wanted_type = option.get("type", "str")
    classes, words = TYPES[wanted_type]
    fits = isinstance(value, classes) and (wanted_type == "bool" or not isinstance(value, bool))
    if not fits and isinstance(value, str) and re.fullmatch(AS_TEXT.get(wanted_type, "(?!)"), value):
        yield path, f"the text {_shown(value)}", words, f"Write {value}; as an extra variable {_as_extra(path, value)}."
        return
    if not fits:
        yield path, _shown(value), words, "Write it so; text that YAML takes for something else needs quotes."
        return
    if "choices" in option and wanted_type != "list" and value not in option["choices"]:
        near = _nearest(str(value), option["choices"])
        remedy = f"Did you mean {near}?" if near else "Choose one of them."
        yield path, _shown(value), "one of " + ", ".join(option["choices"]), remedy
    if wanted_type == "list" and "elements" in option:
        element: dict[str, Any] = {
            "type": option["elements"],
            **{key: option[key] for key in ("options", "choices") if key in option},
        }
        for number, item in enumerate(value):
            yield from _type_faults(f"{path}[{number}]", item, element)
    if wanted_type == "dict" and "options" in option:
        for key, inner in option["options"].items():
            if key in value:
                yield from _type_faults(f"{path}.{key}", value[key], inner)
            elif inner.get("required"):
                yield f"{path}.{key}", "nothing", inner["description"][0].rstrip("."), "Add it."
        for key in value:
            if key not in option["options"]:
                near = _nearest(str(key), option["options"])
                remedy = f"Rename it to {near}." if near else "Remove it."
                yield f"{path}.{key}", "a name that nothing reads", "one of " + ", ".join(option["options"]), remedy


# The cluster as a whole


def _agreement_faults(hosts: Mapping[str, Variables]) -> Iterator[Fault]:
    for variable in dict.fromkeys(
        name for variables in hosts.values() for name in variables if name not in HOST_VARIABLES
    ):
        values = list(_each(hosts, variable))
        if len(values) > 1:
            found = ", ".join(f"{_shown(value)} on {names}" for names, value in values)
            yield Fault(
                INVENTORY,
                variable,
                found,
                "one value for the whole cluster",
                "Set it in group_vars/all.yml and nowhere else.",
            )


def _group_faults(inventory: Inventory, shared: Variables) -> Iterator[Fault]:
    for role, variable in GROUP_VARIABLES.items():
        if variable not in shared:
            continue
        group = shared[variable]
        members = inventory.groups.get(group)
        if not members and role in OPTIONAL_GROUPS and (members is not None or group == role):
            continue
        if members is None:
            near = _nearest(group, [name for name in inventory.groups if name not in ("all", "ungrouped")])
            hint = (
                f"Rename group {near} to {group}, or set {variable} to {near}."
                if near
                else "Add it, or set the variable to the group's name."
            )
            yield Fault(
                INVENTORY, variable, f"no group {_shown(group)}", f"a group with the cluster's {role} hosts", hint
            )
        elif not members and role == "workers":
            remedy = "Put control-plane hosts into it too if they shall run workloads."
            yield Fault(INVENTORY, variable, f"an empty group {_shown(group)}", "a host that takes workloads", remedy)
        elif not members:
            yield Fault(
                INVENTORY, variable, f"an empty group {_shown(group)}", "at least one host", "Add hosts to the group."
            )
    etcd = _members(inventory, shared, "etcd")
    if etcd and len(etcd) not in ETCD_SIZES:
        found = f"{len(etcd)} etcd members ({', '.join(etcd)})"
        remedy = "Add a host to the group or take one out: an even member adds no safety, only a vote to wait for."
        if len(etcd) > ETCD_SIZES[-1]:
            remedy = "Take hosts out of the group: each member more makes every write slower."
        yield Fault(INVENTORY, "plainkube_etcd_group", found, "1, 3, 5 or 7", remedy)
    yield from _traffic_group_faults(inventory, shared)
    workers = _members(inventory, shared, "workers")
    kept_free = [
        name for name in workers if _keeps_pods_away(inventory.hosts.get(name, {}).get("plainkube_node_taints"))
    ]
    if workers and kept_free == workers:
        remedy = "Leave one worker without such a taint: cluster DNS must run somewhere."
        yield Fault(
            ", ".join(workers),
            "plainkube_node_taints",
            "taints that keep pods off every worker",
            "a host that takes workloads",
            remedy,
        )
    if inventory.playing is not None:
        missing = [
            name for name in _members(inventory, shared, "etcd", "control_plane") if name not in inventory.playing
        ]
        if missing:
            remedy = "Run without --limit, or name these hosts in it too."
            yield Fault(
                INVENTORY, "--limit", f"a run without {', '.join(missing)}", "every etcd and control-plane host", remedy
            )


def _traffic_group_faults(inventory: Inventory, shared: Variables) -> Iterator[Fault]:
    members = {role: _members(inventory, shared, role) for role in GROUP_VARIABLES if GROUP_VARIABLES[role] in shared}
    nodes = {*members.get("control_plane", ()), *members.get("workers", ())}
    for name in members.get("ingress", ()):
        if name not in nodes:
            remedy = "Put it into the group of the workers too, or take it out of this one."
            wanted = "hosts that run pods, since the ingress controller is one"
            yield Fault(name, "plainkube_ingress_group", "a host without a kubelet", wanted, remedy)
    for name in members.get("edge", ()):
        inside = [role for role in ("etcd", "control_plane", "workers") if name in members.get(role, ())]
        if inside:
            remedy = "Take it out of one of the groups."
            wanted = "hosts outside the cluster, which pass traffic on to it"
            yield Fault(name, "plainkube_edge_group", f"a host that is in {', '.join(inside)} too", wanted, remedy)


def _keeps_pods_away(taints: Any) -> bool:
    items = taints if isinstance(taints, (list, tuple)) else []
    return any(isinstance(taint, dict) and taint.get("effect") in ("NoSchedule", "NoExecute") for taint in items)


# Addresses and networks


def _address_of(value: Any) -> Address | None:
    return IPV4.address(value)


def _address_faults(family: Family, hosts: Mapping[str, Variables]) -> Iterator[Fault]:
    variable = family.variable("address")
    remedy = f"Set {variable} to the address by which the cluster's other hosts reach this one."
    used: dict[Address, list[str]] = {}
    for host, variables in hosts.items():
        if variable not in variables or _is_off(family, variables[variable]):
            continue
        address = family.address(variables[variable])
        if address is None:
            yield Fault(host, variable, _shown(variables[variable]), f"an {family.name} address", remedy)
        elif any(address in network for network in family.reserved):
            yield Fault(host, variable, str(address), "an address that other hosts can reach", remedy)
        else:
            used.setdefault(address, []).append(host)
    for address, names in used.items():
        if len(names) > 1:
            yield Fault(
                ", ".join(sorted(names)),
                variable,
                f"{address} on {len(names)} hosts",
                "an address of its own for each host",
                "Correct all but one.",
            )


def _is_off(family: Family, value: Any) -> bool:
    """Say whether a variable of the second family is not set, which is not a fault by itself."""
    return family is IPV6 and value == ""


def _network_faults(family: Family, hosts: Mapping[str, Variables], shared: Variables, nodes: int) -> Iterator[Fault]:
    pods_variable, services_variable = family.variable("pod_cidr"), family.variable("service_cidr")
    networks: dict[str, Network] = {}
    for variable in (pods_variable, services_variable):
        if variable not in shared or _is_off(family, shared[variable]):
            continue
        text = str(shared[variable])
        network = family.network(text, strict=False)
        if network is None:
            remedy = f"Write an {family.name} network address, a slash and its length."
            yield Fault(INVENTORY, variable, _shown(text), f"a network such as {family.example}", remedy)
            continue
        if family.network(text, strict=True) is None:
            remedy = f"Write {network} if that is meant."
            yield Fault(
                INVENTORY, variable, f"{text}, an address inside a network", "the network's own address", remedy
            )
        networks[variable] = network
        reserved = [str(other) for other in family.reserved if network.overlaps(other)]
        if reserved:
            wanted = f"a network apart from {', '.join(reserved)}, which has a meaning of its own"
            yield Fault(INVENTORY, variable, str(network), wanted, "Choose a private network that nothing else uses.")
        for host, variables in hosts.items():
            address = family.address(variables.get(family.variable("address")))
            if address is not None and address in network:
                wanted = f"a network without the hosts' own addresses ({family.variable('address')} {address})"
                yield Fault(host, variable, str(network), wanted, "Choose a network that no host has an address in.")
    pods, services = networks.get(pods_variable), networks.get(services_variable)
    if pods is not None and services is not None and pods.overlaps(services):
        found = f"{services}, which overlaps {pods_variable} {pods}"
        yield Fault(INVENTORY, services_variable, found, "networks apart from each other", "Change one of the two.")
    largest, smallest = family.service_sizes
    if services is not None and not largest <= services.prefixlen <= smallest:
        yield Fault(
            INVENTORY,
            services_variable,
            str(services),
            f"a network from /{largest} to /{smallest}",
            "Every Service takes an address out of it, for good: choose generously.",
        )
    if pods is not None and family.variable("node_cidr_size") in shared:
        yield from _node_network_faults(family, pods, shared[family.variable("node_cidr_size")], nodes)


def _node_network_faults(family: Family, pods: Network, size: int, nodes: int) -> Iterator[Fault]:
    variable, pods_variable = family.variable("node_cidr_size"), family.variable("pod_cidr")
    largest = min(pods.prefixlen + MOST_NODE_NETWORK_BITS, family.smallest_node_network)
    if size > largest >= pods.prefixlen:
        yield Fault(INVENTORY, variable, str(size), f"at most {largest} with {pods_variable} {pods}", family.room)
        return
    parts = 2 ** (size - pods.prefixlen) if size >= pods.prefixlen else 0
    if parts <= nodes:
        found = f"{pods}, in which /{size} fits {parts} times"
        wanted = f"room for {nodes} nodes and one more, so that a node can be added or replaced"
        yield Fault(INVENTORY, pods_variable, found, wanted, f"Widen it, or raise {variable}.")


def _dual_stack_faults(hosts: Mapping[str, Variables], shared: Variables, nodes: Sequence[str]) -> Iterator[Fault]:
    """IPv6 beside IPv4 is a network of pods, one of Services and an address on every node; or none of them."""
    of_cluster = [IPV6.variable("pod_cidr"), IPV6.variable("service_cidr")]
    variable = IPV6.variable("address")
    with_address = [name for name in hosts if hosts[name].get(variable)]
    given = [name for name in of_cluster if shared.get(name)]
    if not given and not with_address:
        return
    for name in of_cluster:
        if name in shared and not shared[name]:
            found = f"nothing, and {given[0] if given else variable} set"
            remedy = "Add it, or leave all of IPv6 out."
            yield Fault(INVENTORY, name, found, f"an IPv6 network such as {IPV6.example}", remedy)
    without = [name for name in nodes if name not in with_address and variable in hosts.get(name, {})]
    if given and without:
        found = f"nothing, and {given[0]} set"
        wanted = "the IPv6 address by which the cluster's other hosts reach this one"
        yield Fault(", ".join(without), variable, found, wanted, "Add it, or leave all of IPv6 out.")


# Single values: each function yields what was found, what was wanted, what to do

Words = tuple[str, str, str]


def _cluster_name(value: str) -> Iterator[Words]:
    if not DNS_LABEL.fullmatch(value):
        wanted = "at most 63 letters a-z, digits and -, beginning and ending with a letter or digit"
        yield _shown(value), wanted, "It names files, certificates and the kubectl context: choose a short one."


def _cluster_domain(value: str) -> Iterator[Words]:
    if not _is_dns_name(value):
        yield _shown(value), "a DNS name in lower case such as cluster.local", "Write it without a dot at either end."


def _api_port(value: int) -> Iterator[Words]:
    if not 1024 <= value <= 65535:
        yield (
            str(value),
            "a port from 1024 to 65535",
            "The API server runs as its own user and may not open lower ones; 6443 is usual.",
        )
    elif value in NODE_PORTS:
        yield str(value), "a port outside the node ports 30000 to 32767", "Choose another; 6443 is usual."
    elif value in TAKEN_PORTS:
        yield str(value), f"a port apart from that of {TAKEN_PORTS[value]}", "Choose another; 6443 is usual."


def _api_names(values: Sequence[str]) -> Iterator[Words]:
    for value in values:
        if _address_of(value) is None and not _is_dns_name(value.lower()):
            yield (
                _shown(value),
                "a DNS name or an IPv4 address",
                "List names and addresses alone, without https:// and port.",
            )


def _artifact_source(value: str) -> Iterator[Words]:
    if value not in ("upstream", "push") and not re.fullmatch(r"https?://[^/\s]+(/\S*)?|file:///\S*", value):
        yield _shown(value), "upstream, push, http(s)://host/folder or file:///folder", "Name one of them."


def _absolute_folder(value: str) -> Iterator[Words]:
    if not value.startswith("/") or value == "/":
        yield (
            _shown(value),
            "the absolute path of a folder on the controller",
            "Begin it with / or with {{ lookup('env', 'HOME') }}/.",
        )


def _backup_repository(value: str) -> Iterator[Words]:
    if not value:
        return
    wanted = "s3:https://host/bucket/folder, sftp:user@host:/folder, rest:https://host/folder or /folder"
    if not BACKUP_REPOSITORY.fullmatch(value):
        yield _shown(value), wanted, "Name one of them, or leave it empty to make no backups."
    elif value.startswith(HIDDEN_FROM_SERVICES):
        hidden = ", ".join(HIDDEN_FROM_SERVICES)
        yield _shown(value), f"a folder that is not below {hidden}", "Mount it elsewhere, for example below /srv."
    elif re.search(r"://[^/\s]*:[^/\s]*@", value):
        yield (
            "an address with a password in it",
            "one without",
            "Put user and password into plainkube_backup_environment: RESTIC_REST_USERNAME and RESTIC_REST_PASSWORD.",
        )


def _pod_mtu(value: int) -> Iterator[Words]:
    if value != 0 and value not in POD_MTUS:
        wanted = f"0, or from {POD_MTUS.start} to {POD_MTUS.stop - 1} bytes"
        yield str(value), wanted, "0 computes it from the hosts' links, which is right for most clusters."


def _edge_address(value: str) -> Iterator[Words]:
    if value and _address_of(value) is None:
        yield _shown(value), "an IPv4 address, or nothing", "Write the address alone, without a length."


def _bgp_as_number(value: int) -> Iterator[Words]:
    if not any(value in numbers for numbers in PRIVATE_AS_NUMBERS):
        wanted = " or ".join(f"from {numbers.start} to {numbers.stop - 1}" for numbers in PRIVATE_AS_NUMBERS)
        yield str(value), f"a private number, {wanted}", "64512 is usual where no other system has it."


def _bgp_peers(peers: Sequence[Mapping[str, Any]]) -> Iterator[Words]:
    for number, peer in enumerate(peers):
        if _address_of(peer["address"]) is None:
            yield "", f"the IPv4 address of a router in peer {number}", "Correct its address."
        if int(peer["as_number"]) not in AS_NUMBERS:
            wanted = f"from {AS_NUMBERS.start} to {AS_NUMBERS.stop - 1} in peer {number}"
            yield "", wanted, "Correct its as_number."
        if len(str(peer.get("password") or "").encode()) > LONGEST_BGP_PASSWORD:
            wanted = f"at most {LONGEST_BGP_PASSWORD} bytes in peer {number}"
            yield "", wanted, "The kernel takes no longer ones: choose a shorter one."
    addresses = [str(peer["address"]) for peer in peers]
    for address in sorted({address for address in addresses if addresses.count(address) > 1}):
        yield "", f"each router once, {address} too", "Remove all but one of them."


def _certificate_days(value: int) -> Iterator[Words]:
    if not 1 <= value <= LONGEST_CERTIFICATE_DAYS:
        yield (
            str(value),
            f"from 1 to {LONGEST_CERTIFICATE_DAYS} days",
            "Certificates are renewed by running site.yml, so a short life costs little.",
        )


def _kubelet_certificate_minutes(value: int) -> Iterator[Words]:
    shortest, longest = KUBELET_CERTIFICATE_MINUTES
    if not shortest <= value <= longest:
        yield (
            str(value),
            f"from {shortest} to {longest} minutes (90 days)",
            "Kubelets renew their certificate by themselves in time.",
        )


def _is_label_key(key: Any) -> bool:
    prefix, slash, name = str(key).rpartition("/")
    return bool(LABEL_PART.fullmatch(name)) and (_is_dns_name(prefix) if slash else True)


def _is_label_value(value: Any) -> bool:
    return isinstance(value, str) and (value == "" or bool(LABEL_PART.fullmatch(value)))


def _zone(value: str) -> Iterator[Words]:
    if not _is_label_value(value):
        yield _shown(value), LABEL_VALUE_WANTED, "It becomes the label topology.kubernetes.io/zone of the node."


def _node_labels(labels: Mapping[str, Any]) -> Iterator[Words]:
    for key, value in labels.items():
        if not _is_label_key(key):
            yield f"key {_shown(key)}", LABEL_KEY_WANTED, "Correct the key."
        if not isinstance(value, str):
            yield f"{key}: {_shown(value)}", "text", f"Put the value in quotes: {key}: {_shown(str(value).lower())}."
        elif not _is_label_value(value):
            yield (
                f"{key}: {_shown(value)}",
                LABEL_VALUE_WANTED,
                "Correct the value; annotations can hold anything, labels cannot.",
            )


def _node_taints(taints: Sequence[Mapping[str, Any]]) -> Iterator[Words]:
    seen = set()
    for taint in taints:
        key, value, effect = taint["key"], taint.get("value", ""), taint["effect"]
        if not _is_label_key(key):
            yield f"key {_shown(key)}", LABEL_KEY_WANTED, "Correct the key."
        if not _is_label_value(str(value)):
            yield f"value {_shown(value)}", LABEL_VALUE_WANTED, "Correct the value, or leave it out."
        if (key, effect) in seen:
            yield f"{key} with effect {effect} twice", "each key and effect once", "Remove one of them."
        seen.add((key, effect))


def _cache_address(value: str) -> Iterator[Words]:
    address = _address_of(value)
    if address is None or address not in CACHE_NETWORK or any(address in network for network in NOT_FOR_CACHES):
        taken = ", ".join(str(network) for network in NOT_FOR_CACHES)
        wanted = f"an address in {CACHE_NETWORK} but not in {taken}"
        yield _shown(value), wanted, "169.254.20.10 is usual; every node has it, and no other host must reach it."


def _split_port(server: str) -> tuple[str, str]:
    """Return address and port of 192.0.2.53:5353, port 53 by default."""
    address, colon, port = server.partition(":")
    return address, port if colon else "53"


def _is_server(server: Any) -> bool:
    address, port = _split_port(str(server))
    parsed = _address_of(address)
    if parsed is None or not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        return False
    return not (parsed.is_loopback or parsed.is_unspecified or parsed.is_multicast)


def _dns_servers(values: Sequence[str]) -> Iterator[Words]:
    for value in values:
        if not _is_server(value) or ":" in value:
            wanted = "the IPv4 address of a name server that pods can reach"
            yield _shown(value), wanted, "List addresses alone; port 53 is asked."


def _dns_zones(zones: Mapping[str, Any]) -> Iterator[Words]:
    for zone, servers in zones.items():
        if not _is_dns_name(str(zone)):
            yield f"zone {_shown(zone)}", "a DNS name in lower case", "Write it without a dot at either end."
        if not isinstance(servers, (list, tuple)) or not servers or not all(_is_server(item) for item in servers):
            wanted = "a list of IPv4 addresses, with :port where it is not 53"
            yield f"{zone}: {_shown(servers)}", wanted, "List at least one server that pods can reach."


def _dns_ndots(value: int) -> Iterator[Words]:
    if not 0 <= value <= MOST_DOTS:
        yield str(value), f"from 1 to {MOST_DOTS}, or 0 for no rule", "2 is enough for names like service.namespace."


def _dns_hosts(names: Mapping[str, Any]) -> Iterator[Words]:
    for name, addresses in names.items():
        if not _is_dns_name(str(name)):
            yield f"name {_shown(name)}", "a DNS name in lower case", "Write it without a dot at either end."
        if not isinstance(addresses, (list, tuple)) or not addresses or not all(map(_is_address, addresses)):
            yield f"{name}: {_shown(addresses)}", "a list of addresses", "List at least one."


def _is_address(value: Any) -> bool:
    try:
        ipaddress.ip_address(str(value))
    except ValueError:
        return False
    return True


VALUE_CHECKS: dict[str, Callable[[Any], Iterator[Words]]] = {
    "plainkube_cluster_name": _cluster_name,
    "plainkube_cluster_domain": _cluster_domain,
    "plainkube_zone": _zone,
    "plainkube_node_labels": _node_labels,
    "plainkube_node_taints": _node_taints,
    "plainkube_api_port": _api_port,
    "plainkube_api_names": _api_names,
    "plainkube_artifact_source": _artifact_source,
    "plainkube_artifact_folder": _absolute_folder,
    "plainkube_state_dir": _absolute_folder,
    "plainkube_backup_repository": _backup_repository,
    "plainkube_pod_mtu": _pod_mtu,
    "plainkube_edge_services": edge.service_faults,
    "plainkube_edge_address": _edge_address,
    "plainkube_bgp_as_number": _bgp_as_number,
    "plainkube_bgp_peers": _bgp_peers,
    "plainkube_certificate_days": _certificate_days,
    "plainkube_dns_cache_address": _cache_address,
    "plainkube_dns_servers": _dns_servers,
    "plainkube_dns_zones": _dns_zones,
    "plainkube_dns_hosts": _dns_hosts,
    "plainkube_dns_ndots": _dns_ndots,
    "plainkube_kubelet_certificate_minutes": _kubelet_certificate_minutes,
}
