"""The OpenVINO engine: an exported model on the CPU. It does not import torch."""

import logging
import threading
from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import openvino as ov

from app.engines.exported import ExportedEngine
from app.engines.memory import out_of_memory
from app.engines.models.artefact import Precision
from app.engines.openvino_model import Arithmetic, Configuration, compile_model, configurations
from app.engines.openvino_streams import Inputs, Rows, Streams, StreamsBroken
from app.engines.padding import Shape, bucket_length, pad, shapes
from app.engines.schedule import Schedule
from app.engines.segments import divided, lay_out, row_length, shared_rows
from app.errors import EngineBroken, StartupError
from app.machine.threads import start_threads
from app.types import Pair

log = logging.getLogger(__name__)

# Small parts that run in parallel, one on each stream, are as fast as large parts that run one after another.
PART_TOKENS, BATCH_TOKENS_PER_THREAD = 384, 1024
MOST_TESTED_TOKENS = 2048

# Read one tensor now, on one thread. OpenVINO sets up its use of numpy when a tensor's data is first read. If two
# threads do that first read at the same time, they deadlock: one waits for the interpreter lock, and the other holds
# the lock while it waits for the set-up.
_ = ov.Tensor(np.zeros(1, np.float32)).data

PRECISIONS: dict[Arithmetic, Precision] = {"bf16": "bf16", "f16": "fp16", "f32": "fp32"}


class OpenVinoEngine(ExportedEngine):
    """Owns the compiled model and its streams. Logits are always float32."""

    def __init__(
        self,
        folder: Path,
        max_length: int | None,
        threads: int,
        cache: Path | None = None,
        configuration: Configuration | None = None,
    ) -> None:
        """Load an exported model. `cache` is a folder for compiled code. Raises `StartupError`."""
        super().__init__(folder, max_length)
        manifest = self._manifest
        configuration = configuration or configurations(manifest.precision, self._max_length)[0]
        self._compile = partial(compile_model, folder, manifest, self._max_length, configuration, threads, cache)
        self.info = self._describe(
            device="cpu",
            backend="openvino",
            precision="int8" if manifest.precision == "int8" else PRECISIONS[configuration.arithmetic],
            configuration=str(configuration),
            threads=threads,
            splits=True,
            shares_prefixes=manifest.shares_prefixes,
        )
        self._schedule = Schedule(
            streams=threads, part_tokens=PART_TOKENS, batch_tokens=BATCH_TOKENS_PER_THREAD * threads
        )
        self._threads = start_threads(threads, "stream")
        self._opening = threading.Lock()
        self._streams: Streams | None = Streams(self._compile(self._schedule.streams), self._threads)

    @property
    def schedule(self) -> Schedule:
        return self._schedule

    @schedule.setter
    def schedule(self, schedule: Schedule) -> None:
        if schedule.streams != self._schedule.streams:
            self._streams = None
            self._threads.shutdown()
            self._threads = start_threads(schedule.streams, "stream")
        self._schedule = schedule
        self._ready_streams()

    def _ready_streams(self) -> Streams:
        """The open streams. If they are broken, compiles the model again. Raises `StartupError`."""
        with self._opening:
            if self._streams is not None and self._streams.broken:
                log.warning("An inference failed: compiling the model again")
                self._streams = None  # release its memory first
            if self._streams is None:
                self._streams = Streams(self._compile(self._schedule.streams), self._threads)
            return self._streams

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        try:
            return self._score(pairs)
        except StreamsBroken:
            return self._score(pairs)  # on new streams

    def _score(self, pairs: Sequence[Pair]) -> list[float]:
        logits = np.zeros(len(pairs), np.float32)
        split = self._parts(pairs)
        with out_of_memory(["alloc"]):
            try:
                streams = self._ready_streams()
            except StartupError as error:
                # The model compiled before, so only memory can be missing now, whatever the message says.
                raise EngineBroken(f"After a failed inference: {error}.") from error
            running = [streams.submit(self._pad, [[pairs[index] for index in row] for row in part]) for part in split]
            for part, inference in zip(split, running, strict=True):
                logits[list(chain(*part))] = inference.result()
        scores: list[float] = logits.tolist()
        return scores

    def _parts(self, pairs: Sequence[Pair]) -> list[list[list[int]]]:
        """The inferences of a batch: rows of indices. A row that several pairs share is an inference by itself."""
        shared = self._shared_rows(pairs)
        left = sorted(set(range(len(pairs))).difference(*shared)) if shared else range(len(pairs))
        split = parts([pairs[index].length for index in left], self._schedule.part_tokens or PART_TOKENS)
        return [[row] for row in shared] + [[[left[index]] for index in part] for part in split]

    def _shared_rows(self, pairs: Sequence[Pair]) -> list[list[int]]:
        return shared_rows(pairs, self._schedule.streams) if self.info.shares_prefixes else []

    def _pad(self, rows: Rows) -> Inputs:
        width = self._width(max(row_length(row) for row in rows))
        if self._manifest.shares_prefixes:
            return Inputs(*lay_out(rows, self._manifest.pad_token_id, width))
        return Inputs(pad([pair for [pair] in rows], self._manifest.pad_token_id, width))

    def padded_tokens(self, pairs: Sequence[Pair]) -> list[int]:
        # The padded width of a pair in its own row depends only on its own length.
        tokens = [self._width(pair.length) for pair in pairs]
        for row in self._shared_rows(pairs):
            own = [pairs[index] for index in row]
            for index, part in zip(row, divided(own, self._width(row_length(own))), strict=True):
                tokens[index] = part
        return tokens

    def _width(self, length: int) -> int:
        """The width of a row. A shared row may be longer than the window, which each of its pairs fits."""
        width = bucket_length(length)
        return min(width, self.info.max_length) if length <= self.info.max_length else width

    def shapes(self) -> list[Shape]:
        # Very large parts are left out: the self-test would take seconds for each.
        return shapes(self.info.max_length, min(self._schedule.part_tokens or PART_TOKENS, MOST_TESTED_TOKENS))

    def clear_memory(self) -> None:
        pass  # the plugin keeps memory for each shape, and there are few shapes

    def cancel(self) -> None:
        if self._streams is not None:
            self._streams.cancel()


def parts(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Split a batch into parts of at most `tokens` padded tokens, longest pairs first.

    Takes the lengths of the pairs and returns their indices. All pairs of a part are padded to the same width, so the
    width of a pair does not depend on the rest of the batch.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    split: list[list[int]] = []
    while order:
        width = bucket_length(lengths[order[0]])
        rows = [index for index in order[: max(1, tokens // width)] if bucket_length(lengths[index]) == width]
        split.append(rows)
        order = order[len(rows) :]
    return split
