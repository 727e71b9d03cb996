"""`python -m app.export MODEL --output DIR`: turn a cross-encoder into an artefact that is served without torch.

Needs the extra `export`. The export ends with a comparison against the float32 original; one that does not rank alike
is made again with more of it in floating point, or refused.
"""

import json
import logging
import os
import resource
import shutil
import sys
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, cast

import typer
from rich.console import Console

from app.config import PRECISIONS, load_settings
from app.engines.models.artefact import MODEL_FILES, Backend, Manifest, Parity, Precision, scratch_folder
from app.engines.models.shared_weights import is_half, share
from app.engines.models.source import locate_model
from app.engines.models.store import UNUSABLE_MODEL
from app.engines.probes import make_probes
from app.errors import StartupError, UnusableModel
from app.evaluation.lines import UnusableCollection
from app.export.parity import Group, compare, own_entries, own_texts, read_groups
from app.telemetry.logs import configure_logging

if TYPE_CHECKING:
    from app.engines.torch import TorchEngine

log = logging.getLogger(__name__)
console = Console(stderr=True)

CALIBRATION_PAIRS = 300
CHECKPOINT = "model.safetensors"
MIN_KENDALL_TAU = 0.95


class Texts(NamedTuple):
    """What is quantised on."""

    groups: list[Group]
    name: str = "own texts"


def export_model(
    model: str | None,
    backend: Backend,
    precision: Precision,
    output: Path,
    *,
    revision: str | None = None,
    max_length: int | None = None,
    threads: int = 1,
    calibration: Path | None = None,
    evaluation: Path | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    force: bool = False,
) -> Manifest:
    """Export into `output`, which appears as a whole or not at all. Raises `StartupError`, `UnusableCollection`.

    An int8 model that ranks differently is tried again with more of it in floating point.
    """
    from app.engines.torch import TorchEngine
    from app.export.convert import FLOAT_LAYERS

    _check_output(output, force)
    source = locate_model(model, revision)

    def load() -> TorchEngine:
        console.print(f"Loading {model or 'the embedded model'} ...")
        return TorchEngine(
            source, "cpu", max_length, threads, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle
        )

    texts = Texts(read_groups(calibration), calibration.name) if calibration else Texts(own_texts())
    judged = read_groups(evaluation) if evaluation else None
    output.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(output) as scratch:
        for float_layers in FLOAT_LAYERS if precision == "int8" else (None,):
            folder = scratch / f"{float_layers}"
            # Loaded again for each attempt, because the conversion changes the model.
            manifest = _attempt(load(), backend, precision, folder, texts, float_layers, judged)
            parity = cast(Parity, manifest.parity)
            if parity.kendall_tau >= MIN_KENDALL_TAU:
                break
            console.print(f"Ranks differently: Kendall tau {parity.kendall_tau:.3f} < {MIN_KENDALL_TAU}")
        _check_parity(parity, force)
        manifest = _share_weights(folder, manifest, output.parent / CHECKPOINT)
        if output.exists():
            shutil.rmtree(output)
        os.replace(folder, output)
    return manifest


def _share_weights(folder: Path, manifest: Manifest, checkpoint: Path) -> Manifest:
    """A float export that lies in its model's folder reads the checkpoint's weights, which are the same."""
    if manifest.backend == "openvino" and manifest.precision == "bf16" and is_half(checkpoint):
        share(folder / MODEL_FILES["openvino"], checkpoint)
        manifest = manifest.model_copy(update={"weights": f"../{checkpoint.name}"})
        manifest.write(folder)
    return manifest


def _attempt(
    reference: "TorchEngine",
    backend: Backend,
    precision: Precision,
    folder: Path,
    texts: Texts,
    float_layers: int | None,
    judged: list[Group] | None,
) -> Manifest:
    """Convert into the new folder, and compare."""
    from app.engines.load import load_artefact
    from app.export.convert import Conversion, write_model

    folder.mkdir()
    exportable = reference.exportable()
    pairs = [pair for group in texts.groups for pair in reference.encode(group.query, group.documents)]
    console.print(f"Converting for {backend}, {precision} ...")
    every = max(1, len(pairs) // CALIBRATION_PAIRS)
    write_model(Conversion(exportable, precision, pairs[::every], float_layers or 0), backend, folder)
    exportable.tokenizer.save(str(folder / "tokenizer.json"))
    manifest = Manifest(
        backend=backend,
        precision=precision,
        model=reference.info.model,
        revision=reference.info.revision,
        max_length=reference.info.max_length,
        activation=exportable.activation,
        labels=reference.info.labels,
        pad_token_id=exportable.pad_token_id,
        calibration=texts.name if precision == "int8" else None,
        float_layers=float_layers,
        probes=make_probes(reference, reference.info.max_length, own_entries()),
        long_documents=reference.info.long_documents,
        versions={name: version(name) for name in ("torch", "transformers", "openvino")},
    )
    manifest.write(folder)
    exported = load_artefact(folder, None, reference.info.threads, is_exact=True)
    manifest = manifest.model_copy(update={"parity": compare(reference, exported, judged, console)})
    if precision == "int8" and manifest.probes:
        manifest = manifest.model_copy(update={"probes": manifest.probes.with_exported(exported)})
    manifest.write(folder)
    return manifest


def _check_output(output: Path, force: bool) -> None:
    if output.exists() and not force:
        raise StartupError(f"{output} exists already; --force replaces it")


def _check_parity(parity: Parity, force: bool) -> None:
    if parity.kendall_tau >= MIN_KENDALL_TAU:
        return
    message = f"the exported model ranks differently: Kendall tau {parity.kendall_tau:.3f} < {MIN_KENDALL_TAU}"
    if not force:
        raise StartupError(f"{message}; --force keeps it anyway")
    log.warning("Forced: %s", message)


def report(manifest: Manifest, output: Path) -> dict[str, Any]:
    """What the export came to; memory in MB, peak of the whole process."""
    size = sum(file.stat().st_size for file in output.iterdir()) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "output": str(output),
        "size_mb": round(size, 1),
        "peak_memory_mb": round(peak),
        **manifest.model_dump(exclude={"labels", "versions", "format", "probes"}),
    }


def main(
    model: Annotated[str | None, typer.Argument(help="Folder or hub id; without it, the embedded model")] = None,
    output: Annotated[Path, typer.Option(help="Folder to make")] = Path("exported"),
    backend: Annotated[str, typer.Option(help="openvino or onnx")] = "openvino",
    precision: Annotated[str, typer.Option(help="int8, bf16 (openvino only) or fp32")] = "int8",
    calibration: Annotated[Path | None, typer.Option(help="JSONL of query and documents for int8")] = None,
    evaluate: Annotated[Path | None, typer.Option(help="JSONL with qrels, to compare nDCG@10 on")] = None,
    revision: Annotated[str | None, typer.Option(help="Of a hub model")] = None,
    max_length: Annotated[int | None, typer.Option(min=16, help="Window in tokens (default: the model's own)")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the folder; keep a model that ranks differently")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON")] = False,
) -> None:
    """Export a cross-encoder for serving without torch, and compare it with the original."""
    settings = load_settings()
    configure_logging(settings.log_level)
    if backend not in MODEL_FILES or precision not in PRECISIONS[backend]:
        raise typer.BadParameter(f"{backend} with {precision} is not supported")
    try:
        with redirect_stdout(sys.stderr):  # the quantisation's progress; ours is the report
            manifest = export_model(
                model,
                backend,
                cast(Precision, precision),
                output,
                revision=revision,
                max_length=max_length,
                threads=settings.threads,
                calibration=calibration,
                evaluation=evaluate,
                trust_remote_code=settings.trust_remote_code,
                allow_pickle=settings.allow_pickle,
                force=force,
            )
    except (StartupError, UnusableCollection) as error:
        typer.echo(f"Not exported: {error}", err=True)
        raise typer.Exit(UNUSABLE_MODEL if isinstance(error, UnusableModel) else 1) from None
    figures = report(manifest, output)
    if as_json:
        print(json.dumps(figures, indent=2))
    else:
        for name, value in figures.items():
            print(f"{name:18} {value}")
