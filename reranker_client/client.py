"""The two clients, which share all but the waiting."""

import json
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from httpx_retries import Retry, RetryTransport
from pydantic import BaseModel, ValidationError

from reranker_client.models import Info, Ranking

DEFAULT_URL = "http://127.0.0.1:8000"
# A full queue, a replica that starts or drains, a proxy without one. Not 504: the deadline was the caller's own.
RETRIED_STATUSES = (429, 502, 503)

Documents = Sequence[str | Mapping[str, Any]]
Form = TypeVar("Form", bound=BaseModel)


class RerankError(Exception):
    """The service refused or failed, or could not be reached."""

    def __init__(self, message: str, status: int | None = None, request_id: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        """The HTTP status; None when there was no answer."""
        self.request_id = request_id
        """What to look for in the log of the service."""


class Client:
    """Calls the service and waits. Keeps connections open: use one for many calls, and `close` it or use `with`."""

    def __init__(
        self, url: str = DEFAULT_URL, api_key: str | None = None, timeout: float = 60.0, retries: int = 3
    ) -> None:
        """`timeout` in seconds for one try; retries wait as long as `Retry-After` says."""
        transport = RetryTransport(httpx.HTTPTransport(), retry=_retry(retries))
        self._http = httpx.Client(base_url=url, headers=_headers(api_key), timeout=timeout, transport=transport)

    def rerank(self, query: str, documents: Documents, *, top_k: int | None = None, **options: Any) -> Ranking:
        """Rank the documents. `options` are further fields of the request. Raises `RerankError`."""
        return _parsed(Ranking, self._call("POST", "/rerank/query", _body(query, documents, top_k, options)))

    def info(self) -> Info:
        """What runs there. Raises `RerankError`."""
        return _parsed(Info, self._call("GET", "/info"))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _call(self, method: str, path: str, body: bytes | None = None) -> Any:
        try:
            return _content(self._http.request(method, path, content=body))
        except httpx.HTTPError as error:
            raise _unreachable(self._http.base_url, error) from error


class AsyncClient:
    """Calls the service; the methods of `Client`, to be awaited."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        api_key: str | None = None,
        timeout: float = 60.0,
        retries: int = 3,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """`timeout` in seconds for one try; retries wait as long as `Retry-After` says.

        `transport` is another way to the service than the network, such as `httpx.ASGITransport`.
        """
        retrying = RetryTransport(transport or httpx.AsyncHTTPTransport(), retry=_retry(retries))
        self._http = httpx.AsyncClient(base_url=url, headers=_headers(api_key), timeout=timeout, transport=retrying)

    async def rerank(self, query: str, documents: Documents, *, top_k: int | None = None, **options: Any) -> Ranking:
        """Rank the documents. `options` are further fields of the request. Raises `RerankError`."""
        body = _body(query, documents, top_k, options)
        return _parsed(Ranking, await self._call("POST", "/rerank/query", body))

    async def info(self) -> Info:
        """What runs there. Raises `RerankError`."""
        return _parsed(Info, await self._call("GET", "/info"))

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(self, method: str, path: str, body: bytes | None = None) -> Any:
        try:
            return _content(await self._http.request(method, path, content=body))
        except httpx.HTTPError as error:
            raise _unreachable(self._http.base_url, error) from error


def _retry(retries: int) -> Retry:
    """Ranking changes nothing, so a POST may be sent again."""
    return Retry(total=retries, allowed_methods=["GET", "POST"], status_forcelist=RETRIED_STATUSES, backoff_factor=0.25)


def _headers(api_key: str | None) -> dict[bytes, bytes]:
    key = {b"Authorization": f"Bearer {api_key}".encode()} if api_key else {}
    return {b"Content-Type": b"application/json"} | key


def _body(query: str, documents: Documents, top_k: int | None, options: dict[str, Any]) -> bytes:
    if isinstance(documents, str):
        raise TypeError("documents is one text; a list of them is needed")
    # As ASCII: what cannot be written in UTF-8 is for the service to refuse.
    plain = [document if isinstance(document, str) else dict(document) for document in documents]
    return json.dumps({"query": query, "documents": plain, "top_k": top_k, **options}).encode()


def _content(response: httpx.Response) -> Any:
    """The answer's JSON. Raises `RerankError` for a status that is none of success."""
    try:
        content = response.json()
    except ValueError:
        content = None
    if not isinstance(content, dict):  # of something in between
        content = {}
    if response.is_success and content:
        return content
    message = content.get("message") or content.get("detail") or f"{response.url} answered {response.status_code}"
    raise RerankError(str(message), response.status_code, response.headers.get("x-request-id"))


def _parsed(form: type[Form], content: Any) -> Form:
    """Raises `RerankError` where another service has answered."""
    try:
        return form.model_validate(content)
    except ValidationError as error:
        raise RerankError(f"The answer is none of this service: {error.error_count()} fields are wrong") from error


def _unreachable(url: httpx.URL, error: httpx.HTTPError) -> RerankError:
    return RerankError(f"No answer from {url}: {error or type(error).__name__}")
