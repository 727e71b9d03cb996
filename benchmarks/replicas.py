"""Replicas in this process, with the service's own caches and without a model: scoring a document is a wait."""

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from app.serving.cache import ScoreCache
from app.serving.shared_cache import SharedCache
from app.types import Score

SECONDS_PER_DOCUMENT = 0.001
HOUR = 3600.0
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


class Replica:
    """Counts its requests, their documents, and the scores that it knew. Scores one request at a time."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._engine = asyncio.Lock()
        self.clear(1, "", None)

    def clear(self, entries: int, name: str, shared: SharedCache | None) -> None:
        """Start with empty caches. `name`: its scores in Redis are used by runs of this name only."""
        self.counts.clear()
        self._cache, self._shared = ScoreCache(name, entries, HOUR), shared

    async def rank(self, query: str, documents: Sequence[str]) -> None:
        keys = self._cache.keys([(query, document) for document in documents])
        known = self._cache.find(keys)
        if self._shared and (missing := [key for key in keys if key not in known]):
            found = await self._shared.get(missing)
            self._cache.remember(found)
            known |= found
        if missing := [key for key in keys if key not in known]:
            async with self._engine:
                await asyncio.sleep(SECONDS_PER_DOCUMENT * len(missing))
            scores = {key: Score(0.0, 1, truncated=False) for key in missing}
            self._cache.remember(scores)
            if self._shared:
                self._shared.put(scores)
        self.counts.update(requests=1, documents=len(documents), known=len(known))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection: rankings, and health checks without a body."""
        try:
            while True:
                if body := (await read_message(reader))[1]:
                    request = json.loads(body)
                    await self.rank(request["query"], request["documents"])
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


async def read_message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """The first line and the body of a request or a response."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = LENGTH.search(head)
    return head.partition(b"\r\n")[0], await reader.readexactly(int(length[1]) if length else 0)


@asynccontextmanager
async def replicas(count: int, port: int) -> AsyncIterator[dict[str, Replica]]:
    """Replicas that serve at different addresses of the loopback."""
    found = {f"127.0.0.{number}": Replica() for number in range(2, 2 + count)}
    async with AsyncExitStack() as stack:
        for address, replica in found.items():
            await stack.enter_async_context(await asyncio.start_server(replica.serve, address, port))
        yield found
