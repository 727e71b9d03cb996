"""Start and shutdown, in one process."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fastapi import FastAPI

from app.api.service import service_of
from app.config import Settings
from app.machine.hardware import cpu_limit
from app.main import create_app
from app.serving.batcher import Batcher
from app.serving.lifecycle import Phase
from tests.conftest import Serve, until
from tests.fakes import FakeEngine


def batcher_of(app: FastAPI) -> Batcher:
    reranker = service_of(app).reranker
    assert reranker is not None
    return reranker.batcher


async def test_a_model_that_cannot_be_loaded_is_one_error_line_and_final(caplog: pytest.LogCaptureFixture) -> None:
    app = create_app(Settings(model="/no/such/model"))
    async with app.router.lifespan_context(app):
        await until(lambda: service_of(app).lifecycle.phase is Phase.FAILED)
    [record] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.getMessage() == "Cannot start: RERANKER_MODEL='/no/such/model': no such folder"
    assert record.exc_info is None


async def test_the_log_shows_the_engine_and_the_address_once_ready(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "app"):
        async with serve():
            pass
    assert "model fake, device cpu, backend fake" in caplog.text
    assert "Listening on http://127.0.0.1:8000" in caplog.text


async def test_an_ipv6_address_in_the_log_has_brackets(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "app"):
        async with serve(host="::1"):
            pass
    assert "Listening on http://[::1]:8000," in caplog.text


async def test_more_threads_than_cpus_are_warned_about(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    async with serve(threads=cpu_limit()):
        pass
    assert "RERANKER_THREADS" not in caplog.text
    async with serve(threads=cpu_limit() + 1):
        pass
    assert f"RERANKER_THREADS={cpu_limit() + 1}: only {cpu_limit()} CPUs" in caplog.text


async def test_shutdown_ends_all_tasks_and_fails_waiting_pairs(engine: FakeEngine) -> None:
    app = create_app(Settings(batch_tokens=16), engine)
    async with app.router.lifespan_context(app):
        await until(lambda: service_of(app).lifecycle.phase is Phase.READY)
        engine.gate.clear()
        futures = batcher_of(app).submit(engine.encode("a b c", ["a b c"] * 20))
        await until(lambda: batcher_of(app).pending < 20)
    engine.gate.set()
    outcomes = await asyncio.gather(*futures, return_exceptions=True)
    assert all("stopped" in str(outcome) for outcome in outcomes)
    assert not [task for task in asyncio.all_tasks() if task.get_name() in ("serve", "batcher", "sweep")]


async def test_a_crashed_inference_loop_stops_the_service(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_app(Settings(max_reloads=0), engine)
    async with app.router.lifespan_context(app):
        await until(lambda: service_of(app).lifecycle.phase is Phase.READY)
        monkeypatch.setattr("app.serving.batcher.take_batch", lambda *_: 1 / 0)
        [future] = batcher_of(app).submit(engine.encode("a", ["a"]))
        with pytest.raises(Exception, match="stopped"):
            await future
        await until(lambda: service_of(app).lifecycle.phase is Phase.FAILED)


async def test_memory_is_cleared_regularly(engine: FakeEngine) -> None:
    app = create_app(Settings(clear_cache_interval=0.01), engine)
    async with app.router.lifespan_context(app):
        await until(lambda: engine.cleared >= 2)


def test_openvino_telemetry_is_off(tmp_path: Path) -> None:
    """OpenVINO would send an event to its vendor and store an id in the home folder."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", "import app.engines.openvino"], check=True, env=environment)
    assert list(tmp_path.iterdir()) == []
