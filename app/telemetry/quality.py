"""How good the rankings probably are, judged without judgments: by their scores, and by what reranking changed."""

from collections.abc import Sequence

import numpy as np

from app.telemetry.drift import Drift
from app.telemetry.metrics import Metrics
from app.types import Ranking

# Of a larger request, this many documents are compared: evenly spaced in the order that was sent.
COMPARED = 100


class Quality:
    """Sees the ranking of each request."""

    def __init__(self, metrics: Metrics, relevant_score: float, drift: Drift) -> None:
        self._metrics = metrics
        self._drift = drift
        self._relevant_score = relevant_score

    def begin(self, model: str) -> None:
        """The scores are those of this model from now on."""
        self._drift.begin(model)

    def see(self, ranking: Ranking, top_score: float) -> None:
        """Count a ranking. `top_score` is the highest score of a document, from 0 to 1."""
        self._metrics.top_score.observe(top_score)
        self._drift.see(top_score)
        if top_score < self._relevant_score:
            self._metrics.irrelevant.inc()
        if len(ranking.logits) > 1:
            self._metrics.moved_pairs.observe(moved_pairs(ranking.order(spaced(len(ranking.logits)))))


def spaced(documents: int) -> Sequence[int]:
    """Indices of the documents to compare."""
    if documents <= COMPARED:
        return range(documents)
    indices: list[int] = np.linspace(0, documents - 1, COMPARED).astype(int).tolist()
    return indices


def moved_pairs(order: Sequence[int]) -> float:
    """The share of all pairs of documents that changed places. `order` holds their old positions, in the new order.

    0 if the order was kept, 0.5 if the orders are unrelated, 1 if it was reversed: (1 - Kendall's tau) / 2.
    """
    positions = np.asarray(order)
    moved = np.triu(positions[:, None] > positions[None, :], 1).sum()
    return float(moved / (len(order) * (len(order) - 1) / 2))
