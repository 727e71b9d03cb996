"""Checks with a tiny pair whether the engine still works, when recent batches do not show it."""

import asyncio
from typing import NoReturn

from app.errors import EngineBroken, RerankerError
from app.serving.batcher import Batcher
from app.types import Pair

BEAT_SECONDS = 1.0
# An engine that has scored nothing for this long is checked.
SILENCE_SECONDS = 30.0
# After this many consecutive failures, the engine is suspected rather than the batches.
SUSPICIOUS_FAILURES = 3


async def watch(batcher: Batcher, probe: Pair) -> NoReturn:
    """Score `probe` whenever the engine has been silent or batches fail. Raises `EngineBroken` if that fails too."""
    while True:
        await asyncio.sleep(BEAT_SECONDS)
        if batcher.failures >= SUSPICIOUS_FAILURES or batcher.silence >= SILENCE_SECONDS:
            await _ask(batcher, probe)


async def _ask(batcher: Batcher, probe: Pair) -> None:
    try:
        await batcher.submit([probe])[0]
    except RerankerError as error:
        raise EngineBroken(f"The engine fails: {error}", batcher.scored) from None
