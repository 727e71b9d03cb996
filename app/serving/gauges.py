"""Gauges that read the state of the service when they are scraped."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from app.engines.protocol import EngineInfo
from app.machine.gpu import Gpu
from app.serving.model import Model
from app.serving.models import Models
from app.serving.reranker import Reranker
from app.telemetry.metrics import Metrics


def watch_reranker(metrics: Metrics, reranker: Reranker, models: Models) -> None:
    """Publish the state of the first reranker and its parts, and of all models if there are several."""
    if models.are_several:
        metrics.registry.register(ModelFigures(models))
    admission, cache = reranker.admission, reranker.cache
    loop = asyncio.get_running_loop()
    for name, meaning, read in (
        ("active_requests", "Running requests", lambda: admission.active),
        ("waiting_requests", "Requests waiting for a slot", lambda: admission.waiting),
        ("max_parallel", "Slots", lambda: admission.max_parallel),
        ("max_queue", "Places in the queue", lambda: admission.max_queue),
        ("pending_pairs", "Pairs waiting for a batch", lambda: sum(map(_pending, models))),
        ("batch_token_budget", "Largest number of tokens in a batch", lambda: reranker.batcher.token_budget),
        ("tokens_per_second", "Tokens per second of a busy engine", lambda: reranker.batcher.speed),
        ("silence_seconds", "Seconds since the last successful batch", lambda: max(map(_silence, models))),
        ("flights", "Pairs being scored", lambda: sum(map(_in_flight, models))),
        ("cache_entries", "Scores in the cache", lambda: len(cache)),
        ("self_test_deviation", "Largest deviation of a logit from float32", partial(_of_self_test, reranker, 0)),
        ("self_test_bound", "Largest deviation that passes", partial(_of_self_test, reranker, 1)),
        ("self_test_rejected", "Configurations that failed the self-test", partial(_of_self_test, reranker, 2)),
        ("tasks", "Tasks on the event loop", lambda: len(asyncio.all_tasks(loop))),
    ):
        metrics.gauge(name, meaning).set_function(read)


def publish_engine(metrics: Metrics, info: EngineInfo) -> None:
    """Publish the facts about the engine of the first model. A reload may lead to another configuration."""
    metrics.engine.info({name: str(value) for name, value in info.summary().items()})


def gpu_of(info: EngineInfo) -> Gpu | None:
    """The card that the engine runs on. None on a CPU, or if the driver reports nothing."""
    return Gpu.of_device(info.device, info.device_uuid) if info.device.startswith("cuda") else None


class ModelFigures(Collector):
    """The metrics `reranker_model_…`, with the name of the model as label. Requests do not pay for them."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        """Read the models."""
        for kind, figures in ((GaugeMetricFamily, STATES), (CounterMetricFamily, COUNTS)):
            for name, meaning, read in figures:
                family = kind(f"reranker_model_{name}", meaning, labels=["model"])
                for model in self._models:
                    family.add_metric([model.name], read(model))
                yield family


def watch_gpu(metrics: Metrics, gpu: Gpu | None) -> None:
    """Publish the GPU's memory and load. They are NaN while the driver reports none."""
    for field, meaning in (
        ("memory_used_bytes", "GPU memory in use by all processes"),
        ("memory_total_bytes", "GPU memory"),
        ("utilization", "Share of time that the GPU was busy, 0 to 1"),
    ):
        metrics.gauge(f"gpu_{field}", meaning).set_function(partial(_figure, gpu, field))


def _pending(model: Model) -> int:
    return model.reranker.batcher.pending if model.reranker else 0


def _in_flight(model: Model) -> int:
    return model.reranker.cache.in_flight if model.reranker else 0


def _silence(model: Model) -> float:
    """0 for a model that is not in memory: nothing is expected from it."""
    return model.reranker.batcher.silence if model.reranker and model.is_loaded else 0.0


Figures = Sequence[tuple[str, str, Callable[[Model], float]]]
STATES: Figures = (
    ("ready", "1 if requests to the model are served, else 0", lambda model: model.problem is None),
    ("loaded", "1 if the model is in memory, else 0", lambda model: model.is_loaded),
    ("pending_pairs", "Pairs waiting for a batch of the model", _pending),
)
COUNTS: Figures = (
    ("requests", "Requests to the model", lambda model: model.requests),
    ("tokens", "Tokens of all batches of the model, without padding", lambda model: model.line.tokens),
    ("loads", "How often the model was loaded", lambda model: model.loads),
    ("reloads", "How often the model was reloaded after it hung or failed", lambda model: model.reloads),
)


def _of_self_test(reranker: "Reranker", figure: int) -> float:
    """Deviation, bound, or number of rejected configurations; NaN if the engine was not tested."""
    test = reranker.engine.self_test
    return (test.deviation, test.bound, len(test.rejected))[figure] if test else float("nan")


def _figure(gpu: Gpu | None, field: str) -> float:
    figure = getattr(gpu.read() if gpu else None, field, None)
    return float("nan") if figure is None else float(figure)
