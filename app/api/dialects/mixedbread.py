"""Mixedbread's `/v1/reranking`. llama.cpp has this path for the native dialect: a body with `input` is Mixedbread's."""

from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Discriminator, Field, Tag

from app.api.dialects import native
from app.api.dialects.native_request import RankRequest, RerankRequest
from app.api.dialects.native_response import RerankResponse, results
from app.api.documents import Document, Documents
from app.api.errors import DIALECT_TAG
from app.api.fields import Usage
from app.api.json_route import JsonRoute
from app.api.ranking import answer, rank, usage
from app.errors import InvalidRequest

router = APIRouter(tags=["rerank"], route_class=JsonRoute)

NATIVE, MIXEDBREAD = (f"{DIALECT_TAG}{name}" for name in ("native", "mixedbread"))
OTHER_NAMES = ("documents", "passages", "texts")


class MixedbreadRequest(RankRequest):
    """What to rank."""

    wire_names: ClassVar = {"documents": "input"}

    documents: Annotated[Documents, Field(json_schema_extra={"minItems": 1}, validation_alias="input")]
    return_documents: Annotated[bool, Field(validation_alias="return_input", description="Echo the documents")] = False

    @classmethod
    def translate(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Refuses what would change the query."""
        if fields.pop("rewrite_query", False) not in (False, "false"):
            raise InvalidRequest("is not supported: rewrite the query before you send it", "rewrite_query")
        return super().translate(fields)


class MixedbreadResult(BaseModel):
    """One ranked document. `input` is a string if it was sent as one."""

    index: int
    score: float
    input: str | Document | None = None
    object: Literal["rank_result"] = "rank_result"


class MixedbreadResponse(BaseModel):
    """The ranking, best first."""

    usage: Usage
    model: str
    data: list[MixedbreadResult]
    object: Literal["list"] = "list"
    top_k: int
    return_input: bool


def _as_sent(document: Document | None) -> str | Document | None:
    return document.text if document and document.was_text else document


def _dialect(body: Any) -> str:
    is_ours = isinstance(body, dict) and body.get("input") is not None
    return MIXEDBREAD if is_ours and all(body.get(name) is None for name in OTHER_NAMES) else NATIVE


AnyRequest = Annotated[
    Annotated[RerankRequest, Tag(NATIVE)] | Annotated[MixedbreadRequest, Tag(MIXEDBREAD)],
    Discriminator(_dialect),
]


@router.post("/v1/reranking", response_model=RerankResponse | MixedbreadResponse, include_in_schema=False)
async def rerank(body: AnyRequest, request: Request) -> Response:
    """Order `input` by its relevance to `query`."""
    if not isinstance(body, MixedbreadRequest):
        return await native.rerank(body, request)
    ranking, info = await rank(request, body)
    data = [
        MixedbreadResult(index=result.index, score=result.relevance_score, input=_as_sent(result.document))
        for result in results(body, ranking)
    ]
    response = MixedbreadResponse(
        usage=usage(ranking), model=info.model, data=data, top_k=len(data), return_input=body.return_documents
    )
    return answer(ranking, response, body)
