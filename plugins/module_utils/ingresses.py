# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is the matter with a cluster's Ingresses, and what of them Traefik would not serve as their controller does.

Pure: no I/O. What is looked for is described in data/ingress-rules.yml, each under the name of its function here; what
Traefik makes of annotations is in data/ingress-annotations.yml.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any

from ansible_collections.plainkube.cluster.plugins.module_utils.audits import SEVERITIES, Audit, Finding, Rule

Object = dict[str, Any]
Key = tuple[str, str]

NGINX = "nginx.ingress.kubernetes.io/"
F5 = ("nginx.org/", "nginx.com/")
TRAEFIK = "traefik.ingress.kubernetes.io/"
CLASS_ANNOTATION = "kubernetes.io/ingress.class"
DEFAULT_CLASS_ANNOTATION = "ingressclass.kubernetes.io/is-default-class"
# Controllers as IngressClasses name them, and what each is called here.
CONTROLLERS = (
    (re.compile(r"k8s\.io/.*nginx"), "ingress-nginx"),
    (re.compile(r"nginx\.org/.*"), "f5-nginx"),
    (re.compile(r"traefik\.io/.*"), "traefik"),
)
# Classes that the old annotation may name without there being an IngressClass.
NAMES_WITHOUT_CLASS = {"nginx": "ingress-nginx", "traefik": "traefik"}
IMAGE = re.compile(
    r"(?:^|/)(?:ingress-nginx[/-]controller|nginx-ingress-controller)(?:-chroot)?(?::(?P<tag>[^@]+))?(?:@|$)"
)
# What Traefik's provider (as ingress-nginx) lets pass in a path that is not ImplementationSpecific.
STRICT_PATH = re.compile(r"/[A-Za-z0-9._\-/]*")
# What may follow a directive's name in a snippet.
DIRECTIVE = re.compile(r"(?:^|[;{}])\s*([a-z_0-9]+)(?=[\s;{])")
SNIPPET_COMMENT = re.compile(r"^\s*#.*$", flags=re.MULTILINE)
# Worst first: what becomes of an Ingress when it is moved as it is.
CHANGE, CHECK, READY = "change", "check", "ready"
VERDICTS = (CHANGE, CHECK, READY)


@dataclass(frozen=True)
class Certificate:
    """What a TLS secret holds, without the key. fault is why nothing can be said of it."""

    names: tuple[str, ...] = ()
    not_after: datetime | None = None
    fault: str = ""


@dataclass
class Found:
    """What was read of a cluster. secrets and certificates are None when nobody was to read them."""

    ingresses: list[Object] = field(default_factory=list)
    classes: dict[str, Object] = field(default_factory=dict)
    # By namespace and name.
    services: dict[Key, Object] = field(default_factory=dict)
    secrets: set[Key] | None = None
    certificates: dict[Key, Certificate] | None = None
    controllers: list[Object] = field(default_factory=list)


@dataclass(frozen=True)
class Circumstances:
    """What an Ingress is judged by."""

    found: Found
    annotations: Mapping[str, Any]
    now: datetime
    expiry: timedelta
    allow_snippets: bool
    allow_cross_namespace: bool
    # Host, path and type to the Ingresses that have them, canaries aside, by controller.
    places: Mapping[tuple[str, str, str, str], list[Key]]


@dataclass(frozen=True)
class Ingress:
    """One Ingress as checks see it."""

    namespace: str
    name: str
    annotations: Mapping[str, str]
    spec: Mapping[str, Any]
    # Empty when it names none.
    class_name: str
    # ingress-nginx, f5-nginx, traefik, the controller's own name, or nothing when its class is unknown.
    controller: str

    @property
    def nginx(self) -> dict[str, str]:
        """The annotations of ingress-nginx, without what they all begin with."""
        return {key[len(NGINX) :]: value for key, value in self.annotations.items() if key.startswith(NGINX)}

    @property
    def moves(self) -> bool:
        """Whether Traefik's provider for ingress-nginx would take it over."""
        return self.controller == "ingress-nginx" or (not self.controller and bool(self.nginx))

    @property
    def hosts(self) -> list[str]:
        """The hosts of its rules, each once."""
        return list(dict.fromkeys(rule.get("host", "") for rule in self.spec.get("rules") or ()))

    @property
    def is_canary(self) -> bool:
        """Whether it adds to another Ingress with the same paths."""
        return self.nginx.get("canary", "").lower() == "true"

    def paths(self) -> Iterator[tuple[str, Object]]:
        """Yield every path with its host."""
        for rule in self.spec.get("rules") or ():
            for path in (rule.get("http") or {}).get("paths") or ():
                yield rule.get("host", ""), path

    def backends(self) -> Iterator[Object]:
        """Yield every backend that is a Service."""
        backends = [path["backend"] for _host, path in self.paths()]
        if self.spec.get("defaultBackend"):
            backends.append(self.spec["defaultBackend"])
        yield from (backend["service"] for backend in backends if backend.get("service"))


Check = Callable[[Ingress, Circumstances], "list[str]"]
CHECKS: dict[str, Check] = {}


def check(function: Check) -> Check:
    """Make a function known as the check of a rule, which has the same name with hyphens."""
    CHECKS[function.__name__.replace("_", "-")] = function
    return function


# --- Who serves it ----------------------------------------------------------------------------------------------------


def ingress_of(thing: Mapping[str, Any], classes: Mapping[str, Object]) -> Ingress:
    """Return an Ingress as checks see it."""
    metadata, spec = thing["metadata"], thing["spec"]
    annotations = metadata.get("annotations") or {}
    name = spec.get("ingressClassName") or annotations.get(CLASS_ANNOTATION, "")
    if name in classes:
        controller = controller_of(classes[name])
    else:
        controller = NAMES_WITHOUT_CLASS.get(name, "") if not spec.get("ingressClassName") else ""
    return Ingress(metadata["namespace"], metadata["name"], annotations, spec, name, controller)


def controller_of(ingress_class: Mapping[str, Any]) -> str:
    """Return which controller an IngressClass is for."""
    named = str((ingress_class.get("spec") or {}).get("controller", ""))
    return next((name for pattern, name in CONTROLLERS if pattern.fullmatch(named)), named)


def default_classes(classes: Mapping[str, Object]) -> list[str]:
    """Return the names of the IngressClasses that are marked as the default."""
    return sorted(
        name
        for name, thing in classes.items()
        if (thing["metadata"].get("annotations") or {}).get(DEFAULT_CLASS_ANNOTATION) == "true"
    )


@check
def class_unknown(ingress: Ingress, given: Circumstances) -> list[str]:
    if not ingress.class_name or ingress.class_name in given.found.classes or ingress.controller:
        return []
    there = ", ".join(sorted(given.found.classes)) or "none"
    return [f"{ingress.class_name} (there is {there})"]


@check
def class_missing(ingress: Ingress, given: Circumstances) -> list[str]:
    if ingress.class_name:
        return []
    defaults = default_classes(given.found.classes)
    return [f"new ones get {defaults[0]} by default" if len(defaults) == 1 else "there is no default class either"]


@check
def class_annotation(ingress: Ingress, _given: Circumstances) -> list[str]:
    old = ingress.annotations.get(CLASS_ANNOTATION)
    if old is None:
        return []
    new = ingress.spec.get("ingressClassName")
    return [f"{old}, while spec.ingressClassName is {new}" if new and new != old else old]


# --- What it leads to -------------------------------------------------------------------------------------------------


@check
def service_missing(ingress: Ingress, given: Circumstances) -> list[str]:
    parts = []
    for backend in ingress.backends():
        service = given.found.services.get((ingress.namespace, backend["name"]))
        port = backend.get("port") or {}
        wanted = port.get("name") or port.get("number")
        if service is None:
            parts.append(f"Service {backend['name']}")
        elif not service["external"] and wanted is not None and wanted not in service["ports"]:
            there = ", ".join(str(number) for number in service["ports"]) or "none"
            parts.append(f"port {wanted} of Service {backend['name']} (it has {there})")
    return once(parts)


def secrets_named(ingress: Ingress) -> Iterator[tuple[str, Key]]:
    """Yield the secrets of tls entries, each with the words for it."""
    for entry in ingress.spec.get("tls") or ():
        if entry.get("secretName"):
            yield entry["secretName"], (ingress.namespace, entry["secretName"])


@check
def secret_missing(ingress: Ingress, given: Circumstances) -> list[str]:
    if given.found.secrets is None:
        return []
    return once(words for words, key in secrets_named(ingress) if key not in given.found.secrets)


def certificates_named(ingress: Ingress, given: Circumstances) -> Iterator[tuple[str, list[str], Certificate]]:
    """Yield secret, hosts and certificate of each tls entry whose secret was read."""
    for entry in ingress.spec.get("tls") or ():
        held = (given.found.certificates or {}).get((ingress.namespace, entry.get("secretName", "")))
        if held is not None:
            yield entry["secretName"], list(entry.get("hosts") or ()), held


@check
def certificate_not_valid(ingress: Ingress, given: Circumstances) -> list[str]:
    return once(f"{name}: {held.fault}" for name, _hosts, held in certificates_named(ingress, given) if held.fault)


@check
def certificate_expired(ingress: Ingress, given: Circumstances) -> list[str]:
    return once(
        f"{name} (since {held.not_after:%Y-%m-%d})"
        for name, _hosts, held in certificates_named(ingress, given)
        if held.not_after and held.not_after <= given.now
    )


@check
def certificate_expires(ingress: Ingress, given: Circumstances) -> list[str]:
    return once(
        f"{name} (on {held.not_after:%Y-%m-%d})"
        for name, _hosts, held in certificates_named(ingress, given)
        if held.not_after and given.now < held.not_after <= given.now + given.expiry
    )


@check
def certificate_for_other_hosts(ingress: Ingress, given: Circumstances) -> list[str]:
    return once(
        f"{host}: {name} is for {', '.join(held.names) or 'no host'}"
        for name, hosts, held in certificates_named(ingress, given)
        for host in hosts
        if not held.fault and not any(covers(pattern, host) for pattern in held.names)
    )


def covers(pattern: str, host: str) -> bool:
    """Return whether a name of a certificate is for a host; a wildcard stands for one label."""
    pattern, host = pattern.lower(), host.lower()
    return pattern == host or (pattern.startswith("*.") and host.partition(".")[2] == pattern[2:])


@check
def host_and_path_twice(ingress: Ingress, given: Circumstances) -> list[str]:
    if ingress.is_canary:
        return []
    own = (ingress.namespace, ingress.name)
    return once(
        f"{host or '*'}{path.get('path', '')}: also {'/'.join(other)}"
        for host, path in ingress.paths()
        for other in given.places.get(place(ingress, host, path), ())
        if other != own
    )


def place(ingress: Ingress, host: str, path: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Return what only one Ingress of a controller may have."""
    controller = ingress.controller or ingress.class_name
    return controller, host, path.get("path", ""), path.get("pathType", "")


# --- What Traefik makes of it -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Meaning:
    """What Traefik makes of one annotation of ingress-nginx."""

    # honoured, partly, ignored, snippet or unknown
    support: str
    words: str = ""
    protects: bool = False


def meaning_of(name: str, value: str, annotations: Mapping[str, Any]) -> Meaning:
    """Return what Traefik makes of an annotation nginx.ingress.kubernetes.io/name with this value."""
    row = annotations["nginx"].get(name)
    if row is None:
        return Meaning("unknown")
    protects = row.get("protects", False)
    if "only" in row:
        if value.strip().lower() in row["only"]:
            return Meaning("honoured")
        return Meaning("ignored", f"{value.strip()}: {row['instead']}", protects)
    return Meaning(row["traefik"], row.get("differs") or row.get("instead", ""), protects)


def meanings(ingress: Ingress, given: Circumstances) -> dict[str, Meaning]:
    """Return what Traefik makes of each annotation of ingress-nginx on an Ingress that would move."""
    if not ingress.moves:
        return {}
    return {name: meaning_of(name, value, given.annotations) for name, value in sorted(ingress.nginx.items())}


@check
def protection_lost(ingress: Ingress, given: Circumstances) -> list[str]:
    return [
        f"{name} ({meaning.words})"
        for name, meaning in meanings(ingress, given).items()
        if meaning.protects and meaning.support in ("ignored", "partly")
    ]


@check
def annotation_ignored(ingress: Ingress, given: Circumstances) -> list[str]:
    return [
        f"{name} ({meaning.words})"
        for name, meaning in meanings(ingress, given).items()
        if meaning.support == "ignored" and not meaning.protects
    ]


@check
def annotation_differs(ingress: Ingress, given: Circumstances) -> list[str]:
    return [
        f"{name} ({meaning.words})"
        for name, meaning in meanings(ingress, given).items()
        if meaning.support == "partly" and not meaning.protects
    ]


@check
def annotation_unknown(ingress: Ingress, given: Circumstances) -> list[str]:
    unknown = [NGINX + name for name, meaning in meanings(ingress, given).items() if meaning.support == "unknown"]
    if ingress.controller == "traefik":
        unknown += [
            key
            for key in sorted(ingress.annotations)
            if key.startswith(TRAEFIK) and not is_of_traefik(key[len(TRAEFIK) :], given.annotations)
        ]
    return unknown


def is_of_traefik(name: str, annotations: Mapping[str, Any]) -> bool:
    """Return whether Traefik knows its own annotation of this name on an Ingress."""
    return any(
        name.startswith(known) if known.endswith(".") else name == known for known in annotations["traefik_ingress"]
    )


@check
def annotation_of_another_controller(ingress: Ingress, _given: Circumstances) -> list[str]:
    foreign: tuple[str, ...] = ()
    if ingress.controller == "traefik":
        foreign = (NGINX, *F5)
    elif ingress.controller == "f5-nginx":
        foreign = (NGINX, TRAEFIK)
    elif ingress.moves:
        foreign = (TRAEFIK, *F5)
    return sorted(key for key in ingress.annotations if key.startswith(foreign)) if foreign else []


@check
def annotation_of_f5(ingress: Ingress, _given: Circumstances) -> list[str]:
    return sorted(key for key in ingress.annotations if ingress.controller == "f5-nginx" and key.startswith(F5))


@check
def snippet(ingress: Ingress, given: Circumstances) -> list[str]:
    parts = []
    for name, meaning in meanings(ingress, given).items():
        if meaning.support == "snippet" and ingress.nginx[name].strip():
            known = set(given.annotations["snippet_directives"])
            strange = [word for word in directives_in(ingress.nginx[name]) if word not in known]
            words = f"Traefik does not know {', '.join(strange)}" if strange else "Traefik knows its directives"
            parts.append(f"{name} ({words})")
    parts += [
        key for key in sorted(ingress.annotations) if key.startswith(F5) and key.endswith(("-snippets", "-snippet"))
    ]
    return parts


def directives_in(text: str) -> list[str]:
    """Return the directives that a snippet uses, each once."""
    return once(DIRECTIVE.findall(SNIPPET_COMMENT.sub("", text)))


@check
def left_out(ingress: Ingress, given: Circumstances) -> list[str]:
    """Reasons for which Traefik's provider skips an Ingress, in the order in which it looks for them."""
    if not ingress.moves:
        return []
    parts = []
    snippets = [name for name, meaning in meanings(ingress, given).items() if meaning.support == "snippet"]
    if not given.allow_snippets and any(ingress.nginx[name].strip() for name in snippets):
        parts.append(f"{', '.join(snippets)}: the provider does not allow snippets")
    parts += [
        f"path {path['path']}: no regular expression with pathType {path['pathType']}; use ImplementationSpecific"
        for _host, path in ingress.paths()
        if path.get("path")
        and path.get("pathType") != "ImplementationSpecific"
        and not STRICT_PATH.fullmatch(path["path"])
    ]
    parts += _canary_faults(ingress, given)
    for annotation, relation in _secret_annotations(ingress):
        parts += _secret_faults(annotation, relation, ingress, given)
    if "auth-type" in ingress.nginx and ingress.nginx["auth-type"] not in ("basic", "digest"):
        parts.append(f"auth-type {ingress.nginx['auth-type']}: wanted basic or digest")
    return once(parts)


def _canary_faults(ingress: Ingress, given: Circumstances) -> list[str]:
    if not ingress.is_canary:
        return []
    return [
        f"{host or '*'}{path.get('path', '')}: a canary of no other Ingress in its namespace"
        for host, path in ingress.paths()
        if not any(space == ingress.namespace for space, _name in given.places.get(place(ingress, host, path), ()))
    ]


def _secret_annotations(ingress: Ingress) -> Iterator[tuple[str, bool]]:
    """Yield the annotations with secrets that must be there, and whether the namespace must be said."""
    if "auth-type" in ingress.nginx:
        yield "auth-secret", False
    if "auth-tls-secret" in ingress.nginx:
        yield "auth-tls-secret", True
    if ingress.nginx.get("backend-protocol", "").upper() in ("HTTPS", "GRPCS") and ingress.nginx.get(
        "proxy-ssl-secret"
    ):
        yield "proxy-ssl-secret", True


def _secret_faults(annotation: str, with_namespace: bool, ingress: Ingress, given: Circumstances) -> list[str]:
    value = ingress.nginx.get(annotation, "")
    first, slash, second = value.partition("/")
    if not value or (with_namespace and not (first and second)) or "/" in second:
        return [f"{annotation} {value!r}: wanted {'namespace/name' if with_namespace else 'the name of a secret'}"]
    key = (first, second) if slash else (ingress.namespace, first)
    if key[0] != ingress.namespace and not given.allow_cross_namespace:
        return [f"{annotation} {value}: the provider does not allow secrets of other namespaces"]
    if given.found.secrets is not None and key not in given.found.secrets:
        return [f"{annotation} {value}: there is no such secret"]
    return []


# --- The whole --------------------------------------------------------------------------------------------------------


def rules_of(entries: Iterable[Mapping[str, Any]]) -> dict[str, Rule]:
    """Return the rules by name, as reports know them."""
    return {entry["id"]: Rule(**{**entry, "kinds": tuple(entry["kinds"])}) for entry in entries}


def circumstances(
    found: Found,
    annotations: Mapping[str, Any],
    now: datetime,
    *,
    expiry_days: int = 21,
    allow_snippets: bool = False,
    allow_cross_namespace: bool = False,
) -> Circumstances:
    """Return what all Ingresses are judged by."""
    places: dict[tuple[str, str, str, str], list[Key]] = {}
    for thing in found.ingresses:
        ingress = ingress_of(thing, found.classes)
        if not ingress.is_canary:
            for host, path in ingress.paths():
                places.setdefault(place(ingress, host, path), []).append((ingress.namespace, ingress.name))
    expiry = timedelta(days=expiry_days)
    return Circumstances(found, annotations, now, expiry, allow_snippets, allow_cross_namespace, places)


def look(given: Circumstances, rules: Mapping[str, Rule], namespaces: Iterable[str] = ()) -> tuple[Audit, list[Object]]:
    """Return what was found, and a row for each Ingress.

    namespaces: patterns of those that are looked at, all by default.
    """
    patterns = list(namespaces)
    audit = Audit(checked=dict.fromkeys(rules, 0))
    rows = []

    def note(rule: str, kind: str, namespace: str, name: str, parts: list[str]) -> None:
        audit.checked[rule] += 1
        if parts:
            audit.findings.append(Finding(rule, rules[rule].severity, kind, namespace, name, parts))

    for thing in given.found.ingresses:
        ingress = ingress_of(thing, given.found.classes)
        if patterns and not any(fnmatchcase(ingress.namespace, pattern) for pattern in patterns):
            continue
        before = len(audit.findings)
        for rule, function in CHECKS.items():
            note(rule, "Ingress", ingress.namespace, ingress.name, function(ingress, given))
        rows.append(row_of(ingress, given, audit.findings[before:]))
    defaults = default_classes(given.found.classes)
    for name in sorted(given.found.classes):
        others = [other for other in defaults if other != name]
        note(
            "class-defaults",
            "IngressClass",
            "",
            name,
            [f"beside {', '.join(others)}"] if name in defaults and others else [],
        )
    for running in given.found.controllers:
        note(
            "ingress-nginx-runs",
            running["kind"],
            running["namespace"],
            running["name"],
            [f"version {running['version']}"],
        )
    audit.findings.sort(key=lambda item: (SEVERITIES.index(item.severity), item.rule, item.namespace, item.name))
    rows.sort(key=lambda row: (row["namespace"], row["name"]))
    return audit, rows


def row_of(ingress: Ingress, given: Circumstances, findings: Iterable[Finding]) -> Object:
    """Return one Ingress as the list of all has it."""
    by_support: dict[str, list[str]] = {}
    for name, meaning in meanings(ingress, given).items():
        by_support.setdefault(meaning.support, []).append(name)
    severities = [finding.severity for finding in findings]
    verdict = READY if not severities else CHECK if set(severities) == {"low"} else CHANGE
    return {
        "namespace": ingress.namespace,
        "name": ingress.name,
        "class": ingress.class_name,
        "controller": ingress.controller,
        "hosts": ingress.hosts,
        "verdict": verdict,
        "annotations": dict(sorted(by_support.items())),
        "findings": once(finding.rule for finding in findings),
    }


def summary_of(rows: Iterable[Mapping[str, Any]], controllers: Iterable[Mapping[str, Any]]) -> Object:
    """Return how many Ingresses there are, by what becomes of them and by controller."""
    verdicts = dict.fromkeys(VERDICTS, 0)
    by_controller: dict[str, int] = {}
    for row in rows:
        verdicts[row["verdict"]] += 1
        name = row["controller"] or "unknown"
        by_controller[name] = by_controller.get(name, 0) + 1
    return {
        "ingresses": sum(verdicts.values()),
        **verdicts,
        "by_controller": dict(sorted(by_controller.items())),
        "ingress_nginx": [f"{item['namespace']}/{item['name']} {item['version']}" for item in controllers],
    }


def service_kept(thing: Mapping[str, Any]) -> Object:
    """Return what is kept of a Service: its ports by number and by name."""
    ports = thing["spec"].get("ports") or ()
    names: list[Any] = [port["port"] for port in ports]
    names += [port["name"] for port in ports if port.get("name")]
    return {"external": thing["spec"].get("type") == "ExternalName", "ports": names}


def controller_in(kind: str, thing: Mapping[str, Any]) -> Object | None:
    """Return the ingress-nginx controller that a Deployment or DaemonSet runs, if it does."""
    for container in thing["spec"]["template"]["spec"].get("containers") or ():
        match = IMAGE.search(container.get("image", ""))
        if match:
            metadata = thing["metadata"]
            version = match["tag"] or "unknown"
            return {"kind": kind, "namespace": metadata["namespace"], "name": metadata["name"], "version": version}
    return None


def once(parts: Iterable[str]) -> list[str]:
    """Return texts in order, each once."""
    return list(dict.fromkeys(parts))
