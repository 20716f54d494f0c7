# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One opaque string that carries data from an action plugin to its module.

A module's arguments are written to the host's system log and shown at -vvv. Data that is large or secret travels as a
single no_log string instead: neither shows it, and no_log's search-and-replace, which would otherwise eat a diff, finds
nothing.
"""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any


def pack(data: Any) -> str:
    """Return JSON-serialisable data as one ASCII string."""
    return base64.b64encode(zlib.compress(json.dumps(data).encode("utf-8"), 1)).decode("ascii")


def unpack(payload: str) -> Any:
    """Return the data that pack() was given."""
    return json.loads(zlib.decompress(base64.b64decode(payload)).decode("utf-8"))
