"""How routes reach the assembled service, and how they answer."""

import time

from fastapi import Request, Response
from pydantic import BaseModel

from app.api.fields import RequestBody, Usage
from app.backends import Engine
from app.errors import Unavailable
from app.lifecycle import Lifecycle, Phase
from app.reranker import Ranking, Reranker, RerankQuery

REASONS = {
    Phase.LOADING: "The model is still loading",
    Phase.DRAINING: "The service is shutting down and takes no new requests",
    Phase.FAILED: "The service failed to start",
}
RETRY_AFTER = 2
TIMING_HEADERS = ("x-total-time", "x-queue-time", "x-tokenization-time", "x-inference-time", "x-compute-tokens")
LOGGED_CHARS = 80
LOGGED_TEXT_CHARS = 200


async def rank(request: Request, body: RequestBody, query: RerankQuery) -> tuple[Ranking, Engine]:
    """Rank, and note the figures for the log. Raises what `Reranker.rerank` raises, and `Unavailable`."""
    details = request.state.details
    details |= {name: value[:LOGGED_CHARS] for name in ("model", "user") if (value := getattr(body, name))}
    details["documents"] = len(query.documents)
    if request.app.state.settings.log_texts:
        first = query.query if isinstance(query.query, str) else "".join(query.query[:1])
        details["query"] = first[:LOGGED_TEXT_CHARS]
    reranker = ready_reranker(request)
    ranking = await reranker.rerank(query)
    request.state.ranked = time.time_ns(), ranking.timings
    details |= {
        "cached": ranking.pairs - ranking.scored,
        "tokens": ranking.tokens,
        "queue_ms": milliseconds(ranking.timings.queue),
        "inference_ms": milliseconds(ranking.timings.inference),
    }
    return ranking, reranker.scorer.engine


def answer(ranking: Ranking, content: BaseModel) -> Response:
    """The content as JSON, with the timing headers of text-embeddings-inference: whole milliseconds, and tokens."""
    timings = ranking.timings
    times = (_whole(seconds) for seconds in (timings.total, timings.queue, timings.tokenize, timings.inference))
    headers = dict(zip(TIMING_HEADERS, (*times, str(ranking.tokens)), strict=True))
    return Response(content.model_dump_json(exclude_none=True), headers=headers, media_type="application/json")


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
    if problem:
        raise Unavailable(problem, RETRY_AFTER)
    reranker: Reranker = request.app.state.reranker
    return reranker


def unreadiness(request: Request) -> str | None:
    """Why no new request can be served, or None."""
    lifecycle: Lifecycle = request.app.state.lifecycle
    reranker: Reranker | None = request.app.state.reranker
    if reranker is not None and not reranker.batcher.alive:
        return "The inference loop has stopped"
    return REASONS.get(lifecycle.phase)
