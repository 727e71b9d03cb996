"""Pairs of all requests in work, put together into batches for the one engine.

A batch is built the moment the engine is free: no polling and no delay to fill it. Requests take turns: the one whose
turn it is has its longest pair in the batch, pairs of about that length from every request fill it up.
"""

import asyncio
import logging
import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from operator import attrgetter
from time import perf_counter

from app.backends import Scorer
from app.errors import OutOfMemory, ScoringFailed, Unavailable
from app.metrics import Metrics
from app.tokenization import Pair

log = logging.getLogger(__name__)

# The share of a batch row that may be padding: pairs shorter than this wait for a batch of their own size.
MAX_PADDING = 0.125
STOPPED = "The service stopped before this request was scored"


@dataclass(eq=False, slots=True)
class Work:
    """One pair and the place where its logit is awaited."""

    pair: Pair
    future: "asyncio.Future[float]"

    @property
    def length(self) -> int:
        return self.pair.length


def take_batch(queues: Sequence[Sequence[int]], budget: int, max_padding: float) -> list[tuple[int, int]]:
    """Choose the next batch: `(queue, position)` of each chosen pair, longer ones of a queue first.

    `queues` holds the pair lengths in tokens of each request, ascending, the request whose turn it is first. Its
    longest pair is always taken, and no pair is longer or more than `max_padding` shorter. The batch takes `budget`
    tokens at most: rows × longest row, or where `max_padding` is 1 the sum, since then the engine does not pad.
    """
    longest = queues[0][-1]
    starts = [bisect_left(queue, math.ceil(longest * (1 - max_padding))) for queue in queues]
    cursors = [bisect_right(queue, longest) for queue in queues]
    batch: list[tuple[int, int]] = []
    left = budget
    while any(cursor > start for cursor, start in zip(cursors, starts, strict=True)):
        for index, start in enumerate(starts):
            if cursors[index] > start:
                cost = queues[index][cursors[index] - 1] if max_padding == 1 else longest
                if batch and cost > left:
                    return batch
                cursors[index] -= 1
                batch.append((index, cursors[index]))
                left -= cost
    return batch


class Batcher:
    """Owns the pending pairs and the loop that feeds the inference thread; used on the event loop only."""

    def __init__(self, scorer: Scorer, thread: Executor, token_budget: int, metrics: Metrics) -> None:
        self.token_budget = token_budget
        self.alive = True
        self._scorer = scorer
        self._thread = thread
        self._metrics = metrics
        # One ascending list of pairs per request, in the order of their turns.
        self._queues: list[list[Work]] = []
        self._arrived = asyncio.Event()

    @property
    def pending(self) -> int:
        """Pairs that wait for a batch."""
        return sum(map(len, self._queues))

    def submit(self, pairs: Sequence[Pair]) -> list["asyncio.Future[float]"]:
        """Queue the pairs of one request; returns a future logit for each. Never awaits."""
        if not self.alive:
            raise Unavailable("The inference loop has stopped")
        loop = asyncio.get_running_loop()
        works = [Work(pair, loop.create_future()) for pair in pairs]
        if works:
            self._queues.append(sorted(works, key=attrgetter("length")))
            self._arrived.set()
        return [work.future for work in works]

    def prune(self) -> None:
        """Forget the pairs whose futures were cancelled."""
        live = ([work for work in queue if not work.future.done()] for queue in self._queues)
        self._queues = [queue for queue in live if queue]

    def close(self) -> None:
        """Take no more pairs and fail those that wait for a batch."""
        self.alive = False
        for queue in self._queues:
            fail(queue, Unavailable(STOPPED))
        self._queues = []

    async def run(self) -> None:
        """Feed the engine until cancelled. Whatever ends the loop, nobody is left waiting."""
        free = asyncio.Semaphore(self._scorer.engine.batches_at_once)
        try:
            async with asyncio.TaskGroup() as batches:
                while True:
                    await free.acquire()
                    while not self._queues:
                        self._arrived.clear()
                        await self._arrived.wait()
                    scoring = batches.create_task(self._score(self._next_batch()), name="batch")
                    scoring.add_done_callback(lambda _: free.release())
        finally:
            self.close()

    def _next_batch(self) -> list[Work]:
        lengths = [[work.length for work in queue] for queue in self._queues]
        chosen = take_batch(lengths, self.token_budget, 1 if self._scorer.engine.splits else MAX_PADDING)
        # Positions of one queue come in descending order, so popping one does not move the next.
        batch = [self._queues[queue].pop(position) for queue, position in chosen]
        self._queues = [queue for queue in self._queues[1:] + self._queues[:1] if queue]
        return batch

    async def _score(self, batch: list[Work]) -> None:
        pairs = [work.pair for work in batch]
        started = perf_counter()
        try:
            logits = await asyncio.get_running_loop().run_in_executor(self._thread, score, self._scorer, pairs)
        except asyncio.CancelledError:
            fail(batch, Unavailable(STOPPED))
            raise
        except Exception as error:
            log.exception("Scoring a batch of %d pairs failed", len(batch))
            self._metrics.failed_batches.inc()
            fail(batch, error if isinstance(error, ScoringFailed) else ScoringFailed("The model failed on this batch"))
            return
        seconds, lengths = perf_counter() - started, [pair.length for pair in pairs]
        self._metrics.observe_batch(sum(lengths), self._scorer.padded_tokens(lengths), seconds)
        for work, logit in zip(batch, logits, strict=True):
            if work.future.done():
                continue
            if math.isfinite(logit):
                work.future.set_result(logit)
            else:
                work.future.set_exception(ScoringFailed(f"The model gave a score that is not a number ({logit})"))


def score(scorer: Scorer, pairs: Sequence[Pair]) -> list[float]:
    """Logits of a batch, on the inference thread. A batch that does not fit the memory is tried again in halves."""
    try:
        return scorer.score(pairs)
    except OutOfMemory:
        if len(pairs) == 1:
            raise
    # Outside of the handler: the exception's traceback would keep the failed batch in memory.
    log.warning("Out of memory with %d pairs: trying again in halves", len(pairs))
    scorer.clear_memory()
    middle = len(pairs) // 2
    return score(scorer, pairs[:middle]) + score(scorer, pairs[middle:])


def fail(works: Sequence[Work], error: Exception) -> None:
    """End each wait with the error, unless it is over already."""
    for work in works:
        if not work.future.done():
            work.future.set_exception(type(error)(*error.args))
