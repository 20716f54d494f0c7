# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Authorities and certificates through ansible-playbook, as a role uses them; this machine is controller and host."""

from __future__ import annotations

import base64
import getpass
import grp
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
PLAYBOOK = Path(sys.executable).with_name("ansible-playbook")
PLAY = [
    {
        "hosts": "localhost",
        "gather_facts": False,
        "vars": {"ansible_python_interpreter": sys.executable},
        "tasks": [
            {
                "name": "Make the authorities",
                "plainkube.cluster.authorities": "{{ authorities_arguments }}",
                "when": "with_authorities",
            },
            {
                "name": "Hold the certificates",
                "plainkube.cluster.certificates": {"items": "{{ items }}"},
                "register": "held",
                "when": "with_certificates",
            },
            {
                "name": "Read the trust bundle",
                "ansible.builtin.debug": {
                    "msg": "{{ lookup('plainkube.cluster.state_file', 'pki/cluster.crt', 'pki/signer.crt') }}"
                },
                "when": "with_lookup",
            },
        ],
    }
]


class Lab:
    """One controller's state folder and one host's folder, both below a temporary one."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.state = base / "state"
        self.host = base / "host"
        self.play = base / "play.yml"
        self.play.write_text(json.dumps(PLAY))
        self.items = [
            self.item("etcd-server", "etcd", ["server", "client"], dns_names=["n1"], ip_addresses=["127.0.0.1", "::1"]),
            self.item("etcd-client", "etcd", ["client"]),
            self.item("kubelet", "signer", ["server"], organizations=["system:nodes"], dns_names=["n1"]),
        ]

    def item(self, name: str, authority: str, usages: list[str], **more: Any) -> dict[str, Any]:
        return {
            "name": name,
            "certificate": str(self.host / "pki" / f"{name}.crt"),
            "key": str(self.host / "keys" / f"{name}.key"),
            "authority": authority,
            "common_name": name,
            "usages": usages,
            "owner": getpass.getuser(),
            "group": grp.getgrgid(os.getgid()).gr_name,
            **more,
        }

    def start(self, *options: str, **variables: Any) -> subprocess.CompletedProcess[str]:
        values = {
            # A template inside, as the contract's default has one.
            "plainkube_state_dir": f"{self.base}/{{{{ 'state' }}}}",
            "plainkube_cluster_name": "lab",
            "items": self.items,
            "with_authorities": True,
            "with_certificates": True,
            "with_lookup": False,
            "authorities_arguments": {
                "authorities": [
                    {"name": "etcd", "common_name": "lab etcd"},
                    {"name": "cluster", "common_name": "lab cluster"},
                    {"name": "signer", "common_name": "lab signer", "issuer": "cluster"},
                ],
                "service_account_key": True,
                "encryption_key": True,
                "admin_kubeconfig": {"server": "https://192.0.2.1:6443"},
            },
            **variables,
        }
        arguments = self.base / "variables.json"
        arguments.write_text(json.dumps(values))
        return subprocess.run(
            [PLAYBOOK, "-i", "localhost,", "-c", "local", "-e", f"@{arguments}", *options, self.play],
            cwd=REPOSITORY,
            env={**os.environ, "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default"},
            capture_output=True,
            text=True,
            check=False,
        )

    def run(self, *options: str, **variables: Any) -> dict[str, Any]:
        """Run the play and return what the certificates task returned."""
        ended = self.start("-vvv", *options, **variables)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        self.assert_no_secret_in(ended.stdout + ended.stderr)
        found = re.search(
            r"TASK \[Hold the certificates\].*?\n(?:changed|ok): \[localhost\] => (.*?)\n\n", ended.stdout, re.S
        )
        assert found, ended.stdout
        return yaml.safe_load(found[1])

    def changes(self, *options: str, **variables: Any) -> dict[str, list[str]]:
        answer = self.run(*options, **variables)
        changes = {entry["name"]: entry["reasons"] for entry in answer["certificates"] if entry["changed"]}
        assert answer["changed"] == bool(changes)
        return changes

    def secret_lines(self) -> set[str]:
        """Return each line of each private key, and each shared secret, that exists now."""
        lines = set()
        if (self.state / "admin.conf").exists():
            lines.add((self.state / "secrets/encryption-key").read_text())
            user = yaml.safe_load((self.state / "admin.conf").read_text())["users"][0]["user"]
            lines.add(user["client-key-data"])
            lines.update(base64.b64decode(user["client-key-data"]).decode().splitlines()[1:-1])
        for path in self.base.rglob("*.key*"):
            lines.update(line for line in path.read_text().splitlines() if line and "KEY-----" not in line)
        return lines

    def assert_no_secret_in(self, output: str) -> None:
        assert "PRIVATE KEY" not in output
        for line in self.secret_lines():
            assert line not in output

    def files(self) -> dict[str, tuple[int, bytes]]:
        return {
            str(path.relative_to(self.host)): (path.stat().st_ino, path.read_bytes())
            for path in self.host.rglob("*")
            if path.is_file()
        }


def openssl(*arguments: str | Path) -> str:
    return subprocess.run(["openssl", *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Authorities that tests may share as long as they change nothing in the state folder."""
    lab = Lab(tmp_path_factory.mktemp("template"))
    ended = lab.start(with_certificates=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return lab


@pytest.fixture
def ready(template: Lab, tmp_path: Path) -> Lab:
    """A host without certificates, whose authorities exist."""
    lab = Lab(tmp_path)
    subprocess.run(["cp", "-a", template.state, lab.state], check=True)
    return lab


def test_first_run_issues_all_second_run_nothing(lab: Lab) -> None:
    first = lab.run("--diff")
    assert [entry["reasons"] for entry in first["certificates"]] == [["certificate missing", "key missing"]] * 3
    files, state = lab.files(), {path: path.stat().st_mtime_ns for path in lab.state.rglob("*")}

    second = lab.run("--diff")
    assert not second["changed"]
    assert [entry["not_after"] for entry in second["certificates"]] == [
        entry["not_after"] for entry in first["certificates"]
    ]
    assert lab.files() == files
    assert {path: path.stat().st_mtime_ns for path in lab.state.rglob("*")} == state

    modes = {path.name: path.stat().st_mode & 0o777 for path in lab.host.rglob("*")}
    assert modes == {
        **{"pki": 0o755, "keys": 0o755},
        **{f"{item['name']}.crt": 0o644 for item in lab.items},
        **{f"{item['name']}.key": 0o600 for item in lab.items},
    }


def test_chains_verify_for_their_purpose_and_keys_stay_where_they_were_made(ready: Lab) -> None:
    ready.run(with_authorities=False)
    pki = ready.state / "pki"
    certificates = ready.host / "pki"
    for name, root, purpose in (
        ("etcd-server", "etcd", "sslserver"),
        ("etcd-server", "etcd", "sslclient"),
        ("etcd-client", "etcd", "sslclient"),
        ("kubelet", "cluster", "sslserver"),
    ):
        leaf = certificates / f"{name}.crt"
        # The leaf's own file brings the intermediate, as it does in a handshake.
        verified = openssl(
            "verify", "-x509_strict", "-purpose", purpose, "-CAfile", pki / f"{root}.crt", "-untrusted", leaf, leaf
        )
        assert verified.endswith("OK\n")
    with pytest.raises(subprocess.CalledProcessError):
        openssl("verify", "-purpose", "sslserver", "-CAfile", pki / "etcd.crt", certificates / "etcd-client.crt")

    text = openssl("x509", "-in", certificates / "etcd-server.crt", "-noout", "-text")
    assert "CA:FALSE" in text
    assert "DNS:n1, IP Address:127.0.0.1, IP Address:0:0:0:0:0:0:0:1" in text
    assert "O = system:nodes" in openssl("x509", "-in", certificates / "kubelet.crt", "-noout", "-subject")

    def keys(folder: Path) -> set[str]:
        """Return the public halves of all private keys below a folder, wherever in a file they stand."""
        found = set()
        for path in folder.rglob("*"):
            if path.is_file():
                for block in re.findall(
                    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----", path.read_text(), re.S
                ):
                    found.add(
                        subprocess.run(
                            ["openssl", "pkey", "-pubout"], input=block, check=True, capture_output=True, text=True
                        ).stdout
                    )
        return found

    assert len(keys(ready.host)) == 3
    assert len(keys(ready.state)) == 4
    assert not keys(ready.host) & keys(ready.state)


def test_only_the_certificate_that_differs_is_issued_anew(ready: Lab) -> None:
    ready.run(with_authorities=False)
    before = ready.files()
    ready.items[0]["ip_addresses"].append("192.0.2.7")
    assert ready.changes("--check", with_authorities=False) == {"etcd-server": ["SANs differ"]}
    assert ready.files() == before
    assert ready.changes(with_authorities=False) == {"etcd-server": ["SANs differ"]}
    after = ready.files()
    assert {name for name in before if before[name] != after[name]} == {"pki/etcd-server.crt", "keys/etcd-server.key"}
    assert ready.changes(with_authorities=False) == {}


def test_lifetime_of_minutes_is_renewed_in_time(ready: Lab) -> None:
    ready.items = [ready.item("short", "etcd", ["client"], minutes=1)]
    ready.run(with_authorities=False)
    assert ready.changes(with_authorities=False) == {}
    end = openssl("x509", "-in", ready.host / "pki/short.crt", "-noout", "-enddate")
    deadline = time.monotonic() + 60
    while (
        subprocess.run(
            ["openssl", "x509", "-in", ready.host / "pki/short.crt", "-noout", "-checkend", "17"],
            capture_output=True,
            check=False,
        ).returncode
        == 0
    ):
        assert time.monotonic() < deadline
        time.sleep(1)
    # On a busy machine the run may come too late to see it alive.
    reasons = ready.changes(with_authorities=False)["short"]
    assert reasons in (["less than a third of the lifetime left"], ["expired"])
    assert openssl("x509", "-in", ready.host / "pki/short.crt", "-noout", "-enddate") != end


# What a run that was killed, or a careless hand, leaves of the certificate of this name.
KILLS: dict[str, tuple[str, Any]] = {
    "writing-the-key": (
        "an earlier run was interrupted",
        lambda key, certificate: Path(f"{key}.plainkube-pending.plainkube-new").write_bytes(b"half a k"),
    ),
    "waiting-for-the-certificate": (
        "an earlier run was interrupted",
        lambda key, certificate: Path(f"{key}.plainkube-pending").write_bytes(b"a new key"),
    ),
    "between-the-two-renames": (
        "key does not match",
        lambda key, certificate: key.write_bytes(key.with_name("untouched.key").read_bytes()),
    ),
    "key-lost": ("key missing", lambda key, certificate: key.unlink()),
    "certificate-lost": ("certificate missing", lambda key, certificate: certificate.unlink()),
    "key-cut": ("key damaged", lambda key, certificate: key.write_bytes(b"half a k")),
    "certificate-cut": ("certificate damaged", lambda key, certificate: certificate.write_bytes(b"half a c")),
}


def test_what_a_kill_leaves_is_healed(ready: Lab) -> None:
    ready.items = [ready.item(name, "etcd", ["client"]) for name in ("untouched", *KILLS)]
    ready.run(with_authorities=False)
    before = ready.files()
    for name, (_reason, kill) in KILLS.items():
        kill(ready.host / f"keys/{name}.key", ready.host / f"pki/{name}.crt")
    assert ready.changes(with_authorities=False) == {name: [reason] for name, (reason, _kill) in KILLS.items()}
    after = ready.files()
    assert set(after) == set(before)
    assert {name for name in before if after[name] == before[name]} == {"keys/untouched.key", "pki/untouched.crt"}
    assert ready.changes(with_authorities=False) == {}


def test_attributes_are_corrected_without_a_new_certificate(ready: Lab) -> None:
    ready.run(with_authorities=False)
    before = ready.files()
    key, certificate = ready.host / "keys/kubelet.key", ready.host / "pki/etcd-client.crt"
    key.chmod(0o644)
    certificate.chmod(0o600)
    assert ready.changes(with_authorities=False) == {
        "etcd-client": ["mode or owner of the certificate differs"],
        "kubelet": ["mode or owner of the key differs"],
    }
    assert ready.files() == before
    assert (key.stat().st_mode & 0o777, certificate.stat().st_mode & 0o777) == (0o600, 0o644)


def test_another_authority_of_the_same_name_is_refused_and_nothing_is_signed(
    ready: Lab, lab: Lab, tmp_path_factory: pytest.TempPathFactory
) -> None:
    ready.run(with_authorities=False)
    other = Lab(tmp_path_factory.mktemp("other"))
    assert other.start(with_certificates=False).returncode == 0
    for name in ("etcd.crt", "etcd.key"):
        (ready.state / "pki" / name).write_bytes((other.state / "pki" / name).read_bytes())
    before = ready.files()
    ended = ready.start(with_authorities=False)
    assert ended.returncode != 0
    said = " ".join(ended.stdout.split())
    assert "signed by an authority that has the name of the one in" in said
    assert "etcd-client.crt on localhost" in said
    assert "Put the folder back from its backup" in said
    assert ready.files() == before


def test_check_mode_on_an_empty_controller_and_host_shows_all_and_writes_nothing(lab: Lab) -> None:
    ended = lab.start("--check", "--diff", with_lookup=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "+issuer: signer (made on the controller at the first run)" in ended.stdout
    assert "+dns_names: n1" in ended.stdout
    assert ended.stdout.count("(made on the controller at the first run)") >= 5
    assert not lab.state.exists()
    assert not lab.host.exists()


def test_the_lookup_joins_files(template: Lab) -> None:
    ended = template.start(with_certificates=False, with_authorities=False, with_lookup=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("-----BEGIN CERTIFICATE-----") == 2
    assert "-----END CERTIFICATE----------BEGIN" not in ended.stdout


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"with_authorities": False},
            "etcd.crt is missing on the controller: the role plainkube.cluster.authorities makes it",
        ),
        (
            {"with_authorities": False, "with_certificates": False, "with_lookup": True},
            "cluster.crt is missing on the controller: the role plainkube.cluster.authorities makes it",
        ),
        ({"with_authorities": False, "items": [{"name": "a"}]}, "missing required arguments: authority, certificate"),
        (
            {"with_authorities": False, "plainkube_state_dir": "relative"},
            "state_dir is 'relative', wanted an absolute path",
        ),
        (
            {"authorities_arguments": {"authorities": [{"name": "../a", "common_name": "a", "days": 0}]}},
            "days is 0, wanted 1 or more",
        ),
        ({"authorities_arguments": {"authorities": [], "wrong": 1}}, "wrong. Supported parameters include"),
    ],
)
def test_a_wrong_task_fails_with_one_message(lab: Lab, variables: dict[str, Any], message: str) -> None:
    ended = lab.start(**variables)
    assert ended.returncode != 0
    assert message in re.sub(r"\s+", " ", ended.stdout + ended.stderr)
    assert "Traceback" not in ended.stdout + ended.stderr
    assert not lab.host.exists()


def test_a_missing_owner_is_named(ready: Lab) -> None:
    ready.items[0]["owner"] = "nobody-here"
    ended = ready.start(with_authorities=False)
    assert ended.returncode != 0
    assert "there is no user nobody-here on this host" in re.sub(r"\s+", " ", ended.stdout)
