"""NVIDIA NIM's `/v1/ranking`, and the path of NVIDIA's hosted API: logits, best first."""

from typing import Annotated, Any, ClassVar, Literal, Self

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, BeforeValidator, FailFast, Field, model_validator
from pydantic_core import PydanticCustomError

from app.api.errors import ERROR_RESPONSES
from app.api.fields import Query, RequestBody, Text, Usage
from app.api.json_route import JsonRoute
from app.api.ranking import answer, rank, usage
from app.api.texts import as_list, media, unwrap_and_repair
from app.telemetry.record import ErrorBodyOf, Problem
from app.types import MAX_DOCUMENTS, LongDocuments, RerankQuery

router = APIRouter(tags=["rerank"], route_class=JsonRoute)

LONG_DOCUMENTS: dict[str, LongDocuments] = {"END": "truncate", "NONE": "refuse"}


class NimText(BaseModel):
    """A text as an object."""

    text: Annotated[Text, BeforeValidator(unwrap_and_repair, json_schema_input_type=str)]

    @model_validator(mode="before")
    @classmethod
    def _only_text(cls, value: Any) -> Any:
        if name := media(value):
            raise PydanticCustomError("media", "must be a text: '{name}' is not supported", {"name": name})
        return value


class NimQuery(NimText):
    """A query as an object."""

    text: Query


class NimRequest(RequestBody):
    """What to rank."""

    wire_names: ClassVar = {"query": "query.text", "documents": "passages"}

    query: NimQuery
    passages: Annotated[
        list[NimText],
        FailFast(),
        Field(json_schema_extra={"minItems": 1}, max_length=MAX_DOCUMENTS),
        BeforeValidator(as_list),
    ]
    truncate: Annotated[
        Literal["NONE", "END"] | None,
        Field(
            description="Passages longer than the window: `END` cuts them, `NONE` is an error; default: "
            "RERANKER_LONG_DOCUMENTS"
        ),
    ] = None

    def to_query(self) -> RerankQuery:
        """The part of the request that the engine needs."""
        return RerankQuery(
            self.query.text,
            [passage.text for passage in self.passages],
            long_documents=LONG_DOCUMENTS[self.truncate] if self.truncate else None,
        )


class NimRank(BaseModel):
    """One ranked passage."""

    index: int
    logit: float


class NimResponse(BaseModel):
    """The ranking, best first."""

    rankings: list[NimRank]
    usage: Usage


class HostedDetail(BaseModel):
    """What is wrong with a request."""

    msg: str


class HostedErrorBody(BaseModel):
    """An error of NVIDIA's hosted API. Weaviate reads the list."""

    message: str
    detail: list[HostedDetail]

    @classmethod
    def of(cls, problem: Problem) -> Self:
        """Serialize an error."""
        return cls(message=problem.message, detail=[HostedDetail(msg=problem.message)])


class HostedRoute(JsonRoute):
    """Answers errors as NVIDIA's hosted API does."""

    def error_body(self, content: Any) -> ErrorBodyOf | None:  # noqa: ARG002 (JsonRoute's signature)
        return HostedErrorBody.of


@router.post("/v1/ranking", response_model=NimResponse, responses=ERROR_RESPONSES, summary="Rank passages, as NIM does")
async def ranking(body: NimRequest, request: Request) -> Response:
    """Order `passages` by their relevance to `query`."""
    ranked, _ = await rank(request, body)
    rankings = [NimRank(index=index, logit=ranked.logits[index]) for index in ranked.order()]
    return answer(ranked, NimResponse(rankings=rankings, usage=usage(ranked)), body)


router.add_api_route(
    "/v1/retrieval/nvidia/reranking",
    ranking,
    methods=["POST"],
    response_model=NimResponse,
    include_in_schema=False,
    route_class_override=HostedRoute,
)
