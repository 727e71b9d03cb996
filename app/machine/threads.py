"""Threads that are there from the start."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier


def start_threads(count: int, name: str) -> ThreadPoolExecutor:
    """An executor all of whose threads run.

    One that is started later, and cannot be for want of memory, leaves its work undone without an error.
    """
    executor = ThreadPoolExecutor(count, name)
    together = Barrier(count)
    for started in [executor.submit(together.wait) for _ in range(count)]:
        started.result()
    return executor
