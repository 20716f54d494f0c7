# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Text for terminals: columns, paragraphs, durations."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

WIDTH = 96
INDENT = 2
LAST_COLUMN_AT_LEAST = 30


def paragraph(text: str, indent: int = INDENT, first: str = "") -> list[str]:
    """Return text in lines that fit a terminal; first stands before it, and the lines below begin under the text."""
    begin = " " * indent + first
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=begin,
        subsequent_indent=" " * len(begin),
        break_long_words=False,
        break_on_hyphens=False,
    )


def at(address: str, port: int) -> str:
    """Return address and port as one word."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def columns(rows: Iterable[Sequence[str]], indent: int = INDENT) -> list[str]:
    """Return rows in columns as wide as their widest cell. The last column is broken to fit the terminal."""
    cells = [[str(cell) for cell in row] for row in rows]
    if not cells:
        return []
    widths = [max(len(row[number]) for row in cells) for number in range(len(cells[0]) - 1)]
    lines: list[str] = []
    for row in cells:
        begin = " " * indent + "".join(cell.ljust(width + 2) for cell, width in zip(row, widths))
        room = max(LAST_COLUMN_AT_LEAST, WIDTH - len(begin))
        parts = textwrap.wrap(row[-1], room, break_long_words=False, break_on_hyphens=False) or [""]
        lines.append((begin + parts[0]).rstrip())
        lines += [" " * len(begin) + part for part in parts[1:]]
    return lines


def number_of(count: int, thing: str) -> str:
    """Return a count with its noun: 1 rule, 2 rules."""
    ending = "" if count == 1 else "es" if thing.endswith(("s", "x")) else "s"
    return f"{count} {thing}{ending}"


def duration(seconds: float) -> str:
    """Return a span of time as people say it, in its largest fitting unit."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
