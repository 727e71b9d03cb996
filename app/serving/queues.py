"""The pairs of each request that wait for a batch, and which of them go into the next."""

import asyncio
import math
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from app.types import Pair

# The share of a batch row that may be padding: pairs shorter than this wait for a batch of their own size.
MAX_PADDING = 0.125


@dataclass(eq=False, slots=True)
class Work:
    """One pair and the place where its logit is awaited."""

    pair: Pair
    future: "asyncio.Future[float]"


class Queue:
    """The pending pairs of one request, ascending by length."""

    def __init__(self, works: Sequence[Work], priority: int = 0) -> None:
        """Lower `priority` is served first."""
        self.priority = priority
        self._fill(sorted(works, key=lambda work: work.pair.length))

    def _fill(self, works: list[Work]) -> None:
        self.works = works
        # Kept, not counted for each batch: a request may have ten thousand pairs.
        self.lengths = [work.pair.length for work in works]
        self.tokens = sum(self.lengths)

    def take(self, position: int) -> Work:
        """Remove one for a batch."""
        self.tokens -= self.lengths.pop(position)
        return self.works.pop(position)

    def withdraw(self, futures: Collection["asyncio.Future[float]"]) -> None:
        """Cancel those that wait here, and remove them."""
        left = []
        for work in self.works:
            if work.future in futures:
                work.future.cancel()
            else:
                left.append(work)
        if len(left) < len(self.works):
            self._fill(left)


def take_batch(queues: Sequence[Sequence[int]], budget: int, max_padding: float) -> list[tuple[int, int]]:
    """Choose the next batch: `(queue, position)` of each chosen pair, longer ones of a queue first.

    `queues` holds the pair lengths in tokens of each request, ascending, the one to be served first in front. Its
    longest pair is always taken, and no pair is longer or more than `max_padding` shorter. The batch takes `budget`
    tokens at most: rows × longest row, or where `max_padding` is 1 the sum, since then the engine does not pad.
    """
    longest = queues[0][-1]
    shortest = math.ceil(longest * (1 - max_padding))
    batch: list[tuple[int, int]] = []
    left = budget
    for index, queue in enumerate(queues):
        start, position = bisect_left(queue, shortest), bisect_right(queue, longest)
        while position > start:
            if batch and max_padding == 1:
                position = bisect_right(queue, left, start, position)  # what is longer does not fit any more
            if position == start or (batch and max_padding < 1 and longest > left):
                break
            position -= 1
            batch.append((index, position))
            left -= queue[position] if max_padding == 1 else longest
    return batch
