"""Combine rankings of the same documents into one order."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from app.types import Fusion

# The usual constant of reciprocal rank fusion. A larger one reduces the weight of the first few ranks.
RANK_CONSTANT = 60
# Rounding gives equal scores a spread of about 1e-17.
EQUAL = 1e-12

Scores = NDArray[np.floating]


def fuse_ranks(lists: Sequence[Scores]) -> Scores:
    """Combine the scores of several lists by reciprocal rank fusion. A single list is returned as it is."""
    return lists[0] if len(lists) == 1 else np.sum([reciprocal_ranks(scores) for scores in lists], axis=0)


def fuse(logits: Sequence[float], evidence: Sequence[float], fusion: Fusion) -> list[float]:
    """The model's logits combined with other scores of the same documents; higher is better, shape (documents,)."""
    scale = reciprocal_ranks if fusion.method == "rrf" else zscores
    fused: list[float] = (scale(np.array(logits, float)) + fusion.weight * scale(np.array(evidence, float))).tolist()
    return fused


def reciprocal_ranks(scores: Scores) -> Scores:
    """1 / (60 + rank) of each document; equal scores have equal ranks.

    Cormack, Clarke and Büttcher, Reciprocal Rank Fusion, 2009.
    """
    better = np.searchsorted(np.sort(-scores), -scores)
    return 1 / (RANK_CONSTANT + 1 + better)


def zscores(scores: Scores) -> Scores:
    """The scores with a mean of 0 and a standard deviation of 1; zeros if all scores are equal."""
    # The square of a very large score would overflow.
    scores = scores / (np.abs(scores).max(initial=0.0) or 1.0)
    centred = scores - scores.mean() if len(scores) else scores
    spread = centred.std() if len(scores) else 0.0
    return centred / spread if spread > EQUAL else np.zeros(len(scores))
