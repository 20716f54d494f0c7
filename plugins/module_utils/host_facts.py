# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reading what the kernel and configuration files of a host say: their text in, plain data out.

This file and its module run on hosts that may turn out to be too old, so they keep to what Python 3.8 knows.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

HEADER = "Managed by plainkube.cluster"

# Paths that only another installer leaves, and its name.
REMNANTS: tuple[tuple[str, str], ...] = (
    ("/etc/kubernetes/manifests/*.yaml", "a kubeadm cluster (static pods)"),
    ("/etc/kubernetes/kubeadm-config.yaml", "Kubespray"),
    ("/var/lib/kubelet/kubeadm-flags.env", "a kubeadm cluster"),
    ("/etc/systemd/system/kubelet.service.d/10-kubeadm.conf", "kubeadm"),
    ("/usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf", "the package kubeadm"),
    ("/etc/etcd.env", "Kubespray"),
    ("/etc/ssl/etcd/ssl", "Kubespray"),
    ("/etc/rancher/k3s", "k3s"),
    ("/var/lib/rancher/k3s", "k3s"),
    ("/usr/local/bin/k3s", "k3s"),
    ("/etc/rancher/rke2", "RKE2"),
    ("/var/lib/rancher/rke2", "RKE2"),
    ("/usr/local/bin/rke2", "RKE2"),
    ("/etc/k0s", "k0s"),
    ("/var/lib/k0s", "k0s"),
    ("/var/snap/microk8s", "MicroK8s"),
    ("/var/lib/minikube", "minikube"),
    ("/var/lib/dockershim", "a kubelet on Docker (dockershim)"),
    ("/var/lib/cri-dockerd", "a kubelet on Docker (cri-dockerd)"),
)
# Units that are this collection's own: any other file of that name is somebody else's.
OWN_UNITS = (
    "etcd.service",
    "containerd.service",
    "kubelet.service",
    "kube-proxy.service",
    "kube-apiserver.service",
    "kube-controller-manager.service",
    "kube-scheduler.service",
)
UNIT_FOLDERS = ("/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
# containerd takes the first configuration by name; what comes after the collection's own does no harm.
NETWORK_FOLDER = "/etc/cni/net.d"
OWN_NETWORK = "10-plainkube.conflist"
# The unit by which each pod network of ours is known, and a word of it that others with the same name lack.
NETWORK_UNITS = {
    "bridge": ("node-routes.service", ""),
    "flannel": ("flanneld.service", ""),
    "kube_router": ("kube-router.service", "--run-router=true"),
}
FLANNEL_CONFIGURATION = "/etc/plainkube/flannel.json"

# Where systemd-resolved lists the name servers that it asks.
RESOLVED_FILE = "/run/systemd/resolve/resolv.conf"
CACHE_UNIT = "/etc/systemd/system/node-dns-address.service"

# What a kernel that cannot list its modules shows of them.
MODULE_SIGNS: dict[str, tuple[str, ...]] = {
    "br_netfilter": ("/proc/sys/net/bridge",),
    "nf_conntrack": ("/proc/sys/net/netfilter/nf_conntrack_max",),
}
MODULE_OPTIONS = {
    "overlay": "CONFIG_OVERLAY_FS",
    "br_netfilter": "CONFIG_BRIDGE_NETFILTER",
    "nf_conntrack": "CONFIG_NF_CONNTRACK",
    "nf_tables": "CONFIG_NF_TABLES",
}


def percentile_99(values: Sequence[float]) -> float:
    """Return the value that 99 of 100 do not exceed. Raises ValueError when there is none."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]


def local_ipv4_addresses(fib_trie: str) -> list[str]:
    """Return the host's own addresses from the text of /proc/net/fib_trie."""
    own, address = set(), ""
    for line in fib_trie.splitlines():
        words = line.split()
        if "|--" in words:
            address = words[-1]
        elif words[:3] == ["/32", "host", "LOCAL"]:
            own.add(address)
    return sorted(own)


def local_ipv6_addresses(if_inet6: str) -> list[str]:
    """Return the host's own addresses from the text of /proc/net/if_inet6."""
    return sorted(
        str(ipaddress.IPv6Address(int(line.split()[0], 16))) for line in if_inet6.splitlines() if line.strip()
    )


# The states (as /proc/net shows them) of sockets that wait for whoever comes: LISTEN, and unconnected.
WAITING_STATES = {"tcp": "0A", "udp": "07"}


def listening_sockets(table: str, little_endian: bool = True, protocol: str = "tcp") -> list[tuple[str, int, str]]:
    """Return (address, port, inode) of each listening socket in the text of /proc/net/tcp, tcp6, udp or udp6."""
    listening = []
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 9 and fields[3] == WAITING_STATES[protocol]:
            address, _, port = fields[1].partition(":")
            listening.append((_kernel_address(address, little_endian), int(port, 16), fields[9]))
    return listening


def _kernel_address(text: str, little_endian: bool) -> str:
    """Return an address that the kernel printed as 32-bit words in its own byte order."""
    words = [bytes.fromhex(text[start : start + 8]) for start in range(0, len(text), 8)]
    packed = b"".join(word[::-1] if little_endian else word for word in words)
    address = ipaddress.ip_address(packed)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def name_servers(resolv_conf: str) -> list[str]:
    """Return the servers that a resolver file names."""
    lines = (line.split() for line in resolv_conf.splitlines())
    return [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver"]


def resolver_file(asked: str, text: str, resolved_text: str) -> str:
    """Return the file with the servers that pods can reach: systemd-resolved's own where the asked one names its stub.

    text is that of the asked file, resolved_text that of RESOLVED_FILE.
    """
    servers = name_servers(text)
    stub_only = bool(servers) and all(server.startswith("127.") or server == "::1" for server in servers)
    return RESOLVED_FILE if stub_only and name_servers(resolved_text) else asked


def os_release(text: str) -> dict[str, str]:
    """Return the values of an os-release file."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return {name.strip(): value.strip().strip("\"'") for name, _, value in pairs}


def family(release: Mapping[str, str]) -> str:
    """Return debian, rhel or the distribution's own id."""
    ids = [release.get("ID", ""), *release.get("ID_LIKE", "").split()]
    if "debian" in ids:
        return "debian"
    return "rhel" if {"rhel", "fedora"} & set(ids) else ids[0]


def source_locations(texts: Iterable[str]) -> tuple[list[str], bool]:
    """Return the host names in package sources or proxy settings, and whether there is a source on the host itself.

    texts are those of sources.list, .sources, .repo or apt.conf. Comments and switched-off entries do not count.
    """
    names, local = set(), False
    for text in texts:
        for stanza in re.split(r"\n\s*\n|\n(?=\[)", text):
            lines = [line for line in stanza.splitlines() if not line.lstrip().startswith(("#", "//"))]
            active = "\n".join(lines)
            if re.search(r"(?im)^\s*(enabled\s*=\s*(0|false|no)|enabled:\s*no)\s*$", active):
                continue
            names |= set(re.findall(r"\b(?:https?|ftp|mirror\+https?)://(?:[^/\s@\"]*@)?([A-Za-z0-9._-]+)", active))
            local = local or bool(re.search(r"\b(file|cdrom|copy):", active))
    return sorted(names), local


def present_network(
    units: Mapping[str, str], flannel: str, proxy: str, controller_manager: str, foreign: Sequence[str]
) -> dict[str, str]:
    """Return what the host has of a pod network; nothing of what it has not.

    That is kind, backend, pod_cidr, pod_cidr_ipv6 ("none" if pods have addresses of IPv4 alone), node_cidr_size and
    node_cidr_size_ipv6.

    units: the texts of our units by name. flannel, proxy, controller_manager: the texts of flannel's and kube-proxy's
    configuration and of kube-controller-manager's unit. foreign: the names of others' CNI configurations.
    """
    kinds = [kind for kind, (unit, word) in NETWORK_UNITS.items() if unit in units and word in units[unit]]
    # Where our kube-proxy runs and somebody else's configuration is the first by name, that one is used.
    brought = bool(proxy) and any(name < OWN_NETWORK for name in foreign)
    found = {"kind": kinds[0]} if kinds else {"kind": "none"} if brought else {}
    if kinds[:1] == ["flannel"]:
        found["backend"] = str((_json_object(flannel).get("Backend") or {}).get("Type", ""))
    for name, text, pattern in (
        ("pod_cidr", proxy, r"(?m)^clusterCIDR: *\"?([0-9./]+)"),
        ("pod_cidr_ipv6", proxy, r"(?m)^clusterCIDR: *\"?[0-9./]+,([0-9a-f:./]+)"),
        ("node_cidr_size", controller_manager, r"--node-cidr-mask-size(?:-ipv4)?=([0-9]+)"),
        ("node_cidr_size_ipv6", controller_manager, r"--node-cidr-mask-size-ipv6=([0-9]+)"),
    ):
        said = re.search(pattern, text)
        if said:
            found[name] = said.group(1)
    if "pod_cidr" in found:
        found.setdefault("pod_cidr_ipv6", "none")
    return {name: value for name, value in found.items() if value}


def _json_object(text: str) -> dict[str, Any]:
    try:
        read = json.loads(text)
    except ValueError:
        return {}
    return read if isinstance(read, dict) else {}


def module_state(name: str, signs: bool, builtin: str, available: str, configuration: str) -> str:
    """Return loaded, builtin, available, missing or unknown.

    signs says whether the running kernel shows the module; builtin and available are the texts of modules.builtin and
    modules.dep, configuration is the kernel's; empty texts are files that are not there.
    """
    if signs:
        return "loaded"
    pattern = re.compile(rf"(?m)(^|/){name.replace('_', '[_-]')}\.ko")
    if pattern.search(builtin):
        return "builtin"
    if pattern.search(available):
        return "available"
    setting = re.search(rf"(?m)^{MODULE_OPTIONS.get(name, 'CONFIG_' + name.upper())}=([ym])$", configuration)
    if setting and setting.group(1) == "y":
        return "builtin"
    # A container sees no module tree; its host may well have loaded what it needs.
    return "missing" if available or (configuration and not setting) else "unknown"
