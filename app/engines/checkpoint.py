"""Find a cross-encoder's checkpoint in a folder, the hub's cache or the hub, check it and load it."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePath

import torch
from huggingface_hub import HfApi
from huggingface_hub.constants import HF_HUB_OFFLINE
from sentence_transformers import CrossEncoder
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from app.engines.models.source import ModelSource
from app.errors import UnusableModel, first_line

log = logging.getLogger(__name__)

# One request finds out whether the hub is reachable and knows the model. The download itself would retry for minutes.
HUB_SECONDS = 10


def load_model(
    source: ModelSource, device: torch.device, dtype: torch.dtype, trust_remote_code: bool, allow_pickle: bool
) -> CrossEncoder:
    """Load it. Raises `UnusableModel` if it cannot be loaded, or if it would rank at random.

    Local files come first, so a model in the hub's cache needs no network.
    """
    transformers_logging.disable_progress_bar()
    model = _load(source, device, dtype, trust_remote_code, allow_pickle)
    _check_is_reranker(model, source)
    model.max_seq_length = _window(model)
    return model


def _load(
    source: ModelSource, device: torch.device, dtype: torch.dtype, trust_remote_code: bool, allow_pickle: bool
) -> CrossEncoder:
    load = partial(
        CrossEncoder,
        source.location,
        revision=source.revision,
        device=str(device),
        trust_remote_code=trust_remote_code,
        model_kwargs={"dtype": dtype, "use_safetensors": None if allow_pickle else True},
    )
    try:
        if not allow_pickle:
            _refuse_pickles(source, _local_files(source))
        try:
            return load(local_files_only=True)
        except OSError:
            if source.is_local or HF_HUB_OFFLINE:
                raise
            log.info("%s is not in the local hub cache: downloading it", source.location)
            found = HfApi().model_info(source.location, revision=source.revision, timeout=HUB_SECONDS)
            if not allow_pickle:
                _refuse_pickles(source, [PurePath(sibling.rfilename) for sibling in found.siblings or []])
            return load()
    except UnusableModel:
        raise
    except Exception as error:
        raise UnusableModel(f"RERANKER_MODEL={source.location!r} cannot be loaded: {first_line(error)}") from error


def _refuse_pickles(source: ModelSource, files: Sequence[PurePath]) -> None:
    """Unpickling can run code, so every part of the model needs safetensors weights."""
    safe = {file.parent for file in files if file.suffix == ".safetensors"}
    pickle = next((file for file in files if file.match("pytorch_model*.bin") and file.parent not in safe), None)
    if pickle:
        raise UnusableModel(
            f"RERANKER_MODEL={source.location!r} cannot be loaded: {pickle} is a pickle, which can run code, and "
            "its folder has no model.safetensors. Set RERANKER_ALLOW_PICKLE=true to load it anyway"
        )


def _local_files(source: ModelSource) -> list[PurePath]:
    """The model's files on this machine, relative to its folder."""
    known = _cached(source, "config.json") or _cached(source, "modules.json")
    folder = Path(known).parent if known else None
    return [file.relative_to(folder) for file in folder.rglob("*")] if folder else []


def _check_is_reranker(model: CrossEncoder, source: ModelSource) -> None:
    """Reject models that load without an error and then rank at random."""
    whole = _has_modules_file(source)
    architectures = model.config.architectures or ["?"]
    if architectures[0].endswith("ForCausalLM") and not whole:
        reason = "is a causal language model without a modules.json, which would name the tokens that mean relevance"
    elif not whole and not architectures[0].endswith("ForSequenceClassification"):
        reason = f"is a {architectures[0]}, which has no relevance head. Use a cross-encoder"
    elif model.num_labels != 1:
        reason = f"gives {model.num_labels} labels for a pair. Use a model with one label, the relevance"
    else:
        return
    raise UnusableModel(f"RERANKER_MODEL={source.location!r} {reason}")


def _has_modules_file(source: ModelSource) -> bool:
    return _cached(source, "modules.json") is not None


def _cached(source: ModelSource, name: str) -> str | None:
    found: str | None = cached_file(
        source.location,
        name,
        revision=source.revision,
        local_files_only=True,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return found


def _window(model: CrossEncoder) -> int:
    """The model's window in tokens."""
    positions = getattr(model.config, "max_position_embeddings", None)
    limits = (model.max_seq_length, positions and positions - first_position(model), 131072)
    return min(limit for limit in limits if limit)


def first_position(model: CrossEncoder) -> int:
    """Position of a pair's first token. RoBERTa-like models count from after the padding index, others from 0."""
    embeddings = getattr(getattr(model.model.base_model, "embeddings", None), "position_embeddings", None)
    return 0 if embeddings is None or embeddings.padding_idx is None else embeddings.padding_idx + 1
