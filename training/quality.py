"""How often a model in training ranks a relevant document first."""

from collections import defaultdict
from collections.abc import Sequence

import torch

from training.groups import Group
from training.model import CrossEncoder

MAX_LENGTH = 256


def accuracy(model: CrossEncoder, groups: Sequence[Group], rows: int) -> dict[str, float]:
    """Share of groups with a relevant document at the top, by source and for `all`."""
    hits: dict[str, list[bool]] = defaultdict(list)
    for group, logits in zip(groups, score(model, groups, rows), strict=True):
        best = max(range(len(logits)), key=logits.__getitem__)
        hits[group.source].append(group.labels[best] > 0)
        hits["all"].append(group.labels[best] > 0)
    return {source: round(sum(found) / len(found), 3) for source, found in hits.items()}


def score(model: CrossEncoder, groups: Sequence[Group], rows: int, max_length: int = MAX_LENGTH) -> list[list[float]]:
    """Logits of the documents of each group."""
    model.model.eval()
    with torch.inference_mode():
        scored = [
            model.logits([(group.query, document) for document in group.documents], max_length, rows).tolist()
            for group in groups
        ]
    model.model.train()
    return scored
