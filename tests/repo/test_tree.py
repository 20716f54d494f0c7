# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The tree as a whole: pages are current, links lead somewhere, playbooks parse, the collection can be built."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
INVENTORIES = sorted(path.parent.name for path in (ROOT / "inventories").glob("*/hosts.yml"))
PLAYBOOKS = sorted(path.name for path in (ROOT / "playbooks").glob("*.yml"))
SAMPLES = [name for name in INVENTORIES if name != "lab"]
NOT_OURS = {
    ".venv",
    ".cache",
    ".ansible",
    ".git",
    "collections",
    "__pycache__",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
}


def files(*suffixes: str) -> list[Path]:
    return sorted(
        path
        for path in ROOT.rglob("*")
        if path.suffix in suffixes and not NOT_OURS & set(path.relative_to(ROOT).parts) and path.is_file()
    )


def ran(*command: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_generated_pages_are_current() -> None:
    answer = ran(sys.executable, "tools/generate-docs", "--check")
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.parametrize("page", files(".md"), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    inside = [link.split("#")[0] for link in links if not re.match(r"[a-z]+:|#", link)]
    assert [link for link in inside if not (page.parent / link).exists()] == []


def test_no_file_names_a_path_of_the_machine_it_was_written_on() -> None:
    machine = {str(ROOT) + "/", str(Path.home()) + "/.", sys.prefix + "/"}
    found = []
    for path in files(".py", ".yml", ".yaml", ".j2", ".md", ".cfg", ".toml", ".txt", ".sh", ".service", ""):
        text = path.read_text(encoding="utf-8", errors="replace")
        found += [f"{path.relative_to(ROOT)}: {name}" for name in machine if name in text]
    assert found == []


@pytest.mark.parametrize("inventory", INVENTORIES)
def test_site_parses_with_every_inventory(inventory: str) -> None:
    answer = ran(str(BIN / "ansible-playbook"), "-i", f"inventories/{inventory}", "--syntax-check", "site.yml")
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize("playbook", PLAYBOOKS)
def test_a_playbook_parses(playbook: str) -> None:
    answer = ran(str(BIN / "ansible-playbook"), "-i", "inventories/ha", "--syntax-check", f"playbooks/{playbook}")
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize("playbook", PLAYBOOKS)
def test_no_play_gathers_facts_by_itself(playbook: str) -> None:
    """A look at all facts costs seconds for each host: roles gather the few that they need."""
    for play in yaml.safe_load((ROOT / "playbooks" / playbook).read_text(encoding="utf-8")):
        assert play.get("name") or "ansible.builtin.import_playbook" in play
        assert "ansible.builtin.import_playbook" in play or play.get("gather_facts") is False, play["name"]


@pytest.mark.parametrize("inventory", SAMPLES)
def test_a_sample_inventory_is_sound_and_names_nobody_s_hosts(inventory: str, tmp_path: Path) -> None:
    play = [{"name": "Check", "hosts": "all", "gather_facts": False, "roles": ["plainkube.cluster.cluster"]}]
    (tmp_path / "play.yml").write_text(yaml.safe_dump(play), encoding="utf-8")
    answer = ran(str(BIN / "ansible-playbook"), "-i", f"inventories/{inventory}", str(tmp_path / "play.yml"))
    assert answer.returncode == 0, answer.stdout + answer.stderr
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "inventories" / inventory).rglob("*.yml"))
    addresses = re.findall(r"\bansible_host: ([0-9.]+)", text)
    assert addresses
    assert [
        address for address in addresses if not re.match(r"192\.0\.2\.|198\.51\.100\.|203\.0\.113\.", address)
    ] == []


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("built")
    answer = ran(str(BIN / "ansible-galaxy"), "collection", "build", "--output-path", str(folder))
    assert answer.returncode == 0, answer.stderr
    (archive,) = folder.glob("plainkube-cluster-*.tar.gz")
    with tarfile.open(archive) as opened:
        return opened.getnames()


def test_the_built_collection_holds_what_runs(built: list[str]) -> None:
    for name in ("README.md", "LICENSE", "meta/runtime.yml", "playbooks/site.yml", "roles/cluster/tasks/main.yml"):
        assert name in built
    assert "data/catalogue.yml" in built
    assert "plugins/action/files.py" in built


def test_the_built_collection_holds_nothing_private_or_superfluous(built: list[str]) -> None:
    folders = ("tests", "molecule", ".ci", ".git", ".venv", ".cache", "collections")
    assert [name for name in built if name.split("/")[0] in folders] == []
    private = re.compile(r"\.(key|pyc)$|(^|/)(admin\.conf|encryption-key|service-account\.(key|pub))$|__pycache__")
    assert [name for name in built if private.search(name)] == []
