"""Compare the rankings of an exported model with those of its original."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from time import perf_counter

import numpy as np
from rich.console import Console
from rich.progress import track

from app.engines.models.artefact import Parity, ScriptParity
from app.engines.protocol import Engine
from app.evaluation.collection import Row, read_rows
from app.evaluation.lines import UnusableCollection

# A comparison that is limited in time has at least this many groups, and one of each script.
FEWEST_GROUPS = 8
NDCG_AT = 10


@dataclass(frozen=True, slots=True)
class Group:
    """A query and its documents. `grades` are the documents' judgments, in the same order."""

    query: str
    documents: list[str]
    grades: list[float] | None = None
    script: str | None = None
    """The script of the texts, if its figures are wanted."""


def read_groups(file: Path) -> list[Group]:
    """The groups of a JSONL file. `qrels` are optional. Raises `UnusableCollection`."""
    groups = [_group(row) for _, row in read_rows(file)]
    if not groups:
        raise UnusableCollection(f"{file}: contains no queries")
    return groups


def _group(row: Row) -> Group:
    grades = None if row.qrels is None else [float(row.qrels.get(document.id, 0)) for document in row.documents]
    return Group(row.query, [document.text for document in row.documents], grades)


def compare(
    reference: Engine, exported: Engine, groups: Sequence[Group], console: Console, seconds: float = inf
) -> Parity:
    """Score the groups with both engines, for about `seconds`."""
    taus: list[float] = []
    gains: list[float] = []
    differences = [0.0]
    fewest = max(FEWEST_GROUPS, len({group.script for group in groups}))
    started = perf_counter()
    for group in track(groups, "Comparing with the float32 original", console=console):
        if len(taus) >= fewest and perf_counter() - started > seconds:
            break
        original, converted = logits(reference, group), logits(exported, group)
        taus.append(_kendall_tau(original, converted))
        differences.append(float(np.abs(np.subtract(reference.activate(original), exported.activate(converted))).max()))
        if group.grades and any(group.grades):
            gains.append(ndcg(group.grades, converted) - ndcg(group.grades, original))
    compared = list(zip(groups, taus, strict=False))
    return Parity(
        pairs=sum(len(group.documents) for group, _ in compared),
        kendall_tau=float(np.mean(taus)),
        max_score_difference=max(differences),
        ndcg_difference=float(np.mean(gains)) if gains else None,
        scripts=_by_script(compared),
    )


def _by_script(compared: Sequence[tuple[Group, float]]) -> dict[str, ScriptParity]:
    scripts = dict.fromkeys(group.script for group, _ in compared if group.script)
    own = {script: [each for each in compared if each[0].script == script] for script in scripts}
    return {
        script: ScriptParity(
            pairs=sum(len(group.documents) for group, _ in each), kendall_tau=float(np.mean([tau for _, tau in each]))
        )
        for script, each in own.items()
    }


def logits(engine: Engine, group: Group, rows: int = 4) -> list[float]:
    """The logits of one group, scored in batches of `rows` pairs of similar length."""
    pairs = engine.encode(group.query, group.documents)
    order = sorted(range(len(pairs)), key=lambda index: pairs[index].length)
    scores = [0.0] * len(pairs)
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        for index, logit in zip(chosen, engine.score([pairs[index] for index in chosen]), strict=True):
            scores[index] = logit
    return scores


def ndcg(grades: Sequence[float], scores: Sequence[float]) -> float:
    """nDCG@10 with the gain 2^grade - 1. The ideal is the best order of these documents."""
    from sklearn.metrics import ndcg_score

    return float(ndcg_score([[2**grade - 1 for grade in grades]], [scores], k=NDCG_AT))


def _kendall_tau(first: Sequence[float], second: Sequence[float]) -> float:
    from scipy.stats import kendalltau

    return float(kendalltau(first, second).statistic) if len(first) > 1 else 1.0
