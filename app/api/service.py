"""How routes reach the assembled service, and how they answer."""

import re
import time
from dataclasses import replace
from typing import Any

from fastapi import Request, Response
from pydantic import BaseModel

from app.api.fields import MAX_TIMEOUT_MS, RequestBody, Usage
from app.engines.protocol import EngineInfo
from app.errors import InvalidRequest, Unavailable
from app.serving.lifecycle import Lifecycle, Phase
from app.serving.reranker import Reranker
from app.types import Method, Ranking, RerankQuery

REASONS = {
    Phase.LOADING: "The model is still loading",
    Phase.RELOADING: "The engine broke and is being loaded again",
    Phase.DRAINING: "The service is shutting down and takes no new requests",
    Phase.FAILED: "The service failed to start",
}
RETRY_AFTER = 2
TIMING_HEADERS = ("x-total-time", "x-queue-time", "x-tokenization-time", "x-inference-time", "x-compute-tokens")
DEGRADED_HEADER = "x-reranker-degraded"
PREFILTERED_HEADER = "x-reranker-prefiltered"
TIMEOUT_HEADER = "x-request-timeout-ms"
DIGITS = re.compile("[0-9]{1,20}")
LOGGED_CHARS = 80
LOGGED_TEXT_CHARS = 200


async def rank(request: Request, body: RequestBody, query: RerankQuery) -> tuple[Ranking, EngineInfo]:
    """Rank, and note the figures for the log. Raises what `Reranker.rerank` raises, and `Unavailable`."""
    details = request.state.details
    details |= {name: value[:LOGGED_CHARS] for name in ("model", "user") if (value := getattr(body, name))}
    details["documents"] = len(query.documents)
    if request.app.state.settings.log_texts:
        first = query.query if isinstance(query.query, str) else "".join(query.query[:1])
        details["query"] = first[:LOGGED_TEXT_CHARS]
    reranker = ready_reranker(request)
    settings = request.app.state.settings
    query = replace(
        query,
        timeout=_timeout(request, body),
        on_overload=body.on_overload or settings.on_overload,
        priority=body.priority if settings.priorities else 0,
        **_first_stage(body, settings.prefilter, settings.prefilter_top_k),
    )
    ranking = await reranker.rerank(query)
    request.state.ranked = time.time_ns(), ranking.timings
    if ranking.degraded:
        details["degraded"] = ranking.degraded
    if ranking.prefiltered:
        details["prefiltered"] = len(ranking.prefiltered)
        details["prefilter_ms"] = milliseconds(ranking.timings.prefilter)
    details |= {
        "cached": ranking.pairs - ranking.scored,
        "tokens": ranking.tokens,
        "queue_ms": milliseconds(ranking.timings.queue),
        "inference_ms": milliseconds(ranking.timings.inference),
    }
    return ranking, reranker.engine.info


def _first_stage(body: RequestBody, method: Method, top_k: int) -> dict[str, Any]:
    """What the request says of it, or else the settings; a number is how many documents it is to leave."""
    asked = body.prefilter
    if isinstance(asked, str):
        method = asked
    elif asked is not None:
        method = "off" if not asked else "hybrid" if method == "off" else method
    number = asked if type(asked) is int else None
    return {"prefilter": method, "prefilter_top_k": body.prefilter_top_k or number or top_k}


def answer(ranking: Ranking, content: BaseModel) -> Response:
    """The content as JSON, with the timing headers of text-embeddings-inference: whole milliseconds, and tokens."""
    timings = ranking.timings
    times = (_whole(seconds) for seconds in (timings.total, timings.queue, timings.tokenize, timings.inference))
    headers = dict(zip(TIMING_HEADERS, (*times, str(ranking.tokens)), strict=True))
    if ranking.degraded:
        headers[DEGRADED_HEADER] = ranking.degraded
    if ranking.prefiltered:
        headers[PREFILTERED_HEADER] = str(len(ranking.prefiltered))
    return Response(content.model_dump_json(exclude_none=True), headers=headers, media_type="application/json")


def _timeout(request: Request, body: RequestBody) -> float | None:
    """Seconds of the caller's deadline, by the body or the header: the shorter one."""
    given = [body.timeout_ms] if body.timeout_ms else []
    if header := request.headers.get(TIMEOUT_HEADER):
        if not DIGITS.fullmatch(header) or not 1 <= int(header) <= MAX_TIMEOUT_MS:
            raise InvalidRequest(f"X-Request-Timeout-Ms: must be from 1 to {MAX_TIMEOUT_MS} milliseconds")
        given.append(int(header))
    return min(given) / 1000 if given else None


def usage(ranking: Ranking) -> Usage:
    """Everything is prompt."""
    return Usage(prompt_tokens=ranking.tokens, total_tokens=ranking.tokens)


def milliseconds(seconds: float) -> float:
    """To the microsecond."""
    return round(seconds * 1000, 3)


def _whole(seconds: float) -> str:
    return str(round(seconds * 1000))


def ready_reranker(request: Request) -> Reranker:
    """The reranker, if it may be used now. Raises `Unavailable`."""
    problem = unreadiness(request)
    # While the engine is loaded again, what is remembered is still served, and who asked for it gets a lexical order.
    if problem and request.app.state.lifecycle.phase is not Phase.RELOADING:
        raise Unavailable(problem, RETRY_AFTER)
    reranker: Reranker = request.app.state.reranker
    return reranker


def unreadiness(request: Request) -> str | None:
    """Why no new request can be served, or None."""
    lifecycle: Lifecycle = request.app.state.lifecycle
    reranker: Reranker | None = request.app.state.reranker
    if reranker is not None and lifecycle.phase is Phase.READY and not reranker.batcher.alive:
        return "The inference loop has stopped"
    return REASONS.get(lifecycle.phase)
