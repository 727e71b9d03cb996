"""Who may work, who may wait, who is sent away. A request is in or out as a whole, before any work is done for it."""

import asyncio
import heapq
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count

from app.errors import QueueFull, QueueTimeout

# How fast the average time in a slot follows the newest request, and the bounds of a `Retry-After`, in seconds.
SMOOTHING = 0.2
RETRY_AFTER = (1, 60)
# Turns of requests that gave up are kept until they are so many more than those that wait.
SLACK = 64

Backlog = Callable[[], float | None]
"""Seconds until the engine is through with what it has now; None while its speed is not known."""


def unknown() -> None:
    """A backlog that nobody knows."""


class Admission:
    """Slots with a bounded queue in front. Owns the active and waiting counts; used on the event loop only."""

    def __init__(self, max_parallel: int, max_queue: int, queue_timeout: float) -> None:
        self.max_parallel = max_parallel
        self.max_queue = max_queue
        self.queue_timeout = queue_timeout
        self.active = 0
        self.waiting = 0
        self._free = max_parallel
        # Who waits: a heap by priority, then by arrival. There is a free slot only while nobody is in it.
        self._turns: list[tuple[int, int, asyncio.Future[None]]] = []
        self._arrivals = count()
        self._average_held = 0.0
        # When each active request got its slot, oldest first.
        self._entered: dict[object, float] = {}

    @asynccontextmanager
    async def slot(self, priority: int = 0, backlog: Backlog = unknown) -> AsyncIterator[float]:
        """Hold one slot; yields the seconds waited for it. Of those that wait, lower `priority` comes first.

        `backlog` is asked when a caller is sent away. Raises `QueueFull` at once or `QueueTimeout` in time.
        """
        waited = await self._enter(priority, backlog)
        self.active += 1
        ticket = object()
        self._entered[ticket] = time.perf_counter()
        try:
            yield waited
            self._record(time.perf_counter() - self._entered[ticket])
        finally:
            del self._entered[ticket]
            self.active -= 1
            self._release()

    async def _enter(self, priority: int, backlog: Backlog) -> float:
        if not self._free and self.waiting >= self.max_queue:
            raise QueueFull(
                f"Queue is full: {self.active} requests in work (RERANKER_MAX_PARALLEL={self.max_parallel}) and "
                f"{self.waiting} waiting (RERANKER_MAX_QUEUE={self.max_queue})",
                self.retry_after(backlog()),
            )
        started = time.perf_counter()
        self.waiting += 1
        try:
            async with asyncio.timeout(self.queue_timeout):
                await self._acquire(priority)
        except TimeoutError:
            raise QueueTimeout(
                f"No free slot within {self.queue_timeout:g} s (RERANKER_QUEUE_TIMEOUT)", self.retry_after(backlog())
            ) from None
        finally:
            self.waiting -= 1
        return time.perf_counter() - started

    async def _acquire(self, priority: int) -> None:
        if self._free:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._turns, (priority, next(self._arrivals), turn))
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # its turn came in the same moment
                self._release()
            elif len(self._turns) > 2 * self.waiting + SLACK:
                self._turns = [each for each in self._turns if not each[2].done()]
                heapq.heapify(self._turns)
            raise

    def _release(self) -> None:
        """Pass the slot on, or free it."""
        while self._turns:
            *_, turn = heapq.heappop(self._turns)
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def retry_after(self, backlog: float | None = None) -> int:
        """Whole seconds until a newcomer would probably get a slot.

        Those in work end one after the other within the backlog, and who waits holds a slot as long as answered
        requests lately did. Where the backlog is not known, all take as long as the oldest one in work has by now.
        """
        typical = self._average_held
        if backlog is None:
            oldest = time.perf_counter() - next(iter(self._entered.values()), time.perf_counter())
            typical = backlog = max(typical, oldest)
        places = self.waiting + 1
        in_work = min(places, self.max_parallel)
        seconds = (backlog * in_work + typical * (places - in_work)) / self.max_parallel
        low, high = RETRY_AFTER
        return min(high, max(low, math.ceil(seconds)))

    def _record(self, held: float) -> None:
        previous = self._average_held or held
        self._average_held = previous + SMOOTHING * (held - previous)
