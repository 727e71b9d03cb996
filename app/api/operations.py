"""For operators: health, what runs, and the figures."""

import time
from typing import Any, Literal

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from prometheus_client.exposition import choose_encoder

from app import __version__
from app.api.errors import ErrorBody
from app.api.service import unreadiness
from app.machine.gpu import Gpu
from app.serving.reranker import Reranker
from app.telemetry.metrics import Metrics

router = APIRouter(tags=["operations"])


@router.get("/", include_in_schema=False)
async def root(request: Request) -> Response:
    """Whoever looks here with a browser."""
    if request.app.openapi_url:
        return RedirectResponse("/docs")
    return JSONResponse({"service": "reranker", "version": __version__, "health": "/health"})


@router.head("/health", include_in_schema=False)
@router.get("/health", summary="Status and concurrency", responses={503: {"description": "Not ready"}})
async def health(request: Request) -> JSONResponse:
    """Status, engine and concurrency figures; 503 while the service's own state makes it refuse requests."""
    problem = unreadiness(request)
    metrics: Metrics = request.app.state.metrics
    reranker: Reranker | None = request.app.state.reranker
    body: dict[str, Any] = {
        "status": "ok" if problem is None else request.app.state.lifecycle.phase,
        "reason": problem,
        "version": __version__,
        "uptime_seconds": round(metrics.uptime, 3),
    }
    if problem is not None and request.app.state.lifecycle.phase == "ready":
        body["status"] = "unhealthy"
    if reranker is not None:
        admission = reranker.admission
        body |= reranker.engine.info.summary() | {
            "long_documents": reranker.long_documents,
            "active": admission.active,
            "waiting": admission.waiting,
            "max_parallel": admission.max_parallel,
            "max_queue": admission.max_queue,
            "pending_pairs": reranker.batcher.pending,
            "cache_entries": len(reranker.cache),
            "tokens_per_second": round(reranker.batcher.speed),
            "self_test": self_test_summary(reranker),
        }
        gpu: Gpu | None = request.app.state.gpu
        if gpu and (figures := gpu.read()):
            body["gpu"] = {"name": reranker.engine.info.device_name, **figures._asdict()}
    return JSONResponse(body, 200 if problem is None else 503)


@router.head("/health/live", include_in_schema=False)
@router.get("/health/live", summary="The process answers")
async def live() -> dict[str, str]:
    """200 as long as the event loop turns."""
    return {"status": "alive"}


@router.head("/health/ready", include_in_schema=False)
@router.get("/health/ready", summary="Requests are served", responses={503: {"description": "Not ready"}})
async def ready(request: Request) -> JSONResponse:
    """503 while loading, draining or unhealthy."""
    problem = unreadiness(request)
    return JSONResponse({"status": problem or "ready"}, 200 if problem is None else 503)


@router.get("/info", summary="What runs here", responses={503: {"description": "Still loading"}})
async def info(request: Request) -> JSONResponse:
    """Model, engine and limits, in the shape of text-embeddings-inference, plus ours."""
    reranker: Reranker | None = request.app.state.reranker
    if reranker is None:
        return JSONResponse({"status": unreadiness(request)}, 503)
    about, admission = reranker.engine.info, reranker.admission
    labels = {str(index): label for index, label in about.labels.items()}
    return JSONResponse(
        {
            "model_id": about.model,
            "model_sha": about.revision,
            "model_dtype": about.precision,
            "model_type": {
                "reranker": {"id2label": labels, "label2id": {label: int(index) for index, label in labels.items()}}
            },
            "max_input_length": about.max_length,
            "max_client_batch_size": reranker.limits.max_documents,
            "max_concurrent_requests": admission.max_parallel + admission.max_queue,
            "version": __version__,
            "activation": about.activation,
            "packed": about.packed,
            "max_batch_tokens": reranker.batcher.token_budget,
            "max_text_chars": reranker.limits.max_text_chars,
            "self_test": self_test_summary(reranker),
        }
        | about.summary()
        | {"long_documents": reranker.long_documents}
    )


def self_test_summary(reranker: Reranker) -> dict[str, Any] | None:
    """How near the engine came to its reference logits when it was loaded; None where it was not tested."""
    test = reranker.engine.self_test
    return test.summary() if test else None


@router.get(
    "/v1/models", summary="The model, as OpenAI lists models", responses={503: {"description": "Still loading"}}
)
@router.get("/models", summary="The same, where Infinity has it", responses={503: {"description": "Still loading"}})
async def models(request: Request) -> JSONResponse:
    """A list of one."""
    reranker: Reranker | None = request.app.state.reranker
    if reranker is None:
        return JSONResponse({"status": unreadiness(request)}, 503)
    started = int(time.time() - request.app.state.metrics.uptime)
    model = {"id": reranker.engine.info.model, "object": "model", "created": started, "owned_by": "reranker"}
    return JSONResponse({"object": "list", "data": [model]})


@router.get("/metrics", summary="Figures", response_class=Response, responses={422: {"model": ErrorBody}})
async def metrics(
    request: Request, format: Literal["prometheus", "json"] | None = None, accept: str = Header("")
) -> Response:
    """Prometheus text, or JSON for `Accept: application/json` or `?format=json`."""
    figures: Metrics = request.app.state.metrics
    if format == "json" or (format is None and "application/json" in accept):
        return JSONResponse(figures.summary())
    try:
        encode, content_type = choose_encoder(accept)
    except (TypeError, ValueError):  # of a version that is none
        encode, content_type = choose_encoder("")
    return Response(encode(figures.registry), media_type=content_type)
