"""Errors of the engines' libraries that mean out of memory."""

import pytest

from app.engines.memory import out_of_memory
from app.errors import EngineBroken, OutOfMemory


class LibraryError(Exception):
    pass


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("bad_alloc: 4 GB"), LibraryError("the card is full")], ids=repr
)
def test_a_failed_allocation_is_out_of_memory(error: Exception) -> None:
    with pytest.raises(OutOfMemory) as raised, out_of_memory(["alloc"], LibraryError):
        raise error
    assert raised.value.__cause__ is error


@pytest.mark.parametrize("error", [RuntimeError("wrong shape"), EngineBroken("bad_alloc")], ids=repr)
def test_other_errors_stay_as_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, out_of_memory(["alloc"]):
        raise error
    assert raised.value is error
