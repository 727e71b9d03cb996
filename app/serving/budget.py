"""How many documents fit into a latency budget, from the measured speed of this machine. Nothing here reads a clock."""

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

from app.types import Pair, Passage

# Seconds of inference, and characters, after which a measurement counts for little more than a third.
SECONDS_OF_MEMORY, CHARS_OF_MEMORY = 1.0, 100_000.0
# What the first values count for, in the same units.
SECONDS_OF_WARM_UP, CHARS_OF_GUESS = 0.05, 2_000.0
# A smaller batch takes longer per token. It shows only that the engine is not slower.
FEW_TOKENS = 64
# Before the first text: about those of English with a slow tokenizer.
TOKENS_PER_CHAR, SECONDS_PER_CHAR = 0.3, 2e-6
# The share of the requests that should take no longer than predicted, and how far one request moves the margin.
IN_TIME, STEP = 0.9, 0.1
FIRST_MARGIN, MARGINS = 1.25, (0.5, 4.0)
# A request is late only from here on, in seconds: the steps between queue and engine take about as long.
TOLERANCE = 0.005


class Stage(NamedTuple):
    """What one model reads of a request with a budget."""

    documents: frozenset[int]
    """The indices of the documents that it reads, and of the documents with known scores."""
    seconds: float
    """The predicted time, with that for the work in front."""


class ReadingPlan(NamedTuple):
    """What is read of a request with a budget."""

    spent: float
    """Seconds from the arrival of the request to this plan."""
    stages: tuple[Stage, ...]
    """One for each model that reads. Each reads some of the documents of the one before."""

    @property
    def seconds(self) -> float:
        """The predicted time of the request."""
        return self.spent + sum(stage.seconds for stage in self.stages)


def fit(candidates: Sequence[int], speed: float, remaining: float, may_be_none: bool = False) -> int:
    """How many of the candidates, in their order, can be read in `remaining` seconds.

    `candidates` are tokens to read: 0 for a document with known scores, which costs nothing. The first one that has
    tokens always fits, so a tiny budget reads one document, unless it `may_be_none`. `speed` is in tokens per second; 0
    means unknown, and only that one fits.
    """
    left, is_first = max(0.0, speed * remaining), not (may_be_none and speed)
    for place, tokens in enumerate(candidates):
        left -= tokens
        if tokens and left < 0 and not is_first:
            return place
        is_first = is_first and not tokens
    return len(candidates)


class Rate:
    """A running ratio. Older measurements count less, by how much has been measured since."""

    def __init__(self, first: float, weight: float, memory: float) -> None:
        """`first` counts as much as a measurement of `weight`. Both weights are in the unit of the divisor."""
        self._amount, self._per, self._memory = first * weight, weight if first else 0.0, memory

    @property
    def value(self) -> float:
        """0 before the first measurement, if no first value was given."""
        return self._amount / self._per if self._per else 0.0

    def see(self, amount: float, per: float) -> None:
        """Count a measurement."""
        kept = math.exp(-per / self._memory)
        self._amount, self._per = kept * self._amount + amount, kept * self._per + per


class Pace:
    """What this machine takes to read: the speed of its engine and of its tokenizer, and how well both predict.

    Used on the event loop only.
    """

    def __init__(self, first: float = 0.0) -> None:
        """`first`: tokens per second at the warm-up of the engine; 0 if it was not measured."""
        self._engine = Rate(first, SECONDS_OF_WARM_UP, SECONDS_OF_MEMORY)
        self._tokens = Rate(TOKENS_PER_CHAR, CHARS_OF_GUESS, CHARS_OF_MEMORY)
        self._tokenizer = Rate(SECONDS_PER_CHAR, CHARS_OF_GUESS, CHARS_OF_MEMORY)
        self._busy_until = -math.inf
        self._margin = FIRST_MARGIN

    @property
    def speed(self) -> float:
        """Tokens per second of a busy engine, padding excluded; 0 if unknown."""
        return self._engine.value

    @property
    def cautious_speed(self) -> float:
        """The speed that nine of ten requests reach."""
        return self.speed / self._margin

    @property
    def cautious_speed_with_tokenizer(self) -> float:
        """The same if the texts must be tokenized first."""
        if not self.speed:
            return 0.0
        tokenizer = self._tokenizer.value / self._tokens.value
        return 1 / (self._margin / self.speed + tokenizer)

    def tokens_of(self, chars: int) -> int:
        """Estimate the tokens of a text."""
        return math.ceil(chars * self._tokens.value)

    def see_batch(self, tokens: int, seconds: float, now: float) -> None:
        """Count a batch that took `seconds` and has ended `now`. Time that several batches share counts once."""
        alone = max(0.0, min(seconds, now - self._busy_until))
        self._busy_until = now
        if tokens >= FEW_TOKENS or tokens >= alone * self.speed:
            self._engine.see(tokens, alone)

    def see_texts(self, passages: Collection[Passage], pairs: Sequence[Pair], seconds: float) -> None:
        """Count texts that were tokenized. Those that were cut say nothing about their tokens."""
        texts = [len(passage.query) + len(passage.text) for passage in passages]
        self._tokenizer.see(seconds, sum(texts))
        for chars, pair in zip(texts, pairs, strict=True):
            if not pair.truncated:
                self._tokens.see(pair.length, chars)

    def see_request(self, predicted: float, took: float) -> None:
        """Compare the prediction for a request, at the cautious speed, with the seconds that it took.

        The margin moves until nine of ten requests are in time. It covers what the speed does not: requests that arrive
        later and are served first, and a machine that is suddenly busy.
        """
        is_late = took > predicted + TOLERANCE
        moved = self._margin * (1 + STEP * (IN_TIME if is_late else IN_TIME - 1))
        self._margin = min(max(moved, MARGINS[0]), MARGINS[1])
