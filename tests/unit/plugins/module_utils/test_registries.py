# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Registry mirrors become files that containerd reads in the wanted order."""

from __future__ import annotations

import pytest
import tomllib
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError
from ansible_collections.plainkube.cluster.plugins.module_utils.registries import registry_hosts_files


def test_each_registry_gets_a_folder_and_its_mirrors_in_order() -> None:
    folder, file = registry_hosts_files({"registry.k8s.io": ["https://b.example.org", "http://a.example.org/v2/k8s"]})
    assert folder == {"path": "/etc/containerd/certs.d/registry.k8s.io", "state": "directory", "mode": "0755"}
    assert (file["path"], file["mode"]) == ("/etc/containerd/certs.d/registry.k8s.io/hosts.toml", "0644")
    hosts = tomllib.loads(file["content"])
    assert hosts["server"] == "https://registry.k8s.io"
    assert list(hosts["host"]) == ["https://b.example.org", "http://a.example.org/v2/k8s"]
    assert [host.get("override_path") for host in hosts["host"].values()] == [None, True]
    assert all(host["capabilities"] == ["pull", "resolve"] for host in hosts["host"].values())


@pytest.mark.parametrize(
    ("registry", "server"),
    [("docker.io", "https://registry-1.docker.io"), ("quay.io", "https://quay.io"), ("_default", None)],
)
def test_the_registry_itself_is_asked_last(registry: str, server: str | None) -> None:
    _folder, file = registry_hosts_files({registry: ["https://mirror.example.org"]})
    assert tomllib.loads(file["content"]).get("server") == server


@pytest.mark.parametrize("url", ["mirror.example.org", "ftp://mirror.example.org", "https://"])
def test_a_mirror_is_a_url(url: str) -> None:
    with pytest.raises(PlainkubeError, match="container_runtime_registry_mirrors"):
        registry_hosts_files({"docker.io": [url]})


def test_no_mirrors_need_no_files() -> None:
    assert registry_hosts_files({}) == []
