"""Rate limits per API key: parallel requests, and requests per minute."""

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from app.errors import RateLimited

if TYPE_CHECKING:
    from throttled import Throttled


class Quota:
    """Owns the number of running requests and the rate limiter of each caller. None means no limit."""

    def __init__(self, max_parallel: int | None = None, per_minute: int | None = None, burst: int = 1) -> None:
        self._max_parallel = max_parallel
        self._per_minute = per_minute
        self._in_work: Counter[str] = Counter()
        self._bucket = None if per_minute is None else _bucket(per_minute, burst)

    @contextmanager
    def share(self, caller: str) -> Iterator[None]:
        """Count a request of `caller` while the block runs. Raises `RateLimited`."""
        if self._max_parallel is not None and self._in_work[caller] >= self._max_parallel:
            raise RateLimited(f"At most {self._max_parallel} requests of one key at a time (RERANKER_KEY_MAX_PARALLEL)")
        if self._bucket is not None and (state := self._bucket.limit(caller)).limited:
            raise RateLimited(
                f"At most {self._per_minute} requests of one key a minute (RERANKER_KEY_REQUESTS_PER_MINUTE)",
                max(1, math.ceil(state.state.retry_after)),
            )
        self._in_work[caller] += 1
        try:
            yield
        finally:
            self._in_work[caller] -= 1
            if not self._in_work[caller]:
                del self._in_work[caller]


def _bucket(per_minute: int, burst: int) -> "Throttled":
    """The generic cell rate algorithm: a token bucket that refills continuously."""
    # It imports redis, a tenth of the time that this service takes to import.
    from throttled import RateLimiterType, Throttled, rate_limiter, store

    quota = rate_limiter.per_min(per_minute, burst=burst)
    return Throttled(using=RateLimiterType.GCRA.value, quota=quota, store=store.MemoryStore())
