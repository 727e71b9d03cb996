"""How much of the engine's speed `reranker bulk` reaches: `scripts/bench bulk`.

Both score the same pairs with the same engine, in turn. The engine alone gets pairs that are tokenized already, all of
them sorted by length, in full batches.
"""

import asyncio
import json
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Annotated

import typer
from rich.table import Table

from app.bulk.command import ALONE
from app.bulk.job import Job
from app.engines.load import load_engine
from app.engines.protocol import Engine
from app.evaluation.service import own_settings, prepare_logging
from app.serving.queues import MAX_PADDING, take_batch
from app.types import Pair
from benchmarks.load import Documents, Words, print_table
from benchmarks.texts import requests, word_range


def alone(engine: Engine, pairs: Sequence[Pair]) -> float:
    """Seconds that the engine takes."""
    waiting, batches = sorted(pairs, key=lambda pair: pair.length), []
    while waiting:
        lengths = [pair.length for pair in waiting]
        chosen = take_batch([lengths], engine.schedule.batch_tokens, None if engine.info.mixes else MAX_PADDING)
        batches.append([waiting.pop(position) for _, position in chosen])
    with ThreadPoolExecutor(engine.info.batches_at_once) as threads:
        started = perf_counter()
        for _ in threads.map(engine.score, batches):
            pass
        return perf_counter() - started


def main(
    rows: Annotated[int, typer.Option(min=1)] = 100,
    documents: Documents = 20,
    words: Words = "20-300",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds for both, in turn")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table")] = False,
) -> None:
    """Compare the tokens per second of `reranker bulk` with those of its engine alone, by time and by CPU time."""
    settings = own_settings(ALONE, measured=False)
    prepare_logging(settings)
    engine = load_engine(settings)
    engine.warm_up()
    speeds: dict[str, list[float]] = {"bulk": [], "engine": []}
    costs: dict[str, list[float]] = {"bulk": [], "engine": []}
    tokenizer: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            source = Path(folder) / f"{number}.jsonl"
            made = list(requests(rows, documents, word_range(words), number))
            source.write_text("".join(json.dumps(row) + "\n" for row in made))
            spent = process_time()
            pairs = [pair for row in made for pair in engine.encode(row["query"], row["documents"])]
            tokens = sum(pair.length for pair in pairs)
            tokenizer.append(tokens / (process_time() - spent))
            for name in ("bulk", "engine") if number % 2 else ("engine", "bulk"):
                spent = process_time()
                seconds = alone(engine, pairs) if name == "engine" else _bulk(source, settings, engine)
                speeds[name].append(tokens / seconds)
                costs[name].append(tokens / (process_time() - spent))
    ratios = {"wall": ratio(speeds), "cpu": ratio(costs)}
    costs["tokenizer"] = tokenizer
    if as_json:
        figures = {"tokens_per_second": speeds, "tokens_per_cpu_second": costs, "ratios": ratios}
        print(json.dumps(figures, indent=2))
        return
    table = Table("", *(f"round {number + 1}" for number in range(rounds)), "median")
    for title, each in (("tokens/s", speeds), ("tokens per CPU second", costs)):
        for name, values in each.items():
            table.add_row(f"{name}, {title}", *(f"{value:,.0f}" for value in (*values, median(values))))
    print_table(table)
    print(f"Median over the rounds of bulk / engine: {ratios['wall']:.1%} by time, {ratios['cpu']:.1%} by CPU time")


def ratio(figures: dict[str, list[float]]) -> float:
    """The median over the rounds: both sides of a round had about the same share of the machine."""
    return median(bulk / engine for bulk, engine in zip(figures["bulk"], figures["engine"], strict=True))


def _bulk(source: Path, settings: object, engine: Engine) -> float:
    """Seconds of a run, without the start of the service."""
    job = Job(source, source.with_suffix(".out.jsonl"), {"long_documents": "truncate"}, ["query"])
    asyncio.run(job.run(settings, engine))
    return job.seconds
