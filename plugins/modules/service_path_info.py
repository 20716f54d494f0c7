#!/usr/bin/python
# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: service_path_info
short_description: Follow packets to a Service on a host
description:
  - Reads kube-proxy's nftables rules, the host's routes to the Service's endpoints and what the name server says, and
    follows the rules for packets of pods, of the host itself and from elsewhere. No packet is sent but questions to
    name servers.
  - Names every difference between this host and the API, such as an endpoint that the rules do not have yet, or rules
    for a pod that is gone.
  - What cannot be read (kube-proxy is down, there is no nft) is said in RV(unreadable); the module does not fail.
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
  service:
    description: Namespace and name of the Service, as in V(kube-system/kube-dns).
    type: str
    required: true
  view:
    description:
      - RV(plainkube.cluster.service_info#module:service) of M(plainkube.cluster.service_info).
      - Empty when the API does not answer. Then the rules are searched for the Service's name.
    type: dict
    default: {}
  nodes:
    description: Address of each node, by name.
    type: dict
    default: {}
  unreadable:
    description: What could not be read before, to be said again.
    type: list
    elements: str
    default: []
  node:
    description: Name of this host's node.
    type: str
    required: true
  address:
    description: Address of this host's node.
    type: str
    required: true
  dns_servers:
    description: Addresses of the name servers that pods ask.
    type: list
    elements: str
    default: []
  cluster_domain:
    description: Domain of the cluster's names.
    type: str
    default: cluster.local
  policies_enforced:
    description: Whether something in the cluster enforces NetworkPolicies.
    type: bool
    default: true
  whole:
    description: Make RV(text) the whole explanation. Otherwise it is one line when all is well.
    type: bool
    default: true
"""

EXAMPLES = r"""
- name: Follow packets to the name server
  plainkube.cluster.service_path_info:
    service: kube-system/kube-dns
    view: "{{ name_server.service }}"
    nodes: "{{ name_server.nodes }}"
    node: "{{ inventory_hostname }}"
    address: 192.0.2.11
    dns_servers: [10.96.0.10]
"""

RETURN = r"""
ways:
  description: Each address and port by which the Service is reached here.
  returned: always
  type: list
  elements: dict
  contains:
    kind: {description: "V(cluster IP), V(node port), V(external IP) or V(load balancer).", type: str}
    address: {description: Address., type: str}
    protocol: {description: Protocol., type: str}
    port: {description: Port., type: int}
    fates:
      description: By sender (pod or host or outside) the chains and endpoints and what else happens to a packet.
      type: dict
routes:
  description: For each endpoint and its node the route that this host takes.
  returned: always
  type: dict
names:
  description: What name servers answered.
  returned: always
  type: list
  elements: dict
differences:
  description: Where this host does not do what the API says.
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

import os
import socket
from dataclasses import asdict
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.plainkube.cluster.plugins.module_utils import service_paths, units_io
from ansible_collections.plainkube.cluster.plugins.module_utils.checks import decode_answer, encode_query
from ansible_collections.plainkube.cluster.plugins.module_utils.host_reading import ReadError, run_json
from ansible_collections.plainkube.cluster.plugins.module_utils.proxy_rules import Table
from ansible_collections.plainkube.cluster.plugins.module_utils.units import UnitError

PROXY = "kube-proxy.service"
NAME_SECONDS = 2.0


def tables(families: set[str]) -> tuple[dict[str, Table], list[str]]:
    """Return kube-proxy's tables by family, and why one could not be read."""
    found, faults = {}, []
    for family in sorted(families):
        try:
            table = Table(run_json(["nft", "-j", "list", "table", family, "kube-proxy"]) or {})
        except ReadError as error:
            faults.append(f"kube-proxy's rules: {error}")
            continue
        found[family] = table
        if not table.there:
            faults.append(f"kube-proxy's rules: table {family} kube-proxy has none; journalctl -u kube-proxy")
    return found, faults


def proxy_faults() -> list[str]:
    """Return that kube-proxy does not run, if so: its rules are then those of the past."""
    try:
        unit = units_io.show([PROXY])[PROXY]
    except UnitError as error:
        return [f"the state of kube-proxy: {error}"]
    if unit.running:
        return []
    return [f"{PROXY} is {unit.active} ({unit.sub}): its rules are those of the moment when it stopped"]


def routes(addresses: list[str]) -> dict[str, dict[str, str]]:
    """Return which route the kernel takes to each address, or why none."""
    found = {}
    for address in addresses:
        try:
            answer = (run_json(["ip", "-j", "route", "get", "fibmatch", address]) or [{}])[0]
        except ReadError as error:
            found[address] = {"fault": str(error)}
            continue
        found[address] = {key: str(answer[key]) for key in ("dst", "gateway", "dev", "protocol") if key in answer}
    return found


def ask(server: str, name: str) -> dict[str, Any]:
    """Return what a name server says about a name."""
    answer: dict[str, Any] = {"server": server, "name": name, "addresses": [], "code": ""}
    identifier = int.from_bytes(os.urandom(2), "big")
    try:
        with socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_DGRAM) as channel:
            channel.settimeout(NAME_SECONDS)
            channel.connect((server, 53))
            channel.send(encode_query(identifier, name, "A"))
            code, addresses = decode_answer(channel.recv(4096), identifier, "A")
    except TimeoutError:
        return {**answer, "fault": f"no answer within {NAME_SECONDS:g} s"}
    except (OSError, ValueError) as error:
        return {**answer, "fault": str(error)}
    return {**answer, "code": code, "addresses": sorted(addresses)}


def look(options: dict[str, Any]) -> service_paths.Facts:
    """Read all that is wanted of this host."""
    view = options["view"]
    endpoints = [endpoint["address"] for endpoint in view.get("endpoints", ())]
    nodes = {endpoint["node"] for endpoint in view.get("endpoints", ())} - {options["node"]}
    node_addresses = [address for name, address in options["nodes"].items() if name in nodes]
    places = [*endpoints, *view.get("cluster_ips", ())]
    has_rules = not view or bool(view["cluster_ips"])
    rules, faults = tables({service_paths.family(place) for place in places} or {"ip"}) if has_rules else ({}, [])
    name = ".".join([*reversed(options["service"].split("/")), "svc", options["cluster_domain"]])
    return service_paths.Facts(
        tables=rules,
        routes=routes(sorted({*endpoints, *node_addresses})),
        names=[ask(server, name) for server in options["dns_servers"]] if view else [],
        unreadable=[*options["unreadable"], *faults, *(proxy_faults() if has_rules else [])],
    )


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "service": {"type": "str", "required": True},
            "view": {"type": "dict", "default": {}},
            "nodes": {"type": "dict", "default": {}},
            "unreadable": {"type": "list", "elements": "str", "default": []},
            "node": {"type": "str", "required": True},
            "address": {"type": "str", "required": True},
            "dns_servers": {"type": "list", "elements": "str", "default": []},
            "cluster_domain": {"type": "str", "default": "cluster.local"},
            "policies_enforced": {"type": "bool", "default": True},
            "whole": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    options = module.params
    host = service_paths.Host(options["node"], options["address"], options["nodes"])
    facts, view = look(options), options["view"]
    if view:
        found = service_paths.entries(view, host, facts)
        wrong = service_paths.differences(view, found, host, facts)
        if options["whole"]:
            text = service_paths.text(view, found, host, facts, wrong, options["policies_enforced"])
        else:
            text = service_paths.short_text(view, found, host, facts, wrong)
    else:
        namespace, _, name = options["service"].partition("/")
        found, wrong = service_paths.entries_by_name(namespace, name, facts), []
        words = service_paths.text_without_api if options["whole"] else service_paths.short_text_without_api
        text = words(namespace, name, found, host, facts)
    module.exit_json(
        changed=False,
        ways=[asdict(entry) for entry in found],
        routes=facts.routes,
        names=facts.names,
        differences=wrong,
        unreadable=facts.unreadable,
        text=text,
    )


if __name__ == "__main__":
    main()
