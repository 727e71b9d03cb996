"""Choose and load the engine for a model: `load_engine()`."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, cast

from app import __version__
from app.config import Settings
from app.engines.models.artefact import MANIFEST, Backend, Manifest, Precision, is_artefact
from app.engines.models.hub import check_source
from app.engines.models.source import ModelSource, digest, locate_model
from app.engines.models.store import exported_folder, failed_exports, find_or_export
from app.engines.protocol import Engine
from app.engines.schedule import Schedule
from app.engines.tuning import Candidate, TuningFile, tune
from app.errors import InvalidRequest, NotStored, StartupError
from app.machine.hardware import cpu_features, cpu_name, has_gpu

if TYPE_CHECKING:
    from app.engines.openvino_model import Configuration

log = logging.getLogger(__name__)


def load_engine(settings: Settings) -> Engine:
    """Load the model on the engine that the settings name, or else on the best one. Raises `StartupError`."""
    source = locate_model(settings.model, settings.revision, settings.template)
    candidates = list(_candidates(source, settings))
    if settings.precision != "auto" and len(settings.schedule(splits=True)) == len(Schedule.model_fields):
        # Nothing is left to the measurement, which is not the same on each machine: equal CPUs then compute equally.
        candidates = [replace(candidate, is_measured=False) for candidate in candidates]
    store = settings.store
    file = TuningFile(store / "schedules", *_identity(source, settings))
    engine = tune(candidates, lambda engine: settings.schedule(engine.info.splits), file)
    engine.info = replace(engine.info, failed_exports=failed_exports(source, store))
    if settings.instruction is not None and engine.info.instruction is None:
        raise StartupError(f"RERANKER_INSTRUCTION={settings.instruction!r}: {engine.info.model} takes none. Unset it")
    try:
        engine.encode("", [""], None, settings.instruction)
    except InvalidRequest as error:
        raise StartupError(f"RERANKER_INSTRUCTION: {error.args[0]}") from None
    return engine


def described(settings: Settings, model: str, threads: int) -> str:
    """How another process loads another model, for `load_described`. What fits only the weights of one is left out."""
    shared = "backend", "precision", "device", "max_length", "export_dir", "trust_remote_code", "allow_pickle"
    return Settings(**{name: getattr(settings, name) for name in shared}, model=model, threads=threads).model_dump_json(
        include={*shared, "model", "threads"}
    )


def load_described(settings: str) -> Engine:
    """The engine of a model that `described` describes. Raises `StartupError`."""
    return load_engine(Settings.model_validate_json(settings))


def precisions_to_compare(settings: Settings) -> list[str]:
    """The precisions worth comparing on this machine. Only that of the settings if it is fixed, or has no choice."""
    source = locate_model(settings.model, settings.revision, settings.template)
    is_export = source.is_local and is_artefact(Path(source.location))
    if settings.precision != "auto" or is_export or settings.backend == "torch":
        return [settings.precision]
    if settings.backend == "auto" and _is_for_torch(settings):
        return ["auto"]
    return list(cpu_precisions("onnx" if settings.backend == "onnx" else "openvino"))


def load_artefact(folder: Path, max_length: int | None, threads: int, is_exact: bool = False) -> Engine:
    """Load an exported model on the CPU with its engine, without a self-test. Raises `StartupError`.

    `is_exact`: use float32 arithmetic if the engine has a choice.
    """
    if Manifest.read(folder).backend == "onnx":
        return _load_onnx(folder, max_length, threads, "cpu")
    from app.engines.openvino import OpenVinoEngine
    from app.engines.openvino_model import EXACT

    return OpenVinoEngine(folder, max_length, threads, configuration=EXACT if is_exact else None)


def _load_onnx(folder: Path, max_length: int | None, threads: int, device: str) -> Engine:
    if find_spec("onnxruntime") is None:
        raise StartupError(
            "RERANKER_BACKEND=onnx: onnxruntime is not installed. Set RERANKER_INSTALL=full to install it"
        )
    from app.engines.onnx import OnnxEngine

    return OnnxEngine(folder, max_length, threads, device)


def _identity(source: ModelSource, settings: Settings) -> tuple[object, ...]:
    """Everything that a tuning depends on."""
    requested = settings.backend, settings.precision, settings.device, settings.torch_compile, settings.max_length
    layout = settings.threads, settings.batch_tokens, settings.streams, settings.part_tokens
    return (
        __version__,
        source.name,
        source.revision,
        source.template,
        # Without the manifest: a calibration of the scores changes it, and must not lead to other arithmetic.
        digest(source.location, without=MANIFEST),
        *requested,
        *layout,
        cpu_name(),
    )


def _candidates(source: ModelSource, settings: Settings) -> Iterator[Candidate]:
    """The ways to serve the model, probably the best first. Raises `StartupError` if the settings contradict it."""
    if source.is_local and is_artefact(Path(source.location)):
        export = _own_export(source, settings)
        yield from _ways_to_load(export, _window(export, settings), settings)
        return
    backend = settings.backend
    if backend == "auto":
        backend = "torch" if _is_for_torch(settings) else "openvino"
    if backend == "torch":
        yield Candidate("torch", partial(_load_torch, source, settings))
        return
    if settings.device not in ("auto", "cpu") and backend == "openvino":
        raise StartupError(f"RERANKER_BACKEND=openvino runs on the CPU, not on RERANKER_DEVICE={settings.device}")
    if backend == "onnx" and find_spec("onnxruntime"):
        from app.engines.onnx import check_device

        check_device(settings.device)  # an export takes minutes
    exports = list(_exports(source, backend, settings))
    has_fallback = settings.backend == "auto" and settings.precision != "int8" and find_spec("torch") is not None
    try:
        window = _window(exports[0], settings)
        for export in exports:
            yield from _ways_to_load(export, window, settings)
    except StartupError as error:
        if not has_fallback:
            raise
        log.warning("Not used: %s", error)
    if has_fallback:
        yield Candidate("torch", partial(_fall_back_to_torch, source, settings, exports), is_measured=False)


@dataclass
class _Export:
    """An export of the model. It may not exist yet."""

    backend: Backend
    precision: Precision
    find: Callable[[], Path]
    """Finds its folder, or exports the model. Raises `StartupError`."""
    is_measured: bool = True
    error: StartupError | None = None

    def folder(self) -> Path:
        """Like `find`, but several candidates share an export, and one that failed is not tried again."""
        if self.error is not None:
            raise self.error
        try:
            return self.find()
        except StartupError as error:
            self.error = error
            raise


def _own_export(source: ModelSource, settings: Settings) -> _Export:
    """The model is an export. Raises `StartupError` if the settings ask for another engine."""
    folder = Path(source.location)
    manifest = Manifest.read(folder)
    backend, precision, device = settings.backend, settings.precision, settings.device
    problem = ""
    if backend not in ("auto", manifest.backend):
        problem = f"RERANKER_BACKEND={backend}: {source.name} is an export for {manifest.backend}"
    elif manifest.backend == "openvino" and device not in ("auto", "cpu"):
        problem = f"RERANKER_DEVICE={device}: {source.name} is an export for OpenVINO, which runs on the CPU"
    if problem:
        raise StartupError(f"{problem}. Unset it, or set RERANKER_MODEL to the original model")
    if precision not in ("auto", manifest.precision):
        log.warning(
            "RERANKER_PRECISION=%s has no effect: %s is an export in %s", precision, source.name, manifest.precision
        )
    return _Export(manifest.backend, manifest.precision, lambda: folder)


def _exports(source: ModelSource, backend: Backend, settings: Settings) -> Iterator[_Export]:
    """The exports to choose from, in the precisions that suit this CPU.

    The speed of the preferred one is always measured. The others are measured only if they exist, because an export
    takes minutes.
    """
    is_fixed = settings.precision != "auto"
    precisions = [cast(Precision, settings.precision)] if is_fixed else cpu_precisions(backend)
    store = settings.store
    for precision in precisions:
        wanted = source, backend, precision, store
        is_measured = precision == precisions[0] or is_artefact(exported_folder(*wanted))
        yield _Export(backend, precision, partial(find_or_export, *wanted, settings.allow_pickle), is_measured)


def _window(export: _Export, settings: Settings) -> int:
    """The longest pair in tokens. Exports the model if necessary; 0 if that fails, which loading will report."""
    try:
        declared = Manifest.read(export.folder()).max_length
    except StartupError:
        return 0
    return min(settings.max_length or declared, declared)


def _ways_to_load(export: _Export, window: int, settings: Settings) -> Iterator[Candidate]:
    """One candidate for ONNX Runtime, or one for each configuration that OpenVINO can compute the export in."""
    if export.backend == "onnx":
        limits = settings.max_length, settings.threads, settings.device
        yield Candidate(f"onnx {export.precision}", lambda: _load_onnx(export.folder(), *limits), export.is_measured)
        return
    from app.engines.openvino_model import EXACT, configurations

    possible = configurations(export.precision, window)
    for configuration in possible:
        # On a CPU with AMX, float32 arithmetic is several times slower. On other CPUs it can be the faster one.
        is_slow = export.precision == "bf16" and configuration.arithmetic == "f32" and "amx_bf16" in cpu_features()
        yield Candidate(
            f"openvino {export.precision}, {configuration}",
            partial(_load_openvino_export, export, settings, configuration),
            export.is_measured and not is_slow and configuration != EXACT,
        )


def _load_openvino_export(export: _Export, settings: Settings, configuration: "Configuration") -> Engine:
    from app.engines.openvino import OpenVinoEngine

    cache = settings.store / "compiled"
    return OpenVinoEngine(export.folder(), settings.max_length, settings.threads, cache, configuration)


def _is_for_torch(settings: Settings) -> bool:
    """Whether the settings need torch: for a GPU, for torch.compile, or for fp16 on a CPU."""
    gpu = settings.device not in ("auto", "cpu") or (settings.device == "auto" and _torch_has_gpu())
    if not gpu and (settings.torch_compile or settings.precision == "fp16"):
        reason = "ENABLE_TORCH_COMPILE" if settings.torch_compile else "RERANKER_PRECISION=fp16"
        log.warning("%s needs torch, which is slower on a CPU than OpenVINO", reason)
        return True
    return gpu


def _torch_has_gpu() -> bool:
    """Whether torch can use a GPU. Logs a warning if the machine has a GPU that torch cannot use."""
    if not has_gpu():
        return False
    if find_spec("torch") is None:
        log.warning(
            "This machine has a GPU, but torch is not installed: using the CPU. Set RERANKER_INSTALL=full to install it"
        )
        return False
    from app.engines.torch_device import pick_device

    if pick_device("auto").type != "cpu":
        return True
    log.warning("This machine has a GPU, but the installed torch cannot use it: using the CPU")
    return False


def _fall_back_to_torch(source: ModelSource, settings: Settings, exports: list[_Export]) -> Engine:
    """Raises `NotStored` if an export only needs a folder or space: torch would hide that."""
    for export in exports:
        if isinstance(export.error, NotStored):
            raise export.error
    log.warning("Falling back to torch, which is slower on a CPU")
    return _load_torch(source, settings)


def _load_torch(source: ModelSource, settings: Settings) -> Engine:
    if find_spec("torch") is None:
        raise StartupError("RERANKER_BACKEND=torch: torch is not installed. Set RERANKER_INSTALL=full to install it")
    if settings.precision == "int8":
        raise StartupError("RERANKER_PRECISION=int8 needs RERANKER_BACKEND=openvino or onnx")
    check_source(source, settings.allow_pickle)
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
    """The precisions of an export, probably the best for this CPU first."""
    features = cpu_features()
    has_int8, has_bf16 = features & {"avx512_vnni", "avx_vnni", "amx_int8"}, features & {"avx512_bf16", "amx_bf16"}
    if backend == "onnx":
        return ["int8", "fp32"] if has_int8 else ["fp32", "int8"]
    # On AMX, bf16 is nearly as fast as int8 and more exact.
    float_weights: Precision = "bf16" if has_bf16 else "fp32"
    return [float_weights, "int8"] if "amx_bf16" in features or not has_int8 else ["int8", float_weights]
