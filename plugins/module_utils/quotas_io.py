# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reading what tenants have in a cluster, and writing a plan of quotas in its order."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
    problem_lines,
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


def read_cluster(api: Api, document: Document) -> State:
    """Return what is there, by one list for each kind that the document or the cluster's tenants have.

    Raises PlainkubeError.
    """
    reader = quotas.Reader()
    state: State = {}

    def read(kind: str) -> list[Live]:
        query = {"fieldSelector": f"metadata.name={ONE_NAME[kind]}"} if kind in ONE_NAME else {}
        return [reader.live(kind, thing) for thing in api.list(RESOURCES[kind].path(), PAGE, **query)]

    def read_all(kinds: Sequence[str]) -> None:
        # One after the other: all pages of all kinds at once would be held in memory together.
        problems = []
        for answer in api.at_the_same_time(read, kinds, at_once=1):
            if isinstance(answer, ApiError):
                problems.append(answer)
            else:
                state.update({(live.kind, live.namespace, live.name): live for live in answer})
        if problems:
            # Whoever lacks one right lacks others: all are to be known at once.
            look = Look(api)
            if all(isinstance(problem, Forbidden) for problem in problems):
                look.try_all(document)
            raise PlainkubeError(unreadable([*problems, *look.missing]))

    at_once = [*quotas.ALWAYS, *quotas.needed_extras(document)]
    read_all(at_once)
    namespaces = [live for live in state.values() if live.kind == "Namespace"]
    left = [kind for kind in quotas.needed_extras(document, namespaces) if kind not in at_once]
    if left:
        read_all(left)
    return state


def unreadable(problems: Sequence[ApiError]) -> str:
    """Return one message for all that stood against reading."""
    return "\n".join(["the cluster cannot be read:", *(f"- {line}" for line in problem_lines(problems))])


class Look:
    """Reads what decides whether a plan may be written. Rights that are missing are kept until all are known."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.missing: list[Forbidden] = []

    def try_all(self, document: Document) -> None:
        """Find out about the rights to read all that a plan may need."""
        for kind in ("Node", *(["PriorityClass"] if quotas.names_classes(document) else []), "Pod", *WORKLOADS):
            next(self._things(kind, 1), None)

    def nodes(self) -> list[quota_checks.Node]:
        """Return what the nodes can give to tenants. Raises ApiError."""
        return [node for thing in self._things("Node", PAGE) if (node := quota_checks.node_of(thing))]

    def priority_classes(self) -> set[str]:
        """Return the names of all PriorityClasses. Raises ApiError."""
        return {thing["metadata"]["name"] for thing in self._things("PriorityClass", PAGE)}

    def pods(self, namespaces: Sequence[str]) -> quota_checks.PodUse:
        """Return what the pods of these namespaces use. Raises ApiError."""
        use = quota_checks.PodUse(namespaces)
        for pod in self._in_namespaces("Pod", namespaces) if namespaces else ():
            use.add(pod)
        return use

    def refusals(self, plan: Plan, state: State) -> list[dict[str, Any]]:
        """Return the workloads whose pods would be refused at their next rollout, and why. Raises ApiError."""
        namespaces = quota_checks.namespaces_to_try(plan, state)
        rules = quota_checks.rules_after(plan, state, namespaces)
        found = []
        for kind in WORKLOADS if namespaces else ():
            for thing in self._in_namespaces(kind, namespaces):
                metadata = thing["metadata"]
                limits, specs = rules[metadata["namespace"]]
                reasons = quota_checks.refusals(quota_checks.template_of(kind, thing), limits, specs)
                if reasons:
                    names = {"namespace": metadata["namespace"], "name": metadata["name"]}
                    found.append({"kind": kind, **names, "reasons": reasons})
        return found

    def require_rights(self, document: Document) -> None:
        """Raise PlainkubeError when something could not be read, with all that could not."""
        if self.missing:
            self.try_all(document)
            raise PlainkubeError(unreadable(self.missing))

    def _things(self, kind: str, limit: int, namespace: str = "") -> Iterator[Object]:
        try:
            yield from self._api.list(RESOURCES[kind].path(namespace), limit)
        except Forbidden as error:
            self.missing.append(error)

    def _in_namespaces(self, kind: str, namespaces: Sequence[str]) -> Iterator[Object]:
        wanted = set(namespaces)
        for place in namespaces if len(namespaces) <= FEW_NAMESPACES else ("",):
            for thing in self._things(kind, POD_PAGE, place):
                if thing["metadata"]["namespace"] in wanted:
                    yield thing


def class_faults(document: Document, known: Collection[str]) -> list[Fault]:
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
        if name not in known
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
        if self._dry_run and item.action == "replace":
            # The server cannot try what comes in the place of another; what stands in for it can be tried.
            self._api.apply(quotas.stand_in(item), FIELD_MANAGER, self._force, self._dry_run, live={})
            return Outcome("changed")
        if write.of_stand_in:
            self._api.delete(quotas.stand_in(item))
            return Outcome("changed")
        if write.thing is None:
            self._api.delete(_identity(item), self._dry_run)
            return Outcome("pruned" if item.action == "prune" else "changed")
        is_new_there = item.kind != "Namespace" and ("Namespace", "", item.namespace) not in self._state
        if self._dry_run and is_new_there:
            # The server cannot try what is in a namespace that is not there yet.
            return Outcome("created")
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
