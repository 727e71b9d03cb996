"""One served model. Its engine is loaded and reloaded; its cache, its settings and its requests stay."""

from dataclasses import replace

from app.engines.protocol import Engine, EngineInfo
from app.errors import Unavailable
from app.serving.batcher import Batcher
from app.serving.lifecycle import Lifecycle, Phase
from app.serving.reranker import Reranker
from app.serving.turns import Line

# While the service leaves, clients and proxies have not noticed yet. During a reload, cached scores need no engine, and
# `on_overload` needs none either.
LET_THROUGH = (Phase.RELOADING, Phase.LEAVING)
RETRY_AFTER = 2


class Model:
    """Owns the engine's facts and the phase of the model. Used on the event loop only."""

    def __init__(self, name: str, lifecycle: Lifecycle, line: Line) -> None:
        """`name`: what clients call it; empty for the engine's own name."""
        self.lifecycle = lifecycle
        self.line = line
        self.reranker: Reranker | None = None
        """None before the first load."""
        self.info: EngineInfo | None = None
        """The engine's, with the name that clients use."""
        self.requests = 0
        self.reloads = 0
        self._name = name

    @property
    def own_name(self) -> str:
        """The name in RERANKER_MODELS; empty for a single model."""
        return self._name

    @property
    def name(self) -> str:
        return self._name or (self.info.model if self.info else "")

    @property
    def problem(self) -> str | None:
        """Why the model cannot be used; None if it can be."""
        if self.lifecycle.phase is Phase.READY and self.reranker and not self.reranker.batcher.alive:
            return "The inference loop has stopped"
        if self.lifecycle.phase is Phase.FAILED and self._name:
            return "The model failed and could not be loaded again"
        return self.lifecycle.problem

    @property
    def status(self) -> str:
        """`ok`, `unhealthy`, or the phase of a model that is not ready."""
        if self.problem is None:
            return "ok"
        return "unhealthy" if self.lifecycle.phase is Phase.READY else self.lifecycle.phase

    def usable_reranker(self) -> Reranker:
        """The reranker for a new request. Raises `Unavailable`."""
        self.requests += 1
        problem = None if self.lifecycle.phase in LET_THROUGH else self.problem
        if self.reranker is None or problem:
            raise Unavailable(self.explain(problem or "The model is still loading"), RETRY_AFTER)
        return self.reranker

    def explain(self, problem: str) -> str:
        """The problem, with the name of the model if there are several."""
        return f"{problem} (model {self._name!r})" if self._name else problem

    def take(self, reranker: Reranker, engine: Engine, batcher: Batcher) -> None:
        """Serve with this engine."""
        self.reranker = reranker
        reranker.take_engine(engine, batcher)
        self.info = replace(engine.info, model=self._name) if self._name else engine.info
        self.lifecycle.ready()

    def give_up(self) -> None:
        """The model cannot be loaded any more."""
        self.lifecycle.fail()

    def close(self) -> None:
        """Answer all requests that wait."""
        if self.reranker:
            self.reranker.batcher.close()
