# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""From where a host gets an artifact, and what checksum it must have: decided on the controller."""

from __future__ import annotations

import posixpath
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ansible_collections.plainkube.cluster.plugins.module_utils.artifacts import ArtifactsError
from ansible_collections.plainkube.cluster.plugins.module_utils.catalogue import Artifact
from ansible_collections.plainkube.cluster.plugins.module_utils.download import DownloadError, checksum_in, fetch_text

PINNED = "pinned in the catalogue"


def supply(artifact: Artifact, source: str, folder: str) -> dict[str, Any]:
    """Return where one artifact comes from.

    The answer has sha256, proof (where that is from), origin and advice for messages, built, and one of url (the host
    downloads), path (a file of the host, whose own note counts when sha256 is empty or it was built) or local (a file
    of the controller, to be sent). Raises ArtifactsError.
    """
    if source == "upstream" and artifact.url:
        return _from_publisher(artifact)
    # No publisher serves images as files: they come from what tools/artifacts put into the folder.
    if source in ("upstream", "push"):
        return _from_folder(artifact, folder)
    if source.startswith("file://"):
        path = posixpath.join(source[len("file://") :], artifact.mirror_path)
        advice = f"Fill that mirror folder on the host ({_command(artifact)}), or correct plainkube_artifact_source"
        return {
            "path": path,
            "sha256": artifact.sha256,
            "proof": PINNED if artifact.sha256 else "",
            "origin": path,
            "advice": advice,
        }
    return _from_mirror(artifact, source)


def _command(artifact: Artifact, folder: str = "") -> str:
    """Return the command that puts the artifact into a mirror."""
    place = f" --mirror {folder}" if folder else ""
    return f"tools/artifacts fill{place} --arch {artifact.arch} --only {artifact.name}={artifact.version}"


def _from_publisher(artifact: Artifact) -> dict[str, Any]:
    advice = f"See that the host reaches it, or use a mirror ({_command(artifact)}; plainkube_artifact_source)"
    sha256, proof = artifact.sha256, PINNED
    if not sha256:
        try:
            sha256 = checksum_in(fetch_text(artifact.published), artifact.file) or ""
        except DownloadError as error:
            raise ArtifactsError(
                f"{artifact.title}: its checksum cannot be had: {error}. "
                f"See that the controller reaches it, or use a mirror ({_command(artifact)}; plainkube_artifact_source)"
            ) from error
        proof = f"published at {artifact.published}"
        if not sha256:
            raise ArtifactsError(f"{artifact.title}: {artifact.published} holds no SHA-256 for {artifact.file}")
    return {"url": artifact.url, "sha256": sha256, "proof": proof, "origin": artifact.url, "advice": advice}


def _from_mirror(artifact: Artifact, source: str) -> dict[str, Any]:
    url = source.rstrip("/") + "/" + quote(artifact.mirror_path)
    advice = f"Fill the mirror ({_command(artifact)}), or correct plainkube_artifact_source"
    try:
        noted = checksum_in(fetch_text(f"{url}.sha256"), artifact.file) or ""
    except DownloadError as error:
        raise ArtifactsError(f"{artifact.title}: the mirror's checksum cannot be had: {error}. {advice}") from error
    if not noted:
        raise ArtifactsError(f"{artifact.title}: {url}.sha256 holds no SHA-256 for {artifact.file}. {advice}")
    return {"url": url, "origin": url, "advice": advice, **_proof(artifact, noted, _mirror_built(url), f"{url}.sha256")}


def _mirror_built(url: str) -> bool:
    try:
        fetch_text(f"{url}.built")
    except DownloadError as error:
        if error.status in (403, 404):  # some object stores say 403 for what they do not have
            return False
        raise ArtifactsError(f"the mirror does not say whether the file was built: {error}") from error
    return True


def _from_folder(artifact: Artifact, folder: str) -> dict[str, Any]:
    if not folder:
        raise ArtifactsError(
            f"{artifact.title}: no folder to push from: set plainkube_artifact_folder on the controller"
        )
    path = Path(folder, artifact.mirror_path)
    advice = f"Run {_command(artifact, folder)}"
    if not path.is_file():
        raise ArtifactsError(f"{artifact.title}: {path} does not exist on the controller. {advice}")
    note = path.with_name(path.name + ".sha256")
    try:
        noted = checksum_in(note.read_text(encoding="utf-8"), path.name) or ""
    except OSError as error:
        raise ArtifactsError(f"{artifact.title}: {note}: {error.strerror}. {advice}") from error
    if not noted:
        raise ArtifactsError(f"{artifact.title}: {note} holds no SHA-256 for {path.name}. {advice}")
    built = path.with_name(path.name + ".built").is_file()
    return {"local": str(path), "origin": str(path), "advice": advice, **_proof(artifact, noted, built, str(note))}


def _proof(artifact: Artifact, noted: str, built: bool, note: str) -> dict[str, Any]:
    """Return the checksum that counts: a mirror's own only where the catalogue has none or the file was built."""
    if artifact.sha256 and not built:
        return {"sha256": artifact.sha256, "proof": PINNED, "built": False}
    return {"sha256": noted, "proof": f"noted in {note}", "built": built}
