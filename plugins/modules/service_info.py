#!/usr/bin/python
# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: service_info
short_description: Read a Service with all that belongs to it
description:
  - Reads a Service, its EndpointSlices, the pods of its selector, the NetworkPolicies that select these, and the
    addresses of the nodes. M(plainkube.cluster.service_path_info) holds it against what a host does.
  - Fails for a Service that does not exist, and proposes near names. When the API does not answer it does not fail,
    but says so in RV(unreadable) and returns an empty RV(service), since hosts know something too.
version_added: 0.3.0
author: Plainkube contributors (@plainkube)
extends_documentation_fragment:
  - plainkube.cluster.api_access
requirements:
  - kubernetes (Python)
attributes:
  check_mode:
    support: full
    description: Reads the same.
  diff_mode:
    support: none
    description: Nothing changes.
options:
  service:
    description: Namespace and name of the Service, as in V(kube-system/kube-dns).
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Read the name server's Service
  plainkube.cluster.service_info:
    kubeconfig: /home/operator/.plainkube/production/admin.conf
    service: kube-system/kube-dns
  delegate_to: localhost
  register: name_server
"""

RETURN = r"""
service:
  description: The Service. Empty when the API did not answer.
  returned: success
  type: dict
  contains:
    type: {description: Its type., type: str}
    headless: {description: Whether it has no address., type: bool}
    cluster_ips: {description: Its addresses., type: list}
    ports: {description: Its ports., type: list}
    endpoints: {description: Its endpoints with state and node and pod., type: list}
    pods: {description: The pods of its selector., type: list}
    policies: {description: The NetworkPolicies that select these pods in words., type: list}
nodes:
  description: Address of each node, by name.
  returned: success
  type: dict
unreadable:
  description: What could not be read, and why.
  returned: success
  type: list
  elements: str
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.plainkube.cluster.plugins.module_utils import service_views
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError
from ansible_collections.plainkube.cluster.plugins.module_utils.kubernetes_api import (
    ARGUMENTS,
    HAS_KUBERNETES,
    RESOURCES,
    Api,
    NoWayIn,
    Unreachable,
    secrets_in,
)


def read(api: Api, namespace: str, name: str) -> dict[str, Any]:
    """Return the Service's view. Raises ServiceError when it does not exist, and ApiErrors."""
    services = RESOURCES["Service"]
    service = api.get(services.path(namespace, name))
    if service is None:
        found = (item["metadata"] for item in api.list_metadata(services.path()))
        known = [(metadata["namespace"], metadata["name"]) for metadata in found]
        raise service_views.ServiceError(service_views.unknown_service(namespace, name, known))
    selector = service["spec"].get("selector") or {}
    chosen = ",".join(f"{key}={value}" for key, value in selector.items())
    owned = f"kubernetes.io/service-name={name}"
    return dict(
        service_views.view(
            service,
            list(api.list(RESOURCES["EndpointSlice"].path(namespace), labelSelector=owned)),
            list(api.list(RESOURCES["Pod"].path(namespace), labelSelector=chosen)),
            list(api.list(RESOURCES["NetworkPolicy"].path(namespace))),
        )
    )


def node_addresses(api: Api) -> dict[str, str]:
    """Return the address of each node by name."""
    return {
        node["metadata"]["name"]: address["address"]
        for node in api.list(RESOURCES["Node"].path())
        for address in reversed(node.get("status", {}).get("addresses") or [])
        if address["type"] == "InternalIP"
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={**ARGUMENTS, "service": {"type": "str", "required": True}},
        supports_check_mode=True,
    )
    if not HAS_KUBERNETES:
        module.fail_json(msg=missing_required_lib("kubernetes"))
    module.no_log_values |= secrets_in(module.params)
    answer: dict[str, Any] = {"service": {}, "nodes": {}, "unreadable": []}
    try:
        namespace, name = service_views.split_name(module.params["service"])
        try:
            api = Api(module.params)
            answer.update(service=read(api, namespace, name), nodes=node_addresses(api))
        except (Unreachable, NoWayIn) as error:
            answer["unreadable"].append(f"the API: {error}")
    except PlainkubeError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, **answer)


if __name__ == "__main__":
    main()
