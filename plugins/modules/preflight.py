# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation of the action preflight, which runs on the controller alone."""

from __future__ import annotations

DOCUMENTATION = r"""
module: preflight
short_description: Judge all hosts of the play before anything is changed on them
version_added: 0.1.0
author: Plainkube contributors (@plainkube)
description:
  - Takes what M(plainkube.cluster.preflight_facts) read on every host of the play and fails once with all faults.
  - A fault names the host, what was found, what was wanted and what to do. What is only unwise becomes a warning.
  - Compares hosts with each other too, so run it once for all of them (C(run_once)).
  - A host of the play without facts did not answer, which is a fault.
options:
  facts:
    description: Name of the variable in which each host's facts were registered.
    type: str
    required: true
attributes:
  check_mode:
    description: Does the same in check mode.
    support: full
  diff_mode:
    description: Nothing changes.
    support: none
"""

EXAMPLES = r"""
- name: See that no host would fail later
  plainkube.cluster.preflight:
    facts: facts_of_host
  run_once: true
"""

RETURN = r"""
msg:
  description: Every fault in a line of its own, or that there is none.
  returned: always
  type: str
warnings:
  description: What is unwise but works. Ansible shows each of them.
  returned: always
  type: list
  elements: str
"""
