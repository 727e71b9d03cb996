"""Requests of a given size, made from the words of the texts that ship with the project."""

import random
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from app.export.own_texts import own_entries

QUERY_WORDS = 8


class Size(NamedTuple):
    """The size of a request."""

    documents: int
    words: int
    """Words of each document."""


class Request(NamedTuple):
    query: str
    documents: list[str]


@cache
def _words() -> list[str]:
    return [word for _, passage in own_entries() for word in passage.split()]


def make_requests(size: Size, seed: int) -> Iterator[Request]:
    """Requests without end that share no pair, so that no cache knows their scores."""
    chosen = random.Random(seed)  # noqa: S311 (texts, not secrets)

    def text(count: int) -> str:
        return " ".join(chosen.choices(_words(), k=count))

    while True:
        yield Request(text(QUERY_WORDS), [text(size.words) for _ in range(size.documents)])
