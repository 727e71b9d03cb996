"""Distillation: teachers score every document and select the hardest ones."""

from collections.abc import Iterator, Sequence
from itertools import islice

import torch

from training.groups import Group
from training.judge import Teacher
from training.model import CrossEncoder


def teach(groups: Sequence[Group], teachers: Sequence[Teacher], keep: int | None) -> Iterator[Group]:
    """Add the mean logits of the teachers to the groups. With `keep`, reduce each group to its hardest documents."""
    pairs = [(group.query, document) for group in groups for document in group.documents]
    of_teachers = [teacher.logits(pairs) for teacher in teachers]
    means = iter([round(sum(each) / len(each), 4) for each in zip(*of_teachers, strict=True)])
    for group in groups:
        group.teacher = list(islice(means, len(group.documents)))
        yield group.kept(hardest(group, keep)) if keep else group


def hardest(group: Group, keep: int) -> list[int]:
    """Indices of `keep` documents: the relevant ones first, then those that the teachers score highest."""
    return sorted(range(len(group.labels)), key=lambda at: (-group.labels[at], -group.teacher[at]))[:keep]


def average(models: Sequence[CrossEncoder]) -> CrossEncoder:
    """Average the weights into the first model (Wortsman et al., Model soups, 2022)."""
    states = [model.model.state_dict() for model in models]
    with torch.no_grad():
        mean = {name: torch.stack([state[name].float() for state in states]).mean(0) for name in states[0]}
    models[0].model.load_state_dict(mean)
    return models[0]
