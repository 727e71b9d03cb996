"""The Helm chart passes to the service what it reads, in time and in the form that it takes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.api.paths import HEALTH_PATHS
from app.config import Settings
from app.config_keys import keys_in
from app.config_names import is_service_variable
from app.environment import environment_names
from tests.deploy.chart import CHART, SETS, Chart, container, environment_of, pod
from tests.hub import SHA, Hub, serve
from tests.models import make_model
from tools import chart as generated
from tools import docs

pytestmark = pytest.mark.timeout(600)

PATHS_OF_SECRETS = {"HF_TOKEN_PATH"}


def settings_of(things: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """What the service makes of its environment."""
    with monkeypatch.context() as patch:
        for name in list(os.environ):
            if name in environment_names():
                patch.delenv(name)
        for name, value in environment_of(container(things)).items():
            patch.setenv(name, value)
        return Settings()


@pytest.mark.parametrize("name", SETS)
def test_the_service_takes_the_environment(chart: Chart, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    things = chart.render(name)
    known = set(environment_names()) | set(docs.LIBRARY_VARIABLES) | PATHS_OF_SECRETS
    assert set(environment_of(container(things))) <= known
    assert settings_of(things, monkeypatch).shutdown_delay == 10


def test_numbers_and_booleans_arrive_as_they_are_written(chart: Chart, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "RERANKER_MAX_BODY_BYTES": 134217728,
        "RERANKER_FUSION_WEIGHT": 0.25,
        "RERANKER_DOCS": False,
        "RERANKER_MAX_QUEUE": "7",
        "RERANKER_OVERLOAD_STATUS": 503,
        "RERANKER_INSTRUCTION": 'find "facts": {all}',
    }
    settings = settings_of(chart.render(settings=values), monkeypatch)
    assert (settings.max_body_bytes, settings.fusion_weight, settings.docs) == (134217728, 0.25, False)
    assert (settings.max_queue, settings.overload_status) == (7, 503)
    assert settings.instruction == 'find "facts": {all}'


@pytest.mark.parametrize(
    "values",
    [
        {"RERANKER_MAX_PARALEL": 8},
        {"RERANKER_MAX_PARALLEL": 0},
        {"RERANKER_BACKEND": "tensorrt"},
        {"RERANKER_MAX_QUEUE": "many"},
        {"RERANKER_API_KEYS": "secret"},  # apiKeys
        {"HF_TOKEN": "secret"},  # model.tokenSecret
        {"RERANKER_PORT": 9000},  # the image sets it
    ],
)
def test_wrong_settings_are_refused_before_the_installation(chart: Chart, values: Any) -> None:
    assert all(name in chart.refusal(settings=values) for name in values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image__repository": ""}, "image.repository is empty: set it to the image that you built and pushed"),
        ({"model__source": "hub"}, "model.source=hub needs model.name"),
        ({"model__source": "volume"}, "model.source=volume needs model.existingClaim"),
        ({"model__source": "ftp"}, "source"),
        ({"apiKeys": {"values": ["a"], "existingSecret": "b"}}, "apiKeys.values and apiKeys.existingSecret are both"),
        (
            {"settings__RERANKER_PROTECT_METRICS": True, "serviceMonitor__enabled": True},
            "RERANKER_PROTECT_METRICS needs serviceMonitor.keySecret.name",
        ),
        (
            {"settings__RERANKER_PROTECT_METRICS": "Yes", "serviceMonitor__enabled": True},
            "RERANKER_PROTECT_METRICS needs serviceMonitor.keySecret.name",
        ),
        ({"autoscaling": {"mode": "cpu", "minReplicas": 9}}, "autoscaling.minReplicas (9) is larger than"),
        ({"autoscaling": {"mode": "cpu", "minReplicas": 0}}, "autoscaling.minReplicas=0 needs autoscaling.mode=keda"),
        ({"autoscaling__mode": "keda"}, "autoscaling.keda.prometheusAddress is empty"),
        (
            {"autoscaling": {"mode": "keda", "minReplicas": 0, "keda": {"prometheusAddress": "http://p"}}},
            "autoscaling.minReplicas=0 needs autoscaling.keda.triggers",
        ),
        (
            {"autoscaling": {"mode": "keda", "keda": {"pendingPairs": 0, "utilization": 0}}},
            "autoscaling.mode=keda needs a trigger",
        ),
    ],
)
def test_values_that_contradict_each_other_are_refused(chart: Chart, values: dict[str, Any], message: str) -> None:
    assert message in chart.refusal(**values)


def test_the_schema_knows_the_settings() -> None:
    text = generated.SCHEMA.read_text()
    assert text == docs.values_schema(text), "run scripts/docs"


def test_every_value_has_a_default_a_type_and_a_description() -> None:
    def check(schema: dict[str, Any], default: Any, path: str) -> None:
        assert schema["description"].endswith("."), path
        assert "type" in schema or "enum" in schema, path
        if "properties" in schema and path != ".settings":
            assert set(schema["properties"]) == set(default), path
            for name, part in schema["properties"].items():
                check(part, default[name], f"{path}.{name}")

    schema = json.loads(generated.SCHEMA.read_text())
    schema["properties"].pop("global")
    check(schema | {"description": "All."}, yaml.safe_load((CHART / "values.yaml").read_text()), "")


@pytest.mark.parametrize(
    ("settings", "seconds"),
    [
        ({}, 10 + 30 + 10),
        ({"RERANKER_SHUTDOWN_DELAY": 0}, 30 + 10),
        ({"RERANKER_SHUTDOWN_DELAY": "2.5", "RERANKER_SHUTDOWN_TIMEOUT": 120}, 3 + 120 + 10),
        ({"RERANKER_SHUTDOWN_TIMEOUT": 0}, 10 + 10),
    ],
)
def test_pods_have_time_to_finish_requests(
    chart: Chart, settings: dict[str, object], seconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    things = chart.render(settings=settings)
    assert pod(things)["terminationGracePeriodSeconds"] == seconds
    found = settings_of(things, monkeypatch)
    assert seconds >= found.shutdown_delay + found.shutdown_timeout + 10


def test_updates_never_lower_the_number_of_ready_pods(chart: Chart) -> None:
    spec = chart.render()["Deployment"]["spec"]
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert spec["replicas"] == 2
    assert "replicas" not in chart.render("hpa")["Deployment"]["spec"]  # an update would undo the scaling


def test_probes_ask_for_paths_of_the_service_and_wait_for_an_export(chart: Chart) -> None:
    things = chart.render(startupSeconds=3601)
    found = container(things)
    assert found["ports"] == [{"name": "http", "containerPort": Settings.model_fields["port"].default}]
    paths = {name: found[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert {probe["port"] for probe in paths.values()} == {"http"}
    assert {name: probe["path"] for name, probe in paths.items()} == {
        "startup": "/health/ready",
        "liveness": "/health/live",
        "readiness": "/health/ready",
    }
    assert {probe["path"] for probe in paths.values()} <= set(HEALTH_PATHS) | {"/health/live", "/health/ready"}
    startup = found["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 3601
    assert things["Deployment"]["spec"]["progressDeadlineSeconds"] > 3601


def test_the_variables_of_the_service_are_not_settings(chart: Chart) -> None:
    """Kubernetes makes variables of each Service, for all containers of its namespace."""
    things = chart.render()
    prefix = things["Service"]["metadata"]["name"].upper().replace("-", "_")
    made = {f"{prefix}_SERVICE_HOST", f"{prefix}_SERVICE_PORT", f"{prefix}_PORT", f"{prefix}_SERVICE_PORT_HTTP"}
    assert all(is_service_variable(name, "tcp://10.0.0.1:80") for name in made)
    assert made.isdisjoint(environment_names())
    assert pod(things)["enableServiceLinks"] is False


def test_the_service_reads_the_keys_of_the_secret(chart: Chart, tmp_path: Path) -> None:
    things = chart.render(apiKeys__values=["first", "second"])
    environment, volumes = environment_of(container(things)), {v["name"]: v for v in pod(things)["volumes"]}
    [mount] = [mount for mount in container(things)["volumeMounts"] if mount["name"] == "keys"]
    assert volumes["keys"]["secret"]["secretName"] == things["Secret"]["metadata"]["name"]
    # Kubernetes writes each key of the Secret to a file of that name.
    folder, _, name = environment["RERANKER_API_KEYS_FILE"].rpartition("/")
    assert folder == mount["mountPath"]
    (tmp_path / name).write_text(things["Secret"]["stringData"][name])
    assert keys_in(tmp_path / name, "RERANKER_API_KEYS_FILE") == ["first", "second"]


def test_other_keys_replace_the_pods(chart: Chart) -> None:
    templates = [chart.render(apiKeys__values=[key])["Deployment"]["spec"]["template"] for key in ("a", "a", "b")]
    assert templates[0] == templates[1] != templates[2]


def test_the_path_of_the_ingress_is_the_prefix_of_the_service(chart: Chart, monkeypatch: pytest.MonkeyPatch) -> None:
    things = chart.render("secured", ingress__path="/reranker/")
    assert things["Ingress"]["spec"]["rules"][0]["http"]["paths"][0]["path"] == "/reranker/"
    assert settings_of(things, monkeypatch).root_path == "/reranker"
    own = chart.render("secured", ingress__path="/a", settings={"RERANKER_ROOT_PATH": "/b"})
    assert settings_of(own, monkeypatch).root_path == "/b"


@pytest.mark.parametrize(
    ("sets", "values", "model"),
    [
        ((), {}, "embedded"),
        ((), {"model__name": "embedded:multilingual"}, "embedded:multilingual"),
        (("image",), {}, None),  # docker/entrypoint.sh finds it
        (("hub",), {}, "BAAI/bge-reranker-base"),
        (("volume",), {}, "/models/bge-reranker-base"),
        (("volume",), {"model__path": ""}, "/models"),
    ],
)
def test_the_model(chart: Chart, sets: Any, values: Any, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    things = chart.render(*sets, **values)
    assert settings_of(things, monkeypatch).model == model
    if model and model.startswith("/models"):
        [mount] = [mount for mount in container(things)["volumeMounts"] if mount["name"] == "model"]
        assert (mount["mountPath"], mount["readOnly"]) == ("/models", True)


def test_a_download_goes_through_the_proxy_and_trusts_the_certificates_of_the_service(chart: Chart) -> None:
    """And reaches the Hub even if the service never does."""
    network = {name for name in docs.LIBRARY_VARIABLES if name.startswith(("HF_", "SSL_")) or name.endswith("_PROXY")}
    network -= {"HF_TOKEN", "HF_HUB_OFFLINE"}
    settings = dict.fromkeys([*network, "https_proxy", "all_proxy", "no_proxy"], "value") | {"HF_HUB_OFFLINE": 1}
    things = chart.render("download", settings=settings)
    [init] = pod(things)["initContainers"]
    assert set(environment_of(init)) == {*settings, "MODEL", "REVISION", "HF_TOKEN_PATH"} - {"HF_HUB_OFFLINE"}
    assert environment_of(container(things))["HF_HUB_OFFLINE"] == "1"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with serve(make_model(tmp_path / "tiny", "bert")) as hub:
        yield hub


def test_a_downloaded_model_is_served_without_the_hub(chart: Chart, hub: Hub, tmp_path: Path) -> None:
    """The init container has the token; the service has neither the token nor a need for the Hub."""
    things = chart.render("download", model__name="owner/tiny")
    [init], main = pod(things)["initContainers"], container(things)
    assert "hub" in {mount["name"] for mount in init["volumeMounts"]}
    assert "hub" not in {mount["name"] for mount in main["volumeMounts"]}
    secret = tmp_path / "token"
    secret.write_text("hf_of_the_test")
    home = {"HF_HOME": str(tmp_path / "hf"), "PATH": os.environ["PATH"]}
    run(init["args"], environment_of(init) | home | {"HF_ENDPOINT": hub.url, "HF_TOKEN_PATH": str(secret)})
    assert hub.tokens == {"hf_of_the_test"}
    hub.asked.clear()
    load = (
        "from app.config import Settings; from app.engines.load import load_engine;"
        "engine = load_engine(Settings(backend='torch')); print(engine.info.model)"
    )
    store = {"RERANKER_EXPORT_DIR": str(tmp_path / "store"), "HF_ENDPOINT": hub.url}
    assert run(["python", "-c", load], environment_of(main) | home | store) == "owner/tiny\n"
    assert not hub.asked
    assert (tmp_path / "hf/hub/models--owner--tiny/snapshots" / SHA).is_dir()


def run(arguments: list[str], environment: dict[str, str]) -> str:
    """A command of a container, with the project's interpreter."""
    program = {"python": sys.executable}
    command = [program.get(arguments[0], arguments[0]), *arguments[1:]]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return found.stdout
