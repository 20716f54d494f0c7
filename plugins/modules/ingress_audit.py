#!/usr/bin/python
# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: ingress_audit
short_description: List a cluster's Ingresses, what is wrong with them, and what changes when Traefik serves them
description:
  - Reads the cluster once, one paged list for each kind, and says of every Ingress who serves it, what is wrong with it
    today (class, services, secrets, certificates, paths that another Ingress has too), and which of its annotations
    Traefik honours, honours in another way or ignores, with what to do instead.
  - Goes by ingress-nginx' annotations as Traefik's provider C(kubernetesIngressNGINX) takes them; the collection's
    C(data/ingress-annotations.yml) has each with its source.
  - Fails when a finding is as severe as O(fail_on). Reports are written before that.
  - Changes nothing in the cluster. Runs where the API can be reached, the controller by default.
version_added: 0.3.0
author:
  - Plainkube contributors (@plainkube)
extends_documentation_fragment:
  - plainkube.cluster.api_access
  - plainkube.cluster.audit_reports
requirements:
  - cryptography (Python), to look into certificates
  - Jinja2 (Python), for the HTML report
attributes:
  check_mode:
    support: full
    description: Looks in the same way, and writes no reports.
  diff_mode:
    support: none
    description: There is nothing that changes.
options:
  namespaces:
    description:
      - Patterns of the namespaces whose Ingresses are looked at. By default all.
      - The whole cluster is read even so, since other Ingresses may have the same host and path.
    type: list
    elements: str
    default: []
  secrets:
    description:
      - V(certificates) looks into the certificates of TLS secrets, V(names) only whether secrets exist, V(nothing)
        leaves them out. Each needs less rights than the one before.
      - Neither keys nor certificates are ever shown.
    type: str
    choices: [nothing, names, certificates]
    default: certificates
  expiry_days:
    description: A certificate that ends within so many days is a finding.
    type: int
    default: 21
  allow_snippets:
    description: Whether Traefik's provider will be told to allow snippets.
    type: bool
    default: false
  allow_cross_namespace:
    description: Whether Traefik's provider will be told to allow secrets of other namespaces.
    type: bool
    default: false
  fail_on:
    description: The least severity of a finding that makes the module fail.
    type: str
    choices: [critical, high, medium, low, never]
    default: never
  shipped_rules:
    description: What is looked for, in words. By default the collection's own.
    type: list
    elements: dict
  annotations:
    description: What Traefik makes of annotations. By default the collection's own list.
    type: dict
"""

EXAMPLES = r"""
- name: See what a move to Traefik means
  plainkube.cluster.ingress_audit:
    kubeconfig: /home/operator/.plainkube/production/admin.conf
    cluster_name: production
    reports:
      html: ingresses.html
      json: ingresses.json
  delegate_to: localhost

- name: Fail when a certificate has expired, without looking at anything but Ingresses of one team
  plainkube.cluster.ingress_audit:
    kubeconfig: /home/operator/.plainkube/production/admin.conf
    namespaces: [shop-*]
    fail_on: critical
  delegate_to: localhost
"""

RETURN = r"""
summary:
  description: How many Ingresses there are, by what becomes of them.
  returned: always
  type: dict
  contains:
    ingresses: {description: How many were looked at., type: int}
    ready: {description: Those with nothing to do., type: int}
    check: {description: Those with something that works a little differently., type: int}
    change: {description: Those with something to do before or after the move., type: int}
    by_controller: {description: How many each controller has., type: dict}
    ingress_nginx: {description: The ingress-nginx controllers that run, with their versions., type: list}
    by_rule: {description: How many findings each rule has., type: dict}
findings:
  description: What was found, most severe first.
  returned: success
  type: list
  elements: dict
  contains:
    rule: {description: What was looked for., type: str}
    severity: {description: How severe it is., type: str}
    kind: {description: Kind of the object., type: str}
    namespace: {description: Its namespace. Empty for objects in none., type: str}
    name: {description: Its name., type: str}
    parts: {description: "What is meant, with what to do.", type: list}
ingresses:
  description: Every Ingress.
  returned: success
  type: list
  elements: dict
  contains:
    namespace: {description: Its namespace., type: str}
    name: {description: Its name., type: str}
    class: {description: Its class. Empty when it names none., type: str}
    controller: {description: "V(ingress-nginx), V(f5-nginx), V(traefik) or what its class says.", type: str}
    hosts: {description: The hosts of its rules., type: list}
    verdict: {description: "V(ready), V(check) or V(change).", type: str}
    annotations: {description: Those of ingress-nginx by what Traefik makes of them., type: dict}
    findings: {description: The rules that found something., type: list}
requests:
  description: How many requests the API was asked.
  returned: always
  type: int
"""

from datetime import datetime, timezone
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.plainkube.cluster.plugins.module_utils import audit_reports, audits, ingresses, ingresses_io
from ansible_collections.plainkube.cluster.plugins.module_utils.audit_io import require_template, write_reports
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError
from ansible_collections.plainkube.cluster.plugins.module_utils.kubernetes_api import (
    ARGUMENTS,
    HAS_KUBERNETES,
    Api,
    secrets_in,
)


def look(options: dict[str, Any], api: Api, now: datetime) -> tuple[audits.Audit, dict[str, Any]]:
    """Read the cluster and judge it; return the findings and all that reports say. Raises PlainkubeError."""
    rules = ingresses.rules_of(options["shipped_rules"] or [])
    found = ingresses_io.read_cluster(api, options["secrets"])
    given = ingresses.circumstances(
        found,
        options["annotations"] or {},
        now,
        expiry_days=options["expiry_days"],
        allow_snippets=options["allow_snippets"],
        allow_cross_namespace=options["allow_cross_namespace"],
    )
    audit, rows = ingresses.look(given, rules, options["namespaces"])
    report = audit_reports.report_of(
        audit,
        rules,
        cluster=options["cluster_name"],
        now=now,
        looked_at={"Ingress": len(rows), "IngressClass": len(found.classes), "Service": len(found.services)},
        fail_on=options["fail_on"],
    )
    return audit, {**report, "ingresses": rows, "moves": ingresses.summary_of(rows, found.controllers)}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **ARGUMENTS,
            **audit_reports.ARGUMENTS,
            "namespaces": {"type": "list", "elements": "str", "default": []},
            "secrets": {"type": "str", "choices": list(ingresses_io.SECRETS), "default": ingresses_io.CERTIFICATES},
            "expiry_days": {"type": "int", "default": 21},
            "allow_snippets": {"type": "bool", "default": False},
            "allow_cross_namespace": {"type": "bool", "default": False},
            "fail_on": {"type": "str", "choices": [*audits.SEVERITIES, audits.NEVER], "default": audits.NEVER},
            "shipped_rules": {"type": "list", "elements": "dict"},
            "annotations": {"type": "dict"},
        },
        supports_check_mode=True,
    )
    module.no_log_values.update(secrets_in(module.params))
    options = module.params
    paths = options["reports"] or {}
    for name, there in (
        ("kubernetes", HAS_KUBERNETES),
        ("cryptography", ingresses_io.HAS_CRYPTOGRAPHY or options["secrets"] != ingresses_io.CERTIFICATES),
        ("Jinja2", audit_reports.HAS_JINJA2 or not paths.get("html")),
    ):
        if not there:
            module.fail_json(msg=missing_required_lib(name))
    try:
        require_template(paths, options["report_template"])
        api = Api(options)
        audit, report = look(options, api, datetime.now(timezone.utc))
        if not module.check_mode:
            write_reports(paths, report, options["report_template"])
    except PlainkubeError as error:
        module.fail_json(msg=str(error))
    counts = {entry["rule"]: entry["new"] for entry in report["summary"]["by_rule"] if entry["new"]}
    said = {"changed": False, "requests": api.requests, "summary": {**report["moves"], "by_rule": counts}}
    severe = audits.breaches(audit.findings, options["fail_on"])
    if severe:
        module.fail_json(msg=audit_reports.failure_message(severe, options["fail_on"]), **said)
    keys = ("rule", "severity", "kind", "namespace", "name", "parts")
    findings = [{key: finding[key] for key in keys} for finding in report["findings"]]
    module.exit_json(findings=findings, ingresses=report["ingresses"], **said)


if __name__ == "__main__":
    main()
