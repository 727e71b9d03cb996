"""Tiny models with random weights, made on the spot, in the shapes of real rerankers."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    DebertaV2Config,
    ElectraConfig,
    ModernBertConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
)

WORDS = "what causes tides moon the bread gravity sea stock market a of and light plant energy".split()  # noqa: SIM905
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
CONFIGS: dict[str, PreTrainedConfig] = {
    "bert": BertConfig(**SMALL, max_position_embeddings=64),
    "xlm-roberta": XLMRobertaConfig(**SMALL, max_position_embeddings=66, type_vocab_size=1),
    "electra": ElectraConfig(**SMALL, embedding_size=16, max_position_embeddings=64),
    "deberta-v2": DebertaV2Config(
        **SMALL, max_position_embeddings=64, relative_attention=True, pos_att_type=["p2c", "c2p"]
    ),
    "modernbert": ModernBertConfig(
        **SMALL, max_position_embeddings=64, global_attn_every_n_layers=2, local_attention=16
    ),
}


def make_tokenizer(family: str, window: int = 64) -> PreTrainedTokenizerFast:
    roberta = family == "xlm-roberta"
    specials = ["<s>", "<pad>", "</s>", "<unk>"] if roberta else ["[CLS]", "[PAD]", "[SEP]", "[UNK]"]
    first, pad, last, unknown = specials
    tokenizer = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(specials + WORDS)}, unk_token=unknown)
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    middle = f"{last} {last}" if roberta else last
    second = "" if roberta else ":1"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {middle} $B{second} {last}{second}",
        special_tokens=[(first, 0), (last, 2)],
    )
    names = (
        ["input_ids", "attention_mask"]
        if roberta or family == "modernbert"
        else ["input_ids", "token_type_ids", "attention_mask"]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token=first,
        pad_token=pad,
        sep_token=last,
        unk_token=unknown,
        model_max_length=window,
        model_input_names=names,
    )


def make_model(folder: Path, family: str = "bert", labels: int = 1, spread: float = 0.02, window: int = 64) -> Path:
    """Save a random cross-encoder and its tokenizer; returns the folder. `spread`: of the weights, and so of scores."""
    torch.manual_seed(7)
    config = CONFIGS[family]
    config.vocab_size, config.num_labels, config.pad_token_id = len(WORDS) + 4, labels, 1
    config.initializer_range = spread
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    make_tokenizer(family, window).save_pretrained(folder)
    return folder


def pickled(folder: Path) -> Path:
    """The model in the folder with its weights as torch pickles them, as old repositories have them."""
    for weights in list(folder.rglob("model.safetensors")):
        torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
        weights.unlink()
    return folder


def make_bi_encoder(folder: Path) -> Path:
    """A BERT without a relevance head."""
    BertModel(BertConfig(**SMALL, vocab_size=len(WORDS) + 4, pad_token_id=1)).save_pretrained(folder)
    make_tokenizer("bert").save_pretrained(folder)
    return folder
