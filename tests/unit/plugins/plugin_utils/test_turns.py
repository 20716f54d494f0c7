# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from ansible_collections.plainkube.cluster.plugins.plugin_utils.turns import TurnError, turn

# As ansible's workers.
CONTEXT = multiprocessing.get_context("fork")


def take(folder: Path, host: str, fate: str, roll: str = "task") -> None:
    """Be a worker: note when the turn began and ended, and meet its fate inside."""
    try:
        with turn(str(folder), "etcd", roll, host), open(folder / "log", "a") as log:
            # Alone inside if nobody else's file stands here.
            os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))
            print("in", host, file=log, flush=True)
            if fate == "killed":
                (folder / "inside").unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            if fate == "fails":
                (folder / "inside").unlink()
                raise RuntimeError("no quorum\nand more")
            (folder / "inside").unlink()
    except TurnError as error:
        with open(folder / "log", "a") as log:
            print("refused", host, error, file=log)
    except RuntimeError:
        pass


def run(folder: Path, hosts: dict[str, str]) -> list[str]:
    workers = [CONTEXT.Process(target=take, args=(folder, host, fate)) for host, fate in hosts.items()]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(20)
        assert worker.exitcode in (0, -signal.SIGKILL)
    return (folder / "log").read_text().splitlines()


def test_never_two_at_once(tmp_path: Path) -> None:
    log = run(tmp_path, {f"n{number}": "ready" for number in range(12)})
    assert sorted(log) == sorted(f"in n{number}" for number in range(12))


@pytest.mark.parametrize(("fate", "told"), [("fails", "no quorum."), ("killed", "it was broken off.")])
def test_a_turn_that_goes_wrong_stops_the_others(tmp_path: Path, fate: str, told: str) -> None:
    run(tmp_path, {"n1": fate})
    log = run(tmp_path, {"n2": "ready", "n3": "ready"})[1:]
    assert len(log) == 2
    assert all(
        line.startswith("refused") and "the turn of host n1 in 'etcd' went wrong: " + told in line for line in log
    )


def test_only_the_same_task_is_stopped_and_the_host_itself_may_try_again(tmp_path: Path) -> None:
    run(tmp_path, {"n1": "fails"})
    with turn(str(tmp_path), "etcd", "the task that repairs", "n2"):
        pass
    with turn(str(tmp_path), "etcd", "task", "n1"):
        pass
    with turn(str(tmp_path), "etcd", "task", "n2"):
        pass


def test_locks_do_not_know_each_other(tmp_path: Path) -> None:
    with turn(str(tmp_path), "etcd", "task", "n1"), turn(str(tmp_path), "../api server", "task", "n1"):
        assert {path.parent for path in tmp_path.iterdir()} == {tmp_path}
