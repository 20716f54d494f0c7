#!/usr/bin/python
# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: host_info
short_description: What is on a host of the cluster, and what each thing is for
description:
  - Reads units, listening ports, interfaces, routes, the packet filter, mounts and the ends of certificates, and says
    of each what it is for. What is not known is listed as somebody else's.
  - Holds the listening ports against those that the host should have, and says who must be able to reach them, which
    is what a firewall must let through.
  - What cannot be read is said in RV(unreadable); the module does not fail because of it.
version_added: 0.3.0
author: Plainkube contributors (@plainkube)
attributes:
  check_mode:
    support: full
    description: Reads the same.
  diff_mode:
    support: none
    description: Nothing changes.
options:
  name:
    description: The host's name in the inventory.
    type: str
    required: true
  address:
    description: The host's address in the cluster.
    type: str
    required: true
  cluster:
    description:
      - What decides about the openings.
      - C(topology), C(api_port), C(ssh_port), C(pod_cidrs), C(node_ports), C(network), C(backend), C(policies),
        C(dns_cache), C(ingress_instances), C(edge_services) and C(edge_address), as in C(docs/firewall.md).
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Say what is on the host
  plainkube.cluster.host_info:
    name: "{{ inventory_hostname }}"
    address: 192.0.2.11
    cluster:
      topology: "{{ cluster_topology }}"
      network: bridge
  register: host
"""

RETURN = r"""
host:
  description: All that was found, each thing with C(what_for).
  returned: always
  type: dict
  contains:
    units: {description: The cluster's units., type: list}
    ports: {description: Who listens for whom and what should listen and does not., type: list}
    interfaces: {description: Interfaces., type: list}
    routes: {description: Routes., type: list}
    routing_rules: {description: Rules that choose a routing table., type: list}
    tables: {description: Tables of the packet filter with the number of rules and their reasons., type: list}
    mounts: {description: Mounts by what they are for., type: list}
    certificates: {description: Certificates with the days that are left., type: list}
wrong:
  description: What is not as it should be.
  returned: always
  type: list
  elements: str
unknown:
  description: What is somebody else's.
  returned: always
  type: list
  elements: str
unreadable:
  description: What could not be read, and why.
  returned: always
  type: list
  elements: str
text:
  description: The explanation for people.
  returned: always
  type: str
"""

import glob
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, Callable

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.plainkube.cluster.plugins.module_utils import (
    host_views,
    proxy_rules,
    purposes,
    reset,
    units_io,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError
from ansible_collections.plainkube.cluster.plugins.module_utils.host_reading import ReadError, run, run_json
from ansible_collections.plainkube.cluster.plugins.module_utils.listeners_io import listeners

OLD_TABLES = "/proc/net/ip_tables_names"
END_FORMAT = "%b %d %H:%M:%S %Y %Z"


def units() -> dict[str, dict[str, Any]]:
    """Return the cluster's units that this host has."""
    names = [name for name in purposes.UNITS if "@." not in name]
    return {
        name: {
            "state": unit.active if unit.active == unit.sub or unit.running else f"{unit.active} ({unit.sub})",
            "well": unit.running,
            "since": unit.started.realtime / 1e6 if unit.running and unit.started else 0.0,
        }
        for name, unit in units_io.show(names).items()
        if unit.load == "loaded" and (unit.running or unit.unit_file.startswith("enabled"))
    }


def other_services() -> list[str]:
    """Return the running services that are not the cluster's."""
    listed = run(["systemctl", "list-units", "--type=service", "--state=running", "--plain", "--no-legend"])
    names = [line.split()[0] for line in listed.splitlines() if line.strip()]
    return [name for name in names if name not in purposes.UNITS]


def filter_tables() -> list[host_views.FilterTable]:
    """Return the tables of nftables, those of iptables among them. Contents of sets are left out."""
    parts: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for entry in (run_json(["nft", "-j", "-t", "list", "ruleset"]) or {}).get("nftables", ()):
        (kind, value), *_ = entry.items()
        if kind == "table":
            parts.setdefault((value["family"], value["name"]), [])
        elif "table" in value:
            parts.setdefault((value["family"], value["table"]), []).append(entry)
    found = []
    for (family, name), entries in parts.items():
        table = proxy_rules.Table({"nftables": entries})
        chains = [host_views.Chain(chain, [target_of(rule) for rule in rules]) for chain, rules in table.chains.items()]
        counts = proxy_rules.count(table) if name == "kube-proxy" else None
        found.append(host_views.FilterTable(family, name, chains, counts))
    return found


def target_of(rule: dict[str, Any]) -> str:
    """Return the chain that a rule leads to, else @ and the interface that it is for, else nothing."""
    targets = (
        value for statement in rule.get("expr", ()) for kind, value in statement.items() if kind in ("jump", "goto")
    )
    matches = (statement["match"] for statement in rule.get("expr", ()) if "match" in statement)
    interfaces = (
        f"@{match['right']}"
        for match in matches
        if isinstance(match["left"], dict) and match["left"].get("meta", {}).get("key") in ("iifname", "oifname")
    )
    return next((str(value["target"]) for value in targets), next(interfaces, ""))


def certificates() -> dict[str, float]:
    """Return the end of each certificate on this host, in seconds since 1970."""
    paths = sorted({path for pattern in purposes.CERTIFICATES for path in glob.glob(pattern)})  # noqa: PTH207
    return {path: end_of(run(["openssl", "x509", "-in", path, "-noout", "-enddate"])) for path in paths}


def end_of(line: str) -> float:
    """Return the time in a line like notAfter=Nov 21 20:52:11 2027 GMT. Raises ReadError."""
    try:
        return datetime.strptime(line.strip().partition("=")[2], END_FORMAT).replace(tzinfo=timezone.utc).timestamp()
    except ValueError:
        raise ReadError(f"the end of a certificate: openssl says {line.strip()!r}") from None


def mounts() -> list[str]:
    return reset.mount_points(Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace"))


def old_tables() -> list[str]:
    """Return the tables of the older interface of iptables that are in use: nft does not show them."""
    try:
        return Path(OLD_TABLES).read_text(encoding="ascii").split()
    except OSError:
        return []


def routes_of(family: str) -> list[dict[str, Any]]:
    return run_json(["ip", family, "-j", "route", "show", "table", "all"]) or []


def look(families: Sequence[str]) -> host_views.Facts:
    """Read all of the host; what cannot be read is left out and said. families: options of ip(8) for routes."""
    unreadable: list[str] = []

    def tried(what: str, read: Callable[[], Any], otherwise: Any) -> Any:
        try:
            return read()
        except (PlainkubeError, OSError) as error:
            unreadable.append(f"{what}: {error}")
            return otherwise

    return host_views.Facts(
        now=time.time(),
        units=tried("units", units, {}),
        other_services=tried("services", other_services, []),
        listeners=[
            {"protocol": protocol, **listener} for protocol in ("tcp", "udp") for listener in listeners(None, protocol)
        ],
        links=tried("interfaces", lambda: run_json(["ip", "-j", "-d", "address", "show"]) or [], []),
        routes=[route for family in families for route in tried("routes", partial(routes_of, family), [])],
        rules=tried("routing rules", lambda: run_json(["ip", "-j", "rule", "show"]) or [], []),
        tables=tried("packet filter", filter_tables, []),
        mounts=tried("mounts", mounts, []),
        certificates=tried("certificates", certificates, {}),
        old_tables=old_tables(),
        unreadable=unreadable,
    )


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "address": {"type": "str", "required": True},
            "cluster": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    options = module.params
    dual_stack = any(":" in network for network in options["cluster"].get("pod_cidrs", ()))
    answer = host_views.explain(
        look(("-4", "-6") if dual_stack else ("-4",)), options["cluster"], options["name"], options["address"]
    )
    text = host_views.text(answer, options["name"], options["address"])
    lists = {key: answer.pop(key) for key in ("wrong", "unknown", "unreadable")}
    module.exit_json(changed=False, host=answer, text=text, **lists)


if __name__ == "__main__":
    main()
