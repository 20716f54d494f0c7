#!/usr/bin/python
# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: reset
short_description: Remove all that the collection installed on a host, and nothing else
description:
  - Stops and disables the units, removes the pods while containerd still runs, ends what is left of their processes,
    undoes mounts, interfaces, routes and packet filter tables, removes data (etcd's too), configuration, programs and
    users. It needs neither the API nor etcd, and goes on where a reset that was cut off stopped.
  - B(It cannot be undone.) The playbook C(reset.yml) asks for the cluster's name first.
  - Recognises what is to go by evidence on the host. Files go that carry the collection's header, links that lead into
    C(/opt/plainkube), users that its sysusers file made; data and network of a component go when its unit or its
    program on this host is the collection's. A database, containers or a CNI configuration of somebody else stay. The
    exception is C(/etc/kubernetes) and C(/etc/etcd), which go as a whole.
  - A data folder that is a mount point or a link is emptied and kept. A file system of its own inside a folder that is
    to go is a reason to stop before anything is changed; those that kubelet and containerd mounted are unmounted first,
    and what is in them stays.
  - What stays are packages (and without its configuration haproxy is disabled), logs in the journal, loaded kernel
    modules, and the values of sysctls until the next boot.
  - Looks again at the end, and fails with what did not go.
version_added: 0.1.0
author: Plainkube contributors (@plainkube)
options: {}
attributes:
  check_mode:
    support: full
    description: Lists what would be removed.
  diff_mode:
    support: full
    description: What is there and goes, one line each.
"""

EXAMPLES = r"""
- name: Remove all that was installed
  plainkube.cluster.reset:
"""

RETURN = r"""
removed:
  description: What was removed, or would be in check mode, in this order.
  returned: always
  type: list
  elements: dict
  contains:
    stage:
      description: One of C(stop), C(kill), C(unmount), C(network), C(data), C(files), C(evidence), C(users), C(last).
      type: str
      sample: data
    kind:
      description: What is done.
      type: str
      sample: remove
    target:
      description: What it is done to.
      type: str
      sample: /var/lib/kubelet
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.plainkube.cluster.plugins.module_utils import reset, reset_io
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError


def main() -> None:
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    steps: list[reset.Step] = []
    started = False
    try:
        facts = reset_io.look()
        reset_io.require_removable(facts)
        steps = reset.make_plan(facts)
        if steps and not module.check_mode:
            started = True
            reset_io.act()
    except PlainkubeError as error:
        module.fail_json(msg=str(error), changed=started)
    answer = {
        "changed": bool(steps),
        "removed": [{"stage": step.stage, "kind": step.kind, "target": step.target} for step in steps],
    }
    if module._diff and steps:
        answer["diff"] = reset.make_diff(steps)
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
