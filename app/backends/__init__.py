"""Engines: the one seam of the service. An engine's libraries are imported only when it is chosen."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from app.backends.artefact import Backend, Manifest, Precision, is_artefact
from app.backends.model_source import ModelSource, locate_model
from app.backends.schedule import Schedule, arrange
from app.backends.store import find_or_export
from app.config import Settings
from app.errors import StartupError, UnusableModel
from app.hardware import cpu_features, has_gpu
from app.tokenization import LongDocuments, Pair, Span

log = logging.getLogger(__name__)


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
    """Whether torch.compile is proven to be at work."""
    threads: int
    max_length: int
    """Window in tokens, special tokens included."""
    activation: str
    labels: dict[int, str]
    splits: bool = False
    """Whether the engine splits a batch by length itself, and takes the next batch while one runs, so that no core
    waits for the other's last part."""

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
        names = ("model", "revision", "device", "backend", "precision", "compiled", "threads", "max_length")
        return {name: getattr(self, name) for name in names}

    @property
    def fingerprint(self) -> str:
        """All that a logit depends on besides the texts."""
        return repr((self.model, self.revision, self.contents, self.backend, self.precision, self.max_length))


class Scorer(Protocol):
    """A loaded cross-encoder. `encode`, `windows` and `activate` may be called from any thread, the rest from one
    thread only, `score` from as many as the engine takes batches at once."""

    engine: Engine
    schedule: Schedule
    """How its work is laid out. Setting it may reload the model."""

    def encode(self, query: str, documents: Sequence[str], max_tokens_per_doc: int | None = None) -> list[Pair]:
        """Token ids of each pair, at most `engine.max_length` long."""
        ...

    def windows(self, query: str, documents: Sequence[str], max_tokens: int | None = None) -> list[list[Span]]:
        """Overlapping spans of each document that fit the model's window beside the query."""
        ...

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        """Float32 logits of one batch, in its order. Raises `OutOfMemory`, or `EngineBroken` when only
        loading the engine again helps; anything else is a failed batch."""
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

        Called from any thread, once, before the scorer is thrown away.
        """
        ...


def load_artefact(
    folder: Path, max_length: int, threads: int, device: str = "cpu", cache: Path | None = None
) -> Scorer:
    """Load an exported model with the engine it was exported for. Raises `StartupError`."""
    if Manifest.read(folder).backend == "onnx":
        if find_spec("onnxruntime") is None:
            raise StartupError("RERANKER_BACKEND=onnx: onnxruntime is not installed; RERANKER_INSTALL=full installs it")
        from app.backends.onnx import OnnxScorer

        return OnnxScorer(folder, max_length, threads, device)
    from app.backends.openvino import OpenVinoScorer

    return OpenVinoScorer(folder, max_length, threads, cache)


def load_scorer(settings: Settings) -> Scorer:
    """Load the model on the engine that the settings ask for, or on the fastest there is. Raises `StartupError`."""
    scorer = _load_engine(settings)
    if scorer.engine.device != "mps":
        arrange(scorer, settings.schedule(scorer.engine.splits), settings.export_dir.expanduser() / "schedules")
    return scorer


def _load_engine(settings: Settings) -> Scorer:
    source = locate_model(settings.model, settings.revision)
    if source.is_local and is_artefact(Path(source.location)):
        return _load_exported(Path(source.location), settings)
    backend = settings.backend
    if backend == "auto":
        backend = "torch" if _is_for_torch(settings) else "openvino"
    if backend == "torch":
        return _load_torch(source, settings)
    if settings.device not in ("auto", "cpu") and backend == "openvino":
        raise StartupError(f"RERANKER_BACKEND=openvino runs on the CPU, not on RERANKER_DEVICE={settings.device}")
    precision = best_cpu_precision(backend) if settings.precision == "auto" else settings.precision
    try:
        store = settings.export_dir.expanduser()
        return _load_exported(find_or_export(source, backend, precision, settings.max_length, store), settings)
    except UnusableModel:
        raise
    except StartupError as error:
        if settings.backend != "auto" or find_spec("torch") is None:
            raise
        log.warning("Going on with torch, which is slower on a CPU: %s", error)
        return _load_torch(source, settings)


def _is_for_torch(settings: Settings) -> bool:
    """Whether something is asked for that only torch has: a GPU, its compiler, its half precision on any CPU."""
    gpu = settings.device not in ("auto", "cpu") or (settings.device == "auto" and _torch_has_gpu())
    if not gpu and (settings.torch_compile or settings.precision == "fp16"):
        reason = "ENABLE_TORCH_COMPILE" if settings.torch_compile else "RERANKER_PRECISION=fp16"
        log.warning("%s needs torch, which is slower on a CPU than OpenVINO", reason)
        return True
    return gpu


def _torch_has_gpu() -> bool:
    """Whether torch can use a GPU; where there is one that it cannot use, the log says so."""
    if not has_gpu():
        return False
    if find_spec("torch") is None:
        log.warning("There is a GPU, and torch, which would use it, is not installed: going on with the CPU")
        return False
    from app.backends.torch import pick_device

    if pick_device("auto").type != "cpu":
        return True
    log.warning("There is a GPU, and the torch that is installed cannot use it: going on with the CPU")
    return False


def _load_exported(folder: Path, settings: Settings) -> Scorer:
    compiled = settings.export_dir.expanduser() / "compiled"
    return load_artefact(folder, settings.max_length, settings.threads, settings.device, compiled)


def _load_torch(source: ModelSource, settings: Settings) -> Scorer:
    if find_spec("torch") is None:
        raise StartupError("RERANKER_BACKEND=torch: torch is not installed; RERANKER_INSTALL=full installs it")
    if settings.precision == "int8":
        raise StartupError("RERANKER_PRECISION=int8 needs RERANKER_BACKEND=openvino or onnx")
    from app.backends.torch import TorchScorer

    return TorchScorer(
        source,
        device=settings.device,
        max_length=settings.max_length,
        threads=settings.threads,
        precision=settings.precision,
        compiled=settings.torch_compile,
        trust_remote_code=settings.trust_remote_code,
        allow_pickle=settings.allow_pickle,
    )


def best_cpu_precision(backend: Backend) -> Precision:
    """The fastest that this CPU has instructions for."""
    features = cpu_features()
    if features & {"avx512_vnni", "avx_vnni", "amx_int8"}:
        return "int8"
    return "bf16" if backend == "openvino" and features & {"avx512_bf16", "amx_bf16"} else "fp32"
