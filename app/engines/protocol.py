"""Engines: the one seam of the service. An engine's libraries are imported only when it is chosen."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from app.engines.padding import Shape
from app.engines.probes import ProbeSet
from app.engines.schedule import Schedule
from app.engines.selftest import SelfTest
from app.types import LongDocuments, Pair, Span


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What really runs: read off the loaded engine, never off the settings."""

    model: str
    """Hub id or folder name, as reported to clients."""
    revision: str | None
    device: str
    backend: str
    precision: str
    compiled: bool
    """Whether torch.compile is proven to be at work."""
    threads: int
    max_length: int
    """Window in tokens, special tokens included."""
    activation: str
    labels: dict[int, str]
    splits: bool = False
    """Whether the engine splits a batch by length itself, and takes the next batch while one runs, so that no core
    waits for the other's last part."""

    declared_length: int | None = None
    """The window that the model declares; None where it is the same."""
    configuration: str = ""
    """How the engine computes, where the same weights can be computed in several ways."""
    long_documents: LongDocuments = "truncate"
    """How the model reads documents that are longer than its window, where neither request nor setting says so."""
    contents: str | None = None
    """A digest of the files of a model that is in a folder."""
    device_name: str | None = None
    """What a GPU calls itself."""
    device_uuid: str | None = None
    """What the driver knows it by."""
    packed: bool = False
    """Whether a batch is computed without padding, all pairs in one row."""

    @property
    def mixes(self) -> bool:
        """Whether the lengths in a batch may differ at no cost."""
        return self.splits or self.packed

    @property
    def batches_at_once(self) -> int:
        """Batches that may be scored side by side, each from its own thread: on a GPU the next one is launched while
        one runs."""
        return 2 if self.splits or self.device.startswith("cuda") else 1

    def summary(self) -> dict[str, Any]:
        """The short form, for `/health` and the metrics."""
        names = (
            "model",
            "revision",
            "device",
            "backend",
            "precision",
            "configuration",
            "compiled",
            "threads",
            "max_length",
        )
        return {name: getattr(self, name) for name in names}

    @property
    def fingerprint(self) -> str:
        """All that a logit depends on besides the texts."""
        return repr(
            (
                self.model,
                self.revision,
                self.contents,
                self.backend,
                self.precision,
                self.configuration,
                self.max_length,
            )
        )


class Engine(Protocol):
    """A loaded cross-encoder. `encode`, `windows` and `activate` may be called from any thread, the rest from one
    thread only, `score` from as many as the engine takes batches at once."""

    info: EngineInfo
    schedule: Schedule
    """How its work is laid out. Setting it may reload the model."""
    probes: ProbeSet | None
    """Reference logits of the model, where there are any."""
    self_test: SelfTest | None
    """How near the engine came to them when it was loaded; None before it was tested."""

    def encode(self, query: str, documents: Sequence[str], max_tokens_per_doc: int | None = None) -> list[Pair]:
        """Token ids of each pair, at most `engine.max_length` long."""
        ...

    def windows(self, query: str, documents: Sequence[str], max_tokens: int | None = None) -> list[list[Span]]:
        """Overlapping spans of each document that fit the model's window beside the query."""
        ...

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        """Float32 logits of one batch, in its order.

        Raises `OutOfMemory`, which `app.engines.memory` translates from the library's errors. Raises `EngineBroken` if
        the engine must be loaded again. Any other error fails this batch only.
        """
        ...

    def shapes(self) -> list[Shape]:
        """Shapes of padded batches that meet every width that the engine serves, and every number of rows."""
        ...

    def padded_tokens(self, lengths: Sequence[int]) -> int:
        """Tokens that the engine computes for a batch of pairs of these lengths, padding included."""
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

    def cancel(self) -> None:
        """Stop running inferences where the engine can, so that a hung one lets go of its thread and its memory.

        Called from any thread, once, before the engine is thrown away.
        """
        ...
