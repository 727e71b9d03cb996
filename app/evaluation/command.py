"""`reranker evaluate FILE`: what reranking does to the order of your own documents, and how long it takes.

Every query is sent once, one after the other, through the whole service: the one of this process, which has the
settings of the environment, or one that runs elsewhere. Needs the extra `eval`.
"""

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import httpx
import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from app.config import Settings, load_settings, unknown_variables
from app.errors import StartupError
from app.evaluation.collection import read_collection
from app.evaluation.lines import UnusableCollection
from app.evaluation.topic import Topic
from app.serving.lifecycle import Phase
from app.telemetry.logs import configure_logging
from reranker_client import AsyncClient, RerankError
from reranker_client.models import Info

log = logging.getLogger(__name__)

# Of the service in this process: nobody else calls it, and what it remembers would not be measured.
ALONE: dict[str, Any] = {
    "api_keys": None,
    "api_keys_file": None,
    "key_max_parallel": None,
    "key_per_minute": None,
    "prediction_cache": False,
    "docs": False,
}
# A query may have a thousand long documents, on a slow machine.
ANSWER_SECONDS = 600
COSTS = {"p50_ms": "a query, p50, ms", "p95_ms": "a query, p95, ms", "documents_per_second": "documents/s"}
errors = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one query."""

    order: list[str]
    """Ids of its documents, best first."""
    milliseconds: float
    """From sending it to having the answer."""
    scored: int
    """Pairs that the model read."""
    cached: int
    """Pairs whose score was known."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The service that was asked, and what it made of each topic, by `qid`."""

    engine: Info
    outcomes: dict[str, Outcome]


def main(
    file: Annotated[
        Path, typer.Argument(exists=True, help="JSONL of query, documents and qrels, or a folder in BEIR's layout")
    ],
    run: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="TREC run with a BEIR folder's first stage; else BM25"),
    ] = None,
    depth: Annotated[
        int | None, typer.Option(min=1, help="Documents of each query; all that are given, 100 of BM25")
    ] = None,
    queries: Annotated[int | None, typer.Option(min=1, help="Only the first so many")] = None,
    cutoff: Annotated[int, typer.Option("--cutoff", "-k", min=1, help="Ranks that the measures look at")] = 10,
    model: Annotated[str | None, typer.Option(help="In place of RERANKER_MODEL")] = None,
    backend: Annotated[str | None, typer.Option(help="In place of RERANKER_BACKEND")] = None,
    precision: Annotated[str | None, typer.Option(help="In place of RERANKER_PRECISION")] = None,
    url: Annotated[str | None, typer.Option(help="Ask this running service, not one of our own")] = None,
    api_key: Annotated[
        str | None, typer.Option(help="That service's API key", envvar="RERANKER_API_KEY", show_envvar=True)
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Draw the figures too: a file of .png, .svg or .pdf")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with a row for each query")] = False,
) -> None:
    """Measure ranking on your own queries, documents and judgments, before and after reranking."""
    chosen = {"model": model, "backend": backend, "precision": precision}
    if url and any(chosen.values()):
        raise typer.BadParameter("is a service that has its own model", param_hint="--url")
    try:
        _require_extra(plot)
        settings = None if url else _own_settings(chosen)
        with errors.status(f"Reading {file} ..."):
            topics = read_collection(file, run, depth, queries)
        judged = [topic for topic in topics if any(grade > 0 for grade in topic.qrels.values())]
        if not judged:
            raise UnusableCollection(f"{file}: qrels: no query has a relevant document (a grade from 1 on)")
        if not any(topic.qrels.keys() & topic.documents.keys() for topic in judged):
            raise UnusableCollection(f"{file}: qrels: of no query a judged id is among the ids of its documents")
        asked = asyncio.run(_ask_all(judged, settings, url, api_key))
    except UnusableCollection as error:
        raise typer.BadParameter(str(error), param_hint="FILE") from None
    except (StartupError, RerankError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    figures = report(judged, asked, cutoff) | {"left_out": len(topics) - len(judged)}
    if as_json:
        print(json.dumps(figures, indent=2))
    else:
        _print_table(figures)
    if plot:
        from app.evaluation.chart import draw

        draw(figures, plot)


def _require_extra(plot: Path | None) -> None:
    """Raise now what would fail after the ranking."""
    try:
        import app.evaluation.measures  # noqa: F401

        if plot:
            from app.evaluation.chart import FORMATS
    except ImportError as error:
        raise StartupError(f"The extra 'eval' has what is missing: {error}; pip install '.[eval]'") from None
    if plot and plot.suffix not in FORMATS:
        raise typer.BadParameter(f"{str(plot)!r} ends with none of {', '.join(FORMATS)}", param_hint="--plot")
    if plot and not os.access(plot if plot.exists() else plot.parent, os.W_OK):
        raise typer.BadParameter(f"{str(plot)!r} cannot be written", param_hint="--plot")


def _own_settings(chosen: Mapping[str, str | None]) -> Settings:
    settings = load_settings(**{name: value for name, value in chosen.items() if value is not None}, **ALONE)
    configure_logging(settings.log_level if "log_level" in settings.model_fields_set else "warning")
    for name in unknown_variables():
        log.warning("%s is not a setting of this service and has no effect", name)
    return settings


async def _ask_all(topics: Sequence[Topic], settings: Settings | None, url: str | None, api_key: str | None) -> Asked:
    """The answers to all topics that have documents. Raises `RerankError` and `StartupError`."""
    service = _own_service(settings) if settings else AsyncClient(str(url), api_key, ANSWER_SECONDS)
    async with service as client:
        engine = await client.info()
        asked = [topic for topic in topics if topic.documents]
        progress = track(asked, "Reranking", console=errors, transient=True, disable=not errors.is_terminal)
        return Asked(engine, {topic.qid: await _ask(client, topic) for topic in progress})


@asynccontextmanager
async def _own_service(settings: Settings) -> AsyncIterator[AsyncClient]:
    """The service that these settings make, asked without a socket."""
    from app.api.service import service_of
    from app.main import create_app

    app = create_app(settings)
    lifecycle = service_of(app).lifecycle
    async with app.router.lifespan_context(app):
        with errors.status("Loading the model ..."):
            while lifecycle.phase is Phase.LOADING:  # noqa: ASYNC110 (it has no event)
                await asyncio.sleep(0.05)
        if lifecycle.phase is Phase.FAILED:
            raise StartupError("Nothing was measured: the model could not be loaded")
        async with AsyncClient("http://own", transport=httpx.ASGITransport(app)) as client:
            yield client


async def _ask(client: AsyncClient, topic: Topic) -> Outcome:
    ids = list(topic.documents)
    started = perf_counter()
    try:
        ranking = await client.rerank(topic.query, list(topic.documents.values()), on_overload="error")
    except RerankError as error:
        raise RerankError(f"Query {topic.qid!r}: {error}", error.status, error.request_id) from None
    milliseconds = 1000 * (perf_counter() - started)
    order = [ids[result.index] for result in ranking]
    return Outcome(order, milliseconds, ranking.meta.scored, ranking.meta.cached)


def report(topics: Sequence[Topic], asked: Asked, cutoff: int) -> dict[str, Any]:
    """All figures; means with their intervals, times in milliseconds, and a row for each query."""
    from app.evaluation.measures import interval, measure

    qrels = {topic.qid: topic.qrels for topic in topics}
    before = measure({topic.qid: list(topic.documents) for topic in topics}, qrels, cutoff)
    after = measure({qid: outcome.order for qid, outcome in asked.outcomes.items()}, qrels, cutoff)

    def change(name: str) -> dict[str, Any]:
        first, second = ([values[qid][name] for qid in qrels] for values in (before, after))
        paired = [new - old for old, new in zip(first, second, strict=True)]
        return {
            "before": interval(first)._asdict(),
            "after": interval(second)._asdict(),
            "difference": interval(paired)._asdict(),
        }

    return {
        "engine": asked.engine.model_dump(include={"model_id", "device", "backend", "precision"}),
        "queries": len(topics),
        "documents": sum(len(topic.documents) for topic in topics),
        **_costs(list(asked.outcomes.values())),
        "measures": {name: change(name) for name in next(iter(before.values()))},
        "per_query": [
            {
                "qid": qid,
                "before": before[qid],
                "after": after[qid],
                "ms": round(asked.outcomes[qid].milliseconds, 3) if qid in asked.outcomes else None,
            }
            for qid in qrels
        ],
    }


def _costs(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What all of it took; no times where nothing was asked."""
    times = [outcome.milliseconds for outcome in outcomes]
    ranked = sum(len(outcome.order) for outcome in outcomes)
    return {
        "scored": sum(outcome.scored for outcome in outcomes),
        "cached": sum(outcome.cached for outcome in outcomes),
        "p50_ms": round(float(np.median(times)), 3) if times else None,
        "p95_ms": round(float(np.percentile(times, 95)), 3) if times else None,
        "documents_per_second": round(1000 * ranked / sum(times), 1) if times else None,
    }


def _print_table(figures: dict[str, Any]) -> None:
    engine = figures["engine"]
    table = Table("mean of all queries", "before", "after", "difference")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, change in figures["measures"].items():
        table.add_row(name, *_written(change, "{mean:{sign}.4f}"))
        if change["before"]["low"] is not None:
            table.add_row("  95 % interval", *_written(change, "{low:{sign}.4f} to {high:{sign}.4f}"), end_section=True)
    table.add_section()
    for name, label in COSTS.items():
        table.add_row(label, "", "-" if figures[name] is None else f"{figures[name]:.1f}", "")
    print(f"{engine['model_id']}, {engine['backend']} {engine['precision']} on {engine['device']}")
    print(f"{figures['queries']} queries, {figures['documents']} documents, {figures['scored']} read by the model")
    Console().print(table)
    if figures["left_out"]:
        print(f"{figures['left_out']} more queries have no relevant document and are left out.")
    if figures["cached"]:
        print(
            f"{figures['cached']} scores were known, from the service's cache or an equal document: "
            "the times are not the model's."
        )


def _written(change: dict[str, dict[str, float]], form: str) -> list[str]:
    """What is before, after and their difference, the last with its sign."""
    return [form.format(**found, sign="+" if name == "difference" else "") for name, found in change.items()]
