"""The assembled service: what the routes and the server share."""

from dataclasses import dataclass
from typing import Literal, cast

from starlette.applications import Starlette

from app.api.body import Bodies
from app.documents.store import DocumentStore
from app.errors import NotFound, Unavailable
from app.machine.gpu import Gpu
from app.serving.cascade import Cascade
from app.serving.lifecycle import Lifecycle, Phase
from app.serving.model import RETRY_AFTER, Model
from app.serving.models import Models
from app.serving.observer import Observer
from app.serving.reranker import Reranker
from app.telemetry.metrics import Metrics
from app.telemetry.record import RequestRecord
from app.types import Activation, Evidence, FusionMethod, Limits, Method, OnOverload

NO_STORE = (
    "Documents are not stored here: the operator enables it with RERANKER_DOCUMENTS (memory, a path or redis://…)"
)
# Nothing is served any more.
FINAL = (Phase.DRAINING, Phase.FAILED)


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
    """One per application, as `app.state.service`. `gpu` is set once a model is loaded."""

    lifecycle: Lifecycle
    """Of the process, and of a single model."""
    models: Models
    metrics: Metrics
    bodies: Bodies
    limits: Limits
    defaults: Defaults
    observer: Observer
    documents: DocumentStore | None = None
    """None if documents are not stored."""
    gpu: Gpu | None = None
    running: int = 0
    """Requests that are being answered, health checks and the like excluded."""

    @property
    def reranker(self) -> Reranker | None:
        """Of the first model. None before it is loaded."""
        return self.models.first.reranker

    @property
    def problem(self) -> str | None:
        """Why the service is not ready; None if it is."""
        return self.lifecycle.problem or self.models.problem

    @property
    def status(self) -> str:
        """`ok`, `unhealthy`, or the phase of a service or model that is not ready."""
        if self.problem is None:
            return "ok"
        return self.models.default.status if self.lifecycle.phase is Phase.READY else self.lifecycle.phase

    @property
    def is_idle(self) -> bool:
        """Whether the service is ready and no request waits."""
        return self.problem is None and self.models.are_idle

    def fusion_of(self, reranker: Reranker | Cascade) -> Evidence:
        """The operator's choice, or else the model's default."""
        return reranker.engine.info.fusion if self.defaults.fusion == "auto" else self.defaults.fusion

    def activation(self, dialect: Activation) -> Activation:
        """The operator's choice, or else what the dialect promises."""
        return dialect if self.defaults.activation == "auto" else self.defaults.activation

    def see(self, record: RequestRecord) -> None:
        """Have a request to the default observed after its answer was sent: scores of several do not compare."""
        observed = self.models.observed
        if observed.reranker and observed.is_loaded and record.asked and record.ranking:
            self.observer.see(observed.reranker.engine, record.asked, record.ranking)

    def usable_documents(self) -> DocumentStore:
        """The store for a new request. Raises `NotFound` if documents are not stored, or `Unavailable`."""
        if self.documents is None:
            raise NotFound(NO_STORE)
        if self.lifecycle.phase in (Phase.LOADING, *FINAL):
            raise Unavailable(str(self.lifecycle.problem), RETRY_AFTER)
        return self.documents

    def usable_reranker(self, model: Model | Cascade | None = None) -> Reranker | Cascade:
        """What ranks a new request, by default that without a name. Raises `Unavailable`."""
        if self.lifecycle.phase in FINAL:
            raise Unavailable(str(self.problem), RETRY_AFTER)
        return (model or self.models.default).usable_reranker()


def service_of(app: Starlette) -> Service:
    return cast(Service, app.state.service)
