"""Exported models on disk: the ones that come with a model, and the ones made here on a first start."""

import hashlib
import logging
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock

from app.engines.models.artefact import Backend, Manifest, Precision, is_artefact
from app.engines.models.repository import find_export
from app.engines.models.source import EMBEDDED, ModelSource
from app.errors import StartupError, UnusableModel

log = logging.getLogger(__name__)

# A change of how models are exported makes the exports of earlier versions stale.
EXPORT_VERSION = 3
# Exit status of an export whose model could be used on no engine.
UNUSABLE_MODEL = 3


def find_or_export(source: ModelSource, backend: Backend, precision: Precision, store: Path) -> Path:
    """The folder of the exported model: beside the model, in the store, or made now. Raises `StartupError`.

    What is made now is taken from the model's repository where that carries an export, else exported.

    Two processes that start at once export once.
    """
    folder = exported_folder(source, backend, precision, store)
    if folder.parent != store:
        return folder
    try:
        store.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not is_artefact(folder) and not find_export(source, backend, precision, folder):
                _export(source, backend, precision, folder)
    except OSError as error:
        raise StartupError(f"RERANKER_EXPORT_DIR={store} cannot be written: {error.strerror}") from None
    return folder


def exported_folder(source: ModelSource, backend: Backend, precision: Precision, store: Path) -> Path:
    """Where the export belongs: in the model's folder if it came with it, else in the store. It may not exist yet."""
    if source.is_local:
        shipped = Path(source.location) / f"{backend}-{precision}"
        if is_artefact(shipped):
            return shipped
        # One that reads the checkpoint's own weights is as exact as these.
        half = Path(source.location) / f"{backend}-bf16"
        if precision == "fp32" and is_artefact(half) and Manifest.read(half).weights:
            return half
    return store / _name(source, backend, precision)


def _name(source: ModelSource, backend: Backend, precision: Precision) -> str:
    """Readable, and different whenever the export would be."""
    identity: list[object] = [source.location, source.revision, EXPORT_VERSION]
    if source.is_local:
        files = sorted(Path(source.location).rglob("*"))
        identity += [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    digest = hashlib.blake2b(repr(identity).encode(), digest_size=8).hexdigest()
    return f"{source.name.replace('/', '--')}-{backend}-{precision}-{digest}"


def _export(source: ModelSource, backend: Backend, precision: Precision, folder: Path) -> None:
    """In a process of its own: what the conversion imports and allocates is gone when it is done."""
    if find_spec("torch") is None:
        raise StartupError(f"{source.name} has to be exported for {backend} {precision}, and torch is not installed")
    log.info("Exporting %s for %s %s, on the first start only: a minute or more", source.name, backend, precision)
    command = [sys.executable, "-m", "app.export", *([] if source.location == str(EMBEDDED) else [source.location])]
    options: dict[str, object] = {
        "--output": folder,
        "--backend": backend,
        "--precision": precision,
    }
    if source.revision:
        options["--revision"] = source.revision
    command += [str(part) for option in options.items() for part in option]
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (no shell, and our own)
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if re.search(r"\w", line)] or ["no reason given"]
        reason = lines[-1].strip("│ ").removeprefix("Not exported: ")
        if result.returncode == UNUSABLE_MODEL:
            raise UnusableModel(reason)
        raise StartupError(f"{source.name} cannot be exported for {backend} {precision}: {reason}")
    log.info("Exported to %s", folder)
