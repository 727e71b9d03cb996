"""How a model ranks long documents, by the position of the relevant text: `scripts/bench long`.

Each labelled text is embedded in a longer document and keeps its grade. The filling comes from documents of other
queries in the same file.
"""

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from app.engines.load import load_engine
from app.engines.protocol import Engine
from app.environment import load_settings
from app.errors import StartupError
from app.export.parity import ndcg
from benchmarks.texts import read_sets

PLACES = ("short", "first", "middle", "last")
READINGS = {"truncate": "cut", "chunk_max": "windows"}


def main(
    data: Annotated[Path, typer.Option(help="Folder of labelled *.jsonl.gz", exists=True, file_okay=False)],
    model: Annotated[str | None, typer.Option(help="Folder or hub id; default: the embedded model")] = None,
    queries: Annotated[int, typer.Option(help="Queries to read from each file", min=1)] = 20,
    documents: Annotated[int, typer.Option(help="Documents per query", min=2)] = 20,
    words: Annotated[int, typer.Option(help="Approximate words of a long document", min=50)] = 320,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table")] = False,
) -> None:
    """Measure nDCG@10 with long documents, truncated and read in windows, by the position of the answer."""
    try:
        engine = load_engine(load_settings(**({"model": model} if model else {})))
    except StartupError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    figures = {name: measure(engine, rows, documents, words) for name, rows in read_sets(data, queries).items()}
    info = engine.info
    about = {"model": info.model, "precision": info.precision, "window": info.max_length, "words": words}
    if as_json:
        print(json.dumps(about | {"ndcg_at_10": figures}, indent=2))
        return
    print(f"nDCG@10: {info.model}, {info.backend} {info.precision}, window {info.max_length} tokens")
    names = [file.partition(".")[0] for file in figures]
    table = Table("answer", *(f"{name}, {reading}" for name in names for reading in READINGS.values()))
    for place in PLACES:
        cells = (found.get(f"{place}, {mode}") for found in figures.values() for mode in READINGS)
        table.add_row(place, *("" if value is None else f"{value:.3f}" for value in cells))
    Console(width=120).print(table)


def _cells() -> list[tuple[str, str]]:
    return [("short", "truncate"), *((place, mode) for place in PLACES[1:] for mode in READINGS)]


def measure(engine: Engine, rows: Sequence[dict[str, Any]], documents: int, words: int) -> dict[str, float]:
    """Mean nDCG@10 by place and mode."""
    found: dict[str, list[float]] = {f"{place}, {mode}": [] for place, mode in _cells()}
    for row in track(list(rows), "Ranking", console=Console(stderr=True)):
        others = [document["text"] for other in rows if other is not row for document in other["documents"]]
        own = row["documents"][:documents]
        grades = [float(row["qrels"].get(document["id"], 0)) for document in own]
        if not any(grades):
            continue
        for place, mode in _cells():
            texts = list(_placed([document["text"] for document in own], others, place, words))
            found[f"{place}, {mode}"].append(ndcg(grades, _logits(engine, row["query"], texts, mode)))
    return {name: sum(values) / len(values) for name, values in found.items() if values}


def _placed(texts: Sequence[str], others: Sequence[str], place: str, words: int) -> Iterator[str]:
    dice = random.Random(0)
    for text in texts:
        filling: list[str] = []
        while place != "short" and len(filling) + len(text.split()) < words:
            filling += dice.choice(others).split()
        filling = filling[: max(0, words - len(text.split()))]
        before = {"first": 0, "middle": len(filling) // 2, "last": len(filling)}.get(place, 0)
        yield " ".join([*filling[:before], text, *filling[before:]])


def _logits(engine: Engine, query: str, texts: Sequence[str], mode: str) -> list[float]:
    """The logit of each text: of its best window, or of its truncated beginning."""
    spans = engine.windows(query, texts) if mode == "chunk_max" else [[(0, len(text))] for text in texts]
    parts = [text[slice(*span)] for text, own in zip(texts, spans, strict=True) for span in own]
    logits = iter(engine.score(engine.encode(query, parts)))
    return [max(next(logits) for _ in own) for own in spans]
