"""The story of one request, top to bottom."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager
from time import perf_counter
from typing import TYPE_CHECKING

from app.engines.protocol import Engine
from app.errors import DeadlineExceeded, Refused, RerankerError, ScoringFailed
from app.first_stage.prefilter import Prefilter
from app.machine.threads import on_thread
from app.serving.admission import Admission
from app.serving.batcher import Batcher
from app.serving.cache import ScoreCache
from app.serving.checks import check_instruction, check_query, check_untruncated, cut_long_documents
from app.serving.fallback import Fallback, compare_words
from app.serving.language import LanguageWatch
from app.serving.progress import KeyedPassages, Progress, within
from app.serving.ranking import rank
from app.serving.reading import Work, first_stage_method, leave_out_most, plan, plan_known
from app.serving.scoring import score_pairs
from app.serving.spans import SpanFinder
from app.serving.tokenizing import encode_passages, find_windows
from app.serving.windows import put_windows
from app.telemetry.metrics import Metrics
from app.types import Limits, LongDocuments, Pair, Passage, Ranking, RerankQuery, SpanBounds

if TYPE_CHECKING:
    from app.serving.shared_cache import SharedCache


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
        fallback: Fallback,
        span_bounds: SpanBounds,
        long_documents: LongDocuments | None = None,
        shared_cache: "SharedCache | None" = None,
        instruction: str | None = None,
        name: str = "",
    ) -> None:
        """`instruction`: what the model should look for, unless a request says it. None for the model's own."""
        self.engine = engine
        self.cache = cache
        self.admission = admission
        self.batcher = batcher
        self.limits = limits
        self._tokenizers = tokenizers
        self._metrics = metrics
        self._first_stage = prefilter
        self._fallback = fallback
        self._long_documents = long_documents
        self._shared_cache = shared_cache
        self._languages = LanguageWatch(metrics)
        self._instruction = instruction
        self.spans = SpanFinder(span_bounds, tokenizers)
        self._name = name

    @property
    def long_documents(self) -> LongDocuments:
        """The operator's setting, or else the model's default."""
        return self._long_documents or self.engine.info.long_documents

    @property
    def instruction(self) -> str | None:
        """The operator's setting, or else the model's own. None if the model takes none."""
        return self._instruction or self.engine.info.instruction

    def take_engine(self, engine: Engine, batcher: Batcher) -> None:
        """Continue with another engine. Cached scores are found only if its fingerprint is the same."""
        self.engine, self.batcher = engine, batcher
        self.cache.fingerprint = engine.info.fingerprint

    async def rerank(self, query: RerankQuery) -> Ranking:
        """Score every document against the query.

        Raises `InvalidRequest`, `TooLarge`, `QueueFull`, `QueueTimeout`, `DeadlineExceeded`, `Unavailable` or
        `ScoringFailed`. A cancelled call leaves nothing behind.
        """
        progress = self.begin(query)
        started = perf_counter()
        try:
            await self.in_time(progress, self.complete)
            ranking = rank(progress, self.engine)
        except (Refused, DeadlineExceeded, ScoringFailed) as error:
            if query.on_overload == "error":
                raise
            ranking = await self.degrade(progress, error)
        if ranking.budget:
            self._metrics.observe_budget(ranking.budget, progress.spent())
        if query.spans:
            await self.spans.add(ranking, progress, self.score_passages, self.engine)
        ranking.timings.total = perf_counter() - started
        self._metrics.observe_ranking(ranking)
        return ranking

    def begin(self, query: RerankQuery) -> Progress:
        """The record of a new request. Raises `InvalidRequest` or `TooLarge`."""
        if self._may_cut(query):
            query = cut_long_documents(query, self.limits)
        check_query(query, self.limits)
        check_instruction(query.instruction, self.engine.info)
        if self.engine.info.languages == ("en",):
            self._languages.see(query)
        return Progress(query, self.long_documents_of(query))

    def long_documents_of(self, query: RerankQuery) -> LongDocuments:
        """The request's choice. A token limit below the model's window means that truncation is wanted."""
        return query.long_documents or ("truncate" if self._limit(query) else self.long_documents)

    def _may_cut(self, query: RerankQuery) -> bool:
        """Whether the request or the operator has allowed to read only the beginning of a document."""
        asked = query.long_documents or ("truncate" if query.max_tokens_per_doc else self._long_documents)
        return asked in ("truncate", "chunk_max")

    def _limit(self, query: RerankQuery) -> int | None:
        """The request's limit of tokens per document, or None if the model's window is the tighter one."""
        limit = query.max_tokens_per_doc
        return limit if limit and limit < self.engine.info.max_length else None

    def _instruction_of(self, query: RerankQuery) -> str | None:
        """The request's instruction, or the service's. None if it is the model's own."""
        instruction = self._instruction if query.instruction is None else query.instruction
        return None if instruction == self.engine.info.instruction else instruction

    async def in_time(self, progress: Progress, work: Callable[[Progress], Awaitable[None]]) -> None:
        """Do this work within the deadline. Raises `DeadlineExceeded`."""
        async with within(progress.query.timeout or self.limits.timeout or None) as limit:
            progress.deadline = limit.when()
            await work(progress)

    async def complete(self, progress: Progress) -> None:
        """Get the score of every document that the first stage keeps, or the choice if there is one already."""
        query = progress.query
        if query.is_prefiltered or query.is_budgeted:
            await self._score_chosen(progress)
        else:
            await self.score_passages(progress, progress.passages())
        check_untruncated(query, progress.long_documents, progress.scored_passages())
        if query.evidence == "lexical" and not progress.words:
            await compare_words(progress, self._tokenizers)

    async def _score_chosen(self, progress: Progress) -> None:
        """Get the scores of the documents that the first stage keeps, and of these as many as the budget allows."""
        query = progress.query
        if not query.is_prefiltered:
            await self._look_up(progress, progress.passages())
            if progress.is_complete():
                progress.plan = plan_known(progress)
                return
        async with self._slot(progress) as progress.timings.queue:
            if progress.choice is None:
                await self._prefilter(progress)
            if query.is_prefiltered:
                await self._look_up(progress, progress.passages())
            else:
                progress.known |= self.cache.find(progress.keyed.keys)
            if query.is_budgeted:
                await self._score_budgeted(progress)
            else:
                await self._score(progress, await self._prepare(progress))

    async def _score_budgeted(self, progress: Progress) -> None:
        """Get the scores of the documents that fit into the budget."""
        pace = self.batcher.pace
        leave_out_most(progress, pace, self._work(progress), self.engine.info.max_length)
        pairs = plan(progress, await self._prepare(progress), pace, self._work(progress))
        found = ((passage, pairs[key]) for key, passage in progress.missing().items())
        check_untruncated(progress.query, progress.long_documents, found)
        started = perf_counter()
        await self._score(progress, pairs)
        if pairs and progress.plan:
            pace.see_request(progress.plan.stages[0].seconds, perf_counter() - started)

    def _work(self, progress: Progress) -> Work:
        return Work(self.batcher.tokens_ahead(progress.query.priority), self.cache.joinable)

    async def score_passages(self, progress: Progress, passages: Sequence[Passage]) -> None:
        """Get the score of every passage. Requests for known scores need no slot."""
        await self._look_up(progress, passages)
        if not progress.is_complete():
            async with self._slot(progress) as waited:
                progress.timings.queue += waited
                # Other requests may have scored some passages while this one waited for its slot.
                progress.known |= self.cache.find(progress.keyed.keys)
                await self._score(progress, await self._prepare(progress))

    def _slot(self, progress: Progress) -> AbstractAsyncContextManager[float]:
        if progress.slot:
            return progress.slot()
        return self.admission.slot(progress.query.priority, lambda: self.batcher.backlog, self._name)

    async def _prefilter(self, progress: Progress) -> None:
        """Choose documents by the first stage."""
        query, started = progress.query, perf_counter()
        progress.choice = await on_thread(
            self._tokenizers,
            self._first_stage.choose,
            first_stage_method(query.prefilter),
            query.passages()[0].query,
            query.documents,
            query.depth,
        )
        progress.timings.prefilter = perf_counter() - started

    async def _look_up(self, progress: Progress, passages: Sequence[Passage]) -> None:
        """Make these the passages to score, and take the scores that this replica or another one remembers."""
        texts = ((passage.query, passage.text) for passage in passages)
        keys = self.cache.keys(texts, self._limit(progress.query), self._instruction_of(progress.query))
        progress.keyed = KeyedPassages(keys, passages)
        progress.known |= self.cache.find(keys)
        if progress.long_documents == "chunk_max" and (spans := progress.windows(self.cache.windows)):
            await self._look_up(progress, put_windows(progress.query, passages, spans))
        elif self._shared_cache and (missing := progress.missing()):
            shared = await self._shared_cache.get(list(missing))
            self.cache.remember(shared)
            progress.known |= shared

    async def _prepare(self, progress: Progress) -> dict[bytes, Pair]:
        """Tokenize the passages without a score. In `chunk_max` mode, first split the documents that do not fit."""
        pairs = await self._tokenize(progress, progress.missing())
        if progress.long_documents == "chunk_max" and (windows := await self._split(progress, pairs)):
            await self._look_up(progress, windows)
            missing = progress.missing()
            new = {key: passage for key, passage in missing.items() if key not in pairs}
            pairs |= await self._tokenize(progress, new)
            return {key: pairs[key] for key in missing}
        return pairs

    async def _tokenize(self, progress: Progress, passages: Mapping[bytes, Passage]) -> dict[bytes, Pair]:
        if not passages:
            return {}
        self.batcher.check_alive()  # otherwise nobody would score the pairs
        started, query = perf_counter(), progress.query
        pairs = await on_thread(
            self._tokenizers,
            encode_passages,
            self.engine,
            list(passages.values()),
            query.max_tokens_per_doc,
            self._instruction_of(query),
        )
        seconds = perf_counter() - started
        progress.timings.tokenize += seconds
        if query.is_budgeted:
            self.batcher.pace.see_texts(passages.values(), pairs, seconds)
        else:
            check_untruncated(query, progress.long_documents, zip(passages.values(), pairs, strict=True))
        return dict(zip(passages, pairs, strict=True))

    async def _split(self, progress: Progress, pairs: Mapping[bytes, Pair]) -> list[Passage]:
        """All passages, with windows in place of the documents that do not fit. Empty if all documents fit."""
        truncated, started, query = progress.truncated(pairs), perf_counter(), progress.query
        if not truncated:
            return []
        found = await on_thread(
            self._tokenizers,
            find_windows,
            self.engine,
            truncated,
            query.max_tokens_per_doc,
            self._instruction_of(query),
        )
        progress.timings.tokenize += perf_counter() - started
        # A single window means that only the query was cut: the document stays whole.
        spans = {passage.document: own for passage, own in zip(truncated, found, strict=True) if len(own) > 1}
        self.cache.remember_windows(
            {key: spans[passage.document] for key, passage in progress.keyed if passage.document in spans}
        )
        return put_windows(query, progress.keyed.passages, spans) if spans else []

    async def _score(self, progress: Progress, pairs: Mapping[bytes, Pair]) -> None:
        if pairs:
            await score_pairs(progress, pairs, self.cache, self.batcher, self._shared_cache)

    async def degrade(self, progress: Progress, error: RerankerError) -> Ranking:
        """Rank without the missing scores. Raises `error` if too many requests ask for that at once."""
        if progress.choice is None or progress.query.evidence == "lexical":
            await self._fallback.compare_words(progress, error)
        ranking = rank(progress, self.engine)
        ranking.degraded = error.code
        return ranking
