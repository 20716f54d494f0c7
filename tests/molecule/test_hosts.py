# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a stranger with a shell on a host would look at: processes, users, ports, files, certificates."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from lab_cluster import Host

UNITS = {
    "etcd": ["etcd"],
    "control_plane": ["kube-apiserver", "kube-controller-manager", "kube-scheduler"],
    "nodes": ["containerd", "kubelet", "kube-proxy", "kube-router", "node-dns", "node-dns-address", "haproxy"],
}
SANDBOXED = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "node-dns"]
# systemd-analyze security: 0 is locked up, 10 is not protected at all.
EXPOSURE_AT_MOST = 2.0


def show(host: Host, unit: str, *properties: str) -> dict[str, str]:
    """Return properties of a unit."""
    output = host.check_output("systemctl show %s -p %s", unit, ",".join(properties))
    return dict(line.split("=", 1) for line in output.splitlines())


def assert_well(host: Host, unit: str) -> None:
    """Fail with the unit's journal unless it runs, comes back at boot and runs with its present unit file."""
    found = show(host, unit, "ActiveState", "UnitFileState", "NeedDaemonReload")
    journal = host.run("journalctl -u %s -n 20 --no-pager", unit).stdout
    assert found == {"ActiveState": "active", "UnitFileState": "enabled", "NeedDaemonReload": "no"}, journal


@pytest.mark.on("etcd")
def test_etcd_runs(host: Host) -> None:
    for unit in UNITS["etcd"]:
        assert_well(host, unit)


@pytest.mark.on("control_plane")
def test_control_plane_runs(host: Host) -> None:
    for unit in UNITS["control_plane"]:
        assert_well(host, unit)


@pytest.mark.on("nodes")
def test_node_runs(host: Host, facts: dict[str, Any]) -> None:
    for unit in [*UNITS["nodes"], *facts["network"]["units"]]:
        assert_well(host, unit)


@pytest.mark.on("nodes")
def test_pods_are_told_to_ask_their_node_s_cache_first(host: Host) -> None:
    told = host.check_output("grep ^clusterDNS: /var/lib/kubelet/config.yaml")
    assert json.loads(told.partition(":")[2])[0] in host.check_output("ip -4 -o address show label lo:node-dns")


@pytest.mark.on("all")
def test_units_are_readable_by_root_alone(host: Host) -> None:
    ours = host.check_output("grep -l 'Managed by plainkube.cluster' /etc/systemd/system/*.service").split()
    assert ours
    for path in ours:
        file = host.file(path)
        assert (file.user, file.group, file.mode) == ("root", "root", 0o600), path


@pytest.mark.on("all")
def test_services_run_sandboxed_as_their_own_users(host: Host) -> None:
    for unit in SANDBOXED:
        if not host.file(f"/etc/systemd/system/{unit}.service").exists:
            continue
        pid = show(host, unit, "MainPID")["MainPID"]
        assert host.check_output("stat -c %%U /proc/%s", pid) == unit
        words = host.check_output("systemd-analyze security --no-pager %s | grep 'Overall exposure'", unit)
        exposure = float(words.rsplit(": ", 1)[1].split()[0])
        assert exposure <= EXPOSURE_AT_MOST, words


@pytest.mark.on("control_plane")
def test_only_the_api_listens_to_the_network(host: Host, facts: dict[str, Any]) -> None:
    listening = host.check_output("ss -ltnpH")
    for process, addresses in {
        "kube-apiserver": {f"{facts['address']}:6443"},
        "kube-controller": {"127.0.0.1:10257"},
        "kube-scheduler": {"127.0.0.1:10259"},
        "haproxy": {"127.0.0.1:6443"},
    }.items():
        found = {line.split()[3] for line in listening.splitlines() if f'"{process}' in line}
        assert found == addresses, process


@pytest.mark.on("etcd")
def test_etcd_data_is_its_own(host: Host) -> None:
    folder = host.file("/var/lib/etcd")
    assert (folder.user, folder.group, folder.mode) == ("etcd", "etcd", 0o700)
    listening = host.check_output("ss -ltnpH")
    plain = {line.split()[3] for line in listening.splitlines() if '"etcd"' in line and ":2381" in line}
    assert plain == {"127.0.0.1:2381"}


def public_key(certificate: x509.Certificate) -> str:
    """Return a certificate's public key in the form that openssl prints it."""
    return certificate.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode().strip()


@pytest.mark.on("all")
def test_no_authority_key_is_on_any_host(host: Host, facts: dict[str, Any]) -> None:
    state = Path(facts["state_dir"]) / "pki"
    # The signer is for control-plane hosts: the controller manager signs kubelets' certificates with it.
    names = {"etcd", "cluster", "front-proxy"}
    on_control_plane = host.file("/usr/local/bin/kube-apiserver").exists
    if not on_control_plane:
        names.add("signer")
    authorities = {public_key(x509.load_pem_x509_certificate((state / f"{name}.crt").read_bytes())) for name in names}
    folders = "/etc /home /opt /root /run /srv /usr/local /var"
    found = host.run(
        f"grep -rlIs --exclude-dir=containerd --exclude-dir=plainkube-mirror 'PRIVATE KEY' {folders}"
    ).stdout.split()
    keys = {path: host.run("openssl pkey -in %s -pubout", path).stdout.strip() for path in found}
    assert keys, "the search finds no private key at all, so it proves nothing"
    assert not [path for path, public in keys.items() if public in authorities]


@pytest.mark.on("all")
def test_private_keys_are_readable_by_their_owner_alone(host: Host) -> None:
    modes = host.check_output(
        "find /etc/kubernetes /etc/etcd /var/lib/kubelet/pki -name '*.key' -printf '%m %p\\n' || true"
    )
    assert modes
    assert not [line for line in modes.splitlines() if not line.startswith("600 ")]


@pytest.mark.on("all")
def test_leaf_certificates_live_a_year_at_most(host: Host, facts: dict[str, Any]) -> None:
    authorities = {path.read_bytes().strip() for path in (Path(facts["state_dir"]) / "pki").glob("*.crt")}
    pems = host.check_output("cat $(find /etc/kubernetes/pki /etc/etcd/pki -name '*.crt' 2>/dev/null)").encode()
    certificates = x509.load_pem_x509_certificates(pems)
    leaves = [item for item in certificates if item.public_bytes(Encoding.PEM).strip() not in authorities]
    assert leaves
    for leaf in leaves:
        assert leaf.not_valid_after_utc - leaf.not_valid_before_utc <= timedelta(days=365, minutes=10), leaf.subject


@pytest.mark.on("nodes")
def test_kubelets_rotate_their_own_client_certificate(host: Host) -> None:
    pem = host.check_output("cat /var/lib/kubelet/pki/kubelet-client-current.pem").encode()
    certificate = x509.load_pem_x509_certificates(pem)[0]
    lifetime: timedelta = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert lifetime <= timedelta(days=90, minutes=10)
    assert "signer" in certificate.issuer.rfc4514_string()
    assert certificate.not_valid_after_utc > datetime.now(certificate.not_valid_after_utc.tzinfo)


@pytest.mark.on("nodes")
def test_the_kubelet_never_clears_an_image_of_ours_away(host: Host) -> None:
    images = json.loads(host.check_output("crictl images -o json"))["images"]
    pinned = {tag: image["pinned"] for image in images for tag in image["repoTags"]}
    assert len(pinned) >= 3
    assert all(pinned.values()), pinned


@pytest.mark.on("all")
def test_no_half_written_file_is_left(host: Host) -> None:
    assert host.run("find /etc /opt /usr/local /var/lib/kubelet -name '*plainkube-new*'").stdout == ""
