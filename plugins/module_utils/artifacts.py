# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a host has of its artifacts compared with what it shall have, as pure functions on plain data.

An item is what a host must know of one artifact (catalogue.describe); a state is what it has (artifacts_io.look).
"""

from __future__ import annotations

import posixpath
from typing import Any

from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError

MANIFEST = ".plainkube.json"
STAGING_SUFFIX = ".plainkube-new"
SOURCES = "upstream, push, http(s)://..., or file:///..."

ARGUMENT_SPEC: dict[str, Any] = {
    "items": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {"name": {"type": "str", "required": True}, "version": {"type": "str", "required": True}},
    },
    "source": {"type": "str"},
    "folder": {"type": "path"},
    "root": {"type": "path", "default": "/opt/plainkube"},
    "catalogue": {"type": "path"},
    "state": {"type": "str", "choices": ["installed", "available"], "default": "installed"},
}


class ArtifactsError(PlainkubeError):
    """An artifact that could not be installed."""


def source_fault(source: str) -> str | None:
    """Return what is wrong with a source, or None."""
    if source in ("upstream", "push") or source.startswith(("http://", "https://")) or source.startswith("file:///"):
        return None
    return f"artifact source {source!r} is none of {SOURCES}"


def title(item: dict[str, Any]) -> str:
    """Return name and version, as a message says them."""
    return f"{item['name']} {item['version']}"


def version_folder(root: str, item: dict[str, Any]) -> str:
    """Return where the item's version lives on the host."""
    return posixpath.join(root, item["name"], item["version"])


def wanted_links(root: str, item: dict[str, Any]) -> dict[str, str]:
    """Return link -> target for each executable of an item."""
    if not item["links"]:
        return {}
    folder = version_folder(root, item)
    return {
        posixpath.join(item["links"], posixpath.basename(name)): posixpath.join(folder, name)
        for name in item["members"]
        if not name.endswith("/")
    }


def covers(members: list[str], files: dict[str, Any]) -> list[str]:
    """Return the members that a manifest's files lack."""
    return [
        member
        for member in members
        if not (any(name.startswith(member) for name in files) if member.endswith("/") else member in files)
    ]


def faults_of_files(item: dict[str, Any], state: dict[str, Any], arch: str) -> list[str]:
    """Return why a version's folder is not what the item wants; empty when it is complete."""
    manifest = state["manifest"]
    if manifest is None:
        return ["not installed"]
    reasons = [f"{name} {what}" for name, what in sorted(state["damaged"].items())]
    reasons += [f"{name} missing" for name in covers(item["members"], manifest["files"])]
    pinned = item["pinned"].get(arch)
    if pinned and not manifest.get("built") and manifest["sha256"] != pinned:
        reasons.append("its source has another checksum than the catalogue")
    return reasons


def compare(root: str, item: dict[str, Any], state: dict[str, Any], arch: str) -> dict[str, Any]:
    """Return what is to do for one item: install, links (those to set), load (the image), clean (leftovers).

    With it come before and after, as words for a diff, and faults: things that a person must put away first.
    """
    reasons = faults_of_files(item, state, arch)
    wanted = wanted_links(root, item)
    links = {path: target for path, target in wanted.items() if state["links"].get(path) != target}
    load = bool(item["reference"]) and not state["image"]
    faults = [
        f"{title(item)}: {path} is no link but a file or folder of somebody else: move it away and run again"
        for path in wanted
        if state["links"].get(path) == ""
    ]
    before = _version_before(root, item, state)
    notes = list(reasons) if reasons and reasons != ["not installed"] else []
    if not reasons and before == item["version"]:
        notes = [f"{path} leads elsewhere" for path in sorted(links)]
    if load and state["manifest"] is not None:
        notes.append("not loaded into containerd")
    if state["leftovers"]:
        notes.append("leftovers of a run that was killed")
    return {
        "install": bool(reasons),
        "links": links,
        "load": load,
        "clean": bool(state["leftovers"]),
        "before": before + (f" ({'; '.join(notes)})" if notes else ""),
        "after": item["version"],
        "faults": faults,
    }


def is_change(plan: dict[str, Any]) -> bool:
    """Say whether a plan has anything to do."""
    return bool(plan["install"] or plan["links"] or plan["load"] or plan["clean"])


def _version_before(root: str, item: dict[str, Any], state: dict[str, Any]) -> str:
    """Return the version that is in use: where the links lead, or for what has none, whether it is there."""
    folder = posixpath.join(root, item["name"]) + "/"
    versions = {
        target[len(folder) :].split("/")[0]
        for target in state["links"].values()
        if target and target.startswith(folder)
    }
    if versions:
        return " and ".join(sorted(versions))
    if not item["links"] and state["manifest"] is not None:
        return str(item["version"])
    return "absent"


def diff_of(items: list[dict[str, Any]], plans: list[dict[str, Any]]) -> dict[str, str]:
    """Return one diff for all items that change, with a line per item."""
    changes = [(item, plan) for item, plan in zip(items, plans) if is_change(plan)]
    return {
        "before": "".join(f"{item['name']}: {plan['before']}\n" for item, plan in changes),
        "after": "".join(f"{item['name']}: {plan['after']}\n" for item, plan in changes),
        "before_header": "artifacts",
        "after_header": "artifacts",
    }


def report(items: list[dict[str, Any]], plans: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return per item what a playbook may want to know."""
    return [
        {
            "name": item["name"],
            "version": item["version"],
            "changed": is_change(plan),
            "before": plan["before"],
            "after": plan["after"],
        }
        for item, plan in zip(items, plans)
    ]
