"""Documents of a request: strings, or objects with fields that are rendered as YAML."""

import json
import re
import sys
from collections.abc import Iterable
from typing import Annotated, Any, NamedTuple, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError, to_json

from app.api.fields import Text
from app.api.texts import as_list, find_text, media, repaired, repaired_deeply, text_of_parts
from app.errors import InvalidRequest, TooLarge
from app.types import MAX_DOCUMENTS

# Rendering a value takes up to ten microseconds; a full body would take half a minute.
MAX_RENDERED_VALUES = 100_000
TEXT_FIELDS = ["text"]
Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
ESCAPED = re.compile("[\U00010000-\U0010ffff\ufeff]")
PRIVATE_USE = (0xE000, 0xF900)


def _echoed(sent: dict[str, Any]) -> dict[str, Any]:
    """The fields that an answer can contain: broken characters are repaired. Others than texts are checked, too."""
    repaired_texts = {name: repaired(item) if isinstance(item, str) else item for name, item in sent.items()}
    if len(sent) == 1 and type(repaired_texts.get("text")) is str:
        return repaired_texts
    try:
        to_json(repaired_texts)
    except ValueError:
        try:
            to_json(whole := repaired_deeply(sent))
        except (ValueError, RecursionError):
            raise PydanticCustomError("document", "must be JSON in UTF-8 and not nested too deeply") from None
        return dict(whole)
    return repaired_texts


def _text_or_number(value: Any) -> Any:
    """A valid id. Any other value of that name is an ordinary field."""
    return value if type(value) in (str, int) else None


class _Origin(NamedTuple):
    """What the client sent. One value, because pydantic takes some microseconds to set one."""

    sent: dict[str, Any]
    repaired: bool
    was_text: bool


class Document(BaseModel):
    """A document with its id and metadata. It may have other fields, for `rank_fields`."""

    model_config = ConfigDict(extra="allow")

    text: Text | None = None
    id: Annotated[Text | int | None, BeforeValidator(_text_or_number, json_schema_input_type=Any)] = None
    metadata: Any = None
    _origin: _Origin = PrivateAttr()

    @model_validator(mode="wrap")
    @classmethod
    def _remember(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        was_text = isinstance(value, str)
        if was_text:
            value = {"text": value}
        elif not isinstance(value, dict):
            return handler(value)
        sent = _echoed(value)
        text = find_text(sent)
        document = handler(sent if text is None else {**sent, "text": text})
        document._origin = _Origin(sent, sent != value, was_text)
        return document

    @model_serializer
    def _as_sent(self) -> dict[str, Any]:
        return self._origin.sent

    @property
    def was_repaired(self) -> bool:
        """Whether it had broken characters, which U+FFFD has replaced."""
        return self._origin.repaired

    @property
    def retrieval_score(self) -> float | None:
        """The caller's `score`, if it is a number that a float can hold."""
        score = (self.model_extra or {}).get("score")
        return score if type(score) in (int, float) and abs(score) <= sys.float_info.max else None  # type: ignore[arg-type]

    @property
    def was_text(self) -> bool:
        """Whether it was sent as a string. It is written as an object nevertheless."""
        return self._origin.was_text

    @property
    def names(self) -> list[str]:
        """The names of its fields, as they were sent."""
        return list(self._origin.sent)

    def is_reference(self, fields: list[str]) -> bool:
        """Whether it has an id and nothing that the model could read."""
        return self.id is not None and self.text is None and not self.chosen(fields)

    def is_plain(self, fields: list[str]) -> bool:
        """Whether the model reads `text` as it is."""
        return self.text is not None and (fields == TEXT_FIELDS or self.model_fields_set == {"text"})

    def chosen(self, fields: list[str]) -> dict[str, Any]:
        """The given fields that this document has."""
        own = self.__dict__ | (self.model_extra or {})
        return {name: own[name] for name in fields if own.get(name) is not None}

    def as_text(self, index: int, fields: list[str]) -> str:
        """What the model reads: a single `text` unchanged, other fields as YAML. Raises `InvalidRequest`."""
        if self.text is not None and self.is_plain(fields):
            return self.text
        values = self.chosen(fields)
        if not values:
            if fields == TEXT_FIELDS and (name := media(self._origin.sent)):
                raise InvalidRequest(f"must be a text: '{name}' is not supported", f"documents[{index}]")
            problem = "no 'text'" if fields == TEXT_FIELDS else f"none of rank_fields ({', '.join(fields)})"
            raise InvalidRequest(f"has {problem}", f"documents[{index}]")
        return _as_yaml(values)


def _as_yaml(values: dict[str, Any]) -> str:
    """Block style. libyaml escapes characters above 16 bits, so private-use characters replace them temporarily."""
    written = json.dumps(values, ensure_ascii=False)
    escaped = sorted(set(ESCAPED.findall(written)))
    unused = (chr(code) for code in range(*PRIVATE_USE) if chr(code) not in written)
    stand_ins = dict(zip(escaped, unused, strict=False))
    if stand_ins:
        values = json.loads(written.translate(str.maketrans(stand_ins)))
    rendered: str = yaml.dump(values, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=2**31 - 1)
    return rendered.translate(str.maketrans({found: own for own, found in stand_ins.items()}))


def _as_document(value: Any) -> Any:
    if isinstance(value, str | dict):
        return value
    if isinstance(value, list) and (media(value) or text_of_parts(value) is not None):
        return {"content": value}
    raise PydanticCustomError("document", "must be a string or an object")


AnyDocument = Annotated[Document, BeforeValidator(_as_document, json_schema_input_type=str | Document)]
Documents = Annotated[
    list[AnyDocument],
    FailFast(),
    Field(max_length=MAX_DOCUMENTS),
    BeforeValidator(as_list),
]


def check_rendering(chosen: Iterable[dict[str, Any]]) -> None:
    """Raises `TooLarge` if rendering these fields of the documents would take long."""
    values = sum(map(_count, chosen))
    if values > MAX_RENDERED_VALUES:
        raise TooLarge(f"rank_fields: at most {MAX_RENDERED_VALUES} values are rendered, got {values}")


def _count(value: Any) -> int:
    """Number of nested values, including the value itself."""
    if isinstance(value, dict):
        return 1 + sum(map(_count, value.values()))
    return 1 + sum(map(_count, value)) if isinstance(value, list) else 1
