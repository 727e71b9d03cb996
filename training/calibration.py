"""Calibration: scale and shift the logits so that a score of 0.8 means that 80 % of such documents are relevant.

Platt, Probabilistic outputs for support vector machines, 1999. Scale and shift become part of the last layer of the
model, so rankings do not change.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from training.groups import Group
from training.model import CrossEncoder
from training.quality import score

BINS = 10


class Bin(NamedTuple):
    """A row of the reliability table: pairs with scores from `low` to `high`."""

    low: float
    high: float
    pairs: int
    mean_score: float
    relevant: float
    """Share of the pairs that are relevant."""


def calibrate(model: CrossEncoder, groups: Sequence[Group], rows: int) -> list[Bin]:
    """Fit scale and shift on one half of the groups and apply them to the model; returns a table for the other half."""
    logits = score(model, groups, rows)
    halves = [_flat(groups[first::2], logits[first::2]) for first in (0, 1)]
    scale, shift = fit(*halves[0])
    head = last_layer(model.model)
    with torch.no_grad():
        head.weight.mul_(scale)
        head.bias.mul_(scale).add_(shift)
    scores, labels = halves[1]
    return reliability(1 / (1 + np.exp(-(scale * scores + shift))), labels)


def fit(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Scale and shift that maximise the likelihood of the labels. Arrays have shape (pairs,)."""
    parameters = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    inputs, wanted = torch.tensor(logits, dtype=torch.float64), torch.tensor(labels, dtype=torch.float64)
    optimizer = torch.optim.LBFGS([parameters], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = functional.binary_cross_entropy_with_logits(parameters[0] * inputs + parameters[1], wanted)
        loss.backward()
        return loss

    optimizer.step(closure)
    scale, shift = parameters.tolist()
    return scale, shift


def reliability(scores: np.ndarray, labels: np.ndarray) -> list[Bin]:
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


def last_layer(model: torch.nn.Module) -> torch.nn.Linear:
    """The linear layer that computes the logit. Raises `ValueError` if there is not exactly one."""
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear) and module.out_features == 1]
    if len(linear) != 1 or linear[0].bias is None:
        raise ValueError("the model cannot be calibrated: it needs exactly one linear layer with one output and a bias")
    return linear[0]


def _flat(groups: Sequence[Group], logits: Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
    return (
        np.array([logit for each in logits for logit in each]),
        np.array([label for group in groups for label in group.labels]),
    )
