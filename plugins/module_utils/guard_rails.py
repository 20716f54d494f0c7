# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Guard rails: the audit's rules as ValidatingAdmissionPolicies, where CEL can say them. Pure functions.

Each rule with a guard becomes a policy, and three bindings that choose namespaces by their label: warn, audit, deny. A
namespace without the label is left alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.plainkube.cluster.plugins.module_utils.audit_subjects import WORKLOADS, kinds_meant
from ansible_collections.plainkube.cluster.plugins.module_utils.audits import EXEMPTION_PREFIX, AuditError, Rule

Object = dict[str, Any]

GROUP = "admissionregistration.k8s.io/v1"
POLICY = "ValidatingAdmissionPolicy"
BINDING = "ValidatingAdmissionPolicyBinding"
MODE_LABEL = "plainkube.io/guard-rails"
ACTIONS = {"warn": "Warn", "audit": "Audit", "deny": "Deny"}
# By which a guard rail that is wanted no more is known.
OURS = {"app.kubernetes.io/managed-by": "plainkube", "app.kubernetes.io/part-of": "guard-rails"}
PREFIX = "plainkube-"

# What a guard can be asked about; cluster-wide kinds have no namespace whose label could choose.
GUARDED: dict[str, tuple[str, str, str]] = {
    "Deployment": ("apps", "v1", "deployments"),
    "StatefulSet": ("apps", "v1", "statefulsets"),
    "DaemonSet": ("apps", "v1", "daemonsets"),
    "Job": ("batch", "v1", "jobs"),
    "CronJob": ("batch", "v1", "cronjobs"),
    "Pod": ("", "v1", "pods"),
    "Service": ("", "v1", "services"),
    "Ingress": ("networking.k8s.io", "v1", "ingresses"),
    "PodDisruptionBudget": ("policy", "v1", "poddisruptionbudgets"),
}

# What a controller or kubelet makes was judged when somebody made its owner. Refusing it now would keep pods of an
# older Deployment from coming back when their node is lost.
BY_SOMEBODY = (
    "!(request.userInfo.username == 'system:kube-controller-manager'"
    " || request.userInfo.username.startsWith('system:serviceaccount:kube-system:')"
    " || request.userInfo.username.startsWith('system:node:'))"
)
# Labels, finalizers and the like can be changed on objects that are older than the guard rail.
SPEC_CHANGES = "request.operation == 'CREATE' || dyn(object).spec != dyn(oldObject).spec"
TEMPLATE = (
    "request.kind.kind == 'Pod' ? dyn(object)"
    " : request.kind.kind == 'CronJob' ? dyn(object).spec.jobTemplate.spec.template : dyn(object).spec.template"
)
POD_VARIABLES = (
    ("pod", f"({TEMPLATE}).spec"),
    # Sidecars run beside the others, init containers that end do not.
    (
        "regular",
        "variables.pod.containers + (has(variables.pod.initContainers) ? variables.pod.initContainers.filter(c, "
        "has(c.restartPolicy) && c.restartPolicy == 'Always') : [])",
    ),
    (
        "containers",
        "variables.pod.containers + (has(variables.pod.initContainers) ? variables.pod.initContainers : [])",
    ),
)
# CEL has no clock: an exemption that has run out passes here, and is a finding of the next audit.
EXEMPTION = "^ *until [0-9]{4}-[0-9]{2}-[0-9]{2} *: *[^ ]"


def policies_of(rules: Iterable[Rule]) -> list[Object]:
    """Return policies and bindings for all rules that are switched on and have a guard. Raises AuditError."""
    things: list[Object] = []
    faults: list[str] = []
    for rule in rules:
        if not rule.guard or not rule.enabled:
            continue
        kinds = [kind for kind in kinds_meant(rule.kinds) if kind in GUARDED]
        if not kinds:
            faults.append(
                f"rule {rule.id}: it has a guard but looks at {', '.join(rule.kinds)}; "
                f"a guard can be asked about {', '.join(GUARDED)}"
            )
            continue
        things.append(_policy(rule, kinds))
        things += [_binding(rule, mode) for mode in ACTIONS]
    if faults:
        raise AuditError("; ".join(faults))
    return things


def _policy(rule: Rule, kinds: list[str]) -> Object:
    variables = [("settings", json.dumps(dict(rule.settings)))]
    if any(kind in WORKLOADS for kind in kinds):
        variables += POD_VARIABLES
    key = json.dumps(EXEMPTION_PREFIX + rule.id)
    variables += [
        ("found", " ".join(rule.guard.split())),
        ("exempt", " || ".join(_exempts(owner, key) for owner in ("object", "namespaceObject"))),
    ]
    conditions = [("asked-for-by-somebody", BY_SOMEBODY), ("spec-changes", SPEC_CHANGES)]
    conditions += [
        (f"not-in-{number}", f"!request.namespace.matches({json.dumps(_expression(pattern))})")
        for number, pattern in enumerate(rule.not_in_namespaces)
    ]
    return {
        "apiVersion": GROUP,
        "kind": POLICY,
        "metadata": {
            "name": PREFIX + rule.id,
            "labels": dict(OURS),
            "annotations": {"plainkube.io/title": rule.title, "plainkube.io/why": rule.why},
        },
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [_resource_rule(*GUARDED[kind]) for kind in kinds]},
            "matchConditions": [{"name": name, "expression": text} for name, text in conditions],
            "variables": [{"name": name, "expression": text} for name, text in variables],
            "validations": [
                {
                    "expression": "size(variables.found) == 0 || variables.exempt",
                    "message": f"{rule.title}. {rule.fix}",
                    "messageExpression": (
                        f"{json.dumps(rule.title + ' (')} + variables.found.join(', ') + {json.dumps('). ' + rule.fix)}"
                    ),
                    "reason": "Forbidden",
                }
            ],
        },
    }


def _binding(rule: Rule, mode: str) -> Object:
    return {
        "apiVersion": GROUP,
        "kind": BINDING,
        "metadata": {"name": f"{PREFIX}{rule.id}-{mode}", "labels": dict(OURS)},
        "spec": {
            "policyName": PREFIX + rule.id,
            "validationActions": [ACTIONS[mode]],
            "matchResources": {"namespaceSelector": {"matchLabels": {MODE_LABEL: mode}}},
        },
    }


def _resource_rule(group: str, version: str, plural: str) -> Object:
    return {"apiGroups": [group], "apiVersions": [version], "operations": ["CREATE", "UPDATE"], "resources": [plural]}


def _exempts(owner: str, key: str) -> str:
    """Return the CEL for whether an object's annotation exempts it."""
    notes = f"{owner}.metadata.annotations"
    return f"has({notes}) && {key} in {notes} && {notes}[{key}].matches({json.dumps(EXEMPTION)})"


def _expression(pattern: str) -> str:
    """Return a shell pattern of names as the regular expression that CEL knows."""
    text = "".join({"*": ".*", "?": "."}.get(letter, re.escape(letter)) for letter in pattern)
    return f"^{text}$"


# --- Comparing --------------------------------------------------------------------------------------------------------


def holds(live: Any, wanted: Any) -> bool:
    """Return whether an object as the API has it says all that is wanted of it; the API adds defaults of its own."""
    if isinstance(wanted, Mapping):
        return isinstance(live, Mapping) and all(key in live and holds(live[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list):
        return isinstance(live, list) and len(live) == len(wanted) and all(map(holds, live, wanted))
    return bool(live == wanted)


def plan(live: Iterable[Object], wanted: Iterable[Object]) -> tuple[list[Object], list[Object]]:
    """Return what is to be applied, and what of ours is to be removed. live: objects with apiVersion and kind."""
    there = {(thing["kind"], thing["metadata"]["name"]): thing for thing in live}
    named = {(thing["kind"], thing["metadata"]["name"]): thing for thing in wanted}
    apply = [
        {key: thing[key] for key in ("apiVersion", "kind", "metadata", "spec")}
        for key, thing in named.items()
        if not holds(there.get(key), {part: thing[part] for part in ("metadata", "spec")})
    ]
    ours = {key for key, thing in there.items() if OURS.items() <= (thing["metadata"].get("labels") or {}).items()}
    # A binding without its policy is a mistake in the API's eyes: bindings go first.
    gone = sorted(ours - set(named), key=lambda key: (key[0] != BINDING, key))
    return apply, [there[key] for key in gone]
