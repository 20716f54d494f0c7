# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Lookup state_file: what the controller holds for a cluster, for use in templates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError
from ansible_collections.plainkube.cluster.plugins.plugin_utils.state_folder import StateFolder
from ansible_collections.plainkube.cluster.plugins.plugin_utils.task_arguments import argument_or_variable

DOCUMENTATION = r"""
name: state_file
short_description: Contents of files in the controller's state folder of a cluster
description:
  - Returns the contents of the named files, joined, each from the start of a line.
  - In check mode a missing file gives one line that says so, since the first run is the one that makes it.
author:
  - Plainkube contributors (@plainkube)
options:
  _terms:
    description: Paths inside the state folder.
    required: true
  state_dir:
    description: The state folder. The variable C(plainkube_state_dir) when absent.
    type: str
"""

EXAMPLES = r"""
- name: Write the trust bundle
  plainkube.cluster.files:
    items:
      - path: /etc/kubernetes/pki/ca.crt
        content: "{{ lookup('plainkube.cluster.state_file', 'pki/cluster.crt', 'pki/signer.crt') }}"
        mode: "0644"
"""

RETURN = r"""
_raw:
  description: One text with the contents of all files.
  type: list
  elements: str
"""

NOT_YET = "(made on the controller at the first run)\n"


def joined(contents: list[str]) -> str:
    """Return contents one after the other, each from the start of a line."""
    lines = [content if content.endswith("\n") else content + "\n" for content in contents[:-1]]
    return "".join([*lines, *contents[-1:]])


class LookupModule(LookupBase):
    def run(self, terms: list[str], variables: Mapping[str, Any] | None = None, **kwargs: Any) -> list[str]:
        variables = variables or {}
        self.set_options(var_options=variables, direct=kwargs)
        try:
            if not terms:
                raise PlainkubeError("no file is named")
            folder = StateFolder(
                argument_or_variable(
                    self.get_option("state_dir"), "plainkube_state_dir", "state_dir", self._templar, variables
                )
            )
            check_mode = variables.get("ansible_check_mode", False)
            return [
                joined(
                    [
                        NOT_YET if check_mode and not folder.exists(name) else folder.read(name).decode("utf-8")
                        for name in terms
                    ]
                )
            ]
        except PlainkubeError as error:
            raise AnsibleLookupError(f"state_file: {error}") from error
