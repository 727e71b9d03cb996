"""Batches for the engine, built from the pairs of all running requests.

A batch is built when the engine becomes free: no polling, and no delay to fill it. Each batch serves one request,
longest pairs first, and fills the remaining room from other requests. Usually it serves the request with the least work
left, so that small requests do not wait for large ones. Every fourth batch serves the requests in turn instead, so that
large requests make progress too.
"""

import asyncio
import logging
import math
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from functools import partial
from operator import attrgetter
from time import monotonic, perf_counter

from app.engines.protocol import Engine
from app.errors import EngineBroken, OutOfMemory, ScoringFailed, Unavailable
from app.serving.budget import Pace
from app.serving.inference import Scored, score
from app.serving.queues import MAX_PADDING, Queue, Work, take_batch
from app.serving.turns import Line, Turn, Turns
from app.telemetry.cost import Ledger, current_bill
from app.telemetry.metrics import Metrics
from app.types import Pair

log = logging.getLogger(__name__)

STOPPED = "The engine stopped before this request was scored"
# One in this many batches serves the requests in turn; the others serve the request with the least work left.
TURN_EVERY = 4
# A batch may exceed the budget by this factor if it finishes a request. Otherwise the last few pairs would wait for
# another whole batch.
STRETCH = 1.5
# A request that takes more batches than this gets half-sized ones. They are hardly slower, and new requests wait less.
LONG = 8
# After this many batches that fitted, try larger ones again: another process may have released its memory.
TRY_LARGER_EVERY = 1000
# The weight of the newest batch in the estimate of the engine's speed.
SMOOTHING = 0.2


class Batcher:
    """Owns the pending pairs, the loop that feeds the inference threads, and the record of the engine's health.

    Used on the event loop only.
    """

    def __init__(
        self,
        engine: Engine,
        threads: Executor,
        token_budget: int,
        metrics: Metrics,
        timeout: float | None = None,
        ledger: Ledger | None = None,
        pace: Pace | None = None,
        line: Line | None = None,
    ) -> None:
        """An inference counts as hung after `timeout` seconds; None means never. `line`: None for the only model."""
        self.token_budget = token_budget
        self.alive = True
        self.failures = 0
        """Consecutive failed batches."""
        self.speed = 0.0
        """Tokens per second of a busy engine, padding included; 0 before its first batch."""
        self.pace = pace or Pace()
        self.engine = engine
        self._threads = threads
        self._metrics = metrics
        self._timeout = timeout
        self._ledger = ledger or Ledger(metrics)
        self._line = line or Turns().join()
        # In the order in which requests take turns.
        self._queues: list[Queue] = []
        # The running batches, and the tokens that they compute.
        self._batches: list[list[Work]] = []
        self._running = 0
        self._taken = 0
        # The configured budget, and the count of batches that fitted since the last one that did not.
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
        """Seconds since the last successful batch, or since the start."""
        return monotonic() - (self._last_success or self._started)

    def seconds_for(self, pairs: Sequence[Pair]) -> float:
        """Seconds that an idle engine needs for these pairs, without padding; 0 before its first batch."""
        if not pairs or not self.speed:
            return 0.0
        return sum(self._computed(pairs)) / self.speed

    @property
    def backlog(self) -> float | None:
        """Approximate seconds of work that is running or waiting; None before the first batch."""
        if not self.speed:
            return None
        return (self._running + sum(queue.tokens * queue.computed for queue in self._queues)) / self.speed

    def tokens_ahead(self, priority: int = 0) -> int:
        """Tokens that are running, or waiting with the same priority or a more urgent one."""
        return self._running + sum(queue.tokens for queue in self._queues if queue.priority <= priority)

    @property
    def pending(self) -> int:
        """Pairs waiting for a batch."""
        return sum(len(queue.works) for queue in self._queues)

    def submit(self, pairs: Sequence[Pair], priority: int = 0) -> list["asyncio.Future[float]"]:
        """Queue the pairs of one request. Returns a future logit for each pair. Never awaits.

        Raises `Unavailable` after the batcher has stopped.
        """
        self.check_alive()
        loop = asyncio.get_running_loop()
        bill = current_bill.get(None)
        works = [Work(pair, loop.create_future(), bill) for pair in pairs]
        if works:
            queue = Queue(works, priority)
            if self.engine.info.shares_prefixes:
                queue.computed = sum(self._computed(pairs)) / queue.tokens
            self._queues.append(queue)
            self._arrived.set()
        return [work.future for work in works]

    def check_alive(self) -> None:
        """Raises `Unavailable` after the batcher has stopped."""
        if not self.alive:
            raise Unavailable("The engine is stopped")

    def allow(self, tokens: int) -> None:
        """Set the token budget. A budget that the memory has limited grows towards it as usual."""
        if self.token_budget == self._most:
            self.token_budget = tokens
        self._most = tokens

    def withdraw(self, futures: Iterable["asyncio.Future[float]"]) -> None:
        """Cancel the pairs that still wait for a batch. Running batches finish."""
        unwanted = frozenset(futures)
        for queue in self._queues:
            queue.withdraw(unwanted)
        self._queues = [queue for queue in self._queues if queue.works]

    def close(self) -> None:
        """Accept no more pairs, and fail all that have no logit yet. Nobody waits for the running batches."""
        self.alive = False
        for works in (*(queue.works for queue in self._queues), *self._batches):
            fail_waiting(works, Unavailable(STOPPED))
        self._queues = []

    async def run(self) -> None:
        """Feed the engine until cancelled. However the loop ends, no pair is left waiting."""
        try:
            async with asyncio.TaskGroup() as batches:
                while True:
                    while not self._queues:
                        self._arrived.clear()
                        await self._arrived.wait()
                    turn = await self._line.take(self.engine.info.batches_at_once)
                    if not self._queues:  # all pairs were withdrawn meanwhile
                        turn.end()
                        continue
                    batch = self._next_batch()
                    computed = self._computed([work.pair for work in batch])
                    turn.begin(sum(computed))
                    self._running += sum(computed)
                    self._batches.append(batch)
                    scoring = batches.create_task(self._score(batch, computed), name="batch")
                    scoring.add_done_callback(partial(self._end, batch, sum(computed), turn))
        finally:
            self.close()
            self._line.close()

    def _end(self, batch: list[Work], computed: int, turn: Turn, _: "asyncio.Task[None]") -> None:
        """Clean up after a batch, even one that was cancelled before it began."""
        self._batches.remove(batch)
        # Usually no pair still waits. The pairs of a cancelled batch do, and nothing else would end their wait.
        fail_waiting(batch, Unavailable(STOPPED))
        self._running -= computed
        turn.end()

    def _computed(self, pairs: Sequence[Pair]) -> list[int]:
        """Tokens that the engine computes for each pair. Fewer than it has where it shares the first ones."""
        if self.engine.info.shares_prefixes:
            return self.engine.padded_tokens(pairs)
        return [pair.length for pair in pairs]

    def _next_batch(self) -> list[Work]:
        self._taken += 1
        if self._taken % TURN_EVERY:
            queues = sorted(self._queues, key=attrgetter("priority", "tokens"))
        else:
            queues = sorted(self._queues, key=attrgetter("priority"))
            self._queues.remove(queues[0])
            self._queues.append(queues[0])
        max_padding = None if self.engine.info.mixes else MAX_PADDING
        chosen = take_batch([queue.lengths for queue in queues], self._budget_for(queues[0]), max_padding)
        # Positions within a queue are in descending order, so taking one does not shift the next.
        batch = [queues[queue].take(position) for queue, position in chosen]
        self._queues = [queue for queue in self._queues if queue.works]
        return batch

    def _budget_for(self, queue: Queue) -> int:
        """The token budget of a batch that serves this request."""
        if queue.tokens <= STRETCH * self.token_budget:
            return max(self.token_budget, queue.tokens)
        if self.engine.info.mixes and queue.tokens > LONG * self.token_budget:
            return self.token_budget // 2
        return self.token_budget

    async def _score(self, batch: list[Work], computed: Sequence[int]) -> None:
        pairs = [work.pair for work in batch]
        started = perf_counter()
        try:
            with self._ledger.batch([(work.bill, work.pair.length) for work in batch], computed):
                async with asyncio.timeout(self._timeout) as limit:
                    scored = await asyncio.get_running_loop().run_in_executor(self._threads, score, self.engine, pairs)
        except Exception as error:
            self._fail(batch, error, hung=limit.expired())
        else:
            self._deliver(batch, scored.logits)
            self._account(pairs, scored, perf_counter() - started)

    def _fail(self, batch: list[Work], error: Exception, hung: bool) -> None:
        """Fail the batch. Raises `EngineBroken` if its inference hangs or the engine reports that it is broken."""
        self._metrics.failed_batches.inc()
        self.failures += 1
        if hung:
            reason = f"The model gave no answer within {self._timeout:g} s (RERANKER_INFERENCE_TIMEOUT)."
            fail_waiting(batch, ScoringFailed(reason))
            self.engine.cancel()
            raise EngineBroken(reason, self.scored)
        log.error("Scoring a batch of %d pairs failed", len(batch), exc_info=error)
        fail_waiting(
            batch, error if isinstance(error, ScoringFailed) else ScoringFailed("The model failed on this batch")
        )
        if isinstance(error, EngineBroken):
            raise EngineBroken(str(error), self.scored)

    def _account(self, pairs: Sequence[Pair], scored: Scored, seconds: float) -> None:
        if scored.did_not_fit:
            self._shrink(scored.did_not_fit)
        if all(isinstance(logit, OutOfMemory) for logit in scored.logits):
            self._metrics.failed_batches.inc()
            self.failures += 1
            return
        tokens, padded = sum(pair.length for pair in pairs), sum(self.engine.padded_tokens(pairs))
        self.failures, self._last_success = 0, monotonic()
        self._fitting += 1
        if self._fitting % TRY_LARGER_EVERY == 0:
            self.token_budget = min(self._most, 2 * self.token_budget)
        self._metrics.observe_batch(tokens, padded, seconds)
        self.pace.see_batch(tokens, seconds, perf_counter())
        speed = padded * self.engine.info.batches_at_once / seconds
        self.speed += SMOOTHING * (speed - self.speed) if self.speed else speed

    def _shrink(self, tokens: int) -> None:
        """Lower the budget after a batch of this many tokens ran out of memory."""
        self._metrics.out_of_memory.inc()
        self.token_budget = min(self.token_budget, tokens // 2)
        self._fitting = 0
        log.warning("Out of memory with %d tokens: batches are limited to %d for now", tokens, self.token_budget)

    def _deliver(self, batch: Sequence[Work], logits: Sequence[float | OutOfMemory]) -> None:
        for work, logit in zip(batch, logits, strict=True):
            if isinstance(logit, OutOfMemory):
                fail_waiting([work], logit)
            elif not math.isfinite(logit):
                fail_waiting([work], ScoringFailed(f"The model gave a score that is not a number ({logit})"))
            elif not work.future.done():
                work.future.set_result(logit)


def fail_waiting(works: Sequence[Work], error: Exception) -> None:
    """Fail the pairs that still wait for a logit. Those with a logit or an error keep it."""
    for work in works:
        if not work.future.done():
            work.future.set_exception(type(error)(*error.args))
