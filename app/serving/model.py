"""One served model. Its engine is loaded, reloaded and unloaded; its cache, its settings and its requests stay."""

import asyncio
import math
from dataclasses import replace
from time import monotonic
from types import TracebackType

from app.engines.protocol import Engine, EngineInfo
from app.engines.unloaded import Unloaded
from app.errors import QueueFull, Unavailable
from app.serving.batcher import Batcher
from app.serving.lifecycle import Lifecycle, Phase
from app.serving.reranker import Reranker
from app.serving.turns import Line

# While the service leaves, clients and proxies have not noticed yet. During a reload, cached scores need no engine, and
# `on_overload` needs none either.
LET_THROUGH = (Phase.RELOADING, Phase.LEAVING)
RETRY_AFTER = 2
MAX_RETRY_AFTER = 60


class Model:
    """Owns whether the model is in memory, and who uses it: `with model:` keeps it there. Event loop only."""

    def __init__(self, name: str, lifecycle: Lifecycle, line: Line) -> None:
        """`name`: what clients call it; empty for the engine's own name."""
        self.lifecycle = lifecycle
        self.line = line
        self.reranker: Reranker | None = None
        """None before the first load."""
        self.info: EngineInfo | None = None
        """The engine's, with the name that clients use."""
        self.requests = 0
        self.loads = 0
        self.reloads = 0
        self.waiting = 0
        """Requests that wait for a load."""
        self._name = name
        self._users = 0
        self._last_use = monotonic()
        self._load_seconds = 0.0
        self._loaded, self._wanted = asyncio.Event(), asyncio.Event()

    @property
    def own_name(self) -> str:
        """The name in RERANKER_MODELS; empty for a single model."""
        return self._name

    @property
    def name(self) -> str:
        return self._name or (self.info.model if self.info else "")

    @property
    def is_loaded(self) -> bool:
        return self._loaded.is_set()

    @property
    def problem(self) -> str | None:
        """Why the model cannot be used; None if it can be, even if a request must load it first."""
        if self.lifecycle.phase is Phase.READY and self.reranker and self.is_loaded and not self.reranker.batcher.alive:
            return "The inference loop has stopped"
        if self.lifecycle.phase is Phase.FAILED and self._name:
            return "The model failed and could not be loaded again"
        return self.lifecycle.problem

    @property
    def status(self) -> str:
        """`ok`, `idle` (not in memory), `unhealthy`, or the phase of a model that is not ready."""
        if self.problem is None:
            return "ok" if self.is_loaded else "idle"
        return "unhealthy" if self.lifecycle.phase is Phase.READY else self.lifecycle.phase

    def usable_reranker(self) -> Reranker:
        """The reranker for a new request. Raises `Unavailable`."""
        problem = None if self.lifecycle.phase in LET_THROUGH else self.problem
        if self.reranker is None or problem:
            raise Unavailable(self.explain(problem or "The model is still loading"), RETRY_AFTER)
        return self.reranker

    def explain(self, problem: str) -> str:
        """The problem, with the name of the model if there are several."""
        return f"{problem} (model {self._name!r})" if self._name else problem

    def __enter__(self) -> "Model":
        """Use the model: it stays in memory."""
        self.requests += 1
        self._users += 1
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._users -= 1
        self._last_use = monotonic()

    async def wait_until_loaded(self, seconds: float | None) -> float | None:
        """Wait until the model is in memory, at most `seconds`. Returns the seconds that are left.

        Raises `Unavailable` if there is not enough time, and `QueueFull` if too many requests wait already.
        """
        if self.is_loaded or (reranker := self.reranker) is None:  # before the first load, the request is refused
            return seconds
        admission, limit, started = reranker.admission, seconds or reranker.limits.timeout or None, monotonic()
        if self.waiting >= max(1, admission.max_queue):
            reason = (
                f"{self.waiting} requests wait until the model is loaded (RERANKER_MAX_QUEUE={admission.max_queue})"
            )
            raise QueueFull(self.explain(reason), self._retry_after())
        patience = min(limit or math.inf, admission.queue_timeout)
        self._wanted.set()
        self.waiting += 1
        try:
            async with asyncio.timeout(patience):
                await self._loaded.wait()
        except TimeoutError:
            reason = f"The model was not in memory and could not be loaded within {patience:g} s"
            raise Unavailable(self.explain(reason), self._retry_after()) from None
        finally:
            self.waiting -= 1
        return limit and max(limit - (monotonic() - started), 0.001)

    def take(self, reranker: Reranker, engine: Engine, batcher: Batcher, seconds: float) -> None:
        """Serve with this engine, which took `seconds` to load."""
        self.reranker = reranker
        reranker.take_engine(engine, batcher)
        self.info = replace(engine.info, model=self._name) if self._name else engine.info
        self.loads += 1
        self._load_seconds, self._last_use = seconds, monotonic()
        self._wanted.clear()
        self._loaded.set()
        self.lifecycle.ready()

    def seconds_until_idle(self, seconds: float) -> float:
        """Seconds until the model has been unused for `seconds`."""
        return seconds if self._users else self._last_use + seconds - monotonic()

    def mark_unloaded(self) -> None:
        """From now on, requests wait for a load."""
        self._loaded.clear()

    def drop_engine(self) -> None:
        """Release the engine, which has stopped."""
        if self.reranker:
            engine, batcher = Unloaded(self.reranker.engine), self.reranker.batcher
            self.reranker.take_engine(engine, batcher)
            batcher.engine = engine

    async def wanted(self) -> None:
        """Wait until a request needs the model."""
        await self._wanted.wait()

    def fail(self) -> None:
        """The model cannot be loaded any more."""
        self.lifecycle.fail()
        self._loaded.set()  # requests that wait for the load get an error

    def close(self) -> None:
        """Answer all requests."""
        if self.reranker:
            self.reranker.batcher.close()
        self._loaded.set()

    def _retry_after(self) -> int:
        return min(MAX_RETRY_AFTER, max(RETRY_AFTER, math.ceil(self._load_seconds)))
