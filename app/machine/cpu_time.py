"""CPU time of the engine, apart from that of the rest of the process."""

import sys
import threading
import time


class EngineClock:
    """CPU time of this process, without that of Python's threads.

    Engines compute on threads of their own libraries, and on the Python threads with the given name. Event loop,
    tokenizers and all else run on other Python threads. Only Linux has a clock for each thread: elsewhere the time is
    that of the whole process.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._seen: dict[int, int] = {}
        self._others = 0

    def read(self) -> int:
        """Nanoseconds."""
        if sys.platform == "linux":
            # A thread that ends takes its time with it, so differences are summed up.
            now = {thread: _time_of(thread) for thread in self._other_threads()}
            self._others += sum(max(0, spent - self._seen.get(thread, 0)) for thread, spent in now.items())
            self._seen = now
        return time.process_time_ns() - self._others

    def _other_threads(self) -> list[int]:
        threads = threading.enumerate()
        return [each.native_id for each in threads if each.native_id and not each.name.startswith(self._name)]


def _time_of(thread: int) -> int:
    """Nanoseconds of a thread of this process; 0 if it has ended.

    Linux has a clock for each thread, named by its id. `pthread_getcpuclockid` may crash if the thread has ended.
    """
    try:
        return time.clock_gettime_ns((~thread << 3) | 6)
    except OSError:
        return 0
