"""Which other evidence, and with what weight, orders best together with the model. Needs the extra `eval`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from app.evaluation.topic import Topic
from app.first_stage.fusion import fuse
from app.first_stage.lexical import lexical_scores
from app.serving.folding import by_position
from app.types import Evidence, Fusion

EVIDENCE: tuple[Evidence, ...] = ("lexical", "order")
WEIGHTS = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.2, 2.0)
ALONE = Fusion("off", 0.0)
HALVES = (0, 1)

Logits = Mapping[str, Sequence[float]]
"""The model's logits for the documents of each query, in the order of the search, by query id."""


class Trial(NamedTuple):
    """One way to order the documents of all queries."""

    fusion: Fusion
    ndcg: list[float]
    """Of each query, in their order."""

    def mean(self, queries: Sequence[int]) -> float:
        return sum(self.ndcg[index] for index in queries) / len(queries)


def find_fusion(topics: Sequence[Topic], logits: Logits, cutoff: int) -> dict[str, Any]:
    """nDCG with each evidence and weight, the best of them, and its gain on queries that did not choose it."""
    from app.evaluation.measures import interval

    trials = list(_trials(topics, logits, cutoff))
    alone, best = trials[0], _best(trials, range(len(topics)))
    return {
        "trials": [
            {"evidence": trial.fusion.evidence, "weight": trial.fusion.weight, "ndcg": trial.mean(range(len(topics)))}
            for trial in trials
        ],
        "best": {"evidence": best.fusion.evidence, "weight": best.fusion.weight},
        "gain": interval(_gains(trials, alone))._asdict() if len(topics) > 1 else None,
    }


def alone_and_fused(topics: Sequence[Topic], logits: Logits, cutoff: int) -> list[Trial]:
    """The model alone and, if it is better on all queries, the best fusion.

    The nDCG of each query with fusion is that of the weight that is best on the other half of the queries.
    """
    trials = list(_trials(topics, logits, cutoff))
    alone, best = trials[0], _best(trials, range(len(topics)))
    if best is alone or len(topics) < len(HALVES):
        return [alone]
    fused = [own + gain for own, gain in zip(alone.ndcg, _gains(trials, alone), strict=True)]
    return [alone, Trial(best.fusion, fused)]


def _trials(topics: Sequence[Topic], logits: Logits, cutoff: int) -> Iterator[Trial]:
    """The model alone, then each evidence with each weight."""
    from app.evaluation.measures import measure

    qrels = {topic.qid: topic.qrels for topic in topics}
    known = {kind: {topic.qid: _evidence(kind, topic) for topic in topics} for kind in EVIDENCE}
    for fusion in [ALONE, *(Fusion(kind, weight) for kind in EVIDENCE for weight in WEIGHTS)]:
        scores = {
            topic.qid: fuse(logits[topic.qid], known[fusion.evidence][topic.qid], fusion)
            if fusion.weight
            else logits[topic.qid]
            for topic in topics
            if topic.qid in logits
        }
        rankings = {
            topic.qid: [
                name
                for _, name in sorted(zip(scores[topic.qid], topic.documents, strict=True), key=lambda row: -row[0])
            ]
            for topic in topics
            if topic.qid in logits
        }
        found = measure(rankings, qrels, cutoff)
        yield Trial(fusion, [found[topic.qid][f"nDCG@{cutoff}"] for topic in topics])


def _evidence(kind: Evidence, topic: Topic) -> Sequence[float]:
    documents = list(topic.documents.values())
    if kind == "order" or not documents:
        return by_position(len(documents))
    return lexical_scores([topic.query] * len(documents), documents)


def _best(trials: Sequence[Trial], queries: Sequence[int]) -> Trial:
    """The trial with the highest mean over these queries; the first one of equals."""
    return max(trials, key=lambda trial: trial.mean(queries))


def _gains(trials: Sequence[Trial], alone: Trial) -> list[float]:
    """For each query, the gain over the model alone of the trial that is best on the other half of the queries."""
    halves = [range(first, len(alone.ndcg), 2) for first in HALVES]
    gains = dict[int, float]()
    for chosen_on, measured_on in (halves, halves[::-1]):
        best = _best(trials, chosen_on)
        gains |= {index: best.ndcg[index] - alone.ndcg[index] for index in measured_on}
    return [gains[index] for index in sorted(gains)]


def print_fusion(figures: Mapping[str, Any], name: str) -> None:
    """Print the figures of `find_fusion` for people, with the settings to copy. `name` is that of the measure."""
    head, rows = fusion_table(figures, name)
    table = Table(*head)
    for column in table.columns[1:]:
        column.justify = "right"
    for row, is_best in rows:
        table.add_row(*row, style="bold" if is_best else None)
    Console().print(table)
    for note in fusion_notes(figures):
        print(note)


def fusion_table(figures: Mapping[str, Any], name: str) -> tuple[Sequence[str], list[tuple[list[str], bool]]]:
    """The headings, and a row for each trial with whether it is the best."""
    best, alone = figures["best"], figures["trials"][0]["ndcg"]
    rows = [
        (
            [
                "nothing (the model alone)" if trial["evidence"] == "off" else trial["evidence"],
                f"{trial['weight']:g}" if trial["weight"] else "",
                f"{trial['ndcg']:.4f}",
                f"{trial['ndcg'] - alone:+.4f}" if trial["weight"] else "",
            ],
            {field: trial[field] for field in best} == best,
        )
        for trial in figures["trials"]
    ]
    return ("fusion with", "weight", name, "vs. the model alone"), rows


def fusion_notes(figures: Mapping[str, Any]) -> Iterator[str]:
    """The settings to copy, and how reliable the gain is."""
    best = figures["best"]
    weight = "" if best["evidence"] == "off" else f" RERANKER_FUSION_WEIGHT={best['weight']:g}"
    yield f"Best on all queries: RERANKER_FUSION={best['evidence']}{weight}"
    if figures["gain"] is not None:
        yield _judgment(figures["gain"])


def _judgment(gain: Mapping[str, float]) -> str:
    found = f"{gain['mean']:+.4f}, 95 % interval {gain['low']:+.4f} to {gain['high']:+.4f}"
    verdict = "this may be chance" if gain["low"] <= 0 <= gain["high"] else "this is unlikely to be chance"
    return f"Gain over the model alone, with the weight chosen on other queries: {found}; {verdict}."
