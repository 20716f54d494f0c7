# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The way of a packet to a Service on one host, and where this host and the API do not agree. Pure functions.

A view is what service_views makes of the API's objects; empty when the API did not answer. Facts are what one look at
the host found: tables (kube-proxy's rules by family), routes, DNS answers, and what could not be read.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.plainkube.cluster.plugins.module_utils.plain_text import (
    at,
    columns,
    duration,
    number_of,
    paragraph,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.proxy_rules import (
    SOURCES,
    Fate,
    Packet,
    Table,
    follow,
    service_of,
)

View = Mapping[str, Any]
End = tuple[str, int]
# Which senders a kind of address is for.
ENTRY_SOURCES = {
    "cluster IP": ("pod", "host"),
    "node port": ("outside",),
    "external IP": ("outside",),
    "load balancer": ("outside",),
}


@dataclass(frozen=True)
class Host:
    """The host that is looked at: its node's name and address, and the addresses of all nodes by name."""

    name: str
    address: str
    nodes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Facts:
    """What one look at a host found.

    tables: kube-proxy's rules by family (ip, ip6); routes: for each endpoint's address what ip route says, or its
    fault; names: what DNS servers answered; unreadable: what could not be read and why.
    """

    tables: Mapping[str, Table] = field(default_factory=dict)
    routes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    names: Sequence[Mapping[str, Any]] = ()
    unreadable: Sequence[str] = ()


@dataclass(frozen=True)
class Entry:
    """One address and port by which a Service is reached, and what the rules do with packets to it, by sender."""

    kind: str
    address: str
    protocol: str
    port: int
    port_name: str
    fates: Mapping[str, Fate]

    @property
    def title(self) -> str:
        """The entry as people name it."""
        return f"{self.kind} {at(self.address, self.port)} {self.protocol}"


def family(address: str) -> str:
    """Return the family of an address, as nft calls it."""
    return "ip6" if ":" in address else "ip"


def entries(view: View, host: Host, facts: Facts) -> list[Entry]:
    """Return all ways into a Service on this host; of families whose rules could be read."""
    found = []
    for port in view["ports"]:
        places = [("cluster IP", address, port["port"]) for address in view["cluster_ips"]]
        places += [("external IP", address, port["port"]) for address in view["external_ips"]]
        places += [("load balancer", address, port["port"]) for address in view["load_balancer_ips"]]
        if port["node_port"]:
            places.append(("node port", host.address, port["node_port"]))
        for kind, address, number in places:
            table = facts.tables.get(family(address))
            if table is not None and table.there:
                packets = (Packet(source, address, port["protocol"], number) for source in ENTRY_SOURCES[kind])
                fates = {packet.source: follow(table, packet) for packet in packets}
                found.append(Entry(kind, address, port["protocol"], number, port["name"], fates))
    return found


def entries_by_name(namespace: str, name: str, facts: Facts) -> list[Entry]:
    """Return the ways into a Service that a host's rules tell by themselves, for when the API does not answer."""
    found = []
    for table in facts.tables.values():
        for map_name, kind in (("service-ips", "cluster IP"), ("service-nodeports", "node port")):
            for key, verdict in table.maps.get(map_name, {}).items():
                chain = str(verdict.get("goto", {}).get("target", ""))
                if service_of(chain).startswith(f"{namespace}/{name}/"):
                    address, protocol, port = key if len(key) == 3 else (_node_port_address(table), *key)
                    sources = ENTRY_SOURCES[kind]
                    fates = {source: follow(table, Packet(source, address, protocol, port)) for source in sources}
                    found.append(Entry(kind, address, protocol, port, service_of(chain).rpartition("/")[2], fates))
    return found


def _node_port_address(table: Table) -> str:
    return str(next(iter(table.sets.get("nodeport-ips", {}).get("elem", ())), ""))


# --- What the API wants, against what the host does -------------------------------------------------------------------


def wanted_ends(view: View, entry: Entry, source: str, host: Host) -> list[End]:
    """Return the endpoints that kube-proxy should send to: the ready ones, else those that still serve while leaving.

    Under a traffic policy Local those of this host alone.
    """
    policy = view["internal_policy"] if entry.kind == "cluster IP" else view["external_policy"]
    local = policy == "Local" and not (entry.kind != "cluster IP" and source != "outside")
    candidates = [
        endpoint
        for endpoint in view["endpoints"]
        if family(endpoint["address"]) == family(entry.address)
        and entry.port_name in endpoint["ports"]
        and (not local or endpoint["node"] == host.name)
    ]
    usable = [endpoint for endpoint in candidates if endpoint["ready"]]
    usable = usable or [endpoint for endpoint in candidates if endpoint["serving"] and endpoint["terminating"]]
    return [(endpoint["address"], endpoint["ports"][entry.port_name]) for endpoint in usable]


def differences(view: View, found: Sequence[Entry], host: Host, facts: Facts) -> list[str]:
    """Return where this host does not do what the API says, each in words with where to look."""
    lines: list[str] = []
    for entry in found:
        for source, fate in entry.fates.items():
            lines += _rules_against_api(view, entry, source, fate, host)
    lines += _routes_against_api(view, host, facts)
    lines += _names_against_api(view, facts)
    return list(dict.fromkeys(lines))


def _rules_against_api(view: View, entry: Entry, source: str, fate: Fate, host: Host) -> Iterable[str]:
    by_address = {endpoint["address"]: endpoint for endpoint in view["endpoints"]}
    wanted, has = wanted_ends(view, entry, source, host), fate.endpoints
    for rule in fate.unknown:
        yield f"{rule}: not understood here, so the way behind it is not known"
    if not has and wanted and not fate.unknown:
        what = f"are {fate.verdict}" if fate.verdict else "are not translated"
        yield (
            f"packets to {entry.title} {what} on {host.name}, though the API has {number_of(len(wanted), 'endpoint')}: "
            "kube-proxy is behind; journalctl -u kube-proxy"
        )
        return
    for end in has:
        if end not in wanted:
            known = by_address.get(end[0])
            why = "is of no endpoint in the API: its pod is gone" if known is None else f"is {state_of(known)}"
            yield (
                f"{host.name} still sends packets to {entry.title} on to {at(*end)}, which {why}; "
                "kube-proxy is behind; journalctl -u kube-proxy"
            )
    if not view["prefers_near"]:
        for end in wanted:
            if has and end not in has:
                pod = _pod_words(by_address[end[0]])
                yield (
                    f"{host.name} sends no packet to {entry.title} on to {at(*end)} ({pod}), "
                    "which is ready in the API; kube-proxy is behind; journalctl -u kube-proxy"
                )


def _routes_against_api(view: View, host: Host, facts: Facts) -> Iterable[str]:
    addresses = {address: name for name, address in host.nodes.items()}
    for endpoint in view["endpoints"]:
        route = facts.routes.get(endpoint["address"])
        node = endpoint["node"]
        # A pod on its host's own network is reached as that host is.
        if route is None or not node or endpoint["address"] in addresses:
            continue
        where = f"the route to {endpoint['address']} (pod on {node})"
        gateway = route.get("gateway", "")
        if route.get("fault"):
            yield f"{where}: {route['fault']}"
        elif route.get("dst") == "default":
            yield f"{where} is the default route: nothing on {host.name} leads to the pods of {node}; ip route"
        elif node == host.name and gateway:
            yield f"{where} leads away to {gateway}, but the pod is on this host; ip route"
        elif node != host.name and _is_by_node(gateway, route):
            # Where a router is between the hosts, it is the way to the pods too.
            direct = facts.routes.get(host.nodes.get(node, ""), {}).get("gateway") or host.nodes.get(node)
            if direct and gateway not in (direct, host.nodes.get(node)):
                yield f"{where} leads to {gateway}, which is {addresses.get(gateway, 'no node')}; ip route"


def _is_by_node(gateway: str, route: Mapping[str, str]) -> bool:
    """Return whether a gateway must be a node's address, which are known here for IPv4 alone."""
    return bool(gateway) and family(gateway) == "ip" and not _inside(gateway, route.get("dst", ""))


def _inside(address: str, network: str) -> bool:
    """Return whether an address is of a network: a tunnel's gateway is one of the pods' own addresses."""
    try:
        return ipaddress.ip_address(address) in ipaddress.ip_network(network)
    except ValueError:
        return False


def _names_against_api(view: View, facts: Facts) -> Iterable[str]:
    ready = [endpoint["address"] for endpoint in view["endpoints"] if endpoint["ready"]]
    wanted = set(ready if view["headless"] else view["cluster_ips"])
    for answer in facts.names:
        asked = f"{answer['server']} asked for {answer['name']}"
        if answer.get("fault"):
            yield f"{asked}: {answer['fault']}"
            continue
        got = set(answer["addresses"])
        same_family = {address for address in wanted if family(address) == "ip"}
        if view["external_name"]:
            if answer["code"] != "NOERROR":
                yield f"{asked} says {answer['code']}; {view['external_name']} is not resolved"
        elif got != same_family:
            said = ", ".join(sorted(got)) or answer["code"]
            yield f"{asked} says {said}, the API says {', '.join(sorted(same_family)) or 'no address'}"


def reasons_for_nobody(view: View) -> list[str]:
    """Return why no endpoint is ready, if none is."""
    if view["external_name"] or any(endpoint["ready"] for endpoint in view["endpoints"]):
        return []
    if not view["selector"]:
        return ["It has no selector, and nobody has written ready endpoints for it: see its EndpointSlices."]
    chosen = ",".join(f"{key}={value}" for key, value in sorted(view["selector"].items()))
    if not view["pods"]:
        return [f"No endpoint: its selector {chosen} selects no pod in namespace {view['namespace']}."]
    states = [f"{pod['name']} on {pod['node'] or 'no node yet'}: {pod['state']}" for pod in view["pods"]]
    ready = sum(pod["ready"] for pod in view["pods"])
    if ready:
        return [
            f"No endpoint, though {number_of(ready, 'pod')} of {chosen} are ready: does targetPort fit their ports?"
        ]
    return [f"No endpoint is ready. Pods of {chosen}:", *states]


# --- Words ------------------------------------------------------------------------------------------------------------


def state_of(endpoint: Mapping[str, Any]) -> str:
    """Return the state of an endpoint."""
    if endpoint["terminating"]:
        return "terminating, still serving" if endpoint["serving"] else "terminating"
    return "ready" if endpoint["ready"] else "not ready"


def _pod_words(endpoint: Mapping[str, Any]) -> str:
    who = f"pod {endpoint['pod']}" if endpoint["pod"] else "no pod"
    return f"{who} on {endpoint['node']}" if endpoint["node"] else who


def route_words(route: Mapping[str, str] | None) -> str:
    """Return which way a host takes to an address."""
    if not route:
        return "route not read"
    if route.get("fault"):
        return route["fault"]
    via = f"via {route['gateway']} " if route.get("gateway") else "directly "
    return f"{via}on {route.get('dev', '?')} (route {route.get('dst', '?')})"


def fate_words(fate: Fate, endpoints: int) -> str:
    """Return what the rules do with packets from somewhere. endpoints: how many the Service has in the API."""
    if not fate.endpoints and fate.verdict:
        # kube-proxy rejects where nobody is ready, and drops where a policy Local finds nobody on this host.
        elsewhere = fate.verdict == "dropped" and endpoints
        return f"{fate.verdict}: no endpoint on this host" if elsewhere else f"{fate.verdict}: no endpoint is ready"
    if not fate.endpoints:
        return "not known" if fate.unknown else "not translated: no rule of kube-proxy for it"
    ends = fate.endpoints
    if len(ends) == 1:
        to = f"to {at(*ends[0])}"
    elif len(ends) == endpoints:
        to = f"to one of the {endpoints} endpoints by chance"
    else:
        to = f"to one of {', '.join(at(*end) for end in ends)} by chance"
    return to + (", with this host's address (masquerade)" if fate.masqueraded else ", with its own address")


def _head(view: View, host: Host) -> list[str]:
    kind = "headless" if view["headless"] else view["type"]
    lines = [f"Service {view['namespace']}/{view['name']} ({kind}), as {host.name} carries it"]
    if view["external_name"]:
        lines += paragraph(
            f"It is a name for {view['external_name']} and nothing else: DNS answers with that name, no rule of "
            "kube-proxy and no endpoint is part of the way."
        )
    elif view["headless"]:
        lines += paragraph("It has no address: DNS answers with its endpoints, kube-proxy has no rule for it.")
    return lines


def _entry_lines(entry: Entry, view: View) -> list[str]:
    endpoints = len(view["endpoints"]) if view else 0
    name = f" ({entry.port_name})" if entry.port_name else ""
    lines = [f"  {entry.title}{name}"]
    chains = list(dict.fromkeys(chain for fate in entry.fates.values() for chain in fate.chains))
    shown = [chain for chain in chains if not chain.startswith("endpoint-")]
    if shown:
        lines.append(f"    by {shown[0]}")
        lines += [f"    and {chain}" for chain in shown[1:]]
    lines += columns(
        ((f"from {SOURCES[source]}", fate_words(fate, endpoints)) for source, fate in entry.fates.items()), 4
    )
    some = next(iter(entry.fates.values()))
    if some.affinity_seconds:
        lines.append(f"    a client keeps its endpoint for {duration(some.affinity_seconds)} (session affinity)")
    if some.only_from:
        lines.append(f"    only from {', '.join(some.only_from)}; dropped from elsewhere")
    return lines


def _endpoint_lines(view: View, found: Sequence[Entry], facts: Facts) -> list[str]:
    used = {end[0] for entry in found for fate in entry.fates.values() for end in fate.endpoints}
    lines = []
    for endpoint in view["endpoints"]:
        ports = ",".join(str(port) for port in sorted(set(endpoint["ports"].values())))
        rules = "" if not found else ", in the rules" if endpoint["address"] in used else ", not in the rules"
        lines.append(f"  {endpoint['address']} port {ports or 'none'}: {state_of(endpoint)}{rules}")
        lines.append(f"    {_pod_words(endpoint)}; {route_words(facts.routes.get(endpoint['address']))}")
    return lines


def _policy_lines(view: View, enforced: bool) -> list[str]:
    if not view["pods"]:
        return []
    if not view["policies"]:
        return ["Policies: no NetworkPolicy selects its pods; everything is let in and out"]
    note = "" if enforced else " (nothing in this cluster enforces them: plainkube_network_policy is false)"
    lines = [f"Policies that select its pods{note}"]
    for policy in view["policies"]:
        for number, words in enumerate(policy["words"]):
            lines += paragraph(words, first=f"{policy['name']}: " if number == 0 else " " * (len(policy["name"]) + 2))
    return lines


def _name_lines(view: View, facts: Facts) -> list[str]:
    lines = []
    for answer in facts.names:
        said = answer.get("fault") or ", ".join(answer["addresses"]) or answer["code"]
        if said == "NOERROR":
            said = f"{view['external_name']}, without an address" if view["external_name"] else "no address"
        lines.append(f"  {answer['name']} -> {said}")
        lines.append(f"    asked {answer['server']}")
    return ["Name", *lines] if lines else []


def text(view: View, found: Sequence[Entry], host: Host, facts: Facts, wrong: Sequence[str], enforced: bool) -> str:
    """Return the whole explanation for a terminal."""
    lines = _head(view, host)
    if wrong or facts.unreadable:
        lines += ["", "What is not as it should be"]
        lines += [line for words in wrong for line in paragraph(words, first="! ")]
        lines += [line for words in facts.unreadable for line in paragraph(words, first="? ")]
    if facts.names:
        lines += ["", *_name_lines(view, facts)]
    if found:
        lines += ["", "Ways in"]
        for entry in found:
            lines += _entry_lines(entry, view)
    nobody = reasons_for_nobody(view)
    if nobody:
        lines += ["", "Endpoints", *(line for words in nobody for line in paragraph(words))]
        lines += _endpoint_lines(view, found, facts)
    elif view["endpoints"]:
        lines += ["", "Endpoints", *_endpoint_lines(view, found, facts)]
    policies = _policy_lines(view, enforced)
    if policies:
        lines += ["", *policies]
    return "\n".join(lines)


def text_without_api(namespace: str, name: str, found: Sequence[Entry], host: Host, facts: Facts) -> str:
    """Return what the host's rules alone tell of a Service."""
    lines = [f"Service {namespace}/{name}, by the rules of {host.name} alone", "", "What is not as it should be"]
    lines += [line for words in facts.unreadable for line in paragraph(words, first="? ")]
    if found:
        lines += ["", "Ways in"]
        for entry in found:
            lines += _entry_lines(entry, {})
    elif any(table.there for table in facts.tables.values()):
        lines += [
            "",
            "No chain of kube-proxy on this host is called after it: it has no ready endpoint, or is not there.",
        ]
    return "\n".join(lines)


def short_text_without_api(namespace: str, name: str, found: Sequence[Entry], host: Host, facts: Facts) -> str:
    """Return the same in a line, with what else could not be read."""
    ends = {end for entry in found for fate in entry.fates.values() for end in fate.endpoints}
    places = ", ".join(sorted(at(*end) for end in ends)) or "nobody"
    lines = [f"{host.name}, by its rules alone: {namespace}/{name} has {number_of(len(found), 'way')} in, to {places}"]
    return "\n".join(lines + [line for words in facts.unreadable for line in paragraph(words, first="? ")])


def short_text(view: View, found: Sequence[Entry], host: Host, facts: Facts, wrong: Sequence[str]) -> str:
    """Return the same in a line when all is well, else with what is not."""
    if wrong or facts.unreadable:
        lines = [f"{host.name} does not carry {view['namespace']}/{view['name']} as the API wants it"]
        lines += [line for words in wrong for line in paragraph(words, first="! ")]
        lines += [line for words in facts.unreadable for line in paragraph(words, first="? ")]
        return "\n".join(lines)
    ends = {end[0] for entry in found for fate in entry.fates.values() for end in fate.endpoints}
    return f"{host.name} agrees with the API: {number_of(len(found), 'way')} in, {number_of(len(ends), 'endpoint')}"
