"""The manifests, put together as `kubectl apply -k` does, against Kubernetes' schemas and each other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from tdb_server.service.http.probes import ALIVE, READY

from tests.deploy.budgets import GIB, MARGIN, host_bytes, size
from tests.deploy.known_variables import settings_of

DEPLOY = Path(__file__).parents[2] / "deploy"
VERSIONS = ("1.34", "1.35", "1.36", "1.37")
Manifest = dict[str, Any]


@pytest.fixture(scope="module")
def manifests() -> list[Manifest]:
    kubectl = str(Path(sys.executable).with_name("kubectl"))
    built = subprocess.run([kubectl, "kustomize", str(DEPLOY)], capture_output=True, text=True, check=True)
    assert built.stderr == ""
    return list(yaml.safe_load_all(built.stdout))


def of_kind(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    return {one["metadata"]["name"]: one for one in manifests if one["kind"] == kind}


def pod_of(deployment: Manifest) -> Manifest:
    pod: Manifest = deployment["spec"]["template"]["spec"]
    return pod


def container_of(deployment: Manifest) -> Manifest:
    (container,) = pod_of(deployment)["containers"]
    return dict(container)


@pytest.mark.parametrize("version", VERSIONS)
def test_schemas(manifests: list[Manifest], version: str) -> None:
    for one in manifests:
        kubernetes_validate.validate(one, version, strict=True)
    assert len(manifests) == 12


def test_a_mistake_would_be_found(manifests: list[Manifest]) -> None:
    broken = next(one for one in manifests if one["kind"] == "Deployment") | {"specification": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSIONS[-1], strict=True)


def test_names_fit_together(manifests: list[Manifest]) -> None:
    deployments = of_kind(manifests, "Deployment")
    labels = {name: one["spec"]["template"]["metadata"]["labels"] for name, one in deployments.items()}
    ports = {name: {port["name"] for port in container_of(one)["ports"]} for name, one in deployments.items()}
    selected = {
        "tdb-fronts": of_kind(manifests, "Service")["tdb-fronts"],
        "tdb-envoy": of_kind(manifests, "Service")["tdb"],
    }
    for name, service in selected.items():
        assert service["spec"]["selector"] == labels[name]
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports[name]
    for name, budget in of_kind(manifests, "PodDisruptionBudget").items():
        assert budget["spec"]["selector"]["matchLabels"] == labels[name]
    for name in deployments:
        policy = of_kind(manifests, "NetworkPolicy")[name]["spec"]
        assert policy["podSelector"]["matchLabels"] == labels[name]
        for rule in policy["ingress"]:
            assert {port["port"] for port in rule["ports"]} <= ports[name]
    scaled = of_kind(manifests, "HorizontalPodAutoscaler")["tdb-fronts"]["spec"]
    assert scaled["scaleTargetRef"]["name"] in deployments
    assert "replicas" not in deployments["tdb-fronts"]["spec"], "the autoscaler decides"
    adapter = yaml.safe_load((DEPLOY / "kubernetes" / "prometheus-adapter.yaml").read_text())
    (rule,) = adapter["rules"]["custom"]
    assert scaled["metrics"][0]["pods"]["metric"]["name"] == rule["name"]["as"] == "tdb_queue_length"


def test_envoy_gets_the_tested_configuration(manifests: list[Manifest]) -> None:
    envoy = of_kind(manifests, "Deployment")["tdb-envoy"]
    (configuration,) = of_kind(manifests, "ConfigMap").values()
    assert configuration["data"]["envoy.yaml"] == (DEPLOY / "envoy" / "envoy.yaml").read_text()
    volumes = {one["name"]: one for one in pod_of(envoy)["volumes"]}
    assert volumes["configuration"]["configMap"]["name"] == configuration["metadata"]["name"]
    parsed = yaml.safe_load(configuration["data"]["envoy.yaml"])["static_resources"]
    listened = {one["address"]["socket_address"]["port_value"] for one in parsed["listeners"]}
    assert listened == {port["containerPort"] for port in container_of(envoy)["ports"]}
    service = of_kind(manifests, "Service")["tdb-fronts"]
    service_ports = {port["port"] for port in service["spec"]["ports"]}
    for cluster in parsed["clusters"]:
        (locality,) = cluster["load_assignment"]["endpoints"]
        address = locality["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]
        assert address["address"] == service["metadata"]["name"]
        assert address["port_value"] in service_ports


def test_fronts_are_told_what_they_understand(manifests: list[Manifest]) -> None:
    front = of_kind(manifests, "Deployment")["tdb-fronts"]
    container = container_of(front)
    settings = settings_of({one["name"]: one["value"] for one in container["env"]})
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert (settings.port, settings.http_port) == (ports["grpc"], ports["json"])
    assert settings.telemetry.metrics_port == ports["metrics"]
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod_of(front)["terminationGracePeriodSeconds"] > settings.grace_seconds + pause
    probes = {"startupProbe": READY, "readinessProbe": READY, "livenessProbe": ALIVE}
    for probe, path in probes.items():
        assert container[probe]["httpGet"] == {"port": "metrics", "path": path}
    mounts = {one["mountPath"] for one in container["volumeMounts"]}
    assert settings.model in mounts
    assert str(settings.security.token_file).rpartition("/")[0] in mounts
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_nothing_runs_as_root(manifests: list[Manifest]) -> None:
    """As the namespace demands, which turns away all else."""
    for deployment in of_kind(manifests, "Deployment").values():
        pod, container = pod_of(deployment), container_of(deployment)
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}
        assert pod["automountServiceAccountToken"] is False


def test_all_that_can_be_written_is_bounded(manifests: list[Manifest]) -> None:
    for deployment in of_kind(manifests, "Deployment").values():
        pod, container = pod_of(deployment), container_of(deployment)
        read_only = {one["name"] for one in container["volumeMounts"] if one.get("readOnly")}
        limits, on_disk = container["resources"]["limits"], 0
        for volume in pod["volumes"]:
            if volume["name"] in read_only:
                continue
            folder = volume["emptyDir"]
            if folder.get("medium") != "Memory":
                on_disk += size(folder["sizeLimit"])
        assert on_disk < size(limits["ephemeral-storage"]), "there are logs, too"
        assert size(limits["memory"])


def test_limits_leave_room_for_the_budgets(manifests: list[Manifest]) -> None:
    front = of_kind(manifests, "Deployment")["tdb-fronts"]
    container = container_of(front)
    environment = {one["name"]: one["value"] for one in container["env"]}
    settings = settings_of(environment)
    folders = {one["name"]: one["emptyDir"] for one in pod_of(front)["volumes"] if "emptyDir" in one}
    mounts = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
    spool = folders[mounts[environment["TMPDIR"]]]
    assert spool["medium"] == "Memory", "kubelet does not see files that have no names"
    spool_bytes = size(spool["sizeLimit"])
    assert spool_bytes >= MARGIN * settings.limits.max_spool_bytes
    memory = size(container["resources"]["limits"]["memory"])
    assert memory >= host_bytes(settings, spool_bytes, computes_here=False) + GIB
    assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]
    assert mounts[environment["HOME"]] in folders
