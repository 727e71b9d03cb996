"""An exported model, compiled by OpenVINO's CPU plugin in one of several configurations."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import openvino as ov
from filelock import FileLock

from app.engines.models.artefact import MODEL_FILES, Manifest, Precision
from app.engines.models.shared_weights import joined
from app.engines.openvino_attention import MOST_TOKENS, expand_attention
from app.engines.openvino_gated import keep_gates_apart
from app.errors import StartupError
from app.machine.hardware import cpu_features

log = logging.getLogger(__name__)

Arithmetic = Literal["bf16", "f16", "f32"]

# How long a start waits for another one that compiles the same model. Then it compiles without the cache.
COMPILE_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Configuration:
    """How the plugin computes a model."""

    arithmetic: Arithmetic
    """The arithmetic of all operations that are not int8."""
    fused: bool = True
    """Whether attention to all tokens is compiled into one kernel, and operations on single elements into others."""

    def __str__(self) -> str:
        return f"{self.arithmetic} arithmetic{'' if self.fused else ', attention not fused'}"

    @property
    def folder(self) -> str:
        """A name for compiled code. The plugin's own cache ignores whether operations are fused."""
        return f"{self.arithmetic}-{'fused' if self.fused else 'single'}"

    def options(self) -> dict[str, str]:
        """Properties of the plugin."""
        fusing = {} if self.fused else {"SNIPPETS_MODE": "DISABLE"}
        return {"INFERENCE_PRECISION_HINT": self.arithmetic, **fusing}

    def expands_attention(self, max_length: int) -> bool:
        """Whether attention is computed as in `app.engines.openvino_attention`: not in f16, where exp overflows.

        For pairs of more than `MOST_TOKENS` tokens this is only the attention to tokens nearby.
        """
        if max_length > MOST_TOKENS:
            return self.fused and self.arithmetic != "f16"
        return not self.fused and self.arithmetic == "bf16"

    def splits_gates(self, threads: int, streams: int) -> bool:
        """Whether the plugin would fuse gated layers for fewer threads than they need: see `keep_gates_apart`."""
        return self.arithmetic != "f32" and threads < 2 * streams and "amx_bf16" in cpu_features()


# The slowest configuration. It depends on the fewest kernels.
EXACT = Configuration("f32", fused=False)


def configurations(weights: Precision, max_length: int) -> list[Configuration]:
    """The configurations that this CPU has instructions for, probably the fastest first. Raises `StartupError`.

    For pairs of more than `MOST_TOKENS` tokens only the fused attention is fast. The other forms store the scores of
    all pairs of tokens: 4 GB for one pair of 8,192 tokens and 16 heads. They are the last resort there.
    """
    plain = [Configuration("f32"), EXACT]
    if weights == "fp32":
        return plain
    fusing: tuple[bool, ...] = (True, False)
    if max_length > MOST_TOKENS:
        fusing = (True,)
    elif "amx_bf16" in cpu_features():
        # There the fused attention is slower, and in int8 models it is wrong at a width of 32: see docs/engines.md.
        fusing = (False,) if weights == "int8" else (False, True)
    return [Configuration(half, fused) for half in _halves(weights) for fused in fusing] + plain


def _halves(weights: Precision) -> Iterator[Arithmetic]:
    capabilities = _capabilities(_core())
    if "BF16" in capabilities:
        yield "bf16"
    # On a CPU with bf16, f16 is more exact, but only as fast if the CPU has f16 tiles (AMX).
    if "FP16" in capabilities and weights != "int8" and ("BF16" not in capabilities or "amx_fp16" in cpu_features()):
        yield "f16"


def compile_model(
    folder: Path,
    manifest: Manifest,
    max_length: int,
    configuration: Configuration,
    threads: int,
    cache: Path | None,
    streams: int,
) -> ov.CompiledModel:
    """Compile the model in `folder` for pairs of up to `max_length` tokens. `cache` is a folder for compiled code.

    Raises `StartupError`.
    """
    core = _core()
    options = {
        **configuration.options(),
        "NUM_STREAMS": str(streams),
        "INFERENCE_NUM_THREADS": str(threads),
        # With pinning, all replicas on one host would use the same cores.
        "ENABLE_CPU_PINNING": "NO",
        # Compiled operations that each stream keeps. More of them are no faster and take tens of megabytes.
        "CPU_RUNTIME_CACHE_CAPACITY": "100",
    }
    file = folder / MODEL_FILES["openvino"]
    try:
        model = _read(core, file, manifest.weights) if manifest.weights else str(file)
        expands, splits = configuration.expands_attention(max_length), configuration.splits_gates(threads, streams)
        if expands or splits:
            read = core.read_model(model) if isinstance(model, str) else model
            is_expanded = expands and expand_attention(read, max_length) > 0
            if splits:
                keep_gates_apart(read)
            # The plugin's cache finds an unchanged file sooner than the model that was read from it.
            model = read if is_expanded or splits else model
        if cache is not None:
            try:
                return _compile_once(core, model, options, cache / configuration.folder)
            except (RuntimeError, OSError) as error:
                # The folder may be read-only, or another process may compile for too long. This start is slower.
                log.info("Compiling without the cache %s: %s", cache, _last_line(error))
        return core.compile_model(model, "CPU", options)
    except (RuntimeError, OSError) as error:
        raise StartupError(f"{file} cannot be compiled: {_last_line(error)}") from error


def _compile_once(core: ov.Core, model: str | ov.Model, options: dict[str, str], folder: Path) -> ov.CompiledModel:
    """Compile with the compiled code in `folder`, or put it there. Raises `RuntimeError` and `OSError`."""
    folder.mkdir(parents=True, exist_ok=True)
    # OpenVINO writes a file of compiled code in place. The kernel kills a process that reads it too early (SIGBUS).
    with FileLock(folder / "lock", timeout=COMPILE_SECONDS):
        return core.compile_model(model, "CPU", {**options, "CACHE_DIR": str(folder)})


def _core() -> ov.Core:
    try:
        return ov.Core()
    except RuntimeError as error:
        raise StartupError(f"OpenVINO cannot be loaded: {_last_line(error)}") from error


def _capabilities(core: ov.Core) -> list[str]:
    try:
        return list(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    except RuntimeError as error:
        raise StartupError(f"OpenVINO's CPU plugin cannot be loaded: {_last_line(error)}") from error


def _read(core: ov.Core, file: Path, weights: str) -> ov.Model:
    """A model that shares the weights of a checkpoint: see `app.engines.models.shared_weights`."""
    data = joined(file.parent / weights, file.with_suffix(".bin"))
    return core.read_model(file.read_bytes(), ov.Tensor(data))


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]
