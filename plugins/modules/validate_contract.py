# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation of the action validate_contract, which runs on the controller alone."""

from __future__ import annotations

DOCUMENTATION = r"""
module: validate_contract
short_description: Find all faults of an inventory before anything is changed
version_added: 0.1.0
author: Plainkube contributors (@plainkube)
description:
  - >-
    Looks at the groups and at every C(plainkube_*) variable of every host of the cluster, and at the type of every
    input of a role that the inventory or the command line sets. Fails once, with all faults.
  - What such an input takes from facts or from the role itself cannot be known yet, and is left to the role.
  - >-
    A fault names the host (or C(inventory) when it concerns all), the variable, what was found, what was wanted and
    what to do.
  - Runs on the controller and talks to no host.
options:
  require_complete:
    description:
      - >-
        Also demand that every etcd and control-plane host takes part in the play, so that C(--limit) cannot leave out a
        member of a quorum.
      - Meant for plays on all hosts of the cluster.
    type: bool
    default: false
  certificates:
    description:
      - >-
        Also read the certificates and keys that the ingress and the edge are to show to their clients, which are files
        of the controller.
    type: bool
    default: false
attributes:
  check_mode:
    description: Does the same in check mode.
    support: full
  diff_mode:
    description: Changes nothing, so there is nothing to show.
    support: none
"""

EXAMPLES = r"""
- name: Check the cluster's inventory and variables, all faults at once
  plainkube.cluster.validate_contract:
    certificates: true
  run_once: true
"""

RETURN = r"""
msg:
  description: All faults, one per line; or that there are none.
  returned: always
  type: str
"""
