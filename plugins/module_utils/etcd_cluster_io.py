# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Asking the members of an etcd cluster about themselves, all at once, and telling them to do things.

Calls go over the JSON gateway. Where a server does not serve it, or refuses it to clients that are known by the name
in their certificate, the same is asked through etcdctl.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_client import (
    Connection,
    Etcdctl,
    EtcdError,
    Gateway,
    Refused,
    encode,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_cluster import (
    Alarm,
    Hash,
    Member,
    Position,
    Seen,
    Status,
    Unreadable,
    View,
    assemble,
    hash_revision,
    parse_alarms,
    parse_hash,
    parse_members,
    parse_status,
    revision_faults,
)

# The part of the time for finding out who answers; the rest is for hashes.
SHARE_OF_STATUS = 0.5
PAUSE_SECONDS = 0.1
SAMPLES = 3
GRPC_PERMISSION_DENIED, GRPC_UNAUTHENTICATED = 7, 16
# The key that etcdctl asks for too when it wants to know whether a member is healthy. It need not be there.
SOME_KEY = "health"


class MemberApi:
    """Calls to one member. Not for use by several threads at once."""

    def __init__(self, connection: Connection, endpoint: str) -> None:
        self.endpoint = endpoint
        self._gateway = Gateway(connection, endpoint)
        self._etcdctl = Etcdctl(connection.only(endpoint))
        self._without_gateway: Refused | None = None

    def close(self) -> None:
        """Close the connection that is kept."""
        self._gateway.close()

    def get(self, path: str, deadline: float | None = None) -> tuple[int, bytes]:
        """Return status and body of a plain page, such as /version."""
        return self._gateway.get(path, deadline)

    def status(self, deadline: float | None = None) -> Status:
        """Return what the member says about itself."""
        return parse_status(self._call("maintenance/status", {}, ["endpoint", "status"], deadline))

    def members(self, deadline: float | None = None) -> tuple[Member, ...]:
        """Return the list of members, over the gateway as this member knows it, which works without quorum."""
        return parse_members(self._call("cluster/member/list", {}, ["member", "list"], deadline))

    def alarms(self, deadline: float | None = None) -> tuple[Alarm, ...]:
        """Return the alarms; this needs a quorum."""
        return parse_alarms(self._call("maintenance/alarm", {"action": "GET"}, ["alarm", "list"], deadline))

    def require_quorum(self, deadline: float | None = None) -> None:
        """Read what only a member can that has a leader and a quorum. Raises EtcdError if it cannot.

        Its page /health calls a member unhealthy too that has run out of space, which is no reason to leave it alone.
        """
        try:
            self._tell("kv/range", {"key": encode(SOME_KEY), "count_only": True}, ["get", SOME_KEY], deadline)
        except Refused as error:
            if error.code != GRPC_PERMISSION_DENIED:
                raise

    def hash(self, revision: int, deadline: float | None = None) -> Hash:
        """Return HashKV at a revision."""
        words = ["endpoint", "hashkv", f"--rev={revision}"]
        # maintenance/hash is a hash of the whole file, which differs between members; 3.4's gateway has only that one.
        return parse_hash(self._call("maintenance/hashkv", {"revision": revision}, words, deadline), revision)

    def defragment(self, deadline: float) -> None:
        """Rewrite the database file. The member answers nobody meanwhile."""
        self._tell("maintenance/defragment", {}, ["defrag"], deadline)

    def move_leader(self, target: int, deadline: float | None = None) -> None:
        """Let another member lead. Only the leader can be told so."""
        # A decimal number as text, as the gateway has all 64-bit ones; etcdctl wants it as it shows it.
        words = ["move-leader", f"{target:x}"]
        self._tell("maintenance/transfer-leadership", {"targetID": str(target)}, words, deadline)

    def add(self, peer_urls: Iterable[str], learner: bool, deadline: float | None = None) -> Member:
        """Add a member and return it; it has no name until it starts."""
        urls = list(peer_urls)
        body: dict[str, Any] = {"peerURLs": urls}
        words = ["member", "add", "new", f"--peer-urls={','.join(urls)}"]
        if learner:
            body["isLearner"] = True
            words.append("--learner")
        answer = self._call("cluster/member/add", body, words, deadline)
        return parse_members({"members": [answer["member"]]})[0]

    def promote(self, id: int, deadline: float | None = None) -> None:
        """Give a learner its vote."""
        self._tell("cluster/member/promote", {"ID": str(id)}, ["member", "promote", f"{id:x}"], deadline)

    def remove(self, id: int, deadline: float | None = None) -> None:
        """Remove a member."""
        self._tell("cluster/member/remove", {"ID": str(id)}, ["member", "remove", f"{id:x}"], deadline)

    def _call(self, path: str, body: Mapping[str, Any], words: list[str], deadline: float | None) -> Mapping[str, Any]:
        """Return the answer to a call, or what etcdctl prints for the same question."""
        return self._either(path, body, deadline, lambda: _plain(self._etcdctl.json(*words, deadline=deadline)))

    def _tell(self, path: str, body: Mapping[str, Any], words: list[str], deadline: float | None) -> None:
        """Make a call whose answer says nothing more; etcdctl has no JSON for some of these."""
        self._either(path, body, deadline, lambda: {"printed": self._etcdctl.text(*words, deadline=deadline)})

    def _either(
        self,
        path: str,
        body: Mapping[str, Any],
        deadline: float | None,
        by_etcdctl: Callable[[], Mapping[str, Any]],
    ) -> Mapping[str, Any]:
        if not self._without_gateway:
            try:
                return self._gateway.call(path, body, deadline)
            except Refused as error:
                if not gateway_unusable(error):
                    raise
                self._without_gateway = error
        try:
            return by_etcdctl()
        except EtcdError as error:
            raise EtcdError(f"{error} (the JSON gateway said: {self._without_gateway.reason})") from error


def gateway_unusable(error: Refused) -> bool:
    """Return whether the same call may well succeed without the gateway: it is off, or hides who asks."""
    off = error.status in (404, 405, 501) and error.code == 0
    return off or error.code == GRPC_UNAUTHENTICATED or "CommonName" in error.reason


def _plain(answer: Any) -> Mapping[str, Any]:
    """Return what etcdctl prints in the shape of the gateway: without a list of endpoints around it."""
    if isinstance(answer, list):
        (entry,) = answer
        answer = entry.get("Status") or entry.get("HashKV") or entry
    if not isinstance(answer, dict):
        raise EtcdError(f"etcdctl printed {answer!r}, wanted an object")
    return answer


# --- Asking all -------------------------------------------------------------------------------------------------------


class Deadline:
    """A moment, and the seconds until then."""

    def __init__(self, seconds: float) -> None:
        self.at = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds until then, never quite 0, so that they can be waited for."""
        return max(0.001, self.at - time.monotonic())

    @property
    def over(self) -> bool:
        """Whether it has passed."""
        return time.monotonic() >= self.at


class _Survey:
    """What is being found out, by one thread for each endpoint. Nothing is noted any more once the time is over."""

    def __init__(self, connection: Connection, seconds: float) -> None:
        self.connection = connection
        self.seconds = seconds
        self.deadline = Deadline(seconds)
        self.lock = threading.Lock()
        self.closed = False
        self.found: dict[str, Seen] = {}
        self.faults: list[Unreadable] = []
        self.cluster_versions: dict[str, str] = {}
        self.threads: list[threading.Thread] = []

    def run(self) -> None:
        """Ask the endpoints of the connection, and the members that their lists name besides, until all is known."""
        for endpoint in self.connection.endpoints:
            self.start(endpoint)
        for thread in self.threads:
            # The list grows meanwhile: whoever answers names others before its thread ends.
            thread.join(self.deadline.left)
        with self.lock:
            self.closed = True
            for endpoint, seen in self.found.items():
                if not seen.health_reason and not seen.healthy:
                    why = f"no answer within {round(self.seconds, 1):g} s"
                    self.found[endpoint] = replace(seen, health_reason=why)
                    self.faults.append(Unreadable("health" if seen.status else "status", endpoint, why))

    def start(self, endpoint: str) -> None:
        """Ask an endpoint in a thread of its own, unless it is asked already."""
        with self.lock:
            if endpoint in self.found or self.closed:
                return
            self.found[endpoint] = Seen(endpoint)
            # A thread that hangs is left behind.
            thread = threading.Thread(target=self._ask, args=(endpoint,), daemon=True)
            self.threads.append(thread)
            thread.start()

    def _ask(self, endpoint: str) -> None:
        """Find out what a member says: its status, its list of members, its cluster's version, its health."""
        api = MemberApi(self.connection, endpoint)
        try:
            try:
                status = api.status(self.deadline.left)
            except EtcdError as error:
                self._fault("status", endpoint, error, health_reason=_bare(error, endpoint))
                return
            self._note(endpoint, status=status)
            if status.learner:
                # It answers nothing else that is asked here.
                self._note(endpoint, health_reason="it is a learner")
                self._ask_version(endpoint, api)
                return
            # Asking for health takes long when there is no quorum.
            asking = threading.Thread(target=self._ask_health, args=(endpoint,), daemon=True)
            asking.start()
            for ask in (self._ask_list, self._ask_version, self._ask_alarms):
                ask(endpoint, api)
            asking.join(self.deadline.left)
        finally:
            api.close()

    def _ask_list(self, endpoint: str, api: MemberApi) -> None:
        try:
            members = api.members(self.deadline.left)
        except EtcdError as error:
            self._fault("members", endpoint, error)
            return
        self._note(endpoint, known=members)
        with self.lock:
            answered = {seen.status.member_id for seen in self.found.values() if seen.status}
            asked = set(self.found)
        for member in members:
            urls = [url.rstrip("/") for url in member.client_urls]
            if urls and member.id not in answered and not asked & set(urls):
                self.start(urls[0])

    def _ask_version(self, endpoint: str, api: MemberApi) -> None:
        try:
            _status, body = api.get("/version", self.deadline.left)
            version = str(json.loads(body)["etcdcluster"])
        except (EtcdError, ValueError, KeyError, TypeError) as error:
            self._fault("cluster version", endpoint, error)
            return
        with self.lock:
            self.cluster_versions[endpoint] = version

    def _ask_alarms(self, endpoint: str, api: MemberApi) -> None:
        """Ask for alarms where the status says nothing of them (3.3)."""
        with self.lock:
            status = self.found[endpoint].status
        if status and status.alarms is None:
            try:
                self._note(endpoint, status=replace(status, alarms=api.alarms(self.deadline.left)))
            except EtcdError as error:
                self._fault("alarms", endpoint, error)

    def _ask_health(self, endpoint: str) -> None:
        try:
            once(self.connection, endpoint, lambda api: api.require_quorum(self.deadline.left))
        except EtcdError as error:
            self._fault("health", endpoint, error, health_reason=_bare(error, endpoint))
            return
        self._note(endpoint, healthy=True)

    def _note(self, endpoint: str, **what: Any) -> None:
        with self.lock:
            if not self.closed:
                self.found[endpoint] = replace(self.found[endpoint], **what)

    def _fault(self, what: str, endpoint: str, error: Exception, **also: Any) -> None:
        with self.lock:
            if not self.closed:
                self.faults.append(Unreadable(what, endpoint, _bare(error, endpoint)))
                self.found[endpoint] = replace(self.found[endpoint], **also)


def _bare(error: Exception, endpoint: str) -> str:
    """Return an error's text without the endpoint in front, which stands beside it anyway."""
    text = str(error)
    return text[len(endpoint) :].lstrip(": ") if text.startswith(endpoint) else text


def survey(connection: Connection, hashes: bool = True, seconds: float | None = None) -> View:
    """Ask all members at once, also those that only the list of members names. Returns within seconds.

    seconds: by default the connection's timeout. hashes: compare the members' data too; half the time is kept for that.
    Raises EtcdError if no endpoint answers at all.
    """
    seconds = connection.timeout if seconds is None else seconds
    whole = Deadline(seconds)
    asking = _Survey(connection, seconds * SHARE_OF_STATUS if hashes else seconds)
    asking.run()
    view = assemble(asking.found, connection.endpoints, asking.faults, asking.cluster_versions)
    if not view.answered:
        reasons = "; ".join(f"{fault.endpoint}: {fault.why}" for fault in view.unreadable)
        raise EtcdError(f"no endpoint of etcd answers: {reasons}")
    view = _confirm_revisions(connection, view, whole)
    return _with_hashes(connection, view, whole) if hashes else view


def _each(
    seen: Iterable[Seen], deadline: Deadline, ask: Callable[[Seen], Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Ask members at once. Returns the answers and the reasons for missing ones, both by endpoint."""
    lock = threading.Lock()
    answers: dict[str, Any] = {}
    reasons: dict[str, str] = {}

    def one(member: Seen) -> None:
        try:
            answer = ask(member)
        except EtcdError as error:
            with lock:
                reasons[member.endpoint] = _bare(error, member.endpoint)
        else:
            with lock:
                answers[member.endpoint] = answer

    asked = list(seen)
    threads = [threading.Thread(target=one, args=(member,), daemon=True) for member in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(deadline.left)
    with lock:
        missing = {member.endpoint: "no answer in time" for member in asked if member.endpoint not in answers}
        return dict(answers), {**missing, **reasons}


def once(connection: Connection, endpoint: str, ask: Callable[[MemberApi], Any]) -> Any:
    """Ask or tell one member something over a connection that is closed afterwards."""
    api = MemberApi(connection, endpoint)
    try:
        return ask(api)
    finally:
        api.close()


def _confirm_revisions(connection: Connection, view: View, deadline: Deadline) -> View:
    """Return the view with the faults of revisions that stay when the members are asked again, and then once more.

    Between both answers a member had applied what stands in the first one's revision.
    """
    if not revision_faults([Position.at(seen) for seen in view.answered if seen.status]):
        return view

    def statuses() -> dict[str, Status]:
        return _each(view.answered, deadline, lambda seen: once(connection, seen.endpoint, MemberApi.status))[0]

    first = statuses()
    time.sleep(PAUSE_SECONDS)
    second = statuses()
    positions = [
        Position(seen.title, first[at].revision, first[at].applied_index, second[at].applied_index)
        for seen in view.answered
        for at in [seen.endpoint]
        if at in first and at in second
    ]
    return replace(view, revision_faults=tuple(revision_faults(positions)))


def _with_hashes(connection: Connection, view: View, deadline: Deadline) -> View:
    """Return the view with HashKV of all members that have a vote and answer, at a revision that all of them have."""
    # A learner does not answer this.
    asked = [seen for seen in view.answered if not seen.learner]
    if not asked or len(view.cluster_ids) > 1:
        return view
    revision = hash_revision(seen.status for seen in asked if seen.status)
    found: dict[str, Hash] = {}
    reasons: dict[str, str] = {}
    for _again in range(SAMPLES):
        found, reasons = _each(
            asked,
            deadline,
            lambda seen: once(connection, seen.endpoint, lambda api: api.hash(revision, deadline.left)),
        )
        if deadline.over or len({one.compact_revision for one in found.values()}) < 2:
            break
        # A compaction runs on one member a moment earlier than on the next.
        time.sleep(PAUSE_SECONDS)
    return replace(
        view,
        members=tuple(replace(seen, hash=found.get(seen.endpoint)) for seen in view.members),
        unreadable=(*view.unreadable, *(Unreadable("hash", endpoint, why) for endpoint, why in reasons.items())),
    )


# --- Waiting and moving -----------------------------------------------------------------------------------------------


def wait_for(
    connection: Connection, refusal: Callable[[View], str], seconds: float, hashes: bool = False, what: str = "waiting"
) -> View:
    """Ask all members again until refusal returns nothing, and return what they say then.

    Raises EtcdError with what it returned last, if that does not happen within seconds.
    """
    deadline = Deadline(seconds)
    while True:
        try:
            view = survey(connection, hashes)
            reason = refusal(view)
        except EtcdError as error:
            reason = str(error)
        if not reason:
            return view
        if deadline.over:
            raise EtcdError(f"{what}: after {seconds:g} s still: {reason}")
        time.sleep(min(PAUSE_SECONDS, deadline.left))


def move_leader(connection: Connection, view: View, target: Seen, seconds: float) -> View:
    """Let another member lead and return the cluster as it is when it does."""
    leader = view.leader
    if leader is None:
        raise EtcdError("there is no leader whose place could be taken")
    once(connection, leader.endpoint, lambda api: api.move_leader(target.id))
    return wait_for(
        connection,
        lambda seen: "" if seen.leader and seen.leader.id == target.id else f"{target.title} does not lead yet",
        seconds,
        what=f"moving the leadership from {leader.title} to {target.title}",
    )
