"""Scores that replicas share, in Redis. What goes wrong here costs a score, never an answer."""

import asyncio
import logging
import math
import struct
import time
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from typing import TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import RedisError

from app.errors import StartupError
from app.telemetry.metrics import Metrics
from app.types import Score

log = logging.getLogger(__name__)

PREFIX = b"reranker:"
# Logit, tokens, truncated.
FORM = struct.Struct("<fI?")
# What a request may wait for Redis, what the start may, where its name is looked up and a first connection made, and
# for how long nobody asks a Redis that did not answer.
SECONDS = 0.1
CONNECT_SECONDS = 1.0
REST_SECONDS = 5.0
CONNECTIONS = 16
# Keys asked for or written at a time, so that each answer comes in time.
PART = 500

Answer = TypeVar("Answer")


class SharedCache:
    """Owns the connections and the writes under way. Nothing raises. Used on the event loop only."""

    def __init__(self, url: str, ttl: float, metrics: Metrics) -> None:
        """`url` is `redis://`, `rediss://` or `unix://`; `ttl` in seconds. Raises `StartupError` for another."""
        try:
            pool = BlockingConnectionPool.from_url(
                url,
                max_connections=CONNECTIONS,
                timeout=SECONDS,
                socket_connect_timeout=CONNECT_SECONDS,
                socket_timeout=SECONDS,
            )
        except ValueError:  # its text may have a part of the password
            raise StartupError(
                "RERANKER_CACHE_URL is not valid: it must be redis://, rediss:// or unix://, special characters of "
                "the password percent-encoded"
            ) from None
        self._redis = Redis.from_pool(pool)
        self._writes: set[asyncio.Task[None]] = set()
        self._ttl_ms = max(1, round(ttl * 1000))
        self._metrics = metrics
        self._resting_until = 0.0
        self._answered = True

    async def connect(self) -> None:
        """Have a connection before the first request needs it; says so in the log when there is none to be had."""
        await self._ask(self._redis.ping(), CONNECT_SECONDS)

    async def get(self, keys: Sequence[bytes]) -> dict[bytes, Score]:
        """Those of the scores that are there."""
        scores: dict[bytes, Score] = {}
        for part in _parts(keys):
            found = await self._ask(self._redis.mget([PREFIX + key for key in part])) if self._awake else None
            if found is None:
                break
            known = {key: score for key, value in zip(part, found, strict=True) if (score := _read(value))}
            self._metrics.shared_lookups.labels("hit").inc(len(known))
            self._metrics.shared_lookups.labels("miss").inc(len(part) - len(known))
            scores |= known
        return scores

    def put(self, scores: Mapping[bytes, Score]) -> None:
        """Let the other replicas have these, soon: no answer waits for it."""
        writing = asyncio.create_task(self._write(scores), name="shared cache")
        self._writes.add(writing)
        writing.add_done_callback(self._writes.discard)

    async def _write(self, scores: Mapping[bytes, Score]) -> None:
        for part in _parts(list(scores)):
            if not self._awake:
                return
            writes = self._redis.pipeline(transaction=False)
            for key in part:
                writes.set(PREFIX + key, FORM.pack(*scores[key]), px=self._ttl_ms)
            await self._ask(writes.execute())

    async def close(self) -> None:
        """End the writes, which take a moment at most, and the connections."""
        await asyncio.gather(*self._writes)
        await self._redis.aclose()

    @property
    def _awake(self) -> bool:
        return time.monotonic() >= self._resting_until

    async def _ask(self, question: Awaitable[Answer], seconds: float | None = None) -> Answer | None:
        """The answer, or None when there is none in time; then Redis is left alone for a while."""
        try:
            async with asyncio.timeout(seconds or SECONDS):
                answer = await question
        except (RedisError, OSError, TimeoutError) as error:
            self._metrics.shared_failures.inc()
            self._resting_until = time.monotonic() + REST_SECONDS
            if self._answered:
                reason = str(error) or type(error).__name__
                log.warning("The shared cache does not answer, going on without it: %s", reason)
            self._answered = False
            return None
        if not self._answered:
            log.info("The shared cache answers again")
        self._answered = True
        return answer


def _parts(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(keys), PART):
        yield keys[start : start + PART]


def _read(value: object) -> Score | None:
    """A score as it was written; None for one that is not there, or that something else wrote."""
    if not isinstance(value, bytes) or len(value) != FORM.size:
        return None
    score = Score(*FORM.unpack(value))
    return score if math.isfinite(score.logit) else None
