#!/usr/bin/env python3
# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""make bench-tenancy: a quota and a LimitRange in each of 1,000 namespaces, by this collection and by kubernetes.core.

Both sides run as playbooks against a real kube-apiserver with etcd on loopback, which writes to the disk. The second
run is done three times and the median counts, since machines are noisy. The last line is the same as JSON.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(CHECKOUT / path) for path in ("collections", "tools", "tests/integration/tenancy")]

from ansible_collections.plainkube.cluster.plugins.module_utils.tenants import (  # noqa: E402
    document_of,
    members,
    objects,
)
from api_servers import ApiServer  # noqa: E402

BIN = Path(sys.executable).parent
SECOND_RUNS = 3
TENANTS = 20
RECAP = re.compile(r"changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)")
LIMITS = {"first_run_seconds": 8.0, "second_run_seconds": 2.5, "second_run_requests": 6, "module_mib": 80}


# What a profile can give beside a quota and a LimitRange.
EVERYTHING: dict[str, Any] = {
    "disruption_budget": {"max_unavailable": 1},
    "default_deny": ["ingress", "egress"],
    "pod_security": {"enforce": "baseline", "warn": "restricted"},
    "service_account_token": False,
}


def document(namespaces: int, everything: bool) -> dict[str, Any]:
    """Return a tenants document with a quota and a LimitRange for each of so many namespaces, or with everything."""
    each = namespaces // TENANTS
    profile: dict[str, Any] = {
        **(EVERYTHING if everything else {}),
        "quotas": {
            "compute": {
                "hard": {"requests.cpu": "2000m", "requests.memory": "4Gi", "limits.memory": "4Gi", "pods": "20"}
            }
        },
        "limit_range": {
            "container": {
                "default": {"cpu": "500m", "memory": "256Mi"},
                "default_request": {"cpu": "100m", "memory": "128Mi"},
            }
        },
    }
    tenants = {
        f"team-{number}": {
            "profile": "small",
            "budget": {"requests.cpu": each * 2, "requests.memory": f"{each * 4}Gi"},
            "namespaces": [f"team-{number}-{index}" for index in range(each)],
        }
        for number in range(TENANTS)
    }
    return {"tenants": tenants, "profiles": {"small": profile}}


def play(folder: Path, playbook: Path, *options: str) -> tuple[float, str]:
    """Run a playbook and return its seconds and output. Ends the program when it fails."""
    inventory = folder / "hosts.yml"
    inventory.write_text("all: {hosts: {controller: {ansible_connection: local}}}\n")
    environment = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": f"{CHECKOUT / 'collections'}:{os.environ.get('ANSIBLE_COLLECTIONS_PATH', '')}",
        "ANSIBLE_FORCE_COLOR": "0",
    }
    begin = time.monotonic()
    done = subprocess.run(
        [BIN / "ansible-playbook", "-i", inventory, playbook, *options],
        cwd=CHECKOUT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.monotonic() - begin
    if done.returncode != 0:
        sys.exit(f"{playbook} failed:\n{done.stdout[-4000:]}\n{done.stderr[-2000:]}")
    return seconds, done.stdout


def module_run(server: ApiServer, file: Path) -> tuple[dict[str, Any], float]:
    """Run the module alone; return its result and its memory in MiB, the interpreter's included."""
    # The kernel's own figure for the program: that of wait4 begins with the memory of whoever started it.
    program = (
        "import atexit, pathlib, sys\n"
        "from ansible.module_utils import basic\n"
        "from ansible_collections.plainkube.cluster.plugins.modules.quota import main\n"
        "status = pathlib.Path('/proc/self/status')\n"
        "atexit.register(lambda: sys.stderr.write(status.read_text().split('VmHWM:')[1].split()[0]))\n"
        "basic._ANSIBLE_ARGS = sys.stdin.buffer.read()\n"
        "basic._ANSIBLE_PROFILE = 'legacy'\n"
        "main()\n"
    )
    arguments = {"kubeconfig": str(server.kubeconfig), "tenants_file": str(file)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT / "collections")},
        input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout), int(done.stderr.split()[-1]) / 1024


def ours(server: ApiServer, folder: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of this collection's playbook."""
    file = folder / "tenants.yml"
    file.write_text(json.dumps(wanted))
    options = ["-e", f"tenancy_file={file}", "-e", f"tenancy_kubeconfig={server.kubeconfig}"]
    playbook = CHECKOUT / "playbooks" / "apply-quotas.yml"
    first, output = play(folder, playbook, *options)
    runs = [play(folder, playbook, *options) for _number in range(SECOND_RUNS)]
    result, memory = module_run(server, file)
    wanted = copy.deepcopy(wanted)
    wanted["profiles"]["small"]["quotas"]["compute"]["hard"]["pods"] = "21"
    file.write_text(json.dumps(wanted))
    _changing, memory_of_writing = module_run(server, file)
    changed = [int(found[1]) for _seconds, text in runs if (found := RECAP.search(text))]
    return {
        "first_run_seconds": round(first, 1),
        "first_run_created": int(found[1]) if (found := re.search(r"created: (\d+)", output)) else 0,
        "second_run_seconds": round(statistics.median(seconds for seconds, _text in runs), 2),
        "second_run_changed": max(changed),
        "second_run_requests": result["requests"],
        "second_run_writes": result["writes"],
        "module_mib": round(max(memory, memory_of_writing)),
        "unchanged": result["counts"]["unchanged"],
    }


def theirs(server: ApiServer, folder: Path, wanted: dict[str, Any], group: str) -> dict[str, Any]:
    """Return the figures of kubernetes.core.k8s with the same objects as one list."""
    meaning = document_of(wanted)
    found, _faults = members(meaning.tenants.values(), meaning.profiles, None)
    definitions = [thing for member in found for thing in objects(member)]
    for thing in definitions:
        thing["metadata"] = {**thing["metadata"], "name": f"{thing['metadata']['name']}-{group}"}
    file = folder / "definitions.json"
    file.write_text(json.dumps(definitions))
    task = {
        "name": "Apply",
        "kubernetes.core.k8s": {
            "kubeconfig": str(server.kubeconfig),
            "definition": f"{{{{ lookup('ansible.builtin.file', '{file}') | from_json }}}}",
            "apply": True,
            "server_side_apply": {"field_manager": "bench"},
        },
        "vars": {"ansible_python_interpreter": sys.executable},
    }
    playbook = folder / "k8s.yml"
    playbook.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": [task]}]))
    first, _output = play(folder, playbook)
    second, _output = play(folder, playbook)
    return {"first_run_seconds": round(first, 1), "second_run_seconds": round(second, 1)}


def main() -> int:
    """Measure both sides and say whether the limits hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--namespaces", type=int, default=1000)
    parser.add_argument(
        "--everything", action="store_true", help="give all that a profile can give, six kinds of objects"
    )
    parser.add_argument("--alone", action="store_true", help="leave kubernetes.core out, which takes a minute")
    options = parser.parse_args()
    wanted = document(options.namespaces, options.everything)
    names = [name for tenant in wanted["tenants"].values() for name in tenant["namespaces"]]
    figures: dict[str, Any] = {"namespaces": len(names)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "server").mkdir()
        server = ApiServer(path / "server", durable=True)
        try:
            server.make_namespaces(names)
            print(f"{len(names)} namespaces are there; this collection", flush=True)
            figures["plainkube.cluster"] = ours(server, path, wanted)
            if not options.alone:
                print("kubernetes.core", flush=True)
                figures["kubernetes.core"] = theirs(server, path, wanted, "other")
        finally:
            server.stop()
    own = figures["plainkube.cluster"]
    print("\n                     first run   second run   requests   writes   module")
    print(
        f"plainkube.cluster    {own['first_run_seconds']:7.1f} s   {own['second_run_seconds']:8.2f} s"
        f"   {own['second_run_requests']:8d}   {own['second_run_writes']:6d}   {own['module_mib']:3d} MiB"
    )
    if not options.alone:
        other = figures["kubernetes.core"]
        print(f"kubernetes.core      {other['first_run_seconds']:7.1f} s   {other['second_run_seconds']:8.2f} s")
    missed = [f"{name} {own[name]} instead of at most {limit}" for name, limit in LIMITS.items() if own[name] > limit]
    print("\n" + ("; ".join(missed) if missed else "All limits hold.") + "\n")
    print(json.dumps(figures))
    return 1 if missed or own["second_run_changed"] or own["second_run_writes"] else 0


if __name__ == "__main__":
    sys.exit(main())
