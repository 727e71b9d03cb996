"""What it costs to watch the quality, and what it finds: `scripts/bench quality FILE`.

Cost: the same requests go to a service as it is by default, to one that writes a sample of all requests, and to two
that compare a second model. The services take turns.

Drift: each query is ranked with its own documents, and with those of another query, as if the search were broken. The
reference is the top scores of one half of the queries. The last hour is those of the other half, with a share of broken
requests.
"""

import asyncio
import json
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import httpx
import numpy as np
import typer
from rich.table import Table

from app.evaluation.collection import read_collection
from app.evaluation.lines import UnusableCollection
from app.evaluation.options import JudgedFile
from app.telemetry.drift import Drift
from app.telemetry.metrics import Metrics
from benchmarks.load import Run, print_table, progress_bar, run
from benchmarks.options import numbers
from benchmarks.process import service

# Shares of the requests for which the search is broken.
BROKEN = 0.0, 0.1, 0.25, 0.5, 1.0
REFERENCE, RECENT = 5000, 1000
HOUR = 3600
LOAD_SECONDS = 300
DRIFT_QUERIES = 300
# Of requests to the second model.
RESULTS = "compared", "skipped", "interrupted"

Body = dict[str, Any]


@dataclass(slots=True)
class Way:
    """A service with these settings, and its runs by the number of clients."""

    name: str
    settings: dict[str, str]
    url: str = ""
    runs: dict[int, list[Run]] = field(default_factory=dict)

    def row(self, clients: int) -> dict[str, Any]:
        """The figures of all runs with this many clients."""
        runs = self.runs[clients]
        latencies = list(chain.from_iterable(each.latencies for each in runs))
        p50, p95 = np.percentile(latencies, [50, 95]) * 1000
        rate = len(latencies) / sum(each.elapsed for each in runs)
        return {"way": self.name, "clients": clients, "requests_per_second": rate, "p50_ms": p50, "p95_ms": p95}


def ways(sample: Path, second_model: str) -> list[Way]:
    """What an operator may turn on. The figures without judgments are always on."""
    second = {"RERANKER_SHADOW_MODEL": second_model}
    return [
        Way("default", {}),
        Way("sample of all requests", {"RERANKER_SAMPLE_FILE": str(sample), "RERANKER_SAMPLE_SHARE": "1"}),
        Way("second model for 5 %", second | {"RERANKER_SHADOW_SHARE": "0.05"}),
        Way("second model for all", second | {"RERANKER_SHADOW_SHARE": "1"}),
    ]


@contextmanager
def started(second_model: str) -> Iterator[list[Way]]:
    """All services, with their second models loaded."""
    with TemporaryDirectory() as folder, ExitStack() as stack:
        found = ways(Path(folder) / "sample.jsonl", second_model)
        for way in found:
            way.url, _ = stack.enter_context(service(ENABLE_PREDICTION_CACHE="false", **way.settings))
        deadline = time.monotonic() + LOAD_SECONDS
        while (states := {second_model_of(way).get("status", "running") for way in found}) != {"running"}:
            if "failed" in states or time.monotonic() > deadline:
                raise RuntimeError(f"The second model was not loaded within {LOAD_SECONDS} s")
            time.sleep(1)
        yield found


def second_model_of(way: Way) -> dict[str, Any]:
    """What the service reports about its second model; empty if it has none."""
    found: dict[str, Any] = httpx.get(f"{way.url}/info").raise_for_status().json().get("shadow") or {}
    return found


def send(found: Sequence[Way], bodies: Sequence[Body], clients: Sequence[int], rounds: int) -> None:
    """Send all requests to each service in turn. A first round compiles shapes, and is not counted."""
    with progress_bar("requests") as progress:
        bar = progress.add_task("requests", total=(rounds + 1) * len(clients) * len(found))
        for number in range(rounds + 1):
            for count in clients:
                for way in found:
                    result = asyncio.run(run(way.url, bodies, count))
                    if len(result.latencies) < len(bodies):
                        raise RuntimeError(f"Requests failed: {result.summary()['errors']}")
                    if number:
                        way.runs.setdefault(count, []).append(result)
                    progress.advance(bar)


def top_scores(url: str, bodies: Sequence[Body]) -> list[float]:
    """The highest score of each request."""
    with httpx.Client(base_url=url, timeout=60) as client:
        answers = (client.post("/rerank/query", json=body | {"top_k": 1}).raise_for_status() for body in bodies)
        return [answer.json()["results"][0]["relevance_score"] for answer in answers]


def drifts(right: Sequence[float], broken: Sequence[float]) -> dict[float, float]:
    """The value of `reranker_top_score_drift` by share of broken requests, for these top scores of the same queries."""
    rng = random.Random(0)
    found = {}
    for share in BROKEN:
        drift = Drift(REFERENCE, None, Metrics(), timer := _Clock())
        drift.begin("")
        for score in rng.choices(right[::2], k=REFERENCE):
            drift.see(score)
        timer.seconds += 2 * HOUR  # the reference is then no part of the last hour
        for number in range(RECENT):
            drift.see(rng.choice(broken[1::2] if number < share * RECENT else right[1::2]))
        found[share] = drift.distance()
    return found


class _Clock:
    """Time that stands still until it is set."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def main(
    file: JudgedFile,
    queries: Annotated[int, typer.Option(min=4, help="Queries to send")] = 100,
    documents: Annotated[int, typer.Option(min=2, help="Documents per request, at most")] = 20,
    clients: Annotated[str, typer.Option(help="Comma-separated numbers of clients")] = "1,4",
    rounds: Annotated[int, typer.Option(min=1, help="How often each service gets all requests")] = 3,
    second_model: Annotated[str, typer.Option(help="Value of RERANKER_SHADOW_MODEL")] = "embedded:multilingual",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables")] = False,
) -> None:
    """Measure what a sample and a second model cost, and the drift when the search breaks."""
    try:
        topics = list(read_collection(file, depth=documents, queries=max(queries, DRIFT_QUERIES)))
    except UnusableCollection as error:
        raise typer.BadParameter(str(error), param_hint="FILE") from None
    texts = [list(topic.documents.values()) for topic in topics]
    bodies = [{"query": topic.query, "documents": own} for topic, own in zip(topics, texts, strict=True)]
    foreign = [body | {"documents": other} for body, other in zip(bodies, texts[1:] + texts[:1], strict=True)]
    counts = numbers("clients", clients)
    with started(second_model) as found:
        send(found, bodies[:queries], counts, rounds)
        drift = drifts(*(top_scores(found[0].url, each) for each in (bodies, foreign)))
        second = {way.name: second_model_of(way) for way in found if second_model_of(way)}
    rows = [way.row(count) for count in counts for way in found]
    if as_json:
        print(json.dumps({"rows": rows, "second_model": second, "drift": drift}, indent=2))
        return
    _show(rows, second, drift)


def _show(rows: Sequence[dict[str, Any]], second: dict[str, dict[str, Any]], drift: dict[float, float]) -> None:
    default = {row["clients"]: row["requests_per_second"] for row in rows if row["way"] == "default"}
    cost = Table("way", "clients", "requests/s", "of default", "p50 ms", "p95 ms")
    for row in rows:
        rate = row["requests_per_second"]
        times = f"{row['p50_ms']:.1f}", f"{row['p95_ms']:.1f}"
        cost.add_row(row["way"], str(row["clients"]), f"{rate:.1f}", f"{rate / default[row['clients']]:.1%}", *times)
    print_table(cost)
    compared = Table("way", *RESULTS, "average tau")
    for name, figures in second.items():
        tau = figures["average_tau"]
        numbers = (str(figures["requests"].get(each, 0)) for each in RESULTS)
        compared.add_row(name, *numbers, "" if tau is None else f"{tau:.2f}")
    print_table(compared)
    found = Table("requests for which the search is broken", "reranker_top_score_drift")
    for share, distance in drift.items():
        found.add_row(f"{share:.0%}", f"{distance:.2f}")
    print_table(found)
