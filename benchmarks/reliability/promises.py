"""Fairness and deadlines: `scripts/bench promises`.

Fairness: the latency of a request of 10 documents while requests of 1,000 are being scored. Deadlines: how long after
its deadline a request gets its 504.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any

import httpx
import numpy as np
import typer
from rich.table import Table

from benchmarks.load import make_bodies, print_table, progress_bar
from benchmarks.process import service

SMALL, LARGE, WORDS = 10, 1000, "20-300"
TIMES_IDLE, LATE_MS = 2.5, 50.0
# Long enough on an idle service, too short during the large requests.
DEADLINES_MS = (150, 200, 250, 300)

# A request that is rejected at once, because it cannot meet its deadline, does not count as late.
EARLY = "cannot be met"

Bodies = Sequence[dict[str, Any]]


async def latencies(client: httpx.AsyncClient, bodies: Bodies, title: str) -> list[float]:
    """Milliseconds of each request, sent one at a time."""
    times = []
    with progress_bar(title) as progress:
        for body in progress.track(bodies, description=title):
            started = time.perf_counter()
            (await client.post("/rerank/query", json=body)).raise_for_status()
            times.append((time.perf_counter() - started) * 1000)
    return times


async def keep_busy(client: httpx.AsyncClient, bodies: Bodies) -> None:
    """Send large requests one after the other until cancelled."""
    while True:
        for body in bodies:
            await client.post("/rerank/query", json=body)


async def fairness(client: httpx.AsyncClient, requests: int) -> dict[str, float]:
    """Latency of small requests on an idle service and during large requests."""
    small = make_bodies(2 * requests, SMALL, WORDS)
    idle = await latencies(client, small[:requests], f"{SMALL} documents, idle")
    large = asyncio.create_task(keep_busy(client, make_bodies(3, LARGE, WORDS)))
    await asyncio.sleep(1.0)
    during = await latencies(client, small[requests:], f"{SMALL} documents during {LARGE}")
    large.cancel()
    with suppress(asyncio.CancelledError):
        await large
    batch_ms = await micro_batch_ms(client)
    idle_ms = float(np.percentile(idle, 50))
    return {
        "idle_p50_ms": idle_ms,
        "during_p50_ms": float(np.percentile(during, 50)),
        "during_p95_ms": float(np.percentile(during, 95)),
        "micro_batch_ms": batch_ms,
        "bound_ms": TIMES_IDLE * idle_ms + batch_ms,
    }


async def micro_batch_ms(client: httpx.AsyncClient) -> float:
    """Average milliseconds of a micro-batch so far."""
    figures = (await client.get("/metrics?format=json")).json()
    return float(figures["average_inference_seconds"] * 1000)


async def deadlines(client: httpx.AsyncClient, requests: int) -> dict[str, float]:
    """How long after its deadline a request gets its 504 while the engine is busy."""
    bodies = make_bodies(requests, SMALL, WORDS)
    large = asyncio.create_task(keep_busy(client, make_bodies(3, LARGE, WORDS)))
    await asyncio.sleep(1.0)
    late = []
    with progress_bar("deadlines") as progress:
        for index, body in enumerate(progress.track(bodies, description="deadlines")):
            deadline = DEADLINES_MS[index % len(DEADLINES_MS)]
            started = time.perf_counter()
            response = await client.post("/rerank/query", json=body | {"timeout_ms": deadline})
            if response.status_code == httpx.codes.GATEWAY_TIMEOUT and EARLY not in response.text:
                late.append((time.perf_counter() - started) * 1000 - deadline)
    large.cancel()
    with suppress(asyncio.CancelledError):
        await large
    return {"missed": len(late), "late_p95_ms": float(np.percentile(late, 95)), "late_max_ms": max(late)}


async def measure(url: str, requests: int) -> dict[str, dict[str, float]]:
    """Fairness and deadlines of a service without a cache."""
    async with httpx.AsyncClient(base_url=url, timeout=300, trust_env=False) as client:
        await latencies(client, make_bodies(10, SMALL, WORDS), "warm-up")
        return {"fairness": await fairness(client, requests), "deadlines": await deadlines(client, requests)}


def main(
    requests: Annotated[int, typer.Option(min=20, help="Small requests per measurement")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table")] = False,
) -> None:
    """Measure how large requests delay a small one, and how late a 504 arrives after the deadline."""
    with service(ENABLE_PREDICTION_CACHE="false") as (url, _):
        figures = asyncio.run(measure(url, requests))
    if as_json:
        print(json.dumps(figures, indent=2))
        return
    fair, late = figures["fairness"], figures["deadlines"]
    table = Table("promise", "figure", "bound", "kept")
    rows = (
        (f"p95 of {SMALL} documents during {LARGE}, ms", fair["during_p95_ms"], fair["bound_ms"]),
        ("504 after the deadline, p95, ms", late["late_p95_ms"], LATE_MS),
    )
    for name, figure, bound in rows:
        table.add_row(name, f"{figure:.1f}", f"{bound:.1f}", "yes" if figure <= bound else "NO")
    print_table(table)
    print(
        f"{SMALL} documents on an idle service: p50 {fair['idle_p50_ms']:.1f} ms. "
        f"A micro-batch: {fair['micro_batch_ms']:.1f} ms. The bound is {TIMES_IDLE} × idle + a micro-batch. "
        f"Missed deadlines: {late['missed']:.0f}, the latest 504 {late['late_max_ms']:.1f} ms after its deadline."
    )
