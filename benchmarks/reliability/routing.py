"""How many scores come from the caches, by how requests are distributed to the replicas: `scripts/bench routing`.

HAProxy runs with the configuration of docker/haproxy. The replicas have the service's caches and no model. The
frequencies of the queries follow Zipf's law, and each query has the same documents every time. The first third of the
requests fills the caches and is not counted.
"""

import asyncio
import json
import os
import random
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from app.serving import shared_cache
from app.telemetry.metrics import Metrics
from benchmarks.load import print_table
from benchmarks.names import Names
from benchmarks.process import free_port
from benchmarks.replicas import HOUR, Replica, read_message, replicas
from benchmarks.texts import requests as make_requests
from benchmarks.workspace import ROOT

LEAST, EQUAL = "connections", "query"  # values of RERANKER_PROXY_ROUTING
# Longer than the slow start in haproxy.cfg, during which queries move between the replicas.
SETTLE_SECONDS = 6
COLUMNS = ("cache of a replica", "least connections", "equal queries", "shared Redis")


@contextmanager
def running(*command: str | Path, **environment: object) -> Iterator[None]:
    texts = {name: str(value) for name, value in environment.items()}
    process = subprocess.Popen(command, env=os.environ | texts, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


@asynccontextmanager
async def haproxy(routing: str, addresses: Sequence[str], port: int) -> AsyncIterator[int]:
    """HAProxy in front of these replicas: its port."""
    listening, configuration = free_port(), ROOT / "docker/haproxy/haproxy.cfg"
    with (
        Names(addresses) as names,
        running(
            "haproxy",
            "-db",
            "-f",
            configuration,
            RESOLVER=f"127.0.0.1:{names.port}",
            UPSTREAM_PORT=port,
            STATS_PORT=free_port(),
            RERANKER_PROXY_PORT=listening,
            RERANKER_PROXY_ROUTING=routing,
        ),
    ):
        await asyncio.sleep(SETTLE_SECONDS)
        yield listening


@asynccontextmanager
async def redis() -> AsyncIterator[shared_cache.SharedCache]:
    shared_cache.SECONDS = 10.0  # a busy machine must not count as a Redis that does not answer
    port = free_port()
    with running("redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""):
        cache = shared_cache.SharedCache(f"redis://127.0.0.1:{port}", HOUR, Metrics())
        await asyncio.sleep(1)
        await cache.connect()
        yield cache
        await cache.close()


async def send_all(port: int, bodies: Sequence[Any], clients: int) -> None:
    """Each client waits for an answer before it sends the next body."""
    queue = iter(bodies)

    async def send() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for body in queue:
            content = json.dumps(body).encode()
            writer.write(b"POST /rerank HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(content) + content)
            status, answer = await read_message(reader)
            if b" 200 " not in status:
                raise RuntimeError(f"{status.decode()}: {answer.decode()}")
        writer.close()

    await asyncio.gather(*(send() for _ in range(clients)))


async def run(port: int, found: Sequence[Replica], bodies: Sequence[Any], clients: int) -> dict[str, float]:
    """Send all bodies; the share of known scores, and of the requests that the busiest replica served."""
    warm = len(bodies) // 3
    await send_all(port, bodies[:warm], clients)
    for replica in found:
        replica.counts.clear()
    await send_all(port, bodies[warm:], clients)
    served = [replica.counts["requests"] for replica in found]
    known, documents = (sum(replica.counts[name] for replica in found) for name in ("known", "documents"))
    return {"hit_rate": known / documents, "busiest": max(served) / sum(served)}


async def measure(
    distinct: Sequence[Any], bodies: Sequence[Any], shares: Sequence[float], count: int, clients: int
) -> list[dict[str, Any]]:
    """One row per size of the caches, as a share of all pairs."""
    pairs = sum(len(body["documents"]) for body in distinct)
    rows: list[dict[str, Any]] = [{"share": share, "entries": max(1, round(share * pairs))} for share in shares]
    port = free_port()
    async with replicas(count, port) as found, redis() as shared:
        for routing, caches in (LEAST, {COLUMNS[1]: None, COLUMNS[3]: shared}), (EQUAL, {COLUMNS[2]: None}):
            async with haproxy(routing, list(found), port) as listening:
                for row, (column, cache) in product(rows, caches.items()):
                    for replica in found.values():
                        replica.clear(row["entries"], f"{column} {row['share']}", cache)
                    row[column] = await run(listening, list(found.values()), bodies, clients)
    return rows


def main(
    queries: Annotated[int, typer.Option(min=1, help="Distinct queries")] = 300,
    requests: Annotated[int, typer.Option(min=3)] = 1800,
    documents: Annotated[int, typer.Option(min=1, help="Documents per query")] = 5,
    exponent: Annotated[float, typer.Option(min=0, help="The k-th query has a frequency of 1/k to this power")] = 1.0,
    shares: Annotated[str, typer.Option(help="Comma-separated sizes of each replica's cache, in % of all pairs")] = (
        "10,33"
    ),
    count: Annotated[int, typer.Option("--replicas", min=2, max=32)] = 3,
    clients: Annotated[int, typer.Option(min=1)] = 12,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table")] = False,
) -> None:
    """Compare the hit rates of least connections, equal queries to one replica, and a shared Redis."""
    for program in ("haproxy", "redis-server"):
        if not shutil.which(program):
            typer.echo(f"{program} is not installed: install the Debian package", err=True)
            raise typer.Exit(1)
    distinct = list(make_requests(queries, documents, (5, 10), seed=0))
    frequencies = [1 / rank**exponent for rank in range(1, queries + 1)]
    bodies = random.Random(0).choices(distinct, frequencies, k=requests)
    rows = asyncio.run(measure(distinct, bodies, [float(share) / 100 for share in shares.split(",")], count, clients))
    counted = bodies[len(bodies) // 3 :]
    new = {body["query"] for body in counted} - {body["query"] for body in bodies[: len(bodies) // 3]}
    if as_json:
        print(json.dumps({"limit": 1 - len(new) / len(counted), "rows": rows}, indent=2))
    else:
        show(rows, 1 - len(new) / len(counted))


def show(rows: Sequence[dict[str, Any]], limit: float) -> None:
    """Print a row per size of the caches: hit rate, and in parentheses the busiest replica's share of the requests."""
    table = Table(*COLUMNS)
    for row in rows:
        cells = (f"{row[name]['hit_rate']:.1%} ({row[name]['busiest']:.0%})" for name in COLUMNS[1:])
        table.add_row(f"{row['entries']} scores, {row['share']:.0%} of all", *cells)
    print_table(table)
    print(f"One cache that never forgets: {limit:.1%}")
