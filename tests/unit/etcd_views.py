# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Members of an etcd cluster as they are seen, for the tests of what follows from that."""

from __future__ import annotations

from typing import Any

from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_cluster import Hash, Member, Seen, Status


def seen(
    number: int,
    *,
    healthy: bool = True,
    learner: bool = False,
    answers: bool = True,
    started: bool = True,
    **status: Any,
) -> Seen:
    """Return member number of a cluster whose first member leads, all of them equal.

    started: false for a member that was added and has never run: it has no name and no address for clients.
    """
    answers = answers and started
    said = Status(
        **{
            "member_id": number,
            "cluster_id": 7,
            "version": "3.7.3",
            "leader_id": 1,
            "raft_term": 2,
            "raft_index": 100,
            "applied_index": 100,
            "revision": 50,
            "db_size": 1000,
            "db_size_in_use": 600,
            "learner": learner,
            "alarms": (),
            **status,
        }
    )
    name, clients = (f"m{number}", (f"http://c{number}",)) if started else ("", ())
    return Seen(
        f"http://c{number}",
        Member(number, name, (f"http://p{number}",), clients, learner),
        said if answers else None,
        healthy and answers,
        "" if healthy and answers else "down",
        Hash(99, 50, 10) if answers and not learner else None,
    )
