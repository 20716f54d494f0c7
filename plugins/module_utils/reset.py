# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a host must lose to be as before: from facts about the host to an ordered list of steps.

Nothing goes because of its name alone. Files go because they carry our header, links because they lead into our store,
users because our sysusers file made them, and a component's data, links and tables because its program or unit on this
host is ours. That evidence goes last, so that a reset that was cut off goes on where it stopped.
"""

from __future__ import annotations

import fnmatch
import posixpath
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError

HEADER = "Managed by plainkube.cluster"
STORE = "/opt/plainkube"
UNIT_FOLDER = "/etc/systemd/system"
UNIT_SUFFIXES = (".service", ".timer", ".socket", ".path", ".target", ".mount", ".slice")
SYSUSERS = "/etc/sysusers.d/plainkube.conf"
# Units of the distribution, which run with a configuration of ours.
CONFIGURED_UNITS = {
    "/etc/haproxy/haproxy.cfg": "haproxy.service",
    "/etc/keepalived/keepalived.conf": "keepalived.service",
}
KUBELET_FOLDER = "/var/lib/kubelet"
ETCD_DATA = "/var/lib/etcd"
BRIDGE = "cni0"
# The names that kube-router gives to its bridge, its tunnels and its routing table are no choice of ours.
KUBE_ROUTER_BRIDGE = "kube-bridge"
KUBE_ROUTER_TUNNEL = re.compile(r"tun-[0-9a-f]{11}")
KUBE_ROUTER_TABLE = "77"
# It marks the routes that it learned with this number.
KUBE_ROUTER_PROTOCOL = "17"
# A file system's own, at its top.
LOST_AND_FOUND = "lost+found"

# Where files with our header are looked for, with all below them.
HEADER_PLACES = (
    "/etc/cni/net.d",
    "/etc/containerd",
    "/etc/crictl.yaml",
    "/etc/etcd",
    "/etc/haproxy",
    "/etc/keepalived",
    "/etc/kubernetes",
    "/etc/modules-load.d",
    "/etc/plainkube",
    "/etc/security/limits.d",
    "/etc/sysctl.d",
    "/etc/sysusers.d",
    UNIT_FOLDER,
    "/usr/local/lib/plainkube",
)
LINK_PLACES = ("/usr/local/bin", "/opt/cni/bin")
# Folders that go at the end if nothing is in them any more, innermost first.
PRUNED = (
    "/etc/containerd/certs.d/*",
    "/etc/containerd/certs.d",
    "/etc/containerd",
    "/etc/cni/net.d",
    "/etc/cni",
    "/etc/plainkube",
    "/opt/cni/bin",
    "/opt/cni",
    "/opt/containerd/bin",
    "/opt/containerd/lib",
    "/opt/containerd",
    "/run/netns",
    "/usr/local/lib/plainkube",
    "/usr/libexec/kubernetes/kubelet-plugins/volume/exec",
    "/usr/libexec/kubernetes/kubelet-plugins/volume",
    "/usr/libexec/kubernetes/kubelet-plugins",
    "/usr/libexec/kubernetes",
    "/var/lib/cni/networks",
    "/var/lib/cni/results",
    "/var/lib/cni",
)
# Component -> what it leaves. Paths may end in a pattern of their last part.
FOLDERS: dict[str, tuple[str, ...]] = {
    "etcd": (
        "/etc/etcd",
        ETCD_DATA,
        # What restores, lost members and moves of versions left beside: each holds all secrets of the cluster.
        ETCD_DATA + ".before-*",
        ETCD_DATA + ".restore-*",
        ETCD_DATA + ".restore.json",
        ETCD_DATA + ".undone-*",
        "/var/lib/etcd-restore",
        "/var/lib/etcd-snapshots",
    ),
    "etcd-backup": (
        "/etc/plainkube/etcd-backup",
        "/usr/local/lib/plainkube/ansible_collections",
        "/var/cache/etcd-backup",
        "/var/lib/etcd-backup",
        "/var/lib/prometheus/node-exporter/plainkube-etcd-*.prom",
    ),
    "kube-apiserver": ("/etc/kubernetes", "/var/log/kube-apiserver"),
    "kube-controller-manager": ("/etc/kubernetes",),
    "kube-scheduler": ("/etc/kubernetes",),
    "kubelet": ("/etc/kubernetes", KUBELET_FOLDER, "/var/log/containers", "/var/log/pods"),
    "kube-proxy": ("/etc/kubernetes",),
    "haproxy": ("/etc/kubernetes",),
    "edge-backends": (
        "/etc/haproxy/certificates",
        "/etc/plainkube/edge",
        "/run/edge-backends",
        "/var/lib/edge-backends",
    ),
    "node-routes": ("/etc/cni/net.d/10-plainkube.conflist*",),
    "flanneld": ("/etc/cni/net.d/10-plainkube.conflist*", "/etc/kubernetes", "/run/flannel"),
    "kube-router": ("/etc/kubernetes", "/etc/cni/net.d/10-plainkube.conflist*", "/etc/plainkube/kube-router.conflist"),
    "containerd": (
        "/run/containerd",
        "/run/nri",
        "/var/lib/containerd",
        "/var/lib/cni/networks/plainkube",
        "/var/lib/cni/results/cni-loopback-*",
        "/var/lib/cni/results/plainkube-*",
    ),
}
TABLES: dict[str, tuple[str, ...]] = {
    "kube-proxy": ("kube-proxy",),
    "node-routes": ("plainkube_pods",),
    "flanneld": ("plainkube_pods",),
    "kube-router": ("plainkube_pods",),
    "containerd": ("cni_hostport",),
}
# Components that hang pods on a bridge.
BRIDGING = {"node-routes", "flanneld"}
LINKS: dict[str, tuple[str, ...]] = {"flanneld": ("flannel.1", "flannel-v6.1", "flannel-wg", "flannel-wg-v6")}
# Mounts below these are made by kubelet and containerd: they are undone, and what is in them is not touched.
MOUNT_PARENTS: dict[str, tuple[str, ...]] = {
    "kubelet": (KUBELET_FOLDER,),
    "containerd": ("/run/containerd", "/var/lib/containerd"),
}
# Temporary files of our own writers, in the same places, and their folders.
TEMPORARY = re.compile(r"\.plainkube-[a-z]+$")
TEMPORARY_FOLDERS = "/run/plainkube*"
POD_CGROUP = re.compile(r"^\d+:[^:]*:/kubepods(\.slice)?(/|$)", re.MULTILINE)
OUR_CHAIN = re.compile(r"(?:KUBE|CNI)-[A-Z0-9-]+")
# Those of kube-router's firewall alone, and the sets that its rules name.
POLICY_CHAIN = re.compile(r"KUBE-(?:ROUTER|POD-FW|NWPLCY)-[A-Z0-9-]+")
POLICY_SET = re.compile(r"(?:inet6:)?(?:KUBE-(?:SRC|DST)-[A-Z0-9]+|kube-router-local-pods)")
KUBE_ROUTER_SET = re.compile(r"(?:inet6:)?(?:KUBE-(?:SRC|DST)-[A-Z0-9]+|kube-router-[a-z-]+)")
# What kube-router as the network puts into the host's own chains.
KUBE_ROUTER_RULE = re.compile(r' -[io] kube-bridge |--comment "allow outbound node port traffic on node interface ')
# Names of the chains that iptables makes by itself.
BUILT_IN_CHAINS = {"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}

# Each needs the next one for an orderly end, and systemd orders only what it already knows is to stop.
STOPPED_LAST = ("kube-apiserver.service", "etcd.service")

# In this order, each planned anew from what is left after the one before.
STAGES = ("stop", "kill", "unmount", "network", "data", "files", "evidence", "users", "last")


class ResetError(PlainkubeError):
    """The host cannot be reset as it is, or something did not go."""


@dataclass(frozen=True)
class UnitFact:
    """A unit of which the unit file, or for one of the distribution the configuration, is ours."""

    name: str
    running: bool = False
    enabled: bool = False


@dataclass(frozen=True)
class FolderFact:
    """A path that a component leaves.

    real: where it leads; keep: it is a mount point or a link; empty: it is root's and nothing is in it.
    """

    real: str
    keep: bool = False
    empty: bool = False


@dataclass(frozen=True)
class Process:
    """A process with its parent, the file it runs, and its cgroups as in /proc/<pid>/cgroup."""

    pid: int
    parent: int
    program: str
    cgroups: str = ""


@dataclass(frozen=True)
class Facts:
    """All that is looked at on a host, as plain data."""

    units: Sequence[UnitFact] = ()
    header_files: Sequence[str] = ()
    temporary_files: Sequence[str] = ()
    links: Mapping[str, str] = field(default_factory=dict)
    store: bool = False
    folders: Mapping[str, FolderFact] = field(default_factory=dict)
    mounts: Sequence[str] = ()
    namespaces: Sequence[str] = ()
    processes: Sequence[Process] = ()
    pods: Mapping[str, str] = field(default_factory=dict)
    cgroups: Sequence[str] = ()
    interfaces: Mapping[str, str] = field(default_factory=dict)
    routes: Sequence[str] = ()
    tables: Sequence[tuple[str, str]] = ()
    iptables: Mapping[str, str] = field(default_factory=dict)
    learned_routes: Sequence[str] = ()
    ip_sets: Sequence[str] = ()
    rules: Sequence[str] = ()
    users: Mapping[str, str] = field(default_factory=dict)
    sysusers: str = ""
    bridge: str = BRIDGE
    etcd_data: str = ETCD_DATA


@dataclass(frozen=True)
class Step:
    """One thing to do. target: what it is done to; detail: words for people, a pod's identity, or a command's input."""

    stage: str
    kind: str
    target: str
    detail: str = ""

    def __str__(self) -> str:
        shown = f" ({self.detail})" if self.detail and self.kind not in ("iptables", "pod") else ""
        return f"{WORDS[self.kind]} {self.target}{shown}".strip()


WORDS = {
    "stop": "running unit",
    "disable": "enabled unit",
    "pod": "pod",
    "kill": "process",
    "unmount": "mount",
    "namespace": "network namespace",
    "link": "network interface",
    "route": "route",
    "table": "nftables table",
    "iptables": "chains KUBE-* and CNI-* in",
    "set": "set of addresses",
    "rule": "routing rule",
    "cgroup": "control group",
    "remove": "",
    "empty": "contents of",
    "user": "user",
}


def data_directory(unit_text: str) -> str:
    """Return the folder in which an etcd unit keeps its data."""
    found = re.search(r"--data-dir=(\S+)", unit_text)
    return posixpath.normpath(found.group(1)) if found else ETCD_DATA


def bridge_name(unit_text: str) -> str:
    """Return the bridge that pods hang on, from the text of the network's unit."""
    found = re.search(r"--bridge=(\S+)", unit_text)
    return found.group(1) if found else BRIDGE


def pod_networks(text: str) -> list[str]:
    """Return the networks of all pods, one of each family, from the text of flannel's configuration."""
    return re.findall(r'"(?:IPv6)?Network": *"([0-9a-fA-F:./]+)"', text)


def lasting_routes(text: str) -> list[str]:
    """Return the routes in what ip prints that lead to another host, and not through an interface of flannel's."""
    rows = [line.strip() for line in text.splitlines()]
    return [row for row in rows if " via " in row and not re.search(r" dev flannel[.-]", row)]


def sysusers_names(text: str) -> dict[str, str]:
    """Return {user: description} of a sysusers.d file."""
    rows = [shlex.split(line, comments=True) for line in text.splitlines()]
    return {row[1]: row[3] for row in rows if len(row) > 3 and row[0].startswith("u")}


def components(facts: Facts) -> set[str]:
    """Return the components that are ours here: the unit carries our header, or the program comes from our store."""
    units = {unit.name.rsplit(".", 1)[0] for unit in facts.units}
    return units | {posixpath.basename(path) for path in facts.links}


def mount_points(mountinfo: str) -> list[str]:
    """Return all mount points in the order of the text of /proc/self/mountinfo."""
    fields = [line.split() for line in mountinfo.splitlines()]
    return [
        re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), row[4]) for row in fields if len(row) > 4
    ]


def is_below(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip("/") + "/")


def doomed_processes(processes: Sequence[Process], ours: set[str]) -> list[Process]:
    """Return processes of pods, those that run a file of our store, and all that descends from our shims."""
    doomed = {
        process.pid
        for process in processes
        if is_below(process.program, STORE) or ("kubelet" in ours and POD_CGROUP.search(process.cgroups))
    }
    shims = {process.pid for process in processes if process.pid in doomed and "containerd-shim" in process.program}
    grown = True
    while grown:
        children = {process.pid for process in processes if process.parent in shims} - shims
        grown = bool(children)
        shims |= children
    return [process for process in processes if process.pid in doomed | shims]


@dataclass(frozen=True)
class Table:
    """A table of iptables-save: policies of its chains, which of them are ours, rules of others, and ours of these."""

    name: str
    chains: Mapping[str, str]
    own: Sequence[str]
    rules: Sequence[str]
    own_rules: Sequence[str]

    @property
    def clearing(self) -> list[str]:
        """What clears it of ours, as lines of an input of iptables-restore --noflush."""
        if not self.own and not self.own_rules:
            return []
        return [
            f"*{self.name}",
            *(f":{name} - [0:0]" for name in self.own),
            *("-D" + row[2:] for row in self.own_rules),
            *(f"-X {name}" for name in self.own),
            "COMMIT",
        ]


def read_tables(saved: str, ours: re.Pattern[str], our_rule: re.Pattern[str] | None = None) -> list[Table]:
    """Return the tables in what iptables-save prints, sorted by patterns of names of chains and of single rules."""
    tables = []
    for name, block in re.findall(r"^\*(\S+)\n(.*?)^COMMIT$", saved, re.MULTILINE | re.DOTALL):
        rows = block.splitlines()
        chains = {row[1:].split()[0]: row.split()[1] for row in rows if row.startswith(":")}
        own = [chain for chain in chains if ours.fullmatch(chain)]
        rules = [row for row in rows if row.startswith("-A ") and row.split()[1] not in own]
        jump = re.compile(rf"-[jg] {ours.pattern}(\s|$)")
        own_rules = [row for row in rules if jump.search(row) or (our_rule and our_rule.search(row))]
        tables.append(Table(name, chains, own, rules, own_rules))
    return tables


def plan_iptables(saved: str) -> tuple[list[str], str]:
    """Return the tables that hold nothing or only what is ours, and what clears the others.

    saved is what iptables-save prints; the second is an input of iptables-restore --noflush.
    """
    whole, lines = [], []
    for table in read_tables(saved, OUR_CHAIN, KUBE_ROUTER_RULE):
        foreign = [name for name in table.chains if name not in table.own and name not in BUILT_IN_CHAINS]
        if not foreign and table.rules == table.own_rules and set(table.chains.values()) <= {"ACCEPT", "-"}:
            whole.append(table.name)
        else:
            lines += table.clearing
    return whole, "".join(line + "\n" for line in lines)


def policy_chains(saved: str) -> list[str]:
    """Return the chains of kube-router's firewall in what iptables-save prints."""
    return [name for table in read_tables(saved, POLICY_CHAIN) for name in table.own]


def clear_policies(saved: str) -> str:
    """Return what clears iptables of kube-router's firewall, as an input of iptables-restore --noflush."""
    lines = [line for table in read_tables(saved, POLICY_CHAIN) for line in table.clearing]
    return "".join(line + "\n" for line in lines)


def policy_sets(names: Sequence[str]) -> list[str]:
    """Return those sets of addresses that rules of kube-router's firewall name."""
    return [name for name in names if POLICY_SET.fullmatch(name)]


def faults(facts: Facts) -> list[str]:
    """Return what a person has to clear up first: file systems inside folders that are to go may hold anything."""
    ours = components(facts)
    undone = set(mounts_to_undo(facts, ours))
    found = []
    if "etcd" in ours and facts.etcd_data.count("/") < 2:
        found.append(
            f"etcd.service keeps its data in {facts.etcd_data}, which is more than etcd's. "
            "Correct --data-dir in the unit, then run the reset again."
        )
    for path, folder in sorted(wanted_folders(facts, ours).items()):
        inside = [point for point in facts.mounts if is_below(point, folder.real) and point not in undone]
        if inside:
            found.append(
                f"{path} is to be removed with all in it, but {', '.join(inside)} is a file system of its own there. "
                "Unmount it (its contents stay), then run the reset again."
            )
    return found


def mounts_to_undo(facts: Facts, ours: set[str]) -> list[str]:
    """Return mount points that kubelet and containerd made, innermost first."""
    parents = [parent for name in ours for parent in MOUNT_PARENTS.get(name, ())]
    parents += [facts.folders[parent].real for parent in parents if parent in facts.folders]
    return [
        point
        for point in reversed(list(facts.mounts))
        if any(is_below(point, parent) for parent in parents) or ("containerd" in ours and point in facts.namespaces)
    ]


def places(component: str, etcd_data: str) -> tuple[str, ...]:
    """Return the paths, or patterns of paths, that a component leaves."""
    return tuple(
        etcd_data + path[len(ETCD_DATA) :] if path == ETCD_DATA or path.startswith(ETCD_DATA + ".") else path
        for path in FOLDERS.get(component, ())
    )


def wanted_folders(facts: Facts, ours: set[str]) -> dict[str, FolderFact]:
    """Return the files and folders to remove or to empty, of those that were found."""
    patterns = {pattern for name in ours for pattern in places(name, facts.etcd_data)}
    return {
        path: folder
        for path, folder in facts.folders.items()
        if any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)
    }


def make_plan(facts: Facts) -> list[Step]:
    """Return all that has to go, in the order in which it goes; nothing when nothing of ours is there."""
    ours = components(facts)
    steps = [
        *_stop(facts),
        *_kill(facts, ours),
        *(Step("unmount", "unmount", point) for point in mounts_to_undo(facts, ours)),
        *_network(facts, ours),
        *_data(facts, ours),
        *_files(facts),
        *_evidence(facts),
        *_users(facts),
        *_last(facts),
    ]
    return steps


def _stop(facts: Facts) -> Iterator[Step]:
    """Kubelet and timers first, since they start things; pods while containerd still runs; then all others at once."""
    starters = [unit for unit in facts.units if unit.name == "kubelet.service" or not unit.name.endswith(".service")]
    for unit in starters:
        if unit.running:
            yield Step("stop", "stop", unit.name)
    for identity, title in sorted(facts.pods.items(), key=lambda pod: pod[1]):
        yield Step("stop", "pod", title, identity)
    others = [unit.name for unit in facts.units if unit.running and unit not in starters]
    for name in sorted(others, key=lambda name: (name in STOPPED_LAST and STOPPED_LAST.index(name) + 1, name)):
        yield Step("stop", "stop", name)
    for unit in facts.units:
        if unit.enabled:
            yield Step("stop", "disable", unit.name)


def _kill(facts: Facts, ours: set[str]) -> Iterator[Step]:
    """What does not end with its unit or pod."""
    running = "|".join(re.escape(unit.name) for unit in facts.units if unit.running)
    of_unit = re.compile(rf"/({running})(/|$)", re.MULTILINE)
    for process in doomed_processes(facts.processes, ours):
        if (running and of_unit.search(process.cgroups)) or (facts.pods and POD_CGROUP.search(process.cgroups)):
            continue
        yield Step("kill", "kill", str(process.pid), process.program)


def _network(facts: Facts, ours: set[str]) -> Iterator[Step]:
    if "containerd" in ours:
        for path in facts.namespaces:
            yield Step("network", "namespace", path)
    bridges = [facts.bridge] if ours & BRIDGING else []
    if "kube-router" in ours:
        bridges.append(KUBE_ROUTER_BRIDGE)
    for bridge in bridges:
        for name, master in facts.interfaces.items():
            if master == bridge and name.startswith("veth"):
                yield Step("network", "link", name)
        if bridge in facts.interfaces:
            yield Step("network", "link", bridge)
    # Those through an interface that goes go with it.
    if ours & BRIDGING:
        for route in facts.routes:
            yield Step("network", "route", route)
    if "kube-router" in ours:
        for route in facts.learned_routes:
            yield Step("network", "route", route)
        for name in facts.interfaces:
            if KUBE_ROUTER_TUNNEL.fullmatch(name):
                yield Step("network", "link", name)
        for rule in facts.rules:
            yield Step("network", "rule", rule)
    for component in sorted(ours):
        for name in LINKS.get(component, ()):
            if name in facts.interfaces:
                yield Step("network", "link", name)
    doomed = {name for component in ours for name in TABLES.get(component, ())}
    for family, name in facts.tables:
        if name in doomed:
            yield Step("network", "table", f"{family} {name}")
    if "kubelet" not in ours:
        return
    for command, saved in facts.iptables.items():
        family = "ip6" if command.startswith("ip6") else "ip"
        whole, restore = plan_iptables(saved)
        # With the older kernel interface such tables cannot be deleted, and empty ones do nothing.
        for name in whole:
            if (family, name) in facts.tables:
                yield Step("network", "table", f"{family} {name}", "of iptables, nothing else in it")
        if restore:
            yield Step("network", "iptables", command, restore)
    # After the rules that name them.
    if "kube-router" in ours:
        for name in facts.ip_sets:
            if KUBE_ROUTER_SET.fullmatch(name):
                yield Step("network", "set", name)
    for path in facts.cgroups:
        yield Step("network", "cgroup", path)


def _data(facts: Facts, ours: set[str]) -> Iterator[Step]:
    for path, folder in sorted(wanted_folders(facts, ours).items()):
        if folder.keep and not folder.empty:
            yield Step("data", "empty", path, "a mount point or link, itself kept")
        elif not folder.keep:
            yield Step("data", "remove", path)


def _in_folders_to_go(path: str, facts: Facts) -> bool:
    return any(is_below(path, folder) for folder in wanted_folders(facts, components(facts)))


def _files(facts: Facts) -> Iterator[Step]:
    """Files with our header but units and the list of users, and what a killed run left of files."""
    for path in sorted({*facts.header_files, *facts.temporary_files}):
        if path != SYSUSERS and not is_unit_file(path) and not _in_folders_to_go(path, facts):
            yield Step("files", "remove", path)


def is_unit_file(path: str) -> bool:
    """Tell a unit file from its drop-ins, which are no evidence."""
    return posixpath.dirname(path) == UNIT_FOLDER and path.endswith(UNIT_SUFFIXES)


def _evidence(facts: Facts) -> Iterator[Step]:
    for path, target in sorted(facts.links.items()):
        yield Step("evidence", "remove", path, f"link to {target}")
    for path in sorted(facts.header_files):
        if is_unit_file(path):
            yield Step("evidence", "remove", path)
    if facts.store:
        yield Step("evidence", "remove", STORE)


def _users(facts: Facts) -> Iterator[Step]:
    for name, description in sorted(sysusers_names(facts.sysusers).items()):
        # A user of this name that somebody else made has another description.
        if facts.users.get(name) == description:
            yield Step("users", "user", name)


def _last(facts: Facts) -> Iterator[Step]:
    """The list of users: the first file that an installation writes is the last to go."""
    if SYSUSERS in facts.header_files:
        yield Step("last", "remove", SYSUSERS)


def make_diff(steps: Sequence[Step]) -> dict[str, str]:
    """Return what is there and goes, as a diff of lines."""
    return {
        "before_header": "on this host",
        "after_header": "after the reset",
        "before": "".join(f"{step}\n" for step in steps),
        "after": "",
    }
