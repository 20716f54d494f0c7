# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Tenants documents: their faults in words, what they mean, and the objects that they ask for. Pure functions."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError
from ansible_collections.plainkube.cluster.plugins.module_utils.quantities import (
    QuantityError,
    format_quantity,
    parse_quantity,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.tenants_schema import SCHEMA

try:
    import yaml
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import ValidationError

    HAS_JSONSCHEMA = True
except ImportError:
    HAS_JSONSCHEMA = False

Object = dict[str, Any]
Amounts = Mapping[str, Fraction]

FIELD_MANAGER = "plainkube-tenants"
TENANT_LABEL = "plainkube.io/tenant"
MANAGED_LABELS = {"app.kubernetes.io/managed-by": "plainkube"}
# On a namespace: which kinds beside quotas and LimitRanges it was given, so that they are looked for when they go.
KINDS_ANNOTATION = "plainkube.io/tenant-kinds"
# On a namespace: it was made for a tenant, and may be deleted when a person says so.
MADE_ANNOTATION = "plainkube.io/made-for-tenant"
# A pod that carries this label has a PodDisruptionBudget of its own.
OWN_BUDGET_LABEL = "plainkube.io/own-disruption-budget"
POD_SECURITY = "pod-security.kubernetes.io/"
LIMIT_RANGE_NAME = "tenant-limits"
POLICY_NAME = "default-deny"
BUDGET_NAME = "tenant-default"
SYSTEM_NAMESPACES = frozenset({"kube-system", "kube-public", "kube-node-lease"})

# A quota's cpu and requests.cpu are one and the same.
ALIASES = {
    "cpu": "requests.cpu",
    "memory": "requests.memory",
    "ephemeral-storage": "requests.ephemeral-storage",
}
COUNTED = frozenset(
    {
        "pods",
        "services",
        "replicationcontrollers",
        "resourcequotas",
        "secrets",
        "configmaps",
        "persistentvolumeclaims",
        "services.nodeports",
        "services.loadbalancers",
    }
)
MEASURED = frozenset(
    {
        "requests.storage",
        *ALIASES,
        *ALIASES.values(),
        "limits.cpu",
        "limits.memory",
        "limits.ephemeral-storage",
    }
)
# What quotas for some pods only may limit.
OF_PODS = frozenset({"pods", "cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"})
OPPOSITES = (("Terminating", "NotTerminating"), ("BestEffort", "NotBestEffort"))
LIMIT_TYPES = {"container": "Container", "pod": "Pod", "volume_claim": "PersistentVolumeClaim"}
LIMIT_FIELDS = {
    "min": "min",
    "max": "max",
    "default": "default",
    "default_request": "defaultRequest",
    "max_limit_request_ratio": "maxLimitRequestRatio",
}
GUARANTEED = ("cpu", "memory")
LIMITED = re.compile(r"cpu|memory|ephemeral-storage|hugepages-.+|[^/]+/[^/]+")


class DocumentError(PlainkubeError):
    """A tenants document has faults: the message has one line for each."""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a document, in words for the person who mends it."""

    path: str
    found: str
    wanted: str
    remedy: str = ""
    line: int = 0

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        return f"{where}{self.path}: found {self.found}; wanted {self.wanted}." + (
            f" {self.remedy}" if self.remedy else ""
        )


@dataclass(frozen=True)
class Quota:
    """A ResourceQuota of a profile; hard in the API's spelling."""

    name: str
    hard: Mapping[str, str]
    scopes: tuple[str, ...] = ()
    priority_classes: tuple[str, ...] = ()

    @property
    def is_for_all_pods(self) -> bool:
        """Whether it has neither scopes nor PriorityClasses."""
        return not self.scopes and not self.priority_classes


@dataclass(frozen=True)
class Profile:
    """What a namespace gets. limits are the items of the LimitRange as the API stores them."""

    name: str
    quotas: tuple[Quota, ...]
    limits: tuple[Mapping[str, Any], ...]
    disruption_budget: Mapping[str, Any]
    default_deny: tuple[str, ...]
    pod_security: Mapping[str, str]
    service_account_token: bool


@dataclass(frozen=True)
class Entry:
    """A namespace of a tenant: by name, or all with these labels."""

    name: str
    labels: Mapping[str, str]
    profile: str
    path: str


@dataclass(frozen=True)
class Tenant:
    """A tenant of a document."""

    name: str
    budget: Amounts
    create_namespaces: bool
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Document:
    """A document without faults."""

    tenants: Mapping[str, Tenant]
    profiles: Mapping[str, Profile]
    reserve: Amounts
    overcommit: Mapping[str, Fraction]


@dataclass(frozen=True)
class Member:
    """One namespace of one tenant, with its profile; path says where the document has it."""

    tenant: str
    namespace: str
    profile: Profile
    path: str


# Reading


def read_document(text: str, source: str) -> Any:
    """Return the data of a document's text. Raises DocumentError when it is no YAML or has a key twice."""
    try:
        node = yaml.compose(text, Loader=_loader())
    except yaml.YAMLError as error:
        raise DocumentError(f"{source} is no YAML: {' '.join(str(error).split())}") from error
    twice = [] if node is None else list(_keys_twice(node, ""))
    if twice:
        raise DocumentError(message(twice, source))
    return yaml.load(text, Loader=_loader())


def _loader() -> Any:
    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _keys_twice(node: Any, path: str) -> Iterator[Fault]:
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen:
                remedy = "Join the two, or rename one: YAML would silently keep the last."
                yield Fault(_joined(path, name), f"the key twice (first in line {seen[name]})", "it once", remedy, line)
            seen.setdefault(name, line)
            yield from _keys_twice(value, _joined(path, name))
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield from _keys_twice(value, f"{path}[{number}]")


def with_lines(faults: Iterable[Fault], text: str) -> list[Fault]:
    """Return the faults with their lines in the document's text, in its order."""
    lines: dict[str, int] = {}
    node = yaml.compose(text, Loader=_loader())
    if node is not None:
        _collect_lines(node, "", lines)
    found = [Fault(fault.path, fault.found, fault.wanted, fault.remedy, _line(fault.path, lines)) for fault in faults]
    return sorted(found, key=lambda fault: fault.line)


def _line(path: str, lines: Mapping[str, int]) -> int:
    """Return the line of a path, or of the nearest thing around it that is there."""
    while path and path not in lines:
        path = re.sub(r"(\.[^.\[]+|\[[^\]]*\]|^[^.\[]+)$", "", path)
    return lines.get(path, 0)


def _collect_lines(node: Any, path: str, lines: dict[str, int]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = _joined(path, str(key.value))
            lines[inner] = key.start_mark.line + 1
            _collect_lines(value, inner, lines)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            lines[f"{path}[{number}]"] = value.start_mark.line + 1
            _collect_lines(value, f"{path}[{number}]", lines)


def message(faults: Sequence[Any], source: str) -> str:
    """Return what is said of a document with faults."""
    count = "one fault" if len(faults) == 1 else f"{len(faults)} faults"
    return "\n".join([f"{source} has {count}; nothing was written.", *(f"- {fault}" for fault in faults)])


def _joined(path: str, name: Any) -> str:
    """Return the path of a key; names with dots or slashes stand in brackets."""
    text = str(name)
    if re.fullmatch(r"[A-Za-z0-9_-]+", text):
        return f"{path}.{text}" if path else text
    return f"{path}[{text}]"


def _path(parts: Iterable[Any]) -> str:
    path = ""
    for part in parts:
        path = f"{path}[{part}]" if isinstance(part, int) else _joined(path, part)
    return path


# Faults


def faults_of(document: Any) -> list[Fault]:
    """Return all faults that a document shows by itself: of its shape, and of its meaning where its shape is right."""
    errors = list(_validator().iter_errors(document))
    shape = [fault for error in errors for fault in _shape_faults(error)]
    if not isinstance(document, dict):
        return shape
    sound = _without_faulty_parts(document, errors)
    meaning: list[Fault] = []
    profiles = {
        name: _profile(name, raw, meaning) for name, raw in sound.get("profiles", {}).items() if isinstance(raw, dict)
    }
    _amounts(sound.get("reserve"), "reserve", meaning)
    tenants = {
        name: _tenant(name, raw, set(document.get("profiles") or ()), meaning)
        for name, raw in sound.get("tenants", {}).items()
    }
    named, double = members(tenants.values(), profiles, None)
    return [*shape, *meaning, *double, *(budget_faults(tenants, named) if not shape else ())]


@lru_cache(maxsize=1)
def _validator() -> Draft202012Validator:
    return Draft202012Validator(SCHEMA)


def _shape_faults(error: ValidationError) -> Iterator[Fault]:
    """Yield what one error of the schema means."""
    parts = list(error.absolute_path)
    path = _path(parts) or "the document"
    wanted = str(error.schema.get("description", "another value"))
    value = error.instance
    if error.validator == "additionalProperties":
        known = list(error.schema["properties"])
        for name in value:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
                remedy = f"Rename it to {near[0]}." if near else "Remove it."
                yield Fault(
                    _path([*parts, str(name)]), "a key that nothing reads", "one of " + ", ".join(known), remedy
                )
    elif error.validator == "required":
        missing = [name for name in error.validator_value if name not in value]
        for name in missing:
            inner = error.schema.get("properties", {}).get(name, {})
            described = inner.get("description", name)
            if f"{name!r} is a required property" == error.message:
                yield Fault(_path([*parts, name]), "nothing", described, "Add it.")
    elif error.validator in ("minProperties", "minItems"):
        yield Fault(path, "nothing in it", wanted, "Fill it, or leave it out.")
    elif "propertyNames" in error.absolute_schema_path:
        yield Fault(_path([*parts, value]), f"the name {_shown(value)}", wanted, "Rename it.")
    elif error.validator == "enum":
        yield Fault(path, _shown(value), "one of " + ", ".join(error.validator_value))
    else:
        yield Fault(path, _shown(value), wanted)


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return str(value).lower() if isinstance(value, bool) else repr(value) if isinstance(value, str) else str(value)


def _without_faulty_parts(document: Mapping[str, Any], errors: Iterable[ValidationError]) -> dict[str, Any]:
    """Return a copy without what the schema refuses, so that the rest can be looked at for its meaning."""
    sound = copy.deepcopy(dict(document))
    for error in sorted(errors, key=lambda error: [str(part) for part in error.absolute_path], reverse=True):
        if error.validator == "additionalProperties":
            continue
        parts = list(error.absolute_path)
        if "propertyNames" in error.absolute_schema_path:
            parts.append(error.instance)
        place: Any = sound
        try:
            for part in parts[:-1]:
                place = place[part]
            if isinstance(place, list):
                place[parts[-1]] = None
            elif parts:
                place.pop(parts[-1], None)
        except (KeyError, IndexError, TypeError):
            continue
    return {key: value for key, value in sound.items() if isinstance(value, dict)}


def _amount(value: Any, path: str, faults: list[Fault], whole: bool = False) -> Fraction:
    """Return a quantity of the document; what is none becomes a fault and counts as nothing."""
    try:
        amount = parse_quantity(value)
    except QuantityError as error:
        faults.append(Fault(path, repr(value), str(error).partition("; wanted ")[2]))
        return Fraction(0)
    if amount < 0:
        faults.append(Fault(path, str(value), "at least 0"))
    elif whole and amount.denominator != 1:
        faults.append(Fault(path, str(value), "a whole number", "Objects are counted."))
    return amount


def _amounts(raw: Any, path: str, faults: list[Fault]) -> dict[str, Fraction]:
    return {
        name: _amount(value, _joined(path, name), faults, name in COUNTED or name.startswith("count/"))
        for name, value in (raw or {}).items()
    }


def _quota_resource_fault(name: str, path: str) -> Iterator[Fault]:
    if "/" in name or name in COUNTED or name in MEASURED or name.removeprefix("requests.").startswith("hugepages-"):
        return
    known = sorted(COUNTED | MEASURED)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    remedy = f"Did you mean {near[0]}?" if near else "Objects of any kind are counted as count/<resource>.<group>."
    yield Fault(path, f"the resource {name!r}", "a resource that quotas know", remedy)


def _canonical(raw: Mapping[str, Any], amounts: Amounts) -> dict[str, str]:
    return {name: format_quantity(amounts[name], raw[name]) for name in raw}


def _profile(name: str, raw: Mapping[str, Any], faults: list[Fault]) -> Profile:
    path = _path(["profiles", name])
    quotas = tuple(
        _quota(quota, f"{path}.quotas.{title}", title, faults) for title, quota in (raw.get("quotas") or {}).items()
    )
    guaranteed = bool(raw.get("guaranteed"))
    limits = _limits(raw.get("limit_range") or {}, f"{path}.limit_range", guaranteed, faults)
    faults += _fit_faults(path, quotas, limits)
    return Profile(
        name=name,
        quotas=quotas,
        limits=limits,
        disruption_budget={
            {"max_unavailable": "maxUnavailable", "min_available": "minAvailable"}[key]: value
            for key, value in (raw.get("disruption_budget") or {}).items()
        },
        default_deny=tuple(sorted(side.capitalize() for side in raw.get("default_deny") or () if side)),
        pod_security=dict(raw.get("pod_security") or {}),
        service_account_token=raw.get("service_account_token") is not False,
    )


def _quota(raw: Mapping[str, Any], path: str, name: str, faults: list[Fault]) -> Quota:
    hard = raw.get("hard") or {}
    for resource in hard:
        faults += _quota_resource_fault(resource, _joined(f"{path}.hard", resource))
    amounts = _amounts(hard, f"{path}.hard", faults)
    for short, long in ALIASES.items():
        if short in hard and long in hard and amounts[short] != amounts[long]:
            found = f"{short} {hard[short]} and {long} {hard[long]}"
            faults.append(Fault(f"{path}.hard", found, "one of the two, since they mean the same"))
    scopes = tuple(scope for scope in raw.get("scopes") or () if scope)
    classes = tuple(entry for entry in raw.get("priority_classes") or () if entry)
    for one, other in OPPOSITES:
        if one in scopes and other in scopes:
            faults.append(Fault(f"{path}.scopes", f"{one} and {other}", "one of the two: no pod is both"))
    if scopes or classes:
        allowed = frozenset({"pods"}) if "BestEffort" in scopes else OF_PODS
        wrong = sorted(set(hard) - allowed)
        if wrong:
            words = "BestEffort" if "BestEffort" in scopes else ", ".join([*scopes, *classes])
            wanted = f"only {', '.join(sorted(allowed))} in a quota for {words}"
            faults.append(Fault(f"{path}.hard", ", ".join(wrong), wanted, "Give the others a quota without scopes."))
    return Quota(name, _canonical(hard, amounts), scopes, classes)


def _limits(raw: Mapping[str, Any], path: str, guaranteed: bool, faults: list[Fault]) -> tuple[Mapping[str, Any], ...]:
    """Return the items of a LimitRange as the API stores them, defaults of the API included."""
    items = []
    parts = {key: value for key, value in raw.items() if isinstance(value, dict)}
    if guaranteed:
        parts = {"container": {}, **parts}
    for kind, fields in parts.items():
        inner = f"{path}.{kind}"
        written = {field: dict(values or {}) for field, values in fields.items()}
        if guaranteed and kind == "container":
            _demand_guaranteed(written, inner, faults)
        amounts = {field: _amounts(values, f"{inner}.{field}", faults) for field, values in written.items()}
        for field, values in amounts.items():
            for name in values:
                known = name == "storage" if kind == "volume_claim" else LIMITED.fullmatch(name)
                if not known:
                    wanted = "storage" if kind == "volume_claim" else "cpu, memory, ephemeral-storage or a device"
                    faults.append(Fault(_joined(f"{inner}.{field}", name), f"the resource {name!r}", wanted))
        if kind == "container":
            _default(written, amounts)
        faults += _limit_faults(inner, written, amounts)
        item = {
            LIMIT_FIELDS[field]: _canonical(written[field], amounts[field])
            for field in LIMIT_FIELDS
            if written.get(field)
        }
        items.append({"type": LIMIT_TYPES[kind], **item})
    return tuple(items)


def _demand_guaranteed(written: dict[str, dict[str, Any]], path: str, faults: list[Fault]) -> None:
    """Let limits equal requests for cpu and memory."""
    ratios = written.setdefault("max_limit_request_ratio", {})
    for name in GUARANTEED:
        given = ratios.setdefault(name, "1")
        if str(given) != "1":
            found = f"{given} in a guaranteed profile"
            faults.append(Fault(f"{path}.max_limit_request_ratio.{name}", found, "1, or nothing"))
        default, request = written.get("default", {}).get(name), written.get("default_request", {}).get(name)
        if default is None and request is not None:
            written.setdefault("default", {})[name] = request


def _default(written: dict[str, dict[str, Any]], amounts: dict[str, dict[str, Fraction]]) -> None:
    """Fill in what the API would: limits from max, requests from limits or from min."""
    for target, sources in (("default", ("max",)), ("default_request", ("default", "min"))):
        for source in sources:
            for name, value in written.get(source, {}).items():
                if name not in written.get(target, {}):
                    written.setdefault(target, {})[name] = value
                    amounts.setdefault(target, {})[name] = amounts[source][name]


def _limit_faults(path: str, written: Mapping[str, Any], amounts: Mapping[str, Amounts]) -> Iterator[Fault]:
    """Yield where min <= default_request <= default <= max does not hold, and ratios that cannot be."""
    order = [field for field in ("min", "default_request", "default", "max") if field in amounts]
    for name in dict.fromkeys(name for field in order for name in amounts[field]):
        having = [field for field in order if name in amounts[field]]
        for lower, upper in zip(having, having[1:]):
            if amounts[lower][name] > amounts[upper][name]:
                found = f"{lower} {written[lower][name]} above {upper} {written[upper][name]}"
                yield Fault(_joined(f"{path}.{lower}", name), found, "min <= default_request <= default <= max")
    for name, ratio in amounts.get("max_limit_request_ratio", {}).items():
        inner = _joined(f"{path}.max_limit_request_ratio", name)
        if ratio < 1:
            yield Fault(
                inner, str(written["max_limit_request_ratio"][name]), "at least 1: a limit is never below its request"
            )
        least, most = amounts.get("min", {}).get(name), amounts.get("max", {}).get(name)
        if least and most and most / least < ratio:
            found = f"{written['max_limit_request_ratio'][name]}, more than max / min allow"
            yield Fault(inner, found, f"at most {format_quantity(most / least)}")
        limit, request = amounts.get("default", {}).get(name), amounts.get("default_request", {}).get(name)
        if limit and request and limit / request > ratio >= 1:
            found = f"default {written['default'][name]} over default_request {written['default_request'][name]}"
            yield Fault(inner, found, f"at most {written['max_limit_request_ratio'][name]} times the request")


def _fit_faults(path: str, quotas: Sequence[Quota], limits: Sequence[Mapping[str, Any]]) -> Iterator[Fault]:
    """Yield where not even one container as the LimitRange makes it fits into the quotas for all pods."""
    fields = {"defaultRequest": "requests", "default": "limits", "min": "requests"}
    for quota in (quota for quota in quotas if quota.is_for_all_pods):
        hard = {ALIASES.get(name, name): value for name, value in quota.hard.items()}
        for item in limits:
            kind = next(key for key, value in LIMIT_TYPES.items() if value == item["type"])
            for field, side in fields.items():
                for name, value in item.get(field, {}).items():
                    wanted = hard.get(f"{side}.{name}")
                    if wanted is not None and parse_quantity(value) > parse_quantity(wanted):
                        word = next(key for key, api in LIMIT_FIELDS.items() if api == field)
                        found = f"{value}, above the quota {quota.name} for the whole namespace"
                        remedy = "Not one pod would fit."
                        yield Fault(
                            _joined(f"{path}.limit_range.{kind}.{word}", name), found, f"at most {wanted}", remedy
                        )


def _tenant(name: str, raw: Mapping[str, Any], profiles: set[str], faults: list[Fault]) -> Tenant:
    path = _path(["tenants", name])
    entries = []
    for number, item in enumerate(raw.get("namespaces") or ()):
        if item is None:
            continue
        inner = f"{path}.namespaces[{number}]"
        entry: Mapping[str, Any] = {"name": item} if isinstance(item, str) else item
        if ("name" in entry) == ("labels" in entry):
            found = "both name and labels" if "name" in entry else "neither name nor labels"
            faults.append(Fault(inner, found, "one of the two"))
            continue
        profile = entry.get("profile", raw.get("profile"))
        if profile is None:
            remedy = f"Set profile here or for the whole tenant ({path}.profile)."
            faults.append(Fault(f"{inner}.profile", "nothing", "the profile of these namespaces", remedy))
            continue
        if profile not in profiles:
            near = difflib.get_close_matches(profile, profiles, n=1, cutoff=0.6)
            remedy = f"Did you mean {near[0]}?" if near else ""
            where = f"{inner}.profile" if "profile" in entry else f"{path}.profile"
            fault = Fault(
                where,
                f"the profile {profile!r}, which there is not",
                "one of " + (", ".join(sorted(profiles)) or "profiles"),
                remedy,
            )
            if fault not in faults:
                faults.append(fault)
        if entry.get("name") in SYSTEM_NAMESPACES:
            faults.append(Fault(inner, entry["name"], "a namespace of a tenant", "This one is the cluster's own."))
        entries.append(Entry(entry.get("name", ""), entry.get("labels", {}), profile, inner))
    budget = _amounts(raw.get("budget"), f"{path}.budget", faults)
    for resource in budget:
        faults += _quota_resource_fault(resource, _joined(f"{path}.budget", resource))
    return Tenant(
        name,
        {ALIASES.get(key, key): value for key, value in budget.items()},
        bool(raw.get("create_namespaces")),
        tuple(entries),
    )


# Meaning


def document_of(raw: Mapping[str, Any]) -> Document:
    """Return the meaning of a document without faults."""
    none: list[Fault] = []
    profiles = {name: _profile(name, profile, none) for name, profile in raw.get("profiles", {}).items()}
    tenants = {name: _tenant(name, tenant, set(profiles), none) for name, tenant in raw["tenants"].items()}
    overcommit = {ALIASES.get(name, name): parse_quantity(value) for name, value in raw.get("overcommit", {}).items()}
    return Document(tenants, profiles, _amounts(raw.get("reserve"), "reserve", none), overcommit)


def members(
    tenants: Iterable[Tenant], profiles: Mapping[str, Profile], live: Mapping[str, Mapping[str, str]] | None
) -> tuple[list[Member], list[Fault]]:
    """Return the namespaces of all tenants, and those that are in two places as faults.

    live has the labels of the cluster's namespaces by name; without it, entries by label stand for none.
    """
    found: dict[str, tuple[str, Entry]] = {}
    faults = []
    for tenant in tenants:
        for entry in tenant.entries:
            for name in [entry.name] if entry.name else _labelled(entry.labels, live or {}):
                if name in found:
                    other, first = found[name]
                    where = f"{first.path} of {'the same tenant' if other == tenant.name else 'tenant ' + other}"
                    found_words = f"namespace {name}, which {where} has too"
                    faults.append(Fault(entry.path, found_words, "it once", "Take it out of one of them."))
                else:
                    found[name] = (tenant.name, entry)
    known = [
        Member(tenant_name, name, profiles[entry.profile], entry.path)
        for name, (tenant_name, entry) in found.items()
        if entry.profile in profiles
    ]
    return known, faults


def _labelled(labels: Mapping[str, str], live: Mapping[str, Mapping[str, str]]) -> list[str]:
    return [
        name
        for name, carried in live.items()
        if name not in SYSTEM_NAMESPACES and all(carried.get(key) == value for key, value in labels.items())
    ]


# Shares and budgets


def share(quotas: Iterable[tuple[Sequence[str], bool, Mapping[str, str]]]) -> dict[str, Fraction]:
    """Return what quotas of one namespace allow together, by resource.

    Each is given as scopes, whether it is for some PriorityClasses only, and hard. A quota for all pods caps a
    resource, and a pair for terminating and other pods adds up to a cap; the smallest counts.
    """
    caps: dict[str, Fraction] = {}
    halves: dict[str, dict[str, Fraction]] = {}
    for scopes, some_classes, hard in quotas:
        amounts = {ALIASES.get(name, name): parse_quantity(value) for name, value in hard.items()}
        if not scopes and not some_classes:
            for name, value in amounts.items():
                caps[name] = min(value, caps.get(name, value))
        elif len(scopes) == 1 and not some_classes and scopes[0] in OPPOSITES[0]:
            for name, value in amounts.items():
                half = halves.setdefault(name, {})
                half[scopes[0]] = min(value, half.get(scopes[0], value))
    for name, half in halves.items():
        if len(half) == len(OPPOSITES[0]):
            together = sum(half.values(), Fraction(0))
            caps[name] = min(together, caps.get(name, together))
    return caps


def wanted_share(profile: Profile) -> dict[str, Fraction]:
    """Return what a profile gives to a namespace."""
    return share((quota.scopes, bool(quota.priority_classes), quota.hard) for quota in profile.quotas)


def budget_faults(tenants: Mapping[str, Tenant], found: Iterable[Member]) -> list[Fault]:
    """Return where namespaces are given more than their tenant's budget, or have no cap on what the budget is about."""
    faults = []
    shares: dict[str, dict[str, Fraction]] = {}
    uncapped: set[tuple[str, str, str]] = set()
    counts: dict[str, int] = {}
    for member in found:
        if member.profile.name not in shares:
            shares[member.profile.name] = wanted_share(member.profile)
        counts[member.tenant] = counts.get(member.tenant, 0) + 1
    totals: dict[tuple[str, str], Fraction] = {}
    for member in found:
        for name in tenants[member.tenant].budget:
            value = shares[member.profile.name].get(name)
            if value is None:
                uncapped.add((member.tenant, member.profile.name, name))
            else:
                totals[member.tenant, name] = totals.get((member.tenant, name), Fraction(0)) + value
    for tenant, profile, name in sorted(uncapped):
        wanted = f"a quota for all pods with {name}, since tenant {tenant} has a budget for it"
        faults.append(Fault(_path(["profiles", profile, "quotas"]), f"no cap on {name}", wanted))
    for (tenant, name), total in sorted(totals.items()):
        budget = tenants[tenant].budget[name]
        if total > budget:
            like = "1Ki" if "memory" in name or "storage" in name else ""
            found_words = f"{format_quantity(total, like)} for {counts[tenant]} namespaces together"
            remedy = "Raise the budget, or give some namespaces a smaller profile."
            path = _joined(_path(["tenants", tenant, "budget"]), name)
            faults.append(Fault(path, found_words, f"at most {format_quantity(budget, like)}", remedy))
    return faults


# Objects


def objects(member: Member) -> list[Object]:
    """Return the objects of a namespace, without the namespace itself."""
    profile = member.profile
    made = [_object(member, kind, name, {"spec": spec}) for kind, name, spec in _specs(profile)]
    if not profile.service_account_token:
        made.append(_object(member, "ServiceAccount", "default", {"automountServiceAccountToken": False}))
    return made


def extra_kinds(profile: Profile) -> list[str]:
    """Return the kinds that a profile gives beside quotas and LimitRanges."""
    wanted = {
        "NetworkPolicy": bool(profile.default_deny),
        "PodDisruptionBudget": bool(profile.disruption_budget),
        "ServiceAccount": not profile.service_account_token,
    }
    return [kind for kind, is_wanted in wanted.items() if is_wanted]


def namespace_object(member: Member, make: bool, kinds: Iterable[str]) -> Object | None:
    """Return what a namespace itself shall carry, or None when nothing has to be said of it."""
    labels = {f"{POD_SECURITY}{mode}": level for mode, level in member.profile.pod_security.items()}
    annotations = {}
    listed = ",".join(sorted(kinds))
    if listed:
        annotations[KINDS_ANNOTATION] = listed
    if make:
        annotations[MADE_ANNOTATION] = "true"
    if not labels and not annotations:
        return None
    metadata: Object = {"name": member.namespace, "labels": {TENANT_LABEL: member.tenant, **labels}}
    if annotations:
        metadata["annotations"] = annotations
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}


API_VERSIONS = {
    "LimitRange": "v1",
    "ResourceQuota": "v1",
    "ServiceAccount": "v1",
    "NetworkPolicy": "networking.k8s.io/v1",
    "PodDisruptionBudget": "policy/v1",
}


def _object(member: Member, kind: str, name: str, body: Mapping[str, Any]) -> Object:
    labels = {TENANT_LABEL: member.tenant, **(MANAGED_LABELS if kind != "ServiceAccount" else {})}
    metadata = {"namespace": member.namespace, "name": name, "labels": labels}
    return {"apiVersion": API_VERSIONS[kind], "kind": kind, "metadata": metadata, **body}


def _specs(profile: Profile) -> Iterator[tuple[str, str, Object]]:
    if profile.limits:
        yield "LimitRange", LIMIT_RANGE_NAME, {"limits": list(profile.limits)}
    for quota in profile.quotas:
        spec: Object = {"hard": dict(quota.hard)}
        if quota.scopes:
            spec["scopes"] = list(quota.scopes)
        if quota.priority_classes:
            expression = {"scopeName": "PriorityClass", "operator": "In", "values": list(quota.priority_classes)}
            spec["scopeSelector"] = {"matchExpressions": [expression]}
        yield "ResourceQuota", quota.name, spec
    if profile.default_deny:
        policy: Object = {"podSelector": {}, "policyTypes": list(profile.default_deny)}
        if "Egress" in profile.default_deny:
            policy["egress"] = [_dns_rule()]
        yield "NetworkPolicy", POLICY_NAME, policy
    if profile.disruption_budget:
        # Pods of Jobs and DaemonSets have no number of replicas, and one of them would stop the whole budget; pods with
        # a budget of their own could not be evicted at all if they had two.
        absent = (OWN_BUDGET_LABEL, "batch.kubernetes.io/job-name", "pod-template-generation")
        selector = {"matchExpressions": [{"key": key, "operator": "DoesNotExist"} for key in absent]}
        yield "PodDisruptionBudget", BUDGET_NAME, {**profile.disruption_budget, "selector": selector}


def _dns_rule() -> Object:
    return {
        "to": [
            {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
                "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
            },
            # The cache of names on the pod's own host, whatever its link-local address is.
            {"ipBlock": {"cidr": "169.254.0.0/16"}},
        ],
        "ports": [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")],
    }
