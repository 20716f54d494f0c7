# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How a module reaches the Kubernetes API: the parameters and variables of kubernetes.core."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
requirements:
  - kubernetes (Python)
  - PyYAML
options:
  kubeconfig:
    description:
      - File with the way to the API, or its content as a mapping. E(K8S_AUTH_KUBECONFIG) stands in for it.
      - Without it E(KUBECONFIG) and C(~/.kube/config) are read; in a pod without these the pod's own account counts.
    type: raw
  context:
    description: The context in O(kubeconfig), instead of its current one. E(K8S_AUTH_CONTEXT) stands in for it.
    type: str
  host:
    description: Address of the API, as in C(https://192.0.2.10:6443). E(K8S_AUTH_HOST) stands in for it.
    type: str
  api_key:
    description: Token that says who asks. E(K8S_AUTH_API_KEY) stands in for it.
    type: str
  ca_cert:
    description: File with the authority behind the API's certificate. E(K8S_AUTH_SSL_CA_CERT) stands in for it.
    type: path
    aliases: [ssl_ca_cert]
  client_cert:
    description: File with the certificate that says who asks. E(K8S_AUTH_CERT_FILE) stands in for it.
    type: path
    aliases: [cert_file]
  client_key:
    description: File with the key of O(client_cert). E(K8S_AUTH_KEY_FILE) stands in for it.
    type: path
    aliases: [key_file]
  validate_certs:
    description: Whether the API's certificate is checked. E(K8S_AUTH_VERIFY_SSL) stands in for it.
    type: bool
    aliases: [verify_ssl]
  proxy:
    description: Address of a proxy on the way to the API. E(K8S_AUTH_PROXY) stands in for it.
    type: str
"""
