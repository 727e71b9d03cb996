"""The life of the application: load the engine of each model, serve with it until it breaks, and load it again."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING

from fastapi import FastAPI

from app.api.service import Service
from app.config import Settings
from app.engines.memory import give_back
from app.engines.models.source import locate_model, of_model
from app.engines.protocol import Engine, EngineInfo
from app.errors import EngineBroken, RerankerError, StartupError
from app.first_stage.prefilter import Prefilter, load_prefilter
from app.machine.energy import energy_meter
from app.machine.garbage import freeze_loaded_objects
from app.machine.threads import running_threads
from app.serving.admission import Admission
from app.serving.announcement import (
    announce_activation,
    announce_address,
    announce_engine,
    warn_about_length,
    warn_about_threads,
)
from app.serving.batcher import Batcher
from app.serving.budget import Pace
from app.serving.cache import ScoreCache
from app.serving.cascade import NAME
from app.serving.fallback import Fallback
from app.serving.gauges import gpu_of, publish_engine, watch_gpu, watch_reranker
from app.serving.heartbeat import watch
from app.serving.loops import clear_memory_regularly, run_until_broken, until_unused
from app.serving.model import Model
from app.serving.reading import first_stage_method
from app.serving.reranker import Reranker
from app.serving.supervisor import Supervisor
from app.telemetry.cost import INFERENCE, Ledger
from app.telemetry.metrics import Metrics
from app.types import SpanBounds

if TYPE_CHECKING:
    from app.serving.shared_cache import SharedCache
    from app.telemetry.tracing import Tracing

log = logging.getLogger(__name__)

# The first load may download and export a model. Later loads find it on the disk: one that takes longer hangs.
RELOAD_SECONDS = 300


@dataclass(slots=True)
class Plan:
    """What the lifespan runs."""

    settings: Settings
    service: Service
    engine: Engine | None
    """None: the settings' models are loaded."""
    load: Callable[[Settings], Engine]
    """Loads the model of these settings."""
    tracing: "Tracing | None"


@dataclass(slots=True)
class Parts:
    """What all models share, and what is kept when an engine is reloaded."""

    tokenizers: Executor
    prefilter: Prefilter
    fallback: Fallback
    shared_cache: "SharedCache | None"
    first_loads: asyncio.Lock
    """The first loads measure the machine, one after the other."""
    common: "Common | None" = None
    """None until the first engine is there."""


@dataclass(frozen=True, slots=True)
class Common:
    """What all models share, and what depends on the device."""

    admission: Admission
    cache: ScoreCache
    ledger: Ledger


@asynccontextmanager
async def lifespan(plan: Plan, _: FastAPI) -> AsyncIterator[None]:
    """Listen at once and load in the background: health answers 503 until the model is loaded."""
    serving = asyncio.create_task(_serve(plan), name="serve")
    try:
        yield
    finally:
        plan.service.lifecycle.drain()
        serving.cancel()
        with suppress(asyncio.CancelledError):
            await serving
        plan.engine = None  # frees the model even if something keeps the application
        if plan.tracing:
            await plan.tracing.close()


async def _serve(plan: Plan) -> None:
    """Run until cancelled. A final failure is logged and ends the process through the lifecycle."""
    settings, service = plan.settings, plan.service
    try:
        own = settings.each()
        # A wrong folder of any model stops the start now, not after minutes of exporting the models before it.
        for name, each in own.items() if plan.engine is None else ():
            with of_model(name):
                locate_model(each.model, each.revision)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(service.observer.running())
            if service.documents:
                stack.push_async_callback(service.documents.close)
                await service.documents.open()
            tokenizers = stack.enter_context(running_threads(settings.tokenizer_workers, "tokenizer"))
            method = first_stage_method(settings.prefilter) if settings.budget_ms else settings.prefilter
            prefilter = await load_prefilter(settings.prefilter_model, method, tokenizers)
            shared_cache = await _shared_cache(settings, stack, service.metrics)
            fallback = Fallback(stack.enter_context(running_threads(1, "fallback")))
            parts = Parts(tokenizers, prefilter, fallback, shared_cache, asyncio.Lock())
            await run_until_broken(*(_run_model(plan, parts, model, own[model.own_name]) for model in service.models))
    except StartupError as error:
        log.debug("Start failed", exc_info=True)
        log.error("Cannot start: %s", error)
    except EngineBroken as error:
        log.error("Giving up: %s", error)
    except Exception:
        log.exception("Stopped by an unexpected error")
    service.lifecycle.fail()


async def _run_model(plan: Plan, parts: Parts, model: Model, settings: Settings) -> None:
    """Serve with a model. Raises what ends the process: a failure to load it at the start, or that of the last model.

    `settings`: those of this model.
    """
    service = plan.service
    supervisor = Supervisor(settings.max_reloads, model, service.metrics)
    try:
        while True:
            await supervisor.run(partial(_run_engine, plan, parts, model, settings))
            await _unload(parts, model, settings.idle_seconds)
            await model.wanted()
    except Exception as error:
        if model.reranker is None or not service.models.has_other(model):
            raise
        unexpected = not isinstance(error, RerankerError)
        log.error("Giving up on model %s, the others go on: %s", model.name, error, exc_info=unexpected)
        model.fail()


async def _unload(parts: Parts, model: Model, seconds: float) -> None:
    """Release the memory of a model that has been unused for `seconds`."""
    model.drop_engine()
    freeze_loaded_objects()
    await asyncio.get_running_loop().run_in_executor(parts.tokenizers, give_back)
    log.info("Unloaded model %s: no request for %g s", model.name, seconds)


async def _run_engine(plan: Plan, parts: Parts, model: Model, settings: Settings) -> None:
    """Load an engine and serve with it until it breaks, or until nobody uses it.

    Raises `StartupError` or `EngineBroken`.
    """
    service = plan.service
    async with AsyncExitStack() as stack:
        threads = stack.enter_context(running_threads(1, INFERENCE))
        async with parts.first_loads if model.reranker is None else nullcontext():
            started = perf_counter()
            engine, speed = await _load(plan, model, settings, threads)
        if engine.info.batches_at_once > 1:
            threads = stack.enter_context(running_threads(engine.info.batches_at_once, INFERENCE))
        budget = settings.batch_tokens or engine.schedule.batch_tokens
        common = parts.common = parts.common or _common(plan, engine.info)
        timeout, pace, line = settings.inference_timeout, Pace(speed), model.line
        batcher = Batcher(engine, threads, budget, service.metrics, timeout, common.ledger, pace, line)
        probe = await asyncio.get_running_loop().run_in_executor(parts.tokenizers, engine.encode, "probe", ["probe"])
        is_first = model.reranker is None
        reranker = model.reranker or _assemble(plan, parts, common, model, engine, batcher)
        model.take(reranker, engine, batcher, perf_counter() - started)
        freeze_loaded_objects()
        if model is service.models.first:
            publish_engine(service.metrics, engine.info)
        if model is service.models.observed:
            service.observer.ready(engine.info)
        _announce(settings, engine, perf_counter() - started)
        if is_first and service.models.were_loaded():
            _announce_service(plan)
        await run_until_broken(
            batcher.run(),
            watch(batcher, *probe),
            clear_memory_regularly(reranker, threads, settings.clear_cache_interval),
            *([until_unused(model, settings.idle_seconds)] if settings.idle_seconds else []),
        )


async def _load(plan: Plan, model: Model, settings: Settings, thread: Executor) -> tuple[Engine, float]:
    """The given engine, or that of the settings, warmed up, and its speed. Raises `StartupError` or `EngineBroken`."""

    def load() -> tuple[Engine, float]:
        with of_model(model.own_name):
            engine = plan.engine or plan.load(settings)
        return engine, engine.warm_up()

    loading = asyncio.get_running_loop().run_in_executor(thread, load)
    try:
        return await asyncio.wait_for(loading, RELOAD_SECONDS if model.reranker else None)
    except TimeoutError:
        raise EngineBroken(f"Reloading took more than {RELOAD_SECONDS} s.") from None
    except Exception as error:
        if model.reranker is None:
            raise
        raise EngineBroken(f"{type(error).__name__}: {error}") from error  # it could be loaded before: try again


def _common(plan: Plan, info: EngineInfo) -> Common:
    settings, service = plan.settings, plan.service
    capacity, names = settings.capacity(info.device), [model.own_name for model in service.models]
    names += [NAME] if service.models.cascade else []
    service.gpu = gpu_of(info)
    if info.device.startswith("cuda"):
        watch_gpu(service.metrics, service.gpu)
    return Common(
        Admission(capacity.max_parallel, capacity.max_queue, settings.queue_timeout, names),
        ScoreCache(info.fingerprint, settings.cache_max_entries, settings.cache_ttl, settings.prediction_cache),
        Ledger(service.metrics, energy_meter(service.gpu)),
    )


def _assemble(plan: Plan, parts: Parts, common: Common, model: Model, engine: Engine, batcher: Batcher) -> Reranker:
    """Make the reranker of a model, once: it outlives its engines."""
    settings, service = plan.settings, plan.service
    reranker = Reranker(
        engine=engine,
        tokenizers=parts.tokenizers,
        cache=common.cache.for_model(engine.info.fingerprint),
        admission=common.admission,
        batcher=batcher,
        metrics=service.metrics,
        limits=service.limits,
        prefilter=parts.prefilter,
        fallback=parts.fallback,
        span_bounds=SpanBounds(settings.span_candidates, settings.max_span_candidates),
        long_documents=None if settings.long_documents == "auto" else settings.long_documents,
        shared_cache=parts.shared_cache,
        instruction=settings.instruction,
        name=model.own_name,
    )
    if model is service.models.first:
        watch_reranker(service.metrics, reranker, service.models)
    return reranker


async def _shared_cache(settings: Settings, stack: AsyncExitStack, metrics: Metrics) -> "SharedCache | None":
    if settings.cache_url is None or not settings.prediction_cache:
        return None
    from app.serving.shared_cache import SharedCache

    shared = SharedCache(settings.cache_url.get_secret_value(), settings.cache_ttl, metrics)
    stack.push_async_callback(shared.close)
    await shared.connect()
    return shared


def _announce(settings: Settings, engine: Engine, seconds: float) -> None:
    warn_about_length(settings.max_length, engine.info)
    announce_engine(engine, seconds)
    announce_activation(settings.activation, engine.info)


def _announce_service(plan: Plan) -> None:
    """All models are loaded."""
    settings = plan.settings
    plan.service.lifecycle.ready()
    warn_about_threads(settings.threads)
    if settings.log_texts:
        log.warning("The queries of all requests are written to this log (RERANKER_LOG_TEXTS)")
    announce_address(settings.host, settings.port, settings.docs, bool(settings.keys()))
