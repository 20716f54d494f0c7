# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Quantities of the Kubernetes API (500m, 1Gi, 1e3), exactly. Pure functions.

The grammar is the API's own: a signed number, then a binary suffix (Ki to Ei), a decimal one (n to E) or an exponent.
Where amounts stand beside names of resources, the API keeps nothing finer than a thousandth and nothing beyond 64 bits.
What it would round or cap is exact here, and `stored` says what it makes of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError

BINARY = {"Ki": 1024, "Mi": 1024**2, "Gi": 1024**3, "Ti": 1024**4, "Pi": 1024**5, "Ei": 1024**6}
DECIMAL = {
    "n": Fraction(1, 10**9),
    "u": Fraction(1, 10**6),
    "m": Fraction(1, 10**3),
    "": Fraction(1),
    "k": Fraction(10**3),
    "M": Fraction(10**6),
    "G": Fraction(10**9),
    "T": Fraction(10**12),
    "P": Fraction(10**15),
    "E": Fraction(10**18),
}
# Digits may be missing beside a sign, a point or a suffix: the API reads such as 0, but for the extremes, where its
# other way of reading wants digits.
NUMBER = re.compile(r"(?=.)([+-]?)([0-9]*(?:\.[0-9]*)?)(?:(Ki|Mi|Gi|Ti|Pi|Ei|[numkMGTPE])|[eE]([+-]?[0-9]+))?")
WANT_DIGITS = ("Pi", "Ei")
SMALLEST_EXPONENT_WITHOUT_DIGITS = -9
# Nobody means such an exponent, and ten to its power would fill the memory.
LARGEST_EXPONENT = 1000
LARGEST = Fraction(2**63 - 1)
SMALLEST_STEP = Fraction(1, 10**3)
WANTED = (
    "a number with at most one suffix out of n u m k M G T P E Ki Mi Gi Ti Pi Ei, or with an exponent (500m, 1Gi, 1e3)"
)


class QuantityError(PlainkubeError):
    """A text is no quantity: the message says what was found and what was wanted."""


def parse_quantity(text: Any) -> Fraction:
    """Return the exact value of a quantity; numbers as YAML and JSON read them are taken too. Raises QuantityError."""
    if isinstance(text, bool) or not isinstance(text, (str, int, float)):
        raise QuantityError(f"{text!r} is no quantity; wanted {WANTED}")
    # Blanks around a number do not disturb the API either.
    match = NUMBER.fullmatch(text.strip() if isinstance(text, str) else repr(text))
    if match is None:
        raise QuantityError(f"{text!r} is no quantity; wanted {WANTED}")
    sign, digits, suffix, exponent = match.groups()
    power = int(exponent or 0)
    if abs(power) > LARGEST_EXPONENT:
        raise QuantityError(f"{text!r} has an exponent that nothing has; wanted at most {LARGEST_EXPONENT}")
    whole, _point, part = digits.partition(".")
    if not whole + part and (suffix in WANT_DIGITS or power < SMALLEST_EXPONENT_WITHOUT_DIGITS):
        raise QuantityError(f"{text!r} has no digits; wanted {WANTED}")
    value = Fraction(int((whole + part) or "0"), 10 ** len(part))
    value *= BINARY[suffix] if suffix in BINARY else DECIMAL[suffix or ""]
    value *= Fraction(10) ** power
    return -value if sign == "-" else value


def same_quantity(one: Any, other: Any) -> bool:
    """Return whether two texts mean the same amount to the API server; what is no quantity equals nothing else."""
    if one == other:
        return True
    try:
        return stored(parse_quantity(one)) == stored(parse_quantity(other))
    except QuantityError:
        return False


def stored(value: Fraction) -> Fraction:
    """Return what the API server keeps of a value: rounded away from zero to thousandths, capped at 64 bits."""
    steps = value / SMALLEST_STEP
    whole, rest = divmod(abs(steps.numerator), steps.denominator)
    amount = min((whole + (1 if rest else 0)) * SMALLEST_STEP, LARGEST)
    return -amount if value < 0 else amount


def format_quantity(value: Fraction | int, like: Any = "") -> str:
    """Return a value as the API writes it, in the family of suffixes of the text that it is like.

    With the largest suffix that leaves a whole number. What no binary suffix holds whole is written in decimal.
    """
    value = stored(Fraction(value))
    sign, amount = ("-", -value) if value < 0 else ("", value)
    match = NUMBER.fullmatch(str(like))
    if match and match[3] in BINARY and amount >= 1024 and amount.denominator == 1:
        suffix = next((name for name, size in reversed(BINARY.items()) if amount % size == 0), "")
        return f"{sign}{amount // BINARY.get(suffix, 1)}{suffix}"
    if amount == 0:
        return "0"
    for suffix, size in reversed(DECIMAL.items()):
        if (amount / size).denominator == 1:
            if match and match[4] is not None:
                power = len(str(size.numerator)) - len(str(size.denominator))
                return f"{sign}{amount / size}e{power}" if power else f"{sign}{amount / size}"
            return f"{sign}{amount / size}{suffix}"
    raise AssertionError("a stored value is a whole number of thousandths")


def add_quantities(amounts: Mapping[str, Fraction], more: Mapping[str, Fraction]) -> dict[str, Fraction]:
    """Return the sum of two mappings of resource to amount."""
    return {name: amounts.get(name, Fraction(0)) + more.get(name, Fraction(0)) for name in {**amounts, **more}}
