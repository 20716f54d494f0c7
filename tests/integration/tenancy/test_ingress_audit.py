# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The audit of Ingresses against a real API server: what it finds, what it asks for, rights, reports, the playbook."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.plainkube.cluster.plugins.module_utils.certificates import Leaf
from ansible_collections.plainkube.cluster.plugins.module_utils.ingresses import (
    CLASS_ANNOTATION,
    DEFAULT_CLASS_ANNOTATION,
    NGINX,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.kubernetes_api import RESOURCES
from ansible_collections.plainkube.cluster.plugins.plugin_utils import x509
from ansible_collections.plainkube.cluster.plugins.plugin_utils.audit_data import (
    ingress_annotations,
    ingress_rules,
    report_template,
)
from api_servers import ApiServer, FaultProxy
from audit_examples import ROOT
from module_runs import Answer, run_module

NETWORKING = "networking.k8s.io/v1"
CONTROLLERS = {"nginx": "k8s.io/ingress-nginx", "traefik": "traefik.io/ingress-controller"}
Object = dict[str, Any]
Audit = Callable[..., Answer]


@pytest.fixture
def classes(clean_server: ApiServer) -> Iterator[ApiServer]:
    """A clean server with two IngressClasses."""
    api = clean_server.api()
    things = [
        {
            "apiVersion": NETWORKING,
            "kind": "IngressClass",
            "metadata": {"name": name},
            "spec": {"controller": controller},
        }
        for name, controller in CONTROLLERS.items()
    ]
    make(clean_server, things)
    yield clean_server
    for thing in api.list(RESOURCES["IngressClass"].path()):
        api.delete({**thing, "apiVersion": NETWORKING, "kind": "IngressClass"})


@pytest.fixture
def audit(api_server: ApiServer) -> Audit:
    """Audit the server's Ingresses: audit(fail_on="low")."""

    def run(check: bool = False, **options: Any) -> Answer:
        arguments = {
            "kubeconfig": str(api_server.kubeconfig),
            "shipped_rules": ingress_rules(),
            "annotations": ingress_annotations(),
            "report_template": report_template(),
            **options,
        }
        return run_module("ingress_audit", arguments, check=check)

    return run


def make(server: ApiServer, things: list[Object]) -> None:
    for answer in server.api().at_the_same_time(lambda thing: server.api().apply(thing, "tests", live={}), things):
        if isinstance(answer, Exception):
            raise answer


def ingress(namespace: str, name: str = "shop", spec: Object | None = None, **annotations: str) -> Object:
    """Return an Ingress; annotations are those of ingress-nginx, with _ for -."""
    path = {"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "web", "port": {"number": 80}}}}
    return {
        "apiVersion": NETWORKING,
        "kind": "Ingress",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "annotations": {NGINX + key.replace("_", "-"): value for key, value in annotations.items()},
        },
        "spec": {
            "ingressClassName": "nginx",
            "rules": [{"host": f"{name}.{namespace}.example.org", "http": {"paths": [path]}}],
            **(spec or {}),
        },
    }


def service(namespace: str, name: str = "web") -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"ports": [{"name": "http", "port": 80}]},
    }


def tls_secret(namespace: str, name: str, *hosts: str, days: int = 90, kind: str = "kubernetes.io/tls") -> Object:
    """Return a TLS secret with a certificate that ends in so many days from now; the past is fine."""
    now = datetime.now(timezone.utc)
    begin = now + timedelta(days=days - 365)
    authority = x509.make_authority("tests", "tests", timedelta(days=3650), 0, None, begin)
    key = x509.new_key()
    leaf = Leaf(name, "", "", "tests", hosts[0], ("server",), timedelta(days=365), dns_names=hosts)
    certificate = x509.certificate_pem([x509.issue_leaf(leaf, key.public_key(), authority, "tests", begin)]).encode()
    data = {"tls.crt": certificate, "tls.key": x509.key_pem(key)}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "type": kind,
        "data": {name: base64.b64encode(value).decode() for name, value in data.items()},
    }


def deployment(namespace: str, image: str) -> Object:
    labels = {"app": "controller"}
    pod = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "controller", "image": image}]}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "ingress-nginx-controller", "namespace": namespace},
        "spec": {"selector": {"matchLabels": labels}, "template": pod},
    }


def found(answer: Answer) -> dict[str, list[str]]:
    """Return the rules that found something, each with the names of the objects."""
    assert answer.code == 0, answer.message
    by_rule: dict[str, list[str]] = {}
    for item in answer.result["findings"]:
        by_rule.setdefault(item["rule"], []).append(item["name"])
    return by_rule


def test_what_is_found_in_a_cluster(classes: ApiServer, namespace: str, audit: Audit) -> None:
    host = f"shop.{namespace}.example.org"
    tls = {"tls": [{"hosts": [host], "secretName": "good"}]}
    other = {"tls": [{"hosts": [f"other.{namespace}.example.org"], "secretName": "good"}]}
    things = [
        service(namespace),
        tls_secret(namespace, "good", host),
        tls_secret(namespace, "old", f"old.{namespace}.example.org", days=-1, kind="Opaque"),
        ingress(namespace, spec=tls, proxy_read_timeout="90"),
        ingress(namespace, "other", spec=other),
        ingress(namespace, "old", spec={"tls": [{"hosts": [f"old.{namespace}.example.org"], "secretName": "old"}]}),
        ingress(namespace, "gone", spec={"tls": [{"secretName": "gone"}], "ingressClassName": "ngnix"}),
        ingress(namespace, "mirror", mirror_target="https://192.0.2.1/", denylist_source_range="192.0.2.0/24"),
        ingress(namespace, "snippet", configuration_snippet="proxy_pass http://192.0.2.1;"),
        deployment(namespace, "registry.k8s.io/ingress-nginx/controller:v1.11.2@sha256:" + "0" * 64),
    ]
    make(classes, things)
    answer = audit()
    assert found(answer) == {
        "certificate-expired": ["old"],
        "certificate-for-other-hosts": ["other"],
        "class-unknown": ["gone"],
        "ingress-nginx-runs": ["ingress-nginx-controller"],
        "left-out": ["snippet"],
        "protection-lost": ["mirror"],
        "secret-missing": ["gone"],
        "snippet": ["snippet"],
        "annotation-ignored": ["mirror"],
    }
    assert answer.result["summary"]["ingress_nginx"] == [f"{namespace}/ingress-nginx-controller v1.11.2"]
    assert {row["name"]: row["verdict"] for row in answer.result["ingresses"]}["shop"] == "ready"
    assert not answer.result["changed"]


def test_no_part_of_a_secret_is_shown(classes: ApiServer, namespace: str, audit: Audit, tmp_path: Path) -> None:
    secret = tls_secret(namespace, "good", "elsewhere.example.org")
    tls = {"tls": [{"hosts": ["shop.example.org"], "secretName": "good"}]}
    make(classes, [service(namespace), secret, ingress(namespace, spec=tls)])
    paths = {name: str(tmp_path / name) for name in ("json", "html", "junit")}
    answer = audit(reports=paths)
    said = [json.dumps(answer.result), answer.stderr, *(Path(path).read_text() for path in paths.values())]
    assert found(answer) == {"certificate-for-other-hosts": ["shop"]}
    for value in secret["data"].values():
        pem = base64.b64decode(value).decode()
        lines = [line for line in pem.splitlines() if len(line) > 20 and not line.startswith("-----")]
        assert [line for line in [value, *lines] if any(line in text for text in said)] == []
    assert all(Path(path).stat().st_mode & 0o777 == 0o600 for path in paths.values())
    assert "All Ingresses" in Path(paths["html"]).read_text()


def test_ingresses_that_the_api_server_gave_a_class(classes: ApiServer, namespace: str, audit: Audit) -> None:
    """A default class is written into new Ingresses; of two defaults the newest counts, and both are findings."""
    make(classes, [service(namespace), ingress(namespace, "before", spec={"ingressClassName": None})])
    for name, controller in CONTROLLERS.items():
        metadata = {"name": name, "annotations": {DEFAULT_CLASS_ANNOTATION: "true"}}
        thing = {
            "apiVersion": NETWORKING,
            "kind": "IngressClass",
            "metadata": metadata,
            "spec": {"controller": controller},
        }
        make(classes, [thing])
    make(classes, [ingress(namespace, "after", spec={"ingressClassName": None})])
    answer = audit()
    assert found(answer) == {"class-defaults": ["nginx", "traefik"], "class-missing": ["before"]}
    old = ingress(namespace, "old")
    del old["spec"]["ingressClassName"]
    old["metadata"]["annotations"][CLASS_ANNOTATION] = "nginx"
    make(classes, [old])
    assert found(audit())["class-annotation"] == ["old"]


def test_a_thousand_ingresses_take_a_few_requests(
    classes: ApiServer, make_namespaces: Callable[..., list[str]], audit: Audit, tmp_path: Path
) -> None:
    namespaces = make_namespaces(11)
    for namespace in namespaces:
        make(classes, [service(namespace), *(ingress(namespace, f"shop-{number}") for number in range(100))])
    answer = audit(reports={"html": str(tmp_path / "page.html")})
    assert found(answer) == {}
    assert answer.result["summary"]["ready"] == 1100
    # Three pages of Ingresses, one of each other kind, one of secrets' names.
    assert answer.result["requests"] <= 9
    few = audit(namespaces=[namespaces[0]])
    assert few.result["summary"]["ingresses"] == 100


def test_it_fails_as_it_is_told_and_writes_reports_before(
    classes: ApiServer, namespace: str, audit: Audit, tmp_path: Path
) -> None:
    make(classes, [service(namespace), ingress(namespace, mirror_target="https://192.0.2.1/")])
    report = tmp_path / "report.json"
    assert audit(fail_on="high").code == 0
    answer = audit(fail_on="medium", reports={"json": str(report)})
    assert answer.code == 1
    assert f"medium: annotation-ignored: Ingress {namespace}/shop: mirror-target" in answer.message
    assert [row["name"] for row in json.loads(report.read_text())["ingresses"]] == ["shop"]
    report.unlink()
    assert audit(check=True, reports={"json": str(report)}).code == 0
    assert not report.exists()


# --- Rights and an API that answers badly -----------------------------------------------------------------------------


def role_in_the_docs() -> list[Object]:
    page = (ROOT / "docs" / "ingress-migration.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```yaml\n(apiVersion: rbac.*?)```", page, flags=re.DOTALL)
    rules: list[Object] = yaml.safe_load(text)["rules"]
    return rules


def test_the_role_in_the_docs_is_enough(classes: ApiServer, namespace: str, audit: Audit) -> None:
    tls = {"tls": [{"hosts": [f"shop.{namespace}.example.org"], "secretName": "opaque"}]}
    secret = tls_secret(namespace, "opaque", f"shop.{namespace}.example.org", kind="Opaque")
    make(classes, [service(namespace), secret, ingress(namespace, spec=tls)])
    kubeconfig = classes.kubeconfig_for(f"auditor-{namespace}", role_in_the_docs())
    assert found(audit(kubeconfig=str(kubeconfig))) == {}


def test_without_the_right_to_secrets_they_can_be_left_out(classes: ApiServer, namespace: str, audit: Audit) -> None:
    make(classes, [service(namespace), ingress(namespace, spec={"tls": [{"secretName": "gone"}]})])
    rules = [
        {**rule, "resources": [name for name in rule["resources"] if name != "secrets"]} for rule in role_in_the_docs()
    ]
    kubeconfig = classes.kubeconfig_for(f"reader-{namespace}", [rule for rule in rules if rule["resources"]])
    answer = audit(kubeconfig=str(kubeconfig))
    assert answer.code == 1
    assert "list secrets" in answer.message
    assert "secrets: nothing" in answer.message
    assert found(audit(kubeconfig=str(kubeconfig), secrets="nothing")) == {}


@pytest.mark.parametrize("fault", ["429", "500", "break", "half"])
def test_an_api_that_answers_badly_now_and_then(
    classes: ApiServer, fault_proxy: FaultProxy, namespace: str, audit: Audit, fault: str
) -> None:
    make(classes, [service(namespace), ingress(namespace, limit_rps="5")])
    well = audit()
    fault_proxy.misbehave = lambda number, _method, _path: fault if number % 3 == 1 else None
    badly = audit(kubeconfig=str(fault_proxy.kubeconfig))
    assert fault_proxy.faults > 1
    assert badly.result["findings"] == well.result["findings"]
    assert fault_proxy.writes() == []


# --- The way users go -------------------------------------------------------------------------------------------------


def test_the_playbook_audits_any_cluster(classes: ApiServer, namespace: str, tmp_path: Path) -> None:
    make(classes, [service(namespace), ingress(namespace, limit_rps="5")])
    variables = {
        "ansible_connection": "local",
        "ingress_audit_kubeconfig": str(classes.kubeconfig),
        "ingress_audit_cluster_name": "staging",
        "ingress_audit_report_html": str(tmp_path / "ingresses.html"),
    }
    program = str(Path(sys.executable).parent / "ansible-playbook")
    command = [program, "-i", "localhost,", "playbooks/audit-ingress.yml", "-e", json.dumps(variables)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "annotation-differs: 1" in done.stdout.replace('"', "")
    assert "changed=0" in done.stdout
    assert "<h1>staging</h1>" in (tmp_path / "ingresses.html").read_text()
