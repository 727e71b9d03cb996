"""DashScope's own API for text reranking. Its compatible API is the native dialect."""

from typing import Annotated, Any, ClassVar, Self

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from app.api.dialects.vllm import NoLimit
from app.api.documents import TEXT_FIELDS, Documents
from app.api.errors import INTERNAL, error_responses
from app.api.fields import Query, RequestBody, lift
from app.api.json_route import JsonRoute
from app.api.ranking import answer, rank
from app.telemetry.record import ErrorBodyOf, Problem, record_of
from app.types import Ranking, RerankQuery

# By the code of the error. Others are InvalidParameter or InternalError, by their status.
ERROR_CODES = {
    "model_not_found": "ModelNotFound",
    "rate_limited": "Throttling.RateQuota",
    "queue_full": "Throttling",
    "queue_timeout": "ServiceUnavailable",
    "buffer_full": "ServiceUnavailable",
    "unavailable": "ServiceUnavailable",
    "deadline_exceeded": "GatewayTimeout",
}


class DashScopeErrorBody(BaseModel):
    """An error, as DashScope writes it."""

    code: str
    message: str
    request_id: str

    @classmethod
    def of(cls, problem: Problem) -> Self:
        """Serialize an error."""
        other = "InvalidParameter" if problem.status < INTERNAL[0] else "InternalError"
        code = ERROR_CODES.get(problem.code, other)
        return cls(code=code, message=problem.message, request_id=problem.request_id)


class DashScopeRoute(JsonRoute):
    """Answers errors as DashScope does."""

    def error_body(self, content: Any) -> ErrorBodyOf | None:  # noqa: ARG002 (JsonRoute's signature)
        return DashScopeErrorBody.of


router = APIRouter(tags=["rerank"], route_class=DashScopeRoute)


class DashScopeInput(BaseModel):
    """The texts."""

    query: Query
    documents: Annotated[Documents, Field(json_schema_extra={"minItems": 1})]


class DashScopeParameters(BaseModel):
    """The options. Those that all dialects have, such as `instruct`, may be here, too."""

    model_config = ConfigDict(extra="allow")

    top_n: Annotated[NoLimit, Field(description="Number of results; default: all")] = None
    return_documents: Annotated[bool | None, Field(description="Echo the documents")] = None


class DashScopeRequest(RequestBody):
    """What to rank."""

    wire_names: ClassVar = {"query": "input.query", "documents": "input.documents"}

    input: DashScopeInput
    parameters: DashScopeParameters = DashScopeParameters()

    @classmethod
    def translate(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Accepts the options of all dialects in `parameters`."""
        lift(fields, fields.get("parameters"), DashScopeParameters.model_fields)
        return fields

    def to_query(self) -> RerankQuery:
        """The part of the request that the engine needs. Raises `InvalidRequest`."""
        texts = [document.as_text(index, TEXT_FIELDS) for index, document in enumerate(self.input.documents)]
        return RerankQuery(self.input.query, texts)


class DashScopeText(BaseModel):
    """A returned document."""

    text: str | None


class DashScopeResult(BaseModel):
    """One ranked document."""

    index: int
    relevance_score: float
    document: DashScopeText | None = None


class DashScopeOutput(BaseModel):
    """The ranking, best first."""

    results: list[DashScopeResult]


class DashScopeUsage(BaseModel):
    """Tokens of all pairs."""

    total_tokens: int


class DashScopeResponse(BaseModel):
    """The ranking and what it would cost."""

    output: DashScopeOutput
    usage: DashScopeUsage
    request_id: str


@router.post(
    "/api/v1/services/rerank/text-rerank/text-rerank",
    response_model=DashScopeResponse,
    responses=error_responses(DashScopeErrorBody),
    summary="Rank documents, as DashScope does",
)
async def text_rerank(body: DashScopeRequest, request: Request) -> Response:
    """Order `input.documents` by their relevance to `input.query`."""
    ranking, _ = await rank(request, body)
    response = DashScopeResponse(
        output=DashScopeOutput(results=_results(body, ranking)),
        usage=DashScopeUsage(total_tokens=ranking.tokens),
        request_id=record_of(request.scope).id,
    )
    return answer(ranking, response, body)


def _results(body: DashScopeRequest, ranking: Ranking) -> list[DashScopeResult]:
    documents, echo = body.input.documents, body.parameters.return_documents
    return [
        DashScopeResult(
            index=index,
            relevance_score=ranking.scores[index],
            document=DashScopeText(text=documents[index].text) if echo else None,
        )
        for index in ranking.order()[: body.parameters.top_n]
    ]
