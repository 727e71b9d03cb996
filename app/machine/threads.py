"""Thread pools."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier


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
