# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Plans of quotas: what differs, in which order it is written, and that no budget is exceeded in between."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils import quota_checks, quotas
from ansible_collections.plainkube.cluster.plugins.module_utils.quantities import parse_quantity
from ansible_collections.plainkube.cluster.plugins.module_utils.quotas import Item, Live, Plan, State
from ansible_collections.plainkube.cluster.plugins.module_utils.tenants import (
    FIELD_MANAGER,
    TENANT_LABEL,
    Document,
    Member,
    document_of,
    members,
    objects,
    share,
)
from hypothesis import given, settings
from hypothesis import strategies as some

RESOURCES = ("pods", "requests.cpu")
TENANTS = ("red", "blue")
NAMESPACES = ("n1", "n2", "n3", "n4")


def as_live(thing: dict[str, Any], manager: str = FIELD_MANAGER, **status: Any) -> Live:
    """Return an object as the server would have it after it was applied by a manager."""
    fields: dict[str, Any] = {}
    for path in quotas.leaves(thing):
        place = fields
        for part in path:
            place = place.setdefault(f"f:{part}", {})
    metadata = {
        **thing["metadata"],
        "uid": "u",
        "managedFields": [{"manager": manager, "operation": "Apply", "fieldsV1": fields}],
    }
    return quotas.Reader().live(thing["kind"], {**thing, "metadata": metadata, "status": status})


def namespace(name: str, **labels: str) -> Live:
    thing = {"kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    return as_live(thing, manager="kubectl")


def state_of(things: Iterable[Live]) -> State:
    return {(live.kind, live.namespace, live.name): live for live in things}


def made_of(raw: dict[str, Any]) -> tuple[Document, list[Member]]:
    document = document_of(raw)
    return document, members(document.tenants.values(), document.profiles, None)[0]


def raw_document(shares: dict[str, tuple[str, dict[str, int]]], budget: dict[str, int] | None = None) -> dict[str, Any]:
    """Return a document from namespace -> (tenant, hard)."""
    tenants: dict[str, Any] = {}
    for name, (tenant, _hard) in shares.items():
        entry = tenants.setdefault(tenant, {"namespaces": [], **({"budget": budget} if budget else {})})
        entry["namespaces"].append({"name": name, "profile": name})
    profiles = {name: {"quotas": {"q": {"hard": hard}}} for name, (_tenant, hard) in shares.items() if hard}
    return {"tenants": tenants, "profiles": {name: profiles.get(name, {}) for name in shares}}


def cluster_of(shares: dict[str, tuple[str, dict[str, int]]]) -> State:
    """Return the state that a document leads to."""
    _document, found = made_of(raw_document(shares))
    things = [as_live(thing) for member in found for thing in objects(member)]
    return state_of([*things, *(namespace(name) for name in NAMESPACES)])


def totals(state: State) -> dict[tuple[str, str], Fraction]:
    """Return what quotas in a cluster allow for each tenant and resource."""
    found: dict[tuple[str, str], Fraction] = {}
    for live in state.values():
        if live.kind == "ResourceQuota":
            for name, value in live.body["spec"]["hard"].items():
                key = (live.labels.get(TENANT_LABEL, ""), name)
                found[key] = found.get(key, Fraction(0)) + parse_quantity(value)
    return found


def capped(shares: dict[str, tuple[str, dict[str, int]]], tenant: str, resource: str) -> bool:
    """Return whether a tenant can have a budget for a resource: all its namespaces have a cap on it."""
    return all(resource in hard for owner, hard in shares.values() if owner == tenant)


def write(state: State, writes: Sequence[quotas.Write]) -> None:
    """Do to a state what the server would."""
    for each in writes:
        name = each.item.name
        if each.of_stand_in:
            name = quotas.stand_in_name(each.item)
        elif each.thing:
            name = each.thing["metadata"]["name"]
        key = (each.item.kind, each.item.namespace, name)
        if each.thing is None:
            state.pop(key, None)
        else:
            before, thing = state.get(key), each.thing
            if before and each.item.kind == "ResourceQuota":
                assert before.body["spec"].get("scopes") == thing["spec"].get("scopes"), "the server refuses this"
            state[key] = as_live(thing)


def interleaved(chains: Sequence[quotas.Chain], chance: random.Random) -> Iterable[quotas.Write]:
    """Yield the writes of chains in some order in which parallel workers may do them."""
    left = [list(chain) for chain in chains]
    while any(left):
        chain = chance.choice([chain for chain in left if chain])
        yield chain.pop(0)


def writes(
    document: Document, found: Sequence[Member], state: State, chance: random.Random, stop: int
) -> Iterable[quotas.Write]:
    """Do what is planned, cut off after so many writes, and then to its end; yield each write once it was done."""
    for limit in (stop, 10**6):
        planned = quotas.order(quotas.build(document, found, state))
        every = (each for chains in planned for each in interleaved(chains, chance))
        for each in itertools.islice(every, limit):
            write(state, [each])
            yield each


# Mostly with both resources, as budgets want it.
hard = some.one_of(
    some.fixed_dictionaries({name: some.integers(0, 9) for name in RESOURCES}),
    some.fixed_dictionaries({}, optional={name: some.integers(0, 9) for name in RESOURCES}),
)
shares = some.dictionaries(
    some.sampled_from(NAMESPACES), some.tuples(some.sampled_from(TENANTS), hard), max_size=len(NAMESPACES)
)


@settings(max_examples=200)
@given(before=shares, after=shares, chance=some.randoms(use_true_random=False), stop=some.integers(0, 12))
def test_no_order_of_applying_exceeds_a_budget_midway(
    before: dict[str, tuple[str, dict[str, int]]],
    after: dict[str, tuple[str, dict[str, int]]],
    chance: random.Random,
    stop: int,
) -> None:
    """Whatever the workers do first, and wherever a run is cut off: no tenant has more than before or after."""
    state = cluster_of(before)
    document, found = made_of(raw_document(after))
    start, end = totals(state), totals(cluster_of(after))
    most = {
        (tenant, name): max(start.get((tenant, name), Fraction(0)), end.get((tenant, name), Fraction(0)))
        for tenant in TENANTS
        for name in RESOURCES
        if capped(before, tenant, name) and capped(after, tenant, name)
    }
    for _write in writes(document, found, state, chance, stop):
        now = totals(state)
        for key, limit_of_key in most.items():
            assert now.get(key, Fraction(0)) <= limit_of_key, key
    assert totals(state) == end
    assert quotas.build(document, found, state).items == []


# Quotas of a namespace by name: scopes, and how many pods.
scoped = some.dictionaries(
    some.sampled_from(["q", "r"]),
    some.tuples(some.sampled_from([(), ("Terminating",), ("NotTerminating",), ("BestEffort",)]), some.integers(0, 9)),
    max_size=2,
)
scoped_shares = some.dictionaries(
    some.sampled_from(NAMESPACES[:3]), some.tuples(some.sampled_from(TENANTS), scoped), max_size=3
)
Scoped = dict[str, tuple[str, dict[str, tuple[tuple[str, ...], int]]]]


def scoped_document(given: Scoped) -> tuple[Document, list[Member]]:
    raw = raw_document({name: (tenant, {}) for name, (tenant, _quotas) in given.items()})
    for name, (_tenant, found) in given.items():
        raw["profiles"][name] = {
            "quotas": {
                quota_name: {"hard": {"pods": pods}, **({"scopes": list(scopes)} if scopes else {})}
                for quota_name, (scopes, pods) in found.items()
            }
        }
    return made_of(raw)


def caps(state: State) -> dict[str, Fraction]:
    """Return how many pods each namespace may have, of those that have a cap."""
    found: dict[str, list[Any]] = {}
    for live in state.values():
        if live.kind == "ResourceQuota":
            spec = live.body["spec"]
            found.setdefault(live.namespace, []).append((spec.get("scopes") or (), False, spec["hard"]))
    return {name: cap["pods"] for name, shapes in found.items() if "pods" in (cap := share(shapes))}


def capped_by_tenant(state: State, owners: dict[str, str]) -> dict[str, Fraction]:
    """Return how many pods each tenant may have in these namespaces: they count for their owner as soon as one quota
    says so, and for the one before until then."""
    total = dict.fromkeys(TENANTS, Fraction(0))
    cap = caps(state)
    for name, owner in owners.items():
        found = {live.labels.get(TENANT_LABEL) for live in state.values() if live.namespace == name}
        for tenant in [owner] if owner in found else found & set(TENANTS):
            total[str(tenant)] += cap.get(name, Fraction(0))
    return total


@settings(max_examples=300)
@given(before=scoped_shares, after=scoped_shares, chance=some.randoms(use_true_random=False), stop=some.integers(0, 14))
def test_a_namespace_is_never_without_the_cap_that_it_has_before_and_after(
    before: Scoped, after: Scoped, chance: random.Random, stop: int
) -> None:
    """Also while scopes change, which the server lets nobody do, and wherever a run is cut off."""
    _document, members_before = scoped_document(before)
    things = [as_live(thing) for member in members_before for thing in objects(member)]
    state = state_of([*things, *(namespace(name) for name in NAMESPACES)])
    document, found = scoped_document(after)
    goal = state_of([as_live(thing) for member in found for thing in objects(member)])
    start, end = caps(state), caps(goal)
    always = {name: max(start[name], end[name]) for name in start.keys() & end.keys()}
    owners = {name: after[name][0] for name in always}
    tenants_start, tenants_end = capped_by_tenant(state, owners), capped_by_tenant(goal, owners)
    budgets = {tenant: max(tenants_start[tenant], tenants_end[tenant]) for tenant in TENANTS}
    for _write in writes(document, found, state, chance, stop):
        now, tenants_now = caps(state), capped_by_tenant(state, owners)
        for name, most in always.items():
            assert name in now, f"{name} has no cap"
            assert now[name] <= most, name
        for tenant, most in budgets.items():
            assert tenants_now[tenant] <= most, tenant
    left = {key: live.body for key, live in state.items() if live.kind == "ResourceQuota"}
    assert left == {key: live.body for key, live in goal.items()}
    assert quotas.build(document, found, state).items == []


@given(before=shares, after=shares)
def test_a_plan_carried_out_leaves_nothing_to_do(
    before: dict[str, tuple[str, dict[str, int]]], after: dict[str, tuple[str, dict[str, int]]]
) -> None:
    state = cluster_of(before)
    document, found = made_of(raw_document(after))
    plan = quotas.build(document, found, state)
    completed = [id(each.item) for chains in quotas.order(plan) for chain in chains for each in chain if each.completes]
    assert sorted(completed) == sorted(id(item) for item in plan.items)
    again = quotas.build(*made_of(raw_document(before)), cluster_of(before))
    assert again.items == []


def plan_between(before: dict[str, Any], after: dict[str, Any]) -> Plan:
    """Return the plan that leads from one profile of a namespace to another."""
    profile = {"tenants": {"red": {"namespaces": [{"name": "n1", "profile": "p"}]}}}
    _document, found = made_of({**profile, "profiles": {"p": before}})
    state = state_of([namespace("n1"), *(as_live(thing) for member in found for thing in objects(member))])
    document, found = made_of({**profile, "profiles": {"p": after}})
    return quotas.build(document, found, state)


def kinds_in_order(plan: Plan) -> list[str]:
    return [each.item.kind for chains in quotas.order(plan) for chain in chains for each in chain]


LOOSE = {
    "quotas": {"q": {"hard": {"pods": 9}}},
    "limit_range": {"container": {"default": {"cpu": 4}}},
}
TIGHT = {
    "quotas": {"q": {"hard": {"pods": 3}}},
    "limit_range": {"container": {"default": {"cpu": 1}}},
}


def test_limits_come_before_quotas_when_tightening_and_after_when_loosening() -> None:
    assert kinds_in_order(plan_between(LOOSE, TIGHT)) == ["LimitRange", "ResourceQuota"]
    assert kinds_in_order(plan_between(TIGHT, LOOSE)) == ["ResourceQuota", "LimitRange"]
    demanding = {**LOOSE, "quotas": {"q": {"hard": {"pods": 9, "limits.cpu": 9}}}}
    demanding["limit_range"] = TIGHT["limit_range"]
    assert kinds_in_order(plan_between(LOOSE, demanding)) == ["LimitRange", "ResourceQuota"]
    assert kinds_in_order(plan_between({}, LOOSE)) == ["LimitRange", "ResourceQuota"]
    assert kinds_in_order(plan_between(LOOSE, {})) == ["ResourceQuota", "LimitRange"]


def test_a_quota_that_shrinks_and_grows_goes_through_the_smaller_of_both() -> None:
    plan = plan_between(
        {"quotas": {"q": {"hard": {"pods": 9, "requests.cpu": 1}}}},
        {"quotas": {"q": {"hard": {"pods": 3, "requests.cpu": 5, "limits.cpu": 7}}}},
    )
    (down,), (up,) = quotas.order(plan)
    assert [each.thing["spec"]["hard"] for each in down if each.thing] == [{"pods": "3", "requests.cpu": "1"}]
    assert not down[0].completes
    assert up[0].thing and up[0].thing["spec"]["hard"] == {"pods": "3", "requests.cpu": "5", "limits.cpu": "7"}


def names_in(chains: Sequence[quotas.Chain]) -> list[str]:
    """Return what chains write, with a minus for what they delete."""
    found = []
    for each in (write for chain in chains for write in chain):
        name = quotas.stand_in_name(each.item) if each.of_stand_in else each.item.name
        found.append(each.thing["metadata"]["name"] if each.thing else f"-{name}")
    return found


def test_what_follows_a_quota_for_all_pods_is_there_before_others_grow() -> None:
    terminating, other = {"scopes": ["Terminating"]}, {"scopes": ["NotTerminating"]}
    plan = plan_between(
        {"quotas": {"q": {"hard": {"pods": 9}}}},
        {"quotas": {"q": {"hard": {"pods": 3}, **other}, "r": {"hard": {"pods": 2}, **terminating}}},
    )
    down, up = quotas.order(plan)
    assert names_in(down) == ["q.takes-over.notterminating", "r"]
    assert names_in(up) == ["-q", "q", "-q.takes-over.notterminating"]


def test_a_quota_goes_after_others_have_shrunk_when_it_held_one_down_that_stays() -> None:
    both = {"quotas": {"q": {"hard": {"pods": 9}}, "r": {"hard": {"pods": 2}}}}
    plan = plan_between(both, {"quotas": {"q": {"hard": {"pods": 9}}}})
    down, up = quotas.order(plan)
    assert (names_in(down), names_in(up)) == ([], ["-r"])
    down, up = quotas.order(plan_between(both, {}))
    assert (sorted(names_in(down)), names_in(up)) == (["-q", "-r"], [])


def quota(hard: dict[str, str], **metadata: Any) -> dict[str, Any]:
    labels = {TENANT_LABEL: "red"}
    return {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"namespace": "n1", "name": "q", "labels": labels, **metadata},
        "spec": {"hard": hard},
    }


def test_fields_are_compared_by_meaning_and_by_owner() -> None:
    wanted = quota({"requests.cpu": "1", "requests.memory": "1Gi"})
    assert quotas.compare(wanted, as_live(quota({"requests.cpu": "1000m", "requests.memory": "1024Mi"}))) is None
    assert quotas.compare(wanted, as_live(wanted, manager="kubectl")) == ()
    assert quotas.compare(wanted, as_live(quota({"requests.cpu": "2", "requests.memory": "1Gi"}))) == (
        ("spec", "hard", "requests.cpu"),
    )
    more = as_live(quota({"requests.cpu": "1", "requests.memory": "1Gi", "pods": "3"}))
    assert quotas.compare(wanted, more) == (("spec", "hard", "pods"),)


def test_a_conflict_names_manager_and_field_and_equal_values_are_none() -> None:
    live = as_live(quota({"pods": "3", "requests.cpu": "1000m"}), manager="somebody")
    item = Item("ResourceQuota", "n1", "q", "red", quota({"pods": "5", "requests.cpu": "1"}), live, "change")
    assert quotas.conflicts(item) == {"somebody": ["spec.hard.pods"]}
    spelled = quotas.adopted(item)
    assert spelled and spelled["spec"]["hard"] == {"pods": "5", "requests.cpu": "1000m"}


def test_what_only_looks_like_ours_stays() -> None:
    document, found = made_of({"tenants": {}})
    label_alone = as_live(quota({"pods": "3"}), manager="somebody")
    manager_alone = as_live(quota({"pods": "3"}, name="r", labels={}))
    both = as_live(quota({"pods": "3"}, name="s"))
    plan = quotas.build(document, found, state_of([label_alone, manager_alone, both]))
    assert [item.name for item in plan.items] == ["s"]


@pytest.mark.parametrize(
    ("containers", "init", "expected"),
    [
        ([{"requests": {"cpu": "1"}}, {"requests": {"cpu": "2"}}], [], {"requests.cpu": 3}),
        ([{"requests": {"cpu": "1"}}], [{"requests": {"cpu": "4"}}], {"requests.cpu": 4}),
        ([{"requests": {"cpu": "1"}}], [{"requests": {"cpu": "4"}, "restart": True}], {"requests.cpu": 5}),
        ([{"limits": {"cpu": "2"}}], [], {"requests.cpu": 2, "limits.cpu": 2}),
        ([{}], [], {}),
    ],
)
def test_a_pod_counts_as_quotas_count_it(containers: list[Any], init: list[Any], expected: dict[str, int]) -> None:
    def container(given: dict[str, Any]) -> dict[str, Any]:
        resources = {side: value for side, value in given.items() if side != "restart"}
        return {"name": "c", "resources": resources, **({"restartPolicy": "Always"} if "restart" in given else {})}

    spec = {
        "containers": [container(each) for each in containers],
        "initContainers": [container(each) for each in init],
    }
    assert quota_checks.pod_amounts(spec) == {"pods": 1, **{name: Fraction(value) for name, value in expected.items()}}


def test_a_quota_demands_what_it_counts() -> None:
    pod = {"spec": {"containers": [{"name": "main"}, {"name": "side", "resources": {"limits": {"cpu": "1"}}}]}}
    compute = {"hard": {"requests.cpu": "4", "limits.memory": "1Gi"}}
    reasons = quota_checks.refusals(pod, [], [compute])
    assert reasons == [
        "container main has no requests of cpu, which a quota on requests.cpu demands",
        "container main, side has no limits of memory, which a quota on limits.memory demands",
    ]
    assert quota_checks.refusals(pod, [], [{**compute, "scopes": ["BestEffort"]}]) == []
    assert quota_checks.refusals(pod, [], [{**compute, "scopes": ["Terminating"]}]) == []
    classes = {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In", "values": ["gold"]}]}
    assert quota_checks.refusals(pod, [], [{**compute, "scopeSelector": classes}]) == []
    small = {"hard": {"limits.cpu": "500m"}}
    pod["spec"]["containers"].pop(0)
    assert quota_checks.refusals(pod, [], [small]) == ["the pod's limits of cpu 1 are above the whole quota 500m"]


def node(name: str, zone: str, cpu: str, **spec: Any) -> dict[str, Any]:
    labels = {"topology.kubernetes.io/zone": zone}
    return {"metadata": {"name": name, "labels": labels}, "spec": spec, "status": {"allocatable": {"cpu": cpu}}}


def test_nodes_that_tenants_cannot_use_give_nothing() -> None:
    taint = {"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}
    assert quota_checks.node_of(node("a", "x", "4", taints=[taint])) is None
    passing = {"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"}
    assert quota_checks.node_of(node("a", "x", "4", taints=[passing])) is not None


def test_what_is_promised_is_held_against_losses() -> None:
    document, found = made_of(
        {
            "tenants": {
                "red": {"namespaces": [{"name": "n1", "profile": "p"}]},
                "blue": {"namespaces": [{"name": "n2", "profile": "p"}], "budget": {"cpu": 4}},
            },
            "profiles": {"p": {"quotas": {"q": {"hard": {"cpu": 2, "services": 3}}}}},
            "reserve": {"cpu": 1},
            "overcommit": {"cpu": 0.5},
        }
    )
    nodes = [quota_checks.node_of(node(*each)) for each in (("a", "x", "4"), ("b", "x", "2"), ("c", "y", "3"))]
    known = [each for each in nodes if each]
    (row,) = quota_checks.overcommit(document, found, known)
    assert row == {
        "resource": "requests.cpu",
        "promised": "6",
        "available": "8",
        "ratio": 0.75,
        "ratio_without_largest_node": 1.5,
        "ratio_without_largest_zone": 3.0,
    }
    (fault,) = quota_checks.capacity_faults(document, [row], known)
    assert "found 6 promised, 8 available (0.75 times); wanted at most 0.5 times" in str(fault)
    assert quota_checks.overcommit(document, found, [])[0]["ratio"] is None
