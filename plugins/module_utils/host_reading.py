# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reading a host for people: what a command says, and in plain words why it says nothing. Changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from typing import Any

from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError

COMMAND_SECONDS = 20
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class ReadError(PlainkubeError):
    """Something that could not be read, and why."""


def run(argv: Sequence[str]) -> str:
    """Return what a command prints. Raises ReadError with its own words."""
    command = " ".join(argv)
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMMAND_SECONDS,
            check=False,
            env={**os.environ, "LC_ALL": "C", "PATH": PATH},
        )
    except FileNotFoundError:
        raise ReadError(f"{command}: there is no {argv[0]} on this host") from None
    except subprocess.TimeoutExpired:
        raise ReadError(f"{command}: it did not end within {COMMAND_SECONDS} s") from None
    if done.returncode != 0:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise ReadError(f"{command}: {said}")
    return done.stdout


def run_json(argv: Sequence[str]) -> Any:
    """Return the JSON that a command prints, None when it prints nothing. Raises ReadError."""
    printed = run(argv)
    try:
        return json.loads(printed) if printed.strip() else None
    except ValueError as error:
        raise ReadError(f"{' '.join(argv)}: what it prints is no JSON: {error}") from None
