"""Points of quality and time: which are dominated, which to choose, and their settings. Needs the extra `eval`."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from app.types import Fusion

CUTOFF = 10
# The balanced choice is the fastest one that loses at most this much nDCG.
SMALL_LOSS = 0.01


@dataclass(frozen=True, slots=True)
class Point:
    """One way to serve, with its quality and its time."""

    model: str
    precision: str
    window: int
    """In tokens."""
    long_documents: str | None
    """None if all documents fit into the window."""
    depth: int
    fusion: Fusion
    ndcg: list[float]
    """Of each query."""
    p50_ms: float
    settings: Mapping[str, str]

    @property
    def mean(self) -> float:
        return sum(self.ndcg) / len(self.ndcg)

    def is_dominated(self, others: Sequence["Point"]) -> bool:
        """Whether another point is at least as good and as fast, and better in one of the two."""
        own = self.mean, -self.p50_ms
        return any(
            theirs != own and theirs[0] >= own[0] and theirs[1] >= own[1]
            for theirs in ((other.mean, -other.p50_ms) for other in others)
        )


def choose(points: Sequence[Point]) -> dict[str, Point]:
    """The best, the balanced and the fastest point of the frontier, by name. Equal ones are given once."""
    frontier = sorted((point for point in points if not point.is_dominated(points)), key=lambda point: point.p50_ms)
    best = max(frontier, key=lambda point: point.mean)
    balanced = next(point for point in frontier if point.mean >= best.mean - SMALL_LOSS)
    chosen: dict[str, Point] = {}
    for name, point in {"best": best, "balanced": balanced, "fastest": frontier[0]}.items():
        if all(point is not other for other in chosen.values()):
            chosen[name] = point
    return chosen


def describe(points: Sequence[Point]) -> list[dict[str, Any]]:
    """A row for each point, the best first."""
    from app.evaluation.measures import interval

    return [
        {
            "model": point.model,
            "precision": point.precision,
            "window": point.window,
            "long_documents": point.long_documents,
            "depth": point.depth,
            "fusion": point.fusion.evidence,
            "fusion_weight": point.fusion.weight,
            f"ndcg@{CUTOFF}": interval(point.ndcg)._asdict(),
            "p50_ms": round(point.p50_ms, 3),
            "dominated": point.is_dominated(points),
            "settings": dict(point.settings),
        }
        for point in sorted(points, key=lambda point: (-point.mean, point.p50_ms))
    ]


def print_frontier(figures: Mapping[str, Any]) -> None:
    """Print the figures of `reranker tune` for people, with the settings to copy."""
    print(
        f"{figures['queries']} of {figures['of']} queries; nDCG@{CUTOFF} of the search alone: {figures['search']:.4f}"
    )
    table = Table("#", "model", "precision", "window (tokens)", "long documents", "documents", "fusion")
    for heading in (f"nDCG@{CUTOFF}", "95 % interval", "p50 (ms/query)", ""):
        table.add_column(heading)
    for column in (0, 3, 5, 7, 8, 9):
        table.columns[column].justify = "right"
    for number, row in enumerate(figures["points"], 1):
        ndcg = row[f"ndcg@{CUTOFF}"]
        table.add_row(
            str(number),
            row["model"],
            row["precision"],
            str(row["window"]),
            row["long_documents"] or "all fit",
            str(row["depth"]),
            f"{row['fusion']} {row['fusion_weight']:g}" if row["fusion"] != "off" else "off",
            f"{ndcg['mean']:.4f}",
            "" if ndcg["low"] is None else f"{ndcg['low']:.4f} to {ndcg['high']:.4f}",
            f"{row['p50_ms']:.1f}",
            "dominated" if row["dominated"] else "",
            style="dim" if row["dominated"] else None,
        )
    Console().print(table)
    for name, reason in figures["left_out"].items():
        print(f"Left out: {name}: {reason}")
    for name, row in figures["chosen"].items():
        number = figures["points"].index(row) + 1
        settings = " ".join(f"{setting}={shlex.quote(value)}" for setting, value in row["settings"].items())
        print(f"\n{name} (#{number}): send the first {row['depth']} documents of each query\n{settings}")
