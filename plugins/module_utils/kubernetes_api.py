# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The Kubernetes API as plain data: paged lists, server-side apply, bounded parallel writes, patience with a busy API.

Access (kubeconfig, context, tokens, in-cluster) is the official client's, and so is the pool of connections. Objects
stay plain dictionaries: the client's model classes cost three times the time and twice the memory.
"""

from __future__ import annotations

import json
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError

try:
    import urllib3
    import yaml
    from kubernetes import client, config
    from kubernetes.config.config_exception import ConfigException

    HAS_KUBERNETES = True
except ImportError:
    HAS_KUBERNETES = False

Object = dict[str, Any]
Given = TypeVar("Given")
Gained = TypeVar("Gained")

# What modules take, under the names of kubernetes.core; documented in the fragment api_access.
ARGUMENTS: dict[str, Any] = {
    "kubeconfig": {"type": "raw"},
    "context": {"type": "str"},
    "host": {"type": "str"},
    "api_key": {"type": "str", "no_log": True},
    "ca_cert": {"type": "path", "aliases": ["ssl_ca_cert"]},
    "client_cert": {"type": "path", "aliases": ["cert_file"]},
    "client_key": {"type": "path", "aliases": ["key_file"], "no_log": False},
    "validate_certs": {"type": "bool", "aliases": ["verify_ssl"]},
    "proxy": {"type": "str"},
}
ENVIRONMENT = {
    "kubeconfig": "K8S_AUTH_KUBECONFIG",
    "context": "K8S_AUTH_CONTEXT",
    "host": "K8S_AUTH_HOST",
    "api_key": "K8S_AUTH_API_KEY",
    "ca_cert": "K8S_AUTH_SSL_CA_CERT",
    "client_cert": "K8S_AUTH_CERT_FILE",
    "client_key": "K8S_AUTH_KEY_FILE",
    "validate_certs": "K8S_AUTH_VERIFY_SSL",
    "proxy": "K8S_AUTH_PROXY",
}

AT_ONCE = 8
TRIES = 7
LONGEST_PAUSE = 30.0
FIRST_PAUSE = 0.1
CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 60.0
BUSY = frozenset({429, 500, 502, 503, 504})
APPLY = "application/apply-patch+yaml"
JSON = "application/json"
METADATA = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
TEXT = "text/plain"
METHODS = {"get": "GET", "list": "GET", "patch": "PATCH", "create": "POST", "update": "PUT", "delete": "DELETE"}
# Namespaces that a message names; more are counted.
SHOWN = 10
# What changes with every write and is no content.
VOLATILE = ("managedFields", "resourceVersion", "generation")


class ApiError(PlainkubeError):
    """The API did not do what was asked: the message names verb, resource, namespace and name."""

    def __init__(self, request: Request, reason: str, status: int = 0) -> None:
        super().__init__(f"{request.words}: {reason}")
        self.request = request
        self.reason = reason
        self.status = status


class Forbidden(ApiError):
    """A right is missing."""

    def __init__(self, request: Request, message: str) -> None:
        match = re.search(r'User "([^"]*)" cannot (\w+) (?:resource|path) "([^"]+)"', message)
        self.user = match[1] if match else "the user of this kubeconfig"
        self.verb = match[2] if match else request.verb
        self.resource = match[3] if match else request.resource
        # Also a namespace itself is asked for in that namespace.
        within = re.search(r' in the namespace "([^"]+)"', message)
        self.namespace = request.namespace or (within[1] if within else "")
        where = f"in namespace {self.namespace}" if self.namespace else "in the whole cluster"
        wanted = f"the right to {self.verb} {self.resource} {where}"
        # What is no question of rights (an admission plugin's refusal) is said in the server's own words.
        reason = f"{self.user} lacks {wanted}: grant it with a role" if match else message
        super().__init__(request, reason, 403)
        self.is_a_missing_right = match is not None


class Conflict(ApiError):
    """Fields belong to other managers, or the object changed meanwhile."""

    def __init__(self, request: Request, message: str, managers: Mapping[str, Sequence[str]]) -> None:
        self.managers = {manager: list(fields) for manager, fields in managers.items()}
        owned = "; ".join(f"{manager} holds {', '.join(fields)}" for manager, fields in self.managers.items())
        super().__init__(request, owned or message, 409)


class Unreachable(ApiError):
    """No answer, or none but refusals, after all tries."""


class NotTried(ApiError):
    """Left out because the API had stopped answering before."""


class NoWayIn(PlainkubeError):
    """The kubeconfig is not there: perhaps there is no cluster yet."""


@dataclass(frozen=True)
class Resource:
    """Where the objects of one kind are."""

    api_version: str
    plural: str
    namespaced: bool = True

    def path(self, namespace: str = "", name: str = "") -> str:
        """Return the path of an object, or of the collection without a name; of all namespaces without a namespace."""
        root = f"/api/{self.api_version}" if "/" not in self.api_version else f"/apis/{self.api_version}"
        within = f"/namespaces/{quote(namespace)}" if self.namespaced and namespace else ""
        return f"{root}{within}/{self.plural}" + (f"/{quote(name)}" if name else "")


# Kinds that this collection reads or writes.
RESOURCES: dict[str, Resource] = {
    "Namespace": Resource("v1", "namespaces", False),
    "Node": Resource("v1", "nodes", False),
    "Pod": Resource("v1", "pods"),
    "Service": Resource("v1", "services"),
    "ServiceAccount": Resource("v1", "serviceaccounts"),
    "ConfigMap": Resource("v1", "configmaps"),
    "Secret": Resource("v1", "secrets"),
    "Event": Resource("v1", "events"),
    "LimitRange": Resource("v1", "limitranges"),
    "ResourceQuota": Resource("v1", "resourcequotas"),
    "PersistentVolumeClaim": Resource("v1", "persistentvolumeclaims"),
    "PersistentVolume": Resource("v1", "persistentvolumes", False),
    "Deployment": Resource("apps/v1", "deployments"),
    "ReplicaSet": Resource("apps/v1", "replicasets"),
    "StatefulSet": Resource("apps/v1", "statefulsets"),
    "DaemonSet": Resource("apps/v1", "daemonsets"),
    "Job": Resource("batch/v1", "jobs"),
    "CronJob": Resource("batch/v1", "cronjobs"),
    "HorizontalPodAutoscaler": Resource("autoscaling/v2", "horizontalpodautoscalers"),
    "PodDisruptionBudget": Resource("policy/v1", "poddisruptionbudgets"),
    "NetworkPolicy": Resource("networking.k8s.io/v1", "networkpolicies"),
    "Ingress": Resource("networking.k8s.io/v1", "ingresses"),
    "IngressClass": Resource("networking.k8s.io/v1", "ingressclasses", False),
    "EndpointSlice": Resource("discovery.k8s.io/v1", "endpointslices"),
    "StorageClass": Resource("storage.k8s.io/v1", "storageclasses", False),
    "PriorityClass": Resource("scheduling.k8s.io/v1", "priorityclasses", False),
    "Role": Resource("rbac.authorization.k8s.io/v1", "roles"),
    "RoleBinding": Resource("rbac.authorization.k8s.io/v1", "rolebindings"),
    "ClusterRole": Resource("rbac.authorization.k8s.io/v1", "clusterroles", False),
    "ClusterRoleBinding": Resource("rbac.authorization.k8s.io/v1", "clusterrolebindings", False),
    "ValidatingAdmissionPolicy": Resource("admissionregistration.k8s.io/v1", "validatingadmissionpolicies", False),
    "ValidatingAdmissionPolicyBinding": Resource(
        "admissionregistration.k8s.io/v1", "validatingadmissionpolicybindings", False
    ),
}


@dataclass(frozen=True)
class Request:
    """One request in the words of Kubernetes' access rights."""

    verb: str
    resource: str
    namespace: str = ""
    name: str = ""

    @property
    def words(self) -> str:
        """What was asked for, as a message says it."""
        where = f" in namespace {self.namespace}" if self.namespace else ""
        return f"{self.verb} {self.resource}{' ' + self.name if self.name else ''}{where}"


def request_of(verb: str, path: str) -> Request:
    """Return a verb and a path in the words of access rights."""
    parts = path.strip("/").split("/")
    parts = parts[2 if parts[0] == "api" else 3 :] or parts
    namespace = ""
    if parts[0] == "namespaces" and len(parts) > 2:
        namespace, parts = parts[1], parts[2:]
    return Request(verb, parts[0], namespace, parts[1] if len(parts) > 1 else "")


def resource_of(thing: Mapping[str, Any]) -> Resource:
    """Return where an object with apiVersion and kind lives. Raises PlainkubeError for an unknown kind."""
    found = RESOURCES.get(thing["kind"])
    if found is None or found.api_version != thing["apiVersion"]:
        raise PlainkubeError(f"kind {thing['kind']} of {thing['apiVersion']} is not among those that are written here")
    return found


def path_of(thing: Mapping[str, Any]) -> str:
    """Return the path of an object with apiVersion, kind and metadata."""
    metadata = thing["metadata"]
    return resource_of(thing).path(metadata.get("namespace", ""), metadata["name"])


def title(thing: Mapping[str, Any]) -> str:
    """Return an object as messages name it: Kind namespace/name."""
    metadata = thing["metadata"]
    return f"{thing['kind']} " + "/".join(part for part in (metadata.get("namespace"), metadata["name"]) if part)


def content(thing: Mapping[str, Any]) -> Object:
    """Return an object without what changes with every write, so that two reads can be compared."""
    metadata = {key: value for key, value in thing.get("metadata", {}).items() if key not in VOLATILE}
    return {**thing, "metadata": metadata}


def managers_in(status: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return which fields a conflict's status says belong to which manager."""
    found: dict[str, list[str]] = {}
    for cause in status.get("details", {}).get("causes", ()):
        match = re.match(r'conflict with "([^"]*)"', cause.get("message", ""))
        if cause.get("reason") == "FieldManagerConflict" and match:
            found.setdefault(match[1], []).append(cause.get("field", "").lstrip("."))
    return found


def problem_lines(problems: Iterable[ApiError]) -> list[str]:
    """Return problems in words, rights that are missing together with all their namespaces."""
    lines: dict[str, list[str]] = {}
    for problem in problems:
        if isinstance(problem, Forbidden) and problem.is_a_missing_right:
            where = f"namespace {problem.namespace}" if problem.namespace else "the whole cluster"
            lines.setdefault(f"{problem.user} lacks the right to {problem.verb} {problem.resource}", []).append(where)
        else:
            lines.setdefault(str(problem), [])
    return [f"{line} in {_some(places)}" if places else line for line, places in lines.items()]


def _some(places: Iterable[str]) -> str:
    """Return a list in words, its end only counted when it is long."""
    unique = sorted(set(places))
    more = f" and {len(unique) - SHOWN} more" if len(unique) > SHOWN else ""
    return ", ".join(unique[:SHOWN]) + more


def secrets_in(options: Mapping[str, Any]) -> set[str]:
    """Return what of a module's parameters must never be shown: what a kubeconfig given as data says of its users."""
    kubeconfig = options.get("kubeconfig")
    users = kubeconfig.get("users") if isinstance(kubeconfig, Mapping) else None
    parts = [user.get("user") or {} for user in users or ()]
    return {part[name] for part in parts for name in ("token", "password", "client-key-data") if part.get(name)}


def pause_before(attempt: int, retry_after: str | None, chance: float) -> float:
    """Return the seconds to wait before another try: what the server asks for, else doubling, and some chance."""
    try:
        asked = float(retry_after or 0)
    except ValueError:  # a date, which the API never sends
        asked = 0.0
    doubling = FIRST_PAUSE * 2**attempt * (0.5 + chance)
    return min(max(asked, doubling), LONGEST_PAUSE)


class Api:
    """One API server, asked with plain data."""

    def __init__(self, options: Mapping[str, Any], at_once: int = AT_ONCE) -> None:
        """Find the way in from a module's parameters, K8S_AUTH_* or inside a pod. Raises PlainkubeError."""
        self.at_once = at_once
        self.requests = 0
        self.writes = 0
        self._counting = threading.Lock()
        self._configuration = _configuration(options)
        self._configuration.connection_pool_maxsize = at_once
        self._client = client.ApiClient(self._configuration)
        self._pool = self._client.rest_client.pool_manager
        self._host = self._configuration.host.rstrip("/")

    def list(self, path: str, limit: int = 500, **query: Any) -> Iterator[Object]:
        """Yield the objects of a collection, page by page; each page is forgotten before the next is asked for.

        A list that grew too old between two pages is gone on with as the server proposes, or begun again without
        what was yielded already. Raises ApiError.
        """
        return self._pages(path, limit, query, JSON)

    def list_metadata(self, path: str, limit: int = 500, **query: Any) -> Iterator[Object]:
        """Yield the objects of a collection without their content, where that is large or nobody's business."""
        return self._pages(path, limit, query, METADATA)

    def _pages(self, path: str, limit: int, query: Mapping[str, Any], accept: str) -> Iterator[Object]:
        token = ""
        yielded: set[tuple[str, str]] = set()
        while True:
            parameters = {**query, "limit": limit, **({"continue": token} if token else {})}
            status, body = self._ask("list", path, None, parameters, accept)
            if status not in (200, 410):
                raise _error(request_of("list", path), status, body)
            token = body.get("metadata", {}).get("continue", "")
            for item in body.pop("items", None) or ():
                metadata = item["metadata"]
                key = (metadata.get("namespace", ""), metadata["name"])
                if key not in yielded:
                    yielded.add(key)
                    yield item
            if status == 200 and not token:
                return

    def get(self, path: str) -> Object | None:
        """Return an object, or None when it does not exist. Raises ApiError."""
        status, body = self.ask("get", path)
        if status == 404:
            return None
        if status != 200:
            raise _error(request_of("get", path), status, body)
        return body

    def apply(
        self,
        thing: Mapping[str, Any],
        field_manager: str,
        force: bool = False,
        dry_run: bool = False,
        live: Mapping[str, Any] | None = None,
    ) -> tuple[Object, str]:
        """Apply an object on the server; return it as it is then, and whether it was created, changed or unchanged.

        live is the object as it was seen before; without it the server is asked for it first.
        Raises Conflict with the managers of fields that are held by others, and other ApiErrors.
        """
        path = path_of(thing)
        if live is None:
            live = self.get(path)
        query = {"fieldManager": field_manager, "force": str(force).lower(), **({"dryRun": "All"} if dry_run else {})}
        status, body = self.ask("patch", path, thing, **query)
        if status not in (200, 201):
            raise _error(request_of("patch", path), status, body)
        if status == 201 or live is None:
            return body, "created"
        before = content({"apiVersion": thing["apiVersion"], "kind": thing["kind"], **live})
        return body, "unchanged" if content(body) == before else "changed"

    def delete(self, thing: Mapping[str, Any], dry_run: bool = False) -> bool:
        """Delete an object, but only the very one that was seen, unchanged since when it carries a resourceVersion.

        Returns whether there was one. Raises ApiError.
        """
        path = path_of(thing)
        seen = {key: thing["metadata"][key] for key in ("uid", "resourceVersion") if key in thing["metadata"]}
        # With a body, the server reads nothing from the query.
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": seen}
        status, body = self.ask("delete", path, {**options, "dryRun": ["All"]} if dry_run else options)
        if status == 404:
            return False
        if status not in (200, 202):
            raise _error(request_of("delete", path), status, body)
        return True

    def apply_all(
        self,
        things: Sequence[Mapping[str, Any]],
        field_manager: str,
        force: bool = False,
        dry_run: bool = False,
    ) -> Sequence[tuple[Object, str] | ApiError]:
        """Apply objects at once; return for each, in order, what apply returns or the error that it raised."""
        return self.at_the_same_time(lambda thing: self.apply(thing, field_manager, force, dry_run), things)

    def at_the_same_time(
        self, work: Callable[[Given], Gained], on: Iterable[Given], at_once: int = 0
    ) -> Sequence[Gained | ApiError]:
        """Do the work on all, so many at once; return in order what came of each, an ApiError included.

        Once the API does not answer any more, the rest is not tried.
        """
        gone = threading.Event()

        def guarded(item: Given) -> Gained | ApiError:
            if gone.is_set():
                return NotTried(Request("ask", "the API"), "not tried, since the API had stopped answering before")
            try:
                return work(item)
            except Unreachable as error:
                gone.set()
                return error
            except ApiError as error:
                return error

        with ThreadPoolExecutor(at_once or self.at_once) as workers:
            return [*workers.map(guarded, on)]

    def ask(self, verb: str, path: str, body: Mapping[str, Any] | None = None, **query: Any) -> tuple[int, Object]:
        """Send one request, again while the server is busy or breaks off, and return status and answer.

        patch is a server-side apply, so that every request but create may be repeated safely.
        Raises Unreachable when no try was answered.
        """
        return self._ask(verb, path, body, query, JSON)

    def get_text(self, path: str) -> str:
        """Return what the API server answers in plain text, such as its metrics. Raises ApiError."""
        status, body = self._ask("get", path, None, {}, TEXT)
        if status != 200:
            raise _error(request_of("get", path), status, body)
        return str(body["message"])

    def _ask(
        self, verb: str, path: str, body: Mapping[str, Any] | None, query: Mapping[str, Any], accept: str
    ) -> tuple[int, Object]:
        target = self._host + path + (f"?{urlencode(query)}" if query else "")
        data = json.dumps(body, separators=(",", ":")).encode() if body is not None else None
        trouble = ""
        for attempt in range(TRIES):
            headers = {"Accept": accept, **self._credentials()}
            if data is not None:
                headers["Content-Type"] = APPLY if verb == "patch" else "application/json"
            with self._counting:
                self.requests += 1
                self.writes += METHODS[verb] != "GET" and "dryRun" not in query and "dryRun" not in (body or {})
            retry_after = None
            try:
                answer = self._pool.request(
                    METHODS[verb],
                    target,
                    body=data,
                    headers=headers,
                    retries=False,
                    timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=ANSWER_SECONDS),
                )
                if answer.status not in BUSY:
                    return answer.status, _decoded(answer.data, accept == TEXT)
                retry_after = answer.headers.get("Retry-After")
                trouble = f"the API answered {answer.status} {_decoded(answer.data).get('message', '')}".rstrip()
            except urllib3.exceptions.HTTPError as error:
                trouble = f"no answer from {self._host}: {_plain(error)}"
            except json.JSONDecodeError as error:
                trouble = f"half an answer from {self._host}: {error}"
            if attempt + 1 < TRIES:
                time.sleep(pause_before(attempt, retry_after, random.random()))
        raise Unreachable(request_of(verb, path), f"{trouble}; tried {TRIES} times")

    def _credentials(self) -> dict[str, str]:
        """Return the headers that say who asks; tokens that expire are renewed by the client."""
        settings = self._configuration.auth_settings()
        return {entry["key"]: entry["value"] for entry in settings.values() if entry.get("in") == "header"}


def _error(request: Request, status: int, body: Mapping[str, Any]) -> ApiError:
    """Return the error that fits an answer."""
    message = str(body.get("message") or f"the API answered {status}")
    if status == 403:
        return Forbidden(request, message)
    if status == 409:
        return Conflict(request, message, managers_in(body))
    if status == 401:
        return ApiError(
            request, "the API does not know who asks: the token or certificate is not valid (any more)", 401
        )
    return ApiError(request, message, status)


def _decoded(data: bytes, whole: bool = False) -> Object:
    """Return a JSON answer; plain words become a message, the whole of them or a proxy's first few.

    Raises JSONDecodeError for half a JSON object.
    """
    if not data.lstrip().startswith(b"{"):
        text = data.decode(errors="replace").strip()
        return {"message": text if whole else text[:300]}
    decoded: Object = json.loads(data)
    return decoded


def _plain(error: BaseException) -> str:
    """Return urllib3's nested words without the pool's address in them."""
    return re.sub(r"^.*?object at 0x[0-9a-f]+>: |^HTTPS?ConnectionPool\([^)]*\): ", "", str(error))


def _configuration(options: Mapping[str, Any]) -> Any:
    """Return the client's configuration: parameters first, then K8S_AUTH_*, a kubeconfig, the pod's own account."""
    given = {
        name: options[name] if options.get(name) is not None else os.environ.get(ENVIRONMENT[name])
        for name in ARGUMENTS
    }
    configuration = client.Configuration()
    kubeconfig = given["kubeconfig"]
    try:
        if isinstance(kubeconfig, Mapping):
            config.load_kube_config_from_dict(
                dict(kubeconfig), context=given["context"], client_configuration=configuration, persist_config=False
            )
        elif kubeconfig or not (given["host"] and (given["api_key"] or given["client_cert"])):
            _load_file(kubeconfig, given["context"], configuration)
    except (ConfigException, OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        source = (
            "the given kubeconfig" if isinstance(kubeconfig, Mapping) else f"kubeconfig {kubeconfig or '(default)'}"
        )
        raise PlainkubeError(f"{source}: no way to the API in it: {' '.join(str(error).split())}") from error
    if given["host"]:
        configuration.host = given["host"]
    if given["api_key"]:
        configuration.api_key = {"authorization": f"Bearer {given['api_key']}"}
    for name, attribute in (("ca_cert", "ssl_ca_cert"), ("client_cert", "cert_file"), ("client_key", "key_file")):
        if given[name]:
            setattr(configuration, attribute, given[name])
    if given["proxy"]:
        configuration.proxy = given["proxy"]
    if given["validate_certs"] is not None:
        configuration.verify_ssl = str(given["validate_certs"]).lower() not in ("false", "no", "0", "off")
    return configuration


def _load_file(path: str | None, context: str | None, configuration: Any) -> None:
    """Read the kubeconfig at path or at its usual places; without one, use the account of the pod that this runs in."""
    if path:
        path = str(Path(path).expanduser())
        if not Path(path).is_file():
            raise NoWayIn(f"kubeconfig {path}: there is no such file; name the cluster's admin.conf or make it")
    elif "KUBERNETES_SERVICE_HOST" in os.environ and not Path("~/.kube/config").expanduser().exists():
        config.load_incluster_config(client_configuration=configuration)
        return
    config.load_kube_config(path, context=context, client_configuration=configuration, persist_config=False)
