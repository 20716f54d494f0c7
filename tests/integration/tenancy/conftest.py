# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A real API server for the tests of modules that need nothing else, and modules run as Ansible runs them."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from servers import CHECKOUT, ApiServer, FaultProxy

COUNTER = itertools.count(1)


@dataclass(frozen=True)
class Answer:
    """What a module said: its JSON, and what it wrote beside it."""

    result: dict[str, Any]
    stderr: str
    code: int

    @property
    def message(self) -> str:
        """The message of a failure."""
        return str(self.result.get("msg", ""))


def module_process(
    module: str, arguments: dict[str, Any], *, check: bool = False, diff: bool = False
) -> subprocess.Popen[str]:
    """Start a module of this collection as a program, its arguments on standard input."""
    given = {**arguments, "_ansible_check_mode": check, "_ansible_diff": diff}
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("K8S_AUTH_", "KUBECONFIG"))},
        "PYTHONPATH": str(CHECKOUT / "collections"),
    }
    program = (
        "import json, sys\n"
        "from ansible.module_utils import basic\n"
        f"from ansible_collections.plainkube.cluster.plugins.modules.{module} import main\n"
        "basic._ANSIBLE_ARGS = sys.stdin.buffer.read()\n"
        "basic._ANSIBLE_PROFILE = 'legacy'\n"
        "main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=CHECKOUT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps({"ANSIBLE_MODULE_ARGS": given}))
    process.stdin.close()
    process.stdin = None
    return process


def run_module(module: str, arguments: dict[str, Any], *, check: bool = False, diff: bool = False) -> Answer:
    """Run a module of this collection with these arguments and return its answer; a failure is an answer too."""
    process = module_process(module, arguments, check=check, diff=diff)
    output, stderr = process.communicate(timeout=300)
    assert output.lstrip().startswith("{"), f"{module} said no JSON:\n{output}\n{stderr}"
    return Answer(json.loads(output), stderr, process.returncode)


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """A kube-apiserver with etcd for the whole session. Tests share it: take namespaces of your own."""
    server = ApiServer(tmp_path_factory.mktemp("api"))
    yield server
    server.stop()


@pytest.fixture
def clean_server(api_server: ApiServer) -> ApiServer:
    """The same server without anything that tests left there."""
    api_server.clean()
    return api_server


@pytest.fixture
def make_namespaces(api_server: ApiServer) -> Callable[..., list[str]]:
    """Make fresh namespaces: make_namespaces(2, labels={...}) returns their names."""

    def make(count: int = 1, labels: dict[str, str] | None = None) -> list[str]:
        return api_server.make_namespaces([f"test-{next(COUNTER)}" for _ in range(count)], labels)

    return make


@pytest.fixture
def namespace(make_namespaces: Callable[..., list[str]]) -> str:
    """One fresh namespace."""
    return make_namespaces()[0]


@pytest.fixture
def fault_proxy(api_server: ApiServer) -> Iterator[FaultProxy]:
    """A way to the API server that answers badly on demand; its kubeconfig is the way in."""
    proxy = FaultProxy(api_server)
    yield proxy
    proxy.close()
