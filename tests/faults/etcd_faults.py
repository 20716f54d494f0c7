# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What tests of backups and restores do to a lab: objects to lose, members to destroy, playbooks to run."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from faults_lab import CHECKOUT, Lab, Run, environment, program
from kubernetes import client, config
from plainkube_lab.access import lab_folder

NAMESPACE = "default"
ETCDCTL = "set -a; . /etc/etcd/etcdctl.env; ETCDCTL_ENDPOINTS=https://127.0.0.1:2379 etcdctl"


def api(lab: Lab) -> client.CoreV1Api:
    """Return the API as the administrator sees it through whichever API server the kubeconfig names."""
    settings = client.Configuration()
    config.load_kube_config(
        str(lab_folder(lab.description.name) / "state" / "admin.conf"), client_configuration=settings
    )
    settings.host = f"https://{lab.nodes[lab.members('control_plane')[0]].address}:6443"
    return client.CoreV1Api(client.ApiClient(settings))


def put(lab: Lab, name: str) -> None:
    body = client.V1ConfigMap(metadata=client.V1ObjectMeta(name=name), data={"name": name})
    api(lab).create_namespaced_config_map(NAMESPACE, body)


def names(lab: Lab) -> set[str]:
    found = {item.metadata.name for item in api(lab).list_namespaced_config_map(NAMESPACE).items}
    return found - {"kube-root-ca.crt"}


def cluster_name(lab: Lab) -> str:
    """Return what playbooks want as confirm: a lab's cluster has the lab's name."""
    return lab.description.name


def command(lab: Lab, playbook: str, *words: str, **extra: Any) -> list[str]:
    variables = {"confirm": cluster_name(lab), **extra}
    path = str(CHECKOUT / "playbooks" / playbook)
    return [
        program("ansible-playbook"), "-i", str(lab.inventory), "--extra-vars", json.dumps(variables), *words, path
    ]  # fmt: skip


def play(lab: Lab, playbook: str, *words: str, **extra: Any) -> Run:
    """Run a playbook to its end, whatever that is."""
    done = subprocess.run(
        command(lab, playbook, *words, **extra),
        cwd=CHECKOUT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
    )
    return Run(done.returncode, done.stdout + done.stderr, 0, set())


def restore(lab: Lab, *words: str, **extra: Any) -> Run:
    """Run the restore, which must end well."""
    run = play(lab, "restore-etcd.yml", *words, **extra)
    assert run.code == 0, run.output[-6000:]
    return run


def hashes(lab: Lab) -> set[int]:
    """Return HashKV of each member; one means that they hold the same."""
    found = {}
    for host in lab.members("etcd"):
        found[host] = json.loads(lab.ssh(host, f"{ETCDCTL} endpoint status -w json"))[0]["Status"]["header"]["revision"]
    revision = min(found.values())
    return {
        json.loads(lab.ssh(host, f"{ETCDCTL} endpoint hashkv --rev={revision} -w json"))[0]["HashKV"]["hash"]
        for host in lab.members("etcd")
    }


def destroy(lab: Lab, host: str) -> None:
    """Take a member's data away as a broken disk does."""
    lab.ssh(host, "systemctl kill --signal=SIGKILL etcd; systemctl stop etcd; rm -rf /var/lib/etcd/member")
