"""The estimate of `reranker plan` against what requests at random moments get: `scripts/bench plan`.

The speed is measured before and after each load, and the estimate is made from both, because the speed of a shared
machine changes. Latency counts from the moment at which a request was due.
"""

import asyncio
import json
import random
from collections.abc import Sequence
from time import perf_counter, time_ns
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from app.planning.estimate import Speed
from app.planning.measurement import measure, send
from app.planning.texts import Request, Size, make_requests
from benchmarks.load import print_table
from benchmarks.process import service
from reranker_client import AsyncClient

TIMEOUT_SECONDS = 600
SHARES = (0.5, 0.95)
TOLERANCE = 0.2
COLUMNS = {
    "of capacity": "load",
    "requests": "requests",
    "speed before, after": "capacities",
    "p50 ms": "p50_ms",
    "estimated": "p50_estimated_ms",
    "p95 ms": "p95_ms",
    "estimated ": "p95_estimated_ms",
}


async def offer(client: AsyncClient, size: Size, rate: float, seconds: float) -> list[float]:
    """The latencies in seconds of requests that arrive at random moments, so many per second on average."""
    requests, chosen, latencies = make_requests(size, time_ns()), random.Random(0), []

    async def arrive(due: float, request: Request) -> None:
        await asyncio.sleep(max(0.0, due - perf_counter()))
        await send(client, request)
        latencies.append(perf_counter() - due)

    async with asyncio.TaskGroup() as arrivals:
        due = started = perf_counter()
        while (due := due + chosen.expovariate(rate)) < started + seconds:
            arrivals.create_task(arrive(due, next(requests)))
    return latencies


async def check(client: AsyncClient, size: Size, loads: Sequence[float], seconds: float, measuring: float) -> list[Any]:
    """One row per load."""
    rows = []
    before = (await measure(client, size, measuring)).speed
    for load in loads:
        rate = load * before.capacity
        latencies = await offer(client, size, rate, seconds)
        after = (await measure(client, size, measuring)).speed
        both = Speed([*before.alone, *after.alone], 2 / (before.service + after.service))
        observed = np.quantile(latencies, SHARES)
        row = {"load": load, "requests": len(latencies), "capacities": [before.capacity, after.capacity]}
        for name, found, estimated in zip(("p50", "p95"), observed, both.quantiles(rate, SHARES), strict=True):
            row |= {f"{name}_ms": 1000 * found, f"{name}_estimated_ms": 1000 * estimated}
        rows.append(row)
        before = after
    return rows


def main(
    documents: Annotated[int, typer.Option(min=1)] = 20,
    words: Annotated[int, typer.Option(min=1)] = 150,
    loads: Annotated[str, typer.Option(help="Comma-separated shares of the capacity in %")] = "50,80",
    seconds: Annotated[float, typer.Option(min=1, help="Seconds per load")] = 120,
    measuring: Annotated[float, typer.Option(min=1, help="Seconds of each measurement of the speed")] = 30,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table")] = False,
) -> None:
    """Compare estimated latencies with observed ones. Exits with status 1 if one is off by more than 20 %."""

    async def run(url: str) -> list[Any]:
        async with AsyncClient(url, None, TIMEOUT_SECONDS) as client:
            shares = [float(load) / 100 for load in loads.split(",")]
            return await check(client, Size(documents, words), shares, seconds, measuring)

    with service() as (url, _):
        rows = asyncio.run(run(url))
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        show(rows)
    pairs = [(row[f"{name}_ms"], row[f"{name}_estimated_ms"]) for row in rows for name in ("p50", "p95")]
    if any(abs(estimated / found - 1) > TOLERANCE for found, estimated in pairs):
        raise typer.Exit(1)


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print one row per load."""
    table = Table(*COLUMNS)
    for column in table.columns:
        column.justify = "right"
    for row in rows:
        cells = {name: f"{row[name]:.0f}" for name in COLUMNS.values() if name.endswith("_ms")}
        cells |= {"load": f"{row['load']:.0%}", "requests": str(row["requests"])}
        cells["capacities"] = ", ".join(f"{value:.2f}" for value in row["capacities"])
        table.add_row(*(cells[name] for name in COLUMNS.values()))
    print_table(table)
