#!/usr/bin/python3
# Managed by plainkube.cluster, role edge.
# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Keeps haproxy's servers equal to what the cluster says is ready, through haproxy's socket and without a reload.

A backend's servers are slots: each has an address or is empty (maintenance). What is new gets an empty slot, what is
about to end is drained, and what is gone keeps its slot until its last connection has ended. While the API does not
answer, everything stays as it is.
"""

from __future__ import annotations

import argparse
import csv
import http.client
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Lies beside this program.
from api_watch import Api, apply_event, notify

CONFIGURATION = "/etc/plainkube/edge/backends.json"
RETRY_SECONDS = 2.0
# Slots are compared this often, since haproxy may have been restarted, and connections end unannounced.
COMPARE_SECONDS = 2.0
HAPROXY_SECONDS = 5.0
# What is said about one thing that stays as it is, is not said again before.
REPEAT_SECONDS = 600.0
HEAVIEST = 256
# Bits of srv_admin_state: maintenance by command or inherited; drained likewise. 0x04 only notes how the
# configuration began.
MAINTENANCE_BITS = 0x01 | 0x02 | 0x20
DRAIN_BITS = 0x08 | 0x10

INGRESS_LABEL = "node-role.kubernetes.io/ingress"
# The label that cloud load balancers leave a node out for.
EXCLUDE_LABEL = "node.kubernetes.io/exclude-from-external-load-balancers"
SERVICE_LABEL = "kubernetes.io/service-name"

Address = tuple[str, int]
Objects = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Target:
    """What a server shall be: ready, or drain for one that gets no new connections."""

    state: str = "ready"
    weight: int = 1


@dataclass(frozen=True)
class Slot:
    """A server of haproxy as it is: ready, drain or maint."""

    name: str
    address: Address
    state: str
    weight: int
    sessions: int


@dataclass(frozen=True)
class Change:
    """Commands for haproxy's socket that belong together, and what they do, in words."""

    commands: tuple[str, ...]
    words: str


class ClusterAnswerError(ValueError):
    """What the cluster says cannot be turned into servers."""


# What the cluster says


def node_address(node: Mapping[str, Any]) -> str:
    """Return the address that a node is reached at, or nothing while it has none."""
    addresses = node.get("status", {}).get("addresses", [])
    return next((str(item["address"]) for item in addresses if item["type"] == "InternalIP"), "")


def node_takes_traffic(node: Mapping[str, Any]) -> bool:
    """Say whether a node is ready, not on its way out, and not left out by label."""
    metadata = node.get("metadata", {})
    conditions = node.get("status", {}).get("conditions", [])
    ready = any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)
    return ready and not metadata.get("deletionTimestamp") and EXCLUDE_LABEL not in metadata.get("labels", {})


def ingress_targets(nodes: Objects, port: int) -> dict[Address, Target]:
    """Return the ingress hosts as servers; those that are not ready are drained.

    When none is ready, more is wrong than with the hosts: haproxy's own checks decide then, and no host is drained
    that nobody left out on purpose.
    """
    hosts = [
        node for node in nodes.values() if INGRESS_LABEL in node["metadata"].get("labels", {}) and node_address(node)
    ]
    takers = [node for node in hosts if node_takes_traffic(node)]
    if not takers:
        takers = [node for node in hosts if EXCLUDE_LABEL not in node["metadata"].get("labels", {})]
    return {(node_address(node), port): Target("ready" if node in takers else "drain") for node in hosts}


def service_port(service: Mapping[str, Any], wanted: str) -> Mapping[str, Any]:
    """Return the wanted port of a Service, by name or number; empty means its only one. Raises ClusterAnswerError."""
    ports = [port for port in service["spec"].get("ports", []) if port.get("protocol", "TCP") == "TCP"]
    found = [port for port in ports if not wanted or wanted in (port.get("name"), str(port["port"]))]
    if len(found) != 1:
        names = ", ".join(f"{port.get('name', '')} {port['port']}".strip() for port in ports)
        raise ClusterAnswerError(f"port {wanted or '(the only one)'} is not one of the Service's TCP ports: {names}")
    return found[0]


def endpoint_states(slices: Objects) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any], str]]:
    """Yield (slice, endpoint, ready or drain) for all endpoints that do their work.

    When none is ready, those that still serve while they end are taken, as kube-proxy does.
    """
    found = []
    for piece in slices.values():
        for endpoint in piece.get("endpoints") or []:
            conditions = endpoint.get("conditions", {})
            # Nothing said means ready (EndpointSlice API).
            ready = conditions.get("ready") is not False
            serving = ready if conditions.get("serving") is None else bool(conditions["serving"])
            if ready or serving:
                found.append((piece, endpoint, "ready" if ready else "drain"))
    if any(state == "ready" for _, _, state in found):
        yield from found
    else:
        yield from ((piece, endpoint, "ready") for piece, endpoint, _ in found)


def pod_targets(service: Mapping[str, Any], slices: Objects, wanted_port: str) -> dict[Address, Target]:
    """Return the pods of a Service as servers. Raises ClusterAnswerError."""
    name = service_port(service, wanted_port).get("name") or ""
    targets: dict[Address, Target] = {}
    for piece, endpoint, state in endpoint_states(slices):
        number = next((port["port"] for port in piece.get("ports") or [] if (port.get("name") or "") == name), None)
        if number is None:
            continue
        for address in endpoint["addresses"]:
            if targets.get((address, number)) != Target("ready"):
                targets[(address, number)] = Target(state)
    return targets


def node_port_targets(
    service: Mapping[str, Any], slices: Objects, nodes: Objects, wanted_port: str
) -> dict[Address, Target]:
    """Return the nodes that have endpoints of a Service, at its node port, as heavy as they have ready endpoints.

    Raises ClusterAnswerError.
    """
    port = service_port(service, wanted_port).get("nodePort")
    if not port:
        raise ClusterAnswerError(f"a Service of type {service['spec'].get('type')} has no node port")
    ready: dict[Address, int] = {}
    for _, endpoint, state in endpoint_states(slices):
        address = node_address(nodes.get(endpoint.get("nodeName") or "", {}))
        if address:
            ready[(address, port)] = ready.get((address, port), 0) + (state == "ready")
    return {
        address: Target("ready", min(number, HEAVIEST)) if number else Target("drain")
        for address, number in ready.items()
    }


# What haproxy is told


def slot_state(admin_state: int) -> str:
    """Return the administrative state behind the bits that haproxy prints."""
    if admin_state & MAINTENANCE_BITS:
        return "maint"
    return "drain" if admin_state & DRAIN_BITS else "ready"


def read_slots(servers_state: str, statistics: str) -> dict[str, list[Slot]]:
    """Return each backend's slots from the answers to `show servers state` and `show stat -1 4 -1`."""
    rows = csv.DictReader(statistics.lstrip("# ").splitlines())
    sessions = {(row["pxname"], row["svname"]): int(row["scur"] or 0) for row in rows}
    slots: dict[str, list[Slot]] = {}
    columns: list[str] = []
    for line in servers_state.splitlines():
        words = line.split()
        if line.startswith("# "):
            columns = words[1:]
        elif columns and len(words) >= len(columns):
            row = dict(zip(columns, words))
            backend, name = row["be_name"], row["srv_name"]
            slots.setdefault(backend, []).append(
                Slot(
                    name,
                    (row["srv_addr"], int(row["srv_port"])),
                    slot_state(int(row["srv_admin_state"])),
                    int(row["srv_uweight"]),
                    sessions.get((backend, name), 0),
                )
            )
    return slots


def saved_state(servers_state: str) -> str:
    """Return the answer to `show servers state` as haproxy reads it without a warning for each server.

    It writes a port for agent checks down even where there are none, and complains about it when it reads it.
    """
    lines, columns = [], []
    for line in servers_state.splitlines():
        words = line.split()
        if line.startswith("# "):
            columns = words[1:]
        elif columns and len(words) == len(columns) and "srv_agent_port" in columns:
            words[columns.index("srv_agent_port")] = "0"
            line = " ".join(words)
        lines.append(line)
    return "\n".join(lines) + "\n"


def shown(address: Address) -> str:
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"


def make_changes(
    backend: str, slots: Sequence[Slot], targets: Mapping[Address, Target]
) -> tuple[list[Change], list[Address]]:
    """Return what leads from the slots to the targets, and the addresses that no slot is left for."""
    changes: list[Change] = []
    placed: dict[Address, Slot] = {}
    free = []
    # Of several slots with one address the one that is in use stays.
    for slot in sorted(slots, key=lambda slot: (slot.state == "maint", -slot.sessions)):
        target = targets.get(slot.address)
        if target and slot.address not in placed and not (slot.state == "maint" and target.state == "drain"):
            placed[slot.address] = slot
            changes += _to_target(backend, slot, target)
        elif slot.state != "maint" and slot.sessions:
            if slot.state == "ready":
                words = f"{shown(slot.address)} is gone, {slot.sessions} connections are left to end"
                changes.append(Change((f"set server {backend}/{slot.name} state drain",), words))
        elif slot.state != "maint":
            words = f"{shown(slot.address)} is gone"
            changes.append(Change((f"set server {backend}/{slot.name} state maint",), words))
            free.append(slot)
        else:
            free.append(slot)

    missing = [address for address in sorted(targets) if address not in placed and targets[address].state == "ready"]
    # Connections of a slot's former life must not meet its new one: those without any come first.
    free.sort(key=lambda slot: (slot.sessions, slot.state != "maint"))
    for address, slot in zip(missing, free):
        server, weight = f"set server {backend}/{slot.name}", targets[address].weight
        commands = (
            f"{server} addr {address[0]} port {address[1]}",
            f"{server} weight {weight}",
            f"{server} state ready",
        )
        changes.append(Change(commands, f"{shown(address)} is new, in {slot.name}"))
    return changes, missing[len(free) :]


def _to_target(backend: str, slot: Slot, target: Target) -> Iterator[Change]:
    server = f"set server {backend}/{slot.name}"
    if slot.weight != target.weight and target.state == "ready":
        yield Change((f"{server} weight {target.weight}",), f"{shown(slot.address)} has weight {target.weight}")
    if slot.state != target.state:
        words = {"ready": "takes connections", "drain": "gets no new connections"}[target.state]
        yield Change((f"{server} state {target.state}",), f"{shown(slot.address)} {words}")


class HAProxy:
    """haproxy's socket."""

    def __init__(self, path: str) -> None:
        self.path = path

    def ask(self, command: str) -> str:
        """Return the answer to a command. Raises OSError."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
            channel.settimeout(HAPROXY_SECONDS)
            channel.connect(self.path)
            channel.sendall(command.encode() + b"\n")
            answer = b""
            while part := channel.recv(65536):
                answer += part
        return answer.decode("utf-8", "replace").strip()

    def slots(self) -> dict[str, list[Slot]]:
        return read_slots(self.ask("show servers state"), self.ask("show stat -1 4 -1"))

    def frontends(self) -> set[str]:
        rows = csv.DictReader(self.ask("show stat -1 1 -1").lstrip("# ").splitlines())
        return {row["pxname"] for row in rows}

    def change(self, change: Change) -> None:
        """Carry out a change. Raises OSError with haproxy's own words when it refuses."""
        for command in change.commands:
            answer = self.ask(command)
            # Success is silent, but for a new address, which is confirmed.
            if answer and " addr " not in command:
                raise OSError(f"haproxy answers to '{command}': {answer}")
            if answer and "changed from" not in answer and "no need to change" not in answer:
                raise OSError(f"haproxy answers to '{command}': {answer}")

    def save(self, path: str) -> None:
        """Keep the state of all servers for haproxy's next start or reload."""
        text = self.ask("show servers state")
        if "# be_id" in text:
            write(path, saved_state(text))


# The API


class Collection:
    """All objects that one path of the API lists; None until it was read for the first time."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.items: dict[str, dict[str, Any]] | None = None
        self.fault = ""
        # Whose turn it is to be asked: a server that fails is followed by the next.
        self.turn = 0

    def follow(self, api: Api, news: threading.Event) -> None:
        """Keep the objects current for ever. While the API does not answer, what is known stays."""
        while True:
            try:
                self._once(api, news)
                self.fault = ""
            except (OSError, http.client.HTTPException, ValueError) as error:
                if not self.fault:
                    say(f"{error}; servers stay as they are, trying again every {RETRY_SECONDS:g} s")
                self.fault = str(error) or type(error).__name__
                self.turn += 1
                time.sleep(RETRY_SECONDS)

    def _once(self, api: Api, news: threading.Event) -> None:
        items, version = api.collection(self.path, self.turn)
        self._take(items, news)
        while True:
            for event in api.changes(self.path, version, self.turn):
                latest = apply_event(items, event)
                if latest is None:
                    return
                version = latest
                self._take(items, news)

    def _take(self, items: dict[str, dict[str, Any]], news: threading.Event) -> None:
        # A copy, since the main thread reads it meanwhile.
        latest = dict(items)
        if self.fault:
            say(f"the API answers again for {self.path.rstrip('?&')}")
            self.fault = ""
        if latest != self.items:
            self.items = latest
            news.set()


class Backend:
    """One backend of haproxy, and the objects of the cluster that its servers follow from."""

    def __init__(self, definition: Mapping[str, Any], collections: dict[str, Collection]) -> None:
        def collection(path: str) -> Collection:
            return collections.setdefault(path, Collection(path))

        self.name: str = definition["name"]
        self.definition = definition
        self.services = self.slices = None
        self.nodes = None
        if definition["backends"] == "cluster_ingress":
            self.nodes = collection(f"/api/v1/nodes?labelSelector={INGRESS_LABEL}&")
        else:
            namespace, name = definition["namespace"], definition["service"]
            self.services = collection(f"/api/v1/namespaces/{namespace}/services?fieldSelector=metadata.name%3D{name}&")
            self.slices = collection(
                f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices?"
                f"labelSelector={SERVICE_LABEL}%3D{name}&"
            )
            if definition["reach"] == "nodes":
                self.nodes = collection("/api/v1/nodes?")

    def targets(self) -> dict[Address, Target] | None:
        """Return the servers that there shall be, None while that is not known. Raises ClusterAnswerError."""
        parts = [part for part in (self.services, self.slices, self.nodes) if part]
        known = [part.items for part in parts]
        if any(items is None for items in known):
            return None
        nodes = (self.nodes.items if self.nodes else None) or {}
        if not (self.services and self.slices):
            return ingress_targets(nodes, self.definition["port"])
        service = (self.services.items or {}).get(self.definition["service"])
        if service is None:
            raise ClusterAnswerError("there is no such Service any more")
        port = self.definition["port"]
        if self.definition["reach"] == "nodes":
            return node_port_targets(service, self.slices.items or {}, nodes, port)
        return pod_targets(service, self.slices.items or {}, port)


class Keeper:
    """Keeps the servers of all backends."""

    def __init__(self, configuration: Mapping[str, Any]) -> None:
        self.collections: dict[str, Collection] = {}
        self.backends = [Backend(definition, self.collections) for definition in configuration["backends"]]
        self.haproxy = HAProxy(configuration["socket"])
        self.state_file: str = configuration["state_file"]
        self.status_file: str = configuration["status_file"]
        self.said: dict[str, tuple[str, float]] = {}
        self.status: dict[str, Any] = {}

    def reconcile(self) -> bool:
        """Make the slots of all backends equal to what is known; return whether all was known.

        Raises OSError when haproxy does not answer.
        """
        complete, touched = True, False
        slots = self.haproxy.slots()
        for backend in self.backends:
            try:
                targets = backend.targets()
            except ClusterAnswerError as error:
                self.complain(backend.name, f"{error}; its servers stay as they are")
                continue
            if targets is None:
                complete = False
                continue
            changes, left_over = make_changes(backend.name, slots.get(backend.name, []), targets)
            for change in changes:
                self.haproxy.change(change)
                say(f"{backend.name}: {change.words}")
            touched = touched or bool(changes)
            left = ", ".join(shown(address) for address in left_over)
            fault = f"no slot is left for {left}: raise the number of slots of this service" if left else ""
            self.complain(backend.name, fault)
        if touched:
            self.haproxy.save(self.state_file)
            slots = self.haproxy.slots()
        self.write_status(slots)
        return complete

    def complain(self, about: str, words: str) -> None:
        """Say what is wrong, and say it again only after a while or when it is something else."""
        before, when = self.said.get(about, ("", 0.0))
        now = time.monotonic()
        if words and (words != before or now - when > REPEAT_SECONDS):
            say(f"{about}: {words}")
            when = now
        self.said[about] = (words, when)

    def write_status(self, slots: Mapping[str, Sequence[Slot]]) -> None:
        status = {
            "faults": sorted({part.fault for part in self.collections.values() if part.fault}),
            "backends": {
                backend.name: {
                    "servers": {
                        shown(slot.address): slot.state for slot in slots.get(backend.name, []) if slot.state != "maint"
                    },
                    "free_slots": sum(slot.state == "maint" for slot in slots.get(backend.name, [])),
                    "fault": self.said.get(backend.name, ("", 0.0))[0],
                }
                for backend in self.backends
            },
        }
        if status != self.status:
            write(self.status_file, json.dumps({"changed": int(time.time()), **status}, indent=2) + "\n", 0o644)
            self.status = status

    def run(self, api: Api) -> None:
        """Keep the servers for ever."""
        news = threading.Event()
        for collection in self.collections.values():
            threading.Thread(target=collection.follow, args=(api, news), daemon=True).start()
        while True:
            try:
                news.clear()
                if self.reconcile():
                    notify("READY=1")
                self.complain("haproxy", "")
            except OSError as error:
                self.complain("haproxy", f"{error}; trying again every {COMPARE_SECONDS:g} s")
            notify("WATCHDOG=1")
            news.wait(COMPARE_SECONDS)


def say(words: str) -> None:
    print(words, flush=True)


def write(path: str, text: str, mode: int = 0o600) -> None:
    """Replace a file as a whole."""
    temporary = path + ".new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        os.fchmod(stream.fileno(), mode)
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    Path(temporary).rename(path)


def answer_for_services(haproxy: HAProxy, services: Sequence[str]) -> str:
    """Return what keeps haproxy from passing traffic on as its configuration says, or nothing."""
    try:
        missing = sorted(set(services) - haproxy.frontends())
    except OSError as error:
        return f"haproxy does not answer: {error}"
    return f"haproxy runs without {', '.join(missing)}: its last reload failed" if missing else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configuration", default=CONFIGURATION, help="file that says what to keep")
    parser.add_argument("--save", action="store_true", help="only keep the state of haproxy's servers, for a reload")
    parser.add_argument("--ask", action="store_true", help="only ask haproxy whether it does its work")
    options = parser.parse_args()
    configuration = json.loads(Path(options.configuration).read_text(encoding="utf-8"))
    keeper = Keeper(configuration)
    if options.save:
        keeper.haproxy.save(keeper.state_file)
    elif options.ask:
        fault = answer_for_services(keeper.haproxy, configuration["services"])
        say(fault or "haproxy passes traffic on")
        sys.exit(1 if fault else 0)
    else:
        keeper.run(Api(configuration["servers"], *(configuration[name] for name in ("ca", "certificate", "key"))))


if __name__ == "__main__":
    main()
