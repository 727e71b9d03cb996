"""The device and the precision that a torch model runs on."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import numpy as np
import torch
from sentence_transformers import CrossEncoder

from app.engines.memory import out_of_memory
from app.engines.preprocessing import PROBE
from app.errors import EngineBroken, StartupError, first_line

log = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# `auto` takes the first precision with finite logits. fp16 is as fast as bf16 and eight times as exact, but overflows
# sooner.
PRECISIONS = {"cpu": ("fp32",), "cuda": ("fp16", "bf16", "fp32"), "mps": ("fp32",)}
# torch's messages when an allocation fails, its own and those of the libraries that it calls.
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED", "create a primitive")


def pick_device(requested: str) -> torch.device:
    """The device to run on. `auto` takes the best one available. Raises `StartupError` if the device is missing."""
    if requested == "auto":
        for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
            reason = _unusable(torch.device("cuda", index))
            if reason is None:
                return torch.device("cuda", index)
            log.warning("cuda:%d is not used: this torch cannot compute on it: %s", index, reason)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(requested)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        built = "" if torch.version.cuda else f" and the installed torch ({torch.__version__}) has no CUDA support"
        raise StartupError(
            f"RERANKER_DEVICE={requested} is not available: {torch.cuda.device_count()} CUDA devices are visible{built}"
            ". Set cpu or auto"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise StartupError(
            f"RERANKER_DEVICE={requested} is not available: this machine has no Apple GPU. Set cpu or auto"
        )
    if device.type != "cuda":
        return device
    device = torch.device("cuda", device.index or 0)
    if reason := _unusable(device):
        raise StartupError(
            f"RERANKER_DEVICE={requested} is not available: this torch ({torch.__version__}) cannot compute on it: "
            f"{reason}. Set cpu or auto"
        )
    return device


def _unusable(device: torch.device) -> str | None:
    """Why this torch cannot compute on a card that it lists: too old, or its driver is. None if it can."""
    try:
        torch.ones(2, 2, device=device).matmul(torch.ones(2, 2, device=device)).sum().item()
    except Exception as error:  # torch raises various types
        return first_line(error)
    return None


def card(device: torch.device) -> dict[str, Any]:
    """Name and UUID of a CUDA device, as fields of `EngineInfo`."""
    if device.type != "cuda":
        return {}
    properties = torch.cuda.get_device_properties(device)
    return {"device_name": properties.name, "device_uuid": str(properties.uuid)}


def precisions(device: torch.device) -> tuple[str, ...]:
    """The precisions that `auto` tries on a device."""
    names = PRECISIONS[device.type]
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return tuple(name for name in names if name != "bf16")
    return names


def load_finite(names: Sequence[str], load: Callable[[torch.dtype], CrossEncoder]) -> tuple[str, CrossEncoder]:
    """The model in the first of the precisions with finite logits, or else in the last precision."""
    *tried, last = names
    for name in tried:
        model = load(DTYPES[name])
        if _is_finite(model):
            return name, model
        log.warning("In %s the model's logits are not finite: trying another precision", name)
        del model
    return last, load(DTYPES[last])


def _is_finite(model: CrossEncoder) -> bool:
    probes = [(PROBE[0], " ".join([PROBE[1]] * count)) for count in (1, 4)]
    logits = model.predict(probes, activation_fn=torch.nn.Identity(), show_progress_bar=False)
    return bool(np.isfinite(logits).all())


@contextmanager
def inference_on(device: torch.device) -> Iterator[None]:
    """Run inferences on the device. Raises `OutOfMemory`, or `EngineBroken` if the device has failed."""
    current: AbstractContextManager[Any] = nullcontext()
    if device.type == "cuda":
        current = torch.cuda.device(device)
    try:
        with out_of_memory(NO_MEMORY, torch.OutOfMemoryError), torch.inference_mode(), current:
            yield
    except torch.AcceleratorError as error:
        raise EngineBroken(f"The device failed: {first_line(error)}.") from error


def fetch(logits: torch.Tensor) -> Callable[[], list[float]]:
    """Start to copy the logits to the host, as float32.

    The returned function waits for this copy only, not for work that is launched later.
    """
    logits = logits.float()
    if logits.device.type != "cuda":
        return cast(Callable[[], list[float]], logits.tolist)
    host = torch.empty(logits.shape, pin_memory=True).copy_(logits, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def wait() -> list[float]:
        copied.synchronize()
        return cast(list[float], host.tolist())

    return wait


def clear_memory(device: torch.device) -> None:
    """Return cached memory to the accelerator."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
