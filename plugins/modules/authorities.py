#!/usr/bin/python
# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: authorities
short_description: Make what only the controller may hold for a cluster
description:
  - Makes certificate authorities, shared secrets and the admin's kubeconfig in the controller's state folder.
    Connects to no host.
  - The folder has mode 0700, secret files 0600. All is written through temporary names, so that a killed run leaves
    nothing half-written and the next one completes it. Two runs at once wait for each other.
  - An authority or a shared secret that exists is never replaced. When one is damaged or lacks one of its files, the
    task fails and says so; restore it from a backup of the folder.
  - The admin's kubeconfig is made anew when its server, authority, user or organizations differ or less than a third of
    its lifetime is left.
  - Files are C(pki/NAME.crt), C(pki/NAME.key), C(secrets/service-account.key), C(secrets/service-account.pub),
    C(secrets/encryption-key), C(admin.conf) and C(cluster-name).
  - An authority with less than a year, or less than a third of its lifetime, left gives a warning.
author:
  - Plainkube contributors (@plainkube)
attributes:
  check_mode:
    description: Says what would be made, and makes nothing.
    support: full
  diff_mode:
    description: Shows names, dates and fingerprints, and never a key.
    support: full
requirements:
  - cryptography (on the controller)
options:
  state_dir:
    description: The folder, an absolute path on the controller. The variable C(plainkube_state_dir) when absent.
    type: str
  cluster_name:
    description:
      - Name of the cluster. The variable C(plainkube_cluster_name) when absent.
      - A folder that belongs to another cluster is refused.
    type: str
  authorities:
    description: The certificate authorities. Their keys are P-256.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the authority and of its files.
        type: str
        required: true
      common_name:
        description: Common name of its subject.
        type: str
        required: true
      days:
        description: Its lifetime when it is made. An intermediate authority ends with its issuer at the latest.
        type: int
        default: 3650
      issuer:
        description: The root among these authorities that signs this one. Without it, this one is a root.
        type: str
  service_account_key:
    description: Whether to make the key that signs service-account tokens (RSA, 3072 bits).
    type: bool
    default: false
  encryption_key:
    description: Whether to make the key for encryption at rest, 32 random bytes in base64.
    type: bool
    default: false
  admin_kubeconfig:
    description: A kubeconfig with embedded credentials, and one context named after the cluster.
    type: dict
    suboptions:
      path:
        description: Its path on the controller. C(admin.conf) in the state folder when absent.
        type: str
      server:
        description: URL of the API server.
        type: str
        required: true
      user:
        description: Common name of the client certificate.
        type: str
        default: kubernetes-admin
      organizations:
        description: Groups of the user.
        type: list
        elements: str
        default: ["system:masters"]
      days:
        description: The longest lifetime of the client certificate.
        type: int
        default: 365
      authority:
        description: Which of the authorities signs it. Its root is the one that the kubeconfig trusts.
        type: str
        default: cluster
seealso:
  - module: plainkube.cluster.certificates
  - plugin: plainkube.cluster.state_file
    plugin_type: lookup
"""

EXAMPLES = r"""
- name: Make the cluster's authorities
  plainkube.cluster.authorities:
    authorities:
      - {name: etcd, common_name: lab etcd}
      - {name: cluster, common_name: lab cluster}
      - {name: signer, common_name: lab signer, issuer: cluster}
    service_account_key: true
    encryption_key: true
    admin_kubeconfig:
      server: https://192.0.2.11:6443
  run_once: true
"""

RETURN = r"""
files:
  description: One entry per file, the state folder first.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Path inside the state folder, or an absolute path.
      type: str
    changed:
      description: Whether it was changed, or would be in check mode.
      type: bool
    reasons:
      description: Why, in words.
      type: list
      elements: str
    not_after:
      description: When it runs out, in UTC; none for what does not.
      type: str
    fingerprint:
      description: SHA-256 of an authority's certificate.
      type: str
  sample:
    - name: pki/etcd.crt
      changed: true
      reasons: [missing]
      not_after: "2036-11-18T11:55:00Z"
      fingerprint: 3a7bd3e2360a3d29eea436fcfb7e44c735d117c42d1c1835420b6b9942dd4f1b
"""
