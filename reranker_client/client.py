"""The synchronous and the asynchronous client."""

import json
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from httpx_retries import Retry, RetryTransport
from pydantic import BaseModel, ValidationError

from reranker_client.models import Info, Ranking, Stored

DEFAULT_URL = "http://127.0.0.1:8000"
# 429: queue full or rate limited. 502 and 503: a replica is starting, draining or gone. 504 is not retried: the
# caller's own deadline has passed.
RETRIED_STATUSES = (429, 502, 503)

STORE = "/v1/documents"
Documents = Sequence[str | Mapping[str, Any]]
Form = TypeVar("Form", bound=BaseModel)


class RerankError(Exception):
    """The service rejected the request, failed, or could not be reached."""

    def __init__(self, message: str, status: int | None = None, request_id: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        """The HTTP status; None if there was no usable response."""
        self.request_id = request_id
        """The request's id in the log of the service; None if there was no usable response."""


class Client:
    """A synchronous client. It keeps connections open: reuse one client, and close it with `close` or `with`."""

    def __init__(
        self, url: str = DEFAULT_URL, api_key: str | None = None, timeout: float = 60.0, retries: int = 3
    ) -> None:
        """`timeout` is in seconds and applies to each try. Retries wait as long as `Retry-After` says."""
        transport = RetryTransport(httpx.HTTPTransport(), retry=_retry(retries))
        self._http = httpx.Client(base_url=url, headers=_headers(api_key), timeout=timeout, transport=transport)

    def rerank(self, query: str, documents: Documents = (), *, top_k: int | None = None, **options: Any) -> Ranking:
        """Rank the documents. `options` are other fields of the request. Raises `RerankError`.

        With `collection` and `document_ids`, these stored documents follow.
        """
        return _parsed(Ranking, self._call("POST", "/rerank/query", _body(query, documents, top_k, options)))

    def put_documents(
        self, collection: str, documents: Iterable[Mapping[str, Any]], *, ttl_seconds: float | None = None
    ) -> Stored:
        """Store documents, or replace those with the same `id`. Raises `RerankError`.

        Documents that the service refuses are in `errors`, and the others are stored.
        """
        answer = self._call("PUT", STORE, _lines(documents), **_of_lines(collection, ttl_seconds))
        return _parsed(Stored, answer)

    def info(self) -> Info:
        """Describe the model and engine of the service. Raises `RerankError`."""
        return _parsed(Info, self._call("GET", "/info"))

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _call(self, method: str, path: str, body: bytes | None = None, **options: Any) -> Any:
        try:
            return _content(self._http.request(method, path, content=body, **options))
        except httpx.HTTPError as error:
            raise _unreachable(self._http.base_url, error) from error


class AsyncClient:
    """An asynchronous client with the methods of `Client`."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        api_key: str | None = None,
        timeout: float = 60.0,
        retries: int = 3,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """`timeout` is in seconds and applies to each try. Retries wait as long as `Retry-After` says.

        `transport` replaces the network, for example with `httpx.ASGITransport`.
        """
        retrying = RetryTransport(transport or httpx.AsyncHTTPTransport(), retry=_retry(retries))
        self._http = httpx.AsyncClient(base_url=url, headers=_headers(api_key), timeout=timeout, transport=retrying)

    async def rerank(
        self, query: str, documents: Documents = (), *, top_k: int | None = None, **options: Any
    ) -> Ranking:
        """Rank the documents. `options` are other fields of the request. Raises `RerankError`.

        With `collection` and `document_ids`, these stored documents follow.
        """
        body = _body(query, documents, top_k, options)
        return _parsed(Ranking, await self._call("POST", "/rerank/query", body))

    async def put_documents(
        self, collection: str, documents: Iterable[Mapping[str, Any]], *, ttl_seconds: float | None = None
    ) -> Stored:
        """Store documents, or replace those with the same `id`. Raises `RerankError`.

        Documents that the service refuses are in `errors`, and the others are stored.
        """
        answer = await self._call("PUT", STORE, _lines(documents), **_of_lines(collection, ttl_seconds))
        return _parsed(Stored, answer)

    async def info(self) -> Info:
        """Describe the model and engine of the service. Raises `RerankError`."""
        return _parsed(Info, await self._call("GET", "/info"))

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(self, method: str, path: str, body: bytes | None = None, **options: Any) -> Any:
        try:
            return _content(await self._http.request(method, path, content=body, **options))
        except httpx.HTTPError as error:
            raise _unreachable(self._http.base_url, error) from error


def _retry(retries: int) -> Retry:
    # Ranking changes nothing on the service, and storing a document twice is the same as once.
    methods = ["GET", "POST", "PUT"]
    return Retry(total=retries, allowed_methods=methods, status_forcelist=RETRIED_STATUSES, backoff_factor=0.25)


def _headers(api_key: str | None) -> dict[bytes, bytes]:
    key = {b"Authorization": f"Bearer {api_key}".encode()} if api_key else {}
    return {b"Content-Type": b"application/json"} | key


def _body(query: str, documents: Documents, top_k: int | None, options: dict[str, Any]) -> bytes:
    if isinstance(documents, str):
        raise TypeError("documents must be a list of texts, not a single text")
    # json.dumps escapes to ASCII, so a lone surrogate is rejected by the service and not by `encode` here.
    plain = [document if isinstance(document, str) else dict(document) for document in documents]
    sent = {"documents": plain} if plain or "document_ids" not in options else {}
    return json.dumps({"query": query, **sent, "top_k": top_k, **options}).encode()


def _lines(documents: Iterable[Mapping[str, Any]]) -> bytes:
    return b"".join(json.dumps(dict(document)).encode() + b"\n" for document in documents)


def _of_lines(collection: str, ttl_seconds: float | None) -> dict[str, Any]:
    ttl = {} if ttl_seconds is None else {"ttl_seconds": ttl_seconds}
    return {"params": {"collection": collection} | ttl, "headers": {"Content-Type": "application/x-ndjson"}}


def _content(response: httpx.Response) -> Any:
    """Return the JSON of the response. Raises `RerankError` unless the status is a success."""
    try:
        content = response.json()
    except ValueError:
        content = None
    if not isinstance(content, dict):  # from a proxy
        content = {}
    if response.is_success and content:
        return content
    message = content.get("message") or content.get("detail") or f"{response.url} answered {response.status_code}"
    raise RerankError(str(message), response.status_code, response.headers.get("x-request-id"))


def _parsed(form: type[Form], content: Any) -> Form:
    try:
        return form.model_validate(content)
    except ValidationError as error:
        count = error.error_count()
        fields = "field" if count == 1 else "fields"
        raise RerankError(
            f"Unexpected response (is this a reranker service?): {count} {fields} failed validation"
        ) from error


def _unreachable(url: httpx.URL, error: httpx.HTTPError) -> RerankError:
    return RerankError(f"No response from {url}: {error or type(error).__name__}")
