"""The native dialect: `POST /rerank/query`, and the same body on `POST /rerank`."""

import json
import time
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Request, Response
from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    model_validator,
)
from pydantic_core import PydanticCustomError, to_json

from app.api.errors import ERROR_RESPONSES
from app.api.service import ready_reranker
from app.reranker import MAX_DOCUMENTS, MAX_TEXT_CHARS, Ranking, RerankQuery

router = APIRouter(tags=["rerank"])

MAX_TIMEOUT_MS = 86_400_000

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
    "model": "reranker-minilm-l6-v0",
    "created": 1795253153,
    "results": [
        {
            "index": 1,
            "relevance_score": 0.9805,
            "document": {"text": "Saturn has 146 confirmed moons, more than any other planet in the Solar System."},
        },
        {
            "index": 0,
            "relevance_score": 0.4088,
            "document": {"text": "Mars has two small moons, Phobos and Deimos, discovered in 1877."},
        },
    ],
    "usage": {"prompt_tokens": 85, "total_tokens": 85},
    "meta": {
        "documents": 3,
        "scored": 3,
        "cached": 0,
        "prefiltered": 0,
        "truncated": 0,
        "degraded": False,
        "timings_ms": {"queue": 0.02, "tokenize": 0.5, "inference": 24.3, "total": 25.0},
        "billed_units": {"search_units": 1},
    },
}


def _can_be_echoed(value: dict[str, Any]) -> dict[str, Any]:
    try:
        to_json(value)
    except ValueError:
        raise PydanticCustomError("metadata", "must be JSON in UTF-8 and not nested too deeply") from None
    return value


# Any bound makes pydantic read the characters, and so refuse lone surrogates; the real limit is a setting.
Text = Annotated[str, Field(max_length=MAX_TEXT_CHARS)]


class Document(BaseModel):
    """A document with what should come back with it."""

    text: Text
    id: Text | int | None = None
    metadata: Annotated[dict[str, Any], AfterValidator(_can_be_echoed)] | None = None


def _as_document(value: Any) -> Any:
    if isinstance(value, str):
        return {"text": value}
    if isinstance(value, dict):
        return value
    raise PydanticCustomError("document", "must be a string or an object with 'text'")


Documents = Annotated[
    list[Annotated[Document, BeforeValidator(_as_document, json_schema_input_type=str | Document)]],
    # One bad document is enough to refuse a request, and a list over all limits is not read to its end.
    FailFast(),
    Field(max_length=MAX_DOCUMENTS),
]


class RerankRequest(BaseModel):
    """What to rank. Unknown fields are ignored and `null` means unset."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_REQUEST]}, populate_by_name=True)

    query: Annotated[Text, Field(json_schema_extra={"minLength": 1}, description="The question or search text")]
    documents: Annotated[
        Documents,
        Field(
            json_schema_extra={"minItems": 1},
            validation_alias=AliasChoices("documents", "passages", "texts"),
            description="The passages to order; `passages` and `texts` are other names for it",
        ),
    ]
    top_k: Annotated[
        int | None,
        Field(
            ge=1,
            validation_alias=AliasChoices("top_k", "top_n"),
            description="How many results to return; default: all",
        ),
    ] = None
    return_documents: Annotated[bool, Field(description="Echo the documents")] = False
    raw_scores: Annotated[bool, Field(description="Logits in place of the activated scores")] = False
    score_threshold: Annotated[
        float | None, Field(allow_inf_nan=False, description="Drop results with a lower `relevance_score`")
    ] = None
    max_tokens_per_doc: Annotated[int | None, Field(ge=1, description="Cut each document to so many tokens")] = None
    timeout_ms: Annotated[
        int | None, Field(ge=1, le=MAX_TIMEOUT_MS, description="The caller's deadline; past it the answer is 504")
    ] = None
    model: Annotated[str | None, Field(description="Accepted and logged; the service has one model")] = None
    user: Annotated[str | None, Field(description="Accepted and logged")] = None

    @model_validator(mode="before")
    @classmethod
    def _null_means_unset(cls, value: Any) -> Any:
        return {name: item for name, item in value.items() if item is not None} if isinstance(value, dict) else value

    def texts(self) -> list[str]:
        """The documents as the model reads them."""
        return [document.text for document in self.documents]

    def to_query(self) -> RerankQuery:
        """The part of the request that the engine needs."""
        timeout = self.timeout_ms / 1000 if self.timeout_ms else None
        return RerankQuery(self.query, self.texts(), self.max_tokens_per_doc, timeout)


class Result(BaseModel):
    """One ranked document. `document` is there only when asked for, and then always an object."""

    index: int
    relevance_score: float
    id: str | int | None = None
    document: Document | None = None


class Usage(BaseModel):
    """Tokens of all pairs, special tokens included; the same whether scored now or remembered."""

    prompt_tokens: int
    total_tokens: int


class TimingsMs(BaseModel):
    """Milliseconds: waiting for a slot, tokenising, waiting for and in the engine, and in all."""

    queue: float
    tokenize: float
    inference: float
    total: float


class BilledUnits(BaseModel):
    """For clients that count Cohere's units."""

    search_units: int = 1


class Meta(BaseModel):
    """What was done for this request."""

    documents: int
    scored: int
    cached: int
    prefiltered: int = 0
    truncated: int
    degraded: Literal[False] | str = False
    timings_ms: TimingsMs
    billed_units: BilledUnits = BilledUnits()


class RerankResponse(BaseModel):
    """The ranking, best first; ties in the order of the request."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_RESPONSE]})

    id: str
    object: Literal["rerank"] = "rerank"
    model: str
    created: int
    results: list[Result]
    usage: Usage
    meta: Meta

    @classmethod
    def of(cls, request: RerankRequest, ranking: Ranking, model: str, request_id: str) -> Self:
        """Serialise a ranking as the request asks."""
        timings = ranking.timings
        return cls(
            id=request_id,
            model=model,
            created=int(time.time()),
            results=results(request, ranking),
            usage=Usage(prompt_tokens=ranking.tokens, total_tokens=ranking.tokens),
            meta=Meta(
                documents=len(request.documents),
                scored=ranking.scored,
                cached=len(request.documents) - ranking.scored,
                truncated=ranking.truncated,
                timings_ms=TimingsMs(
                    queue=_ms(timings.queue),
                    tokenize=_ms(timings.tokenize),
                    inference=_ms(timings.inference),
                    total=_ms(timings.total),
                ),
            ),
        )


def results(request: RerankRequest, ranking: Ranking) -> list[Result]:
    """The results in order, over the threshold, at most `top_k`."""
    scores = ranking.logits if request.raw_scores else ranking.scores
    kept = [
        index
        for index in ranking.order()
        if request.score_threshold is None or scores[index] >= request.score_threshold
    ]
    return [_result(request, index, scores[index]) for index in kept[: request.top_k]]


def _result(request: RerankRequest, index: int, score: float) -> Result:
    document = request.documents[index]
    return Result(
        index=index,
        relevance_score=score,
        id=document.id,
        document=document if request.return_documents else None,
    )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


@router.post("/rerank/query", response_model=RerankResponse, responses=ERROR_RESPONSES, summary="Rank documents")
@router.post("/rerank", response_model=RerankResponse, responses=ERROR_RESPONSES, summary="Rank documents (same body)")
async def rerank(body: RerankRequest, request: Request) -> Response:
    """Order `documents` by their relevance to `query`."""
    reranker = ready_reranker(request)
    ranking = await reranker.rerank(body.to_query())
    response = RerankResponse.of(body, ranking, reranker.scorer.engine.model, request.state.request_id)
    request.state.details = {
        "documents": response.meta.documents,
        "cached": response.meta.cached,
        "tokens": ranking.tokens,
        "queue_ms": response.meta.timings_ms.queue,
        "inference_ms": response.meta.timings_ms.inference,
    } | {name: json.dumps(value)[:80] for name in ("model", "user") if (value := getattr(body, name))}
    return Response(response.model_dump_json(exclude_none=True), media_type="application/json")
