# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Every plugin is documented for people and layered as the design says."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = sorted(path for path in (ROOT / "plugins").rglob("*.py") if path.stem != "__init__")
ACTIONS = [path.stem for path in PLUGINS if path.parent.name == "action"]
MODULES = [path.stem for path in PLUGINS if path.parent.name == "modules"]
DOCUMENTED_KINDS = ("module", "filter", "lookup", "test")


@lru_cache(maxsize=1)
def documentation() -> dict[str, dict[str, Any]]:
    """Return what ansible-doc knows about the collection's plugins, by kind and full name."""
    command = [sys.executable, "-m", "ansible.cli.doc", "--metadata-dump", "--no-fail-on-errors", "plainkube.cluster"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found: dict[str, dict[str, Any]] = json.loads(answer.stdout)["all"]
    return found


@pytest.mark.parametrize("kind", DOCUMENTED_KINDS)
def test_documentation_can_be_read(kind: str) -> None:
    assert documentation().get(kind)
    for name, described in documentation()[kind].items():
        assert "error" not in described, name
        assert described["doc"].get("short_description"), name
        assert described.get("examples"), name
        assert described.get("return"), name


@pytest.mark.parametrize("action", ACTIONS)
def test_an_action_has_its_documentation_in_a_module_file(action: str) -> None:
    assert action in MODULES


@pytest.mark.parametrize("module", MODULES)
def test_a_module_says_what_it_does_in_check_and_diff_mode(module: str) -> None:
    attributes = documentation()["module"][f"plainkube.cluster.{module}"]["doc"].get("attributes", {})
    assert {"check_mode", "diff_mode"} <= set(attributes)


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: str(path.relative_to(ROOT / "plugins")))
def test_a_plugin_file_begins_with_its_licence_and_says_what_it_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    head = text.splitlines()[:3]
    assert any("Copyright: Plainkube contributors" in line for line in head)
    assert any("GNU General Public License v3.0+" in line for line in head)
    assert "from __future__ import annotations" in text


@pytest.mark.parametrize(
    "path", [path for path in PLUGINS if path.parent.name == "module_utils"], ids=lambda path: path.stem
)
def test_module_utils_do_not_need_ansible(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        assert [name for name in names if name.split(".")[0] == "ansible"] == []
