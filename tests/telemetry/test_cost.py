"""What a request costs, in its answer and by API key."""

import asyncio
import re
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
from httpx import AsyncClient
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from app.machine.cpu_time import EngineClock
from app.machine.energy import Rapl
from app.telemetry.cost import Bill, Ledger, divide
from app.telemetry.metrics import Metrics
from app.types import Pair
from tests.conftest import Serve, until
from tests.fakes import FakeEngine

ANN, BOB = "key-of-ann-0123456789", "key-of-bob-0123456789"


def name(key: str) -> str:
    return blake2b(key.encode()).hexdigest()[:8]


async def ask(client: AsyncClient, number: int, key: str | None = None) -> Any:
    documents = [f"document {number} {word} " * (1 + number % 7) for word in ("moon", "sea", "bread", "gravity")]
    headers = {"authorization": f"Bearer {key}"} if key else {}
    answer = await client.post("/rerank", json={"query": "moon", "documents": [*documents, "shared"]}, headers=headers)
    assert answer.status_code == 200
    return answer.json()["meta"]["cost"]


async def by_key(client: AsyncClient, figure: str) -> dict[str, float]:
    text = (await client.get("/metrics")).text
    rows = re.findall(rf'^reranker_key_{figure}_total\{{key="([^"]+)"\}} (\S+)$', text, re.MULTILINE)
    return {key: float(value) for key, value in rows}


async def test_the_costs_of_all_answers_add_up_to_the_totals_of_their_keys(serve: Serve, engine: FakeEngine) -> None:
    engine.info = replace(engine.info, splits=True)  # two batches at once
    async with serve(api_keys=SecretStr(f"{ANN},{BOB}"), max_parallel=20) as client:
        keys = [ANN if number % 3 else BOB for number in range(40)]
        costs = await asyncio.gather(*(ask(client, number, key) for number, key in enumerate(keys)))
        sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for key, cost in zip(keys, costs, strict=True):
            sums[name(key)][0] += cost["tokens"]
            sums[name(key)][1] += round(cost["cpu_ms"] * 1e6)
        tokens, seconds = await by_key(client, "tokens"), await by_key(client, "cpu_seconds")
        assert tokens == {key: total for key, (total, _) in sums.items()}
        assert {key: round(value * 1e9) for key, value in seconds.items()} == {key: ns for key, (_, ns) in sums.items()}
        assert sum(tokens.values()) == sum(length for batch in engine.batches for length in batch)
        assert all(cost["tokens"] > 0 for cost in costs)
        assert sum(seconds.values()) > 0


async def test_keys_do_not_appear_in_the_metrics(serve: Serve) -> None:
    async with serve(api_keys=SecretStr(ANN)) as client:
        await ask(client, 1, ANN)
        text = (await client.get("/metrics")).text
    assert ANN not in text
    assert f'key="{name(ANN)}"' in text


async def test_cached_scores_cost_nothing(serve: Serve) -> None:
    async with serve() as client:
        first, second = await ask(client, 1), await ask(client, 1)
        assert first["tokens"] > 0
        assert second == {"tokens": 0, "cpu_ms": 0.0}
        assert await by_key(client, "tokens") == {"anyone": first["tokens"]}


async def test_who_leaves_pays_for_the_running_batch(serve: Serve, engine: FakeEngine) -> None:
    async with serve() as client:
        engine.gate.clear()
        request = asyncio.create_task(ask(client, 1))
        await until(lambda: engine.entered == 1)
        request.cancel()
        engine.gate.set()
        await until(lambda: bool(engine.batches) and not serve.reranker.batcher.backlog)
        # The engine's thread notes a batch before the event loop charges it.
        while await by_key(client, "tokens") != {"anyone": sum(length for batch in engine.batches for length in batch)}:
            pass


async def test_without_a_counter_of_energy_there_are_no_joules(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("app.machine.energy.POWERCAP", tmp_path / "none")
    async with serve() as client:
        assert "joules" not in await ask(client, 1)
        assert "joules" not in (await client.get("/metrics")).text


def zone(folder: Path, name: str, energy: int, limit: int = 1000) -> Path:
    folder.mkdir()
    for file, content in (("name", name), ("energy_uj", energy), ("max_energy_range_uj", limit)):
        (folder / file).write_text(f"{content}\n")
    return folder / "energy_uj"


async def test_the_energy_of_the_packages_is_divided_among_the_requests(
    serve: Serve, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    counter = zone(tmp_path / "intel-rapl:0", "package-0", 0, 10**9)
    zone(tmp_path / "intel-rapl:0:0", "core", 0)
    monkeypatch.setattr("app.machine.energy.POWERCAP", tmp_path)
    score = engine.score

    def score_and_use(pairs: Sequence[Pair]) -> list[float]:
        counter.write_text(str(int(counter.read_text()) + 1_000_003))  # a joule and a bit for each batch
        return score(pairs)

    monkeypatch.setattr(engine, "score", score_and_use)
    async with serve() as client:
        costs = await asyncio.gather(*(ask(client, number) for number in range(5)))
        joules = await by_key(client, "joules")
    used = len(engine.batches) * 1_000_003
    assert sum(round(cost["joules"] * 1e6) for cost in costs) == used
    assert round(joules["anyone"] * 1e6) == used


def test_a_counter_of_energy_starts_again_after_its_range(tmp_path: Path) -> None:
    package, memory = zone(tmp_path / "intel-rapl:0", "package-0", 990), zone(tmp_path / "intel-rapl:0:1", "dram", 5)
    rapl = Rapl.find(tmp_path)
    assert rapl is not None
    package.write_text("10")
    memory.write_text("25")
    assert rapl.read() == 21 + 20
    package.unlink()
    assert rapl.read() == 41


def test_batches_that_run_together_share_what_is_used_meanwhile() -> None:
    clock = iter([100, 200, 300, 1000])
    ledger = Ledger(Metrics(), clock=lambda: next(clock))
    ann, bob = Bill("ann"), Bill("bob")
    first, second = ledger.batch([(ann, 30)]), ledger.batch([(ann, 10), (bob, 60)])
    with first:
        with second:
            pass
        assert (ann.cpu_ns, bob.cpu_ns) == (10, 60)  # 70 of 100 nanoseconds
    assert (ann.cpu_ns, bob.cpu_ns) == (10 + 100 + 30 + 700, 60)
    assert ann.cpu_ns + bob.cpu_ns == 1000 - 100


def test_who_shares_tokens_with_others_pays_for_what_is_computed() -> None:
    clock = iter([0, 400])
    ledger = Ledger(Metrics(), clock=lambda: next(clock))
    ann, bob = Bill("ann"), Bill("bob")
    with ledger.batch([(ann, 100), (bob, 100), (ann, 100)], [50, 150, 0]):
        pass
    assert (ann.cpu_ns, bob.cpu_ns) == (100, 300)
    assert (ann.tokens, bob.tokens) == (200, 100)


@given(st.integers(0, 10**15), st.lists(st.integers(0, 10**6), min_size=1, max_size=50).filter(any))
def test_parts_add_up_and_are_in_proportion(total: int, weights: list[int]) -> None:
    parts = divide(total, weights)
    assert sum(parts) == total
    assert all(abs(part - total * weight / sum(weights)) < 1.5 for part, weight in zip(parts, weights, strict=True))


@pytest.mark.skipif(not hasattr(time, "pthread_getcpuclockid"), reason="this system has no clock for each thread")
def test_other_threads_of_python_do_not_count_as_the_engine() -> None:
    clock, done = EngineClock("inference"), threading.Event()

    def work() -> None:
        until = time.thread_time_ns() + 50_000_000
        while time.thread_time_ns() < until:
            pass
        done.wait()

    used = []
    for name in ("tokenizer_0", "inference_0"):
        done.clear()
        before, thread = clock.read(), threading.Thread(target=work, name=name)
        started = time.process_time_ns()
        thread.start()
        while time.process_time_ns() < started + 55_000_000:
            time.sleep(0.001)
        used.append(clock.read() - before)
        done.set()
        thread.join()
    assert used[0] < 25_000_000 < used[1]
