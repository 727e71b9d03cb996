"""Routes for operators: health, model and metrics."""

import os
import socket
import time
from typing import Any, Literal

from fastapi import APIRouter, Header, HTTPException, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from prometheus_client.exposition import choose_encoder

from app import __version__
from app.api.errors import ErrorBody, shorten
from app.api.paths import LIVE_PATHS, READY_PATHS, STATUS_PATHS
from app.api.service import Service, service_of
from app.errors import UnknownModel
from app.serving.activation import activation_name
from app.serving.cascade import Cascade
from app.serving.model import Model
from app.serving.reranker import Reranker

router = APIRouter(tags=["operations"])

INSTANCE_HEADER = "x-reranker-instance"


@router.get("/", include_in_schema=False)
async def root(request: Request) -> Response:
    """Redirects browsers to the documentation. With the playground, `/` is its page."""
    if request.app.openapi_url:
        return RedirectResponse(f"{request.scope['root_path']}/docs")
    return JSONResponse({"service": "reranker", "version": __version__, "health": "/health"})


def instance() -> str:
    """Names this process among replicas: host and process id."""
    return f"{socket.gethostname()}:{os.getpid()}"


@router.get("/health", summary="Status and concurrency", responses={503: {"description": "Not ready"}})
async def health(request: Request) -> JSONResponse:
    """Status, engine and concurrency. 503 while the service is not ready."""
    service = service_of(request.app)
    problem, reranker = service.problem, service.reranker
    body: dict[str, Any] = {
        "status": service.status,
        "reason": problem,
        "version": __version__,
        "instance": instance(),
        "uptime_seconds": round(service.metrics.uptime, 3),
    }
    if reranker is not None:
        admission = reranker.admission
        body |= reranker.engine.info.summary() | {
            "loaded": service.models.first.is_loaded,
            "long_documents": reranker.long_documents,
            "fusion": service.fusion_of(reranker),
            "active": admission.active,
            "waiting": admission.waiting,
            "max_parallel": admission.max_parallel,
            "max_queue": admission.max_queue,
            "pending_pairs": reranker.batcher.pending,
            "cache_entries": len(reranker.cache),
            "tokens_per_second": round(reranker.batcher.speed),
            "self_test": self_test_summary(reranker),
        }
        if service.gpu and (figures := service.gpu.read()):
            body["gpu"] = {"name": reranker.engine.info.device_name, **figures._asdict()}
    if service.models.are_several:
        body["models"] = [_state(model) for model in service.models]
    return JSONResponse(body, 200 if problem is None else 503)


@router.get("/health/live", summary="Liveness")
async def live() -> dict[str, str]:
    """200 while the event loop runs."""
    return {"status": "alive"}


@router.get("/health/ready", summary="Readiness", responses={503: {"description": "Not ready"}})
async def ready(request: Request) -> JSONResponse:
    """503 while loading, draining or unhealthy."""
    problem = service_of(request.app).problem
    return JSONResponse({"status": problem or "ready"}, 200 if problem is None else 503)


@router.get("/info", summary="Model, engine and limits", responses={503: {"description": "Still loading"}})
async def info(request: Request) -> JSONResponse:
    """In the format of text-embeddings-inference, with additional fields: of the first model, if there are several."""
    service = service_of(request.app)
    if (reranker := service.reranker) is None:
        return JSONResponse({"status": service.problem}, 503)
    admission = reranker.admission
    body = {
        "max_client_batch_size": reranker.limits.max_documents,
        "max_concurrent_requests": admission.max_parallel + admission.max_queue,
        "version": __version__,
        "max_text_chars": reranker.limits.max_text_chars,
    } | _description(service, service.models.first)
    if service.models.are_several:
        body["models"] = [_state(model) | _description(service, model) for model in service.models]
    if service.models.cascade:
        body["cascade"] = service.models.cascade.summary()
    if service.observer.shadow:
        body["shadow"] = service.observer.shadow.summary()
    return JSONResponse(body)


def _description(service: Service, model: Model) -> dict[str, Any]:
    """What `/info` says of one model."""
    reranker, about = model.reranker, model.info
    if reranker is None or about is None:
        return {}
    labels = {str(index): label for index, label in about.labels.items()}
    return {
        "model_id": about.model,
        "model_sha": about.revision,
        "model_dtype": about.precision,
        "model_type": {
            "reranker": {"id2label": labels, "label2id": {label: int(index) for index, label in labels.items()}}
        },
        "max_input_length": about.max_length,
        "activation": activation_name(service.activation("sigmoid"), about),
        "model_activation": about.activation,
        "score_calibration": about.score_calibration and about.score_calibration.model_dump(),
        "packed": about.packed,
        "shares_prefixes": about.shares_prefixes,
        "template": about.template.text if about.template else None,
        "instruction": reranker.instruction,
        "max_batch_tokens": reranker.batcher.token_budget,
        "self_test": self_test_summary(reranker),
        "failed_exports": list(about.failed_exports),
        **reranker.engine.info.summary(),
        "long_documents": reranker.long_documents,
        "fusion": service.fusion_of(reranker),
    }


def _state(model: Model) -> dict[str, Any]:
    """What `/health` says of one of several models. `model` is the engine's name for it."""
    about: dict[str, Any] = {"name": model.name, "status": model.status, "reason": model.problem}
    if (reranker := model.reranker) is not None:
        about |= reranker.engine.info.summary() | {
            "loaded": model.is_loaded,
            "pending_pairs": reranker.batcher.pending,
            "tokens_per_second": round(reranker.batcher.speed),
            "self_test": self_test_summary(reranker),
        }
    return about


def self_test_summary(reranker: Reranker) -> dict[str, Any] | None:
    """Deviation from the reference logits at load; None if the engine was not tested."""
    test = reranker.engine.self_test
    return test.summary() if test else None


@router.get("/v1/models", summary="The models, in OpenAI's format", responses={503: {"description": "Still loading"}})
@router.get("/models", summary="The models, at Infinity's path", responses={503: {"description": "Still loading"}})
async def models(request: Request) -> JSONResponse:
    """A list of the models: usually one."""
    service = service_of(request.app)
    if service.reranker is None:
        return JSONResponse({"status": service.problem}, 503)
    listed = [*service.models, *filter(None, [service.models.cascade])]
    return JSONResponse({"object": "list", "data": [_model(service, each) for each in listed if each.info]})


@router.get("/openai/v1/models/{name:path}", include_in_schema=False)
@router.get("/v3/models/{name:path}", include_in_schema=False)
@router.get("/v1/models/{name:path}", include_in_schema=False)
async def model(name: str, request: Request) -> JSONResponse:
    """The model of this name. The name may be written without its organization."""
    service = service_of(request.app)
    if service.reranker is None:
        return JSONResponse({"status": service.problem}, 503)
    try:
        found = service.models.choose(name) if service.models.are_several else service.models.named(name)
    except UnknownModel:
        known = ", ".join(map(shorten, service.models.names))
        raise HTTPException(404, f"There is no model {shorten(name)}: the service has {known}") from None
    return JSONResponse(_model(service, found))


def _model(service: Service, model: Model | Cascade) -> dict[str, Any]:
    """In the format of OpenAI, with the fields that Xinference's client reads."""
    name, window = model.name, model.info.max_length if model.info else None
    started = int(time.time() - service.metrics.uptime)
    openai = {"id": name, "object": "model", "created": started, "owned_by": "reranker"}
    return openai | {"model_type": "rerank", "model_name": name, "max_model_len": window}


@router.get("/meta", include_in_schema=False)
async def meta(request: Request) -> JSONResponse:
    """What Weaviate asks a reranker for."""
    default = service_of(request.app).models.default
    return JSONResponse({"model": default.name or None, "version": __version__})


@router.get("/metrics", summary="Metrics", response_class=Response, responses={422: {"model": ErrorBody}})
async def metrics(
    request: Request, format: Literal["prometheus", "json"] | None = None, accept: str = Header("")
) -> Response:
    """Prometheus text, or JSON for `Accept: application/json` or `?format=json`."""
    figures = service_of(request.app).metrics
    if format == "json" or (format is None and "application/json" in accept):
        return JSONResponse(figures.summary())
    try:
        encode, content_type = choose_encoder(accept)
    except (TypeError, ValueError):  # an invalid version in the header
        encode, content_type = choose_encoder("")
    return Response(encode(figures.registry), media_type=content_type, headers={INSTANCE_HEADER: instance()})


# The same at the paths of other services, and for probes that use HEAD.
for path in ("/v3/models", "/openai/v1/models"):
    router.get(path, include_in_schema=False)(models)
for handler, paths in ((health, STATUS_PATHS), (live, LIVE_PATHS), (ready, READY_PATHS)):
    for path in paths:
        router.api_route(path, methods=["GET", "HEAD"], include_in_schema=False)(handler)
