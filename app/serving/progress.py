"""The record of one request that survives a failure half way."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from time import perf_counter

from app.errors import DeadlineExceeded
from app.serving.budget import ReadingPlan
from app.serving.folding import ScoredPassage, by_position
from app.types import Choice, LongDocuments, Pair, Passage, RerankQuery, Score, Span, Timings


@asynccontextmanager
async def within(seconds: float | None) -> AsyncIterator[asyncio.Timeout]:
    """Limit the time of the block; None means no limit. Raises `DeadlineExceeded`."""
    try:
        async with asyncio.timeout(seconds) as limit:
            yield limit
    except TimeoutError:
        raise DeadlineExceeded(f"No answer within the deadline of {seconds:g} s") from None


@dataclass(frozen=True, slots=True)
class KeyedPassages:
    """The passages to score, and the cache key of each. Passages with equal texts share a key.

    Two lists, because thousands of (key, passage) tuples would keep the garbage collector busy.
    """

    keys: Sequence[bytes] = ()
    passages: Sequence[Passage] = ()

    def __iter__(self) -> Iterator[tuple[bytes, Passage]]:
        return zip(self.keys, self.passages, strict=True)


@dataclass(slots=True)
class Progress:
    """What is known about one request so far. If the request fails, the degraded answer is made from this."""

    query: RerankQuery
    long_documents: LongDocuments
    """The request's choice, or else the service's default."""
    deadline: float | None = None
    """On the event loop's clock."""
    choice: Choice | None = None
    """The first stage's answer, once it has run."""
    plan: ReadingPlan | None = None
    """What fits into the budget; None before that is known, or without a budget."""
    started: float = field(default_factory=perf_counter)
    keyed: KeyedPassages = field(default_factory=KeyedPassages)
    """Windows replace the long documents that they are part of."""
    known: dict[bytes, Score] = field(default_factory=dict)
    words: Sequence[float] = ()
    """BM25 of each document; empty until it is needed."""
    scored: int = 0
    """Pairs that the model read for this request."""
    timings: Timings = field(default_factory=Timings)
    slot: Callable[[], AbstractAsyncContextManager[float]] | None = None
    """How to get a slot. None: one for each time that the model reads."""
    may_read_none: bool = False
    """Whether a budget may be too small for the first document."""

    def passages(self) -> list[Passage]:
        """The documents to read, whole: those of the choice, if there is one."""
        passages, choice = self.query.passages(), self.choice
        return passages if choice is None else [each for each in passages if each.document in choice.kept]

    def missing(self) -> dict[bytes, Passage]:
        """The passages without a score, by key."""
        return {key: passage for key, passage in self.keyed if key not in self.known}

    def scored_passages(self) -> list[ScoredPassage]:
        return [(passage, self.known[key]) for key, passage in self.keyed if key in self.known]

    def truncated(self, pairs: Mapping[bytes, Pair]) -> list[Passage]:
        """The passages that do not fit the window, judged by their scores and by the tokenized `pairs`."""
        found: dict[bytes, Pair | Score] = {**pairs, **self.known}
        return [passage for key, passage in self.keyed if key in found and found[key].truncated]

    def windows(self, remembered: Callable[[bytes], Sequence[Span]]) -> dict[int, Sequence[Span]]:
        """The windows of each document without a score. Empty unless those of all are remembered: one may be short.

        A window is not split again, even if a document with its text was.
        """
        unread = [(key, passage) for key, passage in self.keyed if key not in self.known or self.known[key].truncated]
        spans = {passage.document: () if passage.span else remembered(key) for key, passage in unread}
        return spans if all(spans.values()) else {}

    def is_complete(self) -> bool:
        """Whether every passage has a score, and no document must be split into windows first."""
        return not self.missing() and not (self.long_documents == "chunk_max" and self.truncated({}))

    def evidence_scores(self) -> Sequence[float]:
        """The other evidence about each document, higher is better. Empty if there is none."""
        evidence = self.query.evidence
        if evidence == "lexical":
            return self.words
        if evidence == "order":
            return by_position(len(self.query.documents))
        return self.query.retrieval_scores or () if evidence == "score" else ()

    def spent(self) -> float:
        """Seconds since the request arrived."""
        before = self.query.budget.spent if self.query.budget else 0.0
        return before + perf_counter() - self.started

    def remaining(self) -> float:
        """Seconds until the deadline."""
        return math.inf if self.deadline is None else self.deadline - asyncio.get_running_loop().time()
