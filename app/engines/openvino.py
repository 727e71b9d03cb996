"""The OpenVINO engine: an exported model on the CPU, without torch."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import openvino as ov
from tokenizers import Tokenizer

from app.engines.models.artefact import MODEL_FILES, Manifest, Precision
from app.engines.models.shared_weights import joined
from app.engines.models.source import digest
from app.engines.padding import ACTIVATIONS, Floats, Int64s, Shape, bucket_length, pad, shapes, warm_up_pairs
from app.engines.protocol import EngineInfo
from app.engines.schedule import Schedule
from app.engines.selftest import SelfTest
from app.engines.tokenization import PairTokenizer
from app.errors import EngineBroken, OutOfMemory, StartupError
from app.machine.hardware import cpu_features
from app.machine.threads import start_threads
from app.types import Pair

log = logging.getLogger(__name__)

# Small parts run side by side, one on each stream, as fast as large ones run one after the other.
PART_TOKENS, BATCH_TOKENS_PER_THREAD = 384, 1024
MOST_TESTED_TOKENS = 2048

# The first access to an array sets up OpenVINO's use of numpy. Two threads that are the first at once block each other
# for ever: one waits for the interpreter's lock, the other one has it and waits for the set-up.
_ = ov.Tensor(np.zeros(1, np.float32)).data

Arithmetic = Literal["bf16", "f16", "f32"]
PRECISIONS: dict[Arithmetic, Precision] = {"bf16": "bf16", "f16": "fp16", "f32": "fp32"}


@dataclass(frozen=True, slots=True)
class Configuration:
    """How the plugin computes a model."""

    arithmetic: Arithmetic
    """Of all that is not int8."""
    fused: bool = True
    """Whether attention and what surrounds it are compiled into fused kernels."""

    def __str__(self) -> str:
        return f"{self.arithmetic} arithmetic{'' if self.fused else ', attention not fused'}"

    def options(self) -> dict[str, str]:
        """Properties of the plugin."""
        fusing = {} if self.fused else {"SNIPPETS_MODE": "DISABLE"}
        return {"INFERENCE_PRECISION_HINT": self.arithmetic, **fusing}


# The slowest, and the one that depends on the fewest kernels.
EXACT = Configuration("f32", fused=False)


def configurations(weights: Precision) -> list[Configuration]:
    """Those that this CPU has instructions for, likely the fastest first. Raises `StartupError`."""
    plain = [Configuration("f32"), EXACT]
    if weights == "fp32":
        return plain
    return [Configuration(half, fused) for half in _halves(weights) for fused in (True, False)] + plain


def _halves(weights: Precision) -> Iterator[Arithmetic]:
    capabilities = _capabilities(_core())
    if "BF16" in capabilities:
        yield "bf16"
    # Where there is bf16, f16 is as fast only with tiles for it, and more exact.
    if "FP16" in capabilities and weights != "int8" and ("BF16" not in capabilities or "amx_fp16" in cpu_features()):
        yield "f16"


class OpenVinoEngine:
    """Owns the compiled model and its streams. Logits are float32 whatever the model computes in."""

    def __init__(
        self,
        folder: Path,
        max_length: int | None,
        threads: int,
        cache: Path | None = None,
        configuration: Configuration | None = None,
    ) -> None:
        """Load an exported model. `cache` keeps compiled code for the next start. Raises `StartupError`."""
        manifest = Manifest.read(folder)
        limit = min(max_length or manifest.max_length, manifest.max_length)
        configuration = configuration or configurations(manifest.precision)[0]
        self._pad_token_id = manifest.pad_token_id
        self._activation = ACTIVATIONS[manifest.activation]
        tokenizer = PairTokenizer(Tokenizer.from_file(str(folder / "tokenizer.json")), limit)
        self.encode, self.windows = tokenizer.encode, tokenizer.windows
        self._compile = partial(_compile, folder, manifest, configuration, threads, cache)
        self.probes = manifest.probes
        self.self_test: SelfTest | None = None
        is_int8 = manifest.precision == "int8"
        self.info = EngineInfo(
            model=manifest.model,
            revision=manifest.revision,
            contents=digest(folder),
            device="cpu",
            backend="openvino",
            precision="int8" if is_int8 else PRECISIONS[configuration.arithmetic],
            configuration=str(configuration),
            compiled=False,
            threads=threads,
            max_length=limit,
            declared_length=manifest.max_length,
            activation=manifest.activation,
            labels=manifest.labels,
            long_documents=manifest.long_documents,
            splits=True,
        )
        self._schedule = Schedule(
            streams=threads, part_tokens=PART_TOKENS, batch_tokens=BATCH_TOKENS_PER_THREAD * threads
        )
        self._threads = start_threads(threads, "stream")
        self._opening = threading.Lock()
        self._streams: _Streams | None = _Streams(self._compile(self._schedule.streams), self._threads)

    @property
    def schedule(self) -> Schedule:
        """How batches are split, and over how many streams."""
        return self._schedule

    @schedule.setter
    def schedule(self, schedule: Schedule) -> None:
        if schedule.streams != self._schedule.streams:
            self._streams = None
            self._threads.shutdown()
            self._threads = start_threads(schedule.streams, "stream")
        self._schedule = schedule
        self._ready_streams()

    def _ready_streams(self) -> "_Streams":
        """Those that are open; where they failed the model is compiled anew, which takes a moment.

        Raises `StartupError`.
        """
        with self._opening:
            if self._streams is not None and self._streams.broken:
                log.warning("An inference failed: compiling the model again")
                self._streams = None  # its memory first
            if self._streams is None:
                self._streams = _Streams(self._compile(self._schedule.streams), self._threads)
            return self._streams

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        """Float32 logits of one batch, whose parts run on all streams at once. Raises `OutOfMemory`, `EngineBroken`."""
        logits = np.zeros(len(pairs), np.float32)
        split = self._parts([pair.length for pair in pairs])
        try:
            streams = self._ready_streams()
            running = [streams.submit(self._pad, [pairs[index] for index in part]) for part in split]
            for part, inference in zip(split, running, strict=True):
                logits[part] = inference.result()
        except StartupError as error:
            # It compiled before: what is missing now is memory, whatever the message says.
            raise EngineBroken(f"After a failed inference: {error}.") from error
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, MemoryError) or "alloc" in str(error):
                raise OutOfMemory("The batch does not fit the machine's memory") from error
            raise
        scores: list[float] = logits.tolist()
        return scores

    def _parts(self, lengths: Sequence[int]) -> list[list[int]]:
        return parts(lengths, self._schedule.part_tokens or PART_TOKENS)

    def _pad(self, pairs: Sequence[Pair]) -> dict[str, Int64s]:
        width = min(bucket_length(max(pair.length for pair in pairs)), self.info.max_length)
        return pad(pairs, self._pad_token_id, width)

    def padded_tokens(self, lengths: Sequence[int]) -> int:
        """The padded width of a pair depends only on its own length."""
        return sum(min(bucket_length(length), self.info.max_length) for length in lengths)

    def shapes(self) -> list[Shape]:
        """The shapes of the parts that the schedule allows, but for very large ones, which take seconds."""
        return shapes(self.info.max_length, min(self._schedule.part_tokens or PART_TOKENS, MOST_TESTED_TOKENS))

    def activate(self, logits: Sequence[float]) -> list[float]:
        """The model's own activation, in float32."""
        activated: list[float] = self._activation(np.array(logits, np.float32)).tolist()
        return activated

    def warm_up(self) -> None:
        """Run a few lengths once."""
        for pair in warm_up_pairs(self._pad_token_id, self.info.max_length):
            self.score([pair])

    def clear_memory(self) -> None:
        """Nothing to give back: what the plugin keeps is bounded by the number of shapes."""

    def cancel(self) -> None:
        """Running inferences end after the operation they are at."""
        if self._streams is not None:
            self._streams.cancel()


class _Streams:
    """A compiled model, and for each thread an inference request, so that one runs on each stream of it.

    An inference that failed leaves its stream in a state where later ones fail too, or worse: it is `broken` then.
    """

    def __init__(self, model: ov.CompiledModel, threads: Executor) -> None:
        self.broken = False
        self._model = model
        self._inputs = [name for node in model.inputs for name in node.names]
        self._threads = threads
        self._request = threading.local()
        self._requests: list[ov.InferRequest] = []

    def submit(self, make: Callable[[Sequence[Pair]], dict[str, Int64s]], pairs: Sequence[Pair]) -> "Future[Floats]":
        """Logits of one part, whose inputs are made on the stream's thread."""
        return self._threads.submit(self._infer, make, pairs)

    def _infer(self, make: Callable[[Sequence[Pair]], dict[str, Int64s]], pairs: Sequence[Pair]) -> Floats:
        if self.broken:
            raise OutOfMemory("Another batch did not fit the machine's memory, and the model is compiled again")
        arrays = make(pairs)
        try:
            if not hasattr(self._request, "it"):
                self._request.it = self._model.create_infer_request()
                self._requests.append(self._request.it)
            self._request.it.infer({name: arrays[name] for name in self._inputs})
        except RuntimeError:
            self.broken = True
            raise
        return np.array(self._request.it.get_output_tensor(0).data, np.float32).reshape(-1)

    def cancel(self) -> None:
        """End what runs after the operation that it is at."""
        for request in self._requests:
            request.cancel()


def parts(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Split a batch, given by its pairs' lengths, into parts of at most so many padded tokens; longest first.

    A part has pairs of one width only: what a pair is padded to does not depend on the others of its batch.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    split: list[list[int]] = []
    while order:
        width = bucket_length(lengths[order[0]])
        rows = [index for index in order[: max(1, tokens // width)] if bucket_length(lengths[index]) == width]
        split.append(rows)
        order = order[len(rows) :]
    return split


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


def _compile(
    folder: Path, manifest: Manifest, configuration: Configuration, threads: int, cache: Path | None, streams: int
) -> ov.CompiledModel:
    core = _core()
    options = {
        **configuration.options(),
        "NUM_STREAMS": str(streams),
        "INFERENCE_NUM_THREADS": str(threads),
        # Pinning is for a machine of one's own: replicas on one host would all take the same cores.
        "ENABLE_CPU_PINNING": "NO",
        # Compiled operations that each stream keeps; more are no faster here and take tens of megabytes.
        "CPU_RUNTIME_CACHE_CAPACITY": "100",
    }
    file = folder / MODEL_FILES["openvino"]
    try:
        model = _read(core, file, manifest.weights) if manifest.weights else str(file)
        if cache is not None:
            try:
                return core.compile_model(model, "CPU", {**options, "CACHE_DIR": str(cache)})
            except RuntimeError as error:
                # Another process that compiles the same model, a folder that cannot be written: slower, no failure.
                log.info("Compiling without the cache %s: %s", cache, _last_line(error))
        return core.compile_model(model, "CPU", options)
    except (RuntimeError, OSError) as error:
        raise StartupError(f"{file} cannot be compiled: {_last_line(error)}") from error


def _read(core: ov.Core, file: Path, weights: str) -> ov.Model:
    """A model that shares the weights of a checkpoint: see `app.engines.models.shared_weights`."""
    data = joined(file.parent / weights, file.with_suffix(".bin"))
    return core.read_model(file.read_bytes(), ov.Tensor(data))


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]
