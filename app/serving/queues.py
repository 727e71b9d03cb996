"""The pending pairs of each request, and the choice of the next batch."""

import asyncio
import math
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from app.telemetry.cost import Bill
from app.types import Pair

# The share of a batch row that may be padding. Shorter pairs wait for another batch.
MAX_PADDING = 0.125


@dataclass(eq=False, slots=True)
class Work:
    """One pair, its future logit, and who pays for it."""

    pair: Pair
    future: "asyncio.Future[float]"
    bill: Bill | None = None


class Queue:
    """The pending pairs of one request, ascending by length."""

    computed = 1.0
    """How many tokens the engine computes for each token of the pairs: fewer than one if it shares the first ones."""

    def __init__(self, works: Sequence[Work], priority: int = 0) -> None:
        """Lower `priority` is served first."""
        self.priority = priority
        self._fill(sorted(works, key=lambda work: work.pair.length))

    def _fill(self, works: list[Work]) -> None:
        self.works = works
        # Stored because a request may have ten thousand pairs: too many to count for every batch.
        self.lengths = [work.pair.length for work in works]
        self.tokens = sum(self.lengths)

    def take(self, position: int) -> Work:
        """Remove and return the work at this position."""
        self.tokens -= self.lengths.pop(position)
        return self.works.pop(position)

    def withdraw(self, futures: Collection["asyncio.Future[float]"]) -> None:
        """Cancel and remove the works with these futures."""
        left = []
        for work in self.works:
            if work.future in futures:
                work.future.cancel()
            else:
                left.append(work)
        if len(left) < len(self.works):
            self._fill(left)


def take_batch(queues: Sequence[Sequence[int]], budget: int, max_padding: float | None) -> list[tuple[int, int]]:
    """Choose the next batch: `(queue, position)` of each chosen pair, longer pairs of a queue first.

    `queues` holds the pair lengths in tokens of each request, ascending. The first queue is served first: its longest
    pair is always taken, and no other pair in the batch is longer.

    `max_padding` is the share of a row that may be padding: shorter pairs are left out, and the batch costs its rows
    times its longest row. None is for an engine that does not pad: any lengths go together, and the batch costs the sum
    of its lengths. Unless it is a single pair, a batch costs `budget` tokens at most.
    """
    pads = max_padding is not None
    longest = queues[0][-1]
    shortest = math.ceil(longest * (1 - max_padding)) if max_padding is not None else 0
    batch: list[tuple[int, int]] = []
    left = budget
    for index, queue in enumerate(queues):
        if batch and left < (longest if pads else 1):
            break
        start, position = bisect_left(queue, shortest), bisect_right(queue, longest)
        while position > start:
            if batch and not pads:
                position = bisect_right(queue, left, start, position)  # longer pairs no longer fit
            if position == start or (batch and pads and longest > left):
                break
            position -= 1
            batch.append((index, position))
            left -= longest if pads else queue[position]
    return batch
