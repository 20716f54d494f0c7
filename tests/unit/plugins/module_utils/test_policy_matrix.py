# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The matrix of policies: each denied way has an allowed twin, and a fault names the pair."""

from __future__ import annotations

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils import policy_matrix, workload
from ansible_collections.plainkube.cluster.plugins.module_utils.policy_matrix import Way

SERVICE = "policy-server.x.svc.cluster.local"
OUTSIDE = "10.96.0.1:443"


def ways_on(nodes: list[str], *more: str) -> list[Way]:
    addresses = {
        name: [f"{network}{number}" for network in ("10.244.0.", *more)]
        for number, name in enumerate(policy_matrix.actors(nodes), start=2)
    }
    return policy_matrix.ways(nodes, addresses, SERVICE, OUTSIDE)


def test_two_nodes_play_and_the_rest_of_a_large_cluster_does_not() -> None:
    assert policy_matrix.nodes_for(["c", "a", "b"]) == ["a", "c"]
    assert policy_matrix.nodes_for(["a"]) == ["a"]
    assert policy_matrix.nodes_for([]) == []


def test_on_two_nodes_both_are_tried_on_one_node_and_across() -> None:
    found = {(way.allowed, "same node" in way.words, "another node" in way.words) for way in ways_on(["a", "b"])}
    assert {(True, True, False), (True, False, True), (False, True, False), (False, False, True)} <= found


def test_all_is_tried_over_both_families_of_addresses() -> None:
    both = ways_on(["a", "b"], "fd00::")
    over_ipv6 = [way for way in both if "over IPv6" in way.words]
    assert len(both) == len(ways_on(["a", "b"])) + len(over_ipv6)
    assert {(way.source, way.target, way.allowed) for way in over_ipv6} == {
        (source, f"[fd00::{number}]:8080", source == "policy-friend")
        for source in ("policy-friend", "policy-stranger")
        for number in (2, 3)
    }


def test_on_one_node_friend_and_stranger_are_tried_there() -> None:
    between_pods = [way for way in ways_on(["a"]) if "server on a" in way.words]
    assert [(way.source, way.allowed) for way in between_pods] == [
        ("policy-friend", True),
        ("policy-stranger", False),
    ]


def test_names_are_allowed_and_the_way_out_is_not() -> None:
    by_target = {way.target: way.allowed for way in ways_on(["a", "b"])}
    assert by_target[f"{SERVICE}:80"] is True
    assert by_target[OUTSIDE] is False


def test_without_policies_every_way_is_open() -> None:
    found = policy_matrix.before(ways_on(["a", "b"]))
    assert all(way.allowed for way in found)
    assert len(found) == len(ways_on(["a", "b"]))
    assert found[0].words == "from the friend on a to the server on a (the same node), before there are policies"


@pytest.mark.parametrize(
    ("allowed", "connected", "said", "words"),
    [
        (True, True, "", ""),
        (True, False, "TIMEOUT\n", "should have been allowed, but was not (TIMEOUT) from a to b"),
        (True, False, "", "should have been allowed, but was not (no answer) from a to b"),
        (False, True, "", "should have been denied, but was allowed from a to b"),
        (False, False, "REFUSED\n", ""),
        (False, False, "TIMEOUT", ""),
        # A name that is not found is no denial.
        (False, False, "DNS: no such host", "could not be tried (DNS: no such host) from a to b"),
    ],
)
def test_a_fault_names_the_pair_and_what_should_have_been(
    allowed: bool, connected: bool, said: str, words: str
) -> None:
    assert policy_matrix.fault(Way("a", "b", allowed, "from a to b"), connected, said) == words


def test_policies_hold_only_the_pods_of_the_matrix() -> None:
    for policy in policy_matrix.policies("x"):
        assert policy_matrix.ROLE in str(policy["spec"]["podSelector"])
        assert policy["metadata"]["namespace"] == "x"


def test_pods_stand_on_their_nodes_and_share_nothing() -> None:
    template = workload.pod_spec("image")
    pods = policy_matrix.pods("x", template, ["a", "b"])
    assert {pod["metadata"]["name"]: pod["spec"]["nodeName"] for pod in pods} == {
        "policy-server-1": "a",
        "policy-server-2": "b",
        "policy-friend": "a",
        "policy-stranger": "b",
    }
    assert "nodeName" not in template
