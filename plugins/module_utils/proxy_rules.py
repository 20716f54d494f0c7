# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""kube-proxy's nftables rules, followed as a packet follows them. Pure functions on what nft -j prints.

A packet is not sent: its fate is read from the rules, for three kinds of senders, since the rules tell these apart.
What a rule of a kind that is not known here does is never guessed: it is named.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SOURCES = {
    "pod": "a pod",
    "host": "this host",
    "outside": "elsewhere",
}
# kube-proxy's own chains, in the order in which a new connection meets them.
BEFORE_TRANSLATION = ("firewall-check",)
TRANSLATION = "services"
AFTER_TRANSLATION = ("nodeport-endpoints-check", "service-endpoints-check", "cluster-ips-check")
# Beginnings of the names of chains that belong to one port of one Service, and what such a chain does.
CHAIN_KINDS = {
    "service": "every endpoint of a Service's port",
    "local": "the endpoints on this host alone, for traffic policy Local",
    "external": "traffic from outside of the cluster: node ports, load balancers, external addresses",
    "endpoint": "one endpoint, remembered for the client's next connection (session affinity)",
    "firewall": "the source ranges of a load balancer",
}
CHAINS_AT_MOST = 50


@dataclass(frozen=True)
class Packet:
    """The first packet of a connection. source: a key of SOURCES."""

    source: str
    address: str
    protocol: str
    port: int


@dataclass
class Fate:
    """What the rules do with a packet.

    chains: of the Service, as it goes through them; endpoints: (address, port), one of which it is sent to; verdict:
    rejected, dropped or empty; masqueraded: it leaves with this host's address; affinity_seconds: how long a client
    keeps its endpoint; only_from: source ranges that are let in; unknown: rules that are not understood here.
    """

    chains: list[str] = field(default_factory=list)
    endpoints: list[tuple[str, int]] = field(default_factory=list)
    verdict: str = ""
    masqueraded: bool = False
    affinity_seconds: int = 0
    only_from: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    @property
    def decided(self) -> bool:
        """Whether nothing after this is asked."""
        return bool(self.endpoints or self.verdict)


class Table:
    """One table of nftables."""

    def __init__(self, listing: Mapping[str, Any]) -> None:
        """listing: what nft -j list table prints."""
        self.chains: dict[str, list[dict[str, Any]]] = {}
        self.maps: dict[str, dict[tuple[Any, ...], Any]] = {}
        self.sets: dict[str, dict[str, Any]] = {}
        for entry in listing.get("nftables", ()):
            if "chain" in entry:
                self.chains.setdefault(entry["chain"]["name"], [])
            elif "rule" in entry:
                self.chains.setdefault(entry["rule"]["chain"], []).append(entry["rule"])
            elif "map" in entry:
                elements = entry["map"].get("elem", ())
                self.maps[entry["map"]["name"]] = {_key(element[0]): element[1] for element in elements}
            elif "set" in entry:
                self.sets[entry["set"]["name"]] = entry["set"]

    @property
    def there(self) -> bool:
        """Whether kube-proxy has written its chains."""
        return TRANSLATION in self.chains


def _key(value: Any) -> tuple[Any, ...]:
    """Return the key of a map's element; one with a comment is wrapped."""
    if isinstance(value, dict) and "elem" in value:
        value = value["elem"]["val"]
    return tuple(value["concat"]) if isinstance(value, dict) and "concat" in value else (value,)


def follow(table: Table, packet: Packet) -> Fate:
    """Return what becomes of a packet."""
    fate = Fate()
    for chain in (*BEFORE_TRANSLATION, TRANSLATION, *AFTER_TRANSLATION):
        _enter(table, chain, packet, fate, 0)
        if fate.decided:
            break
    return fate


def _enter(table: Table, name: str, packet: Packet, fate: Fate, depth: int) -> None:
    """Go through a chain. An unknown chain, or a circle, ends the way."""
    if chain_kind(name) and name not in fate.chains:
        fate.chains.append(name)
    if depth > CHAINS_AT_MOST:
        fate.unknown.append(f"chain {name}: it leads in a circle")
        return
    # Where chance chooses, every alternative is gone through, each to its own end.
    before = len(fate.endpoints)
    for number, rule in enumerate(table.chains.get(name, ()), start=1):
        left = _obey(table, rule, packet, fate, depth, f"rule {number} of chain {name}")
        if left or fate.verdict or len(fate.endpoints) > before:
            return


def _obey(table: Table, rule: Mapping[str, Any], packet: Packet, fate: Fate, depth: int, title: str) -> bool:
    """Do what a rule says; return whether the chain is left (goto, return)."""
    for statement in rule.get("expr", ()):
        kind, value = next(iter(statement.items()))
        if kind == "match":
            if not _matches(table, value, packet, fate, title):
                return False
        elif kind == "mangle":
            # The only mark that kube-proxy sets asks for the host's address on the way out.
            fate.masqueraded = True
        elif kind == "set":
            affinity = table.sets.get(str(value.get("set", "")).lstrip("@"), {})
            fate.affinity_seconds = max(fate.affinity_seconds, int(affinity.get("timeout", 0)))
        elif kind == "vmap":
            targets = _verdicts(table, value, packet)
            for target in targets:
                _verdict(table, target, packet, fate, depth)
            return bool(targets)
        elif kind == "dnat":
            fate.endpoints += [end for end in _destinations(value) if end not in fate.endpoints]
        elif kind in ("jump", "goto", "reject", "drop"):
            _verdict(table, statement, packet, fate, depth)
            return kind == "goto"
        elif kind in ("return", "accept"):
            return True
        elif kind not in ("counter", "masquerade"):
            fate.unknown.append(f"{title}: {kind}")
            return False
    return False


def _verdict(table: Table, statement: Mapping[str, Any], packet: Packet, fate: Fate, depth: int) -> None:
    """Take a verdict of a rule or of a map's element."""
    kind, value = next(iter(statement.items()))
    if kind in ("jump", "goto"):
        _enter(table, value["target"], packet, fate, depth + 1)
    elif kind in ("reject", "drop"):
        fate.verdict = "rejected" if kind == "reject" else "dropped"


def _verdicts(table: Table, vmap: Mapping[str, Any], packet: Packet) -> list[Mapping[str, Any]]:
    """Return the verdicts that a map has for a packet: all that chance can choose, or the one for its key."""
    key, data = vmap["key"], vmap["data"]
    if isinstance(key, dict) and "numgen" in key:
        return [element[1] for element in data.get("set", ())]
    elements = table.maps.get(data[1:], {}) if isinstance(data, str) else {_key(e[0]): e[1] for e in data["set"]}
    parts = key["concat"] if isinstance(key, dict) and "concat" in key else [key]
    wanted = tuple(_value(part, packet) for part in parts)
    return [elements[wanted]] if wanted in elements else []


def _value(expression: Any, packet: Packet) -> Any:
    """Return what a packet has where an expression looks; None where that is not known."""
    if not isinstance(expression, dict):
        return None
    looked = expression.get("payload", {}).get("field") or expression.get("meta", {}).get("key")
    return {"daddr": packet.address, "dport": packet.port, "l4proto": packet.protocol}.get(looked)


def _matches(table: Table, match: Mapping[str, Any], packet: Packet, fate: Fate, title: str) -> bool:
    """Return whether a packet meets a condition."""
    left, right, same = match["left"], match["right"], match["op"] != "!="
    looked = left if isinstance(left, dict) else {}
    if looked.get("ct", {}).get("key") == "state":
        return True
    if looked.get("payload", {}).get("field") == "saddr":
        return _source_matches(right, same, packet, fate)
    if "fib" in looked and right == "local":
        local = packet.source == "host" if "saddr" in looked["fib"]["flags"] else True
        return local == same
    # These only concern packets that were translated before.
    if "concat" in looked and right == "@hairpin-connections":
        return False
    value = _value(left, packet)
    if value is None:
        fate.unknown.append(f"{title}: a condition on {', '.join(looked) or left}")
        return False
    return (value in _members(table, right)) == same


def _source_matches(right: Any, same: bool, packet: Packet, fate: Fate) -> bool:
    """Return whether the sender fits; senders are of three kinds, and each network that is named has a known sense."""
    if isinstance(right, str):
        # An affinity set: whoever is in it goes where it went before; or an endpoint that speaks to itself.
        return False
    if not same and any("firewall-" in chain for chain in fate.chains):
        fate.only_from += [network for network in _networks(right) if network not in fate.only_from]
        return False
    # The other networks in kube-proxy's rules are those of pods.
    return (packet.source == "pod") == same


def _networks(right: Any) -> list[str]:
    """Return the networks on the right side of a condition as text."""
    if isinstance(right, dict) and "set" in right:
        return [network for item in right["set"] for network in _networks(item)]
    if isinstance(right, dict) and "prefix" in right:
        return [f"{right['prefix']['addr']}/{right['prefix']['len']}"]
    return [str(right)]


def _members(table: Table, right: Any) -> Sequence[Any]:
    if isinstance(right, str) and right.startswith("@"):
        members: Sequence[Any] = table.sets.get(right[1:], {}).get("elem", ())
        return members
    if isinstance(right, dict) and "prefix" in right:
        return _Network(f"{right['prefix']['addr']}/{right['prefix']['len']}")
    return right["set"] if isinstance(right, dict) and "set" in right else (right,)


class _Network(list[str]):
    """A network that can be asked whether it has an address."""

    def __init__(self, network: str) -> None:
        super().__init__()
        self.network = ipaddress.ip_network(network)

    def __contains__(self, address: object) -> bool:
        return ipaddress.ip_address(str(address)) in self.network


def _destinations(dnat: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Return where a translation may lead: one place, or a map from which chance chooses."""
    address = dnat.get("addr")
    if isinstance(address, dict) and "map" in address:
        values = [element[1] for element in address["map"]["data"]["set"]]
        return [(str(value["concat"][0]), int(value["concat"][1])) for value in values]
    return [(str(address), int(dnat.get("port", 0)))]


# --- Counting ---------------------------------------------------------------------------------------------------------


def chain_kind(name: str) -> str:
    """Return the kind of a chain that belongs to a port of a Service, empty for kube-proxy's fixed chains."""
    kind, _, rest = name.partition("-")
    return kind if kind in CHAIN_KINDS and "/" in rest else ""


def service_of(chain: str) -> str:
    """Return namespace/name/protocol/port of the Service that a chain belongs to, empty for others.

    A chain is called KIND-HASH-NAMESPACE/NAME/PROTOCOL/PORT, and one of an endpoint goes on with __ADDRESS/PORT.
    """
    return chain.split("-", 2)[2].partition("__")[0] if chain_kind(chain) else ""


@dataclass(frozen=True)
class Counts:
    """How many rules a table has and why.

    kinds: (chains, rules) by kind of chain, '' for the fixed ones; ports: how many ports of Services they are for;
    endpoints: how many different endpoints they lead to.
    """

    kinds: Mapping[str, tuple[int, int]]
    ports: int
    endpoints: int

    @property
    def chains(self) -> int:
        """All chains."""
        return sum(chains for chains, _rules in self.kinds.values())

    @property
    def rules(self) -> int:
        """All rules."""
        return sum(rules for _chains, rules in self.kinds.values())


def count(table: Table) -> Counts:
    """Return why a table of kube-proxy has as many rules as it has."""
    kinds: dict[str, tuple[int, int]] = {}
    ports, endpoints = set(), set()
    for name, rules in table.chains.items():
        kind = chain_kind(name)
        chains, before = kinds.get(kind, (0, 0))
        kinds[kind] = (chains + 1, before + len(rules))
        if kind:
            ports.add(service_of(name))
            endpoints |= {end for rule in rules for end in _all_destinations(rule)}
    return Counts(kinds, len(ports), len(endpoints))


def _all_destinations(rule: Mapping[str, Any]) -> Iterable[tuple[str, int]]:
    return (
        end for statement in rule.get("expr", ()) if "dnat" in statement for end in _destinations(statement["dnat"])
    )


def counts_in_words(counts: Counts) -> list[str]:
    """Return the same for people, a line for each kind of chain."""
    fixed = counts.kinds.get("", (0, 0))
    lines = [f"{fixed[1]} in {fixed[0]} chains: fixed, the same on every host"]
    for kind, what_for in CHAIN_KINDS.items():
        if kind in counts.kinds:
            chains, rules = counts.kinds[kind]
            lines.append(f"{rules} in {chains} {'chain' if chains == 1 else 'chains'} {kind}-*: {what_for}")
    return lines
