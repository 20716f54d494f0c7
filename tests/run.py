#!/usr/bin/env python3
# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Everything that CI runs, from fast to real, each stage as the plain command that a person would type.

    make test                      all stages but those of ON_DEMAND
    make faults                    what a cluster survives
    make molecule SCENARIO=ha      one of them (tests/run.py --only molecule:ha)

A stage that fails does not stop the others; the last line counts them. Installs what it needs, and says so.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
BIN = CHECKOUT / ".venv" / "bin"
PREPARE = [sys.executable, "tools/cluster", "prepare"]
PACKAGES = [sys.executable, "tools/cluster", "test-packages"]
SCENARIOS = ["default", "ha", "external-etcd", "debian13", "vm"]
# What a plain run leaves out, and why. Said at its end as well.
ON_DEMAND = {
    "molecule:debian13": "the default scenario on Debian 13; a plain run has one Debian 13 host in molecule:ha",
    "faults": "what a cluster survives takes most of an hour by itself",
}

# Of a stage that failed, its end is shown again at the very end, where a person looks first.
KEPT_LINES = 8
KEPT_BYTES = 8000


def stages() -> dict[str, list[str]]:
    """Return the stages in order, each with its command."""
    plain = {
        "unit": ["pytest", "tests/unit"],
        "repo": ["pytest", "tests/repo"],
        # Its tests wait for servers most of the time; a file's tests share theirs.
        "integration": ["pytest", "--numprocesses=3", "--dist=loadfile", "tests/integration"],
        "faults": ["pytest", "tests/faults"],
    }
    commands = {name: [str(BIN / words[0]), *words[1:]] for name, words in plain.items()}
    for scenario in SCENARIOS:
        commands[f"molecule:{scenario}"] = [str(BIN / "molecule"), "test", "--scenario-name", scenario]
    return commands


def needs_lab(stage: str) -> bool:
    """Return whether a stage needs packages of this machine and a filled mirror."""
    return stage.startswith("molecule:") or stage in ("faults", "integration")


def run(command: list[str]) -> tuple[bool, list[str]]:
    """Run a command in the checkout, and return whether it succeeded and the last lines that it printed."""
    print(f"    $ {shlex.join(command)}", flush=True)
    environment = {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        # Molecule's own place for scenarios of a collection is another one; ours is the plain one.
        "MOLECULE_GLOB": "molecule/*/molecule.yml",
        "ANSIBLE_FORCE_COLOR": "0",
        "PY_COLORS": "0",
    }
    last = b""
    with subprocess.Popen(
        command, cwd=CHECKOUT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        # Not line by line: a person watches the dots come.
        while part := os.read(process.stdout.fileno(), 65536):
            sys.stdout.buffer.write(part)
            sys.stdout.buffer.flush()
            last = (last + part)[-KEPT_BYTES:]
    lines = [line for line in last.decode(errors="replace").splitlines() if line.strip()]
    return process.returncode == 0, lines[-KEPT_LINES:]


def main() -> int:
    """Run the stages and return the number of failed ones as exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=list(stages()), help="run this stage; may be given again")
    chosen = parser.parse_args().only or [stage for stage in stages() if stage not in ON_DEMAND]
    results: list[tuple[str, bool, float]] = []
    ends: dict[str, list[str]] = {}
    commands = stages()
    if any(needs_lab(stage) for stage in chosen):
        commands = {"prepare": PREPARE, **commands}
        chosen = ["prepare", *chosen]
    if "integration" in chosen:
        commands = {"packages": PACKAGES, **commands}
        chosen = ["packages", *chosen]
    for stage in chosen:
        print(f"\n=== {stage}", flush=True)
        begin = time.monotonic()
        passed, lines = run(commands[stage])
        results.append((stage, passed, time.monotonic() - begin))
        if not passed:
            ends[stage] = lines
        if stage in ("packages", "prepare") and not passed:
            break
    print("\nStage                 result    seconds")
    for stage, passed, seconds in results:
        print(f"{stage:<22}{'passed' if passed else 'FAILED':<10}{seconds:7.0f}")
    for stage, reason in ON_DEMAND.items():
        if stage not in chosen:
            print(f"{stage:<22}not run: {reason} (tests/run.py --only {stage})")
    for stage, lines in ends.items():
        print(f"\nThe end of {stage}, which failed:", *lines, sep="\n    ")
    failed = sum(not passed for _stage, passed, _seconds in results)
    print(f"\n{len(results) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
