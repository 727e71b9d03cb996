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

# Larger bodies are parsed one at a time, and the event loop serves others in between.
SMALL_BYTES = 65_536


class JsonRoute(APIRoute):
    """A route whose body is JSON, parsed without holding up the event loop for longer than one body takes."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        """FastAPI's own, over a request that parses its body here."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            encoding = request.headers.get("content-encoding", "identity")
            if encoding.strip().lower() not in ("", "identity"):
                raise UnsupportedMedia(f"Content-Encoding: a body must not be compressed, got {encoding!r}")
            return await handler(_JsonRequest(request.scope, request.receive))

        return handle


class _JsonRequest(Request):
    async def json(self) -> Any:
        content = await self.body()
        if len(content) <= SMALL_BYTES:
            return _parse(content)
        async with service_of(self.app).bodies.turn:
            await asyncio.sleep(0)
            return _parse(content)


def _parse(content: bytes) -> Any:
    """The value. Raises `JSONDecodeError`, also for what Python cannot take of JSON that is otherwise right."""
    try:
        with garbage.paused():
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
