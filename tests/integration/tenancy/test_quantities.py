# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Quantities as a real API server takes and stores them: accepted or refused alike, and the same amount."""

from __future__ import annotations

from fractions import Fraction

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils.kubernetes_api import RESOURCES, Api
from ansible_collections.plainkube.cluster.plugins.module_utils.quantities import (
    BINARY,
    DECIMAL,
    QuantityError,
    format_quantity,
    parse_quantity,
    stored,
)
from api_servers import ApiServer
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as some

ACCEPTED = [
    "0",
    "1",
    "+1",
    "1.5",
    ".5",
    "5.",
    "1000m",
    "100n",
    "1u",
    "1k",
    "1M",
    "1G",
    "1T",
    "1P",
    "1E",
    "1Ki",
    "1.5Gi",
]
ACCEPTED += [
    "8Ei",
    "1e3",
    "1E3",
    "1e-3",
    "1.5e6",
    "1e+2",
    "0.1m",
    "123456789012345678901234567890",
    "007",
    "1e18",
    "12e6",
]
REFUSED = [
    "",
    " ",
    "1 000",
    "1K",
    "1ki",
    "1Gb",
    "1GiB",
    "1e",
    "1e3Ki",
    "1mm",
    "--1",
    "1,5",
    "one",
    "0x10",
    "1.2.3",
]
SUFFIXES = [*BINARY, *DECIMAL]


@pytest.fixture(scope="module")
def api(api_server: ApiServer) -> Api:
    api_server.make_namespaces(["quantities"])
    return api_server.api()


def stored_by(api: Api, text: str) -> str | None:
    """Return what the API server makes of a quantity, None when it refuses it."""
    thing = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"namespace": "quantities", "generateName": "q-"},
        "spec": {"hard": {"requests.memory": text}},
    }
    # Not an apply: that answers 500 to what is no quantity, as if it were the server's own fault.
    status, answer = api.ask("create", RESOURCES["ResourceQuota"].path("quantities"), thing, dryRun="All")
    if status != 201:
        assert status in (400, 422), answer
        return None
    value: str = answer["spec"]["hard"]["requests.memory"]
    return value


def is_taken(text: str) -> bool:
    """Return whether a document may say this."""
    try:
        return parse_quantity(text) >= 0
    except QuantityError:
        return False


@pytest.mark.parametrize("text", ACCEPTED)
def test_what_the_server_takes_is_taken_and_means_the_same(api: Api, text: str) -> None:
    answer = stored_by(api, text)
    assert answer is not None
    assert stored(parse_quantity(answer)) == stored(parse_quantity(text))


@pytest.mark.parametrize("text", [*REFUSED, "-1", "-1Gi"])
def test_what_the_server_refuses_is_refused(api: Api, text: str) -> None:
    assert stored_by(api, text) is None
    assert not is_taken(text)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=some.one_of(
        some.from_regex(
            r"[+-]?[0-9]{0,9}\.?[0-9]{0,12}(Ki|Mi|Gi|Ti|Pi|Ei|[numkMGTPE]|[eE][+-]?[0-9]{1,2})?", fullmatch=True
        ),
        some.text("0123456789.+-eEKMGiumn ", max_size=8),
    )
)
@example(text=".")
@example(text="9223372036854775807")
@example(text="9223372036854775808")
@example(text="1e-10")
@example(text="Ti")
@example(text="Pi")
@example(text=".Ei")
@example(text="e-9")
@example(text="e-10")
@example(text=".e-9")
@example(text="+.n")
def test_accepted_or_refused_alike(api: Api, text: str) -> None:
    answer = stored_by(api, text)
    assert (answer is not None) == is_taken(text)
    if answer is not None:
        assert stored(parse_quantity(answer)) == stored(parse_quantity(text))


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    value=some.fractions(min_value=0, max_value=2**62, max_denominator=10**9),
    like=some.sampled_from(["1", "1Gi", "1e3"]),
)
def test_what_is_written_here_is_the_server_s_own_spelling(api: Api, value: Fraction, like: str) -> None:
    text = format_quantity(value, like)
    assert stored_by(api, text) == text
