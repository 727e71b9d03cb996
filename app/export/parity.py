"""Compare the rankings of an exported model with those of its original."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
from rich.console import Console
from rich.progress import track

from app.engines.models.artefact import Parity
from app.engines.protocol import Engine
from app.evaluation.collection import Row, read_rows
from app.evaluation.lines import UnusableCollection

CALIBRATION = Path(__file__).parent / "calibration.jsonl"
# On the project's own texts, the comparison of a large model stops after this time, but not before this many groups.
OWN_TEXTS_SECONDS, OWN_TEXTS_GROUPS = 60.0, 8
NDCG_AT = 10


@dataclass(frozen=True, slots=True)
class Group:
    """A query and its documents. `grades` are the documents' judgments, in the same order."""

    query: str
    documents: list[str]
    grades: list[float] | None = None


def own_entries() -> list[tuple[str, str]]:
    """The texts that ship with the project: queries, each with its passage."""
    rows = map(json.loads, CALIBRATION.read_text().splitlines())
    return [(row["query"], row["passage"]) for row in rows]


def own_texts() -> list[Group]:
    """A group for each own query: its passage, passages of other queries, and two longer documents."""
    entries = own_entries()
    passages = [passage for _, passage in entries]

    def following(start: int, count: int) -> list[str]:
        return [passages[(start + step) % len(passages)] for step in range(count)]

    return [
        Group(query, [*following(at, 12), " ".join(following(at, 3)), " ".join(following(at + 5, 8))])
        for at, (query, _) in enumerate(entries)
    ]


def read_groups(file: Path) -> list[Group]:
    """The groups of a JSONL file. `qrels` are optional. Raises `UnusableCollection`."""
    groups = [_group(row) for _, row in read_rows(file)]
    if not groups:
        raise UnusableCollection(f"{file}: contains no queries")
    return groups


def _group(row: Row) -> Group:
    grades = None if row.qrels is None else [float(row.qrels.get(document.id, 0)) for document in row.documents]
    return Group(row.query, [document.text for document in row.documents], grades)


def compare(reference: Engine, exported: Engine, judged: Sequence[Group] | None, console: Console) -> Parity:
    """Score the judged groups, or the project's own texts, with both engines."""
    taus: list[float] = []
    gains: list[float] = []
    differences, count = [0.0], 0
    started = perf_counter()
    for group in track(judged or own_texts(), "Comparing with the float32 original", console=console):
        if not judged and len(taus) >= OWN_TEXTS_GROUPS and perf_counter() - started > OWN_TEXTS_SECONDS:
            break
        original, converted = logits(reference, group), logits(exported, group)
        taus.append(_kendall_tau(original, converted))
        differences.append(float(np.abs(np.subtract(reference.activate(original), exported.activate(converted))).max()))
        count += len(original)
        if group.grades and any(group.grades):
            gains.append(ndcg(group.grades, converted) - ndcg(group.grades, original))
    return Parity(
        pairs=count,
        kendall_tau=float(np.mean(taus)),
        max_score_difference=max(differences),
        ndcg_difference=float(np.mean(gains)) if gains else None,
    )


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
