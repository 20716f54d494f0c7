# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What data/catalogue.yml says about one artifact, with every template filled in.

Used on the controller and by tools/artifacts.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.plainkube.cluster.plugins.module_utils.download import CHECKSUM
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError

CATALOGUE = str(Path(__file__).resolve().parents[2] / "data" / "catalogue.yml")
# What the kernel calls a processor, and what publishers of Go programs call it.
ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


class CatalogueError(PlainkubeError):
    """The catalogue does not hold what was asked of it, or cannot be read."""


@dataclass(frozen=True)
class Artifact:
    """One artifact of one version for one architecture."""

    name: str
    version: str
    arch: str
    kind: str  # file, archive or image
    file: str  # path inside the version's folder of a mirror
    url: str  # at the publisher; empty for an image, which comes from a registry
    published: str  # where the publisher serves the checksum; may be empty
    sha256: str  # pinned in the catalogue; empty when it is not
    members_in: str  # folder inside the archive
    members: tuple[str, ...]  # what is installed, named as in the version's folder on a host
    links: str  # folder of the links on a host; empty for none
    image: dict[str, Any] = field(default_factory=dict)
    build: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Name and version, as a message says them."""
        return f"{self.name} {self.version}"

    @property
    def mirror_path(self) -> str:
        """Path of the file inside a mirror."""
        return posixpath.join(self.name, self.version, self.file)

    @property
    def reference(self) -> str:
        """The image's reference, empty for what is no image."""
        return str(self.image.get("reference", ""))

    @property
    def executables(self) -> list[str]:
        """The installed members that get a link: all but folders."""
        return [member for member in self.members if not member.endswith("/")]


def load(path: str = CATALOGUE) -> dict[str, Any]:
    """Read a catalogue. Raises CatalogueError naming the file when it is missing or is no catalogue."""
    import yaml  # the controller has PyYAML, hosts need not

    try:
        with open(path, encoding="utf-8") as stream:
            catalogue = yaml.load(stream, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except OSError as error:
        raise CatalogueError(f"catalogue {path}: cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise CatalogueError(f"catalogue {path}: is no YAML: {error}") from error
    if not isinstance(catalogue, dict) or not isinstance(catalogue.get("artifacts"), list):
        raise CatalogueError(f"catalogue {path}: holds no list 'artifacts'")
    return catalogue


def entries(catalogue: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the entry of each artifact's name, in the catalogue's order."""
    return {name: entry for entry in catalogue["artifacts"] for name in entry["names"]}


def fault_of(catalogue: dict[str, Any], name: str, version: str) -> str | None:
    """Return what is wrong with this name and version, or None when the catalogue has them."""
    known = entries(catalogue)
    if name not in known:
        return f"artifact {name!r} is not in the catalogue; it has {', '.join(sorted(known))}"
    if version not in known[name]["versions"]:
        return (
            f"{name} {version!r} is not in the catalogue; it has {', '.join(known[name]['versions'])}. "
            "Choose one of these, or add the version and its checksums to data/catalogue.yml"
        )
    return None


def resolve(catalogue: dict[str, Any], name: str, version: str, arch: str) -> Artifact:
    """Return the artifact with its templates filled in. Raises CatalogueError for what the catalogue does not have."""
    fault = fault_of(catalogue, name, version)
    if fault:
        raise CatalogueError(fault)
    if arch not in catalogue.get("architectures", ARCHITECTURES.values()):
        raise CatalogueError(f"{name} {version}: no files for architecture {arch!r}; known are amd64 and arm64")
    parts = [*version.split("."), "", ""]
    values = {"name": name, "version": version, "arch": arch, "major": parts[0], "minor": parts[1], "patch": parts[2]}
    entry = {
        key: _fill(value, values) for key, value in entries(catalogue)[name].items() if key not in ("names", "versions")
    }
    sha256 = catalogue.get("checksums", {}).get(name, {}).get(version, {}).get(arch, "")
    if sha256 and not CHECKSUM.match(sha256):
        raise CatalogueError(
            f"{name} {version} {arch}: checksum {sha256!r} in the catalogue is not 64 hexadecimal digits"
        )
    kind = entry["kind"]
    return Artifact(
        name=name,
        version=version,
        arch=arch,
        kind=kind,
        file=entry["file"],
        url=entry.get("url", ""),
        published=entry.get("published", ""),
        sha256=sha256,
        members_in=entry.get("members_in", ""),
        members=tuple(entry.get("members") or {"file": (name,), "image": (f"{name}.tar",)}[kind]),
        links=entry.get("links", ""),
        image=entry.get("image", {}),
        build=entry.get("build", {}),
    )


def describe(catalogue: dict[str, Any], name: str, version: str) -> dict[str, Any]:
    """Return what a host must know of an artifact before its architecture is known. Raises CatalogueError."""
    artifact = resolve(catalogue, name, version, "amd64")
    return {
        "name": name,
        "version": version,
        "kind": artifact.kind,
        "members": list(artifact.members),
        "links": artifact.links,
        "reference": artifact.reference,
        "pinned": catalogue.get("checksums", {}).get(name, {}).get(version, {}),
    }


def _fill(value: Any, values: dict[str, str]) -> Any:
    if isinstance(value, str):
        try:
            return value.format_map(values)
        except (KeyError, ValueError, IndexError) as error:
            raise CatalogueError(
                f"{values['name']} {values['version']}: cannot fill in {value!r} of the catalogue: {error}"
            ) from error
    if isinstance(value, list):
        return [_fill(item, values) for item in value]
    if isinstance(value, dict):
        return {_fill(key, values): _fill(item, values) for key, item in value.items()}
    return value
