# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A command's output, and its own words when it fails."""

from __future__ import annotations

import pytest
from ansible_collections.plainkube.cluster.plugins.module_utils.commands import output
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError


class TestError(PlainkubeError):
    """Whatever the caller's own error is."""

    __test__ = False


def test_what_a_command_prints_is_returned_and_its_input_is_given() -> None:
    assert output(["cat"], TestError, 5, text="one\n") == "one\n"
    assert output(["sh", "-c", "echo $LC_ALL"], TestError, 5) == "C\n"
    assert output(["printf", "\\377"], TestError, 5, errors="surrogateescape") == "\udcff"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["no-such-program"], "no-such-program: there is no no-such-program on this host"),
        (["sh", "-c", "echo not so >&2; exit 3"], "sh -c echo not so >&2; exit 3: not so"),
        (["false"], "false: exit code 1"),
        (["sleep", "60"], "sleep 60: it did not end within 0.1 s"),
    ],
)
def test_a_failure_is_the_caller_s_and_says_why(argv: list[str], words: str) -> None:
    with pytest.raises(TestError) as failed:
        output(argv, TestError, 0.1 if argv[0] == "sleep" else 5)
    assert str(failed.value) == words
