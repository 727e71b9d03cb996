"""How work is laid out on the device: measured on a first start, within seconds."""

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
# Measured twice on a quiet machine the same layout differs by a few per cent: what is chosen has to be better by more.
WORTH = 1.1
LENGTHS = (384, 32, 192, 64, 256, 96, 128, 48)
# An engine that pads is given pairs of about one length at a time.
ONE_LENGTH = (192,)
# What a run of the measurement computes: enough to fill all streams, more where it takes no longer.
TOKENS_PER_THREAD = (1024, 2048)
RUN_SECONDS = MEASURE_SECONDS / 12
GLANCE = 128
# On a GPU only the batch is to be found: as small as costs no throughput, and none that takes so long that whoever
# comes next waits for it.
GPU_BATCHES = tuple(4096 << power for power in range(6))
GPU_BATCH_SECONDS = 0.25


class Schedule(BaseModel):
    """A layout of work."""

    model_config = ConfigDict(frozen=True)

    batch_tokens: int
    """Tokens given to the engine at a time, for all its streams."""
    streams: int = 1
    """Inferences that run side by side; the threads are divided among them."""
    part_tokens: int | None = None
    """Padded tokens of one inference, where the engine splits batches; else None."""

    def __str__(self) -> str:
        parts = f", {self.streams} streams, parts of {self.part_tokens}" if self.part_tokens else ""
        return f"batches of {self.batch_tokens} tokens{parts}"


class Schedulable(Protocol):
    """What is measured: an engine. Setting `schedule` may reload it."""

    schedule: Schedule

    @property
    def info(self) -> Any: ...

    def encode(self, query: str, documents: Sequence[str], max_tokens_per_doc: int | None = None) -> list[Pair]: ...

    def score(self, pairs: Sequence[Pair]) -> list[float]: ...

    def clear_memory(self) -> None: ...


def arrange(engine: Schedulable, asked: dict[str, int]) -> bool:
    """Give the engine the best schedule there is, with the fields asked for as asked.

    Whether anything was measured, and what was found will hold at the next start.
    """
    engine.schedule = engine.schedule.model_copy(update=asked)
    return measure(engine, asked) if engine.info.device == "cpu" else measure_gpu(engine, asked)


def speed_of(engine: Schedulable) -> float | None:
    """Tokens per second with the schedule that the engine has; None where it would take too long to find out."""
    fewest = TOKENS_PER_THREAD[0] * engine.info.threads
    if fewest / (_glance(engine) * engine.schedule.streams) > MEASURE_SECONDS / 4:
        return None
    pairs = _workload(engine, fewest)
    return max(_tokens_per_second(engine, pairs), _tokens_per_second(engine, pairs, runs=1))


def measure(engine: Schedulable, asked: dict[str, int]) -> bool:
    """Try one change after the other, as long as there is time, and keep what helps; whether anything was measured."""
    started = perf_counter()
    best, threads = engine.schedule, engine.info.threads
    changes = [change for change in _changes(best, threads) if not asked.keys() & change.keys()]
    if not changes:
        return False
    fewest, most = (count * threads for count in TOKENS_PER_THREAD)
    expected = _glance(engine) * best.streams
    if fewest / expected > MEASURE_SECONDS / 4:
        log.info("Not measured, the machine is too slow or too busy for that: %s", best)
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

    Whether any was measured, and what was found will hold: what did not fit may fit when a neighbour has left.
    """
    if "batch_tokens" in asked:
        return False
    started = perf_counter()
    pairs = _workload(engine, 2 * GPU_BATCHES[-1])
    best, speed, trials = engine.schedule.model_copy(update={"batch_tokens": GPU_BATCHES[0]}), 0.0, []
    fits = True
    for tokens in GPU_BATCHES:
        # Two runs of two batches; those before tell how long they take, about.
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
    """What may be better than the default, likelier first."""
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
    """Pairs of many lengths, long ones first as the batcher brings them."""
    cycle = LENGTHS if engine.info.mixes else ONE_LENGTH
    lengths: list[int] = []
    while sum(lengths) < tokens:
        lengths.append(cycle[len(lengths) % len(cycle)])
    return _pairs(engine, sorted(lengths, reverse=True))


def _glance(engine: Schedulable) -> float:
    """Tokens a second of one short pair on one stream."""
    pairs = _pairs(engine, [GLANCE])
    engine.score(pairs)
    started = perf_counter()
    engine.score(pairs)
    return pairs[0].length / (perf_counter() - started)


def _tokens_per_second(engine: Schedulable, pairs: Sequence[Pair], runs: int = 2) -> float:
    """With as many batches at once as the service runs, of the last run: the first compiles for new shapes."""
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
