# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The linters have nothing to say. No rule is skipped as a whole: an exception stands beside its line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
# Programs without a suffix are Python too.
SCRIPTS = sorted(
    f"tools/{path.name}"
    for path in (ROOT / "tools").iterdir()
    if path.is_file() and not path.suffix and "python" in path.read_text(encoding="utf-8").partition("\n")[0]
)


@pytest.mark.parametrize(
    "command",
    [
        ("ruff", "check", ".", *SCRIPTS),
        ("ruff", "format", "--check", ".", *SCRIPTS),
        ("mypy", "plugins"),
        ("yamllint", "--strict", "."),
        ("ansible-lint", "--offline", "--strict"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_a_linter_has_nothing_to_say(command: tuple[str, ...]) -> None:
    # ansible-lint looks for its helpers in PATH.
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "NO_COLOR": "1"}
    answer = subprocess.run(
        [str(BIN / command[0]), *command[1:]], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_no_lint_rule_is_skipped_as_a_whole() -> None:
    settings = yaml.safe_load((ROOT / ".ansible-lint").read_text(encoding="utf-8"))
    assert settings["profile"] == "production"
    assert not {"skip_list", "warn_list"} & set(settings)
