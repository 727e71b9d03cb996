"""Where a model comes from: the embedded one, a local folder, or the hub."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from app.engines.models.artefact import MANIFEST
from app.errors import StartupError

EMBEDDED = Path(__file__).parents[2] / "default_model"
EMBEDDED_NAME = "reranker-minilm-l6-v1"
# Of each file so many parts of so many bytes are read, to tell models apart that have the same name.
PARTS, PART_BYTES = 64, 65_536


@dataclass(frozen=True, slots=True)
class ModelSource:
    """`location` is a folder, or a hub id where `is_local` is false; `name` is what clients are told."""

    name: str
    location: str
    revision: str | None
    is_local: bool


def locate_model(model: str | None, revision: str | None) -> ModelSource:
    """Resolve `RERANKER_MODEL`; None is the embedded default. A missing folder is found out before any heavy import."""
    if model is None:
        return ModelSource(EMBEDDED_NAME, str(EMBEDDED), None, is_local=True)
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not any((folder / name).is_file() for name in (MANIFEST, "config.json", "modules.json")):
            raise StartupError(f"RERANKER_MODEL={model!r}: the folder holds no config.json, so it is not a model")
        return ModelSource(folder.resolve().name, str(folder), None, is_local=True)
    if folder.exists():
        raise StartupError(f"RERANKER_MODEL={model!r}: is a file; name the folder that holds the model")
    check_folder("RERANKER_MODEL", model)
    return ModelSource(model, model, revision, is_local=False)


def check_folder(name: str, model: str) -> None:
    """Raises `StartupError` for what can only be a folder, and is not there."""
    if (model.startswith(("/", ".", "~")) or model.count("/") > 1) and not Path(model).expanduser().is_dir():
        raise StartupError(f"{name}={model!r}: no such folder")


def digest(folder: str | Path) -> str | None:
    """Of the files of a model, parts from all over them: weights that were trained on differ everywhere.

    The same on every machine; None where there is no such folder.
    """
    if not Path(folder).is_dir():
        return None
    found = hashlib.blake2b(digest_size=8)
    for file in sorted(file for file in Path(folder).iterdir() if file.is_file()):
        size = file.stat().st_size
        found.update(f"{file.name} {size}".encode())
        with file.open("rb") as content:
            for start in range(0, size, max(PART_BYTES, size // PARTS)):
                content.seek(start)
                found.update(content.read(PART_BYTES))
    return found.hexdigest()
