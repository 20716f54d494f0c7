#!/usr/bin/python
# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: etcd_defragment
short_description: Give back the space that etcd's database files no longer use
description:
  - A member answers nobody while its database file is written anew, for about 5 seconds for each gigabyte. So this
    defragments only members whose file is large and of which much holds nothing, one after the other, followers first.
    The leadership moves to a member that is done before the leader's turn comes.
  - Starts only if all members with a vote are healthy and caught up and hold the same data, looks again before each
    member, and compares the data of all at the end. Learners are left alone.
  - A cluster of one member stands still meanwhile.
  - It is for now and then, not for every run. An alarm for space (NOSPACE) is no obstacle; it is not disarmed here.
  - Needs etcd 3.4 or newer, since 3.3 does not tell how much of a file is in use.
version_added: 0.2.0
author: Plainkube contributors
extends_documentation_fragment:
  - plainkube.cluster.etcd_connection
options:
  min_fragmentation:
    description: Part of the file, from 0 to 1, that must hold nothing.
    type: float
    default: 0.45
  min_size:
    description: Bytes that the file must have at least.
    type: int
    default: 104857600
  defragment_timeout:
    description: Seconds that one member may take.
    type: float
    default: 600.0
  wait:
    description: Seconds that the cluster may take to be well again after each member.
    type: float
    default: 60.0
attributes:
  check_mode:
    support: full
    description: Says which members it would defragment.
  diff_mode:
    support: none
    description: The sizes are in the result.
"""

EXAMPLES = r"""
- name: Give back what etcd's databases no longer use
  plainkube.cluster.etcd_defragment:
    endpoints: ["https://10.0.0.1:2379", "https://10.0.0.2:2379", "https://10.0.0.3:2379"]
    ca_cert: /etc/etcd/pki/ca.crt
    client_cert: /etc/etcd/pki/health.crt
    client_key: /etc/etcd/pki/health.key
  run_once: true
"""

RETURN = r"""
members:
  description: All members that answer, in the order in which they are dealt with.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Its name.
      type: str
    defragmented:
      description: Whether it was defragmented, or would be in check mode.
      type: bool
    reason:
      description: Why it was left alone.
      type: str
    fragmentation:
      description: Part of the file that held nothing, from 0 to 1.
      type: float
    size_before:
      description: Bytes of the file before.
      type: int
    size_after:
      description: Bytes of the file now; in check mode what would be left.
      type: int
    seconds:
      description: How long it took.
      type: float
leader_moved_to:
  description: Name of the member that leads now because the leader's turn came, or would in check mode; else empty.
  returned: success
  type: str
"""

import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_client import (
    CONNECTION_ARGUMENTS,
    Connection,
    EtcdError,
    connection_from,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_cluster import View
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_cluster_io import (
    move_leader,
    once,
    survey,
    wait_for,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_members import (
    Candidate,
    candidates,
    defragment_refusal,
    next_leader,
)

ARGUMENTS = {
    **CONNECTION_ARGUMENTS,
    "min_fragmentation": {"type": "float", "default": 0.45},
    "min_size": {"type": "int", "default": 100 * 1024 * 1024},
    "defragment_timeout": {"type": "float", "default": 600.0},
    "wait": {"type": "float", "default": 60.0},
}


def facts(one: Candidate) -> dict[str, Any]:
    """Return a member as the module tells it before anything is done."""
    status = one.seen.status
    in_use = status.db_size_in_use if status else None
    return {
        "name": one.seen.name,
        "defragmented": not one.left_alone,
        "reason": one.left_alone,
        "fragmentation": round(one.part, 4),
        "size_before": one.size,
        "size_after": one.size if one.left_alone or in_use is None else in_use,
        "seconds": 0.0,
    }


def defragment(
    connection: Connection, view: View, one: Candidate, params: dict[str, Any], told: dict[str, Any]
) -> View:
    """Defragment one member, moving the leadership away from it, and return the cluster when it is well again."""
    wait = params["wait"]
    if view.leader and view.leader.id == one.seen.id and len(view.voters) > 1:
        view = move_leader(connection, view, next_leader(view), wait)
    begin = time.monotonic()
    once(connection, one.seen.endpoint, lambda api: api.defragment(params["defragment_timeout"]))
    told["seconds"] = round(time.monotonic() - begin, 3)
    view = wait_for(connection, defragment_refusal, wait, what=f"after {one.seen.title} was defragmented")
    seen = view.find(id=one.seen.id)
    if seen and seen.status:
        told["size_after"] = seen.status.db_size
    return view


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    params = module.params
    members: list[dict[str, Any]] = []
    done: list[str] = []
    moved_to = ""
    try:
        if not 0 <= params["min_fragmentation"] < 1:
            raise EtcdError(
                f"min_fragmentation: found {params['min_fragmentation']:g}, wanted a number from 0 to below 1"
            )
        connection = connection_from(params)
        view = survey(connection)
        found = candidates(view, params["min_fragmentation"], params["min_size"])
        members = [facts(one) for one in found]
        due = [(one, told) for one, told in zip(found, members) if not one.left_alone]
        refusal = defragment_refusal(view) if due else ""
        if refusal:
            names = ", ".join(one.seen.title for one, _told in due)
            raise EtcdError(f"{names} must not be defragmented now: {refusal}")
        leader = view.leader
        if leader and len(view.voters) > 1 and any(one.seen.id == leader.id for one, _told in due):
            moved_to = next_leader(view).name
        if not module.check_mode:
            for one, told in due:
                view = defragment(connection, view, one, params, told)
                done.append(one.seen.name)
            if due:
                wait_for(connection, defragment_refusal, params["wait"], hashes=True, what="after the defragmentation")
    except PlainkubeError as error:
        module.fail_json(msg=str(error), changed=bool(done), defragmented=done)
    module.exit_json(changed=bool(due), members=members, leader_moved_to=moved_to)


if __name__ == "__main__":
    main()
