"""Composition: builds the application from the settings. `app/lifespan.py` runs it."""

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from fastapi import Depends, FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.security import HTTPBearer
from fastapi.telemetry import TelemetryConfig
from fastapi_offline import FastAPIOffline

from app import __version__
from app.api import operations, storage, ui
from app.api.body import Bodies
from app.api.dialects import bedrock, dashscope, google, mixedbread, native, nim, pinecone, tei, vllm
from app.api.errors import add_error_handlers
from app.api.guard import RequestGuard
from app.api.keys import ApiKeys
from app.api.paths import Paths
from app.api.quota import Quota
from app.api.ranking import EXPOSED_HEADERS
from app.api.service import Defaults, Service
from app.config import Settings
from app.config_types import names_of_two
from app.documents.store import open_store
from app.engines.load import described, load_engine
from app.engines.protocol import Engine
from app.environment import load_settings, traces_exporter
from app.lifespan import Plan, lifespan
from app.serving.cascade import Cascade
from app.serving.lifecycle import Lifecycle
from app.serving.models import Models
from app.serving.observer import Observer
from app.serving.shadow import Shadow
from app.telemetry.drift import Drift
from app.telemetry.metrics import Metrics
from app.telemetry.optional_tracing import open_tracing
from app.telemetry.quality import Quality
from app.telemetry.sample import Sample
from app.types import Limits

if TYPE_CHECKING:
    from app.telemetry.tracing import Tracing

log = logging.getLogger(__name__)

NO_TELEMETRY: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}


def create_app(
    settings: Settings | None = None, engine: Engine | None = None, load: Callable[[Settings], Engine] = load_engine
) -> FastAPI:
    """The service as an ASGI application. Without an engine, the models are loaded once the application runs.

    `load` loads the model of its settings.
    """
    settings = settings or load_settings()
    service, tracing = _service(settings), open_tracing(traces_exporter())
    # The offline variant serves the documentation pages without a network.
    make = FastAPIOffline if settings.docs else partial(FastAPI, openapi_url=None)
    app = make(
        title="Reranker",
        version=__version__,
        summary="Ranks passages by their relevance to a query.",
        redirect_slashes=False,
        lifespan=partial(lifespan, Plan(settings, service, engine, load, tracing)),
        telemetry=tracing.telemetry if tracing else NO_TELEMETRY,
    )
    app.state.service = service
    _add_middleware(app, settings, service, tracing)
    add_error_handlers(app, settings.overload_status)
    if settings.ui:
        app.include_router(ui.router)  # before the other route of `/`
    # Documents the keys in OpenAPI; RequestGuard checks them.
    documented_keys = [Depends(HTTPBearer(auto_error=False))] if settings.keys() else []
    # Pinecone's `/rerank` is before that of the others, which takes any request.
    dialects = (pinecone, tei, native, vllm, nim, dashscope, bedrock, google, mixedbread)
    for routes in (*dialects, storage, operations):
        app.include_router(routes.router, dependencies=documented_keys)
    return app


def _service(settings: Settings) -> Service:
    metrics, lifecycle = Metrics(), Lifecycle()
    service = Service(
        lifecycle=lifecycle,
        models=Models([name for name in settings.each() if name], lifecycle),
        metrics=metrics,
        bodies=Bodies(settings.max_body_bytes, settings.max_buffered_bytes, settings.body_timeout),
        limits=Limits(settings.max_documents, settings.max_text_chars, settings.request_timeout),
        defaults=Defaults(**{name: getattr(settings, name) for name in Defaults.__slots__}),
        observer=_observer(settings, metrics),
    )
    if settings.documents:
        service.documents = store = open_store(settings.documents.get_secret_value(), settings.documents_max_bytes)
        service.metrics.gauge("stored_bytes", "Bytes of all stored documents").set_function(lambda: store.used_bytes)
    if settings.cascade:
        small, large = (service.models.named(name) for name in names_of_two(settings.cascade))
        service.models.cascade = Cascade(small, large, settings.cascade_top_k, metrics)
    service.observer.shadow = _shadow(settings, service)
    service.metrics.buffered_bytes.set_function(lambda: service.bodies.held)
    service.metrics.ready.set_function(lambda: float(service.problem is None))
    return service


def _observer(settings: Settings, metrics: Metrics) -> Observer:
    drift = Drift(settings.drift_reference, settings.drift_file, metrics)
    sample = None
    if settings.sample_file is not None:
        wanted = settings.sample_share, settings.sample_max_bytes, settings.sample_redact
        sample = Sample(settings.sample_file, *wanted, metrics)
    return Observer(Quality(metrics, settings.relevant_score, drift), sample)


def _shadow(settings: Settings, service: Service) -> Shadow | None:
    if settings.shadow_model is None:
        return None
    how = described(settings, settings.shadow_model, settings.shadow_threads)
    logs = settings.log_level, settings.log_format
    is_idle = partial(getattr, service, "is_idle")
    return Shadow(settings.shadow_model, how, settings.shadow_share, logs, service.metrics, is_idle)


def _add_middleware(app: FastAPI, settings: Settings, service: Service, tracing: "Tracing | None") -> None:
    """The innermost first."""
    keys = ApiKeys(settings.keys(), settings.protect_metrics)
    quota = Quota(settings.key_max_parallel, settings.key_per_minute, settings.key_burst)
    app.add_middleware(
        RequestGuard, keys=keys, quota=quota, bodies=service.bodies, metrics=service.metrics, has_ui=settings.ui
    )
    if origins := settings.origins():
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["*"],
            expose_headers=EXPOSED_HEADERS,
        )
    if tracing:
        from app.telemetry.tracing import SpanDetails

        app.add_middleware(SpanDetails, provider=tracing.provider)
    app.add_middleware(Paths, root_path=settings.root_path, trusted=settings.proxies())
