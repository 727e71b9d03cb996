"""Routes that store documents, so that they can be ranked by their ids."""

import asyncio
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Annotated, Any
from urllib.parse import unquote_to_bytes

from fastapi import APIRouter, HTTPException, Query, Request, Response
from pydantic import BaseModel
from pydantic_core import from_json
from starlette.routing import Match
from starlette.types import Scope

from app.api.body import Body
from app.api.documents import Document
from app.api.entries import Collection, PutDocuments, Stored, Ttl, read_body, read_lines
from app.api.errors import ERROR_RESPONSES, ErrorBody, shorten
from app.api.json_route import JsonRoute
from app.api.keys import caller_of
from app.api.lines import DOCUMENTS_PATH, LINE_TYPES, batches, is_stream
from app.api.ranking import header_timeout
from app.api.service import Service, service_of
from app.documents.store import DocumentStore, Entry, space_of
from app.errors import DeadlineExceeded, NotFound, Unavailable
from app.serving.progress import within
from app.telemetry.record import record_of

MAX_ERRORS = 1000
RESPONSES = ERROR_RESPONSES | {
    404: {"model": ErrorBody, "description": "There is no such document, or documents are not stored"}
}
COLLECTION: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": 256}
# How the other kind of body is documented: FastAPI knows one for each route.
LINES: dict[str, Any] = {
    "requestBody": {
        "content": {
            LINE_TYPES[0]: {
                "schema": {"type": "string", "description": "A document in each line: an object with `id` and `text`"}
            }
        }
    },
    "parameters": [
        {"name": "collection", "in": "query", "description": "For a body of lines", "schema": COLLECTION},
        {"name": "ttl_seconds", "in": "query", "description": "For a body of lines", "schema": {"type": "number"}},
    ],
}

Name = Annotated[Collection, Query()]


class LinesRoute(JsonRoute):
    """Takes bodies of lines, and leaves the others to the next route."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = super().matches(scope)
        return (match, child) if match == Match.NONE or is_stream(scope) else (Match.NONE, {})


class StoredDocument(BaseModel):
    """A stored document, as it was sent."""

    collection: str
    id: str
    document: Document


class Deleted(BaseModel):
    """How many documents were deleted."""

    collection: str
    deleted: int


lines_router = APIRouter(tags=["documents"], route_class=LinesRoute)
json_router = APIRouter(tags=["documents"], route_class=JsonRoute)
router = APIRouter()


@lines_router.put(DOCUMENTS_PATH, response_model=Stored, include_in_schema=False)
async def put_lines(request: Request, collection: Name, ttl_seconds: Annotated[Ttl, Query()] = None) -> Stored:
    """Store a document from each line, while the lines arrive."""
    service, body = service_of(request.app), body_of(request)
    store, space = service.usable_documents(), space_of(caller_of(request.scope), collection)
    answer, most_line = Stored(collection=collection), service.bodies.max_bytes
    try:
        found = batches(request, body, most_line, service.bodies.timeout)
        async with _deadline(request, service), aclosing(found):
            async for lines in found:
                read = await asyncio.to_thread(read_lines, lines, *_limits(service, store), most_line)
                await _put(service, store, answer, space, read.entries, ttl_seconds)
                answer.refused += len(read.refused)
                answer.errors += read.refused[: MAX_ERRORS - len(answer.errors)]
    except DeadlineExceeded as error:
        raise DeadlineExceeded(f"{error}. {_progress(answer)}") from None
    except Unavailable as error:
        raise Unavailable(f"{error}. {_progress(answer)}", error.retry_after) from None
    record_of(request.scope).documents = answer.stored + answer.replaced
    return answer


@json_router.put(
    DOCUMENTS_PATH,
    response_model=Stored,
    responses=RESPONSES,
    summary="Store documents, or replace those with the same id",
    openapi_extra=LINES,
)
async def put(body: PutDocuments, request: Request) -> Stored:
    """A JSON body is stored as a whole. `application/x-ndjson` has a document in each line, and any length."""
    service = service_of(request.app)
    store, space = service.usable_documents(), space_of(caller_of(request.scope), body.collection)
    answer = Stored(collection=body.collection)
    async with _deadline(request, service):
        entries = await asyncio.to_thread(read_body, body.documents, *_limits(service, store))
        await _put(service, store, answer, space, entries, body.ttl_seconds)
    record_of(request.scope).documents = len(entries)
    return answer


@json_router.delete(
    DOCUMENTS_PATH, response_model=Deleted, responses=RESPONSES, summary="Delete all documents of a collection"
)
async def clear(request: Request, collection: Name) -> Deleted:
    """All documents of the collection, of this API key."""
    service = service_of(request.app)
    store, space = service.usable_documents(), space_of(caller_of(request.scope), collection)
    async with _deadline(request, service):
        return Deleted(collection=collection, deleted=await store.clear(space))


@json_router.get(DOCUMENTS_PATH + "/{id:path}", response_model=StoredDocument, responses=RESPONSES, summary="Get one")
async def get(id: str, request: Request, collection: Name) -> Response:
    """The document as it was sent."""
    service = service_of(request.app)
    store, space = service.usable_documents(), space_of(caller_of(request.scope), collection)
    name = id_in_path(request.scope, id)
    async with _deadline(request, service):
        found = await store.get(space, [name], service.bodies.max_bytes)
    if name not in found:
        raise NotFound(f"There is no document {shorten(name)} in the collection {shorten(collection)}")
    document = Document.model_validate(from_json(found[name]))
    answer = StoredDocument(collection=collection, id=name, document=document)
    return Response(answer.model_dump_json(), media_type="application/json")


@json_router.delete(
    DOCUMENTS_PATH + "/{id:path}", response_model=Deleted, responses=RESPONSES, summary="Delete one document"
)
async def delete(id: str, request: Request, collection: Name) -> Deleted:
    """The answer is 200 and `deleted` 0 if there is no such document."""
    service = service_of(request.app)
    store, space = service.usable_documents(), space_of(caller_of(request.scope), collection)
    async with _deadline(request, service):
        return Deleted(collection=collection, deleted=await store.delete(space, [id_in_path(request.scope, id)]))


async def refuse(request: Request) -> None:
    """Names all methods of the path: otherwise the header has only those of its first route."""
    has_id = "id" in request.path_params
    raise HTTPException(405, headers={"Allow": "DELETE, GET" if has_id else "DELETE, PUT"})


OTHERS = {"HEAD", "OPTIONS", "PATCH", "POST", "TRACE"}
json_router.api_route(DOCUMENTS_PATH, methods=[*OTHERS, "GET"], include_in_schema=False)(refuse)
json_router.api_route(DOCUMENTS_PATH + "/{id:path}", methods=[*OTHERS, "PUT"], include_in_schema=False)(refuse)
router.include_router(lines_router)
router.include_router(json_router)


def body_of(request: Request) -> Body:
    """The memory that the guard counts for this request."""
    body: Body = request.scope["state"]["body"]
    return body


def id_in_path(scope: Scope, parsed: str) -> str:
    """The id as the client has quoted it: slashes in it are kept. `parsed`: as the path of the route has it."""
    _, found, quoted = scope.get("raw_path", b"").partition(f"{DOCUMENTS_PATH}/".encode())
    return unquote_to_bytes(quoted).decode(errors="replace") if found else parsed


def _limits(service: Service, store: DocumentStore) -> tuple[int, int]:
    return service.limits.max_text_chars, store.max_bytes


def _progress(answer: Stored) -> str:
    return f"Before that, {answer.stored + answer.replaced} lines were stored and {answer.refused} refused"


async def _put(
    service: Service, store: DocumentStore, answer: Stored, space: bytes, entries: list[Entry], ttl: float | None
) -> None:
    written = await store.put(space, entries, ttl)
    answer.stored += written.stored
    answer.replaced += written.replaced
    answer.evicted += written.evicted
    service.metrics.evicted_documents.inc(written.evicted)


def _deadline(request: Request, service: Service) -> AbstractAsyncContextManager[asyncio.Timeout]:
    """Limits the time of the block to what the caller or the operator has set. Raises `DeadlineExceeded`."""
    return within(header_timeout(request) or service.limits.timeout or None)
