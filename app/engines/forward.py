"""The forward pass of a torch model: on padded batches, and compiled."""

import logging
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any, Protocol

import torch
from sentence_transformers import CrossEncoder
from torch._dynamo.utils import counters

from app.engines.checkpoint import positive_label
from app.engines.packing import alike, to_device
from app.engines.padding import pad
from app.engines.scorer import Scorer, one_logit
from app.errors import first_line
from app.types import Pair

log = logging.getLogger(__name__)

TENSOR_NAMES = ("input_ids", "attention_mask", "token_type_ids")


class Forward(Protocol):
    """A forward pass: `Padded`, `Library` or `app.engines.packing.Packed`."""

    packed: bool
    """Whether a batch is computed without padding."""

    def __call__(self, pairs: Sequence[Pair]) -> torch.Tensor:
        """Logits, shape (pairs,), in the model's precision."""
        ...

    def compile(self) -> None:
        """Compile it. The first calls take long."""
        ...

    def restore(self) -> None:
        """Undo `compile`."""
        ...


class Padded:
    """One row for each pair, padded on the right to the longest pair."""

    packed = False

    def __init__(self, scorer: Scorer, names: Sequence[str], pad_token_id: int, device: torch.device) -> None:
        """`names`: the tensors that the model takes."""
        self._scorer, self._names, self._pad_token_id, self._device = scorer, names, pad_token_id, device

    def __call__(self, pairs: Sequence[Pair]) -> torch.Tensor:
        arrays = pad(pairs, self._pad_token_id)
        logits: torch.Tensor = self._scorer(**{name: to_device(arrays[name], self._device) for name in self._names})
        return logits.reshape(len(pairs))

    def compile(self) -> None:
        self._scorer.compile(dynamic=True)

    def restore(self) -> None:
        self._scorer._compiled_call_impl = None


class Library:
    """The forward pass of sentence-transformers, for models that no `Scorer` fits."""

    packed = False

    def __init__(self, model: CrossEncoder, features: Mapping[str, Any]) -> None:
        """`features`: the result of the model's own preprocessing for one pair."""
        self.names = [name for name in TENSOR_NAMES if name in features]
        self._others = {name: value for name, value in features.items() if name not in TENSOR_NAMES}
        self._model, self._positive = model, positive_label(model)

    def __call__(self, pairs: Sequence[Pair]) -> torch.Tensor:
        tokenizer = self._model.tokenizer
        arrays = pad(pairs, tokenizer.pad_token_id or 0, left=tokenizer.padding_side == "left")
        tensors = {name: to_device(arrays[name], self._model.device) for name in self.names}
        scores: torch.Tensor = one_logit(self._model(tensors | self._others)["scores"], self._positive)
        return scores.reshape(len(pairs))

    def compile(self) -> None:
        self._model.compile(dynamic=True)

    def restore(self) -> None:
        self._model._compiled_call_impl = None


def compile_forward(
    forward: Forward, dtype: torch.dtype, probe: Sequence[Pair], batches: Sequence[Sequence[Pair]]
) -> bool:
    """Compile the forward pass, and run it on `batches`. Returns whether it is compiled and gives the same logits.

    On a failure it logs a warning and leaves the forward pass uncompiled. `dtype`: the model's precision.
    """
    expected = forward(probe).float()
    graphs, started = counters["stats"]["unique_graphs"], perf_counter()
    try:
        log.info("Compiling the model (ENABLE_TORCH_COMPILE): this may take a minute or two")
        forward.compile()
        for pairs in batches:
            forward(pairs)
        if counters["stats"]["unique_graphs"] == graphs:
            raise RuntimeError("torch.compile produced no graph")
        if not alike(forward(probe).float(), expected, dtype):
            raise RuntimeError("the compiled model gives different scores")
    except Exception as error:
        reason = first_line(getattr(error, "inner_exception", error))
        log.warning("ENABLE_TORCH_COMPILE is ignored, the model runs uncompiled: %s", reason)
        forward.restore()
        return False
    log.info("Compiled in %.1f s", perf_counter() - started)
    return True
