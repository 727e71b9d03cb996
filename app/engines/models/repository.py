"""Exports in a model's repository, in the layout of Hugging Face's Optimum. They are used without a conversion."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, Literal, cast

from tokenizers import Tokenizer

from app.engines.models.artefact import MODEL_FILES, Backend, Manifest, Precision, scratch_folder
from app.engines.models.folders import check_hub_cache, storing_in_hub_cache
from app.engines.models.hub import HUB_SECONDS
from app.engines.models.source import ModelSource
from app.engines.tokenizer_file import ADDED, FILE, sample_ids
from app.errors import first_line
from app.machine.hardware import cpu_features

log = logging.getLogger(__name__)

# Without one of these instruction sets, sums of signed int8 products overflow.
ONNX_INT8 = {
    "avx512_vnni": "onnx/model_qint8_avx512_vnni.onnx",
    "asimddp": "onnx/model_qint8_arm64.onnx",
    "avx2": "onnx/model_quint8_avx2.onnx",
}
SIGNED = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"}
# Models that count positions from after the padding index.
OFFSET_POSITIONS = {"camembert", "mpnet", "roberta", "xlm-roberta", "xlm-roberta-xl"}
DEFAULT_ACTIVATION = "torch.nn.modules.activation.Sigmoid"

Fetch = Callable[[str], Path | None]


class _NotFetched(Exception):
    """A file that the hub has cannot be downloaded."""


def find_export(source: ModelSource, backend: Backend, precision: Precision, folder: Path) -> bool:
    """Copy the repository's export to `folder`, with a manifest. Returns False if it has no usable export."""
    try:
        return _copy_export(source, backend, precision, folder)
    except _NotFetched as error:
        log.warning("The export in the repository %s is not used: %s. Exporting the model instead", source.name, error)
        return False


def _copy_export(source: ModelSource, backend: Backend, precision: Precision, folder: Path) -> bool:
    fetch, revision = _local(source) if source.is_local else _hub(source)
    model_file = next(filter(fetch, _candidates(backend, precision)), None)
    if model_file is None:
        return False
    manifest = _describe(source, revision, backend, precision, fetch)
    reason = "its inputs or outputs are unusual" if manifest is None else _other_ids(model_file, fetch)
    if manifest is None or reason:
        log.warning(
            "%s contains %s, which is not used: %s. Exporting the model instead", source.name, model_file, reason
        )
        return False
    with scratch_folder(folder) as scratch:
        artefact = scratch / "artefact"
        artefact.mkdir()
        for name, target in _files(model_file, MODEL_FILES[backend]).items():
            found = fetch(name)
            if found is not None:
                shutil.copy(found, artefact / target)
        manifest.write(artefact)
        artefact.rename(folder)
    log.info(
        "Using %s from the repository %s. Its ranking was not compared with the original model",
        model_file,
        source.name,
    )
    return True


def _candidates(backend: Backend, precision: Precision) -> list[str]:
    """Usable files, the fastest first."""
    if backend == "openvino":
        if precision == "int8":
            return ["openvino/openvino_model_qint8_quantized.xml"]
        return ["openvino/openvino_model.xml", "openvino_model.xml"]
    if precision == "int8":
        own = [file for feature, file in ONNX_INT8.items() if feature in cpu_features()]
        # These names do not say whether the weights are signed.
        return own + (["onnx/model_quantized.onnx", "onnx/model_int8.onnx"] if SIGNED & cpu_features() else [])
    return ["onnx/model_O2.onnx", "onnx/model.onnx", "model.onnx"]


def _files(model_file: str, target: str) -> dict[str, str]:
    """Names of the model, weights and tokenizer files: in the repository and in our folder."""
    weights = {f"{model_file}_data": f"{Path(model_file).name}_data"}
    if model_file.endswith(".xml"):
        weights = {model_file.removesuffix("xml") + "bin": target.removesuffix("xml") + "bin"}
    return {model_file: target, **weights, FILE: FILE}


def _local(source: ModelSource) -> tuple[Fetch, None]:
    def fetch(name: str) -> Path | None:
        file = Path(source.location) / name
        return file if file.is_file() else None

    return fetch, None


def _hub(source: ModelSource) -> tuple[Fetch, str | None]:
    """Lists the files of the repository once. If the hub is not reachable, uses the files in its local cache."""
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

    try:
        info = HfApi().model_info(source.location, revision=source.revision, timeout=HUB_SECONDS)
        there = {sibling.rfilename for sibling in info.siblings or []}
        revision = info.sha
    except Exception as error:  # offline, unreachable, unknown: there are many exceptions
        log.info("The hub did not list the files of %s: %s", source.name, first_line(error))
        there, revision = set(), source.revision

    def fetch(name: str) -> Path | None:
        cached = try_to_load_from_cache(source.location, name, revision=revision)
        if isinstance(cached, str) or name not in there:
            return Path(cached) if isinstance(cached, str) else None
        try:
            with storing_in_hub_cache():
                check_hub_cache()
                return Path(hf_hub_download(source.location, name, revision=revision))
        except Exception as error:  # no space, no permission, no network
            raise _NotFetched(first_line(error)) from error

    return fetch, revision


def _describe(
    source: ModelSource, revision: str | None, backend: Backend, precision: Precision, fetch: Fetch
) -> Manifest | None:
    """The manifest of the repository's export. None if the model's inputs or outputs are unusual."""
    config, tokenizer = _read(fetch("config.json")), _read(fetch("tokenizer_config.json"))
    saved = _read(fetch("config_sentence_transformers.json"))
    prompts = saved.get("prompts") or {}
    labels = {int(index): label for index, label in config.get("id2label", {}).items()}
    activation = _activation(config, saved)
    architecture = (config.get("architectures") or [""])[0]
    # A decoder needs its template, which the exported file does not contain. Its tokenizer has no token for a class.
    is_encoder = "cls_token" in tokenizer or "mask_token" in tokenizer
    usual = (
        is_encoder
        and source.template is None
        and architecture.endswith("ForSequenceClassification")
        and len(labels) == 1
        and not any(prompts.values())
    )
    if not usual or activation is None or fetch(FILE) is None:
        return None
    pad_token_id = config.get("pad_token_id") or 0
    offset = pad_token_id + 1 if config.get("model_type") in OFFSET_POSITIONS else 0
    limits = (config.get("max_position_embeddings", 0) - offset, tokenizer.get("model_max_length", 0))
    return Manifest(
        backend=backend,
        precision=precision,
        model=source.name,
        revision=revision,
        max_length=int(min(limit for limit in (*limits, 131072) if limit > 0)),
        activation=activation,
        labels=labels,
        pad_token_id=pad_token_id,
        calibration="unknown: came with the model" if precision == "int8" else None,
    )


def _other_ids(model_file: str, fetch: Fetch) -> str | None:
    """Why the export would get other token ids than the model on torch gets. None if it gets the same.

    Both read `tokenizer.json`, but not the settings that change what torch makes of it.
    """
    file, own = fetch(FILE), fetch(str(PurePosixPath(model_file).with_name(FILE)))
    try:
        tokenizer = Tokenizer.from_file(str(file))
        differs = own != file and sample_ids(Tokenizer.from_file(str(own))) != sample_ids(tokenizer) if own else False
    except Exception as error:  # tokenizers raises a plain one
        return f"its tokenizer cannot be read: {first_line(error)}"
    settings = _read(fetch("tokenizer_config.json"))
    added = settings.get("added_tokens_decoder", {}).items()
    other = [token["content"] for index, token in added if tokenizer.token_to_id(token["content"]) != int(index)]
    if differs:
        return f"the {FILE} next to it gives other token ids than that of the model"
    if other:
        return f"{FILE} gives other ids to the special tokens {', '.join(other)} than tokenizer_config.json"
    if found := sorted(ADDED & settings.keys()):
        return f"tokenizer_config.json sets {found[0]}, which {FILE} does not contain"
    if _read(fetch("sentence_bert_config.json")).get("do_lower_case"):
        return f"sentence_bert_config.json sets do_lower_case, which {FILE} does not contain"
    return None


def _activation(config: dict[str, Any], saved: dict[str, Any]) -> Literal["sigmoid", "identity"] | None:
    """The activation. `saved` is what recent versions of sentence-transformers write next to the configuration."""
    name = saved.get("activation_fn") or config.get("sentence_transformers", {}).get("activation_fn")
    name = name or config.get("sbert_ce_default_activation_function") or DEFAULT_ACTIVATION
    kind = name.rsplit(".", maxsplit=1)[-1].lower()
    return cast(Literal["sigmoid", "identity"], kind) if kind in ("sigmoid", "identity") else None


def _read(file: Path | None) -> dict[str, Any]:
    return dict(json.loads(file.read_text())) if file else {}
