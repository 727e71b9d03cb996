"""Speed on a GPU: `scripts/bench gpu`, or `python -m benchmarks.speed.gpu` without OpenVINO.

Contenders run one at a time. "packed" and "padded" measure the whole service except HTTP: admission, tokenization and
batching are included. `--device cpu` runs the same code on any machine, as a check.
"""

import gc
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich import box
from rich.table import Table
from scipy.stats import kendalltau

from app.engines.models.source import EMBEDDED, locate_model
from app.engines.torch import TorchEngine
from app.engines.torch_device import pick_device
from app.machine.hardware import cpu_limit
from app.types import Pair
from benchmarks.load import print_table, progress_bar
from benchmarks.shapes import SHAPES, make_shape, pair_flops
from benchmarks.speed.gpu_contenders import CONTENDERS, WINDOW, WORKLOADS, Bodies, Row, new, ours
from benchmarks.texts import read_sets
from benchmarks.workspace import WORK

DEFAULT = "minilm-l6"
# Size of the square matrices that measure the peak speed.
SIZES = {"cuda": 8192, "cpu": 1024}
PARITY_REQUESTS = 3
SETTLED = 0.1


def matmul_ceiling(device: torch.device) -> float:
    """Peak FLOP/s: the fastest of 20 bf16 products of two random square matrices."""
    size = SIZES[device.type]
    left, right = (torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
    seconds = []
    for _ in range(20):
        wait_for(device)
        started = time.perf_counter()
        left @ right
        wait_for(device)
        seconds.append(time.perf_counter() - started)
    return float(2 * size**3 / min(seconds))


def wait_for(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def parity(folder: Path, device: str, queries: Sequence[tuple[str, list[str]]]) -> dict[str, float]:
    """Compare our logits on the device with float32 logits on the CPU."""
    exact = TorchEngine(locate_model(str(folder), None), "cpu", WINDOW, cpu_limit(), "fp32")
    engines = ours(folder, device, packed=True), exact
    taus, apart = [], 0.0
    for query, documents in queries:
        given, right = (np.array(each.score(each.encode(query, documents))) for each in engines)
        taus.append(float(kendalltau(given, right).statistic))
        apart = max(apart, float(np.abs(given - right).max()))
    return {"kendall_tau": float(np.mean(taus)), "least_kendall_tau": min(taus), "logits_apart": apart}


def memory_growth(folder: Path, device: torch.device, batches: int) -> float:
    """Growth of the device memory in MB over batches of random shapes, counted after the first tenth of them."""
    engine = ours(folder, str(device), packed=True)
    random = np.random.default_rng(0)
    [probe] = engine.encode("a", ["a"])
    settled = 0.0
    with progress_bar("batches") as progress:
        bar = progress.add_task("batches of random shapes", total=batches)
        for number in range(batches):
            lengths = random.integers(8, WINDOW, random.integers(1, 17))
            engine.score([Pair(np.resize(probe.ids, length), np.zeros(length, np.int32), False) for length in lengths])
            progress.advance(bar)
            if number == int(batches * SETTLED):
                settled = memory(device)
    return (memory(device) - settled) / 1e6


def memory(device: torch.device) -> float:
    """Bytes of device memory that this process holds."""
    if device.type == "cuda":
        return float(torch.cuda.memory_reserved(device))
    return int(Path("/proc/self/statm").read_text().split()[1]) * float(os.sysconf("SC_PAGE_SIZE"))


def labelled(data: Path, queries: int) -> dict[str, list[tuple[str, list[str]]]]:
    """Queries with their documents, by file name."""
    sets = read_sets(data, queries)
    return {
        name: [(row["query"], [each["text"] for each in row["documents"]]) for row in rows]
        for name, rows in sets.items()
    }


def measure_shape(
    shape: str, device: torch.device, names: Sequence[str], workloads: Sequence[str], rounds: int, count: int
) -> dict[str, Any]:
    """Measure all contenders on one model, one at a time."""
    folder = EMBEDDED if shape == DEFAULT else make_shape(shape, WORK / "models" / shape)
    texts = {name: [list(new(count, name)) for _ in range(rounds + 1)] for name in workloads}
    rows = []
    with progress_bar(shape) as progress:
        bar = progress.add_task(shape, total=len(names))
        for name in names:
            progress.update(bar, description=f"{shape}, {name}")
            row = Row(name)
            try:
                CONTENDERS[name](row, folder, str(device), texts)
            except Exception as error:
                row.remark = f"failed: {error}"
            rows.append(row)
            # Printed to stderr now, so that an interrupted run still reports the contenders that finished.
            progress.console.print(f"{shape}, {name}: {speed_line(row)}")
            clean(device)
            progress.advance(bar)
    tokenizer = TorchEngine(locate_model(str(folder), None), "cpu", WINDOW, cpu_limit())
    sizes = {name: token_figures(tokenizer, folder, bodies[0]) for name, bodies in texts.items()}
    queries = [(body["query"], body["documents"]) for body in texts[workloads[0]][0][:PARITY_REQUESTS]]
    return {
        "shape": shape,
        "workloads": sizes,
        "parity": parity(folder, str(device), queries),
        "contenders": [summary(row, sizes) for row in rows],
    }


def speed_line(row: Row) -> str:
    """Documents per second on each workload, or the reason for the failure."""
    measured = (f"{name} {median(rounds):.0f} docs/s" for name, rounds in row.documents_per_second.items())
    return ", ".join(measured) or row.remark or "nothing measured"


def clean(device: torch.device) -> None:
    """Free the memory of the last contender."""
    gc.unfreeze()  # the service freezes at its start whatever exists
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def token_figures(tokenizer: TorchEngine, folder: Path, bodies: Bodies) -> dict[str, float]:
    """Mean tokens (query included) and floating-point operations per document."""
    pairs = [pair for body in bodies for pair in tokenizer.encode(body["query"], body["documents"])]
    return {
        "tokens": float(np.mean([pair.length for pair in pairs])),
        "flops": float(np.mean([pair_flops(folder, pair.length) for pair in pairs])),
    }


def summary(row: Row, sizes: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Medians over the rounds, for one contender."""
    speeds = {name: median(rounds) for name, rounds in row.documents_per_second.items()}
    return {
        "contender": row.contender,
        "precision": row.precision,
        "start_seconds": row.start_seconds,
        "remark": row.remark,
        "documents_per_second": speeds,
        "tokens_per_second": {name: speed * sizes[name]["tokens"] for name, speed in speeds.items()},
        "flops_per_second": {name: speed * sizes[name]["flops"] for name, speed in speeds.items()},
    }


def table(figures: dict[str, Any], ceiling: float) -> Table:
    """A Markdown table of the contenders on one model."""
    drawn = Table(f"{figures['shape']}: docs/s, tokens/s, share of peak", box=box.MARKDOWN)
    for name, size in figures["workloads"].items():
        drawn.add_column(f"{name}, {size['tokens']:.0f} tokens", justify="right")
    drawn.add_column("start s", justify="right")
    drawn.add_column("")
    for row in figures["contenders"]:
        cells = [
            f"{row['documents_per_second'][name]:.0f}, {row['tokens_per_second'][name] / 1000:.0f}k, "
            f"{row['flops_per_second'][name] / ceiling:.0%}"
            if name in row["documents_per_second"]
            else "-"
            for name in figures["workloads"]
        ]
        title = " ".join(
            filter(None, (row["contender"], row["precision"] if "predict" not in row["contender"] else ""))
        )
        drawn.add_row(title, *cells, f"{row['start_seconds']:.1f}", row["remark"] or "")
    return drawn


def main(
    device: Annotated[str, typer.Option(help="cuda, cuda:N or cpu")] = "cuda",
    shapes: Annotated[str, typer.Option(help="Comma-separated models")] = ",".join([DEFAULT, *SHAPES]),
    workloads: Annotated[str, typer.Option(help="Comma-separated names")] = ",".join(WORKLOADS),
    contenders: Annotated[str, typer.Option(help="Semicolon-separated names")] = ";".join(CONTENDERS),
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    count: Annotated[int, typer.Option("--requests", min=1, help="Requests of 20 documents per round")] = 256,
    data: Annotated[Path | None, typer.Option(help="Folder of labelled *.jsonl.gz, to compare rankings")] = None,
    queries: Annotated[int, typer.Option(min=1, help="Queries to read from each labelled file")] = 40,
    batches: Annotated[int, typer.Option(min=0, help="Batches of random shapes, to see whether memory grows")] = 10_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables")] = False,
) -> None:
    """Compare packed, compiled and padded batches with CrossEncoder.predict on a GPU."""
    card = pick_device(device)
    ceiling = matmul_ceiling(card)
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(card) if card.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "ceiling_flops": ceiling,
        "shapes": [
            measure_shape(shape, card, contenders.split(";"), workloads.split(","), rounds, count)
            for shape in shapes.split(",")
        ],
        "ranks": {name: parity(EMBEDDED, str(card), rows) for name, rows in labelled(data, queries).items()}
        if data
        else {},
        "memory_growth_mb": memory_growth(EMBEDDED, card, batches) if batches else None,
    }
    if as_json:
        print(json.dumps(found, indent=2))
        return
    print(f"{found['device']}, torch {found['torch']}, bf16 peak {ceiling / 1e12:.4g} TFLOP/s")
    for figures in found["shapes"]:
        print_table(table(figures, ceiling))
        print("Compared with float32 on the CPU: " + described(figures["parity"]))
    for name, figures in found["ranks"].items():
        print(f"{name}: {described(figures)}")
    if batches:
        print(f"Device memory over {batches} batches of random shapes: {found['memory_growth_mb']:+.1f} MB")


def described(figures: dict[str, float]) -> str:
    """One line about the agreement with float32 logits."""
    return (
        f"Kendall tau {figures['kendall_tau']:.4f} (least {figures['least_kendall_tau']:.4f}), "
        f"logits at most {figures['logits_apart']:.2g} apart"
    )


if __name__ == "__main__":
    typer.run(main)
