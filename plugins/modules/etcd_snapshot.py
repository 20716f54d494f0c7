#!/usr/bin/python
# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: etcd_snapshot
short_description: Take a snapshot of etcd and prove it
description:
  - Picks a healthy member that has caught up, a follower if there is one, and lets it send its database.
  - Proves the file before anybody else sees it. Its SHA-256 has to be the one that the member sent, both of its first
    pages have to agree, and every page in use, every bucket and every revision has to be sound. The member has to be
    among its members, and its revision must not be behind the one that the member had before.
  - Writes beside it what is known of it, as JSON under the same name with C(.json) behind it. A snapshot without this
    manifest is unfinished.
  - Runs that want to write into the same folder wait for each other. What a killed run left there is removed.
  - Snapshots hold all secrets of the cluster. The file has the mode 0600 from its first byte on.
version_added: 0.2.0
author: Plainkube contributors
extends_documentation_fragment: plainkube.cluster.etcd_connection
options:
  dest:
    description:
      - Folder for the snapshot. It is made with the mode 0700 if it is not there.
        One that everybody may write is refused.
    type: path
    required: true
  name:
    description:
      - Name of the file. C({time}) is when it was taken, in UTC, C({revision}) its revision, C({cluster_id}) the
        cluster's id and C({member}) the name of the member.
      - Under a name without them each snapshot replaces the one before, once it is proven.
    type: str
    default: etcd-{time}-{revision}.db
  min_age:
    description:
      - Seconds. A snapshot in O(dest) that is younger and has the present revision is proven once more, and if it is
        sound no other one is taken.
    type: int
    default: 0
  min_free:
    description: What has to stay free on the file system of O(dest), such as C(2G).
    type: bytes
    default: "0"
  verify:
    description:
      - V(file) proves the file.
      - V(restore) also restores it into a folder beside it, and compares revision, number of keys and HashKV with the
        member. Needs C(etcdutl); before version 3.6 it also needs C(etcd) and C(openssl), and starts a server on
        loopback.
    type: str
    choices: [file, restore]
    default: file
  cluster_id:
    description: Id of the cluster in hexadecimal digits. Any other cluster is refused.
    type: str
  without_quorum:
    description: Take what the most advanced member has if none is healthy.
    type: bool
    default: false
  deadline:
    description: Seconds that waiting for another run may take, and sending the snapshot.
    type: float
    default: 600.0
  etcd:
    description: Name or path of the server program, for O(verify=restore) with etcd before 3.6.
    type: str
    default: etcd
attributes:
  check_mode:
    support: full
    description: Asks the cluster, says which member it would take and what it would write, and writes nothing.
  diff_mode:
    support: none
    description: Snapshots are no text.
notes:
  - The connection needs a user or certificate that may read everything.
  - HashKV is compared as the programs of the host compute it. They should have the version of the cluster.
seealso:
  - module: plainkube.cluster.etcd_snapshot_info
  - module: plainkube.cluster.etcd_restore
"""

EXAMPLES = r"""
- name: Have a proven snapshot that is at most an hour old
  plainkube.cluster.etcd_snapshot:
    endpoints: ["https://10.0.0.1:2379", "https://10.0.0.2:2379", "https://10.0.0.3:2379"]
    ca_cert: /etc/etcd/pki/ca.crt
    client_cert: /etc/etcd/pki/client.crt
    client_key: /etc/etcd/pki/client.key
    dest: /var/backups/etcd
    min_age: 3600
    min_free: 2G

- name: Try out that it can be restored, too
  plainkube.cluster.etcd_snapshot:
    dest: /var/backups/etcd
    verify: restore
    cluster_id: 7d8f1c5b6a2e3f40
"""

RETURN = r"""
path:
  description: The snapshot. In check mode, the one that would be written, as far as its name is known before.
  returned: success
  type: str
  sample: /var/backups/etcd/etcd-20260102T030405Z-81733.db
manifest_path:
  description: The manifest beside it.
  returned: success
  type: str
  sample: /var/backups/etcd/etcd-20260102T030405Z-81733.db.json
manifest:
  description: What is known of the snapshot, as it stands in the manifest.
  returned: success, unless check mode would take one
  type: dict
  contains:
    file:
      description: Name of the file.
      type: str
    sha256:
      description: SHA-256 of the whole file.
      type: str
    size:
      description: Its bytes.
      type: int
    page_size:
      description: Bytes of a page of the database.
      type: int
    revision:
      description: The revision, read from the file.
      type: int
    compact_revision:
      description: The revision up to which the history is compacted.
      type: int
    key_count:
      description: Keys that exist at this revision.
      type: int
    entries:
      description: Revisions of keys that the file holds.
      type: int
    members:
      description: The members with C(id), C(name), C(peer_urls), C(client_urls) and C(learner).
      type: list
      elements: dict
    cluster_version:
      description: Version that the cluster runs as.
      type: str
    storage_version:
      description: Version of the file's layout, empty before 3.6.
      type: str
    consistent_index:
      description: Raft index of the last entry that is in the file.
      type: int
    term:
      description: Raft term of that entry.
      type: int
    alarms:
      description: Alarms that are in the file, with C(member_id) and C(alarm). A restore brings them back.
      type: list
      elements: dict
    lease_count:
      description: Number of leases.
      type: int
    auth_enabled:
      description: Whether clients have to say who they are.
      type: bool
    cluster_id:
      description: Id of the cluster, in hexadecimal digits.
      type: str
    member_id:
      description: Id of the member that sent it.
      type: str
    member:
      description: Its name.
      type: str
    endpoint:
      description: Where it was asked.
      type: str
    etcd_version:
      description: Version of this member.
      type: str
    host:
      description: The host that took the snapshot.
      type: str
    taken_at:
      description: When it was begun, in UTC.
      type: str
    seconds:
      description: How long it took, with its proof.
      type: float
    verified:
      description: How it was proven, C(file) or C(restore).
      type: str
    hash_kv:
      description: HashKV of the restored copy and of the member, with the revisions that it goes with.
      type: dict
source:
  description: The member that would be taken, or was.
  returned: in check mode
  type: dict
  contains:
    endpoint:
      description: Where it is asked.
      type: str
    member:
      description: Its name and id.
      type: str
    version:
      description: Its version.
      type: str
    cluster_id:
      description: Its cluster.
      type: str
    revision:
      description: Its revision.
      type: int
    db_size:
      description: Bytes of its database.
      type: int
space:
  description: Bytes that are free at O(dest), and that are wanted.
  returned: in check mode
  type: dict
  contains:
    free:
      description: What is free.
      type: int
    wanted:
      description: What is wanted.
      type: int
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_client import CONNECTION_ARGUMENTS, connection_from
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_snapshot_io import Decision, decide, take_snapshot
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_snapshots import (
    DEFAULT_NAME,
    FILE,
    MANIFEST_SUFFIX,
    VERIFY,
    Wish,
)

ARGUMENTS: dict[str, dict[str, Any]] = {
    **CONNECTION_ARGUMENTS,
    "dest": {"type": "path", "required": True},
    "name": {"type": "str", "default": DEFAULT_NAME},
    "min_age": {"type": "int", "default": 0},
    "min_free": {"type": "bytes", "default": "0"},
    "verify": {"type": "str", "choices": list(VERIFY), "default": FILE},
    "cluster_id": {"type": "str"},
    "without_quorum": {"type": "bool", "default": False},
    "deadline": {"type": "float", "default": 600.0},
    "etcd": {"type": "str", "default": "etcd"},
}


def announce(decision: Decision) -> dict[str, Any]:
    """Return what check mode says."""
    source, existing = decision.source, decision.existing
    answer: dict[str, Any] = {
        "changed": existing is None,
        "path": decision.path,
        "manifest_path": decision.path + MANIFEST_SUFFIX,
        "source": {
            "endpoint": source.endpoint,
            "member": source.title,
            "version": source.version,
            "cluster_id": f"{source.cluster_id:x}",
            "revision": source.revision,
            "db_size": source.db_size,
        },
        "space": {"free": decision.free, "wanted": decision.needed},
    }
    if existing:
        answer["manifest"] = dict(existing.manifest)
    return answer


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    options = {name: module.params[name] for name in ARGUMENTS if name not in CONNECTION_ARGUMENTS}
    options["cluster_id"] = options["cluster_id"] or ""
    wish = Wish(**options)
    try:
        connection = connection_from(module.params)
        if module.check_mode:
            module.exit_json(**announce(decide(connection, wish)))
        taken = take_snapshot(connection, wish)
    except PlainkubeError as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=taken.changed,
        path=taken.path,
        manifest_path=taken.path + MANIFEST_SUFFIX,
        manifest=taken.manifest,
    )


if __name__ == "__main__":
    main()
