# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import json
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.plainkube.cluster.plugins.module_utils import reset_io
from ansible_collections.plainkube.cluster.plugins.module_utils.reset import Facts, FolderFact, UnitFact
from ansible_collections.plainkube.cluster.plugins.modules import reset

INSTALLED = Facts(
    units=[UnitFact("etcd.service", running=True)],
    header_files=["/etc/systemd/system/etcd.service"],
    folders={"/var/lib/etcd": FolderFact("/var/lib/etcd")},
)
STUCK = Facts(
    units=[UnitFact("etcd.service", running=True)],
    header_files=["/etc/systemd/system/etcd.service"],
)


class Host:
    """A host whose looks are these, the last one for ever, and which notes what is done to it."""

    def __init__(self, *looks: Facts) -> None:
        self.looks = list(looks)
        self.done: list[str] = []

    def look(self) -> Facts:
        return self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]

    def do(self, kind: str, steps: list[Any]) -> list[str]:
        self.done += [f"{kind} {step.target}" for step in steps]
        return ["a complaint"]


def outcome(host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], **args: Any) -> Any:
    monkeypatch.setattr(reset_io, "look", host.look)
    monkeypatch.setattr(reset_io, "_do", host.do)
    monkeypatch.setattr(reset_io, "_prune", lambda: None)
    monkeypatch.setattr(reset_io.units_io, "systemctl", lambda *_, **__: None)
    monkeypatch.setattr(reset_io, "run", lambda *_, **__: "")
    with patch_module_args(args), pytest.raises(SystemExit):
        reset.main()
    return json.loads(capsys.readouterr().out)


def test_nothing_to_remove_is_no_change(monkeypatch: Any, capsys: Any) -> None:
    host = Host(Facts())
    answer = outcome(host, monkeypatch, capsys, _ansible_diff=True)
    assert (answer["changed"], answer["removed"], host.done) == (False, [], [])
    assert "diff" not in answer


def test_check_mode_lists_and_does_nothing(monkeypatch: Any, capsys: Any) -> None:
    host = Host(INSTALLED)
    answer = outcome(host, monkeypatch, capsys, _ansible_check_mode=True, _ansible_diff=True)
    assert answer["changed"]
    assert [row["target"] for row in answer["removed"]] == [
        "etcd.service",
        "/var/lib/etcd",
        "/etc/systemd/system/etcd.service",
    ]
    assert "/var/lib/etcd\n" in answer["diff"]["before"]
    assert host.done == []


def test_each_stage_is_planned_from_what_is_left(monkeypatch: Any, capsys: Any) -> None:
    # What the pods' end took away by itself is not removed a second time.
    stopped = Facts(header_files=INSTALLED.header_files, units=[UnitFact("etcd.service")])
    host = Host(INSTALLED, INSTALLED, *[stopped] * 6, Facts())
    answer = outcome(host, monkeypatch, capsys)
    assert answer["changed"]
    assert host.done == ["stop etcd.service", "remove /etc/systemd/system/etcd.service"]


def test_what_does_not_go_is_said_with_the_reason(monkeypatch: Any, capsys: Any) -> None:
    answer = outcome(Host(STUCK), monkeypatch, capsys)
    assert answer["failed"] and answer["changed"]
    for words in ("still there", "running unit etcd.service", "a complaint"):
        assert words in answer["msg"]


def test_a_foreign_file_system_stops_everything_before_the_first_change(monkeypatch: Any, capsys: Any) -> None:
    host = Host(
        Facts(units=INSTALLED.units, folders=INSTALLED.folders, mounts=["/var/lib/etcd/wal"]),
    )
    answer = outcome(host, monkeypatch, capsys)
    assert answer["failed"] and not answer["changed"]
    assert "/var/lib/etcd/wal" in answer["msg"]
    assert host.done == []
