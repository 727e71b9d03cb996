"""What each step of a training reads: how many tokens, how many groups and which."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

# Most steps read short texts, which is where the time goes; a fifth read long ones, so that the model knows them.
SHORT, MIDDLE, LONG = 144, 256, 512
LENGTHS = (SHORT, MIDDLE, SHORT, LONG, SHORT, MIDDLE, SHORT, LONG, SHORT, MIDDLE)
# The share of groups that leaves a step of longer texts about as long as one of short texts.
SHARES = {SHORT: 1.0, MIDDLE: 5 / 8, LONG: 3 / 8}
WARM_UP = 50


@dataclass(frozen=True, slots=True)
class Plan:
    """How to train: the same plan on the same groups gives the same order of groups."""

    steps: int
    groups_per_step: int = 8
    """Of short texts."""
    learning_rate: float = 1.2e-4
    rows: int = 16
    """Pairs computed at a time."""
    seed: int = 0
    cool_down: int = 0
    """Over so many steps at the end the learning rate falls to nothing."""
    checkpoint_every: int = 50
    evaluate_every: int = 500
    epochs: int = 1
    """Times through all groups, where no steps are given."""

    def identity(self) -> dict[str, float]:
        """What must not change when a training goes on: its end and its pace may."""
        return {"groups_per_step": self.groups_per_step, "learning_rate": self.learning_rate, "seed": self.seed}

    def rate(self, step: int) -> float:
        """The learning rate: it rises, stays and falls."""
        warm_up = min(WARM_UP, max(1, self.steps // 5))
        falling = (self.steps - step) / max(1, self.cool_down)
        return self.learning_rate * min(1.0, (step + 1) / warm_up, falling)

    def groups(self, step: int) -> int:
        """How many groups the step reads."""
        return max(1, round(self.groups_per_step * SHARES[LENGTHS[step % len(LENGTHS)]]))

    def steps_for(self, groups: int) -> int:
        """How many steps it takes to read so many groups."""
        cycles, rest = divmod(groups, self._until(len(LENGTHS)))
        steps = cycles * len(LENGTHS)
        while rest > 0:
            rest -= self.groups(steps)
            steps += 1
        return steps

    def reading(self, step: int, groups: int) -> "Reading":
        """What the step reads of so many groups; after the last come all again, in another order."""
        first = step // len(LENGTHS) * self._until(len(LENGTHS)) + self._until(step % len(LENGTHS))
        places = range(first, first + self.groups(step))
        orders = {epoch: _order(groups, self.seed + epoch) for epoch in {place // groups for place in places}}
        chosen = [orders[place // groups][place % groups] for place in places]
        return Reading(LENGTHS[step % len(LENGTHS)], chosen, random.Random(f"{self.seed} {step}"))

    def _until(self, step: int) -> int:
        """Groups that the steps before this one of a cycle read."""
        return sum(map(self.groups, range(step)))


class Reading(NamedTuple):
    """Of one step."""

    tokens: int
    groups: Sequence[int]
    rng: random.Random


@lru_cache(maxsize=2)  # of the epoch at hand and the next; large sets take longer to shuffle than a GPU's step
def _order(count: int, seed: int) -> list[int]:
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order
