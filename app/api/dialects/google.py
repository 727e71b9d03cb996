"""The ranking API of Google's Discovery Engine (Vertex AI Search)."""

from typing import Annotated, Any, ClassVar, Self

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field
from pydantic.alias_generators import to_camel

from app.api.dialects.vllm import NoLimit
from app.api.errors import error_responses, grpc_name
from app.api.fields import Query, RequestBody, Text
from app.api.json_route import JsonRoute
from app.api.ranking import answer, rank
from app.api.texts import as_list, unwrap_and_repair
from app.errors import InvalidRequest
from app.telemetry.record import ErrorBodyOf, Problem
from app.types import MAX_DOCUMENTS, Ranking, RerankQuery

PATH = "/projects/{project}/locations/{location}/rankingConfigs/{config}:rank"
OTHER_VERSIONS = ("/v1alpha", "/v1beta")


class GoogleError(BaseModel):
    """The error, for programs."""

    code: int
    message: str
    status: str


class GoogleErrorBody(BaseModel):
    """An error, as Google writes it."""

    error: GoogleError

    @classmethod
    def of(cls, problem: Problem) -> Self:
        """Serialize an error."""
        name = grpc_name(problem.status)
        return cls(error=GoogleError(code=problem.status, message=problem.message, status=name))


class GoogleRoute(JsonRoute):
    """Answers errors as Google does."""

    def error_body(self, content: Any) -> ErrorBodyOf | None:  # noqa: ARG002 (JsonRoute's signature)
        return GoogleErrorBody.of


router = APIRouter(tags=["rerank"], route_class=GoogleRoute)

RepairedText = Annotated[Text, BeforeValidator(unwrap_and_repair, json_schema_input_type=str)]


class Record(BaseModel):
    """A document."""

    id: Text | None = None
    title: RepairedText | None = None
    content: RepairedText | None = None

    def as_text(self, index: int) -> str:
        """What the model reads. Raises `InvalidRequest`."""
        parts = [part for part in (self.title, self.content) if part]
        if not parts:
            raise InvalidRequest("has neither title nor content", f"documents[{index}]")
        return "\n".join(parts)


class GoogleRequest(RequestBody):
    """What to rank."""

    model_config = ConfigDict(alias_generator=to_camel)
    wire_names: ClassVar = {"documents": "records"}

    query: Query
    records: Annotated[
        list[Record],
        FailFast(),
        Field(json_schema_extra={"minItems": 1}, max_length=MAX_DOCUMENTS),
        BeforeValidator(as_list),
    ]
    top_n: Annotated[NoLimit, Field(description="Number of results; default, and for 0: all")] = None
    ignore_record_details_in_response: Annotated[bool, Field(description="Return only ids and scores")] = False
    user_labels: Annotated[dict[str, str] | None, Field(description="Accepted")] = None

    def to_query(self) -> RerankQuery:
        """The part of the request that the engine needs. Raises `InvalidRequest`."""
        return RerankQuery(self.query, [record.as_text(index) for index, record in enumerate(self.records)])


class RankedRecord(BaseModel):
    """One ranked record."""

    id: str | None = None
    title: str | None = None
    content: str | None = None
    score: float


class GoogleResponse(BaseModel):
    """The ranking, best first."""

    records: list[RankedRecord]


async def rank_records(
    project: str,  # noqa: ARG001 (for OpenAPI, as the next two)
    location: str,  # noqa: ARG001
    config: str,  # noqa: ARG001
    body: GoogleRequest,
    request: Request,
) -> Response:
    """Order `records` by their relevance to `query`. The names in the path have no effect."""
    ranking, _ = await rank(request, body)
    return answer(ranking, GoogleResponse(records=_ranked(body, ranking)), body)


def _ranked(body: GoogleRequest, ranking: Ranking) -> list[RankedRecord]:
    found = [(body.records[index], ranking.scores[index]) for index in ranking.order()[: body.top_n]]
    if body.ignore_record_details_in_response:
        return [RankedRecord(id=record.id, score=score) for record, score in found]
    return [
        RankedRecord(id=record.id, title=record.title, content=record.content, score=score) for record, score in found
    ]


router.post(
    f"/v1{PATH}",
    response_model=GoogleResponse,
    responses=error_responses(GoogleErrorBody),
    summary="Rank records, as Google's ranking API does",
)(rank_records)
for version in OTHER_VERSIONS:
    router.post(f"{version}{PATH}", response_model=GoogleResponse, include_in_schema=False)(rank_records)
