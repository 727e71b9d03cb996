"""Pinecone's `/rerank`. Its API requires a header with the version, so requests with that header are Pinecone's."""

from typing import Annotated, Any, Self

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field
from starlette.datastructures import Headers
from starlette.routing import Match
from starlette.types import Scope

from app.api.dialects.native_request import RankRequest
from app.api.dialects.native_response import results
from app.api.documents import Document
from app.api.errors import grpc_name
from app.api.fields import lift
from app.api.json_route import JsonRoute
from app.api.ranking import answer, rank
from app.telemetry.record import ErrorBodyOf, Problem

VERSION_HEADER = "x-pinecone-api-version"


class PineconeError(BaseModel):
    """The error, for programs."""

    code: str
    message: str


class PineconeErrorBody(BaseModel):
    """An error, as Pinecone writes it."""

    error: PineconeError
    status: int

    @classmethod
    def of(cls, problem: Problem) -> Self:
        """Serialize an error."""
        return cls(error=PineconeError(code=grpc_name(problem.status), message=problem.message), status=problem.status)


class PineconeRoute(JsonRoute):
    """Leaves requests without the header to the other dialects of this path."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = super().matches(scope)
        if match != Match.NONE and VERSION_HEADER not in Headers(scope=scope):
            return Match.NONE, {}
        return match, child

    def error_body(self, content: Any) -> ErrorBodyOf | None:  # noqa: ARG002 (JsonRoute's signature)
        return PineconeErrorBody.of


router = APIRouter(tags=["rerank"], route_class=PineconeRoute)


class PineconeRequest(RankRequest):
    """What to rank. `parameters` may have fields of the native request."""

    return_documents: Annotated[bool, Field(description="Echo the documents")] = True

    @classmethod
    def translate(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Accepts the options in `parameters`."""
        lift(fields, fields.pop("parameters", None))
        return super().translate(fields)


class PineconeResult(BaseModel):
    """One ranked document."""

    index: int
    score: float
    document: Document | None = None


class PineconeUsage(BaseModel):
    """For clients that count Pinecone's units."""

    rerank_units: int = 1


class PineconeResponse(BaseModel):
    """The ranking, best first."""

    model: str
    data: list[PineconeResult]
    usage: PineconeUsage = PineconeUsage()


# The OpenAPI document has one operation for a path: that of the other dialects.
@router.post("/rerank", response_model=PineconeResponse, include_in_schema=False)
async def rerank(body: PineconeRequest, request: Request) -> Response:
    """Order `documents` by their relevance to `query`."""
    ranking, info = await rank(request, body)
    data = [
        PineconeResult(index=result.index, score=result.relevance_score, document=result.document)
        for result in results(body, ranking)
    ]
    return answer(ranking, PineconeResponse(model=info.model, data=data), body)
