"""Tiny models with random weights, made on the spot, in the shapes of real rerankers."""

import json
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    DebertaV2Config,
    ElectraConfig,
    LlamaConfig,
    ModernBertConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    XLMRobertaConfig,
)

from app.engines.models.artefact import Backend, Manifest, Precision
from app.engines.models.source import ModelSource
from app.export.command import export_model

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

# Settings that skip the measurements at the start, which take seconds.
UNMEASURED: dict[str, Any] = {"batch_tokens": 1024, "streams": 2, "part_tokens": 384}


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


def make_model(
    folder: Path,
    family: str = "bert",
    labels: int = 1,
    spread: float = 0.02,
    window: int = 64,
    activation: str | None = None,
) -> Path:
    """Save a random cross-encoder and its tokenizer; returns the folder. `spread`: of the weights, and so of scores.

    `activation`: a class below `torch.nn.modules` that the model declares. None leaves it to the library: a sigmoid.
    """
    torch.manual_seed(7)
    config = CONFIGS[family]
    config.vocab_size, config.num_labels, config.pad_token_id = len(WORDS) + 4, labels, 1
    config.initializer_range = spread
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    make_tokenizer(family, window).save_pretrained(folder)
    if activation:
        saved = json.loads((folder / "config.json").read_text())
        saved["sentence_transformers"] = {"activation_fn": f"torch.nn.modules.{activation}"}
        (folder / "config.json").write_text(json.dumps(saved))
    return folder


def make_native(folder: Path, kind: str) -> Path:
    """Save a random cross-encoder of a class that transformers has only since version 5; returns the folder."""
    size = len(WORDS) + 4
    config = AutoConfig.for_model(
        kind,
        **SMALL,
        vocab_size=size,
        num_labels=1,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        mask_token_id=3,
        max_position_embeddings=66,
        initializer_range=0.3,
    )
    torch.manual_seed(7)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    make_tokenizer("bert" if kind == "nomic_bert" else "xlm-roberta").save_pretrained(folder)
    return folder


# Stands for the chat template of a reranker: an instruction as the system's message, white space next to the texts.
CHAT = (
    "<|im_start|>system\nJudge the document.<|im_end|>\n<|im_start|>user\n"
    "<Instruct>: {% if messages[0].role == 'system' %}{{ messages[0].content }}{% else %}Find the answer{% endif %}\n"
    "<Query>: {{ messages | selectattr('role', 'eq', 'query') | map(attribute='content') | first }}\n"
    "<Document>: {{ messages | selectattr('role', 'eq', 'document') | map(attribute='content') | first }}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def make_chat_tokenizer(window: int = 512, chat: str | None = CHAT) -> PreTrainedTokenizerFast:
    """Byte pairs that split texts as Qwen's tokenizers do."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = " ".join([*WORDS, "yes no <Query>: <Document>: Judge the document. assistant user system"])
    tokenizer.train_from_iterator([f"{text}\n"] * 3 + ["yes", "no"] * 9, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=special[2], pad_token=special[0], model_max_length=window
    )
    made.model_input_names = ["input_ids", "attention_mask"]
    made.chat_template = chat
    return made


def make_decoder(folder: Path, labels: dict[int, str] | None = None, window: int = 512, family: str = "qwen3") -> Path:
    """A random decoder with `labels`, as conversions of rerankers are. Without labels it is a causal language model."""
    torch.manual_seed(7)
    tokenizer = make_chat_tokenizer(window, None if labels else CHAT)
    make_config = {"qwen3": Qwen3Config, "qwen2": Qwen2Config, "llama": LlamaConfig}[family]
    config = make_config(
        **SMALL | {"num_attention_heads": 4},
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=len(tokenizer),
        max_position_embeddings=window,
        initializer_range=0.3,
        tie_word_embeddings=True,
        pad_token_id=None,
        eos_token_id=None,
        bos_token_id=None,
    )
    if labels:
        config.id2label, config.label2id = labels, {label: index for index, label in labels.items()}
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    else:
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_yes_no(folder: Path, window: int = 512, family: str = "qwen3") -> Path:
    """A causal language model that is scored by its logits for yes and no, as Qwen3-Reranker is."""
    language_model = make_decoder(folder.with_name(f"{folder.name}-lm"), None, window, family)
    CrossEncoder(str(language_model), device="cpu").save_pretrained(str(folder))
    return folder


def make_modular(folder: Path, pooling: str = "cls", window: int = 64) -> Path:
    """ModernBERT with pooling and two dense layers after it, as the ettin rerankers have."""
    torch.manual_seed(7)
    base = folder.with_name(f"{folder.name}-base")
    config = CONFIGS["modernbert"]
    config.vocab_size, config.pad_token_id, config.initializer_range = len(WORDS) + 4, 1, 0.3
    AutoModel.from_config(config).save_pretrained(base)
    make_tokenizer("modernbert", window).save_pretrained(base)
    size = SMALL["hidden_size"]
    CrossEncoder(
        modules=[
            Transformer(str(base)),
            Pooling(size, pooling),
            Dense(size, size, activation_function=torch.nn.GELU()),
            LayerNorm(size),
            Dense(size, 1, activation_function=torch.nn.Identity(), module_output_name="scores"),
        ],
        device="cpu",
    ).save_pretrained(str(folder))
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


def export(
    model: Path, output: Path, backend: Any = "openvino", precision: Any = "fp32", *, force: bool = True, **options: Any
) -> Manifest:
    """Export a tiny model. A few texts of words that it knows calibrate it and compare it with the original.

    The project's own texts take much longer, and a tiny model does not know their words.
    """
    random = Random(7)
    groups = [[" ".join(random.choices(WORDS, k=length)) for length in (5, *range(1, 66, 6))] for _ in range(4)]
    with TemporaryDirectory() as folder:
        texts = Path(folder) / "texts.jsonl"
        texts.write_text("\n".join(json.dumps({"query": query, "documents": rest}) for query, *rest in groups))
        files: dict[str, Any] = {"calibration": texts, "evaluation": texts}
        return export_model(str(model), backend, precision, output, force=force, **files | options)


def export_here(source: ModelSource, backend: Backend, precision: Precision, folder: Path) -> None:
    """Export in this process. The loader exports in a child process, which takes seconds to import its libraries."""
    export(Path(source.location), folder, backend, precision, template=source.template)
