"""What a client sends in the native dialect."""

import re
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Self, cast

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, GetJsonSchemaHandler, PrivateAttr, WithJsonSchema
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from app.api.dialects.vllm import LIMITS, NoLimit, TokenLimit, long_documents, translate_options
from app.api.dialects.voyage import is_voyage
from app.api.documents import TEXT_FIELDS, Document, Documents, check_rendering
from app.api.fields import Query, RequestBody, Text
from app.errors import InvalidRequest
from app.types import LongDocuments, Ranking, RerankQuery, SpanOptions

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


ITEM = re.compile(r"documents\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Found:
    """Where the ranked documents are in the request, of which the store has only some."""

    positions: list[int]
    """The position of each ranked document: in `documents`, and then in `document_ids`."""
    sent: int
    """Number of documents in `documents`."""
    missing: list[str | int]
    """Ids that the store does not have."""

    def field(self, index: int) -> str:
        """What the client calls this document."""
        position = self.positions[index]
        return f"documents[{position}]" if position < self.sent else f"document_ids[{position - self.sent}]"


class RankRequest(RequestBody):
    """What to rank, in the fields that several dialects share. `null` means unset."""

    translated: ClassVar = frozenset({"truncation", "truncate", "parameters.truncate"})
    different: ClassVar = LIMITS
    document_names: ClassVar = ("documents", "passages", "texts")

    query: Annotated[Query, Field(description="The question or search text")]
    documents: Annotated[
        Documents,
        Field(
            json_schema_extra={"minItems": 1},
            validation_alias=AliasChoices(*document_names),
            description="The passages to order; `passages` and `texts` are other names for it",
        ),
    ]
    top_k: Annotated[
        NoLimit,
        Field(
            validation_alias=AliasChoices("top_k", "top_n"),
            description="Number of results; default: all",
        ),
    ] = None
    return_documents: Annotated[bool, Field(description="Echo the documents")] = False
    raw_scores: Annotated[bool, Field(description="Return logits")] = False
    score_threshold: Annotated[
        float | None, Field(allow_inf_nan=False, description="Drop results with a lower `relevance_score`")
    ] = None
    rank_fields: Annotated[
        list[Text], Field(min_length=1, max_length=100, description="Fields that the model reads, as YAML")
    ] = TEXT_FIELDS
    max_tokens_per_doc: TokenLimit = None
    long_documents: Annotated[
        LongDocuments | None,
        Field(
            description="Documents longer than the window: `truncate` cuts them. `chunk_max` scores the best of their "
            "overlapping windows (each of at most `max_tokens_per_doc`), and `window` is its place. `refuse` rejects "
            "the request. Default: RERANKER_LONG_DOCUMENTS, or `truncate` with a `max_tokens_per_doc` below the window"
        ),
    ] = None
    return_prefiltered: Annotated[
        bool, Field(description="Also return documents that the first stage left out, after all others")
    ] = True
    max_chunks_per_doc: Annotated[int | None, Field(ge=1, description="With `chunk_max`: windows per document")] = None
    _found: Found | None = PrivateAttr(None)

    @property
    def found(self) -> Found | None:
        """Which of the documents were stored; None if none were looked up."""
        return self._found

    def wire_name(self, field: str) -> str:
        """The place in the request of a document that was looked up."""
        match = ITEM.fullmatch(field)
        return super().wire_name(self._found.field(int(match[1])) if self._found and match else field)

    @property
    def is_plain(self) -> bool:
        """Whether no document needs rendering, which is slow."""
        return self.rank_fields == TEXT_FIELDS

    @property
    def is_voyage(self) -> bool:
        """Whether a client of Voyage has sent it."""
        return is_voyage(self.model, self.model_extra or {})

    @classmethod
    def translate(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Accepts vLLM's switch for the activation, and what Voyage, Pinecone and NIM call truncation."""
        fields = translate_options(fields)
        parameters = fields.get("parameters")
        if isinstance(parameters, dict) and (asked := parameters.get("truncate")) is not None:
            fields.setdefault("long_documents", long_documents("parameters.truncate", asked))
        return fields

    def to_query(self) -> RerankQuery:
        """The part of the request that the engine needs. Raises `InvalidRequest` or `TooLarge`."""
        if not self.is_plain:
            check_rendering(document.chosen(self.rank_fields) for document in self.documents)
        return RerankQuery(
            query=self.query,
            documents=[document.as_text(index, self.rank_fields) for index, document in enumerate(self.documents)],
            max_tokens_per_doc=self.max_tokens_per_doc,
            long_documents=self.long_documents,
            max_windows=self.max_chunks_per_doc,
            retrieval_scores=self._retrieval_scores(),
        )

    def returned(self, ranking: Ranking) -> list[int]:
        """The documents of the answer, best first: at most `top_k`.

        A threshold drops documents that the first stage left out. It keeps documents that could not be scored.
        """
        scores = ranking.logits if self.raw_scores else ranking.scores
        threshold = self.score_threshold
        dropped = ranking.prefiltered if threshold is not None or not self.return_prefiltered else frozenset()
        kept = [
            index
            for index in ranking.order()
            if index not in dropped and (threshold is None or index in ranking.unscored or scores[index] >= threshold)
        ]
        return kept[: self.top_k]

    def _retrieval_scores(self) -> list[float] | None:
        scores = [document.retrieval_score for document in self.documents]
        return None if None in scores else cast(list[float], scores)


class RelevantSpans(BaseModel):
    """Cohere's name and options for passages inside documents."""

    mode: Literal["enabled", "disabled"]
    threshold: Annotated[float, Field(allow_inf_nan=False, description="Drop passages with a lower `score`")] = 0.1
    max_spans: Annotated[int | None, Field(ge=1, description="Passages per document; default: all")] = None


class RerankRequest(RankRequest):
    """What to rank. `null` means unset."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_REQUEST]})

    max_spans: Annotated[
        int, Field(ge=0, description="Return this many of the best passages inside each document, as `spans`")
    ] = 0
    relevant_spans: Annotated[
        RelevantSpans | None, Field(description="The same as Cohere has it; the answer has them as `relevant_spans`")
    ] = None
    collection: Annotated[
        Any,
        WithJsonSchema({"type": "string"}),
        Field(
            description="Requires RERANKER_DOCUMENTS: rank stored documents of this collection, by `document_ids`, and "
            "`documents` that have only an `id`"
        ),
    ] = None
    document_ids: Annotated[
        Any,
        WithJsonSchema({"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]}}),
        Field(description="With `collection`: ids of stored documents, which follow those in `documents`"),
    ] = None

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Documents that `documents` may be missing if there are ids."""
        schema = super().__get_pydantic_json_schema__(core, handler)
        schema["required"] = [name for name in schema["required"] if name != "documents"]
        return schema

    def with_found(self, documents: list[Document], found: Found) -> Self:
        """The same request with these documents."""
        body = self.model_copy(update={"documents": documents})
        body._found = found
        return body

    @property
    def unused(self) -> dict[str, Any]:
        """Fields for stored documents have no effect in a request that uses none."""
        own = {} if self._found else {name: getattr(self, name) for name in ("collection", "document_ids")}
        return super().unused | own

    @classmethod
    def translate(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Accepts ids in place of documents, and what other services call their options."""
        if "document_ids" in fields and not any(name in fields for name in cls.document_names):
            if "collection" not in fields:
                raise InvalidRequest("needs 'collection', the name of the collection that they are in", "document_ids")
            fields["documents"] = []
        return super().translate(fields)

    @property
    def relevant(self) -> RelevantSpans | None:
        """Cohere's options, if they ask for passages."""
        asked = self.relevant_spans
        return asked if asked and asked.mode == "enabled" else None

    def to_query(self) -> RerankQuery:
        """The part of the request that the engine needs. Raises `InvalidRequest` or `TooLarge`."""
        query, relevant = super().to_query(), self.relevant
        if relevant and self.max_spans:
            raise InvalidRequest("send it or relevant_spans, not both", "max_spans")
        if not relevant and not self.max_spans:
            return query
        return replace(query, spans=SpanOptions(self._searched, relevant.max_spans if relevant else self.max_spans))

    def _searched(self, ranking: Ranking) -> list[int]:
        """Positions in a rendered document mean nothing to the client, so only those with a plain text."""
        return [index for index in self.returned(ranking) if self.documents[index].is_plain(self.rank_fields)]
