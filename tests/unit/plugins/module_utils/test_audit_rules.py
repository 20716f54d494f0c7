# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Each shipped rule finds one object and leaves a near miss alone, with no more read than it asks for."""

from __future__ import annotations

import json
from dataclasses import replace

import jsonschema
import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils.audit_predicates import PREDICATES
from ansible_collections.plainkube.cluster.plugins.module_utils.audit_subjects import (
    FACTS,
    GROUPS,
    READ_ORDER,
    SUBJECT_KINDS,
    Cluster,
    kinds_meant,
    kinds_to_read,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.audits import (
    RULE_KEYS,
    SEVERITIES,
    Rule,
    look,
    rules_of,
)
from audit_examples import NOW, ROOT, Example, examples, shipped_rules

RULES = rules_of(shipped_rules(), [])
EXAMPLES = examples()
# Subjects that no object of an example stands for.
MADE_UP = {"helm-history": ("HelmRelease", "shop"), "storage-class-default": ("Cluster", "cluster")}


def found_in(rule: Rule, example: Example) -> list[str] | None:
    """Return what a rule finds in the example's first object when only what it asks for is read."""
    read = kinds_to_read(kinds_meant(rule.kinds), rule.facts)
    cluster = Cluster()
    for kind in READ_ORDER:
        for thing in example.objects:
            if thing["kind"] == kind and kind in read:
                cluster.add(kind, json.loads(json.dumps(thing)))
    alone = {name: replace(entry, enabled=name == rule.id) for name, entry in RULES.items()}
    audit = look(cluster.subjects(), alone, NOW)
    first = example.objects[0]
    kind, name = MADE_UP.get(rule.id, (first["kind"], first["metadata"]["name"]))
    return next((item.parts for item in audit.findings if (item.kind, item.name) == (kind, name)), None)


def test_every_shipped_rule_has_its_examples() -> None:
    assert set(EXAMPLES) == set(RULES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_rule_finds_what_it_is_for(name: str) -> None:
    assert found_in(RULES[name], EXAMPLES[name]["found"]) == EXAMPLES[name]["found"].parts


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_rule_leaves_a_near_miss_alone(name: str) -> None:
    assert found_in(RULES[name], EXAMPLES[name]["near_miss"]) is None


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_shipped_rule_tells_why_what_it_leaves_alone_and_what_to_do(rule: Rule) -> None:
    assert rule.severity in SEVERITIES
    for text in (rule.why, rule.fix, rule.leaves_alone):
        assert text.endswith(".")
    assert not rule.title.endswith(".")


def test_every_predicate_is_used_and_asks_for_known_facts() -> None:
    assert set(PREDICATES) == {rule.predicate for rule in RULES.values() if rule.predicate}
    assert {fact for predicate in PREDICATES.values() for fact in predicate.facts} <= set(FACTS)


def test_the_published_schema_accepts_the_shipped_rules_and_knows_the_same_words() -> None:
    schema = json.loads((ROOT / "data" / "audit-rules.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate({"rules": shipped_rules()})
    described = schema["$defs"]["rule"]["properties"]
    assert set(described) == set(RULE_KEYS)
    assert set(described["severity"]["enum"]) == set(SEVERITIES)
    assert set(described["kinds"]["items"]["enum"]) == {*SUBJECT_KINDS, *GROUPS}
    assert set(schema["$defs"]["rule"]["required"]) == {key for key, (_, needed) in RULE_KEYS.items() if needed}
