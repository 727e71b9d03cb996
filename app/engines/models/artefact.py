"""An exported model: a folder that an engine can load without torch.

openvino_model.xml, openvino_model.bin   or   model.onnx
tokenizer.json
manifest.json
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, Self
from uuid import uuid4

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.engines.padding import ACTIVATIONS, Floats
from app.engines.probes import ProbeSet
from app.engines.template import Template
from app.errors import StartupError, first_line
from app.types import Evidence, LongDocuments

Backend = Literal["openvino", "onnx"]
Precision = Literal["fp32", "bf16", "fp16", "int8"]

MANIFEST = "manifest.json"
MODEL_FILES: dict[Backend, str] = {"openvino": "openvino_model.xml", "onnx": "model.onnx"}


class ScriptParity(BaseModel):
    """The part of a comparison that is on texts in one script."""

    pairs: int
    kendall_tau: float


class Parity(BaseModel):
    """Comparison of the exported model with the float32 original."""

    pairs: int
    kendall_tau: float
    """Kendall's tau of the two rankings, mean over the queries."""
    max_score_difference: float
    """Largest difference of the activated scores."""
    ndcg_difference: float | None = None
    """nDCG@10 on the labelled file, exported minus original. None without a labelled file."""
    scripts: dict[str, ScriptParity] = {}
    """The figures of each script of the project's own texts. Empty if the texts are others."""


class ScoreCalibration(BaseModel):
    """Scale and shift that turn a logit into the log odds that the document is relevant."""

    model_config = ConfigDict(frozen=True)

    scale: float = Field(gt=0, allow_inf_nan=False)
    """Greater than 0, so that the order stays the same."""
    shift: float = Field(allow_inf_nan=False)

    def log_odds(self, logits: Floats) -> Floats:
        return self.scale * logits + self.shift


class Manifest(BaseModel):
    """Description of the exported model and its origin."""

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
    """int8 only: the texts that set the ranges of the activations."""
    score_calibration: ScoreCalibration | None = None
    """What `reranker calibrate` found. None: the score is the activation of the logit."""
    float_layers: int | None = None
    """int8 only: the number of first layers with the whole feed-forward part in floating point."""
    parity: Parity | None = None
    probes: ProbeSet | None = None
    """Reference logits for the self-test. None for exports that were made by others."""
    long_documents: LongDocuments = "truncate"
    """How the model reads documents that exceed its window."""
    fusion: Evidence = "off"
    """What the model's order should consider besides its scores."""
    languages: tuple[str, ...] = ()
    """Codes of the languages that the model reads, if it declares them."""
    template: Template | None = None
    """The text that the model reads around a pair. None for special tokens only."""
    prompt: str = ""
    """Text before every query."""
    shares_prefixes: bool = False
    """Whether the model takes rows of several pairs: see `app.engines.segments`."""
    weights: str | None = None
    """A safetensors file with the weights that the exported file leaves out. Its path is relative to the folder."""
    versions: dict[str, str] = {}

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises `StartupError` if this version cannot read the manifest."""
        try:
            return cls.model_validate_json((folder / MANIFEST).read_bytes())
        except (OSError, ValidationError) as error:
            reason = _first_problem(error) if isinstance(error, ValidationError) else first_line(error)
            raise StartupError(f"{folder} is not an exported model that this version can read: {reason}") from None

    def write(self, folder: Path) -> None:
        """Replaces the file at once, because a service may read it at any time."""
        written = folder / f".{MANIFEST}"
        written.write_text(self.model_dump_json(indent=2) + "\n")
        os.replace(written, folder / MANIFEST)

    def scores(self, logits: Floats) -> Floats:
        """The relevance scores of logits of shape (documents,). A calibrated score is a probability."""
        if self.score_calibration is None:
            return ACTIVATIONS[self.activation](logits)
        return ACTIVATIONS["sigmoid"](self.score_calibration.log_odds(logits))


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or MANIFEST}: {first['msg']}, not {first['input']!r:.80}"


def is_artefact(folder: Path) -> bool:
    # `Path.is_file` raises an error for a folder that this user may not look into.
    return os.path.isfile(folder / MANIFEST)


def shipped_probes(folder: Path) -> ProbeSet | None:
    """The reference logits from the first export in a model's folder."""
    shipped = (Manifest.read(file.parent).probes for file in sorted(folder.glob(f"*/{MANIFEST}")))
    probes = next(filter(None, shipped), None)
    return probes and probes.without_exported()


@contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """An empty folder next to the target, for the unfinished files of this process only.

    The process holds a lock while it uses the folder. Folders that killed processes left, without a lock, are deleted.
    """
    prefix = f".export-{target.name}-"
    for left in target.parent.glob(f"{prefix}*.lock"):
        with suppress(Timeout, OSError), FileLock(left, timeout=0):
            _delete(left)
    scratch = target.parent / f"{prefix}{uuid4().hex[:8]}"
    with FileLock(f"{scratch}.lock"):
        scratch.mkdir()
        try:
            yield scratch
        finally:
            _delete(Path(f"{scratch}.lock"))


def _delete(lock: Path) -> None:
    """Delete a scratch folder and its lock file."""
    shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
    lock.unlink(missing_ok=True)
