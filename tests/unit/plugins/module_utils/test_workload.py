# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The workload that proves a cluster: which objects, when an old proof still holds, what hosts must see of it."""

from __future__ import annotations

from copy import deepcopy
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils import checks, workload

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=timezone.utc)
NODES: list[dict[str, Any]] = [
    {
        "metadata": {"name": name, "uid": f"uid-{name}"},
        "spec": {"podCIDR": "10.244.0.0/24"},
        "status": {
            "nodeInfo": {"bootID": "1", "kubeletVersion": "v1.37.1", "containerRuntimeVersion": "containerd://2.3.7"},
            "conditions": [{"type": "Ready", "lastTransitionTime": "2026-11-20T00:00:00Z"}],
        },
    }
    for name in ("a", "b")
]


def test_the_pod_is_allowed_where_pod_security_is_strictest() -> None:
    namespace, _service, daemonset = workload.objects("proof", "image")
    container = daemonset["spec"]["template"]["spec"]["containers"][0]
    assert namespace["metadata"]["name"] == "proof"
    assert container["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["resources"]["limits"]


def test_missing_pods_are_named_with_how_far_they_got() -> None:
    pods = [
        {"name": "probe-1", "node": "a", "ready": True, "state": "Running"},
        {"name": "probe-2", "node": "b", "ready": False, "state": "ImagePullBackOff"},
    ]
    assert workload.missing_pods(["a", "b", "c"], pods) == ["b: pod probe-2 is ImagePullBackOff", "c: no pod yet"]


def test_a_young_proof_of_the_same_cluster_holds() -> None:
    digest = workload.cluster_digest(NODES)
    note = workload.proof(digest, 2, NOW)
    assert workload.still_proven(note, digest, 24, NOW + timedelta(hours=23))
    assert not workload.still_proven(note, digest, 24, NOW + timedelta(hours=24))
    # A clock that was set back proves nothing.
    assert not workload.still_proven(note, digest, 24, NOW - timedelta(minutes=1))
    assert not workload.still_proven(note, "other", 24, NOW)
    assert not workload.still_proven(None, digest, 24, NOW)
    assert not workload.still_proven({"cluster": digest, "provenAt": "yesterday"}, digest, 24, NOW)


@pytest.mark.parametrize(
    "path",
    [
        ("metadata", "uid"),
        ("spec", "podCIDR"),
        ("status", "nodeInfo", "bootID"),
        ("status", "nodeInfo", "kubeletVersion"),
        ("status", "conditions", 0, "lastTransitionTime"),
    ],
)
def test_a_changed_node_has_to_be_proven_again(path: tuple[Any, ...]) -> None:
    changed = deepcopy(NODES)
    place: Any = changed[1]
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = "changed"
    assert workload.cluster_digest(changed) != workload.cluster_digest(NODES)
    assert workload.cluster_digest(list(reversed(NODES))) == workload.cluster_digest(NODES)


def test_every_host_must_reach_every_pod_the_service_and_its_name() -> None:
    pods = [{"name": "probe-1", "node": "a", "ip": "10.244.0.7"}]
    definitions = workload.workload_checks(pods, "10.96.0.9", "probe.proof.svc.cluster.local", "10.96.0.10")
    assert sorted(definitions) == ["pod-on-a", "service", "service-name"]
    assert definitions["pod-on-a"]["url"] == "http://10.244.0.7:8080/hostname"
    assert checks.faults_of(definitions) == []
