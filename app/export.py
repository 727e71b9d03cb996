"""`python -m app.export MODEL --output DIR`: turn a cross-encoder into an artefact that is served without torch.

Needs the extra `export`. The export ends with a comparison against the float32 original; one that does not rank alike
is refused.
"""

import gzip
import json
import logging
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, cast

import numpy as np
import typer
from rich.console import Console

from app.backends import Scorer
from app.backends.artefact import MODEL_FILES, Backend, Manifest, Parity, Precision
from app.backends.model_source import locate_model
from app.backends.store import UNUSABLE_MODEL
from app.config import load_settings
from app.errors import StartupError, UnusableModel
from app.logs import configure_logging

log = logging.getLogger(__name__)
console = Console(stderr=True)

CALIBRATION = Path(__file__).parent / "backends" / "calibration.jsonl"
CALIBRATION_PAIRS = 300
MIN_KENDALL_TAU = 0.95
# Of a large model a part of the own texts tells enough: so long, but not fewer groups.
PROBE_SECONDS, PROBE_GROUPS = 60.0, 8
NDCG_AT = 10


@dataclass(frozen=True, slots=True)
class Group:
    """A query and documents to compare rankings on; `grades` are the documents' judgments, where there are any."""

    query: str
    documents: list[str]
    grades: list[float] | None = None


def own_texts() -> list[Group]:
    """The texts that ship with the project: each query with its passage, others, and longer ones made of several."""
    entries = [json.loads(line) for line in CALIBRATION.read_text().splitlines()]
    passages = [entry["passage"] for entry in entries]

    def following(start: int, count: int) -> list[str]:
        return [passages[(start + step) % len(passages)] for step in range(count)]

    return [
        Group(entry["query"], [*following(at, 12), " ".join(following(at, 3)), " ".join(following(at + 5, 8))])
        for at, entry in enumerate(entries)
    ]


def read_groups(file: Path) -> list[Group]:
    """JSONL of `{query, documents: [text or {id, text}], qrels: {id: grade}}`, `.gz` too; `qrels` may be missing."""
    try:
        with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8") as lines:
            return [_group(json.loads(line)) for line in lines if line.strip()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        # Not its representation: that of a wrong encoding has the whole file in it.
        reason = f"{type(error).__name__}: {error}"
        raise StartupError(f"{file}: cannot be read as JSONL of query and documents: {reason}") from None


def _group(row: dict[str, Any]) -> Group:
    documents = [{"text": document} if isinstance(document, str) else document for document in row["documents"]]
    grades = [float(row["qrels"].get(document.get("id"), 0)) for document in documents] if "qrels" in row else None
    return Group(row["query"], [document["text"] for document in documents], grades)


def export_model(
    model: str | None,
    backend: Backend,
    precision: Precision,
    output: Path,
    *,
    revision: str | None = None,
    max_length: int = 512,
    threads: int = 1,
    calibration: Path | None = None,
    evaluation: Path | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    force: bool = False,
) -> Manifest:
    """Export into `output`, which appears as a whole or not at all. Raises `StartupError`."""
    from app.backends.torch import TorchScorer
    from app.convert import write_model

    _check_output(output, force)
    console.print(f"Loading {model or 'the embedded model'} ...")
    source = locate_model(model, revision)
    reference = TorchScorer(
        source, "cpu", max_length, threads, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle
    )
    calibration_groups = read_groups(calibration) if calibration else own_texts()
    pairs = [pair for group in calibration_groups for pair in reference.encode(group.query, group.documents)]
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".export-") as scratch:
        folder = Path(scratch) / "artefact"
        folder.mkdir()
        exportable = reference.exportable()
        console.print(f"Converting for {backend}, {precision} ...")
        write_model(exportable, backend, precision, folder, pairs[:: max(1, len(pairs) // CALIBRATION_PAIRS)])
        exportable.tokenizer.save(str(folder / "tokenizer.json"))
        manifest = Manifest(
            backend=backend,
            precision=precision,
            model=source.name,
            revision=source.revision,
            max_length=reference.engine.max_length,
            activation=exportable.activation,
            labels=reference.engine.labels,
            pad_token_id=exportable.pad_token_id,
            calibration=(calibration.name if calibration else "own texts") if precision == "int8" else None,
            versions={name: version(name) for name in ("torch", "transformers", "openvino")},
        )
        manifest.write(folder)
        manifest = manifest.model_copy(update={"parity": _compare(reference, folder, manifest, threads, evaluation)})
        manifest.write(folder)
        _check_parity(cast(Parity, manifest.parity), force)
        if output.exists():
            shutil.rmtree(output)
        os.replace(folder, output)
    return manifest


def _check_output(output: Path, force: bool) -> None:
    if output.exists() and not force:
        raise StartupError(f"{output} exists already; --force replaces it")


def _check_parity(parity: Parity, force: bool) -> None:
    if parity.kendall_tau >= MIN_KENDALL_TAU:
        return
    message = f"the exported model ranks differently: Kendall tau {parity.kendall_tau:.3f} < {MIN_KENDALL_TAU}"
    if not force:
        raise StartupError(f"{message}; --force keeps it all the same")
    log.warning("Forced: %s", message)


def _compare(reference: Scorer, folder: Path, manifest: Manifest, threads: int, evaluation: Path | None) -> Parity:
    from app.backends import load_artefact

    exported = load_artefact(folder, manifest.max_length, threads)
    groups = read_groups(evaluation) if evaluation else own_texts()
    taus: list[float] = []
    gains: list[float] = []
    differences, count = [0.0], 0
    started = perf_counter()
    for group in _progress(groups, "Comparing with the float32 original"):
        if not evaluation and len(taus) >= PROBE_GROUPS and perf_counter() - started > PROBE_SECONDS:
            break
        original, converted = logits(reference, group), logits(exported, group)
        taus.append(_kendall_tau(original, converted))
        differences.append(float(np.abs(np.subtract(reference.activate(original), exported.activate(converted))).max()))
        count += len(original)
        if group.grades and any(group.grades):
            gains.append(ndcg(group.grades, converted) - ndcg(group.grades, original))
    return Parity(
        pairs=count,
        kendall_tau=float(np.mean(taus)),
        max_score_difference=max(differences),
        ndcg_difference=float(np.mean(gains)) if gains else None,
    )


def logits(scorer: Scorer, group: Group, rows: int = 4) -> list[float]:
    """Logits of one group, in small batches of similar length."""
    pairs = scorer.encode(group.query, group.documents)
    order = sorted(range(len(pairs)), key=lambda index: pairs[index].length)
    scores = [0.0] * len(pairs)
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        for index, logit in zip(chosen, scorer.score([pairs[index] for index in chosen]), strict=True):
            scores[index] = logit
    return scores


def ndcg(grades: Sequence[float], scores: Sequence[float]) -> float:
    """nDCG@10 with gain 2^grade - 1, ideal over the documents at hand."""
    from sklearn.metrics import ndcg_score

    return float(ndcg_score([[2**grade - 1 for grade in grades]], [scores], k=NDCG_AT))


def _kendall_tau(first: Sequence[float], second: Sequence[float]) -> float:
    from scipy.stats import kendalltau

    return float(kendalltau(first, second).statistic) if len(first) > 1 else 1.0


def _progress(groups: Sequence[Group], title: str) -> Iterator[Group]:
    from rich.progress import track

    yield from track(groups, title, console=console)


def report(manifest: Manifest, output: Path) -> dict[str, Any]:
    """What the export came to; memory in MB, peak of the whole process."""
    size = sum(file.stat().st_size for file in output.iterdir()) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "output": str(output),
        "size_mb": round(size, 1),
        "peak_memory_mb": round(peak),
        **manifest.model_dump(exclude={"labels", "versions", "format"}),
    }


def main(
    model: Annotated[str | None, typer.Argument(help="Folder or hub id; without it, the embedded model")] = None,
    output: Annotated[Path, typer.Option(help="Folder to make")] = Path("exported"),
    backend: Annotated[str, typer.Option(help="openvino or onnx")] = "openvino",
    precision: Annotated[str, typer.Option(help="int8, bf16 (openvino only) or fp32")] = "int8",
    calibration: Annotated[Path | None, typer.Option(help="JSONL of query and documents for int8")] = None,
    evaluate: Annotated[Path | None, typer.Option(help="JSONL with qrels, to compare nDCG@10 on")] = None,
    revision: Annotated[str | None, typer.Option(help="Of a hub model")] = None,
    max_length: Annotated[int, typer.Option(min=16, help="Window in tokens")] = 512,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the folder; keep a model that ranks differently")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON")] = False,
) -> None:
    """Export a cross-encoder for serving without torch, and compare it with the original."""
    settings = load_settings()
    configure_logging(settings.log_level)
    if (
        backend not in MODEL_FILES
        or precision not in ("int8", "bf16", "fp32")
        or (backend, precision) == ("onnx", "bf16")
    ):
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
    except StartupError as error:
        typer.echo(f"Not exported: {error}", err=True)
        raise typer.Exit(UNUSABLE_MODEL if isinstance(error, UnusableModel) else 1) from None
    figures = report(manifest, output)
    if as_json:
        print(json.dumps(figures, indent=2))
    else:
        for name, value in figures.items():
            print(f"{name:18} {value}")


if __name__ == "__main__":
    typer.run(main)
