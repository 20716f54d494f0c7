#!/usr/bin/python
# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: artifacts
short_description: Install binaries, members of archives and images from the catalogue
version_added: 0.1.0
author:
  - The Plainkube founders (@plainkube)
description:
  - Installs what comes from elsewhere. The catalogue C(data/catalogue.yml) knows for each name and version where it
    comes from, its checksum, and which links it gets on a host.
  - Each version lives in its own folder C(<root>/<name>/<version>), old versions stay beside it, and links such as
    C(/usr/local/bin/etcd) say which one is in use. So going back is a change of links.
  - SHA-256 is always checked. Nothing half-written is ever visible, and what a killed run left behind is removed by
    the next.
  - An image is kept as an archive and imported into containerd (namespace C(k8s.io)) when its reference is not there.
  - One round trip when nothing is to do. All faults are reported at once, and no link changes as long as there is one.
options:
  items:
    description: What is to be installed.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of an artifact in the catalogue.
        type: str
        required: true
      version:
        description: One of its versions.
        type: str
        required: true
  source:
    description:
      - V(upstream) lets each host download from the publishers. Images, which no publisher serves as files, are pushed.
      - V(push) sends files of O(folder) from the controller.
      - A URL V(http://...) or V(https://...) names a mirror from which each host downloads, V(file:///...) a mirror
        folder on each host. C(tools/artifacts fill) fills either.
      - The default is the variable C(plainkube_artifact_source), and V(upstream) where that is not set.
    type: str
  folder:
    description:
      - Mirror folder on the controller from which files are pushed.
      - The default is the variable C(plainkube_artifact_folder).
    type: path
  root:
    description: Folder on the host that holds all versions.
    type: path
    default: /opt/plainkube
  catalogue:
    description: Another catalogue than the collection's own, on the controller. Meant for tests.
    type: path
  state:
    description:
      - V(installed) brings the items to the host.
      - V(available) changes nothing and fails when one that is not there yet cannot be had, with all that cannot.
    type: str
    choices: [installed, available]
    default: installed
  payload:
    description: What the action plugin tells the host. Not for playbooks, where it is ignored.
    type: str
notes:
  - Proxies for downloads on a host are taken from the task's C(environment).
attributes:
  check_mode:
    description: Reports what would be installed; looks at the host and not at the source.
    support: full
  diff_mode:
    description: Shows the versions before and after, one line per artifact.
    support: full
"""

EXAMPLES = r"""
- name: Install the etcd binaries
  plainkube.cluster.artifacts:
    items:
      - {name: etcd, version: "3.7.3"}

- name: Install the container runtime from a mirror
  plainkube.cluster.artifacts:
    source: https://mirror.example.com/plainkube
    items:
      - {name: containerd, version: "2.3.7"}
      - {name: runc, version: "1.4.3"}
      - {name: cni-plugins, version: "1.9.1"}
"""

RETURN = r"""
items:
  description: What was found and is there now, in the order of O(items).
  type: list
  elements: dict
  returned: success
  contains:
    name:
      description: The artifact's name.
      type: str
    version:
      description: The version that is installed.
      type: str
    changed:
      description: Whether anything was done for it.
      type: bool
    before:
      description: The version that was in use, V(absent) when there was none, with what was wrong with it.
      type: str
      sample: 3.6.14
    after:
      description: The version that is in use.
      type: str
      sample: 3.7.3
architecture:
  description: The host's architecture as publishers call it.
  type: str
  returned: success
  sample: amd64
faults:
  description: Everything that stands in the way, one text each.
  type: list
  elements: str
  returned: failure
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.plainkube.cluster.plugins.module_utils.artifacts import ARGUMENT_SPEC
from ansible_collections.plainkube.cluster.plugins.module_utils.artifacts_io import act, look, unavailable
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError
from ansible_collections.plainkube.cluster.plugins.module_utils.payload import unpack


def main() -> None:
    """Look at the host, or act on it, as the action plugin says."""
    module = AnsibleModule(
        argument_spec={**ARGUMENT_SPEC, "payload": {"type": "str", "no_log": True}}, supports_check_mode=True
    )
    if not module.params["payload"]:
        module.fail_json(
            msg="artifacts: called without its action plugin: use it as a task, not as a module of its own"
        )
    order = unpack(module.params["payload"])
    root, items = module.params["root"], order["items"]
    if order["half"] == "look":
        module.exit_json(changed=False, machine=os.uname().machine, states=look(root, items))
    if order["half"] == "see":
        module.exit_json(changed=False, faults=unavailable(items))
    os.umask(0o022)  # what is installed is for all users of the host, whatever the session's own mask
    try:
        faults = act(root, items, order["architecture"])
    except (PlainkubeError, OSError) as error:
        faults = [f"{root}: {error}"]
    module.exit_json(changed=True, faults=faults)


if __name__ == "__main__":
    main()
