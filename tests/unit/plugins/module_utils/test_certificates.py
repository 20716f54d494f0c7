# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The rules for a leaf: which difference is called what, and when its time is over."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils import certificates as c

NOW = datetime(2026, 6, 1, 12, 0, 0, tzinfo=timezone.utc)
LEAF = c.Leaf(
    name="etcd-server",
    certificate="/etc/etcd/pki/server.crt",
    key="/etc/etcd/pki/server.key",
    authority="etcd",
    common_name="n1",
    usages=("client", "server"),
    lifetime=timedelta(days=90),
    organizations=("o",),
    dns_names=("n1",),
    ip_addresses=("192.0.2.1",),
)
ISSUED = c.Issued(
    common_name="n1",
    organizations=("o",),
    dns_names=("n1",),
    ip_addresses=("192.0.2.1",),
    usages=("client", "server"),
    issuer="etcd",
    not_before=NOW - timedelta(days=10),
    not_after=NOW + timedelta(days=80),
    public_key="digest",
)
FILE = c.Attributes(0o644, ("root", "0"), ("root", "0"))
KEY = c.Attributes(0o600, ("root", "0"), ("root", "0"))
PRESENT = c.Present(ISSUED, True, FILE, "digest", KEY)


def present(**changes: Any) -> c.Present:
    ours = {name: changes.pop(name) for name in list(changes) if name in c.Present.__dataclass_fields__}
    return replace(PRESENT, issued=replace(ISSUED, **changes), **ours)


@pytest.mark.parametrize(
    ("there", "issue", "attributes"),
    [
        (PRESENT, [], []),
        (c.Present(), [c.MISSING, c.KEY_MISSING], []),
        (replace(PRESENT, issued=None, certificate_file=None), [c.MISSING], []),
        (replace(PRESENT, issued=None), [c.DAMAGED], []),
        (replace(PRESENT, key=None, key_file=None), [c.KEY_MISSING], []),
        (replace(PRESENT, key=None), [c.KEY_DAMAGED], []),
        (replace(PRESENT, key="other"), [c.KEY_DOES_NOT_MATCH], []),
        (replace(PRESENT, by_authority=False), [c.ISSUER_DIFFERS], []),
        (replace(PRESENT, interrupted=True), [c.INTERRUPTED], []),
        (present(common_name="n2"), [c.SUBJECT_DIFFERS], []),
        (present(organizations=()), [c.SUBJECT_DIFFERS], []),
        (present(dns_names=("n1", "n2")), [c.NAMES_DIFFER], []),
        (present(ip_addresses=()), [c.NAMES_DIFFER], []),
        (present(usages=("client",)), [c.USAGES_DIFFER], []),
        (present(not_after=NOW), [c.EXPIRED], []),
        (
            present(not_before=NOW - timedelta(days=60), not_after=NOW + timedelta(days=30)),
            [c.NEARLY_OVER],
            [],
        ),
        (
            present(not_before=NOW - timedelta(days=60), not_after=NOW + timedelta(days=30, seconds=3)),
            [c.LONGER_THAN_ASKED],
            [],
        ),
        (replace(PRESENT, key_file=replace(KEY, mode=0o640)), [], [c.KEY_ATTRIBUTES]),
        (replace(PRESENT, key_file=replace(KEY, owners=("etcd", "107"))), [], [c.KEY_ATTRIBUTES]),
        (replace(PRESENT, key_file=replace(KEY, groups=("etcd", "107"))), [], [c.KEY_ATTRIBUTES]),
        (replace(PRESENT, certificate_file=replace(FILE, mode=0o600)), [], [c.CERTIFICATE_ATTRIBUTES]),
    ],
)
def test_each_difference_has_its_word(there: c.Present, issue: list[str], attributes: list[str]) -> None:
    difference = c.differences(LEAF, there, NOW)
    assert (list(difference.issue), list(difference.attributes)) == (issue, attributes)
    assert difference.reasons == issue + attributes


def test_all_differences_are_told_at_once() -> None:
    there = present(common_name="x", dns_names=("x",), usages=("server",), not_after=NOW, key="x", by_authority=False)
    assert c.differences(LEAF, there, NOW).issue == (
        c.KEY_DOES_NOT_MATCH,
        c.ISSUER_DIFFERS,
        c.SUBJECT_DIFFERS,
        c.NAMES_DIFFER,
        c.USAGES_DIFFER,
        c.EXPIRED,
    )


def test_an_owner_may_be_a_number() -> None:
    leaf = replace(LEAF, owner="107", group="0")
    there = replace(
        PRESENT, key_file=replace(KEY, owners=("etcd", "107")), certificate_file=replace(FILE, owners=("107",))
    )
    assert not c.differences(leaf, there, NOW).reasons


LIFETIMES = [timedelta(minutes=1), timedelta(minutes=7), timedelta(days=1), timedelta(days=90), timedelta(days=365)]


@pytest.mark.parametrize("asked", LIFETIMES)
def test_staggering_takes_at_most_a_tenth_and_is_always_the_same(asked: timedelta) -> None:
    source = random.Random(1)
    seen = set()
    for number in range(500):
        host, name = f"host{source.random()}", f"name{number}"
        lifetime = c.staggered_lifetime(asked, name, host)
        assert asked * 0.9 - timedelta(seconds=1) <= lifetime <= asked
        assert lifetime == c.staggered_lifetime(asked, name, host)
        seen.add(lifetime)
    assert len(seen) >= min(400, asked.total_seconds() / 10)


@pytest.mark.parametrize("asked", LIFETIMES)
def test_a_new_leaf_needs_nothing_for_most_of_its_life_and_then_renewal_before_its_end(asked: timedelta) -> None:
    leaf = replace(LEAF, lifetime=asked)
    for host in map(str, range(100)):
        not_before, not_after = c.validity(leaf, host, NOW, NOW + timedelta(days=3650))
        assert not_before < NOW < not_after
        assert not_after - not_before <= asked
        there = present(not_before=not_before, not_after=not_after)
        assert c.differences(leaf, there, NOW + asked / 3).issue == ()
        assert c.differences(leaf, there, NOW + asked * 2 / 3).issue == (c.NEARLY_OVER,)


def test_a_leaf_ends_with_its_authority_and_is_not_renewed_again_and_again() -> None:
    end = NOW + timedelta(days=20)
    not_before, not_after = c.validity(LEAF, "n1", NOW, end)
    assert not_after == end
    assert not c.differences(LEAF, present(not_before=not_before, not_after=not_after), NOW).reasons


ITEM: dict[str, Any] = {
    "name": "a",
    "certificate": "/a.crt",
    "key": "/a.key",
    "authority": "etcd",
    "common_name": "a",
    "organizations": [],
    "dns_names": [],
    "ip_addresses": [],
    "usages": ["client"],
    "days": None,
    "minutes": None,
    "owner": "root",
    "group": "root",
    "mode": "0600",
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"certificate": "a.crt"}, "certificate is 'a.crt', wanted an absolute path"),
        ({"key": "~/a.key"}, "key is '~/a.key', wanted an absolute path"),
        ({"common_name": ""}, "common_name is empty"),
        ({"usages": []}, "usages is empty"),
        ({"days": 1, "minutes": 1}, "days and minutes are both given"),
        ({"days": 0}, "days is 0, wanted 1 or more"),
        ({"mode": "rw"}, "mode is 'rw', wanted three octal digits"),
        ({"mode": "384"}, "mode is '384'"),
        ({"ip_addresses": ["192.0.2.256"]}, "'192.0.2.256', which is not an IP address"),
        ({"dns_names": ["a b"]}, "'a b', which is not a DNS name"),
        ({"dns_names": ["192.0.2.1"]}, "'192.0.2.1', which is not a DNS name"),
        ({"dns_names": ["a.*.example"]}, "which is not a DNS name"),
        ({"usages": ["server"]}, "a server's certificate needs dns_names or ip_addresses"),
        ({"key": "/a.crt"}, "/a.crt is asked for as a certificate and as a key"),
    ],
)
def test_a_wrong_item_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(c.CertificateError, match="a") as caught:
        c.leaves([{**ITEM, **change}])
    assert message in str(caught.value)


def test_faults_of_all_items_come_together() -> None:
    with pytest.raises(c.CertificateError) as caught:
        c.leaves([{**ITEM, "mode": "x"}, {**ITEM, "days": -1}])
    for part in (
        "mode is 'x'",
        "days is -1",
        "name a is asked for more than once",
        "key /a.key is asked for more than once",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "name", ["localhost", "n1.example.test", "*.example.test", "kubernetes.default.svc", "xn--a_b-1"]
)
def test_usual_dns_names_are_taken(name: str) -> None:
    assert c.leaves([{**ITEM, "dns_names": [name]}])[0].dns_names == (name,)


def test_names_mean_the_same_in_any_order_and_spelling() -> None:
    one, other = (
        c.leaves([{**ITEM, **names}])[0]
        for names in (
            {"dns_names": ["B", "a"], "ip_addresses": ["2001:db8:0::1", "192.0.2.1"], "organizations": ["y", "x"]},
            {"dns_names": ["a", "b", "b"], "ip_addresses": ["192.0.2.1", "2001:DB8::1"], "organizations": ["x", "y"]},
        )
    )
    assert one == other


@pytest.mark.parametrize(
    ("change", "lifetime"),
    [({}, timedelta(days=365)), ({"days": 3}, timedelta(days=3)), ({"minutes": 3}, timedelta(minutes=3))],
)
def test_lifetime_is_in_days_or_minutes(change: dict[str, Any], lifetime: timedelta) -> None:
    assert c.leaves([{**ITEM, **change}])[0].lifetime == lifetime
