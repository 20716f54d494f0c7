#!/usr/bin/python
# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: workload_audit
short_description: Hold what runs in a cluster against house rules
description:
  - Reads the cluster once, one paged list for each kind that a rule asks for, and reports every object that breaks a
    rule, by its owner and with the number of its replicas.
  - The rules are data. The collection ships a set, which can be changed, added to and switched off here; objects and
    namespaces are exempted by annotation or with O(exemptions), always with a reason and a last day.
  - Fails when a new finding is as severe as O(fail_on), and when there was no workload to look at. Reports are written
    before that.
  - Changes nothing in the cluster. Runs where the API can be reached, the controller by default.
version_added: 0.2.0
author:
  - Plainkube contributors (@plainkube)
extends_documentation_fragment:
  - plainkube.cluster.api_access
  - plainkube.cluster.audit_reports
requirements:
  - jmespath (Python)
  - Jinja2 (Python), for the HTML report
attributes:
  check_mode:
    support: full
    description: Looks in the same way, and writes neither reports nor a baseline.
  diff_mode:
    support: none
    description: There is nothing that changes.
options:
  rules:
    description:
      - Changes to the shipped rules, and rules of your own, as C(data/audit-rules.schema.json) describes them.
      - An entry with the C(id) of a shipped rule needs only the keys that differ; C(settings) are merged key by key.
    type: list
    elements: dict
    default: []
  exemptions:
    description:
      - Exemptions for objects that cannot be annotated. One whose day has passed no longer counts, and is a finding.
    type: list
    elements: dict
    default: []
    suboptions:
      rules:
        description: The rules that do not count.
        type: list
        elements: str
        required: true
      until:
        description: The last day on which they do not, as in V(2026-12-31).
        type: str
        required: true
      reason:
        description: Why.
        type: str
        required: true
      kinds:
        description: Kinds of objects that are meant, all by default.
        type: list
        elements: str
      namespaces:
        description: Patterns of their namespaces, all by default.
        type: list
        elements: str
      names:
        description: Patterns of their names, all by default.
        type: list
        elements: str
  namespaces:
    description:
      - Patterns of the namespaces to look at. By default all, and what is in none.
      - Where all are named without a pattern, rights in these are enough for most rules.
    type: list
    elements: str
    default: []
  exclude_namespaces:
    description: Patterns of namespaces to leave out.
    type: list
    elements: str
    default: []
  fail_on:
    description: The least severity of a new finding that makes the module fail.
    type: str
    choices: [critical, high, medium, low, never]
    default: high
  baseline:
    description: File with the findings that are known and do not make the module fail.
    type: path
  write_baseline:
    description:
      - Write O(baseline) with what is found now, instead of comparing with it. Findings are known from then on, and
        the module does not fail because of them.
    type: bool
    default: false
  shipped_rules:
    description: The rules to begin with. By default the collection's own.
    type: list
    elements: dict
"""

EXAMPLES = r"""
- name: Hold the cluster against the house rules
  plainkube.cluster.workload_audit:
    kubeconfig: /home/operator/.plainkube/production/admin.conf
    cluster_name: production
    fail_on: high
    baseline: audit-baseline.json
    rules:
      - id: labels-missing
        severity: medium
        settings:
          labels: [app.kubernetes.io/name, example.org/owner]
      - id: root-filesystem-writable
        enabled: false
      - id: image-from-elsewhere
        title: Image that is not from our registry
        why: A public registry removed an image, and a replaced node could not start it.
        severity: medium
        kinds: [Workload]
        expression: "containers[?!starts_with(image, 'registry.example.org/')].join(': ', [name, image])"
        fix: Copy the image into our registry.
    exemptions:
      - rules: [rbac-cluster-admin]
        kinds: [ClusterRoleBinding]
        names: [break-glass]
        until: "2026-12-31"
        reason: The way in for emergencies; its use raises an alarm.
    reports:
      html: audit.html
      junit: audit.xml
  delegate_to: localhost
"""

RETURN = r"""
looked_at:
  description: How many objects of each kind were read.
  returned: always
  type: dict
  sample: {Deployment: 500, Pod: 5000}
summary:
  description: How many findings there are. By rule and namespace only on success.
  returned: always
  type: dict
  contains:
    new: {description: Findings that count., type: int}
    known: {description: Findings that the baseline knows., type: int}
    exempt: {description: Findings that somebody exempted., type: int}
    resolved: {description: Entries of the baseline that are found no more., type: int}
    by_severity: {description: The first three for each severity., type: dict}
    by_rule: {description: The first three for each rule and how many objects it was held against., type: list}
    by_namespace: {description: New findings by severity for each namespace and those known and exempt., type: list}
findings:
  description:
    - What was found, most severe first.
    - When the module fails its message names the first of them, and the reports have all.
  returned: success
  type: list
  elements: dict
  contains:
    rule: {description: The rule's id., type: str}
    severity: {description: How severe it is., type: str}
    kind: {description: Kind of the object., type: str}
    namespace: {description: Its namespace. Empty for objects in none., type: str}
    name: {description: Its name., type: str}
    parts: {description: Containers or subjects that are meant. Empty for the object as a whole., type: list}
    replicas: {description: How many pods the object is meant to have. Null for what makes none., type: int}
    state: {description: "V(new), V(known) or V(exempt).", type: str}
    until: {description: The last day of an exemption., type: str}
    reason: {description: The reason of an exemption., type: str}
resolved:
  description: Entries of the baseline that are found no more.
  returned: success
  type: list
  elements: dict
requests:
  description: How many requests the API was asked.
  returned: always
  type: int
"""

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.plainkube.cluster.plugins.module_utils import audit_reports, audits
from ansible_collections.plainkube.cluster.plugins.module_utils.audit_io import (
    read_baseline,
    read_cluster,
    require_template,
    write,
    write_reports,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.audit_subjects import Scope
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError
from ansible_collections.plainkube.cluster.plugins.module_utils.kubernetes_api import (
    ARGUMENTS,
    HAS_KUBERNETES,
    Api,
    secrets_in,
)


class Run:
    """One audit: what it holds the cluster against is known to be in order before anything is asked."""

    def __init__(self, options: dict[str, Any]) -> None:
        """Check what was given. Raises PlainkubeError."""
        self.options = options
        self.rules = audits.rules_of(options["shipped_rules"] or [], options["rules"])
        self.waivers = audits.waivers_of(options["exemptions"], self.rules)
        self.baseline = None
        if options["baseline"] and not options["write_baseline"]:
            self.baseline = read_baseline(options["baseline"])
        self.scope = Scope(tuple(options["namespaces"]), tuple(options["exclude_namespaces"]))

    def look(self, api: Api, now: datetime) -> tuple[audits.Audit, dict[str, Any]]:
        """Read the cluster and hold it against the rules; return the findings and all that reports say."""
        cluster = read_cluster(api, self.rules.values(), self.scope)
        audits.require_something(cluster.looked_at, self.scope.is_whole_cluster)
        namespaces = {name: thing["metadata"] for (_, name), thing in cluster.kept.get("Namespace", {}).items()}
        audit = audits.look(cluster.subjects(), self.rules, now, self.waivers, namespaces)
        baseline = audits.baseline_of(audit.findings) if self.options["write_baseline"] else self.baseline
        if baseline is not None:
            audits.compare(audit, baseline)
        report = audit_reports.report_of(
            audit,
            self.rules,
            cluster=self.options["cluster_name"],
            now=now,
            looked_at=cluster.looked_at,
            fail_on=self.options["fail_on"],
        )
        return audit, report


def hold_baseline(path: str, audit: audits.Audit, check_mode: bool) -> bool:
    """Write the baseline if it differs; return whether it does."""
    text = json.dumps(audits.baseline_of(audit.findings), indent=1) + "\n"
    if Path(path).is_file() and Path(path).read_text(encoding="utf-8") == text:
        return False
    if not check_mode:
        write(path, text)
    return True


def main() -> None:
    """Run the module."""
    texts = {"type": "list", "elements": "str"}
    module = AnsibleModule(
        argument_spec={
            **ARGUMENTS,
            **audit_reports.ARGUMENTS,
            "rules": {"type": "list", "elements": "dict", "default": []},
            "exemptions": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "rules": {**texts, "required": True},
                    "until": {"type": "str", "required": True},
                    "reason": {"type": "str", "required": True},
                    "kinds": texts,
                    "namespaces": texts,
                    "names": texts,
                },
            },
            "namespaces": {**texts, "default": []},
            "exclude_namespaces": {**texts, "default": []},
            "fail_on": {"type": "str", "choices": [*audits.SEVERITIES, audits.NEVER], "default": "high"},
            "baseline": {"type": "path"},
            "write_baseline": {"type": "bool", "default": False},
            "shipped_rules": {"type": "list", "elements": "dict"},
        },
        required_if=[("write_baseline", True, ["baseline"])],
        supports_check_mode=True,
    )
    module.no_log_values.update(secrets_in(module.params))
    options = module.params
    paths = options["reports"] or {}
    for name, there in (
        ("kubernetes", HAS_KUBERNETES),
        ("jmespath", audits.HAS_JMESPATH),
        ("Jinja2", audit_reports.HAS_JINJA2 or not paths.get("html")),
    ):
        if not there:
            module.fail_json(msg=missing_required_lib(name))
    try:
        require_template(paths, options["report_template"])
        run = Run(options)
        api = Api(options)
        audit, report = run.look(api, datetime.now(timezone.utc))
        changed = options["write_baseline"] and hold_baseline(options["baseline"], audit, module.check_mode)
        if not module.check_mode:
            write_reports(paths, report, options["report_template"])
    except PlainkubeError as error:
        module.fail_json(msg=str(error))
    summary, severe = report["summary"], audits.breaches(audit.findings, options["fail_on"])
    if severe:
        # Ansible prints a failure in full: what is said here is for people, and the reports have the rest.
        module.fail_json(
            msg=audit_reports.failure_message(severe, options["fail_on"]),
            changed=changed,
            requests=api.requests,
            looked_at=report["looked_at"],
            summary={key: value for key, value in summary.items() if not isinstance(value, list)},
        )
    module.exit_json(
        changed=changed,
        requests=api.requests,
        **{key: report[key] for key in ("looked_at", "summary", "findings", "resolved")},
    )


if __name__ == "__main__":
    main()
