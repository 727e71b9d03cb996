"""Gauges that read the state of the service when they are scraped."""

import asyncio
from functools import partial

from app.engines.protocol import EngineInfo
from app.machine.gpu import Gpu
from app.serving.reranker import Reranker
from app.telemetry.metrics import Metrics


def watch_reranker(metrics: Metrics, reranker: Reranker) -> None:
    """Publish the state of the reranker and its parts."""
    admission, cache = reranker.admission, reranker.cache
    loop = asyncio.get_running_loop()
    metrics.engine.info({name: str(value) for name, value in reranker.engine.info.summary().items()})
    for name, meaning, read in (
        ("active_requests", "Running requests", lambda: admission.active),
        ("waiting_requests", "Requests waiting for a slot", lambda: admission.waiting),
        ("max_parallel", "Slots", lambda: admission.max_parallel),
        ("max_queue", "Places in the queue", lambda: admission.max_queue),
        ("pending_pairs", "Pairs waiting for a batch", lambda: reranker.batcher.pending),
        ("batch_token_budget", "Largest number of tokens in a batch", lambda: reranker.batcher.token_budget),
        ("tokens_per_second", "Tokens per second of a busy engine", lambda: reranker.batcher.speed),
        ("silence_seconds", "Seconds since the last successful batch", lambda: reranker.batcher.silence),
        ("flights", "Pairs being scored", lambda: cache.in_flight),
        ("cache_entries", "Scores in the cache", lambda: len(cache)),
        ("self_test_deviation", "Largest deviation of a logit from float32", partial(_of_self_test, reranker, 0)),
        ("self_test_bound", "Largest deviation that passes", partial(_of_self_test, reranker, 1)),
        ("self_test_rejected", "Configurations that failed the self-test", partial(_of_self_test, reranker, 2)),
        ("tasks", "Tasks on the event loop", lambda: len(asyncio.all_tasks(loop))),
    ):
        metrics.gauge(name, meaning).set_function(read)


def gpu_of(info: EngineInfo) -> Gpu | None:
    """The card that the engine runs on. None on a CPU, or if the driver reports nothing."""
    return Gpu.of_device(info.device, info.device_uuid) if info.device.startswith("cuda") else None


def watch_gpu(metrics: Metrics, gpu: Gpu | None) -> None:
    """Publish the GPU's memory and load. They are NaN while the driver reports none."""
    for field, meaning in (
        ("memory_used_bytes", "GPU memory in use by all processes"),
        ("memory_total_bytes", "GPU memory"),
        ("utilization", "Share of time that the GPU was busy, 0 to 1"),
    ):
        metrics.gauge(f"gpu_{field}", meaning).set_function(partial(_figure, gpu, field))


def _of_self_test(reranker: "Reranker", figure: int) -> float:
    """Deviation, bound, or number of rejected configurations; NaN if the engine was not tested."""
    test = reranker.engine.self_test
    return (test.deviation, test.bound, len(test.rejected))[figure] if test else float("nan")


def _figure(gpu: Gpu | None, field: str) -> float:
    figure = getattr(gpu.read() if gpu else None, field, None)
    return float("nan") if figure is None else float(figure)
