#!/usr/bin/env python3
# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""make bench-ingress: requests that are lost while an ingress' configuration changes, and what others lose beside it.

A load of clients that do not retry runs while 20 routes are added and removed, a certificate is changed, the backend is
rolled and scaled. For comparison, the same is done to Debian's nginx and haproxy on loopback. The last line is the same
as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
SLOW_SECONDS = 90
SAMPLES = 12
sys.path[:0] = [str(CHECKOUT / path) for path in ("collections", "tests/bench", "tools")]

from bench import BIN, fresh_lab, play, write_inventory  # noqa: E402
from ingress_changes import STEADY_SECONDS, Authority, change_backend, change_everything, load  # noqa: E402
from ingress_cluster import SECURE_EDGE_PORT, Cluster, describe  # noqa: E402
from ingress_processes import Haproxy, HaproxyRuntime, Nginx, Proxy, program  # noqa: E402

Make = Callable[[str, Path, tuple[bytes, bytes]], Proxy]
COMPARED: dict[str, tuple[str, str, Make]] = {
    "nginx": ("nginx, reloads", "nginx", Nginx),
    "nginx-timeout": (
        "nginx, reloads, worker_shutdown_timeout 5s",
        "nginx",
        lambda title, folder, certificate: Nginx(title, folder, certificate, "5s"),
    ),
    "haproxy": ("haproxy, reloads", "haproxy", Haproxy),
    "haproxy-runtime": ("haproxy, told at its runtime socket", "haproxy", HaproxyRuntime),
}


def compare(key: str) -> dict[str, Any]:
    """Make all changes to a proxy on loopback and return the load's figures."""
    title, _program, make = COMPARED[key]
    print(f"\n{title}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        authority = Authority(folder)
        proxy = make(title, folder, authority.issue())
        try:
            with load(proxy.targets, authority.file, "--slow-seconds=15") as run:
                change_everything(proxy, run, authority)
                figures = run.stop()
        finally:
            proxy.end()
    return {"proxy": title, **figures}


@contextlib.contextmanager
def cluster_of_the_bench(folder: Path, authority: Authority) -> Iterator[Path]:
    """Have a lab of two ingress hosts behind one edge host, with a cluster on it; yield its inventory."""
    subprocess.run([sys.executable, "tools/cluster", "prepare"], cwd=CHECKOUT, check=True)
    files = {"certificate": folder / "edge.crt", "key": folder / "edge.key"}
    for file, content in zip(files.values(), authority.issue()):
        file.touch(mode=0o600)
        file.write_bytes(content)
    certificates = [{name: str(file) for name, file in files.items()}]
    services = [
        {"name": "web", "kind": "http", "port": 80},
        {"name": "web-tls", "kind": "http", "port": SECURE_EDGE_PORT, "backend_port": 80, "certificates": certificates},
        {"name": "web-bytes", "kind": "tcp", "port": 443},
    ]
    everything = {"node1": {"ansible_host": "10.89.88.11"}, "node2": {"ansible_host": "10.89.88.12"}}
    first = {"hosts": {"node1": None}}
    groups = {
        "etcd": first,
        "control_plane": first,
        "workers": {"hosts": everything},
        "ingress": {"hosts": dict.fromkeys(everything)},
        "edge": {"hosts": {"edge1": {"ansible_host": "10.89.88.13"}}, "vars": {"plainkube_edge_services": services}},
    }
    inventory = write_inventory(folder / "inventory", "bench-ingress", groups)
    with fresh_lab(inventory):
        print("A cluster is made", flush=True)
        play(inventory)
        yield inventory


def measure_cluster(chosen: Sequence[str], running: Path | None) -> Iterator[dict[str, Any]]:
    """Make the changes to the ingress of a running cluster, or of one of the bench's own, one after the other."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        authority = Authority(Path(name))
        inventory = running or stack.enter_context(cluster_of_the_bench(Path(name), authority))
        description = describe(inventory, BIN / "ansible-playbook")
        for key in chosen:
            title, measure = OWN[key]
            print(f"\n{title}", flush=True)
            cluster = Cluster(title, description, running is None, pre_stop=key != "traefik-no-pre-stop")
            try:
                cluster.begin(authority.issue())
                yield {"proxy": title, **measure(cluster, authority)}
            finally:
                cluster.end()


def measure_changes(cluster: Cluster, authority: Authority) -> dict[str, Any]:
    """Make all changes, while websockets and the slow transfers last."""
    with load(cluster.targets, authority.file, f"--slow-seconds={SLOW_SECONDS}") as run:
        change_everything(cluster, run, authority)
        return run.stop()


def measure_backend(cluster: Cluster, authority: Authority) -> dict[str, Any]:
    """Change the backend alone."""
    with load(cluster.targets, authority.file) as run:
        time.sleep(STEADY_SECONDS)
        change_backend(cluster, run)
        return run.stop()


def measure_roll(cluster: Cluster, authority: Authority, targets: Sequence[str]) -> dict[str, Any]:
    """Replace Traefik itself behind the edge. Streams leave by themselves here, since a roll-out waits for them."""
    with load(targets, authority.file, "--slow-seconds=20", "--stream-seconds=20") as run:
        time.sleep(STEADY_SECONDS)
        run.phase("Traefik rolled")
        cluster.roll_ingress()
        run.phase("steady again")
        time.sleep(STEADY_SECONDS)
        return run.stop()


OWN: dict[str, tuple[str, Callable[[Cluster, Authority], dict[str, Any]]]] = {
    "traefik": ("Traefik, all changes", measure_changes),
    "traefik-rolled": (
        "Traefik rolled, edge of kind http",
        lambda cluster, authority: measure_roll(cluster, authority, cluster.edge_requests),
    ),
    "traefik-rolled-tcp": (
        "Traefik rolled, edge of kind tcp",
        lambda cluster, authority: measure_roll(cluster, authority, cluster.edge_connections),
    ),
    "traefik-no-pre-stop": ("Traefik, backend without preStop", measure_backend),
}
# What must lose nothing.
LOSSLESS = {OWN[key][0] for key in ("traefik", "traefik-rolled", "traefik-rolled-tcp")}


def phases_table(figures: dict[str, Any]) -> str:
    """Return one line for each phase: what was lost in it."""
    lines = ["phase                       seconds  requests    failed    strict   streams cut   p50     p99 ms"]
    for phase in figures["phases"]:
        kinds = phase["kinds"]
        asked = [kinds[kind] for kind in ("get", "post", "fresh") if kind in kinds]
        streams = [kinds[kind] for kind in kinds if kind not in ("get", "post", "fresh")]
        done = sum(found["done"] + found["failed"] for found in asked)
        lines.append(
            f"{phase['phase']:<26}{phase['seconds']:>9}{done:>10}{sum(found['failed'] for found in asked):>10}"
            f"{sum(found['strict_failed'] for found in asked):>10}{sum(found['failed'] for found in streams):>14}"
            f"{max((found.get('p50_ms', 0) for found in asked), default=0):>6.1f}"
            f"{max((found.get('p99_ms', 0) for found in asked), default=0):>11.1f}"
        )
    return "\n".join(lines)


def summary(everything: list[dict[str, Any]]) -> str:
    """Return one line for each proxy."""
    lines = [
        "                                              failed requests     cut of streams",
        "proxy                                requests    pooling  strict   websockets  events  upload  response",
    ]
    for figures in everything:
        kinds = figures["kinds"]
        lines.append(
            f"{figures['proxy']:<42}"
            + f"{figures['requests']:>8}"
            + f"{sum(kinds[kind]['failed'] for kind in ('get', 'post', 'fresh')):>11}"
            + f"{sum(kinds[kind]['strict_failed'] for kind in ('get', 'post', 'fresh')):>8}"
            + f"{cut(kinds, 'websocket'):>13}{cut(kinds, 'events'):>8}{cut(kinds, 'upload'):>8}"
            + f"{cut(kinds, 'response'):>10}"
        )
    return "\n".join(lines)


def cut(kinds: dict[str, dict[str, Any]], kind: str) -> str:
    """Return how many of a kind of streams were cut; - for none that was there."""
    return str(kinds[kind]["failed"]) if kind in kinds else "-"


def shown(figures: dict[str, Any]) -> dict[str, Any]:
    """Print a measurement, with its first failures one by one, and return it."""
    samples = [f"  {sample}" for sample in figures.pop("samples")[:SAMPLES]]
    print(phases_table(figures), *samples, sep="\n", flush=True)
    return figures


def main() -> int:
    """Measure, print, and fail when our own ingress lost anything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=[*OWN, *COMPARED], help="may be given again")
    parser.add_argument(
        "--inventory",
        type=Path,
        help="a running lab with an edge that passes ports 80 (http) and 443 (tcp); else one is made and removed",
    )
    options = parser.parse_args()
    chosen = options.only or [*OWN, *COMPARED]
    # So that what was started is ended then too.
    signal.signal(signal.SIGTERM, lambda *_arguments: sys.exit("ended"))
    everything = []
    if own := [key for key in chosen if key in OWN]:
        for figures in measure_cluster(own, options.inventory):
            everything.append(shown(figures))
    for key in chosen:
        if key in COMPARED and program(COMPARED[key][1]):
            everything.append(shown(compare(key)))
        elif key in COMPARED:
            print(f"\n{COMPARED[key][0]}: not measured, there is no {COMPARED[key][1]} on this machine")
    print("\n" + summary(everything) + "\n")
    print(json.dumps(everything))
    return 1 if any(figures["failed"] for figures in everything if figures["proxy"] in LOSSLESS) else 0


if __name__ == "__main__":
    sys.exit(main())
