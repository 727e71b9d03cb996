"""Pairs padded to arrays, the shapes of such batches, and the activations of logits."""

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from app.types import Pair

# Engines keep compiled code for each shape, so pairs are padded to few lengths: steps of 16 tokens up to 128, of 32 up
# to 512, then of an eighth of the last power of two.
STEPS = ((128, 16), (512, 32))
# Widths at which kernels switch from one algorithm to another.
CORNER_WIDTHS = (16, 32, 48, 64, 96, 128, 256, 512, 576, 1152)
MOST_ROWS = 8

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


class Shape(NamedTuple):
    """The shape of a padded batch."""

    rows: int
    width: int


def pad(pairs: Sequence[Pair], pad_token_id: int, width: int | None = None, left: bool = False) -> dict[str, Int64s]:
    """`input_ids`, `attention_mask` and `token_type_ids`, each of shape (pairs, width).

    The default width is the length of the longest pair.
    """
    shape = len(pairs), width or max(pair.length for pair in pairs)
    ids = np.full(shape, pad_token_id, np.int64)
    mask, types = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for row, pair in enumerate(pairs):
        span = slice(shape[1] - pair.length, None) if left else slice(pair.length)
        ids[row, span], mask[row, span], types[row, span] = pair.ids, 1, pair.type_ids
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def bucket_length(length: int) -> int:
    """The width that a pair of this length is padded to."""
    step = next((step for most, step in STEPS if length <= most), 0) or 1 << ((length - 1).bit_length() - 4)
    return -(-length // step) * step


def shapes(max_length: int, tokens: int) -> list[Shape]:
    """Shapes of up to `tokens` tokens: each width with one row and with the most rows, and each number of rows."""
    widths = sorted({min(bucket_length(length), max_length) for length in range(1, max_length + 1)})
    most = {width: max(1, tokens // width) for width in widths}
    found = {Shape(1, width) for width in widths} | {Shape(rows, width) for width, rows in most.items()}
    for rows in range(2, max(most.values())):
        found.add(Shape(rows, max(width for width in widths if most[width] >= rows)))
    return sorted(found)


def common_shapes(max_length: int, tokens: int) -> list[Shape]:
    """A selection for an engine that takes any shape: corner widths, with one row and with several."""
    widths = sorted({min(width, max_length) for width in CORNER_WIDTHS})
    return sorted(Shape(rows, width) for width in widths for rows in {1, max(1, min(MOST_ROWS, tokens // width))})


def warm_up_pairs(token_id: int, max_length: int) -> list[Pair]:
    """Pairs of a few lengths. The first batch of a shape takes two to three times as long as the next one."""
    rows = [np.full(min(length, max_length), token_id, np.int32) for length in (16, 64, 128, 256)]
    return [Pair(ids, ids * 0, truncated=False) for ids in rows]


def timed(score: Callable[[Sequence[Pair]], object], pairs: Sequence[Pair]) -> float:
    """Tokens per second of a batch that is scored now."""
    started = perf_counter()
    score(pairs)
    return sum(pair.length for pair in pairs) / (perf_counter() - started)


def sigmoid(logits: Floats) -> Floats:
    """In float32. Large negative logits do not overflow."""
    return np.exp(-np.logaddexp(np.float32(0), -logits))


def identity(logits: Floats) -> Floats:
    return logits


# The activations that cross-encoders name in their configuration, computed without torch.
ACTIVATIONS: dict[str, Callable[[Floats], Floats]] = {"sigmoid": sigmoid, "identity": identity}
