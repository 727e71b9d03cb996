"""The schedule: how work is split into batches, streams and parts. Measured at the first start, within seconds."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict

from app.errors import OutOfMemory
from app.types import Pair

log = logging.getLogger(__name__)

MEASURE_SECONDS = 3.0
# Two measurements of the same schedule differ by a few percent, so a change must gain more than that.
WORTH = 1.1
LENGTHS = (384, 32, 192, 64, 256, 96, 128, 48)
# An engine that pads gets pairs of similar length in one batch.
ONE_LENGTH = (192,)
# Tokens of one run: at least enough to fill all streams, and more on a fast machine.
TOKENS_PER_THREAD = (1024, 2048)
RUN_SECONDS = MEASURE_SECONDS / 12
GLANCE = 128
# On a GPU only the batch size is measured: the smallest one with full throughput. A batch must not take long, because
# the next request waits for it.
GPU_BATCHES = tuple(4096 << power for power in range(6))
GPU_BATCH_SECONDS = 0.25


class Schedule(BaseModel):
    """How the work of an engine is split."""

    model_config = ConfigDict(frozen=True)

    batch_tokens: int
    """Tokens of one batch, for all streams together."""
    streams: int = 1
    """Inferences that run in parallel. They share the threads."""
    part_tokens: int | None = None
    """Padded tokens of one inference. None if the engine does not split batches."""

    def __str__(self) -> str:
        parts = f", {self.streams} streams, parts of {self.part_tokens}" if self.part_tokens else ""
        return f"batches of {self.batch_tokens} tokens{parts}"


class Schedulable(Protocol):
    """The part of an engine that is measured. Setting `schedule` may load the model again."""

    schedule: Schedule

    @property
    def info(self) -> Any: ...

    def encode(self, query: str, documents: Sequence[str], max_tokens_per_doc: int | None = None) -> list[Pair]: ...

    def score(self, pairs: Sequence[Pair]) -> list[float]: ...

    def clear_memory(self) -> None: ...


def arrange(engine: Schedulable, asked: dict[str, int]) -> bool:
    """Give the engine the best schedule. The fields in `asked` are fixed.

    Returns whether the schedule was measured and may be kept for the next start.
    """
    engine.schedule = engine.schedule.model_copy(update=asked)
    return measure(engine, asked) if engine.info.device == "cpu" else measure_gpu(engine, asked)


def speed_of(engine: Schedulable) -> float | None:
    """Tokens per second with the engine's current schedule. None if the measurement would take too long."""
    fewest = TOKENS_PER_THREAD[0] * engine.info.threads
    if fewest / (_glance(engine) * engine.schedule.streams) > MEASURE_SECONDS / 4:
        return None
    pairs = _workload(engine, fewest)
    return max(_tokens_per_second(engine, pairs), _tokens_per_second(engine, pairs, runs=1))


def measure(engine: Schedulable, asked: dict[str, int]) -> bool:
    """Try one change after the other while there is time, and keep those that help. Returns whether it measured."""
    started = perf_counter()
    best, threads = engine.schedule, engine.info.threads
    changes = [change for change in _changes(best, threads) if not asked.keys() & change.keys()]
    if not changes:
        return False
    fewest, most = (count * threads for count in TOKENS_PER_THREAD)
    expected = _glance(engine) * best.streams
    if fewest / expected > MEASURE_SECONDS / 4:
        log.info("Not measured: the machine is too slow or too busy. Using %s", best)
        return False
    pairs = _workload(engine, max(fewest, min(most, int(expected * RUN_SECONDS))))
    speed = _tokens_per_second(engine, pairs)
    trials = [f"{speed:.0f} tokens/s with {best}"]
    for change in changes:
        elapsed = perf_counter() - started
        if elapsed * (len(trials) + 1) / len(trials) > MEASURE_SECONDS:
            break
        engine.schedule = candidate = best.model_copy(update=change)
        try:
            candidate_speed = _tokens_per_second(engine, pairs)
        except OutOfMemory:
            trials.append(f"{candidate} do not fit")
            break
        trials.append(f"{candidate_speed:.0f} with {candidate}")
        if candidate_speed > speed * WORTH:
            best, speed = candidate, candidate_speed
    engine.schedule = best
    log.info("Measured in %.1f s: %s; chosen: %s", perf_counter() - started, "; ".join(trials), best)
    return True


def measure_gpu(engine: Schedulable, asked: dict[str, int]) -> bool:
    """Try larger and larger batches, as long as they fit, are faster and do not take long.

    Returns whether the schedule may be kept. If a batch did not fit, it is measured again at the next start: another
    process may have used the memory.
    """
    if "batch_tokens" in asked:
        return False
    started = perf_counter()
    pairs = _workload(engine, 2 * GPU_BATCHES[-1])
    best, speed, trials = engine.schedule.model_copy(update={"batch_tokens": GPU_BATCHES[0]}), 0.0, []
    fits = True
    for tokens in GPU_BATCHES:
        # The next trial runs two batches twice. The speed of the previous trial gives its duration.
        if speed and perf_counter() - started + 4 * tokens / speed > MEASURE_SECONDS:
            break
        engine.schedule = candidate = best.model_copy(update={"batch_tokens": tokens})
        try:
            candidate_speed = _tokens_per_second(engine, pairs[:: GPU_BATCHES[-1] // tokens])
        except OutOfMemory:
            engine.clear_memory()
            trials.append(f"{candidate} do not fit")
            fits = False
            break
        trials.append(f"{candidate_speed:.0f} tokens/s with {candidate}")
        if speed and tokens / candidate_speed > GPU_BATCH_SECONDS:
            break
        if candidate_speed > speed * WORTH:
            best, speed = candidate, candidate_speed
    engine.schedule = best
    log.info("Measured in %.1f s: %s; chosen: %s", perf_counter() - started, "; ".join(trials), best)
    return fits


def _changes(schedule: Schedule, threads: int) -> Iterator[dict[str, int]]:
    """Changes to the default that may help, the most promising first."""
    if schedule.part_tokens:
        yield {"part_tokens": schedule.part_tokens * 2}
        yield {"batch_tokens": schedule.batch_tokens * 2}
        if threads > 1:
            yield {"streams": 1}
    yield {"batch_tokens": schedule.batch_tokens // 2}
    if not schedule.part_tokens:
        yield {"batch_tokens": schedule.batch_tokens // 4}
        yield {"batch_tokens": schedule.batch_tokens * 2}


def _pairs(engine: Schedulable, lengths: Iterable[int]) -> list[Pair]:
    [probe] = engine.encode("a", ["a"])
    ids = [np.resize(probe.ids, min(length, engine.info.max_length)) for length in lengths]
    return [Pair(row, row * 0, truncated=False) for row in ids]


def _workload(engine: Schedulable, tokens: int) -> list[Pair]:
    """Pairs of many lengths, longest first, in the order of the batcher."""
    cycle = LENGTHS if engine.info.mixes else ONE_LENGTH
    lengths: list[int] = []
    while sum(lengths) < tokens:
        lengths.append(cycle[len(lengths) % len(cycle)])
    return _pairs(engine, sorted(lengths, reverse=True))


def _glance(engine: Schedulable) -> float:
    """Tokens per second of one short pair on one stream."""
    pairs = _pairs(engine, [GLANCE])
    engine.score(pairs)
    started = perf_counter()
    engine.score(pairs)
    return pairs[0].length / (perf_counter() - started)


def _tokens_per_second(engine: Schedulable, pairs: Sequence[Pair], runs: int = 2) -> float:
    """Speed of the last run: the first one compiles for new shapes. Runs as many batches at once as the service."""
    batches = list(_batches(pairs, engine.schedule.batch_tokens))
    with ThreadPoolExecutor(engine.info.batches_at_once) as threads:
        for _ in range(runs):
            started = perf_counter()
            list(threads.map(engine.score, batches))
    return sum(pair.length for pair in pairs) / (perf_counter() - started)


def _batches(pairs: Sequence[Pair], budget: int) -> Iterator[list[Pair]]:
    batch: list[Pair] = []
    for pair in pairs:
        if batch and sum(other.length for other in batch) + pair.length > budget:
            yield batch
            batch = []
        batch.append(pair)
    yield batch
