"""`reranker tune FILE`: compare ways to serve on your own data, by quality and time.

Every service gets an equal share of the time that is left, loading included, and answers as many queries as fit, in the
same order. All points are compared on the queries that every service answered. Needs the extra `eval`.
"""

import asyncio
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from rich.progress import Progress

from app.engines.load import precisions_to_compare
from app.errors import StartupError
from app.evaluation.collection import judged, read_collection
from app.evaluation.command import check_extra
from app.evaluation.frontier import CUTOFF, Point, choose, describe, print_frontier
from app.evaluation.fusion import alone_and_fused
from app.evaluation.lines import UnusableCollection
from app.evaluation.options import JudgedFile, Queries, TrecRun
from app.evaluation.report import Outcome
from app.evaluation.service import MODEL_ALONE, ask, errors, own_service, own_settings, prepare_logging
from app.evaluation.topic import Topic
from app.first_stage.lexical import lexical_scores
from reranker_client import AsyncClient, RerankError
from reranker_client.models import Info

DEPTHS, SHORT_WINDOW = (20, 50, 100), 256
# A service that answers fewer queries in its share of the time is left out.
MIN_QUERIES = 10

READINGS = ("truncate", "chunk_max")


class Way(NamedTuple):
    """The settings of one service. None: unset."""

    model: str | None
    precision: str
    window: int | None

    def __str__(self) -> str:
        window = f"window {self.window}" if self.window else "the model's window"
        return f"{self.model or 'the configured model'}, {self.precision}, {window}"

    def variables(self) -> dict[str, str]:
        values = {
            "RERANKER_MODEL": self.model,
            "RERANKER_PRECISION": None if self.precision == "auto" else self.precision,
            "RERANKER_MAX_LENGTH": self.window and str(self.window),
        }
        return {name: value for name, value in values.items() if value}


@dataclass
class Measured:
    """The outcomes of one service."""

    way: Way
    engine: Info
    outcomes: dict[tuple[str, int], dict[str, Outcome]]
    """By reading and depth, and then by query id."""

    def answered(self) -> int:
        return min(map(len, self.outcomes.values()))

    def is_cut(self) -> bool:
        """Whether a document did not fit into the window."""
        return any(outcome.truncated for each in self.outcomes.values() for outcome in each.values())


def main(
    file: JudgedFile,
    model: Annotated[list[str] | None, typer.Option(help="May be repeated (default: RERANKER_MODEL)")] = None,
    precision: Annotated[list[str] | None, typer.Option(help="May be repeated (default: those for this CPU)")] = None,
    window: Annotated[
        list[int] | None, typer.Option(min=16, help="In tokens, may be repeated (default: 256 and the model's own)")
    ] = None,
    depth: Annotated[
        list[int] | None,
        typer.Option(min=CUTOFF, help="Documents per query, may be repeated (default: 20, 50 and 100)"),
    ] = None,
    run: TrecRun = None,
    queries: Queries = None,
    seconds: Annotated[float, typer.Option(min=1, help="Time for all models. A first export may exceed it")] = 600,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table")] = False,
) -> None:
    """Compare models, precisions, windows, depths and fusion on your own data."""
    try:
        check_extra()
        names: list[str | None] = list(model) if model else [None]
        prepare_logging(own_settings({"model": names[0]}), "error")
        ways = [way for name in names for way in _ways(name, precision or [], window or [])]
        depths = sorted(set(depth or DEPTHS))
        with errors.status(f"Reading {file} ..."):
            topics = judged(read_collection(file, run, depths[-1], queries), file)
        random.Random(0).shuffle(topics)  # noqa: S311 (a prefix should be like the whole)
        most = max(len(topic.documents) for topic in topics)
        depths = sorted({min(depth, most) for depth in depths})
        measured, left_out = asyncio.run(_measure_all(ways, topics, depths, perf_counter() + seconds))
        figures = _compare(measured, topics, left_out)
    except UnusableCollection as error:
        raise typer.BadParameter(str(error), param_hint="FILE") from None
    except (StartupError, RerankError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    print(json.dumps(figures, indent=2)) if as_json else print_frontier(figures)


def _ways(model: str | None, precisions: Sequence[str], windows: Sequence[int]) -> Iterator[Way]:
    """The settings to try for a model; windows ascend, and the model's own comes last. Raises `StartupError`."""
    settings = own_settings({"model": model})
    own = settings.max_length
    tried: list[int | None] = [*sorted(set(windows))] or [*([] if own and own <= SHORT_WINDOW else [SHORT_WINDOW]), own]
    for precision in dict.fromkeys(precisions) or precisions_to_compare(settings):
        for window in tried:
            way = Way(model, precision, window)
            _settings(way)
            yield way


def _settings(way: Way) -> Any:
    return own_settings({"model": way.model, "precision": way.precision, "max_length": way.window})


async def _measure_all(
    ways: Sequence[Way], topics: Sequence[Topic], depths: Sequence[int], deadline: float
) -> tuple[list[Measured], dict[str, str]]:
    """The outcomes of each service, and the reasons for those that are left out.

    If a window cuts nothing, a longer one gives the same scores, and its service is not started.
    """
    measured: list[Measured] = []
    left_out: dict[str, str] = {}
    rest = list(ways)
    while rest:
        way = rest.pop(0)
        longer = [other for other in rest if other[:2] == way[:2]]
        started = perf_counter()
        share = max(0.0, deadline - started) / (len(rest) + 1)
        errors.print(f"{way}: up to {share:.0f} s")
        try:
            async with own_service(_settings(way)) as client:
                found = Measured(way, await client.info(), {(each, depth): {} for each in READINGS for depth in depths})
                if any(_is_same(found, other) for other in measured):
                    continue
                await _measure(client, found, topics, started + share)
        except (StartupError, RerankError) as error:
            left_out[str(way)] = str(error)
            continue
        if found.answered() < min(MIN_QUERIES, len(topics)):
            left_out[str(way)] = f"{found.answered()} queries in {share:.0f} s; increase --seconds or reduce --depth"
            continue
        if longer and (not found.is_cut() or found.engine.max_input_length < (way.window or 0)):
            rest = [other for other in rest if other not in longer]
            found.way = longer[-1]
        measured.append(found)
    return measured, left_out


def _is_same(one: Measured, other: Measured) -> bool:
    """Whether both have the same window, because the model's own is not longer."""
    return one.way[:2] == other.way[:2] and one.engine.max_input_length == other.engine.max_input_length


async def _measure(client: AsyncClient, found: Measured, topics: Sequence[Topic], until: float) -> None:
    """Ask each query at each depth, cut and in windows, while there is time."""
    depths = sorted({depth for _, depth in found.outcomes})
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as progress:
        for topic in progress.track(topics, description="Reranking"):
            if perf_counter() > until:
                return
            for depth in depths:
                asked = _first(topic, depth)
                if not asked.documents:
                    continue
                cut = await ask(client, asked, MODEL_ALONE | {"long_documents": "truncate"})
                whole = (
                    await ask(client, asked, MODEL_ALONE | {"long_documents": "chunk_max"}) if cut.truncated else cut
                )
                found.outcomes["truncate", depth][topic.qid] = cut
                found.outcomes["chunk_max", depth][topic.qid] = whole


def _first(topic: Topic, depth: int) -> Topic:
    return replace(topic, documents=dict(list(topic.documents.items())[:depth]))


def _compare(measured: Sequence[Measured], topics: Sequence[Topic], left_out: Mapping[str, str]) -> dict[str, Any]:
    """The points on the queries that all services answered. Raises `StartupError` if no service was measured."""
    if not measured:
        raise StartupError("\n".join(f"{way}: {reason}" for way, reason in left_out.items()))
    from app.evaluation.measures import measure

    sets = [set(outcomes) for each in measured for outcomes in each.outcomes.values()]
    common = [topic for topic in topics if all(topic.qid in each for each in sets)]
    with errors.status("Comparing ..."):
        points = [point for each in measured for point in _points(each, common)]
        rows = describe(points)
        chosen = {name: describe([point])[0] | {"dominated": False} for name, point in choose(points).items()}
    search = measure({each.qid: list(each.documents) for each in common}, {t.qid: t.qrels for t in common}, CUTOFF)
    return {
        "queries": len(common),
        "of": len(topics),
        "search": float(np.mean([values[f"nDCG@{CUTOFF}"] for values in search.values()])),
        "points": rows,
        "left_out": dict(left_out),
        "chosen": chosen,
    }


def _points(found: Measured, topics: Sequence[Topic]) -> Iterator[Point]:
    """Each reading and depth, with and without fusion."""
    for (reading, depth), outcomes in found.outcomes.items():
        if reading == "chunk_max" and not found.is_cut():
            continue
        cut = [_first(topic, depth) for topic in topics]
        logits = {topic.qid: outcomes[topic.qid].scores for topic in cut}
        times = np.array([outcomes[topic.qid].milliseconds for topic in cut])
        for trial in alone_and_fused(cut, logits, CUTOFF):
            fusion = trial.fusion
            extra = _words_ms(cut) if fusion.evidence == "lexical" else 0.0
            settings = found.way.variables()
            if found.is_cut():
                settings["RERANKER_LONG_DOCUMENTS"] = reading
            settings["RERANKER_FUSION"] = fusion.evidence
            if fusion.weight:
                settings["RERANKER_FUSION_WEIGHT"] = f"{fusion.weight:g}"
            yield Point(
                model=found.engine.model_id,
                precision=found.engine.precision,
                window=found.engine.max_input_length,
                long_documents=reading if found.is_cut() else None,
                depth=depth,
                fusion=fusion,
                ndcg=trial.ndcg,
                p50_ms=float(np.median(times + extra)),
                settings=settings,
            )


def _words_ms(topics: Sequence[Topic]) -> Any:
    """How long BM25 takes for each query. The service was asked without fusion."""
    times = []
    for topic in topics:
        started = perf_counter()
        lexical_scores([topic.query] * len(topic.documents), list(topic.documents.values()))
        times.append(1000 * (perf_counter() - started))
    return np.array(times)
