"""What clients send to be stored, and what it becomes."""

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import to_json

from app.api.documents import AnyDocument, Document, Documents
from app.api.errors import explain
from app.api.json_route import parse_json
from app.api.lines import Line
from app.api.texts import media
from app.documents.store import Entry
from app.errors import InvalidRequest, RequestError, TooLarge

MAX_ID_CHARS = 512
MAX_TTL_SECONDS = 3_153_600_000
# A path of these, or of slashes only, is another path.
NO_IDS = (".", "..")
NOT_READ = {"id", "metadata"}
EXAMPLE: dict[str, Any] = {
    "collection": "planets",
    "documents": [
        {"id": "p1", "text": "Mars has two small moons, Phobos and Deimos, discovered in 1877."},
        {"id": "p2", "text": "Saturn has 146 confirmed moons.", "metadata": {"source": "planets.md"}},
    ],
    "ttl_seconds": 86400,
}

Collection = Annotated[
    str, Field(min_length=1, max_length=256, description="Name of the collection, of the caller's API key")
]
Ttl = Annotated[
    float | None,
    Field(
        gt=0,
        le=MAX_TTL_SECONDS,
        allow_inf_nan=False,
        description="Seconds until these documents expire; default: never. Storing a document again starts it again",
    ),
]
ONE = TypeAdapter[Document](AnyDocument)


class PutDocuments(BaseModel):
    """Documents to store. All of them are stored, or none; in Redis this holds for each 500 of them."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [EXAMPLE]})

    collection: Collection
    documents: Annotated[Documents, Field(json_schema_extra={"minItems": 1})]
    ttl_seconds: Ttl = None


class BadLine(BaseModel):
    """A line that was not stored, and why."""

    line: int
    reason: str


class Stored(BaseModel):
    """What was done, exactly."""

    collection: str
    stored: Annotated[int, Field(description="Documents with a new id")] = 0
    replaced: Annotated[int, Field(description="Documents with a known id")] = 0
    refused: Annotated[int, Field(description="Lines that were not stored")] = 0
    evicted: Annotated[
        int, Field(description="The least recently used documents of all collections, removed to make room")
    ] = 0
    errors: Annotated[list[BadLine], Field(description="The first 1000 refused lines")] = []


class Read(NamedTuple):
    """What a batch of lines contains."""

    entries: list[Entry]
    refused: list[BadLine]


def entry_of(document: Document, most_chars: int, most_bytes: int) -> Entry:
    """The document as it is stored. Raises `InvalidRequest` or `TooLarge`.

    `most_chars`: of its text. `most_bytes`: of the whole store.
    """
    name = "" if document.id is None else str(document.id)
    if not name.strip("/") or len(name) > MAX_ID_CHARS or name in NO_IDS:
        raise InvalidRequest(f"must have an 'id': an integer, or a string of 1 to {MAX_ID_CHARS} characters")
    content = document.model_dump()
    if document.text is None:
        if kind := media(content):
            raise InvalidRequest(f"must be a text: '{kind}' is not supported")
        if all(value is None for field, value in content.items() if field not in NOT_READ):
            raise InvalidRequest("has no 'text', and no other fields for rank_fields")
    if document.text is not None and len(document.text) > most_chars:
        raise TooLarge(
            f"at most {most_chars} characters are accepted (RERANKER_MAX_TEXT_CHARS), got {len(document.text)}"
        )
    entry = Entry(name, to_json(content))
    if entry.bytes > most_bytes:
        raise TooLarge(
            f"needs {entry.bytes} bytes, all documents together may have {most_bytes} (RERANKER_DOCUMENTS_MAX_BYTES)"
        )
    return entry


def read_body(documents: Sequence[Document], most_chars: int, most_bytes: int) -> list[Entry]:
    """The documents of a JSON body. Raises `InvalidRequest` or `TooLarge` with the field."""
    if not documents:
        raise InvalidRequest("at least one is required", "documents")
    entries = []
    for index, document in enumerate(documents):
        try:
            entries.append(entry_of(document, most_chars, most_bytes))
        except RequestError as error:
            error.field = f"documents[{index}]"
            raise
    return entries


def read_lines(lines: Sequence[Line], most_chars: int, most_bytes: int, most_line: int) -> Read:
    """The documents of these lines, and the lines without one. `most_line`: bytes of a line."""
    read = Read([], [])
    for line in lines:
        try:
            if line.content is None:
                raise TooLarge(f"at most {most_line} bytes are accepted in a line (RERANKER_MAX_BODY_BYTES)")
            read.entries.append(entry_of(ONE.validate_python(parse_json(line.content)), most_chars, most_bytes))
        except RequestError as error:
            read.refused.append(BadLine(line=line.number, reason=str(error)))
        except ValidationError as error:
            problems = [problem | {"loc": ("line", *problem["loc"])} for problem in error.errors(include_url=False)]
            read.refused.append(BadLine(line=line.number, reason=explain(problems, "")[1]))
        except ValueError as error:
            read.refused.append(BadLine(line=line.number, reason=f"is not valid JSON: {error}"))
    return read
