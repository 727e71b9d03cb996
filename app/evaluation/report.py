"""The figures of `reranker evaluate`, as a dictionary and as a table. `report` needs the extra `eval`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from app.evaluation.topic import Topic
from reranker_client.models import Info

COSTS = {
    "p50_ms": "time per query, p50 (ms)",
    "p95_ms": "time per query, p95 (ms)",
    "documents_per_second": "throughput (documents/s)",
}
COLUMNS = ("mean over all queries", "before", "after", "difference")
INTERVAL = "  95 % interval"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The response to one query."""

    order: list[str]
    """Document ids, best first."""
    scores: list[float]
    """The score of each document, in the order of the request."""
    milliseconds: float
    """From sending the request to receiving the response."""
    scored: int
    """Pairs that the model scored."""
    cached: int
    """Pairs with a known score: from the cache, or from an equal document of the same request."""
    truncated: int = 0
    """Documents that did not fit into the window as a whole, cut or read in windows."""


@dataclass(frozen=True, slots=True)
class Answers:
    """The service that was measured, and its outcomes by `qid`. Topics without documents have no outcome."""

    engine: Info
    outcomes: dict[str, Outcome]


def report(topics: Sequence[Topic], answers: Answers, cutoff: int) -> dict[str, Any]:
    """Means with their intervals, times in milliseconds, and a row per query."""
    from app.evaluation.measures import measure

    outcomes = answers.outcomes
    qrels = {topic.qid: topic.qrels for topic in topics}
    before = measure({topic.qid: list(topic.documents) for topic in topics}, qrels, cutoff)
    after = measure({qid: outcome.order for qid, outcome in outcomes.items()}, qrels, cutoff)
    return {
        "engine": answers.engine.model_dump(include={"model_id", "device", "backend", "precision"}),
        "queries": len(topics),
        "documents": sum(len(topic.documents) for topic in topics),
        **_costs(list(outcomes.values())),
        "measures": _changes(list(before.values()), list(after.values())),
        "per_query": [
            {
                "qid": qid,
                "before": before[qid],
                "after": after[qid],
                "ms": round(outcomes[qid].milliseconds, 3) if qid in outcomes else None,
            }
            for qid in qrels
        ],
    }


def _costs(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Counts and times of all requests. The times are None if no request was sent."""
    times = [outcome.milliseconds for outcome in outcomes]
    ranked = sum(len(outcome.order) for outcome in outcomes)
    return {
        "scored": sum(outcome.scored for outcome in outcomes),
        "cached": sum(outcome.cached for outcome in outcomes),
        "p50_ms": round(float(np.median(times)), 3) if times else None,
        "p95_ms": round(float(np.percentile(times, 95)), 3) if times else None,
        "documents_per_second": round(1000 * ranked / sum(times), 1) if times else None,
    }


def _changes(before: Sequence[Mapping[str, float]], after: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """By measure, its mean and interval before, after, and of the differences; both lists have the same queries."""
    from app.evaluation.measures import interval

    changes: dict[str, Any] = {}
    for name in before[0]:
        old, new = [values[name] for values in before], [values[name] for values in after]
        differences = [second - first for first, second in zip(old, new, strict=True)]
        columns = {"before": old, "after": new, "difference": differences}
        changes[name] = {column: interval(values)._asdict() for column, values in columns.items()}
    return changes


def print_report(figures: Mapping[str, Any]) -> None:
    """Print the figures of `report`, plus `left_out`, for people."""
    engine = figures["engine"]
    print(f"{engine['model_id']}, {engine['backend']} {engine['precision']} on {engine['device']}")
    print(f"{figures['queries']} queries, {figures['documents']} documents, {figures['scored']} scored by the model")
    table = Table(*COLUMNS)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in measure_rows(figures):
        table.add_row(*row, end_section=row[0] == INTERVAL)
    table.add_section()
    for row in cost_rows(figures):
        table.add_row(*row)
    Console().print(table)
    for note in notes(figures):
        print(note)


def measure_rows(figures: Mapping[str, Any]) -> Iterator[list[str]]:
    """The mean of each measure and, below it, its interval, if there is one."""
    for name, change in figures["measures"].items():
        yield [name, *_cells(change, "{mean:{sign}.4f}")]
        if change["before"]["low"] is not None:
            yield [INTERVAL, *_cells(change, "{low:{sign}.4f} to {high:{sign}.4f}")]


def cost_rows(figures: Mapping[str, Any]) -> Iterator[list[str]]:
    for name, label in COSTS.items():
        yield [label, "", "-" if figures[name] is None else f"{figures[name]:.1f}", ""]


def notes(figures: Mapping[str, Any]) -> Iterator[str]:
    """What a reader of the table must know."""
    if figures["left_out"]:
        yield f"Queries without a relevant document, left out: {figures['left_out']}"
    if figures["cached"]:
        yield (
            f"Scores from the service's cache or from an equal document: {figures['cached']}. "
            "The times are shorter than the model alone would need."
        )


def _cells(change: Mapping[str, Mapping[str, float]], form: str) -> list[str]:
    """The values before, after, and their difference with its sign."""
    return [form.format(**values, sign="+" if column == "difference" else "") for column, values in change.items()]
