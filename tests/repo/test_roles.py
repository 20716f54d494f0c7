# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Every role is built alike, documents all its inputs, and leans on nothing but the contract."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.plainkube.cluster.plugins.module_utils import purposes

ROOT = Path(__file__).resolve().parents[2]
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir())
PLAYBOOKS = [*sorted((ROOT / "playbooks").glob("*.yml")), ROOT / "site.yml"]
# Modules and keywords that hide what happened, and the modules that stand for them.
BANNED_KEYS = {"ignore_errors", "ignore_unreachable"}
BANNED_MODULES = {"shell", "raw", "script"}
TASK_LISTS = ("block", "rescue", "always", "tasks", "pre_tasks", "post_tasks", "handlers")


def loaded(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None


def defaults_of(role: str) -> dict[str, Any]:
    return loaded(ROOT / "roles" / role / "defaults" / "main.yml") or {}


def options(role: str) -> dict[str, Any]:
    specification = loaded(ROOT / "roles" / role / "meta" / "argument_specs.yml")
    return specification["argument_specs"]["main"].get("options", {})


def role_files(role: str) -> list[Path]:
    parts = ("tasks", "handlers", "templates", "defaults", "vars")
    return [path for part in parts for path in sorted((ROOT / "roles" / role / part).rglob("*")) if path.is_file()]


def tasks_in(entries: Any) -> Iterator[dict[str, Any]]:
    for entry in entries or []:
        yield entry
        for key in TASK_LISTS:
            yield from tasks_in(entry.get(key))


def expressions(path: Path) -> str:
    """Return what Jinja reads in a file: its expressions, and the conditions of tasks."""
    text = path.read_text(encoding="utf-8")
    found = re.findall(r"\{[{%].*?[%}]\}", text, flags=re.DOTALL)
    if path.parent.name in ("tasks", "handlers"):
        for task in tasks_in(loaded(path)):
            found += [str(task.get(key, "")) for key in ("when", "until", "changed_when", "failed_when")]
    return "\n".join(found)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("part", ["tasks/main.yml", "defaults/main.yml", "meta/argument_specs.yml", "README.md"])
def test_a_role_is_complete(role: str, part: str) -> None:
    assert (ROOT / "roles" / role / part).is_file()


@pytest.mark.parametrize("role", ROLES)
def test_defaults_equal_the_specification(role: str) -> None:
    specified = {name: option["default"] for name, option in options(role).items() if "default" in option}
    assert defaults_of(role) == specified
    assert [
        name for name, option in options(role).items() if "default" not in option and not option.get("required")
    ] == []


@pytest.mark.parametrize("role", ROLES)
def test_inputs_are_described_and_carry_the_role_s_name(role: str) -> None:
    prefix = "plainkube_" if role == "cluster" else f"{role}_"
    for name, option in options(role).items():
        assert name.startswith(prefix)
        assert option.get("description")
        assert option.get("type")


@pytest.mark.parametrize("role", ROLES)
def test_derived_values_are_private(role: str) -> None:
    prefix = "cluster_" if role == "cluster" else f"__{role}_"
    names = loaded(ROOT / "roles" / role / "vars" / "main.yml") or {}
    assert [name for name in names if not name.startswith(prefix)] == []


@pytest.mark.parametrize("role", ROLES)
def test_a_role_reads_no_input_of_another_role(role: str) -> None:
    foreign = {name for other in ROLES if other not in (role, "cluster") for name in options(other)}
    read = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in role_files(role)
        for name in set(re.findall(r"(?<![\w.'\"])[a-z][a-z0-9_]*", expressions(path))) & foreign
    }
    assert read == set()


@pytest.mark.parametrize("role", ROLES)
def test_hosts_come_from_the_contract(role: str) -> None:
    """No literal group, and no look into the variables of other hosts but where the contract derives its topology."""
    pattern = re.compile(r"\bgroups\s*[\[.]" if role == "cluster" else r"\bgroups\s*[\[.]|\bhostvars\b|\bgroup_names\b")
    assert [str(path.relative_to(ROOT)) for path in role_files(role) if pattern.search(expressions(path))] == []


def all_task_files() -> list[Path]:
    in_roles = [path for role in ROLES for path in role_files(role) if path.parent.name in ("tasks", "handlers")]
    return in_roles + [path for path in PLAYBOOKS if path.is_file()]


@pytest.mark.parametrize("path", all_task_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_tasks_hide_nothing(path: Path) -> None:
    inputs = {name for role in ROLES for name in options(role)}
    for task in tasks_in(loaded(path)):
        # Preflight's next task judges what hosts did not answer, and stops the run for them.
        judged = {"ignore_unreachable"} if path.parent.parent.name == "preflight" else set()
        assert not (BANNED_KEYS - judged) & set(task), task
        modules = {key.removeprefix("ansible.builtin.") for key in task}
        assert not BANNED_MODULES & modules, task
        facts = task.get("ansible.builtin.set_fact") or task.get("set_fact") or {}
        assert not inputs & set(facts), task
        assert task.get("name") or "import_playbook" in str(task), task


def test_every_variable_of_the_contract_is_known_and_read() -> None:
    known = set(options("cluster"))
    folders = [ROOT / "roles", ROOT / "playbooks", ROOT / "inventories"]
    mentioned: dict[str, set[str]] = {}
    for path in (path for folder in folders for path in folder.rglob("*")):
        if path.suffix in (".yml", ".j2"):
            # Text of templates may name files and tables of ours; only what Jinja reads is a variable.
            text = expressions(path) if path.suffix == ".j2" else path.read_text(encoding="utf-8")
            for name in re.findall(r"\bplainkube_[a-z0-9_]+\b", text):
                mentioned.setdefault(name, set()).add(str(path.relative_to(ROOT)))
    assert {name: paths for name, paths in mentioned.items() if name not in known} == {}
    readers = [path for path in (ROOT / "plugins").rglob("*.py") if path.stem not in ("contract", "validate_contract")]
    read_by_plugins = "\n".join(path.read_text(encoding="utf-8") for path in readers)
    declared = ("roles/cluster/defaults/", "roles/cluster/meta/", "inventories/")
    unread = {
        name
        for name in known
        if name not in read_by_plugins and all(path.startswith(declared) for path in mentioned.get(name, ()))
    }
    assert unread == set()


@pytest.mark.parametrize("role", ["etcd", "control_plane"])
def test_preflight_asks_for_what_the_roles_install(role: str) -> None:
    asked = loaded(ROOT / "roles" / "cluster" / "vars" / "main.yml")["cluster_artifacts"][role]
    installed = loaded(ROOT / "roles" / role / "vars" / "main.yml")[f"__{role}_artifacts"]
    assert sorted(artifact["name"] for artifact in asked) == sorted(artifact["name"] for artifact in installed)


# Nothing builds it, so that there is no archive.
FROM_A_REGISTRY = {"ingress_nginx_image"}


def test_images_are_named_as_in_the_catalogue() -> None:
    """An archive is imported under the catalogue's reference; a role that named another one would ask a registry."""
    catalogue = loaded(ROOT / "data" / "catalogue.yml")["artifacts"]
    images = {entry["names"][0]: entry["image"]["reference"] for entry in catalogue if entry["kind"] == "image"}
    runtime = loaded(ROOT / "roles" / "container_runtime" / "vars" / "main.yml")
    archived = runtime["__container_runtime_archived_images"] + runtime["__container_runtime_archived_ingress_images"]
    assert {image["name"] for image in archived} == set(images)
    defaults = {name: value for role in ROLES for name, value in defaults_of(role).items()}
    used = {value for name, value in defaults.items() if name.endswith("_image") and name not in FROM_A_REGISTRY}
    assert used == {
        reference.replace("{version}", "{{ cluster_versions." + name + " }}") for name, reference in images.items()
    }


def test_everything_that_roles_run_is_explained() -> None:
    """explain-host says what each unit is for; one that is missing in its table would be somebody else's."""
    templates = (ROOT / "roles").glob("*/templates/etc/systemd/system/*.j2")
    units = {path.name.removesuffix(".j2") for path in templates}
    assert units - set(purposes.UNITS) == set()


def test_every_port_that_preflight_keeps_free_is_explained() -> None:
    by_kind = loaded(ROOT / "roles" / "preflight" / "vars" / "main.yml")["__preflight_ports_by_kind"]
    known = {
        (opening.port.replace("{api}", "{{ plainkube_api_port }}"), opening.program) for opening in purposes.OPENINGS
    }
    # A list made by an expression is the edge's, whose ports are the inventory's own.
    asked = {(str(row["port"]), row["process"]) for rows in by_kind.values() if isinstance(rows, list) for row in rows}
    assert asked - known == set()
