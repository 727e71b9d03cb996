"""What the Helm chart creates is valid for Kubernetes, for each set of values."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from app import __version__
from tests.deploy.chart import CHART, IMAGE, ROOT, SETS, Chart, container, environment_of, pod
from tests.deploy.kubernetes import VALIDATE, tools

pytestmark = pytest.mark.timeout(600)  # the first test may install Helm and the schemas

OLDEST, NEWEST = "1.27.0", "1.37.0"
EVERYTHING = ("gpu", "hub", "secured", "monitored", "keda")
RENDERED = [(), EVERYTHING, *((name,) for name in SETS)]
NAMES = ["defaults", "everything", *SETS]
DIGEST = f"sha256:{'0' * 64}"


def validate(things: list[tuple[str, Any]]) -> list[str]:
    found = subprocess.run(
        [tools() / "bin" / "python", VALIDATE], input=json.dumps(things), capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.splitlines()


@pytest.mark.parametrize("sets", RENDERED, ids=NAMES)
def test_helm_finds_nothing_to_correct(chart: Chart, sets: tuple[str, ...]) -> None:
    found = chart.run("lint --strict", *sets)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "1 chart(s) linted, 0 chart(s) failed" in found.stdout


def test_objects_follow_the_schemas_of_the_oldest_and_of_the_newest_kubernetes(chart: Chart) -> None:
    things = [thing for sets in RENDERED for thing in chart.render(*sets).values()]
    things += chart.render(apiKeys__values=["one", "two"]).values()
    kinds = {thing["kind"] for thing in things}
    assert kinds >= {"ServiceMonitor", "PrometheusRule", "ScaledObject", "HorizontalPodAutoscaler", "Secret", "Ingress"}
    different = [json.loads(text) for text in {json.dumps(thing) for thing in things}]  # most sets share objects
    assert validate([(version, thing) for thing in different for version in (OLDEST, NEWEST)]) == []


def test_the_validation_finds_unknown_fields_and_wrong_types(chart: Chart) -> None:
    """Of objects of Kubernetes and of custom resources."""
    things = chart.render("monitored", "keda")
    things["Service"]["spec"]["portz"] = []
    things["ServiceMonitor"]["spec"]["endpoints"][0]["paths"] = "/metrics"
    things["PrometheusRule"]["spec"]["groups"][0]["rules"][0]["expr"] = None
    things["ScaledObject"]["spec"]["minReplicas"] = 1
    found = validate([(NEWEST, thing) for thing in things.values()])
    assert {line.split()[0] for line in found} == {"Service", "ServiceMonitor", "PrometheusRule", "ScaledObject"}


def test_chart_and_service_have_the_same_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == __version__


def test_a_packaged_chart_contains_the_alerts(chart: Chart, tmp_path: Path) -> None:
    """In the checkout they are a link."""
    subprocess.run([chart.helm, "package", CHART, "--destination", tmp_path], check=True, capture_output=True)
    [package] = tmp_path.glob("reranker-*.tgz")
    command = [chart.helm, "template", package, "--set", f"image.repository={IMAGE},prometheusRule.enabled=true"]
    assert "alert: RerankerNotReady" in subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("sets", RENDERED, ids=NAMES)
def test_pods_are_restricted(chart: Chart, sets: tuple[str, ...]) -> None:
    """As the Pod Security Standard `restricted` asks, with read-only files and without a token of the cluster."""
    things = chart.render(*sets)
    spec = pod(things)
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["runAsUser"] == int((ROOT / "Dockerfile").read_text().split("\nUSER ")[1].split()[0])
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not spec["automountServiceAccountToken"]
    assert not things["ServiceAccount"]["automountServiceAccountToken"]
    for part in [*spec["containers"], *spec.get("initContainers", [])]:
        assert part["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    writable = {mount["mountPath"] for mount in container(things)["volumeMounts"] if not mount.get("readOnly")}
    assert writable == {"/tmp", "/home/reranker/.cache"}
    assert "emptyDir" in volumes["tmp"]


@pytest.mark.parametrize(
    ("name", "service", "file"),
    [(None, "reranker", "docker-compose.yaml"), ("gpu", "reranker", "docker-compose.gpu.yaml")],
)
def test_pods_get_what_compose_gives(chart: Chart, name: str | None, service: str, file: str) -> None:
    compose = yaml.safe_load((ROOT / file).read_text())["services"][service]
    limits = container(chart.render(*filter(None, [name])))["resources"]["limits"]
    assert limits["cpu"] == str(compose["cpus"])
    assert limits["memory"] == compose["mem_limit"].upper() + "i"
    assert limits.get("nvidia.com/gpu") == (1 if name else None)


def test_an_image_is_named_by_its_tag_or_its_digest(chart: Chart) -> None:
    assert container(chart.render())["image"] == f"{IMAGE}:{__version__}"
    assert container(chart.render(image__tag="cuda"))["image"] == f"{IMAGE}:cuda"
    assert container(chart.render(image__tag="cuda", image__digest=DIGEST))["image"] == f"{IMAGE}@{DIGEST}"


def test_the_notes_say_how_to_try_the_release_and_who_is_admitted(chart: Chart) -> None:
    def notes(*sets: str) -> str:
        found = chart.run("install reranker --namespace prod --dry-run=client", *sets)
        assert found.returncode == 0, found.stderr
        return found.stdout.partition("NOTES:\n")[2]

    things = chart.render()
    name, [port] = things["Service"]["metadata"]["name"], things["Service"]["spec"]["ports"]
    assert f"port-forward service/{name} 8000:{port['port']}\n" in notes()
    assert "Authentication is off" in notes()
    assert "Authentication is off" not in notes("secured")
    admitted = {
        sets: re.findall(r"networkPolicy\.(\w+)", notes(*sets)) for sets in ((), ("secured",), ("scale-to-zero",))
    }
    assert admitted == {
        (): ["from", "from"],
        ("secured",): ["from", "ingressFrom", "from"],
        ("scale-to-zero",): ["from", "metricsFrom", "scalerFrom", "from"],
    }
    assert "no pods by networkPolicy.from" in notes("secured")


def test_gpu_pods_do_not_start_without_a_gpu(chart: Chart) -> None:
    assert environment_of(container(chart.render("gpu")))["RERANKER_DEVICE"] == "cuda"


def test_pods_of_a_cache_for_one_node_run_on_one_node(chart: Chart) -> None:
    """A new pod on another node would wait for the volume without end."""
    things = chart.render("hub", cache__accessMode="ReadWriteOnce")
    assert things["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteOnce"]
    [term] = pod(things)["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == "kubernetes.io/hostname"
    assert term["labelSelector"] == things["Deployment"]["spec"]["selector"]
    assert "affinity" not in pod(chart.render("hub"))


def test_selectors_find_the_pods(chart: Chart) -> None:
    things = chart.render("monitored")
    labels = things["Deployment"]["spec"]["template"]["metadata"]["labels"]
    selectors = [
        things["Service"]["spec"]["selector"],
        things["Deployment"]["spec"]["selector"]["matchLabels"],
        things["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        things["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ]
    assert selectors == [labels] * len(selectors)
    assert things["ServiceMonitor"]["spec"]["selector"]["matchLabels"].items() <= (
        things["Service"]["metadata"]["labels"].items()
    )


def test_the_network_policy_admits_who_is_named_and_no_others(chart: Chart) -> None:
    def rules(*sets: str, **values: object) -> tuple[list[Any], set[int]]:
        spec = chart.render(*sets, **values)["NetworkPolicy"]["spec"]
        assert spec["policyTypes"] == ["Ingress", "Egress"]
        return (
            [peer for rule in spec["ingress"] for peer in rule["from"]],
            {port["port"] for rule in spec["egress"] for port in rule["ports"]},
        )

    namespace = {"podSelector": {}}
    controller, prometheus = (
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}
        for name in ("ingress-nginx", "monitoring")
    )
    assert rules() == ([namespace], {53})
    assert rules("hub") == ([namespace], {53, 443})
    assert rules("monitored") == ([namespace, prometheus], {53})
    assert rules("secured") == ([controller], {53})
    assert rules(networkPolicy__from=[]) == ([], {53})
    interceptor = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "keda"}}}
    assert rules("scale-to-zero") == ([namespace, prometheus, interceptor], {53})
    assert rules("scale-to-zero", networkPolicy__from=[]) == ([prometheus, interceptor], {53})
    assert interceptor not in rules("keda")[0]
    redis = {"ports": [{"port": 6379, "protocol": "TCP"}]}
    assert rules(networkPolicy__egress=[redis]) == ([namespace], {53, 6379})


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed (prometheus)")
def test_the_chart_brings_the_alerts_of_compose(chart: Chart, tmp_path: Path) -> None:
    alerts = yaml.safe_load((ROOT / "docker/monitoring/alerts.yml").read_text())
    assert chart.render("monitored")["PrometheusRule"]["spec"] == alerts
    zero = chart.render("scale-to-zero", prometheusRule__enabled=True)["PrometheusRule"]["spec"]
    for spec in (alerts, zero):
        (tmp_path / "rules.yml").write_text(yaml.safe_dump(spec))
        subprocess.run(["promtool", "check", "rules", tmp_path / "rules.yml"], check=True, capture_output=True)
    # Without pods `up` is absent, as it should be.
    [ready, *others] = alerts["groups"][0]["rules"]
    changed = ready | {"expr": ready["expr"].removesuffix(' or absent(up{job="reranker"})')}
    assert changed != ready
    assert zero["groups"][0]["rules"] == [changed, *others]
