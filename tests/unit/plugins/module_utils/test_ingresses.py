# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Each check of Ingresses finds its case and leaves what looks alike alone; the list of annotations is sound."""

from __future__ import annotations

import base64
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import yaml
from ansible_collections.plainkube.cluster.plugins.module_utils import ingresses
from ansible_collections.plainkube.cluster.plugins.module_utils.audits import SEVERITIES
from ansible_collections.plainkube.cluster.plugins.module_utils.ingresses import Certificate, Found
from ansible_collections.plainkube.cluster.plugins.module_utils.ingresses_io import certificate_in
from audit_examples import ROOT

NOW = datetime(2026, 6, 15, 12, tzinfo=timezone.utc)
ANNOTATIONS = yaml.safe_load((ROOT / "data" / "ingress-annotations.yml").read_text(encoding="utf-8"))
RULES = ingresses.rules_of(yaml.safe_load((ROOT / "data" / "ingress-rules.yml").read_text(encoding="utf-8"))["rules"])
CLASSES = {
    "nginx": "k8s.io/ingress-nginx",
    "internal": "k8s.io/internal-ingress-nginx",
    "f5": "nginx.org/ingress-controller",
    "traefik": "traefik.io/ingress-controller",
    "cloud": "example.org/balancer",
}
Object = dict[str, Any]


def ingress(
    name: str = "shop",
    *,
    namespace: str = "team",
    ingress_class: str | None = "nginx",
    nginx: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
    host: str = "shop.example.org",
    path: str = "/",
    path_type: str = "Prefix",
    service: str = "web",
    port: Object | None = None,
    tls: list[Object] | None = None,
) -> Object:
    given = {ingresses.NGINX + key: value for key, value in (nginx or {}).items()} | (annotations or {})
    backend = {"service": {"name": service, "port": {"number": 80} if port is None else port}}
    spec: Object = {
        "rules": [{"host": host, "http": {"paths": [{"path": path, "pathType": path_type, "backend": backend}]}}]
    }
    if ingress_class:
        spec["ingressClassName"] = ingress_class
    if tls:
        spec["tls"] = tls
    return {"metadata": {"name": name, "namespace": namespace, "annotations": given}, "spec": spec}


def found(*things: Object, **options: Any) -> Found:
    classes = {
        name: {"metadata": {"name": name, "annotations": {}}, "spec": {"controller": controller}}
        for name, controller in CLASSES.items()
    }
    services = {("team", "web"): {"external": False, "ports": [80, "http"]}}
    return Found(**{"ingresses": list(things), "classes": classes, "services": services, **options})


def parts_of(rule: str, cluster: Found, name: str = "shop", **options: Any) -> list[str]:
    """Return what a rule finds in one object."""
    audit, _rows = ingresses.look(ingresses.circumstances(cluster, ANNOTATIONS, NOW, **options), RULES)
    return next((item.parts for item in audit.findings if item.rule == rule and item.name == name), [])


def rules_found(cluster: Found, **options: Any) -> set[str]:
    audit, _rows = ingresses.look(ingresses.circumstances(cluster, ANNOTATIONS, NOW, **options), RULES)
    return {item.rule for item in audit.findings}


# --- The data ---------------------------------------------------------------------------------------------------------


def test_every_rule_is_looked_for_and_every_check_has_a_rule() -> None:
    of_the_whole = {"class-defaults", "ingress-nginx-runs"}
    assert set(RULES) == set(ingresses.CHECKS) | of_the_whole
    assert {rule.severity for rule in RULES.values()} <= set(SEVERITIES)
    assert all(rule.why and rule.fix and rule.title for rule in RULES.values())


@pytest.mark.parametrize("name", ANNOTATIONS["nginx"])
def test_an_annotation_says_all_that_its_kind_needs(name: str) -> None:
    row = ANNOTATIONS["nginx"][name]
    assert set(row) <= {"traefik", "only", "protects", "source", "differs", "instead"}
    assert row["source"] in ANNOTATIONS["sources"]
    assert row["traefik"] in ("honoured", "partly", "ignored", "snippet")
    assert ("differs" in row) == (row["traefik"] == "partly")
    assert ("instead" in row) == (row["traefik"] == "ignored" or "only" in row)
    assert all(isinstance(value, str) and value == value.lower() for value in row.get("only", []))


def test_an_ingress_in_order_is_ready() -> None:
    cluster = found(ingress(nginx={"proxy-read-timeout": "90"}))
    audit, (row,) = ingresses.look(ingresses.circumstances(cluster, ANNOTATIONS, NOW), RULES)
    assert audit.findings == []
    assert (row["verdict"], row["controller"], row["annotations"]) == (
        "ready",
        "ingress-nginx",
        {"honoured": ["proxy-read-timeout"]},
    )


# --- Who serves it ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "old", "controller"),
    [
        ("nginx", None, "ingress-nginx"),
        ("internal", None, "ingress-nginx"),
        ("f5", None, "f5-nginx"),
        ("traefik", "nginx", "traefik"),
        ("cloud", None, "example.org/balancer"),
        (None, "internal", "ingress-nginx"),
        ("ngnix", None, ""),
        (None, None, ""),
    ],
)
def test_the_controller_follows_from_the_class(spec: str | None, old: str | None, controller: str) -> None:
    thing = ingress(ingress_class=spec, annotations={ingresses.CLASS_ANNOTATION: old} if old else {})
    assert ingresses.ingress_of(thing, found().classes).controller == controller


def test_a_class_that_does_not_exist() -> None:
    (part,) = parts_of("class-unknown", found(ingress(ingress_class="ngnix")))
    assert part == "ngnix (there is cloud, f5, internal, nginx, traefik)"
    # ingress-nginx took this one without any IngressClass.
    old = ingress(ingress_class=None, annotations={ingresses.CLASS_ANNOTATION: "nginx"})
    assert "class-unknown" not in rules_found(found(old, classes={}))


def test_no_class_at_all() -> None:
    cluster = found(ingress(ingress_class=None))
    assert parts_of("class-missing", cluster) == ["there is no default class either"]
    cluster.classes["nginx"]["metadata"]["annotations"][ingresses.DEFAULT_CLASS_ANNOTATION] = "true"
    assert parts_of("class-missing", cluster) == ["new ones get nginx by default"]
    assert "class-defaults" not in rules_found(cluster)


def test_two_default_classes() -> None:
    cluster = found(ingress())
    for name in ("nginx", "traefik"):
        cluster.classes[name]["metadata"]["annotations"][ingresses.DEFAULT_CLASS_ANNOTATION] = "true"
    assert parts_of("class-defaults", cluster, "nginx") == ["beside traefik"]
    assert parts_of("class-defaults", cluster, "f5") == []


def test_the_old_annotation_and_one_that_contradicts() -> None:
    old = {ingresses.CLASS_ANNOTATION: "nginx"}
    assert parts_of("class-annotation", found(ingress(ingress_class=None, annotations=old))) == ["nginx"]
    assert parts_of("class-annotation", found(ingress(ingress_class="traefik", annotations=old))) == [
        "nginx, while spec.ingressClassName is traefik"
    ]


# --- What it leads to -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("service", "port", "parts"),
    [
        ("web", {"number": 80}, []),
        ("web", {"name": "http"}, []),
        ("web", {"number": 8080}, ["port 8080 of Service web (it has 80, http)"]),
        ("web", {"name": "https"}, ["port https of Service web (it has 80, http)"]),
        ("gone", {"number": 80}, ["Service gone"]),
        ("elsewhere", {"number": 8443}, []),
    ],
)
def test_services_and_ports(service: str, port: Object, parts: list[str]) -> None:
    cluster = found(ingress(service=service, port=port))
    cluster.services["team", "elsewhere"] = {"external": True, "ports": []}
    assert parts_of("service-missing", cluster) == parts


def test_the_default_backend_counts_too() -> None:
    thing = ingress()
    thing["spec"] = {
        "defaultBackend": {"service": {"name": "gone", "port": {"number": 1}}},
        "ingressClassName": "nginx",
    }
    assert parts_of("service-missing", found(thing)) == ["Service gone"]


def test_secrets_are_missing_only_where_somebody_looked() -> None:
    thing = ingress(tls=[{"hosts": ["shop.example.org"], "secretName": "tls"}, {"hosts": ["other.example.org"]}])
    assert parts_of("secret-missing", found(thing)) == []
    assert parts_of("secret-missing", found(thing, secrets=set())) == ["tls"]
    assert parts_of("secret-missing", found(thing, secrets={("team", "tls")})) == []


@pytest.mark.parametrize(
    ("held", "rules"),
    [
        (Certificate(("shop.example.org",), NOW + timedelta(days=90)), set()),
        (Certificate(("*.example.org",), NOW + timedelta(days=90)), set()),
        (Certificate(("example.org", "*.shop.example.org"), NOW + timedelta(days=90)), {"certificate-for-other-hosts"}),
        (Certificate((), NOW + timedelta(days=90)), {"certificate-for-other-hosts"}),
        (Certificate(("SHOP.example.org",), NOW + timedelta(days=20)), {"certificate-expires"}),
        (Certificate(("shop.example.org",), NOW), {"certificate-expired"}),
        (Certificate(fault="it has no tls.key"), {"certificate-not-valid"}),
    ],
)
def test_certificates(held: Certificate, rules: set[str]) -> None:
    thing = ingress(tls=[{"hosts": ["shop.example.org"], "secretName": "tls"}])
    key = ("team", "tls")
    assert rules_found(found(thing, secrets={key}, certificates={key: held})) == rules


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ({}, "it has no tls.crt and no tls.key"),
        ({"tls.crt": "eA=="}, "it has no tls.key"),
        ({"tls.crt": "not base64!", "tls.key": "eA=="}, "tls.crt holds no certificate that can be read"),
        (
            {"tls.crt": base64.b64encode(b"-----BEGIN CERTIFICATE-----\neA==\n").decode(), "tls.key": "eA=="},
            "tls.crt holds no certificate that can be read",
        ),
    ],
)
def test_secrets_without_a_certificate(data: dict[str, str], fault: str) -> None:
    assert certificate_in(data).fault == fault


def test_two_ingresses_with_the_same_place() -> None:
    cluster = found(ingress("shop"), ingress("copy", namespace="other"), ingress("deep", path="/deep"))
    assert parts_of("host-and-path-twice", cluster) == ["shop.example.org/: also other/copy"]
    assert parts_of("host-and-path-twice", cluster, "copy") == ["shop.example.org/: also team/shop"]
    assert parts_of("host-and-path-twice", cluster, "deep") == []


def test_a_canary_and_another_controller_may_have_the_same_place() -> None:
    canary = ingress("canary", nginx={"canary": "true", "canary-weight": "10"})
    assert rules_found(found(ingress(), canary, ingress("new", ingress_class="traefik"))) == set()


# --- What Traefik makes of it -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("denylist-source-range", "192.0.2.0/24", "protection-lost"),
        ("proxy-body-size", "8m", "protection-lost"),
        ("mirror-target", "https://192.0.2.1/", "annotation-ignored"),
        ("limit-rps", "5", "annotation-differs"),
        ("rewrite-targte", "/", "annotation-unknown"),
        ("backend-protocol", "FCGI", "annotation-ignored"),
        ("load-balance", "ewma", "annotation-ignored"),
    ],
)
def test_annotations_by_what_becomes_of_them(name: str, value: str, rule: str) -> None:
    assert rules_found(found(ingress(nginx={name: value}))) == {rule}


@pytest.mark.parametrize(
    ("name", "value"),
    [("backend-protocol", "HTTPS"), ("load-balance", "round_robin"), ("cors-max-age", "1"), ("affinity", "cookie")],
)
def test_annotations_that_are_honoured(name: str, value: str) -> None:
    assert rules_found(found(ingress(nginx={name: value}))) == set()


def test_annotations_of_another_controller() -> None:
    mixed = {"nginx.org/use-cluster-ip": "true", ingresses.TRAEFIK + "router.entrypoints": "web"}

    def foreign(ingress_class: str) -> list[str]:
        thing = ingress(ingress_class=ingress_class, annotations=mixed, nginx={"use-regex": "true"})
        return parts_of("annotation-of-another-controller", found(thing))

    f5, traefik, nginx = "nginx.org/use-cluster-ip", ingresses.TRAEFIK + "router.entrypoints", "use-regex"
    assert foreign("nginx") == [f5, traefik]
    assert foreign("traefik") == [ingresses.NGINX + nginx, f5]
    assert foreign("f5") == [ingresses.NGINX + nginx, traefik]
    assert foreign("cloud") == []


def test_traefik_s_own_annotations_by_name() -> None:
    known = ["router.tls", "router.tls.options", "router.tls.domains.0.main", "router.observability.tracing"]
    unknown = ["rule-type", "router.entrypoint", "service.sticky.cookie"]
    thing = ingress(ingress_class="traefik", annotations={ingresses.TRAEFIK + name: "x" for name in known + unknown})
    assert parts_of("annotation-unknown", found(thing)) == sorted(ingresses.TRAEFIK + name for name in unknown)


def test_snippets_and_the_directives_in_them() -> None:
    text = """
      # proxy_pass somewhere;
      more_set_headers "X-Frame-Options: DENY";
      if ($host = x) { return 403; }
      lua_need_request_body on; location /a { deny all; }
    """
    cluster = found(ingress(nginx={"configuration-snippet": text}))
    assert parts_of("snippet", cluster) == ["configuration-snippet (Traefik does not know lua_need_request_body)"]
    assert parts_of("left-out", cluster) == ["configuration-snippet: the provider does not allow snippets"]
    assert parts_of("left-out", cluster, allow_snippets=True) == []


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"path": "/a(/|$)(.*)"}, "path /a(/|$)(.*): no regular expression with pathType Prefix"),
        ({"nginx": {"auth-type": "digets", "auth-secret": "there"}}, "auth-type digets: wanted basic or digest"),
        ({"nginx": {"auth-type": "basic"}}, "auth-secret '': wanted the name of a secret"),
        ({"nginx": {"auth-type": "basic", "auth-secret": "users"}}, "auth-secret users: there is no such secret"),
        (
            {"nginx": {"auth-type": "basic", "auth-secret": "other/users"}},
            "the provider does not allow secrets of other",
        ),
        ({"nginx": {"auth-tls-secret": "ca"}}, "auth-tls-secret 'ca': wanted namespace/name"),
        (
            {"nginx": {"backend-protocol": "HTTPS", "proxy-ssl-secret": "team/ca"}},
            "proxy-ssl-secret team/ca: there is no such secret",
        ),
        ({"nginx": {"canary": "true"}, "host": "new.example.org"}, "a canary of no other Ingress in its namespace"),
    ],
)
def test_what_the_provider_leaves_out(options: Object, part: str) -> None:
    (said,) = parts_of("left-out", found(ingress("main"), ingress(**options), secrets={("team", "there")}))
    assert part in said


@pytest.mark.parametrize(
    "options",
    [
        {"path": "/a(/|$)(.*)", "path_type": "ImplementationSpecific"},
        {"nginx": {"auth-type": "basic", "auth-secret": "users"}},
        {"nginx": {"proxy-ssl-secret": "team/gone"}},
        {"path": "/a(/|$)(.*)", "ingress_class": "cloud"},
    ],
)
def test_what_the_provider_does_not_leave_out(options: Object) -> None:
    assert parts_of("left-out", found(ingress(**options), secrets={("team", "users")})) == []


# --- The whole --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "version"),
    [
        ("registry.k8s.io/ingress-nginx/controller:v1.11.2@sha256:0123", "v1.11.2"),
        ("registry.example.org:5000/ingress-nginx/controller-chroot:v1.9.0", "v1.9.0"),
        ("quay.io/kubernetes-ingress-controller/nginx-ingress-controller:0.30.0", "0.30.0"),
        ("ingress-nginx/controller@sha256:0123", "unknown"),
        ("nginx/nginx-ingress:5.5.4", None),
        ("example.org/not-ingress-nginx/controllers:1", None),
    ],
)
def test_the_retired_controller_is_known_by_its_image(image: str, version: str | None) -> None:
    pod = {"containers": [{"name": "sidecar"}, {"name": "controller", "image": image}]}
    thing = {"metadata": {"namespace": "a", "name": "b"}, "spec": {"template": {"spec": pod}}}
    running = ingresses.controller_in("Deployment", thing)
    assert (running and running["version"]) == version


def test_rows_verdicts_and_namespaces() -> None:
    cluster = found(
        ingress("ready"),
        ingress("check", path="/check", nginx={"limit-rps": "1"}),
        ingress("change", path="/change", nginx={"mirror-target": "x"}),
        ingress("elsewhere", namespace="other"),
        controllers=[{"kind": "DaemonSet", "namespace": "ingress", "name": "controller", "version": "v1.11.2"}],
    )
    given = ingresses.circumstances(cluster, ANNOTATIONS, NOW)
    audit, rows = ingresses.look(given, RULES, ["te*"])
    verdicts = {row["name"]: row["verdict"] for row in rows}
    # The one elsewhere is not looked at, and has the same place as one that is.
    assert verdicts == {"change": "change", "check": "check", "ready": "change"}
    summary = ingresses.summary_of(rows, cluster.controllers)
    assert (summary["ingresses"], summary["ready"], summary["check"], summary["change"]) == (3, 0, 1, 2)
    assert summary["ingress_nginx"] == ["ingress/controller v1.11.2"]
    assert [item.severity for item in audit.findings] == ["high", "high", "medium", "low"]
