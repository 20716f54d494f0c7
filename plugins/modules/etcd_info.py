#!/usr/bin/python
# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: etcd_info
short_description: See how an etcd cluster is, and what may be done to it
description:
  - Asks all members at once, also those that only the cluster's own list of members names. What could not be read is
    listed with its reason under RV(unreadable); it is no failure that members are down or that there is no quorum.
  - Compares the members' data by HashKV at one revision, and their revisions with the raft log. Members can be healthy
    and hold different data for ever; nothing else shows that.
  - Says for each member whether it may be taken down now.
  - Fails only if no endpoint answers at all, or if its options are wrong.
  - The whole call ends within O(timeout). For databases of several gigabytes give it more than the default, since
    hashing takes about half a second for each.
  - Knows etcd 3.3 to 3.7. What an older version does not tell is null.
version_added: 0.2.0
author: Plainkube contributors
extends_documentation_fragment:
  - plainkube.cluster.etcd_connection
options:
  compare_data:
    description: Whether to compare the members' data. It makes each member read its whole database.
    type: bool
    default: true
attributes:
  check_mode:
    support: full
    description: It never changes anything.
  diff_mode:
    support: none
    description: There is nothing that changes.
"""

EXAMPLES = r"""
- name: See how etcd is
  plainkube.cluster.etcd_info:
    endpoints: ["https://10.0.0.1:2379", "https://10.0.0.2:2379", "https://10.0.0.3:2379"]
    ca_cert: /etc/etcd/pki/ca.crt
    client_cert: /etc/etcd/pki/health.crt
    client_key: /etc/etcd/pki/health.key
  register: etcd

- name: Take this host's member down only if the cluster does well without it
  ansible.builtin.assert:
    that: (etcd.members | selectattr('name', '==', inventory_hostname) | first).safe_to_stop
    fail_msg: "{{ (etcd.members | selectattr('name', '==', inventory_hostname) | first).unsafe_reason }}"
"""

RETURN = r"""
healthy:
  description: Whether nothing is wrong, which is that RV(problems) is empty.
  returned: success
  type: bool
  sample: true
problems:
  description: All that is wrong, each in one sentence that says what to do.
  returned: success
  type: list
  elements: str
  sample: ["etcd-3 (8e9e05c52164694d) is not healthy: no answer within 2.5 s"]
unreadable:
  description: What could not be read.
  returned: success
  type: list
  elements: dict
  contains:
    what:
      description: status, members, health, cluster version, alarms or hash.
      type: str
    endpoint:
      description: Where it was asked for.
      type: str
    why:
      description: The reason.
      type: str
cluster_id:
  description: Id of the cluster in hexadecimal digits, empty if the members belong to different clusters.
  returned: success
  type: str
  sample: cdf818194e3a8c32
cluster_version:
  description: The version that all members together work as, empty if it could not be read.
  returned: success
  type: str
  sample: 3.7.0
leader:
  description: Name of the leader, empty if there is none.
  returned: success
  type: str
  sample: etcd-1
learners:
  description: Names of the members without a vote.
  returned: success
  type: list
  elements: str
quorum:
  description: The votes.
  returned: success
  type: dict
  contains:
    voters:
      description: Members with a vote.
      type: int
    healthy:
      description: Those of them that can commit.
      type: int
    wanted:
      description: How many the cluster needs.
      type: int
    margin:
      description: How many more may be lost before the cluster stands still. Below 0 it stands still already.
      type: int
    reached:
      description: Whether the cluster can commit.
      type: bool
alarms:
  description: Alarms that are on.
  returned: success
  type: list
  elements: dict
  contains:
    member:
      description: Name of the member that raised it.
      type: str
    id:
      description: Its id in hexadecimal digits.
      type: str
    alarm:
      description: NOSPACE or CORRUPT.
      type: str
revision:
  description: The newest revision that any member has.
  returned: success
  type: int
  sample: 48213
compact_revision:
  description: The revision up to which history is compacted; null if it was not read or differs.
  returned: success
  type: int
  sample: 45000
hash_revision:
  description: The revision at which the data were compared; null if they were not.
  returned: success
  type: int
  sample: 48213
data_compared:
  description: Names of the members whose data were compared.
  returned: success
  type: list
  elements: str
data_agree:
  description: Whether all of them hold the same data; null if that could not be compared.
  returned: success
  type: bool
  sample: true
members:
  description: The members in the order of their names, those that have never started last.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Its name, empty if it has never started.
      type: str
    id:
      description: Its id in hexadecimal digits.
      type: str
    endpoint:
      description: Where it was asked.
      type: str
    peer_urls:
      description: Where the other members find it.
      type: list
      elements: str
    client_urls:
      description: Where it says that clients find it.
      type: list
      elements: str
    learner:
      description: Whether it has no vote.
      type: bool
    leader:
      description: Whether it leads.
      type: bool
    answers:
      description: Whether it said anything about itself.
      type: bool
    healthy:
      description: Whether it can commit.
      type: bool
    health_reason:
      description: Why not.
      type: str
    version:
      description: Version of its server.
      type: str
    storage_version:
      description: Version of its database's schema. From 3.6 on.
      type: str
    db_size:
      description: Bytes of the database file.
      type: int
    db_size_in_use:
      description: Bytes of it that hold something. From 3.4 on.
      type: int
    db_quota:
      description: Bytes that the file may grow to. From 3.6 on.
      type: int
    fragmentation:
      description: Part of the file that holds nothing, from 0 to 1.
      type: float
    revision:
      description: Its revision.
      type: int
    compact_revision:
      description: The revision up to which its history is compacted.
      type: int
    raft_term:
      description: Its term.
      type: int
    raft_index:
      description: The newest raft entry that is committed, as far as it knows.
      type: int
    raft_applied_index:
      description: The newest raft entry that it has applied. 3.3 does not tell it and repeats the one before here.
      type: int
    lag:
      description: Raft entries that it has still to apply.
      type: int
    hash:
      description: HashKV at RV(hash_revision).
      type: int
    safe_to_stop:
      description: Whether the cluster keeps its quorum, of members with the same data, when this one is taken down.
      type: bool
    unsafe_reason:
      description: Why not.
      type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_client import CONNECTION_ARGUMENTS, connection_from
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_cluster import cluster_facts
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_cluster_io import survey


def main() -> None:
    module = AnsibleModule(
        argument_spec={**CONNECTION_ARGUMENTS, "compare_data": {"type": "bool", "default": True}},
        supports_check_mode=True,
    )
    try:
        view = survey(connection_from(module.params), hashes=module.params["compare_data"])
    except PlainkubeError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, **cluster_facts(view))


if __name__ == "__main__":
    main()
