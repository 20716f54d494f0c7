# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What everything on a host of a cluster is for: the one place that says it. Data, and no logic.

Units, ports (which firewalls must let through, or which are for the host alone), tables of the packet filter,
interfaces, routes, mounts and certificates. What is not in here is somebody else's.
"""

from __future__ import annotations

from dataclasses import dataclass

# --- Units: name -> what it is for ------------------------------------------------------------------------------------

UNITS: dict[str, str] = {
    "etcd.service": "member of etcd, which holds all that the API knows",
    "etcd-backup.timer": "begins a backup of etcd",
    "etcd-backup-check.timer": "begins a check of the newest backup",
    "etcd-rehearsal.timer": "begins a rehearsal: a restore of the newest backup beside the running member",
    "etcd-backup@.service": "makes, checks or rehearses a backup of etcd",
    "kube-apiserver.service": "the Kubernetes API",
    "kube-controller-manager.service": "makes what is what the API says it should be",
    "kube-scheduler.service": "chooses a node for each new pod",
    "containerd.service": "runs containers",
    "kubelet.service": "starts and watches this node's pods",
    "kube-proxy.service": "carries Services: writes the nftables rules that lead to their endpoints",
    "haproxy.service": "the way to the API servers: on a node to all of them, on loopback; on the edge from outside",
    "node-routes.service": "keeps routes to the pods of every other node (network bridge)",
    "flanneld.service": "carries pods' packets between nodes (network flannel)",
    "kube-router.service": "routes to other nodes' pods by BGP (network kube_router), and enforces NetworkPolicies",
    "node-dns.service": "this node's cache of names, which its pods ask",
    "node-dns-address.service": "gives the cache of names its link-local address",
    "edge-backends.service": "tells the edge's haproxy which backends there are, as the API changes",
    "keepalived.service": "gives the address that edge hosts share to one that is well",
}

# --- Ports ------------------------------------------------------------------------------------------------------------

# Who is meant by the words in Opening.
PLACES: dict[str, str] = {
    "every": "every host",
    "etcd": "etcd members",
    "control_plane": "control-plane hosts",
    "nodes": "nodes",
    "ingress": "ingress hosts",
    "edge": "edge hosts",
    "controller": "the controller",
    "clients": "your clients",
    "peers": "your routers",
    "itself": "the host itself",
}

# Conditions under which an opening is there, as the page of firewalls words them. "" is always.
CONDITIONS: dict[str, str] = {
    "": "",
    "plain_pods": "with network `bridge`, `kube_router` or flannel's `host-gw`",
    "bgp": "with network `kube_router`",
    "vxlan": "with flannel's `vxlan`",
    "wireguard": "with flannel's `wireguard`",
    "dns_cache": "with `plainkube_dns_cache`",
    "policies": "with network `kube_router` or `plainkube_network_policy`",
    "ingress": "for each instance in `plainkube_ingress_instances`",
    "edge": "for each service in `plainkube_edge_services`",
    "edge_address": "with `plainkube_edge_address`",
    "api_metrics": "if a monitoring system outside asks",
}


@dataclass(frozen=True)
class Opening:
    """A port that something listens on, or traffic that hosts must let pass.

    on, sources: keys of PLACES. port: a number, a range, a {name} that openings fills in, or empty for protocols
    without ports. program: base name of the listening program, empty where the kernel carries it. only: a key of
    CONDITIONS.
    """

    on: str
    sources: tuple[str, ...]
    protocol: str
    port: str
    program: str
    what_for: str
    only: str = ""


OPENINGS: tuple[Opening, ...] = (
    Opening("every", ("controller",), "tcp", "{ssh}", "sshd", "Ansible, and you"),
    Opening("every", ("every",), "icmp", "", "", "fragmentation needed: without it long packets vanish (path MTU)"),
    Opening("etcd", ("control_plane", "etcd"), "tcp", "2379", "etcd", "API servers, health checks, backups"),
    Opening("etcd", ("etcd",), "tcp", "2380", "etcd", "members among themselves"),
    Opening("control_plane", ("nodes", "controller", "clients", "edge"), "tcp", "{api}", "kube-apiserver", "the API"),
    Opening("nodes", ("control_plane", "nodes"), "tcp", "10250", "kubelet", "logs, exec, metrics of pods and of nodes"),
    Opening("nodes", ("clients", "edge"), "tcp", "{node_ports}", "", "Services with node ports, by kube-proxy's rules"),
    Opening("nodes", ("clients", "edge"), "udp", "{node_ports}", "", "the same for UDP"),
    Opening(
        "nodes", ("clients", "edge"), "tcp", "10256", "kube-proxy", "load balancers ask whether Services work here"
    ),
    Opening("nodes", ("nodes",), "any", "{pods}", "", "pods' packets, with pods' addresses", "plain_pods"),
    Opening("nodes", ("nodes",), "udp", "8472", "", "pods' packets inside VXLAN", "vxlan"),
    Opening("nodes", ("nodes",), "udp", "51820", "", "pods' packets inside WireGuard", "wireguard"),
    Opening("nodes", ("nodes", "peers"), "tcp", "179", "kube-router", "routes by BGP", "bgp"),
    Opening(
        "ingress",
        ("clients", "edge"),
        "tcp",
        "{ingress_http}",
        "",
        "HTTP for Ingresses, by a pod's host port",
        "ingress",
    ),
    Opening(
        "ingress",
        ("clients", "edge"),
        "tcp",
        "{ingress_https}",
        "",
        "HTTPS for Ingresses, by a pod's host port",
        "ingress",
    ),
    Opening(
        "ingress",
        ("edge", "clients"),
        "tcp",
        "{ingress_ping}",
        "",
        "load balancers ask whether the ingress is well",
        "ingress",
    ),
    Opening("edge", ("clients",), "tcp", "{edge}", "haproxy", "what the edge passes on to the cluster", "edge"),
    Opening(
        "edge",
        ("edge",),
        "vrrp",
        "",
        "keepalived",
        "which host has the shared address (IP protocol 112)",
        "edge_address",
    ),
    # For the host alone: firewalls have nothing to do with them.
    Opening("etcd", ("itself",), "tcp", "2381", "etcd", "health and metrics of the member"),
    Opening("etcd", ("itself",), "tcp", "2379", "etcd", "etcdctl on this host"),
    Opening("control_plane", ("itself",), "tcp", "10257", "kube-controller-manager", "health and metrics"),
    Opening("control_plane", ("itself",), "tcp", "10259", "kube-scheduler", "health and metrics"),
    Opening("nodes", ("itself",), "tcp", "{api}", "haproxy", "the way to every API server"),
    Opening("nodes", ("itself",), "tcp", "10248", "kubelet", "health"),
    Opening("nodes", ("itself",), "tcp", "10249", "kube-proxy", "metrics"),
    Opening("nodes", ("itself",), "tcp", "", "containerd", "streams of exec and logs, for the kubelet"),
    Opening("nodes", ("itself",), "tcp", "53", "coredns", "names, for this node's pods", "dns_cache"),
    Opening("nodes", ("itself",), "udp", "53", "coredns", "names, for this node's pods", "dns_cache"),
    Opening("nodes", ("itself",), "tcp", "9253", "coredns", "metrics of the cache of names", "dns_cache"),
    Opening("nodes", ("itself",), "tcp", "9254", "coredns", "health of the cache of names", "dns_cache"),
    Opening("nodes", ("itself",), "tcp", "20241", "kube-router", "metrics of kube-router", "policies"),
    Opening("nodes", ("itself",), "tcp", "20244", "kube-router", "health of kube-router", "policies"),
    Opening("edge", ("itself",), "tcp", "8404", "haproxy", "metrics of the edge", "edge"),
)

# Listeners whose port is known only from the API: kube-proxy opens node ports' health checks by itself.
LISTENS_BY_CHANCE: dict[str, str] = {
    "kube-proxy": "health check of a Service with external traffic policy Local, for load balancers",
    "containerd": "streams of exec and logs, for the kubelet",
}

# --- Packet filter ----------------------------------------------------------------------------------------------------

# Name of a table of nftables -> (owner, what for).
TABLES: dict[str, tuple[str, str]] = {
    "kube-proxy": ("kube-proxy", "leads from addresses of Services to their endpoints"),
    "plainkube_pods": ("network", "pods' packets to the outside leave with this host's address"),
    "cni_hostport": ("containerd (CNI plugin portmap)", "host ports of pods"),
    "cni_plugins_masquerade": ("containerd (CNI plugin bridge)", "pods' packets to the outside"),
}
# Beginning of a chain's name in the tables that iptables writes -> (owner, what for).
CHAINS: dict[str, tuple[str, str]] = {
    "KUBE-ROUTER-": ("kube-router", "NetworkPolicies: the way in"),
    "KUBE-POD-FW-": ("kube-router", "NetworkPolicies: one chain for each pod that a policy selects"),
    "KUBE-NWPLCY-": ("kube-router", "NetworkPolicies: one chain for each policy"),
    "KUBE-KUBELET-CANARY": ("kubelet", "shows it whether somebody emptied the tables"),
    "KUBE-IPTABLES-HINT": ("kubelet", "tells other programs which kind of iptables is in use"),
    "KUBE-FIREWALL": ("kubelet", "drops packets from outside to addresses of loopback"),
    "KUBE-MARK-": ("kubelet", "marks of old, unused with nftables"),
    "KUBE-POSTROUTING": ("kubelet", "marks of old, unused with nftables"),
    # A rule for an interface instead of one that leads to a chain.
    "@kube-bridge": ("kube-router", "lets pods' packets pass"),
    "CNI-": ("containerd (CNI plugins)", "host ports of pods"),
}
# Chains that iptables makes by itself.
BUILT_IN_CHAINS = frozenset({"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"})

# --- Interfaces, routes, mounts, certificates -------------------------------------------------------------------------

# Pattern of a name (as in fnmatch) -> what for.
INTERFACES: dict[str, str] = {
    "lo": "loopback",
    "cni0": "bridge that this node's pods hang on",
    "kube-bridge": "bridge that this node's pods hang on (network kube_router)",
    "flannel.*": "VXLAN tunnel to the other nodes",
    "flannel-v6.*": "VXLAN tunnel to the other nodes, for IPv6",
    "flannel-wg*": "WireGuard tunnel to the other nodes",
    "tun-*": "tunnel of kube-router to a node in another segment",
    "nodelocaldns": "address of this node's cache of names",
    "veth*": "host's end of a pod's interface",
}
# Number or name of a route's protocol (ip-route(8), "proto") -> who wrote it.
ROUTE_PROTOCOLS: dict[str, str] = {
    "76": "node-routes",
    "17": "kube-router",
    "kernel": "the kernel, for an address of this host",
    "static": "the host's own network configuration",
    "boot": "the host's own network configuration",
    "dhcp": "the host's own network configuration (DHCP)",
    "ra": "the host's own network configuration (router advertisement)",
}
# Pattern of a mount point (as in fnmatch) -> what for. The first that fits counts.
MOUNTS: dict[str, str] = {
    "/var/lib/etcd": "data of etcd",
    "/var/lib/containerd": "images and containers",
    "/var/lib/kubelet": "volumes and state of pods",
    "/var/lib/kubelet/pods/*": "volumes of pods",
    "/run/containerd/*": "file systems of running containers",
    "/run/netns/*": "network namespaces of pods",
    "/run/credentials/*": "keys that systemd hands to its units",
    "/srv/plainkube-mirror": "mirror of artifacts",
}
# Mounts of any Linux host, and not the cluster's.
SYSTEM_MOUNTS = (
    "/",
    "/proc*",
    "/sys*",
    "/dev*",
    "/run",
    "/run/lock",
    "/run/user/*",
    "/tmp",
    "/boot*",
    "/etc/*",
    "/run/.containerenv",
)
# Pattern of a certificate's path -> what for. The first that fits counts.
CERTIFICATES: dict[str, str] = {
    "/etc/etcd/pki/ca.crt": "authority of etcd",
    "/etc/etcd/pki/health.crt": "health checks of etcd",
    "/etc/etcd/pki/*.crt": "this member of etcd",
    "/etc/kubernetes/pki/ca.crt": "authority of the cluster",
    "/etc/kubernetes/pki/*ca.crt": "an authority",
    "/etc/kubernetes/pki/signer.crt": "signs kubelets' client certificates",
    "/etc/kubernetes/pki/apiserver.crt": "the API to its clients",
    "/etc/kubernetes/pki/kubelet-bootstrap.crt": "the kubelet's first way in, and after a long time off",
    "/etc/kubernetes/pki/kubelet.crt": "the kubelet to API servers (logs, exec)",
    "/etc/kubernetes/pki/apiserver-etcd-client.crt": "the API server to etcd",
    "/etc/kubernetes/pki/apiserver-kubelet-client.crt": "the API server to kubelets",
    "/etc/kubernetes/pki/front-proxy-client.crt": "the API server to API extensions",
    "/etc/kubernetes/pki/*.crt": "the program of this name to the API",
    "/var/lib/kubelet/pki/kubelet-client-current.pem": "the kubelet to the API; it renews it by itself",
    "/etc/plainkube/edge/*.crt": "the edge to the API",
    "/etc/haproxy/certificates/*.pem": "the edge to its clients",
}
