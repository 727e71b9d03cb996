"""A batch of pairs as the padded arrays that an engine takes, and what becomes of its logits."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from app.tokenization import Pair

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


def pad(pairs: Sequence[Pair], pad_token_id: int, width: int | None = None, left: bool = False) -> dict[str, Int64s]:
    """`input_ids`, `attention_mask` and `token_type_ids`, each of shape (pairs, width); the longest's by default."""
    shape = len(pairs), width or max(pair.length for pair in pairs)
    ids = np.full(shape, pad_token_id, np.int64)
    mask, types = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for row, pair in enumerate(pairs):
        span = slice(shape[1] - pair.length, None) if left else slice(pair.length)
        ids[row, span], mask[row, span], types[row, span] = pair.ids, 1, pair.type_ids
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def warm_up_pairs(token_id: int, max_length: int) -> list[Pair]:
    """Pairs of a few lengths; the first batch of a shape takes two to three times as long as the next."""
    rows = [np.full(min(length, max_length), token_id, np.int32) for length in (16, 64, 128, 256)]
    return [Pair(ids, ids * 0, truncated=False) for ids in rows]


def sigmoid(logits: Floats) -> Floats:
    """In float32, without an overflow for large negative logits."""
    return np.exp(-np.logaddexp(np.float32(0), -logits))


def identity(logits: Floats) -> Floats:
    """The logits themselves."""
    return logits


# The activations that cross-encoders name in their configuration, without torch.
ACTIVATIONS: dict[str, Callable[[Floats], Floats]] = {"sigmoid": sigmoid, "identity": identity}
