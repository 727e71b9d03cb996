"""An exported model: a folder that an engine serves without torch.

openvino_model.xml, openvino_model.bin   or   model.onnx
tokenizer.json
manifest.json
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from app.engines.probes import ProbeSet
from app.errors import StartupError, first_line
from app.types import LongDocuments

Backend = Literal["openvino", "onnx"]
Precision = Literal["fp32", "bf16", "fp16", "int8"]

MANIFEST = "manifest.json"
MODEL_FILES: dict[Backend, str] = {"openvino": "openvino_model.xml", "onnx": "model.onnx"}


class Parity(BaseModel):
    """How near the exported model is to the float32 original, on the probe pairs."""

    pairs: int
    kendall_tau: float
    """Mean over the queries, of the two rankings."""
    max_score_difference: float
    """Of the activated scores."""
    ndcg_difference: float | None = None
    """Exported less original, nDCG@10 on the labelled file; None without one."""


class Manifest(BaseModel):
    """What the exported model is, and where it comes from."""

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    backend: Backend
    precision: Precision
    model: str
    revision: str | None
    max_length: int
    activation: Literal["sigmoid", "identity"]
    labels: dict[int, str]
    pad_token_id: int
    calibration: str | None = None
    float_layers: int | None = None
    """With int8: of so many first layers the feed-forward part is in floating point."""
    parity: Parity | None = None
    probes: ProbeSet | None = None
    """Reference logits, which the engine is compared with wherever it is loaded; exports of others have none."""
    long_documents: LongDocuments = "truncate"
    """How the model reads documents that are longer than its window."""
    weights: str | None = None
    """A safetensors file, relative to the folder, that holds those weights that the model's own file leaves out."""
    versions: dict[str, str] = {}

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises `StartupError` when the folder holds no manifest that this version understands."""
        try:
            return cls.model_validate_json((folder / MANIFEST).read_bytes())
        except (OSError, ValidationError) as error:
            reason = first_line(error)
            raise StartupError(f"{folder} is no exported model that this version can read: {reason}") from None

    def write(self, folder: Path) -> None:
        """Put the manifest beside the model's files."""
        (folder / MANIFEST).write_text(self.model_dump_json(indent=2) + "\n")


def is_artefact(folder: Path) -> bool:
    """Whether the folder holds an exported model."""
    return (folder / MANIFEST).is_file()


def shipped_probes(folder: Path) -> ProbeSet | None:
    """The reference logits of a model that is in a folder with exports of it."""
    shipped = (Manifest.read(file.parent).probes for file in sorted(folder.glob(f"*/{MANIFEST}")))
    probes = next(filter(None, shipped), None)
    return probes and probes.without_exported()


@contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """An empty folder beside the target, for what is to become it. What was left there by one that was killed goes."""
    scratch = target.parent / f".export-{target.name}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
