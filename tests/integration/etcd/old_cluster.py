# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A cluster with a v2 store, its members stopped and started by commands, as services are, and who writes to it."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from etcd_servers import V3_4, V3_6, EtcdServers, Member, Pki, binaries, wait_until

SERVICE = """#!/bin/sh
# service start-old|start-new|stop: runs one process at a time
pid=$(cat {folder}/pid 2>/dev/null)
alive() {{ [ -n "$pid" ] && [ "$(cut -d' ' -f3 /proc/$pid/stat 2>/dev/null | tr -d Z)" ]; }}
case $1 in
  start-*) alive || {{ echo $1 >{folder}/verb; setsid {folder}/$1 >>{log} 2>&1 </dev/null & echo $! >{folder}/pid; }} ;;
  stop) alive && kill $pid; while alive; do sleep 0.01; done ;;
esac
exit 0
"""

# systemctl show|start|stop UNIT, for units old-MEMBER.service and new-MEMBER.service
SYSTEMCTL = """#!/bin/sh
for unit; do :; done
name=${{unit#*-}}
folder={folder}/${{name%.service}}/service
verb=start-${{unit%%-*}}
pid=$(cat $folder/pid)
case $1 in
  show)
    echo LoadState=loaded
    state=$(cut -d' ' -f3 /proc/$pid/stat 2>/dev/null | tr -d Z)
    [ "$state" ] && [ "$(cat $folder/verb)" = $verb ] && echo ActiveState=active || echo ActiveState=inactive ;;
  start) exec $folder/service $verb ;;
  stop) exec $folder/service stop ;;
esac
"""


class Service:
    """A process that commands start and stop."""

    def __init__(self, folder: Path, log: Path, old: list[str], new: list[str]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for name, command in (("start-old", old), ("start-new", new)):
            words = " ".join(f"'{word}'" for word in command)
            self._script(name, f"#!/bin/sh\nexec {words}\n")
        self.script = self._script("service", SERVICE.format(folder=folder, log=log))

    def _script(self, name: str, text: str) -> str:
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o755)
        return str(path)

    def command(self, verb: str) -> list[str]:
        return [self.script, verb]

    def run(self, verb: str) -> None:
        subprocess.run(self.command(verb), check=True, timeout=30)

    @property
    def pid(self) -> int:
        with contextlib.suppress(OSError, ValueError):
            return int((self.folder / "pid").read_text())
        return 0

    @property
    def running(self) -> bool:
        with contextlib.suppress(OSError):
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        return False

    def kill(self) -> None:
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            wait_until(lambda: not self.running, f"{self.folder} has ended")


class OldCluster:
    """Members of an old version with a v2 store; the same services start the new version."""

    def __init__(self, folder: Path, version: str, target: str, members: int, pki: Pki | None) -> None:
        self.folder = folder
        self.target = target
        v2 = {} if version.startswith("3.3") else {"enable_v2": "true"}
        self.servers = EtcdServers(folder, version, members, pki, **v2)
        self.services: dict[str, Service] = {}
        for member in self.servers.members:
            old = member.command()
            new = self._new_command(member)
            self.services[member.name] = Service(member.folder / "service", member.log, old, new)

    def _new_command(self, member: Member) -> list[str]:
        version, flags = member.version, self.servers.flags
        member.version = self.target
        self.servers.flags = {name: value for name, value in flags.items() if name != "enable-v2"}
        try:
            return member.command()
        finally:
            member.version, self.servers.flags = version, flags

    @property
    def endpoints(self) -> list[str]:
        return self.servers.endpoints

    def start(self) -> None:
        for service in self.services.values():
            service.run("start-old")
        self.wait_healthy()

    def wait_healthy(self) -> None:
        for member in self.servers.members:
            wait_until(member.healthy, f"{member.name} is healthy")

    def stop(self) -> None:
        # The leader last, since it would wait for a follower to take over.
        leader = self.servers.leader()
        for member in sorted(self.servers.members, key=lambda one: one is leader):
            self.services[member.name].run("stop")

    def follower(self) -> Member:
        leader = self.servers.leader()
        return next(member for member in self.servers.members if member is not leader)

    def kill(self) -> None:
        for service in self.services.values():
            service.kill()

    def arguments(self, **more: Any) -> dict[str, Any]:
        """Return the parameters of a migration."""
        programs = {name: str(binaries(self.target) / name) for name in ("etcd", "etcdctl", "etcdutl")}
        members = []
        for member in self.servers.members:
            service = self.services[member.name]
            members.append(
                {
                    "name": member.name,
                    "data_dir": str(member.data_dir),
                    "stop_command": service.command("stop"),
                    "start_command": service.command("start-old"),
                    "new_start_command": service.command("start-new"),
                }
            )
        pki = self.servers.pki
        return {
            "endpoints": self.endpoints,
            "work_dir": str(self.folder / "work"),
            "members": members,
            **programs,
            **(pki.client_arguments() if pki else {}),
            **more,
        }

    def systemctl(self) -> Path:
        """Return a folder with a systemctl that knows the members."""
        folder = self.folder / "bin"
        folder.mkdir()
        (folder / "systemctl").write_text(SYSTEMCTL.format(folder=self.folder))
        (folder / "systemctl").chmod(0o755)
        return folder

    # The old store

    def request(self, method: str, path: str, query: str = "", **form: Any) -> dict[str, Any]:
        """Ask /v2/keys of the first member that runs."""
        member = next(one for one in self.servers.members if self.services[one.name].running)
        words = "&".join(part for part in (query, urllib.parse.urlencode(form)) if part)
        url = f"{member.endpoint}/v2/keys{urllib.parse.quote(path)}?{words}"
        answer: dict[str, Any] = json.loads(self.servers.http(url, method=method, seconds=30))
        return answer

    def put(self, path: str, value: str, **form: Any) -> dict[str, Any]:
        return self.request("PUT", path, value=value, **form)

    def fill(self, count: int, size: int = 64, writers: int = 32, folders: int = 20) -> None:
        """Write count keys of random values."""
        ports = [member.client_port for member in self.servers.members]

        def write(number: int) -> None:
            connection = http.client.HTTPConnection("127.0.0.1", ports[number % len(ports)], timeout=30)
            for key in range(number, count, writers):
                body = "value=" + os.urandom(size // 2).hex()
                path = f"/v2/keys/registry/folder{key % folders:03}/key{key:06}"
                connection.request("PUT", path, body, {"Content-Type": "application/x-www-form-urlencoded"})
                answer = connection.getresponse()
                answer.read()
                assert answer.status in (200, 201), answer.status
            connection.close()

        threads = [threading.Thread(target=write, args=(number,)) for number in range(writers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def old_keys(self) -> dict[str, str]:
        """Return all keys that the API lists."""
        found: dict[str, str] = {}
        waiting = [self.request("GET", "/", "recursive=true&quorum=true")["node"]]
        while waiting:
            node = waiting.pop()
            if node.get("dir"):
                waiting += node.get("nodes", [])
            else:
                found[node["key"]] = node["value"]
        return found

    def new_keys(self) -> dict[str, str]:
        """Return all keys of the v3 store, as the first member has them."""
        member = self.servers.member(0)
        found: dict[str, str] = {}
        start = b"\0"
        while True:
            answer = json.loads(
                self.servers.http(
                    f"{member.endpoint}/v3/kv/range",
                    json.dumps(
                        {"key": base64.b64encode(start).decode(), "range_end": "AA==", "limit": 2000, "sort_order": 1}
                    ).encode(),
                    seconds=30,
                )
            )
            for pair in answer.get("kvs", []):
                start = base64.b64decode(pair["key"]) + b"\0"
                found[start[:-1].decode()] = base64.b64decode(pair.get("value", "")).decode()
            if not answer.get("more"):
                return found


@contextlib.contextmanager
def old_cluster(
    version: str = V3_4, target: str = V3_6, members: int = 3, pki: Pki | None = None
) -> Iterator[OldCluster]:
    """Run a cluster with a v2 store while the block runs."""
    with tempfile.TemporaryDirectory(prefix="old-etcd-") as base:
        cluster = OldCluster(Path(base), version, target, members, pki)
        try:
            cluster.start()
            yield cluster
        except BaseException:
            for member in cluster.servers.members:
                if member.log.exists():
                    print(f"--- {member.name}, last lines:\n{member.last_log(15)}", file=sys.stderr)
            raise
        finally:
            cluster.kill()


class KeyWriter:
    """A process that writes to the old store at a steady rate and notes what was acknowledged."""

    def __init__(self, cluster: OldCluster, rate: int) -> None:
        self.notes = cluster.folder / "writer.notes"
        ports = ",".join(str(member.client_port) for member in cluster.servers.members)
        command = [sys.executable, __file__, ports, str(rate), str(self.notes)]
        self.service = Service(cluster.folder / "writer", cluster.folder / "writer.log", command, command)

    def start(self) -> None:
        self.service.run("start-old")
        wait_until(lambda: len(self.acknowledged()) > 5, "the writer writes")

    def acknowledged(self) -> dict[str, str | None]:
        """Return the last acknowledged value of each key, None for one that was deleted."""
        found: dict[str, str | None] = {}
        with contextlib.suppress(FileNotFoundError):
            for line in self.notes.read_text().splitlines():
                key, _, value = line.partition(" ")
                found[key] = value or None
        return found

    def arguments(self) -> Mapping[str, list[str]]:
        return {
            "freeze_command": self.service.command("stop"),
            "thaw_command": self.service.command("start-old"),
        }

    def stop(self) -> None:
        self.service.run("stop")


def write_steadily(ports: list[int], rate: float, notes: Path) -> None:
    """Write, overwrite and delete keys until a SIGTERM comes, which lets the write in flight be acknowledged."""
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    connection = http.client.HTTPConnection("127.0.0.1", ports[-1], timeout=30)
    number = 0
    due = time.monotonic()
    with notes.open("a", buffering=1) as noted:
        while not ended.is_set():
            key = f"/registry/live/{number % 1000:04}"
            gone = number % 10 == 9
            value = "" if gone else f"{number}-{os.urandom(508).hex()}"
            body = None if gone else f"value={value}"
            connection.request(
                "DELETE" if gone else "PUT",
                f"/v2/keys{key}",
                body,
                {"Content-Type": "application/x-www-form-urlencoded"},
            )
            answer = connection.getresponse()
            answer.read()
            if answer.status in (200, 201, 404):
                noted.write(f"{key} {value}\n")
            number += 1
            due += 1 / rate
            ended.wait(max(0.0, due - time.monotonic()))


def write_burst(port: int, count: int, writers: int = 16) -> None:
    """Write keys as fast as the server takes them."""

    def write(first: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        for number in range(first, count, writers):
            connection.request("PUT", f"/v2/keys/burst/{number}?value=x")
            connection.getresponse().read()
        connection.close()

    threads = [threading.Thread(target=write, args=(first,)) for first in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    write_steadily([int(port) for port in sys.argv[1].split(",")], float(sys.argv[2]), Path(sys.argv[3]))
