"""The garbage collector."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


def freeze_loaded_objects() -> None:
    """Exclude all living objects from collection: scanning a loaded model again and again costs time."""
    gc.unfreeze()  # so that a replaced engine can be collected
    gc.collect()
    gc.freeze()


@contextmanager
def paused() -> Iterator[None]:
    """Pause collections: during the parsing of a large body they find nothing and take most of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
