"""Rows of several pairs: a decoder reads the first tokens that the pairs of a request share only once.

A row holds this prefix and then the rest of each pair. The positions of each rest follow the prefix. A token sees the
prefix and its own segment, as far as they are before it, so each pair has the score that it has alone.
"""

import heapq
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from app.engines.padding import Int64s, bucket_length
from app.types import Pair

INPUTS = ("input_ids", "position_ids", "segment_ids")
PADDING, PREFIX, FIRST = 0, 1, 2
# Tokens of a shared row, at most. Attention computes every two tokens of a row, also those that do not see each other:
# longer rows cost more than their prefixes save.
ROW_TOKENS = 768
# A row must compute fewer tokens than its pairs alone, by this share. Few long documents gain nothing.
LEAST_SAVED = 0.1


class Laid(NamedTuple):
    """Rows of pairs as the inputs of a model that gives a logit for each token."""

    arrays: dict[str, Int64s]
    """Each of shape (rows, width)."""
    ends: Int64s
    """Where the last token of each pair is in the flat output, in the order of the pairs."""


def lay_out(rows: Sequence[Sequence[Pair]], pad_token_id: int, width: int | None = None) -> Laid:
    """All pairs of a row must share their prefix. The default width is that of the longest row."""
    lengths = [row_length(row) for row in rows]
    shape = len(rows), width or max(lengths)
    ids = np.full(shape, pad_token_id, np.int64)
    positions, segments = np.zeros(shape, np.int64), np.full(shape, PADDING, np.int64)
    ends: list[int] = []
    for index, row in enumerate(rows):
        start = _shared(row)
        ids[index, :start], segments[index, :start] = row[0].ids[:start], PREFIX
        at = start
        for segment, pair in enumerate(row, FIRST):
            span = slice(at, at := at + pair.length - start)
            ids[index, span], segments[index, span] = pair.ids[start:], segment
            positions[index, span] = np.arange(start, pair.length)
            ends.append(index * shape[1] + at - 1)
        positions[index, :start] = np.arange(start)
    return Laid(dict(zip(INPUTS, (ids, positions, segments), strict=True)), np.array(ends, np.int64))


def row_length(row: Sequence[Pair]) -> int:
    """Tokens of a row without padding."""
    start = _shared(row)
    return start + sum(pair.length - start for pair in row)


def divided(row: Sequence[Pair], width: int) -> list[int]:
    """The tokens of a shared row of this width, by pair: its own ones, and an equal part of the prefix and padding."""
    start = _shared(row)
    common = width - sum(pair.length - start for pair in row)
    each, left = divmod(common, len(row))
    return [pair.length - start + each + (number < left) for number, pair in enumerate(row)]


def shared_rows(pairs: Sequence[Pair], streams: int) -> list[list[int]]:
    """The rows of pairs that share a prefix, as indices of the pairs. Pairs that gain nothing are in none.

    There are as many rows for each of the `streams`, so that none of them waits for another.
    """
    together: dict[int, list[int]] = defaultdict(list)
    for index, pair in enumerate(pairs):
        # A pair that ends with its prefix has no further token to give its logit.
        if pair.prefix is not None and len(pair.prefix) < pair.length:
            together[id(pair.prefix)].append(index)
    groups = [indices for indices in together.values() if len(indices) > 1]
    return [row for indices in groups for row in _filled(pairs, indices, streams) if _saves(pairs, row)]


def _filled(pairs: Sequence[Pair], indices: Sequence[int], streams: int) -> list[list[int]]:
    """The fewest rows for each stream that hold the pairs."""
    start = len(pairs[indices[0]].prefix)  # type: ignore[arg-type]
    room = ROW_TOKENS - start
    rests = {index: pairs[index].length - start for index in indices}
    shortest = min(rests.values())
    fitting = {index: rest for index, rest in rests.items() if rest + shortest <= room}
    if not fitting:
        return []
    rounds = max(1, -(-sum(fitting.values()) // (room * streams)))
    while (rows := _even_rows(fitting, rounds * streams, room)) is None:
        rounds += 1
    return rows


def _even_rows(rests: Mapping[int, int], count: int, room: int) -> list[list[int]] | None:
    """So many rows, of about the same length: each pair, the longest first, joins the shortest. None if one is full."""
    rows: list[tuple[int, int, list[int]]] = [(0, number, []) for number in range(count)]
    for index in sorted(rests, key=lambda index: -rests[index]):
        filled, number, row = rows[0]
        if filled + rests[index] > room:
            return None
        heapq.heapreplace(rows, (filled + rests[index], number, [*row, index]))
    return [row for _, _, row in rows]


def _saves(pairs: Sequence[Pair], row: Sequence[int]) -> bool:
    own = [pairs[index] for index in row]
    alone = sum(bucket_length(pair.length) for pair in own)
    return len(own) > 1 and bucket_length(row_length(own)) <= (1 - LEAST_SAVED) * alone


def _shared(row: Sequence[Pair]) -> int:
    """Tokens that are read once. None for a pair on its own."""
    prefix = row[0].prefix
    return len(prefix) if prefix is not None and len(row) > 1 else 0
