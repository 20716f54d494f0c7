# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is decided about backups: which snapshot is meant, what restic is told, what metrics and messages say."""

from __future__ import annotations

import re
from dataclasses import fields
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_backup import (
    PROVEN_TAG,
    RUNS,
    SNAPSHOT_TAG,
    BackupError,
    Configuration,
    Record,
    RepositoryBusy,
    RepositoryMissing,
    Stored,
    backup_arguments,
    chosen,
    configuration_from,
    forget_arguments,
    fresh,
    from_the_future,
    metrics_of,
    metrics_text,
    newest,
    parse_environment,
    parse_moment,
    record_from,
    repository_of,
    restic_fault,
    sftp_arguments,
    shown_repository,
    snapshot_tags,
    stored_from,
    stored_id,
    unchanged,
    without_secrets,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.etcd_backup_io import CONFIGURATION

ROOT = Path(__file__).resolve().parents[4]
NOW = datetime(2026, 11, 21, 17, 0, tzinfo=timezone.utc)
VALUES: dict[str, Any] = {
    "cluster": "east",
    "host": "e1",
    "endpoints": ["https://10.0.0.1:2379"],
    "environment_file": "/etc/b/environment",
    "password_file": "/etc/b/password",
    "folder": "/var/lib/b",
    "cache": "/var/cache/b",
}


def stored(number: int, minutes_ago: float, *tags: str, proven: bool = True) -> Stored:
    return Stored(
        f"{number:x}" * 64,
        NOW - timedelta(minutes=minutes_ago),
        (SNAPSHOT_TAG, *([PROVEN_TAG] if proven else []), f"revision={number}", "cluster-id=abc", *tags),
    )


LINE = [stored(1, 180), stored(2, 120), stored(3, 60), stored(4, 30, proven=False)]


# Configuration


def test_a_configuration_is_read() -> None:
    found = configuration_from({**VALUES, "keep": {"daily": 7}, "include": ["/etc/x"]}, "file")
    assert (found.cluster, found.endpoints, found.include) == ("east", ("https://10.0.0.1:2379",), ("/etc/x",))
    assert found.fresh_minutes == 30


def test_all_faults_of_a_configuration_are_said() -> None:
    wrong = {
        **VALUES,
        "cluster": "",
        "colour": "red",
        "verify": "hope",
        "folder": "here",
        "include": ["etc"],
        "keep": {"hours": 3, "daily": -1},
    }
    with pytest.raises(BackupError) as caught:
        configuration_from(wrong, "/etc/config.json")
    for words in (
        "/etc/config.json",
        "colour",
        "cluster: missing",
        "'hope'",
        "'here'",
        "'etc'",
        "'hours'",
        "keep.daily",
    ):
        assert words in str(caught.value)


def test_an_environment_is_read_and_its_faults_show_no_value() -> None:
    text = "# note\nRESTIC_REPOSITORY=/srv/b\n\nAWS_SECRET_ACCESS_KEY=a=b c\n"
    assert parse_environment(text, "file") == {"RESTIC_REPOSITORY": "/srv/b", "AWS_SECRET_ACCESS_KEY": "a=b c"}
    for wrong in ("RESTIC_REPOSITORY=/srv/b\nhush hush\n", "AWS_SECRET_ACCESS_KEY=hush\n"):
        with pytest.raises(BackupError) as caught:
            parse_environment(wrong, "file")
        assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "user", "wanted"),
    [
        ("rest:https://host/b/", "me", "rest:https://me:p%40ss%2F@host/b/"),
        ("rest:http://host:8000", "me", "rest:http://me:p%40ss%2F@host:8000"),
        ("rest:https://host/b/", "", "rest:https://host/b/"),
        ("s3:https://host/b", "me", "s3:https://host/b"),
    ],
)
def test_a_rest_server_s_password_goes_into_the_address(address: str, user: str, wanted: str) -> None:
    found = repository_of({"RESTIC_REPOSITORY": address, "RESTIC_REST_USERNAME": user, "RESTIC_REST_PASSWORD": "p@ss/"})
    assert found == wanted
    assert "p%40ss" not in shown_repository(found)


def test_secrets_are_masked_wherever_they_stand() -> None:
    text = "rest:https://me:open@host/x said: sesame and sesame-and-more"
    assert without_secrets(text, ["sesame", "sesame-and-more", "x"]) == "rest:https://me:***@host/x said: *** and ***"


# Which snapshot


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("2026-11-21T17:05:22.106916623Z", datetime(2026, 11, 21, 17, 5, 22, 106916, timezone.utc)),
        ("2026-11-21T17:05:22.5+01:00", datetime(2026, 11, 21, 16, 5, 22, 500000, timezone.utc)),
        ("2026-11-21 17:05", datetime(2026, 11, 21, 17, 5, tzinfo=timezone.utc)),
        ("2026-11-21", datetime(2026, 11, 21, tzinfo=timezone.utc)),
    ],
)
def test_a_moment_is_read(text: str, wanted: datetime) -> None:
    assert parse_moment(text) == wanted


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01", "2026-11-21T25:00Z", "2026-11-21T17"])
def test_what_is_no_moment_is_said_so(text: str) -> None:
    with pytest.raises(ValueError):
        parse_moment(text)


def test_the_list_is_read_oldest_first() -> None:
    answer = [
        {"id": "b" * 64, "time": "2026-11-21T17:00:00.1Z", "tags": ["proven", "revision=7", "node=e1"]},
        {"id": "a" * 64, "time": "2026-11-20T17:00:00Z"},
    ]
    first, second = stored_from(answer)
    assert (first.id[0], second.id[0]) == ("a", "b")
    assert (second.number("revision"), second.tag("node"), second.number("keys"), first.proven) == (7, "e1", -1, False)
    assert stored_from(None) == []
    with pytest.raises(BackupError):
        stored_from([{"id": "a"}])


@pytest.mark.parametrize(
    ("wanted", "number"),
    [
        ("newest", 3),
        ("latest", 3),
        ("22222222", 2),
        ("1" * 64, 1),
        ("2026-11-21T15:30:00Z", 2),
        ("2026-11-21T15:00:00Z", 2),
        ("2026-11-22", 3),
    ],
)
def test_a_snapshot_is_chosen_among_the_proven(wanted: str, number: int) -> None:
    assert chosen(LINE, wanted, NOW).number("revision") == number


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("44444444", "0 proven snapshots have an id"),
        ("2026-11-20", "no proven snapshot was made until 2026-11-20T00:00:00Z"),
        ("tomorrow", "found 'tomorrow'"),
        ("111", "found '111'"),
    ],
)
def test_what_cannot_be_chosen_is_answered_with_what_there_is(wanted: str, words: str) -> None:
    with pytest.raises(BackupError, match=re.escape(words)) as caught:
        chosen(LINE, wanted, NOW)
    assert "there are 3, from 2026-11-21T14:00:00Z to 2026-11-21T16:00:00Z" in str(caught.value)


def test_nothing_proven_cannot_be_chosen() -> None:
    with pytest.raises(BackupError, match="no proven snapshot"):
        chosen([stored(1, 5, proven=False)], "newest", NOW)


def test_an_unproven_snapshot_is_neither_newest_nor_fresh() -> None:
    there = newest(LINE)
    assert there and there.number("revision") == 3
    assert fresh(LINE, NOW, NOW - timedelta(minutes=59)) is None
    assert fresh(LINE, NOW, NOW - timedelta(minutes=60)) == LINE[2]


def test_a_snapshot_from_the_future_puts_nothing_off() -> None:
    ahead = stored(9, -600)
    line = [stored(1, 120), ahead]
    assert from_the_future(line, NOW) == [ahead]
    assert fresh(line, NOW, NOW - timedelta(minutes=30)) is None
    assert chosen(line, "newest", NOW).number("revision") == 1
    assert chosen([ahead], "newest", NOW) == ahead


@pytest.mark.parametrize(
    ("cluster", "revision", "same"), [("abc", 3, True), ("abc", 4, False), ("def", 3, False), ("", 3, False)]
)
def test_the_same_revision_of_the_same_cluster_is_the_same(cluster: str, revision: int, same: bool) -> None:
    assert unchanged(stored(3, 1), cluster, revision) is same
    assert unchanged(None, cluster, revision) is False


# What restic is told


def test_a_snapshot_is_stored_under_the_cluster_s_name() -> None:
    manifest = {"revision": 7, "key_count": 2, "size": 5, "sha256": "d", "cluster_id": "abc"}
    tags = snapshot_tags(manifest, "e1")
    words = backup_arguments("east", tags, ["etcd.db"])
    assert words[words.index("--host") + 1] == "east"
    assert words[-2:] == ["--", "etcd.db"]
    assert {"plainkube-etcd", "proven", "revision=7", "keys=2", "node=e1"} <= set(tags)
    assert not [tag for tag in tags if "," in tag]


def test_restic_says_what_it_stored() -> None:
    text = '{"message_type":"status","percent_done":0}\nnot json\n{"message_type":"summary","snapshot_id":"b3701637"}\n'
    assert stored_id(text) == "b3701637"
    for wrong in ("", '{"message_type":"status"}', "[]"):
        with pytest.raises(BackupError):
            stored_id(wrong)


@pytest.mark.parametrize(("keep", "last"), [({"hourly": 2}, "1"), ({"last": 0, "daily": 1}, "1"), ({"last": 5}, "5")])
def test_the_newest_proven_snapshot_always_stays(keep: dict[str, int], last: str) -> None:
    words = forget_arguments("east", keep)
    assert words[words.index("--keep-last") + 1] == last
    assert words[words.index("--tag") + 1] == "plainkube-etcd,proven"
    # Tags differ from snapshot to snapshot, and with them each would be a line of its own.
    assert words[words.index("--group-by") + 1] == "host"


@pytest.mark.parametrize("keep", [{}, {"hourly": 0}])
def test_without_rules_nothing_is_forgotten(keep: dict[str, int]) -> None:
    assert forget_arguments("east", keep) == []


@pytest.mark.parametrize(
    ("repository", "where"),
    [
        ("sftp:me@host:/srv/b", ["me@host"]),
        ("sftp://me@host:2222//srv/b", ["-p", "2222", "me@host"]),
        ("sftp://me@host/srv/b", ["me@host"]),
    ],
)
def test_sftp_knows_its_key_and_its_server(repository: str, where: list[str]) -> None:
    option, command = sftp_arguments(repository, "/k", "/hosts")
    words = command.split()
    assert option == "-o"
    assert words[-len(where) - 2 :] == [*where, "-s", "sftp"]
    assert {"BatchMode=yes", "StrictHostKeyChecking=yes", "UserKnownHostsFile=/hosts", "/k"} <= set(words)
    assert sftp_arguments("/srv/b", "/k", "/hosts") == []


# As restic 0.14 says it; later versions have exit codes of their own.
@pytest.mark.parametrize(
    ("words", "rc", "kind", "says"),
    [
        ("Fatal: wrong password or no key found\n", 1, BackupError, "wrong password"),
        ("Fatal: whatever\n", 12, BackupError, "wrong password"),
        (
            "Fatal: unable to open config file: stat /srv/b/config: no such file or directory\n"
            "Is there a repository at the following location?\n/srv/b\n",
            1,
            RepositoryMissing,
            "there is none at this address",
        ),
        ("Fatal: unable to open config file: <config/> does not exist\n", 1, RepositoryMissing, "none at this address"),
        (
            "Fatal: unable to open config file: dial tcp: connect: connection refused\n"
            "Is there a repository at the following location?\n",
            1,
            BackupError,
            "connection refused",
        ),
        ("unable to create lock in backend: repository is already locked by PID 5\n", 1, RepositoryBusy, "PID 5"),
        ("", 1, BackupError, "it said nothing"),
        (
            '{"message_type":"exit_error","code":10,"message":"Fatal: repository does not exist: no config file"}\n',
            10,
            RepositoryMissing,
            "address: repository does not exist: no config file.",
        ),
    ],
)
def test_restic_s_words_become_ours(words: str, rc: int, kind: type[BackupError], says: str) -> None:
    fault = restic_fault(words, "rest:https://me:hush@host/b", rc)
    assert type(fault) is kind
    assert says in str(fault)
    assert "rest:https://me:***@host/b" in str(fault)


# Metrics

SNAPSHOT = {"timestamp": 1.5e9, "size": 5, "revision": 7, "key_count": 2}


def test_metrics_are_what_a_collector_reads() -> None:
    record = Record(last_run=1.5e9, last_success=1.4e9, ok=False, seconds=2.5, snapshot=SNAPSHOT)
    lines = metrics_text("backup", "east", record).splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert values['plainkube_etcd_backup_last_run_ok{cluster="east"}'] == "0"
    assert values['plainkube_etcd_backup_last_success_timestamp_seconds{cluster="east"}'] == "1400000000"
    assert values['plainkube_etcd_backup_seconds{cluster="east"}'] == "2.5"
    assert values['plainkube_etcd_backup_snapshot_revision{cluster="east"}'] == "7"
    for line in lines:
        assert re.fullmatch(r'# (HELP|TYPE) [a-z_]+ \S.*|[a-z_]+\{cluster="east"\} [0-9.e+]+', line)
    assert len({line for line in lines if line.startswith("# TYPE")}) == len(values)


def test_before_the_first_success_nothing_is_called_proven() -> None:
    found = {metric.name: metric.value for metric in metrics_of("backup", Record(last_run=1.0))}
    assert found["plainkube_etcd_backup_proven"] == 0
    assert "plainkube_etcd_backup_snapshot_revision" not in found


def test_every_alert_asks_for_a_metric_that_is_written() -> None:
    written = {metric.name for run in RUNS for metric in metrics_of(run, Record(snapshot=SNAPSHOT))}
    rules = ROOT / "roles/etcd_backup/templates/etc/plainkube/etcd-backup/prometheus-rules.yml.j2"
    asked = set(re.findall(r"plainkube_etcd_[a-z_]+", rules.read_text(encoding="utf-8")))
    assert asked
    assert asked <= written


@pytest.mark.parametrize("values", [None, [], {"colour": "red"}])
def test_a_note_that_is_none_is_as_good_as_no_note(values: Any) -> None:
    assert record_from(values) == Record()


# The role carries every file that the program imports, and the configuration is where the program looks for it


def test_the_program_looks_where_the_role_writes() -> None:
    template = ROOT / "roles/etcd_backup/templates" / (CONFIGURATION[1:] + ".j2")
    assert template.is_file()


def test_every_name_of_the_configuration_is_one_that_the_program_knows() -> None:
    variables = yaml.safe_load((ROOT / "roles/etcd_backup/vars/main.yml").read_text(encoding="utf-8"))
    assert set(variables["__etcd_backup_config"]) <= {item.name for item in fields(Configuration)}


def test_the_role_installs_what_the_program_imports() -> None:
    folder = ROOT / "plugins/module_utils"
    wanted, todo = set(), ["etcd_backup_io"]
    while todo:
        name = todo.pop()
        if name not in wanted:
            wanted.add(name)
            text = (folder / f"{name}.py").read_text(encoding="utf-8")
            todo += re.findall(r"cluster\.plugins\.module_utils\.(\w+) import", text)
            for names in re.findall(r"cluster\.plugins\.module_utils import ([\w, ]+)", text):
                todo += [word.split()[0] for word in names.split(",")]
            assert not re.search(r"^(from|import) ansible\.", text, flags=re.MULTILINE), name
    variables = (ROOT / "roles/etcd_backup/vars/main.yml").read_text(encoding="utf-8")
    assert set(re.findall(r"__etcd_backup_library \}\}/(\w+)\.py", variables)) == wanted
