"""Composition only: which parts there are and how they are joined."""

import asyncio
import logging
from collections.abc import AsyncIterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from time import perf_counter
from typing import TYPE_CHECKING

from fastapi import Depends, FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline

from app import __version__
from app.admission import Admission
from app.api import native, nim, operations, tei, vllm
from app.api.body import Bodies
from app.api.errors import add_error_handlers
from app.api.guard import RequestGuard
from app.api.keys import ApiKeys
from app.api.service import TIMING_HEADERS
from app.backends import Scorer, load_scorer
from app.batcher import Batcher
from app.cache import ScoreCache
from app.config import Settings, load_settings
from app.errors import StartupError
from app.lifecycle import Lifecycle
from app.metrics import Metrics
from app.reranker import Limits, Reranker

if TYPE_CHECKING:
    from app.shared_cache import SharedCache

log = logging.getLogger(__name__)

LOOPBACK = {"127.0.0.1", "::1", "localhost"}


def create_app(settings: Settings | None = None, scorer: Scorer | None = None) -> FastAPI:
    """The service as an ASGI application; without a scorer the settings' model is loaded once it runs."""
    settings = settings or load_settings()
    app = FastAPIOffline(  # its documentation pages need no network
        title="Reranker",
        version=__version__,
        summary="Puts passages in the order of their relevance to a query.",
        lifespan=_lifespan,
    )
    app.state.settings = settings
    app.state.given_scorer = scorer
    app.state.metrics = Metrics()
    app.state.lifecycle = Lifecycle()
    app.state.reranker = None
    app.state.bodies = bodies = Bodies(settings.max_body_bytes, settings.max_buffered_bytes, settings.body_timeout)
    app.state.metrics.buffered_bytes.set_function(lambda: bodies.held)
    keys = ApiKeys(settings.keys(), settings.protect_metrics)
    app.add_middleware(RequestGuard, keys=keys, bodies=bodies, metrics=app.state.metrics)
    if origins := settings.origins():
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["Retry-After", "X-Request-Id", *TIMING_HEADERS],
        )
    add_error_handlers(app, settings.overload_status)
    # Said in the OpenAPI document; RequestGuard is who checks it.
    keys_wanted = [Depends(HTTPBearer(auto_error=False))] if settings.keys() else []
    for dialect in (tei, native, vllm, nim, operations):
        app.include_router(dialect.router, dependencies=keys_wanted)
    return app


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


async def _serve(app: FastAPI) -> None:
    """Load, assemble, run the loops; ends when cancelled. A failed start is told on stderr and to the lifecycle."""
    try:
        async with AsyncExitStack() as stack:
            await _assemble(app, stack)
    except StartupError as error:
        log.debug("Start failed", exc_info=True)
        log.error("Cannot start: %s", error)
        app.state.lifecycle.fail()
    except Exception:
        log.exception("Stopped by a failure this service does not know")
        app.state.lifecycle.fail()


async def _assemble(app: FastAPI, stack: AsyncExitStack) -> None:
    started = perf_counter()
    settings: Settings = app.state.settings
    inference = _threads(stack, 1, "inference")
    tokenizers = _threads(stack, settings.tokenizer_workers, "tokenizer")
    scorer = await asyncio.get_running_loop().run_in_executor(inference, _load, app.state.given_scorer, settings)
    if scorer.engine.batches_at_once > 1:
        inference = _threads(stack, scorer.engine.batches_at_once, "inference")
    shared = await _shared_cache(settings, stack, app.state.metrics)
    reranker = _build_reranker(settings, scorer, inference, tokenizers, app.state.metrics, shared)
    app.state.reranker = reranker
    app.state.metrics.watch(reranker, app.state.lifecycle)
    app.state.lifecycle.ready()
    if "max_length" in settings.model_fields_set and scorer.engine.max_length < settings.max_length:
        log.warning("RERANKER_MAX_LENGTH=%d: the model reads %d tokens", settings.max_length, scorer.engine.max_length)
    _announce(settings, reranker, perf_counter() - started)
    async with asyncio.TaskGroup() as loops:
        loops.create_task(reranker.batcher.run(), name="batcher")
        loops.create_task(_clear_memory_regularly(reranker, inference, settings.clear_cache_interval), name="sweep")


def _threads(stack: AsyncExitStack, count: int, name: str) -> Executor:
    """Threads that nobody waits for in the end: a load or an inference that hangs must not hold up the exit."""
    executor = ThreadPoolExecutor(count, name)
    stack.callback(executor.shutdown, wait=False, cancel_futures=True)
    return executor


def _load(scorer: Scorer | None, settings: Settings) -> Scorer:
    scorer = scorer or load_scorer(settings)
    scorer.warm_up()
    return scorer


async def _shared_cache(settings: Settings, stack: AsyncExitStack, metrics: Metrics) -> "SharedCache | None":
    if settings.cache_url is None or not settings.prediction_cache:
        return None
    from app.shared_cache import SharedCache

    shared = SharedCache(settings.cache_url.get_secret_value(), settings.cache_ttl, metrics)
    stack.push_async_callback(shared.close)
    return shared


def _build_reranker(
    settings: Settings,
    scorer: Scorer,
    inference: Executor,
    tokenizers: Executor,
    metrics: Metrics,
    shared_cache: "SharedCache | None",
) -> Reranker:
    capacity = settings.capacity(scorer.engine.device)
    return Reranker(
        scorer=scorer,
        tokenizers=tokenizers,
        cache=ScoreCache(
            scorer.engine.fingerprint, settings.cache_max_entries, settings.cache_ttl, settings.prediction_cache
        ),
        admission=Admission(capacity.max_parallel, capacity.max_queue, settings.queue_timeout),
        batcher=Batcher(scorer, inference, settings.batch_tokens or scorer.schedule.batch_tokens, metrics),
        metrics=metrics,
        limits=Limits(settings.max_documents, settings.max_text_chars, settings.request_timeout),
        shared_cache=shared_cache,
    )


async def _clear_memory_regularly(reranker: Reranker, inference: Executor, interval: float) -> None:
    """Drop expired scores and the accelerator's unused blocks every `interval` seconds."""
    while True:
        await asyncio.sleep(interval)
        reranker.cache.sweep()
        await asyncio.get_running_loop().run_in_executor(inference, reranker.scorer.clear_memory)


def _announce(settings: Settings, reranker: Reranker, seconds: float) -> None:
    engine = reranker.scorer.engine
    log.info(
        "Ready in %.1f s: model %s, device %s, backend %s, precision %s, %d threads, window %d tokens",
        seconds,
        engine.model,
        engine.device,
        engine.backend + (" compiled" if engine.compiled else ""),
        engine.precision,
        engine.threads,
        engine.max_length,
    )
    url = f"http://{settings.host}:{settings.port}"
    log.info("Listening on %s, API documentation at /docs", url)
    if not settings.keys():
        level = logging.INFO if settings.host in LOOPBACK else logging.WARNING
        log.log(level, "No API key is set: everybody who reaches %s may use it (RERANKER_API_KEYS)", url)
