# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Labs for tests of faults. Each module has one lab of its own, made before its first test and removed after its last.

LAB_INVENTORY names a lab to use for the cluster instead, which is then left standing; FAULTS=all runs every case.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults_lab import ALL, FOLDER, Lab


def pytest_configure(config: pytest.Config) -> None:
    """Make the mark known."""
    config.addinivalue_line("markers", "long: only with FAULTS=all")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take out what takes long, and say so in the count of deselected tests."""
    if ALL:
        return
    long = [item for item in items if item.get_closest_marker("long")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A running, verified cluster: three hosts that are everything and a worker."""
    given = os.environ.get("LAB_INVENTORY")
    found = Lab(Path(given).resolve() if given else FOLDER / "inventories/faults")
    found.lab("create")
    found.converge()
    yield found
    if not given:
        found.lab("destroy")


@pytest.fixture(scope="module")
def single() -> Iterator[Lab]:
    """A host with nothing on it."""
    found = Lab(FOLDER / "inventories/faults-single")
    found.renew()
    yield found
    found.lab("destroy")
