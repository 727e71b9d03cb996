"""The native dialect. Clients of Cohere, Jina, vLLM and Infinity use it too; they ignore its extra fields."""

import time
from typing import Annotated, Any, Literal, Self, cast

from fastapi import APIRouter, Request, Response
from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from app.api.dialects.vllm import NoLimit, TokenLimit, translate_options
from app.api.dialects.voyage import VoyageResult, is_voyage
from app.api.documents import TEXT_FIELDS, Document, Documents, check_rendering
from app.api.errors import ERROR_RESPONSES
from app.api.fields import Query, RequestBody, Text, Usage
from app.api.json_route import JsonRoute
from app.api.ranking import answer, rank, usage
from app.errors import InvalidRequest
from app.telemetry.record import milliseconds, record_of
from app.types import Evidence, LongDocuments, Ranking, RerankQuery

router = APIRouter(tags=["rerank"], route_class=JsonRoute)

ROUTES = ("/rerank/query", "/reranking", "/v1/rerank", "/v2/rerank")
# Of OpenVINO Model Server, KServe, OpenRouter, Azure AI Foundry and DashScope, for clients that only change the host.
OTHER_ROUTES = (
    "/v3/rerank",
    "/openai/v1/rerank",
    "/openai/v2/rerank",
    "/api/v1/rerank",
    "/providers/cohere/v2/rerank",
    "/v1/reranks",
    "/reranks",
    "/compatible-api/v1/reranks",
)

LONG_DOCUMENTS: dict[str, LongDocuments] = {"true": "truncate", "end": "truncate", "false": "refuse", "none": "refuse"}

EXAMPLE_REQUEST: dict[str, Any] = {
    "query": "Which planet has the most moons?",
    "documents": [
        "Mars has two small moons, Phobos and Deimos, discovered in 1877.",
        "Saturn has 146 confirmed moons, more than any other planet in the Solar System.",
        {"id": "p3", "text": "A moonstone is a gemstone of the feldspar group.", "metadata": {"source": "gems.md"}},
    ],
    "top_k": 2,
    "return_documents": True,
}
EXAMPLE_RESPONSE: dict[str, Any] = {
    "id": "3f0e2f6d5f0b4c0f9a52c6a1d3c4b5e6",
    "object": "rerank",
    "model": "reranker-minilm-l6-v2",
    "created": 1795339693,
    "results": [
        {
            "index": 1,
            "relevance_score": 0.5483255386352539,
            "document": {"text": "Saturn has 146 confirmed moons, more than any other planet in the Solar System."},
        },
        {
            "index": 0,
            "relevance_score": 0.23840360343456268,
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
        "billed_units": {"search_units": 1},
    },
}


def _long_documents(name: str, value: Any) -> LongDocuments:
    """The mode for another service's switch. Raises `InvalidRequest`."""
    key = str(value).lower() if isinstance(value, str | bool) else ""
    if key not in LONG_DOCUMENTS:
        raise InvalidRequest("must be true, false, 'END' or 'NONE': documents are cut at their end", name)
    return LONG_DOCUMENTS[key]


class RerankRequest(RequestBody):
    """What to rank. `null` means unset."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_REQUEST]})

    query: Annotated[Query, Field(description="The question or search text")]
    documents: Annotated[
        Documents,
        Field(
            json_schema_extra={"minItems": 1},
            validation_alias=AliasChoices("documents", "passages", "texts"),
            description="The passages to order; `passages` and `texts` are other names for it",
        ),
    ]
    top_k: Annotated[
        NoLimit,
        Field(
            validation_alias=AliasChoices("top_k", "top_n"),
            description="Number of results; default: all",
        ),
    ] = None
    return_documents: Annotated[bool, Field(description="Echo the documents")] = False
    raw_scores: Annotated[bool, Field(description="Return logits")] = False
    score_threshold: Annotated[
        float | None, Field(allow_inf_nan=False, description="Drop results with a lower `relevance_score`")
    ] = None
    rank_fields: Annotated[
        list[Text], Field(min_length=1, max_length=100, description="Fields that the model reads, as YAML")
    ] = TEXT_FIELDS
    max_tokens_per_doc: TokenLimit = None
    long_documents: Annotated[
        LongDocuments | None,
        Field(
            description="Documents longer than the window: `truncate` cuts them. `chunk_max` scores the best of their "
            "overlapping windows (each of at most `max_tokens_per_doc`), and `window` is its place. `refuse` rejects "
            "the request. Default: RERANKER_LONG_DOCUMENTS, or `truncate` with a `max_tokens_per_doc` below the window"
        ),
    ] = None
    return_prefiltered: Annotated[
        bool, Field(description="Also return documents that the first stage left out, after all others")
    ] = True
    max_chunks_per_doc: Annotated[int | None, Field(ge=1, description="With `chunk_max`: windows per document")] = None

    @property
    def is_plain(self) -> bool:
        """Whether no document needs rendering, which is slow."""
        return self.rank_fields == TEXT_FIELDS

    @property
    def is_voyage(self) -> bool:
        """Whether a client of Voyage has sent it."""
        return is_voyage(self.model, self.model_extra or {})

    @classmethod
    def translate(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Accepts vLLM's switch for the activation, and what Voyage, Pinecone and NIM call truncation."""
        parameters = fields.get("parameters")
        asked = parameters.get("truncate") if isinstance(parameters, dict) else None
        for name, value in (("truncation", fields.get("truncation")), ("truncate", fields.get("truncate", asked))):
            if value is not None:
                fields.setdefault("long_documents", _long_documents(name, value))
        return translate_options(fields)

    def to_query(self) -> RerankQuery:
        """The part of the request that the engine needs. Raises `InvalidRequest` or `TooLarge`."""
        if not self.is_plain:
            check_rendering(document.chosen(self.rank_fields) for document in self.documents)
        return RerankQuery(
            query=self.query,
            documents=[document.as_text(index, self.rank_fields) for index, document in enumerate(self.documents)],
            max_tokens_per_doc=self.max_tokens_per_doc,
            long_documents=self.long_documents,
            max_windows=self.max_chunks_per_doc,
            retrieval_scores=self._retrieval_scores(),
        )

    def _retrieval_scores(self) -> list[float] | None:
        scores = [document.retrieval_score for document in self.documents]
        return None if None in scores else cast(list[float], scores)


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
    prefiltered: Annotated[Literal[True] | None, Field(description="The first stage left it out")] = None
    window: Annotated[
        Window | None,
        Field(
            description="The best window of a document that was read in several. With `chunk_max` in the request "
            "every document has one"
        ),
    ] = None


class TimingsMs(BaseModel):
    """Milliseconds: waiting for a slot, first stage, tokenization, engine (with its queue), total."""

    queue: float
    prefilter: float
    tokenize: float
    inference: float
    total: float


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
    timings_ms: TimingsMs
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
    usage: Usage
    meta: Meta

    @classmethod
    def of(cls, request: RerankRequest, ranking: Ranking, model: str, request_id: str) -> Self:
        """Serialise a ranking as the request asks."""
        timings, ranked = ranking.timings, results(request, ranking)
        return cls(
            id=request_id,
            object="list" if request.is_voyage else "rerank",
            model=model,
            created=int(time.time()),
            results=ranked,
            data=[_for_voyage(result) for result in ranked] if request.is_voyage else None,
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
                timings_ms=TimingsMs(
                    queue=milliseconds(timings.queue),
                    prefilter=milliseconds(timings.prefilter),
                    tokenize=milliseconds(timings.tokenize),
                    inference=milliseconds(timings.inference),
                    total=milliseconds(timings.total),
                ),
            ),
        )


def _for_voyage(result: Result) -> VoyageResult:
    text = result.document.text if result.document else None
    return VoyageResult(index=result.index, relevance_score=result.relevance_score, document=text)


def results(request: RerankRequest, ranking: Ranking) -> list[Result]:
    """The results in order, at most `top_k`.

    A threshold drops documents that the first stage left out. It keeps documents that could not be scored.
    """
    scores = ranking.logits if request.raw_scores else ranking.scores
    threshold = request.score_threshold
    dropped = ranking.prefiltered if threshold is not None or not request.return_prefiltered else frozenset()
    kept = [
        index
        for index in ranking.order()
        if index not in dropped and (threshold is None or index in ranking.unscored or scores[index] >= threshold)
    ]
    return [_result(request, ranking, index, scores[index]) for index in kept[: request.top_k]]


def _result(request: RerankRequest, ranking: Ranking, index: int, score: float) -> Result:
    document = request.documents[index]
    return Result(
        index=index,
        relevance_score=score,
        fused_score=ranking.fused.get(index),
        id=document.id,
        document=document if request.return_documents else None,
        unscored=True if index in ranking.unscored else None,
        prefiltered=True if index in ranking.prefiltered else None,
        window=_window(request, ranking, index),
    )


def _window(request: RerankRequest, ranking: Ranking, index: int) -> Window | None:
    """The best window of a split document. If the request sets `chunk_max`, a document that fits is one window."""
    document, span = request.documents[index], ranking.windows[index]
    # Positions in a rendered document mean nothing to the client.
    if document.text is None or not document.is_plain(request.rank_fields):
        return None
    if span is None and request.long_documents == "chunk_max" and index not in ranking.unscored:
        span = 0, len(document.text)
    return Window(start=span[0], end=span[1]) if span else None


async def rerank(body: RerankRequest, request: Request) -> Response:
    """Order `documents` by their relevance to `query`."""
    ranking, info = await rank(request, body)
    return answer(ranking, RerankResponse.of(body, ranking, info.model, record_of(request.scope).id), body)


for path in ROUTES:
    router.post(path, response_model=RerankResponse, responses=ERROR_RESPONSES, summary="Rank documents")(rerank)
for path in OTHER_ROUTES:
    router.post(path, response_model=RerankResponse, include_in_schema=False)(rerank)
