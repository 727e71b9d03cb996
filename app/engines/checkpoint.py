"""A cross-encoder's checkpoint: found in a folder, the hub's cache or the hub, checked, and loaded."""

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

# An unreachable hub or an unknown model is told after one question; the download itself would ask for minutes.
HUB_SECONDS = 10


def load_model(
    source: ModelSource, device: torch.device, dtype: torch.dtype, trust_remote_code: bool, allow_pickle: bool
) -> CrossEncoder:
    """Load it. Raises `UnusableModel` for what does not load, and for what loads and would rank at random.

    Local files first: with a filled hub cache nothing asks the network, and offline nothing waits for it.
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
    """Unpickling may run code. Of every part of the model there have to be weights that are only numbers."""
    safe = {file.parent for file in files if file.suffix == ".safetensors"}
    pickle = next((file for file in files if file.match("pytorch_model*.bin") and file.parent not in safe), None)
    if pickle:
        raise UnusableModel(
            f"RERANKER_MODEL={source.location!r} cannot be loaded: {pickle} is a pickle, which may carry code, and "
            "there is no model.safetensors beside it; RERANKER_ALLOW_PICKLE=true loads it all the same"
        )


def _local_files(source: ModelSource) -> list[PurePath]:
    """What there is of the model on this machine, relative to its folder."""
    known = _cached(source, "config.json") or _cached(source, "modules.json")
    folder = Path(known).parent if known else None
    return [file.relative_to(folder) for file in folder.rglob("*")] if folder else []


def _check_is_reranker(model: CrossEncoder, source: ModelSource) -> None:
    """Refuse models that load without an error and then rank at random."""
    whole = _has_modules_file(source)
    architectures = model.config.architectures or ["?"]
    if architectures[0].endswith("ForCausalLM") and not whole:
        reason = "is a causal language model without a modules.json, so which tokens mean relevance is not known"
    elif not whole and not architectures[0].endswith("ForSequenceClassification"):
        reason = f"is a {architectures[0]}, which has no relevance head; a cross-encoder is needed"
    elif model.num_labels != 1:
        reason = f"gives {model.num_labels} labels for a pair; one relevance score is needed"
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
    """Tokens that fit the model."""
    positions = getattr(model.config, "max_position_embeddings", None)
    limits = (model.max_seq_length, positions and positions - first_position(model), 131072)
    return min(limit for limit in limits if limit)


def first_position(model: CrossEncoder) -> int:
    """Of a pair's first token. RoBERTa and its kin count from after the padding index, the others from 0."""
    embeddings = getattr(getattr(model.model.base_model, "embeddings", None), "position_embeddings", None)
    return 0 if embeddings is None or embeddings.padding_idx is None else embeddings.padding_idx + 1
