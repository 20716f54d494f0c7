# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the role etcd_restore leans on when a task fails on one host: Ansible rescues all of them, or does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

TASKS = Path(__file__).resolve().parents[3] / "roles" / "etcd_restore" / "tasks"


def loaded(name: str) -> list[dict[str, Any]]:
    tasks: list[dict[str, Any]] = yaml.safe_load((TASKS / name).read_text(encoding="utf-8"))
    return tasks


@pytest.mark.parametrize("name", ["stage.yml", "swap.yml"])
def test_no_task_of_a_rescued_block_runs_once_for_all_hosts(name: str) -> None:
    """With any_errors_fatal Ansible marks the other hosts failed twice then, which takes them out of the rescue."""
    (task,) = loaded(name)
    assert task["rescue"]
    todo = list(task["block"])
    seen = []
    while todo:
        found = todo.pop()
        seen.append(found["name"])
        assert "run_once" not in found, found["name"]
        included = found.get("ansible.builtin.include_tasks", "").rpartition("/")[2]
        todo += loaded(included) if included else []
    assert len(seen) >= 2


def test_the_playbook_stops_all_hosts_for_a_fault_of_one() -> None:
    plays = yaml.safe_load((TASKS.parents[2] / "playbooks" / "restore-etcd.yml").read_text(encoding="utf-8"))
    assert all(play["any_errors_fatal"] for play in plays)
