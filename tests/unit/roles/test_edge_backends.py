# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The unit that keeps haproxy's servers as the cluster says: its decisions, without haproxy or an API."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).resolve().parents[3] / "roles" / "edge" / "files" / "edge_backends.py"
SPEC = importlib.util.spec_from_file_location("edge_backends", SOURCE)
assert SPEC and SPEC.loader
edge_backends = importlib.util.module_from_spec(SPEC)
# A dataclass looks its module up.
sys.modules["edge_backends"] = edge_backends
SPEC.loader.exec_module(edge_backends)
Slot, Target = edge_backends.Slot, edge_backends.Target

INGRESS = {"node-role.kubernetes.io/ingress": ""}
EXCLUDED = {"node.kubernetes.io/exclude-from-external-load-balancers": "true"}
A, B, C, D = (("192.0.2.1", 80), ("192.0.2.2", 80), ("192.0.2.3", 80), ("192.0.2.4", 80))
NOWHERE = ("127.0.0.1", 9)


def node(address: str, labels: dict[str, str], ready: str = "True", **metadata: Any) -> dict[str, Any]:
    return {
        "metadata": {"labels": labels, **metadata},
        "status": {
            "addresses": [{"type": "Hostname", "address": "x"}, {"type": "InternalIP", "address": address}],
            "conditions": [{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": ready}],
        },
    }


def states(targets: dict[Any, Any]) -> dict[str, str]:
    return {address[0]: target.state for address, target in targets.items()}


@pytest.mark.parametrize(
    ("nodes", "wanted"),
    [
        ({}, {}),
        (
            {"a": node("192.0.2.1", INGRESS), "b": node("192.0.2.2", {}), "c": node("192.0.2.3", INGRESS, "False")},
            {"192.0.2.1": "ready", "192.0.2.3": "drain"},
        ),
        (
            {"a": node("192.0.2.1", INGRESS), "b": node("192.0.2.2", {**INGRESS, **EXCLUDED})},
            {"192.0.2.1": "ready", "192.0.2.2": "drain"},
        ),
        (
            {
                "a": node("192.0.2.1", INGRESS),
                "b": node("192.0.2.2", INGRESS, deletionTimestamp="2026-11-21T10:00:00Z"),
            },
            {"192.0.2.1": "ready", "192.0.2.2": "drain"},
        ),
        # Nobody is ready: more is wrong than with the hosts. The one that a person left out stays out.
        (
            {
                "a": node("192.0.2.1", INGRESS, "Unknown"),
                "b": node("192.0.2.2", INGRESS, "Unknown"),
                "c": node("192.0.2.3", {**INGRESS, **EXCLUDED}, "Unknown"),
            },
            {"192.0.2.1": "ready", "192.0.2.2": "ready", "192.0.2.3": "drain"},
        ),
        ({"a": {"metadata": {"labels": INGRESS}, "status": {}}}, {}),
    ],
)
def test_ingress_hosts_are_servers_while_they_are_ready(nodes: dict[str, Any], wanted: dict[str, str]) -> None:
    assert states(edge_backends.ingress_targets(nodes, 80)) == wanted


def service(*ports: dict[str, Any], kind: str = "NodePort") -> dict[str, Any]:
    return {"spec": {"type": kind, "ports": list(ports)}}


WEB = service({"name": "http", "port": 80, "nodePort": 30080}, {"name": "metrics", "port": 9000, "nodePort": 30900})


def endpoint(address: str, host: str = "a", **conditions: bool) -> dict[str, Any]:
    return {"addresses": [address], "nodeName": host, "conditions": conditions}


def piece(*endpoints: dict[str, Any], name: str = "http", port: int = 8080) -> dict[str, Any]:
    return {"ports": [{"name": name, "port": port}], "endpoints": list(endpoints)}


READY: dict[str, Any] = {"ready": True, "serving": True, "terminating": False}
ENDING: dict[str, Any] = {"ready": False, "serving": True, "terminating": True}
DEAD: dict[str, Any] = {"ready": False, "serving": False, "terminating": True}


@pytest.mark.parametrize(
    ("slices", "wanted"),
    [
        ({}, {}),
        ({"s": {"ports": None, "endpoints": None}}, {}),
        ({"s": piece(endpoint("10.244.0.1"))}, {"10.244.0.1": "ready"}),
        (
            {
                "s": piece(
                    endpoint("10.244.0.1", **READY), endpoint("10.244.0.2", **ENDING), endpoint("10.244.0.3", **DEAD)
                )
            },
            {"10.244.0.1": "ready", "10.244.0.2": "drain"},
        ),
        # The last ones go on until a new one comes.
        ({"s": piece(endpoint("10.244.0.2", **ENDING))}, {"10.244.0.2": "ready"}),
        # The same endpoint in two slices, while it moves from one to the other.
        (
            {"s": piece(endpoint("10.244.0.1", **READY)), "t": piece(endpoint("10.244.0.1", **ENDING))},
            {"10.244.0.1": "ready"},
        ),
        ({"s": piece(endpoint("10.244.0.1"), name="metrics")}, {}),
    ],
)
def test_pods_are_servers_as_their_conditions_say(slices: dict[str, Any], wanted: dict[str, str]) -> None:
    targets = edge_backends.pod_targets(WEB, slices, "http")
    assert states(targets) == wanted
    assert {port for _, port in targets} <= {8080}


def test_nodes_are_as_heavy_as_they_have_ready_endpoints() -> None:
    nodes = {"a": node("192.0.2.1", {}), "b": node("192.0.2.2", {}), "c": node("192.0.2.3", {})}
    slices = {
        "s": piece(
            endpoint("10.244.0.1", "a", **READY),
            endpoint("10.244.0.2", "a", **READY),
            endpoint("10.244.1.1", "b", **READY),
            endpoint("10.244.2.1", "c", **ENDING),
            endpoint("10.244.3.1", "unknown", **READY),
        )
    }
    assert edge_backends.node_port_targets(WEB, slices, nodes, "80") == {
        ("192.0.2.1", 30080): Target("ready", 2),
        ("192.0.2.2", 30080): Target("ready", 1),
        ("192.0.2.3", 30080): Target("drain"),
    }


@pytest.mark.parametrize(
    ("wanted", "words"),
    [("https", "port https is not one of the Service's TCP ports: http 80, metrics 9000"), ("", "the only one")],
)
def test_a_port_that_is_not_there_is_said(wanted: str, words: str) -> None:
    with pytest.raises(edge_backends.ClusterAnswerError, match=words.replace("(", r"\(")):
        edge_backends.pod_targets(WEB, {}, wanted)


def test_a_service_without_node_ports_is_said() -> None:
    with pytest.raises(edge_backends.ClusterAnswerError, match="type ClusterIP has no node port"):
        edge_backends.node_port_targets(service({"port": 80}, kind="ClusterIP"), {}, {}, "")


def slot(number: int, address: Any = NOWHERE, state: str = "maint", weight: int = 1, sessions: int = 0) -> Any:
    return Slot(f"slot{number}", address, state, weight, sessions)


def new(number: int, address: Any, weight: int = 1) -> list[str]:
    server = f"set server web/slot{number}"
    return [f"{server} addr {address[0]} port {address[1]}", f"{server} weight {weight}", f"{server} state ready"]


READY_A = {A: Target()}


@pytest.mark.parametrize(
    ("slots", "targets", "commands"),
    [
        ([slot(1), slot(2)], {}, []),
        ([slot(1, A, "ready"), slot(2)], READY_A, []),
        ([slot(1), slot(2)], READY_A, new(1, A)),
        ([slot(1, A, "ready"), slot(2)], {A: Target(), B: Target("ready", 3)}, new(2, B, 3)),
        ([slot(1, A, "ready")], {A: Target("drain")}, ["set server web/slot1 state drain"]),
        ([slot(1, A, "ready")], {A: Target("ready", 5)}, ["set server web/slot1 weight 5"]),
        ([slot(1, A, "drain", sessions=2)], READY_A, ["set server web/slot1 state ready"]),
        # Gone: while connections are left they may end, then the slot is free.
        ([slot(1, A, "ready", sessions=2)], {}, ["set server web/slot1 state drain"]),
        ([slot(1, A, "drain", sessions=2)], {}, []),
        ([slot(1, A, "drain")], {}, ["set server web/slot1 state maint"]),
        ([slot(1, A, "ready")], {}, ["set server web/slot1 state maint"]),
        # It comes back into the slot that it had.
        ([slot(1, B), slot(2, A)], READY_A, ["set server web/slot2 state ready"]),
        # What is about to end gets no slot, and is not taken out of maintenance.
        ([slot(1), slot(2, A)], {A: Target("drain")}, []),
        # A slot that is free and has connections of its former server is the last choice.
        ([slot(1, B, "maint", sessions=1), slot(2)], READY_A, new(2, A)),
        ([slot(1, B, "ready"), slot(2)], READY_A, ["set server web/slot1 state maint", *new(2, A)]),
        ([slot(1, B, "ready")], READY_A, ["set server web/slot1 state maint", *new(1, A)]),
        # Two slots with one address: the one in use stays.
        ([slot(1, A, "ready"), slot(2, A, "ready", sessions=1)], READY_A, ["set server web/slot1 state maint"]),
    ],
)
def test_commands_lead_from_slots_to_targets(slots: list[Any], targets: dict[Any, Any], commands: list[str]) -> None:
    changes, left = edge_backends.make_changes("web", slots, targets)
    assert [command for change in changes for command in change.commands] == commands
    assert left == []


def test_what_no_slot_is_left_for_is_said() -> None:
    slots = [slot(1, A, "ready"), slot(2, B, "drain", sessions=3)]
    changes, left = edge_backends.make_changes("web", slots, {A: Target(), C: Target(), D: Target()})
    assert (changes, left) == ([], [C, D])


SERVERS_STATE = """1
# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight srv_fqdn srv_port
4 web 1 slot1 192.0.2.1 2 4 1 1 slot.invalid 80
4 web 2 slot2 192.0.2.2 2 12 3 1 slot.invalid 80
4 web 3 slot3 127.0.0.1 0 5 1 1 slot.invalid 9
5 api 1 f1 192.0.2.9 2 0 1 1 - 6443
"""
STATISTICS = """# pxname,svname,qcur,qmax,scur,smax
web,slot1,0,0,7,9
web,slot2,0,0,,9
web,slot3,0,0,0,0
api,f1,0,0,2,2
"""


def test_slots_are_read_from_haproxy_s_answers() -> None:
    slots = edge_backends.read_slots(SERVERS_STATE, STATISTICS)
    assert slots["web"] == [slot(1, A, "ready", 1, 7), slot(2, B, "drain", 3), slot(3)]
    assert slots["api"] == [Slot("f1", ("192.0.2.9", 6443), "ready", 1, 2)]


def test_the_state_is_kept_as_haproxy_likes_to_read_it() -> None:
    given = "1\n# be_id srv_addr srv_agent_addr srv_agent_port\n4 192.0.2.1 - 80\n"
    assert edge_backends.saved_state(given) == given.replace("- 80", "- 0")
    assert edge_backends.saved_state(SERVERS_STATE) == SERVERS_STATE


@pytest.mark.parametrize(("bits", "state"), [(0, "ready"), (4, "ready"), (5, "maint"), (12, "drain"), (32, "maint")])
def test_the_administrative_state_is_read_from_bits(bits: int, state: str) -> None:
    assert edge_backends.slot_state(bits) == state


def backend(**definition: Any) -> Any:
    return edge_backends.Backend({"name": "web", **definition}, {})


def test_nothing_is_known_until_everything_was_read() -> None:
    web = backend(backends="cluster_service", namespace="shop", service="web", reach="nodes", port="http")
    assert web.targets() is None
    web.services.items = {"web": WEB}
    web.slices.items = {"s": piece(endpoint("10.244.0.1", "a", **READY))}
    assert web.targets() is None
    web.nodes.items = {"a": node("192.0.2.1", {})}
    assert web.targets() == {("192.0.2.1", 30080): Target()}
    web.services.items = {}
    with pytest.raises(edge_backends.ClusterAnswerError, match="no such Service any more"):
        web.targets()


def test_backends_share_what_they_watch() -> None:
    collections: dict[str, Any] = {}
    for name in ("one", "other"):
        edge_backends.Backend({"name": name, "backends": "cluster_ingress", "port": 80}, collections)
    assert list(collections) == ["/api/v1/nodes?labelSelector=node-role.kubernetes.io/ingress&"]


class StubbornHAProxy:
    """haproxy's socket, as far as reconcile() uses it."""

    def __init__(self, slots: dict[str, list[Any]]) -> None:
        self.now = slots
        self.commands: list[str] = []
        self.saved = 0

    def slots(self) -> dict[str, list[Any]]:
        return self.now

    def change(self, change: Any) -> None:
        self.commands += change.commands

    def save(self, _path: str) -> None:
        self.saved += 1


@pytest.fixture
def keeper(tmp_path: Path) -> Any:
    configuration = {
        "backends": [{"name": "web", "backends": "cluster_ingress", "port": 80}],
        "socket": "unused",
        "state_file": str(tmp_path / "servers.state"),
        "status_file": str(tmp_path / "status.json"),
    }
    kept = edge_backends.Keeper(configuration)
    kept.haproxy = StubbornHAProxy({"web": [slot(1, A, "ready"), slot(2)]})
    return kept


def test_an_api_that_was_never_asked_changes_nothing(keeper: Any) -> None:
    assert keeper.reconcile() is False
    assert (keeper.haproxy.commands, keeper.haproxy.saved) == ([], 0)


def test_a_change_is_carried_out_saved_and_said(keeper: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (nodes,) = keeper.collections.values()
    nodes.items = {"a": node("192.0.2.1", INGRESS), "b": node("192.0.2.2", INGRESS)}
    assert keeper.reconcile() is True
    assert keeper.haproxy.commands == new(2, B)
    assert keeper.haproxy.saved == 1
    assert capsys.readouterr().out == "web: 192.0.2.2:80 is new, in slot2\n"


def test_a_lack_of_slots_is_said_once(keeper: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (nodes,) = keeper.collections.values()
    nodes.items = {name: node(f"192.0.2.{name}", INGRESS) for name in "123"}
    keeper.haproxy.now = {"web": [slot(1, A, "ready"), slot(2, B, "ready")]}
    for _ in range(3):
        keeper.reconcile()
    said = capsys.readouterr().out
    assert said == "web: no slot is left for 192.0.2.3:80: raise the number of slots of this service\n"
    assert '"fault": "no slot' in Path(keeper.status_file).read_text(encoding="utf-8")


class Refusing:
    """A socket on which haproxy answers what a test wants."""

    def __init__(self, answer: str) -> None:
        self.answer = answer

    def __call__(self, _command: str) -> str:
        return self.answer


@pytest.mark.parametrize(
    ("command", "answer", "accepted"),
    [
        ("set server web/slot1 state ready", "", True),
        ("set server web/slot1 state ready", "No such server.", False),
        ("set server web/slot1 addr 192.0.2.1 port 80", "IP changed from '127.0.0.1' to '192.0.2.1'", True),
        ("set server web/slot1 addr 192.0.2.1 port 80", "no need to change the addr", True),
        ("set server web/slot1 addr 192.0.2.1 port 80", "Invalid addr family", False),
    ],
)
def test_a_refusal_of_haproxy_is_an_error(command: str, answer: str, accepted: bool) -> None:
    haproxy = edge_backends.HAProxy("unused")
    haproxy.ask = Refusing(answer)
    change = edge_backends.Change((command,), "")
    if accepted:
        haproxy.change(change)
    else:
        with pytest.raises(OSError, match="haproxy answers to"):
            haproxy.change(change)


@pytest.mark.parametrize(
    ("running", "services", "fault"),
    [
        ("# pxname,svname\nweb,FRONTEND\napi,FRONTEND\n", ["api", "web"], ""),
        ("# pxname,svname\nweb,FRONTEND\n", ["api", "web"], "haproxy runs without api: its last reload failed"),
    ],
)
def test_haproxy_is_asked_for_what_it_should_run(running: str, services: list[str], fault: str) -> None:
    haproxy = edge_backends.HAProxy("unused")
    haproxy.ask = Refusing(running)
    assert edge_backends.answer_for_services(haproxy, services) == fault


def test_a_silent_haproxy_is_said(tmp_path: Path) -> None:
    silent = edge_backends.HAProxy(str(tmp_path / "nothing.sock"))
    assert edge_backends.answer_for_services(silent, ["web"]).startswith("haproxy does not answer: ")
