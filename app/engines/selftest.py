"""The self-test: compares an engine with its reference logits, on this machine and in the shapes that it serves."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from time import perf_counter, process_time
from typing import Any, Protocol

from app.engines.padding import CORNER_WIDTHS, Shape, bucket_length
from app.engines.probes import Known, ProbeSet
from app.engines.schedule import Schedule
from app.engines.segments import ROW_TOKENS
from app.errors import StartupError
from app.types import Pair

# The largest accepted difference of a logit from the same weights in float32 arithmetic, by precision. In measurements,
# correct engines differed by 1e-5, 0.01, 0.1 and 0.2, wrong ones by 0.7 and more.
BOUNDS = {"fp32": 0.02, "fp16": 0.1, "bf16": 0.25, "int8": 0.4}
# The bounds hold for logits up to this size, which most rerankers have. Rounding errors grow with the logits.
USUAL_LOGIT = 8.0
# CPU seconds for each thread. After this time the remaining rounds are skipped. Corner widths are always tested.
# CPU time is used so that a busy machine tests as much as a quiet one.
SECONDS = 0.35
# Tokens of one call, for an engine that takes several shapes at once; more if its streams need more to be busy.
ROUND_TOKENS = 1024
# Pairs of these lengths are tested in shared rows, two in each at least.
SHARED_LENGTHS = range(32, 2 * ROW_TOKENS // 3 + 1)


class Testable(Protocol):
    """The part of an engine that is tested."""

    self_test: "SelfTest | None"

    @property
    def info(self) -> Any: ...

    @property
    def probes(self) -> ProbeSet | None: ...

    @property
    def schedule(self) -> Schedule: ...

    def shapes(self) -> list[Shape]: ...

    def encode(self, query: str, documents: Sequence[str], max_tokens_per_doc: int | None = None) -> list[Pair]: ...

    def score(self, pairs: Sequence[Pair]) -> list[float]: ...


@dataclass(frozen=True, slots=True)
class SelfTest:
    """The result of a self-test. Differences are differences of logits."""

    deviation: float
    """Largest difference from the same weights in float32 arithmetic."""
    bound: float
    """The largest accepted deviation."""
    width: int
    """The padded width, in tokens, with the largest deviation."""
    error: float | None
    """Largest difference from the float32 original. None if its logits are unknown."""
    pairs: int
    seconds: float
    rejected: tuple[str, ...] = ()
    """Configurations that failed before this one, each with the reason."""

    @property
    def passed(self) -> bool:
        """Whether the engine may serve. A NaN fails."""
        return self.deviation <= self.bound

    @property
    def distance(self) -> float:
        """The figure that configurations are compared by: the error, or the deviation if the error is unknown."""
        return self.deviation if self.error is None else self.error

    def __str__(self) -> str:
        return f"logits are off by up to {self.deviation:.3g} at {self.width} tokens (bound {self.bound:.3g})"

    def summary(self) -> dict[str, Any]:
        """For `/health` and `/info`."""
        error = None if self.error is None else round(self.error, 4)
        return {
            "passed": self.passed,
            "deviation": round(self.deviation, 4),
            "bound": round(self.bound, 4),
            "error": error,
            "pairs": self.pairs,
            "rejected": list(self.rejected),
        }


def self_test(engine: Testable, known: Sequence[Known] | None = None, seconds: float = SECONDS) -> SelfTest:
    """Score the known pairs in the engine's shapes, as many as fit the time. Raises `StartupError`.

    The default pairs are the engine's own probes. If it has none, pairs in batches are compared with the same pairs
    scored alone.
    """
    started, budget = perf_counter(), process_time() + seconds * engine.info.threads
    known = known or _known(engine)
    pool: dict[int, list[Known]] = defaultdict(list)
    # Longest pairs first: the first pair of each width fills it.
    for each in sorted(known, key=lambda each: -each.pair.length):
        pool[min(bucket_length(each.pair.length), engine.info.max_length)].append(each)
    worst, width, error, pairs = 0.0, 0, 0.0, 0
    for required, shapes in _rounds(engine, sorted(pool)):
        if not required and process_time() > budget:
            break
        batch = [each for shape in shapes for each in islice(cycle(pool[shape.width]), shape.rows)]
        logits = engine.score([each.pair for each in batch])
        for each, logit in zip(batch, logits, strict=True):
            deviation = _deviation(each, logit)
            if deviation > worst or not width:
                worst, width = deviation, min(bucket_length(each.pair.length), engine.info.max_length)
            if each.original is not None and math.isfinite(logit):
                error = max(error, abs(logit - each.original))
        pairs += len(batch)
    is_known = known[0].original is not None
    bound = _bound(engine, known)
    return SelfTest(worst, bound, width, error if is_known else None, pairs, perf_counter() - started)


def shared_test(engine: Testable, known: Sequence[Known] | None = None) -> SelfTest:
    """Score known pairs in rows that they share with copies of themselves, for each stream.

    Each half of a pair is then a prefix or a rest. Rows of two short, two usual and two long pairs are tested, and full
    rows of short ones. Raises `StartupError`.
    """
    started = perf_counter()
    known = known or _known(engine)
    fitting = sorted((each for each in known if each.pair.length in SHARED_LENGTHS), key=lambda each: each.pair.length)
    if not fitting:
        raise StartupError(f"no reference pair of {SHARED_LENGTHS.start} to {SHARED_LENGTHS.stop - 1} tokens")
    short, usual, long = fitting[0], fitting[len(fitting) // 2], fitting[-1]
    half = short.pair.length // 2
    full = (ROW_TOKENS - half) // (short.pair.length - half)
    worst, width, pairs = 0.0, 0, 0
    for each, copies in ((short, 2), (usual, 2), (long, 2), (short, full)):
        prefix = each.pair.ids[: each.pair.length // 2]
        batch = [replace(each.pair, prefix=prefix)] * (copies * engine.schedule.streams)
        for logit in engine.score(batch):
            if (deviation := _deviation(each, logit)) > worst or not width:
                worst, width = deviation, each.pair.length
        pairs += len(batch)
    return SelfTest(worst, _bound(engine, known), width, None, pairs, perf_counter() - started)


def _deviation(known: Known, logit: float) -> float:
    return abs(logit - known.expected) if math.isfinite(logit) else math.inf


def _bound(engine: Testable, known: Sequence[Known]) -> float:
    scale = max(1.0, max(abs(each.expected) for each in known) / USUAL_LOGIT)
    return BOUNDS[engine.info.precision] * scale


def _known(engine: Testable) -> list[Known]:
    if engine.probes is not None:
        try:
            known = engine.probes.known(engine, engine.info.max_length)
        except ValueError as error:
            raise StartupError(f"The tokenizer of {engine.info.model} has changed: {error}") from None
        if known:
            return known
    lengths = [length for length in CORNER_WIDTHS if length < engine.info.max_length] + [engine.info.max_length]
    text = " ".join(["The moon's gravity causes the tides of the sea."] * 60)
    pairs = [
        engine.encode("what causes tides", [text], max(1, length + step - 16))[0]
        for length in lengths[:8]
        for step in (0, 8)
    ]
    return [Known(pair, engine.score([pair])[0], None) for pair in pairs]


def _rounds(engine: Testable, widths: Sequence[int]) -> Iterator[tuple[bool, list[Shape]]]:
    """Rounds of shapes to score together, each with whether it is required.

    Corner widths with one row come first and are required. Full corner widths follow, then the rest. An engine that
    pads a batch to its longest pair gets one shape in each round.
    """
    shapes = [shape for shape in engine.shapes() if shape.width in widths]
    most = {shape.width: shape.rows for shape in sorted(shapes)}
    corners = {min(widths), *widths}.intersection({min(widths), *CORNER_WIDTHS})
    limit = max(ROUND_TOKENS, engine.schedule.streams * (engine.schedule.part_tokens or 0))

    def rank(shape: Shape) -> int:
        is_full, is_corner = shape.rows == most[shape.width], shape.width in corners
        if is_corner and shape.rows == 1:
            return 0
        return 1 if is_full and is_corner else 2 if is_full else 3

    batch: list[Shape] = []
    for shape in sorted(shapes, key=rank):
        # Two shapes of the same width would merge into one.
        fits = engine.info.splits and all(other.width != shape.width for other in batch)
        tokens = sum(other.rows * other.width for other in [*batch, shape])
        if batch and not (fits and tokens <= limit and bool(rank(batch[0])) == bool(rank(shape))):
            yield not rank(batch[0]), batch
            batch = []
        batch.append(shape)
    if batch:
        yield not rank(batch[0]), batch
