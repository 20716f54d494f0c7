#!/usr/bin/python
# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: etcd_restore
short_description: Restore the data of one etcd member, step by step
description:
  - Each call takes one step on one host. A cluster is restored by taking each step on all its hosts before the next
    one, as C(playbooks/restore-etcd.yml) does, with one file, one token and one O(bump_revision) for all.
  - The data is restored into a folder beside the live data, checked there, and swapped in by two renames. The old data
    is kept, and can be put back.
  - A journal beside the data folder says how far a restore went. A step that was cut off anywhere is finished, or
    undone, by the next call; a step that was done is not done again.
  - A data folder that is a mount point cannot be renamed. There all this happens inside of it, with its folder
    C(member).
  - The database keeps its revisions. They are raised by O(bump_revision), and all before is marked as compacted, so
    that every client that watches is told that the past has changed.
version_added: 0.2.0
author: Plainkube contributors (@plainkube)
options:
  state:
    description:
      - V(known) says how far the latest restore on this host is, and does nothing.
      - V(proven) reads O(snapshot) and says all that speaks against restoring it here. It changes nothing, and the
        member may run.
      - V(staged) proves it again, restores it beside the live data and checks the copy. The member may run.
      - V(swapped) makes the copy the live data, and keeps the old. No member of the cluster may run.
      - V(checked) waits until all O(endpoints) serve the restored data, compares it on all of them and with what was
        restored, takes away alarms that came with it, and writes, reads and deletes one key. For one of the hosts, once
        the members run and before anything else writes.
      - V(finished) ends the restore. The old data stays.
      - V(rolled_back) puts the old data back, however far the restore went, unless it is finished. No member of the
        cluster may run.
      - V(salvaged) makes O(snapshot) of the data of a stopped member, or of what the restore O(token) kept. A server on
        a copy of it reads what stands only in its log. Of a member that was killed, the very last write may be missing,
        since the others' agreement was not in its log yet. Where the log cannot be read, the database is copied as it
        is, with a warning; it is to be restored with O(raw) then, and its last moments are not part of it.
      - A finished restore is undone by another one, of what it kept. So the revision never goes back.
      - V(set_aside) renames the live data and leaves an empty folder, for a member that is to start anew.
    type: str
    choices: [known, proven, staged, swapped, checked, finished, rolled_back, salvaged, set_aside]
    required: true
  data_dir:
    description: The member's data folder.
    type: path
    default: /var/lib/etcd
  token:
    description:
      - A word that is new for each restore and the same on all hosts. The cluster's ID follows from it, so that members
        of the old cluster cannot meet those of the new one. The names of the folders carry it too.
      - Needed with V(staged), V(swapped), V(finished) and V(set_aside). With V(rolled_back) only this one is undone,
        with V(salvaged) it is what this one kept that is read, instead of the live data.
    type: str
  snapshot:
    description:
      - The snapshot file on this host; C(etcd_snapshot) and C(etcdctl snapshot save) make them. A manifest beside it
        (the same name with C(.json) behind it) is compared with it.
      - With V(salvaged) the file to write.
    type: path
  raw:
    description: Whether O(snapshot) is a copy of a stopped member's database, without the digest that ends a snapshot.
    type: bool
    default: false
  name:
    description: The member's name.
    type: str
  peer_urls:
    description: The member's peer URLs, as its unit announces them. By default what O(members) says.
    type: list
    elements: str
  members:
    description: All members of the restored cluster, name to peer URL, or to a list of them.
    type: dict
  bump_revision:
    description:
      - How much the revision is raised above that of the snapshot, or above O(revision) if that is newer. The default
        is more than a busy cluster writes in a week.
      - V(0) leaves it, and watches that are open then miss changes without being told.
    type: int
    default: 1000000000
  sha256:
    description: SHA-256 that O(snapshot) must have, such as the one that another host found.
    type: str
  cluster_ids:
    description:
      - IDs, in hexadecimal digits, of the clusters that O(snapshot) may be of. Its manifest says of which one it is.
      - By default of any.
    type: list
    elements: str
    default: []
  revision:
    description: The newest revision that clients may have seen. What is restored is not below it.
    type: int
    default: 0
  quota_bytes:
    description: The member's quota (C(--quota-backend-bytes)), above which it refuses writes.
    type: int
    default: 2147483648
  owner:
    description: User that the data belongs to. By default that of the live data.
    type: str
  group:
    description: Group that the data belongs to. By default the user's, or that of the live data.
    type: str
  etcd:
    description: Name or path of the server's program, to compare its version with the data's, and for V(salvaged).
    type: str
    default: etcd
  deadline:
    description: Seconds that restoring the copy, taking a snapshot, or the check of the running cluster may take.
    type: int
    default: 600
extends_documentation_fragment:
  - plainkube.cluster.etcd_connection
attributes:
  check_mode:
    support: full
    description:
      - Says what the step would do. V(staged) proves the file and restores nothing, V(checked) asks nothing.
      - A file or a copy that is not there yet is no failure.
  diff_mode:
    support: none
    description: There is no text that changes.
"""

EXAMPLES = r"""
- name: Prove the snapshot on every host
  plainkube.cluster.etcd_restore:
    state: proven
    snapshot: /var/backups/etcd/etcd.db
    name: "{{ inventory_hostname }}"
    members:
      alpha: https://10.0.0.1:2380
      beta: https://10.0.0.2:2380
      gamma: https://10.0.0.3:2380
  register: proof

- name: Restore it beside the live data
  plainkube.cluster.etcd_restore:
    state: staged
    snapshot: /var/backups/etcd/etcd.db
    token: restore-2026-11-21
    name: "{{ inventory_hostname }}"
    members:
      alpha: https://10.0.0.1:2380
      beta: https://10.0.0.2:2380
      gamma: https://10.0.0.3:2380
    sha256: "{{ hostvars['alpha'].proof.sha256 }}"
    owner: etcd
    group: etcd

- name: Make it the live data, once all members are stopped
  plainkube.cluster.etcd_restore:
    state: swapped
    token: restore-2026-11-21

- name: Put the old data back
  plainkube.cluster.etcd_restore:
    state: rolled_back

- name: Make a snapshot of what a finished restore kept, to undo it by another restore
  plainkube.cluster.etcd_restore:
    state: salvaged
    token: restore-2026-11-21
    snapshot: /var/lib/etcd-restore/snapshot.db
    endpoints: ["https://10.0.0.1:2379"]
"""

RETURN = r"""
phase:
  description:
    - How far the restore on this host is, C(staged), C(swapping), C(swapped), C(finished), C(rolling-back) or
      C(rolled-back). Empty if there was none.
  returned: always
  type: str
  sample: staged
token:
  description: The token of the latest restore on this host, empty if there was none.
  returned: always
  type: str
  sample: restore-2026-11-21
same_request:
  description: Whether that restore is of this file, for these members and with this O(bump_revision).
  returned: with V(proven)
  type: bool
  sample: false
restored_revision:
  description: The revision of what that restore put in place, with the bump. 0 if there was none.
  returned: always
  type: int
  sample: 1000000021
has_data:
  description: Whether there is a live database.
  returned: always
  type: bool
  sample: true
running:
  description: Whether a server has the live database open.
  returned: always
  type: bool
  sample: true
kept:
  description: Folder of the data that was live before the latest restore, empty if there is none.
  returned: always
  type: str
  sample: /var/lib/etcd.before-restore-2026-11-21
finished:
  description:
    - The token of the latest restore that was finished, and that clients have seen, empty if there was none.
    - A later one that was not finished, or was rolled back, does not count.
  returned: always
  type: str
  sample: restore-2026-11-21
kept_revision:
  description:
    - The revision of the data that the restore RV(finished) kept. 0 if that is not there any more, or is damaged.
  returned: with V(known)
  type: int
  sample: 4711
raw:
  description: Whether the file is a copy of the database alone, to be restored with O(raw).
  returned: with V(salvaged), not in check mode
  type: bool
  sample: false
sha256:
  description: SHA-256 of the file, as C(sha256sum) prints it.
  returned: with V(proven), V(staged) and V(salvaged), if there is a file
  type: str
size:
  description: Size of the file in bytes.
  returned: with V(proven), V(staged) and V(salvaged), if there is a file
  type: int
  sample: 20512
revision:
  description: The revision of the file, before it is raised.
  returned: with V(proven), V(staged) and V(salvaged), if there is a file
  type: int
  sample: 21
key_count:
  description: The number of keys in the file.
  returned: with V(proven), V(staged) and V(salvaged), if there is a file
  type: int
  sample: 21
version:
  description: The release (major and minor) that the file's data is of, empty if it does not say.
  returned: with V(proven), V(staged) and V(salvaged), if there is a file
  type: str
  sample: "3.7"
cluster_id:
  description: ID of the cluster that the file is of, empty if it has no manifest.
  returned: with V(proven) and V(staged), if there is a file
  type: str
  sample: cb60b6e72d5d2f42
old_members:
  description: Names of the members of the cluster that the file is of.
  returned: with V(proven), V(staged) and V(salvaged), if there is a file
  type: list
  elements: str
  sample: [alpha, beta, gamma]
check:
  description: What was found at the running cluster.
  returned: with V(checked), not in check mode
  type: dict
  sample: {revision: 1000000021, key_count: 21, hash: 3206219427, disarmed: []}
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.plainkube.cluster.plugins.module_utils import etcd_restore as plan
from ansible_collections.plainkube.cluster.plugins.module_utils import etcd_restore_io as io
from ansible_collections.plainkube.cluster.plugins.module_utils.bbolt import SnapshotProof
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_client import CONNECTION_ARGUMENTS, connection_from

ARGUMENTS: dict[str, dict[str, Any]] = {
    "state": {
        "type": "str",
        "required": True,
        "choices": [
            "known",
            "proven",
            "staged",
            "swapped",
            "checked",
            "finished",
            "rolled_back",
            "salvaged",
            "set_aside",
        ],
    },
    "data_dir": {"type": "path", "default": "/var/lib/etcd"},
    "token": {"type": "str", "no_log": False},
    "snapshot": {"type": "path"},
    "raw": {"type": "bool", "default": False},
    "name": {"type": "str"},
    "peer_urls": {"type": "list", "elements": "str"},
    "members": {"type": "dict"},
    "bump_revision": {"type": "int", "default": 1_000_000_000},
    "sha256": {"type": "str"},
    "cluster_ids": {"type": "list", "elements": "str", "default": []},
    "revision": {"type": "int", "default": 0},
    "quota_bytes": {"type": "int", "default": 2 * 1024**3},
    "owner": {"type": "str"},
    "group": {"type": "str"},
    "etcd": {"type": "str", "default": "etcd"},
    "deadline": {"type": "int", "default": 600},
    **CONNECTION_ARGUMENTS,
}
REQUIRED_IF = [
    ("state", "proven", ["snapshot", "name", "members"]),
    ("state", "staged", ["snapshot", "name", "members", "token"]),
    ("state", "swapped", ["token"]),
    ("state", "finished", ["token"]),
    ("state", "salvaged", ["snapshot"]),
    ("state", "set_aside", ["token"]),
]
# A proof needs no token; what is compared with a former restore is then everything else.
NO_TOKEN = "none"


@dataclass(frozen=True)
class Proven:
    """A file that was read, and all that was thought about it."""

    proof: SnapshotProof
    manifest: dict[str, Any]
    request: plan.Request
    host: plan.Host


class Restore:
    """One call of the module."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params = module.params
        self.token = self.params["token"] or NO_TOKEN
        self.places = self.places_of(self.token)
        self.journal = io.read_journal(self.places)
        self.answer: dict[str, Any] = {"changed": False}

    def run(self) -> dict[str, Any]:
        """Take the step and return the answer. Raises PlainkubeError."""
        getattr(self, "state_" + self.params["state"])()
        journal, places = self.journal, self.places
        if journal:
            places = self.places_of(journal.token)
        self.answer.update(
            phase=journal.phase if journal else "",
            token=journal.token if journal else "",
            finished=journal.latest_finished if journal else "",
            has_data=io.has_data(places.live_member),
            running=io.in_use(io.database_path(places)),
            restored_revision=journal.revision if journal else 0,
            kept=places.kept if journal and io.look(places).kept else "",
        )
        return self.answer

    # What each state does

    def state_known(self) -> None:
        finished = self.journal.latest_finished if self.journal else ""
        self.answer["kept_revision"] = io.revision_of(self.places_of(finished).kept_member) if finished else 0

    def state_proven(self) -> None:
        proven = self.prove()
        if proven:
            journal = self.journal
            fingerprint = proven.request.fingerprint(proven.proof.digest)
            self.answer["same_request"] = bool(journal and journal.fingerprint == fingerprint)

    def state_staged(self) -> None:
        proven = self.prove()
        if not proven:
            self.answer["changed"] = True
            return
        fingerprint = proven.request.fingerprint(proven.proof.digest)
        with self.alone():
            if not plan.must_stage(self.journal, self.token, fingerprint, io.look(self.places)):
                return
            self.answer["changed"] = True
            if self.module.check_mode:
                return
            owner = io.find_owner(self.places, self.params["owner"], self.params["group"])
            assert proven.host.tool
            self.journal = io.stage(
                proven.request,
                self.places,
                self.params["snapshot"],
                proven.proof,
                proven.host.tool,
                owner,
                self.params["deadline"],
            )

    def state_swapped(self) -> None:
        if self.module.check_mode and (self.journal is None or self.journal.token != self.token):
            # The steps before this one only said what they would do.
            self.answer["changed"] = True
            return
        with self.alone():
            steps = plan.swap_steps(self.journal, self.token, io.look(self.places))
            if steps is None:
                return
            self.answer["changed"] = True
            if not self.module.check_mode:
                io.require_stopped(self.places)
                assert self.journal
                self.journal = self.done(io.swap, self.journal, steps)

    def state_checked(self) -> None:
        if self.module.check_mode:
            return
        if self.journal is None or self.journal.phase not in (plan.SWAPPED, plan.FINISHED):
            latest = f"the latest is {self.journal.phase}" if self.journal else "there is none"
            raise plan.RestoreError(f"there is no restored data to check on this host ({latest})")
        found = io.check_cluster(connection_from(self.params), self.journal, self.params["deadline"])
        self.answer["check"] = found
        self.answer["changed"] = bool(found["disarmed"])

    def state_finished(self) -> None:
        if self.module.check_mode and (self.journal is None or self.journal.token != self.token):
            self.answer["changed"] = True
            return
        with self.alone():
            if not plan.may_finish(self.journal, self.token):
                return
            self.answer["changed"] = True
            if not self.module.check_mode:
                assert self.journal
                self.journal = self.done(io.finish, self.journal)

    def state_rolled_back(self) -> None:
        if self.journal is None:
            return
        if self.params["token"] and self.journal.token != self.token:
            # This host has not come as far as others with that restore: there is nothing of it here.
            return
        self.places = self.places_of(self.journal.token)
        with self.alone():
            steps = plan.rollback_steps(self.journal, io.look(self.places))
            if steps is None:
                return
            self.answer["changed"] = True
            if not self.module.check_mode:
                if self.journal.phase != plan.STAGED:
                    io.require_stopped(self.places)
                self.journal = self.done(io.roll_back, self.journal, steps)

    def state_salvaged(self) -> None:
        params = self.params
        member = self.places.kept_member if params["token"] else self.places.live_member
        if not io.has_data(member):
            if self.module.check_mode:
                return
            raise plan.RestoreError(f"there is no {member}/{io.MEMBER_DATABASE} to copy")
        if not params["token"]:
            io.require_stopped(self.places)
        self.answer["changed"] = True
        if self.module.check_mode:
            return
        connection = connection_from(params)
        proof, reason = io.salvage(member, params["snapshot"], connection, params["etcd"], params["deadline"])
        if reason:
            self.module.warn(
                f"the log of {member} could not be read, so that {params['snapshot']} is a copy of its database alone, "
                f"without what was written in its last moments: {reason}"
            )
        self.describe(proof)
        self.answer["raw"] = bool(reason)

    def state_set_aside(self) -> None:
        if not io.has_data(self.places.live_member):
            return
        with self.alone():
            if io.look(self.places).kept:
                raise plan.RestoreError(f"{self.places.kept} is there already: choose another token")
            self.answer["changed"] = True
            if not self.module.check_mode:
                io.require_stopped(self.places)
                try:
                    io.set_aside(self.places)
                except OSError as error:
                    raise plan.RestoreError(f"{self.places.live} could not be set aside: {error}") from error

    # What they share

    def places_of(self, token: str) -> plan.Layout:
        return io.find_layout(self.params["data_dir"], token)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other runs away, and know what the last one left."""
        with io.alone(self.places):
            self.journal = io.read_journal(self.places)
            yield

    def done(self, step: Any, *arguments: Any) -> plan.Journal:
        """Return what a step that renames folders says. Raises RestoreError."""
        try:
            journal: plan.Journal = step(self.places, *arguments)
        except OSError as error:
            raise plan.RestoreError(
                f"{self.places.data_dir}: the restore {self.places.token} stopped half-way: {error}; "
                "mend that, then run the same step again, or undo it (state rolled_back)"
            ) from error
        return journal

    def prove(self) -> Proven | None:
        """Return the proven file, None in check mode when there is none yet. Raises PlainkubeError with all faults."""
        params, path = self.params, self.params["snapshot"]
        members = plan.parse_members(params["members"])
        request = plan.Request(
            token=self.token,
            name=params["name"],
            peer_urls=tuple(params["peer_urls"] or members.get(params["name"], ())),
            members=members,
            bump_revision=params["bump_revision"],
            raw=params["raw"],
        )
        faults = plan.request_faults(request)
        if self.module.check_mode and not faults and not Path(path).exists():
            self.module.warn(f"{path} is not there yet, so it was not proven")
            return None
        try:
            proof = io.prove(path, request.raw)
            manifest = io.read_manifest(path)
        except PlainkubeError as error:
            raise plan.RestoreError("; ".join([*faults, str(error)])) from error
        expected = plan.Expectation(
            sha256=params["sha256"] or "",
            cluster_ids=tuple(params["cluster_ids"]),
            revision=params["revision"],
            quota_bytes=params["quota_bytes"],
        )
        fingerprint = plan.with_whole_bump(request, expected, proof).fingerprint(proof.digest)
        host = io.look_at_host(self.places, params["etcd"], params["etcdutl"], params["etcdctl"])
        if plan.is_copied(self.journal, fingerprint):
            host = replace(host, copied=True)
        faults += plan.proof_faults(request, expected, path, proof, manifest, host)
        if faults:
            raise plan.RestoreError("; ".join(faults))
        for warning in plan.warnings(request, expected, path, proof, manifest, host):
            self.module.warn(warning)
        request = plan.with_whole_bump(request, expected, proof)
        self.describe(proof)
        self.answer["cluster_id"] = plan.plain_id(manifest.get("cluster_id") or "")
        return Proven(proof, manifest, request, host)

    def describe(self, proof: SnapshotProof) -> None:
        """Add what a file was found to be to the answer."""
        version = plan.data_version(proof)
        self.answer.update(
            sha256=proof.digest,
            size=proof.size,
            revision=proof.revision,
            key_count=proof.key_count,
            version=plan.shown(version) if version else "",
            old_members=sorted(member["name"] for member in proof.members),
        )


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENTS, required_if=REQUIRED_IF, supports_check_mode=True)
    try:
        answer = Restore(module).run()
    except PlainkubeError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
