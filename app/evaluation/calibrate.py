"""`reranker calibrate FILE`: fit the scores of an exported model to your judgments, and store that in the export.

One half of the queries is fitted, the other half shows the effect.
"""

import asyncio
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from app.engines.load import cpu_precisions
from app.engines.models.artefact import MANIFEST, Manifest, ScoreCalibration, is_artefact
from app.engines.models.source import EMBEDDED_MODELS, ModelSource, locate_model
from app.errors import StartupError
from app.evaluation.calibration import Values, fit, losses, reliability, thresholds
from app.evaluation.collection import read_collection
from app.evaluation.lines import UnusableCollection
from app.evaluation.options import Depth, JudgedFile, Queries, TrecRun
from app.evaluation.report import Answers
from app.evaluation.service import MODEL_ALONE, ask_all, errors, own_settings, prepare_logging
from app.evaluation.topic import Topic
from reranker_client import RerankError

# In each half. With fewer, a single judgment changes the scores visibly.
MIN_QUERIES, MIN_DOCUMENTS = 10, 10
EMBEDDED_FOLDERS = [folder for _, folder in EMBEDDED_MODELS.values()]
HALVES = ("first", "second")


class Half(NamedTuple):
    """The documents of every other query. Arrays have shape (documents,)."""

    queries: int
    logits: Values
    labels: Values
    """1 for a relevant document, 0 for others."""


def main(
    file: JudgedFile,
    model: Annotated[str | None, typer.Option(help="Folder of an exported model (default: RERANKER_MODEL)")] = None,
    run: TrecRun = None,
    depth: Depth = None,
    queries: Queries = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables")] = False,
) -> None:
    """Calibrate the scores of an exported model on your own judgments."""
    try:
        settings = own_settings({"model": model})
        prepare_logging(settings)
        folder = _export_of(locate_model(settings.model, settings.revision, settings.template), file)
        manifest = Manifest.read(folder)
        with errors.status(f"Reading {file} ..."):
            topics = read_collection(file, run, depth, queries)
        topics = [topic for topic in topics if topic.qrels and topic.documents]
        _check(topics, file)
        answers = asyncio.run(ask_all(topics, settings, None, None, MODEL_ALONE))
        figures = calibrate(manifest, *_halves(topics, answers))
    except UnusableCollection as error:
        raise typer.BadParameter(str(error), param_hint="FILE") from None
    except (StartupError, RerankError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    if figures["stored"]:
        found = ScoreCalibration(scale=figures["scale"], shift=figures["shift"])
        manifest.model_copy(update={"score_calibration": found}).write(folder)
    figures = {"model": str(folder), "precision": manifest.precision} | figures
    print(json.dumps(figures, indent=2)) if as_json else print_calibration(figures)


def _export_of(source: ModelSource, file: Path) -> Path:
    """The folder of the export. Raises `StartupError` with the commands to run if the model is not an export."""
    folder = Path(source.location)
    is_export = source.is_local and is_artefact(folder)
    if not is_export or folder in EMBEDDED_FOLDERS:
        reason = "is part of the installation" if is_export else "is not an exported model"
        output = f"{source.name.split('/')[-1]}-calibrated"
        commands = (
            ["cp", "-r", str(folder), output] if is_export else _export_command(source, output),
            ["reranker", "calibrate", str(file), "--model", output],
        )
        raise StartupError(
            "\n  ".join(
                [
                    f"{source.name} {reason}, and a calibration is stored in an export of your own. Run:",
                    *map(shlex.join, commands),
                ]
            )
        )
    if not (os.access(folder, os.W_OK) and os.access(folder / MANIFEST, os.W_OK)):
        raise StartupError(f"{folder / MANIFEST} cannot be written, and the calibration is stored there")
    return folder


def _export_command(source: ModelSource, output: str) -> list[str]:
    model = [] if Path(source.location) in EMBEDDED_FOLDERS else [source.location]
    revision = ["--revision", source.revision] if source.revision else []
    return ["reranker", "export", *model, *revision, "--precision", cpu_precisions("openvino")[0], "--output", output]


def _check(topics: Sequence[Topic], file: Path) -> None:
    """Raises `UnusableCollection` if a half of the queries has too few judgments."""
    for name, half in zip(HALVES, (topics[::2], topics[1::2]), strict=True):
        labels = _labels(half)
        counts = {
            "queries": (len(half), MIN_QUERIES),
            "relevant documents": (int(labels.sum()), MIN_DOCUMENTS),
            "documents that are not relevant": (int((1 - labels).sum()), MIN_DOCUMENTS),
        }
        for what, (count, least) in counts.items():
            if count < least:
                raise UnusableCollection(
                    f"{file}: qrels: {count} {what} in the {name} half of the judged queries; "
                    f"calibration needs at least {least} in each half"
                )


def _halves(topics: Sequence[Topic], answers: Answers) -> list[Half]:
    return [
        Half(
            len(half),
            np.array([logit for topic in half for logit in answers.outcomes[topic.qid].scores]),
            _labels(half),
        )
        for half in (topics[::2], topics[1::2])
    ]


def _labels(topics: Sequence[Topic]) -> Values:
    return np.array([float(topic.qrels.get(name, 0) > 0) for topic in topics for name in topic.documents])


def calibrate(manifest: Manifest, fitted: Half, held_out: Half) -> dict[str, Any]:
    """The scale and shift, and the scores of the held-out half before and after.

    They are to be stored unless they make the scores of the held-out half worse. Raises `StartupError` if the logits do
    not rise with relevance.
    """
    scale, shift = fit(fitted.logits, fitted.labels)
    if scale <= 0:
        raise StartupError(
            f"Not calibrated: relevant documents have lower logits than others (scale {scale:.3g}, which must be "
            "greater than 0). Check the judgments and the model"
        )
    calibrated = manifest.model_copy(update={"score_calibration": ScoreCalibration(scale=scale, shift=shift)})
    before, after = (_quality(each, held_out) for each in (manifest, calibrated))
    return {
        "scale": scale,
        "shift": shift,
        "queries": {"fitted": fitted.queries, "held_out": held_out.queries},
        "documents": {"fitted": len(fitted.labels), "held_out": len(held_out.labels)},
        "relevant": {"fitted": int(fitted.labels.sum()), "held_out": int(held_out.labels.sum())},
        "before": before,
        "after": after,
        "stored": before["log_loss"] is None or after["log_loss"] < before["log_loss"],
    }


def _quality(manifest: Manifest, half: Half) -> dict[str, Any]:
    """The served scores against the judgments. Scores other than probabilities have no losses."""
    scores = manifest.scores(half.logits.astype(np.float32)).astype(float)
    is_probability = manifest.activation == "sigmoid" or manifest.score_calibration is not None
    return {
        **(losses(scores, half.labels) if is_probability else {"log_loss": None, "brier": None}),
        "thresholds": [each._asdict() for each in thresholds(scores, half.labels)],
        "reliability": [each._asdict() for each in reliability(scores, half.labels)] if is_probability else None,
    }


def print_calibration(figures: Mapping[str, Any]) -> None:
    """Print the figures of `calibrate` for people."""
    queries, documents, relevant = figures["queries"], figures["documents"], figures["relevant"]
    print(f"{figures['model']}, {figures['precision']}")
    print(f"fitted:   {queries['fitted']} queries, {documents['fitted']} documents, {relevant['fitted']} relevant")
    print(
        f"held out: {queries['held_out']} queries, {documents['held_out']} documents, {relevant['held_out']} relevant"
    )
    before, after = figures["before"], figures["after"]
    table = Table("held-out queries", "precision before", "after", "recall before", "after")
    for column in table.columns[1:]:
        column.justify = "right"
    for old, new in zip(before["thresholds"], after["thresholds"], strict=True):
        values = [each[name] for name in ("precision", "recall") for each in (old, new)]
        table.add_row(f"score >= {old['threshold']:.1f}", *map(_written, values))
    Console().print(table)
    for name, label in (("log_loss", "log loss"), ("brier", "Brier score")):
        print(f"{label}, lower is better: {_written(before[name])} before, {_written(after[name])} after")
    if figures["stored"]:
        print(f"Stored in {figures['model']}/{MANIFEST}: scale {figures['scale']:.4f}, shift {figures['shift']:+.4f}")
        print("Restart the services that use this model.")
    else:
        print("Not stored: the scores of the held-out queries would not be better.")


def _written(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
