# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reading a cluster for an audit, and its baseline: one paged list for each kind, reduced page by page.

Writing reports.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible_collections.plainkube.cluster.plugins.module_utils import audit_reports
from ansible_collections.plainkube.cluster.plugins.module_utils.audit_subjects import (
    HELM_LABELS,
    Cluster,
    Scope,
    kinds_meant,
    kinds_to_read,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.audits import AuditError, Rule, all_facts
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError
from ansible_collections.plainkube.cluster.plugins.module_utils.files_io import write_atomically
from ansible_collections.plainkube.cluster.plugins.module_utils.kubernetes_api import (
    RESOURCES,
    Api,
    Forbidden,
)

METRICS = "/metrics"
DEPRECATED = "apiserver_requested_deprecated_apis{"
# Reports say where a cluster is weak.
FILE_MODE = 0o600


def read_cluster(api: Api, rules: Iterable[Rule], scope: Scope) -> Cluster:
    """Return what rules need of a cluster. Raises AuditError that names every right that is missing, and ApiErrors."""
    enabled = [rule for rule in rules if rule.enabled]
    # Rules about Any look at what the others have read.
    kinds = kinds_meant(kind for rule in enabled for kind in rule.kinds if kind != "Any")
    facts = set(all_facts(enabled))
    cluster = Cluster(scope)
    missing: list[str] = []
    for kind in kinds_to_read(kinds, facts):
        path = RESOURCES[kind].path()
        try:
            # A release's Secret holds up to a megabyte of which nothing is wanted but its labels.
            found = api.list_metadata(path, labelSelector=HELM_LABELS) if kind == "Secret" else api.list(path)
            for thing in found:
                cluster.add(kind, thing)
        except Forbidden as error:
            missing.append(str(error))
    if "deprecated_requests" in facts and scope.is_whole_cluster:
        try:
            cluster.deprecated_requests = deprecated_requests(api.get_text(METRICS))
        except Forbidden as error:
            missing.append(str(error))
    if missing:
        raise AuditError(
            "; ".join(missing) + "; docs/audit.md has a ClusterRole with all that the shipped rules read, "
            "and a rule that is switched off needs no right"
        )
    return cluster


def deprecated_requests(metrics: str) -> list[dict[str, str]]:
    """Return the APIs that are going and were asked for, out of an API server's metrics."""
    found = []
    for line in metrics.splitlines():
        if line.startswith(DEPRECATED):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
            # Without a release that removes it there is time.
            if labels.get("removed_release"):
                found.append({key: labels[key] for key in ("group", "version", "resource", "removed_release")})
    return sorted(found, key=lambda entry: (entry["group"], entry["version"], entry["resource"]))


def read_baseline(path: str) -> Any:
    """Return a baseline file's content. Raises AuditError."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise AuditError(f"baseline {path}: there is no such file; write it once with write_baseline") from error
    except (OSError, ValueError) as error:
        raise AuditError(f"baseline {path}: cannot be read: {error}") from error


def require_template(paths: Mapping[str, str], template: str | None) -> None:
    """Raise AuditError when a page is asked for and there is nothing to make it of."""
    if paths.get("html") and not template:
        raise AuditError("reports.html: report_template is empty; the collection's own comes with its action plugin")


def write_reports(paths: Mapping[str, str], report: Mapping[str, Any], template: str | None) -> None:
    """Write the reports that are asked for. Raises PlainkubeError."""
    texts = {
        "json": lambda: audit_reports.as_json(report),
        "junit": lambda: audit_reports.as_junit(report),
        "html": lambda: audit_reports.as_html(report, template or ""),
    }
    for name, text in texts.items():
        if paths.get(name):
            write(paths[name], text())


def write(path: str, text: str) -> None:
    """Write one file. Raises PlainkubeError."""
    try:
        write_atomically(path, text.encode(), FILE_MODE)
    except OSError as error:
        raise PlainkubeError(f"{path}: cannot be written: {error}") from error
