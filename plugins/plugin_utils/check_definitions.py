# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Definitions of named checks, taken from an argument or from the variable cluster_checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.plainkube.cluster.plugins.module_utils.checks import CheckError, pick, require_sound

VARIABLE = "cluster_checks"


def named_definitions(
    argument: dict[str, Any] | None, names: list[str], templar: Any, task_vars: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the definitions of the named checks, rendered. Others stay as they are: they may need what is not there.

    Raises CheckError.
    """
    if not names:
        return {}
    definitions = argument
    if definitions is None:
        definitions = task_vars.get(VARIABLE, {})
        if isinstance(definitions, str):
            definitions = templar.template(definitions)
        if not isinstance(definitions, Mapping):
            raise CheckError(f"{VARIABLE} is a {type(definitions).__name__}, wanted a dict of definitions by name")
    picked = {name: templar.template(definition) for name, definition in pick(dict(definitions), names).items()}
    require_sound(picked)
    return picked
