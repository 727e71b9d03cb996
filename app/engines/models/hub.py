"""Whether a model can be loaded, as far as that can be said without torch. Importing torch takes seconds."""

from collections.abc import Sequence
from pathlib import Path, PurePath

from app.engines.models.folders import check_hub_cache, storing_in_hub_cache
from app.engines.models.source import ModelSource
from app.errors import StartupError, UnusableModel, first_line

# One request finds out whether the hub is reachable and knows the model. The download itself would retry for minutes.
HUB_SECONDS = 10
# Every model has one of these files.
ROOTS = ("config.json", "modules.json")


def check_source(source: ModelSource, allow_pickle: bool) -> None:
    """Raises `StartupError` if the model is neither on this machine nor on the hub, or if it is a pickle."""
    if source.is_local:
        if not allow_pickle:
            folder = Path(source.location)
            refuse_pickles(source, [file.relative_to(folder) for file in folder.rglob("*")])
        return
    from huggingface_hub import try_to_load_from_cache

    cached = (try_to_load_from_cache(source.location, name, revision=source.revision) for name in ROOTS)
    if any(isinstance(file, str) for file in cached):
        return
    try:
        with storing_in_hub_cache():
            check_repository(source, allow_pickle)
    except StartupError:
        raise
    except Exception as error:  # offline, unreachable, unknown: there are many exceptions
        raise UnusableModel(
            f"RERANKER_MODEL={source.location!r} cannot be loaded: it is not on this machine, and the hub cannot be "
            f"used: {first_line(error)}"
        ) from error


def check_repository(source: ModelSource, allow_pickle: bool) -> int:
    """The number of parameters of a model on the hub, 0 if the hub does not say it.

    Raises an exception of the hub's library if the hub does not have the model, `OSError` if the cache cannot be
    written, and `UnusableModel` if the model is a pickle.
    """
    from huggingface_hub import HfApi

    check_hub_cache()
    found = HfApi().model_info(source.location, revision=source.revision, timeout=HUB_SECONDS)
    if not allow_pickle:
        refuse_pickles(source, [PurePath(sibling.rfilename) for sibling in found.siblings or []])
    return found.safetensors.total if found.safetensors else 0


def refuse_pickles(source: ModelSource, files: Sequence[PurePath]) -> None:
    """Unpickling can run code, so every part of the model needs safetensors weights. Raises `UnusableModel`."""
    safe = {file.parent for file in files if file.suffix == ".safetensors"}
    pickle = next((file for file in files if file.match("pytorch_model*.bin") and file.parent not in safe), None)
    if pickle:
        raise UnusableModel(
            f"RERANKER_MODEL={source.location!r} cannot be loaded: {pickle} is a pickle, which can run code, and "
            "its folder has no model.safetensors. Set RERANKER_ALLOW_PICKLE=true to load it anyway"
        )
