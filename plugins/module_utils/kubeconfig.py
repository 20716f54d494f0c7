# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A kubeconfig that carries its own credentials."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kubeconfig:
    """One context named after its cluster, with certificate and key of one user inside (PEM)."""

    cluster: str
    server: str
    user: str
    authority: bytes
    certificate: bytes
    key: bytes


def render(kubeconfig: Kubeconfig) -> dict[str, Any]:
    """Return the kubeconfig as the data that clients read."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": kubeconfig.cluster,
                "cluster": {"certificate-authority-data": _encode(kubeconfig.authority), "server": kubeconfig.server},
            }
        ],
        "users": [
            {
                "name": kubeconfig.user,
                "user": {
                    "client-certificate-data": _encode(kubeconfig.certificate),
                    "client-key-data": _encode(kubeconfig.key),
                },
            }
        ],
        "contexts": [{"name": kubeconfig.cluster, "context": {"cluster": kubeconfig.cluster, "user": kubeconfig.user}}],
        "current-context": kubeconfig.cluster,
        "preferences": {},
    }


def parse(data: Any) -> Kubeconfig | None:
    """Return what render() was given, or None for anything that it did not make."""
    try:
        kubeconfig = Kubeconfig(
            cluster=str(data["clusters"][0]["name"]),
            server=str(data["clusters"][0]["cluster"]["server"]),
            user=str(data["users"][0]["name"]),
            authority=_decode(data["clusters"][0]["cluster"], "certificate-authority-data"),
            certificate=_decode(data["users"][0]["user"], "client-certificate-data"),
            key=_decode(data["users"][0]["user"], "client-key-data"),
        )
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    return kubeconfig if render(kubeconfig) == data else None


def _encode(pem: bytes) -> str:
    return base64.b64encode(pem).decode("ascii")


def _decode(part: Mapping[str, Any], name: str) -> bytes:
    try:
        return base64.b64decode(part[name], validate=True)
    except binascii.Error as error:
        raise ValueError(name) from error
