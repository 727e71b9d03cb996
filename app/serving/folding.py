"""From the scores of passages to one logit for each document."""

import math
from collections.abc import Iterable, Mapping, Sequence

from app.engines.models.artefact import ScoreCalibration
from app.first_stage.fusion import fuse
from app.types import Fusion, Passage, Score

ScoredPassage = tuple[Passage, Score]

# Documents that the model has not read get lower logits than this, so that nobody takes them for relevant.
UNREAD = -10.0


def best_passages(scored: Iterable[ScoredPassage]) -> dict[int, ScoredPassage]:
    """The passage with the highest logit of each document, by document index. The first one wins a tie."""
    best: dict[int, ScoredPassage] = {}
    for passage, score in scored:
        rival = best.get(passage.document)
        if rival is None or score.logit > rival[1].logit:
            best[passage.document] = passage, score
    return best


def place_unscored(
    logits: Mapping[int, float], places: Sequence[float], count: int, calibration: ScoreCalibration | None = None
) -> list[float]:
    """A logit for each of `count` documents: its own from `logits`, or one below all of these and below `UNREAD`.

    `places` orders the documents without a logit: higher is better, from 0 to less than 1. It may be empty if all
    documents have a logit. With a `calibration`, its log odds for these documents are below `UNREAD` too.
    """
    floor = min([UNREAD, *logits.values()]) - 1
    if calibration is not None:
        floor = min(floor, (UNREAD - calibration.shift) / calibration.scale - 1)
    return [logits[index] if index in logits else floor + places[index] for index in range(count)]


def fused_scores(logits: Mapping[int, float], evidence: Sequence[float], fusion: Fusion) -> dict[int, float]:
    """The logits combined with the evidence about all documents, by document index. Empty without evidence."""
    if not evidence:
        return {}
    return dict(zip(logits, fuse([*logits.values()], [evidence[index] for index in logits], fusion), strict=True))


def by_position(count: int) -> list[float]:
    """The evidence of an order: higher for earlier documents, most different for the first few."""
    return [-math.log2(position + 2) for position in range(count)]
