"""Calibration: scale and shift the logits so that a score of 0.8 means that 80 % of such documents are relevant.

Platt, Probabilistic outputs for support vector machines, 1999. Rankings do not change, because the scale is
greater than 0 unless the model is worse than chance.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.floating]

BINS = 10
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
STEPS = 100
# Keeps the curvature above 0 where it vanishes: for equal logits, or in float64 far from the best values.
RIDGE = 1e-9


class Bin(NamedTuple):
    """A row of the reliability table: pairs with scores from `low` to `high`."""

    low: float
    high: float
    pairs: int
    mean_score: float
    relevant: float
    """Share of the pairs that are relevant."""


class Threshold(NamedTuple):
    """What a score threshold keeps."""

    threshold: float
    precision: float | None
    """Share of the kept documents that are relevant. None if none is kept."""
    recall: float
    """Share of the relevant documents that are kept."""


def fit(logits: Values, labels: Values) -> tuple[float, float]:
    """Scale and shift of the logits with the highest likelihood of the labels. Arrays have shape (pairs,).

    The labels are moved a little towards each other, as Platt does, so that the scale stays finite if one logit
    separates them. Newton's method on standardized logits.
    """
    mean, spread = logits.mean(), logits.std() or 1.0
    inputs = np.stack([(logits - mean) / spread, np.ones(len(logits))])
    relevant = labels.sum()
    high, low = (relevant + 1) / (relevant + 2), 1 / (len(labels) - relevant + 2)
    wanted = low + labels * (high - low)
    weights = np.zeros(2)
    for _ in range(STEPS):
        scores = _sigmoid(weights @ inputs)
        slope = inputs @ (scores - wanted)
        curvature = (inputs * scores * (1 - scores)) @ inputs.T + RIDGE * np.eye(2)
        step, size = np.linalg.solve(curvature, slope), 1.0
        while _loss((weights - size * step) @ inputs, wanted) > _loss(weights @ inputs, wanted) and size > RIDGE:
            size /= 2
        weights = weights - size * step
        if np.abs(size * step).max() < RIDGE:
            break
    scale = weights[0] / spread
    return float(scale), float(weights[1] - scale * mean)


def reliability(scores: Values, labels: Values) -> list[Bin]:
    """For each tenth of the scale, the pairs with such scores and the share of relevant ones."""
    edges = np.linspace(0, 1, BINS + 1)
    at = np.clip(np.digitize(scores, edges) - 1, 0, BINS - 1)
    return [
        Bin(
            float(edges[each]),
            float(edges[each + 1]),
            int(own.sum()),
            float(scores[own].mean()),
            float(labels[own].mean()),
        )
        for each in range(BINS)
        if (own := at == each).any()
    ]


def thresholds(scores: Values, labels: Values) -> list[Threshold]:
    """Precision and recall of each threshold. At least one label must be 1."""
    found = []
    for threshold in THRESHOLDS:
        kept = labels[scores >= threshold]
        found.append(Threshold(threshold, float(kept.mean()) if len(kept) else None, float(kept.sum() / labels.sum())))
    return found


def losses(scores: Values, labels: Values) -> dict[str, float]:
    """Log loss and Brier score of probabilities: lower is better."""
    wanted = np.clip(np.where(labels > 0, scores, 1 - scores), np.finfo(np.float32).tiny, 1)
    return {"log_loss": float(-np.log(wanted).mean()), "brier": float(((scores - labels) ** 2).mean())}


def _sigmoid(logits: Values) -> Values:
    return np.exp(-np.logaddexp(0, -logits))


def _loss(logits: Values, wanted: Values) -> float:
    return float((np.logaddexp(0, logits) - wanted * logits).sum())
