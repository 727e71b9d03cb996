"""The dialect of text-embeddings-inference, and `POST /rerank`, which several services have: `texts` makes it this."""

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Discriminator, Field, RootModel, Tag

from app.api.dialects import native
from app.api.errors import ERROR_RESPONSES, ErrorBody, TeiErrorBody, speaks_tei
from app.api.fields import Query, RequestBody, Texts
from app.api.json_route import JsonRoute
from app.api.ranking import answer, rank
from app.types import RerankQuery

router = APIRouter(tags=["rerank"], route_class=JsonRoute)


class TeiRequest(RequestBody):
    """What to rank."""

    query: Query
    texts: Annotated[Texts, Field(json_schema_extra={"minItems": 1})]
    raw_scores: Annotated[bool, Field(description="Logits in place of the activated scores")] = False
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
            names=("query", "texts"),
        )


class Rank(BaseModel):
    """One ranked text."""

    index: int
    score: float
    text: str | None = None


class Ranks(RootModel[list[Rank]]):
    """A bare list, best first."""


def _dialect(body: Any) -> str:
    return "tei" if speaks_tei("/rerank", body) else "native"


AnyRequest = Annotated[
    Annotated[native.RerankRequest, Tag("native")] | Annotated[TeiRequest, Tag("tei")], Discriminator(_dialect)
]


@router.post(
    "/rerank",
    response_model=native.RerankResponse | Ranks,
    responses={status: {**response, "model": ErrorBody | TeiErrorBody} for status, response in ERROR_RESPONSES.items()},
    summary="Rank documents, or texts as text-embeddings-inference does",
)
async def rerank(body: AnyRequest, request: Request) -> Response:
    """With `texts` the answer is a bare list; with `documents` or `passages` it is that of `/rerank/query`."""
    if isinstance(body, native.RerankRequest):
        return await native.rerank(body, request)
    request.state.tei = True
    ranking, _ = await rank(request, body, body.to_query())
    scores = ranking.logits if body.raw_scores else ranking.scores
    ranks = [
        Rank(index=index, score=scores[index], text=body.texts[index] if body.return_text else None)
        for index in ranking.order()
    ]
    return answer(ranking, Ranks(ranks))
