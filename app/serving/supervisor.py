"""The life of the engine: when it breaks it is loaded again in place, and when that does not help the process ends."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from app.errors import EngineBroken
from app.serving.lifecycle import Lifecycle
from app.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

PAUSE_SECONDS = 2.0


class Supervisor:
    """Owns the count of reloads in a row that gave no score."""

    def __init__(self, max_reloads: int, lifecycle: Lifecycle, metrics: Metrics) -> None:
        self._max_reloads = max_reloads
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._reloads = 0

    async def run(self, engine: Callable[[], Awaitable[None]]) -> None:
        """Run `engine`, which loads one and serves with it until it breaks, and again.

        Raises `StartupError` when the first load fails, `EngineBroken` after too many reloads.
        """
        while True:
            try:
                await engine()
                return
            except EngineBroken as error:
                reason = error
                if error.scored:
                    self._reloads = 0
            except Exception as error:
                if not self._reloads:
                    raise
                # The first load succeeded: whatever it is, what it lacked now may be there next time.
                reason = EngineBroken(f"{type(error).__name__}: {error}")
            await self._prepare_reload(reason)

    async def _prepare_reload(self, reason: EngineBroken) -> None:
        self._lifecycle.reload()
        if self._reloads >= self._max_reloads:
            raise EngineBroken(f"{reason} Loaded again {self._reloads} times in vain (RERANKER_MAX_RELOADS)")
        # Memory that the broken one holds may need a moment to come free.
        await asyncio.sleep(PAUSE_SECONDS * self._reloads)
        self._reloads += 1
        self._metrics.reloads.inc()
        log.error("%s Loading the engine again (%d of %d)", reason, self._reloads, self._max_reloads)
