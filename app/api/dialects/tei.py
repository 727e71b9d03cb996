"""text-embeddings-inference, and `POST /rerank`.

A body with `texts` is TEI's, one with `property` Weaviate's, one with `sources` Bedrock's.
"""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Discriminator, Field, RootModel, Tag

from app.api.dialects import bedrock, native
from app.api.dialects.native_request import RerankRequest
from app.api.dialects.native_response import RerankResponse
from app.api.errors import DIALECT_TAG, error_responses
from app.api.fields import Query, RequestBody, Texts
from app.api.json_route import JsonRoute, as_json
from app.api.ranking import answer, rank
from app.telemetry.record import ErrorBodyOf, Problem
from app.types import Ranking, RerankQuery

NATIVE, TEI, WEAVIATE, BEDROCK = (f"{DIALECT_TAG}{name}" for name in ("native", "tei", "weaviate", "bedrock"))
# By the code of the error. Other errors are `Backend`.
ERROR_TYPES = {
    "invalid_request": "Validation",
    "too_large": "Validation",
    "model_not_found": "Validation",
    "unsupported_media": "Validation",
    "rate_limited": "Overloaded",
    "queue_full": "Overloaded",
    "queue_timeout": "Overloaded",
    "deadline_exceeded": "Overloaded",
    "unavailable": "Unhealthy",
}


class TeiErrorBody(BaseModel):
    """An error, as text-embeddings-inference writes it."""

    error: str
    error_type: str


def _dialect(body: Any) -> str:
    if isinstance(body, dict) and body.get("property") is not None:
        return WEAVIATE
    is_native = not isinstance(body, dict) or any(body.get(name) is not None for name in ("documents", "passages"))
    if is_native:
        return NATIVE
    if body.get("texts") is not None:
        return TEI
    return BEDROCK if body.get("sources") is not None else NATIVE


def _error_body(problem: Problem) -> TeiErrorBody:
    return TeiErrorBody(error=problem.message, error_type=ERROR_TYPES.get(problem.code, "Backend"))


class TeiRoute(JsonRoute):
    """Answers errors in the dialect of the body, and knows that Weaviate does not send the type of its body."""

    def error_body(self, content: Any) -> ErrorBodyOf | None:
        dialect = _dialect(content)
        if dialect == BEDROCK:
            return bedrock.BedrockErrorBody.of
        return None if dialect == NATIVE else _error_body

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        """The handler of the JSON route, also for a body without a type.

        Browsers send `Origin` with a POST, so a page of another origin still cannot reach a service on its machine.
        """
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            typed = "content-type" in request.headers or "origin" in request.headers
            return await handler(request if typed else as_json(request))

        return handle


router = APIRouter(tags=["rerank"], route_class=TeiRoute)


class TeiRequest(RequestBody):
    """What to rank."""

    wire_names: ClassVar = {"documents": "texts"}

    query: Query
    texts: Annotated[Texts, Field(json_schema_extra={"minItems": 1})]
    raw_scores: Annotated[bool, Field(description="Return logits")] = False
    return_text: Annotated[bool, Field(description="Echo the texts")] = False
    truncate: Annotated[
        bool | None,
        Field(
            description="Texts longer than the window: `true` cuts them, `false` is an error; default: "
            "RERANKER_LONG_DOCUMENTS"
        ),
    ] = None

    def to_query(self) -> RerankQuery:
        """The part of the request that the engine needs."""
        return RerankQuery(
            self.query,
            self.texts,
            long_documents=None if self.truncate is None else "truncate" if self.truncate else "refuse",
        )


class Rank(BaseModel):
    """One ranked text."""

    index: int
    score: float
    text: str | None = None


class Ranks(RootModel[list[Rank]]):
    """A bare list, best first."""


class WeaviateRequest(RequestBody):
    """What Weaviate's module reranker-transformers sends; only it has `property`."""

    query: Query
    documents: Annotated[Texts, Field(json_schema_extra={"minItems": 1})]
    property: Annotated[str, Field(description="Returned as it is")]

    def to_query(self) -> RerankQuery:
        """The part of the request that the engine needs."""
        # Weaviate's container calls `CrossEncoder.predict`.
        return RerankQuery(self.query, self.documents, activation="model")


class DocumentScore(BaseModel):
    """The score of one document."""

    document: str
    score: float


class WeaviateResponse(BaseModel):
    """The scores, in the order of the request."""

    query: str
    property: str
    scores: list[DocumentScore]


AnyRequest = Annotated[
    Annotated[RerankRequest, Tag(NATIVE)]
    | Annotated[TeiRequest, Tag(TEI)]
    | Annotated[WeaviateRequest, Tag(WEAVIATE)]
    | Annotated[bedrock.BedrockRequest, Tag(BEDROCK)],
    Discriminator(_dialect),
]


@router.post("/invocations", response_model=RerankResponse | Ranks, include_in_schema=False)
@router.post(
    "/rerank",
    response_model=RerankResponse | Ranks | WeaviateResponse | bedrock.BedrockResponse,
    responses=error_responses(TeiErrorBody, bedrock.BedrockErrorBody) | {404: native.NOT_FOUND},
    summary="Rank documents, or texts as text-embeddings-inference does",
)
async def rerank(body: AnyRequest, request: Request) -> Response:
    """With `texts` the answer is a bare list; with `documents` or `passages` it is that of `/rerank/query`."""
    if isinstance(body, RerankRequest):
        return await native.rerank(body, request)
    if isinstance(body, bedrock.BedrockRequest):
        return await bedrock.rerank(body, request)
    ranking, _ = await rank(request, body)
    if isinstance(body, WeaviateRequest):
        return answer(ranking, _weaviate(body, ranking), body)
    scores = ranking.logits if body.raw_scores else ranking.scores
    ranks = [
        Rank(index=index, score=scores[index], text=body.texts[index] if body.return_text else None)
        for index in ranking.order()
    ]
    return answer(ranking, Ranks(ranks), body)


def _weaviate(body: WeaviateRequest, ranking: Ranking) -> WeaviateResponse:
    pairs = zip(body.documents, ranking.scores, strict=True)
    scores = [DocumentScore(document=document, score=score) for document, score in pairs]
    return WeaviateResponse(query=body.query, property=body.property, scores=scores)
