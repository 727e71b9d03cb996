"""Whether a model fits into memory. The kernel ends a process over the limit of its container without a message."""

import json
import math
from pathlib import Path

from app.errors import StartupError
from app.machine.hardware import memory_limit

WHOLE, LENGTH_BYTES = "model.safetensors", 8
# Python, torch and transformers, without a model.
LIBRARIES = 500_000_000
# Bytes of memory for each parameter. An export holds the weights in float32, in the converted model and in its compiled
# form, which is compared with the original. With the shape of Qwen3-0.6B it took 14. Of these, 4 were pages of files,
# which the kernel can drop.
EXPORT_BYTES = 10


def parameters(folder: Path) -> int:
    """Number of parameters of a model's safetensors files, read from their headers. 0 if it has none.

    A folder may hold the weights as one file and again in parts.
    """
    folders = {file.parent for file in folder.rglob("model*.safetensors")}
    return sum(
        _of_file(file)
        for each in folders
        for file in ([each / WHOLE] if (each / WHOLE).is_file() else each.glob("model-*.safetensors"))
    )


def check_fits(model: str, count: int, bytes_each: int, task: str, remedy: str) -> None:
    """Raises `StartupError` if `count` parameters need more memory than this process may use."""
    needed, limit = LIBRARIES + count * bytes_each, memory_limit()
    if 0 < limit < needed:
        raise StartupError(
            f"{task} {model} needs about {needed / 1e9:.1f} GB of memory for {count / 1e6:,.0f} million parameters, "
            f"and the limit is {limit / 1e9:.1f} GB. {remedy}"
        )


def _of_file(file: Path) -> int:
    with file.open("rb") as content:
        size = int.from_bytes(content.read(LENGTH_BYTES), "little")
        header = json.loads(content.read(size))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
