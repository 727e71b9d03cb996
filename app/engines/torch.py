"""The torch engine: any model that `sentence_transformers.CrossEncoder` loads, on CPU, CUDA or MPS."""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, cast

import numpy as np
import torch
from sentence_transformers import CrossEncoder
from tokenizers import Tokenizer
from torch._dynamo.utils import counters

from app.engines.checkpoint import load_model
from app.engines.models.artefact import shipped_probes
from app.engines.models.source import ModelSource, digest
from app.engines.packing import Packed, alike, pack, to_device
from app.engines.padding import ACTIVATIONS, Shape, common_shapes, pad
from app.engines.preprocessing import PROBE, OwnPreprocessing, plain_tokenizer
from app.engines.protocol import EngineInfo
from app.engines.schedule import Schedule
from app.engines.selftest import SelfTest
from app.errors import EngineBroken, OutOfMemory, StartupError, first_line
from app.types import Pair

log = logging.getLogger(__name__)

# Short and long rows, alone and together: what compiles or allocates for a shape does so before the first request.
WARM_UP_SHAPES = ((1, 16), (1, 128), (8, 64), (4, 256))
BATCH_TOKENS = {"cpu": 1024, "cuda": 16384, "mps": 4096}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# `auto` takes the first in which the logits are finite: fp16 is as fast as bf16 and eight times as exact, but overflows
# sooner.
PRECISIONS = {"cpu": ("fp32",), "cuda": ("fp16", "bf16", "fp32"), "mps": ("fp32",)}
TENSOR_NAMES = ("input_ids", "attention_mask", "token_type_ids")
PROBE_LENGTHS = (40, 12, 25, 64)
# What torch says of memory in errors that are not its `OutOfMemoryError`.
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED", "create a primitive")


@dataclass(frozen=True, slots=True)
class Exportable:
    """A loaded model with what its exported form has to carry."""

    model: Any
    """The `transformers` sequence classifier, one label."""
    inputs: tuple[str, ...]
    """Names of its tensors, in the order they are passed."""
    tokenizer: Tokenizer
    activation: Literal["sigmoid", "identity"]
    pad_token_id: int


class TorchEngine:
    """Owns the model. Logits are float32 whatever the model computes in."""

    def __init__(
        self,
        source: ModelSource,
        device: str,
        max_length: int | None,
        threads: int,
        precision: str = "auto",
        compiled: bool = False,
        trust_remote_code: bool = False,
        allow_pickle: bool = False,
        packed: bool | None = None,
    ) -> None:
        """Load the model. `packed`: without padding where the model can; None for CUDA only, where it is faster.

        Raises `StartupError` when device or model cannot be had.
        """
        torch.set_num_threads(threads)
        self._device = pick_device(device)
        self._launching = threading.Lock()
        self.schedule = Schedule(batch_tokens=BATCH_TOKENS[self._device.type])
        precision, self._model = _load_finite(
            precisions(self._device) if precision == "auto" else (precision,),
            partial(load_model, source, self._device, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle),
        )
        declared: int = self._model.max_seq_length
        limit = self._model.max_seq_length = min(max_length or declared, declared)
        self.probes = shipped_probes(Path(source.location)) if source.is_local else None
        self.self_test: SelfTest | None = None
        features = self._model.preprocess([PROBE])
        tokenizer = plain_tokenizer(self._model, limit, features["input_ids"][0].tolist())
        self._plain_pairs = tokenizer is not None
        preprocessing = tokenizer or OwnPreprocessing(self._model)
        self.encode, self.windows = preprocessing.encode, preprocessing.windows
        padded = Padded(self._model, features)
        self.tensor_names = padded.names
        self._forward: Padded | Packed = padded
        with self._on_device():
            if self._plain_pairs and (self._device.type == "cuda" if packed is None else packed):
                probes = [self._probe(min(length, limit)) for length in PROBE_LENGTHS]
                self._forward = pack(self._model, padded.names, probes, padded(probes).float()) or padded
            compiled = compiled and self._compile()
        self.info = EngineInfo(
            model=source.name,
            revision=getattr(self._model.config, "_commit_hash", None) or source.revision,
            contents=digest(source.location),
            device=str(self._device),
            backend="torch",
            precision=precision,
            compiled=compiled,
            threads=threads,
            max_length=limit,
            declared_length=declared,
            activation=type(self._model.activation_fn).__name__.lower(),
            labels=dict(self._model.config.id2label),
            long_documents=getattr(self._model.config, "long_documents", "truncate"),
            **_card(self._device),
            packed=self._forward.packed,
        )

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        """Float32 logits of one batch. Raises `OutOfMemory`, or `EngineBroken` when the device has failed for good.

        On CUDA two threads may call it: one launches its batch while the other waits for the logits of the one before.
        """
        with self._on_device():
            with self._launching:
                fetch = _fetch(self._forward(pairs))
            return fetch()

    def shapes(self) -> list[Shape]:
        """Any shape may come; these are some of them."""
        return common_shapes(self.info.max_length, self.schedule.batch_tokens)

    def padded_tokens(self, lengths: Sequence[int]) -> int:
        """Rows × longest row, or with packing just the tokens that there are."""
        return sum(lengths) if self.info.packed else len(lengths) * max(lengths)

    def activate(self, logits: Sequence[float]) -> list[float]:
        """The activation that the model names itself (sigmoid if it names none)."""
        return self._model.activation_fn(torch.tensor(logits, dtype=torch.float32)).tolist()  # type: ignore[no-any-return]

    def warm_up(self) -> None:
        """Run small batches of different shapes; bounded, whatever the window."""
        for rows, length in WARM_UP_SHAPES:
            self.score([self._probe(min(length, self.info.max_length))] * rows)

    def clear_memory(self) -> None:
        """Give the accelerator's cached blocks back; nothing to do on CPU."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        elif self._device.type == "mps":
            torch.mps.empty_cache()

    def cancel(self) -> None:
        """Nothing to be done: torch cannot stop what it has begun."""

    def exportable(self) -> Exportable:
        """The model with what an exported one has to carry. Raises `StartupError` when it cannot be exported."""
        if not self._plain_pairs:
            raise StartupError(f"{self.info.model} prepares its own inputs (prompts or a chat template): torch only")
        if self.info.activation not in ACTIVATIONS:
            raise StartupError(f"{self.info.model} has the activation {self.info.activation}: torch only")
        return Exportable(
            model=self._model[0].model,
            inputs=tuple(self.tensor_names),
            tokenizer=self._model.tokenizer.backend_tokenizer,
            activation=cast(Literal["sigmoid", "identity"], self.info.activation),
            pad_token_id=self._model.tokenizer.pad_token_id or 0,
        )

    def _probe(self, length: int) -> Pair:
        return self.encode(PROBE[0], [" ".join([PROBE[1]] * (length // 8 + 1))], length)[0]

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        current: AbstractContextManager[Any] = nullcontext()
        if self._device.type == "cuda":
            current = torch.cuda.device(self._device)
        with _errors_translated(), torch.inference_mode(), current:
            yield

    def _compile(self) -> bool:
        """Compile the forward pass and prove that it runs compiled; on any failure say so and go on without."""
        shapes = [[self._probe(length)] * rows for rows, length in WARM_UP_SHAPES]
        probe = [self._probe(32), self._probe(16)]
        expected = self._forward(probe).float()
        graphs, started = counters["stats"]["unique_graphs"], perf_counter()
        try:
            log.info("Compiling the model (ENABLE_TORCH_COMPILE): this may take a minute or two")
            self._forward.compile()
            for pairs in shapes:
                self._forward(pairs)
            if counters["stats"]["unique_graphs"] == graphs:
                raise RuntimeError("torch.compile produced no graph")
            if not alike(self._forward(probe).float(), expected, self._model.dtype):
                raise RuntimeError("the compiled model gives other scores")
        except Exception as error:
            reason = first_line(getattr(error, "inner_exception", error))
            log.warning("ENABLE_TORCH_COMPILE has no effect, going on uncompiled: %s", reason)
            self._forward.restore()
            return False
        log.info("Compiled in %.1f s", perf_counter() - started)
        return True


class Padded:
    """The forward pass as the model's own modules have it: a row for each pair, as long as the longest."""

    packed = False

    def __init__(self, model: CrossEncoder, features: Mapping[str, Any]) -> None:
        """`features`: what the model's own preprocessing makes of a pair."""
        self.names = [name for name in TENSOR_NAMES if name in features]
        self._others = {name: value for name, value in features.items() if name not in TENSOR_NAMES}
        self._model = model

    def __call__(self, pairs: Sequence[Pair]) -> torch.Tensor:
        """Logits, shape (pairs,), in the model's precision."""
        tokenizer = self._model.tokenizer
        arrays = pad(pairs, tokenizer.pad_token_id or 0, left=tokenizer.padding_side == "left")
        tensors = {name: to_device(arrays[name], self._model.device) for name in self.names}
        scores: torch.Tensor = self._model(tensors | self._others)["scores"]
        return scores.reshape(len(pairs))

    def compile(self) -> None:
        """Compile it; the first call pays."""
        self._model.compile(dynamic=True)

    def restore(self) -> None:
        """Go on as it was before."""
        self._model._compiled_call_impl = None


def precisions(device: torch.device) -> tuple[str, ...]:
    """What `auto` tries on a device; bf16 only where the hardware has it."""
    names = PRECISIONS[device.type]
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return tuple(name for name in names if name != "bf16")
    return names


def _card(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {}
    card = torch.cuda.get_device_properties(device)
    return {"device_name": card.name, "device_uuid": str(card.uuid)}


def _load_finite(names: Sequence[str], load: Callable[[torch.dtype], CrossEncoder]) -> tuple[str, CrossEncoder]:
    """The model in the first of the precisions that its logits do not overflow in, or in the last."""
    *tried, last = names
    for name in tried:
        model = load(DTYPES[name])
        if _is_finite(model):
            return name, model
        log.warning("In %s this model's logits are not finite: it is loaded anew in another precision", name)
        del model
    return last, load(DTYPES[last])


def _is_finite(model: CrossEncoder) -> bool:
    probes = [(PROBE[0], " ".join([PROBE[1]] * count)) for count in (1, 4)]
    logits = model.predict(probes, activation_fn=torch.nn.Identity(), show_progress_bar=False)
    return bool(np.isfinite(logits).all())


def _fetch(logits: torch.Tensor) -> Callable[[], list[float]]:
    """Float32 on its way to the host; the function waits for it, and for nothing that is launched later."""
    logits = logits.float()
    if logits.device.type != "cuda":
        return cast(Callable[[], list[float]], logits.tolist)
    host = torch.empty(logits.shape, pin_memory=True).copy_(logits, non_blocking=True)
    there = torch.cuda.Event()
    there.record()

    def wait() -> list[float]:
        there.synchronize()
        return cast(list[float], host.tolist())

    return wait


def pick_device(requested: str) -> torch.device:
    """The device to run on; `auto` takes the best there is, anything else must exist. Raises `StartupError`."""
    if requested == "auto":
        best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return pick_device(best)
    device = torch.device(requested)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        built = "" if torch.version.cuda else f" and this torch ({torch.__version__}) is built without CUDA"
        raise StartupError(
            f"RERANKER_DEVICE={requested}: not there: {torch.cuda.device_count()} CUDA devices are visible{built}; "
            "set cpu or auto"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise StartupError(f"RERANKER_DEVICE={requested}: not there: no Apple GPU is available; set cpu or auto")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


@contextmanager
def _errors_translated() -> Iterator[None]:
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory("The batch does not fit the device's memory") from error
    except RuntimeError as error:
        if any(words in str(error) for words in NO_MEMORY):
            raise OutOfMemory("The batch does not fit the memory") from error
        if isinstance(error, torch.AcceleratorError):
            raise EngineBroken(f"The device failed: {first_line(error)}.") from error
        raise
