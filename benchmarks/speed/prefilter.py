"""Recall and cost of the first stage, and nDCG with and without it: `scripts/bench prefilter`.

The candidates of a query are its labelled documents and random other documents of the same file.
"""

import gc
import json
import os
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import httpx
import numpy as np
import typer
from rich import box
from rich.table import Table

from app.export.parity import ndcg
from app.first_stage.prefilter import Prefilter, load_embeddings
from app.types import Method
from benchmarks.load import print_table, progress_bar
from benchmarks.process import service
from benchmarks.shapes import SHAPES, make_shape
from benchmarks.texts import read_sets
from benchmarks.workspace import WORK

METHODS: tuple[Method, ...] = ("lexical", "embedding", "hybrid")
DEPTHS = (10, 100)


@dataclass(frozen=True, slots=True)
class Candidates:
    """A query, its documents, and the relevance grade of each."""

    query: str
    documents: list[str]
    grades: list[float]


def candidates(rows: Sequence[dict[str, Any]], count: int) -> Iterator[Candidates]:
    """`count` candidates for each query that has a relevant document. The same rows give the same candidates."""
    pool = {document["id"]: document["text"] for row in rows for document in row["documents"]}
    chosen = random.Random(0)
    for row in rows:
        own = [document["id"] for document in row["documents"]]
        if not any(row["qrels"].get(name) for name in own):
            continue
        others = sorted(pool.keys() - set(own))
        names = own + chosen.sample(others, min(len(others), count - len(own)))
        chosen.shuffle(names)
        yield Candidates(
            row["query"], [pool[name] for name in names], [float(row["qrels"].get(name, 0)) for name in names]
        )


@contextmanager
def one_core() -> Iterator[None]:
    """Pin this process to one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def first_stage(groups: Sequence[Candidates], method: Method, prefilter: Prefilter) -> dict[str, float]:
    """Recall of the relevant documents at each depth, and milliseconds per request on one core."""
    times: list[float] = []
    found: dict[int, list[float]] = {depth: [] for depth in DEPTHS}
    with progress_bar(method) as progress, one_core():
        for group in progress.track(groups, description=method):
            started = time.perf_counter()
            places = prefilter.choose(method, group.query, group.documents, DEPTHS[-1]).places
            times.append((time.perf_counter() - started) * 1000)
            ranks = np.argsort(np.argsort(-np.array(places)))
            for depth in DEPTHS:
                found[depth].append(float(np.mean(ranks[np.array(group.grades) > 0] < depth)))
    recall = {f"recall_at_{depth}": float(np.mean(values)) for depth, values in found.items()}
    return recall | {"first_ms": times[0], "p50_ms": median(times), "p95_ms": float(np.percentile(times, 95))}


def whole(groups: Sequence[Candidates], methods: Sequence[Method], **settings: str) -> dict[str, dict[str, float]]:
    """nDCG@10 and seconds per request with each method; `off` reranks all documents. Methods take turns."""
    gains: dict[str, list[float]] = {method: [] for method in methods}
    times: dict[str, list[float]] = {method: [] for method in methods}
    with (
        service(ENABLE_PREDICTION_CACHE="false", **settings) as (url, _),
        httpx.Client(base_url=url, timeout=3600, trust_env=False) as client,
        progress_bar("whole") as progress,
    ):
        for group in progress.track(groups, description="whole"):
            for method in methods:
                body = {"query": group.query, "documents": group.documents, "prefilter": method}
                started = time.perf_counter()
                results = client.post("/rerank/query", json=body).raise_for_status().json()["results"]
                times[method].append(time.perf_counter() - started)
                rank = {result["index"]: rank for rank, result in enumerate(results)}
                gains[method].append(ndcg(group.grades, [-rank[index] for index in range(len(rank))]))
    return {
        method: {
            "ndcg_at_10": float(np.mean(gains[method])),
            "seconds": median(times[method]),
            "times_less": median(times[methods[0]]) / median(times[method]),
        }
        for method in methods
    }


def table_of_first_stage(figures: dict[str, dict[str, dict[str, float]]]) -> Table:
    """One row per method, several columns per set."""
    table = Table("first stage", box=box.MARKDOWN)
    for name in figures:
        for title in (*(f"recall@{depth}" for depth in DEPTHS), "p50 / p95 ms", "first ms"):
            table.add_column(f"{name}, {title}", justify="right")
    for method in METHODS:
        cells = []
        for by_method in figures.values():
            row = by_method[method]
            cells += [f"{row[f'recall_at_{depth}']:.3f}" for depth in DEPTHS]
            cells += [f"{row['p50_ms']:.0f} / {row['p95_ms']:.0f}", f"{row['first_ms']:.0f}"]
        table.add_row(method, *cells)
    return table


def table_of_whole(figures: dict[str, dict[str, dict[str, float]]]) -> Table:
    """One row per method, several columns per set."""
    table = Table("reranked", box=box.MARKDOWN)
    for name in figures:
        for title in ("nDCG@10", "s", "times faster"):
            table.add_column(f"{name}, {title}", justify="right")
    for method in next(iter(figures.values())):
        cells = [
            (f"{row[method]['ndcg_at_10']:.4f}", f"{row[method]['seconds']:.2f}", f"{row[method]['times_less']:.1f}")
            for row in figures.values()
        ]
        table.add_row(method, *(cell for row in cells for cell in row))
    return table


def main(
    data: Annotated[Path, typer.Option(help="Folder of labelled *.jsonl.gz")],
    queries: Annotated[int, typer.Option(min=1, help="Queries per file for the first stage")] = 300,
    reranked: Annotated[int, typer.Option(min=0, help="Queries per file that are also reranked")] = 10,
    documents: Annotated[int, typer.Option(min=2, max=1000, help="Candidates per query")] = 1000,
    sets: Annotated[str, typer.Option(help="Comma-separated names of files")] = "nq,squad",
    methods: Annotated[str, typer.Option(help="Comma-separated methods; the first is the baseline")] = (
        "off,lexical,embedding,hybrid"
    ),
    model: Annotated[str | None, typer.Option(help=f"Folder, or for time only {', '.join(SHAPES)}")] = None,
    embeddings: Annotated[str | None, typer.Option(help="Value of RERANKER_PREFILTER_MODEL")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables")] = False,
) -> None:
    """Measure how many relevant documents a first stage keeps, and the time and nDCG of the whole request."""
    chosen: Any = methods.split(",")
    settings = {"RERANKER_PREFILTER_MODEL": embeddings or ""}
    if model:
        settings["RERANKER_MODEL"] = str(make_shape(model, WORK / "models" / model) if model in SHAPES else model)
    rows = read_sets(data, queries)
    groups = {name: list(candidates(rows[f"{name}.jsonl.gz"], documents)) for name in sets.split(",")}
    figures: dict[str, Any] = {"first_stage": {}, "whole": {}}
    # Keep the garbage collector from scanning the texts of the benchmark during the measurement.
    gc.freeze()
    for name, each in groups.items():
        prefilter = Prefilter(lambda: load_embeddings(embeddings))
        figures["first_stage"][name] = {method: first_stage(each, method, prefilter) for method in METHODS}
        if reranked:
            step = max(1, len(each) // reranked)
            figures["whole"][name] = whole(each[::step][:reranked], chosen, **settings)
    if as_json:
        print(json.dumps(figures, indent=2))
        return
    print_table(table_of_first_stage(figures["first_stage"]))
    if reranked:
        print_table(table_of_whole(figures["whole"]))
