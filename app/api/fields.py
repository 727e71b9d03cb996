"""Fields that the dialects share."""

from collections.abc import Container
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, LiteralString

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    GetJsonSchemaHandler,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from app.api.texts import as_list, unwrap, unwrap_and_repair
from app.api.unsupported import refuse_unsupported
from app.errors import InvalidRequest
from app.types import MAX_DOCUMENTS, MAX_TEXT_CHARS, RerankQuery

# With a maximum length pydantic decodes the characters and rejects lone surrogates. The effective limit is a setting.
Text = Annotated[str, Field(max_length=MAX_TEXT_CHARS)]
# Documents the minimum in OpenAPI; the service rejects an empty query with a message that names the field.
Query = Annotated[Text, Field(json_schema_extra={"minLength": 1}), BeforeValidator(unwrap, json_schema_input_type=str)]
# Validation stops at the first bad text, and at the maximum number of documents.
Texts = Annotated[
    list[Annotated[Text, BeforeValidator(unwrap_and_repair, json_schema_input_type=str)]],
    FailFast(),
    Field(max_length=MAX_DOCUMENTS),
    BeforeValidator(as_list),
]

MAX_TIMEOUT_MS = 86_400_000


def _one_message(message: LiteralString, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """Replaces one message per type of a union by a single one."""
    try:
        return handler(value)
    except ValidationError:
        raise PydanticCustomError("choice", message) from None


class RequestBody(BaseModel):
    """A body in which `null` means unset. Unknown fields are refused or reported, see `unsupported.py`."""

    model_config = ConfigDict(populate_by_name=True, extra="allow")

    wire_names: ClassVar[dict[str, str]] = {}
    """This dialect's names for `query` and `documents`, where they differ. For error messages."""
    translated: ClassVar[frozenset[str]] = frozenset()
    """Fields of other services that `translate` uses."""
    different: ClassVar[dict[str, str]] = {}
    """Fields of other services that do something else here, and what."""

    model: Annotated[
        Text | None,
        Field(description="With RERANKER_MODELS: which model ranks; default: the first, or the cascade. Else logged"),
    ] = None
    user: Annotated[Text | None, Field(description="Accepted and logged")] = None
    timeout_ms: Annotated[
        int | None,
        Field(ge=1, le=MAX_TIMEOUT_MS, description="The caller's deadline; if it passes, the answer is 504"),
    ] = None
    priority: Annotated[
        int, Field(ge=-(2**63), lt=2**63, description="Requires RERANKER_PRIORITIES: lower is served first, as in vLLM")
    ] = 0
    on_overload: Annotated[
        Literal["error", "lexical"] | None,
        Field(
            description="If the model cannot score in time: `error`, or `lexical`: scored documents first, then others "
            "in the order of the words that they share with the query. Default: RERANKER_ON_OVERLOAD"
        ),
    ] = None

    instruction: Annotated[
        Text | None,
        Field(
            validation_alias=AliasChoices("instruction", "instruct"),
            description="What the model should look for, if it takes an instruction; `instruct` is another name for "
            "it. Other models reject it. Default: RERANKER_INSTRUCTION",
        ),
    ] = None

    prefilter: Annotated[
        Literal["off", "lexical", "embedding", "hybrid"] | bool | Annotated[int, Field(ge=0)] | None,
        WrapValidator(
            partial(
                _one_message,
                "should be 'off', 'lexical', 'embedding', 'hybrid', true, false, or a number of 0 or more",
            )
        ),
        Field(
            description="How a fast first stage selects the documents that the model reads, if there are more than "
            "`prefilter_top_k`: by shared words, static embeddings, or both. `true` and `false` switch it on or off, a "
            "number sets `prefilter_top_k`. Default: RERANKER_PREFILTER"
        ),
    ] = None
    prefilter_top_k: Annotated[
        int | None,
        Field(ge=1, description="How many documents the model reads after the first stage (RERANKER_PREFILTER_TOP_K)"),
    ] = None

    budget_ms: Annotated[
        int | None,
        Field(
            ge=0,
            le=MAX_TIMEOUT_MS,
            description="Milliseconds that the answer should take: the model reads as many documents as fit, the best "
            "of the first stage first, and at least one. 0: read all of them. Default: RERANKER_BUDGET_MS",
        ),
    ] = None

    cascade_top_k: Annotated[
        int | None,
        Field(
            ge=1,
            description="With RERANKER_CASCADE: how many documents the large model reads, at most, the best of the "
            "small one. Default: RERANKER_CASCADE_TOP_K",
        ),
    ] = None

    fusion: Annotated[
        Literal["off", "lexical", "score", "order"] | bool | None,
        WrapValidator(partial(_one_message, "should be 'off', 'lexical', 'score', 'order', true or false")),
        Field(
            description="What the order considers besides the model's score: BM25 of the documents, the `score` that "
            "you send with each document, or their order. `true` and `false` switch it on or off. Default: "
            "RERANKER_FUSION"
        ),
    ] = None
    fusion_weight: Annotated[
        float | None,
        Field(ge=0, le=100, description="Weight of that evidence; the model's is 1. Default: RERANKER_FUSION_WEIGHT"),
    ] = None
    fusion_method: Annotated[
        Literal["zscore", "rrf"] | None,
        Field(description="Weighted z-scores or weighted reciprocal ranks. Default: RERANKER_FUSION_METHOD"),
    ] = None

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Documents that optional fields may be `null`."""
        schema = handler.resolve_ref_schema(handler(core))
        for name, field in schema["properties"].items():
            if name not in schema["required"] and {"type": "null"} not in field.get("anyOf", ()):
                kept = {key: field.pop(key) for key in ("title", "description", "default") if key in field}
                schema["properties"][name] = {"anyOf": [field, {"type": "null"}], **kept}
        return schema

    @model_validator(mode="before")
    @classmethod
    def _null_means_unset(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        try:
            fields = cls.translate({name: item for name, item in value.items() if item is not None})
            refuse_unsupported({name: item for name, item in fields.items() if name not in cls.model_fields})
        except InvalidRequest as error:
            raise PydanticCustomError("unsupported", "{message}", {"message": str(error)}) from None
        return fields

    @classmethod
    def translate(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """The fields of the body, renamed to those of this model. A dialect with other spellings overrides it."""
        return fields

    @property
    def unused(self) -> dict[str, Any]:
        """Fields that have no effect, except for those in `translated`."""
        return self.model_extra or {}

    def wire_name(self, field: str) -> str:
        """What the client calls `query`, `documents`, or an item of them."""
        for ours, name in self.wire_names.items():
            if field.startswith(ours):
                return name + field.removeprefix(ours)
        return field

    @property
    def model_name(self) -> str | None:
        """The name of the model, without what a dialect puts around it."""
        return self.model

    @property
    def is_plain(self) -> bool:
        """Whether `to_query` is fast."""
        return True

    def to_query(self) -> RerankQuery:
        """The part of the request that the engine needs. Raises `InvalidRequest` or `TooLarge`."""
        raise NotImplementedError


def lift(fields: dict[str, Any], options: Any, own: Container[str] = ()) -> None:
    """Put the options of a nested object among the fields, which win. `own` are fields of the nested object's model."""
    if isinstance(options, dict):
        for name, value in options.items():
            if name not in own and value is not None:
                fields.setdefault(name, value)


class Usage(BaseModel):
    """Tokens of all pairs, with special tokens. Cached pairs count too."""

    prompt_tokens: int
    total_tokens: int
