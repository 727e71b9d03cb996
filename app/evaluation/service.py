"""The service that the commands measure: one in this process, or a running one."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any

import httpx
from rich.console import Console
from rich.progress import track

from app.config import Settings
from app.environment import load_settings, unknown_variables
from app.errors import StartupError
from app.evaluation.report import Answers, Outcome
from app.evaluation.topic import Topic
from app.serving.lifecycle import Phase
from app.telemetry.logs import configure_logging
from reranker_client import AsyncClient, RerankError

if TYPE_CHECKING:
    from app.api.service import Service

log = logging.getLogger(__name__)

# The service in this process has one caller, so keys and quotas only get in the way. Its requests come from no user.
OVERRIDES: dict[str, Any] = {
    "sample_file": None,
    "shadow_model": None,
    "api_keys": None,
    "api_keys_file": None,
    "key_max_parallel": None,
    "key_per_minute": None,
    "docs": False,
    "idle_seconds": 0,
}
# With a cache, repeated queries would be faster than the model.
NO_CACHE: dict[str, Any] = {"prediction_cache": False}
# Every document gets the model's logit, and these alone decide the order.
MODEL_ALONE: dict[str, Any] = {"fusion": "off", "prefilter": "off", "budget_ms": 0, "raw_scores": True}
# Long enough for a thousand long documents on a slow machine.
TIMEOUT_SECONDS = 600
errors = Console(stderr=True)


def own_settings(chosen: Mapping[str, Any], measured: bool = True) -> Settings:
    """The settings of the environment, with those in `chosen` that are not None. Raises `StartupError`.

    `measured`: whether the speed of the model is wanted, without the cache.
    """
    known = {name: value for name, value in chosen.items() if value is not None}
    if "model" in known:
        known["models"] = known["cascade"] = None
    settings = load_settings(**known, **OVERRIDES, **(NO_CACHE if measured else {}))
    if settings.models:
        raise StartupError("RERANKER_MODELS has several models: choose one with --model, or unset it")
    return settings


def prepare_logging(settings: Settings, level: str = "warning") -> None:
    """Log from `level` on unless the settings have another, and warn about unknown settings."""
    configure_logging(settings.log_level if "log_level" in settings.model_fields_set else level)
    for name in unknown_variables():
        log.warning("%s is not a setting of this service and is ignored", name)


async def ask_all(
    topics: Sequence[Topic],
    settings: Settings | None,
    url: str | None,
    api_key: str | None,
    options: Mapping[str, Any],
) -> Answers:
    """Rank the documents of every topic that has any. Raises `RerankError` and `StartupError`."""
    service = own_service(settings) if settings else AsyncClient(str(url), api_key, TIMEOUT_SECONDS)
    async with service as client:
        engine = await client.info()
        asked = [topic for topic in topics if topic.documents]
        progress = track(asked, "Reranking", console=errors, transient=True, disable=not errors.is_terminal)
        return Answers(engine, {topic.qid: await ask(client, topic, options) for topic in progress})


@asynccontextmanager
async def own_service(settings: Settings) -> AsyncIterator[AsyncClient]:
    """Start the service in this process. The client calls it without a socket. Raises `StartupError`."""
    from app.main import create_app

    app = create_app(settings)
    async with running(app), AsyncClient("http://own", transport=httpx.ASGITransport(app)) as client:
        yield client


@asynccontextmanager
async def running(app: Any) -> "AsyncIterator[Service]":
    """Run the application of `create_app` until the end of the block. Raises `StartupError`."""
    from app.api.service import service_of

    service = service_of(app)
    async with app.router.lifespan_context(app):
        with errors.status("Loading the model ..."):
            while service.lifecycle.phase is Phase.LOADING:  # noqa: ASYNC110 (the lifecycle has no event to wait for)
                await asyncio.sleep(0.05)
        if service.lifecycle.phase is Phase.FAILED:
            raise StartupError("The model could not be loaded")
        yield service


async def ask(client: AsyncClient, topic: Topic, options: Mapping[str, Any]) -> Outcome:
    """Rank the documents of one topic. Raises `RerankError`."""
    ids = list(topic.documents)
    started = perf_counter()
    try:
        # An order by shared words must not pass for a result of the model.
        ranking = await client.rerank(topic.query, list(topic.documents.values()), on_overload="error", **options)
    except RerankError as error:
        raise RerankError(f"Query {topic.qid!r}: {error}", error.status, error.request_id) from None
    milliseconds = 1000 * (perf_counter() - started)
    order = [ids[result.index] for result in ranking]
    scores = [result.relevance_score for result in sorted(ranking, key=lambda result: result.index)]
    meta = ranking.meta
    return Outcome(order, scores, milliseconds, meta.scored, meta.cached, meta.truncated)
