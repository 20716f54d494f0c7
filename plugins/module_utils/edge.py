# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Services of the edge: what is wrong with their definitions, and their definitions with everything filled in."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Service = Mapping[str, Any]
Words = tuple[str, str, str]

# haproxy and the metrics that this collection lets it show.
METRICS_PORT = 8404
# Traefik's own answer to "are you well": it says no before its other ports close.
PING_PORT = 8082
PING_PATH = "/ping"
# haproxy's own bounds; a server that weighs nothing gets no new requests, and keeps its connections.
WEIGHTS = range(257)
EVERY_ADDRESS = ("0.0.0.0", "::")
CERTIFICATES = "/etc/haproxy/certificates"
API_CHECK = "/readyz"

NAME = re.compile(r"[a-z]([a-z0-9-]{0,40}[a-z0-9])?")
SERVICE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?/[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
# What the names of frontends and servers that haproxy has anyway would clash with.
RESERVED_NAMES = ("metrics",)
DYNAMIC = ("cluster_ingress", "cluster_service")
INVENTORY_LISTS = {
    "cluster_ingress": "ingress",
    "inventory_ingress": "ingress",
    "inventory_control_plane": "control_plane",
}
OF_INGRESS = ("cluster_ingress", "inventory_ingress")
PORTS = range(1, 65536)


def completed(service: Service, api_port: int) -> dict[str, Any]:
    """Return a service with all that follows from what it says."""
    kind = service["kind"]
    is_api = kind == "api"
    certificates = service.get("certificates") or []
    backends = service.get("backends") or ("inventory_control_plane" if is_api else "cluster_ingress")
    port = service.get("port") or (api_port if is_api else 0)
    namespace, _, name = str(service.get("service") or "").partition("/")
    pings = backends in OF_INGRESS
    address = service.get("address") or EVERY_ADDRESS[0]
    return {
        "name": service["name"],
        "kind": kind,
        "mode": "http" if kind == "http" else "tcp",
        "address": address,
        "port": port,
        "listener": {"address": address, "port": port, "process": "haproxy"},
        "certificates": [
            {**pair, "path": f"{CERTIFICATES}/{service['name']}-{number}.pem"}
            for number, pair in enumerate(certificates, start=1)
        ],
        "backends": backends,
        "dynamic": backends in DYNAMIC,
        "backend_port": service.get("backend_port") or (api_port if is_api else 80 if kind == "http" else port),
        "addresses": list(service.get("addresses") or []),
        "shares": list(service.get("shares") or []),
        "namespace": namespace,
        "service": name,
        "service_port": str(service.get("service_port") or ""),
        "reach": service.get("reach") or "nodes",
        "slots": service.get("slots") or 16,
        # Pods close idle connections when they end, and behind a node port haproxy does not see which one it has.
        "reuse_connections": bool(service.get("reuse_connections", backends != "cluster_service")),
        "proxy_protocol": bool(service.get("proxy_protocol")),
        "trusted_forwarders": list(service.get("trusted_forwarders") or []),
        "check_port": service.get("check_port") or (PING_PORT if pings else 0),
        "check_path": service.get("check_path") or (API_CHECK if is_api else PING_PATH if pings else ""),
        "balance": service.get("balance") or "leastconn",
    }


def services(
    given: Sequence[Service], topology: Mapping[str, Sequence[Mapping[str, str]]], api_port: int
) -> list[dict[str, Any]]:
    """Return all services completed, with the servers that the inventory names.

    A service that follows the cluster's ingress hosts begins with those.
    """
    return [
        {**service, "servers": list(_servers(service, topology)), "watched": watched(service)}
        for service in (completed(item, api_port) for item in given)
    ]


def _servers(service: Service, topology: Mapping[str, Sequence[Mapping[str, str]]]) -> Iterator[dict[str, Any]]:
    port = service["backend_port"]
    for host in topology.get(INVENTORY_LISTS.get(service["backends"], ""), ()):
        yield {"name": host["name"], "address": host["address"], "port": port}
    if service["backends"] == "addresses":
        # A share says its weight; without shares all servers weigh the same.
        for number, server in enumerate(
            [*({"address": to} for to in service["addresses"]), *service["shares"]], start=1
        ):
            yield {"port": port, **server, "name": f"server{number}"}


def watched(service: Service) -> dict[str, Any]:
    """Return what the unit edge-backends has to know about a service whose servers it keeps."""
    keys = ("name", "backends", "namespace", "service", "reach")
    port = service["backend_port"] if service["backends"] == "cluster_ingress" else service["service_port"]
    return {**{key: service[key] for key in keys}, "port": port}


# Faults of the inventory


def service_faults(given: Sequence[Service]) -> Iterator[Words]:
    """Yield what was found, what was wanted and what to do, for services of the right types."""
    seen: dict[str, int] = {}
    for item in given:
        name = str(item["name"])
        seen[name] = seen.get(name, 0) + 1
        for found, wanted, remedy in _one_service_faults(item):
            yield f"service {name}: {found}", wanted, remedy
    for name, number in seen.items():
        if number > 1:
            yield f"{number} services called {name}", "a name of its own for each", "Rename all but one."


def _one_service_faults(item: Service) -> Iterator[Words]:
    kind, backends = item["kind"], item.get("backends")
    if not NAME.fullmatch(str(item["name"])) or item["name"] in RESERVED_NAMES:
        wanted = "at most 42 letters a-z, digits and -, beginning with a letter, and not metrics"
        yield "this name", wanted, "haproxy's frontend and backend are called so: choose a short one."
    for key in ("port", "backend_port", "check_port"):
        if key in item and item[key] not in PORTS:
            yield f"{key} {item[key]}", "a port from 1 to 65535", "Correct it."
    if "port" not in item and kind != "api":
        yield "no port", "the port that the edge listens at", "Add port."
    if item.get("port") == METRICS_PORT:
        yield f"port {METRICS_PORT}", "another one, since haproxy shows its metrics there", "Choose another port."
    yield from _network_words(item)
    if item.get("certificates") and kind != "http":
        remedy = "Set kind: http to end TLS here, or leave certificates out to pass TLS through."
        yield f"certificates with kind {kind}", "them with kind http alone", remedy
    if item.get("trusted_forwarders") and kind != "http":
        remedy = "Set kind: http, or leave trusted_forwarders out."
        yield f"trusted_forwarders with kind {kind}", "them with kind http alone", remedy
    if kind == "api" and (backends not in (None, "inventory_control_plane") or item.get("proxy_protocol")):
        remedy = "Leave backends and proxy_protocol out, or make it a service of kind tcp."
        yield "an API service with backends of its own", "the control plane as it is", remedy
    yield from _backend_words(item, kind, backends)
    if not 1 <= int(item.get("slots", 1)) <= 1000:
        yield f"slots {item['slots']}", "from 1 to 1000", "It is the largest number of servers at one time."
    if "check_path" in item and not re.fullmatch(r"/[!-~]*", str(item["check_path"])):
        yield f"check_path {item['check_path']}", "a path that begins with / and has no spaces", "Correct it."


def _network_words(item: Service) -> Iterator[Words]:
    for key in ("address", "addresses"):
        values = item.get(key) or []
        for value in [values] if isinstance(values, str) else values:
            if not _is_address(value):
                yield f"{key} {value}", "IP addresses", "Correct it; a port belongs into a key of its own."
    for value in item.get("trusted_forwarders") or []:
        try:
            ipaddress.ip_network(str(value))
        except ValueError:
            yield f"trusted_forwarders {value}", "networks such as 192.0.2.0/24", "Correct it."


def _backend_words(item: Service, kind: str, backends: str | None) -> Iterator[Words]:
    listed = [key for key in ("addresses", "shares") if item.get(key)]
    if backends == "addresses" and len(listed) != 1:
        found = " and ".join(listed) or "no addresses"
        yield f"backends addresses with {found}", "either addresses or shares", "List each backend in one of them."
    elif backends != "addresses":
        for key in listed:
            yield f"{key} that nothing reads", "backends: addresses with them", f"Add it, or take the {key} out."
    yield from _share_words(item.get("shares") or [])
    if backends == "cluster_service":
        if not SERVICE.fullmatch(str(item.get("service", ""))):
            found = f"service {item['service']}" if item.get("service") else "no service"
            yield found, "a Service as namespace/name", "Name the Service that traffic goes to."
        if "backend_port" in item:
            yield "backend_port with backends cluster_service", "service_port", "Name a port of the Service there."
    else:
        for key in ("service", "service_port", "reach"):
            if item.get(key):
                yield f"{key} that nothing reads", "backends: cluster_service with it", f"Add it, or take {key} out."
        if kind == "tcp" and "port" not in item and "backend_port" not in item:
            yield "no backend_port", "the port of the backends", "Add backend_port."


def _share_words(shares: Sequence[Mapping[str, Any]]) -> Iterator[Words]:
    for share in shares:
        address = share["address"]
        if not _is_address(address):
            yield f"shares with address {address}", "IP addresses", "Correct it; a port belongs into a key of its own."
        if int(share["weight"]) not in WEIGHTS:
            yield f"weight {share['weight']} of {address}", "a weight from 0 to 256", "Correct it."
        if "port" in share and share["port"] not in PORTS:
            yield f"port {share['port']} of {address}", "a port from 1 to 65535", "Correct it."
    if shares and not any(int(share["weight"]) for share in shares):
        yield (
            "shares that weigh nothing at all",
            "at least one weight above 0",
            "Nobody would get a request: raise one.",
        )


def _is_address(value: Any) -> bool:
    try:
        ipaddress.ip_address(str(value))
    except ValueError:
        return False
    return True


def overlap_faults(complete: Sequence[Service]) -> Iterator[Words]:
    """Yield what two services would fight for."""
    for number, one in enumerate(complete):
        for other in complete[number + 1 :]:
            if one["port"] and one["port"] == other["port"] and addresses_meet(one["address"], other["address"]):
                found = (
                    f"services {one['name']} and {other['name']} at {one['address']} and {other['address']} "
                    f"port {one['port']}"
                )
                yield found, "each port at each address once", "Give one of them another port or address."


def addresses_meet(one: str, other: str) -> bool:
    return one == other or one in EVERY_ADDRESS or other in EVERY_ADDRESS


def empty_faults(complete: Sequence[Service], topology: Mapping[str, Sequence[Mapping[str, str]]]) -> Iterator[Words]:
    """Yield services whose backends the inventory does not have."""
    for service in complete:
        if service["backends"] in OF_INGRESS and not topology.get("ingress"):
            yield (
                f"service {service['name']}: backends {service['backends']}, and no host in the ingress group",
                "at least one ingress host",
                "Put nodes into the ingress group, or choose other backends.",
            )


# Faults of the cluster


def cluster_faults(complete: Sequence[Service], found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return what the cluster lacks for the services. found: Services of the API by namespace/name."""
    faults = []
    for service in complete:
        if service["backends"] != "cluster_service":
            continue
        key = f"{service['namespace']}/{service['service']}"
        if key not in found:
            faults.append(
                f"{service['name']}: found no Service {key} in the cluster; wanted the one that its traffic goes to. "
                "Create it, correct its name, or take this service out of plainkube_edge_services until it is there."
            )
            continue
        faults += [f"{service['name']}: {words}" for words in _port_words(service, key, found[key])]
    return faults


def _port_words(service: Service, key: str, there: Mapping[str, Any]) -> Iterator[str]:
    wanted = service["service_port"]
    ports = [port for port in there["spec"].get("ports") or [] if port.get("protocol", "TCP") == "TCP"]
    shown = ", ".join(f"{port.get('name', '')} {port['port']}".strip() for port in ports) or "none"
    fitting = [port for port in ports if not wanted or wanted in (port.get("name"), str(port["port"]))]
    if len(fitting) != 1:
        yield (
            f"Service {key} has the TCP ports {shown}; wanted {'port ' + wanted if wanted else 'one port'}. "
            "Name one of them in service_port."
        )
    elif service["reach"] == "nodes" and not fitting[0].get("nodePort"):
        yield (
            f"Service {key} is of type {there['spec'].get('type', 'ClusterIP')} and has no node port; wanted one, "
            "since reach is nodes. Make it a Service of type NodePort, or set reach: pods if the edge has a route "
            "to the pod network."
        )
