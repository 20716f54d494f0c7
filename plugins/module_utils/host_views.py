# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is on a host and what each thing is for: facts in, explanation out. Pure functions.

What is not known is listed as somebody else's and never left out.
"""

from __future__ import annotations

import fnmatch
import ipaddress
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.plainkube.cluster.plugins.module_utils import openings as opening_rows
from ansible_collections.plainkube.cluster.plugins.module_utils import purposes
from ansible_collections.plainkube.cluster.plugins.module_utils.plain_text import (
    columns,
    duration,
    number_of,
    paragraph,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.proxy_rules import Counts, counts_in_words

SOMEBODY_ELSE = "not known here: somebody else's"
# Certificates are renewed when a third of their time is left; one with less than this was not.
DAYS_TOO_FEW = 14
LINK_LOCAL = ipaddress.ip_network("169.254.0.0/16")
ROUTE_TABLES = {"77": "kube-router"}
DEFAULT_RULES = ("local", "main", "default")
MANY = 3


@dataclass(frozen=True)
class Chain:
    """A chain of the packet filter. targets: for each rule the chain that it jumps to, @ and its interface, or ""."""

    name: str
    targets: Sequence[str] = ()


@dataclass(frozen=True)
class FilterTable:
    """A table of the packet filter. counts: why kube-proxy's has so many rules."""

    family: str
    name: str
    chains: Sequence[Chain] = ()
    counts: Counts | None = None

    @property
    def rules(self) -> int:
        """All rules of the table."""
        return sum(len(chain.targets) for chain in self.chains)


@dataclass(frozen=True)
class Facts:
    """What one look at a host found; times are seconds since 1970."""

    now: float = 0.0
    units: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    other_services: Sequence[str] = ()
    listeners: Sequence[Mapping[str, Any]] = ()
    links: Sequence[Mapping[str, Any]] = ()
    routes: Sequence[Mapping[str, Any]] = ()
    rules: Sequence[Mapping[str, Any]] = ()
    tables: Sequence[FilterTable] = ()
    mounts: Sequence[str] = ()
    certificates: Mapping[str, float] = field(default_factory=dict)
    old_tables: Sequence[str] = ()
    unreadable: Sequence[str] = ()


def first_fit(patterns: Mapping[str, Any], name: str) -> Any:
    """Return the value of the first pattern that fits, None when none does."""
    return next((value for pattern, value in patterns.items() if fnmatch.fnmatchcase(name, pattern)), None)


# --- Units ------------------------------------------------------------------------------------------------------------


def units(facts: Facts) -> list[dict[str, Any]]:
    """Return the cluster's units on this host."""
    return [
        {
            "name": name,
            "state": unit["state"],
            "well": unit["well"],
            "seconds": max(0.0, facts.now - unit["since"]) if unit["since"] else 0.0,
            "what_for": purposes.UNITS[name],
        }
        for name, unit in facts.units.items()
    ]


# --- Ports ------------------------------------------------------------------------------------------------------------


def is_own(address: str) -> bool:
    """Return whether only the host itself has such an address."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    return parsed.is_loopback or (parsed.version == 4 and parsed in LINK_LOCAL)


def ports(facts: Facts, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return who listens here and for whom, and what should listen and does not. rows: of openings.openings."""
    found, used = [], set()
    for listener in facts.listeners:
        own = is_own(listener["address"])
        number = _row_of(listener, rows, own)
        if number is not None:
            used.add(number)
        row: Mapping[str, Any] = rows[number] if number is not None else {}
        by_chance = purposes.LISTENS_BY_CHANCE.get(listener["process"], "")
        found.append(
            {
                **listener,
                "port": str(listener["port"]),
                "state": "listens",
                "known": bool(row or by_chance),
                "what_for": row.get("what_for") or by_chance or SOMEBODY_ELSE,
                "from": row.get("from") or (["load balancers"] if by_chance and not own else []),
                "addresses": row.get("addresses", []),
                "local": own,
                # Meant for the host alone, and yet others reach it.
                "exposed": bool(row) and row["local"] and not own,
            }
        )
    for number, row in enumerate(rows):
        if number not in used and row["port"] + row["program"] != "containerd":
            found.append(
                {
                    "protocol": row["protocol"],
                    "address": "",
                    "port": row["port"],
                    "process": row["program"],
                    "pid": 0,
                    "state": "nobody listens" if row["program"] and row["port"] else "the kernel",
                    "known": True,
                    "what_for": row["what_for"],
                    "from": row["from"],
                    "addresses": row["addresses"],
                    "local": row["local"],
                    "exposed": False,
                }
            )
    return found


def _row_of(listener: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], own: bool) -> int | None:
    """Return the number of the opening that a listener is, of those for the host alone first if only it can ask."""
    fits = [
        number
        for number, row in enumerate(rows)
        if row["protocol"] == listener["protocol"]
        # What Ansible calls the port may be another host's, which passes it on to this one.
        and (row["port"] == str(listener["port"]) or listener["process"] == row["program"] == "sshd")
        # Where the kernel listens by itself, there is no process; systemd listens for those that it starts when asked.
        and listener["process"] in ("", "systemd", row["program"])
    ]
    return next((number for number in fits if rows[number]["local"] == own), fits[0] if fits else None)


# --- Interfaces and routes --------------------------------------------------------------------------------------------


def interfaces(facts: Facts, address: str) -> list[dict[str, Any]]:
    """Return the interfaces; ends of pods' interfaces are counted by the bridge that they hang on."""
    found, pods = [], Counter[str]()
    for link in facts.links:
        name = link["ifname"]
        addresses = [f"{item['local']}/{item['prefixlen']}" for item in link.get("addr_info", ())]
        own = address in {item.partition("/")[0] for item in addresses}
        if fnmatch.fnmatchcase(name, "veth*") and not own:
            pods[link.get("master", "")] += 1
            continue
        what_for = "this host's address in the cluster" if own else first_fit(purposes.INTERFACES, name)
        shown = [item for item in addresses if not item.startswith("fe80:")]
        found.append(
            {
                "name": name,
                "mtu": link.get("mtu", 0),
                "addresses": shown,
                "known": what_for is not None,
                "what_for": what_for or SOMEBODY_ELSE,
            }
        )
    for bridge, count in pods.items():
        where = f" on {bridge}" if bridge else ""
        found.append(
            {
                "name": "veth*",
                "mtu": 0,
                "addresses": [],
                "known": True,
                "what_for": f"{number_of(count, 'end')} of pods' interfaces{where}",
            }
        )
    return found


def routes(facts: Facts, cluster: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the routes, without those that the kernel keeps for its own addresses."""
    nodes = {
        item[key]: item["name"]
        for item in cluster.get("topology", {}).get("nodes", ())
        for key in ("address", "address_ipv6")
        if item.get(key)
    }
    found = []
    for route in facts.routes:
        if route.get("table") == "local" or route["dst"].startswith(("fe80:", "ff00:")):
            continue
        # ip does not show the protocol of those that say nothing about it, such as flannel's.
        gateway, protocol = route.get("gateway", ""), str(route.get("protocol", "boot"))
        writer = purposes.ROUTE_PROTOCOLS.get(protocol)
        if protocol == "boot" and gateway in nodes and cluster.get("network") == "flannel":
            writer = "flanneld"
        what_for = f"by {writer}" if writer else SOMEBODY_ELSE
        if gateway in nodes and route["dst"] != "default":
            what_for = f"pods of {nodes[gateway]}, {what_for}"
        elif fnmatch.fnmatchcase(route.get("dev", ""), "flannel*") and route["dst"] != "default":
            what_for, writer = "pods of other nodes, by flanneld", "flanneld"
        elif first_fit({"cni0": 1, "kube-bridge": 1}, route.get("dev", "")):
            what_for = f"pods of this host, {what_for}"
        table = str(route.get("table", "main"))
        found.append(
            {
                "to": route["dst"],
                "via": gateway,
                "dev": route.get("dev", ""),
                "table": table,
                "known": writer is not None or table in ROUTE_TABLES,
                "what_for": what_for,
            }
        )
    return found


def routing_rules(facts: Facts) -> list[dict[str, Any]]:
    """Return the rules that choose a routing table, without the three that every host has."""
    found = []
    for rule in facts.rules:
        table = str(rule.get("table", ""))
        if table in DEFAULT_RULES and rule.get("src") == "all":
            continue
        who = ROUTE_TABLES.get(table)
        words = " ".join(f"{key} {rule[key]}" for key in ("src", "dst", "fwmark", "iif", "oif") if key in rule)
        found.append(
            {
                "priority": rule.get("priority", 0),
                "rule": f"{words} table {table}",
                "known": who is not None,
                "what_for": who or SOMEBODY_ELSE,
            }
        )
    return found


# --- Packet filter ----------------------------------------------------------------------------------------------------


def filter_tables(facts: Facts) -> list[dict[str, Any]]:
    """Return the tables of the packet filter: whose each is, and why it has as many rules as it has."""
    found = []
    for table in facts.tables:
        owner, what_for = purposes.TABLES.get(table.name, ("", ""))
        details: list[str] = []
        unknown: list[str] = []
        if table.counts is not None:
            details = counts_in_words(table.counts)
            ports_of, ends = number_of(table.counts.ports, "port"), number_of(table.counts.endpoints, "endpoint")
            what_for += f"; {ports_of} of Services, {ends}"
        elif not owner:
            owners, details, unknown = _chains_in_words(table)
            owner, what_for = ", ".join(owners) or SOMEBODY_ELSE, "written through iptables" if owners else ""
        found.append(
            {
                "family": table.family,
                "name": table.name,
                "chains": len(table.chains),
                "rules": table.rules,
                "owner": owner,
                "what_for": what_for,
                "details": details,
                "unknown": unknown,
                "known": owner != SOMEBODY_ELSE and not unknown,
            }
        )
    return found


def _chains_in_words(table: FilterTable) -> tuple[list[str], list[str], list[str]]:
    """Return owners, lines and what is not known of a table that several programs write into."""
    owners: list[str] = []
    groups: dict[tuple[str, str], list[int]] = {}
    unknown = []
    for chain in table.chains:
        known = _chain_purpose(chain.name)
        if known:
            groups.setdefault(known, []).append(len(chain.targets))
        elif chain.name in purposes.BUILT_IN_CHAINS:
            strange = sum(_chain_purpose(target) is None for target in chain.targets)
            if strange:
                unknown.append(f"{number_of(strange, 'rule')} of chain {chain.name}")
        else:
            unknown.append(f"chain {chain.name} ({number_of(len(chain.targets), 'rule')})")
    lines = []
    for (owner, what_for), sizes in groups.items():
        owners += [owner] if owner not in owners else []
        if sum(sizes):
            lines.append(f"{sum(sizes)} in {number_of(len(sizes), 'chain')} of {owner}: {what_for}")
    return owners, lines, unknown


def _chain_purpose(name: str) -> tuple[str, str] | None:
    return next((purpose for begin, purpose in purposes.CHAINS.items() if name.startswith(begin)), None)


# --- Mounts and certificates ------------------------------------------------------------------------------------------


def mounts(facts: Facts) -> list[dict[str, Any]]:
    """Return the mounts of the cluster, counted by what they are for, and those that are not known."""
    counts: Counter[str] = Counter()
    found = []
    for point in facts.mounts:
        pattern = next((key for key in purposes.MOUNTS if fnmatch.fnmatchcase(point, key)), "")
        if pattern:
            counts[pattern] += 1
        elif not any(fnmatch.fnmatchcase(point, known) for known in purposes.SYSTEM_MOUNTS):
            found.append({"what_for": SOMEBODY_ELSE, "count": 1, "point": point, "known": False})
    known = [
        {"what_for": purposes.MOUNTS[pattern], "count": count, "point": pattern, "known": True}
        for pattern, count in counts.items()
    ]
    return known + found


def certificates(facts: Facts) -> list[dict[str, Any]]:
    """Return the certificates, the one that ends first before the others."""
    return [
        {
            "path": path,
            "days": int((end - facts.now) // 86400),
            "what_for": first_fit(purposes.CERTIFICATES, path) or "",
        }
        for path, end in sorted(facts.certificates.items(), key=lambda item: (item[1], item[0]))
    ]


# --- All of it --------------------------------------------------------------------------------------------------------


def explain(facts: Facts, cluster: Mapping[str, Any], host: str, address: str) -> dict[str, Any]:
    """Return everything that is on a host with what it is for, what is wrong, and what is not known."""
    answer: dict[str, Any] = {
        "kinds": opening_rows.kinds_of(cluster, host)[1:],
        "units": units(facts),
        "ports": ports(facts, opening_rows.openings(cluster, host)),
        "interfaces": interfaces(facts, address),
        "routes": routes(facts, cluster),
        "routing_rules": routing_rules(facts),
        "tables": filter_tables(facts),
        "mounts": mounts(facts),
        "certificates": certificates(facts),
        "unreadable": list(facts.unreadable),
    }
    answer["wrong"] = list(_wrong(answer))
    answer["unknown"] = list(_unknown(answer, facts))
    return answer


def _wrong(answer: Mapping[str, Any]) -> Iterable[str]:
    for unit in answer["units"]:
        if not unit["well"]:
            yield f"{unit['name']} is {unit['state']}: {unit['what_for']}; journalctl -u {unit['name']}"
    for port in answer["ports"]:
        if port["state"] == "nobody listens":
            place = f"{port['protocol']} {port['port']}"
            yield f"nobody listens at {place}, where {port['process']} should: {port['what_for']}"
        if port["exposed"]:
            place = f"{port['address']} port {port['port']}"
            yield f"{port['process']} listens at {place}, where others reach it; it is for the host alone"
    for certificate in answer["certificates"]:
        if certificate["days"] < DAYS_TOO_FEW:
            yield f"{certificate['path']} ends in {certificate['days']} days; run site.yml, which renews it"


def _unknown(answer: Mapping[str, Any], facts: Facts) -> Iterable[str]:
    for port in answer["ports"]:
        if not port["known"]:
            who = port["process"] or "a process that cannot be seen"
            yield f"{port['protocol']} {_place(port)}: {who}"
    for interface in answer["interfaces"]:
        if not interface["known"]:
            yield f"interface {interface['name']} {' '.join(interface['addresses'])}".rstrip()
    for route in answer["routes"]:
        if not route["known"]:
            yield f"route {route['to']} {'via ' + route['via'] if route['via'] else 'on ' + route['dev']}"
    for rule in answer["routing_rules"]:
        if not rule["known"]:
            yield f"routing rule {rule['rule']}"
    for table in answer["tables"]:
        if table["owner"] == SOMEBODY_ELSE:
            yield f"table {table['family']} {table['name']}: {number_of(table['rules'], 'rule')}"
        else:
            yield from (f"table {table['family']} {table['name']}: {words}" for words in table["unknown"])
    if facts.old_tables:
        yield f"tables of iptables' older interface, which iptables-legacy-save shows: {', '.join(facts.old_tables)}"
    yield from (f"mount {mount['point']}" for mount in answer["mounts"] if not mount["known"])
    if facts.other_services:
        yield f"services: {', '.join(name.removesuffix('.service') for name in facts.other_services)}"


# --- Words ------------------------------------------------------------------------------------------------------------


def _place(port: Mapping[str, Any]) -> str:
    address = f"[{port['address']}]" if ":" in port["address"] else port["address"]
    return ":".join(part for part in (address, port["port"]) if part)


def _port_rows(found: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    rows = []
    for port in found:
        who = port["process"] if port["state"] == "listens" else port["state"]
        comers = f"from {', '.join(port['from'])}: " if port["from"] and not port["local"] else ""
        who = who or ("the kernel" if port["known"] else "?")
        rows.append((f"{port['protocol']} {_place(port)}".rstrip(), who, comers + port["what_for"]))
    return rows


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return ["", title, *lines] if lines else []


def text(answer: Mapping[str, Any], host: str, address: str) -> str:
    """Return the explanation for a terminal."""
    kinds = (
        ", of the ".join(opening_rows.PLACES[kind] for kind in answer["kinds"]) or "hosts that are not the cluster's"
    )
    lines = paragraph(f"{host} ({address}) is one of the {kinds}", indent=0)
    wrong = [line for words in answer["wrong"] for line in paragraph(words, first="! ")]
    wrong += [line for words in answer["unreadable"] for line in paragraph(words, first="? ")]
    lines += _section("What is not as it should be", wrong)
    lines += _section(
        "Units",
        columns(
            (
                unit["name"].removesuffix(".service"),
                unit["state"] + (f" for {duration(unit['seconds'])}" if unit["seconds"] else ""),
                unit["what_for"],
            )
            for unit in answer["units"]
        ),
    )
    for title, local in (
        ("Ports that others reach (firewalls must let them)", False),
        ("Ports for this host alone", True),
    ):
        found = [port for port in answer["ports"] if port["local"] == local and port["known"]]
        lines += _section(title, columns(_port_rows(found)))
    lines += _section(
        "Interfaces",
        columns(
            (
                item["name"],
                f"mtu {item['mtu']}" if item["mtu"] else "",
                item["what_for"] + (f": {', '.join(item['addresses'])}" if item["addresses"] else ""),
            )
            for item in answer["interfaces"]
            if item["known"]
        ),
    )
    lines += _section(
        "Routes",
        columns(
            (item["to"], f"via {item['via']}" if item["via"] else "direct", item["dev"], item["what_for"])
            for item in answer["routes"]
            if item["known"]
        ),
    )
    lines += _section("Rules of the packet filter (nft list table FAMILY NAME)", _table_lines(answer["tables"]))
    lines += _section(
        "Mounts",
        columns((str(item["count"]), item["point"], item["what_for"]) for item in answer["mounts"] if item["known"]),
    )
    lines += _section(
        "Certificates, by their end",
        columns((f"{item['days']} d", item["path"], item["what_for"]) for item in answer["certificates"]),
    )
    unknown = [line for words in answer["unknown"] for line in paragraph(words)]
    lines += _section("Not known here: somebody else's", unknown)
    return "\n".join(lines)


def _table_lines(tables: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for table in tables:
        if table["owner"] == SOMEBODY_ELSE:
            continue
        size = f"{number_of(table['rules'], 'rule')} in {number_of(table['chains'], 'chain')}"
        what_for = f": {table['what_for']}" if table["what_for"] else ""
        lines += paragraph(f"{table['family']} {table['name']}: {size}, by {table['owner']}{what_for}")
        lines += [line for words in table["details"] for line in paragraph(words, 4)]
    return lines
