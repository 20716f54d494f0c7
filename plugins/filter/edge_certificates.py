# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filter edge_certificates: the certificates with which the edge ends TLS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Callable

from ansible_collections.plainkube.cluster.plugins.plugin_utils.edge_certificates import read_pair

DOCUMENTATION = r"""
name: edge_certificates
short_description: The certificates with which the edge ends TLS
version_added: 0.3.0
author: Plainkube contributors (@plainkube)
description:
  - Reads certificates and their keys on the controller, says what is wrong with them, and makes of each pair one file
    as haproxy wants it.
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
- name: See that the certificates can be used
  ansible.builtin.assert:
    that: (cluster_edge_services | plainkube.cluster.edge_certificates).faults | length == 0
"""

RETURN = r"""
_value:
  description:
    - C(files) are items of M(plainkube.cluster.files), secret ones and those that are to go.
    - C(faults) is a sentence for each certificate that cannot be used.
  type: dict
"""


def edge_certificates(services: Sequence[Mapping[str, Any]], there: Sequence[str] = ()) -> dict[str, Any]:
    now = datetime.now(timezone.utc)
    files: list[dict[str, Any]] = []
    faults: list[str] = []
    for service in services:
        for pair in service["certificates"]:
            text, found = read_pair(pair["certificate"], pair["key"], now)
            faults += [f"service {service['name']}: {words}" for words in found]
            files.append({"path": pair["path"], "content": text, "mode": "0600", "secret": True})
    wanted = {item["path"] for item in files}
    files += [{"path": path, "state": "absent"} for path in sorted(there) if path not in wanted]
    return {"files": files, "faults": faults}


class FilterModule:
    """Names the filter of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"edge_certificates": edge_certificates}
