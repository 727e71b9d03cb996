"""Amazon Bedrock: `Rerank` of the agent runtime, and `InvokeModel` of the runtime with the bodies of its rerankers."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, ClassVar, Literal, Self

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field
from pydantic.alias_generators import to_camel

from app.api.dialects import native
from app.api.dialects.native_request import RerankRequest
from app.api.dialects.native_response import RerankResponse
from app.api.dialects.vllm import NoLimit, TokenLimit
from app.api.documents import TEXT_FIELDS, AnyDocument, Document, check_rendering
from app.api.errors import INTERNAL, error_responses
from app.api.fields import Query, RequestBody, Text, lift
from app.api.json_route import JsonRoute, as_json
from app.api.ranking import answer, rank
from app.api.texts import as_list
from app.errors import InvalidRequest
from app.telemetry.record import ErrorBodyOf, Problem
from app.types import MAX_DOCUMENTS, RerankQuery

CAMEL = ConfigDict(alias_generator=to_camel, populate_by_name=True, serialize_by_alias=True)
# Beginnings of `Authorization` in clients of AWS, which send `InvokeModel` without a `Content-Type`.
SIGNATURES = ("AWS4-", "Bearer ")
# By the code of the error. Others are ValidationException or InternalServerException, by their status.
EXCEPTIONS = {
    "model_not_found": "ResourceNotFoundException",
    "rate_limited": "ThrottlingException",
    "queue_full": "ThrottlingException",
    "queue_timeout": "ServiceUnavailableException",
    "buffer_full": "ServiceUnavailableException",
    "unavailable": "ServiceUnavailableException",
    "deadline_exceeded": "ModelTimeoutException",
}


class BedrockErrorBody(BaseModel):
    """An error, as the clients of AWS read it."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    exception: Annotated[str, Field(alias="__type")]
    message: str

    @classmethod
    def of(cls, problem: Problem) -> Self:
        """Serialize an error."""
        other = "ValidationException" if problem.status < INTERNAL[0] else "InternalServerException"
        return cls(exception=EXCEPTIONS.get(problem.code, other), message=problem.message)


class BedrockRoute(JsonRoute):
    """Answers errors as AWS does, and knows that `InvokeModel` may come without the type of its body."""

    def error_body(self, content: Any) -> ErrorBodyOf | None:  # noqa: ARG002 (JsonRoute's signature)
        return BedrockErrorBody.of

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        """The handler of the JSON route, also for a signed body without a type.

        A page of another origin cannot send these headers, so it still cannot reach a service on the user's machine.
        """
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            signed = request.headers.get("authorization", "").startswith(SIGNATURES)
            if signed and "content-type" not in request.headers:
                request = as_json(request)
            return await handler(request)

        return handle


router = APIRouter(tags=["rerank"], route_class=BedrockRoute)


class TextQuery(BaseModel):
    """The text of a query."""

    text: Query


class BedrockQuery(BaseModel):
    """A query."""

    model_config = CAMEL

    type: Literal["TEXT"] = "TEXT"
    text_query: TextQuery


class BedrockDocument(BaseModel):
    """A document: a text, or an object that the model reads as YAML."""

    model_config = CAMEL

    type: Literal["TEXT", "JSON"]
    text_document: AnyDocument | None = None
    json_document: AnyDocument | None = None

    def found(self, index: int) -> Document:
        """The document of its type. Raises `InvalidRequest`."""
        document = self.text_document if self.type == "TEXT" else self.json_document
        if document is None:
            raise InvalidRequest(f"has no {self.type.lower()}Document", f"documents[{index}]")
        return document


class Source(BaseModel):
    """Where a document is: in the request."""

    model_config = CAMEL

    type: Literal["INLINE"] = "INLINE"
    inline_document_source: BedrockDocument


class ModelConfiguration(BaseModel):
    """The model."""

    model_config = CAMEL

    model_arn: Annotated[Text | None, Field(description="As `model` of the native request; may be an ARN")] = None
    additional_model_request_fields: Annotated[
        dict[str, Any] | None, Field(description="Options, as in the native request")
    ] = None


class RerankingModel(BaseModel):
    """The options."""

    model_config = CAMEL

    number_of_results: Annotated[NoLimit, Field(description="Number of results; default: all")] = None
    model_configuration: ModelConfiguration = ModelConfiguration()


class RerankingConfiguration(BaseModel):
    """The options and their kind."""

    model_config = CAMEL

    type: Literal["BEDROCK_RERANKING_MODEL"] = "BEDROCK_RERANKING_MODEL"
    bedrock_reranking_configuration: RerankingModel = RerankingModel()


class BedrockRequest(RequestBody):
    """What to rank."""

    wire_names: ClassVar = {"query": "queries[0].textQuery.text", "documents": "sources"}

    queries: Annotated[list[BedrockQuery], Field(min_length=1, max_length=1), BeforeValidator(as_list)]
    sources: Annotated[list[Source], FailFast(), Field(json_schema_extra={"minItems": 1}, max_length=MAX_DOCUMENTS)]
    configuration: Annotated[RerankingConfiguration, Field(alias="rerankingConfiguration")] = RerankingConfiguration()
    rank_fields: Annotated[
        list[Text] | None, Field(min_length=1, max_length=100, description="Fields that the model reads; default: all")
    ] = None
    max_tokens_per_doc: TokenLimit = None

    @classmethod
    def translate(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Accepts the options in `additionalModelRequestFields`. Refuses a token: there is never a next page."""
        if fields.pop("nextToken", None) is not None:
            raise InvalidRequest("is not supported: every answer contains all results", "nextToken")
        inner: Any = fields
        for name in ("rerankingConfiguration", "bedrockRerankingConfiguration", "modelConfiguration"):
            inner = inner.get(name) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            fields.setdefault("model", inner.get("modelArn"))
            lift(fields, inner.get("additionalModelRequestFields"))
        return fields

    @property
    def model_name(self) -> str | None:
        """The last part of an ARN."""
        return model_in(self.model)

    @property
    def documents(self) -> list[Document]:
        """The documents. Raises `InvalidRequest`."""
        return [source.inline_document_source.found(index) for index, source in enumerate(self.sources)]

    @property
    def is_plain(self) -> bool:
        """Whether no document needs rendering, which is slow."""
        return all(source.inline_document_source.type == "TEXT" for source in self.sources)

    def to_query(self) -> RerankQuery:
        """The part of the request that the engine needs. Raises `InvalidRequest` or `TooLarge`."""
        documents = self.documents
        fields = list(map(self._fields, self.sources, documents))
        if not self.is_plain:
            check_rendering(map(Document.chosen, documents, fields))
        texts = list(map(Document.as_text, documents, range(len(documents)), fields))
        return RerankQuery(self.queries[0].text_query.text, texts, self.max_tokens_per_doc)

    def _fields(self, source: Source, document: Document) -> list[str]:
        if source.inline_document_source.type == "TEXT":
            return TEXT_FIELDS
        return self.rank_fields or document.names or TEXT_FIELDS


def model_in(name: str | None) -> str | None:
    """The name of the model in its ARN, such as `arn:aws:bedrock:us-east-1::foundation-model/NAME`."""
    return name.split("/", 1)[-1] if name and name.startswith("arn:") else name


class BedrockResult(BaseModel):
    """One ranked document."""

    model_config = CAMEL

    index: int
    relevance_score: float
    document: BedrockDocument


class BedrockResponse(BaseModel):
    """The ranking, best first."""

    results: list[BedrockResult]


async def rerank(body: BedrockRequest, request: Request) -> Response:
    """Order `sources` by their relevance to the query."""
    ranking, _ = await rank(request, body)
    found = ranking.order()[: body.configuration.bedrock_reranking_configuration.number_of_results]
    results = [
        BedrockResult(
            index=index,
            relevance_score=ranking.scores[index],
            document=body.sources[index].inline_document_source,
        )
        for index in found
    ]
    return answer(ranking, BedrockResponse(results=results), body)


class InvokeRequest(RerankRequest):
    """What Cohere's and Amazon's rerankers take."""

    @property
    def model_name(self) -> str | None:
        """The last part of an ARN."""
        return model_in(self.model)

    @classmethod
    def translate(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Accepts the version of Cohere's API: the answer has what both of its versions have."""
        fields.pop("api_version", None)
        return super().translate(fields)


@router.post(
    "/model/{model_id:path}/invoke",
    response_model=RerankResponse,
    responses=error_responses(BedrockErrorBody) | {404: native.NOT_FOUND | {"model": BedrockErrorBody}},
    summary="Rank documents, as InvokeModel of Amazon Bedrock does",
)
async def invoke(model_id: str, body: InvokeRequest, request: Request) -> Response:
    """Order `documents` by their relevance to `query`."""
    body.model = body.model or model_id
    return await native.rerank(body, request)
