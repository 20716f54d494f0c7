# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filter edge_certificates: the certificates with which the edge ends TLS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable

from ansible.errors import AnsibleFilterError

DOCUMENTATION = r"""
name: edge_certificates
short_description: The certificates with which the edge ends TLS
version_added: 0.3.0
author: Plainkube contributors (@plainkube)
description:
  - Reads certificates and their keys on the controller, and makes of each pair one file as haproxy wants it.
  - M(plainkube.cluster.validate_contract) says what is wrong with them.
positional: there
options:
  _input:
    description: The services, as P(plainkube.cluster.edge_services#filter) returns them.
    type: list
    elements: dict
    required: true
  there:
    description: Paths of the files that are on the host. Those that no service has any more are to go.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Write the files that clients are shown
  plainkube.cluster.files:
    items: "{{ cluster_edge_services | plainkube.cluster.edge_certificates }}"
"""

RETURN = r"""
_value:
  description: Items of M(plainkube.cluster.files), secret ones and those that are to go.
  type: list
  elements: dict
"""


def edge_certificates(services: Sequence[Mapping[str, Any]], there: Sequence[str] = ()) -> list[dict[str, Any]]:
    files = [
        {"path": pair["path"], "content": _joined(pair["certificate"], pair["key"]), "mode": "0600", "secret": True}
        for service in services
        for pair in service["certificates"]
    ]
    wanted = {item["path"] for item in files}
    return files + [{"path": path, "state": "absent"} for path in sorted(there) if path not in wanted]


def _joined(*paths: str) -> str:
    """Return files of the controller as one text, each ending with a line's end."""
    try:
        texts = [Path(path).expanduser().read_text(encoding="utf-8", errors="replace") for path in paths]
    except OSError as error:
        raise AnsibleFilterError(
            f"found no readable file {error.filename} ({error.strerror}); wanted a certificate or key on the "
            "controller. Correct the path."
        ) from error
    return "".join(text if text.endswith("\n") else f"{text}\n" for text in texts)


class FilterModule:
    """Names the filter of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"edge_certificates": edge_certificates}
