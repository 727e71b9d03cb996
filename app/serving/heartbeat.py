"""Whether the engine still works, found out with a tiny pair when its own batches do not tell."""

import asyncio
from typing import NoReturn

from app.errors import EngineBroken, RerankerError
from app.serving.batcher import Batcher
from app.types import Pair

BEAT_SECONDS = 1.0
# An engine that has scored nothing for this long is asked whether it still can.
SILENCE_SECONDS = 30.0
# After so many failures in a row it is the engine that is suspected, and no longer the batches.
SUSPICIOUS_FAILURES = 3


async def watch(batcher: Batcher, probe: Pair) -> NoReturn:
    """Have `probe` scored whenever the engine has been silent or fails. Raises `EngineBroken` when that fails too."""
    while True:
        await asyncio.sleep(BEAT_SECONDS)
        if batcher.failures >= SUSPICIOUS_FAILURES or batcher.silence >= SILENCE_SECONDS:
            await _ask(batcher, probe)


async def _ask(batcher: Batcher, probe: Pair) -> None:
    try:
        await batcher.submit([probe])[0]
    except RerankerError as error:
        raise EngineBroken(f"The engine fails: {error}", batcher.scored) from None
