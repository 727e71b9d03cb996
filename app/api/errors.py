"""Maps errors to HTTP status and body."""

import json
import logging
from collections.abc import Mapping, Sequence
from functools import reduce
from http import HTTPStatus
from operator import or_
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from app import errors
from app.api.service import service_of
from app.telemetry.record import ErrorBodyOf, Problem, record_of

log = logging.getLogger(__name__)

# Exception → status, and the `reason` label of `reranker_rejections_total`.
STATUSES: dict[type[errors.RerankerError], tuple[int, str]] = {
    errors.InvalidRequest: (422, "invalid"),
    errors.Unauthorized: (401, "unauthorized"),
    errors.UnknownModel: (404, "invalid"),
    errors.TooLarge: (413, "too_large"),
    errors.NotFound: (404, "not_found"),
    errors.BodyTimeout: (408, "body_timeout"),
    errors.UnsupportedMedia: (415, "invalid"),
    errors.RateLimited: (429, "rate_limited"),
    errors.QueueFull: (429, "queue_full"),
    errors.QueueTimeout: (503, "queue_timeout"),
    errors.BufferFull: (503, "buffer_full"),
    errors.Unavailable: (503, "unavailable"),
    errors.DeadlineExceeded: (504, "deadline"),
}
SHOWN_VALUE_CHARS = 60
BAD_REQUEST, NOT_FOUND = HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND
UNREADABLE = "The body cannot be read"
# The prefix of the pydantic tags that mark the dialects of a route. The tag precedes the field in the location of an
# error and is left out of the message.
DIALECT_TAG = "dialect:"
NOT_AN_OBJECT = "must be an object"
INTERNAL = (500, "failed")
# What gRPC calls a status. Google and Pinecone name their errors so; other statuses are INVALID_ARGUMENT or INTERNAL.
GRPC_NAMES = {404: "NOT_FOUND", 429: "RESOURCE_EXHAUSTED", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED"}


class ErrorDetail(BaseModel):
    """The error, for programs."""

    message: str
    type: str
    code: int


class ErrorBody(BaseModel):
    """The body of every error. `message`, `detail` and `error.message` are equal: clients read different ones."""

    id: str
    message: str
    detail: str
    error: ErrorDetail


ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "The body is not JSON"},
    401: {"model": ErrorBody, "description": "The API key is missing or wrong"},
    404: {"model": ErrorBody, "description": "No model has this name, if the service has several (RERANKER_MODELS)"},
    408: {"model": ErrorBody, "description": "The body did not arrive in time"},
    413: {"model": ErrorBody, "description": "Too large: body, number of documents, or a text"},
    415: {"model": ErrorBody, "description": "The body is compressed, or its `Content-Type` is not JSON"},
    422: {"model": ErrorBody, "description": "A field is missing, empty or of the wrong type"},
    429: {
        "model": ErrorBody,
        "description": "The queue is full, or the key exceeds its rate; `Retry-After` says when to retry",
    },
    500: {"model": ErrorBody, "description": "The model failed on this batch; the id is in the log"},
    503: {
        "model": ErrorBody,
        "description": "No slot in time, or too little memory for the body; loading, reloading, draining or unhealthy",
    },
    504: {"model": ErrorBody, "description": "The caller's deadline passed"},
}


def error_responses(*bodies: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """For OpenAPI: the errors of a route with these bodies, or with the service's own for errors before the body."""
    body = reduce(or_, bodies, ErrorBody)
    return {status: {**response, "model": body} for status, response in ERROR_RESPONSES.items()}


def add_error_handlers(app: FastAPI, overload_status: int) -> None:
    """Answer every error with an error body. `overload_status`: the status of a full queue, 429 or 503."""

    async def on_domain_error(request: Request, error: Exception) -> JSONResponse:
        error, record = cast(errors.RerankerError, error), record_of(request.scope)
        status, reason = status_of(error)
        if isinstance(error, errors.QueueFull):
            status = overload_status
        service_of(request.app).metrics.rejections.labels(reason).inc()
        record.error = error.code
        headers = {}
        if isinstance(error, errors.Refused):
            headers["Retry-After"] = str(error.retry_after)
        if isinstance(error, errors.Unavailable):
            headers["Connection"] = "close"  # a client or proxy that keeps connections should look elsewhere
        return error_response(record.id, status, error.code, str(error), headers, error_body=record.error_body)

    async def on_invalid_body(request: Request, error: Exception) -> JSONResponse:
        error, record = cast(RequestValidationError, error), record_of(request.scope)
        service_of(request.app).metrics.rejections.labels("invalid").inc()
        record.error = "invalid_request"
        status, message = explain(error.errors(), request.headers.get("content-type", ""))
        return error_response(record.id, status, "invalid_request", message, error_body=record.error_body)

    async def on_http_error(request: Request, error: Exception) -> JSONResponse:
        error, record = cast(HTTPException, error), record_of(request.scope)
        record.error = "http_error"
        message = error.detail
        if error.status_code == NOT_FOUND and message == NOT_FOUND.phrase:
            message = f"There is no route {shorten(request.url.path)}"
        if error.status_code == BAD_REQUEST:
            service_of(request.app).metrics.rejections.labels("invalid").inc()
            message = UNREADABLE
        return error_response(record.id, error.status_code, "http_error", message, error.headers)

    app.add_exception_handler(errors.RerankerError, on_domain_error)
    app.add_exception_handler(RequestValidationError, on_invalid_body)
    app.add_exception_handler(HTTPException, on_http_error)


def status_of(error: errors.RerankerError) -> tuple[int, str]:
    """Status and reason of the error's class, or of its nearest known base class."""
    return next((STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES), INTERNAL)


def error_response(
    request_id: str,
    status: int,
    code: str,
    message: str,
    headers: Mapping[str, str] | None = None,
    error_body: ErrorBodyOf | None = None,
) -> JSONResponse:
    """One error as JSON, in the service's own format or that of a dialect."""
    if error_body is not None:
        body = error_body(Problem(request_id, status, code, message))
    else:
        error = ErrorDetail(message=message, type=code, code=status)
        body = ErrorBody(id=request_id, message=message, detail=message, error=error)
    return JSONResponse(body.model_dump(), status, headers)


def grpc_name(status: int) -> str:
    """The name of a status in the dialects of services that also speak gRPC."""
    return GRPC_NAMES.get(status, "INVALID_ARGUMENT" if status < INTERNAL[0] else "INTERNAL")


def explain(problems: Sequence[Any], content_type: str) -> tuple[int, str]:
    """Status and message for what pydantic found, naming each field and the value it had."""
    if problems[0]["type"] == "too_long":
        name, size = _field(problems[0]), len(problems[0]["input"])
        return 413, f"{name}: at most {problems[0]['ctx']['max_length']} are accepted, got {size}"
    if problems[0]["type"] == "missing" and len(problems[0]["loc"]) == 1:
        return 400, "The body is empty"
    if problems[0]["type"] == "json_invalid":
        position, reason = problems[0]["loc"][-1], problems[0].get("ctx", {}).get("error", "not JSON")
        return 400, f"The body is not valid JSON: {reason} at character {position}"
    if isinstance(problems[0].get("input"), bytes):
        return 415, f"The body must be JSON with 'Content-Type: application/json', got {content_type or 'none'!r}"
    return 422, "; ".join(_explain_one(problem) for problem in problems[:3])


def _explain_one(problem: Any) -> str:
    if problem["type"] == "unsupported":  # the message begins with the field
        return str(problem["msg"])
    message = NOT_AN_OBJECT if problem["type"].startswith("model_") else problem["msg"].replace(" after validation", "")
    got = "" if problem["type"] == "missing" else f", got {shorten(problem['input'])}"
    return f"{_field(problem)}: {message[0].lower()}{message[1:]}{got}"


def _field(problem: Any) -> str:
    path = problem["loc"][1:]
    if path and str(path[0]).startswith(DIALECT_TAG):
        path = path[1:]
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return "".join(parts).lstrip(".") or "body"


def shorten(value: Any) -> str:
    """The value as shortened JSON; lists and objects only by their kind."""
    kinds = {dict: "an object", list: "a list"}
    text = next((name for kind, name in kinds.items() if isinstance(value, kind)), None) or json.dumps(value)
    return text if len(text) <= SHOWN_VALUE_CHARS else f"{text[:SHOWN_VALUE_CHARS]}…"
