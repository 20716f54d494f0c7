# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.plainkube.cluster.plugins.modules import health


@pytest.fixture
def definitions(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "there").touch()
    return {
        "good": {"type": "file", "path": str(tmp_path / "there")},
        "bad": {"type": "file", "path": str(tmp_path / "none"), "unit": "etcd", "hint": "make it"},
        "worse": {"type": "command", "argv": ["/nonexistent"], "unit": "etcd.service"},
    }


def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, check: bool = False, **options: Any) -> Any:
    monkeypatch.setattr(health, "journal", lambda unit: [f"last words of {unit}"])
    with patch_module_args({"deadline": 0, "_ansible_check_mode": check, **options}), pytest.raises(SystemExit):
        health.main()
    return json.loads(capfd.readouterr().out)


def test_healthy(
    definitions: dict[str, Any], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = run(capfd, monkeypatch, checks=["good"], definitions=definitions)
    assert (answer["changed"], answer["healthy"], answer["failures"]) == (False, True, [])
    assert [result["name"] for result in answer["results"]] == ["good"]


def test_every_failure_is_told_and_each_journal_once(
    definitions: dict[str, Any], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = run(capfd, monkeypatch, checks=["good", "bad", "worse"], definitions=definitions)
    assert answer["failed"] is True
    assert answer["msg"].startswith("2 of the checks did not pass within 0 s\n")
    assert "bad: expected that " in answer["msg"]
    assert "  what to do: make it\nworse: expected that '/nonexistent' succeeds\n" in answer["msg"]
    assert answer["msg"].count("last words of etcd.service") == 1
    assert [failure["journal"] for failure in answer["failures"]] == [["last words of etcd.service"]] * 2


def test_check_mode_reports_and_does_not_fail(
    definitions: dict[str, Any], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = run(capfd, monkeypatch, check=True, deadline=60, checks=["bad"], definitions=definitions)
    assert "failed" not in answer
    assert (answer["healthy"], [failure["name"] for failure in answer["failures"]]) == (False, ["bad"])


def test_unknown_check(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    answer = run(capfd, monkeypatch, checks=["bda"], definitions={"bad": {"type": "file", "path": "/"}})
    assert answer["msg"] == "No definition of check 'bda'. Defined checks: bad."
