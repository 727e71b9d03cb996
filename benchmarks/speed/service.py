"""Compare the service with direct calls of `CrossEncoder.predict`: `scripts/bench service`.

The two take turns, so a machine that slows down affects both alike. Figures are medians over the rounds.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from statistics import median
from typing import Annotated, Any

import httpx
import numpy as np
import typer
from rich.table import Table

from app.engines.models.source import EMBEDDED
from app.pages.options import HtmlFile
from app.pages.page import save
from benchmarks.load import Run, documents_per_second, make_bodies, print_table, run
from benchmarks.page import model_name, service_page
from benchmarks.process import service

# `predict` runs in this process with its defaults.
DIRECT = "CrossEncoder.predict"
SERVICE_1, SERVICE_8 = "service, 1 client", "service, 8 clients"
PROBE_INTERVAL = 0.01
MEMORY = "process_resident_memory_bytes"


class Direct:
    """`CrossEncoder.predict`, called once per request."""

    def __init__(self) -> None:
        from sentence_transformers import CrossEncoder

        self._model = CrossEncoder(str(EMBEDDED), device="cpu")
        self.run(make_bodies(2, 20, "20-300"))

    def run(self, bodies: Sequence[dict[str, Any]]) -> float:
        """Documents per second."""
        started = time.perf_counter()
        for body in bodies:
            pairs = [(body["query"], document) for document in body["documents"]]
            self._model.predict(pairs, show_progress_bar=False)
        return sum(len(body["documents"]) for body in bodies) / (time.perf_counter() - started)


def measure_throughput(direct: Direct, url: str, name: str, rounds: int, requests: int) -> dict[str, float]:
    """Documents per second of each contender: medians over the rounds."""
    speeds: dict[str, list[float]] = {DIRECT: [], SERVICE_1: [], SERVICE_8: []}
    for number in range(rounds):
        title = f"{name}, round {number + 1} of {rounds}:"
        bodies = make_bodies(requests, 20, "20-300")
        speeds[DIRECT].append(direct.run(bodies))
        speeds[SERVICE_1].append(documents_per_second(asyncio.run(run(url, bodies, 1, f"{title} 1 client"))))
        bodies = make_bodies(requests, 20, "20-300")
        speeds[SERVICE_8].append(documents_per_second(asyncio.run(run(url, bodies, 8, f"{title} 8 clients"))))
    return {contender: median(values) for contender, values in speeds.items()}


def padding_of(url: str, requests: int) -> float:
    """Share of padding in the tokens that a load of 8 clients computes."""
    before = httpx.get(f"{url}/metrics?format=json").json()["batches"]
    asyncio.run(run(url, make_bodies(requests, 20, "20-300"), 8, "padding"))
    after = httpx.get(f"{url}/metrics?format=json").json()["batches"]
    padding = after["tokens"] * after["padding_ratio"] - before["tokens"] * (before["padding_ratio"] or 0)
    return float(padding / (after["tokens"] - before["tokens"]))


def cached_latency(url: str) -> dict[str, float]:
    """A fully cached request of 20 documents: p50 with one client, requests per second with 8."""
    bodies = make_bodies(1, 20, "20-300", cached=True)
    asyncio.run(run(url, bodies, 1))
    alone = asyncio.run(run(url, bodies * 500, 1, "cached, 1 client")).summary()
    many = asyncio.run(run(url, bodies * 2000, 8, "cached, 8 clients")).summary()
    return {"cached_p50_ms": alone["p50_ms"], "cached_requests_per_second": many["requests_per_second"]}


def health_under_load(url: str, requests: int) -> float:
    """p99 latency of `/health` in milliseconds, while 8 clients keep the model busy."""

    async def probe(client: httpx.AsyncClient, load: "asyncio.Task[Run]") -> list[float]:
        latencies = []
        while not load.done():
            started = time.perf_counter()
            (await client.get("/health")).raise_for_status()
            latencies.append(time.perf_counter() - started)
            await asyncio.sleep(PROBE_INTERVAL)
        return latencies

    async def both() -> list[float]:
        load = asyncio.create_task(run(url, make_bodies(requests, 20, "20-300"), 8, "health under load"))
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            latencies = await probe(client, load)
        await load
        return latencies

    return float(np.percentile(asyncio.run(both()), 99) * 1000)


def measure(direct: Direct, backend: str, rounds: int, requests: int) -> dict[str, float | str]:
    """All figures of the service with one engine."""
    with service(RERANKER_BACKEND=backend) as (url, start_seconds):
        health = httpx.get(f"{url}/health").json()
        name = f"{health['backend']} {health['precision']}"
        speeds = measure_throughput(direct, url, name, rounds, requests)
        padding = padding_of(url, requests)
        metrics = httpx.get(f"{url}/metrics").text
        memory = next(float(line.split()[1]) for line in metrics.splitlines() if line.startswith(MEMORY))
        return {
            "engine": name,
            "predict_documents_per_second": round(speeds[DIRECT], 1),
            "documents_per_second_1_client": round(speeds[SERVICE_1], 1),
            "documents_per_second_8_clients": round(speeds[SERVICE_8], 1),
            "ratio_1_client": round(speeds[SERVICE_1] / speeds[DIRECT], 2),
            "ratio_8_clients": round(speeds[SERVICE_8] / speeds[DIRECT], 2),
            "padding_percent": round(padding * 100, 1),
            "memory_mb": round(memory / 1e6),
            "start_to_ready_seconds": round(start_seconds, 2),
            "health_p99_ms": round(health_under_load(url, requests), 1),
            **cached_latency(url),
        }


ROWS = {
    "CrossEncoder.predict, documents/s": "predict_documents_per_second",
    "service, 1 client, documents/s": "documents_per_second_1_client",
    "service, 8 clients, documents/s": "documents_per_second_8_clients",
    "1 client, speedup over predict": "ratio_1_client",
    "8 clients, speedup over predict": "ratio_8_clients",
    "padding, 8 clients, %": "padding_percent",
    "memory after the load, MB": "memory_mb",
    "start to ready, s": "start_to_ready_seconds",
    "/health p99 while saturated, ms": "health_p99_ms",
    "all 20 cached, 1 client, p50 ms": "cached_p50_ms",
    "all 20 cached, 8 clients, requests/s": "cached_requests_per_second",
}


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds per contender")] = 5,
    requests: Annotated[int, typer.Option(min=8, help="Requests per round")] = 16,
    backends: Annotated[str, typer.Option(help="Comma-separated engines of the service")] = "openvino,torch",
    html: HtmlFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table")] = False,
) -> None:
    """Compare the service with CrossEncoder.predict: throughput, padding, memory, start and health."""
    direct = Direct()
    figures = [measure(direct, backend, rounds, requests) for backend in backends.split(",")]
    caption, names = "20 documents of 20-300 words", [str(column["engine"]) for column in figures]
    rows = [[title, *(str(column[name]) for column in figures)] for title, name in ROWS.items()]
    if html:
        settings = {"model": model_name(EMBEDDED), "rounds": str(rounds), "requests per round": str(requests)}
        save(service_page(figures, settings, (caption, names, rows)), html)
    if as_json:
        print(json.dumps(figures, indent=2))
        return
    table = Table(caption, *names)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    print_table(table)
