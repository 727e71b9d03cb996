"""Latency budgets against fixed depths, and cascades, by nDCG and latency: `scripts/bench budget FILE`.

Both read the best documents of the same first stage. The queries come in parts, and the ways take turns with each part,
because the speed of a shared machine changes.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Annotated, Any

import numpy as np
import typer
from rich import box
from rich.progress import Progress
from rich.table import Table

from app.evaluation.collection import judged, read_collection
from app.evaluation.lines import UnusableCollection
from app.evaluation.measures import measure
from app.evaluation.options import JudgedFile, Queries
from app.evaluation.topic import Topic
from benchmarks.load import print_table, progress_bar
from benchmarks.options import numbers
from benchmarks.process import service
from reranker_client import AsyncClient

CUTOFF, PARTS, TIMEOUT_SECONDS = 10, 4, 600
SMALL, LARGE = "small", "large"
COLUMNS = {
    "clients": "clients",
    "way": "way",
    "nDCG@10": "ndcg_at_10",
    "documents read": "read",
    "by the large model": "read_by_large",
    "p50 ms": "p50_ms",
    "p95 ms": "p95_ms",
    "over budget": "overrun",
}


@dataclass(slots=True)
class Trial:
    """One way to limit the work of a request, and its result with this many clients."""

    clients: int
    way: str
    options: Mapping[str, Any]
    budget_ms: int | None = None
    rankings: dict[str, list[str]] = field(default_factory=dict)
    milliseconds: list[float] = field(default_factory=list)
    read: list[int] = field(default_factory=list)
    read_by_large: list[int] = field(default_factory=list)
    """In a cascade only."""

    async def ask(self, client: AsyncClient, topic: Topic) -> None:
        """Rank one query."""
        ids, started = list(topic.documents), perf_counter()
        ranking = await client.rerank(topic.query, list(topic.documents.values()), **self.options)
        self.milliseconds.append(1000 * (perf_counter() - started))
        self.rankings[topic.qid] = [ids[result.index] for result in ranking]
        self.read.append(ranking.meta.documents - ranking.meta.prefiltered)
        if ranking.meta.cascade:
            self.read_by_large.append(ranking.meta.cascade[LARGE])

    def row(self, topics: Sequence[Topic]) -> dict[str, Any]:
        """The figures. Latency is that of the client, so a budget can be exceeded by the answer alone."""
        gains = measure(self.rankings, {topic.qid: topic.qrels for topic in topics}, CUTOFF)
        p50, p95 = np.percentile(self.milliseconds, [50, 95])
        over = None if self.budget_ms is None else float(np.mean(np.array(self.milliseconds) > self.budget_ms))
        return {
            "clients": self.clients,
            "way": self.way,
            "ndcg_at_10": float(np.mean([each[f"nDCG@{CUTOFF}"] for each in gains.values()])),
            "read": float(np.mean(self.read)),
            "read_by_large": float(np.mean(self.read_by_large)) if self.read_by_large else None,
            "p50_ms": float(p50),
            "p95_ms": float(p95),
            "overrun": over,
        }


def trials(
    clients: int, depths: Sequence[int], budgets: Sequence[int], top_k: Sequence[int], has_cascade: bool
) -> list[Trial]:
    """One for each depth and each budget, with each model; and in a cascade, one for each depth and each budget."""
    found = list[Trial]()
    for name in (SMALL, LARGE) if has_cascade else ("",):
        start, chosen = (f"{name}, ", {"model": name}) if name else ("", {})
        for depth in depths:
            options = {"prefilter": "hybrid", "prefilter_top_k": depth, "budget_ms": 0, **chosen}
            found.append(Trial(clients, f"{start}depth {depth}", options))
        for budget in budgets:
            found.append(Trial(clients, f"{start}{budget} ms", {"budget_ms": budget, **chosen}, budget))
    if has_cascade:
        for number in top_k:
            found.append(Trial(clients, f"cascade, top {number}", {"cascade_top_k": number, "budget_ms": 0}))
        for budget in budgets:
            found.append(Trial(clients, f"cascade, {budget} ms", {"budget_ms": budget}, budget))
    return found


async def run(url: str, topics: Sequence[Topic], found: Sequence[Trial]) -> None:
    """Ask every query in every way, from as many clients as the trial says."""
    with progress_bar("Reranking") as progress:
        async with AsyncClient(url, timeout=TIMEOUT_SECONDS) as client:
            names = {str(trial.options.get("model", "")) for trial in found}
            for topic in topics[:PARTS]:  # compiles for the first shapes, and measures the speed
                for name in names:
                    await client.rerank(topic.query, list(topic.documents.values()), model=name)
            bar = progress.add_task("Reranking", total=len(topics) * len(found))
            for part in range(PARTS):
                for trial in found:
                    await _send(client, trial, topics[part::PARTS], progress, bar)


async def _send(client: AsyncClient, trial: Trial, topics: Sequence[Topic], progress: Progress, bar: Any) -> None:
    waiting = iter(topics)

    async def send_one_after_another() -> None:
        for topic in waiting:
            await trial.ask(client, topic)
            progress.advance(bar)

    await asyncio.gather(*(send_one_after_another() for _ in range(trial.clients)))


def main(
    file: JudgedFile,
    queries: Queries = None,
    depths: Annotated[str, typer.Option(help="Comma-separated numbers of documents")] = "10,20,30,50",
    budgets: Annotated[str, typer.Option(help="Comma-separated milliseconds")] = "25,50,100,200",
    clients: Annotated[str, typer.Option(help="Comma-separated numbers of clients")] = "1,4",
    model: Annotated[str | None, typer.Option(help="Value of RERANKER_MODEL")] = None,
    cascade: Annotated[
        str | None, typer.Option(help="SMALL,LARGE: two values of RERANKER_MODEL, to be measured alone and in a row")
    ] = None,
    top_k: Annotated[
        str, typer.Option("--cascade-top-k", help="Comma-separated numbers of documents for the large model")
    ] = "5,10,20",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table")] = False,
) -> None:
    """Measure nDCG and latency of fixed depths, of latency budgets and of cascades, alone and under load."""
    limits = numbers("depths", depths), numbers("budgets", budgets), numbers("cascade-top-k", top_k)
    settings = _settings(model, cascade)
    try:
        topics = judged(read_collection(file, queries=queries), file)
    except UnusableCollection as error:
        raise typer.BadParameter(str(error), param_hint="FILE") from None
    counts = numbers("clients", clients)
    found = [trial for count in counts for trial in trials(count, *limits, has_cascade=cascade is not None)]
    with service(ENABLE_PREDICTION_CACHE="false", **settings) as (url, _):
        asyncio.run(run(url, topics, found))
    rows = [trial.row(topics) for trial in found]
    if as_json:
        print(json.dumps({"queries": len(topics), "rows": rows}, indent=2))
        return
    table = Table(*COLUMNS, title=f"{len(topics)} queries of {file.name}", box=box.MARKDOWN)
    for row in rows:
        table.add_row(*(_cell(name, row[name]) for name in COLUMNS.values()))
    print_table(table)


def _settings(model: str | None, cascade: str | None) -> dict[str, str]:
    """The models of the service."""
    if cascade is None:
        return {"RERANKER_MODEL": model} if model else {}
    sources = [each.strip() for each in cascade.split(",")]
    if model or len(sources) != 2 or not all(sources):
        raise typer.BadParameter("must be SMALL,LARGE, without --model", param_hint="--cascade")
    return {
        "RERANKER_MODELS": f"{SMALL}={sources[0]},{LARGE}={sources[1]}",
        "RERANKER_CASCADE": f"{SMALL},{LARGE}",
    }


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0%}" if name == "overrun" else f"{value:.4f}" if name == "ndcg_at_10" else f"{value:.1f}"
    return str(value)
