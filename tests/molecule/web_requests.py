# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Requests for a web site in the cluster, as clients outside of it make them."""

from __future__ import annotations

import time
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException

NAME = "shop.example.org"
PATIENCE_SECONDS = 60.0


def ask(make: Callable[[], HTTPConnection], path: str, name: str = NAME) -> tuple[int, str]:
    """Return the status and the text of one answer; 0 and the reason when there was none."""
    connection = make()
    try:
        connection.request("GET", path, headers={"Host": name})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except (OSError, HTTPException) as error:
        return 0, str(error)
    finally:
        connection.close()


def ask_until_well(make: Callable[[], HTTPConnection], path: str, name: str = NAME) -> tuple[int, str]:
    """Return the first answer of the pod; until its route is known there is none."""
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        answer = ask(make, path, name)
        if answer[0] == 200 or time.monotonic() > end:
            return answer
        time.sleep(0.2)
