# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What stands against a plan of quotas: present use, what nodes can give, pods to be refused. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ansible_collections.plainkube.cluster.plugins.module_utils.quantities import (
    add_quantities,
    format_quantity,
    parse_quantity,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.quotas import Item, Plan, State, quantities_of
from ansible_collections.plainkube.cluster.plugins.module_utils.tenants import (
    ALIASES,
    LIMIT_RANGE_NAME,
    OWN_BUDGET_LABEL,
    Document,
    Fault,
    Member,
    wanted_share,
)

# Resources that a quota demands of every container.
COMPUTE = ("cpu", "memory")
TOP_PODS = 5

# Shrinking below use


@dataclass(frozen=True)
class Shrink:
    """A quota that would be smaller than what is used."""

    namespace: str
    quota: str
    resource: str
    used: str
    wanted: str
    pods: tuple[str, ...] = ()

    def __str__(self) -> str:
        most = f"; most by {', '.join(self.pods)}" if self.pods else ""
        return f"{self.namespace}: {self.resource} (quota {self.quota}): {self.used} used, {self.wanted} wanted{most}"


def pod_amounts(spec: Mapping[str, Any]) -> dict[str, Fraction]:
    """Return what a pod asks for, under the names of quotas, as the scheduler and quotas count it."""
    total: dict[str, Fraction] = {"pods": Fraction(1)}
    for side in ("requests", "limits"):
        containers = [_resources(container, side) for container in spec.get("containers", ())]
        running: dict[str, Fraction] = {}
        for amounts in containers:
            running = add_quantities(running, amounts)
        most: dict[str, Fraction] = {}
        beside: dict[str, Fraction] = {}
        for container in spec.get("initContainers", ()):
            amounts = _resources(container, side)
            if container.get("restartPolicy") == "Always":
                running = add_quantities(running, amounts)
                beside = add_quantities(beside, amounts)
                amounts = beside
            else:
                amounts = add_quantities(beside, amounts)
            most = {name: max(most.get(name, value), value) for name, value in {**most, **amounts}.items()}
        total_side = {
            name: max(running.get(name, Fraction(0)), most.get(name, Fraction(0))) for name in {**running, **most}
        }
        total_side.update(_resources(spec, side))
        if total_side or side == "requests":
            total_side = add_quantities(total_side, quantities_of(spec.get("overhead", {})))
        total.update({f"{side}.{name}": value for name, value in total_side.items()})
    return total


def _resources(container: Mapping[str, Any], side: str) -> dict[str, Fraction]:
    resources = container.get("resources") or {}
    amounts = quantities_of(resources.get(side) or {})
    if side == "requests":
        # A limit without a request is a request too.
        amounts = {**quantities_of(resources.get("limits") or {}), **amounts}
    return amounts


class PodUse:
    """What the pods of some namespaces use; fed with one pod at a time, so that none is kept."""

    def __init__(self, namespaces: Iterable[str]) -> None:
        self.totals: dict[str, dict[str, Fraction]] = {name: {} for name in namespaces}
        self._top: dict[str, dict[str, list[tuple[Fraction, str]]]] = {name: {} for name in self.totals}

    def add(self, pod: Mapping[str, Any]) -> None:
        """Count a pod that has not ended."""
        namespace = pod["metadata"]["namespace"]
        if namespace not in self.totals or pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            return
        amounts = pod_amounts(pod["spec"])
        self.totals[namespace] = add_quantities(self.totals[namespace], amounts)
        for name, value in amounts.items():
            if name != "pods":
                top = self._top[namespace].setdefault(name, [])
                top.append((value, pod["metadata"]["name"]))
                top.sort(reverse=True)
                del top[TOP_PODS:]

    def most(self, namespace: str, resource: str) -> tuple[str, ...]:
        """Return the pods that use most of a resource, with how much."""
        resource = ALIASES.get(resource, resource)
        like = "1Ki" if "memory" in resource else ""
        top = self._top.get(namespace, {}).get(resource, ())
        return tuple(f"{name} ({format_quantity(value, like)})" for value, name in top)


def _counted(item: Item) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Return what a quota says is used and what it allows now; nothing of one that counts other pods from now on."""
    if item.live is None or item.action == "replace":
        return {}, {}
    return item.live.used, item.live_hard


def namespaces_to_count(plan: Plan, state: State) -> list[str]:
    """Return the existing namespaces whose pods decide whether a quota would shrink below use."""
    wanted = set()
    for item in plan.items:
        if item.kind == "ResourceQuota" and item.wanted and ("Namespace", "", item.namespace) in state:
            used, live_hard = _counted(item)
            for name, value in item.wanted_hard.items():
                is_new = name not in used and name not in live_hard
                if is_new or (name in used and parse_quantity(value) < parse_quantity(used[name])):
                    wanted.add(item.namespace)
    return sorted(wanted)


def shrinks(plan: Plan, use: PodUse) -> dict[str, list[Shrink]]:
    """Return by title of the quota what it would cut below present use."""
    found: dict[str, list[Shrink]] = {}
    for item in plan.items:
        if item.kind != "ResourceQuota" or item.wanted is None:
            continue
        for_all = not item.wanted["spec"].get("scopes") and "scopeSelector" not in item.wanted["spec"]
        used_texts, live_hard = _counted(item)
        for name, text in item.wanted_hard.items():
            wanted = parse_quantity(text)
            current = live_hard.get(name)
            if current is not None and wanted >= parse_quantity(current):
                continue
            used_text = used_texts.get(name)
            if used_text is not None:
                used = parse_quantity(used_text)
            elif for_all:
                used = use.totals.get(item.namespace, {}).get(ALIASES.get(name, name), Fraction(0))
            else:
                continue
            if wanted < used:
                found.setdefault(item.title, []).append(
                    Shrink(
                        namespace=item.namespace,
                        quota=item.name,
                        resource=name,
                        used=format_quantity(used, used_text or text),
                        wanted=text,
                        pods=use.most(item.namespace, name),
                    )
                )
    return found


# What nodes can give


@dataclass(frozen=True)
class Node:
    """What one node can give to pods."""

    name: str
    zone: str
    allocatable: Mapping[str, Fraction]


def node_of(thing: Mapping[str, Any]) -> Node | None:
    """Return what a node can give, or None when lasting taints keep tenants' pods away."""
    taints = thing.get("spec", {}).get("taints", ())
    if any(
        taint["effect"] in ("NoSchedule", "NoExecute") and not taint["key"].startswith("node.kubernetes.io/")
        for taint in taints
    ):
        return None
    metadata = thing["metadata"]
    zone = metadata.get("labels", {}).get("topology.kubernetes.io/zone", "")
    return Node(metadata["name"], zone, quantities_of(thing.get("status", {}).get("allocatable", {})))


def node_resource(quota_resource: str) -> str:
    """Return the resource of nodes that a quota's resource draws on, empty for none."""
    name = ALIASES.get(quota_resource, quota_resource)
    for prefix in ("requests.", "limits."):
        if name.startswith(prefix) and name != "requests.storage":
            return name[len(prefix) :]
    return "pods" if name in ("pods", "count/pods") else ""


def overcommit(document: Document, found: Iterable[Member], nodes: Sequence[Node]) -> list[dict[str, Any]]:
    """Return for each resource what tenants may use against what nodes can give, also after losses.

    A tenant counts with its budget, or with the sum of its namespaces where it has none.
    """
    promised: dict[str, Fraction] = {}
    sums: dict[str, dict[str, Fraction]] = {name: {} for name in document.tenants}
    for member in found:
        sums[member.tenant] = add_quantities(sums[member.tenant], wanted_share(member.profile))
    for name, tenant in document.tenants.items():
        promised = add_quantities(promised, {**sums[name], **tenant.budget})
    rows = []
    for resource in sorted(promised):
        source = node_resource(resource)
        if not source:
            continue
        reserve = document.reserve.get(source, Fraction(0))
        amounts = {node.name: node.allocatable.get(source, Fraction(0)) for node in nodes}
        zones: dict[str, Fraction] = {}
        for node in nodes:
            zones[node.zone] = zones.get(node.zone, Fraction(0)) + amounts[node.name]
        everything = sum(amounts.values(), Fraction(0))
        like = "1Ki" if source in ("memory", "ephemeral-storage") else ""
        row: dict[str, Any] = {
            "resource": resource,
            "promised": format_quantity(promised[resource], like),
            "available": format_quantity(max(everything - reserve, Fraction(0)), like),
            "ratio": _ratio(promised[resource], everything - reserve),
            "ratio_without_largest_node": _ratio(
                promised[resource], everything - reserve - max(amounts.values(), default=Fraction(0))
            ),
        }
        if len(zones) > 1:
            row["ratio_without_largest_zone"] = _ratio(promised[resource], everything - reserve - max(zones.values()))
        rows.append(row)
    return rows


def _ratio(promised: Fraction, available: Fraction) -> float | None:
    """Return how often the available amount is promised; None when nothing is there to give."""
    return round(float(promised / available), 3) if available > 0 else None


def capacity_faults(document: Document, rows: Iterable[Mapping[str, Any]], nodes: Sequence[Node]) -> list[Fault]:
    """Return where more is promised than the document allows, and containers that fit on no node."""
    faults = []
    for row in rows:
        allowed = document.overcommit.get(row["resource"])
        if allowed is not None and (row["ratio"] is None or Fraction(str(row["ratio"])) > allowed):
            found = f"{row['promised']} promised, {row['available']} available" + (
                f" ({row['ratio']} times)" if row["ratio"] else ""
            )
            remedy = "Lower budgets, add nodes, or raise this number."
            faults.append(Fault(f"overcommit[{row['resource']}]", found, f"at most {float(allowed):g} times", remedy))
    if not nodes:
        return faults
    largest: dict[str, Fraction] = {}
    for node in nodes:
        for name, value in node.allocatable.items():
            largest[name] = max(value, largest.get(name, value))
    for profile in document.profiles.values():
        for item in profile.limits:
            for part in ("min", "defaultRequest") if item["type"] != "PersistentVolumeClaim" else ():
                for name, text in item.get(part, {}).items():
                    if name in largest and parse_quantity(text) > largest[name]:
                        most = format_quantity(largest[name], text)
                        found = f"{item['type']} {part} {name} {text}, more than any node has"
                        remedy = "No such pod would ever run."
                        faults.append(Fault(f"profiles.{profile.name}.limit_range", found, f"at most {most}", remedy))
    return faults


# What would be refused at its next rollout


def template_of(kind: str, thing: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the pod that a Deployment, StatefulSet, DaemonSet or CronJob makes."""
    spec = thing["spec"]
    if kind == "CronJob":
        spec = spec["jobTemplate"]["spec"]
    pod: Mapping[str, Any] = spec["template"]
    return pod


def refusals(
    pod: Mapping[str, Any], limits: Sequence[Mapping[str, Any]], quotas: Iterable[Mapping[str, Any]]
) -> list[str]:
    """Return why the API server would refuse a pod under a LimitRange's items and quotas' specs, in its order."""
    containers = [
        {"name": container["name"], **_with_defaults(container, limits)}
        for container in (*pod["spec"].get("initContainers", ()), *pod["spec"].get("containers", ()))
    ]
    reasons: list[str] = []
    for item in limits:
        if item["type"] == "Container":
            for container in containers:
                reasons += _against(f"container {container['name']}", container, item)
        elif item["type"] == "Pod":
            reasons += _against("the pod", _together(pod["spec"], containers), item)
    whole = _together(pod["spec"], containers)
    for spec in quotas:
        if not _in_scope(pod["spec"], spec, containers):
            continue
        for name, text in spec["hard"].items():
            side, _dot, resource = ALIASES.get(name, name).partition(".")
            if side not in ("requests", "limits"):
                continue
            missing = [container["name"] for container in containers if resource not in container[side]]
            if resource in COMPUTE and missing and resource not in _resources(pod["spec"], side):
                reasons.append(
                    f"container {', '.join(missing)} has no {side} of {resource}, which a quota on {name} demands"
                )
            elif whole[side].get(resource, Fraction(0)) > parse_quantity(text):
                total = format_quantity(whole[side][resource], text)
                reasons.append(f"the pod's {side} of {resource} {total} are above the whole quota {text}")
    return list(dict.fromkeys(reasons))


def _with_defaults(container: Mapping[str, Any], limits: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Fraction]]:
    found = {side: _resources(container, side) for side in ("requests", "limits")}
    for item in limits:
        if item["type"] == "Container":
            for part, side in (("default", "limits"), ("defaultRequest", "requests")):
                found[side] = {**quantities_of(item.get(part, {})), **found[side]}
    return found


def _together(spec: Mapping[str, Any], containers: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Fraction]]:
    by_name = {container["name"]: container for container in containers}
    whole = {**spec}
    for part in ("containers", "initContainers"):
        whole[part] = [
            {**container, "resources": _written(by_name[container["name"]])} for container in spec.get(part, ())
        ]
    amounts = pod_amounts(whole)
    return {
        side: {name[len(side) + 1 :]: value for name, value in amounts.items() if name.startswith(f"{side}.")}
        for side in ("requests", "limits")
    }


def _written(resources: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    return {
        side: {name: format_quantity(value) for name, value in resources[side].items()}
        for side in ("requests", "limits")
    }


def _against(who: str, resources: Mapping[str, Any], item: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a LimitRange's item has against the resources of a container or a pod."""
    requests, limits = resources["requests"], resources["limits"]
    for name, text in item.get("min", {}).items():
        least = parse_quantity(text)
        if name not in requests:
            yield f"{who} has no request of {name}, at least {text} is wanted"
        elif requests[name] < least:
            yield f"{who} requests {format_quantity(requests[name], text)} of {name}, at least {text} is wanted"
        elif name in limits and limits[name] < least:
            yield f"{who} has a limit of {format_quantity(limits[name], text)} of {name}, at least {text} is wanted"
    for name, text in item.get("max", {}).items():
        most = parse_quantity(text)
        if name not in limits:
            yield f"{who} has no limit of {name}, at most {text} is allowed"
        elif limits[name] > most:
            yield f"{who} has a limit of {format_quantity(limits[name], text)} of {name}, at most {text} is allowed"
        elif name in requests and requests[name] > most:
            yield f"{who} requests {format_quantity(requests[name], text)} of {name}, at most {text} is allowed"
    for name, text in item.get("maxLimitRequestRatio", {}).items():
        request, limit = requests.get(name), limits.get(name)
        if not request or not limit:
            yield f"{who} has no {'limit' if request else 'request'} of {name}, a ratio of at most {text} is wanted"
        elif limit / request > parse_quantity(text):
            times = format_quantity(limit / request)
            yield f"{who} has a limit of {name} {times} times its request, at most {text} is allowed"
    for part in ("default", "defaultRequest"):
        for name in item.get(part, {}):
            if name in requests and name in limits and requests[name] > limits[name]:
                yield (
                    f"{who} requests {format_quantity(requests[name])} of {name}, above its limit of"
                    f" {format_quantity(limits[name])} by default"
                )


def _in_scope(spec: Mapping[str, Any], quota: Mapping[str, Any], containers: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a quota counts a pod."""
    best_effort = not any(container[side] for container in containers for side in ("requests", "limits"))
    terminating = spec.get("activeDeadlineSeconds") is not None
    holds = {
        "Terminating": terminating,
        "NotTerminating": not terminating,
        "BestEffort": best_effort,
        "NotBestEffort": not best_effort,
    }
    if not all(holds[scope] for scope in quota.get("scopes") or ()):
        return False
    return all(
        spec.get("priorityClassName", "") in expression["values"]
        for expression in quota.get("scopeSelector", {}).get("matchExpressions", ())
    )


def namespaces_to_try(plan: Plan, state: State) -> list[str]:
    """Return the existing namespaces in which pods may be refused that were accepted before."""
    return sorted(
        {
            item.namespace
            for item in plan.items
            if item.kind in ("LimitRange", "ResourceQuota")
            and item.wanted
            and not item.reason
            and ("Namespace", "", item.namespace) in state
        }
    )


def rules_after(
    plan: Plan, state: State, namespaces: Iterable[str]
) -> dict[str, tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]]:
    """Return for each namespace the items of its LimitRanges and the specs of its quotas once the plan is written."""
    after: dict[str, dict[tuple[str, str], Mapping[str, Any]]] = {name: {} for name in namespaces}
    for live in state.values():
        if live.namespace in after and live.kind in ("LimitRange", "ResourceQuota"):
            after[live.namespace][live.kind, live.name] = live.body["spec"]
    for item in plan.items:
        if item.namespace in after and item.kind in ("LimitRange", "ResourceQuota") and not item.reason:
            if item.wanted:
                after[item.namespace][item.kind, item.name] = item.wanted["spec"]
            else:
                after[item.namespace].pop((item.kind, item.name), None)
    return {
        namespace: (
            [limit for (kind, _name), spec in specs.items() if kind == "LimitRange" for limit in spec["limits"]],
            [spec for (kind, _name), spec in specs.items() if kind == "ResourceQuota"],
        )
        for namespace, specs in after.items()
    }


# Objects of others


def doubled(found: Iterable[Member], state: State) -> list[str]:
    """Return warnings about objects of others that get into the way of ours."""
    warnings = []
    members = {member.namespace: member for member in found}
    for live in state.values():
        member = members.get(live.namespace)
        if member is None or live.owned:
            continue
        if live.kind == "LimitRange" and member.profile.limits and live.name != LIMIT_RANGE_NAME:
            warnings.append(
                f"{live.title} stands beside the tenant's own LimitRange: which defaults win is not defined; remove one"
            )
        if live.kind == "PodDisruptionBudget" and member.profile.disruption_budget:
            warnings.append(
                f"{live.title} may select pods that the tenant's default selects too, and pods with two budgets cannot"
                f" be evicted: label its pods {OWN_BUDGET_LABEL}"
            )
    return warnings


def empty_entries(document: Document, namespaces: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return warnings about labels that no namespace carries."""
    return [
        f"{entry.path}: no namespace carries the labels "
        + ", ".join(f"{key}={value}" for key, value in entry.labels.items())
        for tenant in document.tenants.values()
        for entry in tenant.entries
        if entry.labels
        and not any(
            all(carried.get(key) == value for key, value in entry.labels.items()) for carried in namespaces.values()
        )
    ]
