"""The story of one request, top to bottom."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from itertools import groupby, repeat
from operator import attrgetter
from time import perf_counter
from typing import TYPE_CHECKING, Literal, NamedTuple

from app.admission import Admission
from app.backends import Scorer
from app.batcher import Batcher
from app.cache import Score, ScoreCache
from app.errors import DeadlineExceeded, InvalidRequest, TooLarge
from app.metrics import Metrics
from app.tokenization import Pair, Span

if TYPE_CHECKING:
    from app.shared_cache import SharedCache

# No setting may allow more: what parses a body stops here, whatever the settings.
MAX_DOCUMENTS = 10_000
MAX_TEXT_CHARS = 100_000_000


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may bring. `timeout` is in seconds, 0 for none."""

    max_documents: int
    max_text_chars: int
    timeout: float = 0.0


LongDocuments = Literal["truncate", "chunk_max", "refuse"]


@dataclass(frozen=True, slots=True)
class RerankQuery:
    """What to rank. `timeout` is the caller's deadline in seconds; None leaves it to the service."""

    query: str | Sequence[str]
    """One for all documents, or one for each."""
    documents: Sequence[str]
    max_tokens_per_doc: int | None = None
    timeout: float | None = None
    long_documents: LongDocuments = "truncate"
    """What becomes of a document that does not fit the window: it is cut, or scored by the best of its overlapping
    windows, or an error."""
    max_windows: int | None = None
    """Windows of a document that are looked at."""
    names: tuple[str, str] = ("query", "documents")
    """What the caller calls the two, for messages."""

    def passages(self) -> list["Passage"]:
        """The documents as they are."""
        queries = repeat(self.query) if isinstance(self.query, str) else self.query
        return [Passage(index, *texts) for index, texts in enumerate(zip(queries, self.documents, strict=False))]


class Passage(NamedTuple):
    """What is scored as one pair: a document or a window of it."""

    document: int
    """Its index."""
    query: str
    text: str
    span: Span | None = None
    cut: bool = False
    """Whether windows after this one are left out."""


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
    windows: list[Span | None]
    """Where in each document its best window is; None when it was not split."""
    pairs: int
    """Pairs that this took: one for each document or window."""
    scored: int
    """Pairs that the model read for this request; the other scores were known or on their way for another request."""
    tokens: int
    """Tokens of all pairs, special tokens included, whether scored now or earlier."""
    truncated: int
    """Documents that were cut to fit the window."""
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
        shared_cache: "SharedCache | None" = None,
    ) -> None:
        self.scorer = scorer
        self.cache = cache
        self.admission = admission
        self.batcher = batcher
        self.limits = limits
        self._tokenizers = tokenizers
        self._metrics = metrics
        self._shared_cache = shared_cache

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
                scored_passages, scored = await self._lookup_or_score(query, timings)
        except TimeoutError:
            raise DeadlineExceeded(f"No answer within the deadline of {timeout:g} s") from None
        timings.total = perf_counter() - started
        ranking = self._fold(scored_passages, scored, timings)
        self._metrics.observe_ranking(ranking)
        return ranking

    def _check(self, query: RerankQuery) -> None:
        query_name, documents_name = query.names
        queries = [query.query] if isinstance(query.query, str) else query.query
        if not query.documents:
            raise InvalidRequest(f"{documents_name}: at least one is required")
        if queries is query.query and len(queries) != len(query.documents):
            raise InvalidRequest(
                f"{query_name}: {len(queries)} texts for {len(query.documents)} of {documents_name}: "
                "needs one, or as many"
            )
        if len(query.documents) > self.limits.max_documents:
            raise TooLarge(
                f"{documents_name}: at most {self.limits.max_documents} are accepted (RERANKER_MAX_DOCUMENTS), "
                f"got {len(query.documents)}"
            )
        for index, text in enumerate(queries):
            name = query_name if isinstance(query.query, str) else f"{query_name}[{index}]"
            if not text:
                raise InvalidRequest(f"{name}: must not be empty")
            self._check_length(name, text)
        for index, document in enumerate(query.documents):
            self._check_length(f"{documents_name}[{index}]", document)

    def _check_length(self, name: str, text: str) -> None:
        if len(text) > self.limits.max_text_chars:
            raise TooLarge(
                f"{name}: at most {self.limits.max_text_chars} characters are accepted (RERANKER_MAX_TEXT_CHARS), "
                f"got {len(text)}"
            )

    async def _lookup_or_score(self, query: RerankQuery, timings: Timings) -> tuple[list[tuple[Passage, Score]], int]:
        """What was scored and how, and how many pairs the model read for it. Known scores need no slot."""
        whole = query.long_documents != "chunk_max"
        passages, scored = query.passages(), 0
        keys = self._keys(query, passages)
        known = await self._known(keys) if whole else {}
        if not whole or len(known) < len(set(keys)):
            async with self.admission.slot() as timings.queue:
                if whole:
                    known |= self.cache.find(keys)  # another request may have scored some of them meanwhile
                else:
                    passages = await self._split(query, passages, timings)
                    keys = self._keys(query, passages)
                    known = await self._known(keys)
                missing = {key: passage for key, passage in zip(keys, passages, strict=True) if key not in known}
                if missing:
                    new, scored = await self._score(query, missing, timings)
                    known |= new
            if scored and self._shared_cache:
                await self._shared_cache.put(new)
        scores = [known[key] for key in keys]
        _refuse_truncated(query, passages, scores)
        return list(zip(passages, scores, strict=True)), scored

    def _keys(self, query: RerankQuery, passages: Sequence[Passage]) -> list[bytes]:
        return self.cache.keys(((passage.query, passage.text) for passage in passages), query.max_tokens_per_doc)

    async def _known(self, keys: Sequence[bytes]) -> dict[bytes, Score]:
        """The scores that are remembered here, or by another replica."""
        known = self.cache.find(keys)
        if self._shared_cache and (missing := [key for key in dict.fromkeys(keys) if key not in known]):
            shared = await self._shared_cache.get(missing)
            self.cache.remember(shared)
            known |= shared
        return known

    async def _split(self, query: RerankQuery, passages: Sequence[Passage], timings: Timings) -> list[Passage]:
        """The windows of all documents."""
        started = perf_counter()
        found = await asyncio.get_running_loop().run_in_executor(self._tokenizers, self._windows, query, passages)
        timings.tokenize = perf_counter() - started
        windows = [
            passage._replace(
                text=passage.text[slice(*span)], span=span, cut=len(spans) > (query.max_windows or len(spans))
            )
            for passage, spans in zip(passages, found, strict=True)
            for span in spans[: query.max_windows]
        ]
        if len(windows) > MAX_DOCUMENTS:
            raise TooLarge(f"{query.names[1]}: at most {MAX_DOCUMENTS} windows are accepted, got {len(windows)}")
        return windows

    def _windows(self, query: RerankQuery, passages: Sequence[Passage]) -> list[list[Span]]:
        return [
            spans
            for text, group in _by_query(passages)
            for spans in self.scorer.windows(text, group, query.max_tokens_per_doc)
        ]

    async def _score(
        self, query: RerankQuery, missing: Mapping[bytes, Passage], timings: Timings
    ) -> tuple[dict[bytes, Score], int]:
        """The scores of the missing passages by key, and how many of them no other request was having scored."""
        started = perf_counter()
        passages = list(missing.values())
        pairs = await asyncio.get_running_loop().run_in_executor(self._tokenizers, self._encode, query, passages)
        timings.tokenize += (tokenized := perf_counter()) - started
        _refuse_truncated(query, passages, pairs)
        flights, scored = self.cache.claim(list(missing), pairs, self.batcher.submit)
        try:
            await asyncio.wait({flight.future for flight in flights}, return_when=asyncio.FIRST_EXCEPTION)
            timings.inference = perf_counter() - tokenized
            # Not all done means that one failed: its result() raises before the lengths below could differ.
            logits = [flight.future.result() for flight in flights if flight.future.done()]
        finally:
            if self.cache.release(flights):
                self.batcher.prune()
        scores = (Score(logit, pair.length, pair.truncated) for logit, pair in zip(logits, pairs, strict=True))
        return dict(zip(missing, scores, strict=True)), scored

    def _encode(self, query: RerankQuery, passages: Sequence[Passage]) -> list[Pair]:
        return [
            pair
            for text, group in _by_query(passages)
            for pair in self.scorer.encode(text, group, query.max_tokens_per_doc)
        ]

    def _fold(self, scored_passages: Sequence[tuple[Passage, Score]], scored: int, timings: Timings) -> Ranking:
        """Of each document the best passage."""
        best: dict[int, tuple[Passage, Score]] = {}
        for passage, score in scored_passages:
            if passage.document not in best or score.logit > best[passage.document][1].logit:
                best[passage.document] = passage, score
        logits = [score.logit for _, score in best.values()]
        return Ranking(
            logits=logits,
            scores=self.scorer.activate(logits),
            windows=[passage.span for passage, _ in best.values()],
            pairs=len(scored_passages),
            scored=scored,
            tokens=sum(score.tokens for _, score in scored_passages),
            truncated=len({passage.document for passage, score in scored_passages if score.truncated or passage.cut}),
            timings=timings,
        )


def _by_query(passages: Sequence[Passage]) -> Iterator[tuple[str, list[str]]]:
    """Neighbours with the same query, as the tokenizer takes them."""
    for query, group in groupby(passages, attrgetter("query")):
        yield query, [passage.text for passage in group]


def _refuse_truncated(query: RerankQuery, passages: Sequence[Passage], pairs: Sequence[Pair | Score]) -> None:
    """Raise `InvalidRequest` for the first document that was cut, where the caller does not want that."""
    if query.long_documents != "refuse":
        return
    for passage, pair in zip(passages, pairs, strict=True):
        if pair.truncated:
            raise InvalidRequest(
                f"{query.names[1]}[{passage.document}]: is longer than the window leaves beside the query, or than "
                "max_tokens_per_doc, and the request asks not to truncate"
            )
