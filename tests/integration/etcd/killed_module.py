# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Runs etcd_migrate as on a host, and ends like a killed process right after one of its journals says something.

Arguments: whose journal, `migration` or `restore`, and the state. On the way it is the real module.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from ansible_collections.plainkube.cluster.plugins.module_utils import etcd_restore_io
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_migration_io import Workshop
from ansible_collections.plainkube.cluster.plugins.modules import etcd_migrate


def main() -> None:
    journal, state = sys.argv[1:]
    # A module without arguments reads them from its input.
    del sys.argv[1:]
    note_migration, note_restore = Workshop.note, etcd_restore_io.note

    def end_at(found: str) -> None:
        if found == state:
            os.kill(os.getpid(), signal.SIGKILL)

    def migration(shop: Workshop, entry: Any) -> Any:
        noted = note_migration(shop, entry)
        end_at(entry.state)
        return noted

    def restore(places: Any, entry: Any) -> None:
        note_restore(places, entry)
        end_at(entry.phase)

    if journal == "migration":
        Workshop.note = migration  # type: ignore[method-assign]
    else:
        etcd_restore_io.note = restore
    etcd_migrate.main()


if __name__ == "__main__":
    main()
