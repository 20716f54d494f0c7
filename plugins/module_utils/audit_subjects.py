# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What an audit keeps of a cluster, and how it shows that to rules: a subject for each owner, with what belongs to it.

Objects come one by one and are reduced at once, so that memory grows with the number of owners and not with that of
pods. Pure: no I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

Object = dict[str, Any]
Key = tuple[str, str, str]

# What makes pods. A Pod here is one that none of the others made; pods of a controller that this page does not know are
# put together under that controller's kind and name.
WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob", "Pod")
# Which kinds of the API are read, in an order that lets each be reduced with what came before it.
READ_ORDER = (
    "Namespace",
    "Node",
    "Deployment",
    "StatefulSet",
    "DaemonSet",
    "CronJob",
    "Job",
    "Pod",
    "Service",
    "EndpointSlice",
    "Ingress",
    "PodDisruptionBudget",
    "HorizontalPodAutoscaler",
    "LimitRange",
    "ResourceQuota",
    "NetworkPolicy",
    "ServiceAccount",
    "Role",
    "ClusterRole",
    "RoleBinding",
    "ClusterRoleBinding",
    "StorageClass",
    "Secret",
)
CLUSTER_WIDE = frozenset({"Namespace", "Node", "ClusterRole", "ClusterRoleBinding", "StorageClass", "Cluster"})
# Subjects that no object stands for: all revisions of a Helm release, and the cluster itself.
MADE_UP = {"HelmRelease": ("Secret",), "Cluster": ()}
# What a rule may name as its kinds.
SUBJECT_KINDS = (
    *WORKLOADS,
    "Service",
    "Ingress",
    "PodDisruptionBudget",
    "HorizontalPodAutoscaler",
    "NetworkPolicy",
    "Namespace",
    "Role",
    "ClusterRole",
    "RoleBinding",
    "ClusterRoleBinding",
    "StorageClass",
    *MADE_UP,
)
GROUPS = {"Workload": WORKLOADS, "Any": SUBJECT_KINDS}

HELM_LABELS = "owner=helm"
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
BOOTSTRAPPING = "kubernetes.io/bootstrapping"
ZONE = "topology.kubernetes.io/zone"


@dataclass(frozen=True)
class Fact:
    """Something that a rule may ask about a subject beyond the object itself.

    of: the kinds of subjects that have it; reads: what has to be read of the API to know it.
    """

    meaning: str
    of: tuple[str, ...]
    reads: tuple[str, ...] = ()


FACTS: dict[str, Fact] = {
    "api_versions": Fact(
        "the API versions that the object's manifest (as kubectl noted it) and its writers used", SUBJECT_KINDS
    ),
    "exemptions": Fact("the exemptions that the object carries, judged", SUBJECT_KINDS),
    "replicas": Fact("how many pods are wanted", WORKLOADS, ("Pod",)),
    "running": Fact("how many of its pods are on a node and not at their end", WORKLOADS, ("Pod",)),
    "ready": Fact("how many of its pods are ready", WORKLOADS, ("Pod",)),
    "nodes": Fact("the nodes that its pods are on, and how many pods each has", WORKLOADS, ("Pod",)),
    "zones": Fact("the zones of these nodes", WORKLOADS, ("Pod", "Node")),
    "cluster_nodes": Fact("how many nodes could take pods without a toleration", WORKLOADS, ("Node",)),
    "cluster_zones": Fact("how many zones these nodes are in", WORKLOADS, ("Node",)),
    "restarts": Fact(
        "container, pod, count, last (time), reason and since (the pod's start) for each container that restarted",
        WORKLOADS,
        ("Pod",),
    ),
    "budgets": Fact("the PodDisruptionBudgets that cover its pods", WORKLOADS, ("PodDisruptionBudget",)),
    "services": Fact("the Services that select its pods", WORKLOADS, ("Service",)),
    "ingresses": Fact("the Ingresses that lead to one of these Services", WORKLOADS, ("Service", "Ingress")),
    "exposed": Fact(
        "how it is reached from outside: Ingress, LoadBalancer, NodePort", WORKLOADS, ("Service", "Ingress")
    ),
    "service_account": Fact("the name of its service account", WORKLOADS),
    "mounts_token": Fact("whether that account's token is mounted", WORKLOADS, ("ServiceAccount",)),
    "ready_endpoints": Fact("how many endpoints of the Service are ready", ("Service",), ("EndpointSlice",)),
    "workloads": Fact(
        "how many workloads the namespace has, or the budget covers", ("Namespace", "PodDisruptionBudget"), WORKLOADS
    ),
    "covered": Fact(
        "how many pods are wanted by the workloads that the budget covers", ("PodDisruptionBudget",), WORKLOADS
    ),
    "quotas": Fact("the namespace's ResourceQuotas", ("Namespace",), ("ResourceQuota",)),
    "limit_ranges": Fact("the namespace's LimitRanges", ("Namespace",), ("LimitRange",)),
    "network_policies": Fact("the namespace's NetworkPolicies", ("Namespace",), ("NetworkPolicy",)),
    "system": Fact(
        "whether Kubernetes itself brings the object", ("Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding")
    ),
    "granted": Fact(
        "the rules of the role that is bound", ("RoleBinding", "ClusterRoleBinding"), ("Role", "ClusterRole")
    ),
    "revisions": Fact("how many revisions Helm keeps of the release", ("HelmRelease",), ("Secret",)),
    "storage_classes": Fact("the names of all StorageClasses", ("Cluster",), ("StorageClass",)),
    "default_storage_classes": Fact("the names of those marked as default", ("Cluster",), ("StorageClass",)),
    "deprecated_requests": Fact(
        "group, version, resource and release of removal for each API that is going and was asked for since the API "
        "server's start",
        ("Cluster",),
    ),
}


def kinds_meant(kinds: Iterable[str]) -> tuple[str, ...]:
    """Return kinds with the names of groups (Workload, Any) spelt out."""
    return tuple(dict.fromkeys(kind for name in kinds for kind in GROUPS.get(name, (name,))))


def kinds_to_read(kinds: Iterable[str], facts: Iterable[str]) -> tuple[str, ...]:
    """Return the kinds of the API that must be read for subjects of these kinds with these facts, in reading order."""
    wanted = {"Namespace"}
    for kind in kinds:
        wanted.update(MADE_UP.get(kind, (kind,)))
    for name in facts:
        wanted.update(FACTS[name].reads)
    if wanted & {*WORKLOADS, "Pod"}:
        # A pod is understood through its owner, and its containers through LimitRange and Services.
        wanted.update((*WORKLOADS, "LimitRange", "Service"))
    return tuple(kind for kind in READ_ORDER if kind in wanted)


@dataclass(frozen=True)
class Scope:
    """Which namespaces are looked at: patterns, all without any; and which of these are left out."""

    namespaces: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def is_whole_cluster(self) -> bool:
        """Whether objects outside namespaces are looked at as well."""
        return not self.namespaces

    @property
    def names(self) -> tuple[str, ...]:
        """The namespaces that are looked at, when all are named without a pattern."""
        if any(letter in pattern for pattern in self.namespaces for letter in "*?["):
            return ()
        return tuple(name for name in dict.fromkeys(self.namespaces) if self.holds(name))

    def looks_at(self, kind: str) -> bool:
        """Return whether objects of a kind are looked at for themselves, and not for the sake of others only."""
        return self.is_whole_cluster or kind == "Namespace" or kind not in CLUSTER_WIDE

    def holds(self, namespace: str) -> bool:
        """Return whether a namespace is looked at."""
        chosen = not self.namespaces or any(fnmatchcase(namespace, pattern) for pattern in self.namespaces)
        return chosen and not any(fnmatchcase(namespace, pattern) for pattern in self.left_out)


@dataclass
class Pods:
    """What is kept of the pods of one owner."""

    count: int = 0
    running: int = 0
    ready: int = 0
    nodes: dict[str, int] = field(default_factory=dict)
    restarts: list[Object] = field(default_factory=list)


@dataclass
class Cluster:
    """What is kept of a cluster, filled object by object in READ_ORDER."""

    scope: Scope = field(default_factory=Scope)
    looked_at: dict[str, int] = field(default_factory=dict)
    kept: dict[str, dict[tuple[str, str], Object]] = field(default_factory=dict)
    pods: dict[Key, Pods] = field(default_factory=dict)
    nodes: dict[str, Object] = field(default_factory=dict)
    ready_endpoints: dict[tuple[str, str], int] = field(default_factory=dict)
    releases: dict[tuple[str, str], int] = field(default_factory=dict)
    deprecated_requests: list[Object] = field(default_factory=list)

    def add(self, kind: str, thing: Object) -> None:
        """Keep what rules need of an object, and count it."""
        metadata = thing["metadata"]
        namespace = metadata["name"] if kind == "Namespace" else metadata.get("namespace", "")
        if namespace and not self.scope.holds(namespace):
            return
        self.looked_at[kind] = self.looked_at.get(kind, 0) + 1
        if kind == "Pod":
            self._add_pod(thing)
        elif kind == "Node":
            self.nodes[metadata["name"]] = _reduced_node(thing)
        elif kind == "EndpointSlice":
            service = metadata.get("labels", {}).get("kubernetes.io/service-name", "")
            self.ready_endpoints[namespace, service] = self.ready_endpoints.get(
                (namespace, service), 0
            ) + _ready_endpoints(thing)
        elif kind == "Secret":
            release = metadata.get("labels", {}).get("name", "")
            self.releases[namespace, release] = self.releases.get((namespace, release), 0) + 1
        else:
            self._keep(kind, namespace, metadata["name"], thing)

    def _keep(self, kind: str, namespace: str, name: str, thing: Object) -> None:
        self.kept.setdefault(kind, {})[namespace, name] = reduced(thing)

    def _add_pod(self, pod: Object) -> None:
        kind, name = self._owner(pod)
        namespace = pod["metadata"]["namespace"]
        key = (kind, namespace, name)
        if key not in self.pods:
            self.pods[key] = Pods()
            if (namespace, name) not in self.kept.get(kind, {}):
                # No object of its maker is known, so this pod stands for all of them.
                metadata = {**pod["metadata"], "name": name}
                self._keep(kind, namespace, name, {**pod, "metadata": metadata, "status": {}})
        _count_pod(self.pods[key], pod)

    def _owner(self, pod: Object) -> tuple[str, str]:
        """Return kind and name of what a person would change to change this pod."""
        metadata = pod["metadata"]
        namespace = metadata["namespace"]
        maker = controller_of(metadata)
        if maker is None or maker["kind"] == "Node":
            return "Pod", metadata["name"]
        kind, name = str(maker["kind"]), str(maker["name"])
        if kind == "ReplicaSet":
            # A Deployment's ReplicaSet is its name and the pods' hash: no need to read all ReplicaSets.
            ending = "-" + metadata.get("labels", {}).get("pod-template-hash", "")
            deployment = name[: -len(ending)] if name.endswith(ending) else ""
            return (
                ("Deployment", deployment)
                if (namespace, deployment) in self.kept.get("Deployment", {})
                else (kind, name)
            )
        if kind == "Job":
            job = self.kept.get("Job", {}).get((namespace, name))
            cron = controller_of(job["metadata"]) if job else None
            if cron is not None and cron["kind"] == "CronJob":
                return "CronJob", str(cron["name"])
        return kind, name

    # --- Subjects -----------------------------------------------------------------------------------------------------

    def subjects(self) -> Iterator[Object]:
        """Yield all that rules look at, one after the other: the object as the API has it, and its facts."""
        related = _Related(self)
        for kind, things in self.kept.items():
            if not self.scope.looks_at(kind):
                continue
            for (namespace, name), thing in things.items():
                template = pod_template(kind, thing)
                if kind == "Job" and _is_made_by(thing, "CronJob"):
                    continue
                if kind not in SUBJECT_KINDS and template is None:
                    # Read for the sake of others only.
                    break
                subject = {**thing, "kind": kind}
                facts: Object = {"api_versions": thing["api_versions"]}
                if template is not None:
                    subject.update(self._workload(kind, namespace, name, thing, template, facts, related))
                elif kind == "Service":
                    facts["ready_endpoints"] = self.ready_endpoints.get((namespace, name), 0)
                elif kind == "PodDisruptionBudget":
                    facts.update(related.covered(namespace, thing))
                elif kind == "Namespace":
                    facts.update(related.of_namespace(name))
                elif kind in ("Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"):
                    facts["system"] = thing["metadata"].get("labels", {}).get(BOOTSTRAPPING) == "rbac-defaults"
                    if "roleRef" in thing:
                        facts["granted"] = self._granted(namespace, thing["roleRef"])
                yield {**subject, "facts": facts}
        for (namespace, release), revisions in self.releases.items():
            yield _made_up("HelmRelease", namespace, release, {"revisions": revisions})
        if self.scope.is_whole_cluster:
            classes = self.kept.get("StorageClass", {})
            yield _made_up(
                "Cluster",
                "",
                "cluster",
                {
                    "storage_classes": sorted(name for _, name in classes),
                    "default_storage_classes": sorted(
                        name
                        for (_, name), found in classes.items()
                        if found["metadata"].get("annotations", {}).get(DEFAULT_CLASS) == "true"
                    ),
                    "deprecated_requests": self.deprecated_requests,
                },
            )

    def _workload(
        self, kind: str, namespace: str, name: str, thing: Object, template: Object, facts: Object, related: _Related
    ) -> Object:
        """Fill in a workload's facts; return its pod template and containers."""
        spec = template.get("spec", {})
        labels = template.get("metadata", {}).get("labels", {})
        pods = self.pods.get((kind, namespace, name), Pods())
        services = related.services_of(namespace, labels)
        places = {node: self.nodes.get(node, {}) for node in pods.nodes}
        facts.update(
            replicas=self.replicas(kind, thing, pods),
            running=pods.running,
            ready=pods.ready,
            nodes=pods.nodes,
            zones=sorted({place.get("zone", "") for place in places.values()} - {""}),
            cluster_nodes=related.open_nodes,
            cluster_zones=related.open_zones,
            restarts=pods.restarts,
            budgets=related.budgets_of(namespace, labels),
            services=[service["metadata"]["name"] for service in services],
            ingresses=related.ingresses_of(namespace, services),
            service_account=spec.get("serviceAccountName") or "default",
        )
        facts["exposed"] = [f"Ingress {ingress}" for ingress in facts["ingresses"]] + [
            f"Service {service['metadata']['name']} ({service['spec']['type']})"
            for service in services
            if service["spec"].get("type") in ("LoadBalancer", "NodePort")
        ]
        facts["mounts_token"] = self._mounts_token(namespace, spec, facts["service_account"])
        return {
            "pod": {"metadata": template.get("metadata", {}), "spec": spec},
            "containers": containers_of(spec, related.defaults_in(namespace), services),
        }

    def replicas(self, kind: str, thing: Object, pods: Pods) -> int:
        """Return how many pods an object is meant to have."""
        if kind == "DaemonSet":
            return int(thing.get("status", {}).get("desiredNumberScheduled") or pods.count)
        if kind in ("Deployment", "StatefulSet"):
            return int(thing["spec"].get("replicas", 1))
        return pods.count if kind not in ("Job", "CronJob") else 0

    def _mounts_token(self, namespace: str, spec: Object, account: str) -> bool:
        own = spec.get("automountServiceAccountToken")
        if own is None:
            own = self.kept.get("ServiceAccount", {}).get((namespace, account), {}).get("automountServiceAccountToken")
        return own is not False

    def _granted(self, namespace: str, reference: Object) -> list[Object]:
        within = namespace if reference["kind"] == "Role" else ""
        role = self.kept.get(reference["kind"], {}).get((within, reference["name"]), {})
        return role.get("rules") or []


class _Related:
    """Indexes over what is kept: who selects whom."""

    def __init__(self, cluster: Cluster) -> None:
        self._budgets = _by_namespace(cluster.kept.get("PodDisruptionBudget", {}))
        self._services = _by_namespace(cluster.kept.get("Service", {}))
        self._limit_ranges = _by_namespace(cluster.kept.get("LimitRange", {}))
        self._quotas = _by_namespace(cluster.kept.get("ResourceQuota", {}))
        self._policies = _by_namespace(cluster.kept.get("NetworkPolicy", {}))
        self._ingresses: dict[tuple[str, str], list[str]] = {}
        for (namespace, name), ingress in cluster.kept.get("Ingress", {}).items():
            for service in _backends(ingress["spec"]):
                self._ingresses.setdefault((namespace, service), []).append(name)
        self._workloads: dict[str, list[tuple[Object, int]]] = {}
        for kind, things in cluster.kept.items():
            for (namespace, name), thing in things.items():
                template = pod_template(kind, thing)
                if template is None or (kind == "Job" and _is_made_by(thing, "CronJob")):
                    continue
                pods = cluster.pods.get((kind, namespace, name), Pods())
                labels = template.get("metadata", {}).get("labels", {})
                self._workloads.setdefault(namespace, []).append((labels, cluster.replicas(kind, thing, pods)))
        usable = [node for node in cluster.nodes.values() if node["open"]]
        self.open_nodes = len(usable)
        self.open_zones = len({node["zone"] for node in usable} - {""})
        self._defaults: dict[str, Object] = {}

    def services_of(self, namespace: str, labels: Mapping[str, str]) -> list[Object]:
        return [
            service
            for service in self._services.get(namespace, ())
            if service["spec"].get("selector") and service["spec"]["selector"].items() <= labels.items()
        ]

    def budgets_of(self, namespace: str, labels: Mapping[str, str]) -> list[str]:
        return [
            budget["metadata"]["name"]
            for budget in self._budgets.get(namespace, ())
            if selects(budget["spec"].get("selector"), labels)
        ]

    def ingresses_of(self, namespace: str, services: Iterable[Object]) -> list[str]:
        names = [
            name for service in services for name in self._ingresses.get((namespace, service["metadata"]["name"]), ())
        ]
        return list(dict.fromkeys(names))

    def covered(self, namespace: str, budget: Object) -> Object:
        found = [
            replicas
            for labels, replicas in self._workloads.get(namespace, ())
            if selects(budget["spec"].get("selector"), labels)
        ]
        return {"workloads": len(found), "covered": sum(found)}

    def of_namespace(self, name: str) -> Object:
        def names(index: Mapping[str, list[Object]]) -> list[str]:
            return [thing["metadata"]["name"] for thing in index.get(name, ())]

        return {
            "workloads": len(self._workloads.get(name, ())),
            "quotas": names(self._quotas),
            "limit_ranges": names(self._limit_ranges),
            "network_policies": names(self._policies),
        }

    def defaults_in(self, namespace: str) -> Object:
        """Return the requests and limits that LimitRanges of the namespace give to containers that name none."""
        if namespace not in self._defaults:
            found: Object = {"requests": {}, "limits": {}}
            for limit_range in self._limit_ranges.get(namespace, ()):
                for limit in limit_range["spec"].get("limits", ()):
                    if limit.get("type") == "Container":
                        found["limits"].update(limit.get("default") or {})
                        found["requests"].update(
                            {**(limit.get("default") or {}), **(limit.get("defaultRequest") or {})}
                        )
            self._defaults[namespace] = found
        return self._defaults[namespace]


# --- Reduction --------------------------------------------------------------------------------------------------------


def reduced(thing: Object) -> Object:
    """Return an object without its managers' notes, which are half of it, but with the API versions they name."""
    metadata = dict(thing["metadata"])
    annotations = dict(metadata.get("annotations") or {})
    manifest = annotations.pop(LAST_APPLIED, "")
    managed = metadata.pop("managedFields", None) or ()
    versions = {str(entry["apiVersion"]) for entry in managed if entry.get("apiVersion")}
    applied = _version_in(manifest)
    if annotations or "annotations" in metadata:
        metadata["annotations"] = annotations
    return {**thing, "metadata": metadata, "api_versions": {"applied": applied, "written": sorted(versions)}}


def _version_in(manifest: str) -> str:
    """Return the apiVersion of the manifest that kubectl noted; kubectl writes it first, in compact JSON."""
    _, found, rest = manifest.partition('"apiVersion":"')
    return rest.partition('"')[0] if found else ""


def _reduced_node(node: Object) -> Object:
    spec = node.get("spec", {})
    conditions = {entry["type"]: entry["status"] for entry in node.get("status", {}).get("conditions", ())}
    # Taints of that group repeat what the conditions say.
    taints = [taint for taint in spec.get("taints", ()) if not taint["key"].startswith("node.kubernetes.io/")]
    closed = spec.get("unschedulable") or any(taint["effect"] != "PreferNoSchedule" for taint in taints)
    return {
        "zone": node["metadata"].get("labels", {}).get(ZONE, ""),
        "open": not closed and conditions.get("Ready", "True") == "True",
    }


def _ready_endpoints(piece: Object) -> int:
    """Return how many endpoints of a slice are ready; no condition counts as ready, as the API says."""
    return sum(
        1 for endpoint in piece.get("endpoints") or () if (endpoint.get("conditions") or {}).get("ready") is not False
    )


def _count_pod(pods: Pods, pod: Object) -> None:
    status = pod.get("status", {})
    pods.count += 1
    node = pod["spec"].get("nodeName")
    if node and status.get("phase") not in ("Succeeded", "Failed"):
        pods.running += 1
        pods.nodes[node] = pods.nodes.get(node, 0) + 1
    if any(entry["type"] == "Ready" and entry["status"] == "True" for entry in status.get("conditions", ())):
        pods.ready += 1
    since = status.get("startTime") or pod["metadata"].get("creationTimestamp")
    for container in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
        if container.get("restartCount"):
            pods.restarts.append({"pod": pod["metadata"]["name"], "since": since, **_restart(container)})


def _restart(status: Object) -> Object:
    """Return what a container's status still knows of its restarts: their number, and when and why the last was."""
    ended = status.get("lastState", {}).get("terminated") or status.get("state", {}).get("terminated") or {}
    # The kubelet forgets an ended container that was cleaned up; the present one's start is the time of the restart.
    last = ended.get("finishedAt") or status.get("state", {}).get("running", {}).get("startedAt")
    return {
        "container": status["name"],
        "count": int(status["restartCount"]),
        "last": last,
        "reason": ended.get("reason") or "reason unknown",
    }


# --- Small questions --------------------------------------------------------------------------------------------------


def controller_of(metadata: Object) -> Object | None:
    """Return the reference to the object that made this one."""
    return next((owner for owner in metadata.get("ownerReferences") or () if owner.get("controller")), None)


def _is_made_by(thing: Object, kind: str) -> bool:
    maker = controller_of(thing["metadata"])
    return maker is not None and maker["kind"] == kind


def pod_template(kind: str, thing: Object) -> Object | None:
    """Return the template of the pods that an object makes, a pod itself as it is, and None for other objects."""
    spec = thing.get("spec") or {}
    if kind == "CronJob":
        made: Object = spec["jobTemplate"]["spec"]["template"]
        return made
    if kind in WORKLOADS and kind != "Pod":
        made = spec["template"]
        return made
    # Pods stand for themselves and for makers of other kinds.
    return thing if "containers" in spec else None


def containers_of(spec: Object, defaults: Object, services: Iterable[Object] = ()) -> list[Object]:
    """Return all containers of a pod as they will run: with the requests and limits that they get from elsewhere.

    Each is marked with init (it ends before the others start) and serves (a Service sends to one of its ports).
    """
    regular = spec.get("containers") or []
    targets = {
        port.get("targetPort", port["port"]) for service in services for port in service["spec"].get("ports") or ()
    }
    found = []
    for container in regular:
        ports = {value for port in container.get("ports") or () for value in (port.get("name"), port["containerPort"])}
        serves = bool(targets) and (bool(targets & ports) or len(regular) == 1)
        found.append({"image": "", **container, "init": False, "serves": serves})
    # An init container that is restarted always is a sidecar: it runs beside the others.
    found += [
        {"image": "", **container, "init": container.get("restartPolicy") != "Always", "serves": False}
        for container in spec.get("initContainers") or ()
    ]
    whole_pod = spec.get("resources") or {}
    for container in found:
        own = container.get("resources") or {}
        limits = {**defaults["limits"], **(whole_pod.get("limits") or {}), **(own.get("limits") or {})}
        requests = {
            **defaults["requests"],
            **(whole_pod.get("limits") or {}),
            **(whole_pod.get("requests") or {}),
            # Whoever names only a limit asks for as much.
            **(own.get("limits") or {}),
            **(own.get("requests") or {}),
        }
        container["resources"] = {"requests": requests, "limits": limits}
    return found


def selects(selector: Mapping[str, Any] | None, labels: Mapping[str, str]) -> bool:
    """Return whether a label selector of policy/v1 selects these labels: none selects nothing, an empty one all."""
    if selector is None:
        return False
    if not (selector.get("matchLabels") or {}).items() <= labels.items():
        return False
    return all(_meets(entry, labels) for entry in selector.get("matchExpressions") or ())


def _meets(entry: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    value = labels.get(entry["key"])
    if entry["operator"] == "Exists":
        return value is not None
    if entry["operator"] == "DoesNotExist":
        return value is None
    return (value in entry["values"]) == (entry["operator"] == "In")


def _by_namespace(things: Mapping[tuple[str, str], Object]) -> dict[str, list[Object]]:
    found: dict[str, list[Object]] = {}
    for (namespace, _), thing in things.items():
        found.setdefault(namespace, []).append(thing)
    return found


def _backends(spec: Object) -> Iterator[str]:
    """Yield the names of the Services that an Ingress leads to."""
    backends = [spec.get("defaultBackend") or {}]
    for rule in spec.get("rules") or ():
        backends += [path.get("backend") or {} for path in (rule.get("http") or {}).get("paths") or ()]
    for backend in backends:
        if backend.get("service"):
            yield backend["service"]["name"]


def _made_up(kind: str, namespace: str, name: str, facts: Object) -> Object:
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    return {"kind": kind, "metadata": metadata, "facts": {"api_versions": {"applied": "", "written": []}, **facts}}
