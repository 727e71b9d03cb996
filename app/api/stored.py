"""Rankings of stored documents: ids become documents before the request is ranked."""

import asyncio
from typing import Annotated, Any, NamedTuple

from fastapi import Request
from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from app.api.body import Body, parsed_bytes
from app.api.dialects.native_request import Found, RerankRequest
from app.api.documents import Document
from app.api.entries import Collection
from app.api.errors import shorten
from app.api.fields import Text
from app.api.keys import caller_of
from app.api.ranking import timeout_of
from app.api.service import service_of
from app.documents.store import space_of
from app.errors import InvalidRequest, NotFound, TooLarge
from app.serving.progress import within
from app.types import MAX_DOCUMENTS

NAMED = 5
# Documents that take less time than another thread would.
FEW = 50
COLLECTION = TypeAdapter[str](Collection)
IDS = TypeAdapter[list[str | int]](Annotated[list[Text | int], Field(max_length=MAX_DOCUMENTS)])


class Wanted(NamedTuple):
    """A stored document that the request names."""

    position: int
    id: str | int
    own: dict[str, Any]
    """Fields that the request has for it, such as a `score`."""


async def with_stored(body: RerankRequest, request: Request) -> RerankRequest:
    """The request with the documents of its ids. Unchanged if it names none.

    Raises `NotFound`, `InvalidRequest`, `TooLarge`, `Unavailable` or `DeadlineExceeded`.
    """
    if body.collection is None:
        return body
    service = service_of(request.app)
    has_references = any(document.is_reference(body.rank_fields) for document in body.documents)
    is_ignored = body.document_ids is None or (service.documents is None and body.documents)
    if is_ignored and not has_references:
        return body
    store = service.usable_documents()
    wanted = _wanted(body, service.limits.max_documents)
    started, seconds = asyncio.get_running_loop().time(), timeout_of(request, body) or service.limits.timeout or None
    async with within(seconds):
        space = space_of(caller_of(request.scope), body.collection)
        found = await store.get(space, [str(one.id) for one in wanted], service.bodies.max_bytes)
    held: Body = request.scope["state"]["body"]
    held.hold(held.held + sum(map(parsed_bytes, found.values())))
    in_line = len(found) <= FEW
    completed = _complete(body, wanted, found) if in_line else await asyncio.to_thread(_complete, body, wanted, found)
    if seconds is not None:
        left = seconds + started - asyncio.get_running_loop().time()
        completed.timeout_ms = max(1, round(left * 1000))
    return completed


def _wanted(body: RerankRequest, most: int) -> list[Wanted]:
    """The stored documents that the request names, in its order. Raises `InvalidRequest` or `TooLarge`."""
    try:
        COLLECTION.validate_python(body.collection, strict=True)
        ids = IDS.validate_python(body.document_ids or [], strict=True)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        name = "collection" if problem["type"].startswith("string") and not problem["loc"] else "document_ids"
        raise InvalidRequest(problem["msg"], name) from None
    count = len(body.documents) + len(ids)
    if count > most:
        raise TooLarge(
            f"at most {most} are accepted together with 'documents' (RERANKER_MAX_DOCUMENTS), got {count}",
            "document_ids",
        )
    references = [
        Wanted(position, document.id, {name: item for name, item in document.model_dump().items() if item is not None})
        for position, document in enumerate(body.documents)
        if document.is_reference(body.rank_fields) and document.id is not None
    ]
    return references + [Wanted(len(body.documents) + place, name, {}) for place, name in enumerate(ids)]


def _complete(body: RerankRequest, wanted: list[Wanted], found: dict[str, bytes]) -> RerankRequest:
    """The request with the documents that were found. Raises `NotFound` if nothing is left to rank."""
    documents: dict[int, Document] = dict(enumerate(body.documents))
    missing = []
    for one in wanted:
        documents.pop(one.position, None)
        stored = found.get(str(one.id))
        if stored is None:
            missing.append(one.id)
        else:
            documents[one.position] = Document.model_validate(from_json(stored) | one.own)
    if missing and not documents:
        shown = ", ".join(map(shorten, missing[:NAMED])) + (
            f" and {len(missing) - NAMED} more" * (len(missing) > NAMED)
        )
        raise NotFound(f"The collection {shorten(body.collection)} has none of the documents: {shown}")
    positions = sorted(documents)
    found_ones = Found(positions, len(body.documents), missing)
    return body.with_found([documents[position] for position in positions], found_ones)
