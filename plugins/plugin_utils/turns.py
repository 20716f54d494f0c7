# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One host after the other, among the workers of one run: a lock on the controller, and a note of what went wrong."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError


class TurnError(PlainkubeError):
    """A turn that must not be taken since another host's turn went wrong."""


@contextmanager
def turn(folder: str, lock: str, roll: str, host: str) -> Iterator[None]:
    """Hold the lock while the body runs; if that raises, or its process dies, later turns of this roll raise TurnError.

    folder: belongs to this run alone and is the same for all its workers. lock: whoever has the same one never runs at
    the same time. roll: one task of the run. A later task under the same lock starts afresh: it may be the one that
    repairs.
    """
    place = Path(folder, "turns-" + _digest(lock))
    note = Path(f"{place}-{_digest(roll)}")
    with place.open("a") as stream:
        # Freed by the kernel when this process ends, however it ends.
        fcntl.flock(stream, fcntl.LOCK_EX)
        if note.exists():
            taken = json.loads(note.read_text())
            # A host may try again itself (until, retries).
            if taken["host"] != host:
                fault = taken["fault"] or "it was broken off"
                raise TurnError(
                    f"Nothing was restarted here: the turn of host {taken['host']} in '{lock}' went wrong: {fault}. "
                    f"Repair {taken['host']} first, then run this again."
                )
        # Written before the turn, so that it stands there too when this process is killed in the middle of it.
        note.write_text(json.dumps({"host": host, "fault": ""}))
        try:
            yield
        except BaseException as error:
            fault = (str(error).strip() or type(error).__name__).splitlines()[0]
            note.write_text(json.dumps({"host": host, "fault": fault}))
            raise
        note.unlink()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
