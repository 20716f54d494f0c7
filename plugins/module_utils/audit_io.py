# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reading a cluster for an audit, and its baseline: one paged list for each kind, reduced page by page.

Writing reports.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.plainkube.cluster.plugins.module_utils import audit_reports
from ansible_collections.plainkube.cluster.plugins.module_utils.audit_subjects import (
    CLUSTER_WIDE,
    HELM_LABELS,
    Cluster,
    Object,
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
    problem_lines,
)

METRICS = "/metrics"
DEPRECATED = "apiserver_requested_deprecated_apis{"
# Reports say where a cluster is weak.
FILE_MODE = 0o600
# Rules that a message names; more are counted.
SHOWN_RULES = 5


def read_cluster(api: Api, rules: Iterable[Rule], scope: Scope) -> Cluster:
    """Return what rules need of a cluster. Raises AuditError that names every right that is missing, and ApiErrors."""
    # Rules about Any look at what the others have read.
    meant = {
        rule.id: (rule, [kind for kind in kinds_meant(set(rule.kinds) - {"Any"}) if scope.looks_at(kind)])
        for rule in rules
        if rule.enabled
    }
    asking = [rule for rule, kinds in meant.values() if kinds or "Any" in rule.kinds]
    facts = set(all_facts(asking))
    cluster = Cluster(scope)
    reader = Reader(api, scope)
    for kind in kinds_to_read((kind for _rule, kinds in meant.values() for kind in kinds), facts):
        for thing in reader.things(kind):
            cluster.add(kind, thing)
    if "deprecated_requests" in facts and scope.is_whole_cluster:
        try:
            cluster.deprecated_requests = deprecated_requests(api.get_text(METRICS))
        except Forbidden as error:
            reader.missing[METRICS] = [error]
    if reader.missing:
        for_kinds = {rule.id: kinds_to_read(meant[rule.id][1], rule.facts) for rule in asking}
        raise AuditError(_message(reader.missing, for_kinds, scope))
    return cluster


class Reader:
    """Reads kinds for an audit. Rights that are missing are kept, by kind, until all of them are known.

    Where the right to a list of the whole cluster is missing and the namespaces are named, each is read by itself:
    rights in these are enough.
    """

    def __init__(self, api: Api, scope: Scope) -> None:
        self._api = api
        self._names = scope.names
        # With one namespace its own list is all that is wanted.
        self._one_by_one = len(self._names) == 1
        self.missing: dict[str, list[Forbidden]] = {}

    def things(self, kind: str) -> Iterator[Object]:
        """Yield all objects of a kind. Raises ApiErrors but for missing rights."""
        if kind in CLUSTER_WIDE and kind != "Namespace":
            yield from self._kept(kind, self._list(kind))
            return
        if not self._one_by_one:
            try:
                yield from self._list(kind)
                return
            except Forbidden as error:
                if not self._names:
                    self.missing[kind] = [error]
                    return
                self._one_by_one = True
        for name in self._names:
            yield from self._kept(kind, self._namespace(name) if kind == "Namespace" else self._list(kind, name))

    def _kept(self, kind: str, things: Iterator[Object]) -> Iterator[Object]:
        try:
            yield from things
        except Forbidden as error:
            self.missing.setdefault(kind, []).append(error)

    def _list(self, kind: str, namespace: str = "") -> Iterator[Object]:
        path = RESOURCES[kind].path(namespace)
        # A release's Secret holds up to a megabyte of which nothing is wanted but its labels.
        if kind == "Secret":
            return self._api.list_metadata(path, labelSelector=HELM_LABELS)
        return self._api.list(path)

    def _namespace(self, name: str) -> Iterator[Object]:
        found = self._api.get(RESOURCES["Namespace"].path(name=name))
        if found:
            yield found


def _message(missing: Mapping[str, list[Forbidden]], for_kinds: Mapping[str, Sequence[str]], scope: Scope) -> str:
    """Return one message for all rights that are missing, with the rules that can be switched off instead."""
    lines = []
    for kind, errors in missing.items():
        askers = [rule for rule, kinds in for_kinds.items() if kind in kinds]
        words = f", which {', '.join(askers)} ask{'s' if len(askers) == 1 else ''} for" if askers else ""
        if len(askers) > SHOWN_RULES:
            words = f", which {len(askers)} rules ask for"
        lines += [line + words for line in problem_lines(errors)]
    advice = (
        "docs/audit.md has the roles for what the shipped rules read, and a rule that is switched off needs no right"
    )
    if not scope.names:
        advice += "; where namespaces are named, without patterns, rights in these are enough for most rules"
    return "\n".join(["the cluster cannot be read:", *(f"- {line}" for line in lines), advice])


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
