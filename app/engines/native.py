"""Models that bring their own Python code although transformers has the same layers, under other names.

They load without that code. A model is recognized by its `config.json`. What differs is the names of its weights or of
its settings; a setting that transformers does not have leaves the model to its own code.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers import AutoConfig, GteConfig
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Chunk, WeightConverter, WeightRenaming

# Jina's XLM-RoBERTa: names of its weights, and those of transformers.
FLASH, FLASH_CLASS = "XLMRobertaFlashConfig", "XLMRobertaForSequenceClassification"
FLASH_NAMES = {
    r"emb_ln\.": "embeddings.LayerNorm.",
    r"encoder\.layers\.": "encoder.layer.",
    r"mixer\.out_proj\.": "attention.output.dense.",
    r"norm1\.": "attention.output.LayerNorm.",
    r"norm2\.": "output.LayerNorm.",
    r"mlp\.fc1\.": "intermediate.dense.",
    r"mlp\.fc2\.": "output.dense.",
}
FLASH_PACKED = "mixer.Wqkv"
FLASH_SPLIT = ["attention.self.query", "attention.self.key", "attention.self.value"]


class NewConfig(GteConfig):  # type: ignore[misc]
    """The `config.json` of the GTE models. transformers has them under another name."""

    model_type = "new"

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **options: Any) -> Any:
        """A `GteConfig`, which leads to the class in transformers. Raises `ValueError` if that lacks a setting."""
        if not _is_gte(config_dict):
            raise ValueError("it has settings that only its own code knows")
        settings = {name: value for name, value in config_dict.items() if name not in ("model_type", "auto_map")}
        theta, scaling = settings.pop("rope_theta", 10000.0), settings.pop("rope_scaling", None)
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": float(theta)}
        if scaling:
            # A larger base, and all frequencies lower by one factor, which transformers calls linear.
            factor, size = scaling["factor"], settings["hidden_size"] // settings["num_attention_heads"]
            rope = {"rope_type": "linear", "rope_theta": theta * factor, "factor": factor ** (2 / size)}
        return GteConfig.from_dict({**settings, "rope_parameters": rope}, **options)


@contextmanager
def native_classes(config: Mapping[str, Any]) -> Iterator[None]:
    """While it is open, a model with this `config.json` loads with the classes of transformers, if it has them."""
    if _is_gte(config):
        AutoConfig.register(NewConfig.model_type, NewConfig, exist_ok=True)
    if not own_code(config).endswith(FLASH):
        yield
        return
    renamed = [WeightRenaming(source, target) for source, target in FLASH_NAMES.items()]
    split = WeightConverter(FLASH_PACKED, FLASH_SPLIT, operations=[Chunk(dim=0)])
    register_checkpoint_conversion_mapping(FLASH_CLASS, [*renamed, split], overwrite=True)
    try:
        yield
    finally:  # other models of this class have the names of transformers
        register_checkpoint_conversion_mapping(FLASH_CLASS, [], overwrite=True)


def own_code(config: Mapping[str, Any]) -> str:
    """The reference to the model's own Python code in its `config.json`. Empty if it has none."""
    return str((config.get("auto_map") or {}).get("AutoConfig", ""))


def _is_gte(config: Mapping[str, Any]) -> bool:
    """Whether it is a GTE model with settings that transformers has."""
    scaling = config.get("rope_scaling") or {}
    return (
        config.get("model_type") == NewConfig.model_type
        and config.get("position_embedding_type", "rope") == "rope"
        and config.get("layer_norm_type", "layer_norm") == "layer_norm"
        and not config.get("logn_attention_scale")
        and (not scaling or (scaling.get("type") == "ntk" and scaling.get("mixed_b") is None))
    )
