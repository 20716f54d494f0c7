# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Registry mirrors in containerd's way: one folder per registry with a hosts.toml that names the mirrors in order."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError

FOLDER = "/etc/containerd/certs.d"
EVERY_REGISTRY = "_default"
# Where a registry answers when that is not its name.
SERVERS = {"docker.io": "https://registry-1.docker.io"}


def registry_hosts_files(mirrors: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Return items for the files plugin: a folder and a hosts.toml for each registry.

    mirrors maps a registry's name (or _default for all others) to base URLs, which containerd asks in this order before
    the registry itself. Raises PlainkubeError for a mirror that is not an http(s) URL.
    """
    items: list[dict[str, Any]] = []
    for registry in sorted(mirrors):
        folder = f"{FOLDER}/{registry}"
        items.append({"path": folder, "state": "directory", "mode": "0755"})
        items.append({"path": f"{folder}/hosts.toml", "content": _hosts(registry, mirrors[registry]), "mode": "0644"})
    return items


def _hosts(registry: str, urls: Sequence[str]) -> str:
    lines = ["# Managed by plainkube.cluster, role container_runtime."]
    if registry != EVERY_REGISTRY:
        lines.append(f"server = {json.dumps(SERVERS.get(registry, 'https://' + registry))}")
    for url in urls:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise PlainkubeError(
                f"Mirror {url!r} of registry {registry} is no URL; wanted one such as https://mirror.example.org. "
                "Correct container_runtime_registry_mirrors."
            )
        lines += ["", f"[host.{json.dumps(url)}]", 'capabilities = ["pull", "resolve"]']
        if "/v2" in parts.path:
            # The path is the whole base of the registry API there: containerd must not add another /v2.
            lines.append("override_path = true")
    return "\n".join(lines) + "\n"
