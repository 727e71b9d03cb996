"""Calibration of a trained model: scale and shift of its logits become part of its last layer."""

from collections.abc import Sequence

import numpy as np
import torch

from app.evaluation.calibration import Bin, fit, reliability
from training.groups import Group
from training.model import CrossEncoder
from training.quality import score


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
