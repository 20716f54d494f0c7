# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Every template says who wrote the file, and renders for each host of each inventory."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar, trust_as_template
from ansible.vars.hostvars import HostVars
from ansible.vars.manager import VariableManager

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = sorted((ROOT / "roles").glob("*/templates/**/*.j2"))
INVENTORIES = sorted(path.parent.name for path in (ROOT / "inventories").glob("*/hosts.yml"))
# JSON has no comments.
NO_COMMENTS = {".conflist", ".json"}
# What a role's tasks know and its variables do not.
FACTS = {"os_family": "Debian", "hostname": "somewhere-else", "architecture": "x86_64", "service_mgr": "systemd"}


def role_of(template: Path) -> str:
    return template.relative_to(ROOT / "roles").parts[0]


def role_variables(loader: DataLoader, role: str, part: str) -> dict[str, Any]:
    path = ROOT / "roles" / role / part / "main.yml"
    return (loader.load_from_file(str(path), trusted_as_template=True) or {}) if path.is_file() else {}


@cache
def inventory_variables(name: str) -> tuple[DataLoader, dict[str, dict[str, Any]]]:
    """Return each host's variables as a task of a role would see them, without the role's own."""
    loader = DataLoader()
    inventory = InventoryManager(loader=loader, sources=[str(ROOT / "inventories" / name)])
    manager = VariableManager(loader=loader, inventory=inventory)
    hostvars = HostVars(inventory=inventory, variable_manager=manager, loader=loader)
    extra = {"hostvars": hostvars, "ansible_facts": FACTS, "ansible_check_mode": True}
    return loader, {host.name: {**manager.get_vars(host=host), **extra} for host in inventory.get_hosts()}


@pytest.fixture(scope="module", autouse=True)
def collection(monkeypatch_module: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    # The state folder hangs on HOME: nobody's real one may be read.
    monkeypatch_module.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    # Other tests import the collection as plain Python; Ansible finds its plugins only through its own importer.
    for name in [name for name in sys.modules if name.split(".")[0] == "ansible_collections"]:
        monkeypatch_module.delitem(sys.modules, name)
    init_plugin_loader([str(ROOT / "collections")])


@pytest.fixture(scope="module")
def monkeypatch_module() -> Any:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield monkeypatch


WITH_COMMENTS = [path for path in TEMPLATES if path.with_suffix("").suffix not in NO_COMMENTS]


@pytest.mark.parametrize("template", WITH_COMMENTS, ids=lambda path: str(path.relative_to(ROOT / "roles")))
def test_a_template_says_who_writes_the_file(template: Path) -> None:
    beginning = template.read_text(encoding="utf-8").splitlines()[:3]
    assert any(f"Managed by plainkube.cluster, role {role_of(template)}" in line for line in beginning)


@pytest.mark.parametrize("inventory", INVENTORIES)
@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: str(path.relative_to(ROOT / "roles")))
def test_a_template_renders_for_every_host(template: Path, inventory: str) -> None:
    loader, hosts = inventory_variables(inventory)
    role = role_of(template)
    for name, given in hosts.items():
        variables = {
            **role_variables(loader, "cluster", "defaults"),
            **role_variables(loader, role, "defaults"),
            **given,
            **role_variables(loader, "cluster", "vars"),
            **role_variables(loader, role, "vars"),
        }
        text = trust_as_template(template.read_text(encoding="utf-8"))
        templar = Templar(loader=loader, variables=variables)
        rendered = str(templar.template(text, escape_backslashes=False, overrides={"trim_blocks": True}))
        assert rendered.strip(), name
        assert "{{" not in rendered, (name, rendered)
        assert "{%" not in rendered, (name, rendered)
        if template.with_suffix("").suffix in (".yml", ".yaml", ".conflist", ".json"):
            assert list(yaml.safe_load_all(rendered)), (name, rendered)
