# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Role ingress_nginx against a real API server. Nothing runs its pods: what the API accepts and keeps is what is seen.

The stand-in for upstream's definitions is one small definition of the same group, from a mirror made here.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.plainkube.cluster.plugins.module_utils.kubernetes_api import Api
from api_servers import CHECKOUT, ApiServer
from mirror.fill import HOST_ARCH

NAMESPACE = "plainkube-ingress"
IN_NAMESPACE = f"/namespaces/{NAMESPACE}"
INGRESS = "/apis/networking.k8s.io/v1/namespaces/default/ingresses/shop"
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/policies.k8s.nginx.org"
VERSION = "5.5.4"
STRICTLY = {"fieldManager": "plainkube", "force": "true", "dryRun": "All", "fieldValidation": "Strict"}
DEFINITION = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "policies.k8s.nginx.org"},
    "spec": {
        "group": "k8s.nginx.org",
        "names": {"kind": "Policy", "listKind": "PolicyList", "plural": "policies", "singular": "policy"},
        "scope": "Namespaced",
        "versions": [
            {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": {"type": "object"}}}
        ],
    },
}
Object = dict[str, Any]


def instance(name: str = "nginx", **changes: Any) -> Object:
    """Return an instance with every default filled in, as the contract does."""
    return {
        "name": name,
        "class": name,
        "namespaces": [],
        "host_names": ["one", "two"],
        "every_host": True,
        "http_port": 80,
        "https_port": 443,
        "ping_port": 8082,
        "certificate": "",
        "certificate_key": "",
        "trusted_proxies": [],
        "proxy_protocol": [],
        "gateway": True,
        "default": True,
        "status_address": "",
        **changes,
    }


class Cluster:
    """The API server, the role, and what stands in for the controller that counts a DaemonSet's pods."""

    def __init__(self, server: ApiServer, folder: Path) -> None:
        self.server = server
        self.api: Api = server.api()
        self.folder = folder
        self._ended = threading.Event()
        self._counting = threading.Thread(target=self._count)
        self._counting.start()

    def _count(self) -> None:
        while not self._ended.wait(0.2):
            for thing in self.api.list(f"/apis/apps/v1{IN_NAMESPACE}/daemonsets"):
                metadata = thing["metadata"]
                if thing["status"].get("observedGeneration") == metadata["generation"]:
                    continue
                counts = ("currentNumberScheduled", "desiredNumberScheduled", "numberMisscheduled", "numberReady")
                body = {
                    "apiVersion": "apps/v1",
                    "kind": "DaemonSet",
                    "metadata": {"name": metadata["name"], "namespace": NAMESPACE},
                    "status": {"observedGeneration": metadata["generation"], **dict.fromkeys(counts, 0)},
                }
                path = f"/apis/apps/v1{IN_NAMESPACE}/daemonsets/{metadata['name']}/status"
                self.api.ask("patch", path, body, fieldManager="counting", force="true")

    @property
    def has_policies(self) -> bool:
        """Whether this Kubernetes has MutatingAdmissionPolicies."""
        return int(self.server.version.split(".")[1]) >= 36

    def close(self) -> None:
        self._ended.set()
        self._counting.join()

    def run(self, *instances: Object, then: Object | None = None, check: bool = False, **options: Any) -> str:
        """Run the role, and a task with its variables after it, and return what Ansible printed."""
        variables = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "cluster_admin_kubeconfig": str(self.server.kubeconfig),
            "cluster_versions": {"kubernetes": self.server.version, "nginx-ingress": VERSION},
            "cluster_checks": {"kube-api": {"type": "http", "url": f"{self.server.url}/readyz", "insecure": True}},
            "plainkube_ingress": "nginx",
            "cluster_ingress_instances": list(instances),
            "__ingress_nginx_store": str(self.folder / "store"),
            "plainkube_artifact_source": f"file://{self.folder / 'mirror'}",
            **options,
        }
        role = {"ansible.builtin.include_role": {"name": "plainkube.cluster.ingress_nginx", "public": True}}
        defaults = {"plainkube.cluster.artifacts": {"catalogue": str(self.folder / "catalogue.yml")}}
        play: list[Object] = [{"hosts": "all", "gather_facts": False, "module_defaults": defaults}]
        play[0]["tasks"] = [role, then] if then else [role]
        (self.folder / "play.yml").write_text(yaml.safe_dump(play))
        program = str(Path(sys.executable).parent / "ansible-playbook")
        command = [program, "-i", "here,", str(self.folder / "play.yml"), "-e", json.dumps(variables)]
        command += ["--check"] if check else []
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def get(self, path: str) -> Object:
        found = self.api.get(path)
        assert found is not None, path
        return found

    def daemon_set(self, name: str = "nginx") -> Object:
        spec: Object = self.get(f"/apis/apps/v1{IN_NAMESPACE}/daemonsets/{name}")["spec"]
        return spec

    def config(self, name: str = "nginx") -> dict[str, str]:
        data: dict[str, str] = self.get(f"/api/v1{IN_NAMESPACE}/configmaps/{name}")["data"]
        return data

    def names(self, path: str, label: str = "app.kubernetes.io/name=nginx-ingress") -> list[str]:
        return sorted(thing["metadata"]["name"] for thing in self.api.list(path, labelSelector=label))

    def write_ingress(self, ingress_class: str, **annotations: str) -> Object:
        """Write an Ingress and return it as the API keeps it."""
        thing = {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "Ingress",
            "metadata": {"name": "shop", "namespace": "default", "annotations": annotations},
            "spec": {
                "ingressClassName": ingress_class,
                "defaultBackend": {"service": {"name": "web", "port": {"number": 80}}},
            },
        }
        self.api.ask("delete", INGRESS, {})
        kept, _how = self.api.apply(thing, "tests", live={})
        return kept


@pytest.fixture
def cluster(api_server: ApiServer, tmp_path: Path) -> Iterator[Cluster]:
    content = yaml.safe_dump(DEFINITION).encode()
    entry = {"names": ["nginx-ingress"], "versions": [VERSION], "kind": "file", "file": "crds.yaml"}
    catalogue = {
        "artifacts": [{**entry, "members": ["crds.yaml"]}],
        "checksums": {"nginx-ingress": {VERSION: {HOST_ARCH: hashlib.sha256(content).hexdigest()}}},
    }
    (tmp_path / "catalogue.yml").write_text(yaml.safe_dump(catalogue))
    mirrored = tmp_path / "mirror" / "nginx-ingress" / VERSION / "crds.yaml"
    mirrored.parent.mkdir(parents=True)
    mirrored.write_bytes(content)
    made = Cluster(api_server, tmp_path)
    try:
        yield made
        made.run()
        made.api.ask("delete", INGRESS, {})
    finally:
        made.close()


def changes_nothing(output: str) -> None:
    assert "changed=0" in output, output


def flags(spec: Object) -> dict[str, str]:
    arguments = spec["template"]["spec"]["containers"][0]["args"]
    return dict(argument.lstrip("-").split("=", 1) for argument in arguments)


def test_an_instance_as_the_api_keeps_it_and_a_second_run_changes_nothing(cluster: Cluster) -> None:
    cluster.run(instance())
    spec = cluster.daemon_set()
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert spec["updateStrategy"]["rollingUpdate"] == {"maxUnavailable": 1, "maxSurge": 0}
    assert pod["nodeSelector"] == {"node-role.kubernetes.io/ingress": ""}
    assert {port["name"]: port.get("hostPort") for port in container["ports"]} == {
        "http": 80,
        "https": 443,
        "ready": 8082,
        "metrics": None,
    }
    # Time to be noticed, then time to end, and both within what the kubelet gives.
    assert container["lifecycle"]["preStop"] == {"sleep": {"seconds": 15}}
    assert pod["terminationGracePeriodSeconds"] >= 15 + 300
    for part in (container, *pod["initContainers"]):
        context = part["securityContext"]
        assert (context["runAsNonRoot"], context["readOnlyRootFilesystem"]) == (True, True)
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"]["drop"] == ["ALL"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert flags(spec)["enable-custom-resources"] == "false"
    assert flags(spec)["enable-telemetry-reporting"] == "false"
    assert "watch-namespace" not in flags(spec)
    config = cluster.config()
    assert config["worker-shutdown-timeout"] == "1h"
    assert "keepalive_min_timeout 75s;" in config["http-snippets"]
    line = config["log-format"].replace("\n", "")
    assert json.loads(line)["request_id"] == "$request_identity"
    budget = cluster.get(f"/apis/policy/v1{IN_NAMESPACE}/poddisruptionbudgets/nginx")["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["selector"] == spec["selector"]
    changes_nothing(cluster.run(instance()))


def test_every_input_of_an_instance_arrives(cluster: Cluster, tmp_path: Path) -> None:
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).write_text(f"{name} of nobody")
    output = cluster.run(
        instance(
            "shop",
            **{"class": "shops", "default": False, "every_host": False, "host_names": ["two"]},
            namespaces=["shop-a", "shop-b"],
            http_port=8080,
            certificate=str(tmp_path / "tls.crt"),
            certificate_key=str(tmp_path / "tls.key"),
            proxy_protocol=["192.0.2.0/24", "198.51.100.1"],
            status_address="203.0.113.5",
        ),
        ingress_nginx_config={"client-max-body-size": "8m", "http2": "False"},
    )
    assert "tls.key of nobody" not in output
    spec = cluster.daemon_set("shop")
    given = flags(spec)
    assert given["ingress-class"] == "shops"
    assert given["watch-namespace"] == "shop-a,shop-b"
    assert given["watch-secret-namespace"] == f"shop-a,shop-b,{NAMESPACE}"
    assert given["default-server-tls-secret"] == f"{NAMESPACE}/shop-certificate"
    assert given["report-ingress-status"] == "true"
    terms = spec["template"]["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert terms["nodeSelectorTerms"][0]["matchExpressions"][0]["values"] == ["two"]
    config = cluster.config("shop")
    assert (config["proxy-protocol"], config["real-ip-header"]) == ("True", "proxy_protocol")
    assert config["set-real-ip-from"] == "192.0.2.0/24,198.51.100.1"
    assert config["external-status-address"] == "203.0.113.5"
    assert (config["client-max-body-size"], config["http2"]) == ("8m", "False")
    # Rights in the namespaces that it serves, and in no other.
    assert cluster.names("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings") == ["plainkube:ingress-nginx:shop"]
    for namespace in ("shop-a", "shop-b"):
        cluster.get(
            f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings/plainkube:ingress-nginx:shop"
        )
    # A load balancer that is believed, without the PROXY protocol.
    cluster.run(instance("shop", **{"class": "shops"}, trusted_proxies=["192.0.2.9"]))
    config = cluster.config("shop")
    assert (config["real-ip-header"], "proxy-protocol" in config) == ("X-Forwarded-For", False)
    assert cluster.names("/apis/rbac.authorization.k8s.io/v1/rolebindings") == ["shop"]


def test_check_mode_writes_nothing_and_needs_nothing_to_be_there(cluster: Cluster) -> None:
    wanted = instance(namespaces=["not-there-yet"])
    assert "changed=0" not in cluster.run(wanted, check=True)
    assert cluster.names("/apis/networking.k8s.io/v1/ingressclasses") == []
    assert cluster.api.get("/api/v1/namespaces/not-there-yet") is None
    cluster.run(wanted)
    changes_nothing(cluster.run(wanted, check=True))


def test_labels_of_a_namespace_that_it_serves_are_somebody_else_s(cluster: Cluster) -> None:
    labelled = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "labelled", "labels": {"team": "shop"}}}
    cluster.api.apply(labelled, "plainkube")
    cluster.run(instance(namespaces=["labelled"]))
    assert cluster.get("/api/v1/namespaces/labelled")["metadata"]["labels"]["team"] == "shop"


def test_ingresses_of_its_classes_lead_to_the_service_s_address(cluster: Cluster) -> None:
    """The annotation that spares reloads is written by the API server itself, unless somebody chose otherwise."""
    cluster.run(instance())
    annotation = "nginx.org/use-cluster-ip"
    kept = cluster.write_ingress("nginx", other="one")
    if not cluster.has_policies:
        assert kept["metadata"]["annotations"] == {"other": "one"}
        return
    assert kept["metadata"]["annotations"] == {annotation: "true", "other": "one"}
    assert cluster.write_ingress("nginx", **{annotation: "false"})["metadata"]["annotations"] == {annotation: "false"}
    assert annotation not in cluster.write_ingress("elsewhere", other="one")["metadata"]["annotations"]
    cluster.run(instance(), ingress_nginx_cluster_ip=False)
    assert annotation not in cluster.write_ingress("nginx", other="one")["metadata"]["annotations"]


def test_an_instance_that_is_wanted_no_more_leaves_nothing(cluster: Cluster) -> None:
    cluster.run(instance("first"), instance("second", default=False, namespaces=["shop-a"], http_port=81))
    cluster.run(instance("first"))
    assert cluster.names("/apis/networking.k8s.io/v1/ingressclasses") == ["first"]
    assert cluster.names(f"/apis/apps/v1{IN_NAMESPACE}/daemonsets") == ["first"]
    cluster.run()
    for path in (
        "/apis/networking.k8s.io/v1/ingressclasses",
        f"/apis/apps/v1{IN_NAMESPACE}/daemonsets",
        f"/api/v1{IN_NAMESPACE}/configmaps",
        f"/api/v1{IN_NAMESPACE}/serviceaccounts",
        "/apis/policy/v1/poddisruptionbudgets",
        "/apis/rbac.authorization.k8s.io/v1/rolebindings",
        "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
        *(["/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicies"] if cluster.has_policies else []),
    ):
        assert cluster.names(path) == [], path
    assert cluster.api.get("/apis/rbac.authorization.k8s.io/v1/clusterroles/plainkube:ingress-nginx") is None
    changes_nothing(cluster.run())


def test_f5_s_own_kinds_are_defined_when_they_are_to_be_served(cluster: Cluster) -> None:
    cluster.run(instance())
    assert cluster.api.get(DEFINITIONS) is None
    cluster.run(instance(), ingress_nginx_custom_resources=True)
    assert cluster.get(DEFINITIONS)["spec"]["group"] == "k8s.nginx.org"
    assert flags(cluster.daemon_set())["enable-custom-resources"] == "true"
    changes_nothing(cluster.run(instance(), ingress_nginx_custom_resources=True))
    cluster.api.ask("delete", DEFINITIONS, {})


def test_no_field_is_unknown_to_the_api(cluster: Cluster) -> None:
    """What was rendered is asked for again without a write, with unknown fields as errors instead of being dropped."""
    template = CHECKOUT / "roles" / "ingress_nginx" / "templates" / "objects" / "nginx.yml.j2"
    rendered = cluster.folder / "rendered.yml"
    cluster.run(
        instance(namespaces=["shop-a"], every_host=False, proxy_protocol=["192.0.2.1"]),
        then={"ansible.builtin.template": {"src": str(template), "dest": str(rendered)}},
        ingress_nginx_custom_resources=True,
    )
    things = list(yaml.safe_load_all(rendered.read_text()))
    for thing in things:
        status, answer = cluster.api.ask("patch", where(cluster.api, thing), thing, **STRICTLY)
        assert status == 200, (thing["kind"], answer.get("message"))
    (last,) = [thing for thing in things if thing["kind"] == "DaemonSet"]
    last["spec"]["template"]["spec"]["containers"][0]["lifecyle"] = {}
    everywhere = where(cluster.api, last).rpartition("/")[0]
    status, answer = cluster.api.ask("create", everywhere, last, dryRun="All", fieldValidation="Strict")
    assert (status, "lifecyle" in answer["message"]) == (400, True)
    cluster.api.ask("delete", DEFINITIONS, {})


def where(api: Api, thing: Object) -> str:
    """Return the path of an object of any kind, as the API itself lists it."""
    version, metadata = thing["apiVersion"], thing["metadata"]
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    (plural,) = [
        entry["name"]
        for entry in api.get(root)["resources"]  # type: ignore[index]
        if entry["kind"] == thing["kind"] and "/" not in entry["name"]
    ]
    within = f"/namespaces/{metadata['namespace']}" if "namespace" in metadata else ""
    return f"{root}{within}/{plural}/{metadata['name']}"
