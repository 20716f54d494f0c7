# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Quantities: the laws of their arithmetic. What the API server accepts is tested against one, in integration."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils.quantities import (
    BINARY,
    DECIMAL,
    LARGEST,
    SMALLEST_STEP,
    QuantityError,
    add_quantities,
    format_quantity,
    parse_quantity,
    same_quantity,
    stored,
)
from hypothesis import given
from hypothesis import strategies as some

SUFFIXES = [*BINARY, *DECIMAL]
amounts = some.fractions(min_value=-(2**70), max_value=2**70, max_denominator=10**12)
spellings = some.builds(
    "{}{}{}{}".format,
    some.sampled_from(["", "+", "-"]),
    some.integers(0, 10**7),
    some.sampled_from(["", ".", ".5", ".125", ".000000001"]),
    some.sampled_from([*SUFFIXES, "e3", "E3", "e-2", "e+1"]),
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("1000m", 1),
        ("1", 1),
        ("1Gi", 1024**3),
        ("1024Mi", 1024**3),
        ("0.5Gi", 2**29),
        ("1k", 1000),
        ("1E", 10**18),
        ("1e3", 1000),
        ("1E3", 1000),
        ("1e-3", Fraction(1, 1000)),
        ("100n", Fraction(1, 10**7)),
        ("5u", Fraction(5, 10**6)),
        (".5", Fraction(1, 2)),
        ("5.", 5),
        ("+2", 2),
        (" 3 ", 3),
        (".", 0),
        ("e3", 0),
        ("Gi", 0),
        ("-1Ki", -1024),
        (3, 3),
        (1.5, Fraction(3, 2)),
        (1e-07, Fraction(1, 10**7)),
    ],
)
def test_a_quantity_has_one_exact_value(text: Any, value: Any) -> None:
    assert parse_quantity(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "1 000",
        "1K",
        "1Gb",
        "1ki",
        "1e",
        "1mm",
        "--1",
        "1,5",
        "one",
        "0x10",
        "1e3Ki",
        "\u0661",
        "1e1001",
        "nan",
    ],
)
def test_what_is_no_quantity_is_refused_in_words(text: str) -> None:
    with pytest.raises(QuantityError, match=r"is no quantity; wanted a number|has an exponent"):
        parse_quantity(text)


@pytest.mark.parametrize("value", [None, True, [], {}, float("inf"), float("nan")])
def test_what_is_no_text_or_number_is_refused(value: Any) -> None:
    with pytest.raises(QuantityError):
        parse_quantity(value)


@given(value=amounts, like=some.sampled_from(["", "1Gi", "1m", "1e3"]))
def test_writing_and_reading_gives_what_the_api_stores(value: Fraction, like: str) -> None:
    assert parse_quantity(format_quantity(value, like)) == stored(value)


@given(text=spellings)
def test_a_written_quantity_is_written_the_same_again(text: str) -> None:
    once = format_quantity(parse_quantity(text), text)
    assert format_quantity(parse_quantity(once), once) == once
    assert same_quantity(once, text)


@given(value=amounts)
def test_storing_rounds_away_from_zero_and_once(value: Fraction) -> None:
    kept = stored(value)
    assert stored(kept) == kept
    assert (kept / SMALLEST_STEP).denominator == 1
    if abs(value) <= LARGEST:
        assert 0 <= abs(kept) - abs(value) < SMALLEST_STEP
    else:
        assert abs(kept) == LARGEST


@given(one=spellings, other=spellings)
def test_equal_means_the_same_amount(one: str, other: str) -> None:
    assert same_quantity(one, other) == (stored(parse_quantity(one)) == stored(parse_quantity(other)))
    assert same_quantity(one, other) == same_quantity(other, one)


def test_words_equal_only_themselves() -> None:
    assert same_quantity("much", "much")
    assert not same_quantity("much", "1")
    assert not same_quantity("1", None)


@given(
    one=some.dictionaries(some.sampled_from("abc"), amounts), other=some.dictionaries(some.sampled_from("abc"), amounts)
)
def test_a_sum_has_every_resource_of_both(one: dict[str, Fraction], other: dict[str, Fraction]) -> None:
    total = add_quantities(one, other)
    assert set(total) == {*one, *other}
    assert sum(total.values()) == sum(one.values()) + sum(other.values())
    assert total == add_quantities(other, one)
