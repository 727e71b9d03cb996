"""Exported models on disk: those that come with a model, and those made at a first start."""

import hashlib
import logging
import os
import re
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

from filelock import FileLock

from app.engines.models.artefact import MODEL_FILES, Backend, Manifest, Precision, is_artefact
from app.engines.models.hub import check_source
from app.engines.models.repository import find_export
from app.engines.models.source import EMBEDDED, ModelSource
from app.errors import NotStored, StartupError, UnusableModel, UnwritableFolder

EXPORTERS = ("torch", "transformers", "openvino", "nncf")

log = logging.getLogger(__name__)

# Increase it when the export changes: exports of earlier versions are then not used.
EXPORT_VERSION = 7
# Exit status of an export if no engine could use the model.
UNUSABLE_MODEL = 3
# Exit status of an export that could not be stored.
NOT_STORED = 4
# The ending of a record with the versions and the reason. The second stands for versions that are tried again.
FAILED, ANY_VERSION = ".failed", "-"
# Reasons that may be gone at the next start.
PASSING = re.compile("memory|no space|cannot be written|connection|timed? ?out", re.IGNORECASE)


class ExportFailed(StartupError):
    """The model cannot be exported, and the same versions will fail again."""


def find_or_export(
    source: ModelSource, backend: Backend, precision: Precision, store: Path, allow_pickle: bool = False
) -> Path:
    """The folder of the exported model: from the model's folder or the store, or made now. Raises `StartupError`.

    A new one is copied from the model's repository if that contains an export. If two processes start at the same time,
    only one of them exports.
    """
    folder = exported_folder(source, backend, precision, store)
    if folder.parent != store:
        return folder
    try:
        store.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not is_artefact(folder) and not find_export(source, backend, precision, folder):
                _export_once(source, backend, precision, folder, allow_pickle)
    except OSError as error:
        raise UnwritableFolder(f"RERANKER_EXPORT_DIR={store}", error, store) from None
    return folder


def exported_folder(source: ModelSource, backend: Backend, precision: Precision, store: Path) -> Path:
    """The folder for the export: in the model's folder if it came with the model, else in the store."""
    if source.is_local:
        shipped = Path(source.location) / f"{backend}-{precision}"
        if is_artefact(shipped):
            return shipped
        # A bf16 export that reads the weights of the checkpoint is as exact as fp32.
        half = Path(source.location) / f"{backend}-bf16"
        if precision == "fp32" and is_artefact(half) and Manifest.read(half).weights:
            return half
    return store / _name(source, backend, precision)


def _name(source: ModelSource, backend: Backend, precision: Precision) -> str:
    """A readable name that changes with everything that the export depends on."""
    identity: list[object] = [source.location, source.revision, source.template, EXPORT_VERSION]
    if source.is_local:
        files = sorted(Path(source.location).rglob("*"))
        identity += [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    digest = hashlib.blake2b(repr(identity).encode(), digest_size=8).hexdigest()
    return f"{source.name.replace('/', '--')}-{backend}-{precision}-{digest}"


def failed_exports(source: ModelSource, store: Path) -> tuple[str, ...]:
    """Why exports of this model failed: the last attempt of each backend and precision that has no export."""
    folders = (
        store / _name(source, backend, precision) for backend in MODEL_FILES for precision in get_args(Precision)
    )
    records = (folder.with_name(f"{folder.name}{FAILED}") for folder in folders if not is_artefact(folder))
    return tuple(record.read_text().partition("\n")[2] for record in records if os.access(record, os.R_OK))


def _export_once(source: ModelSource, backend: Backend, precision: Precision, folder: Path, allow_pickle: bool) -> None:
    """Export, unless this failed before with the same model and the same versions. Remembers the reason."""
    failure = folder.with_name(f"{folder.name}{FAILED}")
    known = " ".join(f"{name} {version(name)}" for name in EXPORTERS if find_spec(name))
    if failure.is_file():
        versions, _, reason = failure.read_text().partition("\n")
        if versions == known:
            raise StartupError(f"{reason} (at an earlier start; delete {failure} to try again)")
    try:
        check_source(source, allow_pickle)
        _export(source, backend, precision, folder)
    except (UnusableModel, NotStored):
        raise
    except StartupError as error:
        versions = known if isinstance(error, ExportFailed) else ANY_VERSION
        with suppress(OSError):  # the reason may be a full disk
            failure.write_text(f"{versions}\n{error}")
        raise
    failure.unlink(missing_ok=True)


def _export(source: ModelSource, backend: Backend, precision: Precision, folder: Path) -> None:
    """Export in a separate process, to release all memory of the conversion. It ends with this process."""
    if find_spec("torch") is None:
        raise StartupError(f"{source.name} must be exported for {backend} {precision}, but torch is not installed")
    log.info(
        "Exporting %s for %s %s. This takes a minute or more, at the first start only", source.name, backend, precision
    )
    command = [sys.executable, "-m", "app.export", *([] if source.location == str(EMBEDDED) else [source.location])]
    options: dict[str, object] = {
        "--output": folder,
        "--backend": backend,
        "--precision": precision,
    }
    if source.revision:
        options["--revision"] = source.revision
    if source.template is not None:
        options["--template"] = source.template
    command += [str(part) for option in options.items() for part in option]
    with subprocess.Popen(  # noqa: S603 (no shell, and our own)
        [*command, "--while-stdin-is-open"],
        stdin=subprocess.PIPE,  # stays open until this process ends, in any way
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        errors = "".join(process.stderr or ())
    if process.returncode:
        lines = [line for line in errors.splitlines() if re.search(r"\w", line)] or ["no reason given"]
        reason = lines[-1].strip("│ ").removeprefix("Not exported: ")
        if process.returncode == UNUSABLE_MODEL:
            raise UnusableModel(reason)
        if process.returncode == NOT_STORED:
            # The export calls its folder --output.
            raise NotStored(f"RERANKER_EXPORT_DIR={reason}" if reason.startswith(str(folder.parent)) else reason)
        message = f"{source.name} cannot be exported for {backend} {precision}: {reason}"
        # A negative status is a signal: the export was stopped.
        is_lasting = process.returncode > 0 and not PASSING.search(reason)
        raise ExportFailed(message) if is_lasting else StartupError(message)
    log.info("Exported to %s", folder)
