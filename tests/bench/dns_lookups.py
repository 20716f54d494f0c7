# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Looks names up as a program in a pod does, through glibc, and prints what came of it as JSON.

Runs on a node, in a pod's network namespace and with the pod's resolv.conf. Argument: a JSON object with names, lookups
(how many), seconds (instead of them; 0: none) and threads.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time


def main() -> None:
    """Look names up in turn, in several threads."""
    wish = json.loads(sys.argv[1])
    names = wish["names"]
    end = time.monotonic() + wish["seconds"] if wish["seconds"] else None
    each = wish["lookups"] // wish["threads"]
    durations: list[float] = []
    failures: dict[str, int] = {}

    def work(first: int) -> None:
        number = 0
        while number < each if end is None else time.monotonic() < end:
            began = time.monotonic()
            try:
                socket.getaddrinfo(names[(first + number) % len(names)], 80, type=socket.SOCK_STREAM)
            except socket.gaierror as error:
                failures[str(error)] = failures.get(str(error), 0) + 1
            durations.append(time.monotonic() - began)
            number += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(wish["threads"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    durations.sort()
    print(
        json.dumps(
            {
                "lookups": len(durations),
                "failed": sum(failures.values()),
                "failures": failures,
                "median_milliseconds": round(durations[len(durations) // 2] * 1000, 2),
                "slowest_milliseconds": round(durations[-1] * 1000, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
