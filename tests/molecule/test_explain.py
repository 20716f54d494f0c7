# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What explain-service and explain-host say of a running cluster, as a person at a terminal sees it."""

from __future__ import annotations

import re
import subprocess

from lab_cluster import CHECKOUT, inventory, members


def explained(playbook: str, *extra: str) -> str:
    """Return what a playbook prints in check mode, in which it must do the same. Fails when it changes something."""
    command = ["ansible-playbook", "-i", str(inventory()), f"playbooks/{playbook}.yml", "--check"]
    variables = [word for variable in extra for word in ("-e", variable)]
    done = subprocess.run([*command, *variables], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not re.search(r"changed=[1-9]", done.stdout)
    return done.stdout


def test_the_way_to_the_name_server_is_told_and_every_node_agrees() -> None:
    told = explained("explain-service", "service=kube-system/kube-dns")
    first = members("control_plane")[0]
    others = [name for name in members("nodes") if name != first]
    assert f"Service kube-system/kube-dns (ClusterIP), as {first} carries it" in told
    assert re.search(r"cluster IP 10\.96\.0\.10:53 udp \(dns\)\n\s+by service-\S+-kube-system/kube-dns/udp/dns", told)
    assert "kube-dns.kube-system.svc.cluster.local -> 10.96.0.10" in told
    assert re.search(r"port 53,9153: ready, in the rules\n\s+pod coredns-\S+ on \S+; (via|directly)", told)
    assert "What is not as it should be" not in told
    for name in others:
        assert f"{name} agrees with the API: 3 ways in" in told


def test_a_host_is_explained_and_nothing_of_ours_is_unknown_or_missing() -> None:
    name = members("nodes")[-1]
    told = explained("explain-host", f"host={name}")
    for words in (
        "kubelet",
        "tcp 127.0.0.1:10248",
        "ip kube-proxy:",
        "fixed, the same on every host",
        "pods of this host",
    ):
        assert words in told, words
    assert "What is not as it should be" not in told
    unknown = told.partition("Not known here: somebody else's")[2].partition("PLAY RECAP")[0]
    ours = re.compile(r"kube|etcd|plainkube_|cni0|flannel|containerd|coredns|haproxy")
    # The lab's own files are mounted into its containers.
    assert [line for line in unknown.splitlines() if ours.search(line) and "/srv/plainkube-lab" not in line] == []
