import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import EngineBroken, OutOfMemory, ScoringFailed, Unavailable
from app.serving.batcher import Batcher
from app.serving.queues import MAX_PADDING, take_batch
from app.telemetry.metrics import Metrics
from app.types import Pair
from tests.conftest import Serve, until
from tests.fakes import NAN, FakeEngine

QUEUES = st.lists(st.lists(st.integers(1, 512), min_size=1, max_size=30).map(sorted), min_size=1, max_size=6)


def pair(length: int) -> Pair:
    return Pair(np.ones(length, np.int32), np.zeros(length, np.int32), truncated=False)


@given(QUEUES, st.integers(16, 4096))
def test_a_batch_keeps_the_budget_and_pads_little(queues: list[list[int]], budget: int) -> None:
    batch = take_batch(queues, budget, MAX_PADDING)
    lengths = [queues[queue][position] for queue, position in batch]
    assert len(set(batch)) == len(batch)
    assert len(batch) == 1 or len(lengths) * max(lengths) <= budget
    assert min(lengths) >= max(lengths) * (1 - MAX_PADDING)


@given(QUEUES, st.integers(16, 4096))
def test_a_batch_starts_with_the_longest_pair_of_the_first_request(queues: list[list[int]], budget: int) -> None:
    assert take_batch(queues, budget, MAX_PADDING)[0] == (0, len(queues[0]) - 1)


@given(QUEUES, st.integers(16, 4096))
def test_a_batch_is_full_while_fitting_pairs_wait(queues: list[list[int]], budget: int) -> None:
    batch = take_batch(queues, budget, MAX_PADDING)
    longest = queues[0][-1]
    fitting = sum(longest * (1 - MAX_PADDING) <= length <= longest for queue in queues for length in queue)
    assert len(batch) == min(max(1, budget // longest), fitting)


@given(QUEUES, st.integers(16, 4096))
def test_an_engine_without_padding_gets_any_lengths_and_a_full_batch(queues: list[list[int]], budget: int) -> None:
    batch = take_batch(queues, budget, max_padding=None)
    lengths = [queues[queue][position] for queue, position in batch]
    left = budget - sum(lengths)
    waiting = [
        length
        for index, queue in enumerate(queues)
        for position, length in enumerate(queue)
        if (index, position) not in batch and length <= queues[0][-1]
    ]
    assert left >= 0 or len(batch) == 1
    assert all(length > left for length in waiting)


def test_a_batch_serves_the_first_request_and_fills_up_from_the_others() -> None:
    batch = take_batch([[100] * 5, [100] * 50, [100] * 2], 900, MAX_PADDING)
    assert [sum(queue == index for queue, _ in batch) for index in range(3)] == [5, 4, 0]


@asynccontextmanager
async def running(engine: FakeEngine, budget: int = 1000) -> AsyncIterator[Batcher]:
    with ThreadPoolExecutor(1) as thread:
        batcher = Batcher(engine, thread, budget, Metrics())
        loop = asyncio.create_task(batcher.run())
        try:
            yield batcher
        finally:
            engine.gate.set()
            loop.cancel()
            await asyncio.gather(loop, return_exceptions=True)


async def test_scores_come_back_in_the_order_of_submission(engine: FakeEngine) -> None:
    pairs = engine.encode("a b c d", ["a", "a b c", "x", "c d"])
    async with running(engine) as batcher:
        assert await asyncio.gather(*batcher.submit(pairs)) == [0.5, 2.5, -0.5, 1.5]


async def test_a_small_request_does_not_wait_for_a_large_one(engine: FakeEngine) -> None:
    async with running(engine, budget=1000) as batcher:
        engine.gate.clear()
        large = batcher.submit([pair(100) for _ in range(500)])
        small = batcher.submit([pair(50) for _ in range(10)])
        engine.gate.set()
        await asyncio.gather(*small)
        assert sum(future.done() for future in large) <= 20
        await asyncio.gather(*large)


async def test_a_large_request_is_not_starved_by_small_ones(engine: FakeEngine) -> None:
    async with running(engine, budget=1000) as batcher:
        engine.gate.clear()
        blocker = batcher.submit([pair(400)])
        await until(lambda: batcher.pending == 0)
        large = batcher.submit([pair(90) for _ in range(33)])
        small = [future for _ in range(20) for future in batcher.submit([pair(100) for _ in range(10)])]
        engine.gate.set()
        await asyncio.gather(*blocker, *large, *small)
    assert {90} in [set(batch) for batch in engine.batches[1:5]]


async def test_a_request_a_little_over_the_budget_is_one_batch(engine: FakeEngine) -> None:
    async with running(engine, budget=1000) as batcher:
        engine.gate.clear()
        blocker = batcher.submit([pair(400)])
        await until(lambda: batcher.pending == 0)
        futures = batcher.submit([pair(100) for _ in range(15)]) + batcher.submit([pair(99) for _ in range(16)])
        engine.gate.set()
        await asyncio.gather(*blocker, *futures)
    assert engine.batches[1:] == [[100] * 15, [99] * 10, [99] * 6]


@pytest.mark.parametrize("fields", [{"splits": True}, {"packed": True}])
async def test_lengths_are_mixed_if_the_engine_does_not_pad(engine: FakeEngine, fields: dict[str, Any]) -> None:
    engine.info = replace(engine.info, **fields)
    async with running(engine, budget=1000) as batcher:
        await asyncio.gather(*batcher.submit([pair(length) for length in (500, 20, 300, 180)]))
    assert engine.batches == [[500, 300, 180, 20]]


async def test_a_long_request_gets_half_batches_if_the_engine_splits(engine: FakeEngine) -> None:
    engine.info = replace(engine.info, splits=True)
    async with running(engine, budget=1000) as batcher:
        await asyncio.gather(*batcher.submit([pair(100) for _ in range(100)]))
    assert [len(batch) for batch in engine.batches[:5]] == [5, 5, 5, 5, 10]
    assert sum(map(len, engine.batches)) == 100


async def test_lower_priorities_are_scored_first(engine: FakeEngine) -> None:
    async with running(engine, budget=1000) as batcher:
        engine.gate.clear()
        blocker = batcher.submit([pair(400)])
        await until(lambda: batcher.pending == 0)
        later = batcher.submit([pair(100) for _ in range(10)], priority=1)
        usual = batcher.submit([pair(99) for _ in range(20)])
        urgent = batcher.submit([pair(98) for _ in range(30)], priority=-1)
        engine.gate.set()
        await asyncio.gather(*blocker, *later, *usual, *urgent)
    assert [set(batch) for batch in engine.batches[1:]] == [{98}, {98}, {98}, {99}, {99}, {100}]


async def test_pairs_of_different_requests_share_a_batch(engine: FakeEngine) -> None:
    async with running(engine, budget=1000) as batcher:
        engine.gate.clear()
        blocker = batcher.submit([pair(400)])
        await until(lambda: batcher.pending == 0)
        futures = [future for _ in range(5) for future in batcher.submit([pair(100), pair(100)])]
        engine.gate.set()
        await asyncio.gather(*blocker, *futures)
    assert engine.batches == [[400], [100] * 10]


async def test_a_failed_batch_fails_its_own_pairs_and_nothing_else(
    engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(engine, budget=100) as batcher:
        engine.failure = RuntimeError("secret internals")
        [failed] = batcher.submit([pair(100)])
        with pytest.raises(ScoringFailed) as caught:
            await failed
        assert "secret" not in str(caught.value)
        assert "secret internals" in caplog.text
        engine.failure = None
        assert await asyncio.gather(*batcher.submit([pair(100)])) == [-0.5]


async def test_out_of_memory_halves_the_batch(engine: FakeEngine) -> None:
    engine.capacity = 3
    async with running(engine, budget=1000) as batcher:
        assert await asyncio.gather(*batcher.submit([pair(100)] * 10)) == [-0.5] * 10
    assert engine.cleared > 0


async def test_larger_batches_are_tried_again_later(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.serving.batcher.TRY_LARGER_EVERY", 5)
    async with running(engine) as batcher:
        engine.capacity = 1
        await asyncio.gather(*batcher.submit([pair(20), pair(20)]))
        assert batcher.token_budget == 20
        engine.capacity = 10**9
        for _ in range(50):
            await asyncio.gather(*batcher.submit([pair(20)]))
        assert batcher.token_budget == 1000  # as at first


async def test_a_pair_that_can_never_fit_is_an_error(engine: FakeEngine) -> None:
    engine.capacity = 0
    async with running(engine) as batcher:
        [future] = batcher.submit([pair(100)])
        with pytest.raises(OutOfMemory):
            await future
        assert batcher.alive


async def test_pairs_as_long_as_one_that_does_not_fit_are_not_tried(engine: FakeEngine) -> None:
    engine.longest = 99
    async with running(engine, budget=10_000) as batcher:
        outcomes = await asyncio.gather(*batcher.submit([pair(100)] * 64), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {OutOfMemory}
    assert [len(batch) for batch in engine.batches] == [64, 32, 16, 8, 4, 2, 1]


async def test_a_score_that_is_not_a_number_is_an_error_for_its_pair_only(engine: FakeEngine) -> None:
    async with running(engine) as batcher:
        bad, good = batcher.submit(engine.encode("a", [NAN, "a"]))
        with pytest.raises(ScoringFailed, match="not a number"):
            await bad
        assert await good == 0.5


async def test_withdrawn_pairs_are_scored_only_if_their_batch_runs(engine: FakeEngine) -> None:
    async with running(engine) as batcher:
        engine.gate.clear()
        [running_now] = batcher.submit([pair(300)])
        await until(lambda: batcher.pending == 0)
        gone, kept, also_gone = batcher.submit([pair(200), pair(100), pair(200)])
        batcher.withdraw([running_now, gone, also_gone])
        assert gone.cancelled()
        assert also_gone.cancelled()
        assert batcher.pending == 1
        engine.gate.set()
        await asyncio.gather(running_now, kept)
    assert engine.batches == [[300], [100]]


async def test_a_batch_cancelled_before_it_starts_fails_its_pairs(engine: FakeEngine) -> None:
    """The engine breaks on one batch just as the next one is taken."""
    engine.info = replace(engine.info, splits=True)
    with ThreadPoolExecutor(2) as threads:
        batcher = Batcher(engine, threads, 1024, Metrics())
        run = asyncio.create_task(batcher.run())
        engine.gate.clear()
        engine.failure = EngineBroken("broken")
        [first] = batcher.submit([pair(300)])
        await until(lambda: engine.entered == 1)
        engine.gate.set()
        time.sleep(0.05)  # noqa: ASYNC251 (the engine breaks while the loop does something else)
        await asyncio.sleep(0)
        [second] = batcher.submit([pair(200)])
        await asyncio.wait({first, second}, timeout=5)
        assert isinstance(first.exception(), EngineBroken | ScoringFailed)
        assert isinstance(second.exception(), Unavailable)
        with pytest.raises(ExceptionGroup):
            await run


async def test_no_pair_is_left_waiting_when_the_loop_ends(engine: FakeEngine) -> None:
    async with running(engine) as batcher:
        engine.gate.clear()
        [running_now] = batcher.submit([pair(300)])
        await until(lambda: batcher.pending == 0)
        [waiting] = batcher.submit([pair(200)])
    for future in (running_now, waiting):
        with pytest.raises(Unavailable):
            await future
    assert not batcher.alive
    with pytest.raises(Unavailable):
        batcher.submit([pair(1)])


@pytest.mark.parametrize(("fields", "at_once"), [({"splits": True}, 2), ({"device": "cuda:0"}, 2), ({}, 1)])
async def test_splitting_engines_and_gpus_get_the_next_batch_while_one_runs(
    serve: Serve, engine: FakeEngine, fields: dict[str, Any], at_once: int
) -> None:
    engine.info = replace(engine.info, **fields)
    async with serve(batch_tokens=16) as client:
        engine.gate.clear()
        body = {"query": "a b c", "documents": [f"a b c d {index}" for index in range(6)]}
        request = asyncio.create_task(client.post("/rerank", json=body))
        await until(lambda: engine.entered == at_once)
        assert serve.reranker.batcher.pending == 6 - 2 * at_once
        engine.gate.set()
        assert (await request).status_code == 200
    assert engine.batches == [[8, 8], [8, 8], [8, 8]]
