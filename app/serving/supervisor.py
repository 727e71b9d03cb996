"""Reloads the engine in place when it breaks. If that does not help, the process ends."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from app.errors import EngineBroken
from app.serving.model import Model
from app.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

PAUSE_SECONDS = 2.0


class Supervisor:
    """Owns the count of consecutive reloads without a score."""

    def __init__(self, max_reloads: int, model: Model, metrics: Metrics) -> None:
        self._max_reloads = max_reloads
        self._model = model
        self._metrics = metrics
        self._reloads = 0

    async def run(self, engine: Callable[[], Awaitable[None]]) -> None:
        """Run `engine`, which loads an engine and serves until it breaks or nobody uses it. Repeat after each break.

        Raises `StartupError` if the first load fails, `EngineBroken` after too many reloads.
        """
        while True:
            try:
                await engine()
                self._reloads = 0
                return
            except EngineBroken as error:
                reason = error
                if error.scored:
                    self._reloads = 0
            except Exception as error:
                if not self._reloads:
                    raise
                # The first load succeeded, so a failed reload may have a passing cause: try again.
                reason = EngineBroken(f"{type(error).__name__}: {error}")
            await self._prepare_reload(reason)

    async def _prepare_reload(self, reason: EngineBroken) -> None:
        self._model.lifecycle.reload()
        if self._reloads >= self._max_reloads:
            raise EngineBroken(f"{reason} {self._reloads} reloads did not help (RERANKER_MAX_RELOADS)")
        # The broken engine may take a moment to release its memory.
        await asyncio.sleep(PAUSE_SECONDS * self._reloads)
        self._reloads += 1
        self._metrics.reloads.inc()
        self._model.reloads += 1
        reason_text = self._model.explain(str(reason))
        log.error("%s Reloading the engine (%d of %d)", reason_text, self._reloads, self._max_reloads)
