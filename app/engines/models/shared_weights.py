"""An OpenVINO model that reads its weights from its original checkpoint, so they are not stored twice.

The model's XML gives each constant as an offset into one file of weights. Here that file is the concatenation of two
files: the unchanged checkpoint, and a small file with the constants that the checkpoint does not contain.
"""

import json
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt

CONSTANT = re.compile(r'offset="(\d+)" size="(\d+)"')
# Shorter constants could match by chance, and they take little space.
SHORTEST = 256
METADATA = "__metadata__"


def joined(checkpoint: Path, rest: Path) -> npt.NDArray[np.uint8]:
    """The two files, concatenated. Raises `OSError` if one is missing."""
    return np.concatenate([np.fromfile(checkpoint, np.uint8), np.fromfile(rest, np.uint8)])


def is_half(checkpoint: Path) -> bool:
    """Whether the checkpoint is a safetensors file in float16, as exports store their weights."""
    if not checkpoint.is_file():
        return False
    with checkpoint.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return all(tensor["dtype"] == "F16" for name, tensor in header.items() if name != METADATA)


def share(model: Path, checkpoint: Path) -> None:
    """Rewrite the model's XML and weights to read from the checkpoint the constants that it contains."""
    weights = model.with_suffix(".bin").read_bytes()
    content = checkpoint.read_bytes()
    tensors = _tensors(content)
    rest = bytearray()

    def move(match: re.Match[str]) -> str:
        offset, size = int(match[1]), int(match[2])
        constant = weights[offset : offset + size]
        there = tensors.get(constant) if size >= SHORTEST else None
        if there is None:
            rest.extend(b"\0" * (-(len(content) + len(rest)) % 64))
            there = len(content) + len(rest)
            rest.extend(constant)
        return f'offset="{there}" size="{size}"'

    model.write_text(CONSTANT.sub(move, model.read_text()))
    model.with_suffix(".bin").write_bytes(rest)


def _tensors(content: bytes) -> dict[bytes, int]:
    """The offset of each tensor in a safetensors file, by its content."""
    header = int.from_bytes(content[:8], "little")
    spans = [tensor["data_offsets"] for name, tensor in json.loads(content[8 : 8 + header]).items() if name != METADATA]
    start = 8 + header
    return {content[start + first : start + last]: start + first for first, last in spans}
