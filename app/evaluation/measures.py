"""How good a ranking is, by the measures of the field, and how sure that is. Needs the extra `eval`."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import ir_measures
import numpy as np
from ir_measures import RR, R, nDCG
from scipy.stats import bootstrap

from app.evaluation.topic import MAX_GRADE

CONFIDENCE = 0.95
# Of resamples that are drawn at a time: for thousands of queries all of them would be much memory.
RESAMPLES_AT_ONCE = 1000
GAINS = {grade: 2**grade - 1 for grade in range(1, MAX_GRADE + 1)}

Rankings = Mapping[str, Sequence[str]]
"""Of each query, by its id, the ids of the documents from the best on."""
Qrels = Mapping[str, Mapping[str, int]]
"""Of each query the grades of its documents."""


class Interval(NamedTuple):
    """A mean over queries, and where 95 % of the means of such queries would lie; None for a single query."""

    mean: float
    low: float | None
    high: float | None


def measure(rankings: Rankings, qrels: Qrels, cutoff: int) -> dict[str, dict[str, float]]:
    """nDCG, MRR and recall at the cutoff, of each query in `qrels`; 0 for one without a ranking.

    nDCG has gain 2^grade - 1, discount log2(rank + 1), and as its ideal the best order of all judged documents.
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
    """The mean, and its interval by bootstrap over the queries: percentiles, the same in every run."""
    mean = float(np.mean(values))
    if len(values) < 2:  # noqa: PLR2004 (of one there is no spread)
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
