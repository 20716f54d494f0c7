# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reading a host for people: what a command says, and in plain words why it says nothing. Changes nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ansible_collections.plainkube.cluster.plugins.module_utils import commands
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError

COMMAND_SECONDS = 20


class ReadError(PlainkubeError):
    """Something that could not be read, and why."""


def run(argv: Sequence[str]) -> str:
    """Return what a command prints. Raises ReadError with its own words."""
    return commands.output(argv, ReadError, COMMAND_SECONDS)


def run_json(argv: Sequence[str]) -> Any:
    """Return the JSON that a command prints, None when it prints nothing. Raises ReadError."""
    printed = run(argv)
    try:
        return json.loads(printed) if printed.strip() else None
    except ValueError as error:
        raise ReadError(f"{' '.join(argv)}: what it prints is no JSON: {error}") from None
