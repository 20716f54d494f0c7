# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import json
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.plainkube.cluster.plugins.module_utils import reset_io
from ansible_collections.plainkube.cluster.plugins.module_utils.reset import ResetError
from ansible_collections.plainkube.cluster.plugins.modules import network_policy_rules

SAVED = """\
*filter
:FORWARD ACCEPT [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-ROUTER-FORWARD - [0:0]
-A FORWARD -j KUBE-ROUTER-FORWARD
-A FORWARD -j KUBE-FIREWALL
COMMIT
"""


def outcome(monkeypatch: Any, capsys: Any, saved: str, sets: list[str], fails: bool = False, **args: Any) -> Any:
    """Return the module's answer and the commands that it ran, with their input."""
    ran: list[tuple[str, str]] = []

    def run(argv: list[str], text: str | None = None) -> str:
        ran.append((" ".join(argv), text or ""))
        if fails:
            raise ResetError("iptables-restore: line 2 failed")
        return ""

    monkeypatch.setattr(reset_io, "packet_filters", lambda: {"iptables": saved, "ip6tables": ""})
    monkeypatch.setattr(reset_io, "ip_sets", lambda: sets)
    monkeypatch.setattr(reset_io, "run", run)
    with patch_module_args({"state": "absent", **args}), pytest.raises(SystemExit):
        network_policy_rules.main()
    return json.loads(capsys.readouterr().out), ran


def test_rules_go_before_the_sets_that_they_name(monkeypatch: Any, capsys: Any) -> None:
    answer, ran = outcome(monkeypatch, capsys, SAVED, ["mine", "KUBE-SRC-AB2"])
    assert answer["changed"]
    assert answer["removed"] == ["iptables KUBE-ROUTER-FORWARD", "ipset KUBE-SRC-AB2"]
    assert [command for command, _ in ran] == ["iptables-restore --noflush", "ipset destroy KUBE-SRC-AB2"]
    assert "-D FORWARD -j KUBE-ROUTER-FORWARD" in ran[0][1]
    assert "KUBE-FIREWALL" not in ran[0][1]


def test_check_mode_says_it_and_runs_nothing(monkeypatch: Any, capsys: Any) -> None:
    answer, ran = outcome(monkeypatch, capsys, SAVED, [], _ansible_check_mode=True, _ansible_diff=True)
    assert answer["changed"] and ran == []
    assert answer["diff"]["before"] == "iptables KUBE-ROUTER-FORWARD\n"


def test_a_host_without_them_is_not_changed(monkeypatch: Any, capsys: Any) -> None:
    answer, ran = outcome(monkeypatch, capsys, "*filter\n:KUBE-FIREWALL - [0:0]\nCOMMIT\n", ["mine"])
    assert (answer["changed"], answer["removed"], ran) == (False, [], [])


def test_what_iptables_says_is_passed_on(monkeypatch: Any, capsys: Any) -> None:
    answer, _ = outcome(monkeypatch, capsys, SAVED, [], fails=True)
    assert answer["failed"]
    assert "line 2 failed" in answer["msg"]
