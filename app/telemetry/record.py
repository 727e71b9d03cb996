"""The record of one request: the fields of its log line and the attributes of its trace span."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic import BaseModel

from app.telemetry.cost import Bill
from app.types import Ranking, RerankQuery


class Problem(NamedTuple):
    """An error as it is answered."""

    request_id: str
    status: int
    code: str
    message: str


ErrorBodyOf = Callable[[Problem], BaseModel]
"""Makes the body of an error."""

STAGES = ("queue", "prefilter", "tokenize", "inference")


@dataclass(slots=True)
class RequestRecord:
    """Filled in while the request is served. Fields that stay None are left out of the log line and the span."""

    id: str
    model: str | None = None
    user: str | None = None
    documents: int | None = None
    query: str | None = None
    """Set only if RERANKER_LOG_TEXTS is on."""
    error: str | None = None
    """The code of the error that was answered."""
    bill: Bill | None = None
    """None until the caller is known."""
    asked: RerankQuery | None = None
    """What the ranking answers. None if nobody observes it."""
    ranking: Ranking | None = None
    error_body: ErrorBodyOf | None = None
    """How the dialect of the request writes errors; None for the service's own format."""
    arrived: float = field(default_factory=time.perf_counter)
    ranked_at: int = 0
    """When the ranking was complete, in nanoseconds since the epoch."""

    def set_ranking(self, asked: RerankQuery | None, ranking: Ranking) -> None:
        self.asked, self.ranking, self.ranked_at = asked, ranking, time.time_ns()

    def log_fields(self) -> dict[str, Any]:
        """The fields of the access log, in the order of the console format."""
        names = ("model", "user", "documents", "query")
        fields = {name: value for name in names if (value := getattr(self, name)) is not None}
        if self.ranking is not None:
            fields |= _figures(self.ranking)
        return fields if self.error is None else fields | {"error": self.error}

    def span_attributes(self) -> dict[str, str | int]:
        """The attributes of the request's span. They contain no texts."""
        fields = self.log_fields()
        names = ("documents", "prefiltered", "cached", "tokens", "error")
        attributes = {f"reranker.{name}": fields[name] for name in names if name in fields}
        return attributes | {"reranker.request_id": self.id}

    def stages(self) -> Iterator[tuple[str, int, int]]:
        """Name, start and end of each stage that took time, the last one first; in nanoseconds since the epoch."""
        if self.ranking is None:
            return
        end = self.ranked_at
        for name in reversed(STAGES):
            if seconds := getattr(self.ranking.timings, name):
                start = end - round(seconds * 1e9)
                yield name, start, end
                end = start


def record_of(scope: Mapping[str, Any]) -> RequestRecord:
    """The record of the request with this ASGI scope."""
    record: RequestRecord = scope["state"]["record"]
    return record


def milliseconds(seconds: float) -> float:
    """Rounded to the microsecond."""
    return round(seconds * 1000, 3)


def _figures(ranking: Ranking) -> dict[str, Any]:
    fields: dict[str, Any] = {"degraded": ranking.degraded} if ranking.degraded else {}
    if ranking.prefiltered:
        fields["prefiltered"] = len(ranking.prefiltered)
        fields["prefilter_ms"] = milliseconds(ranking.timings.prefilter)
    return fields | {
        "cached": ranking.pairs - ranking.scored,
        "tokens": ranking.tokens,
        "queue_ms": milliseconds(ranking.timings.queue),
        "inference_ms": milliseconds(ranking.timings.inference),
    }
