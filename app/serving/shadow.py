"""A second model that scores a share of the requests after they were answered, to compare both models."""

import asyncio
import json
import logging
import random
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

from app.telemetry.metrics import Metrics
from app.telemetry.quality import moved_pairs, spaced
from app.types import Ranking, RerankQuery

log = logging.getLogger(__name__)

WORKER = "app.serving.shadow_worker"
# Before each part, the second model gives way to requests.
DOCUMENTS_AT_ONCE = 16
ANSWER_SECONDS = 120.0
MAX_ANSWER_BYTES = 2**20


class Job(NamedTuple):
    """An answered request to score again."""

    query: RerankQuery
    ranking: Ranking


class ShadowFailed(Exception):
    """The second model cannot be used any more."""


class Shadow:
    """Owns the process of the second model and the comparison. Whatever happens there does not concern the service."""

    def __init__(
        self,
        model: str,
        settings: str,
        share: float,
        logs: tuple[str, str],
        metrics: Metrics,
        is_idle: Callable[[], bool],
    ) -> None:
        """`settings` of the model as JSON. `logs`: level and format. `is_idle`: whether no request waits."""
        self._model = model
        self._settings = settings
        self._share = share
        self._logs = logs
        self._metrics = metrics
        self._is_idle = is_idle
        self._wanted = asyncio.Event()
        self._arrived = asyncio.Event()
        self._job: Job | None = None
        self._status = "waiting"
        self._is_reported = False

    def load(self) -> None:
        """Load the second model in the background, now that the service has its own."""
        self._wanted.set()

    def see(self, query: RerankQuery, ranking: Ranking) -> None:
        """Perhaps score a request again. Never waits."""
        if random.random() >= self._share:  # noqa: S311 (no secret)
            return
        if self._status != "running" or self._job or not self._is_idle():
            self._metrics.shadowed.labels("skipped").inc()
            return
        self._job = Job(query, ranking)
        self._arrived.set()

    def summary(self) -> dict[str, Any]:
        """For `/info`."""
        return {"model": self._model, "status": self._status} | self._metrics.shadow_summary()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Have the process while the block runs."""
        task = asyncio.create_task(self._run(), name="shadow")
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        await self._wanted.wait()
        process: Process | None = None
        try:
            self._status = "loading"
            process = await self._start()
            self._status = "running"
            while True:
                await self._arrived.wait()
                self._arrived.clear()
                if self._job:
                    await self._compare(process, self._job)
                self._job = None
        except Exception as error:
            self._status, self._job = "failed", None
            self._fail(f"It is not used any more: {str(error) or type(error).__name__}")
        finally:
            if process:
                await _end(process)

    def _fail(self, reason: str) -> None:
        """Count a failure, and log the first one."""
        self._metrics.shadowed.labels("failed").inc()
        if not self._is_reported:
            self._is_reported = True
            log.warning("The second model %s (RERANKER_SHADOW_MODEL) fails: %s", self._model, reason)

    async def _start(self) -> Process:
        """The process, with its model loaded. Loading may include an export, so it has no limit."""
        command = [sys.executable, "-m", WORKER, *self._logs]
        process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, limit=MAX_ANSWER_BYTES)
        try:
            answer = await _ask(process, self._settings, None)
            if "error" in answer:
                raise ShadowFailed(answer["error"])
        except BaseException:
            await _end(process)
            raise
        log.info("The second model %s scores %g %% of the requests", self._model, 100 * self._share)
        return process

    async def _compare(self, process: Process, job: Job) -> None:
        query, ranking = job
        scored = [index for index in range(len(ranking.logits)) if index not in ranking.unscored]
        logits: dict[int, float] = {}
        seconds = 0.0
        for start in range(0, len(scored), DOCUMENTS_AT_ONCE):
            part = scored[start : start + DOCUMENTS_AT_ONCE]
            if not self._is_idle():
                self._metrics.shadowed.labels("interrupted").inc()
                return
            texts = [query.documents[index] for index in part]
            question = {"query": query.query, "documents": texts, "instruction": query.instruction}
            answer = await _ask(process, json.dumps(question), ANSWER_SECONDS)
            if "error" in answer:
                self._fail(answer["error"])
                return
            logits |= zip(part, answer["logits"], strict=True)
            seconds += answer["seconds"]
        self._metrics.shadowed.labels("compared").inc()
        self._metrics.observe_shadow(*agreement(ranking, logits), seconds, _seconds_of(ranking))


def agreement(ranking: Ranking, logits: dict[int, float]) -> tuple[float | None, bool]:
    """The share of pairs that the models order differently, None for one document; and whether the first is the same.

    Fusion does not count. Of many documents, evenly spaced ones are compared.
    """
    ranked = {index: place for place, index in enumerate(ranking.ranked)}  # the lowest logits of a cascade are equal
    first = sorted(logits, key=lambda index: (-ranking.logits[index], ranked.get(index, index)))
    second = sorted(logits, key=lambda index: (-logits[index], index))
    chosen = {first[position] for position in spaced(len(first))}
    places = {index: place for place, index in enumerate(first)}
    order = [places[index] for index in second if index in chosen]
    return (moved_pairs(order) if len(order) > 1 else None), first[0] == second[0]


def _seconds_of(ranking: Ranking) -> float | None:
    """Tokenizer and engine of the first model. None if it did not score everything itself."""
    timings = ranking.timings
    return timings.tokenize + timings.inference if ranking.scored == ranking.pairs else None


async def _ask(process: Process, line: str, seconds: float | None) -> dict[str, Any]:
    """The answer to a line, which may be an error. Raises `ShadowFailed` if there is none."""
    assert process.stdin is not None  # noqa: S101 (for mypy)
    assert process.stdout is not None  # noqa: S101
    try:
        async with asyncio.timeout(seconds):
            process.stdin.write(line.encode() + b"\n")
            await process.stdin.drain()
            content = await process.stdout.readline()
    except TimeoutError:
        raise ShadowFailed(f"no answer within {seconds:g} s") from None
    except OSError as error:
        raise ShadowFailed(f"its process has ended ({error})") from None
    if not content:
        raise ShadowFailed("its process has ended")
    answer: dict[str, Any] = json.loads(content)
    return answer


async def _end(process: Process) -> None:
    """Stop the process and its pipes."""
    with suppress(ProcessLookupError):
        process.kill()
    await process.communicate()
