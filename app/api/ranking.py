"""What the dialects share: rank a request, and answer with its figures in the headers."""

import asyncio
import re
from dataclasses import replace
from time import perf_counter

from fastapi import Request, Response
from pydantic import BaseModel

from app.api.fields import MAX_TIMEOUT_MS, RequestBody, Usage
from app.api.service import Defaults, Service, service_of
from app.api.unsupported import warnings
from app.engines.protocol import EngineInfo
from app.errors import InvalidRequest, RequestError
from app.serving.cascade import Cascade
from app.serving.reranker import Reranker
from app.telemetry.record import RequestRecord, record_of
from app.types import Budget, Fusion, Method, Ranking, RerankQuery

TIMING_HEADERS = ("x-total-time", "x-queue-time", "x-tokenization-time", "x-inference-time", "x-compute-tokens")
DEGRADED_HEADER = "x-reranker-degraded"
PREFILTERED_HEADER = "x-reranker-prefiltered"
WARNING_HEADER = "x-reranker-warning"
# What scripts of other origins may read.
EXPOSED_HEADERS = (
    "retry-after",
    "x-request-id",
    DEGRADED_HEADER,
    PREFILTERED_HEADER,
    WARNING_HEADER,
    *TIMING_HEADERS,
)
TIMEOUT_HEADER = "x-request-timeout-ms"
DIGITS = re.compile("[0-9]{1,20}")
LOGGED_CHARS = 80
LOGGED_TEXT_CHARS = 200


async def rank(request: Request, body: RequestBody) -> tuple[Ranking, EngineInfo]:
    """Rank, and fill in the request's record. Raises what `Reranker.rerank` raises, and `Unavailable`."""
    try:
        return await _rank(request, body)
    except RequestError as error:
        error.field = error.field and body.wire_name(error.field)
        raise


async def _rank(request: Request, body: RequestBody) -> tuple[Ranking, EngineInfo]:
    service, record = service_of(request.app), record_of(request.scope)
    model = service.models.choose(body.model_name)
    # On a thread, slow Python code does not block the event loop.
    query = body.to_query() if body.is_plain else await asyncio.to_thread(body.to_query)
    _record(record, body, query, service.defaults.log_texts)
    with model:
        reranker = service.usable_reranker(model)
        timeout = await model.wait_until_loaded(timeout_of(request, body))
        asked = with_options(query, body, service, reranker, timeout)
        if asked.budget:
            asked = replace(asked, budget=asked.budget._replace(spent=perf_counter() - record.arrived))
        ranking = await reranker.rerank(asked)
    record.set_ranking(asked if model is service.models.default else None, ranking)
    return ranking, model.info or reranker.engine.info


def _record(record: RequestRecord, body: RequestBody, query: RerankQuery, log_texts: bool) -> None:
    record.model = (body.model or "")[:LOGGED_CHARS] or None
    record.user = (body.user or "")[:LOGGED_CHARS] or None
    record.documents = len(query.documents)
    if log_texts:
        first = query.query if isinstance(query.query, str) else "".join(query.query[:1])
        record.query = first[:LOGGED_TEXT_CHARS]


def with_options(
    query: RerankQuery, body: RequestBody, service: Service, reranker: Reranker | Cascade, timeout: float | None
) -> RerankQuery:
    """The query with the options that all dialects have. `timeout` is in seconds. Raises `InvalidRequest`."""
    defaults = service.defaults
    method, top_k = _first_stage(body, defaults)
    return replace(
        query,
        timeout=timeout,
        on_overload=body.on_overload or defaults.on_overload,
        priority=body.priority if defaults.priorities else 0,
        prefilter=method,
        prefilter_top_k=top_k,
        budget=_budget(body, defaults),
        cascade_top_k=body.cascade_top_k,
        fusion=_fusion(body, query, service, reranker),
        instruction=body.instruction or None,
        activation=service.activation(query.activation),
    )


def _first_stage(body: RequestBody, defaults: Defaults) -> tuple[Method, int]:
    """The method and the number of documents to keep. `prefilter` may be a method, a switch or the number."""
    asked, method = body.prefilter, defaults.prefilter
    if isinstance(asked, str):
        method = asked
    elif asked is not None:
        method = "off" if not asked else "hybrid" if method == "off" else method
    number = asked if type(asked) is int else None
    return method, body.prefilter_top_k or number or defaults.prefilter_top_k


def _budget(body: RequestBody, defaults: Defaults) -> Budget | None:
    """The budget of the request, or else of the operator; 0 means no budget."""
    chosen = defaults.budget_ms if body.budget_ms is None else body.budget_ms
    return Budget(chosen / 1000) if chosen else None


def _fusion(body: RequestBody, query: RerankQuery, service: Service, reranker: Reranker | Cascade) -> Fusion:
    """The fields of the body in place of the defaults. `fusion` may be a switch. Raises `InvalidRequest`."""
    asked, evidence, defaults = body.fusion, service.fusion_of(reranker), service.defaults
    if isinstance(asked, str):
        evidence = asked
    elif asked is not None:
        evidence = "off" if not asked else "lexical" if evidence == "off" else evidence
    if asked == "score" and query.retrieval_scores is None:
        raise InvalidRequest("fusion: 'score' needs a numeric 'score' in every document")
    weight = defaults.fusion_weight if body.fusion_weight is None else body.fusion_weight
    return Fusion(evidence, weight, body.fusion_method or defaults.fusion_method)


def answer(ranking: Ranking, content: BaseModel, body: RequestBody) -> Response:
    """The content as JSON, with the timing headers of text-embeddings-inference: whole milliseconds, and tokens."""
    timings = ranking.timings
    times = (_whole(seconds) for seconds in (timings.total, timings.queue, timings.tokenize, timings.inference))
    headers = dict(zip(TIMING_HEADERS, (*times, str(ranking.tokens)), strict=True))
    if ranking.degraded:
        headers[DEGRADED_HEADER] = ranking.degraded
    if ranking.prefiltered:
        headers[PREFILTERED_HEADER] = str(len(ranking.prefiltered))
    if warning := warnings(body.unused, body.translated, body.different):
        headers[WARNING_HEADER] = warning
    return Response(content.model_dump_json(exclude_none=True), headers=headers, media_type="application/json")


def timeout_of(request: Request, body: RequestBody) -> float | None:
    """Seconds of the caller's deadline, by the body or the header: the shorter one."""
    given = [body.timeout_ms / 1000] if body.timeout_ms else []
    if header := header_timeout(request):
        given.append(header)
    return min(given) if given else None


def header_timeout(request: Request) -> float | None:
    """Seconds of the caller's deadline, by the header. Raises `InvalidRequest`."""
    header = request.headers.get(TIMEOUT_HEADER)
    if not header:
        return None
    if not DIGITS.fullmatch(header) or not 1 <= int(header) <= MAX_TIMEOUT_MS:
        raise InvalidRequest(f"X-Request-Timeout-Ms: must be from 1 to {MAX_TIMEOUT_MS} milliseconds")
    return int(header) / 1000


def usage(ranking: Ranking) -> Usage:
    """Everything is prompt."""
    return Usage(prompt_tokens=ranking.tokens, total_tokens=ranking.tokens)


def _whole(seconds: float) -> str:
    return str(round(seconds * 1000))
