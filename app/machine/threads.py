"""Thread pools that start all their threads at once."""

from concurrent.futures import ThreadPoolExecutor
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
