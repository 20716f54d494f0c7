#!/usr/bin/env python3
# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The move from v2 to v3 of three members on loopback under a writer, beside `etcdctl migrate` on the same data.

Prints a table for people and one line of JSON. Run through `make bench-etcd`, or by hand, on a machine that does
nothing else.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT / "tests" / "integration" / "etcd"))

from etcd_servers import V3_4, V3_6, binaries  # noqa: E402
from old_cluster import KeyWriter, OldCluster, old_cluster  # noqa: E402
from run_module import run_module  # noqa: E402

WRITES_A_SECOND = 200
VALUE_BYTES = 1024
SIZES = (10_000, 100_000)


def etcdctl_migrate(cluster: OldCluster, folder: Path) -> dict[str, float]:
    """Return how long `etcdctl migrate` takes for one member, and for all three at once, on copies of their data."""
    cluster.stop()
    members = cluster.servers.members
    one, *all_of_them = [folder / f"copy{number}" for number in range(len(members) + 1)]
    shutil.copytree(members[0].data_dir, one)
    for member, target in zip(members, all_of_them, strict=True):
        shutil.copytree(member.data_dir, target)
    subprocess.run(["sync"], check=True)
    cluster.start()
    return {"one_member": migrate([one]), "three_members": migrate(all_of_them)}


def migrate(folders: list[Path]) -> float:
    """Return the seconds that `etcdctl migrate` takes for these data folders, all at once."""
    began = time.monotonic()
    command = [str(binaries(V3_4) / "etcdctl"), "migrate", "--data-dir"]
    environment = {"ETCDCTL_API": "3"}
    running = [
        subprocess.Popen([*command, str(folder)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for folder in folders
    ]
    codes = [one.wait() for one in running]
    if any(codes):
        raise SystemExit(f"etcdctl migrate ended with {codes}")
    return time.monotonic() - began


def measure(count: int) -> dict[str, Any]:
    """Return what a migration of this many keys under a writer takes, and that nothing was lost."""
    with old_cluster(V3_4, V3_6) as cluster, tempfile.TemporaryDirectory() as scratch:
        cluster.fill(count, VALUE_BYTES, folders=max(20, count // 200))
        reference = etcdctl_migrate(cluster, Path(scratch))
        before = cluster.old_keys()
        writer = KeyWriter(cluster, WRITES_A_SECOND)
        writer.start()
        answer = run_module("etcd_migrate", cluster.arguments(**writer.arguments()))
        silent = time.time() - writer.notes.stat().st_mtime
        if answer.get("failed"):
            raise SystemExit(answer["msg"])
        found = cluster.new_keys()
        wanted: dict[str, str | None] = {**before, **writer.acknowledged()}
        lost = [key for key, value in wanted.items() if found.get(key) != value]
        strange = found.keys() - wanted.keys()
    if lost or strange:
        raise SystemExit(f"{len(lost)} keys are lost or changed, {len(strange)} came from nowhere: {lost[:5]}")
    return {
        "keys": count,
        "freeze_seconds": answer["freeze_seconds"],
        "silent_seconds": round(silent, 3),
        "last_changes": answer["last_changes"],
        "total_seconds": answer["total_seconds"],
        "copied_keys_per_second": round(count / answer["seconds"]["copy"]),
        "total_keys_per_second": round(count / answer["total_seconds"]),
        "etcdctl_migrate_keys_per_second": round(count / reference["one_member"]),
        "etcdctl_migrate_of_all_members_keys_per_second": round(count / reference["three_members"]),
        "acknowledged_writes": len(writer_keys(wanted, before)),
        "seconds": answer["seconds"],
    }


def writer_keys(wanted: dict[str, str | None], before: dict[str, str]) -> set[str]:
    return wanted.keys() - before.keys()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, nargs="+", default=SIZES, help="numbers of keys to measure with")
    results = []
    for count in parser.parse_args().keys:
        results.append(measure(count))
        # A long measurement may be cut short; what is known by then is worth something.
        print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    rows = [name for name in results[0] if name != "seconds"]
    for name in rows:
        print(f"{name.replace('_', ' '):48}" + "".join(f"{result[name]:>12}" for result in results))
    print(json.dumps({"etcd_migration": results}))


if __name__ == "__main__":
    main()
