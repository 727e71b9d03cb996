"""What `scripts/bench gpu` compares: our engine in several modes, the whole service, and `CrossEncoder.predict`."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from sentence_transformers import CrossEncoder

from app.api.service import service_of
from app.config import Settings
from app.engines.models.source import locate_model
from app.engines.schedule import arrange
from app.engines.torch import TorchEngine
from app.engines.torch_device import DTYPES
from app.machine.hardware import cpu_limit
from app.main import create_app
from app.serving.lifecycle import Phase
from app.serving.reranker import Reranker
from app.types import RerankQuery
from benchmarks.load import documents_per_second
from benchmarks.load import run as run_load
from benchmarks.process import service
from benchmarks.texts import requests

WINDOW, DOCUMENTS, CLIENTS = 512, 20, 32
WORKLOADS = {"short": (20, 60), "mixed": (20, 300), "long": (600, 600)}
# `predict` runs with each of these batch sizes; the faster one counts.
PREDICT_BATCHES = (32, 128)
LATENCY_REQUESTS = 20

Body = dict[str, Any]
Bodies = Sequence[Body]
# The requests of each round, by workload. The first round warms up and is not measured.
Texts = Mapping[str, Sequence[Bodies]]


@dataclass
class Row:
    """One contender on one model: documents per second of each round, by workload."""

    contender: str
    start_seconds: float = 0.0
    precision: str = ""
    documents_per_second: dict[str, list[float]] = field(default_factory=dict)
    remark: str | None = None


@asynccontextmanager
async def serving(engine: TorchEngine) -> AsyncIterator[Reranker]:
    """Run the service with this engine, in this process and without HTTP."""
    settings = Settings(prediction_cache=False, max_parallel=CLIENTS, max_queue=10_000, queue_timeout=3600)
    app = create_app(settings, engine)
    service = service_of(app)
    async with app.router.lifespan_context(app):
        while not service.reranker:
            if service.lifecycle.phase is Phase.FAILED:
                raise RuntimeError("The engine did not start. The log has the reason.")
            await asyncio.sleep(0.01)
        reranker = service.reranker
        yield reranker
    # Other references keep the application alive; the model must still leave the GPU.
    del reranker.engine, reranker.batcher


async def rank(reranker: Reranker, bodies: Bodies) -> float:
    """Seconds to rank all requests with CLIENTS concurrent clients."""
    queue = iter(bodies)

    async def send_one_after_another() -> None:
        for body in queue:
            await reranker.rerank(RerankQuery(body["query"], body["documents"]))

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(send_one_after_another())
    return time.perf_counter() - started


def ours(folder: Path, device: str, **options: Any) -> TorchEngine:
    """A warm engine with the batch size that the service would choose."""
    engine = TorchEngine(locate_model(str(folder), None), device, WINDOW, cpu_limit(), **options)
    arrange(engine, {})
    engine.warm_up()
    return engine


def measure_ours(row: Row, folder: Path, device: str, workloads: Texts, **options: Any) -> None:
    """Measure every round of every workload; the first round warms up."""
    started = time.perf_counter()
    engine = ours(folder, device, **options)
    row.start_seconds, row.precision = time.perf_counter() - started, engine.info.precision
    asked = {"packed": engine.info.packed, "compiled": engine.info.compiled}
    row.remark = ", ".join(f"not {name}" for name, given in asked.items() if options.get(name) and not given) or None

    async def all_rounds() -> None:
        async with serving(engine) as reranker:
            for name, (first, *rounds) in workloads.items():
                await rank(reranker, first)
                speeds = [
                    sum(len(body["documents"]) for body in bodies) / await rank(reranker, bodies) for bodies in rounds
                ]
                row.documents_per_second[name] = speeds

    asyncio.run(all_rounds())


def measure_predict(row: Row, folder: Path, device: str, workloads: Texts, precision: str) -> None:
    """Measure `predict` with all pairs of a round in one call, which sorts them by length."""
    started = time.perf_counter()
    model = CrossEncoder(str(folder), device=device, max_length=WINDOW, model_kwargs={"dtype": DTYPES[precision]})
    row.start_seconds, row.precision = time.perf_counter() - started, precision
    for name, (first, *rounds) in workloads.items():
        predict(model, first, PREDICT_BATCHES[0])
        speeds = [[predict(model, bodies, size) for bodies in rounds] for size in PREDICT_BATCHES]
        row.documents_per_second[name] = max(speeds, key=median)


def predict(model: CrossEncoder, bodies: Bodies, batch_size: int) -> float:
    """Documents per second."""
    pairs = [(body["query"], document) for body in bodies for document in body["documents"]]
    started = time.perf_counter()
    model.predict(pairs, batch_size=batch_size, show_progress_bar=False)
    return len(pairs) / (time.perf_counter() - started)


def measure_http(row: Row, folder: Path, device: str, workloads: Texts) -> None:
    """Measure the whole service over HTTP, with the same number of clients."""
    settings = {"RERANKER_MODEL": str(folder), "RERANKER_BACKEND": "torch", "RERANKER_DEVICE": device}
    settings |= {"RERANKER_MAX_PARALLEL": str(CLIENTS), "RERANKER_QUEUE_TIMEOUT": "3600"}
    with service(**settings) as (url, row.start_seconds):
        for name, (first, *rounds) in workloads.items():
            asyncio.run(run_load(url, list(first), CLIENTS))
            runs = [asyncio.run(run_load(url, list(bodies), CLIENTS)) for bodies in rounds]
            row.documents_per_second[name] = [documents_per_second(each) for each in runs]
            if name == "long":
                alone = asyncio.run(run_load(url, list(new(LATENCY_REQUESTS, name)), 1)).summary()
                row.remark = f"20 × {WINDOW} tokens alone: p50 {alone['p50_ms']:.1f} ms"


CONTENDERS: dict[str, Callable[[Row, Path, str, Texts], None]] = {
    "packed": partial(measure_ours, packed=True),
    "packed, compiled": partial(measure_ours, packed=True, compiled=True),
    "padded": partial(measure_ours, packed=False),
    "packed, HTTP": measure_http,
    "predict fp16": partial(measure_predict, precision="fp16"),
    "predict fp32": partial(measure_predict, precision="fp32"),
}


def new(count: int, workload: str) -> Iterator[Body]:
    """New requests that no cache has seen."""
    return requests(count, DOCUMENTS, WORKLOADS[workload], time.time_ns())
