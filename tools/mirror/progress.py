# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One line per step, with the time since the start and how many are done: the same on a terminal and in a log."""

from __future__ import annotations

import sys
import threading
import time


class Progress:
    """Counts steps and writes lines, from several threads."""

    def __init__(self, total: int) -> None:
        """Start the clock; total is the number of artifacts."""
        self.total = total
        self.done = 0
        self.started = time.monotonic()
        self._lock = threading.Lock()

    def say(self, text: str, finished: int = 0) -> None:
        """Write a line; finished is how many artifacts it completes."""
        with self._lock:
            self.done += finished
            minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
            width = len(str(self.total))
            print(
                f"[{self.done:>{width}}/{self.total}] {minutes:02d}:{seconds:02d}  {text}", file=sys.stdout, flush=True
            )


def size(number: int) -> str:
    """Return a number of bytes for people."""
    return f"{number / 1e6:.1f} MB" if number >= 100_000 else f"{number} bytes"
