"""Ray Serve on two nodes: replicas follow the load, and a lost one loses only what it had in work."""

import asyncio
import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from app.environment import environment_names
from tests.bulk.test_bulk import read, rows, write
from tests.conftest import free_port
from tests.deploy.ray_environment import ROOT, Nodes, cluster, programs, variables
from tests.e2e.process import MOONS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
CONFIGURATION = ROOT / "deploy" / "ray" / "serve.yaml"
# No measurements at the start, and a queue that three clients fill.
SETTINGS = {
    "RERANKER_PRECISION": "int8",
    "RERANKER_BACKEND": "openvino",
    "RERANKER_THREADS": "1",
    "RERANKER_BATCH_TOKENS": "1024",
    "RERANKER_STREAMS": "1",
    "RERANKER_PART_TOKENS": "384",
    "RERANKER_MAX_PARALLEL": "1",
    "RERANKER_MAX_QUEUE": "3",
    "RERANKER_QUEUE_TIMEOUT": "100",  # three requests wait for one thread, on slow machines for long
    "RERANKER_SHUTDOWN_TIMEOUT": "5",
}
CLIENTS = 4


def configuration(folder: Path, port: int) -> Path:
    """The file of the repository on the loopback, for replicas that start and stop soon."""
    found = yaml.safe_load(CONFIGURATION.read_text())
    found |= {"proxy_location": "HeadOnly", "http_options": {"host": "127.0.0.1", "port": port}}
    [application] = found["applications"]
    application["runtime_env"]["env_vars"] |= SETTINGS
    [deployment] = application["deployments"]
    deployment["ray_actor_options"]["num_cpus"] = 1
    deployment["autoscaling_config"] |= {
        "max_replicas": 3,
        "target_ongoing_requests": 1,
        "upscale_delay_s": 0.5,
        "downscale_delay_s": 1,
        "metrics_interval_s": 0.5,
        "look_back_period_s": 1,
    }
    deployment["health_check_period_s"] = 1
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump(found))
    return path


def run(log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(
            [programs() / "serve", "run", *arguments], cwd=ROOT, env=variables(), stdout=file, stderr=file
        )


@asynccontextmanager
async def serving(nodes: Nodes, folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    """`serve run` on the cluster, until Ctrl+C."""
    port, log = free_port(), folder / "serve.log"
    process = run(log, "--address", nodes.ask("address"), str(configuration(folder, port)))
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            while not await answers(client):
                assert process.poll() is None, log.read_text()
                await asyncio.sleep(0.1)
            yield client
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


async def answers(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/health/ready")).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


async def until(nodes: Nodes, condition: Callable[[Any], bool]) -> None:
    """Wait for a condition on the running replicas. The timeout of the test limits the wait."""
    while not condition(await asyncio.to_thread(nodes.ask, "running")):  # noqa: ASYNC110 (another process)
        await asyncio.sleep(0.2)


class Load:
    """Clients that send one request after another. Statuses are counted; 0 is a lost connection."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self._numbers = count()
        self.statuses: Counter[int] = Counter()

    def request(self, documents: int) -> dict[str, Any]:
        number = next(self._numbers)
        texts = [f"{number} {index} the moon causes the tides of the sea " * 12 for index in range(documents)]
        return {"query": f"tides {number}", "documents": texts}

    async def send(self) -> httpx.Response:
        return await self._client.post("/rerank/query", json=self.request(60))

    async def send_slowly(self) -> httpx.Response:
        """Occupies a replica, but not the CPUs: other replicas start meanwhile."""

        async def parts() -> AsyncIterator[bytes]:
            body = json.dumps(self.request(1)).encode()
            yield body[:1]
            await asyncio.sleep(0.5)
            yield body[1:]

        return await self._client.post("/rerank/query", content=parts(), headers={"content-type": "application/json"})

    async def repeat(self) -> None:
        while True:
            try:
                self.statuses[(await self.send_slowly()).status_code] += 1
            except httpx.TransportError:
                self.statuses[0] += 1

    @asynccontextmanager
    async def running(self, clients: int) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self.repeat()) for _ in range(clients)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def finish(self, count: int) -> None:
        """Wait until this many more requests have been answered."""
        goal = self.statuses.total() + count
        while self.statuses.total() < goal:  # noqa: ASYNC110 (the counter has no event)
            await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with cluster(tmp_path_factory.mktemp("ray") / "cluster.log") as nodes:
        yield nodes


def test_the_file_has_only_known_settings() -> None:
    [application] = yaml.safe_load(CONFIGURATION.read_text())["applications"]
    assert set(application["runtime_env"]["env_vars"]) <= set(environment_names())


def bulk(python: Path | str, *arguments: object, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, "-c", "from app.cli import cli; cli()", "bulk", *map(str, arguments)],
        cwd=ROOT,
        env=variables(**SETTINGS, **more),
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_file_is_ranked_on_ray_as_without_it(nodes: Nodes, tmp_path: Path) -> None:
    # Ray moves blocks of 256 KiB: there are several for each process.
    lines: list[Any] = [{**row, "unused": "x" * 16_000} for row in rows(96, documents=2)]
    lines[2:2] = ["not json", "", {"query": "", "documents": ["a"]}]
    source, expected, found = write(tmp_path / "in.jsonl", lines), tmp_path / "expected.jsonl", tmp_path / "found.jsonl"
    whole = bulk(sys.executable, source, expected, "--top-k", 2)
    assert whole.returncode == 3, whole.stderr
    options = "--top-k", 2, "--ray", "--actors", 2, "--json"
    ranked = bulk(programs() / "python", source, found, *options, RAY_ADDRESS=nodes.ask("address"))
    assert ranked.returncode == 3, ranked.stderr
    assert found.read_bytes() == expected.read_bytes()
    assert bad_rows(found) == bad_rows(expected)
    assert json.loads(ranked.stdout)["rows"] == 96
    assert {path.name for path in tmp_path.iterdir()} == {
        *("in.jsonl", "expected.jsonl", "expected.jsonl.bad.jsonl", "found.jsonl", "found.jsonl.bad.jsonl")
    }


def bad_rows(target: Path) -> list[dict[str, Any]]:
    return read(target.with_name(f"{target.name}.bad.jsonl"))


async def test_replicas_follow_the_load_and_a_lost_one_loses_only_its_requests(nodes: Nodes, tmp_path: Path) -> None:
    async with serving(nodes, tmp_path) as client:
        ranking = (await client.post("/rerank/query", json=MOONS)).json()
        assert ranking["results"][0]["index"] == 2
        load = Load(client)
        found = await asyncio.gather(*(load.send() for _ in range(12)))
        refused = [answer for answer in found if answer.status_code != httpx.codes.OK]
        assert Counter(answer.status_code for answer in found) == {200: 4, 429: 8}
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        assert all("Queue is full" in answer.json()["message"] for answer in refused)

        async with load.running(CLIENTS):
            await until(nodes, lambda running: len(running) == 3)
            killed = await asyncio.to_thread(nodes.ask, "kill")
            await until(nodes, lambda running: len(running) == 3 and killed not in running)
            await asyncio.to_thread(nodes.ask, "remove")
            # The node that is left has room for two.
            await until(nodes, lambda running: len(running) == 2)
            await load.finish(20)
        lost = load.statuses.total() - load.statuses[200]
        assert lost <= 2 * CLIENTS, load.statuses
        await until(nodes, lambda running: len(running) == 1)
