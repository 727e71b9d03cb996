"""Compare the service with its peers on one machine: `scripts/bench compare`.

All contenders run at once and take turns within each round, so a machine that slows down affects all of them alike.
Figures are medians over the rounds. Compare figures only within one table.
"""

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from app.engines.models.source import EMBEDDED
from app.export.parity import ndcg
from app.machine.hardware import cpu_limit
from app.pages.options import HtmlFile
from app.pages.page import save
from benchmarks.load import progress_bar
from benchmarks.options import numbers
from benchmarks.page import Grid, comparison_page, model_name
from benchmarks.shapes import SHAPES, make_shape, pair_flops
from benchmarks.speed.ceiling import matmul_ceiling
from benchmarks.speed.contenders import CONTENDERS, Contender, ContenderDied, make_contender, running
from benchmarks.texts import LONG_TOKENS, LONG_WORDS, read_sets, requests
from benchmarks.workspace import WORK


@dataclass(frozen=True, slots=True)
class Workload:
    """A kind of request, and how many of them one round sends with one client and with several."""

    documents: int
    words: tuple[int, int]
    alone: int
    together: int


WORKLOADS = {
    "short": Workload(20, (20, 60), 4, 16),
    "mixed": Workload(20, (20, 300), 3, 16),
    "long": Workload(20, (LONG_WORDS, LONG_WORDS), 1, 8),
    "large": Workload(1000, (20, 300), 1, 8),
}
EVALUATED_QUERIES = 40
PERCENTILES = {"min": 0, "p25": 25, "p50": 50, "p75": 75, "p90": 90, "p95": 95, "p99": 99, "max": 100}


@dataclass(slots=True)
class Cell:
    """One contender on one workload with one number of clients: a speed per round, a latency per request."""

    documents_per_second: list[float] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)
    died: bool = False


Results = dict[tuple[str, str, int], Cell]


async def _round(contender: Contender, bodies: Sequence[dict[str, Any]], clients: int, cell: Cell) -> None:
    queue = iter(bodies)

    async def send_one_after_another() -> None:
        for body in queue:
            started = time.perf_counter()
            await contender.rank(body["query"], body["documents"])
            cell.latencies_ms.append((time.perf_counter() - started) * 1000)

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(send_one_after_another())
    documents = sum(len(body["documents"]) for body in bodies)
    cell.documents_per_second.append(documents / (time.perf_counter() - started))


async def measure(
    contenders: Sequence[Contender], workloads: Sequence[str], rounds: int, clients: Sequence[int]
) -> Results:
    """Measure every contender on every workload; contenders take turns within each round."""
    results: Results = {}
    steps = [(name, many, number) for name in workloads for many in clients for number in range(rounds)]
    with progress_bar("measuring") as progress:
        bar = progress.add_task("measuring", total=len(steps) * len(contenders))
        for name, many, number in steps:
            workload = WORKLOADS[name]
            count = workload.alone if many == 1 else workload.together
            for contender in contenders:
                progress.update(bar, description=f"{name}, {many} clients, {contender.name}", advance=1)
                if many > 1 and not contender.is_server and name == "large":
                    continue  # a library ranks one request at a time, so more clients would not change the figure
                # The first request is not measured, because new shapes cost more. No text is sent twice.
                first, *bodies = requests(count + 1, workload.documents, workload.words, time.time_ns())
                cell = Cell() if number == 0 else results[contender.name, name, many]
                results[contender.name, name, many] = cell
                await _try_round(contender, [first] if number == 0 else [], bodies, many, cell)
    return results


async def _try_round(
    contender: Contender, first: list[dict[str, Any]], bodies: list[dict[str, Any]], many: int, cell: Cell
) -> None:
    """Run a round. A contender that dies skips the other rounds of this workload and is restarted for the next."""
    if cell.died:
        return
    try:
        await _round(contender, first, 1, Cell())
        await _round(contender, bodies, many, cell)
    except* ContenderDied:
        cell.died = True
        contender.stop()
        contender.start()


async def evaluate(contenders: Sequence[Contender], sets: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """nDCG@10 of each contender, averaged over the sets."""
    means: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for name, rows in sets.items():
        with progress_bar(name) as progress:
            bar = progress.add_task(name, total=len(rows) * len(contenders))
            for contender in contenders:
                gains = []
                for row in rows:
                    scores = await contender.rank(row["query"], [document["text"] for document in row["documents"]])
                    grades = [float(row["qrels"].get(document["id"], 0)) for document in row["documents"]]
                    gains.append(ndcg(grades, scores))
                    progress.advance(bar)
                means[contender.name].append(float(np.mean(gains)))
    return {name: float(np.mean(values)) for name, values in means.items() if values}


def figures(contender: Contender, results: Results, flops: float, ceilings: dict[str, float]) -> dict[str, Any]:
    """Summarize the rounds: documents/s, latencies in milliseconds, share of the machine's peak speed."""
    cells: dict[str, dict[str, Any]] = {}
    for (name, workload, many), cell in results.items():
        if name != contender.name:
            continue
        figure: dict[str, Any] = {}
        cells[f"{workload}, {many}"] = figure
        if not cell.died:
            figure["documents_per_second"] = median(cell.documents_per_second)
            figure["p50_ms"], figure["p95_ms"] = np.percentile(cell.latencies_ms, [50, 95])
            figure["requests"] = len(cell.latencies_ms)
            values = np.percentile(cell.latencies_ms, list(PERCENTILES.values()))
            figure["percentiles_ms"] = dict(zip(PERCENTILES, values.tolist(), strict=True))
    long = [cell["documents_per_second"] for name, cell in cells.items() if name.startswith("long") and cell]
    gflops = max(long) * flops / 1e9 if long else None
    return {
        "contender": contender.name,
        "cells": cells,
        "long_gflops": gflops,
        "of_ceiling": {kind: gflops / ceiling for kind, ceiling in ceilings.items()} if gflops else {},
        "peak_memory_mb": contender.peak_memory() / 1e6,
    }


def grids(rows: Sequence[dict[str, Any]]) -> Iterator[Grid]:
    """A table of throughput and resources, and one of latencies."""
    names = list(dict.fromkeys(name for row in rows for name in row["cells"]))
    columns = ["of int8, bf16 ceiling", "nDCG@10", "peak MB", "start s"]
    throughput = [[row["contender"], *_throughput(row, names)] for row in rows]
    yield "documents/s, clients", [*names, *columns], throughput
    yield "p50 / p95 ms, clients", names, [[row["contender"], *_latencies(row, names)] for row in rows]


def tables(rows: Sequence[dict[str, Any]]) -> Iterator[Table]:
    """Both in Markdown."""
    for title, names, lines in grids(rows):
        table = Table(title, box=box.MARKDOWN)
        for name in names:
            table.add_column(name, justify="right")
        for line in lines:
            table.add_row(*line)
        yield table


def _throughput(row: dict[str, Any], names: Sequence[str]) -> Iterator[str]:
    for name in names:
        yield _cell(row, name, lambda cell: f"{cell['documents_per_second']:.3g}")
    share = row["of_ceiling"]
    yield f"{share['int8']:.0%}, {share['bf16']:.0%}" if share else "-"
    yield f"{row['ndcg_at_10']:.4f}" if row["ndcg_at_10"] is not None else "-"
    yield f"{row['peak_memory_mb']:.0f}"
    yield f"{row['start_seconds']:.1f}"


def _latencies(row: dict[str, Any], names: Sequence[str]) -> Iterator[str]:
    for name in names:
        yield _cell(row, name, lambda cell: f"{cell['p50_ms']:.0f} / {cell['p95_ms']:.0f}")


def _cell(row: dict[str, Any], name: str, form: Callable[[dict[str, float]], str]) -> str:
    cell = row["cells"].get(name)
    return "-" if cell is None else form(cell) if cell else "died"


def main(
    contenders: Annotated[
        str, typer.Option(help="Comma-separated names; ours accept a batch size: openvino-int8:512")
    ] = ",".join(CONTENDERS),
    workloads: Annotated[str, typer.Option(help="Comma-separated names")] = ",".join(WORKLOADS),
    clients: Annotated[str, typer.Option(help="Comma-separated numbers of clients")] = "1,8",
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    model: Annotated[str, typer.Option(help=f"Folder, or one of {', '.join(SHAPES)}")] = str(EMBEDDED),
    data: Annotated[Path | None, typer.Option(help="Folder of labelled *.jsonl.gz, for nDCG@10")] = None,
    queries: Annotated[int, typer.Option(min=1, help="Queries to read from each labelled file")] = EVALUATED_QUERIES,
    html: HtmlFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables")] = False,
) -> None:
    """Compare the service with other servers and libraries, on the same machine and with the same model."""
    folder = make_shape(model, WORK / "models" / model) if model in SHAPES else Path(model)
    chosen = [make_contender(name, folder) for name in contenders.split(",")]
    ceilings = {kind: matmul_ceiling(kind, cpu_limit()) for kind in ("int8", "bf16", "fp32")}
    many = numbers("clients", clients)
    sets = read_sets(data, queries) if data else {}

    async def all_figures() -> tuple[list[dict[str, Any]], dict[str, float]]:
        results = await measure(chosen, workloads.split(","), rounds, many)
        window = json.loads((folder / "tokenizer_config.json").read_text()).get("model_max_length", LONG_TOKENS)
        flops = pair_flops(folder, min(LONG_TOKENS, window))
        found = [figures(contender, results, flops, ceilings) for contender in chosen]
        quality = await evaluate(chosen, sets)
        for contender in chosen:
            await contender.close()
        return found, quality

    with running(chosen) as starts:
        rows, quality = asyncio.run(all_figures())
    for row in rows:
        row |= {"start_seconds": starts[row["contender"]], "ndcg_at_10": quality.get(row["contender"])}
    found = {"ceilings_gflops": ceilings, "contenders": rows}
    if html:
        settings = {"model": model_name(folder), "workloads": workloads, "clients": clients, "rounds": str(rounds)}
        save(comparison_page(found, settings, grids(rows)), html)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for table in tables(rows):
        Console(width=240).print(table)
    print("Ceilings, GFLOP/s: " + ", ".join(f"{kind} {value:.0f}" for kind, value in ceilings.items()))
