# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Arguments of action plugins: checked against a specification, with the contract's variables as defaults."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError


def validated(arguments: Mapping[str, Any], specification: dict[str, Any]) -> dict[str, Any]:
    """Return arguments with their types and defaults. Raises PlainkubeError with all faults at once."""
    result = ArgumentSpecValidator(specification).validate(dict(arguments))
    if result.error_messages:
        raise PlainkubeError("; ".join(result.error_messages))
    # Ansible's strings carry marks of their origin, which YAML and cryptography cannot take: plain data from here on.
    plain: dict[str, Any] = json.loads(json.dumps(result.validated_parameters))
    return plain


def argument_or_variable(
    value: str | None, variable: str, option: str, templar: Any, task_vars: Mapping[str, Any]
) -> str:
    """Return an argument, or the variable that stands in for it. Raises PlainkubeError when neither is there."""
    if value:
        return value
    if variable not in task_vars:
        raise PlainkubeError(
            f"{option} is missing, and so is the variable {variable} that stands in for it: set one of them"
        )
    return str(templar.template(task_vars[variable]))
