# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""For each shipped audit rule an object that it finds and a near miss: audit-examples.yml, spelt out.

Unit tests hold them against the audit, integration tests let a real API server judge them by the guard rails.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.plainkube.cluster.plugins.module_utils.kubernetes_api import RESOURCES

# The time that times in the examples are meant against.
NOW = datetime(2026, 6, 15, 12, tzinfo=timezone.utc)
ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = "team"
LABELS = {"app": "shop"}
# Short for what an example does not spell out.
KEYS_OF_POD = {"Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob", "ReplicaSet"}


@dataclass(frozen=True)
class Example:
    """Objects of which the first is in question, and the parts that the rule finds in it: None for a near miss."""

    objects: list[dict[str, Any]]
    parts: list[str] | None


def examples(namespace: str = NAMESPACE) -> dict[str, dict[str, Example]]:
    """Return {rule: {"found": ..., "near_miss": ...}}."""
    described = yaml.safe_load((Path(__file__).parent / "audit-examples.yml").read_text(encoding="utf-8"))
    return {
        rule: {
            "found": Example([whole(entry, namespace) for entry in entry["found"]], entry.get("parts", [])),
            "near_miss": Example([whole(entry, namespace) for entry in entry["near_miss"]], None),
        }
        for rule, entry in described.items()
    }


def shipped_rules() -> list[dict[str, Any]]:
    """Return the rules that the collection ships."""
    rules: list[dict[str, Any]] = yaml.safe_load((ROOT / "data" / "audit-rules.yml").read_text(encoding="utf-8"))[
        "rules"
    ]
    return rules


def whole(entry: dict[str, Any], namespace: str) -> dict[str, Any]:
    """Return an object as the API has it, from what an example says of it."""
    entry = dict(entry)
    kind = entry.pop("kind")
    resource = RESOURCES[kind]
    metadata: dict[str, Any] = {"name": entry.pop("name", "shop")}
    if resource.namespaced:
        metadata["namespace"] = namespace
    for key in ("labels", "annotations", "managedFields"):
        if key in entry:
            metadata[key] = entry.pop(key)
    if "owner" in entry:
        owner = entry.pop("owner")
        metadata["ownerReferences"] = [{"apiVersion": "v1", "uid": "1", "controller": True, **owner}]
    thing = {"apiVersion": resource.api_version, "kind": kind, "metadata": metadata}
    if kind in KEYS_OF_POD or kind == "Pod":
        pod = {"containers": [container(each) for each in entry.pop("containers", [{}])], **entry.pop("pod", {})}
        if "initContainers" in pod:
            pod["initContainers"] = [container(each) for each in pod["initContainers"]]
        entry["spec"] = around(kind, pod, entry.pop("template", {}), entry.pop("spec", {}))
        if kind == "Pod":
            metadata.setdefault("labels", LABELS)
    return {**thing, **entry}


def container(entry: dict[str, Any]) -> dict[str, Any]:
    """Return a container with a name and an image."""
    return {"name": "app", "image": "registry.example.org/shop:1.2.3", **entry}


def around(kind: str, pod: dict[str, Any], metadata: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    """Return the spec of an object that makes such pods."""
    template = {"metadata": {"labels": LABELS, **metadata}, "spec": pod}
    if kind == "Pod":
        return {**pod, **spec}
    if kind == "Job":
        return {"template": {**template, "spec": {"restartPolicy": "Never", **pod}}, **spec}
    if kind == "CronJob":
        job = {"template": {**template, "spec": {"restartPolicy": "Never", **pod}}}
        return {"schedule": "0 3 * * *", "jobTemplate": {"spec": job}, **spec}
    named = {"serviceName": "shop"} if kind == "StatefulSet" else {}
    return {"selector": {"matchLabels": LABELS}, "template": template, **named, **spec}
