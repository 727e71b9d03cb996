"""What passages inside documents cost: `scripts/bench spans FILE`.

Each query of a labelled file is sent without passages, with them, and with them in the best few results only. A letter
after the query keeps the kinds of requests from sharing cached scores. The kinds take turns at being first.
"""

import json
import time
from pathlib import Path
from statistics import mean, median
from typing import Annotated, Any

import httpx
import typer
from rich.table import Table

from app.evaluation.collection import read_collection
from app.evaluation.topic import Topic
from benchmarks.load import print_table, progress_bar
from benchmarks.process import service

MAX_SPANS, TOP_K = 3, 5
KINDS: dict[str, dict[str, int]] = {
    "no passages": {},
    f"max_spans {MAX_SPANS}": {"max_spans": MAX_SPANS},
    f"max_spans {MAX_SPANS}, top_k {TOP_K}": {"max_spans": MAX_SPANS, "top_k": TOP_K},
}
# The first queries compile shapes.
WARM_UP = 2


def measure(topics: list[Topic]) -> dict[str, float]:
    """Median seconds of a request of each kind."""
    seconds: dict[str, list[float]] = {name: [] for name in KINDS}
    names = list(KINDS)
    with service() as (url, _), httpx.Client(base_url=url, timeout=600) as client, progress_bar("queries") as progress:
        bar = progress.add_task("queries", total=len(topics))
        for number, topic in enumerate(topics):
            for turn in range(len(names)):
                kind = (number + turn) % len(names)
                body = {"query": f"{topic.query} {'abc'[kind]}", "documents": list(topic.documents.values())} | KINDS[
                    names[kind]
                ]
                started = time.perf_counter()
                client.post("/rerank", json=body).raise_for_status()
                if number >= min(WARM_UP, len(topics) - 1):
                    seconds[names[kind]].append(time.perf_counter() - started)
            progress.advance(bar)
    return {name: median(each) for name, each in seconds.items()}


def main(
    file: Annotated[Path, typer.Argument(help="Labelled queries, as reranker evaluate reads them", dir_okay=False)],
    documents: Annotated[int, typer.Option(min=1, help="Documents per request, at most")] = 20,
    queries: Annotated[int, typer.Option(min=1, help="Queries to measure")] = 30,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table")] = False,
) -> None:
    """Measure requests with passages inside documents, and the same requests without them."""
    topics = read_collection(file, depth=documents, queries=queries + WARM_UP)
    figures: dict[str, Any] = {
        "documents": documents,
        "words_per_document": mean(len(text.split()) for topic in topics for text in topic.documents.values()),
        "seconds": measure(topics),
    }
    if as_json:
        print(json.dumps(figures, indent=2))
        return
    plain = figures["seconds"]["no passages"]
    table = Table(f"up to {documents} documents of {figures['words_per_document']:.0f} words", "p50 ms", "times")
    for name, each in figures["seconds"].items():
        table.add_row(name, f"{each * 1000:.0f}", f"{each / plain:.2f}")
    print_table(table)
