"""The tables that the commands print."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from app.evaluation.calibration import Bin
    from training.validation import Figures


def print_reliability(bins: "Sequence[Bin]") -> None:
    """Print how often documents with a given score are relevant, and what a threshold at its lower end keeps."""
    columns = "score", "pairs", "mean score", "relevant", "precision from here", "recall from here"
    table = _table("Reliability of the scores on held-out groups", *columns)
    relevant = sum(each.pairs * each.relevant for each in bins)
    for number, each in enumerate(bins):
        kept = bins[number:]
        found = sum(other.pairs * other.relevant for other in kept)
        table.add_row(
            f"{each.low:.1f} to {each.high:.1f}",
            f"{each.pairs:,}",
            f"{each.mean_score:.3f}",
            f"{each.relevant:.3f}",
            f"{found / sum(other.pairs for other in kept):.3f}",
            f"{found / relevant:.3f}" if relevant else "",
        )
    Console().print(table)


def print_gains(title: str, figures: "Sequence[Figures]") -> None:
    """Print nDCG of BM25 and of the model by domain, with the mean and the worst gain."""
    table = _table(title, "domain", "queries", "BM25", "model", "gain")
    for each in figures:
        table.add_row(each.domain, str(each.queries), *_rounded(each.bm25, each.model), f"{each.gain:+.4f}")
    bm25, model, gains = ([getattr(each, name) for each in figures] for name in ("bm25", "model", "gain"))
    table.add_section()
    table.add_row("mean", "", *_rounded(fmean(bm25), fmean(model)), f"{fmean(gains):+.4f}")
    table.add_row("worst", "", "", "", f"{min(gains):+.4f}")
    Console().print(table)


def print_places(figures: Mapping[str, float]) -> None:
    """Print nDCG by the position of the answer in long documents."""
    table = _table("Long documents", *figures)
    table.add_row(*_rounded(*figures.values()))
    Console().print(table)


def _table(title: str, *columns: str) -> Table:
    table = Table(*columns, title=title)
    for column in table.columns:
        column.justify = "right"
    return table


def _rounded(*figures: float) -> list[str]:
    return [f"{each:.4f}" for each in figures]
