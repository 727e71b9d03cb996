"""vLLM's `/score`: scores in the order of the request, for one query or one per document."""

import time
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Request, Response
from pydantic import AliasChoices, BaseModel, BeforeValidator, FailFast, Field

from app.api.errors import ERROR_RESPONSES
from app.api.fields import Query, RequestBody, Texts, Usage
from app.api.json_route import JsonRoute
from app.api.ranking import answer, rank, usage
from app.api.texts import as_list
from app.errors import InvalidRequest
from app.telemetry.record import record_of
from app.types import MAX_DOCUMENTS, LongDocuments, RerankQuery

router = APIRouter(tags=["rerank"], route_class=JsonRoute)


# Clients of vLLM and others send -1 or 0 for no limit.
NoLimit = Annotated[
    int | None, Field(ge=1), BeforeValidator(lambda value: None if value in (-1, 0, "-1", "0") else value)
]
TokenLimit = Annotated[
    NoLimit,
    Field(
        validation_alias=AliasChoices("max_tokens_per_doc", "truncate_prompt_tokens"),
        description="Cut each document to this number of tokens; a limit above the model's window has no effect",
    ),
]


LIMITS = {"truncate_prompt_tokens": "limits each document, not query and document together"}
LONG_DOCUMENTS: dict[str, LongDocuments] = {"true": "truncate", "end": "truncate", "false": "refuse", "none": "refuse"}


def long_documents(name: str, value: Any) -> LongDocuments:
    """The mode for another service's switch. Raises `InvalidRequest`."""
    key = str(value).lower() if isinstance(value, str | bool) else ""
    if key not in LONG_DOCUMENTS:
        raise InvalidRequest("must be true, false, 'END' or 'NONE': documents are cut at their end", name)
    return LONG_DOCUMENTS[key]


def translate_options(fields: dict[str, Any]) -> dict[str, Any]:
    """vLLM's names: it switches the activation off where this service asks for `raw_scores`. And what Voyage and others
    call truncation.
    """
    switches = [fields.pop(name) for name in ("use_activation", "activation") if name in fields]
    if switches and switches[0] in (False, "false"):
        fields.setdefault("raw_scores", True)
    if fields.get("truncate_prompt_tokens") not in (None, -1, 0):
        # Kept as well, so that it is reported: in vLLM it limits query and document together.
        fields.setdefault("max_tokens_per_doc", fields["truncate_prompt_tokens"])
    for name in ("truncation", "truncate"):
        if (value := fields.get(name)) is not None:
            fields.setdefault("long_documents", long_documents(name, value))
    return fields


TextOrTexts = Annotated[Texts, BeforeValidator(as_list, json_schema_input_type=str | list[str])]
QueryOrQueries = Annotated[
    list[Query],
    FailFast(),
    Field(max_length=MAX_DOCUMENTS),
    BeforeValidator(as_list, json_schema_input_type=Query | list[Query]),
]


class ScoreRequest(RequestBody):
    """Pairs to score: one `text_1` with each `text_2`, or two lists of the same length."""

    wire_names: ClassVar = {"query": "text_1", "documents": "text_2"}
    translated: ClassVar = frozenset({"truncation", "truncate"})
    different: ClassVar = LIMITS

    text_1: Annotated[
        QueryOrQueries,
        Field(json_schema_extra={"minItems": 1}, validation_alias=AliasChoices("text_1", "queries", "data_1")),
    ]
    text_2: Annotated[
        TextOrTexts,
        Field(
            json_schema_extra={"minItems": 1}, validation_alias=AliasChoices("text_2", "documents", "items", "data_2")
        ),
    ]
    raw_scores: Annotated[bool, Field(description="Return logits")] = False
    max_tokens_per_doc: TokenLimit = None
    long_documents: Annotated[
        Literal["truncate", "refuse"] | None, Field(description="As for `/v1/rerank`; default: RERANKER_LONG_DOCUMENTS")
    ] = None

    @classmethod
    def translate(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Accepts vLLM's switch for the activation."""
        return translate_options(fields)

    def to_query(self) -> RerankQuery:
        """The part of the request that the engine needs. Raises `InvalidRequest`."""
        queries, documents = len(self.text_1), len(self.text_2)
        if documents and queries not in (1, documents):
            raise InvalidRequest(f"got {queries} texts for {documents} text_2; send one, or one for each", "query")
        query = self.text_1[0] if queries == 1 else self.text_1
        # vLLM applies what the model declares.
        return RerankQuery(
            query, self.text_2, self.max_tokens_per_doc, long_documents=self.long_documents, activation="model"
        )


class ScoreData(BaseModel):
    """The score of one pair."""

    index: int
    object: Literal["score"] = "score"
    score: float


class ScoreResponse(BaseModel):
    """The scores, in the order of the request."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[ScoreData]
    usage: Usage


@router.post("/score", response_model=ScoreResponse, responses=ERROR_RESPONSES, summary="Score pairs, in input order")
@router.post("/v1/score", response_model=ScoreResponse, responses=ERROR_RESPONSES, summary="Score pairs, as /score")
async def score(body: ScoreRequest, request: Request) -> Response:
    """Score each of `text_2` against `text_1`."""
    ranking, info = await rank(request, body)
    scores = ranking.logits if body.raw_scores else ranking.scores
    response = ScoreResponse(
        id=record_of(request.scope).id,
        created=int(time.time()),
        model=info.model,
        data=[ScoreData(index=index, score=score) for index, score in enumerate(scores)],
        usage=usage(ranking),
    )
    return answer(ranking, response, body)
