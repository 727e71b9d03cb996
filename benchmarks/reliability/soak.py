"""Mixed and hostile traffic for minutes or hours, then an idle service: `scripts/soak`.

Checks that no score is wrong, that every request is counted, and that nothing leaks. Exits with status 1 if a check
fails.
"""

import asyncio
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Annotated

import httpx
import numpy as np
import typer
from prometheus_client.parser import text_string_to_metric_families
from rich.table import Table

from benchmarks.load import print_table, progress_bar
from benchmarks.process import service_process
from benchmarks.reliability.traffic import LIMITS, Traffic

SETTINGS = LIMITS | {
    "RERANKER_MAX_PARALLEL": "2",
    "RERANKER_MAX_QUEUE": "6",
    "RERANKER_QUEUE_TIMEOUT": "0.3",
    # Routes without this field then treat long documents like those with it.
    "RERANKER_LONG_DOCUMENTS": "truncate",
    "CACHE_MAX_ENTRIES": "100",
    "CACHE_TTL_SECONDS": "2",
    "CLEAR_CACHE_INTERVAL": "1",
}
CLIENTS = 12
SAMPLE_SECONDS = 0.5
IDLE_SECONDS = 60
# Allowed growth of the memory in the second half of the run. In a short run, caches are still filling.
GROWTH, SHORT_RUN, SHORT_GROWTH = 0.02, 120, 0.1
IDLE_GAUGES = ("active_requests", "waiting_requests", "pending_pairs", "flights")
Figures = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Row:
    """One check."""

    name: str
    figure: str
    bound: str
    ok: bool


@dataclass(slots=True)
class Samples:
    """Samples of the process during the run: seconds since the start, resident bytes, threads."""

    seconds: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)

    def take(self, pid: int, second: float) -> None:
        """Add a sample."""
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        self.seconds.append(second)
        self.memory.append(float(status["VmRSS"].split()[0]) * 1024)
        self.threads.append(int(status["Threads"]))

    def growth(self) -> float:
        """Bytes per second, fitted by least squares to the second half of the run."""
        half = len(self.seconds) // 2
        return float(np.polyfit(self.seconds[half:], self.memory[half:], 1)[0])


async def scrape(client: httpx.AsyncClient) -> Figures:
    """Read the metrics of the service, keyed like `requests_total{200}`."""
    page = (await client.get("/metrics", headers={"accept": "text/plain"})).raise_for_status().text
    return {
        sample.name.removeprefix("reranker_")
        + "".join(f"{{{value}}}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


async def until_idle(client: httpx.AsyncClient) -> Figures:
    """Wait until the service is idle and its tasks have ended, at most a minute; returns the metrics."""
    deadline = time.monotonic() + IDLE_SECONDS
    before, figures = None, await scrape(client)
    while (before != figures["tasks"] or any(figures[name] for name in IDLE_GAUGES)) and time.monotonic() < deadline:
        before = figures["tasks"]
        await asyncio.sleep(SAMPLE_SECONDS)
        figures = await scrape(client)
    return figures


def open_files(pid: int) -> int:
    """Number of open files, sockets included."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def soak(url: str, pid: int, seconds: float, seed: int) -> tuple[Traffic, Samples, list[Row]]:
    """Run the traffic; returns it with the samples of the process and the checks."""
    limits = httpx.Limits(max_connections=4 * CLIENTS)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits, trust_env=False) as client:
        traffic, samples = Traffic(client, seed), Samples()
        await traffic.learn()
        before, files = await until_idle(client), open_files(pid)
        started = time.monotonic()
        with progress_bar("soak") as progress:
            bar = progress.add_task("soak", total=round(seconds))
            async with asyncio.TaskGroup() as clients:
                for _ in range(CLIENTS):
                    clients.create_task(traffic.run(lambda: time.monotonic() - started > seconds))
                while (elapsed := time.monotonic() - started) < seconds:
                    samples.take(pid, elapsed)
                    status = f"{traffic.sent} requests, {traffic.problems.total()} problems"
                    progress.update(bar, completed=round(elapsed), description=status)
                    await asyncio.sleep(SAMPLE_SECONDS)
    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as client:
        after = await until_idle(client)
        rows = [*answers(traffic), *counters(traffic, after), *leaks(samples, seconds, before, after)]
        rows.append(_at_most("open files", open_files(pid), files, "before the load"))
        return traffic, samples, rows


def answers(traffic: Traffic) -> Iterator[Row]:
    """Checks of the responses that clients saw."""
    yield Row("rankings checked against single documents", str(traffic.checked), "> 0", traffic.checked > 0)
    for name, count in sorted(traffic.problems.items()):
        yield Row(name, str(count), "0", False)
    yield Row("wrong responses", str(traffic.problems.total()), "0", not traffic.problems)
    for status in (200, 429, 504):
        yield Row(f"responses {status}", str(traffic.seen[status]), "> 0", traffic.seen[status] > 0)
    yield Row("responses 503", str(traffic.seen[503]), "any", True)  # the number depends on the machine


def counters(traffic: Traffic, figures: Figures) -> Iterator[Row]:
    """Checks of the counters of the service against what clients sent and saw."""
    counted = _labelled(figures, "requests_total")
    yield _equal("requests counted", sum(counted.values()), traffic.sent, "sent")
    missing = {status: count for status, count in traffic.seen.items() if counted.get(str(status), 0) < count}
    yield Row("statuses counted less often than seen", str(len(missing)), "0", not missing)
    gone, sending = counted.get("499", 0), traffic.left["sending"]
    ok = sending <= gone <= traffic.left.total() and gone == figures["disconnects_total"]
    yield Row("disconnects counted", f"{gone:.0f}", f"{sending} to {traffic.left.total()} disconnected clients", ok)
    refusals = sum(count for status, count in counted.items() if int(status) >= 400) - gone
    reasons = _labelled(figures, "rejections_total")
    yield _equal("rejections by reason", sum(reasons.values()), refusals, "responses with status 400 or higher")
    for reason, status in (("queue_full", "429"), ("queue_timeout", "503"), ("deadline", "504")):
        yield _equal(f"rejections, {reason}", reasons.get(reason, 0), counted.get(status, 0), f"responses {status}")
    pairs, most = sum(_labelled(figures, "documents_total").values()), traffic.pairs + traffic.left_pairs
    yield Row("documents ranked", f"{pairs:.0f}", f"{traffic.pairs} to {most}", traffic.pairs <= pairs <= most)


def leaks(samples: Samples, seconds: float, before: Figures, after: Figures) -> Iterator[Row]:
    """Checks that an idle service holds nothing back."""
    for name in IDLE_GAUGES:
        yield _equal(name.replace("_", " "), after[name], 0, "idle")
    yield _equal("tasks", after["tasks"], before["tasks"], "before the load")
    half = samples.threads[: len(samples.threads) // 2 + 1]
    yield _at_most("threads", samples.threads[-1], max(half), "in the first half")
    share = GROWTH if seconds >= SHORT_RUN else SHORT_GROWTH
    growth = samples.growth() * seconds / 2 / samples.memory[-1]
    figure = f"{samples.growth() * 60 / 1e6:+.2f} MB/min, {growth:+.1%} of {samples.memory[-1] / 1e6:.0f} MB"
    yield Row("memory, second half of the run", figure, f"at most +{share:.0%}", growth <= share)


def _labelled(figures: Figures, name: str) -> dict[str, float]:
    return {key[len(name) + 1 : -1]: value for key, value in figures.items() if key.startswith(f"{name}{{")}


def _equal(name: str, figure: float, bound: float, what: str) -> Row:
    return Row(name, f"{figure:.0f}", f"{bound:.0f} {what}", figure == bound)


def _at_most(name: str, figure: float, bound: float, what: str) -> Row:
    return Row(name, f"{figure:.0f}", f"at most {bound:.0f}, as {what}", figure <= bound)


def end(process: "subprocess.Popen[bytes]", log: IO[str]) -> Iterator[Row]:
    """Stop the service; checks its exit status and its log."""
    alive = process.poll() is None
    process.terminate()
    yield Row("exit status after SIGTERM", str(process.wait(60)), "0", alive and process.returncode == 0)
    log.seek(0)
    lines = log.read().splitlines()
    for line in lines[:5]:
        typer.echo(line, err=True)
    yield Row("warnings and errors in the log", str(len(lines)), "0", not lines)


def main(
    minutes: Annotated[float, typer.Option(min=0.1, help="Duration of the traffic")] = 10,
    seconds: Annotated[float | None, typer.Option(min=5, help="Duration in seconds; replaces --minutes")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random traffic")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table")] = False,
) -> None:
    """Send a service valid, impatient and invalid requests, and check that nothing leaks or is lost."""
    duration = seconds or minutes * 60
    with tempfile.TemporaryFile("w+") as log, service_process(log, **SETTINGS) as (url, process):
        traffic, _, rows = asyncio.run(soak(url, process.pid, duration, seed))
        rows += end(process, log)
    if as_json:
        found = {"seconds": duration, "requests": traffic.sent, "rows": [asdict(row) for row in rows]}
        print(json.dumps(found, indent=2))
    else:
        table = Table(f"{traffic.sent} requests in {duration:.0f} s", "figure", "bound", "verdict")
        table.columns[1].justify = "right"
        for row in rows:
            table.add_row(row.name, row.figure, row.bound, "ok" if row.ok else "FAILED")
        print_table(table)
    if not all(row.ok for row in rows):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
