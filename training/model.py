"""The cross-encoder in training. It computes with few shapes and in reduced precision."""

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

# Lengths are padded to multiples of this, because engines compile code for each new shape.
STEP = 16
# On CPUs, fused attention is faster only above this length.
PLAIN_ATTENTION = 256


@cache
def fast_dtype(device: str) -> torch.dtype:
    """The precision to compute in: bfloat16 on a GPU, and on a CPU the one that multiplies faster.

    With AMX bfloat16 is several times as fast, with AVX-512 alone it can be half as fast.
    """
    if device != "cpu":
        return torch.bfloat16
    return min((torch.bfloat16, torch.float32), key=_seconds)


def _seconds(dtype: torch.dtype) -> float:
    """The time of a product of the size of a feed-forward layer."""
    left, right = torch.ones(1024, 384, dtype=dtype), torch.ones(384, 1536, dtype=dtype)
    times = []
    for _ in range(5):  # the first ones are slow
        started = perf_counter()
        left @ right
        times.append(perf_counter() - started)
    return min(times)


class CrossEncoder:
    """A model with one label, and its tokenizer.

    Word embeddings are frozen, because the training texts contain few of the words.
    """

    def __init__(self, start: str, device: str, layers: int | None = None) -> None:
        """`start`: folder or hub id of an encoder or cross-encoder. `layers`: repeat its layers to have this many."""
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.device, self.dtype = torch.device(device), fast_dtype(device)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(start)
        # Dropout is off: targets are soft, texts are seen once, and attention is twice as fast without it.
        model: Any = AutoModelForSequenceClassification.from_pretrained(
            start, num_labels=1, dtype=torch.float32, attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0
        )
        if layers:
            _deepen(model, layers)
        model.get_input_embeddings().requires_grad_(False)
        self.model: Any = model.to(self.device)
        self.window: int = self.tokenizer.model_max_length
        self.tokens_read = 0

    def logits(self, pairs: Sequence[tuple[str, str]], max_length: int, rows: int) -> Tensor:
        """Float32 logits of (query, document) pairs, shape (pairs,), computed in batches of `rows` similar lengths."""
        encoded = self._encode(pairs, min(max_length, self.window))
        order = sorted(range(len(pairs)), key=lambda at: len(encoded[at]["input_ids"]))
        parts = [order[first : first + rows] for first in range(0, len(order), rows)]
        scored = torch.cat([self._forward([encoded[at] for at in part]) for part in parts])
        return scored[torch.tensor(order).argsort().to(self.device)]

    def _encode(self, pairs: Sequence[tuple[str, str]], max_length: int) -> list[dict[str, list[int]]]:
        queries, documents = zip(*pairs, strict=True)
        encoded = self.tokenizer(list(queries), list(documents), truncation="longest_first", max_length=max_length)
        return [{name: encoded[name][at] for name in encoded} for at in range(len(pairs))]

    def _forward(self, rows: Sequence[dict[str, list[int]]]) -> Tensor:
        longest = max(len(row["input_ids"]) for row in rows)
        padded = min(-(-longest // STEP) * STEP, self.window)
        batch = self.tokenizer.pad(list(rows), padding="max_length", max_length=padded, return_tensors="pt")
        self.tokens_read += sum(len(row["input_ids"]) for row in rows)
        if self.device.type == "cpu":
            self.model.set_attn_implementation("eager" if padded <= PLAIN_ATTENTION else "sdpa")
        is_mixed = self.model.dtype != self.dtype
        with torch.autocast(self.device.type, self.dtype, enabled=is_mixed):
            logits: Tensor = self.model(**batch.to(self.device)).logits
        return logits.float().squeeze(-1)

    def trained(self) -> Iterator[tuple[str, Any]]:
        """Trained parameters, by name."""
        yield from ((name, each) for name, each in self.model.named_parameters() if each.requires_grad)

    def save(self, folder: Path) -> None:
        """Save in the Hugging Face format, in float16. The configuration says float32, in which CPUs compute."""
        import json

        self.model.half().save_pretrained(folder)
        self.model.float()
        # The tokenizer would otherwise save the truncation of the last batch.
        self.tokenizer.backend_tokenizer.no_truncation()
        self.tokenizer.save_pretrained(folder)
        file = folder / "config.json"
        config = json.loads(file.read_text())
        config |= {
            "dtype": "float32",
            "id2label": {"0": "relevance"},
            "label2id": {"relevance": 0},
            "sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"},
        }
        file.write_text(json.dumps(config, indent=2) + "\n")


def _deepen(model: Any, layers: int) -> None:
    """Repeat each layer several times in a row, to start a deeper model from a shallow one."""
    from copy import deepcopy

    encoder = model.base_model.encoder
    had = len(encoder.layer)
    encoder.layer = torch.nn.ModuleList(deepcopy(encoder.layer[at * had // layers]) for at in range(layers))
    model.config.num_hidden_layers = layers
