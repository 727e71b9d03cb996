"""The streams of a compiled OpenVINO model: inferences that run at the same time."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import NamedTuple

import numpy as np
import openvino as ov

from app.engines.padding import Floats, Int64s
from app.types import Pair


class Inputs(NamedTuple):
    """The arrays of one inference."""

    arrays: dict[str, Int64s]
    ends: Int64s | None = None
    """Where the pairs' logits are in the flat output. None if it has one logit for each pair."""


Rows = Sequence[Sequence[Pair]]
MakeInputs = Callable[[Rows], Inputs]


class StreamsBroken(Exception):
    """The inference of another batch failed meanwhile."""


class Streams:
    """A compiled model with one inference request for each thread, so that every stream runs one inference.

    A failed inference leaves its stream in an undefined state, where later inferences fail too. The streams are then
    `broken`, and the model must be compiled again.
    """

    def __init__(self, model: ov.CompiledModel, threads: Executor) -> None:
        self.broken = False
        self._model = model
        self._inputs = [name for node in model.inputs for name in node.names]
        self._threads = threads
        self._request = threading.local()
        self._requests: list[ov.InferRequest] = []

    def submit(self, make_inputs: MakeInputs, rows: Rows) -> "Future[Floats]":
        """Logits of the pairs in these rows. `make_inputs` runs on the stream's thread."""
        return self._threads.submit(self._infer, make_inputs, rows)

    def _infer(self, make_inputs: MakeInputs, rows: Rows) -> Floats:
        if self.broken:
            raise StreamsBroken("another batch failed: the model is compiled again")
        arrays, ends = make_inputs(rows)
        try:
            if not hasattr(self._request, "it"):
                self._request.it = self._model.create_infer_request()
                self._requests.append(self._request.it)
            self._request.it.infer({name: arrays[name] for name in self._inputs})
        except RuntimeError:
            self.broken = True
            raise
        logits = np.array(self._request.it.get_output_tensor(0).data, np.float32).reshape(-1)
        return logits if ends is None else logits[ends]

    def cancel(self) -> None:
        """Stop the running inferences after their current operation."""
        for request in self._requests:
            request.cancel()
