"""What stored documents save: `scripts/bench documents`.

The same request is sent with texts and with ids, in turn. All scores come from the cache, so only the work on the
request itself is measured.
"""

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import httpx
import typer
from rich.table import Table

from benchmarks.load import make_bodies, print_table, progress_bar
from benchmarks.process import service

COLLECTION = "benchmark"


@contextmanager
def places(redis: str | None) -> Iterator[dict[str, str]]:
    """The value of RERANKER_DOCUMENTS for each store, by name."""
    with tempfile.TemporaryDirectory() as folder:
        found = {"memory": "memory", "SQLite file": str(Path(folder) / "documents.sqlite")}
        yield found | ({"Redis": redis} if redis else {})


def store(client: httpx.Client, documents: list[str]) -> float:
    """Store the documents under their numbers. Returns documents per second."""
    lines = b"".join(json.dumps({"id": n, "text": text}).encode() + b"\n" for n, text in enumerate(documents))
    started = time.perf_counter()
    answer = client.put(
        "/v1/documents",
        params={"collection": COLLECTION},
        content=lines,
        headers={"Content-Type": "application/x-ndjson"},
    )
    counted = answer.raise_for_status().json()
    assert counted["stored"] + counted["replaced"] == len(documents)
    return len(documents) / (time.perf_counter() - started)


def measure(place: str, query: str, documents: list[str], rounds: int, title: str) -> dict[str, Any]:
    """Requests per second and bytes of a request, with texts and with ids."""
    bodies: dict[str, dict[str, Any]] = {
        "texts": {"query": query, "documents": documents},
        "ids": {"query": query, "collection": COLLECTION, "document_ids": list(range(len(documents)))},
    }
    contents = {name: json.dumps(body | {"top_k": 10}).encode() for name, body in bodies.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contents}
    settings = {"RERANKER_DOCUMENTS": place, "RERANKER_MAX_DOCUMENTS": str(len(documents))}
    with service(**settings) as (url, _), httpx.Client(base_url=url, timeout=600) as client:
        stored = store(client, documents)
        with progress_bar(title) as progress:
            bar = progress.add_task(title, total=rounds + 1)
            for number in range(rounds + 1):
                for name, content in contents.items():
                    started = time.perf_counter()
                    client.post(
                        "/rerank", content=content, headers={"Content-Type": "application/json"}
                    ).raise_for_status()
                    if number:  # the first one fills the cache
                        seconds[name].append(time.perf_counter() - started)
                progress.advance(bar)
    figures: dict[str, Any] = {"stored_documents_per_second": stored}
    for name, content in contents.items():
        figures[name] = {"requests_per_second": 1 / median(seconds[name]), "bytes": len(content)}
    return figures


def main(
    documents: Annotated[int, typer.Option(min=1, max=10_000, help="Documents per request")] = 1000,
    words: Annotated[str, typer.Option(help="Words of a document")] = "20-300",
    rounds: Annotated[int, typer.Option(min=1, help="Requests of each kind")] = 50,
    redis: Annotated[str | None, typer.Option(help="URL of a Redis to measure, too")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table")] = False,
) -> None:
    """Measure requests with stored documents, by texts and by ids, all scores cached."""
    [body] = make_bodies(1, documents, words, cached=True)
    with places(redis) as stores:
        figures = {
            name: measure(place, body["query"], body["documents"], rounds, name) for name, place in stores.items()
        }
    if as_json:
        print(json.dumps(figures, indent=2))
        return
    table = Table(f"{documents} documents of {words} words, all cached", "texts", "ids")
    for name, found in figures.items():
        speeds = (f"{found[kind]['requests_per_second']:.1f}" for kind in ("texts", "ids"))
        table.add_row(f"{name}, requests/s", *speeds)
    sizes = (f"{next(iter(figures.values()))[kind]['bytes']}" for kind in ("texts", "ids"))
    table.add_row("bytes of a request", *sizes)
    print_table(table)
