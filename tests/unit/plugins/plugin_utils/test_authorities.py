# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The state folder: made once, completed after a kill, and never replaced."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import yaml
from ansible_collections.plainkube.cluster.plugins.module_utils.certificates import CertificateError
from ansible_collections.plainkube.cluster.plugins.plugin_utils import authorities as a
from ansible_collections.plainkube.cluster.plugins.plugin_utils import state_folder

NOW = datetime.now(timezone.utc)
YEARS = timedelta(days=3650)
SPECS = [
    a.AuthoritySpec("signer", "lab signer", YEARS, "cluster"),
    a.AuthoritySpec("cluster", "lab cluster", YEARS),
    a.AuthoritySpec("etcd", "lab etcd", YEARS),
]


def admin(folder: Path, server: str = "https://192.0.2.1:6443", days: int = 365) -> a.AdminSpec:
    return a.AdminSpec(
        str(folder / "admin.conf"), server, "kubernetes-admin", ("system:masters",), timedelta(days=days), "cluster"
    )


def make(
    path: Path, now: datetime = NOW, check_mode: bool = False, spec: a.AdminSpec | None = None, cluster: str = "lab"
) -> a.StateMaker:
    maker = a.StateMaker(state_folder.StateFolder(str(path)), now, check_mode)
    maker.make_folder()
    maker.name_cluster(cluster)
    maker.make_parts()
    maker.make_authorities(SPECS)
    maker.make_service_account_key()
    maker.make_encryption_key()
    maker.make_admin_kubeconfig(cluster, spec or admin(path), "cluster")
    return maker


def changes(maker: a.StateMaker) -> dict[str, tuple[str, ...]]:
    return {Path(outcome.name).name: outcome.reasons for outcome in maker.outcomes if outcome.reasons}


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("made") / "state"
    make(path)
    return contents(path)


@pytest.fixture
def state(tmp_path: Path, made: dict[str, bytes]) -> Path:
    """A complete state folder to damage."""
    path = tmp_path / "state"
    for name, content in made.items():
        file = path / name
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.write_bytes(content)
        file.chmod(0o644 if file.suffix in {".crt", ".pub"} else 0o600)
    path.chmod(0o700)
    return path


def test_secrets_are_private_and_nothing_else_is_there(tmp_path: Path) -> None:
    make(tmp_path / "state")
    modes = {str(f.relative_to(tmp_path)): f.stat().st_mode & 0o777 for f in tmp_path.rglob("*")}
    assert modes == {
        "state": 0o700,
        "state/pki": 0o700,
        "state/secrets": 0o700,
        "state/cluster-name": 0o600,
        "state/admin.conf": 0o600,
        "state/secrets/service-account.key": 0o600,
        "state/secrets/service-account.pub": 0o644,
        "state/secrets/encryption-key": 0o600,
        **{f"state/pki/{name}.key": 0o600 for name in ("cluster", "etcd", "signer")},
        **{f"state/pki/{name}.crt": 0o644 for name in ("cluster", "etcd", "signer")},
    }


def test_a_second_run_changes_nothing(state: Path, made: dict[str, bytes]) -> None:
    maker = make(state)
    assert (changes(maker), maker.warnings) == ({}, [])
    assert contents(state) == made


def test_check_mode_tells_all_and_writes_nothing(tmp_path: Path) -> None:
    maker = make(tmp_path / "state", check_mode=True)
    assert not (tmp_path / "state").exists()
    assert list(changes(maker)) == [
        *("state", "cluster-name", "cluster.crt", "etcd.crt", "signer.crt"),
        *("service-account.key", "service-account.pub", "encryption-key", "admin.conf"),
    ]


def test_check_mode_on_a_complete_folder_tells_nothing(state: Path) -> None:
    assert changes(make(state, check_mode=True)) == {}


def lose(name: str) -> Callable[[Path], object]:
    return lambda state: (state / name).unlink()


def damage(name: str) -> Callable[[Path], object]:
    return lambda state: (state / name).write_bytes(b"rubbish")


def swap_keys(state: Path) -> None:
    (state / "pki/etcd.key").write_bytes((state / "pki/cluster.key").read_bytes())


def lose_root_of_signer(state: Path) -> None:
    (state / "pki/cluster.key").unlink()
    (state / "pki/cluster.crt").unlink()


@pytest.mark.parametrize(
    ("hurt", "message"),
    [
        (lose("pki/etcd.key"), "etcd.key is missing while"),
        (lose("pki/etcd.crt"), "etcd.crt is missing while"),
        (damage("pki/etcd.key"), "etcd.key is not a private key"),
        (damage("pki/etcd.crt"), "etcd.crt is not one certificate"),
        (swap_keys, "etcd.key is not the key of"),
        (lose_root_of_signer, "cluster.crt is missing while signer, which it signed, is there"),
        (lose("secrets/service-account.key"), "service-account.key is missing while its public half is there"),
        (damage("secrets/service-account.key"), "service-account.key is not a private key"),
        (damage("secrets/service-account.pub"), "service-account.pub is not the public half"),
        (damage("secrets/encryption-key"), "encryption-key is not 32 bytes in base64"),
    ],
)
def test_what_is_lost_or_damaged_is_refused_and_kept(state: Path, hurt: Callable[[Path], object], message: str) -> None:
    hurt(state)
    before = contents(state)
    with pytest.raises(CertificateError, match=message) as caught:
        make(state)
    assert "backup" in str(caught.value)
    assert contents(state) == before


def test_a_folder_of_another_cluster_is_refused(state: Path) -> None:
    with pytest.raises(CertificateError, match="belongs to cluster 'lab', wanted that of 'other'"):
        make(state, cluster="other")


def test_an_authority_killed_before_its_certificate_got_its_name_is_completed(
    state: Path, made: dict[str, bytes]
) -> None:
    (state / "pki/etcd.crt").rename(state / f"pki/etcd.crt{a.PENDING_SUFFIX}")
    assert changes(make(state, check_mode=True)) == {"etcd.crt": (a.INTERRUPTED,)}
    assert changes(make(state)) == {"etcd.crt": (a.INTERRUPTED,)}
    assert contents(state) == made


def test_an_authority_killed_before_its_key_got_its_name_is_made_anew(state: Path, made: dict[str, bytes]) -> None:
    (state / "pki/etcd.crt").rename(state / f"pki/etcd.crt{a.PENDING_SUFFIX}")
    (state / "pki/etcd.key").unlink()
    assert changes(make(state)) == {"etcd.crt": ("missing",)}
    assert set(contents(state)) == set(made)


class Killed(BaseException):
    """What no handler may catch."""


@pytest.mark.parametrize("survived", range(14))
def test_a_run_killed_before_any_write_is_completed_by_the_next(
    tmp_path: Path, made: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    monkeypatch.setattr(a, "SERVICE_ACCOUNT_KEY_BITS", 1024)
    state = tmp_path / "state"
    steps = iter(range(100))

    def mortal(write: Callable[..., None]) -> Callable[..., None]:
        def write_or_die(*arguments: object) -> None:
            if next(steps) == survived:
                raise Killed
            write(*arguments)

        return write_or_die

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(a, "write_atomically", mortal(a.write_atomically))
        patch.setattr(a.StateMaker, "_rename", mortal(a.StateMaker._rename))
        make(state)
    kept = contents(state)
    make(state)
    assert set(contents(state)) == set(made)
    # What was complete before the kill is what others may have seen: it stays.
    whole = [name for name in kept if not name.startswith("pki/") or name.replace(".key", ".crt") in kept]
    assert {name: contents(state).get(name) for name in whole if a.PENDING_SUFFIX not in name} == {
        name: kept[name] for name in whole if a.PENDING_SUFFIX not in name
    }
    assert changes(make(state)) == {}


def test_permissions_are_taken_back(state: Path) -> None:
    for name in ("", "pki/etcd.key", "secrets/encryption-key", "secrets/service-account.key", "admin.conf"):
        (state / name).chmod(0o755 if name == "" else 0o640)
    before = {name: content for name, content in contents(state).items() if name != "admin.conf"}
    assert set(changes(make(state))) == {
        *("state", "etcd.crt", "encryption-key", "service-account.key", "admin.conf"),
    }
    assert changes(make(state)) == {}
    assert {name: content for name, content in contents(state).items() if name != "admin.conf"} == before


def test_the_public_half_is_made_from_its_key(state: Path, made: dict[str, bytes]) -> None:
    (state / "secrets/service-account.pub").unlink()
    assert list(changes(make(state))) == ["service-account.pub"]
    assert contents(state) == made


@pytest.mark.parametrize(
    ("spec", "now", "reason"),
    [
        ({"server": "https://192.0.2.9:6443"}, NOW, "server differs"),
        ({"days": 30}, NOW, "valid for longer than asked"),
        ({}, NOW + timedelta(days=300), "less than a third of the lifetime left"),
        ({}, NOW + timedelta(days=400), "expired"),
    ],
)
def test_the_admins_kubeconfig_is_renewed(state: Path, spec: dict, now: datetime, reason: str) -> None:
    assert changes(make(state, now, spec=admin(state, **spec))) == {"admin.conf": (reason,)}
    assert changes(make(state, now, spec=admin(state, **spec))) == {}


@pytest.mark.parametrize("content", [b"rubbish", b"", b"\xff", b"clusters: [", b"users: []"])
def test_a_damaged_kubeconfig_is_made_anew(state: Path, content: bytes) -> None:
    (state / "admin.conf").write_bytes(content)
    assert changes(make(state)) == {"admin.conf": ("damaged",)}


def test_the_kubeconfig_has_one_context_named_after_the_cluster(state: Path) -> None:
    data = yaml.safe_load((state / "admin.conf").read_text())
    assert data["current-context"] == "lab"
    assert data["contexts"] == [{"name": "lab", "context": {"cluster": "lab", "user": "kubernetes-admin"}}]
    assert data["clusters"][0]["cluster"]["server"] == "https://192.0.2.1:6443"


def test_an_authority_near_its_end_warns(state: Path) -> None:
    assert make(state, NOW + timedelta(days=3200)).warnings == []
    warnings = make(state, NOW + timedelta(days=3300)).warnings
    assert [warning.split()[1] for warning in warnings] == ["cluster", "etcd", "signer"]
    assert "349 days left" in warnings[0]


def test_an_intermediate_ends_with_its_root_and_may_sign_no_other(tmp_path: Path) -> None:
    maker = a.StateMaker(state_folder.StateFolder(str(tmp_path)), NOW, False)
    maker.make_parts()
    maker.make_authorities(
        [a.AuthoritySpec("s", "s", YEARS, "root"), a.AuthoritySpec("root", "root", timedelta(days=10))]
    )
    root, signer = maker.authorities["root"], maker.authorities["s"]
    assert signer.not_after == root.not_after
    assert [a.x509.path_length(authority.certificate) for authority in (root, signer)] == [1, 0]


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([a.AuthoritySpec("s", "s", YEARS, "no")], "authority s: issuer is 'no', wanted one of"),
        ([a.AuthoritySpec("s", "s", YEARS, "s")], "authority s: issuer is 's'"),
        (
            [a.AuthoritySpec("s", "s", YEARS), a.AuthoritySpec("s", "s", YEARS)],
            "authority s is asked for more than once",
        ),
    ],
)
def test_impossible_issuers_are_refused(specs: list[a.AuthoritySpec], message: str) -> None:
    with pytest.raises(CertificateError, match=message):
        a.in_order(specs)


def test_a_second_run_waits_and_then_says_who_is_in_the_way(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_folder, "LOCK_SECONDS", 0)
    folder = state_folder.StateFolder(str(state))
    with folder.lock(), pytest.raises(CertificateError, match="another run"), folder.lock():
        pass
    with folder.lock():
        pass


def test_a_folder_that_git_would_commit_warns(state: Path) -> None:
    subprocess.run(["git", "init", "--quiet", str(state.parent)], check=True)
    assert "inside a git work tree" in make(state).warnings[0]
    (state.parent / ".gitignore").write_text("state/\n")
    assert make(state).warnings == []


def test_a_relative_folder_is_refused() -> None:
    with pytest.raises(CertificateError, match="wanted an absolute path"):
        state_folder.StateFolder("state")
