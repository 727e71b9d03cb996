"""What surrounds every request: its id, the bound on its body, its client's presence, its line in the log."""

import asyncio
import logging
import re
import time
import uuid
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.errors import INTERNAL, error_response
from app.api.keys import OPEN_FOLDER, PAGES, ApiKeys
from app.api.quota import Quota
from app.errors import RateLimited, RerankerError, TooLarge, Unauthorized
from app.logs import request_id as logged_id
from app.metrics import Metrics

log = logging.getLogger("app.access")

# A body over the limit is read on and thrown away for this long, so that its sender gets to read the answer.
DISCARD_SECONDS = 5.0
CLIENT_GONE = "499"
NOT_OURS = {"404", "405"}
LOGGED_PATH_CHARS = 200
# For the browser of somebody who was made to open an answer: it is no page, has no scripts, and is nobody's to embed.
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
)
ANSWER_HEADERS = (
    *SECURITY_HEADERS,
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
# The pages are made by FastAPI: scripts and styles from OPEN_FOLDER, and a few lines within the page.
PAGE_HEADERS = (
    *SECURITY_HEADERS,
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
        b"img-src 'self' data:; font-src 'self' data:; connect-src 'self'; worker-src blob:; "
        b"base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    ),
)
ACCEPTED_ID = re.compile(r"[\w.:-]{1,128}")


class RequestGuard:
    """ASGI middleware. A handler whose client leaves is cancelled: its slot and its unscored pairs come free."""

    def __init__(self, app: ASGIApp, keys: ApiKeys, quota: Quota, max_body_bytes: int, metrics: Metrics) -> None:
        self.app = app
        self._keys = keys
        self._quota = quota
        self._max_body_bytes = max_body_bytes
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        state = scope.setdefault("state", {})
        state["request_id"] = request_id = _request_id(scope)
        logged_id.set(request_id)
        state["details"] = {}
        status = CLIENT_GONE

        async def send_numbered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
                numbered = (b"x-request-id", request_id.encode())
                message["headers"] = [*message["headers"], numbered, *_security_headers(scope["path"])]
            await send(message)

        try:
            await self._serve_caller(scope, receive, send_numbered)
        except Exception:
            log.exception("Unexpected failure")
            if status != CLIENT_GONE:
                raise
            code, reason = INTERNAL
            self._metrics.rejections.labels(reason).inc()
            message = f"Internal error; the log has it under {request_id}"
            state["details"]["error"] = RerankerError.code
            response = error_response(request_id, code, RerankerError.code, message)
            await response(scope, receive, send_numbered)
        self._account(scope, status, state, time.perf_counter() - started)

    async def _serve_caller(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve who may come in and has not had its share yet; the others are told so before their body is read."""
        try:
            caller = self._keys.check(scope)
            if scope["method"] == "POST":
                with self._quota.share(caller):
                    await self._serve_body(scope, receive, send)
            else:
                await self.app(scope, receive, send)
        except (Unauthorized, RateLimited) as error:
            self._metrics.rejections.labels(error.code).inc()
            scope["state"]["details"]["error"] = error.code
            status, headers = 401, {"WWW-Authenticate": "Bearer", "Connection": "close"}
            if isinstance(error, RateLimited):
                status, headers = 429, {"Retry-After": str(error.retry_after), "Connection": "close"}
            response = error_response(scope["state"]["request_id"], status, error.code, str(error), headers)
            await response(scope, receive, send)

    async def _serve_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await self._read(scope, receive)
        except TooLarge as error:
            self._metrics.rejections.labels("too_large").inc()
            scope["state"]["details"]["error"] = "too_large"
            closing = {"Connection": "close"}
            await error_response(scope["state"]["request_id"], 413, "too_large", str(error), closing)(
                scope, receive, send
            )
            return
        if body is None:
            return
        handler = asyncio.ensure_future(self.app(scope, _replay(body), send))
        departure = asyncio.create_task(_departure(receive))
        try:
            await asyncio.wait({handler, departure}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            departure.cancel()
            handler.cancel()  # does nothing to a handler that is done
        with suppress(asyncio.CancelledError):
            await handler

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body, or None when the client left while sending it. Raises `TooLarge`."""
        headers = Request(scope).headers
        declared = headers.get("content-length", "")
        size = int(declared) if declared.isdigit() else 0
        if size > self._max_body_bytes and "expect" in headers:  # this sender asks before it sends
            raise self._too_large(size)
        chunks: list[bytes] = []
        received = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(None) as discarding:
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    received += len(message.get("body", b""))
                    if max(received, size) <= self._max_body_bytes:
                        chunks.append(message.get("body", b""))
                    elif discarding.when() is None:
                        discarding.reschedule(asyncio.get_running_loop().time() + DISCARD_SECONDS)
                        chunks.clear()
                    if not message.get("more_body", False):
                        break
        if max(received, size) > self._max_body_bytes:
            raise self._too_large(max(received, size))
        return b"".join(chunks)

    def _too_large(self, size: int) -> TooLarge:
        return TooLarge(
            f"body: at most {self._max_body_bytes} bytes are accepted (RERANKER_MAX_BODY_BYTES), got {size}"
        )

    def _account(self, scope: Scope, status: str, state: dict[str, Any], seconds: float) -> None:
        fields = {
            "method": scope["method"],
            "path": quote(scope["path"])[:LOGGED_PATH_CHARS],
            "status": int(status),
            "ms": round(seconds * 1000, 1),
            "id": state["request_id"],
        } | state["details"]
        level = logging.INFO if scope["method"] == "POST" else logging.DEBUG
        log.log(level, "%(method)s %(path)s status=%(status)d", fields, extra=fields)
        if scope["method"] == "POST" and status not in NOT_OURS:
            self._metrics.requests.labels(status).inc()
            if status == CLIENT_GONE:
                self._metrics.disconnects.inc()


def _security_headers(path: str) -> tuple[tuple[bytes, bytes], ...]:
    return PAGE_HEADERS if path in PAGES or path.startswith(OPEN_FOLDER) else ANSWER_HEADERS


def _request_id(scope: Scope) -> str:
    """The caller's own id where it is fit for a log line, else a new one."""
    given = Request(scope).headers.get("x-request-id", "")
    return given if ACCEPTED_ID.fullmatch(given) else uuid.uuid4().hex


def _replay(body: bytes) -> Receive:
    message: Message = {"type": "http.request", "body": body, "more_body": False}

    async def receive() -> Message:
        return message

    return receive


async def _departure(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
