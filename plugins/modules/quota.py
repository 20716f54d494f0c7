#!/usr/bin/python
# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Module quota: what tenants may use, and what their namespaces get."""

from __future__ import annotations

DOCUMENTATION = r"""
module: quota
short_description: Give tenants their shares
description:
  - Brings a cluster to what one tenants document says of namespaces, ResourceQuotas, LimitRanges, default
    PodDisruptionBudgets and NetworkPolicies, Pod Security levels and the tokens of default service accounts.
  - Looks first, with one list for each kind that the document writes, and writes only what differs, by server-side
    apply with a field manager of its own. What carries its label and its manager and is in no document any more is
    removed.
  - What shrinks is written before what grows, so that a tenant's budget holds at every moment. A run that was cut off
    is finished by the next.
  - The document is described by C(data/tenants.schema.json) and on the page C(docs/tenants.md).
author:
  - Plainkube contributors (@plainkube)
version_added: 0.2.0
extends_documentation_fragment:
  - plainkube.cluster.api_access
attributes:
  check_mode:
    support: full
    description:
      - Lets the server try every write without keeping it; the counts are those of a real run.
      - While the kubeconfig does not exist, there is nothing to compare with, and no change is reported.
  diff_mode:
    support: full
    description: Shows the fields that are the module's own, object by object.
requirements:
  - jsonschema (Python)
options:
  tenants:
    description: The tenants document as data.
    type: dict
  tenants_file:
    description: The tenants document as a YAML or JSON file. Faults are then named with their lines.
    type: path
  on_shrink:
    description:
      - What to do when a quota would allow less than is in use now. The API would accept it, and refuse new pods.
      - V(fail) writes nothing at all, V(report) leaves such quotas as they are and goes on with the rest, V(force)
        writes them.
    type: str
    choices: [fail, report, force]
    default: fail
  force:
    description: Take fields over that other managers hold. Without it they are named, and nothing is written.
    type: bool
    default: false
  delete_namespaces:
    description:
      - Delete namespaces that this module made and that are in the document no more, with all in them.
      - Without it they stay and lose what the module said in them. Namespaces that others made always stay.
    type: bool
    default: false
  report_csv:
    description: File for a table of all objects with what came of each. Not written in check mode.
    type: path
  report_junit:
    description: File for the same as JUnit XML, refused objects as failures. Not written in check mode.
    type: path
"""

EXAMPLES = r"""
- name: Give the teams their shares
  plainkube.cluster.quota:
    kubeconfig: /home/operator/.plainkube/production/admin.conf
    tenants_file: tenants.yml
  delegate_to: localhost

- name: Give one team its share, and leave alone what is in use
  plainkube.cluster.quota:
    on_shrink: report
    tenants:
      tenants:
        shop:
          profile: web
          budget: {requests.memory: 16Gi}
          namespaces: [shop-web, shop-jobs]
      profiles:
        web:
          quotas:
            compute: {hard: {requests.memory: 8Gi, limits.memory: 8Gi, pods: 50}}
          limit_range:
            container: {default: {memory: 256Mi}, default_request: {memory: 128Mi}}
  delegate_to: localhost
"""

RETURN = r"""
counts:
  description: How many objects were created, changed, unchanged, pruned and refused.
  returned: when the cluster was read
  type: dict
  sample: {created: 2, changed: 0, unchanged: 40, pruned: 0, refused: 0}
outcomes:
  description: The objects by what came of them. In check mode, what would come of them.
  returned: when the cluster was read
  type: dict
  contains:
    created:
      description: Objects that were made.
      type: list
      elements: dict
      contains: &object
        kind: {description: Its kind., type: str}
        namespace: {description: Its namespace; empty for a namespace itself., type: str}
        name: {description: Its name., type: str}
        tenant: {description: The tenant that it is for., type: str}
        reason: {description: Why it was refused; for refused objects alone., type: str}
    changed:
      description: Objects that were changed.
      type: list
      elements: dict
      contains: *object
    pruned:
      description: Objects that were removed, or that lost what the module had said in them.
      type: list
      elements: dict
      contains: *object
    refused:
      description: Objects that were not written, with the reason.
      type: list
      elements: dict
      contains: *object
    unchanged:
      description: Objects that were as wanted, as kind and name.
      type: list
      elements: str
shrunk:
  description: Quotas that are smaller than what is used, and the pods that use most.
  returned: when the cluster was read
  type: list
  elements: dict
  contains:
    namespace: {description: The namespace., type: str}
    quota: {description: Name of the ResourceQuota., type: str}
    resource: {description: The resource., type: str}
    used: {description: What is used now., type: str}
    wanted: {description: What the document allows., type: str}
    pods: {description: The pods that use most., type: list, elements: str}
rollouts:
  description: Deployments, StatefulSets, DaemonSets and CronJobs whose pods the new limits would refuse.
  returned: when the cluster was read
  type: list
  elements: dict
  contains:
    kind: {description: Its kind., type: str}
    namespace: {description: Its namespace., type: str}
    name: {description: Its name., type: str}
    reasons: {description: What the API server would say., type: list, elements: str}
overcommit:
  description:
    - For each resource what tenants may use against what the nodes can give, also after losses.
    - Empty when nothing is to be written and the document has neither C(reserve) nor C(overcommit). Nodes are not
      asked for then.
  returned: when the cluster was read
  type: list
  elements: dict
  contains:
    resource: {description: The resource as quotas call it., type: str}
    promised: {description: Budgets of all tenants together., type: str}
    available: {description: What the nodes can give to tenants., type: str}
    ratio: {description: How often it is promised; none when there is nothing to give., type: float}
    ratio_without_largest_node: {description: The same without the largest node., type: float}
    ratio_without_largest_zone: {description: The same without the largest zone; only with several zones., type: float}
requests:
  description: Requests that were sent to the API.
  returned: when the cluster was read
  type: int
writes:
  description: Requests of them that could change something.
  returned: when the cluster was read
  type: int
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.plainkube.cluster.plugins.module_utils import quota_checks, quotas, quotas_io, tenants
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError
from ansible_collections.plainkube.cluster.plugins.module_utils.files_io import write_atomically
from ansible_collections.plainkube.cluster.plugins.module_utils.kubernetes_api import (
    ARGUMENTS,
    HAS_KUBERNETES,
    Api,
    NoWayIn,
    problem_lines,
    secrets_in,
)

SHOWN = 20
WORDS = ("created", "changed", "unchanged", "pruned", "refused")
# What check mode says while there is no cluster yet.
NOTHING: dict[str, Any] = {
    "outcomes": {word: [] for word in WORDS},
    "counts": dict.fromkeys(WORDS, 0),
    "overcommit": [],
    "shrunk": [],
    "rollouts": [],
    "requests": 0,
    "writes": 0,
}


class Refused(PlainkubeError):
    """Nothing was written, since something stands against the document."""


def planned(
    options: dict[str, Any], document: tenants.Document, state: quotas.State, api: Api
) -> tuple[quotas.Plan, dict[str, Any]]:
    """Return what to write, and what there is to say of it. Raises PlainkubeError with all that stands against it."""
    labels = {live.name: live.labels for live in state.values() if live.kind == "Namespace"}
    found, double = tenants.members(document.tenants.values(), document.profiles, labels)
    plan = quotas.build(document, found, state, options["delete_namespaces"])
    against = [*double, *plan.faults, *tenants.budget_faults(document.tenants, found)]
    look = quotas_io.Look(api)
    # Where nothing is written, nodes matter to what the document itself says of them, and PriorityClasses to nothing.
    matters = bool(plan.items or against)
    overcommit = []
    if matters or document.overcommit or document.reserve:
        nodes = look.nodes()
        overcommit = quota_checks.overcommit(document, found, nodes)
        against += quota_checks.capacity_faults(document, overcommit, nodes)
    if quotas.names_classes(document) and (against or quotas.writes_classes(plan)):
        against += quotas_io.class_faults(document, look.priority_classes())
    shrunk = quota_checks.shrinks(plan, look.pods(quota_checks.namespaces_to_count(plan, state)))
    look.require_rights(document)
    words = [str(fault) for fault in against]
    if not options["force"]:
        words += [f"{line}; change it there, or take it over with force: true" for line in quotas.conflict_faults(plan)]
    if options["on_shrink"] == "fail":
        remedy = "free it first, or choose on_shrink: report or force"
        words += [f"{shrink}; {remedy}" for shrinks in shrunk.values() for shrink in shrinks]
    if words:
        raise Refused(tenants.message(words, "the tenants document against this cluster"))
    if options["on_shrink"] == "report":
        quotas.refuse_shrinks(plan, shrunk, document.tenants, state)
    rollouts = look.refusals(plan, state)
    look.require_rights(document)
    plan.warnings += quota_checks.doubled(found, state)
    plan.warnings += quota_checks.empty_entries(document, labels)
    plan.warnings += [f"{item.title} was left as it is: {item.reason}" for item in plan.items if item.reason]
    return plan, {
        "overcommit": overcommit,
        "shrunk": [asdict(shrink) for shrinks in shrunk.values() for shrink in shrinks],
        "rollouts": rollouts,
    }


def outcomes(plan: quotas.Plan, writer: quotas_io.Writer) -> dict[str, list[dict[str, str]]]:
    """Return the items by what came of them."""
    found: dict[str, list[dict[str, str]]] = {word: [] for word in WORDS}
    for item in plan.items:
        outcome = writer.outcomes[id(item)]
        entry = {"kind": item.kind, "namespace": item.namespace, "name": item.name, "tenant": item.tenant}
        found[outcome.word].append({**entry, "reason": outcome.reason} if outcome.reason else entry)
    return found


def rollout_warning(rollouts: list[dict[str, Any]]) -> list[str]:
    """Return one warning for all workloads that would be refused."""
    lines = [
        f"{entry['kind']} {entry['namespace']}/{entry['name']}: {'; '.join(entry['reasons'])}"
        for entry in rollouts[:SHOWN]
    ]
    more = [f"and {len(rollouts) - SHOWN} more, all in rollouts"] if len(rollouts) > SHOWN else []
    return ["Pods of these would be refused at their next rollout: " + "\n".join([*lines, *more])] if rollouts else []


def run(module: AnsibleModule) -> dict[str, Any]:
    """Return the result. Raises PlainkubeError."""
    options = module.params
    document = quotas_io.load_document(options["tenants"], options["tenants_file"])
    try:
        api = Api(options)
    except NoWayIn as error:
        if not module.check_mode:
            raise
        module.warn(f"There is nothing to compare with: {error}")
        return {"changed": False, **NOTHING}
    state = quotas_io.read_cluster(api, document)
    plan, said = planned(options, document, state, api)
    budgeted = [name for name, tenant in document.tenants.items() if tenant.budget]
    writer = quotas_io.Writer(api, state, budgeted, options["force"], module.check_mode, module._diff)
    writer.run(plan)

    found = outcomes(plan, writer)
    as_before = [f"{entry['kind']} {entry['namespace']}/{entry['name']}" for entry in found["unchanged"]]
    unchanged = plan.unchanged + as_before
    result: dict[str, Any] = {
        "changed": bool(found["created"] or found["changed"] or found["pruned"]),
        "outcomes": {**found, "unchanged": unchanged},
        "counts": {**{word: len(entries) for word, entries in found.items()}, "unchanged": len(unchanged)},
        **said,
        "requests": api.requests,
        "writes": api.writes,
    }
    for warning in (*plan.warnings, *rollout_warning(said["rollouts"])):
        module.warn(warning)
    if module._diff:
        result["diff"] = [
            quotas.diff(item, writer.outcomes[id(item)].after)
            for item in plan.items
            if writer.outcomes[id(item)].word in ("created", "changed", "pruned")
        ]
    table = quotas.rows({**found, "unchanged": plan.unchanged_entries() + found["unchanged"]})
    for option, report in (("report_csv", quotas.csv_report), ("report_junit", quotas.junit_report)):
        if options[option] and not module.check_mode:
            write_atomically(str(Path(options[option]).absolute()), report(table).encode(), 0o644)
    problems = [outcome.problem for outcome in writer.outcomes.values() if outcome.problem]
    if problems:
        done = sum(len(found[word]) for word in ("created", "changed", "pruned"))
        lines = problem_lines(problems)
        result["failed"] = True
        result["msg"] = "\n".join(
            [
                f"{len(found['refused'])} objects were not written, {done} were; run it again to go on:",
                *(f"- {line}" for line in lines[:SHOWN]),
                *([f"- and {len(lines) - SHOWN} more, all in outcomes.refused"] if len(lines) > SHOWN else []),
            ]
        )
    return result


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **ARGUMENTS,
            "tenants": {"type": "dict"},
            "tenants_file": {"type": "path"},
            "on_shrink": {"type": "str", "choices": ["fail", "report", "force"], "default": "fail"},
            "force": {"type": "bool", "default": False},
            "delete_namespaces": {"type": "bool", "default": False},
            "report_csv": {"type": "path"},
            "report_junit": {"type": "path"},
        },
        mutually_exclusive=[("tenants", "tenants_file")],
        required_one_of=[("tenants", "tenants_file")],
        supports_check_mode=True,
    )
    module.no_log_values.update(secrets_in(module.params))
    for present, name in ((HAS_KUBERNETES, "kubernetes"), (tenants.HAS_JSONSCHEMA, "jsonschema")):
        if not present:
            module.fail_json(msg=missing_required_lib(name))
    try:
        result = run(module)
    except PlainkubeError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"a report cannot be written: {error}")
    if result.get("failed"):
        module.fail_json(**result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
