#!/usr/bin/python
# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: etcd_migrate
short_description: Move the keys of etcd's v2 store to v3, with a freeze of seconds
description:
  - Copies all keys over C(/v2/keys) from a running cluster into a scratch server of the new version, while writers
    still write, and follows what they write. The copy is compared key by key, its snapshot is proven, and the store is
    read and compared a second time.
  - Then the writers are frozen for a moment. That nothing writes any more is proven by an index that stands still, and
    by the members' logs once they are stopped. The members change to restored data folders, the last changes are
    written into the new cluster, read back and compared, and all members must hold the same.
  - Whatever fails before that puts the old cluster back. The old data folders are kept in any case, with
    C(.before-) and the migration's name behind theirs.
  - A journal in O(work_dir) says how far a run went. A run that was killed anywhere is undone by the next, which then
    begins anew. Once there is nothing left to migrate, nothing changes.
  - The source may be etcd 3.3, or 3.4 and 3.5 with C(--enable-v2). The programs of the new version do the rest, 3.5.10
    or newer.
  - Revisions of the new store are above the index of the old one, and all before is marked as compacted, so that every
    client that watches is told that the past has changed.
version_added: 0.2.0
author: Plainkube contributors (@plainkube)
options:
  phase:
    description:
      - V(all) does everything, for a cluster whose members are all on this host.
      - The others are for members on several hosts, as C(playbooks/migrate-etcd.yml) calls them. C(etcd_restore) puts
        the copy into place there.
      - V(known) says how far the latest migration is, and does nothing.
      - V(census) reads everything and says what speaks against a migration. It changes nothing.
      - V(copy) makes the proven snapshot in O(work_dir). Writers may write.
      - V(freeze) compares the store with the snapshot, freezes the writers, proves that, and keeps the last changes.
      - V(check_stopped) sees in the log of a stopped member that nothing was written after the freeze.
      - V(finish) writes the last changes into the new cluster, and compares.
      - V(undo) lets the writers return to the old cluster, once its data is back and its members run.
    type: str
    choices: [all, known, census, copy, freeze, check_stopped, finish, undo]
    default: all
  work_dir:
    description:
      - Folder for the journal, the scratch server and the snapshot. It is made, and only root can read it.
      - It needs about three times the space of all keys and values.
    type: path
    default: /var/lib/etcd-migration
  members:
    description:
      - Members whose data is on this host. With O(phase=all) that has to be all of them.
      - For V(census), V(copy) and V(freeze) a member's data folder is where hidden keys are looked for.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: The member's name.
        type: str
        required: true
      data_dir:
        description: Its data folder.
        type: path
        required: true
      stop_command:
        description: Command that stops it, and returns once it is stopped. Also where it does not run.
        type: list
        elements: str
        default: []
      start_command:
        description: Command that starts it on its old data. Also where it runs.
        type: list
        elements: str
        default: []
      new_stop_command:
        description: Command that stops it on its new data. By default O(members[].stop_command).
        type: list
        elements: str
      new_start_command:
        description:
          - Command that starts it on its new data, with the new version. By default O(members[].start_command).
        type: list
        elements: str
  freeze_command:
    description:
      - Command that stops what writes. Without one, nothing may write from the beginning of O(phase=freeze) on, or be
        about to in O(phase=all).
    type: list
    elements: str
    default: []
  thaw_command:
    description:
      - Command that starts what writes again, run only after the old cluster was put back. Starting what writes to the
        new cluster is left to you.
    type: list
    elements: str
    default: []
  still_seconds:
    description: For how long the index has to stand still. Lifetimes that run out do not count.
    type: float
    default: 0.3
  profile:
    description:
      - What becomes of lifetimes. V(plain) gives each such key a lease for the seconds that are left.
      - V(kubernetes) gives events one hour and the API servers' own addresses (C(masterleases)) 15 seconds, and all
        other keys live for ever.
    type: str
    choices: [plain, kubernetes]
    default: plain
  hidden_keys:
    description:
      - What to do with keys that have a part that starts with an underscore, which the API does not list. They are
        found in a member's files. V(copy) copies them, V(refuse) does not migrate if there are any, V(leave) leaves
        them behind.
    type: str
    choices: [copy, refuse, leave]
    default: copy
  allow_replacement_characters:
    description:
      - Migrate although keys or values hold U+FFFD, which is also what the v2 API makes of bytes that are not UTF-8.
    type: bool
    default: false
  max_request_bytes:
    description: What the new servers accept in one request (C(--max-request-bytes)).
    type: int
    default: 1572864
  quota_bytes:
    description: Quota of the new servers (C(--quota-backend-bytes)).
    type: int
    default: 2147483648
  revision_slack:
    description: How far the new revisions begin above the index of the old store.
    type: int
    default: 1000000000
  raft_index:
    description: With V(check_stopped), the RV(raft_index) that V(freeze) returned.
    type: int
  etcd:
    description: Name or path of the server's program of the new version. O(etcdctl) and O(etcdutl) are of it too.
    type: str
    default: etcd
  deadline:
    description: Seconds until the members must be well after they were started.
    type: float
    default: 60
extends_documentation_fragment:
  - plainkube.cluster.etcd_connection
attributes:
  check_mode:
    support: full
    description: Reads everything and says in RV(faults) what speaks against a migration; does not fail because of it.
  diff_mode:
    support: none
    description: What changes is a whole store.
"""

EXAMPLES = r"""
- name: See what speaks against a migration
  plainkube.cluster.etcd_migrate:
    phase: census
    endpoints: [http://127.0.0.1:2379]
    members:
      - {name: alpha, data_dir: /var/lib/etcd}

- name: Migrate the only member
  plainkube.cluster.etcd_migrate:
    endpoints: [http://127.0.0.1:2379]
    members:
      - name: alpha
        data_dir: /var/lib/etcd
        stop_command: [systemctl, stop, etcd2]
        start_command: [systemctl, start, etcd2]
        new_stop_command: [systemctl, stop, etcd]
        new_start_command: [systemctl, start, etcd]
    freeze_command: [systemctl, stop, kube-apiserver]
    thaw_command: [systemctl, start, kube-apiserver]
    profile: kubernetes
    etcd: /opt/etcd/3.5.35/etcd
    etcdctl: /opt/etcd/3.5.35/etcdctl
    etcdutl: /opt/etcd/3.5.35/etcdutl
"""

RETURN = r"""
state:
  description:
    - How far the latest migration is, C(copying), C(copied), C(staged), C(freezing), C(frozen), C(swapping),
      C(swapped), C(done), C(undoing) or C(undone). Empty if there was none.
  returned: always
  type: str
  sample: done
id:
  description: The migration's name, which is also the token of the new cluster.
  returned: always
  type: str
  sample: migration-5f2a9b0c1d
to_undo:
  description: Whether that migration was cut off, and has to be undone.
  returned: always
  type: bool
  sample: false
to_do:
  description: Whether there is a v2 store with keys at the endpoints.
  returned: with V(all), V(census) and V(copy)
  type: bool
  sample: true
faults:
  description: What speaks against a migration.
  returned: with V(census), and in check mode
  type: list
  elements: str
census:
  description: What the old store holds.
  returned: when it was read
  type: dict
  sample: {keys: 100000, bytes: 104600000, largest_key: /registry/a, largest_bytes: 1046, expiring_keys: 12,
    hidden_keys: [], replaced_values: 0, too_large_keys: 0}
undone:
  description: State in which a former run was found and undone, empty if there was none.
  returned: with V(all), V(copy) and V(undo)
  type: str
  sample: ""
snapshot:
  description: The proven snapshot.
  returned: with V(copy), if there was something to copy
  type: dict
  sample: {path: /var/lib/etcd-migration/snapshot.db, sha256: 9f86d081884c7d65, size: 137850912, revision: 783,
    key_count: 100000, bump_revision: 1000100003}
members:
  description: Peer URLs of the cluster's members by name, as C(etcd_restore) wants them.
  returned: with V(copy), if there was something to copy
  type: dict
  sample: {alpha: ["https://10.0.0.1:2380"]}
leader:
  description:
    - Name of the member that leads. It is to be stopped last, since it would wait for another one to take over.
  returned: with V(freeze)
  type: str
  sample: alpha
raft_index:
  description: What the members' logs may reach without a write.
  returned: with V(freeze)
  type: int
  sample: 100233
last_changes:
  description: How many keys were left to be copied while the writers were frozen.
  returned: with V(all) and V(freeze), when they were frozen
  type: int
  sample: 412
keys:
  description: Keys in the new cluster.
  returned: with V(all) and V(finish), when it was finished
  type: int
  sample: 100000
revision:
  description: Revision of the new cluster.
  returned: with V(all) and V(finish), when it was finished
  type: int
  sample: 1000101234
freeze_seconds:
  description: How long the writers were frozen.
  returned: with V(all), when it was finished
  type: float
  sample: 2.1
total_seconds:
  description: How long everything took.
  returned: with V(all), when it was finished
  type: float
  sample: 11.8
seconds:
  description: How long the parts of the work took.
  returned: always
  type: dict
  sample: {copy: 4.6, compare: 0.9, look_again: 1.6, stage: 1.2, freeze: 0.4, stop: 0.3, start: 0.9, verify: 0.2}
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.plainkube.cluster.plugins.module_utils import etcd_migration_run as run
from ansible_collections.plainkube.cluster.plugins.module_utils import etcd_migrations as plan
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_client import CONNECTION_ARGUMENTS, connection_from

COMMAND = {"type": "list", "elements": "str"}
MEMBER_ARGUMENTS = {
    "name": {"type": "str", "required": True},
    "data_dir": {"type": "path", "required": True},
    "stop_command": {**COMMAND, "default": []},
    "start_command": {**COMMAND, "default": []},
    "new_stop_command": COMMAND,
    "new_start_command": COMMAND,
}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "phase": {
        "type": "str",
        "choices": ["all", "known", "census", "copy", "freeze", "check_stopped", "finish", "undo"],
        "default": "all",
    },
    "work_dir": {"type": "path", "default": "/var/lib/etcd-migration"},
    "members": {"type": "list", "elements": "dict", "options": MEMBER_ARGUMENTS, "default": []},
    "freeze_command": {**COMMAND, "default": []},
    "thaw_command": {**COMMAND, "default": []},
    "still_seconds": {"type": "float", "default": 0.3},
    "profile": {"type": "str", "choices": ["plain", "kubernetes"], "default": "plain"},
    "hidden_keys": {"type": "str", "choices": ["copy", "refuse", "leave"], "default": "copy", "no_log": False},
    "allow_replacement_characters": {"type": "bool", "default": False},
    "max_request_bytes": {"type": "int", "default": plan.REQUEST_BYTES},
    "quota_bytes": {"type": "int", "default": 2 * 1024**3},
    "revision_slack": {"type": "int", "default": 1_000_000_000},
    "raft_index": {"type": "int"},
    "etcd": {"type": "str", "default": "etcd"},
    "deadline": {"type": "float", "default": 60},
    **CONNECTION_ARGUMENTS,
}
REQUIRED_IF = [("phase", "check_stopped", ["raft_index", "members"])]


def settings_from(params: dict[str, Any]) -> run.Settings:
    """Return what the module was told. Raises PlainkubeError with all faults at once."""
    members = tuple(
        run.LocalMember(
            name=member["name"],
            data_dir=member["data_dir"].rstrip("/"),
            stop_command=tuple(member["stop_command"]),
            start_command=tuple(member["start_command"]),
            new_stop_command=tuple(member["new_stop_command"] or member["stop_command"]),
            new_start_command=tuple(member["new_start_command"] or member["start_command"]),
        )
        for member in params["members"]
    )
    connection = connection_from(params)
    faults = []
    if params["phase"] == "all":
        if len(members) != len(connection.endpoints):
            faults.append(
                f"members: found {len(members)}, and {len(connection.endpoints)} endpoints: phase all is for a cluster "
                "whose members are all on this host"
            )
        for member in members:
            faults += [
                f"members: {member.name}: {name} is missing"
                for name in ("stop_command", "start_command")
                if not getattr(member, name)
            ]
    for name, least in (("still_seconds", 0.1), ("deadline", 1), ("quota_bytes", 1), ("revision_slack", 1)):
        if params[name] < least:
            faults.append(f"{name}: found {params[name]}, wanted at least {least}")
    if faults:
        raise plan.MigrationError("; ".join(faults))
    return run.Settings(
        connection=connection,
        work_dir=params["work_dir"].rstrip("/"),
        etcd=params["etcd"],
        rules=plan.Rules(
            profile=params["profile"],
            hidden_keys=params["hidden_keys"],
            allow_replacement_characters=params["allow_replacement_characters"],
            max_request_bytes=params["max_request_bytes"],
            quota_bytes=params["quota_bytes"],
        ),
        members=members,
        freeze_command=tuple(params["freeze_command"]),
        thaw_command=tuple(params["thaw_command"]),
        still_seconds=params["still_seconds"],
        revision_slack=params["revision_slack"],
        deadline=params["deadline"],
    )


class Call:
    """One call of the module."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.migration = run.Migration(settings_from(module.params))
        self.answer: dict[str, Any] = {"changed": False}

    def run(self) -> dict[str, Any]:
        """Do the phase and return the answer. Raises PlainkubeError."""
        phase = self.module.params["phase"]
        if self.module.check_mode or phase in ("census", "known"):
            self.migration.entry = self.migration.shop.read()
            if phase != "known":
                self.look(phase)
        else:
            with self.migration.alone():
                getattr(self, "phase_" + phase)()
        return {**self.answer, **self.known()}

    def known(self) -> dict[str, Any]:
        """Return what is known at any time."""
        migration = self.migration
        known: dict[str, Any] = {
            "id": migration.entry.id,
            "state": migration.entry.state,
            "to_undo": migration.entry.state in plan.TO_UNDO,
            "seconds": migration.seconds,
        }
        if migration.census.keys:
            known["census"] = migration.census.facts()
        return known

    def look(self, phase: str) -> None:
        """Say what would be done, without touching anything."""
        if phase not in ("all", "census", "copy"):
            # What the phases before would have left is not there.
            self.answer.update(changed=True, faults=[])
            return
        migration = self.migration
        to_do = migration.served()
        faults = migration.examine() if to_do else []
        if to_do and migration.source:
            faults += migration.take_census()
        self.answer.update(to_do=to_do, faults=faults, changed=to_do and phase != "census")

    def begin(self) -> bool:
        """Undo what a former run left half done, and return whether there is something to migrate."""
        undone = run.recover(self.migration)
        to_do = self.migration.served()
        self.answer.update(to_do=to_do, undone=undone if undone in plan.TO_UNDO else "")
        self.answer["changed"] = to_do or bool(self.answer["undone"])
        if self.migration.entry.state == plan.DONE:
            self.migration.close_members()
        return to_do

    def phase_all(self) -> None:
        if self.begin():
            self.answer.update(run.migrate(self.migration))
            self.answer["last_changes"] = self.migration.entry.facts["last_changes"]

    def phase_copy(self) -> None:
        if self.begin():
            proof = run.copy(self.migration)
            self.answer["snapshot"] = {
                "path": self.migration.shop.snapshot,
                "sha256": proof.digest,
                "size": proof.size,
                "revision": proof.revision,
                "key_count": proof.key_count,
                "bump_revision": self.migration.entry.facts["bump_revision"],
            }
            self.answer["members"] = self.migration.peer_urls

    def phase_freeze(self) -> None:
        run.freeze(self.migration)
        facts = self.migration.entry.facts
        names = ("raft_index", "last_changes", "leader")
        self.answer.update(changed=True, **{name: facts[name] for name in names})

    def phase_check_stopped(self) -> None:
        for member in self.migration.settings.members:
            self.migration.require_unchanged(member, self.module.params["raft_index"])

    def phase_finish(self) -> None:
        self.answer.update(run.finish(self.migration))

    def phase_undo(self) -> None:
        undone = run.recover(self.migration)
        self.answer["undone"] = undone if undone in plan.TO_UNDO else ""
        self.answer["changed"] = bool(self.answer["undone"])


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENTS, required_if=REQUIRED_IF, supports_check_mode=True)
    call = None
    try:
        call = Call(module)
        answer = call.run()
    except PlainkubeError as error:
        module.fail_json(msg=str(error), **(call.known() if call else {}))
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
