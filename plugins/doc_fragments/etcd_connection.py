# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How the modules for etcd reach it: the options of CONNECTION_ARGUMENTS in module_utils/etcd_client.py."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  endpoints:
    description:
      - URLs at which members of the cluster answer clients. Name all members, so that one that is down is no obstacle.
    type: list
    elements: str
    default: ["https://127.0.0.1:2379"]
  ca_cert:
    description:
      - File with the certificates of the authorities that sign the members' server certificates.
        By default those that the host trusts.
    type: path
  client_cert:
    description: File with the certificate that the members ask clients for. It goes together with O(client_key).
    type: path
  client_key:
    description: File with the private key of O(client_cert).
    type: path
  timeout:
    description: Seconds that one exchange with a member may take.
    type: float
    default: 5.0
  etcdctl:
    description: Name or path of the program. A name is looked for in PATH and in /usr/local/bin.
    type: str
    default: etcdctl
  etcdutl:
    description: Name or path of the program, which is part of etcd from version 3.5 on.
    type: str
    default: etcdutl
"""
