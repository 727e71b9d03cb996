"""The interface of an engine. The libraries of an engine are imported only when it is chosen."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from app.engines.models.artefact import ScoreCalibration
from app.engines.padding import Shape
from app.engines.probes import ProbeSet
from app.engines.schedule import Schedule
from app.engines.selftest import SelfTest
from app.engines.template import Template
from app.types import Evidence, LongDocuments, Pair, Span

Activate = Callable[[Sequence[float]], list[float]]


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Facts about a loaded engine. They are read from the engine, never from the settings."""

    model: str
    """Hub id or folder name, as clients see it."""
    revision: str | None
    device: str
    backend: str
    precision: str
    compiled: bool
    """Whether the model runs through torch.compile. This is checked at start."""
    threads: int
    max_length: int
    """Window in tokens, special tokens included."""
    activation: str
    labels: dict[int, str]
    splits: bool = False
    """Whether the engine splits a batch by length itself. It then takes the next batch while one runs, so no core waits
    for the last part of another."""
    declared_length: int | None = None
    """The window that the model declares. None if it equals `max_length`."""
    configuration: str = ""
    """How the engine computes, if it has several ways for the same weights."""
    long_documents: LongDocuments = "truncate"
    """How the model reads documents that exceed its window, unless the request or a setting decides it."""
    fusion: Evidence = "off"
    """What the model's order should consider besides its scores, unless the request or a setting decides it."""
    languages: tuple[str, ...] = ()
    """Codes of the languages that the model reads. Empty if it does not declare them."""
    template: Template | None = None
    """The text that the model reads around a pair. None for special tokens only."""
    score_calibration: ScoreCalibration | None = None
    """Applied to a logit before the activation. None for the model's own scores."""
    contents: str | None = None
    """A digest of the model's files. None for a model from the hub."""
    device_name: str | None = None
    """Name of the GPU."""
    device_uuid: str | None = None
    """UUID of the GPU."""
    packed: bool = False
    """Whether a batch is computed without padding, with all pairs in one row."""
    shares_prefixes: bool = False
    """Whether the first tokens that pairs of a request share are read once: see `app.engines.segments`."""

    failed_exports: tuple[str, ...] = ()
    """Why the model could not be exported, if that was tried."""

    @property
    def instruction(self) -> str | None:
        """The model's own instruction. None if it takes none."""
        return self.template.instruction if self.template else None

    @property
    def mixes(self) -> bool:
        """Whether a batch may mix lengths without extra cost."""
        return self.splits or self.packed

    @property
    def batches_at_once(self) -> int:
        """How many threads may call `score` at the same time. On a GPU, one batch is launched while another runs."""
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
        """Everything that a logit depends on, except the texts. Cached scores are kept under it."""
        return repr(
            (
                self.model,
                self.revision,
                self.contents,
                self.backend,
                self.precision,
                self.configuration,
                self.max_length,
                *((self.template.text,) if self.template else ()),
            )
        )


class Engine(Protocol):
    """A loaded cross-encoder.

    Any thread may call `encode`, `windows`, `activate` and `cancel`. Up to `info.batches_at_once` threads may call
    `score` at the same time. Only one thread may call the others.
    """

    info: EngineInfo
    schedule: Schedule
    """How batches are formed and split. Setting it may load the model again."""
    probes: ProbeSet | None
    """Reference logits of the model, if it has any."""
    self_test: SelfTest | None
    """Result of the comparison with the reference logits. None before the test."""

    def encode(
        self,
        query: str,
        documents: Sequence[str],
        max_tokens_per_doc: int | None = None,
        instruction: str | None = None,
    ) -> list[Pair]:
        """Token ids of each pair, at most `info.max_length` long. `instruction`: None for the model's own."""
        ...

    def windows(
        self, query: str, documents: Sequence[str], max_tokens: int | None = None, instruction: str | None = None
    ) -> list[list[Span]]:
        """Overlapping spans of each document. Each span fits the model's window together with the query."""
        ...

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        """Float32 logits of one batch, in its order.

        Raises `OutOfMemory`, which `app.engines.memory` translates from the library's errors. Raises `EngineBroken` if
        the engine must be loaded again. Any other error fails this batch only.
        """
        ...

    def shapes(self) -> list[Shape]:
        """Shapes of padded batches for the self-test.

        An engine that takes any shape returns a selection.
        """
        ...

    def padded_tokens(self, pairs: Sequence[Pair]) -> list[int]:
        """Tokens that the engine computes for each pair of a batch, including padding and its part of a shared row."""
        ...

    @property
    def activate(self) -> Activate:
        """From logits to relevance scores, in float32: the model's own activation, of calibrated logits if the export
        has them. The function does not hold the model.
        """
        ...

    def warm_up(self) -> float:
        """Run a few small batches. The first batch of a shape is slow.

        Returns the tokens per second of the last one, or 0 if that is unknown.
        """
        ...

    def clear_memory(self) -> None:
        """Return cached memory to the device."""
        ...

    def cancel(self) -> None:
        """Stop the running inferences, if the engine can. A hung inference then releases its thread and its memory.

        Any thread calls this once, before the engine is discarded.
        """
        ...
