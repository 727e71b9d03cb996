"""Which requests run, wait or are rejected. The decision covers the whole request and precedes any work on it.

Several models share the slots and the queue: free slots go to the models in turn, and half of the queue is kept for
them in equal parts, so that a flood of requests to one model leaves places for the others.
"""

import asyncio
import heapq
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from itertools import count

from app.errors import QueueFull, QueueTimeout

# The weight of the newest request in the average time that a request holds its slot.
SMOOTHING = 0.2
# Bounds of `Retry-After`, in seconds.
RETRY_AFTER = (1, 60)
# Abandoned turns are removed in bulk: when they outnumber the waiting requests by more than this.
SLACK = 64

Backlog = Callable[[], float | None]
"""Seconds until the engine has finished its current work; None while its speed is unknown."""


def unknown() -> None:
    """The backlog before the engine's speed is known."""


class Admission:
    """Slots with a bounded queue in front. Owns the requests that hold one or wait; used on the event loop only."""

    def __init__(
        self, max_parallel: int, max_queue: int, queue_timeout: float, models: Collection[str] = ("",)
    ) -> None:
        """`models`: the names of those that share the slots."""
        self.max_parallel = max_parallel
        self.max_queue = max_queue
        self.queue_timeout = queue_timeout
        self._free = max_parallel
        self._models = models
        # Waiting requests: a heap by priority, round and arrival. While it has live turns, no slot is free. Each model
        # has one request in a round.
        self._turns: list[tuple[int, int, int, asyncio.Future[None]]] = []
        self._round = 0
        self._last_rounds: dict[str, int] = {}
        self._waiting_of: Counter[str] = Counter()
        self._arrivals = count()
        self._average_held = 0.0
        # When each active request got its slot, oldest first.
        self._entered: dict[object, float] = {}

    @property
    def active(self) -> int:
        """Requests that hold a slot."""
        return len(self._entered)

    @property
    def waiting(self) -> int:
        """Requests that wait for one."""
        return self._waiting_of.total()

    @asynccontextmanager
    async def slot(self, priority: int = 0, backlog: Backlog = unknown, model: str = "") -> AsyncIterator[float]:
        """Hold one slot; yields the seconds waited for it. Lower `priority` is served first.

        `backlog` is called for the `Retry-After` of a rejection. Raises `QueueFull` at once, or `QueueTimeout` after
        `queue_timeout` seconds.
        """
        waited = await self._enter(priority, backlog, model)
        ticket = object()
        self._entered[ticket] = time.perf_counter()
        try:
            yield waited
            self._record(time.perf_counter() - self._entered[ticket])
        finally:
            del self._entered[ticket]
            self._release()

    async def _enter(self, priority: int, backlog: Backlog, model: str) -> float:
        if not self._free and self.waiting + (kept := self._kept_from(model)) >= self.max_queue:
            raise QueueFull(
                f"Queue is full: {self.active} requests running (RERANKER_MAX_PARALLEL={self.max_parallel}) and "
                f"{self.waiting} waiting (RERANKER_MAX_QUEUE={self.max_queue}"
                + (f", of which {kept} are kept for other models)" if kept else ")"),
                self.retry_after(backlog()),
            )
        started = time.perf_counter()
        self._waiting_of[model] += 1
        try:
            async with asyncio.timeout(self.queue_timeout):
                await self._acquire(priority, model)
        except TimeoutError:
            raise QueueTimeout(
                f"No free slot within {self.queue_timeout:g} s (RERANKER_QUEUE_TIMEOUT)", self.retry_after(backlog())
            ) from None
        finally:
            self._waiting_of[model] -= 1
            if not self._waiting_of[model]:
                self._last_rounds.pop(model, None)  # what this model abandoned does not count against it
        return time.perf_counter() - started

    def _kept_from(self, model: str) -> int:
        """Free places of the queue that this model must leave to the others."""
        if len(self._models) == 1:
            return 0
        share = self.max_queue // (2 * len(self._models))
        return sum(max(0, share - self._waiting_of[other]) for other in self._models if other != model)

    async def _acquire(self, priority: int, model: str) -> None:
        if self._free:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        place = self._last_rounds[model] = max(self._round, self._last_rounds.get(model, 0)) + 1
        heapq.heappush(self._turns, (priority, place, next(self._arrivals), turn))
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # the slot was handed over just before the cancellation
                self._release()
            elif len(self._turns) > 2 * self.waiting + SLACK:
                self._turns = [each for each in self._turns if not each[-1].done()]
                heapq.heapify(self._turns)
            raise

    def _release(self) -> None:
        """Pass the slot on, or free it."""
        while self._turns:
            _, place, _, turn = heapq.heappop(self._turns)
            if not turn.done():
                self._round = max(self._round, place)
                turn.set_result(None)
                return
        self._free += 1

    def retry_after(self, backlog: float | None = None) -> int:
        """Estimate the whole seconds until a new request would get a slot.

        Assumes that running requests finish one after the other within the backlog, and that waiting requests hold
        their slot for the recent average. If the backlog is unknown, assumes that every request takes at least as long
        as the oldest running one has taken so far.
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
