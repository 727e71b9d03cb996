"""What surrounds every request: its id, the bound on its body, its client's presence, its line in the log."""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.body import Bodies, Body
from app.api.errors import INTERNAL, STATUSES, error_response
from app.api.keys import ApiKeys
from app.errors import BodyTimeout, BufferFull, RerankerError, TooLarge, Unauthorized
from app.metrics import Metrics

log = logging.getLogger("app.access")

# An answer is sent in pieces: the next when the client has taken most of the one before.
PIECE_BYTES = 65_536
CLIENT_GONE = "499"
WRONG_METHOD = "405"
ACCEPTED_ID = re.compile(r"[\w.:-]{1,128}")


class RequestGuard:
    """ASGI middleware. A handler whose client leaves is cancelled: its slot and its unscored pairs come free."""

    def __init__(self, app: ASGIApp, keys: ApiKeys, bodies: Bodies, metrics: Metrics) -> None:
        self.app = app
        self._keys = keys
        self._bodies = bodies
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        state = scope.setdefault("state", {})
        state["request_id"] = request_id = _request_id(scope)
        status = CLIENT_GONE

        async def send_numbered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            for piece in _pieces(message):
                await send(piece)

        try:
            if await self._admit(scope, receive, send_numbered):
                serve = self._serve_body if scope["method"] == "POST" else self.app
                await serve(scope, receive, send_numbered)
        except Exception:
            log.exception("Unexpected failure id=%s", request_id)
            if status != CLIENT_GONE:
                raise
            code, kind, reason = INTERNAL
            self._metrics.rejections.labels(reason).inc()
            response = error_response(request_id, code, kind, f"Internal error; the log has it under {request_id}")
            await response(scope, receive, send_numbered)
        self._account(scope, status, state, time.perf_counter() - started)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Whether the request may come in; if not it is answered here, before its body is read."""
        try:
            self._keys.check(scope)
        except Unauthorized as error:
            await self._refuse(error, {"WWW-Authenticate": "Bearer"}, scope, receive, send)
            return False
        return True

    async def _serve_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._bodies.hold() as body:
            content = await self._read(body, scope, receive, send)
            if content is not None:
                await self._handle(content, scope, receive, send)

    async def _read(self, body: Body, scope: Scope, receive: Receive, send: Send) -> bytes | None:
        """The whole body, or None when there is nothing to handle: the client left, or was refused here."""
        try:
            return await body.read(scope, receive)
        except BufferFull as error:
            await self._refuse(error, {"Retry-After": str(error.retry_after)}, scope, receive, send)
        except (TooLarge, BodyTimeout) as error:
            await self._refuse(error, {}, scope, receive, send)
        return None

    async def _refuse(
        self, error: RerankerError, headers: dict[str, str], scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer in place of the handler and close: the rest of the body is not wanted."""
        status, kind, reason = STATUSES[type(error)]
        self._metrics.rejections.labels(reason).inc()
        state = scope["state"]
        state["details"] = {"error": kind}
        closing = headers | {"Connection": "close"}
        await error_response(state["request_id"], status, kind, str(error), closing)(scope, receive, send)

    async def _handle(self, content: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        handler = asyncio.ensure_future(self.app(scope, _replay(content), send))
        departure = asyncio.create_task(_departure(receive))
        try:
            await asyncio.wait({handler, departure}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            departure.cancel()
            handler.cancel()  # does nothing to a handler that is done
        with suppress(asyncio.CancelledError):
            await handler

    def _account(self, scope: Scope, status: str, state: dict[str, Any], seconds: float) -> None:
        details = "".join(f" {name}={value}" for name, value in state.get("details", {}).items())
        level = logging.INFO if scope["method"] == "POST" else logging.DEBUG
        log.log(
            level,
            "%s %s status=%s ms=%.1f id=%s%s",
            scope["method"],
            scope["path"],
            status,
            seconds * 1000,
            state["request_id"],
            details,
        )
        if scope["method"] == "POST" and "endpoint" in scope and status != WRONG_METHOD:
            self._metrics.requests.labels(status).inc()
            if status == CLIENT_GONE:
                self._metrics.disconnects.inc()


def _request_id(scope: Scope) -> str:
    """The caller's own id where it is fit for a log line, else a new one."""
    given = Request(scope).headers.get("x-request-id", "")
    return given if ACCEPTED_ID.fullmatch(given) else uuid.uuid4().hex


def _pieces(message: Message) -> Iterator[Message]:
    body = message.get("body", b"")
    start = 0
    while len(body) - start > PIECE_BYTES:
        yield {**message, "body": body[start : start + PIECE_BYTES], "more_body": True}
        start += PIECE_BYTES
    yield {**message, "body": body[start:]} if start else message


def _replay(body: bytes) -> Receive:
    message: Message = {"type": "http.request", "body": body, "more_body": False}

    async def receive() -> Message:
        return message

    return receive


async def _departure(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
