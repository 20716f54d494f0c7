#!/usr/bin/env python3
# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""make bench-etcd: snapshots of a database of 600 MB, ours with their proof against etcdctl's without.

One server on loopback; both write to the same disk, in turns, each process timed from its start to its end. Machines
are noisy: medians of three rounds count, and ratios more than seconds. On a machine that others use too, seconds of its
processors, those of the server included, say more than both. The last line is the same as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(CHECKOUT / "tests" / "integration" / "etcd"), str(CHECKOUT / "collections")]

from etcd_servers import V3_7, EtcdServers, binaries, cluster  # noqa: E402

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(CHECKOUT / "collections"), "ETCDCTL_API": "3"}
MODULES = "ansible_collections.plainkube.cluster.plugins"
PROGRAM = [
    sys.executable,
    "-c",
    f"import sys; from {MODULES}.module_utils.etcd_snapshot_io import main; sys.exit(main())",
]
VALUE_BYTES = 1100
BYTES_OF_A_KEY = 1378  # of the file, with the pages' own part
LIMITS = {"speed": 0.9, "resident_mb": 40, "verify_seconds": 1.5}
WATCH_SECONDS = 0.03


class Watched:
    """A process, how long it took, and what it and those of its children that are Python held in memory at most."""

    def __init__(self, command: list[str], stdin: str = "") -> None:
        began = time.monotonic()
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
        )
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self.process.stdin.write(stdin)
        self.process.stdin.close()
        self.resident: dict[int, int] = {}
        ended, status, used = os.wait4(self.process.pid, os.WNOHANG)
        while not ended:
            self._look(self.process.pid)
            time.sleep(WATCH_SECONDS)
            ended, status, used = os.wait4(self.process.pid, os.WNOHANG)
        self.seconds = time.monotonic() - began
        self.processor = used.ru_utime + used.ru_stime
        self.process.returncode = os.waitstatus_to_exitcode(status)
        self.stdout = self.process.stdout.read()
        if self.process.returncode:
            raise SystemExit(f"{' '.join(command)}: {self.stdout}{self.process.stderr.read()}")

    def _look(self, number: int) -> None:
        try:
            # Before it is what it is told to be, a child is a copy of its parent under its parent's name.
            command = Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")
            lines = Path(f"/proc/{number}/status").read_text().splitlines()
            children = Path(f"/proc/{number}/task/{number}/children").read_text().split()
        except OSError:
            return
        if b"python" in Path(os.fsdecode(command[0])).name.encode():
            for line in lines:
                if line.startswith("VmHWM:"):
                    self.resident[number] = int(line.split()[1])
        for child in children:
            self._look(int(child))

    @property
    def largest_mb(self) -> float:
        """What the largest of its processes held."""
        return max(self.resident.values()) / 1000

    @property
    def together_mb(self) -> float:
        """What all of them held, pages that they share counted for each."""
        return sum(self.resident.values()) / 1000


class Bench:
    """The rounds and what they found."""

    def __init__(self, servers: EtcdServers, folder: Path) -> None:
        self.servers = servers
        self.folder = folder
        self.endpoint = servers.endpoints[0]
        self.programs = binaries(servers.version)
        self.found: dict[str, list[float]] = {}

    def note(self, name: str, value: float) -> None:
        self.found.setdefault(name, []).append(value)

    def server_processor(self) -> float:
        """Return the seconds of a processor that the server has used until now."""
        process = self.servers.member(0).process
        assert process
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def timed(self, name: str, command: list[str]) -> Watched:
        """Run a command that takes a snapshot; note its seconds, and those of processors that it and the server use."""
        before = self.server_processor()
        run = Watched(command)
        self.note(name, run.seconds)
        self.note(f"{name}_processor", run.processor + self.server_processor() - before)
        return run

    def fresh(self) -> Path:
        """Return an empty folder, with nothing left to be written by whoever was before."""
        target = self.folder / "target"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(0o700)
        os.sync()
        return target

    def theirs(self) -> None:
        target = self.fresh() / "theirs.db"
        command = [str(self.programs / "etcdctl"), f"--endpoints={self.endpoint}", "snapshot", "save", str(target)]
        self.timed("etcdctl", command)

    def ours(self) -> Path:
        target = self.fresh()
        words = ["take", f"--endpoints={self.endpoint}", f"--dest={target}", "--name=ours.db"]
        run = self.timed("ours", [*PROGRAM, *words, f"--etcdctl={self.programs / 'etcdctl'}"])
        assert json.loads(run.stdout)["changed"]
        self.note("resident", run.largest_mb)
        self.note("together", run.together_mb)
        return target / "ours.db"

    def module(self) -> None:
        """Run the module as Ansible does, for its memory; its time is mostly Ansible's own start."""
        arguments = self.servers.arguments(dest=str(self.fresh()), _ansible_remote_tmp="/tmp")
        stdin = json.dumps({"ANSIBLE_MODULE_ARGS": arguments})
        run = Watched([sys.executable, "-m", f"{MODULES}.modules.etcd_snapshot"], stdin)
        self.note("module", run.seconds)
        self.note("module_resident", run.largest_mb)

    def verify(self, path: Path) -> None:
        run = Watched([*PROGRAM, "verify", str(path)])
        self.note("verify", run.seconds)
        self.note("verify_resident", run.largest_mb)
        status = [str(self.programs / "etcdutl"), "snapshot", "status", str(path)]
        self.note("etcdutl_status", Watched(status).seconds)

    def median(self, name: str) -> float:
        return statistics.median(self.found[name])


def fill(servers: EtcdServers, megabytes: int, say: Callable[[str], None]) -> None:
    began = time.monotonic()
    count = megabytes * 1_000_000 // BYTES_OF_A_KEY
    servers.fill(count, size=VALUE_BYTES)
    say(f"{count} keys of {VALUE_BYTES} bytes written in {time.monotonic() - began:.0f} s")


def report(bench: Bench, size: int, rounds: int) -> dict[str, Any]:
    """Print the table and return the figures."""
    megabytes = size / 1e6
    theirs, ours, verify = bench.median("etcdctl"), bench.median("ours"), bench.median("verify")
    resident = max(*bench.found["resident"], *bench.found["module_resident"], *bench.found["verify_resident"])
    rows = [
        ("etcdctl snapshot save, no proof", theirs, None),
        ("ours, with proof and manifest", ours, bench.median("resident")),
        ("ours, as a module", bench.median("module"), bench.median("module_resident")),
        ("etcdutl snapshot status", bench.median("etcdutl_status"), None),
        ("ours, verification alone", verify, bench.median("verify_resident")),
    ]
    print(f"\n{megabytes:.0f} MB, medians of {rounds}            seconds   MB/s   resident MB")
    for name, seconds, memory in rows:
        print(f"  {name:36}{seconds:9.2f}{megabytes / seconds:7.0f}{memory or 0:14.1f}".replace("           0.0", ""))
    figures = {
        "size_mb": round(megabytes, 1),
        "rounds": rounds,
        "etcdctl_seconds": round(theirs, 3),
        "ours_seconds": round(ours, 3),
        "speed": round(theirs / ours, 3),
        "processor_seconds": {name: round(bench.median(f"{name}_processor"), 2) for name in ("etcdctl", "ours")},
        "load": [round(number, 1) for number in os.getloadavg()],
        "verify_seconds": round(verify, 3),
        "resident_mb": round(resident, 1),
        "together_mb": round(max(bench.found["together"]), 1),
        "runs": {name: [round(value, 3) for value in values] for name, values in bench.found.items()},
    }
    figures["passed"] = (
        figures["speed"] >= LIMITS["speed"]
        and figures["resident_mb"] <= LIMITS["resident_mb"]
        and figures["verify_seconds"] <= LIMITS["verify_seconds"]
    )
    print(
        f"  speed {figures['speed']} of etcdctl (wanted {LIMITS['speed']}), "
        f"largest process {figures['resident_mb']} MB (at most {LIMITS['resident_mb']}), "
        f"verification {verify:.2f} s (at most {LIMITS['verify_seconds']})\n"
        f"  seconds of processors, the server's included: etcdctl {figures['processor_seconds']['etcdctl']}, "
        f"ours {figures['processor_seconds']['ours']}\n"
    )
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write; by default where temporary files go")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(dir=options.folder) as temporary,
        cluster(V3_7, members=1, folder=Path(temporary), quota_backend_bytes=str(8 << 30)) as servers,
    ):
        fill(servers, options.megabytes, lambda text: print(text, flush=True))
        bench = Bench(servers, Path(temporary))
        # The first snapshot of a server reads from the disk what all others find in memory.
        bench.theirs()
        bench.found.clear()
        for _round in range(options.rounds):
            bench.theirs()
            path = bench.ours()
            size = path.stat().st_size
            bench.verify(path)
            bench.module()
        figures = report(bench, size, options.rounds)
    print(json.dumps(figures))
    return 0 if figures["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
