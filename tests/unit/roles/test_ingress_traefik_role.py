# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the role makes of an instance: objects that say what docs/ingress.md says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from ansible_collections.plainkube.cluster.plugins.module_utils import ingress

ROLE = Path(__file__).resolve().parents[3] / "roles" / "ingress_traefik"
HOSTS = [{"name": name, "address": f"192.0.2.{number}", "zone": ""} for number, name in enumerate("ab", start=11)]


def rendered(
    *instances: dict[str, Any], default_class: str = "", inputs: dict[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
    """Return the objects of these instances by kind and name."""
    loader = DataLoader()
    parts = [
        loader.load_from_file(str(ROLE / part / "main.yml"), trusted_as_template=True) for part in ("defaults", "vars")
    ]
    variables = {
        **parts[0],
        **parts[1],
        "cluster_versions": {"traefik": "3.7.10", "gateway-api": "1.6.1"},
        "cluster_cipher_suites": ["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"],
        "ingress_traefik_instances": ingress.resolved("traefik", instances, default_class, HOSTS),
        **(inputs or {}),
    }
    text = trust_as_template((ROLE / "templates/objects/traefik.yml.j2").read_text(encoding="utf-8"))
    templar = Templar(loader=loader, variables=variables)
    documents = yaml.safe_load_all(templar.template(text, escape_backslashes=False, overrides={"trim_blocks": True}))
    return {f"{item['kind']} {item['metadata']['name']}": item for item in documents}


def configuration(objects: dict[str, dict[str, Any]], name: str = "traefik") -> dict[str, Any]:
    static: dict[str, Any] = yaml.safe_load(objects[f"ConfigMap {name}"]["data"]["traefik.yml"])
    return static


def test_the_sentinel_is_where_the_checks_ask_for_it() -> None:
    [rule] = rendered()["Ingress traefik-ready"]["spec"]["rules"]
    assert rule["host"] == ingress.SENTINEL_HOST
    assert rule["http"]["paths"][0]["path"] == ingress.SENTINEL_PATH


@pytest.mark.parametrize(
    ("inputs", "seconds"),
    [
        ({}, "7s"),
        ({"ingress_traefik_accept_seconds": 30}, "15s"),
        ({"ingress_traefik_keep_alive_seconds": 8}, "8s"),
        ({"ingress_traefik_keep_alive_seconds": 0}, None),
        # Nothing is announced where there is no time to announce it in.
        ({"ingress_traefik_accept_seconds": 0}, None),
    ],
)
def test_busy_connections_are_told_to_end_before_their_pod_closes_them(
    inputs: dict[str, Any], seconds: str | None
) -> None:
    points = configuration(rendered(inputs=inputs))["entryPoints"]
    assert {points[name]["transport"].get("keepAliveMaxTime") for name in ("web", "websecure")} == {seconds}


def test_the_pod_has_all_the_time_that_its_connections_may_take() -> None:
    objects = rendered()
    points = configuration(objects)["entryPoints"]
    for name in ("web", "websecure"):
        cycle = points[name]["transport"]["lifeCycle"]
        assert cycle == {"requestAcceptGraceTimeout": "15s", "graceTimeOut": "300s"}
    # The ping must say that the host is to be left for as long as requests are taken.
    assert points["ping"]["transport"]["lifeCycle"]["requestAcceptGraceTimeout"] == "15s"
    pod = objects["DaemonSet traefik"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 15 + 300 + 15


@pytest.mark.parametrize(("hosts", "floor"), [(["a", "b"], 1), (["a"], 0)])
def test_all_hosts_but_one_are_kept_from_being_disturbed(hosts: list[str], floor: int) -> None:
    objects = rendered({"name": "traefik", "hosts": hosts})
    assert objects["PodDisruptionBudget traefik"]["spec"]["minAvailable"] == floor
    assert ("affinity" in objects["DaemonSet traefik"]["spec"]["template"]["spec"]) == (len(hosts) < len(HOSTS))


def test_what_is_read_at_the_start_rolls_out_and_a_certificate_does_not() -> None:
    def pod(**instance: Any) -> Any:
        return rendered({"name": "traefik", **instance})["DaemonSet traefik"]["spec"]["template"]

    files = {"certificate": "/c.pem", "certificate_key": "/k.pem"}
    assert pod() == pod(**files)
    assert pod() != pod(proxy_protocol=["192.0.2.1"])


def test_an_instance_for_some_namespaces_may_read_no_others() -> None:
    objects = rendered({"name": "inside", "namespaces": ["stock"], "http_port": 8080})
    assert configuration(objects, "inside")["providers"]["kubernetesIngress"]["namespaces"] == [
        "stock",
        "plainkube-ingress",
    ]
    assert "ClusterRoleBinding plainkube:ingress-traefik:inside:every-namespace" not in objects
    assert configuration(objects, "inside")["entryPoints"]["web"]["address"] == ":8080"
    assert "ClusterRoleBinding plainkube:ingress-traefik:traefik:every-namespace" in rendered()


def test_without_a_gateway_there_is_no_provider_for_it() -> None:
    objects = rendered({"name": "traefik", "gateway": False})
    assert not [name for name in objects if name.startswith("Gateway")]
    assert "kubernetesGateway" not in configuration(objects)["providers"]


def test_one_class_is_the_default() -> None:
    both = [{"name": "one"}, {"name": "two", "http_port": 81, "https_port": 82, "ping_port": 83}]
    objects = rendered(*both, default_class="two")
    notes = {name: objects[f"IngressClass {name}"]["metadata"]["annotations"] for name in ("one", "two")}
    assert {name: note["ingressclass.kubernetes.io/is-default-class"] for name, note in notes.items()} == {
        "one": "false",
        "two": "true",
    }
