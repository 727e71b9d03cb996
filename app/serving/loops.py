"""The loops that run while an engine serves."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import Executor
from typing import Any

from app.serving.model import Model
from app.serving.reranker import Reranker


class Unused(Exception):
    """Nobody uses the model."""


async def run_until_broken(*loops: Coroutine[Any, Any, None]) -> None:
    """Run the loops together, until one fails or the model is unused.

    Raises the plain error, without the exception groups of the task group.
    """
    broken: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            for loop in loops:
                group.create_task(loop)
    except* Unused:
        pass
    except* Exception as errors:
        broken = errors
    while isinstance(broken, BaseExceptionGroup):
        broken = broken.exceptions[0]
    if broken is not None:
        raise broken


async def until_unused(model: Model, seconds: float) -> None:
    """Raise `Unused` when the model has been unused for `seconds`. From then on, requests wait until it is loaded."""
    while (left := model.seconds_until_idle(seconds)) > 0:  # noqa: ASYNC110 (a request ends without an event)
        await asyncio.sleep(left)
    model.mark_unloaded()
    raise Unused


async def clear_memory_regularly(reranker: Reranker, inference: Executor, interval: float) -> None:
    """Drop expired scores and the accelerator's unused blocks every `interval` seconds."""
    while True:
        await asyncio.sleep(interval)
        reranker.cache.sweep()
        await asyncio.get_running_loop().run_in_executor(inference, reranker.engine.clear_memory)
