"""What each training step reads: which groups, and how many tokens of each document."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

# Half of the steps read short texts, because long ones cost more time. A fifth read long ones, to learn them too.
SHORT, MIDDLE, LONG = 144, 256, 512
LENGTHS = (SHORT, MIDDLE, SHORT, LONG, SHORT, MIDDLE, SHORT, LONG, SHORT, MIDDLE)
# Steps with longer texts read fewer groups, so that all steps take about the same time.
SHARES = {SHORT: 1.0, MIDDLE: 5 / 8, LONG: 3 / 8}
WARM_UP = 50


@dataclass(frozen=True, slots=True)
class Plan:
    """How to train. The same plan gives the same order of groups."""

    steps: int
    groups_per_step: int = 8
    """In steps with short texts; others read fewer (SHARES)."""
    learning_rate: float = 1.2e-4
    rows: int = 16
    """Pairs per forward pass."""
    seed: int = 0
    cool_down: int = 0
    """Final steps in which the learning rate falls to 0."""
    checkpoint_every: int = 50
    evaluate_every: int = 500
    epochs: int = 1
    """Passes over all groups, if `steps` is 0."""

    def identity(self) -> dict[str, float]:
        """Options that must not change when a training is resumed."""
        return {"groups_per_step": self.groups_per_step, "learning_rate": self.learning_rate, "seed": self.seed}

    def rate(self, step: int) -> float:
        """The learning rate of the step: it rises, stays constant and falls."""
        warm_up = min(WARM_UP, max(1, self.steps // 5))
        falling = (self.steps - step) / max(1, self.cool_down)
        return self.learning_rate * min(1.0, (step + 1) / warm_up, falling)

    def groups(self, step: int) -> int:
        """Number of groups in the step."""
        return max(1, round(self.groups_per_step * SHARES[LENGTHS[step % len(LENGTHS)]]))

    def steps_for(self, groups: int) -> int:
        """Number of steps that read this many groups."""
        cycles, rest = divmod(groups, self._until(len(LENGTHS)))
        steps = cycles * len(LENGTHS)
        while rest > 0:
            rest -= self.groups(steps)
            steps += 1
        return steps

    def reading(self, step: int, groups: int) -> "Reading":
        """What the step reads out of `groups` groups. Each epoch has another order."""
        first = step // len(LENGTHS) * self._until(len(LENGTHS)) + self._until(step % len(LENGTHS))
        places = range(first, first + self.groups(step))
        orders = {epoch: _order(groups, self.seed + epoch) for epoch in {place // groups for place in places}}
        chosen = [orders[place // groups][place % groups] for place in places]
        return Reading(LENGTHS[step % len(LENGTHS)], chosen, random.Random(f"{self.seed} {step}"))

    def _until(self, step: int) -> int:
        """Number of groups in the first `step` steps of a cycle."""
        return sum(map(self.groups, range(step)))


class Reading(NamedTuple):
    """One step: the length to truncate to, the indices of groups, and a random generator."""

    tokens: int
    groups: Sequence[int]
    rng: random.Random


@lru_cache(maxsize=2)  # of this epoch and the next: shuffling a large set takes longer than a step on a GPU
def _order(count: int, seed: int) -> list[int]:
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order
