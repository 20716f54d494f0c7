# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which versions of the other components go with a version of Kubernetes.

Used on the controller and by tools/artifacts.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from ansible_collections.plainkube.cluster.plugins.module_utils.catalogue import entries, load
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError


class VersionsError(PlainkubeError):
    """A version that is unknown, or that does not go with the others."""


@lru_cache(maxsize=1)
def shipped_catalogue() -> dict[str, Any]:
    """Return the collection's own catalogue."""
    return load()


def kubernetes_versions(catalogue: dict[str, Any]) -> list[str]:
    """Return the versions of Kubernetes in the catalogue, newest first."""
    return list(entries(catalogue)["kube-apiserver"]["versions"])


def version_faults(version: Any, overrides: Any = None, catalogue: dict[str, Any] | None = None) -> list[str]:
    """Return every fault of a Kubernetes version with {component: version} chosen beside it."""
    catalogue = catalogue or shipped_catalogue()
    version = str(version)
    if version.startswith("v") and version[1:] in kubernetes_versions(catalogue):
        return [f"Kubernetes version {version!r}: write it without the v, {version[1:]!r}"]
    if version not in kubernetes_versions(catalogue):
        return [f"Kubernetes version {version!r} is unknown: choose one of {', '.join(kubernetes_versions(catalogue))}"]
    minor = version.rpartition(".")[0]
    allowed = catalogue["compatibility"][minor]
    if not isinstance(overrides or {}, dict):
        return [
            f'versions beside Kubernetes {version}: found {overrides!r}, wanted a dictionary such as {{etcd: "3.6.14"}}'
        ]
    faults = []
    for component, chosen in sorted((overrides or {}).items()):
        if component not in allowed:
            faults.append(
                f"{component!r} is no component whose version can be chosen: these are {', '.join(sorted(allowed))}"
            )
        elif not isinstance(chosen, str):
            faults.append(f"{component}: the version {chosen!r} is no text: put it in quotes")
        elif chosen not in allowed[component]:
            faults.append(
                f"{component} {chosen} does not go with Kubernetes {version}: "
                f"with {minor} choose {' or '.join(allowed[component])}, "
                f"or leave {component} out to get {allowed[component][0]}"
            )
    return faults


def component_versions(version: Any, overrides: Any = None, catalogue: dict[str, Any] | None = None) -> dict[str, str]:
    """Return {component: version}, kubernetes among them: the matrix' defaults, overridden by what was chosen.

    Raises VersionsError with all faults at once.
    """
    catalogue = catalogue or shipped_catalogue()
    faults = version_faults(version, overrides, catalogue)
    if faults:
        raise VersionsError("; ".join(faults))
    defaults = {
        component: choices[0] for component, choices in catalogue["compatibility"][version.rpartition(".")[0]].items()
    }
    return {"kubernetes": version, **defaults, **(overrides or {})}
