# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A cluster whose network somebody brings by hand, as docs/network.md tells: it waits in words, then it is verified."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from faults_lab import FOLDER, Lab

KUBECTL = "kubectl --kubeconfig /etc/kubernetes/admin.conf"
HINT = "plainkube_network is none: bring a network of your own, as docs/network.md says, then run site.yml again"


@pytest.fixture(scope="module")
def bare() -> Iterator[Lab]:
    """Two hosts with nothing on them, for a cluster without a network."""
    found = Lab(FOLDER / "inventories/faults-none")
    found.renew()
    yield found
    found.lab("destroy")


def configuration(pods: str) -> str:
    """Return a CNI configuration of standard plugins alone, for a node with this part of the pod network."""
    plugins = [
        {
            "type": "bridge",
            "bridge": "own0",
            "isGateway": True,
            "hairpinMode": True,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": pods}]], "routes": [{"dst": "0.0.0.0/0"}]},
        },
        {"type": "portmap", "backend": "nftables", "capabilities": {"portMappings": True}},
    ]
    return json.dumps({"cniVersion": "1.0.0", "name": "own", "plugins": plugins})


def said(output: str) -> str:
    return " ".join(output.split())


def test_a_cluster_waits_for_a_network_and_is_verified_with_it(bare: Lab) -> None:
    first, control_plane = bare.site(), bare.members("control_plane")[0]
    nodes = bare.members("workers")
    assert first.code != 0
    for node in nodes:
        assert f"{node} is not ready: container runtime network not ready" in said(first.output)
    assert "cni plugin not initialized" in said(first.output)
    assert HINT in said(first.output)
    # It ends where pods would be waited for, and nothing else has failed before.
    assert "Let HTTP in" not in first.output
    # Until then verify says the same, at once if that is wanted.
    verify = bare.site(playbook="playbooks/verify-cluster.yml", extra={"verify_deadline": 3})
    assert verify.code != 0
    assert HINT in said(verify.output)

    parts = {
        node: bare.ssh(control_plane, f"{KUBECTL} get node {node} -o jsonpath={{.spec.podCIDR}}") for node in nodes
    }
    for node, pods in parts.items():
        bare.ssh(node, "mkdir -p /etc/cni/net.d")
        bare.send(node, configuration(pods).encode(), "/etc/cni/net.d/10-own.conflist")
        for other in nodes:
            if other != node:
                bare.ssh(node, f"ip route add {parts[other]} via {bare.nodes[other].address}")

    assert "Say what was proven" in bare.converge().output
    assert bare.converge().changed == set()
    assert bare.site("--check").changed == set()
    # What the user brought is as it was.
    for node, pods in parts.items():
        assert bare.ssh(node, "ls /etc/cni/net.d").split() == ["10-own.conflist"]
        assert bare.ssh(node, "cat /etc/cni/net.d/10-own.conflist") == configuration(pods)
