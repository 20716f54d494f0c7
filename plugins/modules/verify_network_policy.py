#!/usr/bin/python
# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Module verify_network_policy: the proof that NetworkPolicies are enforced."""

from __future__ import annotations

DOCUMENTATION = r"""
module: verify_network_policy
short_description: Prove that NetworkPolicies are enforced, between pods on one node and on two
description:
  - Runs a server on each of up to two nodes, a friend and a stranger, in a namespace of their own. First all of them
    reach each other. Then everything is denied, friends are let in by their label, and the name server may be asked.
    Connections from inside the pods show whether it is so, on the same node and across nodes.
  - What is not as it should be names the pair of pods and the policy. The namespace is removed at the end in any case.
  - Runs where the API can be reached, the controller by default.
author:
  - Plainkube contributors (@plainkube)
version_added: 0.3.0
attributes:
  check_mode:
    support: full
    description: Makes nothing.
  diff_mode:
    support: none
    description: Nothing is meant to stay.
requirements:
  - kubernetes (Python)
options:
  kubeconfig:
    description: File with the way to the API and the right to make namespaces.
    type: path
    required: true
  namespace:
    description: Namespace of the pods. It is removed as a whole at the end.
    type: str
    default: plainkube-verify-policy
  image:
    description: Image of the pods, agnhost or one that takes its arguments.
    type: str
    required: true
  domain:
    description: The DNS domain of Services.
    type: str
    default: cluster.local
  deadline:
    description: Seconds until the pods must run, and again until the policies must be in force.
    type: int
    default: 60
"""

EXAMPLES = r"""
- name: See that policies are enforced
  plainkube.cluster.verify_network_policy:
    kubeconfig: /home/operator/.plainkube/production/admin.conf
    image: registry.k8s.io/e2e-test-images/agnhost:2.66.1
  delegate_to: localhost
"""

RETURN = r"""
ways:
  description: Ways that were tried while the policies were in force, in words.
  returned: success
  type: list
  elements: str
seconds:
  description: Seconds from the last policy in the API until all were in force.
  returned: success
  type: float
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.plainkube.cluster.plugins.module_utils import policy_matrix, workload
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError
from ansible_collections.plainkube.cluster.plugins.module_utils.kubernetes_api import RESOURCES, Api, ApiError
from ansible_collections.plainkube.cluster.plugins.module_utils.policy_matrix import Way

try:
    from kubernetes import client, config
    from kubernetes.client.rest import ApiException
    from kubernetes.stream import stream

    HAS_KUBERNETES = True
except ImportError:
    HAS_KUBERNETES = False

PAUSE_SECONDS = 0.2
# A Service that is new is not carried everywhere at once: better to ask again than to wait long.
CONNECT_SECONDS = 1
FIELD_MANAGER = "plainkube"


class Matrix:
    """The pods of the matrix in one cluster."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.namespace: str = options["namespace"]
        self.api = Api({"kubeconfig": options["kubeconfig"]})
        nodes = [node["metadata"]["name"] for node in self.api.list(RESOURCES["Node"].path())]
        self.nodes = policy_matrix.nodes_for(nodes)
        if not self.nodes:
            raise PlainkubeError("the cluster has no node yet")

    def run(self) -> tuple[list[str], float]:
        """Return what was tried and the seconds until the policies were in force. Raises PlainkubeError."""
        pods = policy_matrix.pods(self.namespace, workload.pod_spec(self.options["image"]), self.nodes)
        self.wait(lambda: ["an earlier one is still being removed"] if self.api.get(self.path) else [])
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}}
        made, _ = self.api.apply(namespace, FIELD_MANAGER)
        # Name servers remember the address that a Service of the same name had a moment ago.
        service = f"policy-server-{made['metadata']['uid'][:8]}"
        account = RESOURCES["ServiceAccount"].path(self.namespace, "default")
        self.wait(lambda: [] if self.api.get(account) else ["it has no service account yet"])
        self.apply([*pods, policy_matrix.service(self.namespace, service)])
        self.wait(self.missing)
        addresses = {pod["metadata"]["name"]: [entry["ip"] for entry in pod["status"]["podIPs"]] for pod in self.pods()}
        api = self.api.get(RESOURCES["Service"].path("default", "kubernetes")) or {}
        outside = f"{api['spec']['clusterIP']}:{api['spec']['ports'][0]['port']}"
        # With the dot at its end the name is asked for as it is.
        name = f"{service}.{self.namespace}.svc.{self.options['domain']}."
        ways = policy_matrix.ways(self.nodes, addresses, name, outside)
        self.wait(lambda: self.faults(policy_matrix.before(ways)))
        self.apply(policy_matrix.policies(self.namespace))
        started = time.monotonic()
        # What is denied shows that the policies are in force; only then what is allowed means something.
        self.wait(lambda: self.faults([way for way in ways if not way.allowed]))
        seconds = time.monotonic() - started
        self.wait(lambda: self.faults(ways))
        return [way.words for way in ways], seconds

    @property
    def path(self) -> str:
        """Where the namespace is."""
        return RESOURCES["Namespace"].path(name=self.namespace)

    def apply(self, things: Sequence[dict[str, Any]]) -> None:
        """Apply objects at once. Raises the first ApiError."""
        for answer in self.api.apply_all(things, FIELD_MANAGER):
            if isinstance(answer, ApiError):
                raise answer

    def wait(self, look: Callable[[], list[str]]) -> None:
        """Look until there is no complaint. Raises PlainkubeError with the last ones once the deadline has passed."""
        deadline = time.monotonic() + self.options["deadline"]
        while complaints := look():
            if time.monotonic() > deadline:
                raise PlainkubeError("; ".join(complaints))
            time.sleep(PAUSE_SECONDS)

    def pods(self) -> list[dict[str, Any]]:
        """Return the pods as they are now."""
        return list(self.api.list(RESOURCES["Pod"].path(self.namespace)))

    def missing(self) -> list[str]:
        """Return which pods are not ready yet."""
        wanted = set(policy_matrix.actors(self.nodes))
        ready = {
            pod["metadata"]["name"]
            for pod in self.pods()
            for condition in pod["status"].get("conditions", [])
            if condition["type"] == "Ready" and condition["status"] == "True"
        }
        return [f"pod {name} is not ready" for name in sorted(wanted - ready)]

    def faults(self, ways: Sequence[Way]) -> list[str]:
        """Try the ways, those from different pods at the same time, and return what is not as expected."""
        sources = sorted({way.source for way in ways})
        with ThreadPoolExecutor(len(sources)) as pool:
            found = pool.map(lambda source: self.faults_from([way for way in ways if way.source == source]), sources)
            return [fault for some in found for fault in some]

    def faults_from(self, ways: Sequence[Way]) -> list[str]:
        """Try the ways from one pod one after the other."""
        # A client that streams cannot be shared between threads.
        core = client.CoreV1Api(config.new_client_from_config(self.options["kubeconfig"]))
        faults = []
        for way in ways:
            try:
                answer = stream(
                    core.connect_get_namespaced_pod_exec,
                    way.source,
                    self.namespace,
                    command=["/agnhost", "connect", f"--timeout={CONNECT_SECONDS}s", way.target],
                    stderr=True,
                    stdout=True,
                    _preload_content=False,
                )
                answer.run_forever(timeout=CONNECT_SECONDS + 10)
                said = (answer.read_stdout() or "") + (answer.read_stderr() or "")
                fault = policy_matrix.fault(way, answer.returncode == 0, said)
            except ApiException as error:
                fault = f"exec in {way.source} failed ({error.status} {error.reason}) {way.words}"
            if fault:
                faults.append(fault)
        return faults

    def remove(self) -> None:
        """Remove the namespace with all in it; the API server goes on with it when this returns."""
        self.api.delete({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}})


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "kubeconfig": {"type": "path", "required": True},
            "namespace": {"type": "str", "default": "plainkube-verify-policy"},
            "image": {"type": "str", "required": True},
            "domain": {"type": "str", "default": "cluster.local"},
            "deadline": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    if not HAS_KUBERNETES:
        module.fail_json(msg=missing_required_lib("kubernetes"))
    if module.check_mode:
        module.exit_json(changed=False, ways=[], seconds=0.0)
    try:
        matrix = Matrix(module.params)
        try:
            ways, seconds = matrix.run()
        finally:
            matrix.remove()
    except PlainkubeError as error:
        module.fail_json(
            msg=f"network-policy: namespace {module.params['namespace']}: {error}. "
            "On the nodes: journalctl -u kube-router, iptables -S KUBE-ROUTER-FORWARD; see docs/network-policy.md."
        )
    # The pods are gone again, so nothing is called changed.
    module.exit_json(changed=False, ways=ways, seconds=round(seconds, 2))


if __name__ == "__main__":
    main()
