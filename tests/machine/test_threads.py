"""Work on threads that are stopped."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from app.errors import Unavailable
from app.machine.threads import on_thread, running_threads


async def test_work_that_has_not_begun_is_unavailable_when_the_threads_stop() -> None:
    gate = Event()
    with running_threads(1, "busy") as threads:
        threads.submit(gate.wait)
        waiting = asyncio.create_task(on_thread(threads, len, "abc"))
        await asyncio.sleep(0)
    gate.set()
    with pytest.raises(Unavailable, match="stopped before"):
        await waiting
    with pytest.raises(Unavailable, match="stopped before"):
        await on_thread(threads, len, "abc")


async def test_a_cancelled_caller_stays_cancelled() -> None:
    gate = Event()
    with ThreadPoolExecutor(1) as threads:
        waiting = asyncio.create_task(on_thread(threads, gate.wait))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        gate.set()


async def test_a_failure_of_the_work_is_raised() -> None:
    with running_threads(1, "one") as threads:
        assert await on_thread(threads, len, "abc") == 3
        with pytest.raises(ZeroDivisionError):
            await on_thread(threads, divmod, 1, 0)
