# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Questions of audit rules that a JMESPath expression cannot ask. Pure functions of a subject, settings and the time.

Each returns the parts that are found, none for an object in order. What stands behind " (" in a part may change from
day to day; the words before it are what a baseline knows it by.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

Object = dict[str, Any]
Settings = Mapping[str, Any]
Function = Callable[[Object, Settings, datetime], "list[str]"]


@dataclass(frozen=True)
class Predicate:
    """A question by name, and the facts that it needs."""

    function: Function
    facts: tuple[str, ...]
    meaning: str


PREDICATES: dict[str, Predicate] = {}


def predicate(*facts: str) -> Callable[[Function], Function]:
    """Make a function known under its name."""

    def note(function: Function) -> Function:
        meaning = (function.__doc__ or "").partition("\n")[0]
        PREDICATES[function.__name__] = Predicate(function, facts, meaning)
        return function

    return note


# --- Containers that end ----------------------------------------------------------------------------------------------


@predicate("restarts")
def restarts_often(subject: Object, settings: Settings, now: datetime) -> list[str]:
    """Containers whose pods together restarted at least settings.restarts times within settings.window_hours.

    The API keeps a count since the pod was made and the time of the last restart. So the number within the window is
    known for pods younger than it, and for older ones it is the count's share of their age.
    """
    window = timedelta(hours=settings["window_hours"])
    parts = []
    for container, entries in _by_container(subject["facts"]["restarts"]).items():
        lately = [entry for entry in entries if entry["last"] and now - _time(entry["last"]) <= window]
        estimate = sum(_within(entry, window, now) for entry in lately)
        if estimate < settings["restarts"]:
            continue
        last = max(lately, key=lambda entry: _time(entry["last"]))
        pods = "1 pod" if len(lately) == 1 else f"{len(lately)} pods"
        parts.append(
            f"{container} (about {round(estimate)} restarts in {settings['window_hours']} h in {pods}, "
            f"the last {_ago(last['last'], now)}: {last['reason']})"
        )
    return parts


def _within(entry: Object, window: timedelta, now: datetime) -> float:
    """Return how many of a container's restarts are in the window, as far as its count and its pod's age tell."""
    age = now - _time(entry["since"])
    share = min(1.0, window / age) if age > timedelta(0) else 1.0
    # The last one is known to be in the window.
    return max(1.0, float(entry["count"]) * share)


@predicate("restarts")
def oom_killed(subject: Object, settings: Settings, now: datetime) -> list[str]:
    """Containers whose last end within settings.window_hours was the kernel's, for want of memory.

    Only the last end of each container is kept by the API, and only that of its first process.
    """
    window = timedelta(hours=settings["window_hours"])
    parts = []
    for container, entries in _by_container(subject["facts"]["restarts"]).items():
        killed = [
            entry
            for entry in entries
            if entry["reason"] == "OOMKilled" and entry["last"] and now - _time(entry["last"]) <= window
        ]
        if killed:
            last = max(entry["last"] for entry in killed)
            pods = "1 pod" if len(killed) == 1 else f"{len(killed)} pods"
            parts.append(f"{container} (in {pods}, the last {_ago(last, now)})")
    return parts


def _by_container(restarts: Iterable[Object]) -> dict[str, list[Object]]:
    found: dict[str, list[Object]] = {}
    for entry in restarts:
        found.setdefault(entry["container"], []).append(entry)
    return dict(sorted(found.items()))


def _time(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)


def _ago(text: str, now: datetime) -> str:
    minutes = max(0, round((now - _time(text)).total_seconds() / 60))
    return f"{minutes} min ago" if minutes < 120 else f"{round(minutes / 60)} h ago"


# --- Images and probes ------------------------------------------------------------------------------------------------


@predicate()
def image_tag_floating(subject: Object, settings: Settings, now: datetime) -> list[str]:
    """Images with the tag latest or without any; a digest counts as a tag, the port of a registry does not."""
    return [
        f"{container['name']}: {container['image']}"
        for container in subject["containers"]
        if container["image"].endswith(":latest") or not re.search(r":[^/]+$", container["image"])
    ]


@predicate()
def probe_on_dependencies(subject: Object, settings: Settings, now: datetime) -> list[str]:
    """HTTP probes for readiness or liveness on one of settings.paths, whatever query follows."""
    parts = []
    for probe in ("readiness", "liveness"):
        for container in subject["containers"]:
            path = ((container.get(f"{probe}Probe") or {}).get("httpGet") or {}).get("path", "")
            if path.partition("?")[0] in settings["paths"]:
                parts.append(f"{container['name']}: {probe} {path}")
    return parts


@predicate()
def liveness_stricter(subject: Object, settings: Settings, now: datetime) -> list[str]:
    """Containers that liveness kills sooner than readiness would take them out of service, or lets answer less long."""
    parts = []
    for container in subject["containers"]:
        liveness, readiness = container.get("livenessProbe"), container.get("readinessProbe")
        if not liveness or not readiness:
            continue
        killed, taken_out = _patience(liveness), _patience(readiness)
        answer, same = liveness.get("timeoutSeconds", 1), readiness.get("timeoutSeconds", 1)
        if killed < taken_out:
            parts.append(f"{container['name']} (killed after {killed} s, out of service after {taken_out} s)")
        elif answer < same:
            parts.append(f"{container['name']} (liveness waits {answer} s for an answer, readiness {same} s)")
    return parts


def _patience(probe: Object) -> int:
    """Return after how many seconds of failures a probe gives up."""
    return int(probe.get("periodSeconds", 10)) * int(probe.get("failureThreshold", 3))


# --- Disruption -------------------------------------------------------------------------------------------------------


@predicate("covered", "workloads")
def pdb_blocks(subject: Object, settings: Settings, now: datetime) -> list[str]:
    """PodDisruptionBudgets that never let a pod go, by what they say or by the number of replicas that they cover."""
    spec, covered = subject["spec"], subject["facts"]["covered"]
    unavailable, available = spec.get("maxUnavailable"), spec.get("minAvailable")
    if unavailable in (0, "0%"):
        return [f"maxUnavailable {unavailable}"]
    if available == "100%":
        return ["minAvailable 100%"]
    # Percentages are rounded up, so that all replicas of a few can be asked for by less than 100 %.
    if isinstance(available, str) and available.endswith("%"):
        needed = -(-int(available[:-1]) * covered // 100)
    else:
        needed = int(available or 0)
    if covered and available is not None and needed >= covered:
        return [f"minAvailable {available} (of {covered} replicas)"]
    return []


@predicate("exposed", "replicas")
def update_stops_service(subject: Object, settings: Settings, now: datetime) -> list[str]:
    """Workloads reached from outside whose update takes all replicas away at once."""
    if not subject["facts"]["exposed"]:
        return []
    spec = subject["spec"]
    strategy = spec.get("strategy") or spec.get("updateStrategy") or {}
    if strategy.get("type") == "Recreate":
        return ["Recreate"]
    unavailable = (strategy.get("rollingUpdate") or {}).get("maxUnavailable")
    replicas = subject["facts"]["replicas"]
    if unavailable == "100%" or (isinstance(unavailable, int) and unavailable >= max(replicas, 1) and unavailable > 0):
        return [f"maxUnavailable {unavailable} (of {replicas} replicas)"]
    return []


@predicate()
def history_without_end(subject: Object, settings: Settings, now: datetime) -> list[str]:
    """Controllers that keep more revisions than settings.revisions, CronJobs that keep more than settings.jobs."""
    limits = {
        "revisionHistoryLimit": settings["revisions"],
        "successfulJobsHistoryLimit": settings["jobs"],
        "failedJobsHistoryLimit": settings["jobs"],
    }
    spec = subject["spec"]
    return [f"{key} {spec[key]}" for key, limit in limits.items() if spec.get(key, 0) > limit]


@predicate()
def labels_missing(subject: Object, settings: Settings, now: datetime) -> list[str]:
    """Objects without one of the labels in settings.labels."""
    labels = subject["metadata"].get("labels") or {}
    return [label for label in settings["labels"] if label not in labels]


@predicate("exposed")
def dashboard_exposed(subject: Object, settings: Settings, now: datetime) -> list[str]:
    """Workloads with one of settings.images in an image's name that can be reached from outside."""
    names = [
        image for container in subject["containers"] for image in settings["images"] if image in container["image"]
    ]
    return list(subject["facts"]["exposed"]) if names else []


# --- What a pod may do ------------------------------------------------------------------------------------------------


@predicate()
def runs_as_root(subject: Object, settings: Settings, now: datetime) -> list[str]:
    """Containers that neither say runAsNonRoot nor name another user than 0; their word counts before their pod's."""
    whole_pod = subject["pod"]["spec"].get("securityContext") or {}
    parts = []
    for container in subject["containers"]:
        context = {**whole_pod, **(container.get("securityContext") or {})}
        if not context.get("runAsNonRoot") and not context.get("runAsUser"):
            parts.append(container["name"])
    return parts


@predicate()
def capabilities_added(subject: Object, settings: Settings, now: datetime) -> list[str]:
    """Containers with added capabilities that are not in settings.allowed."""
    parts = []
    for container in subject["containers"]:
        added = ((container.get("securityContext") or {}).get("capabilities") or {}).get("add") or []
        wrong = [name for name in added if name not in settings["allowed"]]
        if wrong:
            parts.append(f"{container['name']}: {' '.join(wrong)}")
    return parts


# --- Rights -----------------------------------------------------------------------------------------------------------


@predicate("system")
def rbac_wildcard(subject: Object, settings: Settings, now: datetime) -> list[str]:
    """Roles that grant something on all resources, or all verbs on one of settings.sensitive."""
    if subject["facts"]["system"]:
        return []
    parts = []
    for rule in subject.get("rules") or ():
        resources, verbs = rule.get("resources") or [], rule.get("verbs") or []
        sensitive = [name for name in resources if name in settings["sensitive"]]
        if "*" in resources:
            groups = " ".join(group or "core" for group in rule.get("apiGroups") or ())
            parts.append(f"{' '.join(verbs)} on all resources of {'all groups' if '*' in groups else groups}")
        elif "*" in verbs and sensitive:
            parts.append(f"all verbs on {' '.join(sensitive)}")
    return list(dict.fromkeys(parts))


@predicate("system")
def rbac_cluster_admin(subject: Object, settings: Settings, now: datetime) -> list[str]:
    """Subjects bound to cluster-admin, without those in settings.subjects."""
    reference = subject["roleRef"]
    if subject["facts"]["system"] or (reference["kind"], reference["name"]) != ("ClusterRole", "cluster-admin"):
        return []
    return [who for who in _bound(subject) if who not in settings["subjects"]]


@predicate("system", "granted")
def rbac_exec(subject: Object, settings: Settings, now: datetime) -> list[str]:
    """Subjects of bindings whose role lets them run commands in pods (settings.resources)."""
    if subject["facts"]["system"]:
        return []
    wanted = {*settings["resources"], "*", "pods/*"}
    for rule in subject["facts"]["granted"]:
        core = {"", "*"} & set(rule.get("apiGroups") or ())
        if core and wanted & set(rule.get("resources") or ()) and {"create", "get", "patch", "*"} & set(rule["verbs"]):
            return _bound(subject)
    return []


def _bound(binding: Object) -> list[str]:
    """Return the subjects of a binding as people name them."""
    found = []
    for who in binding.get("subjects") or ():
        name = f"{who['namespace']}/{who['name']}" if who.get("namespace") else who["name"]
        found.append(f"{who['kind']} {name}")
    return found


# --- The cluster ------------------------------------------------------------------------------------------------------


@predicate("api_versions", "deprecated_requests")
def api_deprecated(subject: Object, settings: Settings, now: datetime) -> list[str]:
    """Objects whose manifest names one of settings.gone; and requests that the API server counted as going."""
    versions = subject["facts"]["api_versions"]
    gone = settings["gone"]
    # What kubectl noted is the manifest as it is now; managers' notes may be older, and count without one.
    used = [versions["applied"]] if versions["applied"] else versions["written"]
    parts = [f"{version}, instead: {gone[version]}" for version in used if version in gone]
    for request in subject["facts"].get("deprecated_requests") or ():
        group = f"{request['group']}/{request['version']}" if request["group"] else request["version"]
        parts.append(f"somebody asks for {request['resource']} of {group}, gone in {request['removed_release']}")
    return parts


# --- Exemptions -------------------------------------------------------------------------------------------------------


@predicate("exemptions")
def exemption_expired(subject: Object, settings: Settings, now: datetime) -> list[str]:
    """Objects with an exemption whose last day has passed."""
    return [f"{entry['rule']} until {entry['until']}" for entry in subject["facts"]["exemptions"] if entry["over"]]


@predicate("exemptions")
def exemption_not_valid(subject: Object, settings: Settings, now: datetime) -> list[str]:
    """Objects with an exemption that lacks its date or reason, or names no rule."""
    return [f"{entry['rule']}: {entry['fault']}" for entry in subject["facts"]["exemptions"] if entry["fault"]]
