# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Starting a host's own programs for the sake of what they print."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError

# Where a distribution keeps its programs, whatever the shell of the one who logs in says.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def output(
    argv: Sequence[str], failure: type[PlainkubeError], seconds: float, text: str = "", errors: str = "replace"
) -> str:
    """Return what a command printed; text goes to its standard input.

    errors: what becomes of bytes that are no text, in the words of bytes.decode(). Raises failure, with the reason.
    """
    command = " ".join(argv)
    try:
        done = subprocess.run(
            argv,
            input=text,
            capture_output=True,
            text=True,
            errors=errors,
            timeout=seconds,
            check=False,
            # A fixed locale, since the answers are read by programs.
            env={**os.environ, "LC_ALL": "C", "PATH": PATH},
        )
    except FileNotFoundError:
        raise failure(f"{command}: there is no {argv[0]} on this host") from None
    except subprocess.TimeoutExpired:
        raise failure(f"{command}: it did not end within {seconds:g} s") from None
    if done.returncode != 0:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise failure(f"{command}: {said}")
    return done.stdout
