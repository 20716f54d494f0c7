# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Everything that touches this machine: commands, messages, the cache folder, a lock."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .model import LabError


def say(message: str) -> None:
    print(f"lab: {message}", flush=True)


@contextmanager
def step(message: str) -> Iterator[None]:
    """Says what begins, and how long it took when it ends well."""
    say(f"{message} ...")
    start = time.monotonic()
    yield
    say(f"{message}: {time.monotonic() - start:.1f} s")


def cache_folder() -> Path:
    """The user's cache of plainkube, outside any checkout."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "plainkube"


def private_folder(path: Path) -> Path:
    """Makes the folder, for its owner only."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def write_private(path: Path, content: bytes) -> None:
    """Replaces a file by one that only its owner may read."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
    temporary.replace(path)


def run(
    command: Sequence[str | Path],
    *,
    env: dict[str, str] | None = None,
    check: bool = True,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs a command and returns its output. Raises LabError with its own words if it fails and `check` is set."""
    words = [str(word) for word in command]
    try:
        result = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env={**os.environ, **(env or {})},
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as error:
        raise LabError(f"`{' '.join(words[:3])} ...` did not end within {error.timeout:.0f} s") from error
    if check and result.returncode:
        said = (result.stderr.strip() or result.stdout.strip())[-3000:]
        raise LabError(f"`{' '.join(words)}` ended with {result.returncode}:\n{said}")
    return result


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock file, so that two labs made at once do not build the same image twice."""
    private_folder(path.parent)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another run that holds {path}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def warn(message: str) -> None:
    print(f"lab: {message}", file=sys.stderr, flush=True)
