"""Which engine serves the settings' model, and how: `load_engine()`."""

import logging
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, cast

from app import __version__
from app.config import Settings
from app.engines.models.artefact import Backend, Manifest, Precision, is_artefact
from app.engines.models.source import ModelSource, digest, locate_model
from app.engines.models.store import exported_folder, find_or_export
from app.engines.protocol import Engine
from app.engines.tuning import Candidate, TuningFile, tune
from app.errors import StartupError
from app.machine.hardware import cpu_features, cpu_name, has_gpu

if TYPE_CHECKING:
    from app.engines.openvino_model import Configuration

log = logging.getLogger(__name__)


def load_engine(settings: Settings) -> Engine:
    """Load the model on the engine that the settings ask for, or on the best one there is. Raises `StartupError`."""
    source = locate_model(settings.model, settings.revision)
    candidates = list(_candidates(source, settings))
    file = TuningFile(settings.export_dir.expanduser() / "schedules", *_identity(source, settings))
    return tune(candidates, lambda engine: settings.schedule(engine.info.splits), file)


def load_artefact(folder: Path, max_length: int | None, threads: int, is_exact: bool = False) -> Engine:
    """Load an exported model on the CPU with the engine it was exported for, untested. Raises `StartupError`.

    `is_exact`: in float32 arithmetic, where the engine can choose.
    """
    if Manifest.read(folder).backend == "onnx":
        return _load_onnx(folder, max_length, threads, "cpu")
    from app.engines.openvino import OpenVinoEngine
    from app.engines.openvino_model import EXACT

    return OpenVinoEngine(folder, max_length, threads, configuration=EXACT if is_exact else None)


def _load_onnx(folder: Path, max_length: int | None, threads: int, device: str) -> Engine:
    if find_spec("onnxruntime") is None:
        raise StartupError("RERANKER_BACKEND=onnx: onnxruntime is not installed; RERANKER_INSTALL=full installs it")
    from app.engines.onnx import OnnxEngine

    return OnnxEngine(folder, max_length, threads, device)


def _identity(source: ModelSource, settings: Settings) -> tuple[object, ...]:
    """All that a tuning depends on."""
    asked = settings.backend, settings.precision, settings.device, settings.torch_compile, settings.max_length
    layout = settings.threads, settings.batch_tokens, settings.streams, settings.part_tokens
    return __version__, source.name, source.revision, digest(source.location), *asked, *layout, cpu_name()


def _candidates(source: ModelSource, settings: Settings) -> Iterator[Candidate]:
    """The ways to serve the model, likely the best first. Raises `StartupError` for what cannot be served."""
    if source.is_local and is_artefact(Path(source.location)):
        folder = Path(source.location)
        yield from _of_artefact(folder, Manifest.read(folder), settings)
        return
    backend = settings.backend
    if backend == "auto":
        backend = "torch" if _is_for_torch(settings) else "openvino"
    if backend == "torch":
        yield Candidate("torch", partial(_load_torch, source, settings))
        return
    if settings.device not in ("auto", "cpu") and backend == "openvino":
        raise StartupError(f"RERANKER_BACKEND=openvino runs on the CPU, not on RERANKER_DEVICE={settings.device}")
    has_fallback = settings.backend == "auto" and settings.precision != "int8" and find_spec("torch") is not None
    try:
        yield from _exported(source, backend, settings)
    except StartupError as error:
        if not has_fallback:
            raise
        log.warning("Not used: %s", error)
    if has_fallback:
        yield Candidate("torch", partial(_fall_back_to_torch, source, settings), is_measured=False)


def _exported(source: ModelSource, backend: Backend, settings: Settings) -> Iterator[Candidate]:
    """The exports of the model: those that are there, and what this CPU prefers, which is made when it is loaded."""
    chosen = settings.precision != "auto"
    precisions = [cast(Precision, settings.precision)] if chosen else cpu_precisions(backend)
    store = settings.export_dir.expanduser()
    for precision in precisions:
        wanted = source, backend, precision, store
        is_ready = precision == precisions[0] or is_artefact(exported_folder(*wanted))
        folder = _Once(partial(find_or_export, *wanted))
        if backend == "onnx":
            yield Candidate(f"onnx {precision}", partial(_load_from, folder, settings), is_ready)
        else:
            yield from _configured(folder, precision, settings, is_ready)


def _of_artefact(folder: Path, manifest: Manifest, settings: Settings) -> Iterator[Candidate]:
    if manifest.backend == "onnx":
        yield Candidate(f"onnx {manifest.precision}", partial(_load_from, _Once(lambda: folder), settings))
    else:
        yield from _configured(_Once(lambda: folder), manifest.precision, settings, is_ready=True)


def _configured(folder: "_Once", precision: Precision, settings: Settings, is_ready: bool) -> Iterator[Candidate]:
    """What OpenVINO can compute an export in."""
    from app.engines.openvino import OpenVinoEngine
    from app.engines.openvino_model import EXACT, configurations

    cache = settings.export_dir.expanduser() / "compiled"
    possible = configurations(precision)
    for configuration in possible:

        def load(configuration: "Configuration" = configuration) -> Engine:
            return OpenVinoEngine(folder(), settings.max_length, settings.threads, cache, configuration)

        # Where there is half precision, float weights in float32 are several times slower.
        is_slow = precision == "bf16" and configuration.arithmetic == "f32" != possible[0].arithmetic
        yield Candidate(
            f"openvino {precision}, {configuration}", load, is_ready and not is_slow and configuration != EXACT
        )


class _Once:
    """Finds or makes an export when it is first called; an export that failed is not tried again."""

    def __init__(self, find: Callable[[], Path]) -> None:
        self._find = find
        self._error: StartupError | None = None

    def __call__(self) -> Path:
        if self._error is not None:
            raise self._error
        try:
            return self._find()
        except StartupError as error:
            self._error = error
            raise


def _load_from(folder: "_Once", settings: Settings) -> Engine:
    return _load_onnx(folder(), settings.max_length, settings.threads, settings.device)


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
    from app.engines.torch_device import pick_device

    if pick_device("auto").type != "cpu":
        return True
    log.warning("There is a GPU, and the torch that is installed cannot use it: going on with the CPU")
    return False


def _fall_back_to_torch(source: ModelSource, settings: Settings) -> Engine:
    log.warning("Going on with torch, which is slower on a CPU")
    return _load_torch(source, settings)


def _load_torch(source: ModelSource, settings: Settings) -> Engine:
    if find_spec("torch") is None:
        raise StartupError("RERANKER_BACKEND=torch: torch is not installed; RERANKER_INSTALL=full installs it")
    if settings.precision == "int8":
        raise StartupError("RERANKER_PRECISION=int8 needs RERANKER_BACKEND=openvino or onnx")
    from app.engines.torch import TorchEngine

    return TorchEngine(
        source,
        device=settings.device,
        max_length=settings.max_length,
        threads=settings.threads,
        precision=settings.precision,
        compiled=settings.torch_compile,
        trust_remote_code=settings.trust_remote_code,
        allow_pickle=settings.allow_pickle,
    )


def cpu_precisions(backend: Backend) -> list[Precision]:
    """What an export may be in, likely the best for this CPU first.

    On AMX bf16 is as fast as int8, and more exact.
    """
    features = cpu_features()
    has_int8, has_bf16 = features & {"avx512_vnni", "avx_vnni", "amx_int8"}, features & {"avx512_bf16", "amx_bf16"}
    if backend == "onnx":
        return ["int8", "fp32"] if has_int8 else ["fp32", "int8"]
    float_weights: Precision = "bf16" if has_bf16 else "fp32"
    return [float_weights, "int8"] if "amx_bf16" in features or not has_int8 else ["int8", float_weights]
