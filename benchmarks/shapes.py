"""Models with the architecture of well-known ones and random weights: useful for speed, not for quality."""

import json
from pathlib import Path
from typing import Any

from benchmarks.texts import WORDS

SHAPES = {
    "bert-base": {
        "model_type": "bert",
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "vocab_size": 30_522,
        "max_position_embeddings": 512,
    },
    "xlm-roberta-large": {
        "model_type": "xlm-roberta",
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "vocab_size": 250_002,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
    },
}
SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")


def make_shape(name: str, folder: Path) -> Path:
    """Create the model and a tokenizer for the words of `benchmarks.texts`, once; returns the folder."""
    if not (folder / "config.json").exists():
        save_tokenizer(folder)
        _save_model(SHAPES[name], folder)
    return folder


def _save_model(sizes: dict[str, Any], folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    torch.manual_seed(0)
    config = AutoConfig.for_model(**sizes, num_labels=1, pad_token_id=1, bos_token_id=0, eos_token_id=2)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)


def save_tokenizer(folder: Path, window: int = 512) -> None:
    """Save a tokenizer that turns each word of `benchmarks.texts` into one token. `window`: in tokens."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    first, pad, last, unknown = SPECIAL_TOKENS
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys((*SPECIAL_TOKENS, *WORDS)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} {last} $B {last}",
        special_tokens=[(first, vocabulary[first]), (last, vocabulary[last])],
    )
    names = {"cls_token": first, "pad_token": pad, "sep_token": last, "unk_token": unknown}
    inputs = ["input_ids", "attention_mask"]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=window, model_input_names=inputs, **names
    ).save_pretrained(folder)


def pair_flops(model: Path, tokens: int) -> float:
    """Floating-point operations to score one pair: layers × (products with the weights + attention).

    Embeddings, norms and the head are ignored.
    """
    config = json.loads((model / "config.json").read_text())
    width, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    weights = 4 * width * width + 2 * width * inner
    return float(layers * (2 * tokens * weights + 4 * tokens * tokens * width))
