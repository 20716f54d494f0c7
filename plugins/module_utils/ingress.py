# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Instances of the ingress controller: what an inventory says of them, what is wrong with it, and what follows.

An instance is one IngressClass, with the hosts and ports on which it is served.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

TRAEFIK, F5_NGINX = "traefik", "nginx"
HTTP_PORT = 80
HTTPS_PORT = 443
PING_PORT = 8082
PORTS = {"http_port": HTTP_PORT, "https_port": HTTPS_PORT, "ping_port": PING_PORT}
# On this name, and nowhere else, every instance answers whether its routes are loaded.
SENTINEL_HOST = "ready.ingress.plainkube.internal"
SENTINEL_PATH = "/ready"
# Names of instances begin names of objects, some of which may have 63 characters.
LONGEST_NAME = 40
NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
CLASS = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")

Instance = Mapping[str, Any]
Host = Mapping[str, str]
# What is wrong: the part of the list of instances, what was found, what was wanted, what to do.
Words = tuple[str, str, str, str]


def with_defaults(controller: str, instances: Sequence[Instance]) -> list[dict[str, Any]]:
    """Return the instances as they are meant: one named after the controller if none is given, all keys filled in."""
    return [
        {
            "class": instance["name"],
            "namespaces": [],
            "hosts": [],
            **PORTS,
            "certificate": "",
            "certificate_key": "",
            "trusted_proxies": [],
            "proxy_protocol": [],
            "gateway": True,
            "ingress_nginx": False,
            "status_address": "",
            **instance,
        }
        for instance in instances or [{"name": controller}]
    ]


def resolved(
    controller: str, instances: Sequence[Instance], default_class: str, ingress_hosts: Sequence[Host]
) -> list[dict[str, Any]]:
    """Return the instances with their hosts as name, address and zone, and whether their class is the default one.

    The class of the only instance is the default unless another is named. No controller has no instances.
    """
    if controller == "none":
        return []
    meant = with_defaults(controller, instances)
    default = default_class or (meant[0]["class"] if len(meant) == 1 else "")
    found = []
    for instance in meant:
        hosts = [host for host in ingress_hosts if not instance["hosts"] or host["name"] in instance["hosts"]]
        found.append(
            {
                **instance,
                "hosts": hosts,
                "host_names": [host["name"] for host in hosts],
                "every_host": len(hosts) == len(ingress_hosts),
                "default": instance["class"] == default,
                "status_address": instance["status_address"] or (hosts[0]["address"] if hosts else ""),
            }
        )
    return found


def listens(controller: str, instances: Sequence[Instance], host: str) -> list[dict[str, Any]]:
    """Return what will listen on a host, in the words of preflight: port, address, process."""
    return [
        {"port": instance[key], "address": "0.0.0.0", "process": controller}
        for instance in instances
        if host in instance["host_names"]
        for key in PORTS
    ]


def requests(instances: Sequence[Instance], host: Host) -> list[dict[str, Any]]:
    """Return the requests that show that a host's instances serve: alive, and with routes, over HTTP and HTTPS."""
    found: list[dict[str, Any]] = []
    for instance in instances:
        if host["name"] not in instance["host_names"]:
            continue
        sentinel = {"status": 302, "host": SENTINEL_HOST}
        found += [
            {"url": _url("http", host, instance["ping_port"], "/ping"), "status": 200},
            {"url": _url("http", host, instance["http_port"], SENTINEL_PATH), **sentinel},
            {"url": _url("https", host, instance["https_port"], SENTINEL_PATH), **sentinel},
        ]
    return found


def _url(scheme: str, host: Host, port: int, path: str) -> str:
    return f"{scheme}://{host['address']}:{port}{path}"


def leftovers(
    classes: Iterable[Mapping[str, Any]], instances: Sequence[Instance], namespace: str, controller: str = TRAEFIK
) -> list[dict[str, Any]]:
    """Return the objects that the API still has of instances that are wanted no more, or not as they were.

    classes: the IngressClasses of ours that the API has; their annotations tell what their instance was. They come
    last, so that a removal that was cut off is gone on with. namespace: where the instances are. controller: whose
    they are.
    """
    wanted = {instance["name"]: instance for instance in instances}
    found: list[dict[str, Any]] = []
    for item in classes:
        metadata = item["metadata"]
        name, ingress_class = metadata["labels"]["app.kubernetes.io/instance"], metadata["name"]
        notes = metadata.get("annotations") or {}
        watched = notes.get("plainkube.io/namespaces", "").split()
        instance = wanted.get(name)
        role = f"plainkube:ingress-{controller}:{name}"
        if instance is None:
            found += [_object(kind, name + suffix, namespace) for kind, suffix in OBJECTS[controller]]
            found.append(_object("ClusterRoleBinding", role))
        elif notes.get("plainkube.io/certificate") == "true" and not instance["certificate"]:
            found.append(_object("Secret", f"{name}-certificate", namespace))
        if notes.get("plainkube.io/gateway") == "true":
            if instance is None or not instance["gateway"]:
                found.append(_object("Gateway", name, namespace))
            if instance is None or not instance["gateway"] or instance["class"] != ingress_class:
                found.append(_object("GatewayClass", ingress_class))
        if not watched and (instance is None or instance["namespaces"]):
            found.append(_object("ClusterRoleBinding", f"{role}:every-namespace"))
        kept = {*instance["namespaces"], *([namespace] if instance["namespaces"] else [])} if instance else set()
        # F5's has a role of its own there.
        bound = [*watched, *([namespace] if controller == TRAEFIK else [])] if watched else []
        found += [_object("RoleBinding", role, place) for place in bound if place not in kept]
        if instance is None or instance["class"] != ingress_class:
            found.append(_object("IngressClass", ingress_class))
    return found


# What an instance has in the namespace of all instances, with what follows its name; what is running goes first.
OBJECTS = {
    TRAEFIK: (
        ("DaemonSet", ""),
        ("Ingress", "-ready"),
        ("PodDisruptionBudget", ""),
        ("Service", ""),
        ("ConfigMap", ""),
        ("Secret", "-certificate"),
        ("ServiceAccount", ""),
    ),
    F5_NGINX: (
        ("DaemonSet", ""),
        ("PodDisruptionBudget", ""),
        ("ConfigMap", ""),
        ("Secret", "-certificate"),
        ("Lease", "-leader"),
        ("RoleBinding", ""),
        ("ServiceAccount", ""),
    ),
}
API_VERSIONS = {
    "ClusterRoleBinding": "rbac.authorization.k8s.io/v1",
    "ConfigMap": "v1",
    "DaemonSet": "apps/v1",
    "Gateway": "gateway.networking.k8s.io/v1",
    "GatewayClass": "gateway.networking.k8s.io/v1",
    "Ingress": "networking.k8s.io/v1",
    "IngressClass": "networking.k8s.io/v1",
    "Lease": "coordination.k8s.io/v1",
    "PodDisruptionBudget": "policy/v1",
    "RoleBinding": "rbac.authorization.k8s.io/v1",
    "Secret": "v1",
    "Service": "v1",
    "ServiceAccount": "v1",
}


def _object(kind: str, name: str, namespace: str = "") -> dict[str, Any]:
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    return {"apiVersion": API_VERSIONS[kind], "kind": kind, "metadata": metadata}


# What is wrong with an inventory's instances


def faults(
    controller: str,
    instances: Sequence[Instance],
    default_class: str,
    ingress_hosts: Sequence[str],
    taken_ports: Mapping[int, str],
) -> Iterator[Words]:
    """Yield everything that is wrong with instances whose keys have the right types.

    taken_ports: ports of nodes that others listen on, and who.
    """
    meant = with_defaults(controller, instances)
    for number, instance in enumerate(meant):
        path = f"[{number}]"
        yield from _name_words(path, instance)
        yield from _host_words(path, instance, ingress_hosts)
        yield from _port_words(path, instance, taken_ports)
        yield from _move_words(path, controller, instance)
        yield from _range_words(path, instance)
        for key in ("certificate", "certificate_key"):
            if instance[key] and not instance[key].startswith("/"):
                remedy = "Begin it with / or with {{ inventory_dir }}/."
                yield f"{path}.{key}", _shown(instance[key]), "the absolute path of a file on the controller", remedy
        if bool(instance["certificate"]) != bool(instance["certificate_key"]):
            given = "certificate" if instance["certificate"] else "certificate_key"
            missing = "certificate_key" if instance["certificate"] else "certificate"
            yield f"{path}.{missing}", f"only {given}", "both files, or neither", f"Name the file of the {missing} too."
    yield from _overlap_words(meant, ingress_hosts)
    classes = sorted({instance["class"] for instance in meant})
    if default_class and controller != "none" and default_class not in classes:
        remedy = "Name one of them, or add an instance with this class."
        wanted = f"the class of an instance: {', '.join(classes)}"
        yield "", f"plainkube_ingress_default_class {_shown(default_class)}", wanted, remedy


def _shown(value: Any) -> str:
    return json.dumps(value, default=str)


def _name_words(path: str, instance: Instance) -> Iterator[Words]:
    name, ingress_class = str(instance["name"]), str(instance["class"])
    if len(name) > LONGEST_NAME or not NAME.fullmatch(name):
        wanted = f"at most {LONGEST_NAME} letters a-z, digits and -, beginning and ending with a letter or digit"
        yield f"{path}.name", _shown(name), wanted, "Objects are named after it: choose a short one."
    # A class that follows from the name is no second fault.
    if ingress_class != name and (len(ingress_class) > 253 or not CLASS.fullmatch(ingress_class)):
        yield (
            f"{path}.class",
            _shown(ingress_class),
            "a DNS name in lower case",
            "Ingresses name it: choose a short one.",
        )
    for namespace in instance["namespaces"]:
        if len(str(namespace)) > 63 or not NAME.fullmatch(str(namespace)):
            yield f"{path}.namespaces", _shown(namespace), "names of namespaces", "Correct it."


def _host_words(path: str, instance: Instance, ingress_hosts: Sequence[str]) -> Iterator[Words]:
    unknown = [str(host) for host in instance["hosts"] if host not in ingress_hosts]
    if unknown:
        wanted = f"hosts of the ingress group: {', '.join(sorted(ingress_hosts)) or 'it has none'}"
        yield f"{path}.hosts", ", ".join(unknown), wanted, "Correct the names, or put the hosts into the group."


def _move_words(path: str, controller: str, instance: Instance) -> Iterator[Words]:
    if instance["ingress_nginx"] and controller != TRAEFIK:
        wanted = "false, or plainkube_ingress: traefik"
        yield f"{path}.ingress_nginx", "true", wanted, "Only Traefik reads the annotations of ingress-nginx."
    elif instance["ingress_nginx"] and len(instance["namespaces"]) > 1:
        found = f"true with the namespaces {', '.join(instance['namespaces'])}"
        wanted = "all namespaces, or one"
        yield f"{path}.ingress_nginx", found, wanted, "Traefik's provider watches no list: make an instance for each."


def _port_words(path: str, instance: Instance, taken_ports: Mapping[int, str]) -> Iterator[Words]:
    seen: dict[int, str] = {}
    for key in PORTS:
        port = instance[key]
        if not 1 <= port <= 65535:
            yield f"{path}.{key}", str(port), "a port from 1 to 65535", "Choose another."
        elif port in seen:
            yield f"{path}.{key}", f"{port}, which is its {seen[port]} too", "a port of its own", "Choose another."
        elif port in taken_ports:
            wanted = f"a port apart from that of {taken_ports[port]}"
            yield f"{path}.{key}", str(port), wanted, "Choose another."
        seen[port] = key


def _range_words(path: str, instance: Instance) -> Iterator[Words]:
    for key in ("trusted_proxies", "proxy_protocol"):
        for value in instance[key]:
            try:
                ipaddress.ip_network(str(value))
            except ValueError:
                wanted = "addresses or networks such as 192.0.2.10 or 192.0.2.0/24"
                yield (
                    f"{path}.{key}",
                    _shown(value),
                    wanted,
                    "Name those of the proxies in front, by which they connect.",
                )
    address = instance["status_address"]
    if address:
        try:
            ipaddress.ip_address(address)
        except ValueError:
            yield f"{path}.status_address", _shown(address), "an IP address", "Name the one that clients connect to."


def _overlap_words(instances: Sequence[Instance], ingress_hosts: Sequence[str]) -> Iterator[Words]:
    names: dict[str, int] = {}
    classes: dict[str, str] = {}
    ports: dict[tuple[str, int], str] = {}
    for number, instance in enumerate(instances):
        path = f"[{number}]"
        name = instance["name"]
        if name in names:
            yield f"{path}.name", f"{_shown(name)} twice", "a name of its own for each instance", "Rename one."
            continue
        names[name] = number
        if instance["class"] in classes:
            found = f"{_shown(instance['class'])}, which {classes[instance['class']]} has too"
            remedy = "Give one of them another class: both would serve the same Ingresses."
            yield f"{path}.class", found, "a class of its own for each instance", remedy
        classes.setdefault(instance["class"], name)
        clashes: dict[tuple[int, str], list[str]] = {}
        for host in instance["hosts"] or ingress_hosts:
            for key in PORTS:
                other = ports.setdefault((host, instance[key]), name)
                if other != name:
                    clashes.setdefault((instance[key], other), []).append(host)
        for (port, other), hosts in clashes.items():
            found = f"port {port} on {', '.join(sorted(hosts))}, which instance {other} has too"
            yield path, found, "ports of its own on each host", "Give one of them other ports or other hosts."
