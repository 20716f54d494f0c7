# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What etcd_migrate makes of its parameters; what it does is tested with real servers."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_migrations import MigrationError
from ansible_collections.plainkube.cluster.plugins.modules import etcd_migrate

MEMBER = {
    "name": "a",
    "data_dir": "/data/",
    "stop_command": ["stop"],
    "start_command": ["start"],
    "new_stop_command": None,
    "new_start_command": ["start", "new"],
}


def parameters(**other: Any) -> dict[str, Any]:
    given = {name: option.get("default") for name, option in etcd_migrate.ARGUMENTS.items()}
    return {**given, "endpoints": ["http://127.0.0.1:2379"], "members": [MEMBER], **other}


def test_a_member_is_stopped_as_before_unless_told_otherwise() -> None:
    (member,) = etcd_migrate.settings_from(parameters()).members
    assert member.data_dir == "/data"
    assert member.new_stop_command == ("stop",)
    assert member.new_start_command == ("start", "new")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"members": []}, "found 0, and 1 endpoints"),
        ({"members": [{**MEMBER, "start_command": []}]}, "start_command is missing"),
        ({"still_seconds": 0.01}, "still_seconds"),
        ({"deadline": 0}, "deadline"),
        ({"quota_bytes": 0}, "quota_bytes"),
        ({"endpoints": ["127.0.0.1"]}, "endpoint"),
    ],
)
def test_says_what_is_wrong(other: dict[str, Any], words: str) -> None:
    with pytest.raises(PlainkubeError, match=words):
        etcd_migrate.settings_from(parameters(**other))


def test_says_it_all_at_once() -> None:
    with pytest.raises(MigrationError, match=r"members.*still_seconds.*deadline"):
        etcd_migrate.settings_from(parameters(members=[], still_seconds=0, deadline=0))


def test_one_host_of_several_names_only_its_own_member() -> None:
    assert etcd_migrate.settings_from(parameters(phase="copy", members=[])).members == ()
