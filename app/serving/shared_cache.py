"""Scores that replicas share in Redis. A failure here costs cached scores, never an answer."""

import asyncio
import logging
import math
import struct
import time
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from typing import TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from app.errors import StartupError
from app.telemetry.metrics import Metrics
from app.types import Score

log = logging.getLogger(__name__)

PREFIX = b"reranker:"
# The stored value: logit, tokens, truncated.
FORM = struct.Struct("<fI?")
# How long a request may wait for Redis.
SECONDS = 0.1
# How long the first connection may take, including the lookup of the host name.
CONNECT_SECONDS = 1.0
# How long Redis is left alone after it did not answer.
REST_SECONDS = 5.0
CONNECTIONS = 16
# Keys per command: few enough that Redis answers within `SECONDS`.
PART = 500

Answer = TypeVar("Answer")


class SharedCache:
    """Owns the connections and the pending writes. Its methods never raise. Used on the event loop only."""

    def __init__(self, url: str, ttl: float, metrics: Metrics) -> None:
        """`ttl` is in seconds. Raises `StartupError` unless `url` is a `redis://`, `rediss://` or `unix://` URL."""
        try:
            pool = BlockingConnectionPool.from_url(
                url,
                max_connections=CONNECTIONS,
                timeout=SECONDS,
                socket_connect_timeout=CONNECT_SECONDS,
                socket_timeout=SECONDS,
            )
        except ValueError:  # its text may contain a part of the password
            raise StartupError(
                "RERANKER_CACHE_URL is not valid: use redis://, rediss:// or unix://, and percent-encode special "
                "characters in the password"
            ) from None
        self._redis = Redis.from_pool(pool)
        self._writes: set[asyncio.Task[None]] = set()
        self._ttl_ms = max(1, round(ttl * 1000))
        self._metrics = metrics
        self._resting_until = 0.0
        self._answered = True

    async def connect(self) -> None:
        """Connect before the first request needs it. Logs a warning if Redis does not answer."""
        await self._ask(self._redis.ping(), CONNECT_SECONDS)

    async def get(self, keys: Sequence[bytes]) -> dict[bytes, Score]:
        """The scores that Redis has, by key."""
        scores: dict[bytes, Score] = {}
        until = time.monotonic() + SECONDS
        for part in _parts(keys):
            is_in_time = self._awake and time.monotonic() < until
            found = await self._ask(self._redis.mget([PREFIX + key for key in part])) if is_in_time else None
            if found is None:
                break
            known = {key: score for key, value in zip(part, found, strict=True) if (score := _read(value))}
            self._metrics.shared_lookups.labels("hit").inc(len(known))
            self._metrics.shared_lookups.labels("miss").inc(len(part) - len(known))
            scores |= known
        return scores

    def put(self, scores: Mapping[bytes, Score]) -> None:
        """Share these scores in the background, without delaying the answer."""
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
        """Finish the pending writes, then close the connections."""
        await asyncio.gather(*self._writes)
        await self._redis.aclose()

    @property
    def _awake(self) -> bool:
        return time.monotonic() >= self._resting_until

    async def _ask(self, question: Awaitable[Answer], seconds: float | None = None) -> Answer | None:
        """The answer, or None if it fails or is late. After a failure, Redis is left alone for `REST_SECONDS`."""
        started, limit = time.monotonic(), seconds or SECONDS
        try:
            async with asyncio.timeout(limit):
                answer = await question
        except (RedisError, OSError, TimeoutError) as error:
            if isinstance(error, TimeoutError | RedisTimeoutError) and time.monotonic() - started > 2 * limit:
                return None  # this process was busy, so the answer may have been there in time
            self._metrics.shared_failures.inc()
            self._resting_until = time.monotonic() + REST_SECONDS
            if self._answered:
                reason = str(error) or type(error).__name__
                log.warning("The shared cache does not answer, continuing without it: %s", reason)
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
    """The stored score; None if there is none or the value has another format."""
    if not isinstance(value, bytes) or len(value) != FORM.size:
        return None
    score = Score(*FORM.unpack(value))
    return score if math.isfinite(score.logit) else None
