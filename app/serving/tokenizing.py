"""Passages as the tokenizer takes them: neighbours with the same query in one call."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import attrgetter

from app.engines.protocol import Engine
from app.types import Pair, Passage, Span


def encode_passages(
    engine: Engine, passages: Sequence[Passage], limit: int | None, instruction: str | None
) -> list[Pair]:
    """One pair for each passage. `limit` is in tokens of the document."""
    return [pair for query, texts in _by_query(passages) for pair in engine.encode(query, texts, limit, instruction)]


def find_windows(
    engine: Engine, passages: Sequence[Passage], limit: int | None, instruction: str | None
) -> list[list[Span]]:
    """The windows of each passage. `limit` is in tokens of the document."""
    return [spans for query, texts in _by_query(passages) for spans in engine.windows(query, texts, limit, instruction)]


def _by_query(passages: Sequence[Passage]) -> Iterator[tuple[str, list[str]]]:
    for query, group in groupby(passages, attrgetter("query")):
        yield query, [passage.text for passage in group]
