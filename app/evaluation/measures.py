"""nDCG, MRR and recall of rankings, with confidence intervals. Needs the extra `eval`."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import ir_measures
import numpy as np
from ir_measures import RR, R, nDCG
from scipy.stats import bootstrap

from app.evaluation.topic import MAX_GRADE

CONFIDENCE = 0.95
# Bootstrap resamples drawn at a time. All at once would need much memory for thousands of queries.
RESAMPLES_AT_ONCE = 1000
GAINS = {grade: 2**grade - 1 for grade in range(1, MAX_GRADE + 1)}

Rankings = Mapping[str, Sequence[str]]
"""Document ids, best first, by query id."""
Qrels = Mapping[str, Mapping[str, int]]
"""Grades by document id, by query id."""


class Interval(NamedTuple):
    """A mean over queries and its 95 % confidence interval. The bounds are None for a single query."""

    mean: float
    low: float | None
    high: float | None


def measure(rankings: Rankings, qrels: Qrels, cutoff: int) -> dict[str, dict[str, float]]:
    """nDCG, MRR and recall at the cutoff, for each query in `qrels`. A query without a ranking gets 0.

    nDCG uses the gain 2^grade - 1 and the discount log2(rank + 1). The ideal is the best order of all judged documents.
    """
    names = {
        nDCG(gains=GAINS) @ cutoff: f"nDCG@{cutoff}",
        RR @ cutoff: f"MRR@{cutoff}",
        R @ cutoff: f"recall@{cutoff}",
    }
    run = {qid: {identifier: -float(rank) for rank, identifier in enumerate(ids)} for qid, ids in rankings.items()}
    values = {qid: dict.fromkeys(names.values(), 0.0) for qid in qrels}
    for found in ir_measures.iter_calc(list(names), qrels, run):
        values[found.query_id][names[found.measure]] = found.value
    return values


def interval(values: Sequence[float]) -> Interval:
    """The mean and its percentile bootstrap interval over the queries. The fixed seed makes runs repeatable."""
    mean = float(np.mean(values))
    if len(values) < 2:  # noqa: PLR2004 (one value has no spread)
        return Interval(mean, None, None)
    found = bootstrap(
        (values,),
        np.mean,
        method="percentile",
        confidence_level=CONFIDENCE,
        batch=RESAMPLES_AT_ONCE,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high))
