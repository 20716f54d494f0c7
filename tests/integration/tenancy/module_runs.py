# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Modules run as Ansible runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from api_servers import CHECKOUT


@dataclass(frozen=True)
class Answer:
    """What a module said: its JSON, and what it wrote beside it."""

    result: dict[str, Any]
    stderr: str
    code: int

    @property
    def message(self) -> str:
        """The message of a failure."""
        return str(self.result.get("msg", ""))


def module_process(
    module: str, arguments: dict[str, Any], *, check: bool = False, diff: bool = False
) -> subprocess.Popen[str]:
    """Start a module of this collection as a program, its arguments on standard input."""
    given = {**arguments, "_ansible_check_mode": check, "_ansible_diff": diff}
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("K8S_AUTH_", "KUBECONFIG"))},
        "PYTHONPATH": str(CHECKOUT / "collections"),
    }
    program = (
        "import json, sys\n"
        "from ansible.module_utils import basic\n"
        f"from ansible_collections.plainkube.cluster.plugins.modules.{module} import main\n"
        "basic._ANSIBLE_ARGS = sys.stdin.buffer.read()\n"
        "basic._ANSIBLE_PROFILE = 'legacy'\n"
        "main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=CHECKOUT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps({"ANSIBLE_MODULE_ARGS": given}))
    process.stdin.close()
    process.stdin = None
    return process


def run_module(module: str, arguments: dict[str, Any], *, check: bool = False, diff: bool = False) -> Answer:
    """Run a module of this collection with these arguments and return its answer; a failure is an answer too."""
    process = module_process(module, arguments, check=check, diff=diff)
    output, stderr = process.communicate(timeout=300)
    assert output.lstrip().startswith("{"), f"{module} said no JSON:\n{output}\n{stderr}"
    return Answer(json.loads(output), stderr, process.returncode)
