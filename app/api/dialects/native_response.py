"""What a client gets in the native dialect."""

import time
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from app.api.dialects.native_request import RankRequest, RerankRequest
from app.api.dialects.native_spans import Span, SpansMeta, spans_of
from app.api.dialects.voyage import VoyageResult
from app.api.documents import Document
from app.api.fields import Usage
from app.api.ranking import usage
from app.telemetry.cost import Bill
from app.telemetry.record import RequestRecord, milliseconds
from app.types import BudgetUse, Evidence, Ranking

EXAMPLE_RESPONSE: dict[str, Any] = {
    "id": "3f0e2f6d5f0b4c0f9a52c6a1d3c4b5e6",
    "object": "rerank",
    "model": "reranker-minilm-l6-v2",
    "created": 1795339693,
    "results": [
        {
            "index": 1,
            "relevance_score": 0.63748419284821,
            "document": {"text": "Saturn has 146 confirmed moons, more than any other planet in the Solar System."},
        },
        {
            "index": 0,
            "relevance_score": 0.28814768791199,
            "document": {"text": "Mars has two small moons, Phobos and Deimos, discovered in 1877."},
        },
    ],
    "usage": {"prompt_tokens": 77, "total_tokens": 77},
    "meta": {
        "documents": 3,
        "scored": 3,
        "cached": 0,
        "prefiltered": 0,
        "truncated": 0,
        "repaired": 0,
        "degraded": False,
        "fusion": "off",
        "timings_ms": {"queue": 0.024, "prefilter": 0.0, "tokenize": 0.834, "inference": 22.254, "total": 23.386},
        "cost": {"tokens": 77, "cpu_ms": 20.116},
        "billed_units": {"search_units": 1},
    },
}


class Window(BaseModel):
    """A part of a document, in characters."""

    start: int
    end: int


class Result(BaseModel):
    """One ranked document. `document` is there only when asked for, and then always an object."""

    index: int
    relevance_score: float
    fused_score: Annotated[
        float | None, Field(description="With `fusion`: what the order is based on, comparable within the request")
    ] = None
    id: str | int | None = None
    document: Document | None = None
    unscored: Annotated[
        Literal[True] | None,
        Field(description="Not scored by the model: its place comes from shared words or from the first stage"),
    ] = None
    read_by: Annotated[str | None, Field(description="In a cascade: the name of the model that the score is from")] = (
        None
    )
    prefiltered: Annotated[Literal[True] | None, Field(description="The first stage left it out")] = None
    window: Annotated[
        Window | None,
        Field(
            description="The best window of a document that was read in several. With `chunk_max` in the request "
            "every document has one"
        ),
    ] = None
    spans: Annotated[
        list[Span] | None, Field(description="With `max_spans`: the best passages inside the document, best first")
    ] = None
    relevant_spans: Annotated[
        list[Span] | None, Field(description="With `relevant_spans`: the same, as Cohere has it")
    ] = None


class TimingsMs(BaseModel):
    """Milliseconds: waiting for a slot, first stage, tokenization, engine (with its queue), total."""

    queue: float
    prefilter: float
    tokenize: float
    inference: float
    total: float


class Cost(BaseModel):
    """What the engine used for this request: its share, by tokens, of each batch."""

    tokens: Annotated[int, Field(description="Tokens that the model read. Cached scores cost nothing")]
    cpu_ms: Annotated[float, Field(description="CPU time of all cores together, in milliseconds")]
    joules: Annotated[
        float | None, Field(description="Energy of CPU packages and GPU, if the machine has counters and the model ran")
    ] = None

    @classmethod
    def of(cls, bill: Bill) -> Self:
        """In the units of the answer."""
        joules = None if bill.energy_uj is None else bill.energy_uj / 1e6
        return cls(tokens=bill.tokens, cpu_ms=bill.cpu_ns / 1e6, joules=joules)


class BudgetMeta(BaseModel):
    """What the model read within a latency budget."""

    budget_ms: float
    read: Annotated[int, Field(description="Documents that the model scored, now or before")]
    of: Annotated[int, Field(description="Documents in the request")]
    predicted_ms: Annotated[
        float | None, Field(description="How long the request would take, by the plan; from its arrival")
    ] = None

    @classmethod
    def of_use(cls, use: BudgetUse) -> Self:
        """In the units of the answer."""
        predicted = None if use.predicted is None else milliseconds(use.predicted)
        return cls(budget_ms=milliseconds(use.budget), read=use.read, of=use.of, predicted_ms=predicted)


class BilledUnits(BaseModel):
    """For clients that count Cohere's units."""

    search_units: int = 1


class Meta(BaseModel):
    """How this request was processed."""

    documents: int
    scored: int
    cached: int
    prefiltered: int
    truncated: int
    repaired: Annotated[int, Field(description="Documents in which U+FFFD replaces broken characters")] = 0
    degraded: Literal[False] | str = False
    fusion: Annotated[Evidence, Field(description="What the order considers besides the model's score")] = "off"
    budget: Annotated[BudgetMeta | None, Field(description="With `budget_ms`")] = None
    cascade: Annotated[
        dict[str, int] | None, Field(description="In a cascade: how many documents each model scored, now or before")
    ] = None
    spans: Annotated[SpansMeta | None, Field(description="With `max_spans` or `relevant_spans`")] = None
    timings_ms: TimingsMs
    cost: Cost | None = None
    billed_units: BilledUnits = BilledUnits()


class RerankResponse(BaseModel):
    """The ranking, best first; ties in the order of the request."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_RESPONSE]})

    id: str
    object: Annotated[Literal["rerank", "list"], Field(description="`list` for Voyage's client")] = "rerank"
    model: str
    created: int
    results: list[Result]
    data: Annotated[list[VoyageResult] | None, Field(description="The same for Voyage's client")] = None
    missing: Annotated[
        list[str | int] | None, Field(description="Ids that are not in the collection: these documents have no result")
    ] = None
    usage: Usage
    meta: Meta

    @classmethod
    def of(cls, request: RerankRequest, ranking: Ranking, model: str, record: RequestRecord) -> Self:
        """Serialize a ranking as the request asks."""
        timings, ranked = ranking.timings, results(request, ranking)
        return cls(
            id=record.id,
            object="list" if request.is_voyage else "rerank",
            model=model,
            created=int(time.time()),
            results=ranked,
            data=[_for_voyage(result) for result in ranked] if request.is_voyage else None,
            missing=request.found.missing or None if request.found else None,
            usage=usage(ranking),
            meta=Meta(
                documents=len(request.documents),
                scored=ranking.scored,
                cached=ranking.pairs - ranking.scored,
                prefiltered=len(ranking.prefiltered),
                truncated=ranking.truncated,
                repaired=sum(document.was_repaired for document in request.documents),
                degraded=ranking.degraded or False,
                fusion=ranking.evidence,
                budget=BudgetMeta.of_use(ranking.budget) if ranking.budget else None,
                cascade=dict(ranking.cascade.read) if ranking.cascade else None,
                spans=SpansMeta.of(ranking.spans) if ranking.spans else None,
                timings_ms=TimingsMs(
                    queue=milliseconds(timings.queue),
                    prefilter=milliseconds(timings.prefilter),
                    tokenize=milliseconds(timings.tokenize),
                    inference=milliseconds(timings.inference),
                    total=milliseconds(timings.total),
                ),
                cost=Cost.of(record.bill) if record.bill else None,
            ),
        )


def _for_voyage(result: Result) -> VoyageResult:
    text = result.document.text if result.document else None
    return VoyageResult(index=result.index, relevance_score=result.relevance_score, document=text)


def results(request: RankRequest, ranking: Ranking) -> list[Result]:
    """The results in order, at most `top_k`."""
    scores = ranking.logits if request.raw_scores else ranking.scores
    return [_result(request, ranking, index, scores[index]) for index in request.returned(ranking)]


def _result(request: RankRequest, ranking: Ranking, index: int, score: float) -> Result:
    document = request.documents[index]
    return Result(
        index=request.found.positions[index] if request.found else index,
        relevance_score=score,
        fused_score=ranking.fused.get(index),
        id=document.id,
        document=document if request.return_documents else None,
        unscored=True if index in ranking.unscored else None,
        read_by=ranking.cascade.read_by.get(index) if ranking.cascade else None,
        prefiltered=True if index in ranking.prefiltered else None,
        window=_window(request, ranking, index),
        **spans_of(request, ranking, index),
    )


def _window(request: RankRequest, ranking: Ranking, index: int) -> Window | None:
    """The best window of a split document. If the request sets `chunk_max`, a document that fits is one window."""
    document, span = request.documents[index], ranking.windows[index]
    # Positions in a rendered document mean nothing to the client.
    if document.text is None or not document.is_plain(request.rank_fields):
        return None
    if span is None and request.long_documents == "chunk_max" and index not in ranking.unscored:
        span = 0, len(document.text)
    return Window(start=span[0], end=span[1]) if span else None
