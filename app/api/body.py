"""Request bodies: limits on their size, on the memory of all of them, and on the time they take to arrive."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from starlette.datastructures import Headers
from starlette.types import Receive, Scope

from app.errors import BodyTimeout, BufferFull, TooLarge

# A rejected body is read and discarded for this long: some clients read the answer only after sending all of it.
DISCARD_SECONDS = 5.0
# Memory of a parsed body in addition to its texts: a comma ends a value, a bracket or brace opens a list or an object.
VALUE_BYTES, CONTAINER_BYTES = 64, 128
# ASCII: the bytes and the texts. A text with one other character takes up to four bytes per character.
ASCII_COPIES, UNICODE_COPIES = 2, 5


class Bodies:
    """Owns the number of bytes that the bodies of running requests use, parsed copies included."""

    def __init__(self, max_bytes: int, max_held: int, timeout: float) -> None:
        """`max_bytes`: limit of one body. `max_held`: limit of all together. `timeout`: seconds for one to arrive."""
        self.max_bytes = max_bytes
        self.max_held = max_held
        self.timeout = timeout
        self.held = 0
        self.turn = asyncio.Lock()
        """Held while a large body is parsed: parsing several in a row would block the event loop too long."""

    @contextmanager
    def hold(self) -> Iterator["Body"]:
        """Hold one body; its bytes count until the block ends."""
        body = Body(self)
        try:
            yield body
        finally:
            body.drop()


class Body:
    """One body, as it arrives."""

    def __init__(self, bodies: Bodies) -> None:
        self.held = 0
        self._bodies = bodies
        self._content = bytearray()
        self._more = True

    async def read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The complete body, or None if the client disconnected. Raises `TooLarge`, `BufferFull` or `BodyTimeout`."""
        headers = Headers(scope=scope)
        declared = headers.get("content-length", "")
        try:
            self._check_size(int(declared) if declared.isdigit() else 0)
            async with asyncio.timeout(self._bodies.timeout):
                if not await self._collect(receive):
                    return None
            content = bytes(self._content)
            self._content.clear()
            self._grow(parsed_bytes(content) - self.held)
        except TimeoutError:
            raise BodyTimeout(
                f"body: did not arrive within {self._bodies.timeout:g} s (RERANKER_BODY_TIMEOUT)"
            ) from None
        except (TooLarge, BufferFull):
            self.drop()
            if self._more:
                await discard(scope, receive)
            raise
        return content

    def hold(self, size: int) -> None:
        """Count `size` bytes for this request from now on. Raises `BufferFull`."""
        self._grow(size - self.held)

    def drop(self) -> None:
        """Release the memory of the body."""
        self._bodies.held -= self.held
        self.held = 0
        self._content.clear()

    async def _collect(self, receive: Receive) -> bool:
        """Read the body. Returns False if the client disconnected."""
        while self._more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return False
            self._more = message.get("more_body", False)
            chunk = message.get("body", b"")
            self._check_size(len(self._content) + len(chunk))
            self._grow(len(chunk))
            self._content += chunk
        return True

    def _check_size(self, size: int) -> None:
        if size > self._bodies.max_bytes:
            raise TooLarge(
                f"body: at most {self._bodies.max_bytes} bytes are accepted (RERANKER_MAX_BODY_BYTES), got {size}"
            )

    def _grow(self, size: int) -> None:
        """Count `size` more bytes. A single body always fits if no other one is held."""
        bodies = self._bodies
        if bodies.held > self.held and bodies.held + size > bodies.max_held:
            raise BufferFull(
                f"The bodies of running requests use {bodies.held} of {bodies.max_held} bytes "
                "(RERANKER_MAX_BUFFERED_BYTES)"
            )
        self.held += size
        bodies.held += size


def parsed_bytes(content: bytes) -> int:
    """Estimated memory of a body and of everything parsed from it, in bytes."""
    ascii_only = content.isascii() and b"\\u" not in content
    containers = content.count(b"[") + content.count(b"{")
    texts = len(content) * (ASCII_COPIES if ascii_only else UNICODE_COPIES)
    return texts + VALUE_BYTES * content.count(b",") + CONTAINER_BYTES * containers


async def discard(scope: Scope, receive: Receive) -> None:
    """Read and discard the rest of the body for a limited time."""
    if "expect" in Headers(scope=scope):
        return  # the client waits for permission before it sends
    with suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_SECONDS):
            while (await receive()).get("more_body", False):
                pass
