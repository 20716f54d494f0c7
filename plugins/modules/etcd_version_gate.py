#!/usr/bin/python
# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: etcd_version_gate
short_description: See whether a running etcd cluster may move to another version
description:
  - Asks all members, and refuses the move with every reason at once when it could lose data. It is for the moment
    before the first member gets another binary; the role etcd runs it by itself when C(etcd_version) changes.
  - Refused are two minors at once; the step to 3.6 from below 3.5.32 and to 3.7 from below 3.6.11, where removed
    members came back to life; 3.5.0 to 3.5.2 as a target; flags that the target does not know any more; content of the
    old v2 store before 3.6; learners, members that never started, alarms, members that are down or hold different
    data; and an older minor, unless that is meant and etcd can do it.
  - A move that stopped half-way, with members of both versions, is taken up again.
  - For a meant step to an older minor (from 3.6 on) it tells the cluster so and waits until all members have written
    their databases in the older form. Only then may a member get the older binary.
version_added: 0.2.0
author: Plainkube contributors
extends_documentation_fragment:
  - plainkube.cluster.etcd_connection
options:
  version:
    description: The version that all members are to run.
    type: str
    required: true
  flags:
    description: Names of further flags of the members' command lines, without dashes.
    type: list
    elements: str
    default: []
  data_dir:
    description:
      - The data folder of this host's member. With it, content of the old v2 store is looked for before the step
        to 3.6, which refuses to start on it; and a cluster that has never run need not answer.
    type: path
  allow_downgrade:
    description: Whether an older minor is meant.
    type: bool
    default: false
  deadline:
    description:
      - Seconds that the cluster may take to note the version its members have, and to write its databases in an older
        form.
    type: int
    default: 60
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
    description: What changes is the cluster's leave to run an older version; the answer tells it.
"""

EXAMPLES = r"""
- name: See whether the members may move
  plainkube.cluster.etcd_version_gate:
    endpoints: ["https://10.0.0.1:2379", "https://10.0.0.2:2379", "https://10.0.0.3:2379"]
    ca_cert: /etc/etcd/pki/ca.crt
    client_cert: /etc/etcd/pki/health.crt
    client_key: /etc/etcd/pki/health.key
    version: 3.7.3
    data_dir: /var/lib/etcd
"""

RETURN = r"""
move:
  description: What it takes, one of C(none), C(patch), C(up), C(down).
  returned: success
  type: str
  sample: up
versions:
  description: The versions that the members run.
  returned: success
  type: list
  elements: str
  sample: ["3.6.14"]
faults:
  description: Why the move is refused.
  returned: failure
  type: list
  elements: str
"""

import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_client import (
    CONNECTION_ARGUMENTS,
    Connection,
    Etcdctl,
    EtcdError,
    connection_from,
    last_words,
    run_command,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_cluster import minor_of
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_cluster_io import survey
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_versions import (
    Move,
    cluster_faults,
    plan_move,
    ready_for_older,
    settled,
    version_faults,
)

PAUSE_SECONDS = 0.5
STORE_SECONDS = 60.0


def look(connection: Connection, params: dict[str, Any]) -> tuple[Move, list[str]]:
    """Return the move, and all that stands in its way."""
    try:
        view = survey(connection)
    except EtcdError:
        # A first run that died before the first start left a binary and nothing else.
        if params["data_dir"] and not Path(params["data_dir"], "member").exists():
            return plan_move([], params["version"]), []
        raise
    until = time.monotonic() + params["deadline"]
    while not settled(view) and time.monotonic() < until:
        time.sleep(PAUSE_SECONDS)
        view = survey(connection)
    move = plan_move([seen.status.version for seen in view.answered if seen.status], params["version"])
    if move.kind == "none":
        return move, []
    if not settled(view):
        faults = [
            f"the cluster still counts as {view.cluster_version}, {params['deadline']} s after its members became "
            f"{', '.join(move.versions)}: see the leader's log"
        ]
    else:
        faults = []
    faults += version_faults(move, params["flags"], params["allow_downgrade"]) + cluster_faults(view)
    if params["data_dir"] and minor_of(move.target) >= (3, 6) and any(minor_of(v) < (3, 6) for v in move.versions):
        faults += old_store_faults(connection.etcdutl, params["data_dir"])
    return move, faults


def old_store_faults(etcdutl: str, data_dir: str) -> list[str]:
    """Return the fault of a data folder with content of the v2 store, which 3.6 does not start on."""
    finished = run_command([etcdutl, "check", "v2store", f"--data-dir={data_dir}"], STORE_SECONDS)
    if not finished.rc:
        return []
    return [
        f"{data_dir}: {last_words(finished)}. etcd 3.6 dies on such content. Keys of /v2/keys: migrate them "
        "(migrate-etcd.yml) or delete them. Then, and for what 3.4 itself left in the log: run the members with "
        "--snapshot-count=50 and write some keys, so that they put a snapshot before it"
    ]


def step_back_begun(connection: Connection, target: str) -> bool:
    """Return whether the cluster has been told already that the older target is meant."""
    for entry in Etcdctl(connection).json("endpoint", "status"):
        told = entry["Status"].get("downgradeInfo") or {}
        if told.get("enabled") and minor_of(told["targetVersion"]) == minor_of(target):
            return True
    return False


def allow_older(connection: Connection, target: str, deadline: int) -> None:
    """Tell the cluster that an older minor is meant, and wait until the members' databases are in its form."""
    minor = ".".join(map(str, minor_of(target)))
    if not step_back_begun(connection, target):
        try:
            Etcdctl(connection).text("downgrade", "enable", minor)
        except EtcdError:
            # All hosts of a run come here at once, and one of them is the first.
            if not step_back_begun(connection, target):
                raise
    until = time.monotonic() + deadline
    while True:
        found = [seen.status.storage_version for seen in survey(connection, hashes=False).answered if seen.status]
        if ready_for_older(found, target):
            return
        if time.monotonic() > until:
            raise EtcdError(
                f"after {deadline} s the members' databases are in the form of {', '.join(map(str, found))}, "
                f"wanted {minor} on all: see the members' logs; etcdctl downgrade cancel takes the step back"
            )
        time.sleep(PAUSE_SECONDS)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **CONNECTION_ARGUMENTS,
            "version": {"type": "str", "required": True},
            "flags": {"type": "list", "elements": "str", "default": []},
            "data_dir": {"type": "path"},
            "allow_downgrade": {"type": "bool", "default": False},
            "deadline": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        connection = connection_from(params)
        move, faults = look(connection, params)
        if faults:
            raise EtcdError(
                f"etcd stays as it is, the move from {', '.join(move.versions)} to {move.target} is refused:\n"
                + "\n".join(f"- {text}" for text in faults)
            )
        changed = move.kind == "down" and not step_back_begun(connection, move.target)
        if not module.check_mode:
            if move.kind == "down":
                allow_older(connection, move.target, params["deadline"])
            # Members of both minors, and the newer one is wanted: a step back may have been begun.
            elif move.kind == "up" and move.target in move.versions and minor_of(move.target) >= (3, 6):
                Etcdctl(connection).text("downgrade", "cancel")
    except PlainkubeError as error:
        module.fail_json(msg=str(error), faults=str(error).split("\n- ")[1:])
    module.exit_json(changed=changed, move=move.kind, versions=list(move.versions))


if __name__ == "__main__":
    main()
