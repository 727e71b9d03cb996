"""The source of a model: the embedded one, a local folder, or the hub."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.engines.models.artefact import MANIFEST
from app.errors import StartupError

EMBEDDED = Path(__file__).parents[2] / "default_model"
MULTILINGUAL = EMBEDDED.with_name("multilingual_model")
# By the value of RERANKER_MODEL. The first one is the default. The name is what clients see.
EMBEDDED_MODELS = {
    "embedded": ("reranker-minilm-l6-v2", EMBEDDED),
    "embedded:english": ("reranker-minilm-l6-v2", EMBEDDED),
    "embedded:multilingual": ("reranker-e5-small-v1", MULTILINGUAL),
}
# How an error about the source begins.
SETTING = "RERANKER_MODEL="
# The digest reads this many parts of this many bytes of each file. It distinguishes models with the same name.
PARTS, PART_BYTES = 64, 65_536


@dataclass(frozen=True, slots=True)
class ModelSource:
    """`location` is a folder if `is_local`, else a hub id. Clients see `name`."""

    name: str
    location: str
    revision: str | None
    is_local: bool
    template: str | None = None
    """`RERANKER_TEMPLATE`, if it is set: the text around a pair, the name of a known one, or `none`."""


def locate_model(model: str | None, revision: str | None, template: str | None = None) -> ModelSource:
    """Resolve `RERANKER_MODEL`, where None is the embedded English model. Raises `StartupError`."""
    model = model or "embedded"
    if model in EMBEDDED_MODELS:
        name, folder = EMBEDDED_MODELS[model]
        return ModelSource(name, str(folder), None, is_local=True, template=template)
    if model.startswith("embedded:"):
        raise StartupError(f"RERANKER_MODEL={model!r}: the embedded models are {', '.join(EMBEDDED_MODELS)}")
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not any((folder / name).is_file() for name in (MANIFEST, "config.json", "modules.json")):
            raise StartupError(f"RERANKER_MODEL={model!r}: this folder is not a model: it has no config.json")
        return ModelSource(folder.resolve().name, str(folder), None, is_local=True, template=template)
    if folder.exists():
        raise StartupError(f"RERANKER_MODEL={model!r} is a file. Set it to the folder of the model")
    check_folder("RERANKER_MODEL", model)
    return ModelSource(model, model, revision, is_local=False, template=template)


@contextmanager
def of_model(name: str) -> Iterator[None]:
    """Name the model in a `StartupError`, if it has a name in RERANKER_MODELS."""
    try:
        yield
    except StartupError as error:
        if name:
            text = str(error)
            own = f"={text.removeprefix(SETTING)}" if text.startswith(SETTING) else f": {text}"
            error.args = (f"RERANKER_MODELS, {name}{own}",)
        raise


def check_folder(name: str, model: str) -> None:
    """Raises `StartupError` if `model` can only be a folder, and does not exist."""
    if (model.startswith(("/", ".", "~")) or model.count("/") > 1) and not Path(model).expanduser().is_dir():
        raise StartupError(f"{name}={model!r}: no such folder")


def digest(folder: str | Path, without: str | None = None) -> str | None:
    """A digest of a model's files, equal on every machine. None if the folder does not exist.

    `without` names a file to leave out. Reads parts from all over each file, because training changes all weights.
    """
    if not Path(folder).is_dir():
        return None
    found = hashlib.blake2b(digest_size=8)
    for file in sorted(file for file in Path(folder).iterdir() if file.is_file() and file.name != without):
        size = file.stat().st_size
        found.update(f"{file.name} {size}".encode())
        with file.open("rb") as content:
            for start in range(0, size, max(PART_BYTES, size // PARTS)):
                content.seek(start)
                found.update(content.read(PART_BYTES))
    return found.hexdigest()
