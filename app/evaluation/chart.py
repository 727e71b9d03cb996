"""Draw the figures of `reranker evaluate` as a chart. Needs the extra `eval`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")
BEFORE, AFTER = "tab:gray", "tab:blue"
GAINED, LOST = "tab:blue", "tab:orange"


def draw(figures: Mapping[str, Any], file: Path) -> None:
    """Draw the measures before and after reranking, and the difference of each query. `file` gives the format."""
    figure = Figure(figsize=(11, 4.5), dpi=150, layout="constrained")
    means, gains = figure.subplots(1, 2)
    engine = figures["engine"]
    figure.suptitle(
        f"{engine['model_id']}, {engine['backend']} {engine['precision']} on {engine['device']}: "
        f"{figures['queries']} queries, {figures['documents']} documents"
    )
    _draw_means(means, figures["measures"])
    _draw_gains(gains, figures)
    figure.legend(loc="outside lower left", ncols=2, frameon=False)
    with rc_context({"svg.fonttype": "none"}):  # keeps the text searchable
        figure.savefig(file)


def _draw_means(axes: Any, measures: Mapping[str, Any]) -> None:
    places = np.arange(len(measures))
    for when, shift, color in (("before", -0.2, BEFORE), ("after", 0.2, AFTER)):
        found = [change[when] for change in measures.values()]
        means = [each["mean"] for each in found]
        bars = axes.bar(places + shift, means, 0.38, color=color, label=when)
        axes.bar_label(bars, [f"{mean:.4f}" for mean in means], label_type="center", color="white")
        if found[0]["low"] is not None:
            around = [[each["mean"] - each["low"] for each in found], [each["high"] - each["mean"] for each in found]]
            # If all queries have one value, rounding may put the bounds on the wrong side of the mean.
            axes.errorbar(places + shift, means, np.maximum(around, 0), fmt="none", ecolor="black", capsize=4)
    axes.set(title="mean over all queries, 95 % interval", ylim=(0, 1))
    axes.set_xticks(places, list(measures))


def _draw_gains(axes: Any, figures: Mapping[str, Any]) -> None:
    name = next(iter(figures["measures"]))
    gains = sorted((row["after"][name] - row["before"][name] for row in figures["per_query"]), reverse=True)
    better, worse = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    axes.bar(range(len(gains)), gains, 1, color=[GAINED if gain > 0 else LOST for gain in gains])
    axes.axhline(0, color="black", linewidth=0.8)
    title = f"{name} per query: {better} better, {worse} worse"
    axes.set(title=title, xlabel="queries, sorted by difference", ylabel="difference", ylim=(-1, 1))
