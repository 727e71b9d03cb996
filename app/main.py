"""Composition only: which parts there are and how they are joined."""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import Executor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

from fastapi import Depends, FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.security import HTTPBearer
from fastapi.telemetry import TelemetryConfig
from fastapi_offline import FastAPIOffline

from app import __version__
from app.api import operations
from app.api.body import Bodies
from app.api.dialects import native, nim, tei, vllm
from app.api.errors import add_error_handlers
from app.api.guard import RequestGuard
from app.api.keys import ApiKeys
from app.api.quota import Quota
from app.api.service import DEGRADED_HEADER, PREFILTERED_HEADER, TIMING_HEADERS
from app.config import Settings, load_settings, traces_exporter
from app.engines.load import load_engine
from app.engines.protocol import Engine, EngineInfo
from app.errors import EngineBroken, StartupError
from app.first_stage.prefilter import Prefilter, load_embeddings
from app.machine.gpu import Gpu
from app.machine.hardware import cpu_limit
from app.machine.threads import start_threads
from app.serving.admission import Admission
from app.serving.batcher import Batcher
from app.serving.cache import ScoreCache
from app.serving.gauges import watch_gpu, watch_reranker
from app.serving.heartbeat import watch
from app.serving.lifecycle import Lifecycle
from app.serving.reranker import Reranker
from app.serving.supervisor import Supervisor
from app.telemetry.metrics import Metrics
from app.types import Limits

if TYPE_CHECKING:
    from app.serving.shared_cache import SharedCache
    from app.telemetry.tracing import Tracing

log = logging.getLogger(__name__)

# The first load may download and export a model; later ones find it on the disk, and what takes longer hangs.
RELOAD_SECONDS = 300
NO_TELEMETRY: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
LOOPBACK = {"127.0.0.1", "::1", "localhost"}


def create_app(settings: Settings | None = None, engine: Engine | None = None) -> FastAPI:
    """The service as an ASGI application; without an engine the settings' model is loaded once it runs."""
    settings = settings or load_settings()
    # Its documentation pages need no network.
    make = FastAPIOffline if settings.docs else partial(FastAPI, openapi_url=None)
    tracing = _tracing()
    app = make(
        title="Reranker",
        version=__version__,
        summary="Puts passages in the order of their relevance to a query.",
        lifespan=_lifespan,
        telemetry=tracing.telemetry if tracing else NO_TELEMETRY,
    )
    app.state.settings = settings
    app.state.given_engine = engine
    app.state.tracing = tracing
    app.state.metrics = Metrics()
    app.state.lifecycle = Lifecycle()
    app.state.reranker = None
    app.state.gpu = None
    app.state.bodies = bodies = Bodies(settings.max_body_bytes, settings.max_buffered_bytes, settings.body_timeout)
    app.state.metrics.buffered_bytes.set_function(lambda: bodies.held)
    keys = ApiKeys(settings.keys(), settings.protect_metrics)
    quota = Quota(settings.key_max_parallel, settings.key_per_minute, settings.key_burst)
    app.add_middleware(RequestGuard, keys=keys, quota=quota, bodies=bodies, metrics=app.state.metrics)
    if origins := settings.origins():
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["Retry-After", "X-Request-Id", DEGRADED_HEADER, PREFILTERED_HEADER, *TIMING_HEADERS],
        )
    if tracing:
        from app.telemetry.tracing import SpanDetails

        app.add_middleware(SpanDetails, provider=tracing.provider)
    add_error_handlers(app, settings.overload_status)
    # Said in the OpenAPI document; RequestGuard is who checks it.
    keys_wanted = [Depends(HTTPBearer(auto_error=False))] if settings.keys() else []
    for dialect in (tei, native, vllm, nim, operations):
        app.include_router(dialect.router, dependencies=keys_wanted)
    return app


def _tracing() -> "Tracing | None":
    """Where the variables of OpenTelemetry ask for traces. The service goes on where they cannot be had."""
    exporter = traces_exporter()
    if exporter is None:
        return None
    try:
        from app.telemetry.tracing import Tracing

        return Tracing(exporter)
    except ImportError as error:
        log.warning("No traces, although OTEL_* asks for them: %s; the extra 'otel' has what is missing", error)
    except StartupError as error:
        log.warning("No traces, although OTEL_* asks for them: %s", error)
    return None


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Serve at once, load meanwhile: health answers 503 until the model is there."""
    serving = asyncio.create_task(_serve(app), name="serve")
    try:
        yield
    finally:
        app.state.lifecycle.drain()
        serving.cancel()
        with suppress(asyncio.CancelledError):
            await serving
        if app.state.tracing:
            await app.state.tracing.close()


async def _serve(app: FastAPI) -> None:
    """Load, assemble, run the loops; ends when cancelled. What is final is told on stderr and to the lifecycle."""
    settings: Settings = app.state.settings
    supervisor = Supervisor(settings.max_reloads, app.state.lifecycle, app.state.metrics)
    try:
        async with AsyncExitStack() as stack:
            tokenizers = _threads(stack, settings.tokenizer_workers, "tokenizer")
            app.state.prefilter = await _prefilter(settings, tokenizers)
            shared = await _shared_cache(settings, stack, app.state.metrics)
            await supervisor.run(partial(_run_engine, app, tokenizers, shared))
    except StartupError as error:
        log.debug("Start failed", exc_info=True)
        log.error("Cannot start: %s", error)
    except EngineBroken as error:
        log.error("Giving up: %s", error)
    except Exception:
        log.exception("Stopped by a failure this service does not know")
    app.state.lifecycle.fail()


async def _run_engine(app: FastAPI, tokenizers: Executor, shared: "SharedCache | None") -> None:
    """Load an engine and serve with it until it breaks. Raises `StartupError` or `EngineBroken`."""
    settings: Settings = app.state.settings
    started = perf_counter()
    async with AsyncExitStack() as stack:
        threads = _threads(stack, 1, "inference")
        loading = asyncio.get_running_loop().run_in_executor(threads, _load, app.state.given_engine, settings)
        try:
            engine = await asyncio.wait_for(loading, RELOAD_SECONDS if app.state.reranker else None)
        except TimeoutError:
            raise EngineBroken(f"Loading it again took more than {RELOAD_SECONDS} s.") from None
        if engine.info.batches_at_once > 1:
            threads = _threads(stack, engine.info.batches_at_once, "inference")
        budget = settings.batch_tokens or engine.schedule.batch_tokens
        batcher = Batcher(engine, threads, budget, app.state.metrics, settings.inference_timeout)
        probe = await asyncio.get_running_loop().run_in_executor(tokenizers, engine.encode, "probe", ["probe"])
        if app.state.reranker is None:
            app.state.reranker = _build_reranker(app, engine, batcher, tokenizers, shared)
            app.state.gpu = _find_gpu(engine.info)
            watch_reranker(app.state.metrics, app.state.reranker, app.state.lifecycle)
            if engine.info.device.startswith("cuda"):
                watch_gpu(app.state.metrics, app.state.gpu)
        app.state.reranker.take_engine(engine, batcher)
        _spare_the_collector()
        app.state.lifecycle.ready()
        _announce(settings, app.state.reranker, perf_counter() - started)
        await _until_broken(
            batcher.run(),
            watch(batcher, *probe),
            _clear_memory_regularly(app.state.reranker, threads, settings.clear_cache_interval),
        )


def _find_gpu(info: EngineInfo) -> Gpu | None:
    """The card that the model is on; None on a CPU, and where the driver reports nothing."""
    name, _, index = info.device.partition(":")
    return Gpu.find(int(index or 0), info.device_uuid) if name == "cuda" else None


def _spare_the_collector() -> None:
    """What was loaded stays: the collector need not look through it with every thousand requests."""
    gc.unfreeze()  # what an engine before left behind
    gc.collect()
    gc.freeze()


async def _until_broken(*loops: Coroutine[Any, Any, None]) -> None:
    """Run the loops; an engine that broke is told without the groups of tasks around it."""
    broken: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            for loop in loops:
                group.create_task(loop)
    except* EngineBroken as errors:
        broken = errors
    while isinstance(broken, BaseExceptionGroup):
        broken = broken.exceptions[0]
    if broken is not None:
        raise broken


def _threads(stack: AsyncExitStack, count: int, name: str) -> Executor:
    """Threads that nobody waits for in the end: a load or an inference that hangs must not hold up the exit."""
    executor = start_threads(count, name)
    stack.callback(executor.shutdown, wait=False, cancel_futures=True)
    return executor


def _load(engine: Engine | None, settings: Settings) -> Engine:
    engine = engine or load_engine(settings)
    engine.warm_up()
    return engine


async def _prefilter(settings: Settings, threads: Executor) -> Prefilter:
    """The first stage. Its embeddings are loaded now where the settings use them, else for the first who asks."""
    prefilter = Prefilter(partial(load_embeddings, settings.prefilter_model))
    if settings.prefilter_model or settings.prefilter in ("embedding", "hybrid"):
        await asyncio.get_running_loop().run_in_executor(threads, prefilter.warm_up)
    return prefilter


async def _shared_cache(settings: Settings, stack: AsyncExitStack, metrics: Metrics) -> "SharedCache | None":
    if settings.cache_url is None or not settings.prediction_cache:
        return None
    from app.serving.shared_cache import SharedCache

    shared = SharedCache(settings.cache_url.get_secret_value(), settings.cache_ttl, metrics)
    stack.push_async_callback(shared.close)
    await shared.connect()
    return shared


def _build_reranker(
    app: FastAPI, engine: Engine, batcher: Batcher, tokenizers: Executor, shared: "SharedCache | None"
) -> Reranker:
    settings: Settings = app.state.settings
    capacity = settings.capacity(engine.info.device)
    return Reranker(
        engine=engine,
        tokenizers=tokenizers,
        cache=ScoreCache(
            engine.info.fingerprint, settings.cache_max_entries, settings.cache_ttl, settings.prediction_cache
        ),
        admission=Admission(capacity.max_parallel, capacity.max_queue, settings.queue_timeout),
        batcher=batcher,
        metrics=app.state.metrics,
        limits=Limits(settings.max_documents, settings.max_text_chars, settings.request_timeout),
        prefilter=app.state.prefilter,
        long_documents=None if settings.long_documents == "auto" else settings.long_documents,
        shared_cache=shared,
    )


async def _clear_memory_regularly(reranker: Reranker, inference: Executor, interval: float) -> None:
    """Drop expired scores and the accelerator's unused blocks every `interval` seconds."""
    while True:
        await asyncio.sleep(interval)
        reranker.cache.sweep()
        await asyncio.get_running_loop().run_in_executor(inference, reranker.engine.clear_memory)


def _announce(settings: Settings, reranker: Reranker, seconds: float) -> None:
    info = reranker.engine.info
    if settings.max_length and info.max_length < settings.max_length:
        log.warning("RERANKER_MAX_LENGTH=%d: the model reads %d tokens", settings.max_length, info.max_length)
    elif settings.max_length and info.declared_length and settings.max_length < info.declared_length:
        log.warning(
            "RERANKER_MAX_LENGTH=%d cuts pairs that the model could read: its window is %d tokens",
            settings.max_length,
            info.declared_length,
        )
    if settings.threads > cpu_limit():
        log.warning("RERANKER_THREADS=%d: there are %d CPUs, more threads are slower", settings.threads, cpu_limit())
    log.info(
        "Ready in %.1f s: model %s, device %s, backend %s, precision %s%s, %d threads, window %d tokens",
        seconds,
        info.model,
        info.device,
        info.backend + (" compiled" if info.compiled else ""),
        info.precision,
        info.configuration and f" ({info.configuration})",
        info.threads,
        info.max_length,
    )
    if test := reranker.engine.self_test:
        log.info("Self-test: %s; %d pairs in %.2f s", test, test.pairs, test.seconds)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{settings.port}"
    log.info("Listening on %s%s", url, ", API documentation at /docs" if settings.docs else "")
    if not settings.keys():
        level = logging.INFO if settings.host in LOOPBACK else logging.WARNING
        log.log(level, "No API key is set: everybody who reaches %s may use it (RERANKER_API_KEYS)", url)
    if settings.log_texts:
        log.warning("The queries of all requests are written to this log (RERANKER_LOG_TEXTS)")
