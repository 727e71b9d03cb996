"""`reranker evaluate FILE`: measure how reranking changes the order of your own documents, and how long it takes.

Each query is sent once, one at a time, through the whole service: one that this process starts with the settings of the
environment, or one that is already running. Needs the extra `eval`.
"""

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.progress import track

from app.config import Settings, load_settings, unknown_variables
from app.errors import StartupError
from app.evaluation.collection import read_collection
from app.evaluation.fusion import find_fusion, print_fusion
from app.evaluation.lines import UnusableCollection
from app.evaluation.report import Answers, Outcome, print_report, report
from app.evaluation.topic import Topic
from app.serving.lifecycle import Phase
from app.telemetry.logs import configure_logging
from reranker_client import AsyncClient, RerankError

log = logging.getLogger(__name__)

# The service in this process has one caller, so keys and quotas only get in the way. With a cache, repeated queries
# would be faster than the model.
OVERRIDES: dict[str, Any] = {
    "api_keys": None,
    "api_keys_file": None,
    "key_max_parallel": None,
    "key_per_minute": None,
    "prediction_cache": False,
    "docs": False,
}
# Every document gets the model's logit, and these alone decide the order.
MODEL_ALONE: dict[str, Any] = {"fusion": "off", "prefilter": "off", "raw_scores": True}
# Long enough for a thousand long documents on a slow machine.
TIMEOUT_SECONDS = 600
errors = Console(stderr=True)


def main(
    file: Annotated[Path, typer.Argument(exists=True, help="JSONL file with queries, or a folder in the BEIR layout")],
    run: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="TREC run with the documents for a BEIR folder (default: BM25)"),
    ] = None,
    depth: Annotated[
        int | None, typer.Option(min=1, help="Documents per query (default: all; 100 if BM25 finds them)")
    ] = None,
    queries: Annotated[int | None, typer.Option(min=1, help="Number of queries to read (default: all)")] = None,
    cutoff: Annotated[int, typer.Option("--cutoff", "-k", min=1, help="Ranks that the measures include")] = 10,
    model: Annotated[str | None, typer.Option(help="Overrides RERANKER_MODEL")] = None,
    backend: Annotated[str | None, typer.Option(help="Overrides RERANKER_BACKEND")] = None,
    precision: Annotated[str | None, typer.Option(help="Overrides RERANKER_PRECISION")] = None,
    url: Annotated[
        str | None, typer.Option(help="Measure the service at this URL (default: start one in this process)")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(help="API key for --url", envvar="RERANKER_API_KEY", show_envvar=True)
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Also draw a chart into this .png, .svg or .pdf file")
    ] = None,
    fusion: Annotated[
        bool, typer.Option("--fusion", help="Also find the best weight for fusion with BM25 or with your order")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON with a row per query instead of a table")] = False,
) -> None:
    """Measure ranking on your own queries, documents and judgments, before and after reranking."""
    chosen = {"model": model, "backend": backend, "precision": precision}
    if url and any(chosen.values()):
        raise typer.BadParameter(
            "cannot be combined with --model, --backend or --precision: the service at the URL has its own model",
            param_hint="--url",
        )
    try:
        _check_extra(plot)
        if plot:
            _check_plot(plot)
        settings = None if url else _own_settings(chosen)
        with errors.status(f"Reading {file} ..."):
            topics = read_collection(file, run, depth, queries)
        judged = _judged(topics, file)
        answers = asyncio.run(_ask_all(judged, settings, url, api_key, MODEL_ALONE if fusion else {}))
    except UnusableCollection as error:
        raise typer.BadParameter(str(error), param_hint="FILE") from None
    except (StartupError, RerankError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    figures = report(judged, answers, cutoff) | {"left_out": len(topics) - len(judged)}
    if fusion:
        logits = {qid: outcome.scores for qid, outcome in answers.outcomes.items()}
        figures["fusion"] = find_fusion(judged, logits, cutoff)
    _show(figures, cutoff, as_json)
    if plot:
        from app.evaluation.chart import draw

        draw(figures, plot)


def _show(figures: Mapping[str, Any], cutoff: int, as_json: bool) -> None:
    if as_json:
        print(json.dumps(figures, indent=2))
        return
    print_report(figures)
    if "fusion" in figures:
        print_fusion(figures["fusion"], cutoff)


def _check_extra(plot: Path | None) -> None:
    """Fail before the ranking, which may take long."""
    try:
        import app.evaluation.measures

        if plot:
            import app.evaluation.chart  # noqa: F401
    except ImportError as error:
        raise StartupError(f"reranker evaluate needs the extra: pip install '.[eval]' ({error})") from None


def _check_plot(plot: Path) -> None:
    from app.evaluation.chart import FORMATS

    if plot.suffix not in FORMATS:
        raise typer.BadParameter(f"{str(plot)!r} must end with one of {', '.join(FORMATS)}", param_hint="--plot")
    if not os.access(plot if plot.exists() else plot.parent, os.W_OK):
        raise typer.BadParameter(f"{str(plot)!r} cannot be written", param_hint="--plot")


def _own_settings(chosen: Mapping[str, str | None]) -> Settings:
    settings = load_settings(**{name: value for name, value in chosen.items() if value is not None}, **OVERRIDES)
    configure_logging(settings.log_level if "log_level" in settings.model_fields_set else "warning")
    for name in unknown_variables():
        log.warning("%s is not a setting of this service and is ignored", name)
    return settings


def _judged(topics: Sequence[Topic], file: Path) -> list[Topic]:
    """The topics that can be measured: those with a relevant document. Raises `UnusableCollection`."""
    judged = [topic for topic in topics if any(grade > 0 for grade in topic.qrels.values())]
    if not judged:
        raise UnusableCollection(f"{file}: qrels: no query has a relevant document (grade 1 or higher)")
    if not any(topic.qrels.keys() & topic.documents.keys() for topic in judged):
        raise UnusableCollection(f"{file}: qrels: none of the judged document ids appear among the candidates")
    return judged


async def _ask_all(
    topics: Sequence[Topic],
    settings: Settings | None,
    url: str | None,
    api_key: str | None,
    options: Mapping[str, Any],
) -> Answers:
    """Rank the documents of every topic that has any. Raises `RerankError` and `StartupError`."""
    service = _own_service(settings) if settings else AsyncClient(str(url), api_key, TIMEOUT_SECONDS)
    async with service as client:
        engine = await client.info()
        asked = [topic for topic in topics if topic.documents]
        progress = track(asked, "Reranking", console=errors, transient=True, disable=not errors.is_terminal)
        return Answers(engine, {topic.qid: await _ask(client, topic, options) for topic in progress})


@asynccontextmanager
async def _own_service(settings: Settings) -> AsyncIterator[AsyncClient]:
    """Start the service in this process. The client calls it without a socket."""
    from app.api.service import service_of
    from app.main import create_app

    app = create_app(settings)
    lifecycle = service_of(app).lifecycle
    async with app.router.lifespan_context(app):
        with errors.status("Loading the model ..."):
            while lifecycle.phase is Phase.LOADING:  # noqa: ASYNC110 (the lifecycle has no event to wait for)
                await asyncio.sleep(0.05)
        if lifecycle.phase is Phase.FAILED:
            raise StartupError("Nothing was measured: the model could not be loaded")
        async with AsyncClient("http://own", transport=httpx.ASGITransport(app)) as client:
            yield client


async def _ask(client: AsyncClient, topic: Topic, options: Mapping[str, Any]) -> Outcome:
    ids = list(topic.documents)
    started = perf_counter()
    try:
        # An order by shared words must not pass for a result of the model.
        ranking = await client.rerank(topic.query, list(topic.documents.values()), on_overload="error", **options)
    except RerankError as error:
        raise RerankError(f"Query {topic.qid!r}: {error}", error.status, error.request_id) from None
    milliseconds = 1000 * (perf_counter() - started)
    order = [ids[result.index] for result in ranking]
    scores = [result.relevance_score for result in sorted(ranking, key=lambda result: result.index)]
    return Outcome(order, scores, milliseconds, ranking.meta.scored, ranking.meta.cached)
