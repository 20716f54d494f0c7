#!/usr/bin/python
# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Module verify_workload: the workload that proves a cluster."""

from __future__ import annotations

DOCUMENTATION = r"""
module: verify_workload
short_description: Run, prove and remove the workload that proves a cluster
description:
  - Runs two small web servers on every node, one of them behind a Service, the other at a port of its host, waits until
    all are ready, reads logs and runs a command in each pod of the Service; and removes it all again.
  - Runs where the API can be reached, the controller by default. What hosts see of the workload is asked with
    M(plainkube.cluster.health).
author:
  - Plainkube contributors (@plainkube)
version_added: 0.1.0
attributes:
  check_mode:
    support: full
    description: Makes and removes nothing.
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
    description: Namespace of the workload. It is removed as a whole at the end.
    type: str
    default: plainkube-verify
  image:
    description: Image of the workload. Needed for V(running).
    type: str
  host_port:
    description: Port of every host for the second web server. V(0) is none.
    type: int
    default: 0
  ingress:
    description:
      - Instances of the ingress controller, as C(cluster_ingress_instances) has them. Those that look into every
        namespace get an Ingress that leads to the Service.
    type: list
    elements: dict
    default: []
  dual_stack:
    description: Whether pods and the Service must have IPv6 addresses beside those of IPv4.
    type: bool
    default: false
  deadline:
    description: Seconds that each step may take.
    type: int
    default: 120
  maximum_age_hours:
    description:
      - With V(running), a proof of the very same cluster that is younger than this is believed and nothing is made.
      - The same cluster means the same nodes, not booted or away since, with the same versions.
    type: int
    default: 0
  state:
    description:
      - V(running) makes the workload and waits until each node has both pods ready, unless the cluster was proven a
        short while ago.
      - V(proven) reads the log of each pod of the Service, connects from each to the Service by a command in it, and
        notes the proof in the ConfigMap C(plainkube-proof) of the namespace C(kube-system).
      - V(absent) removes it. The API server goes on removing after the module has ended.
    type: str
    choices: [running, proven, absent]
    default: running
"""

EXAMPLES = r"""
- name: Start a pod on every node
  plainkube.cluster.verify_workload:
    kubeconfig: /home/operator/.plainkube/production/admin.conf
    image: registry.k8s.io/e2e-test-images/agnhost:2.63.0
  delegate_to: localhost
"""

RETURN = r"""
proven:
  description: Whether an earlier proof still holds, so that nothing was made.
  returned: state is running
  type: bool
pods:
  description: The workload's pods.
  returned: state is running or proven
  type: list
  elements: dict
  contains:
    name: {description: Name of the pod., type: str}
    node: {description: Node that it runs on., type: str}
    ip: {description: Its address., type: str}
    ipv6: {description: "Its IPv6 address, empty if it has none.", type: str}
    kind: {description: "V(probe), which is behind the Service, or V(probe-neighbour).", type: str}
node_port:
  description: Port of every node for the Service.
  returned: state is running or proven
  type: int
service_ip:
  description: Address of the Service.
  returned: state is running or proven
  type: str
service_ipv6:
  description: Its IPv6 address, empty if it has none.
  returned: state is running or proven
  type: str
"""

import time
from datetime import datetime, timezone
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.plainkube.cluster.plugins.module_utils import workload
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError

try:
    from kubernetes import client, config
    from kubernetes.client.rest import ApiException
    from kubernetes.stream import stream

    HAS_KUBERNETES = True
except ImportError:
    HAS_KUBERNETES = False

PAUSE_SECONDS = 0.3
NOTHING: dict[str, Any] = {"pods": [], "service_ip": "", "service_ipv6": "", "node_port": 0}


class Workload:
    """The workload in one cluster's API."""

    def __init__(self, kubeconfig: str, namespace: str, deadline: int, dual_stack: bool) -> None:
        self.api = config.new_client_from_config(kubeconfig)
        self.core = client.CoreV1Api(self.api)
        self.apps = client.AppsV1Api(self.api)
        self.networking = client.NetworkingV1Api(self.api)
        self.namespace = namespace
        self.dual_stack = dual_stack
        self.deadline = time.monotonic() + deadline

    def wait(self, what: str) -> None:
        """Pause before the next look. Raises PlainkubeError once the deadline has passed."""
        if time.monotonic() > self.deadline:
            raise PlainkubeError(
                f"namespace {self.namespace}: {what}; look with kubectl -n {self.namespace} describe pods"
            )
        time.sleep(PAUSE_SECONDS)

    def create(self, image: str, host_port: int, ingress: list[dict[str, Any]]) -> None:
        """Make the objects; what a killed run left of them is used."""
        self.wait_for_end_of_namespace()
        makers = {
            "Service": self.core.create_namespaced_service,
            "Ingress": self.networking.create_namespaced_ingress,
            "DaemonSet": self.apps.create_namespaced_daemon_set,
        }
        namespace, *others = workload.objects(self.namespace, image, host_port, workload.ingress_classes(ingress))
        steps: list[tuple[Any, tuple[Any, ...]]] = [(self.core.create_namespace, (namespace,))]
        steps += [(makers[thing["kind"]], (self.namespace, thing)) for thing in others]
        for create, arguments in steps:
            while True:
                try:
                    create(*arguments)
                    break
                except ApiException as error:
                    if error.status == 409:
                        break
                    # The namespace's service account is not there yet.
                    if error.status != 403:
                        raise
                    self.wait(f"{create.__name__} is refused: {error.body}")

    def wait_for_end_of_namespace(self) -> None:
        """Return once the namespace of an earlier run is gone, if that is going away."""
        while True:
            try:
                found = self.core.read_namespace(self.namespace)
            except ApiException as error:
                if error.status == 404:
                    return
                raise
            if not found.metadata.deletion_timestamp:
                return
            self.wait("it is still being removed")

    def plain(self, item: Any) -> Any:
        """Return something of the API as plain data, with the API's own names: the client's differ by its release."""
        return self.api.sanitize_for_serialization(item)

    def node_objects(self) -> list[dict[str, Any]]:
        """Return all nodes as plain data."""
        nodes: list[dict[str, Any]] = self.plain(self.core.list_node().items)
        return nodes

    def nodes(self) -> list[str]:
        """Return the names of all nodes."""
        return [node["metadata"]["name"] for node in self.node_objects()]

    def still_proven(self, maximum_age_hours: int) -> bool:
        """Return whether the cluster as it is was proven less than so many hours ago."""
        if maximum_age_hours <= 0:
            return False
        try:
            note = self.core.read_namespaced_config_map(workload.PROOF_NAME, workload.PROOF_NAMESPACE).data
        except ApiException as error:
            if error.status == 404:
                return False
            raise
        digest = workload.cluster_digest(self.node_objects())
        return workload.still_proven(note, digest, maximum_age_hours, datetime.now(timezone.utc))

    def note_proof(self) -> None:
        """Note in the cluster that it was proven now."""
        nodes = self.node_objects()
        body = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": workload.PROOF_NAME, "labels": {"app.kubernetes.io/managed-by": "plainkube"}},
            "data": workload.proof(workload.cluster_digest(nodes), len(nodes), datetime.now(timezone.utc)),
        }
        try:
            self.core.replace_namespaced_config_map(workload.PROOF_NAME, workload.PROOF_NAMESPACE, body)
        except ApiException as error:
            if error.status != 404:
                raise
            self.core.create_namespaced_config_map(workload.PROOF_NAMESPACE, body)

    def pods(self) -> list[dict[str, Any]]:
        """Return the workload's pods as plain data."""
        found = []
        kinds = f"{workload.NAME_LABEL} in ({workload.NAME},{workload.NEIGHBOUR})"
        for pod in self.core.list_namespaced_pod(self.namespace, label_selector=kinds).items:
            conditions = {item.type: item.status for item in pod.status.conditions or []}
            waiting = [item.state.waiting.reason for item in pod.status.container_statuses or [] if item.state.waiting]
            found.append(
                {
                    "name": pod.metadata.name,
                    "kind": pod.metadata.labels[workload.NAME_LABEL],
                    "node": pod.spec.node_name,
                    "ip": pod.status.pod_ip,
                    "ipv6": workload.ipv6_of([entry["ip"] for entry in self.plain(pod.status).get("podIPs", ())]),
                    "ready": conditions.get("Ready") == "True" and pod.metadata.deletion_timestamp is None,
                    "state": ", ".join(waiting) or pod.status.phase,
                }
            )
        return sorted(found, key=lambda pod: str(pod["name"]))

    def wait_until_running(self) -> list[dict[str, Any]]:
        """Return the pods once each node has a ready one."""
        while True:
            pods = self.pods()
            missing = workload.missing_pods(self.nodes(), pods, self.dual_stack)
            if not missing:
                return pods
            self.wait("not every node runs its pod: " + "; ".join(missing))

    def service(self) -> dict[str, Any]:
        """Return the Service's addresses and its port on every node. Raises PlainkubeError without the wanted ones."""
        spec = self.core.read_namespaced_service(workload.NAME, self.namespace).spec
        ipv6 = workload.ipv6_of(self.plain(spec).get("clusterIPs", ()))
        if self.dual_stack and not ipv6:
            raise PlainkubeError(
                f"namespace {self.namespace}: the Service {workload.NAME} has no IPv6 address, though it asks for one; "
                "see --service-cluster-ip-range of kube-apiserver on every control-plane host"
            )
        return {
            "service_ip": str(spec.cluster_ip),
            "service_ipv6": ipv6,
            "node_port": int(spec.ports[0].node_port),
        }

    def prove(self, pods: list[dict[str, Any]], service_ip: str) -> None:
        """Read the log of each pod of the Service, and run a command in each. Raises PlainkubeError."""
        faults = []
        for pod in pods:
            if pod["kind"] != workload.NAME:
                continue
            try:
                if not self.core.read_namespaced_pod_log(pod["name"], self.namespace):
                    faults.append(f"the log of the pod on {pod['node']} is empty")
                fault = self.connect(pod, f"{service_ip}:{workload.SERVICE_PORT}")
                faults += [fault] if fault else []
            except ApiException as error:
                faults.append(f"logs or exec of the pod on {pod['node']}: {error.status} {error.reason}")
        if faults:
            raise PlainkubeError("; ".join(faults))

    def connect(self, pod: dict[str, Any], target: str) -> str:
        """Return what is wrong with the way from this pod to the target, empty when it connects."""
        answer = stream(
            self.core.connect_get_namespaced_pod_exec,
            pod["name"],
            self.namespace,
            command=["/agnhost", "connect", "--timeout=5s", target],
            stderr=True,
            stdout=True,
            _preload_content=False,
        )
        answer.run_forever(timeout=15)
        words = (answer.read_stdout() or "") + (answer.read_stderr() or "")
        if answer.returncode == 0:
            return ""
        return f"from the pod on {pod['node']} to {target}: {words.strip() or 'no answer'}"

    def remove(self) -> None:
        """Remove the namespace with all in it; deletion goes on in the API server when this returns."""
        try:
            self.core.delete_namespace(self.namespace)
        except ApiException as error:
            if error.status not in (404, 409):
                raise


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "kubeconfig": {"type": "path", "required": True},
            "namespace": {"type": "str", "default": "plainkube-verify"},
            "image": {"type": "str"},
            "host_port": {"type": "int", "default": 0},
            "ingress": {"type": "list", "elements": "dict", "default": []},
            "dual_stack": {"type": "bool", "default": False},
            "deadline": {"type": "int", "default": 120},
            "maximum_age_hours": {"type": "int", "default": 0},
            "state": {"type": "str", "choices": ["running", "proven", "absent"], "default": "running"},
        },
        required_if=[("state", "running", ["image"])],
        supports_check_mode=True,
    )
    if not HAS_KUBERNETES:
        module.fail_json(msg=missing_required_lib("kubernetes"))
    if module.check_mode:
        module.exit_json(changed=False, proven=False, **NOTHING)
    options = module.params
    try:
        run = Workload(options["kubeconfig"], options["namespace"], options["deadline"], options["dual_stack"])
        if options["state"] == "absent":
            run.remove()
            module.exit_json(changed=False)
        if options["state"] == "running":
            if run.still_proven(options["maximum_age_hours"]):
                module.exit_json(changed=False, proven=True, **NOTHING)
            run.create(options["image"], options["host_port"], options["ingress"])
        pods = run.wait_until_running()
        service = run.service()
        if options["state"] == "proven":
            run.prove(pods, service["service_ip"])
            run.note_proof()
    except PlainkubeError as error:
        module.fail_json(msg=str(error))
    except ApiException as error:
        module.fail_json(
            msg=f"the API refused the workload in {options['namespace']}: {error.status} {error.reason}: {error.body}"
        )
    # The workload is gone again at the end of its proof, so nothing is called changed.
    module.exit_json(changed=False, proven=False, pods=pods, **service)


if __name__ == "__main__":
    main()
