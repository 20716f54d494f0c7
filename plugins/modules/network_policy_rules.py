#!/usr/bin/python
# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Module network_policy_rules: what kube-router's firewall leaves in the kernel."""

from __future__ import annotations

DOCUMENTATION = r"""
module: network_policy_rules
short_description: Remove the rules of NetworkPolicies from a host's kernel
description:
  - The rules of kube-router's firewall stay in the kernel when it stops, so that what was denied stays denied while it
    restarts. When nobody follows policies any more they have to go, since the next pod with an address that is named in
    them would meet them.
  - Removes the chains C(KUBE-ROUTER-*), C(KUBE-POD-FW-*) and C(KUBE-NWPLCY-*) of iptables, the rules that lead into
    them, and the sets C(KUBE-SRC-*), C(KUBE-DST-*) and C(kube-router-local-pods) of ipset. All other rules stay.
version_added: 0.3.0
author: Plainkube contributors (@plainkube)
options:
  state:
    description: There is only one.
    type: str
    choices: [absent]
    required: true
attributes:
  check_mode:
    support: full
    description: Says whether there are such rules.
  diff_mode:
    support: full
    description: The chains and sets that go.
"""

EXAMPLES = r"""
- name: Remove the rules of policies that nobody follows any more
  plainkube.cluster.network_policy_rules:
    state: absent
"""

RETURN = r"""
removed:
  description: Chains and sets that were removed, or would be in check mode.
  returned: always
  type: list
  elements: str
  sample: [iptables KUBE-ROUTER-FORWARD]
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.plainkube.cluster.plugins.module_utils import reset, reset_io
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={"state": {"type": "str", "choices": ["absent"], "required": True}}, supports_check_mode=True
    )
    try:
        saved = reset_io.packet_filters()
        sets = reset.policy_sets(reset_io.ip_sets())
        removed = [f"{command} {chain}" for command, text in saved.items() for chain in reset.policy_chains(text)] + [
            f"ipset {name}" for name in sets
        ]
        if removed and not module.check_mode:
            for command, text in saved.items():
                restore = reset.clear_policies(text)
                if restore:
                    reset_io.run([f"{command}-restore", "--noflush"], text=restore)
            for name in sets:
                reset_io.run(["ipset", "destroy", name])
    except PlainkubeError as error:
        module.fail_json(msg=f"The rules of NetworkPolicies could not be removed from this host: {error}")
    answer = {"changed": bool(removed), "removed": removed}
    if module._diff and removed:
        before = "".join(f"{line}\n" for line in removed)
        answer["diff"] = {"before_header": "in the kernel", "after_header": "", "before": before, "after": ""}
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
