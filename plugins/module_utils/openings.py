# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which ports a host must open to whom: from the cluster's hosts and choices to rows. Pure functions.

What each port is for is said in purposes; here it is worked out for one cluster and host.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.plainkube.cluster.plugins.module_utils.purposes import (
    CONDITIONS,
    OPENINGS,
    PLACES,
    Opening,
)

# What of a cluster decides about its openings, and what holds where nothing is said.
CLUSTER: dict[str, Any] = {
    "topology": {},
    "api_port": 6443,
    "ssh_port": 22,
    "pod_cidrs": ["10.244.0.0/16"],
    "node_ports": "30000-32767",
    "network": "bridge",
    "backend": "",
    "policies": False,
    "dns_cache": False,
    "ingress_instances": [],
    "edge_services": [],
    "edge_address": "",
}
TUNNELS = ("vxlan", "wireguard")
INGRESS_PORTS = {"{ingress_http}": "http_port", "{ingress_https}": "https_port", "{ingress_ping}": "ping_port"}
GROUPS = ("etcd", "control_plane", "nodes", "ingress", "edge")

Cluster = Mapping[str, Any]


def complete(cluster: Cluster) -> dict[str, Any]:
    """Return what decides about a cluster's openings, with everything filled in."""
    return {**CLUSTER, **cluster}


def conditions(cluster: Cluster) -> set[str]:
    """Return which of CONDITIONS hold for a cluster."""
    meant = complete(cluster)
    network, backend = meant["network"], meant["backend"]
    held = {
        "": True,
        "plain_pods": network in ("bridge", "kube_router") or (network == "flannel" and backend not in TUNNELS),
        "bgp": network == "kube_router",
        "vxlan": network == "flannel" and backend == "vxlan",
        "wireguard": network == "flannel" and backend == "wireguard",
        "policies": network == "kube_router" or (network != "none" and bool(meant["policies"])),
        "dns_cache": bool(meant["dns_cache"]),
        "ingress": bool(meant["ingress_instances"]),
        "edge": bool(meant["edge_services"]),
        "edge_address": bool(meant["edge_address"]),
    }
    return {name for name, holds in held.items() if holds}


def kinds_of(cluster: Cluster, host: str) -> list[str]:
    """Return what a host is, in the words of Opening."""
    topology = complete(cluster)["topology"]
    return ["every", *(group for group in GROUPS if host in {item["name"] for item in topology.get(group, ())})]


def openings(cluster: Cluster, host: str) -> list[dict[str, Any]]:
    """Return what must reach a host, and what listens there for itself: one row for each port.

    A row has from (places in words), addresses (of those hosts that the inventory knows), protocol, port, program,
    what_for and local (for the host alone).
    """
    held, kinds = conditions(cluster), kinds_of(cluster, host)
    rows = []
    for opening in OPENINGS:
        if opening.only in held and opening.on in kinds:
            rows += [_row(cluster, opening, port, note, host) for port, note in _ports(cluster, opening, host)]
    return rows


def _ports(cluster: Cluster, opening: Opening, host: str) -> Iterator[tuple[str, str]]:
    """Yield the ports that an opening means on a host, each with what is to be added about it."""
    meant = complete(cluster)
    plain = {
        "{ssh}": meant["ssh_port"],
        "{api}": meant["api_port"],
        "{node_ports}": meant["node_ports"],
    }
    if opening.port in INGRESS_PORTS:
        for instance in meant["ingress_instances"]:
            if host in instance["host_names"]:
                yield str(instance[INGRESS_PORTS[opening.port]]), f"instance {instance['name']}"
    elif opening.port == "{edge}":
        for service in meant["edge_services"]:
            yield str(service["port"]), str(service["name"])
    elif opening.port == "{pods}":
        yield from ((str(network), "") for network in meant["pod_cidrs"])
    else:
        yield str(plain.get(opening.port, opening.port)), ""


def _row(cluster: Cluster, opening: Opening, port: str, note: str, host: str) -> dict[str, Any]:
    topology = complete(cluster)["topology"]
    sources = set(opening.sources)
    hosts = [
        item
        for group in GROUPS
        for item in topology.get(group, ())
        if (group in sources or "every" in sources) and item["name"] != host
    ]
    return {
        "from": [PLACES[source] for source in opening.sources if topology.get(source) != []],
        "addresses": sorted({item["address"] for item in hosts}),
        "protocol": opening.protocol,
        "port": port,
        "program": opening.program,
        "what_for": opening.what_for + (f" ({note})" if note else ""),
        "local": opening.sources == ("itself",),
    }


def words(row: Mapping[str, Any]) -> str:
    """Return a row as one line."""
    place = " ".join(part for part in (row["protocol"], row["port"]) if part)
    return f"{place} from {', '.join(row['from'])}: {row['what_for']}"


def firewall(cluster: Cluster) -> dict[str, list[str]]:
    """Return for each host of the inventory what its firewall must let in, a line for each."""
    topology = complete(cluster)["topology"]
    hosts = {item["name"] for group in GROUPS for item in topology.get(group, ())}
    return {host: [words(row) for row in openings(cluster, host) if not row["local"]] for host in sorted(hosts)}


# --- The page of firewalls --------------------------------------------------------------------------------------------

PORT_WORDS = {
    "{ssh}": "22, or `ansible_port`",
    "{api}": "`plainkube_api_port` (6443)",
    "{node_ports}": "30000-32767",
    "{pods}": "addresses of `plainkube_pod_cidr`, and of `plainkube_pod_cidr_ipv6`",
    "{ingress_http}": "`http_port` (80)",
    "{ingress_https}": "`https_port` (443)",
    "{ingress_ping}": "`ping_port` (8082)",
    "{edge}": "`port`",
}


def page_tables() -> list[str]:
    """Return the tables of the page of firewalls, in Markdown."""
    lines: list[str] = []
    for place in ("every", *GROUPS):
        open_rows = [item for item in OPENINGS if item.on == place and item.sources != ("itself",)]
        lines += ["", f"## To {PLACES[place]}", "", *_page_table(open_rows)]
    lines += [
        "",
        "## Not to be opened",
        "",
        "Bound to addresses that only the host itself has: a scan from outside that finds one has found a fault.",
        "",
        *_page_table([item for item in OPENINGS if item.sources == ("itself",)]),
    ]
    return lines


def _page_table(rows: Sequence[Opening]) -> list[str]:
    local = rows[0].sources == ("itself",)
    head = "| On" if local else "| From"
    lines = [f"{head} | Protocol | Port | Listens | What for | When |", "|---|---|---|---|---|---|"]
    for row in rows:
        first = PLACES[row.on] if local else ", ".join(PLACES[source] for source in row.sources)
        port = PORT_WORDS.get(row.port, row.port) or ("by chance" if row.program == "containerd" else "-")
        listens = f"`{row.program}`" if row.program else "the kernel"
        lines.append(
            f"| {first} | {row.protocol} | {port} | {listens} | {row.what_for} | {CONDITIONS[row.only] or 'always'} |"
        )
    return lines
