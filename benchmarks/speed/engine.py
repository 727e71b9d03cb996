"""Precision and speed of each OpenVINO configuration by padded width: `scripts/bench engine`."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from app.engines.models.artefact import Manifest, is_artefact
from app.engines.models.source import EMBEDDED
from app.engines.openvino import PART_TOKENS, OpenVinoEngine
from app.engines.openvino_model import Configuration, configurations
from app.engines.padding import bucket_length
from app.engines.probes import Known
from app.engines.selftest import BOUNDS, USUAL_LOGIT
from app.errors import StartupError
from app.machine.hardware import cpu_features, cpu_name
from benchmarks.speed.ceiling import matmul_ceiling

WIDTHS = (16, 32, 48, 64, 96, 128, 256, 512, 1152)
REPEATS = 5
INSTRUCTIONS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "amx_fp16")
CEILINGS = ("fp32", "bf16", "int8")


@dataclass(slots=True)
class Row:
    """One configuration of one exported model. Figures are by padded width."""

    name: str
    bound: float
    deviations: dict[int, float] = field(default_factory=dict)
    """Largest difference of a logit from the same weights in float32 arithmetic."""
    errors: dict[int, float] = field(default_factory=dict)
    """Largest difference of a logit from the float32 original."""
    speeds: dict[int, float] = field(default_factory=dict)
    """Tokens per second of one thread, without padding."""
    problem: str | None = None

    @property
    def is_right(self) -> bool:
        """Whether all deviations are within the bound."""
        return all(deviation <= self.bound for deviation in self.deviations.values())


def main(
    model: Annotated[list[Path] | None, typer.Option(help="Exported model; default: the embedded ones")] = None,
    ceilings: Annotated[bool, typer.Option(help="Also measure the peak speed of the CPU")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables")] = False,
) -> None:
    """Measure the OpenVINO engine by width, on one thread. Exits with status 1 if a deviation exceeds its bound."""
    folders = model or sorted(file.parent for file in EMBEDDED.glob("openvino-*/manifest.json"))
    for folder in folders:
        if not is_artefact(folder):
            raise typer.BadParameter(f"{folder} is not an exported model")
    runs = [(folder, configuration) for folder in folders for configuration in _configurations(folder)]
    rows = [measure(*run) for run in track(runs, "Measuring", console=Console(stderr=True))]
    found = {kind: matmul_ceiling(kind, 1) for kind in CEILINGS} if ceilings else {}
    if as_json:
        print(json.dumps(report(rows, found), indent=2))
    else:
        _print(rows, found)
    if not all(row.is_right for row in rows):
        raise typer.Exit(1)


def _configurations(folder: Path) -> list[Configuration]:
    manifest = Manifest.read(folder)
    return configurations(manifest.precision, manifest.max_length)


def measure(folder: Path, configuration: Configuration) -> Row:
    """Measure all widths of one configuration, with as many rows per batch as the service uses."""
    name = f"{Manifest.read(folder).precision}, {configuration}"
    try:
        engine = OpenVinoEngine(folder, None, 1, configuration=configuration)
    except StartupError as error:
        return Row(name, 0.0, problem=str(error))
    known = engine.probes.known(engine, engine.info.max_length) if engine.probes else []
    scale = max([1.0, *(abs(each.expected) / USUAL_LOGIT for each in known)])
    row = Row(name, BOUNDS[engine.info.precision] * scale)
    for width, of_width in _by_width(known):
        _measure_width(row, engine, width, of_width)
    return row


def _by_width(known: Sequence[Known]) -> Iterator[tuple[int, list[Known]]]:
    for width in WIDTHS:
        found = [each for each in known if bucket_length(each.pair.length) == width]
        if found:
            yield width, found


def _measure_width(row: Row, engine: OpenVinoEngine, width: int, known: Sequence[Known]) -> None:
    rows = max(1, PART_TOKENS // width)
    repeated = list(known) * -(-rows // len(known))
    logits = engine.score([each.pair for each in repeated])
    row.deviations[width] = max(abs(logit - each.expected) for logit, each in zip(logits, repeated, strict=True))
    row.errors[width] = max(abs(logit - (each.original or 0)) for logit, each in zip(logits, repeated, strict=True))
    full = [max(known, key=lambda each: each.pair.length).pair] * rows
    engine.score(full)
    seconds = []
    for _ in range(REPEATS):
        started = perf_counter()
        engine.score(full)
        seconds.append(perf_counter() - started)
    row.speeds[width] = sum(pair.length for pair in full) / min(seconds)


def report(rows: Sequence[Row], ceilings: dict[str, float]) -> dict[str, Any]:
    """The figures for `--json`."""
    return {
        "cpu": cpu_name(),
        "instructions": sorted(cpu_features().intersection(INSTRUCTIONS)),
        "load_average": os.getloadavg()[0],
        "ceilings_gflops_one_thread": ceilings,
        "configurations": [
            {
                "name": row.name,
                "bound": row.bound,
                "right": row.is_right,
                "deviations": row.deviations,
                "errors": row.errors,
                "tokens_per_second": row.speeds,
                "problem": row.problem,
            }
            for row in rows
        ],
    }


def _print(rows: Sequence[Row], ceilings: dict[str, float]) -> None:
    instructions = " ".join(name for name in INSTRUCTIONS if name in cpu_features())
    print(f"{cpu_name()}; {instructions}; one thread; load average {os.getloadavg()[0]:.1f}")
    if ceilings:
        figures = ", ".join(f"{kind} {value:.0f}" for kind, value in ceilings.items())
        print(f"Products of 4096 × 4096 matrices, GFLOP/s: {figures}")
    console = Console(width=160)
    console.print(_table("Largest difference of a logit from the same weights in float32", rows, _deviation, True))
    console.print(_table("Largest difference of a logit from the float32 original", rows, _error))
    console.print(_table("Thousand tokens per second", rows, _speed))
    for row in rows:
        if row.problem:
            print(f"{row.name}: {row.problem}")


def _deviation(row: Row, width: int) -> str:
    value = row.deviations[width]
    return f"{value:.3f}" if value <= row.bound else f"[red]{value:.3f}, too large[/red]"


def _error(row: Row, width: int) -> str:
    return f"{row.errors[width]:.3f}"


def _speed(row: Row, width: int) -> str:
    return f"{row.speeds[width] / 1000:.1f}"


def _table(title: str, rows: Sequence[Row], cell: Any, bounds: bool = False) -> Table:
    widths = sorted({width for row in rows for width in row.deviations})
    table = Table(title=title, title_justify="left")
    table.add_column("weights, arithmetic")
    for width in widths:
        table.add_column(str(width), justify="right")
    if bounds:
        table.add_column("bound", justify="right")
    for row in rows:
        cells = [cell(row, width) if width in row.deviations else "" for width in widths]
        table.add_row(row.name, *cells, *([f"{row.bound:.2f}"] if bounds else []))
    return table
