"""`reranker export MODEL --output DIR`: turn a cross-encoder into a folder that is served without torch.

The export ends with a comparison against the float32 original. An int8 model that ranks differently is converted again
with more layers in floating point. A model that still ranks differently is rejected. Needs the extra `export`.
"""

import json
import logging
import os
import shutil
import sys
import threading
from contextlib import redirect_stdout
from importlib.metadata import version
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, cast

import typer
from rich.console import Console

from app.config_types import PRECISIONS
from app.engines.models.artefact import MODEL_FILES, Backend, Manifest, Parity, Precision, scratch_folder
from app.engines.models.folders import storing_in
from app.engines.models.shared_weights import is_half, share
from app.engines.models.size import EXPORT_BYTES, check_fits
from app.engines.models.source import locate_model
from app.engines.models.store import NOT_STORED, UNUSABLE_MODEL
from app.engines.probes import make_probes
from app.environment import load_settings
from app.errors import NotStored, StartupError, UnusableModel
from app.evaluation.lines import UnusableCollection
from app.export.own_texts import own_entries, own_texts
from app.export.parity import Group, compare, read_groups
from app.machine.hardware import peak_memory
from app.telemetry.logs import configure_logging

if TYPE_CHECKING:
    from app.engines.torch import TorchEngine

log = logging.getLogger(__name__)
console = Console(stderr=True)

CALIBRATION_PAIRS = 300
CHECKPOINT = "model.safetensors"
MIN_KENDALL_TAU = 0.95
# On the project's own texts, the comparison of a large model stops after this time.
OWN_TEXTS_SECONDS = 60.0


class Texts(NamedTuple):
    """The texts of the caller. None: the project's own."""

    calibration: list[Group] | None
    name: str
    """The manifest records it."""
    judged: list[Group] | None

    @classmethod
    def read(cls, calibration: Path | None, evaluation: Path | None) -> "Texts":
        """Raises `UnusableCollection`."""
        groups = read_groups(calibration) if calibration else None
        return cls(
            groups, calibration.name if calibration else "own texts", read_groups(evaluation) if evaluation else None
        )


class Candidate(NamedTuple):
    """A converted model in its folder."""

    folder: Path
    manifest: Manifest
    parity: Parity


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
    template: str | None = None,
    force: bool = False,
) -> Manifest:
    """Export into the folder `output`, which appears complete or not at all.

    Raises `StartupError` and `UnusableCollection`.
    """
    if output.exists() and not force:
        raise StartupError(f"{output} exists already. Choose another folder, or replace it with --force")
    source = locate_model(model, revision, template)
    texts = Texts.read(calibration, evaluation)
    from app.engines.torch import TorchEngine
    from app.export.conversion import FLOAT_LAYERS

    def load() -> TorchEngine:
        console.print(f"Loading {model or 'the embedded model'} ...")
        engine = TorchEngine(
            source, "cpu", max_length, threads, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle
        )
        remedy = "Export it on a machine with more memory (reranker export), or use a smaller model"
        check_fits(source.name, engine.parameters, EXPORT_BYTES, "Exporting", remedy)
        return engine

    with storing_in(output.parent):
        output.parent.mkdir(parents=True, exist_ok=True)
    # The inner check is made before the unfinished files are deleted: then the disk is no longer full.
    with storing_in(output.parent), scratch_folder(output) as scratch, storing_in(output.parent, measures=True):
        for float_layers in FLOAT_LAYERS if precision == "int8" else (None,):
            folder = scratch / f"{float_layers}"
            # Load the model for every attempt, because converting a model changes it.
            candidate = _convert(load(), backend, precision, folder, texts, float_layers)
            if candidate.parity.kendall_tau >= MIN_KENDALL_TAU:
                break
            console.print(_ranks_differently(candidate.parity))
        _check_parity(candidate.parity, force)
        manifest = _share_weights(candidate.folder, candidate.manifest, output.parent / CHECKPOINT)
        if output.exists():
            shutil.rmtree(output)
        os.replace(candidate.folder, output)
    return manifest


def _share_weights(folder: Path, manifest: Manifest, checkpoint: Path) -> Manifest:
    """Let a bf16 export next to the model's own checkpoint read the weights from there, which are the same."""
    if manifest.backend == "openvino" and manifest.precision == "bf16" and is_half(checkpoint):
        share(folder / MODEL_FILES["openvino"], checkpoint)
        manifest = manifest.model_copy(update={"weights": f"../{checkpoint.name}"})
        manifest.write(folder)
    return manifest


def _convert(
    reference: "TorchEngine",
    backend: Backend,
    precision: Precision,
    folder: Path,
    texts: Texts,
    float_layers: int | None,
) -> Candidate:
    """Convert into a new folder, load the result, and compare it with the original."""
    from app.engines.load import load_artefact
    from app.export.conversion import Conversion
    from app.export.convert import write_model
    from app.export.segments import with_segments

    folder.mkdir()
    exportable = reference.exportable()
    own = own_texts(exportable.tokenizer, reference.info.languages)
    pairs = [pair for group in texts.calibration or own for pair in reference.encode(group.query, group.documents)]
    if backend == "openvino":
        exportable = with_segments(exportable, pairs)
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
        fusion=reference.info.fusion,
        languages=reference.info.languages,
        template=reference.info.template,
        prompt=exportable.prompt,
        shares_prefixes=exportable.shares_prefixes,
        versions={name: version(name) for name in ("torch", "transformers", "openvino")},
    )
    manifest.write(folder)
    exported = load_artefact(folder, None, reference.info.threads, is_exact=True)
    seconds = inf if texts.judged else OWN_TEXTS_SECONDS
    parity = compare(reference, exported, texts.judged or own, console, seconds)
    manifest = manifest.model_copy(update={"parity": parity})
    if precision == "int8" and manifest.probes:
        manifest = manifest.model_copy(update={"probes": manifest.probes.with_exported(exported)})
    manifest.write(folder)
    return Candidate(folder, manifest, parity)


def _ranks_differently(parity: Parity) -> str:
    return f"The exported model ranks differently: Kendall tau {parity.kendall_tau:.3f} < {MIN_KENDALL_TAU}"


def _check_parity(parity: Parity, force: bool) -> None:
    if parity.kendall_tau >= MIN_KENDALL_TAU:
        return
    if not force:
        raise StartupError(f"{_ranks_differently(parity)}. To keep it anyway, use --force")
    log.warning("%s. It is kept because of --force", _ranks_differently(parity))


def report(manifest: Manifest, output: Path) -> dict[str, Any]:
    """Facts about the export."""
    size = sum(file.stat().st_size for file in output.iterdir()) / 1e6
    peak = peak_memory()
    return {
        "output": str(output),
        "size_mb": round(size, 1),
        "peak_memory_mb": peak and round(peak / 2**20),
        **manifest.model_dump(exclude={"labels", "versions", "format", "probes"}),
    }


def _end_with_stdin() -> None:
    """End this process when the one that started it ends, however that happens."""
    os.read(sys.stdin.fileno(), 1)  # nothing is ever written to it, so this returns when it is closed
    os._exit(1)


def main(
    model: Annotated[str | None, typer.Argument(help="Folder or hub id (default: the embedded model)")] = None,
    output: Annotated[Path, typer.Option(help="Folder to create")] = Path("exported"),
    backend: Annotated[str, typer.Option(help="openvino or onnx")] = "openvino",
    precision: Annotated[str, typer.Option(help="int8, bf16 (openvino only) or fp32")] = "int8",
    calibration: Annotated[
        Path | None, typer.Option(help="JSONL file with queries and documents, for int8 (default: shipped texts)")
    ] = None,
    evaluate: Annotated[Path | None, typer.Option(help="JSONL file with qrels, to compare nDCG@10")] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of a hub model")] = None,
    max_length: Annotated[int | None, typer.Option(min=16, help="Window in tokens (default: the model's own)")] = None,
    template: Annotated[str | None, typer.Option(help="Text around a pair (default: RERANKER_TEMPLATE)")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an existing folder, and keep a model that ranks differently")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines")] = False,
    while_stdin_is_open: Annotated[bool, typer.Option("--while-stdin-is-open", hidden=True)] = False,
) -> None:
    """Export a cross-encoder for serving without torch and compare it with the original."""
    if while_stdin_is_open:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    settings = load_settings()
    configure_logging(settings.log_level)
    if backend not in MODEL_FILES or precision not in PRECISIONS[backend]:
        raise typer.BadParameter(f"{backend} with {precision} is not supported")
    try:
        with redirect_stdout(sys.stderr):  # NNCF prints its progress, but stdout is for the report
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
                template=settings.template if template is None else template,
                force=force,
            )
    except (StartupError, UnusableCollection) as error:
        typer.echo(f"Not exported: {error}", err=True)
        statuses = {UnusableModel: UNUSABLE_MODEL, NotStored: NOT_STORED}
        raise typer.Exit(next((statuses[kind] for kind in type(error).__mro__ if kind in statuses), 1)) from None
    figures = report(manifest, output)
    if as_json:
        print(json.dumps(figures, indent=2))
    else:
        scripts = (figures["parity"] or {}).pop("scripts", {})
        lines = {f"tau {script}": f"{on['kendall_tau']:.3f} ({on['pairs']} pairs)" for script, on in scripts.items()}
        for name, value in (figures | lines).items():
            print(f"{name:18} {value}")
