"""Two models in a row: a small one reads all documents, and a large one reads the best of them again."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from types import TracebackType

from app.engines.protocol import Engine, EngineInfo
from app.errors import DeadlineExceeded, Refused, ScoringFailed
from app.serving.folding import best_passages
from app.serving.merging import add_work, put_first, use_of
from app.serving.model import Model
from app.serving.progress import Progress
from app.serving.ranking import rank
from app.serving.reranker import Reranker
from app.telemetry.metrics import Metrics
from app.types import Choice, Ranking, RerankQuery, Spans

NAME = "cascade"
"""What clients call it."""
DEFAULT_TOP_K = 10
# A budget may leave no time for the large model. If it has read nothing for this many seconds, it reads one
# document anyway: otherwise its speed, which decides what fits, would never be measured again.
SECONDS_OF_TRUST = 10.0


class KeptSlot:
    """A slot that is taken when it is needed first, and kept until the request has ended: it is admitted once."""

    def __init__(self, stack: AsyncExitStack, take: Callable[[], AbstractAsyncContextManager[float]]) -> None:
        """`stack`: ends with the request."""
        self._stack = stack
        self._take = take
        self._is_held = False

    @asynccontextmanager
    async def get(self) -> AsyncIterator[float]:
        """Have the slot; yields the seconds waited for it."""
        waited = 0.0
        if not self._is_held:
            waited = await self._stack.enter_async_context(self._take())
            self._is_held = True
        yield waited


@dataclass(slots=True)
class Reading:
    """What is known about one request, by model."""

    first: Progress
    second: Progress | None = None
    """None before the large model is asked."""


class Cascade:
    """Ranks documents with two models, and is chosen like one; owns no state."""

    name = NAME

    def __init__(self, small: Model, large: Model, top_k: int | None, metrics: Metrics) -> None:
        """`top_k`: documents that the large model reads, unless the request sets it."""
        self.small = small
        self.large = large
        self._top_k = top_k
        self._metrics = metrics
        self._documents = metrics.count_cascade()

    @property
    def problem(self) -> str | None:
        """Why one of the models cannot be used; None if both can be."""
        return self.small.problem or self.large.problem

    @property
    def status(self) -> str:
        """`ok`, or the status of a model that is not ready."""
        return self.small.status if self.small.problem else self.large.status

    @property
    def info(self) -> EngineInfo | None:
        """The large model's, with the name of the cascade."""
        return replace(self.large.info, model=NAME) if self.large.info else None

    @property
    def engine(self) -> Engine:
        """The large model's. Raises `Unavailable` before it is loaded."""
        return (self.large.reranker or self.large.usable_reranker()).engine

    def summary(self) -> dict[str, object]:
        """For `/info`."""
        return {"name": NAME, "small": self.small.name, "large": self.large.name, "top_k": self._top_k}

    def usable_reranker(self) -> "Cascade":
        """Itself, for a new request. Raises `Unavailable` if the small model cannot be used."""
        self.small.usable_reranker()
        return self

    def __enter__(self) -> "Cascade":
        """Use both models: they stay in memory."""
        self.small.__enter__()
        self.large.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.large.__exit__(kind, error, at)
        self.small.__exit__(kind, error, at)

    async def wait_until_loaded(self, seconds: float | None) -> float | None:
        """Wait until both models are in memory, as `Model.wait_until_loaded` does."""
        return await self.large.wait_until_loaded(await self.small.wait_until_loaded(seconds))

    async def rerank(self, query: RerankQuery) -> Ranking:
        """Score every document with the small model, and the best again with the large one.

        Raises what `Reranker.rerank` raises. Pairs with their own queries have no order: the large one reads them all.
        """
        if not isinstance(query.query, str):
            return await self.large.usable_reranker().rerank(query)
        started, small = perf_counter(), _reranker(self.small)
        reading = Reading(small.begin(_instructed(query, small, self.large)))
        try:
            async with AsyncExitStack() as stack:
                reading.first.slot = KeptSlot(stack, partial(self._slot, query)).get
                await small.in_time(reading.first, partial(self._read, reading, query))
            ranking = self._rank(reading, small)
        except (Refused, DeadlineExceeded, ScoringFailed) as error:
            if query.on_overload == "error":
                raise
            ranking = await small.degrade(reading.first, error)
            self._count(ranking, reading, None)
        if ranking.budget:
            self._metrics.observe_budget(ranking.budget, reading.first.spent())
        if query.spans:
            await self._add_spans(ranking, reading)
        ranking.timings.total = perf_counter() - started
        self._metrics.observe_ranking(ranking)
        return ranking

    def _slot(self, query: RerankQuery) -> AbstractAsyncContextManager[float]:
        return _reranker(self.small).admission.slot(query.priority, self._backlog, NAME)

    def _backlog(self) -> float | None:
        """Seconds until both engines have finished their current work: they share the machine."""
        known = [_reranker(model).batcher.backlog for model in (self.small, self.large) if model.reranker]
        return None if None in known else sum(each for each in known if each is not None)

    async def _read(self, reading: Reading, query: RerankQuery, first: Progress) -> None:
        """Have both models read."""
        # If the large model cannot be used, the order of the small one is wanted only with `on_overload`.
        usable = self.large.usable_reranker() if query.on_overload == "error" else None
        await _reranker(self.small).complete(first)
        large = usable or self.large.usable_reranker()
        instruction = None if large.engine.info.instruction is None else query.instruction
        own = replace(first.query, prefilter="off", instruction=instruction)
        second = Progress(
            own,
            large.long_documents_of(own),
            first.deadline,
            self._choose(first),
            started=first.started,
            words=first.words,
            slot=first.slot,
            may_read_none=large.batcher.silence < SECONDS_OF_TRUST,
        )
        reading.second = second
        await large.complete(second)

    def _choose(self, progress: Progress) -> Choice:
        """The best documents by the small model's scores."""
        query, scored = progress.query, best_passages(progress.scored_passages())
        order = sorted(scored, key=lambda index: (-scored[index][1].logit, index))
        most = query.cascade_top_k or self._top_k or (len(order) if query.is_budgeted else DEFAULT_TOP_K)
        places = [0.0] * len(query.documents)
        for place, index in enumerate(order):
            places[index] = 1 - place / len(order)
        return Choice(places, frozenset(order[:most]))

    def _rank(self, reading: Reading, small: Reranker) -> Ranking:
        """The ranking by both models."""
        first, second = reading.first, reading.second
        assert second is not None  # noqa: S101 (both have read)
        if first.plan and second.plan:
            first.plan = first.plan._replace(stages=first.plan.stages + second.plan.stages)
        ranking = put_first(rank(second, self.engine), rank(first, small.engine), first)
        self._count(ranking, reading, second if ranking.ranked else None)
        return ranking

    def _count(self, ranking: Ranking, reading: Reading, used: Progress | None) -> None:
        """Add the work of the large model, and set what each has read. `used`: None if its scores are not used."""
        if reading.second:
            add_work(ranking, reading.second)
        ranking.cascade = use_of(self.small.name, reading.first, self.large.name, used)
        for model, documents in ranking.cascade.read.items():
            self._documents.labels(model).inc(documents)

    async def _add_spans(self, ranking: Ranking, reading: Reading) -> None:
        """Look for passages in each document with the model that has read it last."""
        found, options = Spans(error=ranking.degraded), reading.first.query.spans
        if ranking.degraded is None and options is not None and ranking.cascade is not None:
            wanted, read_by = options.documents(ranking), ranking.cascade.read_by
            for model, progress in ((self.large, reading.second), (self.small, reading.first)):
                own = [index for index in wanted if read_by.get(index) == model.name]
                reranker = _reranker(model)
                if own and progress:
                    progress.query = replace(progress.query, spans=replace(options, documents=partial(_only, own)))
                    await reranker.spans.add(
                        ranking, progress, reranker.score_passages, reranker.engine, found.candidates
                    )
                    found = _both(found, ranking.spans)
        ranking.spans = found


def _only(documents: Sequence[int], _: Ranking) -> Sequence[int]:
    return documents


def _both(first: Spans, second: Spans | None) -> Spans:
    if second is None:
        return first
    by_document = first.by_document | second.by_document
    return Spans(by_document, first.candidates + second.candidates, first.cut + second.cut, first.error or second.error)


def _instructed(query: RerankQuery, small: Reranker, large: Model) -> RerankQuery:
    """The query for the small model. An instruction goes to each model that takes one, if any does."""
    takes_one = small.engine.info.instruction is not None or large.info is None or large.info.instruction is None
    return query if takes_one else replace(query, instruction=None)


def _reranker(model: Model) -> Reranker:
    """The model's reranker. Raises `Unavailable` if it has none."""
    return model.reranker or model.usable_reranker()
