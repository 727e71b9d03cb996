"""Compose files, Dockerfiles and entry points agree with `Settings`."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.config import Settings
from app.environment import environment_names

ROOT = Path(__file__).parent.parent
DOCKERFILES = ["Dockerfile", "Dockerfile.cuda"]
# Set by the image: the address to listen on, and the folder of the volume.
OF_THE_IMAGE = {"RERANKER_HOST", "RERANKER_PORT", "RERANKER_EXPORT_DIR"}
MIRRORS_AND_PROXIES = {
    "HF_ENDPOINT",
    "HF_HUB_DOWNLOAD_TIMEOUT",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
} | {spelling for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY") for spelling in (name, name.lower())}
OF_LIBRARIES = {"HF_TOKEN", "HF_HUB_OFFLINE", *MIRRORS_AND_PROXIES} | {
    f"OTEL_{name}"
    for name in (
        "SDK_DISABLED",
        "TRACES_EXPORTER",
        "EXPORTER_OTLP_ENDPOINT",
        "EXPORTER_OTLP_TRACES_ENDPOINT",
        "EXPORTER_OTLP_HEADERS",
        "SERVICE_NAME",
        "TRACES_SAMPLER",
        "TRACES_SAMPLER_ARG",
    )
}
OF_THE_PROXY = {"RERANKER_PROXY_PORT", "RERANKER_PROXY_ROUTING", "RERANKER_PROXY_TIMEOUT"}


def compose(*files: str) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for file in files:
        for name, service in yaml.safe_load((ROOT / file).read_text())["services"].items():
            merged.setdefault(name, {}).update(service)
    return merged


@pytest.mark.parametrize("service", ["reranker", "replica"])
def test_compose_passes_every_setting_to_the_service(service: str) -> None:
    names = set(compose("docker-compose.yaml")[service]["environment"])
    assert names == set(environment_names()) - OF_THE_IMAGE | OF_LIBRARIES


def test_compose_sets_no_values() -> None:
    assert set(compose("docker-compose.yaml")["reranker"]["environment"].values()) == {None}


def test_the_gpu_file_changes_only_known_settings() -> None:
    base, gpu = compose("docker-compose.yaml"), compose("docker-compose.gpu.yaml")
    assert set(gpu) == {"reranker", "replica"}
    for service in gpu.values():
        assert set(service["environment"]) <= set(environment_names())
        assert set(service) - {"deploy"} <= set(base["reranker"])


def test_gpu_processes_differ_only_in_their_device() -> None:
    one, several = compose("docker-compose.gpu.yaml")["replica"], compose("docker-compose.gpus.yaml")
    assert [service["environment"]["RERANKER_DEVICE"] for service in several.values()] == ["cuda:0", "cuda:1"]
    further = several["replica-1"]
    assert {name: further[name] for name in one if name != "environment"} == {
        name: value for name, value in one.items() if name != "environment"
    }
    assert further["extends"] == {"file": "docker-compose.yaml", "service": "replica"}
    assert further["networks"]["default"]["aliases"] == ["replica"]


def test_containers_have_time_to_finish_requests() -> None:
    timeout = Settings.model_fields["shutdown_timeout"].default
    for service in ("reranker", "replica"):
        grace = compose("docker-compose.yaml")[service]["stop_grace_period"]
        assert grace == f"1m${{RERANKER_SHUTDOWN_TIMEOUT:-{timeout:g}}}s"
    # docker stop without --time uses the grace period of the container.
    assert re.findall(r"docker stop (.*)", (ROOT / "manage_reranker.sh").read_text()) == ['"$id" >/dev/null']


def test_the_proxy_has_the_limits_of_the_service() -> None:
    script = (ROOT / "docker/nginx/start.sh").read_text()
    default = re.search(r"RERANKER_MAX_BODY_BYTES:-(\d+)", script)
    assert default
    assert int(default[1]) == Settings.model_fields["max_body_bytes"].default
    timeout = re.search(r"RERANKER_PROXY_TIMEOUT:-(\d+)", script)
    assert timeout
    assert int(timeout[1]) > Settings.model_fields["queue_timeout"].default
    named = set(re.findall(r"\b(RERANKER_[A-Z_]+)", script))
    assert named <= OF_THE_PROXY | set(environment_names())


def test_both_proxies_wait_equally_long_and_listen_on_the_same_port() -> None:
    nginx = (ROOT / "docker/nginx/start.sh").read_text()
    haproxy = (ROOT / "docker/haproxy/haproxy.cfg").read_text()
    defaults = dict(re.findall(r"presetenv (\w+) (\S+)", haproxy))
    for name in ("RERANKER_PROXY_TIMEOUT", "RERANKER_PROXY_PORT", "TLS_PORT", "UPSTREAM", "UPSTREAM_PORT"):
        assert f"{name}:-{defaults[name]}}}" in nginx
    assert set(re.findall(r"\bRERANKER_[A-Z_]+", haproxy)) <= OF_THE_PROXY
    proxies = compose("docker-compose.yaml")
    assert proxies["haproxy"]["ports"] == proxies["proxy"]["ports"]


@pytest.mark.parametrize("file", DOCKERFILES)
def test_images_use_existing_settings_and_files(file: str) -> None:
    text = (ROOT / file).read_text()
    assert set(re.findall(r"\b(RERANKER_[A-Z_]+)=", text)) <= OF_THE_IMAGE
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for line in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        for source in line.split():
            assert (ROOT / source).exists(), source
            assert f"!{source}" in ignored
    assert "USER 10001" in text
    # A user id without an entry in /etc/passwd has neither a home folder nor a name.
    assert "HOME=/home/reranker USER=reranker" in text
    assert 'ENTRYPOINT ["entrypoint.sh"]' in text


def test_images_are_built_from_stages_that_there_are() -> None:
    script = ROOT / "docker/build.sh"
    stages = re.findall(r"^FROM \S+ AS (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    targets = re.findall(r"build --target (\w+)", script.read_text())
    assert targets == ["slim", "runtime"]
    assert set(targets) <= set(stages)
    refused = subprocess.run([script, "gpu"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "docker/build.sh [slim] [runtime] [cuda]" in refused.stderr


@pytest.mark.parametrize("slim", [False, True])
def test_images_lose_only_what_they_never_use(tmp_path: Path, slim: bool) -> None:
    kept = ["torch/testing/test/a.py", "sklearn/utils/tests/a.py", "openvino/libs/libopenvino_ir_frontend.so.1"]
    kept += ["app/testset/a.py", "openvino/libs/libopenvino_intel_cpu_plugin.so"]
    for_exports = ["openvino/libs/libopenvino_pytorch_frontend.so.1", "setuptools/a.py"]
    unused = ["numpy/tests/a.py", "torch/include/a.h", "torch/lib/a.a", "openvino/libs/libopenvino_intel_gpu_plugin.so"]
    packages = tmp_path / "lib/python3.11/site-packages"
    for name in [*kept, *for_exports, *unused]:
        (packages / name).parent.mkdir(parents=True, exist_ok=True)
        (packages / name).touch()
    subprocess.run([ROOT / "docker/strip.sh", tmp_path, *(["slim"] if slim else [])], check=True)
    left = {str(file.relative_to(packages)) for file in packages.rglob("*") if file.is_file()}
    assert left == {*kept, *([] if slim else for_exports)}


@pytest.mark.parametrize("file", ["docker-compose.yaml", "docker-compose.gpu.yaml", "docker-compose.gpus.yaml"])
def test_compose_files_follow_the_compose_specification(file: str) -> None:
    command = ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(ROOT / file)]
    found = subprocess.run(
        [str(Path(sys.executable).parent / command[0]), *command[1:]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
