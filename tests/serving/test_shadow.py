"""A second model scores some requests after they were answered."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from httpx import AsyncClient
from sentence_transformers import CrossEncoder

from app.config import Settings
from app.main import create_app
from app.serving.shadow import agreement
from app.types import Ranking
from tests.conftest import Serve, serving, until
from tests.fakes import FakeEngine
from tests.models import make_model
from tests.shadow_worker import FAILS

QUERY = "what causes tides"
DOCUMENTS = [
    "the moon causes tides",
    "bread",
    "gravity of the moon and the sea",
    "stock market",
    "light energy a plant",
]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> str:
    """The second model is another fake engine, in a real process."""
    monkeypatch.setattr("app.serving.shadow.WORKER", "tests.shadow_worker")
    return "fake"


def settings(model: str, folder: Path) -> dict[str, Any]:
    return {"shadow_model": model, "shadow_share": 1, "backend": "torch", "device": "cpu", "export_dir": folder}


async def ask(client: AsyncClient, query: str = QUERY) -> Any:
    answer = await client.post("/rerank", json={"query": query, "documents": DOCUMENTS})
    assert answer.status_code == 200
    return answer.json()


async def info(client: AsyncClient) -> Any:
    return (await client.get("/info")).json()["shadow"]


async def wait_for(serve: Serve, status: str) -> dict[str, float]:
    """Wait until the second model has this status. Returns its requests by result."""
    shadow = serve.service.observer.shadow
    assert shadow is not None
    await until(lambda: shadow.summary()["status"] == status)
    return requests(serve)


def requests(serve: Serve) -> dict[str, float]:
    found: dict[str, float] = serve.service.metrics.shadow_summary()["requests"]
    return found


def worker() -> int:
    """The process id of the second model."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return next(int(child) for child in children if "shadow_worker" in Path(f"/proc/{child}/cmdline").read_text())


@pytest.mark.timeout(300)  # the second process imports torch with the lowest priority
async def test_two_real_models_are_compared(serve: Serve, tmp_path: Path) -> None:
    first = make_model(tmp_path / "first", "electra", spread=0.5)
    second = make_model(tmp_path / "second", "bert", spread=0.5)
    serve.app = create_app(Settings(model=str(first), **settings(str(second), tmp_path)))
    async with serving(serve.app) as client:
        await wait_for(serve, "running")
        await ask(client)
        await until(lambda: bool(requests(serve)))
        found = await info(client)
        metrics = (await client.get("/metrics")).text
    pairs = [(QUERY, document) for document in DOCUMENTS]
    own, other = (CrossEncoder(name, device="cpu").predict(pairs).tolist() for name in (str(first), str(second)))
    moved = sum((own[a] - own[b]) * (other[a] - other[b]) < 0 for a in range(5) for b in range(a))
    assert found["average_tau"] == pytest.approx(1 - 2 * moved / 10)
    assert found["same_first_share"] == float(own.index(max(own)) == other.index(max(other)))
    assert found["average_seconds"] > 0
    assert found["average_seconds_of_first_model"] > 0
    assert 'reranker_shadow_requests_total{result="compared"} 1.0' in metrics


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="this system does not list the children of a process")
async def test_a_dead_or_stopped_second_model_harms_no_request(
    serve: Serve, model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(**settings(model, tmp_path)) as client:
        await wait_for(serve, "running")
        process = worker()
        assert os.getpriority(os.PRIO_PROCESS, process) == 19
        assert os.getsid(process) == os.getsid(0)  # in another session, the priority has no effect
        assert os.getpgid(process) != os.getpgid(0)  # a Ctrl-C does not reach it
        os.kill(process, signal.SIGSTOP)
        for number in range(5):
            await ask(client, f"query {number}")
        assert requests(serve) == {"skipped": 4}  # the first one waits for the stopped process
        os.kill(process, signal.SIGKILL)
        assert await wait_for(serve, "failed") == {"skipped": 4, "failed": 1}
        await ask(client)
    assert caplog.text.count("RERANKER_SHADOW_MODEL") == 1


async def test_a_model_that_cannot_be_loaded_harms_nothing(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(**settings(str(tmp_path / "missing"), tmp_path)) as client:
        assert await wait_for(serve, "failed") == {"failed": 1}
        await ask(client)
        assert (await client.get("/health/ready")).status_code == 200
    assert caplog.text.count("RERANKER_SHADOW_MODEL") == 1


async def test_requests_that_wait_come_first(serve: Serve, engine: FakeEngine, model: str, tmp_path: Path) -> None:
    async with serve(**settings(model, tmp_path), max_parallel=2) as client:
        await wait_for(serve, "running")
        await ask(client, "cached")
        await until(lambda: requests(serve) == {"compared": 1})
        engine.gate.clear()
        waiting = [asyncio.create_task(ask(client, f"query {number}")) for number in range(4)]
        await until(lambda: serve.reranker.admission.waiting > 0)
        await ask(client, "cached")  # answered from the cache
        await until(lambda: requests(serve) == {"compared": 1, "skipped": 1})
        engine.gate.set()
        await asyncio.gather(*waiting)


async def test_nothing_is_scored_again_while_the_service_leaves(serve: Serve, model: str, tmp_path: Path) -> None:
    async with serve(**settings(model, tmp_path)) as client:
        await wait_for(serve, "running")
        serve.service.lifecycle.leave()
        await ask(client)
        await until(lambda: requests(serve) == {"skipped": 1})


async def test_a_request_that_the_second_model_cannot_score_is_counted(
    serve: Serve, model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(**settings(model, tmp_path)) as client:
        await wait_for(serve, "running")
        await client.post("/rerank", json={"query": "moon", "documents": ["moon", FAILS]})
        await until(lambda: requests(serve) == {"failed": 1})
        await ask(client)
        await until(lambda: requests(serve) == {"failed": 1, "compared": 1})
        assert (await info(client))["average_tau"] == 1
    assert caplog.text.count("RERANKER_SHADOW_MODEL") == 1


async def test_without_a_second_model_there_is_no_summary(serve: Serve) -> None:
    async with serve() as client:
        assert "shadow" not in (await client.get("/info")).json()


def ranking(logits: list[float]) -> Ranking:
    return Ranking(logits, logits, [None] * len(logits), len(logits), len(logits), 0, 0)


def test_agreement_of_known_orders() -> None:
    assert agreement(ranking([3.0, 2.0, 1.0]), {0: 9.0, 1: 8.0, 2: 7.0}) == (0.0, True)
    assert agreement(ranking([3.0, 2.0, 1.0]), {0: 7.0, 1: 8.0, 2: 9.0}) == (1.0, False)
    assert agreement(ranking([3.0, 2.0, 1.0]), {2: 9.0}) == (None, True)  # the only one that both have scored
