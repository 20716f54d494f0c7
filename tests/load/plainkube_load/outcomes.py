# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What became of requests: counted by phase and kind, with reasons and times. Nothing here waits or sends."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

SAMPLES = 40


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest of some ordered values that is not smaller than so much of them (nearest rank)."""
    if not ordered:
        return 0.0
    return ordered[max(0, -int(-len(ordered) * share // 1) - 1)]


@dataclass
class Tally:
    """Outcomes of one kind of client in one phase.

    done      came to a good end
    failed    of requests: no answer or a wrong one; of streams: ended by the other side
    stale     the connection was closed, unannounced, before the next request was sent. A client that looks before it
              sends only opens another one; one that does not look has lost the request
    announced the end of a connection that the answer before it had announced
    """

    done: int = 0
    failed: int = 0
    stale: int = 0
    announced: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    milliseconds: array[float] = field(default_factory=lambda: array("f"))

    @property
    def strict(self) -> int:
        """Failures of a client that does not look at a connection before it sends."""
        return self.failed + self.stale

    def add(self, other: Tally) -> None:
        """Count what another one counted."""
        self.done += other.done
        self.failed += other.failed
        self.stale += other.stale
        self.announced += other.announced
        self.reasons.update(other.reasons)
        self.milliseconds.extend(other.milliseconds)

    def figures(self) -> dict[str, Any]:
        """Return the counts as plain data."""
        ordered = sorted(self.milliseconds)
        times = {"p50": percentile(ordered, 0.5), "p99": percentile(ordered, 0.99), "max": percentile(ordered, 1)}
        return {
            "done": self.done,
            "failed": self.failed,
            "strict_failed": self.strict,
            "announced": self.announced,
            "reasons": dict(sorted(self.reasons.items())),
            **({f"{name}_ms": round(value, 1) for name, value in times.items()} if ordered else {}),
        }


class Outcomes:
    """All outcomes of a run. moment: seconds since its start."""

    def __init__(self, phase: str = "all") -> None:
        self.phases: list[tuple[str, float, dict[str, Tally]]] = [(phase, 0.0, {})]
        self.samples: list[str] = []
        self.requests = 0

    def begin_phase(self, name: str, moment: float) -> None:
        """Count what ends from now on under another name."""
        self.phases.append((name, moment, {}))

    def of(self, kind: str) -> Tally:
        """Return where the present phase's outcomes of a kind are counted."""
        return self.phases[-1][2].setdefault(kind, Tally())

    def done(self, kind: str, seconds: float | None = None) -> None:
        """Count a good end, and how long it took if that says something."""
        tally = self.of(kind)
        tally.done += 1
        if seconds is not None:
            tally.milliseconds.append(seconds * 1000)

    def failed(self, kind: str, reason: str, moment: float, note: str = "") -> None:
        """Count a failure; the first ones are remembered one by one."""
        tally = self.of(kind)
        tally.failed += 1
        tally.reasons[reason] += 1
        if len(self.samples) < SAMPLES:
            self.samples.append(f"{moment:7.2f} s {self.phases[-1][0]}: {kind}: {reason}{f' ({note})' if note else ''}")

    def figures(self, seconds: float) -> dict[str, Any]:
        """Return everything as plain data."""
        phases = []
        total: dict[str, Tally] = {}
        ends = [begin for _name, begin, _tallies in self.phases[1:]] + [seconds]
        for (name, begin, tallies), end in zip(self.phases, ends):
            for kind, tally in tallies.items():
                total.setdefault(kind, Tally()).add(tally)
            if tallies:
                kinds = {kind: tally.figures() for kind, tally in sorted(tallies.items())}
                phases.append({"phase": name, "seconds": round(end - begin, 1), "kinds": kinds})
        return {
            "seconds": round(seconds, 1),
            "requests": self.requests,
            "failed": sum(tally.failed for tally in total.values()),
            "strict_failed": sum(tally.strict for tally in total.values()),
            "kinds": {kind: tally.figures() for kind, tally in sorted(total.items())},
            "phases": phases,
            "samples": self.samples,
        }


def table(figures: dict[str, Any]) -> str:
    """Return a run's figures for people."""
    lines = ["phase                  kind            done  failed  strict    p50     p99     max ms  reasons"]
    for phase in figures["phases"]:
        lines += _rows(phase["phase"], phase["kinds"].items())
    if len(figures["phases"]) > 1:
        lines += _rows("in all", figures["kinds"].items())
    return "\n".join(lines)


def _rows(phase: str, kinds: Iterable[tuple[str, dict[str, Any]]]) -> list[str]:
    rows = []
    for kind, found in kinds:
        times = "".join(f"{found.get(f'{name}_ms', ''):>8}" for name in ("p50", "p99", "max"))
        reasons = ", ".join(f"{reason} {count}" for reason, count in found["reasons"].items())
        rows.append(
            f"{phase:<22} {kind:<12}{found['done']:>8}{found['failed']:>8}{found['strict_failed']:>8}{times}   "
            f" {reasons}".rstrip()
        )
    return rows
