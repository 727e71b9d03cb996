"""`reranker evaluate FILE`: measure how reranking changes the order of your own documents, and how long it takes.

Each query is sent once, one at a time, through the whole service: one that this process starts with the settings of the
environment, or one that is already running. Needs the extra `eval`.
"""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from app.errors import StartupError
from app.evaluation.collection import judged, read_collection
from app.evaluation.fusion import find_fusion, print_fusion
from app.evaluation.lines import UnusableCollection
from app.evaluation.options import Depth, JudgedFile, Queries, TrecRun
from app.evaluation.page import evaluation_page
from app.evaluation.report import print_report, report
from app.evaluation.service import MODEL_ALONE, ask_all, errors, own_settings, prepare_logging
from app.pages.options import HtmlFile
from app.pages.page import check_writable, save
from reranker_client import RerankError


def main(
    file: JudgedFile,
    run: TrecRun = None,
    depth: Depth = None,
    queries: Queries = None,
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
    html: HtmlFile = None,
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
        check_extra(plot)
        if plot:
            _check_plot(plot)
        settings = None if url else own_settings(chosen)
        if settings:
            prepare_logging(settings)
        with errors.status(f"Reading {file} ..."):
            topics = read_collection(file, run, depth, queries)
        measured = judged(topics, file)
        answers = asyncio.run(ask_all(measured, settings, url, api_key, MODEL_ALONE if fusion else {}))
    except UnusableCollection as error:
        raise typer.BadParameter(str(error), param_hint="FILE") from None
    except (StartupError, RerankError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    figures = report(measured, answers, cutoff) | {"left_out": len(topics) - len(measured)}
    if fusion:
        logits = {qid: outcome.scores for qid, outcome in answers.outcomes.items()}
        figures["fusion"] = find_fusion(measured, logits, cutoff)
    _show(figures, cutoff, as_json)
    if plot:
        _draw(figures, plot)
    if html:
        order = run.name if run else "BM25" if file.is_dir() else "the order in the file"
        save(evaluation_page(figures, measured, answers.outcomes, file, order), html)


def _draw(figures: Mapping[str, Any], plot: Path) -> None:
    from app.evaluation.chart import draw

    draw(figures, plot)


def _show(figures: Mapping[str, Any], cutoff: int, as_json: bool) -> None:
    if as_json:
        print(json.dumps(figures, indent=2))
        return
    print_report(figures)
    if "fusion" in figures:
        print_fusion(figures["fusion"], f"nDCG@{cutoff}")


def check_extra(plot: Path | None = None) -> None:
    """Fail before the ranking, which may take long."""
    try:
        import app.evaluation.measures

        if plot:
            import app.evaluation.chart  # noqa: F401
    except ImportError as error:
        raise StartupError(f"This command needs the extra: pip install '.[eval]' ({error})") from None


def _check_plot(plot: Path) -> None:
    from app.evaluation.chart import FORMATS

    if plot.suffix not in FORMATS:
        raise typer.BadParameter(f"{str(plot)!r} must end with one of {', '.join(FORMATS)}", param_hint="--plot")
    check_writable(plot, "--plot")
