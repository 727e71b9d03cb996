"""The images and the Compose file on a real Docker engine: build, start, scale, restart, kill under load."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.conftest import free_port
from tests.e2e.process import MOONS, ROOT
from tests.e2e.proxies import Load

pytestmark = [
    pytest.mark.docker,
    pytest.mark.e2e,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        not shutil.which("docker")
        or subprocess.run(["docker", "info"], capture_output=True, check=False).returncode != 0,
        reason="no Docker engine is available",
    ),
]

# With two embedded models, of 71 and 56 MB.
MEGABYTES = {"slim": 580, "runtime": 1600}
REPLICAS = 3
ASK = f"""
import json, urllib.request
body = {json.dumps(MOONS)!r}.encode()
request = urllib.request.Request("http://127.0.0.1:8000/rerank", body, {{"Content-Type": "application/json"}})
print(urllib.request.urlopen(request).read().decode())
"""


def run(*command: object, **environment: str) -> str:
    found = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | environment,
    )
    assert found.returncode == 0, f"{command}\n{found.stdout[-3000:]}\n{found.stderr[-3000:]}"
    return found.stdout.strip()


def size(image: str) -> int:
    return int(run("docker", "image", "inspect", "--format", "{{.Size}}", image)) // 1_000_000


@pytest.fixture(scope="module", params=["slim", "runtime"])
def image(request: pytest.FixtureRequest) -> str:
    return build(request.param)


def build(target: str) -> str:
    print(run("docker/build.sh", target, DOCKER_BUILDKIT="0"))
    return "reranker" if target == "runtime" else f"reranker:{target}"


def wait_until_healthy(container: str) -> None:
    deadline = time.monotonic() + 180
    while run("docker", "inspect", "--format", "{{.State.Health.Status}}", container) != "healthy":
        assert time.monotonic() < deadline, run("docker", "logs", container)
        time.sleep(0.5)


def test_images_are_small_and_contain_no_compiler(image: str) -> None:
    target = "slim" if image.endswith(":slim") else "runtime"
    assert size(image) <= MEGABYTES[target]
    look = "for name in gcc cc /opt/venv/bin/pip; do command -v $name; done; ls -A ~/.cache /tmp; id -u"
    found = run("docker", "run", "--rm", image, "sh", "-c", look)
    assert found == "/home/reranker/.cache:\n\n/tmp:\n10001"


@pytest.mark.parametrize("user", ["1000660000:0", "10001"])
def test_any_user_of_group_0_can_write_to_the_cache(image: str, user: str) -> None:
    options = ("--read-only", "--user", user, "--volume", "/home/reranker/.cache")
    look = "touch ~/.cache/written && ls ~/.cache && python -c 'import getpass; print(getpass.getuser())'"
    assert run("docker", "run", "--rm", *options, image, "sh", "-c", look) == "written\nreranker"


def test_an_image_works_read_only_and_without_a_network(image: str) -> None:
    """Also without capabilities, and it shuts down with status 0."""
    options = (
        "--read-only",
        "--tmpfs",
        "/tmp",
        "--network",
        "none",
        "--cap-drop",
        "ALL",
        "--memory",
        "4g",
        "--cpus",
        "2",
    )
    container = run("docker", "run", "--detach", *options, image)
    try:
        wait_until_healthy(container)
        answer = json.loads(run("docker", "exec", container, "python", "-c", ASK))
        assert answer["results"][0]["index"] == 2
        run("docker", "stop", "--time", "30", container)
        assert run("docker", "inspect", "--format", "{{.State.ExitCode}}", container) == "0"
    finally:
        run("docker", "rm", "--force", container)


@pytest.mark.parametrize(("memory", "killed"), [("4g", False), ("200m", True)])
def test_the_benchmark_reports_whether_a_container_is_killed_for_memory(memory: str, killed: bool) -> None:
    model = ROOT / "app/default_model/openvino-int8"
    command = [sys.executable, "-m", "benchmarks", "container", "--image", build("slim"), "--artefact", str(model)]
    command += ["--memory", memory, "--requests", "1", "--json"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == killed, result.stderr
    figures = json.loads(result.stdout)
    assert (figures["oom_killed"], figures["exit_status"]) == (killed, 137 if killed else 0)
    assert 100 < figures["peak_anonymous_mb"] < figures["peak_memory_mb"] < (220 if killed else 4300)
    assert (figures["request_seconds"] is None) == killed


class Stack:
    """Replicas behind the proxy, started with the Compose file."""

    def __init__(self) -> None:
        self.port = free_port()
        self.environment = {
            "RERANKER_PROXY_PORT": str(self.port),
            "RERANKER_CACHE_URL": "redis://redis",
            "COMPOSE_PROJECT_NAME": "rerankertest",
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def compose(self, *arguments: object) -> str:
        return run("docker-compose", "--profile", "scale", "--profile", "monitoring", *arguments, **self.environment)

    def ask(self, url: str) -> Any:
        """GET JSON from inside the network of the stack."""
        fetch = f"import urllib.request; print(urllib.request.urlopen('{url}').read().decode())"
        return json.loads(run("docker", "exec", self.replicas()[0], "python", "-c", fetch))

    def replicas(self) -> list[str]:
        return self.compose("ps", "-q", "replica").split()

    def up(self) -> None:
        self.compose("up", "--detach", "--no-build", "--scale", f"replica={REPLICAS}", "proxy", "redis", "prometheus")
        for replica in self.replicas():
            wait_until_healthy(replica)
        deadline = time.monotonic() + 30
        while httpx.get(f"{self.url}/health/ready").status_code != httpx.codes.OK:
            assert time.monotonic() < deadline
            time.sleep(0.2)


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    build("runtime")
    stack = Stack()
    try:
        stack.up()
        yield stack
    finally:
        stack.compose("down", "--volumes", "--timeout", "5")


def test_a_request_through_the_proxy(stack: Stack) -> None:
    response = httpx.post(f"{stack.url}/rerank", json=MOONS)
    assert response.json()["results"][0]["index"] == 2
    assert len(stack.replicas()) == REPLICAS


def test_replicas_share_their_scores(stack: Stack) -> None:
    answers = [json.loads(run("docker", "exec", replica, "python", "-c", ASK)) for replica in stack.replicas()]
    assert [answer["meta"]["cached"] for answer in answers[1:]] == [len(MOONS["documents"])] * (REPLICAS - 1)


def test_prometheus_scrapes_every_replica(stack: Stack) -> None:
    deadline = time.monotonic() + 90
    while True:
        targets = stack.ask("http://prometheus:9090/api/v1/targets")["data"]["activeTargets"]
        healthy = [target for target in targets if target["health"] == "up"]
        if len(healthy) == REPLICAS:
            break
        assert time.monotonic() < deadline, targets
        time.sleep(1)
    groups = stack.ask("http://prometheus:9090/api/v1/rules")["data"]["groups"]
    assert {rule["health"] for group in groups for rule in group["rules"]} <= {"ok", "unknown"}
    assert len(groups[0]["rules"]) > 5


async def test_a_rolling_restart_loses_no_request(stack: Stack) -> None:
    before = set(stack.replicas())
    async with Load(stack.url) as load:
        await asyncio.to_thread(run, "./manage_reranker.sh", "rolling-restart", **stack.environment)
    after = set(stack.replicas())
    assert len(after) == REPLICAS
    assert not before & after
    assert set(load.statuses) == {200}


async def test_a_killed_replica_loses_at_most_its_own_requests(stack: Stack) -> None:
    async with Load(stack.url) as load:
        await asyncio.sleep(2)
        await asyncio.to_thread(run, "docker", "kill", "--signal", "KILL", stack.replicas()[0])
        await asyncio.sleep(10)
    assert set(load.statuses) <= {200, 502, 503, 504}
    assert sum(load.statuses.values()) - load.statuses[200] <= 6
