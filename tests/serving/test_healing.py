"""The service recovers from an engine that hangs, fails or runs out of memory."""

import asyncio
import gc
import signal
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import numpy as np
import pytest
from prometheus_client import generate_latest

from app.api.service import service_of
from app.config import Settings
from app.errors import EngineBroken, ScoringFailed
from app.main import create_app
from app.serving import batcher, heartbeat, supervisor
from app.serving.lifecycle import Phase
from app.types import Pair
from tests.conftest import Serve, free_port, serving, until
from tests.fakes import NAN, FakeEngine

BODY = {"query": "moon", "documents": ["moon"]}


def other(number: int) -> dict[str, object]:
    """A body that is not cached."""
    return {"query": f"moon {number}", "documents": ["moon"]}


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(supervisor, "PAUSE_SECONDS", 0.01)


async def test_a_hung_engine_is_reloaded_and_serves_again(serve: Serve, engine: FakeEngine) -> None:
    async with serve(inference_timeout=0.2, max_parallel=2) as client:
        known = await client.post("/rerank", json=BODY)
        engine.gate.clear()
        hung, waiting = await asyncio.gather(*(client.post("/rerank", json=other(number)) for number in range(2)))
        engine.gate.set()
        assert {hung.status_code, waiting.status_code} <= {500, 503}
        assert "no answer within 0.2 s (RERANKER_INFERENCE_TIMEOUT)" in hung.text + waiting.text
        await until(lambda: serve.service.lifecycle.phase is Phase.READY)
        assert (await client.get("/health/ready")).status_code == 200
        assert (await client.post("/rerank", json=other(3))).status_code == 200
        again = await client.post("/rerank", json=BODY)
        figures = (await client.get("/metrics")).text
    assert again.json()["results"] == known.json()["results"]
    assert again.json()["meta"]["cached"] == 1
    assert "reranker_reloads_total 1.0" in figures
    assert serve.reranker.admission.active == 0


async def test_during_a_reload_health_reports_it_and_cached_requests_are_served(
    serve: Serve, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "PAUSE_SECONDS", 5)
    async with serve(inference_timeout=0.05) as client:
        assert (await client.post("/rerank", json=BODY)).status_code == 200
        engine.gate.clear()
        await client.post("/rerank", json=other(1))
        await until(lambda: "reranker_reloads_total 1.0" in _figures(serve))
        await until(lambda: serve.service.lifecycle.phase is Phase.READY)
        await client.post("/rerank", json=other(2))  # the second failure in a row: the reload starts after a pause
        await until(lambda: serve.service.lifecycle.phase is Phase.RELOADING)
        health, ready = await client.get("/health"), await client.get("/health/ready")
        refused = await client.post("/rerank", json=other(3))
        degraded = await client.post("/rerank", json=other(4) | {"on_overload": "lexical"})
        known = await client.post("/rerank", json=BODY)
        engine.gate.set()
    assert (health.status_code, health.json()["status"], ready.status_code) == (503, "reloading", 503)
    assert (refused.status_code, refused.json()["error"]["type"]) == (503, "unavailable")
    assert refused.headers["retry-after"]
    assert degraded.json()["meta"]["degraded"] == "unavailable"
    assert known.status_code == 200


async def test_an_engine_that_only_fails_is_reloaded(serve: Serve, engine: FakeEngine) -> None:
    async with serve() as client:
        engine.failure = RuntimeError("device lost")
        answers = [await client.post("/rerank", json=other(number)) for number in range(heartbeat.SUSPICIOUS_FAILURES)]
        assert {answer.status_code for answer in answers} == {500}
        await until(lambda: "reranker_reloads_total 0.0" not in _figures(serve))
        engine.failure = None
        await until(lambda: serve.service.lifecycle.phase is Phase.READY)
        assert (await client.post("/rerank", json=other(9))).status_code == 200


async def test_an_engine_that_reports_it_is_broken_is_reloaded_at_once(serve: Serve, engine: FakeEngine) -> None:
    async with serve() as client:
        engine.failure = EngineBroken("device lost")
        answer = await client.post("/rerank", json=BODY)
        engine.failure = None
        assert (answer.status_code, answer.json()["error"]["type"]) == (500, "scoring_failed")
        await until(lambda: "reranker_reloads_total 1.0" in _figures(serve))
        await until(lambda: serve.service.lifecycle.phase is Phase.READY)
        assert (await client.post("/rerank", json=BODY)).status_code == 200


async def test_the_broken_engine_is_released_before_the_next_one_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two engines at once may not fit into the memory."""
    monkeypatch.setattr(supervisor, "freeze_loaded_objects", gc.collect)
    monkeypatch.setattr(supervisor, "PAUSE_SECONDS", 4)
    monkeypatch.setattr(batcher.log, "disabled", True)
    engines: list[weakref.ref[FakeEngine]] = []
    alive: list[int] = []

    def load(_: Settings) -> FakeEngine:
        alive.append(sum(engine() is not None for engine in engines))
        engines.append(weakref.ref(made := FakeEngine()))
        return made

    app = create_app(Settings(), load=load)
    async with serving(app) as client:
        assert (await client.post("/rerank", json=BODY)).status_code == 200
        for loaded in (2, 3):
            engines[-1]().failure = EngineBroken("device lost")  # type: ignore[union-attr]
            assert (await client.post("/rerank", json=other(loaded))).status_code == 500
            await until(lambda: len(engines) == loaded)  # noqa: B023
            await until(lambda: service_of(app).lifecycle.phase is Phase.READY)
    assert alive == [0, 0, 0]


async def test_an_unexpected_error_reloads_the_engine(
    serve: Serve, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve() as client:
        assert (await client.post("/rerank", json=BODY)).status_code == 200
        monkeypatch.setattr(serve.reranker.batcher, "_next_batch", lambda: 1 // 0)
        failed = await client.post("/rerank", json=other(1))
        await until(lambda: "reranker_reloads_total 1.0" in _figures(serve))
        await until(lambda: serve.service.lifecycle.phase is Phase.READY)
        assert (await client.post("/rerank", json=other(2))).status_code == 200
    assert failed.status_code == 503


async def test_an_engine_that_cannot_begin_again_ends_the_process(
    serve: Serve, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve() as client:
        assert (await client.post("/rerank", json=BODY)).status_code == 200
        monkeypatch.setattr(engine, "encode", lambda *_: 1 // 0)  # at the start, and of requests
        monkeypatch.setattr(serve.reranker.batcher, "_next_batch", lambda: 1 // 0)
        serve.reranker.batcher.submit([Pair(np.array([1], np.int32), np.array([0], np.int32), False)])
        await until(lambda: serve.service.lifecycle.phase is Phase.FAILED)
    assert "reranker_reloads_total 3.0" in _figures(serve)


async def test_failed_requests_do_not_reload_a_working_engine(serve: Serve, engine: FakeEngine) -> None:
    async with serve() as client:
        engine.failure = ScoringFailed("this batch")
        for number in range(heartbeat.SUSPICIOUS_FAILURES - 1):
            await client.post("/rerank", json=other(number))
        engine.failure = None
        nan = [await client.post("/rerank", json={"query": str(number), "documents": [NAN]}) for number in range(9)]
        await asyncio.sleep(0.1)
        assert {answer.status_code for answer in nan} == {500}
        assert "reranker_reloads_total 0.0" in _figures(serve)


async def test_an_idle_engine_is_checked(serve: Serve, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "SILENCE_SECONDS", 0.05)
    async with serve():
        await until(lambda: len(engine.batches) >= 3)
        engine.failure = RuntimeError("device lost")
        await until(lambda: serve.service.lifecycle.phase is Phase.FAILED)
        assert "reranker_reloads_total 3.0" in _figures(serve)


async def test_the_service_fails_after_too_many_reloads(serve: Serve, engine: FakeEngine) -> None:
    async with serve(inference_timeout=0.05, max_reloads=1, max_parallel=1) as client:
        engine.gate.clear()
        for number in range(2):
            # A request during the reload would be rejected, and only the next probe would find the hung engine.
            await until(lambda: serve.service.lifecycle.phase is Phase.READY)
            assert (await client.post("/rerank", json=other(number))).status_code == 500
        await until(lambda: serve.service.lifecycle.phase is Phase.FAILED)
        last = await client.post("/rerank", json=other(3))
        assert last.status_code == 503
        engine.gate.set()


HANGS = """
import os
import sys
from app.config import Settings
from app.main import create_app
from app.api.server import serve
from tests.fakes import FakeEngine

engine = FakeEngine()
engine.gate.clear()
settings = Settings(inference_timeout=0.1, max_reloads=0)
os._exit(serve(create_app(settings, engine), "127.0.0.1", int(sys.argv[1]), 1, 100))
"""


def test_a_process_that_cannot_recover_exits_with_1() -> None:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", HANGS, str(port)])
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        status = 0
        while status != httpx.codes.OK:
            assert process.poll() is None
            with suppress(httpx.TransportError):
                status = client.get("/health/ready").status_code
        answer = client.post("/rerank", json=BODY)
    assert answer.status_code == 500
    assert process.wait(20) == 1


SLOW = HANGS.replace("inference_timeout=0.1, max_reloads=0", "max_parallel=1").replace(", 1, 100", ", 0.1, 100")


def test_a_stop_answers_requests_in_the_engine_and_in_the_queue() -> None:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(port)])
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client, ThreadPoolExecutor(3) as clients:
        health: dict[str, object] = {}
        while health.get("status") != "ok":
            assert process.poll() is None
            with suppress(httpx.TransportError):
                health = client.get("/health").json()
        sent = [clients.submit(client.post, "/rerank", json=other(number)) for number in range(3)]
        while (health["active"], health["waiting"], health["pending_pairs"]) != (1, 2, 0):
            health = client.get("/health").json()
        process.send_signal(signal.SIGTERM)
        answers = [each.result() for each in sent]
    assert {(answer.status_code, answer.json()["error"]["type"]) for answer in answers} == {(503, "unavailable")}
    assert process.wait(20) == 0


async def test_the_batch_size_that_fits_is_remembered(serve: Serve, engine: FakeEngine) -> None:
    engine.capacity = 2
    documents = [f"moon {number}" for number in range(8)]
    async with serve() as client:
        first = await client.post("/rerank", json={"query": "moon", "documents": documents})
        seen = len(engine.batches)
        second = await client.post("/rerank", json={"query": "sun", "documents": documents})
        figures = (await client.get("/metrics")).text
    assert first.status_code == second.status_code == 200
    assert [len(batch) for batch in engine.batches[:3]] == [8, 4, 2]
    assert {len(batch) for batch in engine.batches[seen:]} == {2}
    assert "reranker_out_of_memory_total 1.0" in figures
    assert "reranker_batch_token_budget 6.0" in figures


async def test_only_pairs_that_cannot_fit_fail(serve: Serve, engine: FakeEngine) -> None:
    engine.longest = 50
    engine.gate.clear()
    async with serve(max_parallel=8) as client:
        blocker = asyncio.create_task(client.post("/rerank", json=other(0)))
        await until(lambda: engine.entered == 1)
        bodies = [{"query": f"moon {number}", "documents": ["tides " * 45, "moons " * 45]} for number in range(3)]
        bodies.insert(0, {"query": "moon", "documents": ["tides " * 51]})
        answers = [asyncio.create_task(client.post("/rerank", json=body)) for body in bodies]
        await until(lambda: serve.reranker.batcher.pending == 7)
        engine.gate.set()
        statuses = [(await answer).status_code for answer in (blocker, *answers)]
        failed = (await answers[0]).json()
    assert len(engine.batches[1]) == 7
    assert statuses == [200, 500, 200, 200, 200]
    assert failed["error"]["type"] == "out_of_memory"


def _figures(serve: Serve) -> str:
    return generate_latest(serve.service.metrics.registry).decode()
