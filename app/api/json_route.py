"""Routes with a JSON body: parsing that keeps the event loop responsive."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from app.api.service import service_of
from app.errors import UnsupportedMedia
from app.machine import garbage
from app.telemetry.record import ErrorBodyOf, record_of

# Larger bodies are parsed one at a time, and the event loop serves others in between.
SMALL_BYTES = 65_536


def as_json(request: Request) -> Request:
    """The same request with the type that its client has left out."""
    headers = [*request.scope["headers"], (b"content-type", b"application/json")]
    return Request({**request.scope, "headers": headers}, request.receive)


class JsonRoute(APIRoute):
    """A route with a JSON body. A dialect with another error format overrides `error_body`."""

    def error_body(self, content: Any) -> ErrorBodyOf | None:  # noqa: ARG002 (for dialects that look at it)
        """How errors of a request with this parsed body are written; None for the service's own format.

        The body is None before it is parsed.
        """
        return None

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        """FastAPI's handler with our parser."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            record_of(request.scope).error_body = self.error_body(None)
            encoding = request.headers.get("content-encoding", "identity")
            if encoding.strip().lower() not in ("", "identity"):
                raise UnsupportedMedia(f"Content-Encoding: a body must not be compressed, got {encoding!r}")
            return await handler(_JsonRequest(self, request))

        return handle


class _JsonRequest(Request):
    def __init__(self, route: JsonRoute, request: Request) -> None:
        super().__init__(request.scope, request.receive)
        self._route = route

    async def json(self) -> Any:
        content = await self._parsed()
        record_of(self.scope).error_body = self._route.error_body(content)
        return content

    async def _parsed(self) -> Any:
        content = await self.body()
        if len(content) <= SMALL_BYTES:
            return _parse(content)
        async with service_of(self.app).bodies.turn:
            await asyncio.sleep(0)
            return _parse(content)


def _parse(content: bytes) -> Any:
    with garbage.paused():
        return parse_json(content)


def parse_json(content: bytes) -> Any:
    """The parsed value. Raises `JSONDecodeError`, also for valid JSON that Python cannot represent."""
    try:
        return json.loads(content)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        problem = "nested too deeply"
    except UnicodeDecodeError:
        problem = "not UTF-8"
    except ValueError:
        problem = "a number has too many digits"
    raise json.JSONDecodeError(problem, "", 0)
