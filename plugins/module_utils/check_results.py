# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What every kind of check is made of: a definition in, a result out, both in words for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ATTEMPT_SECONDS = 3.0

Definition = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """What one attempt of a check found."""

    ok: bool
    seen: str
    expected: str
    applicable: bool = True

    @property
    def state(self) -> str:
        """What is said of the check: nobody shall take for proven what there was no way to prove."""
        return "failed" if not self.ok else "passed" if self.applicable else "not applicable"


def attempt_seconds(definition: Definition) -> float:
    return float(definition.get("timeout") or ATTEMPT_SECONDS)


def reason_of(error: Exception) -> str:
    """Return an exception as one line for people."""
    reason = getattr(error, "verify_message", "")
    if reason:
        return f"its certificate is not accepted: {reason}"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(getattr(error, "strerror", "") or error) or type(error).__name__


def shortened(text: str, at_most: int = 300) -> str:
    text = " ".join(text.split())
    return text if len(text) <= at_most else text[:at_most] + "..."
