#!/usr/bin/python
# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: guard_rails
short_description: House rules as admission policies that warn, note or refuse
description:
  - Makes a ValidatingAdmissionPolicy of each rule of M(plainkube.cluster.workload_audit) that CEL can say, with one
    binding for each mode. Nothing happens in a namespace until its label C(plainkube.io/guard-rails) says C(warn)
    (whoever applies an object sees a warning), C(audit) (the API server's audit log notes it) or C(deny) (it is
    refused).
  - Judged is what people and pipelines create, and changes to an object's C(spec). What controllers and kubelets make
    passes, so that pods of older objects come back when a node is lost.
  - Exemptions are the audit's annotations, on the object or its namespace. CEL has no clock, so that one which has run
    out still passes here and is a finding of the next audit.
  - Removes guard rails that are wanted no more, and only those that carry its labels.
version_added: 0.2.0
author:
  - Plainkube contributors (@plainkube)
extends_documentation_fragment:
  - plainkube.cluster.api_access
attributes:
  check_mode:
    support: full
    description: Asks the API server to check what it would be sent, and changes nothing.
  diff_mode:
    support: full
    description: Shows each object that is made, changed or removed.
options:
  state:
    description: V(absent) removes all guard rails.
    type: str
    choices: [present, absent]
    default: present
  rules:
    description:
      - Changes to the shipped rules, and rules of your own with a C(guard), as for M(plainkube.cluster.workload_audit).
    type: list
    elements: dict
    default: []
  force:
    description: Take over fields that somebody else has changed.
    type: bool
    default: false
  shipped_rules:
    description: The rules to begin with. By default the collection's own.
    type: list
    elements: dict
"""

EXAMPLES = r"""
- name: Put up guard rails, with one rule less
  plainkube.cluster.guard_rails:
    kubeconfig: /home/operator/.plainkube/production/admin.conf
    rules:
      - id: root-filesystem-writable
        enabled: false
  delegate_to: localhost
"""

RETURN = r"""
rules:
  description: The rules that have a guard rail.
  returned: success
  type: list
  elements: str
created:
  description: Objects that were made.
  returned: success
  type: list
  elements: str
updated:
  description: Objects that were changed.
  returned: success
  type: list
  elements: str
removed:
  description: Objects that were removed.
  returned: success
  type: list
  elements: str
unchanged:
  description: How many objects were as they should be.
  returned: success
  type: int
requests:
  description: How many requests the API was asked.
  returned: success
  type: int
"""

import json
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.plainkube.cluster.plugins.module_utils import audits, guard_rails
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError
from ansible_collections.plainkube.cluster.plugins.module_utils.kubernetes_api import (
    ARGUMENTS,
    HAS_KUBERNETES,
    RESOURCES,
    Api,
    secrets_in,
    title,
)

FIELD_MANAGER = "plainkube-guard-rails"


def live_objects(api: Api) -> list[dict[str, Any]]:
    """Return all admission policies and bindings of the cluster."""
    return [
        {**thing, "apiVersion": guard_rails.GROUP, "kind": kind}
        for kind in (guard_rails.POLICY, guard_rails.BINDING)
        for thing in api.list(RESOURCES[kind].path())
    ]


def raise_all(answers: Any) -> None:
    """Raise one error for all that went wrong."""
    errors = [str(answer) for answer in answers if isinstance(answer, Exception)]
    if errors:
        raise PlainkubeError("; ".join(errors) + "; run it again once this is mended, the rest is done")


def difference(before: dict[str, Any] | None, after: dict[str, Any] | None) -> dict[str, str]:
    """Return one object's part of the diff."""

    def text(thing: dict[str, Any] | None) -> str:
        return json.dumps(thing["spec"], indent=1) + "\n" if thing else ""

    name = title(after or before or {})
    return {"before_header": name, "after_header": name, "before": text(before), "after": text(after)}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **ARGUMENTS,
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "rules": {"type": "list", "elements": "dict", "default": []},
            "force": {"type": "bool", "default": False},
            "shipped_rules": {"type": "list", "elements": "dict"},
        },
        supports_check_mode=True,
    )
    module.no_log_values.update(secrets_in(module.params))
    options, check = module.params, module.check_mode
    for name, there in (("kubernetes", HAS_KUBERNETES), ("jmespath", audits.HAS_JMESPATH)):
        if not there:
            module.fail_json(msg=missing_required_lib(name))
    try:
        rules = audits.rules_of(options["shipped_rules"] or [], options["rules"]).values()
        wanted = guard_rails.policies_of(rules) if options["state"] == "present" else []
        api = Api(options)
        live = live_objects(api)
        apply, remove = guard_rails.plan(live, wanted)
        raise_all(api.apply_all(apply, FIELD_MANAGER, force=options["force"], dry_run=check))
        # In their order: a binding goes before its policy.
        removed = [thing for thing in remove if api.delete(thing, dry_run=check)]
    except PlainkubeError as error:
        module.fail_json(msg=str(error))
    before = {title(thing): thing for thing in live}
    created = [title(thing) for thing in apply if title(thing) not in before]
    updated = [title(thing) for thing in apply if title(thing) in before]
    answer: dict[str, Any] = {
        "changed": bool(apply or removed),
        "rules": [
            thing["metadata"]["name"].removeprefix(guard_rails.PREFIX)
            for thing in wanted
            if thing["kind"] == guard_rails.POLICY
        ],
        "created": created,
        "updated": updated,
        "removed": [title(thing) for thing in removed],
        "unchanged": len(wanted) - len(apply),
        "requests": api.requests,
    }
    if module._diff:
        answer["diff"] = [difference(before.get(title(thing)), thing) for thing in apply]
        answer["diff"] += [difference(thing, None) for thing in removed]
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
