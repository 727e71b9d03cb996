"""The OpenVINO engine: an exported model on the CPU, without torch."""

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from functools import partial
from pathlib import Path

import numpy as np
import openvino as ov
from tokenizers import Tokenizer

from app.backends import Engine
from app.backends.artefact import MODEL_FILES, Manifest
from app.backends.batch import ACTIVATIONS, Floats, Int64s, pad, warm_up_pairs
from app.backends.model_source import digest
from app.backends.schedule import Schedule
from app.errors import EngineBroken, OutOfMemory, StartupError
from app.threads import start_threads
from app.tokenization import Pair, PairTokenizer

log = logging.getLogger(__name__)

# The plugin keeps compiled code for each shape it has seen, so shapes are few: lengths in steps, rows as a part holds.
# Small parts run side by side, one on each stream, as fast as large ones run one after the other, and hardly pad.
SHORT, SHORT_STEP, LONG_STEP = 128, 16, 32
PART_TOKENS, BATCH_TOKENS_PER_THREAD = 384, 1024


class OpenVinoScorer:
    """Owns the compiled model and its streams. Logits are float32 whatever the model computes in."""

    def __init__(self, folder: Path, max_length: int, threads: int, cache: Path | None = None) -> None:
        """Load an exported model. `cache` keeps compiled code for the next start. Raises `StartupError`."""
        manifest = Manifest.read(folder)
        limit = min(max_length, manifest.max_length)
        self._pad_token_id = manifest.pad_token_id
        self._activation = ACTIVATIONS[manifest.activation]
        tokenizer = PairTokenizer(Tokenizer.from_file(str(folder / "tokenizer.json")), limit)
        self.encode, self.windows = tokenizer.encode, tokenizer.windows
        self._compile = partial(_compile, folder / MODEL_FILES["openvino"], manifest, threads, cache)
        self.engine = Engine(
            model=manifest.model,
            revision=manifest.revision,
            contents=digest(folder),
            device="cpu",
            backend="openvino",
            precision=manifest.precision,
            compiled=False,
            threads=threads,
            max_length=limit,
            activation=manifest.activation,
            labels=manifest.labels,
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
                log.warning("An inference failed: compiling the model anew")
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
        width = min(bucket_length(max(pair.length for pair in pairs)), self.engine.max_length)
        return pad(pairs, self._pad_token_id, width)

    def padded_tokens(self, lengths: Sequence[int]) -> int:
        """Of all parts."""
        shapes = ((len(part), max(lengths[index] for index in part)) for part in self._parts(lengths))
        return sum(rows * min(bucket_length(longest), self.engine.max_length) for rows, longest in shapes)

    def activate(self, logits: Sequence[float]) -> list[float]:
        """The model's own activation, in float32."""
        activated: list[float] = self._activation(np.array(logits, np.float32)).tolist()
        return activated

    def warm_up(self) -> None:
        """Run a few lengths once."""
        for pair in warm_up_pairs(self._pad_token_id, self.engine.max_length):
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
            raise OutOfMemory("Another batch did not fit the machine's memory, and the model is compiled anew")
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
    """Split a batch, given by its pairs' lengths, into parts of at most so many padded tokens; longest first."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    split: list[list[int]] = []
    while order:
        rows = max(1, tokens // bucket_length(lengths[order[0]]))
        split.append(order[:rows])
        order = order[rows:]
    return split


def bucket_length(length: int) -> int:
    """The next of the lengths that parts are padded to."""
    step = SHORT_STEP if length <= SHORT else LONG_STEP
    return -(-length // step) * step


def _compile(model: Path, manifest: Manifest, threads: int, cache: Path | None, streams: int) -> ov.CompiledModel:
    try:
        core = ov.Core()
        capable = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    except RuntimeError as error:
        raise StartupError(f"OpenVINO's CPU plugin cannot be loaded: {str(error).strip().splitlines()[-1]}") from error
    # An int8 model keeps some operations in floating point: those run in bf16 where the CPU has it.
    half = manifest.precision != "fp32" and "BF16" in capable
    options = {
        "INFERENCE_PRECISION_HINT": "bf16" if half else "f32",
        "NUM_STREAMS": str(streams),
        "INFERENCE_NUM_THREADS": str(threads),
        # Pinning is for a machine of one's own: replicas on one host would all take the same cores.
        "ENABLE_CPU_PINNING": "NO",
        # Compiled operations that each stream keeps; more are no faster here and take tens of megabytes.
        "CPU_RUNTIME_CACHE_CAPACITY": "100",
    }
    if cache is not None:
        try:
            return core.compile_model(str(model), "CPU", {**options, "CACHE_DIR": str(cache)})
        except RuntimeError as error:
            # Another process that compiles the same model, a folder that cannot be written: slower, no failure.
            log.info("Compiling without the cache %s: %s", cache, str(error).strip().splitlines()[-1])
    try:
        return core.compile_model(str(model), "CPU", options)
    except RuntimeError as error:
        raise StartupError(f"{model} cannot be compiled: {str(error).strip().splitlines()[-1]}") from error
