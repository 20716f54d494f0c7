# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from ansible_collections.plainkube.cluster.plugins.modules import preflight_facts


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_listener_is_known_though_its_process_closes_files_meanwhile(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.readlink

    def readlink(path: object) -> str:
        target = real(str(path))
        if "/fd/" in str(path) and not target.startswith("socket:"):
            raise FileNotFoundError(path)
        return target

    monkeypatch.setattr(preflight_facts.os, "readlink", readlink)
    (found,) = preflight_facts.listeners({port})
    assert (found["pid"], found["address"]) == (os.getpid(), "127.0.0.1")
