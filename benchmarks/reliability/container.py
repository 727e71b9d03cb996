"""Serve a large model in a container with the limits of the Compose file: `scripts/bench container`.

Reports whether the container is killed for memory, and its peak memory, as its cgroup counts it.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import IO, Annotated, Any

import typer
from rich.table import Table

from benchmarks.load import make_bodies, print_table, run
from benchmarks.process import is_ready
from benchmarks.shapes import make_shape
from benchmarks.texts import LONG_TOKENS, LONG_WORDS
from benchmarks.workspace import ROOT, WORK, exported

IMAGE, SHAPE = "reranker:slim", "xlm-roberta-large"
DOCUMENTS = 20
# As in the Compose file. The volume is removed with the container.
OPTIONS = ("--read-only", "--tmpfs=/tmp", "--volume=/home/reranker/.cache", "--publish=127.0.0.1::8000")
STOP_SECONDS = 40
# Prints the peak of all memory and the current anonymous memory, with cgroups v2 and v1.
WATCH = """
cd /sys/fs/cgroup/memory 2>/dev/null || cd /sys/fs/cgroup
while cat memory.peak 2>/dev/null || cat memory.max_usage_in_bytes; do
  grep -E '^(anon|total_rss) ' memory.stat
  sleep 0.5
done
"""


def docker(*arguments: str) -> str:
    """Run docker; returns its output. Raises RuntimeError with its error message."""
    try:
        found = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise RuntimeError("docker is not installed") from None
    if found.returncode != 0:
        raise RuntimeError(found.stderr.strip())
    return found.stdout.strip()


def require_engine() -> None:
    """Exit with a one-line message if no Docker engine is available."""
    try:
        docker("version")
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        typer.echo(f"Cannot reach a Docker engine: {reason}", err=True)
        raise typer.Exit(1) from None


@contextmanager
def container(image: str, model: Path, *limits: str) -> Iterator[str]:
    """Start a container that serves the model; yields its id and removes it afterwards."""
    mount = ("--volume", f"{model.resolve()}:/model:ro", "--env=RERANKER_MODEL=/model")
    name = docker("run", "--detach", *OPTIONS, *mount, *limits, image)
    try:
        yield name
    finally:
        docker("rm", "--force", "--volumes", name)


@contextmanager
def watching(name: str, log: IO[str]) -> Iterator[None]:
    """Write the memory of the container to `log` while it runs."""
    with subprocess.Popen(["docker", "exec", name, "sh", "-c", WATCH], stdout=log, stderr=subprocess.DEVNULL) as watch:
        yield
        watch.terminate()


def peaks(log: IO[str]) -> tuple[int | None, int | None]:
    """Peaks in MB: all memory (with the page cache), and anonymous memory."""
    log.seek(0)
    lines = [line.split() for line in log]
    total, anonymous = (max((int(line[-1]) for line in lines if len(line) == n), default=None) for n in (1, 2))
    return total and round(total / 1e6), anonymous and round(anonymous / 1e6)


def state(name: str) -> dict[str, Any]:
    """The state of the container, from `docker inspect`."""
    found: dict[str, Any] = json.loads(docker("inspect", "--format={{json .State}}", name))
    return found


def starts(name: str, url: str) -> bool:
    """Wait until the service is ready; returns false if the container exits first."""
    while state(name)["Running"]:
        if is_ready(url):
            return True
        time.sleep(0.2)
    typer.echo(docker("logs", "--tail=5", name), err=True)
    return False


def measure(image: str, model: Path, requests: int, *limits: str) -> dict[str, Any]:
    """Measure one container from start to stop. Figures that it did not reach are None."""
    figures: dict[str, Any] = {"ready_seconds": None, "request_seconds": None, "errors": {}}
    started = time.perf_counter()
    with container(image, model, *limits) as name, tempfile.TemporaryFile("w+") as log:
        with watching(name, log):
            url = f"http://{docker('port', name, '8000')}"
            if starts(name, url):
                figures["ready_seconds"] = round(time.perf_counter() - started, 1)
                figures |= load(url, requests)
            docker("stop", f"--time={STOP_SECONDS}", name)
        figures["peak_memory_mb"], figures["peak_anonymous_mb"] = peaks(log)
        ended = state(name)
        return figures | {"oom_killed": ended["OOMKilled"], "exit_status": ended["ExitCode"]}


def load(url: str, requests: int) -> dict[str, Any]:
    """Median seconds per request after a warm-up, and the errors by status."""
    asyncio.run(run(url, make_bodies(1, DOCUMENTS, str(LONG_WORDS)), 1, "warm-up"))
    found = asyncio.run(run(url, make_bodies(requests, DOCUMENTS, str(LONG_WORDS)), 1, "requests"))
    seconds = round(median(found.latencies), 2) if found.latencies else None
    return {"request_seconds": seconds, "errors": found.summary()["errors"]}


def rows(figures: dict[str, Any], requests: int) -> Iterator[tuple[str, Any]]:
    """The rows of the table: name and figure."""
    yield "image, MB", figures["image_mb"]
    yield "start to ready, s", figures["ready_seconds"]
    yield f"median of {requests} requests, s", figures["request_seconds"]
    yield "failed requests", sum(figures["errors"].values())
    yield "peak memory with page cache, MB", figures["peak_memory_mb"]
    yield "peak anonymous memory, MB", figures["peak_anonymous_mb"]
    yield "killed for memory", "YES" if figures["oom_killed"] else "no"
    yield "exit status after SIGTERM", figures["exit_status"]


def main(
    image: Annotated[str | None, typer.Option(help="Existing image; default: build the slim image")] = None,
    artefact: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help=f"Exported model; default: {SHAPE} in int8")
    ] = None,
    cpus: Annotated[float, typer.Option(min=0.1, help="CPUs of the container")] = 2,
    memory: Annotated[str, typer.Option(help="Memory of the container in Docker's notation; it has no swap")] = "4g",
    requests: Annotated[int, typer.Option(min=1, help="Requests to measure, one at a time")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table")] = False,
) -> None:
    """Serve a large model in a small container. Exits with status 1 if it is killed or a request fails."""
    require_engine()
    if image is None:
        subprocess.run([ROOT / "docker" / "build.sh", "slim"], stdout=sys.stderr, check=True)
        image = IMAGE
    model = artefact or exported(make_shape(SHAPE, WORK / "models" / SHAPE), "openvino", "int8")
    size = int(docker("image", "inspect", "--format={{.Size}}", image))
    limits = (f"--cpus={cpus}", f"--memory={memory}", f"--memory-swap={memory}")
    figures = {"image_mb": round(size / 1e6), **measure(image, model, requests, *limits)}
    if as_json:
        print(json.dumps(figures, indent=2))
    else:
        table = Table(f"{DOCUMENTS} documents of {LONG_TOKENS} tokens, {model.name}", f"{cpus:g} CPUs, {memory}")
        table.columns[1].justify = "right"
        for name, figure in rows(figures, requests):
            table.add_row(name, "-" if figure is None else str(figure))
        print_table(table)
    if figures["oom_killed"] or figures["exit_status"] or figures["errors"] or figures["request_seconds"] is None:
        raise typer.Exit(1)
