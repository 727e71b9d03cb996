"""A body of lines, JSON each, that is read in batches while it arrives."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from typing import NamedTuple

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Scope

from app.api.body import Body
from app.api.paths import route_path
from app.errors import BodyTimeout

DOCUMENTS_PATH = "/v1/documents"
LINE_TYPES = ("application/x-ndjson", "application/jsonl", "application/x-jsonlines")
# A batch ends with the line that reaches one of these.
BATCH_LINES, BATCH_BYTES = 256, 1_048_576


class Line(NamedTuple):
    """A line with its number, from 1. `content` is None if it is too long."""

    number: int
    content: bytes | None


def is_for_documents(scope: Scope) -> bool:
    """Whether a request is for the stored documents."""
    path = route_path(scope)
    return path == DOCUMENTS_PATH or path.startswith(f"{DOCUMENTS_PATH}/")


def is_stream(scope: Scope) -> bool:
    """Whether the body is to be read while it arrives."""
    media_type = Headers(scope=scope).get("content-type", "").split(";")[0].strip().lower()
    return scope["method"] == "PUT" and is_for_documents(scope) and media_type in LINE_TYPES


async def batches(request: Request, body: Body, most: int, seconds: float) -> AsyncGenerator[list[Line]]:
    """The lines of the body that are not empty. `most`: bytes of a line. `seconds`: for each line to arrive.

    Raises `BodyTimeout`, `BufferFull`, or `ClientDisconnect` if the body ends too early.
    """
    stream, lines, batch = request.stream(), _Lines(most), list[Line]()
    now = asyncio.get_running_loop().time
    deadline = now() + seconds
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                chunk = await anext(stream, None)
        except TimeoutError:
            raise BodyTimeout(
                f"body: line {lines.number + 1} did not arrive within {seconds:g} s (RERANKER_BODY_TIMEOUT)"
            ) from None
        for line in lines.feed(chunk) if chunk is not None else lines.end():
            batch.append(line)
            deadline = now() + seconds
        size = sum(len(line.content or b"") for line in batch)
        body.hold(size + lines.held)
        if batch and (chunk is None or len(batch) >= BATCH_LINES or size >= BATCH_BYTES):
            yield batch
            batch, deadline = [], now() + seconds
        if chunk is None:
            return


class _Lines:
    """Splits chunks into lines. Holds the unfinished line."""

    def __init__(self, most: int) -> None:
        self.number = 0
        self._most = most
        self._line = bytearray()
        self._too_long = False

    @property
    def held(self) -> int:
        return len(self._line)

    def feed(self, chunk: bytes) -> Iterator[Line]:
        """The lines that this chunk completes, without empty ones."""
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            self._append(end)
            yield from self.end()
        self._append(rest)

    def end(self) -> Iterator[Line]:
        """End the line. There is none to return if it is empty."""
        self.number += 1
        content = None if self._too_long else bytes(self._line).strip()
        self._line.clear()
        self._too_long = False
        if content != b"":
            yield Line(self.number, content)

    def _append(self, part: bytes) -> None:
        self._too_long = self._too_long or len(self._line) + len(part) > self._most
        if self._too_long:
            self._line.clear()
        else:
            self._line += part
