"""Memory: the errors of the engines' libraries, translated to `OutOfMemory`, and what to return after an unload."""

import ctypes
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from app.errors import OutOfMemory, RerankerError


@contextmanager
def out_of_memory(phrases: Sequence[str], *types: type[Exception]) -> Iterator[None]:
    """Raises `OutOfMemory` for a `MemoryError`, one of the types, and an error with one of the phrases in its message.

    Most libraries report a failed allocation as a general error, so an engine passes the phrases that its library uses.
    """
    try:
        yield
    except RerankerError:
        raise  # already translated
    except Exception as error:
        if isinstance(error, (MemoryError, *types)) or any(phrase in str(error) for phrase in phrases):
            raise OutOfMemory("The batch does not fit in memory") from error
        raise


def give_back() -> None:
    """Return memory that nothing uses any more to the device and to the system."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):  # only glibc has this
        ctypes.CDLL(None).malloc_trim(0)
