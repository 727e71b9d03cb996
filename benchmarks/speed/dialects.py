"""What each API dialect adds to the latency of the native route: `scripts/bench dialects`.

All scores come from the cache, so only the work on the request itself is measured. Dialects take turns.
"""

import json
import time
from statistics import median
from typing import Annotated, Any, NamedTuple

import httpx
import typer
from rich.table import Table

from benchmarks.load import make_bodies, print_table, progress_bar
from benchmarks.process import service

NATIVE = "/rerank/query"
DASHSCOPE = "/api/v1/services/rerank/text-rerank/text-rerank"
GOOGLE = "/v1/projects/p/locations/global/rankingConfigs/default_ranking_config:rank"
PINECONE = {"X-Pinecone-API-Version": "2025-10"}


class Call(NamedTuple):
    """The same request in one dialect."""

    path: str
    body: dict[str, Any]
    headers: dict[str, str] | None = None


def calls(query: str, documents: list[str]) -> dict[str, Call]:
    """One for each dialect, by name."""
    plain = {"query": query, "documents": documents}
    passages = [{"text": document} for document in documents]
    return {
        "native": Call(NATIVE, plain),
        "Cohere, Jina, vLLM, Infinity": Call("/v1/rerank", plain),
        "text-embeddings-inference": Call("/rerank", {"query": query, "texts": documents}),
        "vLLM /score": Call("/score", {"text_1": query, "text_2": documents}),
        "NVIDIA NIM": Call("/v1/ranking", {"query": {"text": query}, "passages": passages}),
        "Voyage": Call("/v1/rerank", plain | {"model": "rerank-2.5", "truncation": True}),
        "DashScope": Call(DASHSCOPE, {"input": plain}),
        "Amazon Bedrock": Call("/rerank", bedrock(query, documents)),
        "Pinecone": Call("/rerank", {"query": query, "documents": passages}, PINECONE),
        "Google": Call(GOOGLE, {"query": query, "records": [{"content": document} for document in documents]}),
        "Mixedbread": Call("/v1/reranking", {"query": query, "input": documents}),
    }


def bedrock(query: str, documents: list[str]) -> dict[str, Any]:
    """A request to the operation `Rerank`."""
    texts = [{"type": "TEXT", "textDocument": {"text": document}} for document in documents]
    return {
        "queries": [{"type": "TEXT", "textQuery": {"text": query}}],
        "sources": [{"type": "INLINE", "inlineDocumentSource": text} for text in texts],
        "rerankingConfiguration": {
            "type": "BEDROCK_RERANKING_MODEL",
            "bedrockRerankingConfiguration": {"modelConfiguration": {"modelArn": "any"}},
        },
    }


def main(
    requests: Annotated[int, typer.Option(min=10, help="Requests per dialect")] = 500,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table")] = False,
) -> None:
    """Measure the median latency of a fully cached request of 20 documents in each dialect."""
    [body] = make_bodies(1, 20, "20-300", cached=True)
    dialects = calls(body["query"], body["documents"])
    times: dict[str, list[float]] = {name: [] for name in dialects}
    with service() as (url, _), httpx.Client(base_url=url, timeout=60) as client, progress_bar("dialects") as progress:
        bar = progress.add_task("dialects", total=requests)
        for _ in range(requests):
            for name, (path, content, headers) in dialects.items():
                started = time.perf_counter()
                client.post(path, json=content, headers=headers).raise_for_status()
                times[name].append((time.perf_counter() - started) * 1000)
            progress.advance(bar)
    figures = {name: {"p50_ms": median(values)} for name, values in times.items()}
    for figure in figures.values():
        figure["added_ms"] = figure["p50_ms"] - figures["native"]["p50_ms"]
    if as_json:
        print(json.dumps(figures, indent=2))
        return
    table = Table("20 documents of 20-300 words, all cached", "p50 ms", "more than native, ms")
    for name, figure in figures.items():
        table.add_row(name, f"{figure['p50_ms']:.2f}", f"{figure['added_ms']:+.2f}")
    print_table(table)
