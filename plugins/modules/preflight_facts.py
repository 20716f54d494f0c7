#!/usr/bin/python
# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: preflight_facts
short_description: Read what decides whether a cluster can be installed on a host
version_added: 0.1.0
author: Plainkube contributors (@plainkube)
description:
  - Reads everything in one round trip and changes nothing. M(plainkube.cluster.preflight) judges it.
  - Measures the host's clock against the controller's, as NTP does it.
  - Where etcd is to run and has no data yet, writes a temporary file for at most 3 seconds to learn how long a
    synchronous write takes; not in check mode.
options:
  host:
    description: What the host is to be, and the limits that hold for it.
    type: dict
    required: true
    suboptions:
      etcd:
        description: Whether it is an etcd member.
        type: bool
        required: true
      control_plane:
        description: Whether it is a control-plane host.
        type: bool
        required: true
      worker:
        description: Whether it is a worker.
        type: bool
        required: true
      address:
        description: The address by which other hosts reach it.
        type: str
        required: true
      address_ipv6:
        description: The IPv6 address by which other hosts reach it, empty if there is none.
        type: str
        default: ""
      ports:
        description: What will listen on it.
        type: list
        elements: dict
        default: []
        suboptions:
          port:
            description: TCP port.
            type: int
            required: true
          address:
            description: Address, V(0.0.0.0) for all.
            type: str
            required: true
          process:
            description: Name of the program that may have it already.
            type: str
            required: true
      etcd_data_dir:
        description: Folder of the member's data.
        type: str
        default: /var/lib/etcd
      network:
        description: The pod network that the cluster is to have.
        type: dict
        required: true
        suboptions:
          kind:
            description: Its name, as in C(plainkube_network).
            type: str
            required: true
          backend:
            description: How flannel carries packets.
            type: str
            required: true
          pod_cidr:
            description: The network of all pods.
            type: str
            required: true
          pod_cidr_ipv6:
            description: The network of all pods' IPv6 addresses, empty if they have none.
            type: str
            default: ""
          node_cidr_size:
            description: Length of each node's part of it.
            type: int
            required: true
          node_cidr_size_ipv6:
            description: Length of each node's part of the IPv6 network.
            type: int
            default: 0
          overhead:
            description: Bytes that it adds to a packet between hosts.
            type: int
            required: true
          mtu:
            description: Longest packet of pods that was asked for, 0 for what links leave.
            type: int
            required: true
      kernel_modules:
        description: Kernel modules that a node needs.
        type: list
        elements: str
        default: []
      programs:
        description: Programs of the distribution. While all are there, package sources are not looked at.
        type: list
        elements: str
        default: []
      resolv_conf:
        description:
          - The host's resolver file. Where it names nothing but systemd-resolved's stub, the file behind that is taken.
        type: str
        default: /etc/resolv.conf
      dns_servers:
        description: Name servers that are asked instead of those that the host's resolver file names.
        type: list
        elements: str
        default: []
      dns_cache_address:
        description: Address that the cache of names is to have, empty for none.
        type: str
        default: ""
      dns_service_ip:
        description: Address of the name server inside the cluster.
        type: str
        default: ""
      minimum_memory_mib:
        description: Memory that the host must have.
        type: int
        required: true
      minimum_disk_mib:
        description: Free space by folder.
        type: dict
        required: true
      minimum_kernel:
        description: Oldest kernel.
        type: str
        required: true
      allow_cgroup_v1:
        description: Accept control groups of version 1.
        type: bool
        default: false
      allow_swap:
        description: Accept swap.
        type: bool
        default: false
      maximum_clock_offset_seconds:
        description: How far a clock may be from the others.
        type: float
        default: 2
      expect_time_service:
        description: Warn when no time service keeps the clock.
        type: bool
        default: true
      fsync_p99_warning_milliseconds:
        description: Above this, a disk is called slow.
        type: float
        default: 10
attributes:
  check_mode:
    support: full
    description: Reads the same, but does not measure the disk.
  diff_mode:
    support: none
    description: Nothing changes.
"""

EXAMPLES = r"""
- name: Read what the host is like
  plainkube.cluster.preflight_facts:
    host:
      etcd: true
      control_plane: false
      worker: false
      address: 192.0.2.11
      ports: [{port: 2379, address: 192.0.2.11, process: etcd}]
      network:
        {kind: bridge, backend: vxlan, pod_cidr: 10.244.0.0/16, node_cidr_size: 24, overhead: 0, mtu: 0}
      minimum_memory_mib: 900
      minimum_disk_mib: {/var/lib/etcd: 2048}
      minimum_kernel: "5.13"
  register: facts_of_host
"""

RETURN = r"""
ansible_facts:
  description:
    - The facts C(hostname) and C(os_family), as Ansible's own M(ansible.builtin.setup) would return them, and
      C(installed_etcd_version), the version of etcd that this collection has installed, empty if there is none,
      C(resolver_file), the resolver file that pods inherit, and C(name_servers), what is asked for names outside.
  returned: always
  type: dict
facts:
  description: What was read, with the options under C(asked) and the clock under C(clock).
  returned: success
  type: dict
  contains:
    kernel:
      description: Release of the running kernel.
      type: str
    memory_mib:
      description: Memory.
      type: int
    listeners:
      description: Who listens on the asked ports, as address, port, process and pid.
      type: list
      elements: dict
    folders:
      description: Free space and inodes for each folder, its device and whether it holds something already.
      type: list
      elements: dict
    link:
      description: C(name) and C(mtu) of the link that has the address.
      type: dict
    network:
      description: >-
        What the host has of a pod network already: C(kind), C(backend), C(pod_cidr), C(pod_cidr_ipv6) (C(none) if its
        pods have no IPv6 addresses), C(node_cidr_size) and C(node_cidr_size_ipv6), of each what it has.
      type: dict
    fsync_p99_milliseconds:
      description: Time of a synchronous write of 2300 bytes, 99th percentile. None when it was not measured.
      type: float
    clock:
      description: C(offset_seconds) of the host's clock from the controller's and the C(uncertainty_seconds) of that.
      type: dict
"""

import ctypes
import glob
import gzip
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.plainkube.cluster.plugins.module_utils import host_facts, host_links
from ansible_collections.plainkube.cluster.plugins.module_utils.listeners_io import listeners

RESOLVE_SECONDS = 5.0
# etcd's write-ahead log writes about this much at a time.
FSYNC_BYTES = 2300
FSYNC_WRITES = 200
FSYNC_SECONDS = 3.0
# What adjtimex(2) returns while no time service keeps the clock, and room for its structure on any architecture.
TIME_ERROR = 5
TIMEX_BYTES = 512
HEADER_BYTES = 2000
# What Ansible calls families of distributions.
FAMILIES = {"debian": "Debian", "rhel": "RedHat"}


def text_of(path: str) -> str:
    """Return a file's text, empty when there is none or it may not be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def is_ours(path: Path) -> bool:
    """Say whether a file carries this collection's header; folders and unreadable files do not."""
    try:
        with path.open("rb") as stream:
            return host_facts.HEADER.encode() in stream.read(HEADER_BYTES)
    except OSError:
        return False


def system_facts() -> dict[str, Any]:
    release = host_facts.os_release(text_of("/etc/os-release"))
    return {
        "first_process": text_of("/proc/1/comm").strip(),
        "systemd_booted": Path("/run/systemd/system").is_dir(),
        "systemd_version": systemd_version(),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "distribution": release.get("PRETTY_NAME", "unknown"),
        "family": host_facts.family(release),
        "python_version": list(sys.version_info[:3]),
        "hostname": socket.gethostname(),
        "machine_id": text_of("/etc/machine-id").strip(),
        "product_uuid": text_of("/sys/class/dmi/id/product_uuid").strip(),
        "memory_mib": memory_mib(),
        "swap": [line.split()[0] for line in text_of("/proc/swaps").splitlines()[1:]],
        "addresses": host_facts.local_ipv4_addresses(text_of("/proc/net/fib_trie"))
        + host_facts.local_ipv6_addresses(text_of("/proc/net/if_inet6")),
        "time_synchronized": time_synchronized(),
    }


def systemd_version() -> int:
    """Return the number of systemd's release, 0 when it is not there."""
    program = shutil.which("systemctl")
    if not program:
        return 0
    done = subprocess.run([program, "--version"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    words = done.stdout.decode("utf-8", "replace").split()
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0


def memory_mib() -> int:
    for line in text_of("/proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) // 1024
    return 0


def time_synchronized() -> bool | None:
    """Ask the kernel whether a time service keeps its clock; None when it does not say."""
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(TIMEX_BYTES))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else bool(state != TIME_ERROR)


def kernel_module_states(names: Iterable[str]) -> dict[str, str]:
    folder = f"/lib/modules/{platform.release()}"
    builtin, available = text_of(f"{folder}/modules.builtin"), text_of(f"{folder}/modules.dep")
    configuration = kernel_configuration()
    filesystems = text_of("/proc/filesystems").split()
    states = {}
    for name in names:
        signs = [f"/sys/module/{name}", *host_facts.MODULE_SIGNS.get(name, ())]
        shown = name in filesystems or any(Path(sign).exists() for sign in signs)
        states[name] = host_facts.module_state(name, shown, builtin, available, configuration)
    return states


def kernel_configuration() -> str:
    try:
        with gzip.open("/proc/config.gz", "rt") as stream:
            return stream.read()
    except OSError:
        return text_of(f"/boot/config-{platform.release()}")


def control_groups() -> dict[str, Any]:
    unified = Path("/sys/fs/cgroup/cgroup.controllers")
    if unified.exists():
        return {"cgroup_version": 2, "cgroup_controllers": unified.read_text(encoding="ascii").split()}
    rows = [line.split() for line in text_of("/proc/cgroups").splitlines() if not line.startswith("#")]
    return {"cgroup_version": 1, "cgroup_controllers": [row[0] for row in rows if row[-1] == "1"]}


def nearest_existing(path: str) -> Path:
    """Return the path, or the nearest folder above it that exists and so tells its file system."""
    here = Path(path)
    while not here.exists():
        here = here.parent
    return here


def folder_facts(minimum_disk_mib: dict[str, int]) -> list[dict[str, Any]]:
    facts = []
    for path, minimum in sorted(minimum_disk_mib.items()):
        here = nearest_existing(path)
        space = os.statvfs(here)
        facts.append(
            {
                "path": path,
                "minimum_mib": int(minimum),
                "filled": here == Path(path) and any(here.iterdir()),
                "device": here.stat().st_dev,
                "free_mib": space.f_bavail * space.f_frsize // 2**20,
                "inodes": space.f_files,
                "free_inodes": space.f_favail,
            }
        )
    return facts


def package_facts(programs: Iterable[str]) -> dict[str, Any]:
    search_path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])
    manager = next((name for name in ("apt-get", "dnf") if shutil.which(name, path=search_path)), "")
    missing = [program for program in programs if not shutil.which(program, path=search_path)]
    sources: dict[str, Any] = {"names": {}, "local": False}
    if missing:
        apt, dnf = "/etc/apt/sources.list /etc/apt/sources.list.d/*", "/etc/yum.repos.d/*.repo"
        names, local = host_facts.source_locations(texts_of(apt if manager == "apt-get" else dnf))
        # Where there is a proxy, it alone has to resolve.
        proxies, _ = host_facts.source_locations(texts_of("/etc/apt/apt.conf /etc/apt/apt.conf.d/* /etc/dnf/dnf.conf"))
        sources = {"names": resolved(proxies if proxies and names else names), "local": local}
    return {"package_manager": manager, "missing_programs": missing, "package_sources": sources}


def texts_of(patterns: str) -> list[str]:
    return [text_of(path) for pattern in patterns.split() for path in sorted(glob.glob(pattern))]  # noqa: PTH207 - absolute


def resolved(names: Iterable[str]) -> dict[str, bool]:
    """Say for each name whether it resolves in time; all are asked at once."""
    answers = dict.fromkeys(names, False)

    def ask(name: str) -> None:
        try:
            answers[name] = bool(socket.getaddrinfo(name, None))
        except OSError:
            answers[name] = False

    threads = [threading.Thread(target=ask, args=(name,), daemon=True) for name in answers]
    deadline = time.monotonic() + RESOLVE_SECONDS
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return dict(answers)


def etcd_data(path: str) -> dict[str, Any]:
    """Return what is in the member's folder, if the host is to be a member (path is not empty)."""
    snap = Path(path, "member", "snap")
    old_root = any(Path(path, name).exists() for name in ("snapshot", "conf", "log"))
    database = (snap / "db").exists()
    return {
        "path": path,
        "database": bool(path) and database,
        "version_2": bool(path)
        and not database
        and (snap.exists() or Path(path, "member", "wal").exists() or old_root),
        "proxy": bool(path) and Path(path, "proxy").exists(),
        "own_unit": is_ours(Path("/etc/systemd/system/etcd.service")),
    }


def fsync_p99_milliseconds(path: str) -> float | None:
    """Return how long a synchronous write takes in a folder; None when nothing can be written there."""
    durations: list[float] = []
    block = os.urandom(FSYNC_BYTES)
    try:
        with tempfile.TemporaryFile(dir=nearest_existing(path)) as stream:
            end = time.monotonic() + FSYNC_SECONDS
            while len(durations) < FSYNC_WRITES and time.monotonic() < end:
                os.write(stream.fileno(), block)
                start = time.monotonic()
                os.fdatasync(stream.fileno())
                durations.append(time.monotonic() - start)
    except OSError:
        return None
    return round(host_facts.percentile_99(durations) * 1000, 2)


def remnants() -> list[dict[str, str]]:
    """Return paths that another installer left, with its name."""
    found = []
    for pattern, installer in host_facts.REMNANTS:
        found += [{"path": path, "of": installer} for path in glob.glob(pattern) if not is_ours(Path(path))]  # noqa: PTH207
    for unit in host_facts.OWN_UNITS:
        # /lib is often a link to /usr/lib: one file, one finding.
        places = {
            str(Path(folder, unit).resolve()) for folder in host_facts.UNIT_FOLDERS if Path(folder, unit).exists()
        }
        strangers = [path for path in sorted(places) if not is_ours(Path(path))]
        found += [{"path": path, "of": "another installer or package"} for path in strangers]
    return found


def foreign_networks() -> list[str]:
    """Return the names of pod network configurations that are not ours."""
    return sorted(
        path.name for path in Path(host_facts.NETWORK_FOLDER).glob("*.conf*") if path.name != host_facts.OWN_NETWORK
    )


def our_text(path: str) -> str:
    """Return a file's text if it carries this collection's header, else nothing."""
    return text_of(path) if is_ours(Path(path)) else ""


def present_network(foreign: list[str]) -> dict[str, str]:
    units = {unit: our_text(f"/etc/systemd/system/{unit}") for unit, _ in host_facts.NETWORK_UNITS.values()}
    return host_facts.present_network(
        {unit: text for unit, text in units.items() if text},
        our_text(host_facts.FLANNEL_CONFIGURATION),
        our_text("/etc/kubernetes/kube-proxy.yml"),
        our_text("/etc/systemd/system/kube-controller-manager.service"),
        foreign,
    )


def version_behind(link: str) -> str:
    """Return the version that a link to an installed artifact leads to, empty if there is none."""
    path = Path(link)
    return path.readlink().parent.name if path.is_symlink() else ""


def main() -> None:
    began = time.time()
    module = AnsibleModule(argument_spec={"host": {"type": "dict", "required": True}}, supports_check_mode=True)
    host = module.params["host"]
    data = etcd_data(host["etcd_data_dir"] if host["etcd"] else "")
    asked = host["resolv_conf"]
    resolver = host_facts.resolver_file(asked, text_of(asked), text_of(host_facts.RESOLVED_FILE))
    foreign = foreign_networks()
    link = host_links.link_of(host["address"])
    measure = host["etcd"] and not module.check_mode and not (data["database"] or data["version_2"] or data["proxy"])
    facts = {
        **system_facts(),
        **control_groups(),
        **package_facts(host["programs"]),
        "kernel_modules": kernel_module_states(host["kernel_modules"]),
        "folders": folder_facts(host["minimum_disk_mib"]),
        "listeners": listeners({port["port"] for port in host["ports"]}),
        "resolver_file": resolver,
        "name_servers": host["dns_servers"] or host_facts.name_servers(text_of(resolver)),
        "dns_cache_is_ours": is_ours(Path(host_facts.CACHE_UNIT)),
        "etcd_data": data,
        "remnants": remnants(),
        # Once the kubelet is ours, somebody added them on purpose.
        "foreign_networks": [] if is_ours(Path("/etc/systemd/system/kubelet.service")) else foreign,
        "network": present_network(foreign),
        "link": {"name": link[0], "mtu": link[1]} if link else {},
        "fsync_p99_milliseconds": fsync_p99_milliseconds(host["etcd_data_dir"]) if measure else None,
    }
    # In Ansible's own words, so that later roles need not ask the host again.
    known = {
        "hostname": facts["hostname"],
        "os_family": FAMILIES.get(facts["family"], facts["family"]),
        "installed_etcd_version": version_behind("/usr/local/bin/etcd"),
        "resolver_file": facts["resolver_file"],
        "name_servers": facts["name_servers"],
    }
    module.exit_json(changed=False, facts=facts, ansible_facts=known, began=began, ended=time.time())


if __name__ == "__main__":
    main()
