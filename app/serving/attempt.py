"""What is known of one request while it is served."""

import asyncio
import math
from dataclasses import dataclass, field

from app.types import Choice, LongDocuments, Pair, Passage, RerankQuery, Score, Timings


@dataclass(slots=True)
class Attempt:
    """What is known of one request so far. When it fails, this is what the degraded answer is made of."""

    query: RerankQuery
    long_documents: LongDocuments
    """As the request asks, or else the service's default."""
    passages: list[Passage]
    keys: list[bytes] = field(default_factory=list)
    """Of the passages, for the cache."""
    choice: Choice | None = None
    """Of the first stage, where there is one."""
    pairs: dict[bytes, Pair] = field(default_factory=dict)
    """Those tokenised."""
    known: dict[bytes, Score] = field(default_factory=dict)
    scored: int = 0
    """Pairs that no other request was having scored."""
    deadline: float | None = None
    """On the event loop's clock."""
    timings: Timings = field(default_factory=Timings)

    def missing(self) -> dict[bytes, Passage]:
        """The passages without a score, by key."""
        keyed = zip(self.keys, self.passages, strict=True)
        return {key: passage for key, passage in keyed if key not in self.known}

    def cut(self) -> list[Passage]:
        """The passages that do not fit the window, as far as they are known or tokenised."""
        found: dict[bytes, Pair | Score] = {**self.pairs, **self.known}
        return [
            passage
            for key, passage in zip(self.keys, self.passages, strict=True)
            if key in found and found[key].truncated
        ]

    def is_answered(self) -> bool:
        """Whether every passage has a score, of all its text where long documents are read in windows."""
        return not self.missing() and not (self.long_documents == "chunk_max" and self.cut())

    def remaining(self) -> float:
        """Seconds until the deadline."""
        return math.inf if self.deadline is None else self.deadline - asyncio.get_running_loop().time()
