# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Who listens on a host, by asking the kernel.

It runs on hosts that may turn out to be too old, so it keeps to what Python 3.8 knows.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible_collections.plainkube.cluster.plugins.module_utils import host_facts


def listeners(ports: set[int] | None, protocol: str = "tcp") -> list[dict[str, Any]]:
    """Return who listens on these ports, or on any. The name is empty when the process is not seen, as in a container.

    protocol: tcp or udp.
    """
    sockets = {}
    for table in (f"/proc/net/{protocol}", f"/proc/net/{protocol}6"):
        for address, port, inode in host_facts.listening_sockets(_text_of(table), sys.byteorder == "little", protocol):
            if ports is None or port in ports:
                # The kernel's own sockets (VXLAN, WireGuard) have no inode.
                key = inode if inode != "0" else f"{table} {address} {port}"
                sockets[key] = {"address": address, "port": port, "process": "", "pid": 0}
    if sockets:
        _find_owners(sockets)
    return sorted(sockets.values(), key=lambda row: (row["port"], row["address"]))


def _text_of(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _find_owners(sockets: dict[str, dict[str, Any]]) -> None:
    for process in Path("/proc").glob("[0-9]*"):
        for target in _descriptors_of(process):
            inode = target[len("socket:[") : -1] if target.startswith("socket:[") else ""
            if inode in sockets and not sockets[inode]["process"]:
                sockets[inode].update(process=_program_of(process), pid=int(process.name))


def _descriptors_of(process: Path) -> Iterator[str]:
    """Yield what a process's descriptors lead to, passing over those that it closes meanwhile."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(process / "fd"):
            with contextlib.suppress(OSError):
                yield os.readlink(entry.path)  # noqa: PTH115 - hot path


def _program_of(process: Path) -> str:
    """Return the base name of a process's program; comm would be cut after 15 characters."""
    try:
        return Path(os.readlink(process / "exe")).name.replace(" (deleted)", "")  # noqa: PTH115 - Python 3.8
    except OSError:
        return _text_of(str(process / "comm")).strip()
