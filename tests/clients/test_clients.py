"""Client libraries against a running service: ranking, top_n, documents, errors, overload."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.config import Settings
from app.main import create_app
from tests.clients.common import KEY
from tests.clients.environments import ENVIRONMENTS, HERE, Environment
from tests.conftest import Serve, serving, until
from tests.e2e.process import FIXED, MOONS, service
from tests.fakes import FakeEngine

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

ANSWER = 2
# Their exceptions do not include the status or the message of the service.
WITHOUT_MESSAGES = {"llama-index TEI", "langchain InfinityRerank", "infinity_client"}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A service with the default model."""
    with service(RERANKER_API_KEYS=KEY, **FIXED) as (url, _):
        yield url


@pytest.fixture
async def closed_url() -> AsyncIterator[str]:
    """A service with another API key."""
    async with serving(create_app(Settings(api_keys="another"), FakeEngine())) as client:
        yield str(client.base_url).rstrip("/")


@pytest.fixture
async def python(environment: Environment) -> Path:
    """The interpreter of the client's environment."""
    try:
        return await asyncio.to_thread(environment.python)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"{', '.join(environment.requirements)} cannot be installed here: {error.stderr.strip()[-300:]}")


@pytest.fixture
async def full_url(
    python: Path, serve: Serve, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[str]:
    """A service with no free slot and no queue.

    The slot is taken once the client is installed. `Retry-After` is one second, so clients that retry do not wait long.
    """
    monkeypatch.setattr("app.serving.admission.RETRY_AFTER", (1, 1))
    engine.patience = 300
    engine.gate.clear()
    async with serve(max_parallel=1, max_queue=0, inference_timeout=300) as client:
        holder = asyncio.create_task(client.post("/rerank", json={"query": "a", "documents": ["b"]}, timeout=300))
        await until(lambda: engine.entered == 1)
        yield str(client.base_url)
        engine.gate.set()
        await holder


def run(python: Path, script: str, urls: dict[str, str]) -> dict[str, dict[str, Any]]:
    """A report for each client of the script."""
    found = subprocess.run(
        [python, HERE / script],
        input=json.dumps({**MOONS, **urls}),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    reports: dict[str, dict[str, Any]] = json.loads(found.stdout.splitlines()[-1])
    return reports


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=[each.script for each in ENVIRONMENTS])
async def test_client_libraries_work_with_the_service(
    environment: Environment, python: Path, url: str, closed_url: str, full_url: str
) -> None:
    """One process runs all clients of an environment: some take seconds to import."""
    urls = {"url": url, "closed_url": closed_url, "full_url": full_url}
    reports = await asyncio.to_thread(run, python, environment.script, urls)
    assert tuple(reports) == environment.clients
    for client, report in reports.items():
        assert "failed" not in report, f"{client}: {report['failed']}"
        check(client, report)


def check(client: str, report: dict[str, Any]) -> None:
    documents, ranked = MOONS["documents"], report["ranked"]
    assert sorted(index for index, _, _ in ranked) == list(range(len(documents))), client
    assert ranked[0][0] == ANSWER, client
    scores = [score for _, score, _ in ranked]
    assert scores == sorted(scores, reverse=True), client
    assert all(text in (None, documents[index]) for index, _, text in ranked), client
    assert [index for index, _, _ in report["best"]] == [ANSWER], client
    assert says(client, report["error"], "422", "must not be empty"), client
    assert says(client, report["unauthorized"], "401", "API key is wrong"), client
    assert says(client, report["overload"], "429", "ueue is full"), client


def says(client: str, error: str | None, *parts: str) -> bool:
    """Whether the client raised an error with the status or the message, if it passes on either."""
    return error is not None and (client in WITHOUT_MESSAGES or any(part in error for part in parts))
