"""Reloads the engine in place when it breaks. If that does not help, the process ends."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from app.errors import EngineBroken
from app.machine.garbage import freeze_loaded_objects
from app.serving.batcher import Batcher
from app.serving.model import Model
from app.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

# The pause before the second reload in a row. Before the first it is this share of it, before later ones a multiple.
PAUSE_SECONDS, LEAST_PAUSE = 2.0, 0.05


class Supervisor:
    """Owns the count of consecutive reloads without a score."""

    def __init__(self, max_reloads: int, model: Model, metrics: Metrics) -> None:
        self._max_reloads = max_reloads
        self._model = model
        self._metrics = metrics
        self._reloads = 0
        # That of the last unexpected error: an engine that cannot even begin leaves it in place.
        self._last: Batcher | None = None

    async def run(self, engine: Callable[[], Awaitable[None]]) -> None:
        """Run `engine`, which loads an engine and serves until it breaks or nobody uses it. Repeat after each break.

        Raises `StartupError` if the first load fails, `EngineBroken` after too many reloads.
        """
        while True:
            try:
                await engine()
                self._reloads = 0
                return
            # Only the text of the error is kept: its traceback holds the broken engine.
            except EngineBroken as error:
                reason, has_scored = str(error), error.scored
            except Exception as error:
                if self._model.reranker is None:
                    raise
                # The first load succeeded, so this may have a passing cause: try again.
                batcher = self._model.reranker.batcher
                reason, has_scored = f"{type(error).__name__}: {error}.", batcher.scored and batcher is not self._last
                self._last = batcher
                log.exception("The engine was stopped by an unexpected error")
            if has_scored:
                self._reloads = 0
            await self._prepare_reload(reason)

    async def _prepare_reload(self, reason: str) -> None:
        self._model.lifecycle.reload()
        if self._reloads >= self._max_reloads:
            raise EngineBroken(f"{reason} {self._reloads} reloads did not help (RERANKER_MAX_RELOADS)")
        # The new engine may not fit into the memory next to the broken one. Requests that just failed still hold that.
        self._model.drop_engine()
        await asyncio.sleep(PAUSE_SECONDS * max(LEAST_PAUSE, self._reloads))
        freeze_loaded_objects()
        self._reloads += 1
        self._metrics.reloads.inc()
        self._model.reloads += 1
        reason_text = self._model.explain(reason)
        log.error("%s Reloading the engine (%d of %d)", reason_text, self._reloads, self._max_reloads)
