# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A lab to be broken on purpose: its nodes, runs of site.yml against them, and what their units do meanwhile."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from plainkube_lab import podman
from plainkube_lab.access import ssh_command
from plainkube_lab.cli import read_inventory
from plainkube_lab.model import Node

CHECKOUT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).resolve().parent
# Every long-running process of a cluster's host.
UNITS = [
    "etcd.service",
    "kube-apiserver.service",
    "kube-controller-manager.service",
    "kube-scheduler.service",
    "containerd.service",
    "haproxy.service",
    "kubelet.service",
    "kube-proxy.service",
    "kube-router.service",
    "node-routes.service",
]
# Everything, with the cases that differ in their moment or their host alone; without it one or a few of each kind.
ALL = os.environ.get("FAULTS") == "all"
# Seconds: a run of site.yml on a busy machine must end some time.
RUN_AT_MOST = 900
RECAP = re.compile(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Run:
    """A run of site.yml that ended. changed: the hosts that its recap says were changed."""

    code: int
    output: str
    seconds: float
    changed: set[str]

    @property
    def changed_themselves(self) -> set[str]:
        """Return the hosts on which something changed; the recap also counts what the controller did for a host."""
        return set(re.findall(r"^changed: \[(\S+)\]", self.output, re.MULTILINE))


@dataclass(frozen=True)
class Process:
    """A unit's process. Times in microseconds of the host's realtime clock; 0 is never.

    stopped: when the process before this one was told to stop; ready: when this one was up.
    """

    pid: int
    stopped: int
    ready: int


class Lab:
    """The nodes of one inventory, and the cluster on them."""

    def __init__(self, inventory: Path) -> None:
        self.inventory = inventory
        self.description = read_inventory(inventory)
        self.nodes: dict[str, Node] = {node.name: node for node in self.description.nodes}
        listing = self._ansible("ansible-inventory", "--list").stdout
        self.groups: dict[str, Any] = json.loads(listing)

    def members(self, group: str) -> list[str]:
        """Return the names of a group's hosts, in order."""
        entry = self.groups[group]
        hosts = set(entry.get("hosts", []))
        return sorted(hosts.union(*(self.members(child) for child in entry.get("children", []))))

    @property
    def worker(self) -> str:
        """Return a host that is nothing but a worker, or the last one if there is none."""
        return (
            [host for host in self.members("workers") if host not in self.members("control_plane")] or [*self.nodes]
        )[-1]

    def lab(self, verb: str, *words: str) -> None:
        """Run tests/lab/lab.py."""
        command = [sys.executable, str(CHECKOUT / "tests/lab/lab.py"), verb, "--inventory", str(self.inventory), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_AT_MOST)
        assert done.returncode == 0, done.stdout + done.stderr

    def renew(self) -> None:
        """Make every host anew: as empty as on its first day."""
        self.lab("destroy")
        self.lab("create")

    # site.yml

    def site_command(
        self, *words: str, extra: Mapping[str, Any] | None = None, playbook: str = "site.yml"
    ) -> list[str]:
        """Return the command line of a run, with variables if wanted."""
        variables = ["--extra-vars", json.dumps(extra)] if extra else []
        return [program("ansible-playbook"), "-i", str(self.inventory), *variables, *words, str(CHECKOUT / playbook)]

    def site(self, *words: str, extra: Mapping[str, Any] | None = None, playbook: str = "site.yml") -> Run:
        """Run site.yml, or another playbook, to its end, whatever that is."""
        begin = time.monotonic()
        done = subprocess.run(
            self.site_command(*words, extra=extra, playbook=playbook),
            cwd=CHECKOUT,
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=RUN_AT_MOST,
        )
        output = done.stdout + done.stderr
        changed = {match[1] for match in RECAP.finditer(output) if match[2] != "0"}
        return Run(done.returncode, output, time.monotonic() - begin, changed)

    def converge(self, *words: str, extra: Mapping[str, Any] | None = None, playbook: str = "site.yml") -> Run:
        """Run site.yml, or another playbook, which must end well."""
        run = self.site(*words, extra=extra, playbook=playbook)
        assert run.code == 0, run.output[-6000:]
        return run

    def _ansible(self, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        command = [program(name), "-i", str(self.inventory), *words]
        return subprocess.run(command, cwd=CHECKOUT, env=environment(), capture_output=True, text=True, check=True)

    # hosts

    def ssh(self, host: str, command: str, text: str = "", fatal: bool = True, timeout: float = 120) -> str:
        """Return what a shell command on a host prints; text goes to its standard input."""
        done = subprocess.run(
            ssh_command(self.nodes[host], command), input=text, capture_output=True, text=True, timeout=timeout
        )
        assert not fatal or done.returncode == 0, f"{host}: {command}: {done.stdout}{done.stderr}"
        return done.stdout

    def send(self, host: str, data: bytes, path: str) -> None:
        """Write a file on a host."""
        command = ssh_command(self.nodes[host], f"cat > {shlex.quote(path)}")
        subprocess.run(command, input=data, check=True, capture_output=True, timeout=120)

    def each(self, hosts: list[str], command: str) -> dict[str, str]:
        """Return what a command prints on each of these hosts, asked all at once."""
        with ThreadPoolExecutor(len(hosts)) as pool:
            return dict(zip(hosts, pool.map(lambda host: self.ssh(host, command), hosts), strict=True))

    def processes(self, hosts: list[str] | None = None) -> dict[tuple[str, str], Process]:
        """Return the process of each unit of each host."""
        properties = "Id,MainPID,ActiveExitTimestamp,ActiveEnterTimestamp"
        command = f"systemctl show --timestamp=us+utc -p {properties} {' '.join(UNITS)}"
        found = {}
        for host, output in self.each(hosts or [*self.nodes], command).items():
            for block in output.strip().split("\n\n"):
                values = dict(line.split("=", 1) for line in block.splitlines())
                if int(values["MainPID"]):
                    times = [microseconds(values[name]) for name in ("ActiveExitTimestamp", "ActiveEnterTimestamp")]
                    found[host, values["Id"]] = Process(int(values["MainPID"]), *times)
        return found

    def stop_node(self, host: str) -> None:
        """Switch a host off, in order."""
        podman.podman("stop", self.nodes[host].container)

    def start_node(self, host: str) -> None:
        """Switch a host on again and wait for nothing."""
        podman.podman("start", self.nodes[host].container)

    @contextmanager
    def asking(
        self, host: str, kind: str, target: str, tries: int = 2, patience: float = 10
    ) -> Iterator[Callable[[], dict[str, Any]]]:
        """Let a host ask something twice a second (see ask.py); yield what ends this and returns the findings."""
        words = [(FOLDER / "ask.py").read_text(), kind, target, str(tries), str(patience), str(RUN_AT_MOST)]
        process = subprocess.Popen(
            ssh_command(self.nodes[host], "python3 -c " + shlex.join(words)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

        def findings() -> dict[str, Any]:
            # The end of its input ends the script.
            output, errors = process.communicate(timeout=60)
            assert process.returncode == 0, errors
            found: dict[str, Any] = json.loads(output)
            print(f"{host} asked {kind} {target}: {found}")
            return found

        try:
            yield findings
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


class KilledRun:
    """A run of ansible-playbook that ends by SIGKILL to its whole process group, not by its own will."""

    def __init__(self, command: list[str]) -> None:
        self.output = ""
        self.process = subprocess.Popen(
            command,
            cwd=CHECKOUT,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def at_task(self, name: str, seconds: float = 0) -> None:
        """Kill it when it has been in a task for some seconds."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if line.startswith("TASK [") and name in line:
                break
        else:
            pytest.fail(f"the run ended before its task {name!r}:\n{self.output[-3000:]}")
        time.sleep(seconds)
        self._kill()

    def after(self, seconds: float) -> None:
        """Kill it some seconds after its start."""
        try:
            self.output, _ = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self._kill()

    def _kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def program(name: str) -> str:
    """Return a program of the virtual environment that runs the tests."""
    return str(Path(sys.executable).parent / name)


def environment() -> dict[str, str]:
    """Return the environment that every user of this checkout has, with colours off."""
    return {
        **os.environ,
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_FORCE_COLOR": "0",
        "ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg"),
    }


def microseconds(timestamp: str) -> int:
    """Return a time as systemctl prints it with --timestamp=us+utc as a number that can be compared."""
    return int(re.sub(r"\D", "", timestamp.partition(" ")[2]) or 0)


def wait_for(what: str, condition: Callable[[], bool], seconds: float, pause: float = 1) -> float:
    """Wait until the condition holds, asked after each pause; return the seconds that took."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < seconds, f"not within {seconds:.0f} s: {what}"
        time.sleep(pause)
    return time.monotonic() - begin
