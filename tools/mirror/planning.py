# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which artifacts a mirror is to hold: from what a person asked for to a list of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ansible_collections.plainkube.cluster.plugins.module_utils.catalogue import Artifact, entries, fault_of, resolve
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError
from ansible_collections.plainkube.cluster.plugins.module_utils.versions import component_versions, version_faults


class PlanError(PlainkubeError):
    """What was asked for cannot be had."""


def select(
    catalogue: dict[str, Any],
    kubernetes: Sequence[str],
    only: Sequence[str] = (),
    architectures: Sequence[str] = ("amd64",),
    everything: bool = False,
) -> list[Artifact]:
    """Return the artifacts for some versions of Kubernetes, in the catalogue's order and each once.

    only narrows them to names, or adds one version with name=version. everything means all versions in the catalogue.
    Raises PlanError with all faults at once.
    """
    known = entries(catalogue)
    wanted: dict[str, set[str]] = {name: set() for name in known}
    faults = [fault for version in kubernetes for fault in version_faults(version, None, catalogue)]
    if not faults:
        for version in kubernetes:
            versions = component_versions(version, None, catalogue)
            for name, entry in known.items():
                if version in entry["versions"] and "kube-apiserver" in entry["names"]:
                    wanted[name].add(version)
                elif not entry.get("on_demand"):
                    # What is in no matrix is a tool of its own: its newest version.
                    wanted[name].add(versions.get(entry.get("version_of", name), entry["versions"][0]))
    if everything:
        wanted = {name: set(entry["versions"]) for name, entry in known.items()}
    if only:
        narrowed: dict[str, set[str]] = {}
        for word in only:
            name, _equals, version = word.partition("=")
            fault = fault_of(catalogue, name, version or (known[name]["versions"][0] if name in known else ""))
            if fault:
                faults.append(fault)
            else:
                newest = known[name]["versions"][:1]
                narrowed.setdefault(name, set()).update([version] if version else wanted[name] or newest)
        wanted = narrowed
    if faults:
        raise PlanError("\n".join(faults))
    return [
        resolve(catalogue, name, version, arch)
        for arch in architectures
        for name, entry in known.items()
        for version in entry["versions"]
        if version in wanted.get(name, ())
    ]
