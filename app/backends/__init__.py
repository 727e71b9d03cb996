"""Engines: the one seam of the service. An engine's libraries are imported only when it is chosen."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from app.backends.model_source import locate_model
from app.config import Settings
from app.tokenization import Pair


@dataclass(frozen=True, slots=True)
class Engine:
    """What really runs: read off the loaded engine, never off the settings."""

    model: str
    """Hub id or folder name, as reported to clients."""
    revision: str | None
    device: str
    backend: str
    precision: str
    compiled: bool
    threads: int
    max_length: int
    """Window in tokens, special tokens included."""
    activation: str
    labels: dict[int, str]

    def summary(self) -> dict[str, Any]:
        """The short form, for `/health` and the metrics."""
        names = ("model", "revision", "device", "backend", "precision", "compiled", "threads", "max_length")
        return {name: getattr(self, name) for name in names}

    @property
    def fingerprint(self) -> str:
        """All that a logit depends on besides the texts."""
        return repr((self.model, self.revision, self.backend, self.precision, self.max_length))


class Scorer(Protocol):
    """A loaded cross-encoder. `encode` and `activate` may be called from any thread, the rest from one thread only."""

    engine: Engine

    def encode(self, query: str, documents: Sequence[str], max_tokens_per_doc: int | None = None) -> list[Pair]:
        """Token ids of each pair, at most `engine.max_length` long."""
        ...

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        """Float32 logits of one batch, in its order. Raises `OutOfMemory`; anything else is a failed batch."""
        ...

    def activate(self, logits: Sequence[float]) -> list[float]:
        """The model's own activation, in float32."""
        ...

    def warm_up(self) -> None:
        """Run a few small batches, so that the first request does not pay for it."""
        ...

    def clear_memory(self) -> None:
        """Give cached device memory back."""
        ...


def load_scorer(settings: Settings) -> Scorer:
    """Load the engine that the settings ask for. Raises `StartupError`."""
    source = locate_model(settings.model, settings.revision)
    from app.backends.torch import TorchScorer

    return TorchScorer(
        source,
        device=settings.device,
        max_length=settings.max_length,
        threads=settings.threads,
        compiled=settings.torch_compile,
        trust_remote_code=settings.trust_remote_code,
    )
