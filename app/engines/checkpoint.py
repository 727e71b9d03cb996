"""Find a cross-encoder's checkpoint in a folder, the hub's cache or the hub, check it and load it."""

import json
import logging
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any

import torch
from huggingface_hub.constants import HF_HUB_OFFLINE
from sentence_transformers import CrossEncoder
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from app.engines.missing_weights import missing_weights
from app.engines.models.folders import storing_in_hub_cache
from app.engines.models.hub import check_repository, refuse_pickles
from app.engines.models.size import check_fits, parameters
from app.engines.models.source import ModelSource
from app.engines.native import native_classes, own_code
from app.engines.tokenizer_file import FILE, use_file
from app.errors import StartupError, UnusableModel, first_line

log = logging.getLogger(__name__)

CONFIG = "config.json"
# They put all documents into one text.
LISTWISE = {"JinaForRanking"}
TRUST = "If you trust its code, set RERANKER_TRUST_REMOTE_CODE=true"
# The names of two labels that make one relevance score, the positive one last.
OPPOSITES = (("0", "1"), ("no", "yes"), ("false", "true"), ("irrelevant", "relevant"), ("not relevant", "relevant"))


def load_model(
    source: ModelSource, device: torch.device, dtype: torch.dtype, trust_remote_code: bool, allow_pickle: bool
) -> CrossEncoder:
    """Load it. Raises `UnusableModel` if it cannot be loaded, or if it would rank at random.

    Local files come first, so a model in the hub's cache needs no network. Its tokenizer gives the token ids of its
    `tokenizer.json`, if it has one.
    """
    transformers_logging.disable_progress_bar()
    with missing_weights() as missing:
        model = _load(source, device, dtype, trust_remote_code, allow_pickle)
    _check_is_reranker(model, source)
    _check_is_complete(model, source, missing)
    if file := tokenizer_file(source):
        use_file(model, file, source.location)
    _complete(model, source)
    model.max_seq_length = _window(model)
    return model


def _load(
    source: ModelSource, device: torch.device, dtype: torch.dtype, trust_remote_code: bool, allow_pickle: bool
) -> CrossEncoder:
    def load(local_files_only: bool = False) -> CrossEncoder:
        config = _config(source)
        _check_architecture(config, source)
        with native_classes(config):
            return CrossEncoder(
                source.location,
                revision=source.revision,
                device=str(device),
                trust_remote_code=trust_remote_code,
                local_files_only=local_files_only,
                model_kwargs={"dtype": dtype, "use_safetensors": None if allow_pickle else True},
            )

    try:
        with storing_in_hub_cache():
            return _find(source, load, device, dtype, allow_pickle)
    except StartupError:
        raise
    except Exception as error:
        reason = first_line(error)
        if own_code(_config(source)) and not trust_remote_code:
            reason = f"the installed transformers does not have its class. {TRUST}"
        raise UnusableModel(f"RERANKER_MODEL={source.location!r} cannot be loaded: {reason}") from error


def _find(
    source: ModelSource, load: Callable[..., CrossEncoder], device: torch.device, dtype: torch.dtype, allow_pickle: bool
) -> CrossEncoder:
    """Check the model's files on this machine and load them, or else those on the hub."""
    if not allow_pickle:
        refuse_pickles(source, _local_files(source))
    if folder := local_folder(source):
        _check_fits(source, parameters(folder), device, dtype)
    try:
        return load(local_files_only=True)
    except OSError:
        if source.is_local or HF_HUB_OFFLINE:
            raise
        log.info("%s is not in the local hub cache: downloading it", source.location)
        _check_fits(source, check_repository(source, allow_pickle), device, dtype)
        cached_file(source.location, CONFIG, revision=source.revision, _raise_exceptions_for_missing_entries=False)
        return load()


def _config(source: ModelSource) -> dict[str, Any]:
    """The configuration of the transformer, as far as it is on this machine."""
    file = _cached(source, str(_first_module(source) / CONFIG))
    return dict(json.loads(Path(file).read_text())) if file else {}


def _check_architecture(config: dict[str, Any], source: ModelSource) -> None:
    """Reject what can never be served, before its weights are read."""
    architecture = (config.get("architectures") or ["?"])[0]
    if architecture in LISTWISE:
        raise UnusableModel(
            f"RERANKER_MODEL={source.location!r} is a {architecture}, which ranks a whole list of documents at once. "
            "This service scores each document alone. Use a cross-encoder, such as Qwen/Qwen3-Reranker-0.6B or "
            "BAAI/bge-reranker-v2-m3"
        )


def local_folder(source: ModelSource) -> Path | None:
    """The folder of the model's files on this machine. None if they are not there yet."""
    known = _cached(source, CONFIG) or _cached(source, "modules.json")
    return Path(known).parent if known else None


def _local_files(source: ModelSource) -> list[PurePath]:
    """The model's files on this machine, relative to its folder."""
    folder = local_folder(source)
    return [file.relative_to(folder) for file in folder.rglob("*")] if folder else []


def _check_fits(source: ModelSource, count: int, device: torch.device, dtype: torch.dtype) -> None:
    """Raises `StartupError` if the weights need more memory than there is. A GPU reports it by itself."""
    if device.type != "cuda":
        half = "RERANKER_PRECISION=bf16, " if dtype == torch.float32 else ""
        remedy = f"Use a smaller model, {half}or more memory"
        check_fits(f"RERANKER_MODEL={source.location!r}", count, dtype.itemsize, "Loading", remedy)


def _check_is_reranker(model: CrossEncoder, source: ModelSource) -> None:
    """Reject models that load without an error and then rank at random."""
    whole = has_modules_file(source)
    architectures = model.config.architectures or ["?"]
    if architectures[0].endswith("ForCausalLM") and not whole and not source.template:
        reason = (
            "is a causal language model without a modules.json, which would name the tokens that mean relevance. If "
            "they are yes and no, set RERANKER_TEMPLATE to the text that it was trained with"
        )
    elif not whole and not architectures[0].endswith(("ForSequenceClassification", "ForCausalLM")):
        reason = f"is a {architectures[0]}, which has no relevance head. Use a cross-encoder"
    elif model.num_labels != 1 and positive_label(model) is None:
        names = ", ".join(map(str, model.config.id2label.values()))
        reason = (
            f"gives {model.num_labels} labels for a pair ({names}). Use a model with one label, the relevance, or "
            "with two, such as no and yes"
        )
    else:
        return
    raise UnusableModel(f"RERANKER_MODEL={source.location!r} {reason}")


def _check_is_complete(model: CrossEncoder, source: ModelSource, missing: set[str]) -> None:
    """Reject a model with random weights. If a pooling module follows the transformer, its own pooler is not used."""
    needed = sorted(name for name in missing if len(model) == 1 or not name.startswith("pooler."))
    if needed:
        raise UnusableModel(
            f"RERANKER_MODEL={source.location!r} would rank at random: its files lack {len(needed)} weights of "
            f"{type(model[0].model).__name__}, such as {needed[0]}. "
            + (f"The model has its own class. {TRUST}" if own_code(_config(source)) else "Use the complete files")
        )


def positive_label(model: CrossEncoder) -> int | None:
    """Index of the label that means relevance, if the head has two labels that say so. None otherwise."""
    if model.num_labels != 2 or len(model) > 1:  # noqa: PLR2004
        return None
    names = [str(name).lower().replace("_", " ").removeprefix("label ") for name in model.config.id2label.values()]
    for negative, positive in OPPOSITES:
        if sorted(names) == sorted((negative, positive)):
            return names.index(positive)
    return None


def is_decoder(model: CrossEncoder) -> bool:
    """Whether each token attends only to those before it."""
    causal = {module.is_causal for module in model[0].model.modules() if hasattr(module, "is_causal")}
    return causal == {True}


def has_modules_file(source: ModelSource) -> bool:
    """Whether sentence-transformers saved the model, with everything that it does to a pair."""
    return _cached(source, "modules.json") is not None


def tokenizer_file(source: ModelSource) -> Path | None:
    """The `tokenizer.json` of the model on this machine, if it has one."""
    file = _cached(source, str(_first_module(source) / FILE))
    return Path(file) if file else None


def _first_module(source: ModelSource) -> PurePath:
    """The folder of the transformer and its tokenizer in the model's repository."""
    modules = _cached(source, "modules.json")
    return PurePath(json.loads(Path(modules).read_text())[0]["path"] if modules else "")


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


def _complete(model: CrossEncoder, source: ModelSource) -> None:
    """Fill in what configurations leave out: the padding token, and the activation of a model with two labels."""
    if model.tokenizer.pad_token_id is None:
        model.tokenizer.pad_token = model.tokenizer.eos_token or model.tokenizer.unk_token
    config = model.config.get_text_config()
    if config.pad_token_id is None:
        config.pad_token_id = model.tokenizer.pad_token_id
    if (positive := positive_label(model)) is not None:
        names = model.config.id2label
        log.info("%s has two labels: its logit is %s minus %s", source.name, names[positive], names[1 - positive])
        model.activation_fn = torch.nn.Sigmoid()


def _window(model: CrossEncoder) -> int:
    """The model's window in tokens."""
    positions = getattr(model.config, "max_position_embeddings", None)
    limits = (model.max_seq_length, positions and positions - first_position(model.model), 131072)
    return min(limit for limit in limits if limit)


def first_position(transformer: Any) -> int:
    """Position of a pair's first token. RoBERTa-like models count from after the padding index, others from 0."""
    embeddings = getattr(getattr(transformer.base_model, "embeddings", None), "position_embeddings", None)
    return 0 if embeddings is None or embeddings.padding_idx is None else embeddings.padding_idx + 1
