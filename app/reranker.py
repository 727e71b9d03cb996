"""The story of one request, top to bottom."""

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from time import perf_counter

from app.admission import Admission
from app.backends import Scorer
from app.batcher import Batcher
from app.cache import Score, ScoreCache
from app.errors import DeadlineExceeded, InvalidRequest, TooLarge
from app.metrics import Metrics

# No setting may allow more: what parses a body stops here, whatever the settings.
MAX_DOCUMENTS = 10_000
MAX_TEXT_CHARS = 100_000_000


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may bring. `timeout` is in seconds, 0 for none."""

    max_documents: int
    max_text_chars: int
    timeout: float = 0.0


@dataclass(frozen=True, slots=True)
class RerankQuery:
    """What to rank. `timeout` is the caller's deadline in seconds; None leaves it to the service."""

    query: str
    documents: Sequence[str]
    max_tokens_per_doc: int | None = None
    timeout: float | None = None


@dataclass(slots=True)
class Timings:
    """Seconds spent: waiting for a slot, tokenising, waiting for and in the engine, and in all."""

    queue: float = 0.0
    tokenize: float = 0.0
    inference: float = 0.0
    total: float = 0.0


@dataclass(slots=True)
class Ranking:
    """The scored documents, in the order of the request."""

    logits: list[float]
    """Raw model outputs, float32, shape (documents,)."""
    scores: list[float]
    """The same after the model's own activation."""
    tokens: int
    """Tokens of all pairs, special tokens included, whether scored now or earlier."""
    truncated: int
    """Documents that did not fit the window as a whole."""
    scored: int
    """Pairs that the model read for this request; the other scores were known or on their way for another request."""
    timings: Timings = field(default_factory=Timings)

    def order(self) -> list[int]:
        """Indices from the best document to the worst, ties by index.

        Ordered by logit: an activation may round two different logits to the same score.
        """
        return sorted(range(len(self.logits)), key=lambda index: (-self.logits[index], index))


class Reranker:
    """Ranks documents with the parts it is given; owns none of their state."""

    def __init__(
        self,
        scorer: Scorer,
        tokenizers: Executor,
        cache: ScoreCache,
        admission: Admission,
        batcher: Batcher,
        metrics: Metrics,
        limits: Limits,
    ) -> None:
        self.scorer = scorer
        self.cache = cache
        self.admission = admission
        self.batcher = batcher
        self.limits = limits
        self._tokenizers = tokenizers
        self._metrics = metrics

    async def rerank(self, query: RerankQuery) -> Ranking:
        """Score every document against the query.

        Raises `InvalidRequest`, `TooLarge`, `QueueFull`, `QueueTimeout`, `DeadlineExceeded`, `Unavailable` or
        `ScoringFailed`. A cancelled call leaves nothing behind.
        """
        self._check(query)
        timings = Timings()
        started = perf_counter()
        timeout = query.timeout or self.limits.timeout or None
        try:
            async with asyncio.timeout(timeout):
                scores, scored = await self._lookup_or_score(query, timings)
        except TimeoutError:
            raise DeadlineExceeded(f"No answer within the deadline of {timeout:g} s") from None
        timings.total = perf_counter() - started
        logits = [score.logit for score in scores]
        ranking = Ranking(
            logits=logits,
            scores=self.scorer.activate(logits),
            tokens=sum(score.tokens for score in scores),
            truncated=sum(score.truncated for score in scores),
            scored=scored,
            timings=timings,
        )
        self._metrics.observe_ranking(len(scores), scored, ranking.truncated, timings.queue, timings.total)
        return ranking

    def _check(self, query: RerankQuery) -> None:
        if not query.query:
            raise InvalidRequest("query: must not be empty")
        if not query.documents:
            raise InvalidRequest("documents: at least one is required")
        if len(query.documents) > self.limits.max_documents:
            raise TooLarge(
                f"documents: at most {self.limits.max_documents} are accepted (RERANKER_MAX_DOCUMENTS), "
                f"got {len(query.documents)}"
            )
        self._check_length("query", query.query)
        for index, document in enumerate(query.documents):
            self._check_length(f"documents[{index}]", document)

    def _check_length(self, name: str, text: str) -> None:
        if len(text) > self.limits.max_text_chars:
            raise TooLarge(
                f"{name}: at most {self.limits.max_text_chars} characters are accepted (RERANKER_MAX_TEXT_CHARS), "
                f"got {len(text)}"
            )

    async def _lookup_or_score(self, query: RerankQuery, timings: Timings) -> tuple[list[Score], int]:
        """The scores in document order, and how many pairs the model read for them. Known ones need no slot."""
        keys = self.cache.keys(query.query, query.documents, query.max_tokens_per_doc)
        known = self._known(keys)
        if all(key in known for key in keys):
            return [known[key] for key in keys], 0
        async with self.admission.slot() as timings.queue:
            known = self._known(keys)  # another request may have scored some of them meanwhile
            missing = {key: text for key, text in zip(keys, query.documents, strict=True) if key not in known}
            new, scored = await self._score(query, missing, timings) if missing else ({}, 0)
        return [(known | new)[key] for key in keys], scored

    def _known(self, keys: Sequence[bytes]) -> dict[bytes, Score]:
        return {key: score for key in keys if (score := self.cache.get(key)) is not None}

    async def _score(
        self, query: RerankQuery, missing: Mapping[bytes, str], timings: Timings
    ) -> tuple[dict[bytes, Score], int]:
        """The scores of the missing texts by key, and how many of them no other request was having scored."""
        started = perf_counter()
        pairs = await asyncio.get_running_loop().run_in_executor(
            self._tokenizers, self.scorer.encode, query.query, list(missing.values()), query.max_tokens_per_doc
        )
        timings.tokenize = perf_counter() - started
        flights, scored = self.cache.claim(list(missing), pairs, self.batcher.submit)
        try:
            await asyncio.wait({flight.future for flight in flights}, return_when=asyncio.FIRST_EXCEPTION)
            timings.inference = perf_counter() - started - timings.tokenize
            # Not all done means that one failed: its result() raises before the lengths below could differ.
            logits = [flight.future.result() for flight in flights if flight.future.done()]
        finally:
            if self.cache.release(flights):
                self.batcher.prune()
        scores = (Score(logit, pair.length, pair.truncated) for logit, pair in zip(logits, pairs, strict=True))
        return dict(zip(missing, scores, strict=True)), scored
