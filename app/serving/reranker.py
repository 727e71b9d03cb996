"""The story of one request, top to bottom."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from itertools import groupby
from operator import attrgetter
from time import perf_counter
from typing import TYPE_CHECKING

from app.engines.protocol import Engine
from app.errors import DeadlineExceeded, InvalidRequest, Refused, RerankerError, ScoringFailed, TooLarge
from app.first_stage.lexical import lexical_scores
from app.first_stage.prefilter import Prefilter
from app.serving.admission import Admission
from app.serving.attempt import Attempt
from app.serving.batcher import Batcher
from app.serving.cache import ScoreCache
from app.serving.windows import put_windows
from app.telemetry.metrics import Metrics
from app.types import Limits, LongDocuments, Pair, Passage, Ranking, RerankQuery, Score, Span

if TYPE_CHECKING:
    from app.serving.shared_cache import SharedCache

# No logit of a document without a score is higher.
UNREAD = -10.0


class Reranker:
    """Ranks documents with the parts it is given; owns none of their state."""

    def __init__(
        self,
        engine: Engine,
        tokenizers: Executor,
        cache: ScoreCache,
        admission: Admission,
        batcher: Batcher,
        metrics: Metrics,
        limits: Limits,
        prefilter: Prefilter,
        long_documents: LongDocuments | None = None,
        shared_cache: "SharedCache | None" = None,
    ) -> None:
        self.engine = engine
        self.cache = cache
        self.admission = admission
        self.batcher = batcher
        self.limits = limits
        self._tokenizers = tokenizers
        self._metrics = metrics
        self._first_stage = prefilter
        self._long_documents = long_documents
        self._shared_cache = shared_cache

    @property
    def long_documents(self) -> LongDocuments:
        """The default: as the operator sets it, or else as the model declares it."""
        return self._long_documents or self.engine.info.long_documents

    def take_engine(self, engine: Engine, batcher: Batcher) -> None:
        """Go on with another engine. Scores of one that gave others are no longer found."""
        self.engine, self.batcher = engine, batcher
        self.cache.fingerprint = engine.info.fingerprint

    async def rerank(self, query: RerankQuery) -> Ranking:
        """Score every document against the query.

        Raises `InvalidRequest`, `TooLarge`, `QueueFull`, `QueueTimeout`, `DeadlineExceeded`, `Unavailable` or
        `ScoringFailed`. A cancelled call leaves nothing behind.
        """
        self._check(query)
        attempt = Attempt(query, self._long_documents_of(query), query.passages())
        started = perf_counter()
        try:
            await self._score_in_time(attempt)
            ranking = self._fold(attempt)
        except (Refused, DeadlineExceeded, ScoringFailed) as error:
            if query.on_overload == "error":
                raise
            ranking = await self._degrade(attempt, error)
        ranking.timings.total = perf_counter() - started
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

    def _long_documents_of(self, query: RerankQuery) -> LongDocuments:
        """What the request asks for; a limit of tokens shorter than the window asks for a cut."""
        return query.long_documents or ("truncate" if self._limit(query) else self.long_documents)

    def _limit(self, query: RerankQuery) -> int | None:
        """The tokens of a document to read. A limit that the window is not longer than cuts nothing."""
        limit = query.max_tokens_per_doc
        return limit if limit and limit < self.engine.info.max_length else None

    async def _score_in_time(self, attempt: Attempt) -> None:
        timeout = attempt.query.timeout or self.limits.timeout or None
        try:
            async with asyncio.timeout(timeout) as limit:
                attempt.deadline = limit.when()
                await self._lookup_or_score(attempt)
        except TimeoutError:
            raise DeadlineExceeded(f"No answer within the deadline of {timeout:g} s") from None

    async def _lookup_or_score(self, attempt: Attempt) -> None:
        """Have the score of every passage known. Known scores need no slot."""
        query = attempt.query
        if not query.is_prefiltered:
            await self._look_up(attempt)
        if query.is_prefiltered or not attempt.is_answered():
            async with self.admission.slot(query.priority, lambda: self.batcher.backlog) as attempt.timings.queue:
                if query.is_prefiltered:
                    await self._prefilter(attempt)
                    await self._look_up(attempt)
                if attempt.long_documents == "chunk_max" and await self._split(attempt):
                    await self._look_up(attempt)
                # Another request may have scored some of them meanwhile.
                attempt.known |= self.cache.find(attempt.keys)
                if missing := attempt.missing():
                    await self._score(attempt, missing)
        _refuse_truncated(attempt, attempt.passages, [attempt.known[key] for key in attempt.keys])

    async def _look_up(self, attempt: Attempt) -> None:
        """The scores that are remembered here, or by another replica."""
        texts = ((passage.query, passage.text) for passage in attempt.passages)
        attempt.keys = self.cache.keys(texts, self._limit(attempt.query))
        attempt.known |= self.cache.find(attempt.keys)
        if self._shared_cache and (missing := attempt.missing()):
            shared = await self._shared_cache.get(list(missing))
            self.cache.remember(shared)
            attempt.known |= shared

    async def _prefilter(self, attempt: Attempt) -> None:
        """Go on with the documents that the first stage chooses."""
        query, started = attempt.query, perf_counter()
        attempt.choice = await asyncio.get_running_loop().run_in_executor(
            self._tokenizers,
            self._first_stage.choose,
            query.prefilter,
            attempt.passages[0].query,
            query.documents,
            query.prefilter_top_k,
        )
        kept = attempt.choice.kept
        attempt.passages = [passage for passage in attempt.passages if passage.document in kept]
        attempt.timings.prefilter = perf_counter() - started

    async def _split(self, attempt: Attempt) -> bool:
        """Put the windows of the documents that do not fit in their place. Returns whether there are any."""
        await self._tokenize(attempt, attempt.missing())
        started, cut = perf_counter(), attempt.cut()
        if not cut:
            return False
        found = await asyncio.get_running_loop().run_in_executor(self._tokenizers, self._windows, attempt.query, cut)
        attempt.timings.tokenize += perf_counter() - started
        # Where only the query was cut, the document is its own one window.
        spans = {passage.document: own for passage, own in zip(cut, found, strict=True) if len(own) > 1}
        attempt.passages = put_windows(attempt.query, attempt.passages, spans)
        return bool(spans)

    def _windows(self, query: RerankQuery, passages: Sequence[Passage]) -> list[list[Span]]:
        return [
            spans
            for text, group in _by_query(passages)
            for spans in self.engine.windows(text, group, query.max_tokens_per_doc)
        ]

    async def _score(self, attempt: Attempt, missing: Mapping[bytes, Passage]) -> None:
        """Have the model score the missing passages, but for those that it is scoring for another request."""
        pairs = await self._tokenize(attempt, missing)
        _refuse_truncated(attempt, list(missing.values()), pairs)
        started = perf_counter()
        self._refuse_hopeless(attempt, dict(zip(missing, pairs, strict=True)))
        submit = partial(self.batcher.submit, priority=attempt.query.priority)
        flights, new = self.cache.claim(list(missing), pairs, submit)
        try:
            await asyncio.wait({flight.future for flight in flights}, return_when=asyncio.FIRST_EXCEPTION)
            attempt.timings.inference = perf_counter() - started
            for flight in flights:
                if flight.future.done():
                    flight.future.result()  # raises where one failed
        finally:
            landed = {
                key: Score(flight.future.result(), pair.length, pair.truncated)
                for key, flight, pair in zip(missing, flights, pairs, strict=True)
                if flight.landed
            }
            attempt.known |= landed
            attempt.scored = min(new, len(landed))
            if attempt.scored and self._shared_cache:
                self._shared_cache.put(landed)
            if unwanted := self.cache.release(flights):
                self.batcher.withdraw(unwanted)

    def _refuse_hopeless(self, attempt: Attempt, pairs: Mapping[bytes, Pair]) -> None:
        """Raise `DeadlineExceeded` at once where the engine could not meet the deadline had it nothing else to do."""
        needed = self.batcher.seconds_for([pair for key, pair in pairs.items() if not self.cache.joinable(key)])
        if needed > attempt.remaining():
            raise DeadlineExceeded(
                f"The deadline cannot be met: scoring {len(pairs)} pairs takes about {needed:.2g} s, "
                f"{max(0.0, attempt.remaining()):.2g} s are left"
            )

    async def _tokenize(self, attempt: Attempt, missing: Mapping[bytes, Passage]) -> list[Pair]:
        """The pairs of the passages; none is tokenised twice."""
        started = perf_counter()
        new = {key: passage for key, passage in missing.items() if key not in attempt.pairs}
        if new:
            pairs = await asyncio.get_running_loop().run_in_executor(
                self._tokenizers, self._encode, attempt.query, list(new.values())
            )
            attempt.pairs |= zip(new, pairs, strict=True)
        attempt.timings.tokenize += perf_counter() - started
        return [attempt.pairs[key] for key in missing]

    def _encode(self, query: RerankQuery, passages: Sequence[Passage]) -> list[Pair]:
        return [
            pair
            for text, group in _by_query(passages)
            for pair in self.engine.encode(text, group, query.max_tokens_per_doc)
        ]

    async def _degrade(self, attempt: Attempt, error: RerankerError) -> Ranking:
        """What is known, and all other documents behind it in the order of the first stage, or of the words they share
        with their query."""
        queries = attempt.query.query
        texts = [queries] * len(attempt.query.documents) if isinstance(queries, str) else queries
        words: Sequence[float] = ()
        if attempt.choice is None:
            loop = asyncio.get_running_loop()
            words = await loop.run_in_executor(self._tokenizers, lexical_scores, texts, attempt.query.documents)
        ranking = self._fold(attempt, words)
        ranking.degraded = error.code
        return ranking

    def _fold(self, attempt: Attempt, words: Sequence[float] = ()) -> Ranking:
        """Of each document the best passage; where none has a score, the first stage or `words`, from 0 to less than 1,
        decide behind all others."""
        best: dict[int, tuple[Passage, Score]] = {}
        known = [
            (passage, attempt.known[key])
            for passage, key in zip(attempt.passages, attempt.keys, strict=False)
            if key in attempt.known
        ]
        for passage, score in known:
            if passage.document not in best or score.logit > best[passage.document][1].logit:
                best[passage.document] = passage, score
        documents = range(len(attempt.query.documents))
        # Low enough that nobody takes for relevant what no model has read.
        behind = min([UNREAD, *(score.logit for _, score in best.values())]) - 1
        places, kept = attempt.choice or (words, frozenset(documents))
        logits = [best[index][1].logit if index in best else behind + places[index] for index in documents]
        return Ranking(
            logits=logits,
            scores=self.engine.activate(logits),
            windows=[best[index][0].span if index in best else None for index in documents],
            pairs=len(known),
            scored=attempt.scored,
            tokens=sum(score.tokens for _, score in known),
            truncated=len({passage.document for passage, score in known if score.truncated or passage.cut}),
            timings=attempt.timings,
            unscored=frozenset(documents).difference(best),
            prefiltered=frozenset(documents) - kept,
        )


def _by_query(passages: Sequence[Passage]) -> Iterator[tuple[str, list[str]]]:
    """Neighbours with the same query, as the tokenizer takes them."""
    for query, group in groupby(passages, attrgetter("query")):
        yield query, [passage.text for passage in group]


def _refuse_truncated(attempt: Attempt, passages: Sequence[Passage], pairs: Sequence[Pair | Score]) -> None:
    """Raise `InvalidRequest` for the first document that was cut, where that is not wanted."""
    if attempt.long_documents != "refuse":
        return
    query = attempt.query
    reason = (
        "or max_tokens_per_doc, and the request does not allow truncation"
        if query.long_documents
        else "and the service does not truncate unless a request asks for it (RERANKER_LONG_DOCUMENTS=refuse)"
    )
    for passage, pair in zip(passages, pairs, strict=True):
        if pair.truncated:
            name = f"{query.names[1]}[{passage.document}]"
            raise InvalidRequest(f"{name}: the query and this document exceed the model's window {reason}")
