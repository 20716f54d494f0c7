# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Modules run as Ansible runs them on a host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from etcd_servers import CHECKOUT


def run_module(name: str, arguments: dict[str, Any], check: bool = False, diff: bool = False) -> dict[str, Any]:
    """Run a module in a process of its own, as on a host, and return its answer.

    What it printed to stderr is under `stderr_text`; an answer that is no JSON fails the test.
    """
    finished = start_module(name, arguments, check, diff)
    stdout, stderr = finished.communicate(timeout=180)
    try:
        answer: dict[str, Any] = json.loads(stdout)
    except ValueError:
        raise AssertionError(f"{name} ended with {finished.returncode}: {stdout}\n{stderr}") from None
    answer["stderr_text"] = stderr
    return answer


def start_module(
    name: str, arguments: dict[str, Any], check: bool = False, diff: bool = False
) -> subprocess.Popen[str]:
    """Start a module and return its process, for tests that do something to it while it runs."""
    sent = {**arguments, "_ansible_check_mode": check, "_ansible_diff": diff, "_ansible_remote_tmp": "/tmp"}
    process = subprocess.Popen(
        [sys.executable, "-m", f"ansible_collections.plainkube.cluster.plugins.modules.{name}"],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT / "collections")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdin
    process.stdin.write(json.dumps({"ANSIBLE_MODULE_ARGS": sent}))
    process.stdin.close()
    process.stdin = None
    return process
