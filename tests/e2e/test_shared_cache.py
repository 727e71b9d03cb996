"""Replicas that share their scores in a real Redis, also while it is killed or frozen."""

import asyncio
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from app.serving.shared_cache import REST_SECONDS, SECONDS, SharedCache
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


def keys(port: int) -> int:
    command = ["redis-cli", "-p", str(port), "dbsize"]
    return int(subprocess.run(command, capture_output=True, check=True).stdout)


def wait_for_keys(port: int, number: int) -> None:
    """Scores are written after the answer."""
    deadline = time.monotonic() + 10
    while keys(port) < number:
        assert time.monotonic() < deadline, f"Redis has fewer than {number} keys"
        time.sleep(0.05)


class Sharing(NamedTuple):
    """Two services with one Redis."""

    settings: dict[str, object]
    port: int
    """Of Redis."""
    first: str
    second: str


@pytest.fixture(scope="module")
def sharing(tiny: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sharing]:
    port = free_port()
    settings = tiny | {"RERANKER_CACHE_URL": f"redis://127.0.0.1:{port}"}
    folder = tmp_path_factory.mktemp("redis")
    with redis(folder, port), service(**settings) as (first, _), service(**settings) as (second, _):
        yield Sharing(settings, port, first, second)


def store(sharing: Sharing, query: str) -> dict[str, Any]:
    """The answer of the first service, after its scores are in Redis."""
    before = keys(sharing.port)
    answer = rank(sharing.first, query)
    wait_for_keys(sharing.port, before + len(MOONS["documents"]))
    return answer


def test_replicas_share_their_scores(sharing: Sharing) -> None:
    scored, known = store(sharing, str(MOONS["query"])), rank(sharing.second)
    assert (scored["meta"]["scored"], known["meta"]["scored"], known["meta"]["cached"]) == (5, 0, 5)
    assert known["results"] == scored["results"]
    assert known["usage"] == scored["usage"]
    with service(**sharing.settings, RERANKER_MAX_LENGTH=32) as (other, _):
        assert rank(other)["meta"]["scored"] == 5  # with another window, scores differ


def test_scores_expire(tiny: dict[str, object], tmp_path: Path) -> None:
    port = free_port()
    settings = tiny | {"RERANKER_CACHE_URL": f"redis://127.0.0.1:{port}", "CACHE_TTL_SECONDS": 1}
    with redis(tmp_path, port), service(**settings) as (url, _):
        rank(url)
        wait_for_keys(port, 5)
        time.sleep(1.2)
        assert keys(port) == 0
        assert rank(url)["meta"]["scored"] == 5


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_requests_are_served_when_redis_fails(tiny: dict[str, object], tmp_path: Path, stop: signal.Signals) -> None:
    port = free_port()
    settings = tiny | {"RERANKER_CACHE_URL": f"redis://127.0.0.1:{port}"}
    with ExitStack() as stack:
        server = stack.enter_context(redis(tmp_path, port))
        url, process = stack.enter_context(service(**settings))
        rank(url)
        server.send_signal(stop)
        for number in range(20):
            assert rank(url, f"Which planet, number {number}?")["meta"]["scored"] == 5
        assert 1 <= failures(url) <= 3  # it is not contacted for every request
        if stop == signal.SIGKILL:
            server.wait()
            stack.enter_context(redis(tmp_path, port))
        server.send_signal(signal.SIGCONT)
        time.sleep(REST_SECONDS)
        rank(url, "Is it back?")
        process.terminate()
        log = process.communicate()[1]
    assert log.count("The shared cache does not answer") == 1
    assert log.count("The shared cache answers again") == 1


def test_the_service_starts_without_redis(tiny: dict[str, object]) -> None:
    with service(**tiny, RERANKER_CACHE_URL=f"redis://127.0.0.1:{free_port()}") as (url, process):
        assert failures(url) == 1  # counted before the first request, and logged
        assert rank(url)["meta"]["scored"] == 5
        process.terminate()
        log = process.communicate()[1]
    assert log.index("The shared cache does not answer") < log.index("Ready in")


def test_invalid_values_in_redis_are_ignored(sharing: Sharing) -> None:
    """Text, and encoded scores that are NaN or infinite."""
    for value in ("no score", r"\0\0\192\127\5\0\0\0\0", r"\0\0\128\127\5\0\0\0\0"):
        store(sharing, f"moons {value}")
        script = f"for _, k in ipairs(redis.call('keys', '*')) do redis.call('set', k, '{value}') end"
        subprocess.run(["redis-cli", "-p", str(sharing.port), "eval", script, "0"], check=True, capture_output=True)
        assert rank(sharing.second, f"moons {value}")["meta"]["scored"] == 5, value


async def test_load_and_large_requests_do_not_count_as_failures_of_redis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.serving.shared_cache.SECONDS", 5)  # so that a busy machine does not count as a failure
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


async def test_a_busy_process_does_not_blame_redis(tmp_path: Path) -> None:
    metrics, port = Metrics(), free_port()
    with redis(tmp_path, port) as server:
        cache = SharedCache(f"redis://127.0.0.1:{port}", 60, metrics)
        await cache.connect()
        cache.put({b"key": Score(1.0, 10, truncated=False)})
        await asyncio.gather(*cache._writes)
        server.send_signal(signal.SIGSTOP)
        lookup = asyncio.create_task(cache.get([b"key"]))
        await asyncio.sleep(SECONDS / 4)  # the question is sent
        server.send_signal(signal.SIGCONT)
        time.sleep(3 * SECONDS)  # noqa: ASYNC251 (as the parsing of a large body does, while the answer arrives)
        await lookup
        found = {}
        while not found:  # on a slow machine a lookup may be late by itself
            found = await cache.get([b"key"])
        await cache.close()
    assert found[b"key"].logit == 1
    assert metrics.registry.get_sample_value("reranker_shared_cache_failures_total") == 0


async def test_a_slow_redis_delays_no_response(tmp_path: Path) -> None:
    port = free_port()
    with redis(tmp_path, port) as server:
        cache = SharedCache(f"redis://127.0.0.1:{port}", 60, Metrics())
        await cache.connect()
        server.send_signal(signal.SIGSTOP)
        cache.put({b"key": Score(1.0, 10, truncated=False)})
        await cache.close()
        assert await cache.get([b"key"]) == {}
