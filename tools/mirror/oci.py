# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Tar archives and OCI image archives whose bytes follow from their contents alone: fixed times, owners and order."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import struct
import tarfile
from collections.abc import Iterable
from typing import Any, BinaryIO

# Bit numbers of linux/capability.h.
CAPABILITIES = {"net_bind_service": 10}
_CREATED = "1970-01-01T00:00:00Z"

# One thing in an archive: its path, its bytes (None for a folder), its mode.
Entry = tuple[str, "bytes | None", int]


def write_tar(stream: BinaryIO, members: Iterable[Entry], attributes: dict[str, dict[str, str]] | None = None) -> None:
    """Write members in their order; attributes are pax headers per path."""
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path, content, mode in members:
            entry = tarfile.TarInfo(path)
            entry.mode = mode
            entry.pax_headers = (attributes or {}).get(path, {})
            if content is None:
                entry.type = tarfile.DIRTYPE
                archive.addfile(entry)
            else:
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))


def write_tar_gz(stream: BinaryIO, members: Iterable[Entry]) -> None:
    """Write a tar.gz with no name and no time in its header; level 1, since it is unpacked more often than sent."""
    with gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=stream, mtime=0) as compressed:
        write_tar(compressed, members)  # type: ignore[arg-type]


def file_capabilities(names: Iterable[str]) -> str:
    """Return the value of the attribute security.capability: vfs_cap_data, revision 2, effective."""
    permitted = sum(1 << CAPABILITIES[name] for name in names)
    return struct.pack("<IIIII", 0x02000001, permitted, 0, 0, 0).decode("latin-1")


def image_config(image: dict[str, Any], arch: str, layer_digest: str) -> dict[str, Any]:
    """Return an image's configuration from the catalogue's description of it."""
    settings: dict[str, Any] = {
        "Entrypoint": image["entrypoint"],
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "WorkingDir": "/",
    }
    if image.get("command"):
        settings["Cmd"] = image["command"]
    if image.get("user"):
        settings["User"] = image["user"]
    return {
        "created": _CREATED,
        "architecture": arch,
        "os": "linux",
        "config": settings,
        "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
        "history": [{"created": _CREATED, "created_by": "plainkube tools/artifacts"}],
    }


def write_image(stream: BinaryIO, image: dict[str, Any], arch: str, executable: bytes) -> None:
    """Write an OCI archive of one static executable on an empty root; containerd imports it under its reference.

    image is the catalogue's description: reference, entrypoint, and perhaps command, user, capabilities.
    """
    path = image["entrypoint"][0].lstrip("/")
    attributes = {}
    if image.get("capabilities"):
        attributes[path] = {"SCHILY.xattr.security.capability": file_capabilities(image["capabilities"])}
    layer = io.BytesIO()
    write_tar(layer, [("tmp", None, 0o1777), (path, executable, 0o755)], attributes)

    blobs: dict[str, bytes] = {}

    def blob(content: bytes, media_type: str) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        blobs[digest] = content
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    layer_blob = blob(layer.getvalue(), "application/vnd.oci.image.layer.v1.tar")
    config_blob = blob(
        _json(image_config(image, arch, layer_blob["digest"])), "application/vnd.oci.image.config.v1+json"
    )
    media_type = "application/vnd.oci.image.manifest.v1+json"
    manifest = {"schemaVersion": 2, "mediaType": media_type, "config": config_blob, "layers": [layer_blob]}
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [
            {
                **blob(_json(manifest), media_type),
                "platform": {"architecture": arch, "os": "linux"},
                "annotations": {
                    "io.containerd.image.name": image["reference"],
                    "org.opencontainers.image.ref.name": image["reference"].rpartition(":")[2],
                },
            }
        ],
    }
    members: list[Entry] = [
        ("oci-layout", _json({"imageLayoutVersion": "1.0.0"}), 0o644),
        ("index.json", _json(index), 0o644),
        ("blobs", None, 0o755),
        ("blobs/sha256", None, 0o755),
    ]
    members += [(f"blobs/sha256/{digest}", content, 0o644) for digest, content in sorted(blobs.items())]
    write_tar(stream, members)


def _json(data: Any) -> bytes:
    return json.dumps(data, sort_keys=True, separators=(",", ":")).encode()
