"""A batch on the engine, halved if it runs out of memory."""

import logging
import math
from collections.abc import Sequence
from typing import NamedTuple

from app.engines.protocol import Engine
from app.errors import OutOfMemory
from app.types import Pair

log = logging.getLogger(__name__)

DOES_NOT_FIT = "The device has too little memory for a pair of this length"


class Scored(NamedTuple):
    """The outcome of a batch."""

    logits: list[float | OutOfMemory]
    """One for each pair, or the error of a pair that does not fit the memory even alone."""
    did_not_fit: int = 0
    """Padded tokens of the smallest batch of several pairs that ran out of memory; 0 if none did."""


def score(engine: Engine, pairs: Sequence[Pair], too_long: float = math.inf) -> Scored:
    """Logits of a batch; runs on an inference thread. A batch that runs out of memory is retried in halves.

    Pairs of `too_long` tokens or more are known not to fit, even alone.
    """
    if min(pair.length for pair in pairs) >= too_long:
        return Scored([OutOfMemory(DOES_NOT_FIT)] * len(pairs))
    try:
        return Scored([*engine.score(pairs)])
    except OutOfMemory as error:
        problem = OutOfMemory(*error.args)
    # Outside the handler, because the exception's traceback would keep the failed batch in memory.
    engine.clear_memory()
    if len(pairs) == 1:
        return Scored([problem])
    log.warning("Out of memory with %d pairs: retrying in halves", len(pairs))
    middle = len(pairs) // 2
    first = score(engine, pairs[:middle], too_long)
    unfit = [pair.length for pair, logit in zip(pairs, first.logits, strict=False) if isinstance(logit, OutOfMemory)]
    second = score(engine, pairs[middle:], min([*unfit, too_long]))
    smaller = [half.did_not_fit for half in (first, second) if half.did_not_fit]
    tokens = sum(engine.padded_tokens(pairs))
    return Scored(first.logits + second.logits, min([*smaller, tokens]))
