# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The matrix answers with versions that go together, and says what does not."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.plainkube.cluster.plugins.filter.component_versions import FilterModule
from ansible_collections.plainkube.cluster.plugins.module_utils.catalogue import fault_of
from ansible_collections.plainkube.cluster.plugins.module_utils.versions import (
    VersionsError,
    component_versions,
    kubernetes_versions,
    shipped_catalogue,
    version_faults,
)


def test_the_default_release_has_the_versions_it_was_tested_with() -> None:
    assert component_versions("1.37.1") == {
        "kubernetes": "1.37.1",
        "etcd": "3.7.3",
        "containerd": "2.3.7",
        "runc": "1.4.3",
        "cni-plugins": "1.9.1",
        "kube-router": "2.10.0",
        "flannel": "0.28.9",
        "crictl": "1.36.0",
        "coredns": "1.14.7",
        "traefik": "3.7.10",
        "gateway-api": "1.6.1",
        "pause": "3.10.2",
        "agnhost": "2.66.1",
        "nginx-ingress": "5.5.4",
    }


@pytest.mark.parametrize(("kubernetes", "etcd"), [("1.37.1", "3.7.3"), ("1.36.4", "3.6.14"), ("1.35.8", "3.6.14")])
def test_each_minor_has_its_etcd(kubernetes: str, etcd: str) -> None:
    assert component_versions(kubernetes)["etcd"] == etcd


def test_what_the_matrix_allows_is_in_the_catalogue() -> None:
    catalogue = shipped_catalogue()
    for version in kubernetes_versions(catalogue):
        for component, choices in catalogue["compatibility"][version.rpartition(".")[0]].items():
            for choice in choices:
                assert fault_of(catalogue, component, choice) is None
                assert component_versions(version, {component: choice})[component] == choice


@pytest.mark.parametrize(
    ("version", "overrides", "said"),
    [
        ("1.34.1", {}, ["'1.34.1' is unknown: choose one of 1.37.1, 1.36.4, 1.35.8"]),
        ("v1.37.1", {}, ["without the v, '1.37.1'"]),
        (1.37, {}, ["'1.37' is unknown"]),
        ("1.36.4", {"etcd": "3.7.3"}, ["etcd 3.7.3 does not go with Kubernetes 1.36.4: with 1.36 choose 3.6.14"]),
        ("1.37.1", {"etcd": 3.7}, ["etcd: the version 3.7 is no text: put it in quotes"]),
        ("1.37.1", {"cni_plugins": "1.9.1"}, ["'cni_plugins' is no component"]),
        ("1.37.1", ["etcd"], ["wanted a dictionary"]),
        ("1.37.1", {"runc": "9", "etcd": "3.5.1"}, ["etcd 3.5.1 does not go", "runc 9 does not go"]),
    ],
)
def test_every_fault_is_said_at_once(version: Any, overrides: Any, said: list[str]) -> None:
    faults = version_faults(version, overrides)
    assert len(faults) == len(said)
    for fault, part in zip(faults, said):
        assert part in fault
    with pytest.raises(VersionsError):
        component_versions(version, overrides)


def test_the_filter_answers_and_fails_as_ansible_wants_it() -> None:
    ask = FilterModule().filters()["component_versions"]
    assert ask("1.37.1", {"etcd": "3.6.14"})["etcd"] == "3.6.14"
    with pytest.raises(AnsibleFilterError, match="component_versions: Kubernetes version '2' is unknown"):
        ask("2")
