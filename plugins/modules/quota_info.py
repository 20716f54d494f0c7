#!/usr/bin/python
# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Module quota_info: how much of their shares tenants use."""

from __future__ import annotations

DOCUMENTATION = r"""
module: quota_info
short_description: Say how much of their shares tenants use
description:
  - Holds use against limits of all ResourceQuotas of a cluster, by tenant, namespace and resource, the fullest first.
  - Reads quotas with one list and nothing else. Quotas that no tenant has are shown without one.
author:
  - Plainkube contributors (@plainkube)
version_added: 0.2.0
extends_documentation_fragment:
  - plainkube.cluster.api_access
attributes:
  check_mode:
    support: full
    description: Changes nothing in any mode.
  diff_mode:
    support: none
    description: Changes nothing.
requirements:
  - jsonschema (Python)
options:
  tenants:
    description: The tenants document as data. Needed only to hold tenants against their budgets.
    type: dict
  tenants_file:
    description: The tenants document as a YAML or JSON file, for the same.
    type: path
  thresholds:
    description: Percentages of use from which a row is called notice, warning and full.
    type: list
    elements: int
    default: [80, 90, 100]
  at_least:
    description: Leave out rows with a smaller percentage of use.
    type: int
    default: 0
"""

EXAMPLES = r"""
- name: Ask for shares that are nearly used up
  plainkube.cluster.quota_info:
    kubeconfig: /home/operator/.plainkube/production/admin.conf
    at_least: 80
  delegate_to: localhost
  register: shares

- name: Show them
  ansible.builtin.debug:
    msg: "{{ shares.table }}"
"""

RETURN = r"""
quotas:
  description: One row for each resource of each ResourceQuota, the fullest first.
  returned: always
  type: list
  elements: dict
  contains: &row
    tenant: {description: The tenant; empty for quotas of nobody., type: str}
    namespace: {description: The namespace., type: str}
    quota: {description: Name of the ResourceQuota., type: str}
    resource: {description: The resource as quotas call it., type: str}
    used: {description: What is used., type: str}
    hard: {description: What may be used., type: str}
    percent: {description: Use in percent; none when the API has counted nothing yet., type: float}
    level: {description: ok or notice or warning or full or unknown., type: str}
tenants:
  description:
    - One row for each resource of each tenant, the fullest first. Quotas for some pods only do not count.
    - With a tenants document hard is the budget where there is one, else the sum of its namespaces.
  returned: always
  type: list
  elements: dict
  contains:
    tenant: {description: The tenant., type: str}
    resource: {description: The resource as quotas call it., type: str}
    used: {description: What all its namespaces use., type: str}
    hard: {description: What they may use together., type: str}
    percent: {description: Use in percent., type: float}
    level: {description: As for quotas., type: str}
levels:
  description: How many rows of quotas have each level.
  returned: always
  type: dict
table:
  description: The rows of quotas as lines of a table.
  returned: always
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.plainkube.cluster.plugins.module_utils import quota_use, quotas_io, tenants
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError
from ansible_collections.plainkube.cluster.plugins.module_utils.kubernetes_api import (
    ARGUMENTS,
    HAS_KUBERNETES,
    RESOURCES,
    Api,
    secrets_in,
)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **ARGUMENTS,
            "tenants": {"type": "dict"},
            "tenants_file": {"type": "path"},
            "thresholds": {"type": "list", "elements": "int", "default": [80, 90, 100]},
            "at_least": {"type": "int", "default": 0},
        },
        mutually_exclusive=[("tenants", "tenants_file")],
        supports_check_mode=True,
    )
    module.no_log_values.update(secrets_in(module.params))
    for present, name in ((HAS_KUBERNETES, "kubernetes"), (tenants.HAS_JSONSCHEMA, "jsonschema")):
        if not present:
            module.fail_json(msg=missing_required_lib(name))
    options = module.params
    try:
        quota_use.check_thresholds(options["thresholds"])
        budgets = {}
        if options["tenants"] is not None or options["tenants_file"]:
            document = quotas_io.load_document(options["tenants"], options["tenants_file"])
            budgets = {name: tenant.budget for name, tenant in document.tenants.items()}
        things = Api(options).list(RESOURCES["ResourceQuota"].path(), quotas_io.PAGE)
        rows, totals = quota_use.rows(things, options["thresholds"], budgets)
    except PlainkubeError as error:
        module.fail_json(msg=str(error))
    shown = [row for row in rows if (row["percent"] or 0) >= options["at_least"]]
    module.exit_json(
        changed=False,
        quotas=shown,
        tenants=[row for row in totals if (row["percent"] or 0) >= options["at_least"]],
        levels=quota_use.levels(rows),
        table=quota_use.table(shown),
    )


if __name__ == "__main__":
    main()
