# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the tests of the edge stand on."""

from __future__ import annotations

from pathlib import Path

import pytest
from edge_parts import HAPROXY, Identities


@pytest.fixture(scope="session")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Identities:
    assert Path(HAPROXY).is_file(), "install haproxy, or let tests/run.py do it"
    return Identities(tmp_path_factory.mktemp("identities"))
