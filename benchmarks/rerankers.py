"""The layers of rerankers that people run, with random weights: useful for speed, not for quality.

They differ from the real models in the vocabulary, which has a few hundred words. The embeddings are therefore smaller
on disk and in memory. The work per token is the same, because embeddings are only looked up.
"""

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from app.engines.template import DOCUMENT, FAMILIES, INSTRUCTION, QUERY
from benchmarks.shapes import SPECIAL_TOKENS, save_tokenizer
from benchmarks.texts import WORDS

TEMPLATE = FAMILIES["qwen3-reranker"]
CHAT_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "yes", "no")
UNKNOWN = SPECIAL_TOKENS[-1]


@dataclass(frozen=True, slots=True)
class Architecture:
    """What decides the work of a reranker."""

    kind: Literal["classifier", "modular", "decoder"]
    """A head inside the model, modules after it, or a causal language model scored by yes and no."""
    model_type: str
    layers: int
    width: int
    heads: int
    inner: int
    """Width of the feed-forward layers."""
    window: int
    """In tokens."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further fields of the configuration."""

    def config(self) -> Any:
        """The configuration of the transformer, without the size of the vocabulary."""
        from transformers import AutoConfig

        return AutoConfig.for_model(
            self.model_type,
            num_hidden_layers=self.layers,
            hidden_size=self.width,
            num_attention_heads=self.heads,
            intermediate_size=self.inner,
            **{"max_position_embeddings": self.window} | self.extra,
        )


def _ettin(layers: int, width: int, heads: int, inner: int) -> Architecture:
    return Architecture("modular", "modernbert", layers, width, heads, inner, 8192)


# RoBERTa-like models count positions from 2.
RERANKERS = {
    "ettin-17m": _ettin(7, 256, 4, 384),
    "ettin-32m": _ettin(10, 384, 6, 576),
    "ettin-150m": _ettin(22, 768, 12, 1152),
    "minilm-l6": Architecture("classifier", "bert", 6, 384, 12, 1536, 512),
    "bge-base": Architecture(
        "classifier", "xlm-roberta", 12, 768, 12, 3072, 512, {"max_position_embeddings": 514, "type_vocab_size": 1}
    ),
    "bge-v2-m3": Architecture(
        "classifier", "xlm-roberta", 24, 1024, 16, 4096, 8192, {"max_position_embeddings": 8194, "type_vocab_size": 1}
    ),
    "qwen3-0.6b": Architecture(
        "decoder",
        "qwen3",
        28,
        1024,
        16,
        3072,
        8192,
        {"num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True},
    ),
}


def make_reranker(architecture: Architecture, folder: Path) -> Path:
    """Create the model and its tokenizer, once; returns the folder."""
    if not folder.exists():
        import torch

        torch.manual_seed(0)
        parts = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(parts, ignore_errors=True)
        MAKERS[architecture.kind](architecture, parts / "base", parts / "whole")
        os.replace(parts / "whole", folder)
        shutil.rmtree(parts)
    return folder


def _make_classifier(architecture: Architecture, _: Path, folder: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    config = _encoder_config(architecture)
    config.num_labels = 1
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    save_tokenizer(folder, architecture.window)


def _make_modular(architecture: Architecture, base: Path, folder: Path) -> None:
    import torch
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling
    from transformers import AutoModel

    AutoModel.from_config(_encoder_config(architecture)).save_pretrained(base)
    save_tokenizer(base, architecture.window)
    width = architecture.width
    modules = [
        Transformer(str(base)),
        Pooling(width, "cls"),
        Dense(width, width, bias=False, activation_function=torch.nn.GELU()),
        LayerNorm(width),
        Dense(width, 1, activation_function=torch.nn.Identity(), module_output_name="scores"),
    ]
    CrossEncoder(modules=modules, device="cpu").save_pretrained(str(folder))


def _encoder_config(architecture: Architecture) -> Any:
    config = architecture.config()
    config.vocab_size = len({*SPECIAL_TOKENS, *WORDS})
    config.bos_token_id = config.cls_token_id = 0
    config.eos_token_id = config.sep_token_id = 2
    config.pad_token_id = 1
    return config


def _make_decoder(architecture: Architecture, base: Path, folder: Path) -> None:
    from sentence_transformers import CrossEncoder
    from transformers import AutoModelForCausalLM

    size = _save_chat_tokenizer(base, architecture.window)
    config = architecture.config()
    config.vocab_size, config.pad_token_id, config.bos_token_id, config.eos_token_id = size, 0, None, 2
    AutoModelForCausalLM.from_config(config).save_pretrained(base)
    CrossEncoder(str(base), device="cpu").save_pretrained(str(folder))


def _save_chat_tokenizer(folder: Path, window: int) -> int:
    """Save a tokenizer with the template of Qwen3-Reranker; returns the size of its vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    constants = pre_tokenizers.Whitespace().pre_tokenize_str(TEMPLATE.fill("", ""))
    known = dict.fromkeys((*CHAT_TOKENS, UNKNOWN, *WORDS, *(word for word, _ in constants)))
    vocabulary = {word: index for index, word in enumerate(known)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=CHAT_TOKENS[0],
        eos_token=CHAT_TOKENS[2],
        additional_special_tokens=list(CHAT_TOKENS[:3]),
        model_max_length=window,
        model_input_names=["input_ids", "attention_mask"],
    )
    made.chat_template = _chat_template()
    made.save_pretrained(folder)
    return len(made)


def _chat_template() -> str:
    """The template of Qwen3-Reranker in Jinja: the instruction is the system's message."""
    text = TEMPLATE.text
    for place, role in ((QUERY, "query"), (DOCUMENT, "document")):
        found = f"messages | selectattr('role', 'eq', '{role}') | map(attribute='content') | first"
        text = text.replace(place, f"{{{{ {found} }}}}")
    own = f"messages[0].content if messages[0].role == 'system' else '{TEMPLATE.instruction}'"
    return text.replace(INSTRUCTION, f"{{{{ {own} }}}}")


MAKERS = {"classifier": _make_classifier, "modular": _make_modular, "decoder": _make_decoder}
