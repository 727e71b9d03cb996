"""Limits of connections: their number, the size and time of a request's head, and the time to read an answer.

uvicorn limits none of these.
"""

import asyncio
import uuid
from collections.abc import Mapping
from typing import Any

import httptools
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from app.api.body import discard
from app.api.errors import error_response
from app.api.paths import HEALTH_PATHS
from app.config_types import clean_path
from app.telemetry.metrics import Metrics

# Of the head of a request, and of the framing of chunks.
MAX_HEAD_BYTES = 65_536
# Requests that a client may send before it has the answer to the first.
MAX_PIPELINED = 8
# Extra connections over the limit. They answer health checks, and reject everything else.
SPARE_CONNECTIONS = 128
# Headers that define where a body ends.
FRAMING = {b"content-length", b"transfer-encoding"}
HEAD_SECONDS, SPARE_HEAD_SECONDS = 10.0, 2.0
# A client must read an answer within this time.
ANSWER_SECONDS = 60.0
# After a rejection, input is discarded for this long: some clients read the answer only after sending everything.
LINGER_SECONDS = 2.0
TICK_SECONDS = 1.0
# Bytes of one answer that wait for the rest of it.
MAX_GATHERED_BYTES = 65_536
MALFORMED = (400, "malformed", "The input is not an HTTP/1.1 request")
HEAD_TOO_LARGE = (431, "head_too_large", f"The head of a request exceeds {MAX_HEAD_BYTES} bytes")
HEAD_TIMEOUT = (408, "head_timeout", f"The head of the request did not arrive within {HEAD_SECONDS:g} s")
TOO_PIPELINED = (429, "pipelined", f"At most {MAX_PIPELINED} requests may wait for the answer to another")


class Connection(HttpToolsProtocol):
    """uvicorn's protocol with limits. Owns the unfinished input of one client."""

    def __init__(self, *args: Any, max_connections: int, metrics: Metrics, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._max_connections = max_connections
        self._metrics = metrics
        self._problem = MALFORMED
        self._refused = False
        self._spare = False
        self._silent = True
        """Whether nothing has arrived yet."""
        self._in_body = False
        self._resuming = False
        """Whether a new parser is reading a head that the previous one has already read."""
        self._bodiless = 0
        """Bytes since the last byte of a body."""
        self._head_deadline: float | None = None
        self._answer_deadline: float | None = None
        self._tick: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A connection over the limit becomes a spare one. If there are no spare ones left, it is closed."""
        super().connection_made(_Gathered(transport, self.loop))  # type: ignore[arg-type]
        self._metrics.open_connections.inc()
        self._spare = len(self.connections) > self._max_connections
        self._expect_head()
        self._look()
        if len(self.connections) > self._max_connections + SPARE_CONNECTIONS:
            self._metrics.rejections.labels("connections").inc()
            transport.abort()
        elif self._spare:
            self.app = _OnlyHealth(self.app, self._max_connections, self._metrics)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called once, whichever side closed it."""
        self._metrics.open_connections.dec()
        if self._tick is not None:
            self._tick.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, unless the request was already rejected."""
        if self._refused:
            return
        between = self._head_deadline is None and (self.cycle is None or self.cycle.response_complete)
        if self._silent or between:
            self._silent = False
            self._expect_head()
        self._bodiless += len(data)
        self._unset_keepalive_if_required()
        self._feed(data)
        if self._bodiless > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(*HEAD_TOO_LARGE)

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline_upgrade()
            self._feed(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse(*self._problem)

    def _decline_upgrade(self) -> None:
        """Ignore a requested upgrade: a new parser reads what follows the head as the body.

        httptools stops at an upgrade and has no way to decline it. Some clients request HTTP/2 and send the body at
        once: Java's HTTP client on plain HTTP, and `curl --http2`.
        """
        framing = [b"%b: %b\r\n" % header for header in self.headers if header[0] in FRAMING]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
        self._resuming = True
        self.parser.feed_data(b"POST / HTTP/1.1\r\n" + b"".join(framing) + b"\r\n")
        self._resuming = False

    def on_message_begin(self) -> None:
        """The next request, possibly in the same chunk as the end of the previous one."""
        if self._resuming:
            return
        super().on_message_begin()
        self._expect_head()

    def on_url(self, url: bytes) -> None:
        """Called for each part of the URL."""
        if not self._resuming:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Headers of the head. Trailers of a body are ignored."""
        if not self._in_body:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the request if its head is within the limits."""
        if self._resuming:
            return
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD_BYTES:
            self._stop(HEAD_TOO_LARGE)
        if len(self.pipeline) >= MAX_PIPELINED:
            self._stop(TOO_PIPELINED)
        self._head_deadline = self._answer_deadline = None
        self._bodiless = 0
        super().on_headers_complete()
        self._in_body = True
        if self._spare:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Called for each part of the body."""
        self._bodiless = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is complete."""
        if self.parser.should_upgrade():
            return  # only the head is complete
        self._in_body = False
        self._bodiless = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Close the connection if the client is still sending a body that is no longer needed."""
        super().on_response_complete()
        if self._in_body and self.cycle.response_complete:
            self.transport.close()
        if self._head_deadline is not None and not self._refused:
            self._expect_head()  # reading was paused while the next request waited for this answer

    def _stop(self, problem: tuple[int, str, str]) -> None:
        """Stop the parser with this error."""
        self._problem = problem
        raise httptools.HttpParserError(problem[2])

    def _refuse(self, status: int, kind: str, message: str) -> None:
        """Answer instead of the application, unless it has already started an answer. Then close."""
        self._metrics.rejections.labels(kind).inc()
        self._refused = True
        waiting = self.cycle is not None and not self.cycle.response_complete
        answered = waiting and (self.cycle.response_started or not self._in_body or bool(self.pipeline))
        if waiting:
            self.cycle.disconnected = True
            self.cycle.waiting_for_100_continue = False
            self.cycle.message_event.set()
        if answered or self.transport.is_closing():
            self.transport.close()
            return
        self.transport.write(_response(status, kind, message, dict(self.server_state.default_headers)))
        self.transport.write_eof()
        self._head_deadline = self.loop.time() + LINGER_SECONDS

    def _expect_head(self) -> None:
        """Proxies open connections ahead: one that is still silent may stay as long as an idle one."""
        seconds = self.timeout_keep_alive if self._silent else HEAD_SECONDS
        self._head_deadline = self.loop.time() + (SPARE_HEAD_SECONDS if self._spare else seconds)

    def _look(self) -> None:
        """Close the connection if a deadline has passed. Runs every `TICK_SECONDS`."""
        now = self.loop.time()
        self._tick = self.loop.call_later(TICK_SECONDS, self._look)
        if not self.transport.get_write_buffer_size():
            self._answer_deadline = None
        elif self._answer_deadline is None:
            self._answer_deadline = now + ANSWER_SECONDS
        if now > (self._answer_deadline or now):
            self._metrics.rejections.labels("slow_reader").inc()
            self.transport.abort()
        elif now > (self._head_deadline or now) and not self.pipeline:
            self._end_head()

    def _end_head(self) -> None:
        if self._refused or self._silent:
            self.transport.close()
        else:
            self._refuse(*HEAD_TIMEOUT)


class _Gathered:
    """A transport that joins the writes of one turn of the event loop.

    uvicorn writes the head of an answer and then its body. If the process is killed between the two, a proxy has
    already forwarded the head and cannot retry the request on another replica.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._written = bytearray()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send at the end of this turn, or at once if much has been written."""
        if not self._written:
            self._loop.call_soon(self._send)
        self._written += data
        if len(self._written) > MAX_GATHERED_BYTES:
            self._send()

    def write_eof(self) -> None:
        """Send, and end the stream."""
        self._send()
        self._transport.write_eof()

    def close(self) -> None:
        """Send, then close."""
        self._send()
        self._transport.close()

    def _send(self) -> None:
        if self._written and not self._transport.is_closing():
            self._transport.write(bytes(self._written))
        self._written.clear()


def _response(status: int, kind: str, message: str, default_headers: Mapping[bytes, bytes]) -> bytes:
    response = error_response(uuid.uuid4().hex, status, kind, message, {"Connection": "close"})
    headers = [*default_headers.items(), *response.raw_headers]
    lines = b"".join(b"%b: %b\r\n" % header for header in headers)
    return STATUS_LINE[status] + lines + b"\r\n" + bytes(response.body)


class _OnlyHealth:
    """The application on a spare connection: health checks only."""

    def __init__(self, app: ASGIApp, max_connections: int, metrics: Metrics) -> None:
        self._app = app
        self._message = f"All {max_connections} connections are taken (RERANKER_MAX_CONNECTIONS)"
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if clean_path(scope["path"]).endswith(tuple(HEALTH_PATHS)):
            await self._app(scope, receive, send)
            return
        self._metrics.rejections.labels("connections").inc()
        await discard(scope, receive)
        headers = {"Retry-After": "1", "Connection": "close"}
        await error_response(uuid.uuid4().hex, 503, "connections", self._message, headers)(scope, receive, send)
