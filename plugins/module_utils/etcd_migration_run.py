# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Moving keys from the v2 store of a running etcd into a copy, and the copy into its place.

Everything up to the freeze happens while writers write: read everything and follow the events, into a scratch server of
the new version on loopback; take its snapshot and compare that with what was copied; read everything again and compare;
restore the snapshot beside each member's data. Then the writers are frozen, and little is left: the last changes
go to a file, the members change their data folders, and the last changes are written into the new cluster, read back
and compared. Whatever fails before the end puts the old data back.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.plainkube.cluster.plugins.module_utils import etcd_migration_io as io
from ansible_collections.plainkube.cluster.plugins.module_utils import etcd_migrations as plan
from ansible_collections.plainkube.cluster.plugins.module_utils import etcd_restore as restore
from ansible_collections.plainkube.cluster.plugins.module_utils import etcd_restore_io as restore_io
from ansible_collections.plainkube.cluster.plugins.module_utils import etcd_v2_files as files
from ansible_collections.plainkube.cluster.plugins.module_utils.bbolt import (
    SnapshotProof,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_client import (
    Connection,
    Etcdctl,
    EtcdError,
    Gateway,
    KeysV2,
    Refused,
    as_int,
    encode,
    last_words,
    program_path,
    run_command,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_cluster import View, data_agree, problems
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_cluster_io import survey
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_migrations import (
    Census,
    Change,
    Entry,
    MigrationError,
    Mirror,
    Rules,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_scratch_io import ScratchServer
from ansible_collections.plainkube.cluster.plugins.module_utils.files_io import sync_folder

COMMAND_SECONDS = 90.0
SAVE_SECONDS = 600.0
STAGE_SECONDS = 600.0
PAUSE_SECONDS = 0.02
# What is still missing when a round ends was written during that round; after these it is left for the freeze.
ROUNDS = 5
STILL_ATTEMPTS = 5


# --- The work ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LocalMember:
    """A member on this host, and how it is stopped and started on its old and on its new data."""

    name: str
    data_dir: str
    stop_command: tuple[str, ...] = ()
    start_command: tuple[str, ...] = ()
    new_stop_command: tuple[str, ...] = ()
    new_start_command: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """What a migration is told."""

    connection: Connection
    work_dir: str
    etcd: str
    rules: Rules
    members: tuple[LocalMember, ...] = ()
    freeze_command: tuple[str, ...] = ()
    thaw_command: tuple[str, ...] = ()
    still_seconds: float = 0.3
    revision_slack: int = 1_000_000_000
    deadline: float = 60.0


class Migration:
    """One run. Phases in order: examine, copy, stage, freeze, swap, finish; undo at any time before the end."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.connection = settings.connection
        self.shop = io.Workshop(settings.work_dir)
        self.entry = Entry("", "")
        self.census = Census()
        self.source: io.Source | None = None
        self.mirror = Mirror(settings.rules.profile)
        # Each reader knows how far it has read: these for writes after the freeze, the other for hidden keys.
        self.logs: dict[str, io.Log] = {}
        self.hidden_log: io.Log | None = None
        self.hidden: set[str] = set()
        # Of all members of the cluster, by name.
        self.peer_urls: dict[str, list[str]] = {}
        self.seconds: dict[str, float] = {}
        self.frozen = 0.0
        self._clock = time.monotonic()

    # Helpers

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other runs, and restores of this host's members, away. Raises EtcdError if there is one already."""
        # Members that share a folder above share its lock.
        layouts = [restore_io.find_layout(member.data_dir, "") for member in self.settings.members]
        by_folder = {str(Path(places.journal).parent): places for places in layouts}
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.shop.alone())
            for places in by_folder.values():
                stack.enter_context(restore_io.alone(places))
            yield

    def lap(self, name: str) -> None:
        """Note how long a part of the work took."""
        now = time.monotonic()
        self.seconds[name] = round(now - self._clock, 3)
        self._clock = now

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Note how long a part takes that others go on beside."""
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 3)

    def note(self, state: str, **facts: Any) -> None:
        """Take the next step of the journal."""
        self.entry = self.shop.note(self.entry.at(state, **facts))

    def each_member(self, action: Callable[[LocalMember], Any], but: str = "") -> None:
        """Do something for all members of this host at once. Raises the first error after all have ended."""
        members = [member for member in self.settings.members if member.name != but]
        with ThreadPoolExecutor(len(members) or 1) as pool:
            futures = [pool.submit(action, member) for member in members]
        for future in futures:
            future.result()

    def command(self, argv: tuple[str, ...], what: str) -> None:
        """Run one of the commands that were given. Raises MigrationError."""
        if argv:
            finished = run_command(list(argv), COMMAND_SECONDS)
            if finished.rc:
                raise MigrationError(f"{what} failed: '{' '.join(argv)}': {last_words(finished)}")

    # Examine

    def served(self) -> bool:
        """Return whether there is a v2 store with keys. Raises EtcdError."""
        for endpoint in self.connection.endpoints:
            keys = KeysV2(self.connection, endpoint)
            try:
                node, _index = keys.get("/", quorum=False)
                return bool(node and node.get("nodes")) or bool(self.find_hidden())
            except Refused as error:
                if error.status != 404:
                    raise
                return False
            except EtcdError:
                if endpoint == self.connection.endpoints[-1]:
                    raise
            finally:
                keys.close()
        return False

    def find_hidden(self) -> set[str] | None:
        """Return the hidden paths that a member of this host knows of, None if there is none here.

        The member's log is read on from where it was read before.
        """
        member = self.member_here()
        if member and self.settings.rules.hidden_keys != "leave":
            if self.hidden_log is None:
                self.hidden |= io.hidden_in_snapshot(member.data_dir)
                self.hidden_log = io.Log(member.data_dir)
            self.hidden |= io.hidden_in_log(self.hidden_log)
            self.hidden |= self.mirror.hidden
        return self.hidden if member else None

    def member_here(self) -> LocalMember | None:
        """Return a member whose files can be read."""
        there = (member for member in self.settings.members if Path(member.data_dir, "member").is_dir())
        return next(there, None)

    def log_of(self, member: LocalMember) -> io.Log:
        """Return the reader of a member's log, which knows how far it has read."""
        return self.logs.setdefault(member.name, io.Log(member.data_dir))

    def examine(self) -> list[str]:
        """Return what speaks against a migration before anything is read. Raises EtcdError."""
        view = survey(self.connection)
        healthy = [seen.endpoint for seen in view.members if seen.healthy and seen.endpoint]
        if not healthy:
            return problems(view)
        # What a member has answered stands in its own log, so the one that is asked is the one whose log is read.
        here = self.member_here()
        own = [seen.endpoint for seen in view.members if here and seen.name == here.name and seen.endpoint in healthy]
        self.source = io.Source(self.connection, (own or healthy)[0], lambda: self.find_hidden() or set())
        self.peer_urls = {seen.name: list(seen.member.peer_urls) for seen in view.members if seen.member}
        index = self.source.index()
        faults = plan.source_faults(
            view, self.connection.endpoints, self._indexes(healthy, index), index, self._v3_keys(healthy)
        )
        faults += self._member_faults(view)
        paths = self.find_hidden()
        self.census.hidden = None if paths is None else sorted(paths)
        return faults

    def _indexes(self, endpoints: list[str], index: int) -> dict[str, int]:
        """Return each member's own index of the v2 store, once it has reached one or had time to."""
        found = {}
        until = time.monotonic() + self.connection.timeout
        for endpoint in endpoints:
            keys = KeysV2(self.connection, endpoint)
            while True:
                found[endpoint] = keys.get(io.ABSENT_KEY, quorum=False)[1]
                if found[endpoint] >= index or time.monotonic() > until:
                    break
                time.sleep(PAUSE_SECONDS)
            keys.close()
        return found

    def _v3_keys(self, endpoints: list[str]) -> dict[str, int]:
        """Return how many v3 keys each member itself has."""
        found = {}
        for endpoint in endpoints:
            gateway = Gateway(self.connection, endpoint)
            # From the first possible key on to the last.
            body = {"key": encode(b"\0"), "range_end": encode(b"\0"), "count_only": True, "serializable": True}
            found[endpoint] = as_int(gateway.call("kv/range", body).get("count"))
            gateway.close()
        return found

    def _member_faults(self, view: View) -> list[str]:
        """Return what is wrong with the members that are on this host, and with the programs."""
        faults = []
        known = {seen.name for seen in view.members}
        for member in self.settings.members:
            if member.name not in known:
                faults.append(f"members: {member.name} is no member: these are {', '.join(sorted(known))}")
            if not Path(member.data_dir, "member").is_dir():
                faults.append(f"members: {member.name}: {member.data_dir} is no data folder of etcd")
        try:
            program_path(self.settings.etcd, os.environ.get("PATH", os.defpath) + ":/usr/local/bin")
        except EtcdError as error:
            faults.append(f"etcd, the server of the new version: {error}")
        host = self.host_of(restore_io.find_layout("/", "look"))
        if not host.tool or not host.tool.can_bump:
            faults.append(
                f"no program here can restore with a raised revision ({host.tools_seen or 'none was found'}): "
                "name etcdutl of the new version, 3.5.10 or newer"
            )
        return faults

    def host_of(self, places: restore.Layout) -> restore.Host:
        """Return what this host offers for restoring."""
        connection = self.connection
        return restore_io.look_at_host(places, self.settings.etcd, connection.etcdutl, connection.etcdctl)

    def room(self) -> list[str]:
        """Return where there is too little space for what was counted."""
        places = {self.settings.work_dir: plan.COPIES_ON_DISK}
        for member in self.settings.members:
            places[str(Path(member.data_dir).parent)] = restore.COPIES
        faults = []
        for folder, copies in places.items():
            # The folder of a first run is made only when it is meant.
            there = next(path for path in (Path(folder), *Path(folder).parents) if path.exists())
            free = restore_io.free_bytes(str(there))
            faults += plan.room_faults(folder, free, self.census.database_bytes, copies)
        return faults

    def count(self, leaf: plan.Leaf) -> None:
        """Take a key into the census."""
        self.census.add(leaf, plan.size_of(leaf.key) + plan.size_of(leaf.value), self.settings.rules)

    def take_census(self) -> list[str]:
        """Read everything and return what speaks against a migration."""
        assert self.source
        self.source.look(self.mirror, self.count, self.mirror.pending.clear)
        self.source.end()
        return self.census_faults()

    def census_faults(self) -> list[str]:
        assert self.source
        if self.census.hidden is not None:
            self.census.hidden = sorted(self.source.hidden_there)
        return plan.census_faults(self.census, self.settings.rules) + self.room()

    # Copy, while writers write

    @contextlib.contextmanager
    def copied(self) -> Iterator[ScratchServer]:
        """Serve a copy of the store, for as long as it is not saved. Raises EtcdError."""
        assert self.source
        rules, shop = self.settings.rules, self.shop
        shop.clear()
        Path(shop.scratch).mkdir(mode=0o700)
        with ScratchServer(shop.scratch, self.connection, self.settings.etcd, io.scratch_flags(rules)) as scratch:
            self.lap("scratch")
            writer = io.Writer(scratch.connection, scratch.endpoint, io.SCRATCH_OPERATIONS, rules.max_request_bytes)

            def send() -> None:
                writer.write(plan.changes(self.mirror.take(), self.mirror, time.time()))

            try:
                self.source.look(self.mirror, self.count, send)
                faults = self.census_faults()
                if faults:
                    raise MigrationError("; ".join(faults))
                writer.flush()
                self.lap("copy")
                for _round in range(ROUNDS):
                    self.source.drain(self.mirror)
                    if self.mirror.unseen:
                        self.source.look(self.mirror, _nobody, _nothing)
                    before = writer.written
                    send()
                    writer.flush()
                    if writer.written - before < io.SCRATCH_OPERATIONS and not self.mirror.unseen:
                        break
            except EtcdError as error:
                if isinstance(error, Refused) and "space" in error.reason:
                    raise MigrationError(
                        f"the copy does not fit into a database of quota_bytes {rules.quota_bytes}: {error.reason}; "
                        "set more, here and for the new servers"
                    ) from error
                raise
            finally:
                writer.end()
            self.lap("follow")
            yield scratch

    def save(self, scratch: ScratchServer, index: int) -> SnapshotProof:
        """Make a proven snapshot of the copy, and return what it is. index: of the store. Raises EtcdError."""
        shop = self.shop
        with self.timed("snapshot"):
            Etcdctl(scratch.connection).text("snapshot", "save", shop.snapshot, deadline=SAVE_SECONDS)
            Path(shop.snapshot).chmod(0o600)
            sync_folder(shop.folder)
            scratch.stop()
            # Its room is needed for what comes next.
            shutil.rmtree(shop.scratch, ignore_errors=True)
        self.note(
            plan.COPIED,
            keys=self.census.keys,
            index=index,
            bump_revision=index + self.settings.revision_slack,
        )
        with self.timed("prove"):
            return restore_io.prove(shop.snapshot, raw=False)

    def compare_copy(self) -> None:
        """Compare the snapshot with what was copied, every key and value. Raises EtcdError."""
        found = plan.base_of(io.snapshot_marks(self.shop.snapshot), self.settings.rules.profile)
        difference = plan.compare(self.mirror.base, found)
        if difference:
            raise MigrationError(f"the snapshot of the copy is not what was copied: {difference}")
        self.lap("compare")

    def look_again(self) -> None:
        """Compare every key and value of the store with the copy: what differs is left to be copied."""
        assert self.source
        self.source.look(self.mirror, _nobody, _nothing)
        self.source.drain(self.mirror)
        self.lap("look_again")

    # Stage, on each member

    def stage(self, proof: SnapshotProof) -> None:
        """Restore the snapshot beside the data of each member of this host. Raises EtcdError."""
        with self.timed("stage"):
            view = survey(self.connection, hashes=False)
            members = {seen.name: seen.member.peer_urls for seen in view.members if seen.member}
            bump = int(self.entry.facts["bump_revision"])
            host = self.host_of(restore_io.find_layout("/", "look"))

            def one(member: LocalMember) -> None:
                places = restore_io.find_layout(member.data_dir, self.entry.id)
                request = restore.Request(self.entry.id, member.name, members[member.name], members, bump)
                assert host.tool
                owner = restore_io.find_owner(places, None, None)
                # Another restore that is not over must not be forgotten.
                restore.must_stage(
                    restore_io.read_journal(places),
                    self.entry.id,
                    request.fingerprint(proof.digest),
                    restore_io.look(places),
                )
                restore_io.stage(request, places, self.shop.snapshot, proof, host.tool, owner, STAGE_SECONDS)

            self.each_member(one)
            for member in self.settings.members:
                # What is written after this is what has to be looked through while everybody waits.
                self.log_of(member).skip()

    # Freeze

    def freeze(self) -> None:
        """Freeze the writers, prove that, and put the last changes on disk. Raises EtcdError."""
        assert self.source
        self.source.drain(self.mirror)
        if self.mirror.unseen:
            self.look_again()
        view = survey(self.connection, hashes=False)
        self.note(plan.FREEZING, leader=view.leader.name if view.leader else "")
        self._clock = self.frozen = time.monotonic()
        self.command(self.settings.freeze_command, "freeze_command")
        index, raft_index = self.prove_still()
        if self.mirror.unseen:
            # Rare, and long: what events did not show is found by reading everything while nothing changes.
            self.source.look(self.mirror, _nobody, _nothing)
        self.source.end()
        now = time.time()
        changes = [list(change) for change in plan.changes(self.mirror.pending, self.mirror, now)]
        self.shop.keep_changes(
            {
                "id": self.entry.id,
                "changes": changes,
                "at": now,
                "keys": len(self.mirror.keys),
                "permanent": self.mirror.permanent,
            }
        )
        self.note(plan.FROZEN, index=index, raft_index=raft_index, last_changes=len(changes))
        self.lap("freeze")

    def prove_still(self) -> tuple[int, int]:
        """Return the index of the store and the raft index that it stands still at. Raises MigrationError."""
        assert self.source
        gateway = Gateway(self.connection, self.source.endpoint)
        found = ""
        for _attempt in range(STILL_ATTEMPTS):
            self.source.drain(self.mirror)
            first = self.mirror.index
            unseen, self.mirror.unseen = self.mirror.unseen, False
            time.sleep(self.settings.still_seconds)
            # Whatever is written after this has a higher raft index; what came before, the index below shows.
            raft_index = as_int(gateway.call("maintenance/status", {}).get("raftIndex"))
            events = self.source.drain(self.mirror)
            found = plan.moved(events, first, self.mirror.unseen)
            self.mirror.unseen = self.mirror.unseen or unseen
            if not found:
                gateway.close()
                return self.mirror.index, raft_index
        gateway.close()
        raise MigrationError(
            f"the writers are not frozen: within {self.settings.still_seconds:g} s there was {found}; "
            "stop everything that writes"
        )

    # Swap, on each member

    def require_unchanged(self, member: LocalMember, raft_index: int) -> None:
        """See that nothing came after the proof that the writers are frozen. Raises MigrationError."""
        log = self.log_of(member)
        written = [write for write in (files.write_of(*entry) for entry in log.advance(raft_index)) if write]
        if written:
            one = written[0]
            raise MigrationError(
                f"{member.name}: {len(written)} writes came after the freeze, the first is {one.method} of {one.path}: "
                "stop everything that writes"
            )

    def swap(self) -> None:
        """Let the members of this host change to the new data. Raises EtcdError."""
        raft_index = int(self.entry.facts["raft_index"])
        self.note(plan.SWAPPING)

        def stop(member: LocalMember) -> None:
            self.command(member.stop_command, f"stopping {member.name}")
            self.wait_stopped(restore_io.find_layout(member.data_dir, self.entry.id))

        # A leader that is told to stop waits for seconds for a follower to take over, unless there is none.
        leader = str(self.entry.facts["leader"])
        self.each_member(stop, but=leader)
        for member in self.settings.members:
            if member.name == leader:
                stop(member)
        self.lap("stop")
        for member in self.settings.members:
            self.require_unchanged(member, raft_index)
        for member in self.settings.members:
            places = restore_io.find_layout(member.data_dir, self.entry.id)
            journal = restore_io.read_journal(places)
            steps = restore.swap_steps(journal, self.entry.id, restore_io.look(places))
            if steps is not None and journal:
                restore_io.swap(places, journal, steps)
        self.lap("swap")
        self.each_member(lambda member: self.command(member.new_start_command, f"starting {member.name}"))
        self.note(plan.SWAPPED)

    def wait_stopped(self, places: restore.Layout) -> None:
        """Return once no server has a member's data open. Raises RestoreError if one keeps it."""
        until = time.monotonic() + self.settings.deadline
        while time.monotonic() < until and restore_io.in_use(restore_io.database_path(places)):
            time.sleep(PAUSE_SECONDS)
        restore_io.require_stopped(places)

    # Finish

    def finish(self) -> dict[str, Any]:
        """Write the last changes into the new cluster, read them back, and see that all members hold the same."""
        content = self.shop.read_changes()
        if content["id"] != self.entry.id:
            raise MigrationError(f"{self.shop.changes} is of the migration {content['id']}, wanted {self.entry.id}")
        self.wait_well(compare=False)
        self.lap("start")
        # The time that went by since they were read is life that keys have lost already.
        gone = time.time() - content["at"]
        changes = [Change(key, value, lease and plan.bucket(lease - gone)) for key, value, lease in content["changes"]]
        if self.settings.rules.profile == "kubernetes":
            changes = [Change(*change) for change in content["changes"]]
        endpoint = self.connection.endpoints[0]
        writer = io.Writer(self.connection, endpoint, plan.OPERATIONS_AT_MOST, plan.REQUEST_BYTES)
        try:
            writer.write(changes)
            writer.flush()
        finally:
            writer.end()
        self.lap("last_changes")
        gateway = Gateway(self.connection, self.connection.endpoints[-1])
        try:
            io.read_back(gateway, changes)
            io.try_writing(gateway, self.entry.id)
            answer = io.count_all(gateway)
        finally:
            gateway.close()
        revision, count = as_int(answer["header"]["revision"]), as_int(answer.get("count"))
        if not content["permanent"] <= count <= content["keys"]:
            raise MigrationError(
                f"the new cluster has {count} keys, wanted {content['permanent']} that stay and at most "
                f"{content['keys']} with those that expire"
            )
        if revision <= int(self.entry.facts["index"]):
            raise MigrationError(
                f"the new cluster has revision {revision}, wanted one above the old index {self.entry.facts['index']}"
            )
        self.wait_well(compare=True)
        self.lap("verify")
        return {"revision": revision, "keys": count}

    def wait_well(self, compare: bool) -> None:
        """Return once all members of the new cluster are healthy, and hold the same. Raises MigrationError."""
        until = time.monotonic() + self.settings.deadline
        while True:
            try:
                view = survey(self.connection, hashes=compare)
                reasons = problems(view)
                all_there = len(view.answered) == len(self.connection.endpoints)
                if not reasons and all_there and (data_agree(view) or not compare):
                    return
                reason = "; ".join(reasons) or "not all members have answered"
            except EtcdError as error:
                reason = str(error)
            if time.monotonic() > until:
                raise MigrationError(f"the new cluster is not well after {self.settings.deadline:g} s: {reason}")
            time.sleep(PAUSE_SECONDS)

    def close_members(self) -> None:
        """Tell the members' own journals that this is over. The old data stays where it is."""
        for member in self.settings.members:
            places = restore_io.find_layout(member.data_dir, self.entry.id)
            journal = restore_io.read_journal(places)
            if journal and journal.token == self.entry.id and journal.phase == restore.SWAPPED:
                restore_io.finish(places, journal)

    # Undo

    def undo(self) -> None:
        """Put the old cluster back, however far this went, and let the writers return. Raises EtcdError."""
        touched = self.entry.state in (plan.SWAPPING, plan.SWAPPED) or bool(self.entry.facts.get("touched"))
        if self.source:
            self.source.end()
        self.note(plan.UNDOING, touched=touched)
        self.each_member(lambda member: self.undo_member(member, touched))
        self.wait_served()
        self.command(self.settings.thaw_command, "thaw_command")
        self.note(plan.UNDONE, touched=False)

    def undo_member(self, member: LocalMember, touched: bool) -> None:
        """Put one member's old data back and start it."""
        places = restore_io.find_layout(member.data_dir, self.entry.id)
        journal = restore_io.read_journal(places)
        mine = journal if journal and journal.token == self.entry.id else None
        if mine and mine.phase in restore.OPEN:
            # Even where nothing has the data open, something may be about to.
            self.command(member.new_stop_command, f"stopping {member.name}")
            self.wait_stopped(places)
        steps = restore.rollback_steps(mine, restore_io.look(places))
        if mine and steps is not None:
            restore_io.roll_back(places, mine, steps)
        if touched:
            self.command(member.start_command, f"starting {member.name}")

    def wait_served(self) -> None:
        """Return once the old cluster serves its v2 store again. Raises MigrationError."""
        until = time.monotonic() + self.settings.deadline
        asked = [KeysV2(self.connection, endpoint) for endpoint in self.connection.endpoints]
        while True:
            for keys in asked:
                try:
                    keys.get(io.ABSENT_KEY, quorum=True)
                    return
                except EtcdError as error:
                    reason = str(error)
                finally:
                    keys.close()
            if time.monotonic() > until:
                raise MigrationError(f"the old data is back, but its cluster does not serve: {reason}")
            time.sleep(PAUSE_SECONDS)


def _nobody(_leaf: plan.Leaf) -> None:
    """Nobody counts."""


def _nothing() -> None:
    """Nothing is copied yet."""


# --- Whole runs -------------------------------------------------------------------------------------------------------


def new_id() -> str:
    """Return a name for a migration, which is the token of its new cluster too."""
    return f"migration-{os.urandom(5).hex()}"


def recover(migration: Migration) -> str:
    """Undo what a run that was cut off left half done, and return what was found. Raises EtcdError."""
    migration.entry = migration.shop.read()
    found = migration.entry.state
    if found in plan.TO_UNDO:
        migration.undo()
    return found


def migrate(migration: Migration) -> dict[str, Any]:
    """Do everything, for a cluster whose members are all on this host. Raises EtcdError after undoing what was done."""
    began = time.monotonic()
    prepare(migration)
    try:
        # Saving and restoring are mostly the work of other programs, and of the disk.
        with migration.copied() as scratch, ThreadPoolExecutor(2) as pool:
            saving = pool.submit(migration.save, scratch, migration.mirror.index)
            staging = pool.submit(lambda: migration.stage(saving.result()))
            migration.look_again()
            saving.result()
            migration.compare_copy()
            staging.result()
        migration.note(plan.STAGED)
    except BaseException:
        abandon(migration)
        raise
    try:
        migration.freeze()
        migration.swap()
        found = migration.finish()
    except (PlainkubeError, OSError) as error:
        try:
            migration.undo()
        except (PlainkubeError, OSError) as worse:
            raise MigrationError(f"{error}; and then the old cluster could not be put back: {worse}") from error
        raise MigrationError(f"{error}; the old cluster serves as before") from error
    freeze_seconds = round(time.monotonic() - migration.frozen, 3)
    migration.note(plan.DONE, **found, freeze_seconds=freeze_seconds)
    migration.close_members()
    return {**found, "freeze_seconds": freeze_seconds, "total_seconds": round(time.monotonic() - began, 3)}


def prepare(migration: Migration) -> None:
    """See that the source can be copied, and open the journal. Raises MigrationError."""
    faults = migration.examine()
    if faults:
        raise MigrationError("; ".join(faults))
    migration.lap("examine")
    migration.entry = Entry(new_id(), migration.entry.state)
    migration.note(plan.COPYING)


def copy(migration: Migration) -> SnapshotProof:
    """Make the proven snapshot, for members on several hosts. Raises EtcdError."""
    prepare(migration)
    try:
        with migration.copied() as scratch:
            proof = migration.save(scratch, migration.mirror.index)
        migration.compare_copy()
        return proof
    except BaseException:
        abandon(migration)
        raise


def freeze(migration: Migration) -> None:
    """Compare the store with the snapshot of a former call, and freeze the writers. Raises EtcdError."""
    migration.entry = migration.shop.read()
    if migration.entry.state != plan.COPIED:
        raise MigrationError(
            f"the migration is {migration.entry.state or 'not begun'}: make the copy first (phase copy)"
        )
    faults = migration.examine()
    if faults:
        raise MigrationError("; ".join(faults))
    profile = migration.settings.rules.profile
    migration.mirror = Mirror(profile, plan.base_of(io.snapshot_marks(migration.shop.snapshot), profile))
    migration.look_again()
    try:
        migration.freeze()
    except (PlainkubeError, OSError) as error:
        migration.undo()
        raise MigrationError(f"{error}; the writers may write again") from error


def finish(migration: Migration) -> dict[str, Any]:
    """Write the last changes into the new cluster of members on several hosts, and compare. Raises EtcdError."""
    migration.entry = migration.shop.read()
    if migration.entry.state == plan.DONE:
        return {"changed": False}
    if migration.entry.state != plan.FROZEN:
        raise MigrationError(f"the migration is {migration.entry.state or 'not begun'}: freeze the writers first")
    found = migration.finish()
    migration.note(plan.DONE, **found)
    return {**found, "changed": True}


def abandon(migration: Migration) -> None:
    """Remove what was made before anything was touched."""
    if migration.source:
        migration.source.end()
    migration.shop.clear()
    for member in migration.settings.members:
        places = restore_io.find_layout(member.data_dir, migration.entry.id)
        with contextlib.suppress(OSError):
            restore_io.clear(places)
