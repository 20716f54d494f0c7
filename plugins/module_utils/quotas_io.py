# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reading what tenants have in a cluster, and writing a plan of quotas in its order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.plainkube.cluster.plugins.module_utils import quota_checks, quotas
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError
from ansible_collections.plainkube.cluster.plugins.module_utils.kubernetes_api import (
    RESOURCES,
    Api,
    ApiError,
    Forbidden,
    Unreachable,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.quotas import Chain, Item, Live, Plan, State, Write
from ansible_collections.plainkube.cluster.plugins.module_utils.tenants import (
    FIELD_MANAGER,
    POLICY_NAME,
    Document,
    DocumentError,
    Fault,
    Object,
    document_of,
    faults_of,
    message,
    read_document,
    with_lines,
)

# Objects of a kilobyte or two each: a thousand namespaces are one page.
PAGE = 1500
POD_PAGE = 500
# With so few namespaces, asking in each costs less than reading the pods of all.
FEW_NAMESPACES = 5
WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "CronJob")
SHOWN = 10
# Of these kinds one name alone is ours.
ONE_NAME = {"NetworkPolicy": POLICY_NAME, "ServiceAccount": "default"}


def load_document(tenants: Mapping[str, Any] | None, file: str | None) -> Document:
    """Return the document given as data or as a file. Raises DocumentError with all its faults, one a line."""
    text = ""
    source = "the tenants document"
    if file:
        source = f"tenants document {file}"
        try:
            text = Path(file).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DocumentError(f"{source} cannot be read: {error}") from error
    raw = read_document(text, source) if file else tenants
    faults = faults_of(raw)
    if faults:
        raise DocumentError(message(with_lines(faults, text) if file else faults, source))
    return document_of(raw)  # type: ignore[arg-type]


def raise_problems(answers: Iterable[Any], what: str) -> None:
    """Raise one PlainkubeError that names all that went wrong among answers."""
    problems = [answer for answer in answers if isinstance(answer, ApiError)]
    if problems:
        raise PlainkubeError("\n".join([f"{what}:", *(f"- {line}" for line in summary(problems))]))


def summary(problems: Sequence[ApiError]) -> list[str]:
    """Return problems in words, missing rights together with all their namespaces."""
    lines: dict[str, list[str]] = {}
    for problem in problems:
        if isinstance(problem, Forbidden) and problem.is_a_missing_right:
            where = f"namespace {problem.namespace}" if problem.namespace else "the whole cluster"
            lines.setdefault(f"{problem.user} lacks the right to {problem.verb} {problem.resource}", []).append(where)
        else:
            lines.setdefault(str(problem), [])
    return [f"{line} in {_some(places)}" if places else line for line, places in lines.items()]


def _some(places: Sequence[str]) -> str:
    """Return a list in words, its end only counted when it is long."""
    unique = sorted(set(places))
    more = f" and {len(unique) - SHOWN} more" if len(unique) > SHOWN else ""
    return ", ".join(unique[:SHOWN]) + more


@dataclass
class Cluster:
    """What was read of a cluster."""

    state: State = field(default_factory=dict)
    nodes: list[quota_checks.Node] = field(default_factory=list)
    priority_classes: set[str] | None = None

    @property
    def namespaces(self) -> dict[str, Mapping[str, str]]:
        """The labels of all namespaces by name."""
        return {live.name: live.labels for live in self.state.values() if live.kind == "Namespace"}


def read_cluster(api: Api, document: Document) -> Cluster:
    """Return what is there: one list for each kind that is spoken of. Raises PlainkubeError."""
    reader = quotas.Reader()
    cluster = Cluster()
    classes = any(quota.priority_classes for profile in document.profiles.values() for quota in profile.quotas)

    def read(kind: str) -> list[Any]:
        query = {"fieldSelector": f"metadata.name={ONE_NAME[kind]}"} if kind in ONE_NAME else {}
        things = api.list(RESOURCES[kind].path(), PAGE, **query)
        if kind == "Node":
            return [node for thing in things if (node := quota_checks.node_of(thing))]
        if kind == "PriorityClass":
            return [thing["metadata"]["name"] for thing in things]
        return [reader.live(kind, thing) for thing in things]

    def read_all(kinds: Sequence[str]) -> None:
        # One after the other: all pages of all kinds at once would be held in memory together.
        answers = api.at_the_same_time(read, kinds, at_once=1)
        raise_problems(answers, "the cluster cannot be read")
        for kind, answer in zip(kinds, answers):
            if isinstance(answer, ApiError):
                continue
            if kind == "Node":
                cluster.nodes = answer
            elif kind == "PriorityClass":
                cluster.priority_classes = set(answer)
            else:
                cluster.state.update({(live.kind, live.namespace, live.name): live for live in answer})

    at_once = [*quotas.ALWAYS, "Node", *quotas.needed_extras(document), *(["PriorityClass"] if classes else [])]
    read_all(at_once)
    namespaces = [live for live in cluster.state.values() if live.kind == "Namespace"]
    left = [kind for kind in quotas.needed_extras(document, namespaces) if kind not in at_once]
    if left:
        read_all(left)
    return cluster


def count_pods(api: Api, namespaces: Sequence[str]) -> quota_checks.PodUse:
    """Return what the pods of these namespaces use. Raises PlainkubeError."""
    use = quota_checks.PodUse(namespaces)
    for pod in _in_namespaces(api, "Pod", namespaces):
        use.add(pod)
    return use


def _in_namespaces(api: Api, kind: str, namespaces: Sequence[str]) -> Iterable[Object]:
    wanted = set(namespaces)
    for place in namespaces if len(namespaces) <= FEW_NAMESPACES else ("",):
        for thing in api.list(RESOURCES[kind].path(place), POD_PAGE):
            if thing["metadata"]["namespace"] in wanted:
                yield thing


def find_refusals(api: Api, plan: Plan, state: State) -> list[dict[str, Any]]:
    """Return the workloads whose pods would be refused at their next rollout, and why. Raises PlainkubeError."""
    namespaces = quota_checks.namespaces_to_try(plan, state)
    rules = quota_checks.rules_after(plan, state, namespaces)
    found = []
    for kind in WORKLOADS if namespaces else ():
        for thing in _in_namespaces(api, kind, namespaces):
            metadata = thing["metadata"]
            limits, specs = rules[metadata["namespace"]]
            reasons = quota_checks.refusals(quota_checks.template_of(kind, thing), limits, specs)
            if reasons:
                names = {"namespace": metadata["namespace"], "name": metadata["name"]}
                found.append({"kind": kind, **names, "reasons": reasons})
    return found


def class_faults(document: Document, known: set[str] | None) -> list[Fault]:
    """Return the PriorityClasses of quotas that the cluster does not have."""
    return [
        Fault(
            f"profiles.{profile.name}.quotas.{quota.name}.priority_classes",
            f"PriorityClass {name}, which there is not",
            "one of " + ", ".join(sorted(known)),
            "No pod would ever count.",
        )
        for profile in document.profiles.values()
        for quota in profile.quotas
        for name in quota.priority_classes
        if known is not None and name not in known
    ]


@dataclass
class Outcome:
    """What came of an item: created, changed, unchanged, pruned, or refused with a reason."""

    word: str
    reason: str = ""
    after: Live | None = None
    problem: ApiError | None = None


class Writer:
    """Carries out a plan, for real or as a dry run on the server, and knows what came of each item."""

    def __init__(
        self, api: Api, state: State, tenants_with_budget: Iterable[str], force: bool, dry_run: bool, keep_after: bool
    ) -> None:
        self._api = api
        self._state = state
        self._budgeted = set(tenants_with_budget)
        self._force = force
        self._dry_run = dry_run
        self._keep_after = keep_after
        self._reader = quotas.Reader()
        self._held_up: set[str] = set()
        self._begun: set[int] = set()
        self._completed: set[int] = set()
        self.outcomes: dict[int, Outcome] = {}

    def run(self, plan: Plan) -> None:
        """Write all items; problems become outcomes."""
        for item in plan.items:
            if item.reason:
                self.outcomes[id(item)] = Outcome("refused", item.reason)
        for chains in quotas.order(plan):
            answers = self._api.at_the_same_time(self._write_chain, chains)
            for chain, answer in zip(chains, answers):
                if isinstance(answer, ApiError):
                    self._give_up(chain, str(answer), answer)
            # What could not shrink leaves no room for what would grow.
            for chain in chains:
                for write in chain:
                    if self._refused(write.item) and write.item.tenant in self._budgeted:
                        self._held_up.add(write.item.tenant)

    def _refused(self, item: Item) -> bool:
        outcome = self.outcomes.get(id(item))
        return outcome is not None and outcome.word == "refused"

    def _give_up(self, chain: Chain, reason: str, problem: ApiError | None = None) -> None:
        """Note that what is left of a chain was not done."""
        for write in chain:
            if id(write.item) not in self._completed and not self._refused(write.item):
                self.outcomes[id(write.item)] = Outcome("refused", reason, problem=problem)
                problem = None

    def _write_chain(self, chain: Chain) -> None:
        for number, write in enumerate(chain):
            item = write.item
            if self._refused(item):
                self._give_up(chain[number:], f"not tried, since {item.title} was not written")
                return
            if item.tenant in self._held_up and quotas.grows(item):
                reason = f"not tried, since quotas of tenant {item.tenant} that were to make room were not written"
                self._give_up(chain[number:], reason)
                return
            try:
                outcome = self._write(write)
            except Unreachable:
                raise
            except ApiError as error:
                self._give_up(chain[number : number + 1], str(error), error)
                self._give_up(chain[number + 1 :], f"not tried, since {item.title} was not written")
                return
            if not write.completes:
                self._begun.add(id(item))
                continue
            if outcome.word == "unchanged" and id(item) in self._begun:
                outcome.word = "changed"
            self._completed.add(id(item))
            self.outcomes[id(item)] = outcome

    def _write(self, write: Write) -> Outcome:
        item = write.item
        if self._dry_run and not write.completes:
            return Outcome("changed")
        if write.thing is None:
            self._api.delete(_identity(item), self._dry_run)
            return Outcome("pruned" if item.action == "prune" else "changed")
        is_new_there = item.kind != "Namespace" and ("Namespace", "", item.namespace) not in self._state
        if self._dry_run and (is_new_there or item.action == "replace"):
            # The server cannot try what stands in a namespace that is not there yet, nor in the place of another.
            return Outcome("created" if is_new_there else "changed")
        body, word = self._api.apply(write.thing, FIELD_MANAGER, self._force, self._dry_run, live={})
        if item.action == "create":
            # Also when somebody was faster: it was not there when the plan was made, nor when check mode looked.
            return Outcome("created", after=self._reader.live(item.kind, body) if self._keep_after else None)
        after = self._reader.live(item.kind, body)
        if item.action == "release":
            return Outcome("pruned", after=after)
        if word == "changed" and item.live and _content(after) == _content(item.live):
            return Outcome("unchanged", after=after)
        return Outcome("changed", after=after)


def _content(live: Live) -> tuple[Any, ...]:
    return live.body, dict(live.labels), dict(live.annotations), live.owned


def _identity(item: Item) -> Object:
    metadata = {"name": item.name, **({"namespace": item.namespace} if item.namespace else {})}
    if item.live:
        metadata["uid"] = item.live.uid
    return {"apiVersion": RESOURCES[item.kind].api_version, "kind": item.kind, "metadata": metadata}
