# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Runs on a node: writes one key after the other to the v2 store of etcd, and notes each that was acknowledged.

Arguments: the file for the notes, and the URLs of the members. A key that a member does not take is tried at the next.
Started again it goes on after its last note.
"""

from __future__ import annotations

import itertools
import sys
import time
import urllib.parse
import urllib.request

PAUSE = 0.02


def main() -> None:
    """Write until somebody ends this."""
    notes, *members = sys.argv[1:]
    turns = itertools.cycle(members)
    member = next(turns)
    with open(notes, "a+", encoding="utf-8", buffering=1) as written:
        written.seek(0)
        for number in itertools.count(len(written.readlines())):
            while True:
                request = urllib.request.Request(
                    f"{member}/v2/keys/written/{number}",
                    urllib.parse.urlencode({"value": f"value {number}"}).encode(),
                    method="PUT",
                )
                try:
                    with urllib.request.urlopen(request, timeout=5) as answer:
                        answer.read()
                    break
                except OSError:
                    member = next(turns)
                    time.sleep(PAUSE)
            written.write(f"{number}\n")
            time.sleep(PAUSE)


main()
