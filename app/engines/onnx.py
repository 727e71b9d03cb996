"""The ONNX Runtime engine: an exported model on the CPU, or on CUDA with the GPU build of ONNX Runtime."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from app.engines.exported import ExportedEngine
from app.engines.memory import out_of_memory
from app.engines.models.artefact import MODEL_FILES
from app.engines.padding import Shape, common_shapes, pad
from app.engines.schedule import Schedule
from app.errors import StartupError, first_line
from app.types import Pair

log = logging.getLogger(__name__)

CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 1024, 16384
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


class OnnxEngine(ExportedEngine):
    """Owns the session. Logits are always float32."""

    def __init__(self, folder: Path, max_length: int | None, threads: int, device: str = "cpu") -> None:
        """Load an exported model; `device` is `auto`, `cpu` or `cuda[:N]`. Raises `StartupError`."""
        super().__init__(folder, max_length)
        self._session = _open(folder / MODEL_FILES["onnx"], threads, device)
        self._inputs = [node.name for node in self._session.get_inputs()]
        on_gpu = self._session.get_providers()[0] == CUDA
        number = device.partition(":")[2] or "0"
        memory = f"gpu:{number}" if on_gpu else "cpu:0"
        # Otherwise the memory arena never shrinks below the largest batch so far.
        self._options = ort.RunOptions()
        self._options.add_run_config_entry("memory.enable_memory_arena_shrinkage", memory)
        # int8 rounds activations with one scale for the whole batch. Pairs are computed one by one, so that the score
        # of a pair does not depend on the rest of its batch.
        self._rows_at_once = 1 if self._manifest.precision == "int8" else None
        self.schedule = Schedule(batch_tokens=GPU_BATCH_TOKENS if on_gpu else CPU_BATCH_TOKENS)
        self.info = self._describe(
            device=f"cuda:{number}" if on_gpu else "cpu",
            backend="onnx",
            precision=self._manifest.precision,
            threads=threads,
        )

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        rows = self._rows_at_once or len(pairs)
        return [logit for first in range(0, len(pairs), rows) for logit in self._infer(pairs[first : first + rows])]

    def _infer(self, pairs: Sequence[Pair]) -> list[float]:
        arrays = pad(pairs, self._manifest.pad_token_id)
        with out_of_memory(["alloc"]):
            [logits] = self._session.run(None, {name: arrays[name] for name in self._inputs}, self._options)
        scores: list[float] = np.asarray(logits, np.float32).reshape(-1).tolist()
        return scores

    def shapes(self) -> list[Shape]:
        return common_shapes(self.info.max_length, self.schedule.batch_tokens)

    def padded_tokens(self, pairs: Sequence[Pair]) -> list[int]:
        lengths = [pair.length for pair in pairs]
        return lengths if self._rows_at_once == 1 else [max(lengths)] * len(lengths)

    def clear_memory(self) -> None:
        pass  # every run shrinks the arena

    def cancel(self) -> None:
        self._options.terminate = True


def check_device(device: str) -> None:
    """Raises `StartupError` if this ONNX Runtime has no support for the device."""
    if device.startswith("cuda") and CUDA not in ort.get_available_providers():
        raise StartupError(
            f"RERANKER_DEVICE={device}: this ONNX Runtime supports only {', '.join(ort.get_available_providers())}. "
            "Replace it with onnxruntime-gpu"
        )


def _open(model: Path, threads: int, device: str) -> ort.InferenceSession:
    """A session on the device's provider. Raises `StartupError` instead of falling back to another provider."""
    check_device(device)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    number = device.partition(":")[2] or "0"
    on_gpu = device.startswith("cuda") or (device == "auto" and CUDA in ort.get_available_providers())
    providers: list[str | tuple[str, dict[str, str]]] = [(CUDA, {"device_id": number}), CPU] if on_gpu else [CPU]
    try:
        session = ort.InferenceSession(str(model), options, providers=providers)
    except Exception as error:  # its exceptions have no common base class
        raise StartupError(f"{model} cannot be loaded: {first_line(error)}") from error
    if device.startswith("cuda") and session.get_providers()[0] != CUDA:
        raise StartupError(f"RERANKER_DEVICE={device}: ONNX Runtime fell back to {session.get_providers()[0]}")
    return session
