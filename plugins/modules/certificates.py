#!/usr/bin/python
# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: certificates
short_description: Hold keys and certificates that an authority on the controller signs
description:
  - Looks at all certificates of a host in one round trip and issues anew those that differ from what is asked.
  - Private keys are made on their host with C(openssl) and never leave it. The keys of authorities never leave the
    controller.
  - A certificate is issued anew, with a new key, when it or its key is missing, damaged or does not fit the other, when
    its issuer, subject, SANs or usages differ, when it is valid for longer than asked, when less than a third of its
    lifetime is left, or when an earlier run was interrupted while issuing it.
  - Lifetimes are shortened by 0 to 10 percent, always the same for one certificate of one host, so that no single date
    stops all hosts.
  - The authorities are those that M(plainkube.cluster.authorities) made. In check mode they may be missing.
author:
  - Plainkube contributors (@plainkube)
attributes:
  check_mode:
    description: Says what would be issued, and changes nothing.
    support: full
  diff_mode:
    description: Shows what the certificates say, and never a key.
    support: full
requirements:
  - cryptography (on the controller)
  - openssl (on the host)
options:
  items:
    description: The certificates. Needed in a task.
    type: list
    elements: dict
    suboptions:
      name:
        description: What people call this certificate; unique on the host.
        type: str
        required: true
      certificate:
        description:
          - Absolute path of the certificate on the host. Missing folders are made with mode 0755.
          - Holds the leaf, and behind it the authority's certificate when that is not a root.
        type: str
        required: true
      key:
        description: Absolute path of the private key on the host.
        type: str
        required: true
      authority:
        description: Name of the authority that signs.
        type: str
        required: true
      common_name:
        description: Common name of the subject.
        type: str
        required: true
      organizations:
        description: Organizations of the subject, which Kubernetes takes as groups.
        type: list
        elements: str
        default: []
      dns_names:
        description: DNS names among the SANs.
        type: list
        elements: str
        default: []
      ip_addresses:
        description: IP addresses among the SANs.
        type: list
        elements: str
        default: []
      usages:
        description: What the certificate is for.
        type: list
        elements: str
        choices: [server, client]
        required: true
      days:
        description: The longest lifetime in days. Without O(items[].minutes) as well, 365.
        type: int
      minutes:
        description: The longest lifetime in minutes, in place of O(items[].days).
        type: int
      owner:
        description: Owner of both files, as a name or a number.
        type: str
        default: root
      group:
        description: Group of both files, as a name or a number.
        type: str
        default: root
      mode:
        description: Mode of the key. The certificate has 0644.
        type: str
        default: "0600"
  state_dir:
    description: The controller's folder of this cluster. The variable C(plainkube_state_dir) when absent.
    type: str
  payload:
    description: What the action plugin sends to the host. Not for use in a task.
    type: str
seealso:
  - module: plainkube.cluster.authorities
"""

EXAMPLES = r"""
- name: Hold the member's certificates
  plainkube.cluster.certificates:
    items:
      - name: etcd-server
        certificate: /etc/etcd/pki/server.crt
        key: /etc/etcd/pki/server.key
        authority: etcd
        common_name: node1
        dns_names: [node1, localhost]
        ip_addresses: [192.0.2.11, 127.0.0.1]
        usages: [server, client]
        owner: etcd
        group: etcd
"""

RETURN = r"""
certificates:
  description: One entry per item, in the order of the items.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The item's name.
      type: str
    changed:
      description: Whether anything of it was changed, or would be in check mode.
      type: bool
    reasons:
      description: Why it was changed, in words.
      type: list
      elements: str
    not_after:
      description: When it runs out, in UTC; in check mode when the new one would.
      type: str
  sample:
    - {name: etcd-server, changed: true, reasons: [SANs differ], not_after: "2027-10-30T11:55:00Z"}
"""

import contextlib
import grp
import hashlib
import os
import pwd
import stat
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.plainkube.cluster.plugins.module_utils.certificates import (
    CERTIFICATE_MODE,
    LEAF_ARGUMENTS,
    CertificateError,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError
from ansible_collections.plainkube.cluster.plugins.module_utils.files_io import (
    TEMPORARY_SUFFIX,
    sync_folder,
    write_atomically,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.payload import unpack

# A new key or certificate waits under this name until both are there.
PENDING_SUFFIX = ".plainkube-pending"


class Host:
    """The files of one host. Everything about a private key but its public half stays in here."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module

    def look(self, item: dict[str, Any]) -> dict[str, Any]:
        """Return what is there for one item."""
        certificate = None
        with contextlib.suppress(FileNotFoundError):
            certificate = Path(item["certificate"]).read_bytes().decode("ascii", "replace")
        key_file = attributes(item["key"])
        pending = item["key"] + PENDING_SUFFIX
        leftovers = (pending, pending + TEMPORARY_SUFFIX, item["certificate"] + PENDING_SUFFIX)
        return {
            "certificate": certificate,
            "certificate_file": attributes(item["certificate"]),
            "key": self.public_digest(item["key"]) if key_file else None,
            "key_file": key_file,
            "interrupted": any(os.path.lexists(path) for path in leftovers),
        }

    def make_key(self, item: dict[str, Any]) -> dict[str, Any]:
        """Make a new key beside the present one and return its public half."""
        uid, gid = identity(item)
        for path in (item["key"], item["certificate"]):
            make_folders(Path(path).parent)
        key = self.openssl(["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"], item["name"])
        write_atomically(item["key"] + PENDING_SUFFIX, key, item["mode"], uid, gid)
        return {"public_key": self.openssl(["pkey", "-pubout"], item["name"], key).decode("ascii")}

    def install(self, item: dict[str, Any]) -> dict[str, Any]:
        """Put the signed certificate and its waiting key in place, one rename right after the other."""
        uid, gid = identity(item)
        key, certificate = item["key"], item["certificate"]
        if self.public_digest(key + PENDING_SUFFIX) != item["public_digest"]:
            raise CertificateError(
                f"certificate {item['name']}: the new key {key + PENDING_SUFFIX} is not the one that this run made;"
                " another run seems to be at work on this host: let it end, then start again"
            )
        write_atomically(certificate + PENDING_SUFFIX, item["pem"].encode("ascii"), CERTIFICATE_MODE, uid, gid)
        # A kill between the two leaves a pair that does not fit, which the next look sees.
        Path(key + PENDING_SUFFIX).rename(key)
        Path(certificate + PENDING_SUFFIX).rename(certificate)
        for folder in {str(Path(key).parent), str(Path(certificate).parent)}:
            sync_folder(folder)
        return {}

    def set_attributes(self, item: dict[str, Any]) -> dict[str, Any]:
        """Set mode and owner of files that may stay."""
        uid, gid = identity(item)
        for path, mode in ((item["key"], item["mode"]), (item["certificate"], CERTIFICATE_MODE)):
            os.chown(path, uid, gid)
            Path(path).chmod(mode)
        return {}

    def public_digest(self, path: str) -> str | None:
        """Return the SHA-256 of the public half of the key at path, or None when it is no key."""
        status, public, _errors = self.run(["pkey", "-in", path, "-pubout", "-outform", "DER"])
        return hashlib.sha256(public).hexdigest() if status == 0 else None

    def openssl(self, arguments: list[str], name: str, data: bytes | None = None) -> bytes:
        status, output, errors = self.run(arguments, data)
        if status != 0:
            reason = errors.decode("utf-8", "replace").strip()
            raise CertificateError(f"certificate {name}: openssl {arguments[0]} failed: {reason}")
        return output

    def run(self, arguments: list[str], data: bytes | None = None) -> tuple[int, bytes, bytes]:
        program = self.module.get_bin_path("openssl")
        if program is None:
            raise CertificateError(
                "openssl is not installed on this host, and it makes and reads private keys:"
                " install the package openssl"
            )
        result: tuple[int, bytes, bytes] = self.module.run_command(
            [program, *arguments], data=data, binary_data=True, encoding=None
        )
        return result


def attributes(path: str) -> dict[str, Any] | None:
    """Return mode and owner of a file, or None when there is none."""
    try:
        status = Path(path).stat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        raise CertificateError(f"{path} is no regular file, wanted a certificate or key: move it away")
    owners, groups = [str(status.st_uid)], [str(status.st_gid)]
    with contextlib.suppress(KeyError):
        owners.insert(0, pwd.getpwuid(status.st_uid).pw_name)
    with contextlib.suppress(KeyError):
        groups.insert(0, grp.getgrgid(status.st_gid).gr_name)
    return {"mode": stat.S_IMODE(status.st_mode), "owners": owners, "groups": groups}


def identity(item: dict[str, Any]) -> tuple[int, int]:
    """Return owner and group of an item as numbers."""
    owner, group = item["owner"], item["group"]
    try:
        uid = int(owner) if owner.isdigit() else pwd.getpwnam(owner).pw_uid
    except KeyError as error:
        raise CertificateError(
            f"certificate {item['name']}: there is no user {owner} on this host: make it first"
        ) from error
    try:
        gid = int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise CertificateError(
            f"certificate {item['name']}: there is no group {group} on this host: make it first"
        ) from error
    return uid, gid


def make_folders(folder: Path) -> None:
    """Make missing folders with mode 0755, whatever the umask."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        path.chmod(0o755)
        sync_folder(str(path.parent))


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "items": {"type": "list", "elements": "dict", "options": LEAF_ARGUMENTS},
            "state_dir": {"type": "str"},
            "payload": {"type": "str", "no_log": True},
        },
        supports_check_mode=True,
    )
    if module.params["payload"] is None:
        module.fail_json(
            msg="payload is missing: plainkube.cluster.certificates works in a task, through its action plugin, only"
        )
    host = Host(module)
    steps = {
        "look": host.look,
        "make_key": host.make_key,
        "install": host.install,
        "set_attributes": host.set_attributes,
    }
    try:
        # Results come in the order of the work; nothing in them is secret.
        results = [steps[step](item) for step, item in unpack(module.params["payload"])]
    except PlainkubeError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")
    module.exit_json(changed=False, results=results)


if __name__ == "__main__":
    main()
