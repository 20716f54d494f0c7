# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Holding a cluster against house rules that are data: rules, exemptions, findings, baseline and summary.

Everything here takes plain data and does no I/O. The rules themselves are in data/audit-rules.yml.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date, datetime
from fnmatch import fnmatchcase
from typing import Any, Callable

from ansible_collections.plainkube.cluster.plugins.module_utils.audit_predicates import PREDICATES
from ansible_collections.plainkube.cluster.plugins.module_utils.audit_subjects import (
    CLUSTER_WIDE,
    FACTS,
    GROUPS,
    SUBJECT_KINDS,
    WORKLOADS,
    Object,
    kinds_meant,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError

try:
    import jmespath
    from jmespath.exceptions import JMESPathError

    HAS_JMESPATH = True
except ImportError:
    HAS_JMESPATH = False

# From what must not wait to what is good to know.
SEVERITIES = ("critical", "high", "medium", "low")
NEVER = "never"
EXEMPTION_PREFIX = "audit.plainkube.io/"
EXEMPTION_WANTED = "'until YYYY-MM-DD: the reason'"
EXEMPTION_RULES = ("exemption-expired", "exemption-not-valid")
BASELINE_VERSION = 1
STATES = ("new", "known", "exempt")

RULE_ID = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
NOT_OF_A_PATH = re.compile(r"!\s*[\w\"]+\s*[.\[]")
# Key: what it must be, and whether a rule is nothing without it.
RULE_KEYS: dict[str, tuple[type, bool]] = {
    "id": (str, True),
    "title": (str, True),
    "why": (str, True),
    "severity": (str, True),
    "kinds": (list, True),
    "fix": (str, True),
    "leaves_alone": (str, False),
    "expression": (str, False),
    "predicate": (str, False),
    "settings": (dict, False),
    "not_in_namespaces": (list, False),
    "enabled": (bool, False),
    "guard": (str, False),
}
TYPE_WORDS = {str: "text", list: "a list of texts", dict: "a mapping", bool: "true or false"}


class AuditError(PlainkubeError):
    """Rules, exemptions or a baseline that cannot be used."""


# --- Rules ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """One thing that must not be so in a cluster."""

    id: str
    title: str
    why: str
    severity: str
    kinds: tuple[str, ...]
    fix: str
    leaves_alone: str = ""
    expression: str = ""
    predicate: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    not_in_namespaces: tuple[str, ...] = ()
    enabled: bool = True
    guard: str = ""

    @property
    def facts(self) -> frozenset[str]:
        """The facts that the rule asks for."""
        if self.predicate:
            return frozenset(PREDICATES[self.predicate].facts)
        return frozenset(facts_named(self.expression))


def facts_named(expression: str) -> list[str]:
    """Return the facts that a JMESPath expression names."""
    return re.findall(r"\bfacts\.(\w+)", expression)


def rules_of(shipped: Sequence[Any], changes: Sequence[Any]) -> dict[str, Rule]:
    """Return the rules by id: those that are shipped, with changes to them and additions.

    A change names the id and the keys that differ; settings are merged key by key. Raises AuditError with all faults.
    """
    merged: dict[str, Object] = {}
    faults: list[str] = []
    for origin, entries in (("shipped rules", shipped), ("rules", changes)):
        for number, entry in enumerate(entries):
            where = f"{origin}[{number}]"
            found = _entry_faults(where, entry)
            faults += found
            if found:
                continue
            name = entry["id"]
            if name in merged:
                settings = {**merged[name].get("settings", {}), **entry.get("settings", {})}
                faults += [
                    f"{where}.settings.{key}: rule {name} has no such setting; wanted one of "
                    f"{', '.join(merged[name].get('settings', {})) or 'none'}"
                    for key in entry.get("settings", {})
                    if key not in merged[name].get("settings", {})
                    and "predicate" not in entry
                    and "expression" not in entry
                ]
                # A rule that gets another way to look loses the old one, and the guard that said the same.
                kept = {
                    key: value
                    for key, value in merged[name].items()
                    if key not in ("expression", "predicate", "guard") or not {"expression", "predicate"} & set(entry)
                }
                merged[name] = {**kept, **entry, "settings": settings}
            else:
                faults += [
                    f"{where}.{key}: missing; rule {name} is not among the shipped ones, so it needs it"
                    for key, (_, required) in RULE_KEYS.items()
                    if required and key not in entry
                ]
                merged[name] = dict(entry)
    if faults:
        raise AuditError("; ".join(faults))
    for name, entry in merged.items():
        faults += _rule_faults(name, entry)
    if faults:
        raise AuditError("; ".join(faults))
    return {name: _rule(entry) for name, entry in merged.items()}


def _rule(entry: Object) -> Rule:
    """Return a rule that was found in order."""
    fields: Object = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    return Rule(**fields)


def _entry_faults(where: str, entry: Any) -> list[str]:
    """Return what is wrong with a rule's keys and their types."""
    if not isinstance(entry, dict):
        return [f"{where}: found {entry!r}, wanted a mapping with the keys of a rule"]
    if not isinstance(entry.get("id"), str) or not RULE_ID.fullmatch(entry["id"]):
        return [f"{where}.id: found {entry.get('id')!r}, wanted small letters, digits and hyphens"]
    faults = []
    for key, value in entry.items():
        if key not in RULE_KEYS:
            faults.append(f"{where}.{key}: unknown key; wanted one of {', '.join(RULE_KEYS)}")
            continue
        wanted = RULE_KEYS[key][0]
        texts = not isinstance(value, list) or all(isinstance(item, str) for item in value)
        if not isinstance(value, wanted) or not texts:
            faults.append(f"{where}.{key}: found {value!r}, wanted {TYPE_WORDS[wanted]}")
    return faults


def _rule_faults(name: str, entry: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with a whole rule's values."""
    faults = []
    if entry["severity"] not in SEVERITIES:
        faults.append(f"rule {name}: severity is {entry['severity']!r}, wanted one of {', '.join(SEVERITIES)}")
    known = (*SUBJECT_KINDS, *GROUPS)
    unknown = [kind for kind in entry["kinds"] if kind not in known]
    if unknown or not entry["kinds"]:
        faults.append(f"rule {name}: kinds has {', '.join(unknown) or 'nothing'}, wanted some of {', '.join(known)}")
    ways = [key for key in ("expression", "predicate") if entry.get(key)]
    if len(ways) != 1:
        faults.append(f"rule {name}: has {' and '.join(ways) or 'neither'}, wanted an expression or a predicate")
    if entry.get("predicate") and entry["predicate"] not in PREDICATES:
        faults.append(
            f"rule {name}: predicate {entry['predicate']!r} is unknown; wanted one of {', '.join(sorted(PREDICATES))}"
        )
    if entry.get("expression"):
        try:
            jmespath.compile(entry["expression"])
        except JMESPathError as error:
            faults.append(f"rule {name}: the expression cannot be read: {' '.join(str(error).split())}")
        if NOT_OF_A_PATH.search(entry["expression"]):
            faults.append(
                f"rule {name}: JMESPath reads !a.b as (!a).b, which is never true: write !(a.b) in the expression"
            )
        strange = [fact for fact in facts_named(entry["expression"]) if fact not in FACTS]
        if strange:
            faults.append(
                f"rule {name}: facts.{', facts.'.join(strange)} is not known; wanted one of {', '.join(FACTS)}"
            )
    return faults


# --- Exemptions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exemption:
    """A rule that somebody switched off for an object, with what is wrong with that if anything is."""

    rule: str
    until: str
    reason: str
    fault: str = ""

    def holds(self, today: date) -> bool:
        """Return whether the exemption counts today."""
        return not self.fault and not self.is_over(today)

    def is_over(self, today: date) -> bool:
        """Return whether its last day has passed."""
        return not self.fault and date.fromisoformat(self.until) < today


@dataclass(frozen=True)
class Waiver:
    """An exemption that the caller gives, for objects that nobody can annotate."""

    exemption: Exemption
    kinds: tuple[str, ...]
    namespaces: tuple[str, ...]
    names: tuple[str, ...]

    def covers(self, kind: str, namespace: str, name: str) -> bool:
        """Return whether an object is meant."""
        return (
            (not self.kinds or kind in kinds_meant(self.kinds))
            and (not self.namespaces or any(fnmatchcase(namespace, pattern) for pattern in self.namespaces))
            and (not self.names or any(fnmatchcase(name, pattern) for pattern in self.names))
        )


def exemptions_in(metadata: Mapping[str, Any], rules: Iterable[str]) -> list[Exemption]:
    """Return the exemptions that an object's annotations hold."""
    known = set(rules)
    found = []
    for key, value in sorted((metadata.get("annotations") or {}).items()):
        if not key.startswith(EXEMPTION_PREFIX):
            continue
        rule = key[len(EXEMPTION_PREFIX) :]
        match = re.fullmatch(r"\s*until\s+(\S+?)\s*(?::\s*(.*?)\s*)?", value or "", flags=re.DOTALL)
        until, reason = (match[1], match[2] or "") if match else ("", "")
        found.append(Exemption(rule, until, reason, _exemption_fault(rule, until, reason, known)))
    return found


def waivers_of(entries: Sequence[Mapping[str, Any]], rules: Iterable[str]) -> list[Waiver]:
    """Return the caller's exemptions. Raises AuditError with all faults."""
    known = set(rules)
    faults, found = [], []
    for number, entry in enumerate(entries):
        for rule in entry["rules"]:
            fault = _exemption_fault(rule, str(entry["until"]), entry["reason"], known)
            if fault:
                faults.append(f"exemptions[{number}]: {rule}: {fault}")
            exemption = Exemption(rule, str(entry["until"]), entry["reason"])
            selection = [tuple(entry.get(key) or ()) for key in ("kinds", "namespaces", "names")]
            found.append(Waiver(exemption, *selection))
    if faults:
        raise AuditError("; ".join(faults))
    return found


def _exemption_fault(rule: str, until: str, reason: str, known: set[str]) -> str:
    if rule not in known:
        return "there is no such rule"
    if rule in EXEMPTION_RULES:
        return "rules about exemptions cannot be exempted from"
    try:
        date.fromisoformat(until)
    except ValueError:
        return f"no date, wanted {EXEMPTION_WANTED}"
    return "" if reason.strip() else f"no reason, wanted {EXEMPTION_WANTED}"


# --- Looking ----------------------------------------------------------------------------------------------------------


@dataclass
class Finding:
    """One rule that one object breaks."""

    rule: str
    severity: str
    kind: str
    namespace: str
    name: str
    # Which containers, resources, subjects; empty when the object as a whole is meant.
    parts: list[str]
    replicas: int | None = None
    state: str = "new"
    # Of an exempt one.
    until: str = ""
    reason: str = ""

    @property
    def object(self) -> tuple[str, str, str, str]:
        """What a baseline knows the finding by."""
        return self.rule, self.kind, self.namespace, self.name

    @property
    def stable_parts(self) -> frozenset[str]:
        """The parts without what may change from day to day."""
        return frozenset(part.partition(" (")[0] for part in self.parts)


@dataclass
class Audit:
    """What came of looking at a cluster."""

    findings: list[Finding] = field(default_factory=list)
    # How many objects each rule was held against.
    checked: dict[str, int] = field(default_factory=dict)
    # Findings of the baseline that are no more.
    resolved: list[Object] = field(default_factory=list)


def look(
    subjects: Iterable[Object],
    rules: Mapping[str, Rule],
    now: datetime,
    waivers: Sequence[Waiver] = (),
    namespaces: Mapping[str, Mapping[str, Any]] | None = None,
) -> Audit:
    """Hold every subject against every rule that is switched on.

    namespaces: the metadata of each namespace, whose exemptions hold for all in it. Raises AuditError for a rule that
    cannot be worked out.
    """
    enabled = [rule for rule in rules.values() if rule.enabled]
    by_kind: dict[str, list[tuple[Rule, Callable[[Object], list[str] | None]]]] = {kind: [] for kind in SUBJECT_KINDS}
    for rule in enabled:
        eye = _eye(rule, now)
        for kind in kinds_meant(rule.kinds):
            by_kind[kind].append((rule, eye))
    given = {name: exemptions_in(metadata, rules) for name, metadata in (namespaces or {}).items()}
    audit = Audit(checked={rule.id: 0 for rule in enabled})
    today = now.date()
    for subject in subjects:
        kind = subject["kind"]
        namespace, name = subject["metadata"].get("namespace", ""), subject["metadata"]["name"]
        within = name if kind == "Namespace" else namespace
        own = exemptions_in(subject["metadata"], rules)
        if kind == "Cluster":
            own += [waiver.exemption for waiver in waivers]
        subject["facts"]["exemptions"] = [
            {"rule": item.rule, "until": item.until, "fault": item.fault, "over": item.is_over(today)} for item in own
        ]
        for rule, eye in by_kind.get(kind, by_kind["Pod"]):
            if any(fnmatchcase(within, pattern) for pattern in rule.not_in_namespaces):
                continue
            audit.checked[rule.id] += 1
            parts = eye(subject)
            if parts is None:
                continue
            finding = Finding(rule.id, rule.severity, kind, within, name, parts, subject["facts"].get("replicas"))
            reasons = [*own, *given.get(within, ())] if kind != "Cluster" else []
            reasons += [waiver.exemption for waiver in waivers if waiver.covers(kind, within, name)]
            _exempt(finding, reasons, today)
            audit.findings.append(finding)
    audit.findings.sort(
        key=lambda item: (SEVERITIES.index(item.severity), item.rule, item.namespace, item.kind, item.name)
    )
    return audit


def _eye(rule: Rule, now: datetime) -> Callable[[Object], list[str] | None]:
    """Return the function that finds a rule's parts in a subject, or None when there is nothing to find."""
    if rule.predicate:
        function = PREDICATES[rule.predicate].function
        return lambda subject: _parts(rule, function(subject, rule.settings, now))
    compiled = jmespath.compile(rule.expression)

    def search(subject: Object) -> list[str] | None:
        try:
            return _parts(rule, compiled.search({**subject, "settings": rule.settings}))
        except JMESPathError as error:
            raise AuditError(
                f"rule {rule.id}: its expression fails on {subject['kind']} {subject['metadata']['name']}: "
                f"{' '.join(str(error).split())}"
            ) from error

    return search


def _parts(rule: Rule, answer: Any) -> list[str] | None:
    """Return what an expression or predicate said as the parts that are found: None for nothing."""
    if answer is None or answer is False or answer in ("", [], {}):
        return None
    if answer is True:
        return []
    if isinstance(answer, str):
        return [answer]
    if isinstance(answer, list) and all(isinstance(part, str) for part in answer):
        return answer
    raise AuditError(f"rule {rule.id}: it answers {answer!r}, wanted true, false, null, a text or a list of texts")


def _exempt(finding: Finding, exemptions: Iterable[Exemption], today: date) -> None:
    """Mark a finding that somebody exempted for today."""
    for exemption in exemptions:
        if exemption.rule == finding.rule and exemption.holds(today):
            finding.state, finding.until, finding.reason = "exempt", exemption.until, exemption.reason
            return


# --- Baseline ---------------------------------------------------------------------------------------------------------


def baseline_of(findings: Iterable[Finding]) -> Object:
    """Return findings as a baseline: what is known and shall not fail an audit."""
    entries = [
        {
            "rule": finding.rule,
            "kind": finding.kind,
            "namespace": finding.namespace,
            "name": finding.name,
            "parts": sorted(finding.stable_parts),
        }
        for finding in findings
        if finding.state != "exempt"
    ]
    return {"version": BASELINE_VERSION, "findings": entries}


def compare(audit: Audit, baseline: Any) -> None:
    """Mark the findings that a baseline knows, and note those of the baseline that are gone. Raises AuditError.

    A finding with a part that the baseline does not have is new.
    """
    if not isinstance(baseline, dict) or baseline.get("version") != BASELINE_VERSION:
        raise AuditError(f"baseline: wanted a file of version {BASELINE_VERSION} as an audit writes it; write it anew")
    try:
        known = {
            (entry["rule"], entry["kind"], entry["namespace"], entry["name"]): (entry, frozenset(entry["parts"]))
            for entry in baseline["findings"]
        }
    except (KeyError, TypeError) as error:
        raise AuditError(f"baseline: an entry is not as an audit writes it ({error!r}); write it anew") from error
    found = set()
    for finding in audit.findings:
        found.add(finding.object)
        if finding.state == "new" and finding.object in known and finding.stable_parts <= known[finding.object][1]:
            finding.state = "known"
    audit.resolved = [entry for key, (entry, _) in known.items() if key not in found]


# --- Summary ----------------------------------------------------------------------------------------------------------


def summary_of(audit: Audit, rules: Mapping[str, Rule]) -> Object:
    """Return how many findings there are, by state, and the new ones by severity, rule and namespace."""
    by_rule: dict[str, Object] = {
        name: {
            "rule": name,
            "title": rules[name].title,
            "severity": rules[name].severity,
            "checked": checked,
            **dict.fromkeys(STATES, 0),
        }
        for name, checked in audit.checked.items()
    }
    by_namespace: dict[str, Object] = {}
    by_severity: dict[str, Object] = {severity: dict.fromkeys(STATES, 0) for severity in SEVERITIES}
    total = dict.fromkeys(STATES, 0)
    for finding in audit.findings:
        total[finding.state] += 1
        by_rule[finding.rule][finding.state] += 1
        by_severity[finding.severity][finding.state] += 1
        entry = by_namespace.setdefault(
            finding.namespace,
            {"namespace": finding.namespace, **dict.fromkeys(SEVERITIES, 0), "known": 0, "exempt": 0},
        )
        entry[finding.severity if finding.state == "new" else finding.state] += 1
    return {
        **total,
        "resolved": len(audit.resolved),
        "by_severity": by_severity,
        "by_rule": sorted(
            by_rule.values(), key=lambda entry: (SEVERITIES.index(entry["severity"]), -entry["new"], entry["rule"])
        ),
        "by_namespace": sorted(
            by_namespace.values(),
            key=lambda entry: (*(-entry[severity] for severity in SEVERITIES), entry["namespace"]),
        ),
    }


def breaches(findings: Iterable[Finding], fail_on: str) -> list[Finding]:
    """Return the new findings that are at least as severe as the threshold."""
    if fail_on == NEVER:
        return []
    limit = SEVERITIES.index(fail_on)
    return [finding for finding in findings if finding.state == "new" and SEVERITIES.index(finding.severity) <= limit]


def require_something(looked_at: Mapping[str, int], whole_cluster: bool) -> None:
    """Raise AuditError when there was no workload to look at: an audit of nothing proves nothing."""
    if not any(looked_at.get(kind) for kind in WORKLOADS):
        seen = ", ".join(f"{count} {kind}" for kind, count in looked_at.items() if kind not in CLUSTER_WIDE and count)
        where = "the cluster has no workloads" if whole_cluster else "the namespaces that were chosen have no workloads"
        raise AuditError(
            f"nothing was audited: {where} ({seen or 'nothing else either'}); "
            "see whether this is the right cluster and whether the namespaces are spelt right"
        )


def as_data(findings: Iterable[Finding]) -> list[Object]:
    """Return findings as plain data."""
    return [asdict(finding) for finding in findings]


def all_facts(rules: Iterable[Rule]) -> Iterator[str]:
    """Yield the facts that rules which are switched on ask for."""
    for rule in rules:
        if rule.enabled:
            yield from rule.facts
