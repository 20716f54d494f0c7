#!/usr/bin/python
# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: etcd_member
short_description: Add a member to an etcd cluster, give it its vote, or remove it
description:
  - Changes the cluster's list of members. It starts and stops no server. A member that was added has to be started with
    RV(initial_cluster) and C(--initial-cluster-state=existing).
  - "The safe way: add it as a learner, start it, promote it once it has caught up. O(state=promoted) waits for that."
  - "A member that is lost for good: remove it first, then add the new one."
  - Refuses what would cost the cluster its quorum, to add a member while another is down, and a second learner.
  - Before the leader is removed, the leadership moves to another healthy member.
version_added: 0.2.0
author: Plainkube contributors
extends_documentation_fragment:
  - plainkube.cluster.etcd_connection
options:
  state:
    description:
      - "V(present): there is such a member, with or without a vote."
      - "V(promoted): the member has a vote."
      - "V(absent): there is no such member."
    type: str
    choices: [present, promoted, absent]
    default: present
  name:
    description:
      - The member's name. A member has none before it is started for the first time.
      - If it is given together with O(peer_urls), both must be those of one member.
    type: str
  peer_urls:
    description: The URLs at which the other members find it. Needed for O(state=present).
    type: list
    elements: str
    default: []
  learner:
    description: Whether O(state=present) adds the member without a vote. etcd 3.3 knows no learners.
    type: bool
    default: true
  wait:
    description:
      - Seconds that O(state=promoted) waits until the learner has caught up, and all wait until the change can be seen.
      - For five seconds after a member came up etcd itself takes it for unhealthy and changes no list; that is waited
        for too.
    type: float
    default: 60.0
attributes:
  check_mode:
    support: full
    description: Says what it would do, or why it must not be done.
  diff_mode:
    support: full
    description: Shows the list of members.
"""

EXAMPLES = r"""
- name: Take the lost member off the list
  plainkube.cluster.etcd_member:
    name: etcd-3
    state: absent
    endpoints: ["https://10.0.0.1:2379", "https://10.0.0.2:2379"]
    ca_cert: /etc/etcd/pki/ca.crt
    client_cert: /etc/etcd/pki/health.crt
    client_key: /etc/etcd/pki/health.key

- name: Add the new one as a learner
  plainkube.cluster.etcd_member:
    name: etcd-3
    peer_urls: ["https://10.0.0.3:2380"]
    endpoints: ["https://10.0.0.1:2379", "https://10.0.0.2:2379"]
    ca_cert: /etc/etcd/pki/ca.crt
    client_cert: /etc/etcd/pki/health.crt
    client_key: /etc/etcd/pki/health.key
  register: added

- name: Give it its vote when it has caught up, after it was started with added.initial_cluster
  plainkube.cluster.etcd_member:
    peer_urls: ["https://10.0.0.3:2380"]
    state: promoted
    endpoints: ["https://10.0.0.1:2379", "https://10.0.0.2:2379"]
    ca_cert: /etc/etcd/pki/ca.crt
    client_cert: /etc/etcd/pki/health.crt
    client_key: /etc/etcd/pki/health.key
"""

RETURN = r"""
action:
  description: What was done, or would be in check mode - add, promote, remove, or empty.
  returned: success
  type: str
  sample: add
member:
  description: The member, as it is after the change or was before it was removed; empty if there is none.
  returned: success
  type: dict
  contains:
    name:
      description: Its name, empty if it has not started yet.
      type: str
    id:
      description: Its id in hexadecimal digits, empty in check mode if it would be added.
      type: str
    peer_urls:
      description: Where the other members find it.
      type: list
      elements: str
    learner:
      description: Whether it has no vote.
      type: bool
members:
  description: The list of members after the change, or as it would be.
  returned: success
  type: list
  elements: str
  sample: ["etcd-1 https://10.0.0.1:2380", "(not started) https://10.0.0.3:2380 learner"]
initial_cluster:
  description: The value of C(--initial-cluster) with which the member has to be started for the first time.
  returned: success
  type: str
  sample: etcd-1=https://10.0.0.1:2380,etcd-3=https://10.0.0.3:2380
"""

import time
from collections.abc import Callable
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_client import (
    CONNECTION_ARGUMENTS,
    Connection,
    EtcdError,
    Refused,
    connection_from,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_cluster import (
    Member,
    Seen,
    View,
    data_agree,
    hexadecimal,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_cluster_io import (
    Deadline,
    MemberApi,
    move_leader,
    once,
    survey,
    wait_for,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_members import (
    ABSENT,
    PRESENT,
    PROMOTED,
    Step,
    Wanted,
    describe,
    find_member,
    initial_cluster,
    members_after,
    plan_member,
    promotion_refusal,
    wanted_faults,
)

ARGUMENTS = {
    **CONNECTION_ARGUMENTS,
    "state": {"type": "str", "choices": [PRESENT, PROMOTED, ABSENT], "default": PRESENT},
    "name": {"type": "str"},
    "peer_urls": {"type": "list", "elements": "str", "default": []},
    "learner": {"type": "bool", "default": True},
    "wait": {"type": "float", "default": 60.0},
}


def act(connection: Connection, view: View, step: Step, wanted: Wanted, seconds: float) -> View:
    """Do a step and return the cluster as it is once the members know of it."""
    if step.action == "remove" and step.seen:
        gone = step.seen
        view = hand_over(connection, view, gone, seconds)
        change(connection, view, wanted, seconds, gone, lambda api: api.remove(gone.id))
        return wait_for(
            connection,
            lambda now: "it is still on the list" if now.find(id=gone.id) else "",
            seconds,
            what=f"removing {gone.title}",
        )
    if step.action == "add":
        change(connection, view, wanted, seconds, None, lambda api: api.add(wanted.peer_urls, wanted.learner))
        return wait_for(
            connection,
            lambda now: "" if now.find(peer_urls=wanted.peer_urls) else "it is not on the list",
            seconds,
            what=f"adding {wanted.title}",
        )
    wait_for(connection, lambda now: promotion_refusal(now, wanted), seconds, what=f"waiting to promote {wanted.title}")
    return promote(connection, wanted, seconds)


def change(
    connection: Connection,
    view: View,
    wanted: Wanted,
    seconds: float,
    gone: Seen | None,
    tell: Callable[[MemberApi], Any],
) -> None:
    """Tell the leader to change the list. A member that came up less than five seconds ago is not healthy to etcd yet:
    then again, as long as nothing else speaks against it."""
    deadline = Deadline(seconds)
    while True:
        try:
            once(connection, asked(view, gone).endpoint, tell)
            return
        except Refused as error:
            if "unhealthy cluster" not in error.reason or deadline.over:
                raise
        time.sleep(min(0.2, deadline.left))
        view = survey(connection, hashes=False)
        if not plan_member(view, wanted).action:
            return


def promote(connection: Connection, wanted: Wanted, seconds: float) -> View:
    """Promote a learner, again until the leader finds that it has caught up, and compare its data with the others'."""

    def still_learner(now: View) -> str:
        seen = find_member(now, wanted)
        if seen is None or not seen.learner:
            return ""
        learner = seen
        # Raises what the leader has against it, such as that it is not in sync yet.
        once(connection, asked(now).endpoint, lambda api: api.promote(learner.id))
        return "it is still a learner"

    wait_for(connection, still_learner, seconds, what=f"promoting {wanted.title}")

    def unhealthy(now: View) -> str:
        seen = find_member(now, wanted)
        return (
            "" if seen and seen.healthy and seen.hash else (seen.health_reason if seen else "") or "it gives no answer"
        )

    view = wait_for(connection, unhealthy, seconds, hashes=True, what=f"{wanted.title} was promoted")
    if data_agree(view) is False:
        raise EtcdError(
            f"{wanted.title} was promoted, but the members' data differ: see etcd_info, remove the member that is wrong"
        )
    return view


def asked(view: View, but: Seen | None = None) -> Seen:
    """Return the healthy member to tell what to do: the leader, unless it is the one that it is about."""
    able = [seen for seen in view.voters if seen.healthy and not (but and seen.id == but.id)]
    if not able:
        raise EtcdError("no healthy member is left that could be told to do it")
    return max(able, key=lambda seen: seen.leads)


def hand_over(connection: Connection, view: View, gone: Seen, seconds: float) -> View:
    """Let another healthy member lead if the leader is the one that goes, so that nobody waits for an election."""
    if view.leader is None or view.leader.id != gone.id:
        return view
    return move_leader(connection, view, asked(view, gone), seconds)


def facts(member: Member | None) -> dict[str, Any]:
    """Return a member as the module tells it."""
    if member is None:
        return {}
    return {
        "name": member.name,
        "id": hexadecimal(member.id) if member.id else "",
        "peer_urls": list(member.peer_urls),
        "learner": member.learner,
    }


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    params = module.params
    wanted = Wanted(params["state"], params["name"] or "", tuple(params["peer_urls"]), params["learner"])
    try:
        faults = wanted_faults(wanted)
        if faults:
            raise EtcdError("; ".join(faults))
        connection = connection_from(params)
        view = survey(connection, hashes=False)
        step = plan_member(view, wanted)
        before = tuple(seen.member for seen in view.members if seen.member)
        after = members_after(before, step, wanted)
        if step.action and not module.check_mode:
            view = act(connection, view, step, wanted, params["wait"])
            after = tuple(seen.member for seen in view.members if seen.member)
    except PlainkubeError as error:
        module.fail_json(msg=str(error))
    gone = step.seen.member if step.action == "remove" and step.seen else None
    own = [member for member in after if set(member.peer_urls) & set(wanted.peer_urls) or member.name == wanted.name]
    module.exit_json(
        changed=bool(step.action),
        action=step.action,
        member=facts(gone or (own[0] if own else None)),
        members=describe(after),
        initial_cluster=initial_cluster(after, wanted),
        diff={"before": "\n".join([*describe(before), ""]), "after": "\n".join([*describe(after), ""])},
    )


if __name__ == "__main__":
    main()
