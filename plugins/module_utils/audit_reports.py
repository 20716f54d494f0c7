# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""An audit's outcome as JSON, JUnit and HTML. Pure: texts out of plain data."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any
from xml.etree import ElementTree

from ansible_collections.plainkube.cluster.plugins.module_utils.audits import (
    SEVERITIES,
    Audit,
    Finding,
    Rule,
    as_data,
    breaches,
    summary_of,
)

try:
    import jinja2

    HAS_JINJA2 = True
except ImportError:
    HAS_JINJA2 = False

Object = dict[str, Any]
FORMATS = ("json", "junit", "html")
# Documented by the fragment audit_reports.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "reports": {"type": "dict", "options": {name: {"type": "path"} for name in FORMATS}},
    "cluster_name": {"type": "str", "default": "Kubernetes cluster"},
    "report_template": {"type": "str"},
}
# What XML 1.0 has no way to say.
NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def report_of(
    audit: Audit,
    rules: Mapping[str, Rule],
    *,
    cluster: str,
    now: datetime,
    looked_at: Mapping[str, int],
    fail_on: str,
) -> Object:
    """Return all that reports say, as plain data."""
    return {
        "cluster": cluster,
        "time": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "looked_at": dict(looked_at),
        "fail_on": fail_on,
        "breaches": len(breaches(audit.findings, fail_on)),
        "summary": summary_of(audit, rules),
        "findings": as_data(audit.findings),
        "resolved": audit.resolved,
        "rules": {
            name: {key: getattr(rules[name], key) for key in ("title", "why", "severity", "fix", "leaves_alone")}
            for name in audit.checked
        },
    }


def as_json(report: Mapping[str, Any]) -> str:
    """Return a report for programs."""
    return json.dumps(report, indent=1) + "\n"


def as_junit(report: Mapping[str, Any]) -> str:
    """Return a report for CI: a suite for each rule, a failed case for each new finding, a skipped one for the others.

    A rule that found nothing is one case that passed.
    """
    cases: dict[str, list[ElementTree.Element]] = {name: [] for name in report["rules"]}
    failures = skipped = 0
    for found in report["findings"]:
        rule = report["rules"][found["rule"]]
        case = ElementTree.Element("testcase", classname=found["rule"], name=_xml(object_title(found)))
        if found["state"] == "new":
            failures += 1
            text = "\n".join((*found["parts"], f"Why: {rule['why']}", f"What to do: {rule['fix']}"))
            failure = ElementTree.SubElement(
                case, "failure", type=found["severity"], message=_xml(f"{rule['title']}: {', '.join(found['parts'])}")
            )
            failure.text = _xml(text)
        else:
            skipped += 1
            words = "in the baseline"
            if found["state"] == "exempt":
                words = f"exempt until {found['until']}: {found['reason']}"
            ElementTree.SubElement(case, "skipped", message=_xml(words))
        cases[found["rule"]].append(case)
    root = ElementTree.Element("testsuites", name=_xml(f"audit of {report['cluster']}"))
    total = 0
    for entry in report["summary"]["by_rule"]:
        name = entry["rule"]
        if not cases[name]:
            words = f"{entry['title']}: none in {entry['checked']} objects"
            cases[name].append(ElementTree.Element("testcase", classname=name, name=words))
        total += len(cases[name])
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=name,
            timestamp=report["time"].rstrip("Z"),
            tests=str(len(cases[name])),
            failures=str(entry["new"]),
            skipped=str(entry["known"] + entry["exempt"]),
            errors="0",
        )
        suite.extend(cases[name])
    root.attrib.update(tests=str(total), failures=str(failures), skipped=str(skipped), errors="0")
    ElementTree.indent(root, " ")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def as_html(report: Mapping[str, Any], template: str) -> str:
    """Return a report for people: one file that needs no other. Every text in it is escaped."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["thousands"] = lambda number: f"{number:,}"
    environment.filters["plural"] = _plural
    groups: dict[str, list[Object]] = {name: [] for name in report["rules"]}
    for found in report["findings"]:
        groups[found["rule"]].append(found)
    return environment.from_string(template).render(
        **report,
        severities=SEVERITIES,
        found_by_rule=groups,
        namespaces=sorted({found["namespace"] for found in report["findings"]}),
        exempt=[found for found in report["findings"] if found["state"] == "exempt"],
        day=datetime.strptime(report["time"], "%Y-%m-%dT%H:%M:%SZ").strftime("%d %B %Y, %H:%M UTC").lstrip("0"),
    )


def object_title(found: Mapping[str, Any]) -> str:
    """Return the object of a finding as messages name it, with how many pods it has."""
    within = f"{found['namespace']}/" if found["namespace"] and found["kind"] != "Namespace" else ""
    replicas = f" x{found['replicas']}" if (found["replicas"] or 0) > 1 else ""
    return f"{found['kind']} {within}{found['name']}{replicas}"


def failure_message(findings: Iterable[Finding], fail_on: str, most: int = 20) -> str:
    """Return the message of an audit that failed: how much, and the first findings by name."""
    listed = list(findings)
    lines = [
        f"{entry.severity}: {entry.rule}: {object_title(vars(entry))}"
        + (f": {', '.join(entry.parts)}" * bool(entry.parts))
        for entry in listed[:most]
    ]
    rest = [f"and {len(listed) - most} more; see the reports"] if len(listed) > most else []
    count = "1 new finding is" if len(listed) == 1 else f"{len(listed)} new findings are"
    return "\n".join([f"{count} {fail_on} or worse:", *lines, *rest])


def _plural(kind: str) -> str:
    """Return the name of a kind for several of them."""
    if kind.endswith("y"):
        return kind[:-1] + "ies"
    return kind + ("es" if kind.endswith("s") else "s")


def _xml(text: str) -> str:
    return NOT_XML.sub("\ufffd", text)
