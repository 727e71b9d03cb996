"""Measure a running service: `python -m benchmarks.load load|latency|stress|metrics`.

The loop is closed: each of `concurrency` clients waits for a response before it sends the next request.
"""

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table

from app.pages.options import HtmlFile
from app.pages.page import save
from benchmarks.page import load_page
from benchmarks.texts import requests, word_range

OK, REFUSALS = "200", ("429", "503")
COLUMNS = {
    "clients": "concurrency",
    "requests": "requests",
    "200": "succeeded",
    "req/s": "requests_per_second",
    "docs/s": "documents_per_second",
    "p50 ms": "p50_ms",
    "p90 ms": "p90_ms",
    "p95 ms": "p95_ms",
    "p99 ms": "p99_ms",
}

cli = typer.Typer(help="Measure a running reranker service.", no_args_is_help=True, add_completion=False)

Url = Annotated[str, typer.Option(help="URL of the service", envvar="PERFORMANCE_TEST_URL")]
Documents = Annotated[int, typer.Option(min=1, help="Documents per request")]
Words = Annotated[str, typer.Option(help="Words per document, for example 20-300 or 100")]
Cached = Annotated[bool, typer.Option("--cached", help="Repeat one request, so that the cache responds")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table")]

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_WORDS = "20-300"


@dataclass(frozen=True, slots=True)
class Run:
    """One run: the latency in seconds of each successful request, in order of arrival, and all status codes."""

    concurrency: int
    documents: int
    elapsed: float
    latencies: list[float]
    statuses: Counter[str]

    def summary(self) -> dict[str, Any]:
        """Figures of the requests with status 200 (latencies in milliseconds), and counts of all other statuses."""
        percentiles = [None] * 4
        if self.latencies:
            percentiles = (np.percentile(self.latencies, [50, 90, 95, 99]) * 1000).round(2).tolist()
        p50, p90, p95, p99 = percentiles
        return {
            "concurrency": self.concurrency,
            "requests": sum(self.statuses.values()),
            "succeeded": len(self.latencies),
            "seconds": round(self.elapsed, 3),
            "requests_per_second": round(len(self.latencies) / self.elapsed, 2),
            "documents_per_second": round(len(self.latencies) * self.documents / self.elapsed, 1),
            "p50_ms": p50,
            "p90_ms": p90,
            "p95_ms": p95,
            "p99_ms": p99,
            "errors": {status: count for status, count in sorted(self.statuses.items()) if status != OK},
        }


def progress_bar(title: str) -> Progress:
    """A progress bar on stderr; hidden if the title is empty."""
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not title)


def key() -> dict[str, str]:
    """The authorization header, if RERANKER_API_KEY is set."""
    return {"Authorization": f"Bearer {found}"} if (found := os.environ.get("RERANKER_API_KEY")) else {}


async def run(url: str, bodies: Sequence[dict[str, Any]], concurrency: int, title: str = "") -> Run:
    """Send all bodies from `concurrency` clients. A progress bar appears on stderr if there is a title."""
    queue, latencies, statuses = iter(bodies), [], Counter[str]()
    with progress_bar(title) as progress:
        bar = progress.add_task(title, total=len(bodies))

        async def send_one_after_another(client: httpx.AsyncClient) -> None:
            for body in queue:
                started = time.perf_counter()
                try:
                    status = str((await client.post("/rerank/query", json=body)).status_code)
                except httpx.HTTPError as error:
                    status = f"no response ({type(error).__name__})"
                statuses[status] += 1
                if status == OK:
                    latencies.append(time.perf_counter() - started)
                progress.advance(bar)

        limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        async with httpx.AsyncClient(
            base_url=url, headers=key(), timeout=300, limits=limits, trust_env=False
        ) as client:
            started = time.perf_counter()
            await asyncio.gather(*(send_one_after_another(client) for _ in range(concurrency)))
            elapsed = time.perf_counter() - started
    return Run(concurrency, len(bodies[0]["documents"]), elapsed, latencies, statuses)


def make_bodies(count: int, documents: int, words: str, cached: bool = False) -> list[dict[str, Any]]:
    """`count` new requests that no cache has seen, or with `cached` one request `count` times."""
    try:
        bounds = word_range(words)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--words") from None
    seed = time.time_ns()
    return (
        list(requests(1, documents, bounds, seed)) * count if cached else list(requests(count, documents, bounds, seed))
    )


def documents_per_second(result: Run) -> float:
    """Throughput of a run. Raises RuntimeError if any request failed."""
    summary = result.summary()
    if summary["errors"]:
        raise RuntimeError(f"Requests failed: {summary['errors']}")
    return float(summary["documents_per_second"])


def show(summaries: Sequence[dict[str, Any]], as_json: bool) -> None:
    """Print one row per run."""
    if as_json:
        print(json.dumps(summaries[0] if len(summaries) == 1 else summaries, indent=2))
        return
    table = Table(*COLUMNS, "errors")
    for column in table.columns[:-1]:
        column.justify = "right"
    for row in _cells(summaries):
        table.add_row(*row)
    print_table(table)


def _cells(summaries: Sequence[dict[str, Any]]) -> list[list[str]]:
    return [[*(str(row[name]) for name in COLUMNS.values()), _describe(row["errors"])] for row in summaries]


def write(file: Path | None, title: str, summaries: Sequence[dict[str, Any]], url: str, **settings: object) -> None:
    """Write the page of these runs, if a file is given."""
    if file:
        address = httpx.URL(url)
        facts = {"service": f"{address.scheme}://{address.netloc.decode()}", **_engine(url)}
        facts |= {name.replace("_", " "): str(value) for name, value in settings.items()}
        grid = "times of successful requests", (*COLUMNS, "errors"), _cells(summaries)
        save(load_page(title, summaries, facts, grid), file)


def _engine(url: str) -> dict[str, str]:
    """Model and engine of the service, for the head of the page; nothing if it does not answer."""
    try:
        info = httpx.get(f"{url}/info", headers=key(), timeout=10, trust_env=False).raise_for_status().json()
    except (httpx.HTTPError, ValueError):
        return {}
    return {
        "model": str(info.get("model_id")),
        "engine": f"{info.get('backend')} on {info.get('device')}",
        "precision": str(info.get("precision")),
    }


def print_table(table: Table) -> None:
    """Print at the width of the terminal; without a terminal, wide enough for any row."""
    console = Console()
    Console(width=console.width if console.is_terminal else 140).print(table)


def _describe(errors: dict[str, int]) -> str:
    return ", ".join(f"{count} × {status}" for status, count in errors.items()) or "none"


def fail_on(summaries: Iterable[dict[str, Any]], allowed: Sequence[str] = ()) -> None:
    """Exit with status 1 if a request ended with an error that is not in `allowed`."""
    if any(status not in allowed for row in summaries for status in row["errors"]):
        raise typer.Exit(1)


@cli.command()
def load(
    requests: Annotated[int, typer.Option(min=1)] = 50,
    concurrency: Annotated[int, typer.Option(min=1)] = 5,
    documents: Documents = 20,
    words: Words = DEFAULT_WORDS,
    url: Url = DEFAULT_URL,
    cached: Cached = False,
    html: HtmlFile = None,
    json: Json = False,
) -> None:
    """Measure throughput and latency with a fixed number of clients. Exits with status 1 on any error."""
    result = asyncio.run(run(url, make_bodies(requests, documents, words, cached), concurrency, "load"))
    show([result.summary()], json)
    write(html, "Load test", [result.summary()], url, documents=documents, words=words, from_the_cache=cached)
    fail_on([result.summary()])


@cli.command()
def latency(
    warmup: Annotated[int, typer.Option(min=0, help="Requests sent first and not measured")] = 5,
    requests: Annotated[int, typer.Option(min=1)] = 100,
    documents: Documents = 20,
    words: Words = DEFAULT_WORDS,
    url: Url = DEFAULT_URL,
    cached: Cached = False,
    html: HtmlFile = None,
    json: Json = False,
) -> None:
    """Measure the latency of a single client. Exits with status 1 on any error."""
    bodies = make_bodies(warmup + requests, documents, words, cached)
    if warmup:
        asyncio.run(run(url, bodies[:warmup], 1, "warm-up"))
    result = asyncio.run(run(url, bodies[warmup:], 1, "latency"))
    show([result.summary()], json)
    write(
        html, "Latency of one client", [result.summary()], url, documents=documents, words=words, from_the_cache=cached
    )
    fail_on([result.summary()])


@cli.command()
def stress(
    max_concurrency: Annotated[int, typer.Option(min=1)] = 16,
    requests: Annotated[int, typer.Option(min=1, help="Requests per client at each step")] = 4,
    documents: Documents = 20,
    words: Words = DEFAULT_WORDS,
    url: Url = DEFAULT_URL,
    html: HtmlFile = None,
    json: Json = False,
) -> None:
    """Double the number of clients step by step. Exits with status 1 on any error except 429 and 503."""
    steps = sorted({*(2**step for step in range(max_concurrency.bit_length())), max_concurrency})
    summaries = [
        asyncio.run(
            run(url, make_bodies(clients * requests, documents, words), clients, f"{clients} clients")
        ).summary()
        for clients in steps
    ]
    show(summaries, json)
    write(html, "Load test with more and more clients", summaries, url, documents=documents, words=words)
    fail_on(summaries, allowed=REFUSALS)


@cli.command()
def metrics(url: Url = DEFAULT_URL, json: Json = False) -> None:
    """Print the metrics of the service."""
    try:
        response = httpx.get(f"{url}/metrics?format=json", headers=key(), timeout=10, trust_env=False)
        response.raise_for_status()
    except httpx.HTTPError as error:
        Console(stderr=True).print(f"Cannot read the metrics of {url}: {error}")
        raise typer.Exit(1) from None
    if json:
        print(response.text)
        return
    table = Table("metric", "value")
    for name, value in _flat(response.json()):
        table.add_row(name, f"{value:g}" if isinstance(value, float) else str(value))
    print_table(table)


def _flat(figures: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in figures.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, "-" if value is None else value


if __name__ == "__main__":
    cli()
