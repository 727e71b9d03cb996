"""Requests that arrive at a fixed rate, whatever the service does: `scripts/bench openloop`.

AIPerf sends requests at random moments (Poisson) at a share of the capacity of the service. Latency counts from the
moment at which a request was due, so that a service that stalls cannot hide it.
"""

import asyncio
import json
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import typer
from rich.table import Table

from app.engines.models.source import EMBEDDED
from app.pages.options import HtmlFile
from app.pages.page import save
from benchmarks.load import REFUSALS, make_bodies, print_table, run
from benchmarks.page import open_loop_page
from benchmarks.process import service
from benchmarks.workspace import environment

DOCUMENTS, WORDS = 20, "20-300"
CLOSED_CLIENTS = 8
AIPERF = [
    *("profile", "--model", "reranker", "--endpoint-type", "cohere_rankings", "--custom-endpoint", "/rerank/query"),
    *("--custom-dataset-type", "single_turn", "--dataset-sampling-strategy", "sequential"),
    *("--arrival-pattern", "poisson", "--random-seed", "0", "--request-timeout-seconds", "300"),
    *("--tokenizer", str(EMBEDDED), "--use-server-token-count", "--ui", "none", "--no-gpu-telemetry"),
    *("--workers-max", "1", "--record-processor-service-count", "1"),
]
COLUMNS = {
    "of capacity": "load",
    "sent/s": "offered_per_second",
    "served/s": "served_per_second",
    "rejected": "refused",
    "p50 s": "p50_seconds",
    "p90 s": "p90_seconds",
    "p99 s": "p99_seconds",
    "longest s": "longest_seconds",
    "full queue, s": "full_queue_seconds",
}


def capacity(url: str, requests: int) -> float:
    """Requests per second that keep the service just busy."""
    asyncio.run(run(url, make_bodies(4, DOCUMENTS, WORDS), 1, "warm-up"))
    summary = asyncio.run(run(url, make_bodies(requests, DOCUMENTS, WORDS), CLOSED_CLIENTS, "capacity")).summary()
    if summary["errors"]:
        raise RuntimeError(f"Requests failed: {summary['errors']}")
    return float(summary["requests_per_second"])


def offer(url: str, rate: float, seconds: float, folder: Path) -> list[dict[str, Any]]:
    """Let AIPerf send requests at this rate; returns its records, one per request."""
    bodies = make_bodies(max(2, round(rate * seconds)), DOCUMENTS, WORDS)
    lines = (
        {"texts": [{"name": "query", "contents": [body["query"]]}, {"name": "passages", "contents": body["documents"]}]}
        for body in bodies
    )
    inputs = folder / "requests.jsonl"
    inputs.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [str(environment("aiperf").with_name("aiperf")), *AIPERF, "--url", url, "--input-file", str(inputs)]
    command += ["--request-rate", f"{rate:.3f}", "--request-count", str(len(bodies)), "--artifact-dir", str(folder)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    records = folder / "profile_export.jsonl"
    if not records.exists():
        raise RuntimeError(f"aiperf wrote no records:\n{found.stdout[-2000:]}{found.stderr[-2000:]}")
    return [json.loads(line) for line in records.read_text().splitlines()]


def figures(records: Sequence[dict[str, Any]], skipped: float) -> dict[str, Any]:
    """Rates per second, shares, and latencies in seconds of the requests due after the first `skipped` seconds."""
    due = np.array([record["metadata"]["credit_issued_ns"] for record in records]) / 1e9
    ended = np.array([record["metadata"]["request_end_ns"] for record in records]) / 1e9
    statuses = np.array([str((record.get("error") or {"code": 200}).get("code")) for record in records])
    start, end = due.min() + skipped, due.max()
    meant, served = due >= start, statuses == "200"
    latencies = (ended - due)[meant & served]
    p50, p90, p99 = np.percentile(latencies, [50, 90, 99]) if len(latencies) else (np.nan,) * 3
    return {
        "requests": meant.sum(),
        "offered_per_second": (meant.sum() - 1) / (end - start),
        "served_per_second": (served & (ended >= start) & (ended <= end)).sum() / (end - start),
        "refused": np.isin(statuses[meant], REFUSALS).mean(),
        "p50_seconds": p50,
        "p90_seconds": p90,
        "p99_seconds": p99,
        "longest_seconds": latencies.max(initial=0),
        "statuses": dict(Counter(statuses[meant].tolist())),
    }


def main(
    loads: Annotated[str, typer.Option(help="Comma-separated shares of the capacity in %")] = "50,80,120",
    seconds: Annotated[float, typer.Option(min=5, help="Seconds per load, after the queue is full")] = 60,
    requests: Annotated[int, typer.Option(min=8, help="Requests that measure the capacity")] = 64,
    html: HtmlFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table")] = False,
) -> None:
    """Send requests below and above the capacity: the excess should be rejected, the rest stay fast."""
    environment("aiperf")
    rows = []
    with service() as (url, _), tempfile.TemporaryDirectory() as folder:
        limits = httpx.get(f"{url}/health", trust_env=False).json()
        most = capacity(url, requests)
        for load in loads.split(","):
            place = Path(folder) / load
            place.mkdir()
            share, room = float(load) / 100, limits["max_parallel"] + limits["max_queue"]
            # Above the capacity, measure only after the queue is full.
            filling = room / (most * (share - 1)) if share > 1 else 0
            row = figures(offer(url, most * share, filling + seconds, place), filling)
            rows.append({"load": share, **row, "full_queue_seconds": room / most})
    if html:
        settings = {"capacity, requests/s": f"{most:.2f}", "documents": str(DOCUMENTS), "words": WORDS}
        save(open_loop_page(rows, settings, ("one row per load", (*COLUMNS, "statuses"), _cells(rows))), html)
    show(rows, most, as_json)
    if any(set(row["statuses"]) - {"200", *REFUSALS} for row in rows):
        raise typer.Exit(1)


def show(rows: Sequence[dict[str, Any]], most: float, as_json: bool) -> None:
    """Print one row per load. The last figure is how long a full queue takes at the measured capacity."""
    if as_json:
        print(json.dumps({"capacity_per_second": most, "loads": rows}, indent=2, default=float))
        return
    table = Table(*COLUMNS, "statuses", title=f"capacity {most:.2f} requests/s of {DOCUMENTS} documents, {WORDS} words")
    for column in table.columns:
        column.justify = "right"
    for row in _cells(rows):
        table.add_row(*row)
    print_table(table)


def _cells(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    shares = ("load", "refused")
    return [
        [
            *(f"{row[name]:.0%}" if name in shares else f"{row[name]:.2f}" for name in COLUMNS.values()),
            ", ".join(f"{count} × {status}" for status, count in row["statuses"].items()),
        ]
        for row in rows
    ]
