# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""From tenants and a cluster as it is to what has to be written, in which order, and what stands against it.

Pure functions. A budget holds at every moment: what shrinks is written before anything grows, and a quota that does
both goes through the smaller of both values first. One whose scopes change is stood in for until it is made anew.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple
from xml.etree import ElementTree

from ansible_collections.plainkube.cluster.plugins.module_utils.quantities import (
    add_quantities,
    parse_quantity,
    same_quantity,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.tenants import (
    ALIASES,
    FIELD_MANAGER,
    KINDS_ANNOTATION,
    MADE_ANNOTATION,
    TENANT_LABEL,
    Document,
    Fault,
    Member,
    Object,
    Tenant,
    extra_kinds,
    namespace_object,
    objects,
    share,
)

Path = tuple[str, ...]
# Kinds that are looked at in every run, and those that only some tenants have.
ALWAYS = ("Namespace", "ResourceQuota", "LimitRange")
EXTRAS = ("NetworkPolicy", "PodDisruptionBudget", "ServiceAccount")
# These belong to others too: what we said in them is taken back, the object stays.
SHARED = ("Namespace", "ServiceAccount")
# Values that the API replaces as a whole.
WHOLE = frozenset(
    {
        ("spec", name)
        for name in (
            "limits",
            "scopes",
            "scopeSelector",
            "podSelector",
            "policyTypes",
            "ingress",
            "egress",
            "selector",
        )
    }
)
# A LimitRange's fields that hold quantities by resource.
LIMIT_MAPS = ("min", "max", "default", "defaultRequest", "maxLimitRequestRatio")


class Live(NamedTuple):
    """What is kept of an object in the cluster."""

    kind: str
    namespace: str
    name: str
    uid: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    body: Mapping[str, Any]  # spec, or the fields beside metadata that are ours
    owned: frozenset[Path]  # fields that we applied
    others: Mapping[Path, str]  # fields that other managers hold, with the manager
    used: Mapping[str, str]
    going: bool  # it is being deleted

    @property
    def title(self) -> str:
        """Kind and name, as messages say them."""
        return f"{self.kind} " + "/".join(part for part in (self.namespace, self.name) if part)


Key = tuple[str, str, str]
State = dict[Key, Live]


class Reader:
    """Reduces objects to what is kept; equal sets of fields are kept once."""

    def __init__(self) -> None:
        self._fields: dict[str, frozenset[Path]] = {}
        self._bodies: dict[str, Any] = {}

    def live(self, kind: str, thing: Mapping[str, Any]) -> Live:
        """Return what is kept of an object."""
        metadata = thing["metadata"]
        owned: frozenset[Path] = frozenset()
        others: dict[Path, str] = {}
        for entry in metadata.get("managedFields", ()):
            paths = self._paths(entry.get("fieldsV1", {}))
            if entry["manager"] == FIELD_MANAGER and entry["operation"] == "Apply":
                owned = paths
            elif not entry.get("subresource"):
                others.update(dict.fromkeys(paths, entry["manager"]))
        body = {"spec": thing.get("spec", {})} if kind not in SHARED else {}
        if "automountServiceAccountToken" in thing:
            body = {"automountServiceAccountToken": thing["automountServiceAccountToken"]}
        return Live(
            kind=kind,
            namespace=metadata.get("namespace", ""),
            name=metadata["name"],
            # What a dry run would make has none.
            uid=metadata.get("uid", ""),
            labels=metadata.get("labels", {}),
            annotations={name: value for name, value in metadata.get("annotations", {}).items() if "plainkube" in name},
            body=self._bodies.setdefault(json.dumps(body, sort_keys=True), body),
            owned=owned,
            others=others,
            used=thing.get("status", {}).get("used", {}),
            going="deletionTimestamp" in metadata,
        )

    def _paths(self, fields: Mapping[str, Any]) -> frozenset[Path]:
        text = json.dumps(fields)
        if text not in self._fields:
            self._fields[text] = frozenset(_leaves_of_fields(fields, ()))
        return self._fields[text]


def _leaves_of_fields(fields: Mapping[str, Any], path: Path) -> Iterator[Path]:
    inner = {name: value for name, value in fields.items() if name != "."}
    if not inner and path:
        yield path
    for name, value in inner.items():
        yield from _leaves_of_fields(value, (*path, name[2:] if name.startswith("f:") else name))


def leaves(thing: Mapping[str, Any]) -> dict[Path, Any]:
    """Return the fields that an applied object claims, by their paths."""
    found: dict[Path, Any] = {}
    metadata = thing["metadata"]
    for part in ("labels", "annotations"):
        for name, value in metadata.get(part, {}).items():
            found["metadata", part, name] = value
    for name, value in thing.items():
        if name not in ("apiVersion", "kind", "metadata"):
            _collect(value, (name,), found)
    return found


def _collect(value: Any, path: Path, found: dict[Path, Any]) -> None:
    if isinstance(value, Mapping) and path not in WHOLE:
        for name, inner in value.items():
            _collect(inner, (*path, name), found)
    else:
        found[path] = value


def value_at(live: Live, path: Path) -> Any:
    """Return a field of a live object, None when it is not there."""
    if path[0] == "metadata":
        return (live.labels if path[1] == "labels" else live.annotations).get(path[2])
    value: Any = live.body
    for name in path:
        if not isinstance(value, Mapping) or name not in value:
            return None
        value = value[name]
    return value


def same(path: Path, one: Any, other: Any) -> bool:
    """Return whether two values of a field mean the same."""
    if one == other:
        return True
    if one is None or other is None:
        return False
    if path[:2] == ("spec", "hard"):
        return same_quantity(one, other)
    if path == ("spec", "limits"):
        return len(one) == len(other) and all(map(_same_limits, one, other))
    return False


def _same_limits(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    if set(one) != set(other) or one["type"] != other["type"]:
        return False
    return all(
        set(one[part]) == set(other[part])
        and all(same_quantity(one[part][name], other[part][name]) for name in one[part])
        for part in LIMIT_MAPS
        if part in one
    )


def quantities_of(texts: Mapping[str, Any]) -> dict[str, Fraction]:
    """Return the amounts of a mapping of resource to text."""
    return {name: parse_quantity(value) for name, value in texts.items()}


# Differences


@dataclass
class Item:
    """One object and what is to become of it. wanted is None for what goes."""

    kind: str
    namespace: str
    name: str
    tenant: str
    wanted: Object | None
    live: Live | None
    action: str  # create, change, replace, prune, release
    fields: tuple[Path, ...] = ()
    reason: str = ""  # why it is not written

    @property
    def title(self) -> str:
        """Kind and name, as messages say them."""
        return f"{self.kind} " + "/".join(part for part in (self.namespace, self.name) if part)

    @property
    def where(self) -> str:
        """The namespace that it belongs to; a namespace belongs to itself."""
        return self.namespace or self.name

    @property
    def wanted_hard(self) -> Mapping[str, str]:
        """The amounts of a quota that is wanted."""
        return (self.wanted or {}).get("spec", {}).get("hard", {})

    @property
    def live_hard(self) -> Mapping[str, str]:
        """The amounts of a quota that is there."""
        return self.live.body.get("spec", {}).get("hard", {}) if self.live else {}


def compare(wanted: Object, live: Live | None) -> tuple[Path, ...] | None:
    """Return the fields that an apply would change; none when only their owner would; None when nothing would."""
    claimed = leaves(wanted)
    if live is None:
        return tuple(claimed)
    different = [path for path, value in claimed.items() if not same(path, value, value_at(live, path))]
    dropped = [path for path in live.owned if path not in claimed]
    if not different and not dropped and live.owned == frozenset(claimed):
        return None
    return (*different, *dropped)


def conflicts(item: Item) -> dict[str, list[str]]:
    """Return the fields that other managers hold with other values than wanted, by manager."""
    found: dict[str, list[str]] = {}
    if item.live is None or item.wanted is None:
        return found
    for path, value in leaves(item.wanted).items():
        manager = item.live.others.get(path)
        if manager and not same(path, value, value_at(item.live, path)):
            found.setdefault(manager, []).append(".".join(path))
    return found


def adopted(item: Item) -> Object | None:
    """Return the wanted object with the live spelling of equal quantities, so that a rewrite is no conflict."""
    if item.wanted is None or item.live is None or item.kind != "ResourceQuota":
        return item.wanted
    hard = {
        name: item.live_hard[name] if name in item.live_hard and same_quantity(value, item.live_hard[name]) else value
        for name, value in item.wanted_hard.items()
    }
    return {**item.wanted, "spec": {**item.wanted["spec"], "hard": hard}}


# The plan


@dataclass
class Plan:
    """What differs, what is as wanted, and what stands against writing it."""

    items: list[Item] = field(default_factory=list)
    kept: list[tuple[Live, str]] = field(default_factory=list)  # as wanted, with the tenant
    faults: list[Fault] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def unchanged(self) -> list[str]:
        """Kind and name of what is as wanted."""
        return [live.title for live, _tenant in self.kept]

    def unchanged_entries(self) -> list[dict[str, str]]:
        """Return what is as wanted, for reports."""
        return [
            {"kind": live.kind, "namespace": live.namespace, "name": live.name, "tenant": tenant}
            for live, tenant in self.kept
        ]


def needed_extras(document: Document, namespaces: Iterable[Live] = ()) -> list[str]:
    """Return the extra kinds that have to be listed: those of profiles, and those that namespaces were given before."""
    wanted = {kind for profile in document.profiles.values() for kind in extra_kinds(profile)}
    for live in namespaces:
        if live.owned:
            wanted.update(_given_kinds(live))
    return [kind for kind in EXTRAS if kind in wanted]


def names_classes(document: Document) -> bool:
    """Return whether a document has quotas for some PriorityClasses."""
    return any(quota.priority_classes for profile in document.profiles.values() for quota in profile.quotas)


def writes_classes(plan: Plan) -> bool:
    """Return whether a quota for some PriorityClasses is to be written."""
    return any(item.wanted and "scopeSelector" in item.wanted.get("spec", {}) for item in plan.items)


def _given_kinds(live: Live | None) -> list[str]:
    return [kind for kind in (live.annotations.get(KINDS_ANNOTATION, "") if live else "").split(",") if kind in EXTRAS]


def is_ours(live: Live) -> bool:
    """Return whether an object carries our label and fields of our manager."""
    return bool(live.owned) and TENANT_LABEL in live.labels


def build(document: Document, found: Sequence[Member], state: State, delete_namespaces: bool = False) -> Plan:
    """Return the plan for the members of all tenants."""
    plan = Plan()
    wanted_keys: set[Key] = set()
    for member in found:
        live_namespace = state.get(("Namespace", "", member.namespace))
        if live_namespace is None and not document.tenants[member.tenant].create_namespaces:
            remedy = f"Correct the name, make the namespace, or set tenants.{member.tenant}.create_namespaces: true."
            plan.faults.append(
                Fault(member.path, f"namespace {member.namespace}, which there is not", "one that exists", remedy)
            )
            continue
        if live_namespace and live_namespace.going:
            remedy = "Wait until it is gone, or take it out of the document."
            plan.faults.append(
                Fault(member.path, f"namespace {member.namespace}, which is being deleted", "one that stays", remedy)
            )
            continue
        made = live_namespace is None or MADE_ANNOTATION in live_namespace.annotations
        own = namespace_object(member, made, extra_kinds(member.profile))
        things = [*([own] if own else ()), *objects(member)]
        for thing in things:
            metadata = thing["metadata"]
            key = (thing["kind"], metadata.get("namespace", ""), metadata["name"])
            wanted_keys.add(key)
            _compare_into(plan, member, thing, key, state.get(key))
    # A stand-in that a run before left is needed once more.
    wanted_keys.update(("ResourceQuota", item.namespace, stand_in_name(item)) for item in replaced_in(plan.items))
    tenants = {member.namespace: member.tenant for member in found}
    for key, live in state.items():
        if key not in wanted_keys and live.owned and not live.going and (is_ours(live) or live.kind in SHARED):
            _drop_into(plan, live, tenants, delete_namespaces)
    return plan


def _compare_into(plan: Plan, member: Member, thing: Object, key: Key, live: Live | None) -> None:
    fields = compare(thing, live)
    if fields is None and live:
        plan.kept.append((live, member.tenant))
        return
    action = "change" if live else "create"
    if live and key[0] == "ResourceQuota" and _scopes(live.body["spec"]) != _scopes(thing["spec"]):
        # The API lets nobody change the scopes of a quota.
        action = "replace"
    plan.items.append(Item(*key, member.tenant, thing, live, action, fields or ()))


def _scopes(spec: Mapping[str, Any]) -> list[str]:
    return sorted(spec.get("scopes") or ())


def replaced_in(items: Iterable[Item]) -> list[Item]:
    """Return the quotas that have to be made anew."""
    return [item for item in items if item.action == "replace"]


def stand_in_name(item: Item) -> str:
    """Return the name of what caps in a quota's place while that is made anew; no document can have such a name."""
    scopes = _scopes((item.wanted or {}).get("spec", {}))
    return ".".join([item.name, "takes-over", *(scope.lower() for scope in scopes)])


def stand_in(item: Item) -> Object:
    """Return what caps in a quota's place while that is made anew: the wanted one under another name."""
    wanted = _counted_later(item) if _label_of(item) != item.tenant else item.wanted or {}
    return {**wanted, "metadata": {**wanted["metadata"], "name": stand_in_name(item)}}


def _label_of(item: Item) -> str | None:
    """Return the tenant that a quota counts for so far."""
    return item.live.labels.get(TENANT_LABEL) if item.live else None


def _counted_later(item: Item) -> Object:
    """Return the wanted quota so that it counts for nobody, and is ours, until there is room in a budget."""
    wanted = item.wanted or {}
    metadata = wanted["metadata"]
    return {**wanted, "metadata": {**metadata, "labels": {**metadata["labels"], TENANT_LABEL: ""}}}


def _drop_into(plan: Plan, live: Live, tenants: Mapping[str, str], delete_namespaces: bool) -> None:
    tenant = live.labels.get(TENANT_LABEL, "")
    action, wanted = "prune", None
    if live.kind in SHARED:
        stays = live.kind != "Namespace" or not delete_namespaces or MADE_ANNOTATION not in live.annotations
        if stays or live.name in tenants:
            action = "release"
            metadata = {"name": live.name, **({"namespace": live.namespace} if live.namespace else {})}
            wanted = {"apiVersion": "v1", "kind": live.kind, "metadata": metadata}
    item = Item(live.kind, live.namespace, live.name, tenant, wanted, live, action, tuple(live.owned))
    plan.items.append(item)


def conflict_faults(plan: Plan) -> list[str]:
    """Return what other managers hold against the plan, one line for each object."""
    lines = []
    for item in plan.items:
        for manager, fields in conflicts(item).items() if item.action != "replace" else ():
            lines.append(f"{item.title}: {manager} holds {', '.join(fields)}")
    return lines


# Refusals


def refuse_shrinks(plan: Plan, found: Mapping[str, Sequence[Any]], tenants: Mapping[str, Tenant], state: State) -> None:
    """Take what would shrink below use out of the plan, and what then no longer fits into the tenant's budget."""
    refused = set()
    for item in plan.items:
        if item.title in found:
            item.reason = "below present use: " + "; ".join(str(shrink) for shrink in found[item.title])
            refused.add(item.tenant)
    for name in sorted(refused & set(tenants)):
        total = _worst_total(plan, tenants[name], state)
        over = {resource for resource, value in total.items() if value > tenants[name].budget.get(resource, value)}
        for item in plan.items:
            if item.tenant == name and not item.reason and over & grows(item):
                kept = ", ".join(sorted(over))
                item.reason = (
                    f"the budget of tenant {name} has no room for more {kept} while quotas stay above their wanted size"
                )


def grows(item: Item) -> set[str]:
    """Return the resources of which a quota would allow more."""
    if item.kind != "ResourceQuota":
        return set()
    current = quantities_of(item.live_hard)
    return {
        ALIASES.get(name, name)
        for name, value in quantities_of(item.wanted_hard).items()
        if name not in current or value > current[name]
    }


def _worst_total(plan: Plan, tenant: Tenant, state: State) -> dict[str, Fraction]:
    """Return what a tenant's namespaces have once the plan is carried out but for what is refused."""
    quotas: dict[str, dict[str, tuple[Sequence[str], bool, Mapping[str, str]]]] = {}
    for live in state.values():
        if live.kind == "ResourceQuota" and live.labels.get(TENANT_LABEL) == tenant.name and live.owned:
            quotas.setdefault(live.namespace, {})[live.name] = _shape(live.body["spec"])
    for item in plan.items:
        if item.kind == "ResourceQuota" and item.tenant == tenant.name and not item.reason:
            namespace = quotas.setdefault(item.namespace, {})
            if item.wanted:
                namespace[item.name] = _shape(item.wanted["spec"])
            else:
                namespace.pop(item.name, None)
    total: dict[str, Fraction] = {}
    for namespace in quotas.values():
        total = add_quantities(total, share(namespace.values()))
    return total


def _shape(spec: Mapping[str, Any]) -> tuple[Sequence[str], bool, Mapping[str, str]]:
    return spec.get("scopes") or (), "scopeSelector" in spec, spec.get("hard", {})


# The order


@dataclass(frozen=True)
class Write:
    """One request: an object to apply, or none to delete the item's own, or its stand-in.

    The last write of an item completes it.
    """

    item: Item
    thing: Object | None
    completes: bool = True
    of_stand_in: bool = False


Chain = list[Write]


def order(plan: Plan) -> tuple[list[Chain], list[Chain]]:
    """Return two rounds of chains of writes, without what is refused.

    Chains of a round may run at once; the writes of a chain follow each other. The first round takes away, the second
    gives, so that no budget is exceeded in between whatever the order within a round.
    """
    by_namespace: dict[str, list[Item]] = {}
    capped = {live.namespace for live, _tenant in plan.kept if live.kind == "ResourceQuota"}
    for item in plan.items:
        if not item.reason:
            by_namespace.setdefault(item.where, []).append(item)
    first, second = [], []
    for namespace, items in by_namespace.items():
        down, up = _chains(items, namespace in capped)
        if down:
            first.append(down)
        if up:
            second.append(up)
    return first, second


def _chains(items: Sequence[Item], stays_capped: bool) -> tuple[Chain, Chain]:
    of_kind: dict[str, list[Item]] = {}
    going: list[Item] = []
    for item in items:
        if item.action in ("prune", "release"):
            going.append(item)
        else:
            of_kind.setdefault(item.kind, []).append(item)
    quotas = of_kind.get("ResourceQuota", [])
    limits = of_kind.get("LimitRange", [])
    namespaces = of_kind.get("Namespace", [])
    last = {"ResourceQuota": 0, "LimitRange": 1, "Namespace": 9}
    farewell = [Write(item, item.wanted) for item in sorted(going, key=lambda item: last.get(item.kind, 2))]
    if not (quotas or limits or namespaces or any(kind in of_kind for kind in EXTRAS)):
        # The namespace is nobody's any more: what goes makes room for others. Where other quotas stay, one that goes
        # makes none; it held the others down.
        return ([], farewell) if stays_capped else (farewell, [])
    replaced = replaced_in(quotas)
    shrinking = [item for item in quotas if _smaller(item)]
    tightening = bool(shrinking) or any(_demands_more(item) for item in quotas)
    making_room = [item for item in quotas if item.action != "replace" and (_smaller(item) or _moves(item))]
    down: Chain = [Write(item, _between(item), _between(item) == adopted(item)) for item in making_room]
    # Beside the old quotas all new ones only hold down.
    down += _stand_ins(replaced, [item for item in quotas if item.action == "create"]) if replaced else []
    if shrinking or replaced:
        down = [Write(item, item.wanted) for item in limits] + down
        limits = []
    done = {id(write.item) for write in down if write.completes}
    grown: Chain = [Write(item, adopted(item)) for item in quotas if id(item) not in done and item.action != "replace"]
    for item in replaced:
        grown += [Write(item, None, False), Write(item, item.wanted, False), Write(item, None, of_stand_in=True)]
    limit_writes = [Write(item, item.wanted) for item in limits]
    up: Chain = [Write(item, _with_kinds(item), _with_kinds(item) == item.wanted) for item in namespaces]
    up += limit_writes + grown if tightening else grown + limit_writes
    up += [Write(item, item.wanted) for kind in EXTRAS for item in of_kind.get(kind, ())]
    up += farewell
    # A kind that went is noted as long as anything of it may be left.
    up += [Write(item, item.wanted) for item in namespaces if _with_kinds(item) != item.wanted]
    return down, up


def _stand_ins(replaced: Sequence[Item], created: Sequence[Item]) -> Chain:
    """Return what is written before quotas are made anew: what takes their places, and quotas that are new beside them.

    Where one for all pods is followed by several for some, only these together hold what the one did.
    """
    chain: Chain = []
    for item in replaced:
        if _moves(item) and item.live:
            metadata = _counted_later(item)["metadata"]
            chain.append(Write(item, {**(item.wanted or {}), "metadata": metadata, **item.live.body}, False))
    chain += [Write(item, stand_in(item), False) for item in replaced]
    is_counted = all(_label_of(item) == item.tenant for item in replaced)
    chain += [Write(item, item.wanted if is_counted else _counted_later(item), is_counted) for item in created]
    return chain


def _smaller(item: Item) -> list[str]:
    """Return the resources of which a quota that is there would allow less."""
    if item.action == "replace":
        return []
    current = quantities_of(item.live_hard)
    wanted = quantities_of(item.wanted_hard)
    return [name for name in wanted if name in current and wanted[name] < current[name]]


def _moves(item: Item) -> bool:
    """Return whether a quota counts for another tenant so far."""
    before = _label_of(item)
    return bool(before) and before != item.tenant


def _demands_more(item: Item) -> bool:
    """Return whether a quota asks pods for requests or limits that it did not ask for before."""
    return any(name not in item.live_hard for name in item.wanted_hard)


def _between(item: Item) -> Object:
    """Return a quota with the smaller of both values where it is there already."""
    wanted = adopted(item) or {}
    current = item.live_hard
    hard = dict(current)
    for name in _smaller(item):
        hard[name] = item.wanted_hard[name]
    owned = {path[2] for path in (item.live.owned if item.live else ()) if path[:2] == ("spec", "hard")}
    hard = {name: value for name, value in hard.items() if name in item.wanted_hard or name in owned}
    if _label_of(item) != item.tenant:
        wanted = _counted_later(item)
    return {**wanted, "spec": {**wanted["spec"], "hard": hard}}


def _with_kinds(item: Item) -> Object | None:
    """Return a namespace with the kinds that it was given before noted beside those that it gets."""
    before = _given_kinds(item.live)
    if item.wanted is None or not before:
        return item.wanted
    metadata = item.wanted["metadata"]
    annotations = metadata.get("annotations", {})
    now = [kind for kind in annotations.get(KINDS_ANNOTATION, "").split(",") if kind]
    together = ",".join(sorted({*before, *now}))
    return {**item.wanted, "metadata": {**metadata, "annotations": {**annotations, KINDS_ANNOTATION: together}}}


# Reports


def rows(outcomes: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, str]]:
    """Return all outcomes as rows of a table."""
    return [
        {
            "outcome": outcome,
            **{key: str(entry.get(key, "")) for key in ("tenant", "kind", "namespace", "name", "reason")},
        }
        for outcome, entries in outcomes.items()
        for entry in entries
    ]


def diff(item: Item, after: Live | None) -> dict[str, str]:
    """Return our own fields of an object before and after, as text."""
    title = item.title
    claimed = leaves(item.wanted) if item.wanted else {}
    before = {path: value_at(item.live, path) for path in {*claimed, *item.live.owned}} if item.live else {}
    later = {path: value_at(after, path) if after else value for path, value in claimed.items()}
    return {
        "before_header": title if item.live else "nothing",
        "after_header": title if later else "nothing",
        "before": _as_text(before),
        "after": _as_text(later),
    }


def _as_text(values: Mapping[Path, Any]) -> str:
    return "".join(
        f"{'.'.join(path)}: {json.dumps(value)}\n" for path, value in sorted(values.items()) if value is not None
    )


def csv_report(table: Sequence[Mapping[str, str]]) -> str:
    """Return the table as CSV."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, ["outcome", "tenant", "kind", "namespace", "name", "reason"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return stream.getvalue()


def junit_report(table: Sequence[Mapping[str, str]]) -> str:
    """Return the table as JUnit's XML: one case for each object, failed when it was refused."""
    refused = [row for row in table if row["outcome"] == "refused"]
    suite = ElementTree.Element(
        "testsuite", name="plainkube.cluster.quota", tests=str(len(table)), failures=str(len(refused))
    )
    for row in table:
        name = f"{row['kind']} {row['namespace']}/{row['name']}" if row["namespace"] else f"{row['kind']} {row['name']}"
        case = ElementTree.SubElement(suite, "testcase", classname=row["tenant"] or "none", name=name)
        if row["outcome"] == "refused":
            ElementTree.SubElement(case, "failure", message=row["reason"])
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"
