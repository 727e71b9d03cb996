"""What every request passes: id, authentication, rate limits, body, disconnects, access log."""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import quote

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.body import Bodies, discard
from app.api.errors import INTERNAL, error_response, status_of
from app.api.headers import security_headers
from app.api.keys import ApiKeys, key_name
from app.api.lines import is_for_documents, is_stream
from app.api.paths import route_path
from app.api.quota import Quota
from app.api.service import service_of
from app.errors import RateLimited, Refused, RerankerError, Unauthorized
from app.serving.lifecycle import Phase
from app.telemetry.cost import Bill, current_bill
from app.telemetry.logs import request_id as logged_id
from app.telemetry.metrics import Metrics
from app.telemetry.record import RequestRecord, record_of

log = logging.getLogger("app.access")

# An answer is sent in chunks: the next one when the client has read most of the previous one.
PIECE_BYTES = 65_536
CLIENT_GONE = "499"
NOT_OURS = {"404", "405"}
LOGGED_PATH_CHARS = 200
ACCEPTED_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


class RequestGuard:
    """ASGI middleware. When a client disconnects, its handler is cancelled, which frees the slot and pairs."""

    def __init__(
        self, app: ASGIApp, keys: ApiKeys, quota: Quota, bodies: Bodies, metrics: Metrics, has_ui: bool
    ) -> None:
        self.app = app
        self._has_ui = has_ui
        self._keys = keys
        self._quota = quota
        self._bodies = bodies
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        record = RequestRecord(_request_id(scope))
        scope.setdefault("state", {})["record"] = record
        logged_id.set(record.id)
        status = CLIENT_GONE

        async def send_numbered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
                numbered = (b"x-request-id", record.id.encode())
                secured = security_headers(route_path(scope), self._has_ui)
                message["headers"] = [*message["headers"], numbered, *secured]
                if service_of(scope["app"]).lifecycle.phase is Phase.LEAVING:
                    message["headers"].append((b"connection", b"close"))  # the next request should go elsewhere
            for piece in _pieces(message):
                await send(piece)

        try:
            await self._serve(scope, receive, send_numbered)
        except RerankerError as error:
            await self._refuse(error, scope, receive, send_numbered)
        except Exception:
            log.exception("Unexpected error")
            if status != CLIENT_GONE:
                raise
            await self._refuse(None, scope, receive, send_numbered)
        self._account(scope, status, record, time.perf_counter() - started)
        if status == "200":
            service_of(scope["app"]).see(record)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Authenticate, read the body, call the handler. `RerankerError`s raised here are not the handler's."""
        caller = self._keys.check(scope)
        bill = record_of(scope).bill = Bill(key_name(caller))
        current_bill.set(bill)
        if scope["method"] != "POST" and not is_for_documents(scope):
            await self.app(scope, receive, send)
            return
        with self._quota.share(caller), self._bodies.hold() as body:
            scope["state"] |= {"caller": caller, "body": body}
            if is_stream(scope):
                with suppress(ClientDisconnect), _counted(scope):
                    await self.app(scope, receive, send)
                return
            content = await body.read(scope, receive)
            if content is not None:
                with _counted(scope):
                    await self._handle(content, scope, receive, send)

    async def _refuse(self, error: RerankerError | None, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer instead of the handler and close, without reading the rest of the body. None: the handler failed."""
        if isinstance(error, RateLimited):  # its body was not read yet
            await discard(scope, receive)
        record = record_of(scope)
        status, reason = status_of(error) if error else INTERNAL
        kind = error.code if error else RerankerError.code
        message = str(error) if error else f"Internal error. The log has the details under id {record.id}"
        self._metrics.rejections.labels(reason).inc()
        record.error = kind
        headers = {"Connection": "close"}
        if isinstance(error, Refused):
            headers["Retry-After"] = str(error.retry_after)
        if isinstance(error, Unauthorized):
            headers["WWW-Authenticate"] = "Bearer"
        await error_response(record.id, status, kind, message, headers)(scope, receive, send)

    async def _handle(self, content: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        handler = asyncio.ensure_future(self.app(scope, _replay(content), send))
        departure = asyncio.create_task(_departure(receive))
        try:
            await asyncio.wait({handler, departure}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            departure.cancel()
            handler.cancel()  # no effect on a finished handler
        with suppress(asyncio.CancelledError):
            await handler

    def _account(self, scope: Scope, status: str, record: RequestRecord, seconds: float) -> None:
        fields = {
            "method": scope["method"],
            "path": quote(scope["path"])[:LOGGED_PATH_CHARS],
            "status": int(status),
            "ms": round(seconds * 1000, 1),
            "id": record.id,
        } | record.log_fields()
        level = logging.INFO if scope["method"] == "POST" or is_for_documents(scope) else logging.DEBUG
        log.log(level, "%(method)s %(path)s status=%(status)d", fields, extra=fields)
        if scope["method"] == "POST" and status not in NOT_OURS:
            self._metrics.requests.labels(status).inc()
            if status == CLIENT_GONE:
                self._metrics.disconnects.inc()


@contextmanager
def _counted(scope: Scope) -> Iterator[None]:
    """A stop of the service waits for this request."""
    service = service_of(scope["app"])
    service.running += 1
    try:
        yield
    finally:
        service.running -= 1


def _request_id(scope: Scope) -> str:
    """The caller's id if it is safe to log, else a new one."""
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
