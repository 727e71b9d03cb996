import asyncio
from contextlib import suppress

import pytest

from app.errors import QueueFull, QueueTimeout
from app.serving.admission import Admission
from tests.conftest import until


async def hold(admission: Admission, release: asyncio.Event) -> None:
    async with admission.slot():
        await release.wait()


async def test_requests_fill_the_slots_then_the_queue_then_are_rejected() -> None:
    admission, release = Admission(max_parallel=2, max_queue=3, queue_timeout=30), asyncio.Event()
    tasks = [asyncio.create_task(hold(admission, release)) for _ in range(5)]
    await until(lambda: admission.active == 2 and admission.waiting == 3)
    with pytest.raises(QueueFull, match=r"2 requests running \(RERANKER_MAX_PARALLEL=2\) and 3 waiting"):
        await hold(admission, release)
    release.set()
    await asyncio.gather(*tasks)
    assert (admission.active, admission.waiting) == (0, 0)


async def test_a_free_slot_is_given_even_without_a_queue() -> None:
    admission = Admission(max_parallel=1, max_queue=0, queue_timeout=30)
    async with admission.slot():
        with pytest.raises(QueueFull):
            await hold(admission, asyncio.Event())
    async with admission.slot() as waited:
        assert waited >= 0


async def test_waiting_ends_after_the_timeout() -> None:
    admission, release = Admission(max_parallel=1, max_queue=5, queue_timeout=0.02), asyncio.Event()
    holder = asyncio.create_task(hold(admission, release))
    await until(lambda: admission.active == 1)
    with pytest.raises(QueueTimeout, match=r"0\.02 s"):
        await hold(admission, release)
    assert (admission.active, admission.waiting) == (1, 0)
    release.set()
    await holder


@pytest.mark.parametrize("victim", ["active", "waiting"])
async def test_a_cancelled_request_gives_its_place_back(victim: str) -> None:
    admission, release = Admission(max_parallel=1, max_queue=5, queue_timeout=30), asyncio.Event()
    active = asyncio.create_task(hold(admission, release))
    await until(lambda: admission.active == 1)
    waiting = asyncio.create_task(hold(admission, release))
    await until(lambda: admission.waiting == 1)
    (active if victim == "active" else waiting).cancel()
    await until(lambda: admission.waiting == 0 and admission.active == 1)
    release.set()
    await asyncio.gather(active, waiting, return_exceptions=True)
    assert (admission.active, admission.waiting) == (0, 0)
    async with admission.slot():
        pass


async def test_retry_after_grows_with_the_queue_and_the_time_requests_take() -> None:
    admission = Admission(max_parallel=2, max_queue=100, queue_timeout=30)
    assert admission.retry_after() == 1
    admission._record(4.0)
    assert admission.retry_after() == 2
    admission._waiting_of[""] = 9
    assert admission.retry_after() == 20
    admission._waiting_of[""] = 1000
    assert admission.retry_after() == 60


async def test_retry_after_counts_a_long_request_before_it_is_answered() -> None:
    admission, release = Admission(max_parallel=1, max_queue=5, queue_timeout=30), asyncio.Event()
    holder = asyncio.create_task(hold(admission, release))
    await until(lambda: admission.active == 1)
    [ticket] = admission._entered
    admission._entered[ticket] -= 12
    assert admission.retry_after() >= 12
    release.set()
    await holder


async def test_retry_after_is_the_time_left_not_the_time_passed() -> None:
    admission, release = Admission(max_parallel=1, max_queue=0, queue_timeout=30), asyncio.Event()
    holder = asyncio.create_task(hold(admission, release))
    await until(lambda: admission.active == 1)
    [ticket] = admission._entered
    for passed, left, expected in ((1, 7.8, 8), (7, 1.2, 2), (20, 0.1, 1)):
        admission._entered[ticket] -= passed
        with pytest.raises(QueueFull) as refused:
            async with admission.slot(0, lambda left=left: left):
                pass
        assert refused.value.retry_after == expected
    release.set()
    await holder


def test_retry_after_includes_waiting_requests() -> None:
    admission = Admission(max_parallel=2, max_queue=100, queue_timeout=30)
    admission._record(4.0)
    assert admission.retry_after(6.0) == 3  # the first of two ends half way
    admission._waiting_of[""] = 3
    assert admission.retry_after(6.0) == 6 + 4


async def test_waiting_requests_are_served_by_priority_then_arrival() -> None:
    admission, served = Admission(max_parallel=1, max_queue=9, queue_timeout=30), []

    async def request(priority: int, number: int) -> None:
        async with admission.slot(priority):
            served.append((priority, number))

    async with admission.slot():
        tasks = [asyncio.create_task(request(priority, number)) for number, priority in enumerate([1, 0, -5, 0, 1])]
        await until(lambda: admission.waiting == 5)
    await asyncio.gather(*tasks)
    assert served == [(-5, 2), (0, 1), (0, 3), (1, 0), (1, 4)]


async def test_a_slot_given_to_a_leaving_request_goes_to_the_next() -> None:
    admission, release = Admission(max_parallel=1, max_queue=5, queue_timeout=30), asyncio.Event()
    async with admission.slot():
        leaving = asyncio.create_task(hold(admission, release))
        await until(lambda: admission.waiting == 1)
    leaving.cancel()  # the slot is handed over, but the task has not run since
    async with asyncio.timeout(5), admission.slot():
        assert admission.active == 1


async def test_abandoned_turns_take_no_memory() -> None:
    admission, release = Admission(max_parallel=1, max_queue=10, queue_timeout=30), asyncio.Event()
    async with admission.slot():
        patient = asyncio.create_task(hold(admission, release))
        for _ in range(300):
            leaving = [asyncio.create_task(hold(admission, release)) for _ in range(9)]
            await asyncio.sleep(0)
            for task in leaving:
                task.cancel()
            await asyncio.gather(*leaving, return_exceptions=True)
        assert admission.waiting == 1
        assert len(admission._turns) < 100
    release.set()
    await patient


async def start(
    admission: Admission, model: str, count: int, served: list[str], release: asyncio.Event
) -> list[asyncio.Task[None]]:
    """Start requests to a model, which hold their slot until `release`."""

    async def request() -> None:
        with suppress(QueueFull):
            async with admission.slot(model=model):
                served.append(model)
                await release.wait()

    tasks = [asyncio.create_task(request()) for _ in range(count)]
    await asyncio.sleep(0)
    return tasks


async def test_free_slots_go_to_the_models_in_turn() -> None:
    admission = Admission(max_parallel=1, max_queue=100, queue_timeout=30, models=("a", "b"))
    served, release = list[str](), asyncio.Event()
    tasks = await start(admission, "a", 10, served, release)
    tasks += await start(admission, "b", 3, served, release)
    release.set()
    await asyncio.gather(*tasks)
    assert "".join(served) == "aababab" + "a" * 6


async def test_a_flood_of_one_model_leaves_places_in_the_queue() -> None:
    admission = Admission(max_parallel=1, max_queue=8, queue_timeout=30, models=("a", "b"))
    served, release = list[str](), asyncio.Event()
    tasks = await start(admission, "a", 20, served, release)
    assert admission.waiting == 6
    with pytest.raises(QueueFull, match=r"6 waiting \(RERANKER_MAX_QUEUE=8, of which 2 are kept for other models\)"):
        async with admission.slot(model="a"):
            pass
    tasks += await start(admission, "b", 20, served, release)
    assert admission.waiting == 8, "the limit holds for all together"
    release.set()
    await asyncio.gather(*tasks)
    assert served.count("b") == 2
