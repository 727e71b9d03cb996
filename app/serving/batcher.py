"""Pairs of all requests in work, put together into batches for the one engine.

A batch is built the moment the engine is free: no polling and no delay to fill it. It serves one request, its longest
pairs first; what it leaves free is filled from the others. That is the request with the least left to do, so that small
ones do not wait for large ones; every fourth batch serves all in turn, so that none waits for ever.
"""

import asyncio
import logging
import math
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from functools import partial
from operator import attrgetter
from time import monotonic, perf_counter
from typing import NamedTuple

from app.engines.protocol import Engine
from app.errors import EngineBroken, OutOfMemory, ScoringFailed, Unavailable
from app.serving.queues import MAX_PADDING, Queue, Work, take_batch
from app.telemetry.metrics import Metrics
from app.types import Pair

log = logging.getLogger(__name__)

STOPPED = "The engine stopped before this request was scored"
DOES_NOT_FIT = "A pair as long as this one does not fit the memory"
# Of so many batches one serves the request whose turn it is, and the others the one with the least left to do.
TURN_EVERY = 4
# A batch may be larger by this where that ends a request: its last few pairs would wait for another whole batch.
STRETCH = 1.5
# A request that takes more batches than this gets half ones, which are hardly slower: whoever comes next waits less.
LONG = 8
# After so many batches that fitted, larger ones are tried again: what did not fit once may have had a neighbour.
TRY_LARGER_EVERY = 1000
# How fast the estimate of the engine's speed follows the newest batch.
SMOOTHING = 0.2


class Batcher:
    """Owns the pending pairs, the loop that feeds the inference threads, and what is known of the engine's life.

    Used on the event loop only.
    """

    def __init__(
        self, engine: Engine, threads: Executor, token_budget: int, metrics: Metrics, timeout: float | None = None
    ) -> None:
        """`timeout`: seconds after which an inference counts as hung; None for never."""
        self.token_budget = token_budget
        self.alive = True
        self.failures = 0
        """Batches in a row that the model failed on."""
        self.speed = 0.0
        """Tokens a second that the engine computes while it works, padding included; 0 before its first batch."""
        self._engine = engine
        self._threads = threads
        self._metrics = metrics
        self._timeout = timeout
        # In the order of their turns.
        self._queues: list[Queue] = []
        # Tokens of the batches that run.
        self._running = 0
        self._batches = 0
        # The budget at first, and batches in a row that fitted.
        self._most, self._fitting = token_budget, 0
        self._arrived = asyncio.Event()
        self._started = monotonic()
        self._last_success: float | None = None

    @property
    def scored(self) -> bool:
        """Whether any batch has succeeded."""
        return self._last_success is not None

    @property
    def silence(self) -> float:
        """Seconds since a batch succeeded, or since the start."""
        return monotonic() - (self._last_success or self._started)

    def seconds_for(self, pairs: Sequence[Pair]) -> float:
        """The least time that the engine needs for these pairs, with nothing else to do; 0 before its first batch."""
        if not pairs or not self.speed:
            return 0.0
        return self._engine.padded_tokens([pair.length for pair in pairs]) / self.speed

    @property
    def backlog(self) -> float | None:
        """Seconds that the engine needs for all that waits and runs, about; None before its first batch."""
        if not self.speed:
            return None
        return (self._running + sum(queue.tokens for queue in self._queues)) / self.speed

    @property
    def pending(self) -> int:
        """Pairs that wait for a batch."""
        return sum(len(queue.works) for queue in self._queues)

    def submit(self, pairs: Sequence[Pair], priority: int = 0) -> list["asyncio.Future[float]"]:
        """Queue the pairs of one request; returns a future logit for each. Never awaits."""
        if not self.alive:
            raise Unavailable("The engine is stopped")
        loop = asyncio.get_running_loop()
        works = [Work(pair, loop.create_future()) for pair in pairs]
        if works:
            self._queues.append(Queue(works, priority))
            self._arrived.set()
        return [work.future for work in works]

    def withdraw(self, futures: Iterable["asyncio.Future[float]"]) -> None:
        """Cancel those that still wait for a batch. What is being scored is scored to its end."""
        unwanted = frozenset(futures)
        for queue in self._queues:
            queue.withdraw(unwanted)
        self._queues = [queue for queue in self._queues if queue.works]

    def close(self) -> None:
        """Take no more pairs and fail those that wait for a batch."""
        self.alive = False
        for queue in self._queues:
            fail_waiting(queue.works, Unavailable(STOPPED))
        self._queues = []

    async def run(self) -> None:
        """Feed the engine until cancelled. Whatever ends the loop, nobody is left waiting."""
        free = asyncio.Semaphore(self._engine.info.batches_at_once)
        try:
            async with asyncio.TaskGroup() as batches:
                while True:
                    await free.acquire()
                    while not self._queues:
                        self._arrived.clear()
                        await self._arrived.wait()
                    batch = self._next_batch()
                    self._running += _tokens(batch)
                    scoring = batches.create_task(self._score(batch), name="batch")
                    scoring.add_done_callback(partial(self._end, batch, free))
        finally:
            self.close()

    def _end(self, batch: Sequence[Work], free: asyncio.Semaphore, _: "asyncio.Task[None]") -> None:
        """Clean up after a batch, even one that was cancelled before it began."""
        # Usually none waits any more. Those of a cancelled batch do, and nothing else would ever end their wait.
        fail_waiting(batch, Unavailable(STOPPED))
        self._running -= _tokens(batch)
        free.release()

    def _next_batch(self) -> list[Work]:
        self._batches += 1
        if self._batches % TURN_EVERY:
            queues = sorted(self._queues, key=attrgetter("priority", "tokens"))
        else:
            queues = sorted(self._queues, key=attrgetter("priority"))
            self._queues.remove(queues[0])
            self._queues.append(queues[0])
        max_padding = None if self._engine.info.mixes else MAX_PADDING
        chosen = take_batch([queue.lengths for queue in queues], self._budget_for(queues[0]), max_padding)
        # Positions of one queue come in descending order, so popping one does not move the next.
        batch = [queues[queue].take(position) for queue, position in chosen]
        self._queues = [queue for queue in self._queues if queue.works]
        return batch

    def _budget_for(self, queue: Queue) -> int:
        """The tokens of a batch that serves this request."""
        if queue.tokens <= STRETCH * self.token_budget:
            return max(self.token_budget, queue.tokens)
        if self._engine.info.mixes and queue.tokens > LONG * self.token_budget:
            return self.token_budget // 2
        return self.token_budget

    async def _score(self, batch: list[Work]) -> None:
        pairs = [work.pair for work in batch]
        started = perf_counter()
        try:
            async with asyncio.timeout(self._timeout) as limit:
                scored = await asyncio.get_running_loop().run_in_executor(self._threads, score, self._engine, pairs)
        except Exception as error:
            self._fail(batch, error, hung=limit.expired())
        else:
            self._deliver(batch, scored.logits)
            self._account(pairs, scored, perf_counter() - started)

    def _fail(self, batch: list[Work], error: Exception, hung: bool) -> None:
        """Fail the batch. Raises `EngineBroken` when its inference hangs, or the engine says that it is."""
        self._metrics.failed_batches.inc()
        self.failures += 1
        if hung:
            reason = f"The model gave no answer within {self._timeout:g} s (RERANKER_INFERENCE_TIMEOUT)."
            fail_waiting(batch, ScoringFailed(reason))
            self._engine.cancel()
            raise EngineBroken(reason, self.scored)
        log.error("Scoring a batch of %d pairs failed", len(batch), exc_info=error)
        fail_waiting(
            batch, error if isinstance(error, ScoringFailed) else ScoringFailed("The model failed on this batch")
        )
        if isinstance(error, EngineBroken):
            raise EngineBroken(str(error), self.scored)

    def _account(self, pairs: Sequence[Pair], scored: "Scored", seconds: float) -> None:
        if scored.did_not_fit:
            self._shrink(scored.did_not_fit)
        if all(isinstance(logit, OutOfMemory) for logit in scored.logits):
            self._metrics.failed_batches.inc()
            self.failures += 1
            return
        lengths = [pair.length for pair in pairs]
        padded = self._engine.padded_tokens(lengths)
        self.failures, self._last_success = 0, monotonic()
        self._fitting += 1
        if self._fitting % TRY_LARGER_EVERY == 0:
            self.token_budget = min(self._most, 2 * self.token_budget)
        self._metrics.observe_batch(sum(lengths), padded, seconds)
        speed = padded * self._engine.info.batches_at_once / seconds
        self.speed += SMOOTHING * (speed - self.speed) if self.speed else speed

    def _shrink(self, tokens: int) -> None:
        """Remember that so many tokens did not fit the memory."""
        self._metrics.out_of_memory.inc()
        self.token_budget = min(self.token_budget, tokens // 2)
        self._fitting = 0
        log.warning("Batches are of at most %d tokens for now: %d did not fit", self.token_budget, tokens)

    def _deliver(self, batch: Sequence[Work], logits: Sequence[float | OutOfMemory]) -> None:
        for work, logit in zip(batch, logits, strict=True):
            if isinstance(logit, OutOfMemory):
                fail_waiting([work], logit)
            elif not math.isfinite(logit):
                fail_waiting([work], ScoringFailed(f"The model gave a score that is not a number ({logit})"))
            elif not work.future.done():
                work.future.set_result(logit)


class Scored(NamedTuple):
    """What came of a batch."""

    logits: list[float | OutOfMemory]
    """One for each pair; an error for a pair that does not even fit alone."""
    did_not_fit: int = 0
    """Padded tokens of the smallest batch of several pairs that did not fit the memory; 0 when all did."""


def score(engine: Engine, pairs: Sequence[Pair], too_long: float = math.inf) -> Scored:
    """Logits of a batch, on an inference thread. A batch that does not fit the memory is tried again in halves.

    `too_long`: a length, in tokens, that is known not to fit even alone.
    """
    if min(pair.length for pair in pairs) >= too_long:
        return Scored([OutOfMemory(DOES_NOT_FIT)] * len(pairs))
    try:
        return Scored([*engine.score(pairs)])
    except OutOfMemory as error:
        problem = OutOfMemory(*error.args)
    # Outside of the handler: the exception's traceback would keep the failed batch in memory.
    engine.clear_memory()
    if len(pairs) == 1:
        return Scored([problem])
    log.warning("Out of memory with %d pairs: trying again in halves", len(pairs))
    middle = len(pairs) // 2
    first = score(engine, pairs[:middle], too_long)
    unfit = [pair.length for pair, logit in zip(pairs, first.logits, strict=False) if isinstance(logit, OutOfMemory)]
    second = score(engine, pairs[middle:], min([*unfit, too_long]))
    smaller = [half.did_not_fit for half in (first, second) if half.did_not_fit]
    tokens = engine.padded_tokens([pair.length for pair in pairs])
    return Scored(first.logits + second.logits, min([*smaller, tokens]))


def _tokens(works: Sequence[Work]) -> int:
    return sum(work.pair.length for work in works)


def fail_waiting(works: Sequence[Work], error: Exception) -> None:
    """Fail the pairs that still wait for a logit. Those with a logit or an error keep it."""
    for work in works:
        if not work.future.done():
            work.future.set_exception(type(error)(*error.args))
