"""Replicas that share their scores in a real Redis, which is killed and frozen under them."""

import asyncio
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.serving.shared_cache import REST_SECONDS, SharedCache
from app.telemetry.metrics import Metrics
from app.types import Score
from tests.conftest import free_port
from tests.e2e.process import MOONS, service

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not shutil.which("redis-server"), reason="redis-server is not installed"),
]


@contextmanager
def redis(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_for_redis(port)
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


def wait_for_redis(port: int) -> None:
    for _ in range(200):
        if subprocess.run(["redis-cli", "-p", str(port), "ping"], capture_output=True, check=False).stdout == b"PONG\n":
            return
        time.sleep(0.05)
    raise AssertionError("redis-server does not answer")


def rank(url: str, query: str = str(MOONS["query"])) -> dict[str, Any]:
    response = httpx.post(f"{url}/rerank", json=MOONS | {"query": query}, timeout=30)
    assert response.status_code == 200, response.text
    assert len(response.json()["results"]) == len(MOONS["documents"])
    return dict(response.json())


def failures(url: str) -> float:
    name = "reranker_shared_cache_failures_total "
    metrics = httpx.get(f"{url}/metrics").text
    return next(float(line.removeprefix(name)) for line in metrics.splitlines() if line.startswith(name))


def test_what_one_replica_scored_the_others_know(tmp_path: Path) -> None:
    port = free_port()
    settings = {"RERANKER_CACHE_URL": f"redis://127.0.0.1:{port}"}
    with redis(tmp_path, port), service(**settings) as (first, _), service(**settings) as (second, _):
        scored, known = rank(first), rank(second)
        assert (scored["meta"]["scored"], known["meta"]["scored"], known["meta"]["cached"]) == (5, 0, 5)
        assert known["results"] == scored["results"]
        assert known["usage"] == scored["usage"]
        with service(**settings, RERANKER_MAX_LENGTH=64) as (other, _):
            assert rank(other)["meta"]["scored"] == 5  # another window, other scores


def test_a_score_has_its_time(tmp_path: Path) -> None:
    port = free_port()
    settings = {"RERANKER_CACHE_URL": f"redis://127.0.0.1:{port}", "CACHE_TTL_SECONDS": 1}
    with redis(tmp_path, port), service(**settings) as (url, _):
        rank(url)
        keys = subprocess.run(["redis-cli", "-p", str(port), "dbsize"], capture_output=True, check=True).stdout
        assert keys.strip() == b"5"
        time.sleep(1.2)
        assert rank(url)["meta"]["scored"] == 5


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_without_redis_requests_are_served_as_if_there_were_none(tmp_path: Path, stop: signal.Signals) -> None:
    port = free_port()
    settings = {"RERANKER_CACHE_URL": f"redis://127.0.0.1:{port}"}
    with ExitStack() as stack:
        server = stack.enter_context(redis(tmp_path, port))
        url, process = stack.enter_context(service(**settings))
        rank(url)
        server.send_signal(stop)
        for number in range(20):
            assert rank(url, f"Which planet, number {number}?")["meta"]["scored"] == 5
        assert 1 <= failures(url) <= 3  # it is not asked again and again
        if stop == signal.SIGKILL:
            server.wait()
            stack.enter_context(redis(tmp_path, port))
        server.send_signal(signal.SIGCONT)
        time.sleep(REST_SECONDS)
        rank(url, "Is it there again?")
        process.terminate()
        log = process.communicate()[1]
    assert log.count("The shared cache does not answer") == 1
    assert log.count("The shared cache answers again") == 1


def test_a_redis_that_never_was_is_no_reason_not_to_start() -> None:
    with service(RERANKER_CACHE_URL=f"redis://127.0.0.1:{free_port()}") as (url, process):
        assert failures(url) == 1  # known before the first request, and logged
        assert rank(url)["meta"]["scored"] == 5
        process.terminate()
        log = process.communicate()[1]
    assert log.index("The shared cache does not answer") < log.index("Ready in")


@pytest.mark.parametrize("value", ["no score", r"\0\0\192\127\5\0\0\0\0", r"\0\0\128\127\5\0\0\0\0"])
def test_other_values_in_redis_are_no_scores(tmp_path: Path, value: str) -> None:
    """Some text; what has the form of a score and is not a number, or is infinite."""
    port = free_port()
    settings = {"RERANKER_CACHE_URL": f"redis://127.0.0.1:{port}"}
    with redis(tmp_path, port), service(**settings) as (first, _), service(**settings) as (second, _):
        rank(first)
        script = f"for _, k in ipairs(redis.call('keys', '*')) do redis.call('set', k, '{value}') end"
        subprocess.run(["redis-cli", "-p", str(port), "eval", script, "0"], check=True, capture_output=True)
        assert rank(second)["meta"]["scored"] == 5


async def test_many_at_once_and_a_large_request_are_no_reason_to_leave_redis_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.serving.shared_cache.SECONDS", 5)  # here it is about connections, not about a busy machine
    scores = {number.to_bytes(16): Score(float(number), 10, truncated=False) for number in range(10_000)}
    metrics, port = Metrics(), free_port()
    with redis(tmp_path, port):
        cache = SharedCache(f"redis://127.0.0.1:{port}", 60, metrics)
        await cache.connect()
        cache.put(scores)
        await cache.close()
        assert await cache.get(list(scores)) == scores
        found = await asyncio.gather(*(cache.get([key]) for key in list(scores)[:300]))
        assert sum(map(len, found)) == 300
        await cache.close()
    assert metrics.registry.get_sample_value("reranker_shared_cache_failures_total") == 0


async def test_a_redis_that_is_slow_to_take_scores_delays_no_answer(tmp_path: Path) -> None:
    port = free_port()
    with redis(tmp_path, port) as server:
        cache = SharedCache(f"redis://127.0.0.1:{port}", 60, Metrics())
        await cache.connect()
        server.send_signal(signal.SIGSTOP)
        cache.put({b"key": Score(1.0, 10, truncated=False)})
        await cache.close()
        assert await cache.get([b"key"]) == {}
