"""The layers of rerankers that people run, on our engine and on torch: `scripts/bench models`.

The two take turns with one request at a time, so a machine that slows down affects both alike.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich import box
from rich.progress import Progress
from rich.table import Table
from tokenizers import Tokenizer

from app.engines.load import cpu_precisions
from app.engines.models.artefact import Manifest
from app.engines.tokenization import PairTokenizer
from app.machine.hardware import cpu_limit, cpu_name
from benchmarks.load import print_table, progress_bar
from benchmarks.rerankers import RERANKERS, make_reranker
from benchmarks.speed.contenders import Contender, Library, running, service_of
from benchmarks.texts import requests
from benchmarks.workspace import ROOT, WORK, identity

SMALL_WINDOW = 512
# Tokens around a document, at most: query, template, and words that are two tokens.
AROUND = 512


@dataclass(slots=True)
class Row:
    """The figures of one model. Speeds are documents per second, one for each round."""

    shape: str
    tokens_per_pair: float = 0.0
    """Query, document, special tokens and template."""
    torch: list[float] = field(default_factory=list)
    served: list[float] = field(default_factory=list)
    torch_memory: int = 0
    """Peak in bytes."""
    served_memory: int = 0
    start_seconds: float = 0.0
    problem: str | None = None

    def report(self) -> dict[str, Any]:
        """Medians over the rounds, for `--json`. Figures that were not measured are None."""
        architecture = RERANKERS[self.shape]
        figures: dict[str, Any] = dict.fromkeys(FIGURES)
        if self.served:
            theirs, ours = median(self.torch), median(self.served)
            values = (theirs, ours, ours / theirs, self.torch_memory / 1e6, self.served_memory / 1e6)
            figures = dict(zip(FIGURES, (self.tokens_per_pair, *values, self.start_seconds), strict=True))
        sizes = {"model_type": architecture.model_type, "layers": architecture.layers, "width": architecture.width}
        return {"shape": self.shape, **sizes, **figures, "problem": self.problem}


FIGURES = {
    "tokens_per_pair": "tokens per pair",
    "torch_documents_per_second": "torch fp32, docs/s",
    "served_documents_per_second": "served, docs/s",
    "ratio": "ratio",
    "torch_peak_memory_mb": "torch, peak MB",
    "served_peak_memory_mb": "served, peak MB",
    "start_seconds": "start s",
}


def main(
    shapes: Annotated[str, typer.Option(help="Comma-separated models")] = ",".join(RERANKERS),
    documents: Annotated[int, typer.Option(min=1, help="Documents per request")] = 20,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens per document, about")] = 480,
    rounds: Annotated[int, typer.Option(min=1, help="Requests to each")] = 3,
    window: Annotated[
        int, typer.Option(min=0, help="Window of the export in tokens; default: enough for the documents")
    ] = 0,
    precision: Annotated[str, typer.Option(help="int8, bf16 or fp32; default: the best guess for this CPU")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table")] = False,
) -> None:
    """Compare our engine with CrossEncoder.predict on the layers of well-known rerankers. Exits with 1 on a failure."""
    names = shapes.split(",")
    if unknown := set(names).difference(RERANKERS):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: choose from {', '.join(RERANKERS)}")
    precision = precision or cpu_precisions("openvino")[0]
    load = Load(documents, tokens, rounds, window or max(SMALL_WINDOW, tokens + AROUND))
    with progress_bar("models") as progress:
        rows = [measure(name, precision, load, progress) for name in names]
    found = {
        "cpu": cpu_name(),
        "threads": cpu_limit(),
        "load_average": os.getloadavg()[0],
        "engine": f"openvino {precision}",
        "documents": documents,
        "tokens": tokens,
        "shapes": [row.report() for row in rows],
    }
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        _print(found)
    if any(row.problem for row in rows):
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent to each contender."""

    documents: int
    tokens: int
    rounds: int
    window: int
    """Of the export, in tokens. A small one makes the export faster: the comparison has pairs of all lengths."""


def measure(name: str, precision: str, load: Load, progress: Progress) -> Row:
    """Make the model, export it and measure both contenders. A failure is part of the row."""
    row = Row(name)
    bar = progress.add_task(name, total=3 + load.rounds)

    def step(title: str) -> None:
        progress.update(bar, description=f"{name}: {title}")
        progress.advance(bar)

    try:
        progress.update(bar, description=f"{name}: random weights")
        folder = make_reranker(RERANKERS[name], WORK / "models" / name)
        step("export")
        exported = export(folder, precision, min(RERANKERS[name].window, load.window))
        step("start")
        asyncio.run(_compare(row, folder, exported, load, step))
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        row.problem = str(error)
    progress.update(bar, description=f"{name}: {row.problem or 'done'}")
    return row


def export(model: Path, precision: str, window: int) -> Path:
    """Export the model in another process, which frees its memory; or reuse an earlier export.

    It is forced, because models with random weights fail the comparison of rankings. `window`: in tokens.
    """
    folder = WORK / "models" / f"{identity(model)}-openvino-{precision}-{window}"
    if not folder.exists():
        command = [sys.executable, "-m", "app.export", str(model), "--output", str(folder), "--precision", precision]
        command += ["--max-length", str(window), "--force"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"The export failed: {done.stderr.strip().splitlines()[-1]}")
    return folder


async def _compare(row: Row, model: Path, exported: Path, load: Load, step: Any) -> None:
    """One request to each in turn. The first one of each does not count."""
    served = service_of(exported, "openvino", Manifest.read(exported).precision)
    torch = Library("CrossEncoder.predict, torch", Path(sys.executable), "torch", model)
    # Each text ends with a full stop, which is a token too.
    bodies = list(requests(1 + load.rounds, load.documents, (load.tokens - 1, load.tokens - 1), seed=0))
    row.tokens_per_pair = _tokens_per_pair(exported, bodies[0])
    with running([served, torch]) as seconds:
        row.start_seconds = seconds[served.name]
        for number, body in enumerate(bodies):
            step(f"round {number} of {load.rounds}" if number else "warm-up")
            speeds = [await _speed(contender, body) for contender in (torch, served)]
            if number:
                row.torch.append(speeds[0])
                row.served.append(speeds[1])
        await served.close()
        row.torch_memory, row.served_memory = torch.peak_memory(), served.peak_memory()


async def _speed(contender: Contender, body: dict[str, Any]) -> float:
    """Documents per second of one request."""
    started = time.perf_counter()
    await contender.rank(body["query"], body["documents"])
    return len(body["documents"]) / (time.perf_counter() - started)


def _tokens_per_pair(exported: Path, body: dict[str, Any]) -> float:
    manifest = Manifest.read(exported)
    words = Tokenizer.from_file(str(exported / "tokenizer.json"))
    pairs = PairTokenizer(words, manifest.max_length, manifest.template, manifest.prompt).encode(
        body["query"], body["documents"]
    )
    return sum(pair.length for pair in pairs) / len(pairs)


def _print(found: dict[str, Any]) -> None:
    print(
        f"{found['cpu']}, {found['threads']} threads, load average {found['load_average']:.1f}; {found['engine']}; "
        f"requests of {found['documents']} documents with {found['tokens']} tokens; random weights, small vocabulary"
    )
    drawn = Table("model", "layers", box=box.MARKDOWN)
    for title in FIGURES.values():
        drawn.add_column(title, justify="right")
    for row in found["shapes"]:
        cells = ["" if row[name] is None else f"{row[name]:.{_digits(name)}f}" for name in FIGURES]
        drawn.add_row(row["shape"], f"{row['layers']} × {row['width']}", *cells)
    print_table(drawn)
    for row in found["shapes"]:
        if row["problem"]:
            print(f"{row['shape']}: {row['problem']}")


def _digits(name: str) -> int:
    return 1 if name == "ratio" or name.endswith("per_second") else 0
