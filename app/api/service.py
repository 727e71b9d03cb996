"""The assembled service: what the routes and the server share."""

from dataclasses import dataclass
from typing import Literal, cast

from starlette.applications import Starlette

from app.api.body import Bodies
from app.documents.store import DocumentStore
from app.errors import NotFound, Unavailable
from app.machine.gpu import Gpu
from app.serving.lifecycle import Lifecycle, Phase
from app.serving.observer import Observer
from app.serving.reranker import Reranker
from app.telemetry.metrics import Metrics
from app.telemetry.record import RequestRecord
from app.types import Activation, Evidence, FusionMethod, Limits, Method, OnOverload

REASONS = {
    Phase.LOADING: "The model is still loading",
    Phase.RELOADING: "The engine failed and is being reloaded",
    Phase.LEAVING: "The service is about to shut down",
    Phase.DRAINING: "The service is shutting down and accepts no new requests",
    Phase.FAILED: "The service failed to start",
}
RETRY_AFTER = 2
NO_STORE = (
    "Documents are not stored here: the operator enables it with RERANKER_DOCUMENTS (memory, a path or redis://…)"
)


@dataclass(frozen=True, slots=True)
class Defaults:
    """What applies to a request unless it says otherwise."""

    on_overload: OnOverload
    prefilter: Method
    prefilter_top_k: int
    budget_ms: int | None
    activation: Literal["auto"] | Activation
    fusion: Literal["auto"] | Evidence
    fusion_weight: float
    fusion_method: FusionMethod
    priorities: bool
    """Whether the `priority` of requests counts."""
    log_texts: bool
    """Whether queries are written to the log."""


@dataclass(slots=True)
class Service:
    """One per application, as `app.state.service`. `reranker` and `gpu` are set once the model is loaded."""

    lifecycle: Lifecycle
    metrics: Metrics
    bodies: Bodies
    limits: Limits
    defaults: Defaults
    observer: Observer
    documents: DocumentStore | None = None
    """None if documents are not stored."""
    reranker: Reranker | None = None
    gpu: Gpu | None = None

    @property
    def problem(self) -> str | None:
        """Why the service is not ready; None if it is."""
        if self.reranker is not None and self.lifecycle.phase is Phase.READY and not self.reranker.batcher.alive:
            return "The inference loop has stopped"
        return REASONS.get(self.lifecycle.phase)

    @property
    def status(self) -> str:
        """`ok`, `unhealthy`, or the phase of a service that is not ready."""
        if self.problem is None:
            return "ok"
        return "unhealthy" if self.lifecycle.phase is Phase.READY else self.lifecycle.phase

    @property
    def is_idle(self) -> bool:
        """Whether the service is ready and no request waits."""
        reranker = self.reranker
        if reranker is None or self.problem:
            return False
        return not reranker.admission.waiting and not reranker.batcher.pending

    @property
    def fusion(self) -> Evidence:
        """The operator's choice, or else the model's default."""
        if self.defaults.fusion != "auto":
            return self.defaults.fusion
        return self.reranker.engine.info.fusion if self.reranker else "off"

    def activation(self, dialect: Activation) -> Activation:
        """The operator's choice, or else what the dialect promises."""
        return dialect if self.defaults.activation == "auto" else self.defaults.activation

    def see(self, record: RequestRecord) -> None:
        """Have a request observed after its answer was sent."""
        if self.reranker and record.asked and record.ranking:
            self.observer.see(self.reranker.engine, record.asked, record.ranking)

    def usable_documents(self) -> DocumentStore:
        """The store for a new request. Raises `NotFound` if documents are not stored, or `Unavailable`."""
        if self.documents is None:
            raise NotFound(NO_STORE)
        if self.lifecycle.phase in (Phase.LOADING, Phase.DRAINING, Phase.FAILED):
            raise Unavailable(REASONS[self.lifecycle.phase], RETRY_AFTER)
        return self.documents

    def usable_reranker(self) -> Reranker:
        """The reranker for a new request. Raises `Unavailable`.

        During a reload requests are let through: cached scores need no engine, and `on_overload` needs none either.
        While the service is leaving, clients and proxies have not noticed yet.
        """
        let_through = self.lifecycle.phase in (Phase.RELOADING, Phase.LEAVING)
        if self.reranker is None or (self.problem and not let_through):
            raise Unavailable(self.problem or REASONS[Phase.LOADING], RETRY_AFTER)
        return self.reranker


def service_of(app: Starlette) -> Service:
    return cast(Service, app.state.service)
