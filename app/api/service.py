"""How routes reach the assembled service."""

from fastapi import Request

from app.errors import Unavailable
from app.lifecycle import Lifecycle, Phase
from app.reranker import Reranker

REASONS = {
    Phase.LOADING: "The model is still loading",
    Phase.DRAINING: "The service is shutting down and takes no new requests",
    Phase.FAILED: "The service failed to start",
}
RETRY_AFTER = 2


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
