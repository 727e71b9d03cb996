"""From pairs to scores: the flights of one request, within its deadline."""

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING

from app.errors import DeadlineExceeded
from app.serving.batcher import Batcher
from app.serving.cache import Flight, ScoreCache
from app.serving.progress import Progress
from app.types import Pair, Score

if TYPE_CHECKING:
    from app.serving.shared_cache import SharedCache


async def score_pairs(
    progress: Progress,
    pairs: Mapping[bytes, Pair],
    cache: ScoreCache,
    batcher: Batcher,
    shared_cache: "SharedCache | None",
) -> None:
    """Have the model score these pairs. A pair that it is scoring for another request is not sent again."""
    started = perf_counter()
    _check_deadline(progress, pairs, cache, batcher)
    submit = partial(batcher.submit, priority=progress.query.priority)
    flights, new = cache.claim(list(pairs), list(pairs.values()), submit)
    try:
        await asyncio.wait({flight.future for flight in flights}, return_when=asyncio.FIRST_EXCEPTION)
        progress.timings.inference += perf_counter() - started
        for flight in flights:
            if flight.future.done():
                flight.future.result()  # raises if this pair failed
    finally:
        landed = _landed(pairs, flights)
        progress.known |= landed
        progress.scored = min(new, len(landed))
        if progress.scored and shared_cache:
            shared_cache.put(landed)
        if unwanted := cache.release(flights):
            batcher.withdraw(unwanted)


def _check_deadline(progress: Progress, pairs: Mapping[bytes, Pair], cache: ScoreCache, batcher: Batcher) -> None:
    """Raise `DeadlineExceeded` at once if even an idle engine could not score these pairs in time."""
    if progress.deadline is None:
        return
    needed = batcher.seconds_for([pair for key, pair in pairs.items() if not cache.joinable(key)])
    if needed > progress.remaining():
        raise DeadlineExceeded(
            f"The deadline cannot be met: scoring {len(pairs)} pairs takes about {needed:.2g} s, "
            f"{max(0.0, progress.remaining()):.2g} s are left"
        )


def _landed(pairs: Mapping[bytes, Pair], flights: Sequence[Flight]) -> dict[bytes, Score]:
    """The scores that have arrived, even after a failure."""
    return {
        key: Score(flight.future.result(), pair.length, pair.truncated)
        for (key, pair), flight in zip(pairs.items(), flights, strict=True)
        if flight.landed
    }
