# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Getting files over HTTP with the standard library: time-outs, a few attempts, going on where one broke off."""

from __future__ import annotations

import hashlib
import http.client
import json
import posixpath
import re
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path

from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError

STALL_SECONDS = 30
ATTEMPTS = 3
CHUNK = 1 << 20
_SMALL = 1 << 20
CHECKSUM = re.compile(r"^[0-9a-f]{64}$")


class DownloadError(PlainkubeError):
    """A URL that could not be fetched. status is the server's answer, 0 when there was none."""

    def __init__(self, message: str, status: int = 0) -> None:
        """Take the message, which names the URL, and the HTTP status."""
        super().__init__(message)
        self.status = status


def fetch_text(url: str, timeout: float = STALL_SECONDS) -> str:
    """Return a small text. Raises DownloadError."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            return str(answer.read(_SMALL).decode("utf-8", "replace"))
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _told(url, error) from error


def probe(url: str, timeout: float = STALL_SECONDS) -> None:
    """See that a URL can be had, without its content. Raises DownloadError.

    A server that does not know the question (405, 501) is believed: the download itself will tell.
    """
    request = urllib.request.Request(url, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=timeout).close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        if getattr(error, "code", 0) not in (405, 501):
            raise _told(url, error) from error


def download(url: str, path: str, attempts: int = ATTEMPTS, pause: float = 1.0) -> None:
    """Fill the file at path from url, going on with the bytes that are there already.

    pause is the time in seconds before the second attempt; each further one waits that much longer.
    Raises DownloadError, and OSError of the disk.
    """
    target = Path(path)
    for attempt in range(1, attempts + 1):
        try:
            _attempt(url, target)
            return
        except DownloadError as error:
            if 400 <= error.status < 500 or attempt == attempts:
                tried = f" (tried {attempt} times)" if attempt > 1 else ""
                raise DownloadError(f"{error}{tried}", error.status) from error
        time.sleep(attempt * pause)


def _attempt(url: str, target: Path) -> None:
    start = target.stat().st_size if target.exists() else 0
    try:
        request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
        answer = urllib.request.urlopen(request, timeout=STALL_SECONDS)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if (
            getattr(error, "code", 0) == 416
        ):  # nothing is missing, or what is there belongs to another file: the checksum decides
            return
        raise _told(url, error) from error
    with answer, target.open("ab" if start and answer.status == 206 else "wb") as stream:
        announced = answer.headers.get("Content-Length")
        received = 0
        while True:
            try:
                chunk = answer.read(CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise _told(url, error) from error
            if not chunk:
                break
            stream.write(chunk)
            received += len(chunk)
    if announced is not None and received != int(announced):
        raise DownloadError(f"{url}: the connection broke off after {received} of {announced} bytes")


def _told(url: str, error: Exception) -> DownloadError:
    if isinstance(error, urllib.error.HTTPError):
        return DownloadError(f"{url}: the server answered {error.code} {error.reason}", error.code)
    reason = getattr(error, "reason", None) or error
    return DownloadError(f"{url}: {getattr(reason, 'strerror', None) or str(reason) or type(error).__name__}")


def checksum_in(text: str, file: str) -> str | None:
    """Return the SHA-256 that a published file gives for file, or None.

    Publishers serve either the bare sum or lines as sha256sum writes them, for one file or for all of a release. GitHub
    tells the digest of each file of a release in what its API says of the release.
    """
    if text.lstrip().startswith("{"):
        return _digest_in_release(text, posixpath.basename(file))
    lines = [line.split() for line in text.splitlines() if line.strip()]
    if len(lines) == 1 and len(lines[0]) == 1 and CHECKSUM.match(lines[0][0].lower()):
        return lines[0][0].lower()
    for words in lines:
        if (
            len(words) == 2
            and CHECKSUM.match(words[0].lower())
            and posixpath.basename(words[1].lstrip("*")) == posixpath.basename(file)
        ):
            return words[0].lower()
    return None


def _digest_in_release(text: str, name: str) -> str | None:
    try:
        assets = json.loads(text).get("assets", [])
        digests = [str(asset.get("digest")) for asset in assets if asset.get("name") == name]
    except (ValueError, AttributeError):
        return None
    algorithm, _, digest = "".join(digests[:1]).partition(":")
    return digest if algorithm == "sha256" and CHECKSUM.match(digest) else None


def hash_file(path: str) -> str:
    """Return the SHA-256 of a file. Raises OSError."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for chunk in iter(lambda: stream.read(CHUNK), b""):
            digest.update(chunk)
    return digest.hexdigest()


def copy_file(source: str, target: str) -> None:
    """Copy the bytes of a file. Raises OSError."""
    shutil.copyfile(source, target)
