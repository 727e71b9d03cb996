"""Thread pools."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from typing import TypeVar, TypeVarTuple

from app.errors import Unavailable

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")


def start_threads(count: int, name: str) -> ThreadPoolExecutor:
    """An executor with all threads already running.

    A thread that is started later can fail for lack of memory, and its work is then lost without an error.
    """
    executor = ThreadPoolExecutor(count, name)
    together = Barrier(count)
    for started in [executor.submit(together.wait) for _ in range(count)]:
        started.result()
    return executor


@contextmanager
def running_threads(count: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """Threads that the end of the block does not wait for: a hanging load or inference must not delay the exit."""
    executor = start_threads(count, name)
    try:
        yield executor
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


async def on_thread(threads: Executor, work: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
    """Run this on a thread. Raises `Unavailable` if the threads are stopped before it begins."""
    task = asyncio.current_task()
    try:
        return await asyncio.get_running_loop().run_in_executor(threads, work, *arguments)
    except asyncio.CancelledError:
        if task and task.cancelling():
            raise
    except RuntimeError as error:
        if "after shutdown" not in str(error):
            raise
    raise Unavailable("The service stopped before this request was processed")
