#!/usr/bin/python
# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: etcd_snapshot_info
short_description: Look into a snapshot of etcd
description:
  - Proves a snapshot file and says what it holds, without a server and without a restore.
  - Reads single keys, or all below a prefix, out of it, and compares two snapshots key by key.
  - Values are the cluster's secrets. They are only told with O(values); set C(no_log) on the task then.
version_added: 0.2.0
author: Plainkube contributors
options:
  path:
    description: The snapshot, as C(etcdctl snapshot save) or M(plainkube.cluster.etcd_snapshot) wrote it.
    type: path
    required: true
  keys:
    description: Keys to read.
    type: list
    elements: str
    default: []
  prefix:
    description:
      - Read all keys that begin with this. An empty one reads all.
      - With O(compare_with), compare these only.
    type: str
  values:
    description: Tell the values of the keys, too.
    type: bool
    default: false
  compare_with:
    description: An older snapshot. What came, went and changed since then is told.
    type: path
attributes:
  check_mode:
    support: full
    description: Reads only, so it does the same.
  diff_mode:
    support: none
    description: There is nothing that changes.
seealso:
  - module: plainkube.cluster.etcd_snapshot
"""

EXAMPLES = r"""
- name: See that a snapshot is sound
  plainkube.cluster.etcd_snapshot_info:
    path: /var/backups/etcd/etcd-20260102T030405Z-81733.db
  register: looked
  failed_when: not looked.sound

- name: Get one object back out of it
  plainkube.cluster.etcd_snapshot_info:
    path: /var/backups/etcd/etcd-20260102T030405Z-81733.db
    keys: [/registry/configmaps/default/settings]
    values: true
  register: lost
  no_log: true

- name: Tell what was deleted between two snapshots
  plainkube.cluster.etcd_snapshot_info:
    path: /var/backups/etcd/etcd-20260103T030405Z-90011.db
    compare_with: /var/backups/etcd/etcd-20260102T030405Z-81733.db
    prefix: /registry/deployments/
  register: compared
"""

RETURN = r"""
exists:
  description: Whether there is a file.
  returned: always
  type: bool
sound:
  description: Whether it is a whole snapshot, and the one that its manifest, if there is one, was written for.
  returned: always
  type: bool
fault:
  description: All that was found wrong.
  returned: always
  type: str
snapshot:
  description: What the file holds. The names are those of RV(plainkube.cluster.etcd_snapshot#module:manifest).
  returned: when it is sound
  type: dict
  contains:
    sha256:
      description: SHA-256 of the whole file.
      type: str
    size:
      description: Its bytes.
      type: int
    revision:
      description: Its revision.
      type: int
    key_count:
      description: Keys that exist at this revision.
      type: int
manifest:
  description: What was recorded when it was taken, empty if there is no manifest.
  returned: when it is sound
  type: dict
keys:
  description: The keys that were asked for, sorted.
  returned: with O(keys), or O(prefix) without O(compare_with)
  type: list
  elements: dict
  contains:
    key:
      description: The key. Bytes that are no UTF-8 are written as C(\xff).
      type: str
    key_base64:
      description: The key.
      type: str
    size:
      description: Bytes of the value.
      type: int
    value:
      description: The value, if it is UTF-8. With O(values).
      type: str
    value_base64:
      description: The value. With O(values).
      type: str
    create_revision:
      description: The revision at which it was created.
      type: int
    mod_revision:
      description: The revision at which it was written last.
      type: int
    version:
      description: How many times it was written since it was created.
      type: int
    lease:
      description: Its lease, 0 if it has none.
      type: int
missing:
  description: Keys of O(keys) that are not there.
  returned: with O(keys)
  type: list
  elements: str
difference:
  description: What happened from O(compare_with) to O(path).
  returned: with O(compare_with)
  type: dict
  contains:
    added:
      description: Keys that came.
      type: list
      elements: str
    removed:
      description: Keys that went.
      type: list
      elements: str
    changed:
      description: Keys with another value or lease.
      type: list
      elements: str
    equal:
      description: Whether there is no difference.
      type: bool
"""

import base64
import contextlib
import os
from dataclasses import asdict
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.plainkube.cluster.plugins.module_utils.bbolt import KeyValue, open_database, verify_snapshot
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_snapshot_io import prove_with_manifest
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_snapshots import content_of, difference


def shown(name: bytes) -> str:
    """Return bytes as text for people."""
    return name.decode("utf-8", "backslashreplace")


def key_facts(key: KeyValue, values: bool) -> dict[str, Any]:
    """Return what is told of a key."""
    facts: dict[str, Any] = {
        "key": shown(key.key),
        "key_base64": base64.b64encode(key.key).decode(),
        "size": len(key.value),
        "create_revision": key.create_revision,
        "mod_revision": key.mod_revision,
        "version": key.version,
        "lease": key.lease,
    }
    if values:
        facts["value_base64"] = base64.b64encode(key.value).decode()
        with contextlib.suppress(UnicodeDecodeError):
            facts["value"] = key.value.decode()
    return facts


def read_keys(path: str, names: list[str], prefix: str | None, values: bool) -> dict[str, Any]:
    """Return the keys of a snapshot that are asked for."""
    wanted = {name.encode() for name in names}
    start = None if prefix is None else prefix.encode()

    def asked(key: bytes) -> bool:
        return key in wanted or (start is not None and key.startswith(start))

    with open_database(path) as database:
        found = list(database.select(asked))
    answer: dict[str, Any] = {"keys": [key_facts(key, values) for key in found]}
    if names:
        there = {key.key for key in found}
        answer["missing"] = [name for name in names if name.encode() not in there]
    return answer


def compare(path: str, older: str, prefix: str) -> dict[str, Any]:
    """Return what happened from one snapshot to another."""
    with open_database(older) as database:
        first = {key.key: content_of(key) for key in database.keys(prefix.encode())}
    with open_database(path) as database:
        found = difference(first, ((key.key, content_of(key)) for key in database.keys(prefix.encode())))
    told = {name: [shown(key) for key in keys] for name, keys in asdict(found).items()}
    return {**told, "equal": not any(told.values())}


def look(options: dict[str, Any]) -> dict[str, Any]:
    """Return the answer. Raises PlainkubeError, OSError."""
    path = options["path"]
    asks = bool(options["keys"] or options["compare_with"]) or options["prefix"] is not None
    answer: dict[str, Any] = {"changed": False, "exists": os.path.lexists(path), "sound": False, "fault": ""}
    try:
        proof, manifest = prove_with_manifest(path)
    except (PlainkubeError, OSError) as error:
        # What is asked of a file that is no good has no answer; that it is none is an answer by itself.
        if asks:
            raise
        return {**answer, "fault": str(error)}
    facts = asdict(proof)
    answer.update(sound=True, snapshot={"sha256": facts.pop("digest"), **facts}, manifest=manifest or {})
    if options["compare_with"]:
        verify_snapshot(options["compare_with"])
        answer["difference"] = compare(path, options["compare_with"], options["prefix"] or "")
    if options["keys"] or (options["prefix"] is not None and not options["compare_with"]):
        prefix = None if options["compare_with"] else options["prefix"]
        answer.update(read_keys(path, options["keys"], prefix, options["values"]))
    return answer


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "keys": {"type": "list", "elements": "str", "default": [], "no_log": False},
            "prefix": {"type": "str"},
            "values": {"type": "bool", "default": False},
            "compare_with": {"type": "path"},
        },
        supports_check_mode=True,
    )
    try:
        answer = look(module.params)
    except (PlainkubeError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
