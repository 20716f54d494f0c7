# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What users of the cluster see through its API."""

from __future__ import annotations

import ipaddress
import json
from typing import Any

import pytest
from kubernetes import client
from kubernetes.client.rest import ApiException
from lab_cluster import Host, connect, members


def test_every_node_is_ready(api: client.ApiClient) -> None:
    nodes = client.CoreV1Api(api).list_node().items
    ready = {n.metadata.name for n in nodes for c in n.status.conditions if c.type == "Ready" and c.status == "True"}
    assert ready == set(members("nodes"))


def test_nodes_outside_the_workers_are_tainted(api: client.ApiClient) -> None:
    for node in client.CoreV1Api(api).list_node().items:
        tainted = any(t.key == "node-role.kubernetes.io/control-plane" for t in node.spec.taints or [])
        assert tainted == (node.metadata.name not in members("workers"))


def test_secrets_are_encrypted_in_etcd(api: client.ApiClient, namespace: str) -> None:
    client.CoreV1Api(api).create_namespaced_secret(
        namespace, {"metadata": {"name": "proof"}, "stringData": {"word": "a-word-in-the-clear"}}
    )
    host = connect(members("etcd")[0])
    command = "set -a; . /etc/etcd/etcdctl.env; etcdctl get --print-value-only /registry/secrets/%s/proof"
    raw = host.check_output(command + " | tr -cd '[:print:]'", namespace)
    assert raw.startswith("k8s:enc:secretbox:v1:key1:")
    assert "a-word-in-the-clear" not in raw


def test_the_audit_log_knows_who_read_a_secret_and_not_what_it_said(api: client.ApiClient, namespace: str) -> None:
    core = client.CoreV1Api(api)
    core.create_namespaced_secret(
        namespace, {"metadata": {"name": "audited"}, "stringData": {"word": "not-for-the-log"}}
    )
    core.read_namespaced_secret("audited", namespace)
    lines = []
    for name in members("control_plane"):
        host = connect(name)
        lines += host.run('grep -h \'"name":"audited"\' /var/log/kube-apiserver/audit.log').stdout.splitlines()
        assert "not-for-the-log" not in host.check_output("cat /var/log/kube-apiserver/audit.log")
    events = [json.loads(line) for line in lines]
    assert any(e["verb"] == "get" and e["user"]["username"] == "kubernetes-admin" for e in events)


def test_pods_that_ask_for_the_host_are_refused(api: client.ApiClient, namespace: str) -> None:
    pod: dict[str, Any] = {
        "metadata": {"name": "greedy"},
        "spec": {"hostNetwork": True, "containers": [{"name": "greedy", "image": "registry.k8s.io/pause:3.10.2"}]},
    }
    with pytest.raises(ApiException) as refused:
        client.CoreV1Api(api).create_namespaced_pod(namespace, pod)
    assert refused.value.status == 403
    assert "PodSecurity" in refused.value.body


@pytest.mark.on("nodes")
def test_strangers_learn_nothing_from_the_api(host: Host) -> None:
    asked = "curl -s -o /dev/null -w '%%{http_code}' --cacert /etc/kubernetes/pki/ca.crt https://127.0.0.1:6443%s"
    assert host.check_output(asked, "/readyz") == "200"
    assert host.check_output(asked, "/api/v1/nodes") == "401"
    assert host.check_output(asked, "/version") == "401"


def test_name_servers_are_on_different_hosts(api: client.ApiClient) -> None:
    pods = client.CoreV1Api(api).list_namespaced_pod("kube-system", label_selector="k8s-app=kube-dns").items
    # A host that was shut down in order leaves its completed pods in the list for a while.
    hosts = [pod.spec.node_name for pod in pods if pod.status.phase == "Running"]
    assert len(set(hosts)) == len(hosts) == min(2, len(members("nodes")))


def test_new_pods_get_the_wanted_dots_unless_they_say_them(
    api: client.ApiClient, namespace: str, cluster: dict[str, Any]
) -> None:
    def options(**spec: Any) -> dict[str, str]:
        container = {
            "name": "pause",
            "image": "registry.k8s.io/pause:3.10.2",
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        }
        security = {"runAsNonRoot": True, "runAsUser": 65535, "seccompProfile": {"type": "RuntimeDefault"}}
        pod = {"metadata": {"name": "pod"}, "spec": {"containers": [container], "securityContext": security, **spec}}
        made = client.CoreV1Api(api).create_namespaced_pod(namespace, pod, dry_run="All")
        given = made.spec.dns_config.options if made.spec.dns_config else []
        return {option.name: option.value for option in given or []}

    wanted = {"ndots": str(cluster["ndots"])} if cluster["ndots"] else {}
    assert options() == wanted
    assert options(dnsConfig={"searches": ["example.org"]}) == wanted
    assert options(dnsConfig={"options": [{"name": "timeout", "value": "1"}]}) == {"timeout": "1", **wanted}
    assert options(dnsConfig={"options": [{"name": "ndots", "value": "3"}]}) == {"ndots": "3"}
    assert options(dnsPolicy="Default") == {}


def test_every_node_has_a_part_of_the_pod_network_of_its_own(api: client.ApiClient) -> None:
    nodes = client.CoreV1Api(api).list_node().items
    parts = [ipaddress.ip_network(network) for node in nodes for network in node.spec.pod_cidrs]
    assert not any(a.version == b.version and a.overlaps(b) for i, a in enumerate(parts) for b in parts[i + 1 :])


def test_etcd_has_every_member_and_they_agree(cluster: dict[str, Any]) -> None:
    host = connect(members("etcd")[0])
    answer = host.check_output("set -a; . /etc/etcd/etcdctl.env; etcdctl endpoint hashkv -w json")
    hashes = [item["HashKV"]["hash"] for item in json.loads(answer)]
    status = json.loads(host.check_output("set -a; . /etc/etcd/etcdctl.env; etcdctl member list -w json"))
    assert {member["name"] for member in status["members"]} == set(members("etcd"))
    assert len(hashes) == len(members("etcd"))
